"""Comparison: arms against the untouched model and against each other, every difference with its interval.

Reads the cells of a run and writes damage.csv; milliseconds a comparison (see `statistics`).
"""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from lingregions import evaluate, statistics
from lingregions.experiments.cell import BASE, segments
from lingregions.experiments.laboratory import Laboratory

EVERY = "all"  # in place of a language: the mean over all of them


def differences(
    laboratory: Laboratory, experiment: str, group: str, reference: str = BASE, languages: Sequence[str] = ()
) -> dict[str, statistics.Draws]:
    """Return the paired bootstrap of one measured group of arms against another, by language.

    Args:
      laboratory: after `measure`.
      experiment: as given to `measure`.
      group: name of an arm, or of a group of arms that differ in their seed.
      reference: likewise.
      languages: the evaluated ones when empty.
    """
    chosen = languages or tuple(laboratory.settings.evaluate.languages)
    sides: list[list[dict[str, evaluate.Segments]]] = []
    for name in (group, reference):
        members = [arm.name for arm in laboratory.arms[experiment] if arm.pooled == name]
        if not members:
            raise ValueError(f"{experiment} has no arm {name!r}")
        sides.append([{code: segments(laboratory, experiment, arm, code) for code in chosen} for arm in members])
    return statistics.compare(sides[0], sides[1], seed=laboratory.settings.seed)


class Compared(NamedTuple):
    """One line of damage.csv: a group of arms against another in one language, or in `EVERY`."""

    arm: str
    reference: str
    language: str
    seeds: int
    estimate: statistics.Estimate
    adjusted: float  # the p-value, corrected over the languages


def damages(laboratory: Laboratory, experiment: str, contrasts: Sequence[tuple[str, str]] = ()) -> list[Compared]:
    """Return each group of arms against the untouched model, and each contrast, in every language and over all.

    Args:
      laboratory: after `measure`.
      experiment: as given to `measure`.
      contrasts: (group, reference) pairs beside those against the untouched model.
    """
    arms = laboratory.arms[experiment]
    groups = list(dict.fromkeys(arm.pooled for arm in arms))
    seeds = {group: sum(arm.pooled == group for arm in arms) for group in groups}
    found = []
    for group, reference in [*((group, BASE) for group in groups if group != BASE), *contrasts]:
        each = differences(laboratory, experiment, group, reference)
        overall = statistics.estimate(statistics.mean(each))
        found.append(Compared(group, reference, EVERY, seeds[group], overall, overall.p))
        estimates = {code: statistics.estimate(difference) for code, difference in each.items()}
        adjusted = statistics.holm({code: estimate.p for code, estimate in estimates.items()})
        found += [
            Compared(group, reference, code, seeds[group], estimate, adjusted[code])
            for code, estimate in estimates.items()
        ]
    return found


DAMAGE = (
    *("experiment", "arm", "reference", "language", "seeds", "segments"),
    *("damage_nats", "low", "high", "p", "p_adjusted"),
)


def assess(
    laboratory: Laboratory, contrasts: Mapping[str, Sequence[tuple[str, str]]] | None = None
) -> dict[str, list[Compared]]:
    """Write damage.csv: every measured arm and contrast with its interval; returns it by experiment."""
    found = {name: damages(laboratory, name, (contrasts or {}).get(name, ())) for name in laboratory.arms}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(DAMAGE)
    for name, lines in found.items():
        for line in lines:
            value, low, high, p, units = line.estimate
            known = [name, line.arm, line.reference, line.language, line.seeds, units]
            writer.writerow([*known, *map(float, (value, low, high, p, line.adjusted))])
    laboratory.run.write("damage.csv", text.getvalue())
    return found
