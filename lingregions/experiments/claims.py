"""Claims: what a study says in words, from its figures alone; the sentences stand in <study>.j2 beside it.

The first paragraph of a template is the headline, one sentence of at most `WORDS` words that says what the figures
mean; the others are the verdict. Every sentence is chosen by the sign of an interval, never by a point estimate.
"""

import math
from typing import Any

import jinja2

from lingregions.effects import Effects
from lingregions.experiments import tables
from lingregions.intervention import UNTOUCHED
from lingregions.report import numerals

WORDS = 25  # of a headline, at most
BROKEN = math.log(10)  # nats: ten times the perplexity counts as a broken model

_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.PackageLoader("lingregions.experiments", "."),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.filters |= {
    "count": numerals.count,
    "listed": lambda words: numerals.listed(list(words)) if words else "none",
    "number": numerals.number,
    "percent": numerals.percent,
    "plural": numerals.plural,
    "sentence": numerals.sentence,
    "share": numerals.share,
    "times": lambda cell: numerals.factor(numerals.Span(*cell)),
    "harm": numerals.exponential,
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
