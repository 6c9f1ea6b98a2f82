"""Scatter: points with error bars on two axes, told apart by colour and by marker, each with its name beside it.

Labels are placed greedily, nearest free spot first, so that none lies on another label or on a marker; both the page
and the picture draw the one `Layout`. A label that finds no spot is left out: the table under the figure names all.
"""

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, NamedTuple

from lingregions.report import numerals
from lingregions.report.numerals import Span
from lingregions.report.svg import SERIES, WIDTH, frame, line, scale, shorten, text
from lingregions.report.tables import Column, Table

LEFT, RIGHT, TALL = 72.0, WIDTH - 24.0, 320.0  # of the plot, in units of the drawing
# Outlines of the markers around (0, 0), and their names in matplotlib: the same order as the colours.
MARKERS = (
    ("M5 0A5 5 0 1 1 -5 0A5 5 0 1 1 5 0Z", "o"),
    ("M-4.5 -4.5H4.5V4.5H-4.5Z", "s"),
    ("M0 -5.5L5.2 4.2H-5.2Z", "^"),
    ("M0 -6L6 0L0 6L-6 0Z", "D"),
    ("M0 5.5L5.2 -4.2H-5.2Z", "v"),
    ("M-5 -1.7H-1.7V-5H1.7V-1.7H5V1.7H1.7V5H-1.7V1.7H-5Z", "P"),
    ("M-5.5 0L4.2 -5.2V5.2Z", "<"),
    ("M5.5 0L-4.2 -5.2V5.2Z", ">"),
)
BETTER = ("low", "high")


class Point(NamedTuple):
    """One thing measured in two ways; a value that can't be drawn is None."""

    label: str
    group: str
    x: Span
    y: Span


@dataclass(frozen=True)
class Scatter:
    """Points on two axes; on an axis of kind "exponential" values are natural logarithms and the ticks powers of ten.

    `better` says for x and for y whether "low" or "high" is better, and has the Pareto front drawn; empty: none.
    """

    name: str
    title: str
    across: str
    upwards: str
    points: tuple[Point, ...]
    note: str = ""
    across_kind: str = "number"
    upwards_kind: str = "number"
    better: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.better and (len(self.better) != 2 or any(word not in BETTER for word in self.better)):
            raise ValueError(f"better is {list(self.better)!r}; expected two of 'low' or 'high', for x and for y")
        for kind in (self.across_kind, self.upwards_kind):
            if kind not in numerals.KINDS or kind in numerals.SPANS:
                raise ValueError(f"an axis has kind {kind!r}; it takes those of a number, such as number, exponential")

    @property
    def drawn(self) -> tuple[Point, ...]:
        """The points that have both values."""
        return tuple(point for point in self.points if point.x.value is not None and point.y.value is not None)

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups of the points that are drawn, in the order in which they are first met."""
        return tuple(dict.fromkeys(point.group for point in self.drawn))

    def front(self) -> tuple[Point, ...]:
        """The points that no other is better than on one axis and as good on the other, from the best x on."""
        if not self.better:
            return ()
        signs = [1.0 if word == "low" else -1.0 for word in self.better]
        placed = sorted(
            ((signs[0] * (point.x.value or 0.0), signs[1] * (point.y.value or 0.0), point) for point in self.drawn),
            key=lambda item: item[:2],
        )
        found: list[Point] = []
        best = math.inf
        for _, y, point in placed:
            if y < best:
                found.append(point)
                best = y
        return tuple(found)

    def listing(self) -> Table:
        """Every point with its intervals; for who can't see the figure, and for those that it could not draw."""
        kinds = ["factor" if kind == "exponential" else "interval" for kind in (self.across_kind, self.upwards_kind)]
        grouped = any(point.group for point in self.points)
        return Table(
            f"{self.name}_points",
            f"{self.title}: the points",
            (
                Column("point"),
                *((Column("group"),) if grouped else ()),
                Column(self.across, kinds[0]),
                Column(self.upwards, kinds[1]),
            ),
            tuple((point.label, *((point.group,) if grouped else ()), point.x, point.y) for point in self.points),
        )


@dataclass(frozen=True)
class Axis:
    """A scale from values to places: its ends in values and in places, and its (value, words) ticks."""

    low: float
    high: float
    start: float
    stop: float
    ticks: tuple[tuple[float, str], ...]

    def place(self, value: float) -> float:
        """Where a value lies, held inside the plot: an error bar may leave it."""
        part = (value - self.low) / (self.high - self.low)
        return self.start + min(1.0, max(0.0, part)) * (self.stop - self.start)


class Box(NamedTuple):
    """A rectangle: left, top, right, bottom."""

    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: "Box") -> bool:
        """Whether two rectangles have area in common."""
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )


@dataclass(frozen=True)
class Layout:
    """Where everything of a scatter is drawn: `labels` are (point, words, box or None where there was no room)."""

    across: Axis
    upwards: Axis
    height: float
    legend: tuple[tuple[str, float, float], ...]
    labels: tuple[tuple[Point, str, Box | None], ...]

    def spot(self, point: Point) -> tuple[float, float]:
        """Where the marker of a point is."""
        return self.across.place(point.x.value or 0.0), self.upwards.place(point.y.value or 0.0)

    def bars(self, point: Point) -> list[tuple[float, float, float, float]]:
        """The strokes of its error bars: x1, y1, x2, y2."""
        x, y = self.spot(point)
        strokes = []
        if point.x.low is not None and point.x.high is not None:
            strokes.append((self.across.place(point.x.low), y, self.across.place(point.x.high), y))
        if point.y.low is not None and point.y.high is not None:
            strokes.append((x, self.upwards.place(point.y.low), x, self.upwards.place(point.y.high)))
        return strokes


def width(words: str) -> float:
    """About how wide words are in the drawing; wide letters count double, and marks that stand on others nothing."""
    sizes = {"W": 13.0, "F": 13.0}
    return sum(0.0 if unicodedata.combining(it) else sizes.get(unicodedata.east_asian_width(it), 7.0) for it in words)


def axis(spans: Sequence[Span], kind: str, start: float, stop: float) -> Axis:
    """The scale on which the values lie, and their intervals as far as these are finite."""
    values = [part for span in spans for part in span if part is not None]
    marks = scale(min(values), max(values), kind)
    return Axis(marks[0][0], marks[-1][0], start, stop, tuple(marks))


def arrange(
    spots: Sequence[tuple[float, float]],
    words: Sequence[str],
    area: Box,
    strokes: Sequence[Box] = (),
) -> list[Box | None]:
    """A box beside each spot for its words, inside `area`, on no other box and no spot; None where there is no room.

    A box that crosses a stroke (an error bar) is taken only where no free one is near.
    """
    markers = [Box(x - 7, y - 7, x + 7, y + 7) for x, y in spots]
    taken: list[Box | None] = []
    for (x, y), label in zip(spots, words, strict=True):
        wide = width(label)
        found: list[tuple[float, int, Box]] = []
        for reach in (9.0, 16.0, 26.0, 40.0, 58.0, 80.0, 110.0):
            for across, up in ((1, 0), (-1, 0), (0, -1), (0, 1), (1, -1), (-1, -1), (1, 1), (-1, 1)):
                near = reach if up == 0 or across == 0 else 0.75 * reach
                left = x + across * near - (wide / 2 if across == 0 else wide if across < 0 else 0)
                middle = y + up * (near + (5 if across == 0 else 0))
                box = Box(left, middle - 7, left + wide, middle + 7)
                free = area.left <= box.left and box.right <= area.right
                free = free and area.top <= box.top and box.bottom <= area.bottom
                if free and not any(box.meets(other) for other in (*markers, *taken) if other is not None):
                    found.append((reach + 30 * sum(map(box.meets, strokes)), len(found), box))
        taken.append(min(found)[2] if found else None)
    return taken


def layout(figure: Scatter) -> Layout:
    """Where everything goes; the figure has at least one point to draw."""
    legend, x, row = [], LEFT, 0
    for group in figure.groups if len(figure.groups) > 1 else ():
        wide = 30 + width(shorten(group, 28))
        if x + wide > RIGHT and x > LEFT:
            x, row = LEFT, row + 1
        legend.append((group, x + 6, 12.0 + 20 * row))
        x += wide
    top = 34.0 + 20 * row if legend else 14.0
    points = figure.drawn
    across = axis([point.x for point in points], figure.across_kind, LEFT, RIGHT)
    upwards = axis([point.y for point in points], figure.upwards_kind, top + TALL, top)
    bare = Layout(across, upwards, top + TALL + 48, tuple(legend), ())
    strokes = [
        Box(min(x1, x2) - 1, min(y1, y2) - 1, max(x1, x2) + 1, max(y1, y2) + 1)
        for point in points
        for x1, y1, x2, y2 in bare.bars(point)
    ]
    words = [shorten(point.label, 30) for point in points]
    area = Box(LEFT - 20, top - 4, RIGHT + 20, top + TALL + 2)
    boxes = arrange([bare.spot(point) for point in points], words, area, strokes)
    labels = tuple(zip(points, words, boxes, strict=True))
    return Layout(across, upwards, bare.height, bare.legend, labels)


def _leader(spot: tuple[float, float], box: Box) -> tuple[float, float] | None:
    """The point of a box nearest to its marker, where it stands so far off that a stroke has to join them."""
    x, y = min(max(spot[0], box.left), box.right), min(max(spot[1], box.top + 3), box.bottom - 3)
    return (x, y) if math.hypot(x - spot[0], y - spot[1]) > 14 else None


def _stairs(figure: Scatter, found: Layout) -> list[tuple[float, float]]:
    corners: list[tuple[float, float]] = []
    for point in figure.front():
        x, y = found.spot(point)
        if corners:
            corners.append((x, corners[-1][1]))
        corners.append((x, y))
    return corners


def html(figure: Scatter) -> str:
    """The figure as markup for the page."""
    found = layout(figure)
    across, upwards = found.across, found.upwards
    body = []
    for value, words in upwards.ticks:
        y = upwards.place(value)
        body += [line(LEFT, y, RIGHT, y, "rule"), text(LEFT - 8, y + 4, words, "label", "end")]
    for value, words in across.ticks:
        x = across.place(value)
        body += [line(x, upwards.stop, x, upwards.start, "rule")]
        body += [text(x, upwards.start + 18, words, "label", "middle")]
    body.append(text((LEFT + RIGHT) / 2, upwards.start + 38, figure.across, "label", "middle"))
    middle = (upwards.start + upwards.stop) / 2
    body.append(
        f'<text transform="translate(14 {middle:.1f}) rotate(-90)" text-anchor="middle" class="label">'
        f"{escape(figure.upwards)}</text>"
    )
    for group, x, y in found.legend:
        body += [_marker(figure, group, x, y), text(x + 12, y + 4, shorten(group, 28), "name")]
    if len(stairs := _stairs(figure, found)) > 1:
        body.append(f'<path d="M{"L".join(f"{x:.1f} {y:.1f}" for x, y in stairs)}" class="front"/>')
    for point in figure.drawn:
        css = f"bar c{_series(figure, point.group)}"
        body += [line(*stroke, css) for stroke in found.bars(point)]
    for point, words, box in found.labels:
        x, y = found.spot(point)
        if box is not None:
            if end := _leader((x, y), box):
                body.append(line(x, y, *end, "leader"))
            body.append(text(box.left, box.bottom - 3, words, "halo"))
    for point in figure.drawn:
        told = f"{point.label}: {_said(point.x, figure.across_kind)}, {_said(point.y, figure.upwards_kind)}"
        body.append(_marker(figure, point.group, *found.spot(point), told))
    summary = (
        f"{figure.title}: {figure.upwards} against {figure.across}, {numerals.plural(len(figure.drawn), 'point')}."
    )
    return frame(figure.name, figure.title, figure.note, found.height, body, f"{summary} The table below names them.")


def _series(figure: Scatter, group: str) -> int:
    return figure.groups.index(group) % len(SERIES)


def _said(span: Span, kind: str) -> str:
    return numerals.factor(span) if kind == "exponential" else numerals.interval(span)


def _marker(figure: Scatter, group: str, x: float, y: float, told: str = "") -> str:
    place = _series(figure, group)
    inside = f"<title>{escape(told)}</title>" if told else ""
    outline = MARKERS[place % len(MARKERS)][0]
    return f'<path d="{outline}" transform="translate({x:.1f} {y:.1f})" class="spot f{place}">{inside}</path>'


def draw(figure: Scatter, canvas: Any) -> None:
    """The same drawing on a canvas of matplotlib whose size in inches is WIDTH x `layout(figure).height` / 100."""
    from matplotlib.patheffects import withStroke

    found = layout(figure)
    axes = canvas.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, WIDTH)
    axes.set_ylim(found.height, -24)  # the title stands above the drawing
    axes.axis("off")
    small = {"fontsize": 8, "va": "center"}
    axes.text(8, -10, figure.title, fontsize=11, va="center")
    for value, words in found.upwards.ticks:
        y = found.upwards.place(value)
        axes.plot([LEFT, RIGHT], [y, y], color="0.9", linewidth=0.8, zorder=0)
        axes.text(LEFT - 8, y, words, ha="right", color="0.35", **small)
    for value, words in found.across.ticks:
        x = found.across.place(value)
        axes.plot([x, x], [found.upwards.stop, found.upwards.start], color="0.9", linewidth=0.8, zorder=0)
        axes.text(x, found.upwards.start + 14, words, ha="center", color="0.35", **small)
    axes.text((LEFT + RIGHT) / 2, found.upwards.start + 34, figure.across, ha="center", fontsize=9, va="center")
    middle = (found.upwards.start + found.upwards.stop) / 2
    axes.text(14, middle, figure.upwards, rotation=90, ha="center", fontsize=9, va="center")
    if len(stairs := _stairs(figure, found)) > 1:
        axes.plot(*zip(*stairs, strict=True), color="0.3", linewidth=1, linestyle=":", zorder=1)

    def mark(group: str, x: float, y: float) -> None:
        place = _series(figure, group)
        shape = MARKERS[place % len(MARKERS)][1]
        axes.plot([x], [y], shape, color=SERIES[place], markersize=6, markeredgecolor="white", zorder=4)

    for group, x, y in found.legend:
        mark(group, x, y)
        axes.text(x + 12, y, shorten(group, 28), **small)
    for point, words, box in found.labels:
        spot = found.spot(point)
        for x1, y1, x2, y2 in found.bars(point):
            colour = SERIES[_series(figure, point.group)]
            axes.plot([x1, x2], [y1, y2], color=colour, linewidth=1.2, alpha=0.7, zorder=2)
        if box is not None:
            if end := _leader(spot, box):
                axes.plot([spot[0], end[0]], [spot[1], end[1]], color="0.6", linewidth=0.6, zorder=1)
            halo = [withStroke(linewidth=2, foreground="white")]
            axes.text(box.left, (box.top + box.bottom) / 2, words, zorder=3, path_effects=halo, **small)
        mark(point.group, *spot)
