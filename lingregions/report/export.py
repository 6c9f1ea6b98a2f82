"""Export: the files of a report, written beside its page from the same tables and specifications."""

import json
from pathlib import Path
from typing import Any

import vl_convert

from lingregions.report import data as inputs
from lingregions.report import page, tables
from lingregions.report.effects import ReportError
from lingregions.report.figures import THEMES, Figure
from lingregions.run import replacing

_WIDTH = 760  # of an exported figure, in pixels of its SVG
_SCALE = 2  # pixels of a PNG for one of the SVG


def write(folder: Path, pictures: bool = True) -> Path:
    """Write the page, the tables and the figures of a run; see `report.write`."""
    found = inputs.read(folder)
    parts = page.compose(found)
    items = [item for part in parts for item in part.items]
    names = [item.name for item in items]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ReportError(f"{folder}: two tables or figures are called {twice[0]!r}; rename the file in tables/")
    formats = ("svg", "png", "csv") if pictures else ("csv",)
    for item in items:
        if isinstance(item, Figure):
            _put(folder / "figures" / f"{item.name}.csv", item.frame.to_csv(index=False, lineterminator="\n"))
            if pictures:
                drawn = json.dumps({**item.spec, "width": _WIDTH}, allow_nan=False)
                look: Any = {"vl_version": page.VEGA_LITE, "config": THEMES["light"]}  # on white
                _put(folder / "figures" / f"{item.name}.svg", vl_convert.vegalite_to_svg(drawn, **look))
                _put(folder / "figures" / f"{item.name}.png", vl_convert.vegalite_to_png(drawn, **look, scale=_SCALE))
        else:
            _put(folder / "tables" / f"{item.name}.md", tables.markdown(item))
            _put(folder / "tables" / f"{item.name}.csv", tables.spreadsheet(item))
    _put(folder / "headline.txt", page.summary(found))
    _put(folder / "report.html", page.render(found, parts, formats))
    return folder / "report.html"


def _put(path: Path, content: str | bytes) -> None:
    with replacing(path) as target:
        # A lone surrogate in a name can't be encoded; it is shown as an escape rather than losing the report.
        target.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "backslashreplace"))
