"""Results, effects and regions to tables, figures and one self-contained page that can be explored.

`write(folder)` reads the work directory of a run, of today or of before, and writes `report.html`, `headline.txt`,
`tables/*.md` and `*.csv`, and `figures/*.svg`, `*.png` and `*.csv` into it, each file whole or not at all. Costs a few
seconds and no device, but for reading the region files. Needs the extra `report`; without it the numbers of a run are
all there, and `write` says what to install.
"""

import os
from pathlib import Path

from lingregions.report.effects import ReportError

__all__ = ["ReportError", "write"]


def write(folder: str | os.PathLike[str], pictures: bool = True) -> Path:
    """Write the report of the run in `folder` and return the path of its page.

    Args:
      folder: of the run.
      pictures: whether each figure is written as SVG and PNG too.

    Raises:
      ReportError: there are no results, a file of the run can't be read, two tables have one name, or the extra
        `report` is not installed; nothing is written then.
      RunError: the disk is full, read-only or closed to us; the report of before is intact.
    """
    try:
        from lingregions.report import export
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("lingregions"):
            raise
        raise ReportError(f"a report needs {error.name}: pip install 'lingregions[report]'") from error
    return export.write(Path(folder), pictures)
