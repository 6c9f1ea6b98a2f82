"""Kinds: what a file `tables/<name>.json` may hold, by which any experiment adds a section to the report of its run.

One JSON object with a `title`, optionally a `note` (a sentence or a list of them), a `headline` (one sentence, shown at
the top of the page) and a `kind`:

    table (default)  columns: names, or {"name", "kind"}; rows: lists of cells; optionally totals (last rows set apart)
    texts            columns: names; rows: lists of texts, set side by side and wrapped, in any script and direction
    verdict          paragraphs: list of sentences; shown first, and in headline.txt
    heatmap          rows, columns: names; values: list of lists; optionally corner, unit, format
    overlap          names; values: square list of lists of IoU; optionally chance
    reliability      halves: {region: IoU}; growth: {region: {samples: IoU}}
    curve            across, upwards: axis titles; series: {label: [[x, y], ...]}, or with a band
                     {label: {"points": [[x, y], ...], "low": [y, ...], "high": [y, ...]}}; optionally logarithmic
                     (the axis x), format (of y), x_format
    scatter          x, y: axis titles; points: list of {"label", "group", "x", "y"} and optionally "x_low", "x_high",
                     "y_low", "y_high"; optionally x_format, y_format, and better: ["low" or "high" for x, for y],
                     which has the Pareto front drawn
    densities        regions: a list of {name, layers, matrices, counts, sizes, axis, carried, capacity} (see `Survey`)

The kinds of a column, and a `format`, are text, count, number, decimal, share, percent, probability, and exponential:
a natural logarithm, read as exp of it, so that a perplexity may be beyond a float. Two kinds of column take a list
[value, low, high]: `interval` prints "0.12 (0.10 to 0.15)", `factor` takes nats and prints "×12.3 (10.1 to 15.0)". A
number that is missing, a bound too, is null. On an axis of format exponential the ticks are powers of ten.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from lingregions.report import numerals, sections
from lingregions.report.figures import Curve, Figure, Grid, Series
from lingregions.report.numerals import Cell, Span
from lingregions.report.scatter import Point, Scatter
from lingregions.report.sections import Section
from lingregions.report.survey import Overlap, Survey
from lingregions.report.tables import Column, Table, column


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


def _table(name: str, content: Mapping[str, Any]) -> Section:
    rows = [list(row) for row in content["rows"]]
    columns = []
    for position, entry in enumerate(content["columns"]):
        if isinstance(entry, Mapping):
            columns.append(Column(entry["name"], entry.get("kind", "text")))
        else:
            columns.append(column(entry, [row[position] for row in rows]))
    cells = tuple(
        tuple(_cell(cell, columns[place].kind if place < len(columns) else "text") for place, cell in enumerate(row))
        for row in rows
    )
    table = Table(name, content["title"], tuple(columns), cells, totals=int(content.get("totals", 0)))
    return Section(content["title"], _paragraphs(content), (table,))


def _cell(cell: Any, kind: str) -> Cell:
    if kind not in numerals.SPANS:
        if isinstance(cell, list | dict):
            raise TypeError(f"a column of kind {kind} holds {cell!r}; a list belongs in one of kind interval or factor")
        return cell
    if cell is None:
        return None
    if not isinstance(cell, list) or len(cell) != 3:
        raise TypeError(f"a column of kind {kind} holds {cell!r}; expected [value, low, high]")
    return Span(*map(_number, cell))


def _texts(name: str, content: Mapping[str, Any]) -> Section:
    rows = tuple(tuple(numerals.text(cell) for cell in row) for row in content["rows"])
    table = Table(name, content["title"], tuple(map(Column, content["columns"])), rows, prose=True)
    return Section(content["title"], _paragraphs(content), (table,))


def _verdict(name: str, content: Mapping[str, Any]) -> Section:
    paragraphs = content["paragraphs"]
    if not isinstance(paragraphs, list) or not all(isinstance(words, str) for words in paragraphs):
        raise TypeError("paragraphs has to be a list of texts")
    return Section(content["title"], (*paragraphs, *_paragraphs(content)))


def _scatter(name: str, content: Mapping[str, Any]) -> Section:
    points = tuple(
        Point(
            str(entry["label"]),
            str(entry.get("group", "")),
            *(Span(*(_number(entry.get(key)) for key in (axis, f"{axis}_low", f"{axis}_high"))) for axis in "xy"),
        )
        for entry in content["points"]
    )
    figure = Scatter(
        name,
        content["title"],
        content["x"],
        content["y"],
        points,
        across_kind=content.get("x_format", "number"),
        upwards_kind=content.get("y_format", "number"),
        better=tuple(content.get("better", ())),
    )
    if not figure.drawn:
        raise ValueError("points holds none that has both an x and a y")
    said = []
    if front := [point.label for point in figure.front()]:
        said.append(
            f"No other point is better on both axes than {numerals.listed(front)} (the Pareto front, dotted; of the "
            "values as measured, intervals aside)."
        )
    if absent := [point.label for point in points if point not in figure.drawn]:
        said.append(f"Not drawn, because a value is missing: {numerals.listed(absent)}.")
    if any(bound is not None for point in points for span in (point.x, point.y) for bound in span[1:]):
        said.append("The bars are the intervals.")
    items: tuple[Table | Figure, ...] = (figure, figure.listing())
    return Section(content["title"], (*_paragraphs(content), *said), items)


def _series(label: str, content: Any) -> tuple[Series, int]:
    """A line with its band, and how many of its points were left out because a number is missing or not finite."""
    given = content if isinstance(content, Mapping) else {"points": content}
    points = [(_number(x), _number(y)) for x, y in given["points"]]
    sides = [list(map(_number, given.get(side) or [None] * len(points))) for side in ("low", "high")]
    if any(len(side) != len(points) for side in sides):
        raise ValueError(f"series {label!r} has {len(points)} points, but low or high has not as many")
    kept: list[tuple[float, float]] = []
    band: list[tuple[float, float] | None] = []
    for (x, y), low, high in zip(points, *sides, strict=True):
        if x is not None and y is not None:
            kept.append((x, y))
            band.append(None if low is None or high is None else (low, high))
    return Series(label, tuple(kept), tuple(band) if any(band) else ()), len(points) - len(kept)


def _heatmap(name: str, content: Mapping[str, Any]) -> Section:
    grid = Grid(
        name,
        content["title"],
        content.get("corner", ""),
        tuple(content["rows"]),
        tuple(content["columns"]),
        _numbers(content["values"]),
        kind=content.get("format", "number"),
        unit=content.get("unit", ""),
    )
    return Section(content["title"], _paragraphs(content), (grid,))


def _overlap(name: str, content: Mapping[str, Any]) -> Section:
    found = Overlap(tuple(content["names"]), _numbers(content["values"]), _number(content.get("chance")))
    section = sections.overlap(found, content["title"], name)
    return Section(section.title, (*section.paragraphs, *_paragraphs(content)), section.items)


def _reliability(name: str, content: Mapping[str, Any]) -> Section:
    growth = {
        region: {float(samples): float(iou) for samples, iou in points.items()}
        for region, points in content.get("growth", {}).items()
    }
    section = sections.reliability(content.get("halves"), growth, content["title"], name)
    return Section(section.title, (*section.paragraphs, *_paragraphs(content)), section.items)


def _curve(name: str, content: Mapping[str, Any]) -> Section:
    lines = [_series(label, points) for label, points in content["series"].items() if points]
    series = tuple(line for line, _ in lines if line.points)
    if not series:
        raise ValueError("series holds no point")
    curve = Curve(
        name,
        content["title"],
        content["across"],
        content["upwards"],
        series,
        logarithmic=bool(content.get("logarithmic", False)),
        kind=content.get("format", "number"),
        across_kind=content.get("x_format", ""),
    )
    if curve.logarithmic and any(x <= 0 for line in series for x, _ in line.points):
        raise ValueError("the axis x is logarithmic, but a point has an x of zero or less")
    said = ["The shaded bands are the intervals."] if curve.banded else []
    if absent := sum(lost for _, lost in lines):
        said.append(f"Left out, because a number is missing or not finite: {numerals.plural(absent, 'point')}.")
    return Section(content["title"], (*_paragraphs(content), *said), (curve,))


def _densities(name: str, content: Mapping[str, Any]) -> Section:
    section = sections.densities([survey(entry) for entry in content["regions"]])
    return Section(content["title"], (*section.paragraphs, *_paragraphs(content)), section.items)


def _integers(values: Any) -> tuple[tuple[int | None, ...], ...]:
    return tuple(tuple(None if value is None else int(value) for value in row) for row in values)


def survey(content: Mapping[str, Any]) -> Survey:
    """A survey from the JSON object that describes it."""
    return Survey(
        name=content["name"],
        layers=tuple(map(str, content["layers"])),
        matrices=tuple(content["matrices"]),
        counts=_integers(content["counts"]),
        sizes=_integers(content["sizes"]),
        axis=content.get("axis", "embed"),
        carried=tuple(map(int, content.get("carried", ()))),
        capacity=tuple(map(int, content.get("capacity", ()))),
        definition=content.get("definition", ""),
    )


BUILDERS: dict[str, Callable[[str, Mapping[str, Any]], Section]] = {
    "table": _table,
    "texts": _texts,
    "verdict": _verdict,
    "heatmap": _heatmap,
    "overlap": _overlap,
    "reliability": _reliability,
    "curve": _curve,
    "scatter": _scatter,
    "densities": _densities,
}


def build(name: str, content: Mapping[str, Any]) -> Section:
    """The section of one file's content; KeyError, TypeError or ValueError where it describes none."""
    kind = content.get("kind", "table")
    if kind not in BUILDERS:
        raise ValueError(f"kind {kind!r} is unknown; there are {', '.join(BUILDERS)}")
    return BUILDERS[kind](name, content)
