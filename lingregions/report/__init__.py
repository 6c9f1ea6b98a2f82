"""Metrics and regions to tables, figures and one self-contained page.

`render(facts)` is pure; `write(folder)` reads the work directory of a run and writes `report.html`, `figures/*.png` and
`tables/*.md`, `*.csv` into it, each file whole or not at all. The page needs no matplotlib; the PNG files do (extra
`report`), and without it the page says so. Costs a second or two and no device, but for reading the region files.
"""

import os
from dataclasses import replace
from pathlib import Path

from lingregions.report import figures, tables
from lingregions.report.damage import Contrast, Row
from lingregions.report.facts import Facts, ReportError, gather
from lingregions.report.figures import Curve, Grid, Series, Strip
from lingregions.report.page import compose, render, summary
from lingregions.report.scatter import Point, Scatter
from lingregions.report.sections import Section
from lingregions.report.survey import Overlap, Survey
from lingregions.report.tables import Column, Table
from lingregions.run import replacing

__all__ = [
    "Column",
    "Contrast",
    "Curve",
    "Facts",
    "Grid",
    "Overlap",
    "Point",
    "ReportError",
    "Row",
    "Scatter",
    "Section",
    "Series",
    "Strip",
    "Survey",
    "Table",
    "compose",
    "gather",
    "render",
    "summary",
    "write",
]

ADVICE = "The PNG figures were not written, because matplotlib is not installed: pip install 'lingregions[report]'."


def write(folder: str | os.PathLike[str], pictures: bool = True) -> Path:
    """Write the report of the run in `folder` and return the path of its page; `pictures` also writes the PNG files.

    Raises:
      ReportError: there are no results, a file of the run can't be read, or two tables have one name; nothing is
        written then.
      RunError: the disk is full, read-only or closed to us; the report of before is intact.
    """
    path = Path(folder)
    facts = gather(path)
    items = [item for section in compose(facts) for item in section.items]
    names = [item.name for item in items]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ReportError(f"{path}: two tables or figures are called {twice[0]!r}; rename the file in tables/")
    try:
        for item in items if pictures else ():
            if not isinstance(item, Table):
                with replacing(path / "figures" / f"{item.name}.png") as target:
                    figures.draw(item, target)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        facts = replace(facts, notes=(*facts.notes, ADVICE))
    for item in items:
        if table := item.table() if isinstance(item, Grid | Curve) else item if isinstance(item, Table) else None:
            _put(path / "tables" / f"{table.name}.md", tables.markdown(table))
            _put(path / "tables" / f"{table.name}.csv", tables.spreadsheet(table))
    _put(path / "headline.txt", summary(facts))
    page = path / "report.html"
    _put(page, render(facts))
    return page


def _put(path: Path, content: str) -> None:
    with replacing(path) as target:
        # A lone surrogate in a name can't be encoded; it is shown as an escape rather than losing the report.
        target.write_bytes(content.encode("utf-8", errors="backslashreplace"))
