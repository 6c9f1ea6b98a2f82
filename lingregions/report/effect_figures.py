"""Figures of effects: effect and interval in every language, by intervention; and all of them as a heat map.

An axis of effects is linear, or logarithmic on either side of zero: its marks are then placed by an expression, and its
labels say what it undoes.
"""

import math
from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from lingregions.report import numerals
from lingregions.report.effects import BASE, at_random, sign
from lingregions.report.figures import ROWS, Figure, choice, figure, heads, hover, legible, round_ticks

_BESIDE = 4  # interventions drawn over each other; of more, two are chosen
_SMALL = 0.01  # nats; below it a logarithmic axis of effects is linear


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
    whole = 0 < together <= _BESIDE  # all against the untouched model are drawn over each other
    ends = frame[["effect_nats", "low", "high"]].to_numpy(dtype=float)
    low, high = min(0.0, float(np.nanmin(ends, initial=0.0))), max(0.0, float(np.nanmax(ends, initial=0.0)), _SMALL)
    base, order = _marks(whole), None if whole else "ascending"
    across = alt.Axis(
        values=alt.ExprRef(f"axis == 'linear' ? {round_ticks(low, high)} : {_log_ticks(low, high)}"),
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
    """Effect of every intervention (rows) in every language (columns); None if they are few, or all alike."""
    if len(frame[["intervention", "control"]].drop_duplicates()) <= _BESIDE:
        return None
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
        base.mark_rect().encode(color=colour), base.mark_text().encode(text="mark:N", color=legible("effect_nats"))
    ).properties(height=alt.Step(18))
    many = frame["label"].nunique()
    words = f"Heat map of the effects of {many} comparisons in {len(columns)} languages: {_extremes(frame)}."
    note = f"{numerals.UNSURE}: the interval holds no effect; {numerals.MINUS}: the loss falls."
    drawn = frame[["label", "language", "effect_nats", *_WORDS, "mark"]]
    frame = frame.drop(columns=[*_WORDS, "mark"])
    return figure(chart, drawn, name, title, words, frame, note=note, folded=many > 40)
