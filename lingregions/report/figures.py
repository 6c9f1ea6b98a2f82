"""Figure: one Vega-Lite specification, built with Altair from a data frame; and what all figures look like.

The page explores the specification, `page` draws it as SVG and PNG, and the frame is its CSV: nothing is drawn twice.
Every figure says in words what it shows, tells series by shape or dash as well as by colour, and fits its container.
The figures themselves are in `effect_figures`, `charts` and `atlas`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import altair as alt
import numpy as np
import pandas as pd

# Okabe and Ito (2008), told apart with any colour vision.
SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#B87F00", "#3C97CF", "#777777", "#8F8500")
_SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left")


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


def round_ticks(low: float, high: float, most: int = 9) -> list[float]:
    """Round values (1, 2 or 5 times a power of ten apart) inside [low, high]."""
    rough = max(high - low, 1e-9) / (most - 1)
    base = 10 ** math.floor(math.log10(rough))
    stride = next(base * times for times in (1, 2, 5, 10) if base * times >= rough * (1 - 1e-9))
    steps = range(math.floor(low / stride + 1e-9), math.ceil(high / stride - 1e-9) + 1)
    return [float(f"{step * stride:.6g}") for step in steps if low <= step * stride <= high]


def legible(field: str) -> Any:
    """Black or white, whichever is read on the colour of the cell in any theme."""
    return (
        alt.when(f"luminance(scale('color', datum['{field}'])) > 0.35")
        .then(alt.value("#111"))
        .otherwise(alt.value("#fff"))
    )
