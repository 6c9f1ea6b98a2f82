"""Results, effects and regions to tables, figures and one self-contained page that can be explored.

`write(folder)` reads the work directory of a run, of today or of before, and writes `report.html`, `headline.txt`,
`tables/*.md` and `*.csv`, and `figures/*.svg`, `*.png` and `*.csv` into it, each file whole or not at all. Costs a few
seconds and no device, but for reading the region files. Needs the extra `report`, which `require` asks for before a
run begins.
"""

import os
from importlib import util
from pathlib import Path

from lingregions.report.effects import ReportError

__all__ = ["ReportError", "require", "write"]


def require() -> None:
    """Return if a report can be written.

    Raises:
      ModuleNotFoundError: the extra `report` is not installed; says how to get it.
    """
    if missing := [name for name in ("altair", "vl_convert") if util.find_spec(name) is None]:
        raise ModuleNotFoundError(
            f"a report needs {' and '.join(missing)}: pip install 'lingregions[report]', or in a checkout "
            "pip install -e '.[report]'"
        )


def write(folder: str | os.PathLike[str], pictures: bool = True) -> Path:
    """Write the report of the run in `folder` and return the path of its page.

    Args:
      folder: of the run.
      pictures: whether each figure is written as SVG and PNG too.

    Raises:
      ReportError: there are no results, a file of the run can't be read, or two tables have one name; nothing is
        written then.
      ModuleNotFoundError: the extra `report` is not installed; says how to get it.
      RunError: the disk is full, read-only or closed to us; the report of before is intact.
    """
    require()
    from lingregions.report import page

    return page.write(Path(folder), pictures)
