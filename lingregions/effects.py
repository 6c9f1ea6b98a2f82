"""Effects: what interventions do to the loss in every language, against the untouched model and against each other.

From the sums by segment of `evaluate` to one table, effects.csv: differences of NLL in nats per token, each with its
interval and p-value (see `statistics`), p-values adjusted over the languages. Seeds of one intervention are pooled.
Milliseconds a comparison; no model is needed.
"""

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from lingregions import statistics
from lingregions.corpus.languages import LANGUAGES
from lingregions.evaluate import Segments
from lingregions.intervention import COLUMNS, UNTOUCHED, Intervention
from lingregions.run import table

if TYPE_CHECKING:
    import pandas

ALL = "all"  # in place of a language: the mean over all of them
SIGNIFICANT = 0.05  # an adjusted p-value below it counts as a difference


class Effect(NamedTuple):
    """One row of effects.csv: an intervention against a control, in one language or in `ALL`.

    Attributes:
      intervention, control: without seeds, which are pooled.
      language: its code, or `ALL`.
      family: of the language; "" for `ALL`.
      effect_nats: difference of NLL, nats per token; above zero where the intervention does more harm.
      low, high: bounds of the interval at `statistics.LEVEL`; NaN where there is none.
      p: two-sided p-value.
      p_adjusted: the same, adjusted over the languages (Holm).
      seeds: of the intervention.
      segments: that were resampled.
    """

    intervention: Intervention
    control: Intervention
    language: str
    family: str
    effect_nats: float
    low: float
    high: float
    p: float
    p_adjusted: float
    seeds: int
    segments: int

    @property
    def cell(self) -> list[float | None]:
        """[effect, low, high] as JSON holds it, None for what is not finite."""
        return statistics.cell((self.effect_nats, self.low, self.high))

    @property
    def sign(self) -> int:
        """1 or -1 where the interval lies above or below zero, 0 where it holds zero or there is none."""
        return (self.low > 0) - (self.high < 0)


# One row of effects.csv.
HEADER: tuple[str, ...] = (
    *("experiment", "intervention", "control", "language", "family"),
    *("effect_nats", "low", "high", "p", "p_adjusted", "seeds", "segments"),
    *COLUMNS,
)


@dataclasses.dataclass(frozen=True, repr=False)
class Effects:
    """The effects of some interventions; make them with `compare`.

    Attributes:
      rows: against the untouched model, then the contrasts; of each pair `ALL` first, then the languages.
      measured: {intervention: {language: sums by segment}}, what they were computed from.
      seed: of the resampling.
    """

    rows: tuple[Effect, ...]
    measured: Mapping[Intervention, Mapping[str, Segments]]
    seed: int = 0

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Effect]:
        return iter(self.rows)

    def __repr__(self) -> str:
        return f"Effects({len(self.measured)} interventions, {len(self.languages)} languages, {len(self.rows)} rows)"

    def _repr_html_(self) -> str:
        return str(self.frame().to_html(index=False))

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages, in their order."""
        return tuple(dict.fromkeys(code for sums in self.measured.values() for code in sums))

    @functools.cached_property
    def _index(self) -> dict[tuple[Intervention, Intervention, str], Effect]:
        return {(row.intervention, row.control, row.language): row for row in self.rows}

    def get(self, intervention: Intervention, control: Intervention = UNTOUCHED, language: str = ALL) -> Effect:
        """Return the effect of an intervention, whatever its seed, against a control.

        Raises:
          KeyError: the two were not compared.
        """
        try:
            return self._index[intervention.group, control.group, language]
        except KeyError:
            raise KeyError(f"{intervention.name} was not compared with {control.name} in {language}") from None

    def value(self, intervention: Intervention, control: Intervention = UNTOUCHED, language: str = ALL) -> float:
        """Return the effect, nats per token; NaN where a model gave none."""
        return self.get(intervention, control, language).effect_nats

    def cell(
        self, intervention: Intervention, control: Intervention = UNTOUCHED, language: str = ALL
    ) -> list[float | None]:
        """Return `Effect.cell` of the effect."""
        return self.get(intervention, control, language).cell

    def sign(self, intervention: Intervention, control: Intervention = UNTOUCHED, language: str = ALL) -> int:
        """Return `Effect.sign` of the effect."""
        return self.get(intervention, control, language).sign

    def harmed(self, intervention: Intervention, control: Intervention = UNTOUCHED) -> list[str]:
        """Return the languages in which the intervention does more harm than the control, by the adjusted p-value."""
        rows = [self.get(intervention, control, code) for code in self.languages]
        return [row.language for row in rows if row.p_adjusted < SIGNIFICANT and row.effect_nats > 0]

    def differences(
        self, intervention: Intervention, control: Intervention = UNTOUCHED, languages: Sequence[str] = ()
    ) -> dict[str, statistics.Draws]:
        """Return the paired bootstrap of an intervention against a control, seeds pooled, by language.

        Args:
          intervention: measured, whatever its seed.
          control: likewise.
          languages: all when empty.
        """
        return _differences(self.measured, intervention, control, languages or self.languages, self.seed)

    def specificity(
        self,
        intervention: Intervention,
        language: str,
        control: Intervention = UNTOUCHED,
        others: Sequence[str] | None = None,
    ) -> statistics.Draws:
        """Return the effect on a language minus the mean effect on others: all but it, if none are said."""
        strangers = [code for code in self.languages if code != language] if others is None else others
        weights = {language: 1.0} | dict.fromkeys(strangers, -1 / len(strangers))
        return statistics.combine(self.differences(intervention, control, tuple(weights)), weights)

    def frame(self) -> "pandas.DataFrame":
        """Return the table as a pandas DataFrame, with the columns of effects.csv but the experiment."""
        import pandas

        return pandas.DataFrame(self._cells(), columns=HEADER[1:])

    def csv(self, experiment: str, header: bool = True) -> str:
        """Return the table as effects.csv holds it.

        Args:
          experiment: first column of every row.
          header: whether the names of the columns come first.
        """
        lines = table.dump(HEADER, ([experiment, *cells] for cells in self._cells())).decode()
        return lines if header else lines.partition("\n")[2]

    def _cells(self) -> Iterable[list[object]]:
        for row in self.rows:
            names = [row.intervention.name, row.control.name, row.language, row.family]
            yield [*names, *map(float, row[4:9]), row.seeds, row.segments, *row.intervention.columns().values()]


def compare(
    measured: Mapping[Intervention, Mapping[str, Segments]],
    contrasts: Iterable[tuple[Intervention, Intervention]] = (),
    seed: int = 0,
) -> Effects:
    """Return the effect of each intervention against the untouched model, and of each contrast.

    Args:
      measured: {intervention: {language: sums by segment}}, the untouched model (`UNTOUCHED`) among them, all of the
        same text.
      contrasts: (intervention, control) beside those against the untouched model; their seeds do not matter.
      seed: of the resampling.

    Raises:
      ValueError: an intervention of a contrast was not measured, or two were not measured on the same segments.
    """
    languages = list(dict.fromkeys(code for sums in measured.values() for code in sums))
    groups = dict.fromkeys(each.group for each in measured)
    pairs = [(group, UNTOUCHED) for group in groups if group != UNTOUCHED]
    pairs += [(intervention.group, control.group) for intervention, control in contrasts]
    rows: list[Effect] = []
    for group, control in dict.fromkeys(pairs):
        seeds = sum(each.group == group for each in measured)
        rows += _rows(group, control, seeds, _differences(measured, group, control, languages, seed))
    return Effects(tuple(rows), measured, seed)


def _rows(
    group: Intervention, control: Intervention, seeds: int, differences: Mapping[str, statistics.Draws]
) -> Iterator[Effect]:
    """Yield the effect over all languages, then of each."""
    estimates = {code: statistics.estimate(difference) for code, difference in differences.items()}
    adjusted = statistics.holm({code: estimate.p for code, estimate in estimates.items()})
    overall = statistics.estimate(statistics.mean(differences))
    for code, estimate in {ALL: overall, **estimates}.items():
        family = LANGUAGES[code].family if code in LANGUAGES else ""
        value, low, high, p, units = estimate
        yield Effect(group, control, code, family, value, low, high, p, adjusted.get(code, p), seeds, units)


def _differences(
    measured: Mapping[Intervention, Mapping[str, Segments]],
    intervention: Intervention,
    control: Intervention,
    languages: Sequence[str],
    seed: int,
) -> dict[str, statistics.Draws]:
    sides: list[list[dict[str, Segments]]] = []
    for side in (intervention.group, control.group):
        sums = [values for each, values in measured.items() if each.group == side]
        if not sums:
            raise ValueError(f"{side.name} was not measured")
        sides.append([{code: values[code] for code in languages} for values in sums])
    return statistics.compare(sides[0], sides[1], seed=seed)
