"""Kinds: what a file `tables/<name>.json` may hold, by which any experiment adds a section to the report of its run.

One JSON object with a `title`, optionally a `note` (a sentence or a list of them), a `headline` (one sentence of at
most 25 words, shown at the top of the page) and a `kind`:

    table (default)  columns: names, or {"name", "kind"}; rows: lists of cells; optionally totals (last rows set apart)
    texts            columns: names; rows: lists of texts, set side by side and wrapped, in any script and direction
    verdict          paragraphs: list of sentences; shown below the first picture, and in headline.txt
    heatmap          rows, columns: names; values: list of lists; optionally corner, unit, format
    overlap          names; values: square list of lists of IoU; optionally chance
    reliability      halves: {region: IoU}; growth: {region: {samples: IoU}}
    curve            across, upwards: axis titles; series: {label: [[x, y], ...]}, or with a band
                     {label: {"points": [[x, y], ...], "low": [y, ...], "high": [y, ...]}}; optionally logarithmic
                     (the axis x), format (of y), x_format
    scatter          x, y: axis titles; points: list of {"label", "group", "x", "y"} and optionally "x_low", "x_high",
                     "y_low", "y_high"; optionally x_format, y_format, and better: ["low" or "high" for x, for y],
                     which has the Pareto front drawn

The kinds of a column, and a `format`, are text, count, number, decimal, share, percent, probability, and exponential:
a natural logarithm, read as exp of it, so that a perplexity may be beyond a float. Two kinds of column take a list
[value, low, high]: `interval` prints "0.12 (0.10 to 0.15)", `factor` takes nats and prints "×12.3 (10.1 to 15.0)". A
number that is missing, a bound too, is null. On an axis of format exponential the ticks are powers of ten.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import pandas as pd

from lingregions.report import charts, numerals, sections
from lingregions.report.figures import Figure
from lingregions.report.numerals import Cell, Span
from lingregions.report.survey import Overlap
from lingregions.report.tables import Column, Table


def _paragraphs(content: Mapping[str, Any]) -> tuple[str, ...]:
    note = content.get("note", ())
    return (note,) if isinstance(note, str) and note else tuple(note)


def _number(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is not a number")
    return float(value) if math.isfinite(value) else None


def _numbers(values: Any) -> tuple[tuple[float | None, ...], ...]:
    return tuple(tuple(_number(value) for value in row) for row in values)


def _column(name: str, cells: list[Cell]) -> Column:
    """The column whose kind the cells suggest: whole numbers are counts, other numbers numbers, all else text."""
    types = {type(cell) for cell in cells if cell is not None}
    if types == {int}:
        return Column(name, "count")
    return Column(name, "number" if types and types <= {int, float} else "text")


def _table(name: str, content: Mapping[str, Any]) -> sections.Section:
    rows = [list(row) for row in content["rows"]]
    columns = []
    for position, entry in enumerate(content["columns"]):
        if isinstance(entry, Mapping):
            columns.append(Column(entry["name"], entry.get("kind", "text")))
        else:
            columns.append(_column(entry, [row[position] for row in rows]))
    cells = tuple(
        tuple(_cell(cell, columns[place].kind if place < len(columns) else "text") for place, cell in enumerate(row))
        for row in rows
    )
    table = Table(name, content["title"], tuple(columns), cells, totals=int(content.get("totals", 0)))
    return sections.Section(content["title"], _paragraphs(content), (table,))


def _cell(cell: Any, kind: str) -> Cell:
    if kind not in numerals.SPANS:
        if isinstance(cell, list | dict):
            raise TypeError(f"a column of kind {kind} holds {cell!r}; a list belongs in one of kind interval or factor")
        return cast(Cell, cell)
    if cell is None:
        return None
    if not isinstance(cell, list) or len(cell) != 3:
        raise TypeError(f"a column of kind {kind} holds {cell!r}; expected [value, low, high]")
    return Span(*map(_number, cell))


def _texts(name: str, content: Mapping[str, Any]) -> sections.Section:
    rows = tuple(tuple(numerals.text(cell) for cell in row) for row in content["rows"])
    table = Table(name, content["title"], tuple(map(Column, content["columns"])), rows, look="prose")
    return sections.Section(content["title"], _paragraphs(content), (table,))


def _verdict(name: str, content: Mapping[str, Any]) -> sections.Section:
    paragraphs = content["paragraphs"]
    if not isinstance(paragraphs, list) or not all(isinstance(words, str) for words in paragraphs):
        raise TypeError("paragraphs has to be a list of texts")
    return sections.Section(content["title"], (*paragraphs, *_paragraphs(content)))


_FIELDS = {axis: (axis, f"{axis}_low", f"{axis}_high") for axis in "xy"}


def _scatter(name: str, content: Mapping[str, Any]) -> sections.Section:
    ends = [key for keys in _FIELDS.values() for key in keys]
    named = [{"label": str(entry["label"]), "group": str(entry.get("group", ""))} for entry in content["points"]]
    numbers = [{key: _number(entry.get(key)) for key in ends} for entry in content["points"]]
    points = pd.concat([pd.DataFrame(named), pd.DataFrame(numbers, dtype=float)], axis="columns")
    drawn = points.dropna(subset=["x", "y"])
    if drawn.empty:
        raise ValueError("points holds none that has both an x and a y")
    better = tuple(content.get("better", ()))
    if better and (len(better) != 2 or not set(better) <= {"low", "high"}):
        raise ValueError(f"better has to say low or high for x and for y, not {list(better)}")
    said = []
    if front := _pareto(drawn, better):
        said.append(
            f"No other point is better on both axes than {numerals.listed(front)} (the Pareto front, dotted; of the "
            "values as measured, intervals aside)."
        )
    if absent := points["label"][~points.index.isin(drawn.index)].tolist():
        said.append(f"Not drawn, because a value is missing: {numerals.listed(absent)}.")
    if points[["x_low", "x_high", "y_low", "y_high"]].notna().any(axis=None):
        said.append("The bars are the intervals.")
    across, upwards = (charts.Axis(content[axis], content.get(f"{axis}_format", "number")) for axis in "xy")
    figure = charts.scatter(drawn, name, content["title"], across, upwards, front)
    rows = tuple(
        (
            row["label"],
            row["group"],
            *(Span(*(_number(row[key]) for key in keys)) for keys in _FIELDS.values()),
        )
        for row in points.to_dict("records")
    )
    columns = [Column(axis.title, "factor" if axis.kind == "exponential" else "interval") for axis in (across, upwards)]
    listing = Table(f"{name}_points", content["title"], (Column("point"), Column("group"), *columns), rows)
    return sections.Section(content["title"], (*_paragraphs(content), *said), (figure, listing))


def _pareto(points: pd.DataFrame, better: Sequence[str]) -> list[str]:
    """Labels of the points that no other point beats on both axes; none where `better` says nothing."""
    if not better:
        return []
    values = points[["x", "y"]].to_numpy(float) * [1 if side == "high" else -1 for side in better]
    beaten = ((values[None] >= values[:, None]).all(-1) & (values[None] > values[:, None]).any(-1)).any(1)
    labels: list[str] = points["label"][~beaten].tolist()
    return labels


def _heatmap(name: str, content: Mapping[str, Any]) -> sections.Section:
    title, values = content["title"], _numbers(content["values"])
    rows, columns = list(content["rows"]), list(content["columns"])
    if len(values) != len(rows) or any(len(line) != len(columns) for line in values):
        raise ValueError(f"values has not {len(rows)} rows of {len(columns)} cells")
    kind, unit, corner = content.get("format", "number"), content.get("unit", ""), content.get("corner", "")
    figure = charts.heatmap(name, title, sections.named(rows), sections.named(columns), values, corner, kind, unit)
    if figure is not None:
        return sections.Section(title, _paragraphs(content), (figure,))
    cells = [cell for line in values for cell in line if cell is not None]
    said = f"Every cell is {numerals.KINDS[kind](cells[0])} {unit}".strip() if cells else "No cell was measured"
    return sections.Section(title, (*_paragraphs(content), f"{said}: there is nothing to draw."))


def _overlap(name: str, content: Mapping[str, Any]) -> sections.Section:
    found = Overlap(tuple(content["names"]), _numbers(content["values"]), _number(content.get("chance")))
    called = replace(found, names=tuple(sections.named(found.names)))
    figure = charts.overlap(called, name, content["title"])
    return sections.Section(content["title"], (*sections.overlap_words(found), *_paragraphs(content)), tuple(figure))


def _reliability(name: str, content: Mapping[str, Any]) -> sections.Section:
    halves, said = content.get("halves") or {}, []
    items: list[Table | Figure] = []
    called = dict(zip(halves, sections.named(list(halves)), strict=True))
    if halves:
        worst, best = min(halves, key=halves.__getitem__), max(halves, key=halves.__getitem__)
        said.append(
            f"Regions found from two disjoint halves of the samples share an IoU from {numerals.share(halves[worst])} "
            f"({called[worst]}) to {numerals.share(halves[best])} ({called[best]}): what differs between the halves is "
            "sampling noise, and no overlap between languages or definitions can be trusted beyond it."
        )
        rows = tuple((called[region], value) for region, value in halves.items())
        heads = (Column("region"), Column("IoU of the two halves", "share"))
        items.append(Table(f"{name}_split_half", "Split-half IoU", heads, rows))
    points = [
        (region, float(samples), float(iou), math.nan, math.nan)
        for region, line in content.get("growth", {}).items()
        for samples, iou in sorted(line.items(), key=lambda point: float(point[0]))
    ]
    if points:
        frame = pd.DataFrame(points, columns=_CURVE)
        frame["series"] = sections.named(frame["series"].tolist())
        wide = bool(frame["x"].min() > 0 and frame["x"].max() >= 8 * frame["x"].min())
        words = "IoU with the final region, against the number of samples"
        across = charts.Axis("samples", "count", logarithmic=wide)
        items.append(charts.curve(frame, f"{name}_growth", words, across, charts.Axis("IoU", "share")))
    return sections.Section(content["title"], (*said, *_paragraphs(content)), tuple(items))


_CURVE = ["series", "x", "y", "low", "high"]


def _curve(name: str, content: Mapping[str, Any]) -> sections.Section:
    rows = [row for label, points in content["series"].items() if points for row in _series(label, points)]
    frame = pd.DataFrame(rows, columns=_CURVE).astype(dict.fromkeys(_CURVE[1:], float))
    kept = frame.dropna(subset=["x", "y"])
    if kept.empty:
        raise ValueError("series holds no point")
    across = charts.Axis(content["across"], content.get("x_format", "number"), bool(content.get("logarithmic", False)))
    if across.logarithmic and (kept["x"] <= 0).any():
        raise ValueError("the axis x is logarithmic, but a point has an x of zero or less")
    figure = charts.curve(
        kept, name, content["title"], across, charts.Axis(content["upwards"], content.get("format", "number"))
    )
    said = ["The shaded bands are the intervals."] if kept["low"].notna().any() else []
    if absent := len(frame) - len(kept):
        said.append(f"Left out, because a number is missing or not finite: {numerals.plural(absent, 'point')}.")
    return sections.Section(content["title"], (*_paragraphs(content), *said), (figure,))


def _series(label: str, content: Any) -> list[tuple[Any, ...]]:
    """The rows (label, x, y, low, high) of a line."""
    given = content if isinstance(content, Mapping) else {"points": content}
    points = given["points"]
    sides = [given.get(side) or [None] * len(points) for side in ("low", "high")]
    if any(len(side) != len(points) for side in sides):
        raise ValueError(f"series {label!r} has {len(points)} points, but low or high has not as many")
    return [(label, *map(_number, (x, y, low, high))) for (x, y), low, high in zip(points, *sides, strict=True)]


_BUILDERS: dict[str, Callable[[str, Mapping[str, Any]], sections.Section]] = {
    "table": _table,
    "texts": _texts,
    "verdict": _verdict,
    "heatmap": _heatmap,
    "overlap": _overlap,
    "reliability": _reliability,
    "curve": _curve,
    "scatter": _scatter,
}


def build(name: str, content: Mapping[str, Any]) -> sections.Section:
    """The section of one file's content; KeyError, TypeError or ValueError where it describes none."""
    kind = content.get("kind", "table")
    if kind not in _BUILDERS:
        raise ValueError(f"kind {kind!r} is unknown; there are {', '.join(_BUILDERS)}")
    return _BUILDERS[kind](name, content)
