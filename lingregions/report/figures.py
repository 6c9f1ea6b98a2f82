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

from lingregions.report import numerals, scatter
from lingregions.report.numerals import Cell, Span
from lingregions.report.scatter import Scatter
from lingregions.report.svg import DASHES, SERIES, WIDTH, frame, line, power, powers, scale, shorten, text, ticks
from lingregions.report.tables import Column, Table

STEPS = 16  # shades of a heat map; class "s0" is the palest
# One hue whose lightness falls steadily: readable without colour vision, and in grey print.
LIGHT = ((247, 250, 253), (198, 219, 239), (107, 165, 214), (33, 105, 176), (8, 48, 107))
DARK = ((27, 34, 43), (28, 62, 99), (42, 105, 166), (112, 172, 222), (222, 237, 250))


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
    marks: tuple[tuple[bool, ...], ...] = ()  # cells whose figure is printed with `numerals.UNSURE`
    compact: bool = False  # many columns, set small

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
        words = numerals.KINDS[self.kind](self.values[row][column])
        return words + (numerals.UNSURE if self.marks and self.marks[row][column] and words != numerals.DASH else "")

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
    """One line of a Curve: its label and its points, x ascending.

    `band`, where given, holds the interval (low, high) of each point; None where there is none.
    """

    label: str
    points: tuple[tuple[float, float], ...]
    band: tuple[tuple[float, float] | None, ...] = ()

    def stretches(self) -> list[list[tuple[float, float, float]]]:
        """The band as runs of (x, low, high) without a gap."""
        runs: list[list[tuple[float, float, float]]] = [[]]
        for (x, _), bounds in zip(self.points, self.band, strict=False):
            if bounds is None:
                runs.append([])
            else:
                runs[-1].append((x, *bounds))
        return [run for run in runs if run]


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
    across_kind: str = ""  # of the numbers on the axis x; empty: whole numbers if all are whole

    @property
    def banded(self) -> bool:
        """Whether any point has an interval."""
        return any(bounds is not None for series in self.series for bounds in series.band)

    def place(self, x: float) -> str:
        """A number of the axis x as it is read."""
        whole = all(float(x).is_integer() for series in self.series for x, _ in series.points)
        if self.across_kind == "percent":
            return numerals.percentage(x)
        return numerals.KINDS[self.across_kind or ("count" if whole else "number")](x)

    def heights(self) -> list[float]:
        """Every y that the figure has to hold."""
        values = [y for series in self.series for _, y in series.points]
        values += [bound for series in self.series for bounds in series.band if bounds is not None for bound in bounds]
        return values + ([self.level] if self.level is not None else [])

    def table(self) -> Table:
        """The points as a long table."""
        whole = all(float(x).is_integer() for series in self.series for x, _ in series.points)
        kind = self.kind
        if self.banded:
            kind = "factor" if self.kind == "exponential" else "interval"
        rows: list[tuple[Cell, ...]] = []
        for series in self.series:
            bands = series.band or (None,) * len(series.points)
            for (x, y), bounds in zip(series.points, bands, strict=True):
                value = Span(y, *(bounds or (None, None))) if self.banded else y
                rows.append((series.label, int(x) if whole else x, value))
        return Table(
            self.name,
            self.title,
            (
                Column("series"),
                Column(self.across, self.across_kind or ("count" if whole else "number")),
                Column(self.upwards, kind),
            ),
            tuple(rows),
            self.note,
        )


Figure = Grid | Strip | Curve | Scatter


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
    upright = figure.compact and max(map(len, figure.columns), default=0) > 4
    start, stop = ('<span class="upright">', "</span>") if upright else ("", "")
    heads = "".join(f'<th scope="col" class="n">{start}{escape(name)}{stop}</th>' for name in figure.columns)
    look = "grid compact" if figure.compact else "grid"
    lines = [
        f'<figure class="{look}" id="figure_{escape(figure.name)}">',
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


def _strip(figure: Strip) -> str:
    left, right, top = 24 + 7.2 * min(24, max(map(len, figure.rows), default=0)), WIDTH - 128, 26.0
    pitch = 34.0 if len(figure.rows) <= 14 else 21.0
    bottom = top + pitch * len(figure.rows)
    everything = [value for row in figure.points for _, value in row]
    exponents = powers(min(everything), max(everything))
    low, high = exponents[0] * math.log(10), exponents[-1] * math.log(10)

    def place(value: float) -> float:
        return left + (value - low) / (high - low) * (right - left)

    body = [text(WIDTH - 4, 14, figure.mark, "label", "end")]
    for exponent in exponents:
        x = place(exponent * math.log(10))
        body += [line(x, top, x, bottom, "rule"), text(x, bottom + 18, power(exponent), "label", "middle")]
    for position, (name, row, mark) in enumerate(zip(figure.rows, figure.points, figure.marks, strict=True)):
        y = top + pitch * (position + 0.5)
        body += [text(left - 14, y + 4, shorten(name, 24), "name", "end"), line(left, y, right, y, "thread")]
        for label, value in row:
            body.append(
                f'<circle cx="{place(value):.1f}" cy="{y:.1f}" r="{min(5.0, pitch / 5):g}" class="dot">'
                f"<title>{escape(label)}: {escape(numerals.exponential(value))}</title></circle>"
            )
        if mark is not None:
            body += [
                line(place(mark), y - 0.35 * pitch, place(mark), y + 0.35 * pitch, "mark"),
                text(WIDTH - 4, y + 4, numerals.exponential(mark), "value", "end"),
            ]
    body.append(text((left + right) / 2, bottom + 38, figure.axis, "label", "middle"))
    means = ", ".join(
        f"{name} {numerals.exponential(mark)}" for name, mark in zip(figure.rows, figure.marks, strict=True)
    )
    told = f"{figure.title}. {numerals.sentence(figure.mark)}: {means}."
    return frame(figure.name, figure.title, figure.note, bottom + 48, body, told)


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


def _marks(figure: Curve, xs: Sequence[float]) -> list[float]:
    """Where the axis x is labelled: at every x if they are few, else at round numbers, apart as the axis is."""
    if len(xs) <= 8:
        return list(xs)
    if figure.logarithmic:
        tens = [10.0**exponent for exponent in powers(math.log(xs[0]), math.log(xs[-1]))]
        inside = [x for x in tens if xs[0] <= x <= xs[-1]]
        return inside if len(inside) > 1 else [xs[0], xs[-1]]
    return [x for x in ticks(xs[0], xs[-1], 8) if xs[0] <= x <= xs[-1]]


def _curve(figure: Curve) -> str:
    left, right, top, bottom = 70.0, WIDTH - (20.0 if figure.needles else 150.0), 32.0, 266.0
    xs = [x for series in figure.series for x, _ in series.points]
    ys = figure.heights()
    marked = scale(min([0.0, *ys]), max(ys), figure.kind)
    if len(marked) > 2 and marked[1][0] == 0 and min(ys) > -0.02 * max(ys):
        del marked[0]  # an interval that just dips below nothing needs no stretch of the axis
    levels = [level for level, _ in marked]
    start, stop = min(xs), max(xs)
    if stop <= start:
        stop = start + 1

    def across(x: float) -> float:
        part = math.log(x / start) / math.log(stop / start) if figure.logarithmic else (x - start) / (stop - start)
        return left + part * (right - left)

    def upwards(y: float) -> float:
        return bottom - max(0.0, y - levels[0]) / (levels[-1] - levels[0]) * (bottom - top)

    body = [text(0, 14, figure.upwards, "label")]
    for level, label in marked:
        body += [line(left, upwards(level), right, upwards(level), "rule")]
        body += [text(left - 8, upwards(level) + 4, label, "label", "end")]
    for x in _marks(figure, sorted(set(xs))):
        body += [text(across(x), bottom + 18, figure.place(x), "label", "middle")]
    body.append(text((left + right) / 2, bottom + 38, figure.across, "label", "middle"))
    if figure.level is not None:
        body += [line(left, upwards(figure.level), right, upwards(figure.level), "level")]
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
                    body.append(text(across(x), max(upwards(y) - 4, 12.0), numerals.count(x), "value halo", "middle"))
            continue
        for run in series.stretches():
            edge = [(x, high) for x, _, high in run] + [(x, low) for x, low, _ in reversed(run)]
            outline = "L".join(f"{across(x):.1f} {upwards(y):.1f}" for x, y in edge)
            body.append(f'<path d="M{outline}Z" class="band f{position % len(SERIES)}"/>')
        path = "L".join(f"{across(x):.1f} {upwards(y):.1f}" for x, y in series.points)
        dash = DASHES[position // len(SERIES) % len(DASHES)]
        body.append(f'<path d="M{path}" class="line {css}" stroke-dasharray="{dash or "none"}"/>')
        body += [
            f'<circle cx="{across(x):.1f}" cy="{upwards(y):.1f}" r="3" class="{css} point">'
            f"<title>{escape(series.label)}, {figure.place(x)}: {numerals.KINDS[figure.kind](y)}</title></circle>"
            for x, y in series.points
        ]
        height = upwards(series.points[-1][1]) + 4
        while any(abs(height - other) < 14 for other in taken):
            height += 2
        taken.append(height)
        body.append(
            f'<path d="M{right + 10:.1f} {height - 4:.1f}h16" class="line {css}" stroke-dasharray="{dash or "none"}"/>'
        )
        body.append(text(right + 32, height, shorten(series.label, 18), "name"))
    if figure.level is not None:
        body.append(text(right - 4, upwards(figure.level) - 6, figure.level_label, "label halo", "end"))
    height_ = max([bottom + 48, *(spot + 8 for spot in taken)])
    summary = f"{figure.title}: {figure.upwards} over {figure.across}"
    if figure.needles and figure.peaks:
        summits = [numerals.count(x) for series in figure.series for x, _ in _summits(figure, series)]
        summary += f", highest at {numerals.listed(summits)}"
    return frame(figure.name, figure.title, figure.note, height_, body, summary + ".")


def html(figure: Figure) -> str:
    """The figure as markup for the page."""
    if isinstance(figure, Grid):
        return _grid(figure)
    if isinstance(figure, Strip):
        return _strip(figure)
    if isinstance(figure, Scatter):
        return scatter.html(figure)
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
    for row, values_ in enumerate(figure.values):
        for place, value in enumerate(values_):
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
            for run in series.stretches():
                axes.fill_between(*zip(*run, strict=True), color=colour, alpha=0.15, linewidth=0)
    if figure.level is not None:
        axes.axhline(figure.level, color="0.3", linewidth=1, linestyle=":", label=figure.level_label or None)
    if figure.logarithmic:
        axes.set_xscale("log")
    whole = sorted({x for series in figure.series for x, _ in series.points})
    marks = _marks(figure, whole)
    axes.set_xticks(marks, [figure.place(x) for x in marks])
    axes.minorticks_off()
    ys = figure.heights()
    marked = scale(min([0.0, *ys]), max(ys), figure.kind)
    axes.set_yticks([level for level, _ in marked], [label for _, label in marked])
    axes.set_ylim(bottom=min([0.0, *ys]), top=marked[-1][0])
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

    if isinstance(figure, Scatter):
        height = scatter.layout(figure).height + 24
        canvas = Canvas(figsize=(WIDTH / 100, height / 100), dpi=dpi, facecolor="white")
        FigureCanvasAgg(canvas)
        scatter.draw(figure, canvas)
        canvas.savefig(path, format="png", metadata={"Description": figure.note or figure.title})
        return
    if isinstance(figure, Grid):
        size = (3.2 + (0.5 if figure.compact else 0.85) * max(3, len(figure.columns)), 1.3 + 0.3 * len(figure.rows))
    elif isinstance(figure, Strip):
        size = (8.4, 1.4 + (0.45 if len(figure.rows) <= 14 else 0.3) * len(figure.rows))
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
