"""Can languages be kept apart in training: inside their own regions, outside them, or disjoint from the start?

A language is trained for a few steps with everything free, inside its own region alone (the top of its scores without
the top of any other scored language), inside a random region matched to that, and everywhere but there (`inside`). Then
all trained languages together, a batch each in turn: with everything free, each language moving its own region alone
(the regions are disjoint), and each a matched random region alone (drawn apart from all tops, hardly overlapping).

Asked is what the trained languages gain, what the others lose, and whether *specificity* grows: the effect on A of the
removal of A's own region minus the mean effect on the other evaluated languages, after the training minus before. Nats
per token; paired bootstrap over segments and seeds, languages apart. In turns, AdamW's moments of a region decay in the
turns of others: its steps are smaller than a region's that is trained alone, and the control's are too.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from lingregions import statistics
from lingregions.effects import Effects
from lingregions.experiments import claims, inside, learning, selection, step, study, tables
from lingregions.experiments.context import Context
from lingregions.intervention import UNTOUCHED, Intervention

_ALONE = ("full", "own", "matched", "outside")
_TOGETHER = ("together", "disjoint", "disjoint matched")


def _record(kind: str, language: str = "") -> Intervention:
    """Return a training: of one language, or of all trained ones in turn."""
    return Intervention(kind=kind, region_language=language)


def _records(settings: ConfigDict) -> list[Intervention]:
    """Return every training without its seed."""
    alone = [_record(kind, code) for code in settings.train.languages for kind in _ALONE]
    return [*alone, *(_record(kind) for kind in _TOGETHER)]


def _own(language: str) -> Intervention:
    """Return the removal of what only this language has, from the untouched model."""
    return Intervention(kind="monolingual", region_language=language, perturbation="zero")


def _removed(settings: ConfigDict, training: Intervention, language: str) -> Intervention:
    """Return the same removal from what a training made."""
    end = learning.after(training, settings.train.samples)
    part = f"after {training.group.name}"
    return dataclasses.replace(_own(language), part=part, samples=end.samples, seed=training.seed)


def _languages(settings: ConfigDict, training: Intervention) -> tuple[str, ...]:
    """Return what a training trains on."""
    return (training.region_language,) if training.region_language else tuple(settings.train.languages)


def _drawn(language: str, seed: int) -> str:
    """Return the name of the random region matched to what only a language has."""
    return Intervention(kind="matched", region_language=language, seed=seed).name


def _training(settings: ConfigDict, record: Intervention, seed: int) -> inside.Training:
    """Return a training of a seed: where it may move the model, and what is removed afterwards."""
    drawn, languages = dataclasses.replace(record, seed=seed), _languages(settings, record)
    names: tuple[str, ...] = ()
    if record.kind in ("own", "outside", "disjoint"):
        names = tuple(_own(code).name for code in languages)
    elif record.kind.endswith("matched"):
        names = tuple(_drawn(code, seed) for code in languages)
    removed = {_removed(settings, drawn, code): _own(code).name for code in languages}
    return inside.Training(drawn, languages, names, record.kind == "outside", removed)


def _steps(settings: ConfigDict, config: Any) -> list[step.Step]:
    """Score, select, remove, train, remove again."""
    fraction, seeds, end = settings.select.fractions[0], settings.train.seeds, settings.train.samples
    tops = [f"top {fraction} {code}" for code in settings.score.languages]
    wanted = selection.monolingual(settings) | {
        name: selection.matched(name, fraction, _own(code).name, seed, tops)
        for code in settings.train.languages
        for seed in seeds
        for name in [_drawn(code, seed)]
    }
    records = _records(settings)
    contrasts = [
        (_removed(settings, each, code), learning.after(each, end))
        for each in records
        for code in _languages(settings, each)
    ]
    made = [_training(settings, record, seed) for seed in seeds for record in records]
    return [
        *step.score(settings, config),
        step.select(settings, config, wanted),
        step.measure(settings, [_own(code) for code in settings.train.languages], contrasts),
        *(inside.step(settings, config, each) for each in made),
    ]


# --- what is shown ----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Outcome:
    """What a training did, [value, low, high] in nats per token.

    Attributes:
      gain: of the trained languages, in the mean.
      loss: of the evaluated languages that it did not train, in the mean.
      specificity: after it, in the mean of the trained languages.
      growth: the same minus what it was before.
    """

    gain: tables.Cell
    loss: tables.Cell
    specificity: tables.Cell
    growth: tables.Cell


def _outcome(
    settings: ConfigDict, found: Effects, training: Intervention, control: Intervention | None = None
) -> _Outcome:
    """Return what a training did, against the untouched model or against another training of the same languages."""
    languages, end = _languages(settings, training), settings.train.samples
    others = [code for code in settings.evaluate.languages if code not in languages]
    after = learning.after(training, end)
    against = UNTOUCHED if control is None else learning.after(control, end)
    changed = found.differences(after, against)
    specific = [found.specificity(_removed(settings, training, code), code, after) for code in languages]
    before = [
        found.specificity(_own(code) if control is None else _removed(settings, control, code), code, against)
        for code in languages
    ]
    share = 1 / len(languages)
    return _Outcome(
        tables.turned(statistics.mean(changed, languages).cell),
        statistics.mean(changed, others).cell,
        statistics.weigh(specific, [share] * len(specific)).cell,
        statistics.weigh([*specific, *before], [share] * len(specific) + [-share] * len(before)).cell,
    )


def _show(context: Context) -> dict[str, Any]:
    """Return what every training gained, what it cost, what became of specificity, and the verdict."""
    settings, found = context.settings, context.effects()
    outcomes = {each: _outcome(settings, found, each) for each in _records(settings)}
    pairs = [(_record("own", code), _record("matched", code)) for code in settings.train.languages]
    pairs.append((_record("disjoint"), _record("disjoint matched")))
    compared = {each: _outcome(settings, found, each, control) for each, control in pairs}
    columns = {"training": "text"} | dict.fromkeys(
        ("gain", "lost by others", "specificity", "growth of specificity"), "interval"
    )
    note = (
        f"Nats per token after {settings.train.samples} samples of {settings.data.length} tokens, in the mean of what "
        "was trained, or of what was not. Specificity: own minus others' effect of removing the own region."
    )
    return {
        "outcomes": tables.table("What a training gains, costs and keeps apart", columns, _rows(outcomes), note),
        "pareto": tables.frontier(
            "Gain against what others lose",
            note,
            "mean loss of the languages that were not trained, nats per token",
            "mean gain of those that were, nats per token",
            {each.name: (each.kind, outcome.loss, outcome.gain) for each, outcome in outcomes.items()},
        ),
        "compared": tables.table(
            "Own region minus matched random region",
            columns,
            _rows(compared),
            "The same figures, minus those of the training inside the matched random region.",
        ),
        "verdict": claims.verdict(
            "disentangling",
            "Can languages be kept apart?",
            together=outcomes[_record("together")],
            disjoint=outcomes[_record("disjoint")],
            control=compared[_record("disjoint")],
            alone={kind: [outcomes[_record(kind, code)] for code in settings.train.languages] for kind in _ALONE},
            compared=[compared[_record("own", code)] for code in settings.train.languages],
        ),
    }


def _rows(outcomes: Mapping[Intervention, _Outcome]) -> list[list[Any]]:
    return [[each.name, *vars(outcome).values()] for each, outcome in outcomes.items()]


def _check(settings: ConfigDict) -> None:
    """Refuse what `inside` refuses, and a config in which every evaluated language is trained.

    Raises:
      ValueError: says which.
    """
    inside.check(settings)
    if set(settings.evaluate.languages) <= set(settings.train.languages):
        raise ValueError("every evaluated language is trained: what others lose is seen in others, evaluate some")


STUDY = study.Study(_steps, _show, _check)
