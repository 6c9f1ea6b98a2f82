"""Finding: the compared arms of an experiment by name, as cells of its tables and as words of its verdict."""

import math
from collections.abc import Sequence
from typing import Any

from lingregions.experiments.cell import BASE
from lingregions.experiments.comparison import EVERY, Compared
from lingregions.report import numerals
from lingregions.report.numerals import Span

LEVEL = 0.05  # a p-value below it, corrected over languages, counts as a difference


class Findings:
    """Lines of damage.csv of one experiment."""

    def __init__(self, lines: Sequence[Compared]) -> None:
        self._lines = {(line.arm, line.reference, line.language): line for line in lines}

    def get(self, arm: str, reference: str = BASE, language: str = EVERY) -> Compared:
        """Return a group of arms against another, in a language or over all.

        Raises:
          KeyError: it was not compared.
        """
        return self._lines[arm, reference, language]

    def value(self, arm: str, reference: str = BASE, language: str = EVERY) -> float:
        """Return the difference, nats per token; NaN where a model gave none."""
        return self.get(arm, reference, language).estimate.value

    def cell(self, arm: str, reference: str = BASE, language: str = EVERY) -> list[float | None]:
        """Return [value, low, high], nats per token, None for what is not finite: a cell of kind interval or factor."""
        value, low, high, *_ = self.get(arm, reference, language).estimate
        return [each if math.isfinite(each) else None for each in (value, low, high)]

    def words(self, arm: str, reference: str = BASE, language: str = EVERY) -> str:
        """Return the difference as a factor of perplexity with its interval: "×12.3 (10.1 to 15.0)"."""
        return numerals.factor(Span(*self.cell(arm, reference, language)))

    def sign(self, arm: str, reference: str = BASE, language: str = EVERY) -> int:
        """Return 1 or -1 where the interval lies above or below zero, 0 where it holds zero or there is none."""
        _, low, high, *_ = self.get(arm, reference, language).estimate
        return (low > 0) - (high < 0)

    def worse(self, arm: str, reference: str = BASE) -> str:
        """Return in how many languages the arm does more harm, p < `LEVEL` when corrected: "9 of 11 languages"."""
        lines = [line for key, line in self._lines.items() if key[:2] == (arm, reference) and key[2] != EVERY]
        count = sum(line.adjusted < LEVEL and line.estimate.value > 0 for line in lines)
        return f"{count} of {numerals.plural(len(lines), 'language')}"

    def against(self, arm: str, reference: str) -> str:
        """Return a clause that weighs two arms: what the first does to perplexity on top of the second."""
        verb = {1: "does more harm than", -1: "does less harm than", 0: "cannot be told apart from"}
        return (
            f"{arm} {verb[self.sign(arm, reference)]} {reference}: {self.words(arm, reference)} its perplexity over "
            f"all languages, more harm in {self.worse(arm, reference)}"
        )


def number(value: float) -> float | None:
    """Return a figure as JSON holds it: None for what is not finite."""
    return value if math.isfinite(value) else None


def verdict(title: str, paragraphs: Sequence[str]) -> dict[str, Any]:
    """Return the content of a table of kind verdict."""
    return {"kind": "verdict", "title": title, "paragraphs": [each for each in paragraphs if each]}
