"""Figures: one Vega-Lite specification each, built with Altair from a data frame.

The page explores the specification, `page` draws it as SVG and PNG, and the frame is its CSV: nothing is drawn twice.
Every figure says in words what it shows, tells series by shape or dash as well as by colour, and fits its container. A
heat map whose cells are all alike says nothing: `heatmap` returns None for it, and a sentence takes its place.
"""

import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import altair as alt
import numpy as np
import pandas as pd
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform

from lingregions.report import numerals
from lingregions.report.effects import BASE, at_random, sign
from lingregions.report.survey import Overlap

# Okabe and Ito (2008), told apart with any colour vision.
SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#B87F00", "#3C97CF", "#777777", "#8F8500")
_SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left")
_DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3], [4, 4], [10, 3], [1, 3], [6, 2, 1, 2])
BESIDE = 4  # interventions drawn over each other; of more, two are chosen
_TITLE = 40  # letters of a line of an axis title: a phone is no wider
_SMALL = 0.01  # nats; below it a logarithmic axis of effects is linear


def _theme(
    ink: str, quiet: str, rule: str, paper: str, ramp: Sequence[str], diverging: Sequence[str]
) -> dict[str, Any]:
    words: dict[str, Any] = {"labelColor": quiet, "titleColor": ink, "titleFontWeight": "normal"}
    words |= dict.fromkeys(("labelFontSize", "titleFontSize"), 12)
    return {
        "background": paper,
        "aria": False,  # the page says what the whole figure shows; thousands of marks would be read out one by one
        "font": "system-ui, -apple-system, Segoe UI, Roboto, Noto Sans, sans-serif",
        "mark": {"aria": False},
        "view": {"stroke": None},
        "axis": {
            **words,
            **dict.fromkeys(("gridColor", "domainColor", "tickColor"), rule),
            "labelLimit": 300,
            "labelOverlap": True,
        },
        "axisBand": {"grid": False, "labelOverlap": False},
        "legend": {**words, "labelLimit": 320, "symbolSize": 90, "orient": "top", "direction": "horizontal"},
        "title": {"color": ink, "fontSize": 13, "fontWeight": 600, "anchor": "start"},
        "text": {"color": ink, "fontSize": 11},
        "rule": {"color": quiet},
        "range": {
            "category": list(SERIES),
            "symbol": list(_SHAPES),
            "ramp": list(ramp),
            "heatmap": list(ramp),
            "diverging": list(diverging),
        },
    }


THEMES = {
    "light": _theme(
        *("#1b1f24", "#59636e", "#d5dae0", "#ffffff"),
        ["#eef3f8", "#b5d0e6", "#6aa3cc", "#2b6fa8", "#0b3c6f"],
        ["#b35806", "#f1b46f", "#f7f4f0", "#8fb8dc", "#0b4a86"],
    ),
    "dark": _theme(
        *("#e3e7ec", "#9aa5b1", "#343c46", "#12161b"),
        ["#1c2732", "#27506f", "#3f82b0", "#84bde0", "#e4f2fc"],
        ["#f0a04b", "#80532a", "#232a31", "#376a93", "#9ccdf0"],
    ),
}


@dataclass(frozen=True)
class Figure:
    """A figure: `name` is its file stem, `alt` what it shows in words, `spec` its Vega-Lite specification.

    Figures of one `group` follow each other: a parameter that is set in one is set in the others.
    """

    name: str
    title: str
    alt: str
    spec: Mapping[str, Any]
    frame: pd.DataFrame
    note: str = ""
    group: str = ""
    folded: bool = False


ROWS = alt.NamedData("rows")  # of every chart; `figure` puts them in, so that Altair does not check each number


def figure(
    chart: Any, rows: pd.DataFrame, name: str, title: str, words: str, frame: pd.DataFrame | None = None, **others: Any
) -> Figure:
    """A figure of a chart of `ROWS` that fits its container.

    Args:
      chart: of Altair.
      rows: what it draws.
      name: stem of its files.
      title: above it.
      words: what it shows.
      frame: its CSV, if that is not `rows`.
      others: further fields of `Figure`.
    """
    spec = chart.properties(width="container").to_dict()
    spec.pop("config", None)
    spec |= {"description": words, "datasets": {**spec.get("datasets", {}), "rows": _records(rows)}}
    return Figure(name, title, words, spec, rows if frame is None else frame, **others)


def hover(*fields: tuple[str, ...]) -> list[alt.Tooltip]:
    """What hovering shows: (field, title, format) of each line, the last two if they are not the field's own."""
    return [alt.Tooltip(name, **dict(zip(("title", "format"), more, strict=False))) for name, *more in fields]  # type: ignore[arg-type]


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a frame as a specification holds them: seven digits, null where a number is missing."""

    def plain(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, float | np.floating):
            return float(f"{value:.7g}") if math.isfinite(value) else None
        return value.item() if isinstance(value, np.generic) else value

    records = frame.astype(object).to_dict("records")
    return [plain({str(key): value for key, value in record.items()}) for record in records]


def choice(name: str, options: Sequence[str], words: str, value: str | None = None) -> alt.Parameter:
    """A parameter that a list beside the figure sets."""
    bind = alt.binding_select(options=list(options), name=f"{words} ")
    return alt.param(name=name, value=options[0] if value is None else value, bind=bind)


def heads(names: Sequence[str], orient: Literal["top", "bottom"] = "top") -> alt.Axis:
    """The axis of named columns: level where they have room for it, else upright, and then as many as can be read."""
    level = f"width >= {len(names) * (7 * max(map(len, names), default=0) + 8)}"
    outer = {"top": ("left", "bottom"), "bottom": ("right", "top")}[orient]
    return alt.Axis(
        orient=orient,
        labelAngle=alt.ExprRef(f"{level} ? 0 : -90"),
        labelAlign=alt.ExprRef(f"{level} ? 'center' : '{outer[0]}'"),
        labelBaseline=alt.ExprRef(f"{level} ? '{outer[1]}' : 'middle'"),
        labelOverlap="greedy",
        labelSeparation=3,
    )


def _round_ticks(low: float, high: float, most: int = 9) -> list[float]:
    """Round values (1, 2 or 5 times a power of ten apart) inside [low, high]."""
    rough = max(high - low, 1e-9) / (most - 1)
    base = 10 ** math.floor(math.log10(rough))
    stride = next(base * times for times in (1, 2, 5, 10) if base * times >= rough * (1 - 1e-9))
    steps = range(math.floor(low / stride + 1e-9), math.ceil(high / stride - 1e-9) + 1)
    return [float(f"{step * stride:.6g}") for step in steps if low <= step * stride <= high]


# --- effects --------------------------------------------------------------------------------------------------------


def _readings(frame: pd.DataFrame) -> pd.DataFrame:
    """What hovering shows: the effect with its interval, in nats and as a factor of perplexity."""
    spans = [numerals.Span(*row) for row in frame[["effect_nats", "low", "high"]].to_numpy(float).tolist()]
    return frame.assign(
        reading=[numerals.KINDS["interval"](span) for span in spans],
        times=[numerals.factor(span) for span in spans],
        p_words=[numerals.KINDS["probability"](value) for value in frame["p_adjusted"].tolist()],
    )


_WORDS = ["reading", "times", "p_words"]  # columns of `_readings`
_HOVER = hover(
    *(("language:N",), ("family:N",), ("label:N", "intervention"), ("reading:N", "effect, nats per token")),
    *(("times:N", "perplexity"), ("p_words:N", "p, adjusted"), ("segments:Q",), ("seeds:Q",)),
)


def _labels(effects: pd.DataFrame) -> pd.Series:
    """What each row compares, in words: the intervention, and its control where that is another intervention."""
    against = effects["intervention"] + " against " + effects["control"]
    return effects["intervention"].where(effects["control"] == BASE, against)


def effects(frame: pd.DataFrame, name: str, title: str) -> Figure:
    """Effect and interval of every language (rows), by intervention: the picture that opens a report.

    Args:
      frame: rows of effects.csv of single languages, `language` as it is printed.
      name: stem of its files.
      title: above it.
    """
    frame = _readings(frame.assign(label=_labels(frame)))
    names = list(dict.fromkeys([*frame["label"][frame["control"] == BASE], *frame["label"]]))
    together = frame["label"][frame["control"] == BASE].nunique()
    whole = 0 < together <= BESIDE  # all against the untouched model are drawn over each other
    ends = frame[["effect_nats", "low", "high"]].to_numpy(dtype=float)
    low, high = min(0.0, float(np.nanmin(ends, initial=0.0))), max(0.0, float(np.nanmax(ends, initial=0.0)), _SMALL)
    base, order = _marks(whole), None if whole else "ascending"
    across = alt.Axis(
        values=alt.ExprRef(f"axis == 'linear' ? {_round_ticks(low, high)} : {_log_ticks(low, high)}"),
        labelExpr=f"axis == 'linear' ? format(datum.value, '~g') : format({_unscaled('datum.value')}, '.1~r')",
        labelOverlap="greedy",
        title="effect: difference in NLL, nats per token",
    )
    legend = alt.Legend(columns=1)
    colour = alt.Color("slot:N", title=None, sort=order, legend=legend)
    shape = alt.Shape("slot:N", title=None, sort=order, legend=legend)
    points = base.mark_point(filled=True, size=60).encode(
        alt.X("effect_nats_at:Q", axis=across), color=colour, shape=shape
    )
    stroke = alt.Stroke("slot:N", sort=order, legend=None)
    bars = base.mark_rule(strokeWidth=1.5).encode(alt.X("low_at:Q", axis=across), x2="high_at:Q", stroke=stroke)
    zero = alt.Chart(alt.Data(values=[{"x": 0}])).mark_rule(strokeDash=[2, 2]).encode(x="x:Q")
    step = max(20, 10 * (together if whole else 2))
    chart = alt.layer(zero, bars, points).properties(height={"step": step, "for": "position"})
    # Where effects differ so much, a linear axis shows the largest alone.
    large = float(np.nanmax(np.abs(ends), initial=0.0)) > 2
    chart = chart.add_params(*_controls(frame, names, whole, "logarithmic" if large else "linear"))
    many, pairs = numerals.plural(frame["language"].nunique(), "language"), numerals.plural(len(names), "comparison")
    words = f"Effects in {many} of {pairs}: {_extremes(frame)}. The table below gives every figure."
    note = "The bars are intervals; an effect whose bar crosses the dotted line may be none. Hover for the figures."
    ranks = {
        f"by_{key}": frame[column].rank(method="dense") for key, column in (("name", "language"), ("family", "family"))
    }
    rows = frame[["label", "control", "language", "family", "effect_nats", "low", "high", *_WORDS, "segments", "seeds"]]
    return figure(chart, rows.assign(**ranks), name, title, words, frame.drop(columns=_WORDS), note=note)


def _marks(whole: bool) -> Any:
    """What bars and points of the effects have in common: the chosen rows, each at its place."""
    other = f"(intervention == 'all' && datum.control == '{BASE}')" if whole else "datum.label == beside"
    return (
        alt.Chart(ROWS)
        .transform_filter(f"datum.label == intervention || {other}")
        .transform_calculate(
            # The first of two comes first in the legend: a mark that is not seen sorts the other behind it.
            slot="datum.label" if whole else "(datum.label == intervention ? '' : '\u200b') + datum.label",
            row="order == 'family' && datum.family ? datum.family + ' · ' + datum.language : datum.language",
            **{f"{end}_at": _scaled(f"datum.{end}") for end in ("effect_nats", "low", "high")},
        )
        .transform_joinaggregate(mean="mean(effect_nats)", groupby=["language"])
        .transform_calculate(
            place="order == 'effect' ? -datum.mean : datum.by_name + (order == 'family' ? 1000 * datum.by_family : 0)"
        )
        .encode(
            y=alt.Y("row:N", title=None, sort=alt.EncodingSortField("place", op="min", order="ascending")),
            yOffset=alt.YOffset("slot:N", sort=None if whole else "ascending"),
            opacity=alt.when("family == 'all' || datum.family == family").then(alt.value(1)).otherwise(alt.value(0.15)),
            tooltip=_HOVER,
        )
    )


def _controls(frame: pd.DataFrame, names: Sequence[str], whole: bool, axis: str) -> list[alt.Parameter]:
    """The lists beside the effects; what has the largest mean effect is shown first, beside a random control."""
    means = frame[frame["control"] == BASE].groupby("label", sort=False)["effect_nats"].mean().abs()
    largest = str(means.idxmax()) if means.notna().any() else names[0]
    random = frame["label"][at_random(frame)]
    beside = next((label for label in random if label != largest), (*names, "none")[1 if len(names) > 1 else -1])
    families = [str(family) for family in dict.fromkeys(frame["family"]) if family]
    return [
        choice("intervention", ["all", *names] if whole else names, "Intervention", "all" if whole else largest),
        *([] if whole else [choice("beside", ["none", *names], "beside", beside)]),
        choice("order", ["effect", "family", "name"], "Order"),
        choice("axis", ["linear", "logarithmic"], "Axis", axis),
        choice("family", ["all", *families], "Family"),
    ]


def _extremes(frame: pd.DataFrame) -> str:
    found = frame.dropna(subset=["effect_nats"])
    if found.empty:
        return "none is finite"
    ends = (found.loc[found["effect_nats"].idxmin()], found.loc[found["effect_nats"].idxmax()])
    return "from " + " to ".join(
        f"{numerals.number(row['effect_nats'])} nats per token ({row['label']}, {row['language']})" for row in ends
    )


def _scaled(value: str) -> str:
    """Expression of the place of an effect on the axis that is chosen; logarithmic beyond `_SMALL`."""
    folded = f"({value} < 0 ? -1 : 1) * log(1 + abs({value}) / {_SMALL}) / LN10"
    return f"axis == 'linear' || !isValid({value}) ? {value} : {folded}"


def _unscaled(value: str) -> str:
    return f"({value} < 0 ? -1 : 1) * {_SMALL} * (pow(10, abs({value})) - 1)"


def _log_ticks(low: float, high: float) -> list[float]:
    found = [0.0]
    for step in range(8):
        size = _SMALL * 10**step
        place = math.log10(1 + size / _SMALL)
        found += ([place] if size <= 3 * high else []) + ([-place] if size <= -3 * low else [])
    return sorted(found)


def effects_map(frame: pd.DataFrame, name: str, title: str) -> Figure | None:
    """Effect of every intervention (rows) in every language (columns), where there are many; None if all are alike."""
    frame = _readings(frame.assign(label=_labels(frame)))
    frame["mark"] = np.where(sign(frame) == 0, numerals.UNSURE, np.where(frame["effect_nats"] < 0, numerals.MINUS, ""))
    if frame["effect_nats"].nunique() <= 1:
        return None
    columns = list(dict.fromkeys(frame["language"]))
    base = alt.Chart(ROWS).encode(
        x=alt.X("language:N", sort=columns, title=None, axis=heads(columns, "bottom")),
        y=alt.Y("label:N", sort=None, title=None),
        tooltip=[_HOVER[0], *_HOVER[2:6]],
    )
    span = float(frame["effect_nats"].abs().max())
    scale = alt.Scale(type="symlog", constant=_SMALL, domain=[-span, span], range="diverging", interpolate="lab")
    colour = alt.Color(
        "effect_nats:Q",
        title="nats per token",
        scale=scale,
        legend=alt.Legend(gradientLength=180, values=[-span, 0, span], format=".2~r"),
    )
    chart = alt.layer(
        base.mark_rect().encode(color=colour), base.mark_text().encode(text="mark:N", color=_legible("effect_nats"))
    ).properties(height=alt.Step(18))
    many = frame["label"].nunique()
    words = f"Heat map of the effects of {many} comparisons in {len(columns)} languages: {_extremes(frame)}."
    note = f"{numerals.UNSURE}: the interval holds no effect; {numerals.MINUS}: the loss falls."
    drawn = frame[["label", "language", "effect_nats", "reading", "times", "p_words", "mark"]]
    frame = frame.drop(columns=["reading", "times", "p_words", "mark"])
    return figure(chart, drawn, name, title, words, frame, note=note, folded=many > 40)


def _legible(field: str) -> Any:
    """Black or white, whichever is read on the colour of the cell in any theme."""
    return (
        alt.when(f"luminance(scale('color', datum['{field}'])) > 0.35")
        .then(alt.value("#111"))
        .otherwise(alt.value("#fff"))
    )


# --- tables of numbers ------------------------------------------------------------------------------------------------


def heatmap(
    name: str,
    title: str,
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float | None]],
    corner: str = "row",
    kind: str = "number",
    unit: str = "",
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
        .encode(text="reading:N", color=_legible("value")),
    ).properties(height=alt.Step(20))
    lowest, highest = frame.loc[frame["value"].idxmin()], frame.loc[frame["value"].idxmax()]
    words = f"Heat map of {len(rows)} rows and {len(columns)} columns, {unit or 'values'} from " + " to ".join(
        f"{cell['reading']} ({cell['row']}, {cell['column']})" for cell in (lowest, highest)
    )
    return figure(chart, frame, name, title, f"{words}.", frame.drop(columns="reading"), note=note)


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
            ticks["values"] = [math.log10(tick) for tick in _round_ticks(10**low, 10**high, 7)]
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


def curve(frame: pd.DataFrame, name: str, title: str, across: Axis, upwards: Axis, note: str = "") -> Figure:
    """Lines with bands.

    Args:
      frame: columns series, x, y, low, high.
      name: stem of its files.
      title: above it.
      across: the axis x.
      upwards: the axis y.
      note: below it.
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
    return figure(chart, drawn, name, title, words, frame, note=note)


def scatter(
    frame: pd.DataFrame, name: str, title: str, across: Axis, upwards: Axis, front: Sequence[str] = (), note: str = ""
) -> Figure:
    """Points with an interval on each axis, told apart by group, the Pareto front dotted.

    Args:
      frame: columns label, group, x, x_low, x_high, y, y_low, y_high.
      name: stem of its files.
      title: above it.
      across: the axis x.
      upwards: the axis y.
      front: labels of the points on the front.
      note: below it.
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
    return figure(chart, drawn, name, title, said, frame, note=note)


# --- regions ---------------------------------------------------------------------------------------------------------


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
