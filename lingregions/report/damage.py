"""Damage: what each arm of an experiment costs each language, in the log domain.

The damage of an arm in a language is the difference of its NLL per token (nats) from the base's, which is the logarithm
of the ratio of the two perplexities. The mean damage over languages is therefore the logarithm of the ratio of the
geometric mean perplexities. Nothing here leaves the log domain, so a perplexity of 1e400 is a number like any other.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from lingregions.report import numerals
from lingregions.report.arms import BASE, Arm, distinct, parse, stem
from lingregions.report.numerals import Span

EVERY = "all"  # the language of damage.csv that is the mean over all


@dataclass(frozen=True)
class Row:
    """One measurement: NLL summed over `tokens` targets (nats), which stand for `bytes` bytes of UTF-8."""

    experiment: str
    arm: str
    language: str
    nll_nats: float
    tokens: int
    bytes: int
    segments: int | None = None

    @property
    def nll(self) -> float | None:
        """NLL in nats per token, the logarithm of the perplexity; None if it can't be computed or isn't finite."""
        if self.tokens <= 0 or not math.isfinite(self.nll_nats):
            return None
        return self.nll_nats / self.tokens

    @property
    def bits_per_byte(self) -> float | None:
        """NLL in bits per UTF-8 byte: comparable between languages and tokenizers."""
        if self.bytes <= 0 or not math.isfinite(self.nll_nats):
            return None
        return self.nll_nats / math.log(2) / self.bytes


@dataclass(frozen=True)
class Contrast:
    """One line of damage.csv: an arm, or all draws of one, against another in a language, or in the mean over all.

    `damage_nats`, nats per token, is the difference in NLL; `low` and `high` bound its interval; None where it is not
    finite. `segments` is how many were resampled; `p_adjusted` is corrected over the languages.
    """

    experiment: str
    arm: str
    reference: str
    language: str
    seeds: int
    segments: int
    damage_nats: float | None
    low: float | None
    high: float | None
    p: float | None
    p_adjusted: float | None

    @property
    def span(self) -> Span:
        """The difference with its interval, nats per token."""
        return Span(self.damage_nats, self.low, self.high)

    @property
    def sign(self) -> int:
        """1 where the interval lies above no difference, -1 where below, 0 where it holds it or there is none."""
        return clear(self.span)


def clear(span: Span) -> int:
    """1 where an interval lies above zero, -1 where below, 0 where it holds zero or lacks a bound."""
    if span.low is None or span.high is None:
        return 0
    return (span.low > 0) - (span.high < 0)


@dataclass(frozen=True)
class Damage:
    """The measurements of one experiment, by (arm, language), in the order in which they were first met.

    `contrasts` are the lines of damage.csv, by (arm, reference, language). Draws of one arm that damage.csv takes
    together are one arm here too.
    """

    experiment: str
    cells: Mapping[tuple[str, str], Row]
    arms: tuple[str, ...]
    languages: tuple[str, ...]
    fraction: float | None = None
    notes: tuple[str, ...] = field(default=())
    contrasts: Mapping[tuple[str, str, str], Contrast] = field(default_factory=dict)

    @property
    def assessed(self) -> bool:
        """Whether there are intervals."""
        return bool(self.contrasts)

    def contrast(self, arm: str, reference: str = BASE, code: str = EVERY) -> Contrast | None:
        """The line of damage.csv for an arm against another; None if there is none."""
        return self.contrasts.get((arm, reference, code))

    def span(self, arm: str, code: str = EVERY) -> Span:
        """The damage with its interval, as far as there is one; nats per token."""
        found = self.contrast(arm, BASE, code)
        value = self.cost(arm) if code == EVERY else self.damage(arm, code)
        if found is None or value is None:
            return Span(value)
        return Span(value, found.low, found.high)

    def seeds(self, arm: str) -> int:
        """How many draws are taken together under the name of an arm."""
        found = self.contrast(arm)
        return found.seeds if found else 1

    def nll(self, arm: str, code: str) -> float | None:
        """NLL in nats per token; None where it was not measured or is not finite."""
        row = self.cells.get((arm, code))
        return row.nll if row else None

    def damage(self, arm: str, code: str) -> float | None:
        """Difference in NLL per token from the base (nats): the log ratio of the two perplexities."""
        base, own = self.nll(BASE, code), self.nll(arm, code)
        return None if base is None or own is None else own - base

    def measured(self, arm: str) -> tuple[str, ...]:
        """Languages in which the arm has a damage (for the base: an NLL)."""
        value = self.nll if arm == BASE else self.damage
        return tuple(code for code in self.languages if value(arm, code) is not None)

    def mean(self, arm: str) -> float | None:
        """Mean NLL per token over the languages measured: the logarithm of the geometric mean perplexity."""
        return average([self.nll(arm, code) for code in self.languages])

    def cost(self, arm: str) -> float | None:
        """Mean damage over the languages measured: the log ratio of the geometric mean perplexities over them."""
        return average([self.damage(arm, code) for code in self.languages])

    def parse(self, arm: str) -> Arm:
        """What the name of an arm of this experiment says."""
        return parse(arm, self.fraction)

    def parsed(self) -> tuple[Arm, ...]:
        """What the names of the arms say, the base left out."""
        return tuple(self.parse(arm) for arm in self.arms if arm != BASE)

    def panels(self, most: int) -> dict[str, list[Arm]]:
        """The arms but the base, set beside their like where they are more than `most`; else all in one, named ""."""
        found = self.parsed()
        if len(found) <= most:
            return {"": list(found)}
        panels: dict[str, list[Arm]] = {}
        for arm in found:
            panels.setdefault(arm.panel, []).append(arm)
        return panels

    def labels(self) -> dict[str, str]:
        """What each arm is called in a table: in words where no two arms would share them."""
        return distinct([self.parse(arm) for arm in self.arms])


def average(values: Sequence[float | None]) -> float | None:
    """Mean of the values that are there; None if there are none."""
    present = [value for value in values if value is not None]
    return math.fsum(present) / len(present) if present else None


def collect(
    rows: Sequence[Row], fraction: float | None = None, contrasts: Sequence[Contrast] = ()
) -> tuple[Damage, ...]:
    """The measurements of each experiment; of a cell measured twice the later counts, with a note if they differ."""
    experiments: dict[str, dict[tuple[str, str], Row]] = {}
    changed: dict[str, int] = {}
    for row in rows:
        cells = experiments.setdefault(row.experiment, {})
        earlier = cells.get((row.arm, row.language))
        if earlier is not None and earlier != row:
            changed[row.experiment] = changed.get(row.experiment, 0) + 1
        cells[row.arm, row.language] = row
    found = []
    for experiment, cells in experiments.items():
        lines = {(line.arm, line.reference, line.language): line for line in contrasts if line.experiment == experiment}
        found.append(_damage(experiment, pool(cells, lines), fraction, changed.get(experiment, 0), lines))
    return tuple(found)


def pool(
    cells: Mapping[tuple[str, str], Row], contrasts: Mapping[tuple[str, str, str], Contrast]
) -> dict[tuple[str, str], Row]:
    """The cells with the draws of an arm summed under their common name, where damage.csv has them under it.

    All draws are measured on the same text, so NLL over tokens of the sums is their mean NLL per token.
    """
    measured = {arm for arm, _ in cells}
    groups = {name for arm, reference, _ in contrasts for name in (arm, reference)} - measured
    found: dict[tuple[str, str], Row] = {}
    for (arm, code), row in cells.items():
        name = group if (group := stem(arm)) in groups else arm
        before = found.get((name, code))
        if before is not None:
            row = replace(
                row,
                nll_nats=before.nll_nats + row.nll_nats,
                tokens=before.tokens + row.tokens,
                bytes=before.bytes + row.bytes,
            )
        found[name, code] = replace(row, arm=name)
    return found


def _damage(
    experiment: str,
    cells: Mapping[tuple[str, str], Row],
    fraction: float | None,
    changed: int,
    contrasts: Mapping[tuple[str, str, str], Contrast],
) -> Damage:
    arms = list(dict.fromkeys(arm for arm, _ in cells))
    if BASE in arms:
        arms = [BASE, *(arm for arm in arms if arm != BASE)]
    languages = list(dict.fromkeys(code for _, code in cells))
    notes: list[str] = []
    missing = [(arm, code) for arm in arms for code in languages if (arm, code) not in cells]
    if missing:
        shown = ", ".join(f"{arm} / {code}" for arm, code in missing[:6]) + (", …" if len(missing) > 6 else "")
        notes.append(
            f"Not measured, because the run has not finished or failed there: {len(missing)} of "
            f"{len(arms) * len(languages)} cells ({shown}), shown as a dash. Means are over the languages that are "
            "there."
        )
    if empty := [key for key, row in cells.items() if row.tokens <= 0]:
        notes.append(
            f"No token was evaluated for {numerals.listed([' / '.join(key) for key in empty])}; shown as a dash."
        )
    if overflow := [key for key, row in cells.items() if row.tokens > 0 and row.nll is None]:
        notes.append(
            f"The NLL is not finite for {numerals.listed([' / '.join(key) for key in overflow])}: the perturbed model "
            "overflows there; shown as a dash and left out of the means, which understate the damage."
        )
    if changed:
        notes.append(
            f"{numerals.plural(changed, 'cell')} in results.csv were measured twice with different results; the "
            "later one counts."
        )
    if BASE not in arms:
        notes.append(f"There is no arm '{BASE}', so no damage can be computed.")
    found = Damage(experiment, cells, tuple(arms), tuple(languages), fraction, tuple(notes), contrasts)
    return replace(found, notes=(*notes, *_agreement(found))) if contrasts else found


def _agreement(found: Damage) -> list[str]:
    """Notes on where damage.csv and results.csv do not tell the same."""
    notes = []
    if lacking := [arm for arm in found.arms if arm != BASE and found.contrast(arm) is None]:
        notes.append(f"damage.csv holds no interval for {numerals.listed(lacking)}, so no factor is printed for it.")
    apart = []
    for (arm, reference, code), line in found.contrasts.items():
        own = (found.cost(arm) if code == EVERY else found.damage(arm, code)) if reference == BASE else None
        if own is not None and line.damage_nats is not None and abs(own - line.damage_nats) > 1e-3 * max(1, abs(own)):
            apart.append(f"{arm} / {code}")
    if apart:
        shown = ", ".join(apart[:6]) + (", …" if len(apart) > 6 else "")
        notes.append(
            f"damage.csv and results.csv differ in {numerals.plural(len(apart), 'cell')} ({shown}): one of them is of "
            "an earlier measurement, and the intervals are not to be trusted there."
        )
    return notes
