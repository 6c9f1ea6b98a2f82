"""What every drawing of the page is made of: a frame, words, strokes, ticks of an axis, and the colours of series."""

import math
from html import escape

from lingregions.report import numerals

# Okabe and Ito (2008), told apart with any colour vision; the first is the ink of the page.
SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#666666", "#B3A100")
DASHES = ("", "6 3", "2 3", "8 3 2 3")
WIDTH = 760  # of an SVG, in its own units


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


def frame(name: str, title: str, note: str, height: float, body: list[str], summary: str) -> str:
    """A drawing of WIDTH x `height` as a figure: title, scrolling frame, and `summary` for who cannot see it."""
    caption = f"<figcaption>{escape(note)}</figcaption>" if note else ""
    return "\n".join(
        [
            f'<figure class="chart" id="figure_{escape(name)}">',
            f'<p class="caption">{escape(title)}</p>',
            f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(title)}">',
            f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(summary)}">',
            *body,
            "</svg></div>",
            caption,
            "</figure>",
        ]
    )


def text(x: float, y: float, content: str, css: str = "", anchor: str = "start") -> str:
    """A word at its baseline."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{css}">{escape(content)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, css: str) -> str:
    """A straight stroke."""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{css}"/>'


def shorten(label: str, most: int) -> str:
    """A label of at most `most` characters."""
    return label if len(label) <= most else label[: most - 1] + "…"


def scale(low: float, high: float, kind: str) -> list[tuple[float, str]]:
    """Ticks that cover [low, high] and their words; powers of ten where the values are natural logarithms."""
    if kind == "exponential":
        return [(exponent * math.log(10), power(exponent)) for exponent in powers(low, high)]
    values = ticks(low, high)
    stride = values[1] - values[0]
    if kind in ("number", "decimal") and 1e-3 <= stride < numerals.LARGEST:  # all to the same decimals
        decimals = max(0, -math.floor(math.log10(stride) + 1e-9))
        words = [f"{abs(value):,.{decimals}f}" for value in values]
        return [
            (value, numerals.MINUS * (value < -stride / 2) + word) for value, word in zip(values, words, strict=True)
        ]
    write = numerals.percentage if kind == "percent" else numerals.KINDS[kind]
    return [(value, write(value)) for value in values]
