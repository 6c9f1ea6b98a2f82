"""Atlas: where regions lie, as figures that can be opened - layer and role, inside a matrix, the residual axis, pairs.

The figures of one region follow each other: the cell that is chosen in the atlas is the matrix that is opened below it.
"""

import json
import math
from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from lingregions.report import numerals
from lingregions.report.figures import ROWS, SERIES, Figure, choice, figure, heads, hover
from lingregions.report.survey import Overlap, Profile, Survey

_OPENED = 1300  # profiles of matrices on a page, 0.6 kB each
_RESIDUAL_BINS = 1024  # of the density along the residual axis
# Sides of a matrix, and what its indices are called.
_SIDES = {"out": "outputs", "in": "inputs"}
_HELD = {side: f"held by the fullest 1 % of {words}" for side, words in _SIDES.items()}


def _grid(chart: Any, roles: Sequence[str], layers: Sequence[str], row: str, colour: alt.Color) -> Any:
    """A heat map of layers (rows) and roles (columns)."""
    across = alt.X("role:N", sort=roles, title=None, axis=heads(roles))
    chart = chart.mark_rect(cursor="pointer").encode(x=across, y=alt.Y(row, sort=layers, title="layer"), color=colour)
    return chart.properties(height=alt.Step(16))


def atlas(surveys: Sequence[Survey]) -> list[Figure]:
    """Layer and role of every region, and inside the matrix that is chosen the density along its two named axes."""
    columns = ["region", "layer", "role", "entries", "size", "density", *_SIDES]
    frame = pd.DataFrame([row for survey in surveys for row in _cells(survey)], columns=columns)
    profiles: list[tuple[str, Profile]] = []
    for survey in surveys:  # the first regions, as many as a page can carry
        if not profiles or len(profiles) + len(survey.profiles) <= _OPENED:
            profiles += [(survey.name, profile) for profile in survey.profiles]
    inside = _inside(profiles) if profiles else []
    # Where every matrix holds the same share its map would be one colour: what differs is how a matrix holds it.
    even = all(survey.even for survey in surveys)
    held, share = {_HELD[side]: side for side in _SIDES}, {} if even else {"share of the matrix": "density"}
    offered = held | share if surveys and surveys[0].even else share | held
    measures = {words: field for words, field in offered.items() if frame[field].nunique() > 1}
    if not measures:
        return inside
    frame = frame[frame.groupby("role")["entries"].transform("sum") > 0]  # a role that no region reaches: no column
    value = " : ".join(f"measure == {json.dumps(words)} ? datum['{field}']" for words, field in measures.items())
    legend = alt.Legend(format="~%", orient="bottom", gradientLength=200)
    colour = alt.Color("value:Q", title=None, scale=alt.Scale(range="ramp"), legend=legend)
    roles, layers = list(dict.fromkeys(frame["role"])), list(dict.fromkeys(frame["layer"]))
    base = alt.Chart(ROWS).transform_filter("datum.region == region")
    chart = (
        _grid(base.transform_calculate(value=f"{value} : null"), roles, layers, "layer:N", colour)
        .encode(
            tooltip=hover(
                *(("region:N",), ("layer:N",), ("role:N",), ("entries:Q", "entries", ",")),
                ("density:Q", "share of the matrix", ".3~%"),
                *((f"{side}:Q", _HELD[side], ".3~%") for side in _SIDES),
            )
        )
        .add_params(
            choice("region", [survey.name for survey in surveys], "Region"),
            choice("measure", list(measures), "Colour"),
            alt.selection_point(name="cell", fields=["region", "layer", "role"], on="click", clear=False),
        )
    )
    words = f"{len(layers)} layers and {len(roles)} roles, for {numerals.plural(len(surveys), 'region')}"
    words = f"Heat map of {words}: {numerals.listed(list(measures))}."
    title, note = "Atlas of the regions: layer and role", "Choose a cell to see inside its matrix below."
    return [figure(chart, frame, "atlas", title, words, note=note if inside else "", group="atlas"), *inside]


def _cells(survey: Survey) -> list[tuple[Any, ...]]:
    held = {(profile.layer, profile.role, profile.side): profile.held for profile in survey.profiles}
    shares = [[held.get((layer, role, side), math.nan) for side in _SIDES] for layer, role, *_ in survey.cells]
    return [
        (survey.name, layer, role, count, size, count / size, *share)
        for (layer, role, count, size), share in zip(survey.cells, shares, strict=True)
    ]


def _bars(base: Any, words: str) -> list[Any]:
    """Density over equal runs of indices (fields `bins`, `width`), its fullest indices (field `fullest`) marked."""
    bars = (
        base.transform_flatten(["bins"])
        .transform_window(number="row_number()")
        .transform_calculate(begin="(datum.number - 1) * datum.width", end="datum.number * datum.width")
        .mark_rect(color=SERIES[0])
        .encode(
            x=alt.X("begin:Q", title=words, scale=alt.Scale(nice=False)),
            x2="end:Q",
            y=alt.Y("bins:Q", title="density", axis=alt.Axis(format="~%", tickCount=4)),
            y2=alt.datum(0),
            tooltip=hover(("begin:Q", "from index", ".0f"), ("end:Q", "to", ".0f"), ("bins:Q", "density", ".3~%")),
        )
    )
    peak = "datum.fullest.density"
    tops = base.transform_flatten(["fullest"]).transform_calculate(
        index="datum.fullest.index", peak=peak, at="datum.fullest.index + 0.5"
    )
    tops = tops.encode(x="at:Q", y="peak:Q", tooltip=hover(("index:Q",), ("peak:Q", "density", ".3~%")))
    spot = tops.mark_point(filled=True, shape="diamond", size=70, color=SERIES[1])
    number = tops.mark_text(align="left", dx=7, dy=-6).encode(text="index:N").properties(name="words")
    return [bars, spot, number]


def _inside(profiles: Sequence[tuple[str, Profile]]) -> list[Figure]:
    """The two figures of one matrix: density along its outputs and along its inputs."""
    name, peak = max(profiles, key=lambda pair: pair[1].held)  # what stands out most is shown first
    start = {"region": name, "layer": peak.layer, "role": peak.role}
    frame = pd.DataFrame([{"region": region, **_profile(profile)} for region, profile in profiles])
    base = alt.Chart(ROWS).transform_filter(" && ".join(f"datum.{key} == {key}" for key in start))
    head = base.mark_text(align="left", baseline="bottom", dy=-14).properties(name="words_axis")
    head = head.encode(x=alt.value(0), y=alt.value(0), text="axis:N")
    note = "Diamonds: the indices that hold most. Bars: means over equal runs of indices."
    figures = []
    for side, words in _SIDES.items():
        chart = alt.layer(*_bars(base, f"index along the {words}"), head).properties(height=150)
        for key, first in start.items():
            options = frame[key].unique().tolist()
            # One set of controls: the second figure follows the first.
            control = (
                choice(key, options, key.capitalize(), first) if side == "out" else alt.param(name=key, value=first)
            )
            chart = chart.add_params(control)
        said = f"Density along the {words} of one matrix at a time, its fullest indices marked; first {peak.role} of "
        title, said = f"Inside a matrix: along its {words}", f"{said}layer {peak.layer}."
        rows = frame[frame["side"] == side].drop(columns="side")
        figures.append(figure(chart, rows, f"inside_{side}", title, said, note=note, group="atlas"))
    return figures


def _profile(profile: Profile) -> dict[str, Any]:
    return {
        "layer": profile.layer,
        "role": profile.role,
        "side": profile.side,
        "axis": f"{profile.axis} ({profile.length:,} indices)",
        "width": profile.length / len(profile.bins),
        "bins": [float(f"{value:.3g}") for value in profile.bins],
        "fullest": [{"index": index, "density": float(f"{density:.3g}")} for index, density in profile.fullest],
    }


def residual(surveys: Sequence[Survey]) -> Figure | None:
    """Density of each region along the residual axis, over every matrix that carries it; special dimensions marked."""
    rows: list[dict[str, Any]] = []
    for survey in surveys:
        if not sum(survey.carried):
            continue
        density = np.array(survey.carried) / survey.capacity
        edges = np.linspace(0, len(density), min(_RESIDUAL_BINS, len(density)) + 1).astype(int)
        tallest = np.argsort(-density, kind="stable")[: 6 if density.max() >= 2 * density.mean() else 0]
        rows.append(
            {
                "region": survey.name,
                "width": len(density) / (len(edges) - 1),
                "bins": [float(f"{value:.4g}") for value in np.maximum.reduceat(density, edges[:-1])],
                "fullest": [{"index": int(index), "density": float(density[index])} for index in tallest],
            }
        )
    if not rows:
        return None
    frame, axis = pd.DataFrame(rows), surveys[0].axis
    base = alt.Chart(ROWS).transform_filter("datum.region == region")
    chart = alt.layer(*_bars(base, f"index of the axis {axis}")).properties(height=220)
    chart = chart.add_params(choice("region", frame["region"].tolist(), "Region"))
    words = f"Density of {numerals.plural(len(rows), 'region')} at every index of the axis {axis}"
    indices = {row["region"]: ", ".join(str(top["index"]) for top in row["fullest"]) for row in rows}
    marked = [f"{region}: {listed}" for region, listed in indices.items() if listed]
    words += f"; indices that stand out: {'; '.join(marked[:4])}." if marked else "; no index stands out."
    note = "Share of the entries at an index that the region holds, over every matrix that carries the axis; a diamond"
    note = f"{note} is at least twice the mean."
    return figure(chart, frame, "residual", f"Along the residual axis {axis}", words, note=note, group="atlas")


def pairs(found: Overlap, most: int = 8) -> Figure | None:
    """Two regions compared: their overlap by layer and role; None where there are no two, or all cells are alike."""
    names = found.names[:most]
    layers = list(dict.fromkeys(layer for layer, _, _ in found.cells))
    roles = list(dict.fromkeys(role for _, role, _ in found.cells))
    cells = {(layer, role): np.round(iou, 4).tolist() for layer, role, iou in found.cells}
    missing = [[math.nan] * len(found.names)] * len(found.names)
    rows = [
        (names[one], names[two], role, layers, [cells.get((layer, role), missing)[one][two] for layer in layers])
        for one in range(len(names))
        for two in range(one)
        for role in roles
    ]
    rows = [row for row in rows if any(map(math.isfinite, row[-1]))]
    roles = [role for role in roles if any(row[2] == role for row in rows)]
    present = {value for row in rows for value in row[-1] if math.isfinite(value)}
    if len(present) <= 1:
        return None
    # What overlaps most is shown first.
    one, two = max(rows, key=lambda row: max((value for value in row[-1] if math.isfinite(value)), default=0))[:2]
    frame = pd.DataFrame(rows, columns=["one", "two", "role", "layers", "iou"])
    both = "datum.one == first && datum.two == second", "datum.one == second && datum.two == first"
    base = alt.Chart(ROWS).transform_filter(f"({both[0]}) || ({both[1]})").transform_flatten(["layers", "iou"])
    scale, legend = alt.Scale(range="ramp", domain=[0, max(present)]), alt.Legend(orient="bottom", gradientLength=200)
    chart = (
        _grid(base, roles, layers, "layers:N", alt.Color("iou:Q", title="IoU", scale=scale, legend=legend))
        .encode(tooltip=hover(("layers:N", "layer"), ("role:N",), ("iou:Q", "IoU", ".3f")))
        .add_params(choice("first", names, "Region", one), choice("second", names, "against", two))
    )
    words = f"Intersection over union of two of {len(names)} regions in every layer and role, at most "
    title = "Two regions compared: overlap by layer and role"
    return figure(chart, frame, "pairs", title, f"{words}{numerals.share(max(present))}.")
