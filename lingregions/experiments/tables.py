"""Tables: builders of what studies show, tables/<name>.json; the kinds that there are stand in `report.kinds`."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from lingregions.effects import ALL, SIGNIFICANT, Effects
from lingregions.intervention import UNTOUCHED, Intervention
from lingregions.report import numerals

Cell = list[float | None]  # [value, low, high], None for what is not known or not finite
_TIMES = "perplexity, as a multiple of the untouched model's"
NOTE = (
    "Perplexity over all languages (geometric mean) as a multiple of the untouched model's. Intervals: paired "
    f"bootstrap over segments and seeds; languages are counted at p < {SIGNIFICANT} after Holm's correction."
)


def table(
    title: str, columns: Mapping[str, str], rows: Iterable[Sequence[Any]], note: str = "", **options: Any
) -> dict[str, Any]:
    """Return a table.

    Args:
      title: of the section.
      columns: {name: kind of column, "text" or one of `report.kinds`}.
      rows: a cell for each column.
      note: a sentence above it.
      **options: further keys, such as totals.
    """
    names = [{"name": name, "kind": kind} for name, kind in columns.items()]
    return {"title": title, "note": note, "columns": names, "rows": [list(row) for row in rows], **options}


def curve(
    title: str, across: str, series: Mapping[str, Iterable[tuple[float, Cell]]], upwards: str = _TIMES, **options: Any
) -> dict[str, Any]:
    """Return a curve with intervals.

    Args:
      title: of the section.
      across: title of the axis x.
      series: {label: (x, [y, low, high])}; a point without a finite y is left out, and a series without a point.
      upwards: title of the axis y.
      **options: further keys; the axis y is of format exponential unless they say another.
    """
    lines = {}
    for label, given in series.items():
        points = [(x, cell) for x, cell in given if cell[0] is not None]
        if points:
            lines[label] = {
                "points": [[x, cell[0]] for x, cell in points],
                "low": [cell[1] for _, cell in points],
                "high": [cell[2] for _, cell in points],
            }
    head = {"kind": "curve", "title": title, "across": across, "upwards": upwards, "format": "exponential"}
    return {**head, **options, "series": lines}


def heatmap(
    title: str, corner: str, values: Mapping[str, Mapping[str, float | None]], unit: str = _TIMES, **options: Any
) -> dict[str, Any]:
    """Return a heat map of {row: {column: value}}; what is not finite is left out."""
    rows = [[None if each is None else finite(each) for each in row.values()] for row in values.values()]
    columns = list(next(iter(values.values()), {}))
    head = {"kind": "heatmap", "title": title, "corner": corner, "format": "exponential", "unit": unit}
    return {**head, **options, "rows": list(values), "columns": columns, "values": rows}


def overlap(
    title: str, names: Sequence[str], values: np.ndarray, fraction: float | None = None, note: str = ""
) -> dict[str, Any]:
    """Return the overlaps (IoU) of regions with each other, [n, n]; beside what two of a fraction share by chance."""
    head = {"kind": "overlap", "title": title, "names": list(names), "values": values.tolist()}
    chance = {} if fraction is None else {"chance": fraction / (2 - fraction)}
    return head | ({"note": note} if note else {}) | chance


def frontier(title: str, note: str, x: str, y: str, points: Mapping[str, tuple[str, Cell, Cell]]) -> dict[str, Any]:
    """Return the plot of a gain against its price, {label: (group, price, gain)}; upper left is better."""

    def point(label: str, group: str, *cells: Cell) -> dict[str, Any]:
        ends = {
            f"{axis}{end}": cell[place]
            for axis, cell in zip("xy", cells, strict=True)
            for place, end in enumerate(("", "_low", "_high"))
        }
        return {"label": label, "group": group, **ends}

    head = {"kind": "scatter", "title": title, "note": f"Upper left is better. {note}", "x": x, "y": y}
    return {**head, "better": ["low", "high"], "points": [point(label, *each) for label, each in points.items()]}


def by_language(effects: Effects, rows: Mapping[str, Intervention], title: str, corner: str) -> dict[str, Any]:
    """Return the heat map of effects: {label: intervention} over languages."""
    values = {
        label: {code: effects.value(each, language=code) for code in effects.languages} for label, each in rows.items()
    }
    return heatmap(title, corner, values)


# Columns of `against`, after those that name a row.
AGAINST = {"perplexity": "factor", "over its control": "factor", "more harm in": "text"}


def against(effects: Effects, intervention: Intervention, control: Intervention | None = None) -> list[Any]:
    """Return the cells of `AGAINST`: times the untouched model, times a control, languages harmed more than by it."""
    own = effects.cell(intervention)
    if control is None:
        return [own, None, None]
    return [own, effects.cell(intervention, control), harmed(effects, intervention, control)]


def harmed(effects: Effects, intervention: Intervention, control: Intervention = UNTOUCHED) -> str:
    """Return in how many languages an intervention does more harm than its control: "9 of 11 languages"."""
    count = len(effects.harmed(intervention, control))
    return f"{count} of {numerals.plural(len(effects.languages), 'language')}"


def times(effects: Effects, intervention: Intervention, control: Intervention = UNTOUCHED, language: str = ALL) -> str:
    """Return an effect as a factor of perplexity with its interval: "×12.3 (10.1 to 15.0)"."""
    return numerals.factor(numerals.Span(*effects.cell(intervention, control, language)))


def turned(cell: Cell) -> Cell:
    """Return [value, low, high] with the other sign: a gain, of an effect, which is a loss."""
    value, low, high = cell
    return [None if each is None else -each for each in (value, high, low)]


def finite(value: float) -> float | None:
    """Return a figure as JSON holds it: None for what is not finite."""
    return value if math.isfinite(value) else None
