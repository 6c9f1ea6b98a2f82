"""Calibration: do predictions agree with what was measured - in rank, at the top, in size - and how sure is that?

Everything is about magnitudes, |effect| against |prediction|, and every figure has a bootstrap over the removals. What
rounding alone does to the loss is the noise floor: figures of size leave out the effects below it.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from lingregions.statistics import LEVEL

ROUNDING = "rounding"  # how the stratum of a scalar begins that was only moved by one unit in the last place
DRAWS = 1000  # of each bootstrap


@dataclasses.dataclass(frozen=True)
class Sample:
    """The rows of some removals, as arrays of one length.

    Attributes:
      exact: |effect|, nats per token.
      predicted: {predictor: |prediction|}.
      matrix, stratum, language: of each.
      size: scalars removed at once.
      floor: noise floor of the language of each, nats per token.
    """

    exact: np.ndarray
    predicted: dict[str, np.ndarray]
    matrix: np.ndarray
    stratum: np.ndarray
    language: np.ndarray
    size: np.ndarray
    floor: np.ndarray

    def __len__(self) -> int:
        return len(self.exact)

    def take(self, chosen: np.ndarray) -> "Sample":
        """Return the rows that a mask or an array of places chooses."""
        parts = {name: values[chosen] for name, values in self.predicted.items()}
        others = {
            field.name: getattr(self, field.name)[chosen]
            for field in dataclasses.fields(self)
            if field.name != "predicted"
        }
        return Sample(predicted=parts, **others)

    @property
    def audible(self) -> np.ndarray:
        """Whether the exact effect is above the noise floor."""
        return self.exact > self.floor


def collect(rows: Sequence[Mapping[str, Any]], predictors: Sequence[str]) -> tuple[Sample, dict[str, float]]:
    """Return the removals of a table, and the noise floor of each language: the largest effect of rounding.

    Args:
      rows: with matrix, stratum, language, size, exact, and a column for each predictor.
      predictors: names.
    """
    noise: dict[str, float] = {}
    for row in rows:
        if row["stratum"].startswith(ROUNDING):
            noise[row["language"]] = max(noise.get(row["language"], 0.0), abs(row["exact"]))
    real = [row for row in rows if not row["stratum"].startswith(ROUNDING)]
    column = {name: np.asarray([row[name] for row in real]) for name in real[0]}
    return (
        Sample(
            exact=np.abs(column["exact"]),
            predicted={name: np.abs(column[name]) for name in predictors},
            matrix=column["matrix"],
            stratum=column["stratum"],
            language=column["language"],
            size=column["size"],
            floor=np.asarray([noise.get(language, 0.0) for language in column["language"]]),
        ),
        noise,
    )


def spearman(part: Sample, predictor: str) -> float:
    """Return the rank correlation of |prediction| and |effect|; NaN where one of them does not vary."""
    first, second = part.predicted[predictor], part.exact
    if len(part) < 3 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return math.nan
    x, y = (ranks - ranks.mean() for ranks in (stats.rankdata(first), stats.rankdata(second)))
    return float(x @ y / np.sqrt((x @ x) * (y @ y)))


def recall(part: Sample, predictor: str, count: int) -> float:
    """Return the share of the `count` largest effects that are among the `count` largest predictions."""
    if not 0 < count < len(part):
        return math.nan
    best = [
        set(np.argsort(-values, kind="stable")[:count].tolist()) for values in (part.exact, part.predicted[predictor])
    ]
    return len(best[0] & best[1]) / count


def slope(part: Sample, predictor: str) -> float:
    """Return the slope of log |effect| over log |prediction| (1: proportional), of what is above the noise floor."""
    kept = part.take(part.audible & (part.predicted[predictor] > 0))
    x, y = np.log(kept.predicted[predictor]), np.log(kept.exact)
    if len(kept) < 3 or np.ptp(x) == 0:
        return math.nan
    return float(np.polyfit(x, y, 1)[0])


def factor(part: Sample, predictor: str) -> float:
    """Return the median of log (|effect| / |prediction|), of what is above the noise floor: 0 where they are equal."""
    kept = part.take(part.audible & (part.predicted[predictor] > 0))
    return float(np.median(np.log(kept.exact / kept.predicted[predictor]))) if len(kept) else math.nan


def interval(figure: Callable[[Sample, str], float], part: Sample, predictor: str, seed: int) -> list[float | None]:
    """Return [figure, low, high]: percentiles of a bootstrap over removals, inside each stratum; null: unknown."""
    rng = np.random.default_rng(seed)
    groups = [np.flatnonzero(part.stratum == name) for name in dict.fromkeys(part.stratum.tolist())]
    drawn = [
        figure(part.take(np.concatenate([rng.choice(group, len(group)) for group in groups])), predictor)
        for _ in range(DRAWS)
    ]
    known = [value for value in drawn if math.isfinite(value)]
    value = figure(part, predictor)
    if len(known) < DRAWS / 2 or not math.isfinite(value):
        return [value if math.isfinite(value) else None, None, None]
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return [value, float(low), float(high)]
