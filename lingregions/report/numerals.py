"""Numbers as a reader wants them, and as another program does.

A perplexity after removal may be 1e5 or 1e400, past what a float holds, so a number that can grow like that is kept as
its natural logarithm and turned into digits only here. Every kind of number has one way to be printed (`KINDS`) and one
way to be stored (`raw`, full precision, for CSV). What is missing or not finite is printed as a dash, never as `nan`.
"""

import decimal as decimal_
import functools
import math
from collections.abc import Callable, Sequence
from typing import Concatenate, NamedTuple, ParamSpec, TypeGuard, cast

_Options = ParamSpec("_Options")


class Span(NamedTuple):
    """A value and its confidence interval; the bounds are None where none was computed."""

    value: float | None
    low: float | None = None
    high: float | None = None


Cell = str | int | float | Span | None

_DASH = "–"
MINUS = "−"
UNSURE = "°"  # after a figure whose interval holds zero
NARROW = "\u00a0"  # a space that does not break: a number and its power stay on one line
_LARGEST = 1e5  # from here on, and below SMALLEST, a number is printed with a power of ten
_SMALLEST = 1e-3
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def _finite(value: Cell) -> TypeGuard[float]:
    """Whether a cell holds a finite number (a bool or a text does not)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _printed(write: Callable[Concatenate[float, _Options], str]) -> Callable[Concatenate[Cell, _Options], str]:
    """Let a function write finite numbers; of anything else a dash is printed."""

    @functools.wraps(write)
    def printed(value: Cell, *options: _Options.args, **named: _Options.kwargs) -> str:
        return write(value, *options, **named) if _finite(value) else _DASH

    return cast(Callable[Concatenate[Cell, _Options], str], printed)


def _scientific(logarithm: float, digits: int = 2) -> str:
    """exp(logarithm) as `1.7 × 10⁶`, whatever its size; `digits` significant digits in the mantissa."""
    exponent = math.floor(logarithm / math.log(10))
    mantissa = round(10 ** (logarithm / math.log(10) - exponent), digits - 1)
    if mantissa >= 10:  # 9.96 rounds to 10.0
        mantissa, exponent = mantissa / 10, exponent + 1
    return f"{mantissa:.{digits - 1}f}{NARROW}×{NARROW}10{str(exponent).translate(_SUPERSCRIPTS)}"


@_printed
def number(value: float, digits: int = 3) -> str:
    """A number with `digits` significant digits, thousands apart; with a power of ten when very large or small."""
    size = abs(value)
    sign = MINUS if value < 0 else ""
    if size == 0:
        return "0"
    if size >= _LARGEST or size < _SMALLEST:
        return sign + _scientific(math.log(size))
    exponent = int(f"{size:.{digits - 1}e}".partition("e")[2])  # of the rounded number: 0.9998 is 1.00, not 1.000
    decimals = max(0, digits - 1 - exponent)
    return f"{sign}{size:,.{decimals}f}"


@_printed
def _exponential(logarithm: float, digits: int = 3) -> str:
    """exp(logarithm) for reading: a perplexity from nats per token, a factor from an effect in nats."""
    if math.log(_SMALLEST) <= logarithm < math.log(_LARGEST):
        return number(math.exp(logarithm), digits)
    return _scientific(logarithm)


@_printed
def _decimal(value: float, decimals: int = 3) -> str:
    """A number with so many decimals, so that a column of nats or bits lines up."""
    if abs(value) >= _LARGEST:
        return number(value)
    text = f"{abs(value):,.{decimals}f}"
    return MINUS + text if value < 0 and float(text.replace(",", "")) else text


@_printed
def count(value: float) -> str:
    """A whole number with its thousands apart."""
    return f"{value:,.0f}".replace("-", MINUS)


@_printed
def share(value: float) -> str:
    """A share between 0 and 1 (an intersection over union): two decimals, two significant digits below 0.01."""
    if 0 < abs(value) < 0.01:
        return number(value, 2)
    return f"{MINUS if value < 0 else ''}{abs(value):.2f}"


@_printed
def percent(value: float) -> str:
    """A fraction of 1 as a percentage: 0.01 is `1 %`."""
    scaled = round(100 * value, 9) if abs(value) < _LARGEST else value * 100
    digits = count(scaled) if abs(scaled) < _LARGEST and scaled == int(scaled) else number(scaled)
    return f"{digits}{NARROW}%"


def _bounded(span: Cell, write: Callable[[Cell], str], mark: str = "") -> str:
    if not isinstance(span, Span) or not _finite(span.value):
        return _DASH
    words = mark + write(span.value)
    if not _finite(span.low) and not _finite(span.high):
        return words
    return f"{words} ({write(span.low)} to {write(span.high)})"


def _interval(span: Cell) -> str:
    """A value with its interval, all to the same decimals: `0.12 (0.10 to 0.15)`."""
    sizes = [abs(part) for part in span if part is not None and _finite(part)] if isinstance(span, Span) else []
    largest = max(sizes, default=0.0)
    if largest == 0 or not _SMALLEST <= largest < _LARGEST:
        return _bounded(span, number)
    exponent = math.floor(math.log10(largest))
    decimals = max(0, (2 if exponent >= 0 else 1) - exponent)

    return _bounded(span, functools.partial(_decimal, decimals=decimals))


def factor(span: Cell) -> str:
    """A difference in nats with its interval as a factor: `×12.3 (10.1 to 15.0)`, whatever its size."""
    return _bounded(span, _exponential, "×")


@_printed
def _probability(value: float) -> str:
    """A p-value: three decimals, and below them only that it is below."""
    return "<" + NARROW + "0.001" if value < 0.001 else f"{value:.3f}"


def text(value: Cell) -> str:
    """Any cell as it is; a missing one as a dash."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return _DASH
    return str(value)


KINDS: dict[str, Callable[[Cell], str]] = {
    "text": text,
    "count": count,
    "number": number,
    "decimal": _decimal,
    "exponential": _exponential,
    "share": share,
    "percent": percent,
    "probability": _probability,
    "interval": _interval,
    "factor": factor,
}
SPANS = {"interval": "number", "factor": "exponential"}  # kinds of a `Span`, and how each of its parts is stored


def raw(value: Cell, kind: str) -> str:
    """The same cell for another program: full precision, empty where missing, `exponential` written out in decimals."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    if kind == "exponential" and isinstance(value, int | float):
        unbounded = decimal_.Context(prec=17, Emax=decimal_.MAX_EMAX, Emin=decimal_.MIN_EMIN)
        return f"{decimal_.Decimal(value).exp(unbounded):.17g}"
    return repr(float(value)) if isinstance(value, float) else str(value)


def sentence(words: str) -> str:
    """Words with their first letter as it begins a sentence; all others as they are."""
    return words[:1].upper() + words[1:]


def listed(words: Sequence[str]) -> str:
    """Words as a sentence lists them: `a, b and c`."""
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} and {words[-1]}"


def plural(amount: int, noun: str, many: str = "") -> str:
    """`1 language`, `11 languages`; `many` where the plural takes more than an s."""
    return f"{count(amount)} {noun if amount == 1 else many or noun + 's'}"
