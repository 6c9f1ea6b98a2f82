"""Further pre-training on one language with the core frozen, and with everything that competes with freezing it.

The paper's section 4: train on a new language, and see what the model gains there and what it forgets elsewhere. Every
training has some constraint (`freeze.METHODS`), some text (`replay`), or something done to its result (`reversion`).
Each is evaluated at sample counts in the trained language and in all others; the report draws the curves and one Pareto
plot: gain against forgetting.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from lingregions import freeze, perturb, regions, statistics, train
from lingregions import tree as trees
from lingregions.effects import Effects
from lingregions.experiments import claims, learning, measurement, scored, selection, step, study, tables
from lingregions.experiments.context import Context, prepare
from lingregions.intervention import UNTOUCHED, Intervention
from lingregions.models import roles
from lingregions.report import numerals
from lingregions.run import Run

_NAME = "frozen_pretraining"


@dataclasses.dataclass(frozen=True)
class _Treatment:
    """What a training is held to, beside its language.

    Attributes:
      method: a key of `freeze.METHODS`; "": nothing is held.
      region: the region that it freezes, or sets back: "top", "bottom" or "matched" (a draw a seed).
      scope: of the method that freezes whole parameters.
      replays: whether samples of other languages are mixed in.
      thaws: whether what it freezes is let go of on the way, by the schedule `freeze.thaw`.
      after: whether it is made of the training `full` instead of being trained.
      drawn: whether the scores that it goes by change places inside each matrix: the same steps, at random places.
    """

    method: str = ""
    region: str = ""
    scope: str = ""
    replays: bool = False
    thaws: bool = False
    after: bool = False
    drawn: bool = False

    @property
    def sized(self) -> bool:
        """Whether it takes a fraction: one training for each of `freeze.fractions`."""
        return bool(self.region) or (self.method in freeze.METHODS and freeze.METHODS[self.method].option == "fraction")


# What `freeze.treatments` may hold: these, and every method that needs no region of its own.
_TREATMENTS: dict[str, _Treatment] = {
    "full": _Treatment(),
    "core": _Treatment("hard", "top"),
    "random": _Treatment("hard", "matched"),
    "bottom": _Treatment("hard", "bottom"),
    "thaw": _Treatment("hard", "top", thaws=True),
    "embedding": _Treatment("leaves", scope="embedding"),
    "soft random": _Treatment("soft", drawn=True),
    "replay": _Treatment(replays=True),
    "core replay": _Treatment("hard", "top", replays=True),
    "ewc replay": _Treatment("ewc", replays=True),
    "reversion": _Treatment(region="top", after=True),
} | {name: _Treatment(name) for name, method in freeze.METHODS.items() if method.option not in ("", "scope")}


def _treatment(training: Intervention) -> _Treatment:
    """Return what a training is held to."""
    return _TREATMENTS[training.kind]


def _check(settings: ConfigDict) -> None:
    """Refuse treatments that do not exist, and a schedule that does not fit.

    Raises:
      ValueError: says which.
    """
    chosen, language = settings.freeze, settings.train.language
    if not chosen.treatments:
        raise ValueError(f"freeze.treatments is empty: name one or more of {', '.join(_TREATMENTS)}")
    if not chosen.fractions and any(_TREATMENTS[name].sized for name in chosen.treatments if name in _TREATMENTS):
        raise ValueError("freeze.fractions is empty: say how much of each matrix is frozen")
    for name in chosen.treatments:
        if name not in _TREATMENTS:
            raise ValueError(f"freeze.treatments holds {name!r}; there are {', '.join(_TREATMENTS)}")
        method = _TREATMENTS[name].method
        if method and freeze.METHODS[method].option == "strength" and method not in chosen:
            raise ValueError(f"the method {method} needs its strength: the config has no freeze.{method}")
    if any(_TREATMENTS[name].after for name in chosen.treatments) and "full" not in chosen.treatments:
        raise ValueError("reversion is made of the training full: add full to freeze.treatments")
    if not _kept(settings):
        raise ValueError(f"only {language} is evaluated: what is forgotten is seen in other languages, add some")
    if not settings.train.seeds:
        raise ValueError("train.seeds is empty: every training has one")
    if (lacking := set(_beside(settings)) - {*settings.score.rules, settings.score.rule}) and lacking:
        raise ValueError(f"ewc needs the scores of the rule fisher: add {', '.join(lacking)} to score.rules")
    if wrong := [factor for factor in chosen.reversion if not 0 <= factor <= 1]:
        raise ValueError(f"freeze.reversion holds {wrong[0]}; the core is set back by a factor between 0 and 1")
    for fraction in chosen.fractions:
        regions.parse(fraction)
    freeze.thaw(learning.recipe(settings).steps, *chosen.thaw)


def _trainings(settings: ConfigDict, seed: int | None = None) -> list[Intervention]:
    """Return the trainings of a seed, what is made of them last."""
    chosen = settings.freeze
    return [
        Intervention(kind=name, fraction=fraction, factor=None if factor == 1 else factor, seed=seed)
        for name in sorted(chosen.treatments, key=lambda name: _TREATMENTS[name].after)
        for fraction in (chosen.fractions if _TREATMENTS[name].sized else ("",))
        for factor in (chosen.reversion if _TREATMENTS[name].after else (1,))
    ]


def _pairs(settings: ConfigDict) -> list[tuple[Intervention, Intervention]]:
    """Return every frozen core with everything that competes with it."""
    names = _trainings(settings)
    cores = [each for each in names if each.kind == "core"]
    return [(core, other) for core in cores for other in names if other.kind != "core"]


def _steps(settings: ConfigDict, config: Any) -> list[step.Step]:
    """Score, select, train with every treatment and seed, evaluate on the way, report after each seed."""
    seeds, end = settings.train.seeds, settings.train.samples
    wanted: dict[str, selection.Selection] = {}
    for seed in seeds:
        for each in _trainings(settings, seed):
            wanted |= _selections(settings, each)
    planned = [
        step.Step("texts", f"training text of {settings.train.language}", _open_texts),
        *step.score(settings, config, _beside(settings)),
        step.select(settings, config, wanted),
        step.measure(
            settings,
            [],
            [(learning.after(core, end), learning.after(other, end)) for core, other in _pairs(settings)],
        ),
    ]
    for number, seed in enumerate(seeds):
        made = _trainings(settings, seed)
        reversions = [each for each in made if _treatment(each).after]
        for each in made:
            if not _treatment(each).after:
                planned.append(_train(settings, config, each, reversions if each.kind == "full" else []))
        if number < len(seeds) - 1:
            planned.append(step.Step("report", f"seed {seed}", lambda context: STUDY.publish(context)))
    return planned


def _train(settings: ConfigDict, config: Any, training: Intervention, reversions: Sequence[Intervention]) -> step.Step:
    perform = functools.partial(_learn, training=training, reversions=reversions)
    return learning.step(settings, config, training, settings.train.language, perform, reversions)


def _open_texts(context: Context) -> None:
    """Open what is trained on, before the first hour of work."""
    made = _trainings(context.settings, 0)
    _feed(context, next((each for each in made if _treatment(each).replays), made[0]))


# --- what a training needs --------------------------------------------------------------------------------------------


def _beside(settings: ConfigDict) -> tuple[str, ...]:
    """Return the rules whose scores are saved beside the definition's."""
    given = {
        freeze.METHODS[method].given for each in settings.freeze.treatments if (method := _TREATMENTS[each].method)
    }
    return ("fisher",) if "fisher" in given else ()


def _selections(settings: ConfigDict, training: Intervention) -> dict[str, selection.Selection]:
    """Return the regions that a training needs: its own last."""
    wanted, fraction, scope = _treatment(training).region, training.fraction, settings.freeze.scope
    if not wanted:
        return {}
    core, name = f"top {fraction}", _region(training)
    found = {core: selection.ranked(core, fraction, scope=scope)}
    if wanted == "matched":
        assert training.seed is not None
        return found | {name: selection.matched(name, fraction, core, training.seed, scope=scope)}
    return found | {name: selection.ranked(name, fraction, selector=wanted, scope=scope)}


def _region(training: Intervention) -> str:
    """Return the name of the region that a training freezes, or sets back."""
    kind = _treatment(training).region
    return Intervention(kind=kind, fraction=training.fraction, seed=training.seed if kind == "matched" else None).name


def _masks(context: Context, training: Intervention) -> trees.Tree:
    return selection.read(context, _region(training)).masks


def _constraints(context: Context, training: Intervention) -> list[freeze.Constraint]:
    """Return what a training is held to, made by the method of its treatment."""
    chosen, params, settings = _treatment(training), context.model.params, context.settings.freeze
    if not chosen.method:
        return []
    method = freeze.METHODS[chosen.method]
    values: dict[str, Callable[[], Any]] = {
        "": lambda: None,
        "fraction": lambda: float(regions.parse(training.fraction)),
        "scope": lambda: chosen.scope,
        "strength": lambda: settings[chosen.method],
    }
    options: dict[str, Any] = {method.option: values[method.option]()} if method.option else {"name": training.kind}
    if chosen.thaws:
        options["thaw"] = freeze.thaw(learning.recipe(context.settings).steps, *settings.thaw)
    return [method.make(params, _given(context, training, method.given), **options)]


def _given(context: Context, training: Intervention, what: str) -> trees.Tree | None:
    """Return the tree that a method needs: see `freeze.METHODS`."""
    if what == "masks":
        return _masks(context, training)
    if what == "scores":
        scores = roles.restrict(scored.combined(context).values, context.settings.freeze.scope)
        if not _treatment(training).drawn:
            return scores
        everywhere = jax.tree.map(functools.partial(jnp.ones_like, dtype=bool), scores)
        return perturb.apply(scores, everywhere, "shuffle", seed=training.seed)
    if what == "fisher":
        squares = scored.combined(context, False, "fisher").values
        own = roles.restrict(context.model.params, context.definition.scope)
        information: trees.Tree = freeze.fisher(own, squares)
        return information
    return None


def _kept(settings: ConfigDict) -> list[str]:
    """Return the evaluated languages other than the trained one."""
    return [code for code in settings.evaluate.languages if code != settings.train.language]


def _feed(context: Context, training: Intervention) -> train.Feed:
    """Return the order in which a training meets its text."""
    settings = context.settings
    assert training.seed is not None
    own = train.Order(context.corpus(settings.train.language, "train"), training.seed)
    if not _treatment(training).replays:
        return own
    others = (context.corpus(code, "train") for code in settings.freeze.replayed or _kept(settings))
    return train.Mix(own, tuple(train.Order(each, training.seed) for each in others), settings.freeze.replay)


def _trainer(context: Context, training: Intervention) -> train.Trainer:
    """Return the compiled training."""
    return learning.trainer(context, _constraints(context, training))


# --- training ---------------------------------------------------------------------------------------------------------


def _learn(context: Context, training: Intervention, reversions: Sequence[Intervention]) -> None:
    """Train, evaluate at the counts, and prove that what was frozen did not move.

    Args:
      context: the model and its texts.
      training: with its seed.
      reversions: what is made of it at the end.
    """
    ends = [learning.after(each, context.settings.train.samples) for each in reversions]
    make, feed = functools.partial(_trainer, context, training), functools.partial(_feed, context, training)
    params = learning.fit(context, training, make, feed, ends)
    if params is None:
        return
    _verify(context, training, params)
    for each, end in zip(reversions, ends, strict=True):
        back = perturb.revert(
            params, context.model.params, _masks(context, each), 1 if each.factor is None else each.factor
        )
        measurement.observe(context, end, back)
    learning.finish(context, training)


def _verify(context: Context, training: Intervention, params: trees.Tree) -> None:
    """Prove that a frozen region is the base model's, bit for bit."""
    if _treatment(training).method == "hard" and not _treatment(training).thaws:
        freeze.verify(context.model.params, params, _masks(context, training))


def _export(settings: ConfigDict, run: Run, training: str, folder: Path, dtype: str) -> None:
    """Write a training's newest checkpoint as a Hugging Face folder, after proving that what was frozen did not move.

    Args:
      settings: the config of the run.
      run: its work directory.
      training: its name, such as "core 1% seed 0".
      folder: to be made.
      dtype: "float32", or "bfloat16" (rounded to nearest even).

    Raises:
      ValueError: there is no such training, or a frozen entry moved; nothing is written then.
      RunError: its checkpoint is not there.
    """
    made = [each for seed in settings.train.seeds for each in _trainings(settings, seed)]
    known = {each.name: each for each in made if not _treatment(each).after}
    if training not in known:
        raise ValueError(f"the run has no training {training!r}; it has {', '.join(known)}")
    context = prepare(settings, run)
    state = train.load(run, training, _trainer(context, known[training]))
    _verify(context, known[training], state.params)
    learning.export(context, state.params, folder, dtype)


# --- what is shown ----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Outcome:
    """What a training ends with, over the seeds: nats per token against the untouched model, or another training.

    Attributes:
      name: of the treatment.
      gain: [value, low, high], what the trained language gains.
      loss: what the others lose in the mean.
    """

    name: str
    gain: tables.Cell
    loss: tables.Cell


def _outcome(
    settings: ConfigDict, found: Effects, training: Intervention, count: int, control: Intervention = UNTOUCHED
) -> _Outcome:
    """Return what a training gained and lost after `count` samples."""
    each = found.differences(learning.after(training, count), control)
    gain = tables.turned(each[settings.train.language].cell)
    return _Outcome(training.name, gain, statistics.mean(each, _kept(settings)).cell)


def _show(context: Context) -> dict[str, Any]:
    """Return tables, curves, the Pareto plot and the verdict of the seeds that are done."""
    settings, target, end = context.settings, context.settings.train.language, context.settings.train.samples
    names = _trainings(settings)
    found = context.effects()
    seeds = len({each.seed for each in found.measured} - {None})
    note = (
        f"Trained on {end:,} samples of {settings.data.length} tokens ({target}), {numerals.plural(seeds, 'seed')}; "
        f"kept languages: {', '.join(_kept(settings))}. Intervals: bootstrap over segments and seeds."
    )
    outcomes = [_outcome(settings, found, each, end) for each in names]
    compared = [
        {
            "core": core.name,
            "other": other,
            **vars(_outcome(settings, found, core, end, learning.after(other, end))),
        }
        for core, other in _pairs(settings)
    ]
    slowed, drawn = (next((each for each in names if each.kind == kind), None) for kind in ("soft", "soft random"))
    columns = {
        **{"training": "text", f"perplexity gained in {target}": "factor"},
        "perplexity lost in the others": "factor",
    }
    return {
        "frontier": tables.table(
            "Gain and forgetting at the end", columns, [[each.name, each.gain, each.loss] for each in outcomes], note
        ),
        "pareto": tables.frontier(
            "Gain against forgetting",
            note,
            "forgetting: mean over the kept languages, nats per token",
            f"gain in {target}, nats per token",
            {each.name: (name.kind, each.loss, each.gain) for name, each in zip(names, outcomes, strict=True)},
        ),
        "learning": _progress(settings, found, names, f"Gain in {target}", "gain", note),
        "forgetting": _progress(settings, found, names, "Mean forgetting", "loss", note),
        "verdict": claims.verdict(
            _NAME,
            "Does freezing the core help?",
            target=target,
            kept=len(_kept(settings)),
            seeds=seeds,
            full=next((each for each, name in zip(outcomes, names, strict=True) if name.kind == "full"), None),
            compared=compared,
            against=next(
                (each for kind in ("random", "full") for each in compared if each["other"].kind == kind), None
            ),
            slowed=None
            if slowed is None or drawn is None
            else _outcome(settings, found, slowed, end, learning.after(drawn, end)),
        ),
    }


def _progress(
    settings: ConfigDict, found: Effects, names: Sequence[Intervention], what: str, side: str, note: str
) -> dict[str, Any]:
    """Return the curve of gain or loss over the samples trained on."""
    start: tuple[float, tables.Cell] = (0, [0.0, None, None])
    series = {
        each.name: [
            start,
            *((count, getattr(_outcome(settings, found, each, count), side)) for count in learning.reached(settings)),
        ]
        for each in names
        if not _treatment(each).after
    }
    units = {"upwards": "nats per token", "note": note, "format": "number"}
    return tables.curve(f"{what} while training", "samples trained on", series, **units)


STUDY = study.Study(_steps, _show, _check, _export)
