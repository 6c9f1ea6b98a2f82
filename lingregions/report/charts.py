"""Charts of any numbers: curves, scatters, heat maps, and the overlap of regions as a heat map with its dendrogram.

A heat map whose cells are all alike says nothing: `heatmap` returns None for it, and a sentence takes its place.
"""

import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform

from lingregions.report import numerals
from lingregions.report.figures import ROWS, Figure, choice, figure, heads, hover, legible, round_ticks
from lingregions.report.survey import Overlap

_DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3], [4, 4], [10, 3], [1, 3], [6, 2, 1, 2])
_TITLE = 40  # letters of a line of an axis title: a phone is no wider


@dataclass(frozen=True)
class Axis:
    """An axis of a curve or a scatter: its title, the kind of its numbers, whether it is logarithmic."""

    title: str
    kind: str = "number"
    logarithmic: bool = False

    def __post_init__(self) -> None:
        if self.kind in ("text", *numerals.SPANS) or self.kind not in numerals.KINDS:
            raise ValueError(f"the axis {self.title!r} has kind {self.kind!r}, which is none of numbers")

    def _encode(self, values: pd.DataFrame) -> dict[str, Any]:
        """The scale and the ticks for values in their places; of kind exponential these are logarithms.

        Their ticks are powers of ten, or round numbers where the values span less than a power and a half.
        """
        formats = {
            "percent": "format(datum.value, '~%')",
            "exponential": "abs(datum.value) < 3 ? format(pow(10, datum.value), '.3~r') "
            ": '1e' + format(datum.value, '~f')",
        }
        ticks: dict[str, Any] = {"labelExpr": formats[self.kind]} if self.kind in formats else {}
        low, high = float(values.min(axis=None)), float(values.max(axis=None))
        if self.kind == "exponential" and 0 < high - low < 1.5:
            ticks["values"] = [math.log10(tick) for tick in round_ticks(10**low, 10**high, 7)]
        elif self.kind == "exponential" and high > low:
            ticks["values"] = [*range(math.floor(low), math.ceil(high) + 1, math.ceil((high - low) / 7))]
        return {
            "title": textwrap.wrap(self.title, _TITLE),
            "scale": alt.Scale(type="log") if self.logarithmic else alt.Scale(zero=False, nice=True),
            "axis": {"tickCount": 6, **ticks},
        }

    def _place(self, values: pd.Series) -> pd.Series:
        """Where values lie on the axis."""
        return values / math.log(10) if self.kind == "exponential" else values


def curve(frame: pd.DataFrame, name: str, title: str, across: Axis, upwards: Axis) -> Figure:
    """Lines with bands.

    Args:
      frame: columns series, x, y, low, high.
      name: stem of its files.
      title: above it.
      across: the axis x.
      upwards: the axis y.
    """
    drawn = frame.assign(
        x=across._place(frame["x"]),
        **{end: upwards._place(frame[end].astype(float)) for end in ("y", "low", "high")},
        reading=[
            numerals.factor(span).removeprefix("×")
            if upwards.kind == "exponential"
            else numerals.KINDS["interval"](span)
            for span in (numerals.Span(*row) for row in frame[["y", "low", "high"]].to_numpy(float).tolist())
        ],
        at=[numerals.KINDS[across.kind](value) for value in frame["x"].tolist()],
    )
    series = list(dict.fromkeys(frame["series"]))
    chosen = "line == 'all' || datum.series == line"
    dim = alt.when(chosen).then(alt.value(1)).otherwise(alt.value(0.12))
    legend = alt.Legend(columns=2 if max(map(len, series)) < 22 else 1, symbolLimit=40) if len(series) > 1 else None
    base = alt.Chart(ROWS).encode(
        x=alt.X("x:Q", **across._encode(drawn[["x"]])),
        tooltip=hover(("series:N",), ("at:N", across.title), ("reading:N", upwards.title)),
    )
    scaled = upwards._encode(drawn[["y", "low", "high"]])
    dash = alt.StrokeDash("series:N", sort=None, scale=alt.Scale(range=list(_DASHES)), legend=None)
    stroke = alt.Stroke("series:N", sort=None, legend=None)
    single = base.encode(y=alt.Y("y:Q", **scaled), opacity=dim)
    layers = [
        single.mark_line(strokeWidth=2).encode(stroke=stroke, strokeDash=dash),
        single.mark_point(filled=True, size=45).encode(
            # Colour and shape of one layer are one legend; the other layers only take the same colours.
            color=alt.Color("series:N", sort=None, title=None, legend=legend),
            shape=alt.Shape("series:N", sort=None, title=None, legend=legend),
        ),
    ]
    if drawn["low"].notna().any():
        fade = alt.when(chosen).then(alt.value(0.16)).otherwise(alt.value(0.03))
        fill = alt.Fill("series:N", sort=None, legend=None)
        area = base.mark_area().encode(y=alt.Y("low:Q", **scaled), y2="high:Q", fillOpacity=fade, fill=fill)
        layers.insert(0, area)
    pick = choice("line", ["all", *series], "Line") if len(series) > 1 else alt.param(name="line", value="all")
    chart = alt.layer(*layers).add_params(pick).properties(height=300)
    words = (
        f"{numerals.plural(len(series), 'line')} of {upwards.title} against {across.title}: "
        f"{numerals.listed([str(each) for each in series[:8]])}"
        f"{' and others' if len(series) > 8 else ''}."
    )
    return figure(chart, drawn, name, title, words, frame)


def scatter(frame: pd.DataFrame, name: str, title: str, across: Axis, upwards: Axis, front: Sequence[str]) -> Figure:
    """Points with an interval on each axis, told apart by group, the Pareto front dotted.

    Args:
      frame: columns label, group, x, x_low, x_high, y, y_low, y_high.
      name: stem of its files.
      title: above it.
      across: the axis x.
      upwards: the axis y.
      front: labels of the points on the front.
    """
    drawn = frame.assign(
        **{end: across._place(frame[end].astype(float)) for end in ("x", "x_low", "x_high")},
        **{end: upwards._place(frame[end].astype(float)) for end in ("y", "y_low", "y_high")},
        front=frame["label"].isin(front),
    )
    ends = ("x", "x_low", "x_high", "y", "y_low", "y_high")
    groups = list(dict.fromkeys(frame["group"]))
    x, y = (axis._encode(drawn[[end, f"{end}_low", f"{end}_high"]]) for axis, end in ((across, "x"), (upwards, "y")))
    dim = alt.when("group == 'all' || datum.group == group").then(alt.value(1)).otherwise(alt.value(0.15))
    legend = alt.Legend(columns=2) if any(groups) and len(groups) > 1 else None
    base = alt.Chart(ROWS).encode(
        alt.X("x:Q", **x),
        alt.Y("y:Q", **y),
        opacity=dim,
        tooltip=[alt.Tooltip("label:N"), *(alt.Tooltip(f"{end}:Q", format=".4~g") for end in ends)],
    )
    points = base.mark_point(filled=True, size=80).encode(
        shape=alt.Shape("group:N", sort=None, title=None, legend=legend),
        color=alt.Color("group:N", sort=None, title=None, legend=legend),
    )
    stroke = alt.Stroke("group:N", sort=None, legend=None)
    layers = [
        base.mark_rule(opacity=0.6).encode(x=alt.X("x_low:Q", **x), x2="x_high:Q", stroke=stroke),
        base.mark_rule(opacity=0.6).encode(y=alt.Y("y_low:Q", **y), y2="y_high:Q", stroke=stroke),
        points,
    ]
    chosen = base.transform_filter("datum.front") if front else base
    if front:
        layers.insert(0, chosen.mark_line(strokeDash=[2, 3]).encode(color=alt.value("#808890")))
    if len(front or frame) <= 8:
        words = chosen.mark_text(align="left", dx=8, dy=-8).encode(text="label:N", color=alt.value("#1b1f24"))
        layers.append(words.properties(name="words"))
    chart = alt.layer(*layers).add_params(choice("group", ["all", *groups], "Group")).properties(height=360)
    said = f"{numerals.plural(len(frame), 'point')} of {upwards.title} against {across.title}"
    said += f"; on the Pareto front: {numerals.listed(front)}." if front else "."
    return figure(chart, drawn, name, title, said, frame)


def heatmap(
    name: str,
    title: str,
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float | None]],
    corner: str,
    kind: str,
    unit: str,
    note: str = "",
) -> Figure | None:
    """A heat map with its numbers where they find room; None where every cell is the same."""
    write = numerals.KINDS[kind]
    names = [(row, column) for row in rows for column in columns]
    frame = pd.DataFrame(names, columns=["row", "column"]).assign(value=np.array(values, float).ravel())
    if frame["value"].nunique() <= 1:
        return None
    frame["reading"] = frame["value"].map(write)
    signed = frame["value"].min() < 0 < frame["value"].max()
    span = float(frame["value"].abs().max())
    scale = alt.Scale(domain=[-span, span], range="diverging", interpolate="lab") if signed else alt.Scale(range="ramp")
    if kind == "share":
        scale = alt.Scale(domain=[0, span], range="ramp")
    legend = alt.Legend(gradientLength=160, orient="bottom")
    widest = 7 * int(frame["reading"].str.len().max())
    base = alt.Chart(ROWS).encode(
        # A cell without a number is in one layer alone, so that the layers disagree on the order of appearance.
        x=alt.X("column:N", sort=list(columns), title=None, axis=heads(columns)),
        y=alt.Y("row:N", sort=list(rows), title=corner or None),
        tooltip=hover(("row:N", corner or "row"), ("column:N",), ("reading:N", unit or "value")),
    )
    chart = alt.layer(
        base.mark_rect().encode(color=alt.Color("value:Q", title=unit or None, scale=scale, legend=legend)),
        base.mark_text(opacity=alt.ExprRef(f"width / {len(columns)} > {widest} ? 1 : 0"))
        .transform_filter("isValid(datum.value)")
        .encode(text="reading:N", color=legible("value")),
    ).properties(height=alt.Step(20))
    lowest, highest = frame.loc[frame["value"].idxmin()], frame.loc[frame["value"].idxmax()]
    words = f"Heat map of {len(rows)} rows and {len(columns)} columns, {unit or 'values'} from " + " to ".join(
        f"{cell['reading']} ({cell['row']}, {cell['column']})" for cell in (lowest, highest)
    )
    return figure(chart, frame, name, title, f"{words}.", frame.drop(columns="reading"), note=note)


def overlap(found: Overlap, name: str, title: str) -> list[Figure]:
    """The overlap of every pair as a heat map in the order of the dendrogram, and the dendrogram."""
    values = np.array(found.values, float)
    order, figures = list(range(len(found.names))), []
    distance = 1 - (values + values.T) / 2
    np.fill_diagonal(distance, 0)
    if len(found.names) > 2 and np.isfinite(distance).all():
        tree = hierarchy.linkage(squareform(distance, checks=False), method="average")
        drawn = hierarchy.dendrogram(tree, no_plot=True)
        order = [int(leaf) for leaf in drawn["leaves"]]
        figures.append(_dendrogram(drawn, [found.names[leaf] for leaf in order], f"{name}_dendrogram", title))
    names = [found.names[place] for place in order]
    apart = [[None if row == column else found.values[row][column] for column in order] for row in order]
    note = "The diagonal, a region with itself, is left out; neighbours share most."
    grid = heatmap(name, title, names, names, apart, corner="", kind="share", unit="IoU", note=note)
    return [*([grid] if grid else []), *figures]


def _dendrogram(drawn: Mapping[str, Any], names: Sequence[str], name: str, title: str) -> Figure:
    points = [
        (link, step, 1 - height, place)
        for link, (places, heights) in enumerate(zip(drawn["icoord"], drawn["dcoord"], strict=True))
        for step, (place, height) in enumerate(zip(places, heights, strict=True))
    ]
    frame = pd.DataFrame(points, columns=["link", "step", "iou", "place"])
    plain: dict[str, Any] = dict.fromkeys(("grid", "domain", "ticks", "labelOverlap"), False)
    called = f"{json.dumps(list(names))}[round((datum.value - 5) / 10)]"
    leaves = alt.Axis(values=[10 * place + 5 for place in range(len(names))], labelExpr=called, **plain)
    across = alt.Scale(domain=[1 - float(np.max(drawn["dcoord"])), 1], reverse=True)
    upwards = alt.Scale(domain=[0, 10 * len(names)], reverse=True)
    chart = alt.Chart(ROWS).mark_line(strokeWidth=1.5).properties(height=max(80, 20 * len(names)))
    chart = chart.encode(
        x=alt.X("iou:Q", title="mean IoU of what a fork joins", axis=alt.Axis(tickCount=5), scale=across),
        y=alt.Y("place:Q", title=None, axis=leaves, scale=upwards),
        detail="link:N",
        order="step:O",
        tooltip=hover(("iou:Q", "mean IoU", ".3f")),
    )
    words = f"Dendrogram by average linkage of {len(names)}, in the order {numerals.listed(names)}."
    return figure(chart, frame, name, f"{title}: dendrogram", words)
