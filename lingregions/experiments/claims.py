"""Claims: what a study says in words, from its figures alone; the sentences stand in <study>.j2 beside it.

The first paragraph of a template is the headline, one sentence of at most `_WORDS` words that says what the figures
mean; the others are the verdict. Every sentence is chosen by the sign of an interval, never by a point estimate.
"""

import math
from typing import Any

import jinja2

from lingregions.effects import Effects
from lingregions.experiments import tables
from lingregions.intervention import UNTOUCHED
from lingregions.report import numerals

_WORDS = 25  # of a headline, at most
BROKEN = math.log(10)  # nats: ten times the perplexity counts as a broken model

_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.PackageLoader("lingregions.experiments", "."),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def _signed(cell: tables.Cell) -> str:
    """A difference with its sign and its interval: "+0.0120 (−0.0030 to +0.0270)"."""
    value, low, high = (None if each is None else f"{each:+.4f}".replace("-", numerals.MINUS) for each in cell)
    return f"{value}" if low is None or high is None else f"{value} ({low} to {high})"


def side(cell: tables.Cell) -> int:
    """1 or -1 where an interval lies above or below zero, 0 where it holds zero or there is none."""
    _, low, high = cell
    return 0 if low is None or high is None else (low > 0) - (high < 0)


def _factor(cell: tables.Cell) -> str:
    """A difference of logarithms as a factor with its interval: "×12.3 (10.1 to 15.0)"."""
    return numerals.factor(numerals.Span(*cell))


def _figure(cell: tables.Cell) -> str:
    """A figure with its interval, two digits each."""
    value, low, high = cell
    if value is None:
        return "not measurable"
    return f"{value:.2g}" + ("" if low is None or high is None else f" ({low:.2g} to {high:.2g})")


_ENVIRONMENT.filters |= {
    "exp": lambda cell: [None if each is None else math.exp(each) for each in cell],
    "figure": _figure,
    "first": lambda names: next(iter(names)),
    "last": lambda names: list(names)[-1],
    "count": numerals.count,
    "listed": lambda words: numerals.listed(list(words)) if words else "none",
    "number": numerals.number,
    "percent": numerals.percent,
    "plural": numerals.plural,
    "sentence": numerals.sentence,
    "share": numerals.share,
    "signed": _signed,
    "side": side,
    "times": _factor,
    "factor": lambda cell: _factor(cell).removeprefix("×"),
}
_ENVIRONMENT.tests["contains"] = lambda values, value: value in values
_ENVIRONMENT.globals |= {"base": UNTOUCHED, "broken": BROKEN}


def verdict(study: str, title: str, effects: Effects | None = None, **facts: Any) -> dict[str, Any]:
    """Return the content of tables/verdict.json.

    Args:
      study: whose template is read.
      title: of the section.
      effects: what was measured: the template calls `value`, `sign`, `times` and `harmed` with interventions.
      **facts: further names that the template reads.
    """
    if effects is not None:
        facts |= {"value": effects.value, "sign": effects.sign, "languages": effects.languages, "effects": effects}
        facts["times"] = lambda *words, **named: tables.times(effects, *words, **named)
        facts["harmed"] = lambda *words: tables.harmed(effects, *words)
    text = _ENVIRONMENT.get_template(f"{study}.j2").render(facts)
    paragraphs = [" ".join(paragraph.split()) for paragraph in text.split("\n\n")]
    headline, *rest = [paragraph for paragraph in paragraphs if paragraph]
    return {"kind": "verdict", "title": title, "headline": headline, "paragraphs": rest}
