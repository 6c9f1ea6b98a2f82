"""Grid, Strip and Curve: the three kinds of figure, each as markup for the page and as a picture beside it.

A Grid (heat map) is an HTML table whose cells are coloured and hold their number, so that it reads without colour, on a
phone and through a screen reader; a Strip (dots per row on a logarithmic axis) and a Curve (lines or needles) are
inline SVG. The colours are classes of the page, which knows light from dark. `draw` writes the same figures as PNG and
is the only place that needs matplotlib (extra `report`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from lingregions.report import numerals
from lingregions.report.numerals import Cell
from lingregions.report.tables import Column, Table

STEPS = 16  # shades of a heat map; class "s0" is the palest
# One hue whose lightness falls steadily: readable without colour vision, and in grey print.
LIGHT = ((247, 250, 253), (198, 219, 239), (107, 165, 214), (33, 105, 176), (8, 48, 107))
DARK = ((27, 34, 43), (28, 62, 99), (42, 105, 166), (112, 172, 222), (222, 237, 250))
# Okabe and Ito (2008), told apart with any colour vision; the first is the ink of the page.
SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#666666", "#B3A100")
DASHES = ("", "6 3", "2 3", "8 3 2 3")
WIDTH = 760  # of an SVG, in its own units


@dataclass(frozen=True)
class Grid:
    """A heat map: one number per (row, column), printed in its cell.

    `groups` is a second header per row (a language's family); `totals` counts the last rows that are means over the
    rows above; the colour runs from `low` to `high`, by default from 0 to the largest value. `labels`, where given, are
    printed in the cells in place of the values that colour them (counts on densities).
    """

    name: str
    title: str
    corner: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]
    kind: str = "number"
    unit: str = ""
    note: str = ""
    groups: tuple[str, ...] = ()
    group: str = ""
    totals: int = 0
    low: float | None = None
    high: float | None = None
    labels: tuple[tuple[Cell, ...], ...] = ()
    label_kind: str = "count"
    label: str = ""

    def __post_init__(self) -> None:
        wrong = [len(row) for row in self.values if len(row) != len(self.columns)]
        if len(self.values) != len(self.rows) or wrong or (self.groups and len(self.groups) != len(self.rows)):
            raise ValueError(
                f"grid {self.name!r}: {len(self.rows)} rows x {len(self.columns)} columns are named, but the values "
                f"have {len(self.values)} rows" + (f", one of {wrong[0]} columns" if wrong else "")
            )

    def limits(self) -> tuple[float, float]:
        """The values of the palest and the strongest colour."""
        present = [value for row in self.values for value in row if numerals.finite(value) and value is not None]
        low = self.low if self.low is not None else min([0.0, *present])
        high = self.high if self.high is not None else max([low, *present])
        return low, high

    def printed(self, row: int, column: int) -> str:
        """What stands in a cell."""
        if self.labels:
            return numerals.KINDS[self.label_kind](self.labels[row][column])
        return numerals.KINDS[self.kind](self.values[row][column])

    def table(self) -> Table:
        """The same numbers as a table; a long one, of values and labels, where there are labels."""
        if self.labels:
            return Table(
                self.name,
                self.title,
                (
                    Column(self.corner or "row"),
                    Column("column"),
                    Column(self.label, self.label_kind),
                    Column(self.unit, self.kind),
                ),
                tuple(
                    (row, name, label, value)
                    for row, labels, values in zip(self.rows, self.labels, self.values, strict=True)
                    for name, label, value in zip(self.columns, labels, values, strict=True)
                ),
                self.note,
            )
        second = (Column(self.group),) if self.groups else ()
        return Table(
            self.name,
            self.title + (f" ({self.unit})" if self.unit else ""),
            (Column(self.corner), *second, *(Column(name, self.kind) for name in self.columns)),
            tuple(
                (name, *(self.groups[position : position + 1]), *row)
                for position, (name, row) in enumerate(zip(self.rows, self.values, strict=True))
            ),
            self.note,
            self.totals,
        )


@dataclass(frozen=True)
class Strip:
    """Dots per row on a logarithmic axis. `points[row]` holds (label, natural logarithm); `marks[row]` their mean."""

    name: str
    title: str
    axis: str
    rows: tuple[str, ...]
    points: tuple[tuple[tuple[str, float], ...], ...]
    marks: tuple[float | None, ...]
    mark: str
    note: str = ""


@dataclass(frozen=True)
class Series:
    """One line of a Curve: its label and its points, x ascending."""

    label: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Curve:
    """Lines over an axis, or needles (one vertical stroke per x, the `peaks` highest labelled with their x)."""

    name: str
    title: str
    across: str
    upwards: str
    series: tuple[Series, ...]
    note: str = ""
    logarithmic: bool = False
    needles: bool = False
    peaks: int = 0
    kind: str = "number"
    level: float | None = None  # a horizontal line to compare with
    level_label: str = ""

    def table(self) -> Table:
        """The points as a long table."""
        rows = tuple((series.label, x, y) for series in self.series for x, y in series.points)
        whole = all(float(x).is_integer() for _, x, _ in rows)
        cells: tuple[tuple[Cell, ...], ...] = tuple((label, int(x) if whole else x, y) for label, x, y in rows)
        return Table(
            self.name,
            self.title,
            (Column("series"), Column(self.across, "count" if whole else "number"), Column(self.upwards, self.kind)),
            cells,
            self.note,
        )


Figure = Grid | Strip | Curve


# --- colour ---------------------------------------------------------------------------------------------------------


def shade(anchors: tuple[tuple[int, int, int], ...], position: float) -> tuple[int, int, int]:
    """The colour at `position` in [0, 1] of a scale given by its anchors (linear between them)."""
    place = min(max(position, 0.0), 1.0) * (len(anchors) - 1)
    left = min(int(place), len(anchors) - 2)
    red, green, blue = (
        round(a + (place - left) * (b - a)) for a, b in zip(anchors[left], anchors[left + 1], strict=True)
    )
    return red, green, blue


def luminance(colour: tuple[int, int, int]) -> float:
    """Relative luminance in [0, 1] (WCAG 2.2)."""
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in (c / 255 for c in colour)
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def ink(colour: tuple[int, int, int]) -> str:
    """Black or white, whichever contrasts more with a background."""
    light = luminance(colour)
    return "#000" if (light + 0.05) / 0.05 >= 1.05 / (light + 0.05) else "#fff"


def palette(anchors: tuple[tuple[int, int, int], ...]) -> str:
    """The style rules of the shades s0, s1, ...: background and the ink that is legible on it."""
    rules = []
    for step in range(STEPS):
        colour = shade(anchors, step / (STEPS - 1))
        rules.append(f".s{step} {{ background: rgb{colour}; color: {ink(colour)} }}\n")
    return "".join(rules)


def step(value: Cell, low: float, high: float) -> int | None:
    """Which shade a value has; None where there is no value."""
    if not numerals.finite(value):
        return None
    assert isinstance(value, int | float)
    return min(STEPS - 1, max(0, round((value - low) / (high - low) * (STEPS - 1)))) if high > low else 0


# --- markup ---------------------------------------------------------------------------------------------------------


def _grid(figure: Grid) -> str:
    low, high = figure.limits()
    second = f'<th scope="col">{escape(figure.group)}</th>' if figure.groups else ""
    heads = "".join(f'<th scope="col" class="n">{escape(name)}</th>' for name in figure.columns)
    lines = [
        f'<figure class="grid" id="figure_{escape(figure.name)}">',
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(figure.title)}">',
        f"<table><caption>{escape(figure.title)}</caption>",
        f'<thead><tr><th scope="col">{escape(figure.corner)}</th>{second}{heads}</tr></thead><tbody>',
    ]
    for position, (name, row) in enumerate(zip(figure.rows, figure.values, strict=True)):
        total = ' class="total"' if position >= len(figure.rows) - figure.totals else ""
        cells = [f'<th scope="row">{escape(name)}</th>']
        if figure.groups:
            cells.append(f'<td class="group">{escape(figure.groups[position])}</td>')
        for place, value in enumerate(row):
            shade_ = step(value, low, high)
            css = "none" if shade_ is None else str(shade_)
            cells.append(f'<td class="n s{css}">{escape(figure.printed(position, place))}</td>')
        lines.append(f"<tr{total}>{''.join(cells)}</tr>")
    lines.append("</tbody></table></div>")
    legend = "".join(f'<i class="s{shade_}"></i>' for shade_ in range(STEPS))
    unit = f" {escape(figure.unit)}" if figure.unit else ""
    first, last = (numerals.KINDS[figure.kind](value) if value else "0" for value in (low, high))
    lines.append(
        f'<p class="legend"><span>{escape(first)}</span><span class="bar" aria-hidden="true">{legend}</span>'
        f"<span>{escape(last)}{unit}</span></p>"
    )
    if figure.note:
        lines.append(f"<figcaption>{escape(figure.note)}</figcaption>")
    lines.append("</figure>")
    return "\n".join(lines)


def powers(low: float, high: float, most: int = 8) -> list[int]:
    """Whole powers of ten from below exp(low) to above exp(high), every n-th so that there are at most `most`."""
    first, last = math.floor(low / math.log(10) + 1e-9), math.ceil(high / math.log(10) - 1e-9)
    last = max(last, first + 1)
    least = (last - first) / (most - 1)
    stride = next(times * 10**place for place in range(9) for times in (1, 2, 5) if times * 10**place >= least)
    first -= first % stride
    return list(range(first, last + stride, stride))


def power(exponent: int) -> str:
    """A tick of a logarithmic axis: 1, 10, 100, then 10³ and so on."""
    return str(10**exponent) if 0 <= exponent <= 2 else f"10{str(exponent).translate(numerals.SUPERSCRIPTS)}"


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round values (1, 2 or 5 times a power of ten apart) that cover [low, high]."""
    if high <= low:
        high = low + 1.0
    rough = (high - low) / (most - 1)
    base = 10 ** math.floor(math.log10(rough))
    stride = next(base * times for times in (1, 2, 5, 10) if base * times >= rough * (1 - 1e-9))
    first = math.floor(low / stride + 1e-9)
    values = [first * stride]
    while values[-1] < high - 1e-9 * stride:
        first += 1
        values.append(first * stride)
    return values


def _frame(figure: Strip | Curve, height: float, body: list[str], summary: str) -> str:
    caption = f"<figcaption>{escape(figure.note)}</figcaption>" if figure.note else ""
    return "\n".join(
        [
            f'<figure class="chart" id="figure_{escape(figure.name)}">',
            f'<p class="caption">{escape(figure.title)}</p>',
            f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(figure.title)}">',
            f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(summary)}">',
            *body,
            "</svg></div>",
            caption,
            "</figure>",
        ]
    )


def _text(x: float, y: float, content: str, css: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{css}">{escape(content)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, css: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{css}"/>'


def _shorten(label: str, most: int) -> str:
    return label if len(label) <= most else label[: most - 1] + "…"


def _strip(figure: Strip) -> str:
    left, right, top, pitch = 24 + 7.2 * min(24, max(map(len, figure.rows), default=0)), WIDTH - 128, 26.0, 34.0
    bottom = top + pitch * len(figure.rows)
    everything = [value for row in figure.points for _, value in row]
    exponents = powers(min(everything), max(everything))
    low, high = exponents[0] * math.log(10), exponents[-1] * math.log(10)

    def place(value: float) -> float:
        return left + (value - low) / (high - low) * (right - left)

    body = [_text(WIDTH - 4, 14, figure.mark, "label", "end")]
    for exponent in exponents:
        x = place(exponent * math.log(10))
        body += [_line(x, top, x, bottom, "rule"), _text(x, bottom + 18, power(exponent), "label", "middle")]
    for position, (name, row, mark) in enumerate(zip(figure.rows, figure.points, figure.marks, strict=True)):
        y = top + pitch * (position + 0.5)
        body += [_text(left - 14, y + 4, _shorten(name, 24), "name", "end"), _line(left, y, right, y, "thread")]
        for label, value in row:
            body.append(
                f'<circle cx="{place(value):.1f}" cy="{y:.1f}" r="5" class="dot">'
                f"<title>{escape(label)}: {escape(numerals.exponential(value))}</title></circle>"
            )
        if mark is not None:
            body += [
                _line(place(mark), y - 12, place(mark), y + 12, "mark"),
                _text(WIDTH - 4, y + 4, numerals.exponential(mark), "value", "end"),
            ]
    body.append(_text((left + right) / 2, bottom + 38, figure.axis, "label", "middle"))
    means = ", ".join(
        f"{name} {numerals.exponential(mark)}" for name, mark in zip(figure.rows, figure.marks, strict=True)
    )
    return _frame(figure, bottom + 48, body, f"{figure.title}. {numerals.sentence(figure.mark)}: {means}.")


def bins(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """At most `most` points, each the highest of its stretch, so that no peak is lost to the width of the paper."""
    size = max(1, math.ceil(len(points) / most))
    return [max(points[start : start + size], key=lambda point: point[1]) for start in range(0, len(points), size)]


def tallest(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """The `most` highest points, highest first; equals by x."""
    return sorted(points, key=lambda point: (-point[1], point[0]))[:most]


def _summits(figure: Curve, series: Series) -> list[tuple[float, float]]:
    """The needles that are labelled: the highest, where they rise well above the level."""
    return [point for point in tallest(series.points, figure.peaks) if point[1] >= 1.5 * (figure.level or 0.0)]


def _curve(figure: Curve) -> str:
    left, right, top, bottom = 70.0, WIDTH - (20.0 if figure.needles else 150.0), 16.0, 250.0
    xs = [x for series in figure.series for x, _ in series.points]
    ys = [y for series in figure.series for _, y in series.points] + (
        [figure.level] if figure.level is not None else []
    )
    levels = ticks(min([0.0, *ys]), max(ys))
    start, stop = min(xs), max(xs)
    if stop <= start:
        stop = start + 1

    def across(x: float) -> float:
        part = math.log(x / start) / math.log(stop / start) if figure.logarithmic else (x - start) / (stop - start)
        return left + part * (right - left)

    def upwards(y: float) -> float:
        return bottom - (y - levels[0]) / (levels[-1] - levels[0]) * (bottom - top)

    body = []
    for level in levels:
        label = numerals.KINDS[figure.kind](level)
        body += [_line(left, upwards(level), right, upwards(level), "rule")]
        body += [_text(left - 8, upwards(level) + 4, label, "label", "end")]
    marks = sorted(set(xs)) if len(set(xs)) <= 8 else [x for x in ticks(start, stop, 8) if start <= x <= stop]
    for x in marks:
        body += [_text(across(x), bottom + 18, numerals.count(x), "label", "middle")]
    body.append(_text((left + right) / 2, bottom + 38, figure.across, "label", "middle"))
    if figure.level is not None:
        body += [_line(left, upwards(figure.level), right, upwards(figure.level), "level")]
    taken: list[float] = []
    # From the top: a label that has to make way moves down, and the labels keep the order of the ends of their lines.
    order = sorted(enumerate(figure.series), key=lambda item: upwards(item[1].points[-1][1]))
    for position, series in order:
        css = f"c{position % len(SERIES)}"
        if figure.needles:
            strokes = "".join(
                f"M{across(x):.1f} {bottom:.1f}V{upwards(y):.1f}"
                for x, y in bins(series.points, int(right - left))
                if y > levels[0]
            )
            body.append(f'<path d="{strokes}" class="needle {css}"/>')
            spots: list[float] = []
            for x, y in _summits(figure, series):
                if all(abs(across(x) - spot) > 26 for spot in spots):  # a label on a label is no label
                    spots.append(across(x))
                    body.append(_text(across(x), max(upwards(y) - 4, 12.0), numerals.count(x), "value halo", "middle"))
            continue
        path = "L".join(f"{across(x):.1f} {upwards(y):.1f}" for x, y in series.points)
        dash = DASHES[position // len(SERIES) % len(DASHES)]
        body.append(f'<path d="M{path}" class="line {css}" stroke-dasharray="{dash or "none"}"/>')
        body += [
            f'<circle cx="{across(x):.1f}" cy="{upwards(y):.1f}" r="3" class="{css} point">'
            f"<title>{escape(series.label)}, {numerals.count(x)}: {numerals.KINDS[figure.kind](y)}</title></circle>"
            for x, y in series.points
        ]
        height = upwards(series.points[-1][1]) + 4
        while any(abs(height - other) < 14 for other in taken):
            height += 2
        taken.append(height)
        body.append(
            f'<path d="M{right + 10:.1f} {height - 4:.1f}h16" class="line {css}" stroke-dasharray="{dash or "none"}"/>'
        )
        body.append(_text(right + 32, height, _shorten(series.label, 18), "name"))
    if figure.level is not None:
        body.append(_text(right - 4, upwards(figure.level) - 6, figure.level_label, "label halo", "end"))
    height_ = max([bottom + 48, *(spot + 8 for spot in taken)])
    summary = f"{figure.title}: {figure.upwards} over {figure.across}"
    if figure.needles and figure.peaks:
        summits = [numerals.count(x) for series in figure.series for x, _ in _summits(figure, series)]
        summary += f", highest at {numerals.listed(summits)}"
    return _frame(figure, height_, body, summary + ".")


def html(figure: Figure) -> str:
    """The figure as markup for the page."""
    if isinstance(figure, Grid):
        return _grid(figure)
    if isinstance(figure, Strip):
        return _strip(figure)
    return _curve(figure)


# --- pictures -------------------------------------------------------------------------------------------------------


def _draw_grid(figure: Grid, axes: Any) -> None:
    from matplotlib.colors import ListedColormap, Normalize

    low, high = figure.limits()
    colours = [tuple(part / 255 for part in shade(LIGHT, position / (STEPS - 1))) for position in range(STEPS)]
    values = [
        [math.nan if not numerals.finite(value) or value is None else value for value in row] for row in figure.values
    ]
    colour_map = ListedColormap(colours).with_extremes(bad="#ffffff")
    picture = axes.pcolormesh(
        values, cmap=colour_map, norm=Normalize(low, high if high > low else low + 1), edgecolors="white", linewidth=1
    )
    axes.invert_yaxis()
    for row, line in enumerate(figure.values):
        for place, value in enumerate(line):
            shade_ = step(value, low, high)
            colour = ink(shade(LIGHT, (shade_ or 0) / (STEPS - 1)))
            cell = figure.printed(row, place)
            axes.text(place + 0.5, row + 0.5, cell, ha="center", va="center", color=colour, fontsize=8)
    if figure.totals and figure.totals < len(figure.rows):
        axes.axhline(len(figure.rows) - figure.totals, color="black", linewidth=1.2)
    axes.xaxis.tick_top()
    places = [place + 0.5 for place in range(len(figure.columns))]
    if max(map(len, figure.columns), default=0) > 12:  # wider than a cell
        axes.set_xticks(places, figure.columns, fontsize=9, rotation=25, ha="left", rotation_mode="anchor")
    else:
        axes.set_xticks(places, figure.columns, fontsize=9)
    axes.set_yticks([place + 0.5 for place in range(len(figure.rows))], figure.rows, fontsize=9)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    bar = axes.figure.colorbar(picture, ax=axes, label=figure.unit or None, fraction=0.04, pad=0.02)
    if figure.kind in ("percent", "share"):
        bar.ax.yaxis.set_major_formatter(lambda value, _: numerals.KINDS[figure.kind](value))


def _draw_strip(figure: Strip, axes: Any) -> None:
    logarithm = math.log(10)
    for position, (row, mark) in enumerate(zip(figure.points, figure.marks, strict=True)):
        axes.axhline(position, color="0.85", linewidth=0.8, zorder=0)
        axes.plot(
            [value / logarithm for _, value in row], [position] * len(row), "o", color=SERIES[0], alpha=0.55, ms=6
        )
        if mark is not None:
            axes.plot([mark / logarithm] * 2, [position - 0.3, position + 0.3], color="black", linewidth=2)
            label = f" {numerals.exponential(mark)}"
            axes.text(1.01, position, label, transform=axes.get_yaxis_transform(), va="center", fontsize=9)
    everything = [value for row in figure.points for _, value in row]
    exponents = powers(min(everything), max(everything))
    axes.set_xlim(exponents[0], exponents[-1])
    axes.set_xticks(exponents, [power(exponent) for exponent in exponents])
    axes.set_yticks(range(len(figure.rows)), figure.rows)
    axes.set_ylim(len(figure.rows) - 0.4, -0.6)
    axes.set_xlabel(figure.axis)
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0)


def _draw_curve(figure: Curve, axes: Any) -> None:
    for position, series in enumerate(figure.series):
        x, y = [point[0] for point in series.points], [point[1] for point in series.points]
        colour = SERIES[position % len(SERIES)]
        if figure.needles:
            axes.vlines(x, 0, y, color=colour, linewidth=0.8)
            for peak, height in _summits(figure, series):
                axes.annotate(numerals.count(peak), (peak, height), ha="center", va="bottom", fontsize=8)
        else:
            axes.plot(x, y, "o-", color=colour, label=series.label, ms=3.5, linewidth=1.5)
    if figure.level is not None:
        axes.axhline(figure.level, color="0.3", linewidth=1, linestyle=":", label=figure.level_label or None)
    if figure.logarithmic:
        axes.set_xscale("log")
    whole = sorted({x for series in figure.series for x, _ in series.points})
    if len(whole) <= 8:
        axes.set_xticks(whole, [numerals.count(x) for x in whole])
        axes.minorticks_off()
    axes.yaxis.set_major_formatter(lambda value, _: numerals.KINDS[figure.kind](value))
    axes.set_ylim(bottom=min([0.0, *(y for series in figure.series for _, y in series.points)]))
    axes.set_xlabel(figure.across)
    axes.set_ylabel(figure.upwards)
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if not figure.needles or figure.level is not None:
        axes.legend(frameon=False, fontsize=8, bbox_to_anchor=(1.01, 1), loc="upper left")


def draw(figure: Figure, path: Path, dpi: int = 160) -> None:
    """Write the figure as a PNG; ModuleNotFoundError without matplotlib (the extra `report`)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    if isinstance(figure, Grid):
        size = (3.2 + 0.85 * max(3, len(figure.columns)), 1.3 + 0.3 * len(figure.rows))
    elif isinstance(figure, Strip):
        size = (8.4, 1.4 + 0.45 * len(figure.rows))
    else:
        size = (8.4, 3.6)
    canvas = Canvas(figsize=size, dpi=dpi, layout="constrained", facecolor="white")
    FigureCanvasAgg(canvas)
    axes = canvas.add_subplot()
    axes.set_title(figure.title, loc="left", fontsize=11, pad=12)
    if isinstance(figure, Grid):
        _draw_grid(figure, axes)
    elif isinstance(figure, Strip):
        _draw_strip(figure, axes)
    else:
        _draw_curve(figure, axes)
    canvas.savefig(path, format="png", metadata={"Description": figure.note or figure.title})
