"""Calibration: do predictions agree with what was measured - in rank, at the top, in size - and how sure is that?

Everything is about magnitudes, |effect| against |prediction|, and every figure has a bootstrap over the removals. What
rounding alone does to the loss is the noise floor: figures of size leave out the effects below it.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lingregions.statistics import LEVEL

ROUNDING = "rounding"  # how the stratum of a scalar begins that was only moved by one unit in the last place
_DRAWS = 1000  # of each bootstrap


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
    def measurable(self) -> np.ndarray:
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


def _spearman(predicted: np.ndarray, exact: np.ndarray, measurable: np.ndarray) -> np.ndarray:
    """Return the rank correlation of |prediction| and |effect|, [..., n] -> [...]; NaN where one does not vary."""
    from scipy import stats  # a second of every start, for one study

    x, y = (
        ranks - ranks.mean(-1, keepdims=True)
        for ranks in (stats.rankdata(each, axis=-1) for each in (predicted, exact))
    )
    return _quotient((x * y).sum(-1), np.sqrt((x * x).sum(-1) * (y * y).sum(-1)))


def _slope(predicted: np.ndarray, exact: np.ndarray, measurable: np.ndarray) -> np.ndarray:
    """Return the slope of log |effect| over log |prediction| (1: proportional), of what is above the noise floor."""
    x, y, kept = _logarithms(predicted, exact, measurable)
    count = np.maximum(kept.sum(-1, keepdims=True), 1)
    x, y = (np.where(kept, each - each.sum(-1, keepdims=True) / count, 0) for each in (x, y))
    return _quotient((x * y).sum(-1), (x * x).sum(-1))


def _factor(predicted: np.ndarray, exact: np.ndarray, measurable: np.ndarray) -> np.ndarray:
    """Return the median of log (|effect| / |prediction|), of what is above the noise floor: 0 where they are equal."""
    x, y, kept = _logarithms(predicted, exact, measurable)
    ranked = np.sort(np.where(kept, y - x, np.inf), axis=-1)
    count = kept.sum(-1, keepdims=True)
    middle = [np.take_along_axis(ranked, np.maximum(place, 0), -1)[..., 0] for place in ((count - 1) // 2, count // 2)]
    half = count[..., 0] > 0
    return np.where(half, np.where(half, middle[0], 0) / 2 + np.where(half, middle[1], 0) / 2, np.nan)


def _logarithms(
    predicted: np.ndarray, exact: np.ndarray, measurable: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the logarithms of predictions and effects where both can be taken (0 elsewhere), and where that is."""
    kept = measurable & (predicted > 0) & (exact > 0)
    x, y = (np.log(np.where(kept, each, 1)) for each in (predicted, exact))
    return x, y, kept


def _quotient(over: np.ndarray, under: np.ndarray) -> np.ndarray:
    return np.where(under > 0, over / np.where(under > 0, under, 1), np.nan)


def recall(part: Sample, predictor: str, count: int) -> float:
    """Return the share of the `count` largest effects that are among the `count` largest predictions."""
    if not 0 < count < len(part):
        return math.nan
    first, second = (
        set(np.argsort(-values, kind="stable")[:count]) for values in (part.exact, part.predicted[predictor])
    )
    return len(first & second) / count


# Predictions, effects, and whether these are above the noise floor: arrays [..., n] -> figures [...].
_FIGURES: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    "spearman": _spearman,
    "slope": _slope,
    "factor": _factor,
}


def measure(figure: str, part: Sample, predictor: str) -> float:
    """Return a figure of `_FIGURES` of a sample; NaN where there is too little of it."""
    return (
        float(_FIGURES[figure](part.predicted[predictor], part.exact, part.measurable)) if len(part) > 2 else math.nan
    )


def interval(figure: str, part: Sample, predictor: str, seed: int) -> list[float | None]:
    """Return [figure, low, high]: percentiles of a bootstrap over removals, inside each stratum; null: unknown."""
    value = measure(figure, part, predictor)
    if not math.isfinite(value):
        return [None, None, None]
    rng = np.random.default_rng(seed)
    groups = [np.flatnonzero(part.stratum == name) for name in dict.fromkeys(part.stratum.tolist())]
    places = np.concatenate([rng.choice(group, (_DRAWS, len(group))) for group in groups], axis=1)
    drawn = _FIGURES[figure](part.predicted[predictor][places], part.exact[places], part.measurable[places])
    known = drawn[np.isfinite(drawn)]
    if len(known) < _DRAWS / 2:
        return [value, None, None]
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return [value, float(low), float(high)]
