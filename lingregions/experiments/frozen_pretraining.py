"""Further pre-training on one language with the core frozen, and with everything that competes with freezing it.

The paper's section 4: train on a new language, and see what the model gains there and what it forgets elsewhere. Every
arm is one training with some constraint (`freeze.METHODS`), some text (`replay`), or something done to its result
(`reversion`). Each is evaluated at sample counts in the trained language and in all others; the report draws the curves
and one Pareto plot: gain against forgetting.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from lingregions import freeze, perturb, regions, statistics, train
from lingregions import mesh as meshes
from lingregions import tree as trees
from lingregions.experiments import cell as cells
from lingregions.experiments import comparison, stage
from lingregions.experiments import laboratory as lab
from lingregions.experiments.cell import Arm
from lingregions.experiments.finding import verdict
from lingregions.experiments.laboratory import Laboratory
from lingregions.experiments.stage import Stage
from lingregions.models import convert, roles
from lingregions.regions import Region
from lingregions.regions.matched import match
from lingregions.regions.select import parse
from lingregions.report import numerals
from lingregions.report.numerals import Span
from lingregions.run import Run

NAME = "frozen_pretraining"


@dataclasses.dataclass(frozen=True)
class Training:
    """One training: an arm and a seed.

    Attributes:
      arm: a key of `ARMS`, with the fraction where the arm takes one: "core 1%".
      seed: of the order of the samples, and of a region that is drawn.
    """

    arm: str
    seed: int

    @property
    def method(self) -> str:
        """The key of `ARMS`."""
        return self.arm.partition(" ")[0]

    @property
    def fraction(self) -> str:
        """The size of the region, "" where the arm has none."""
        return self.arm.partition(" ")[2]

    def __str__(self) -> str:
        return f"{self.arm} seed {self.seed}"


# What an arm needs of a run: its region, and what it holds the training to.
Hold = Callable[[Laboratory, Training], list[freeze.Constraint]]


def _nothing(laboratory: Laboratory, training: Training) -> list[freeze.Constraint]:
    return []


def _hard(laboratory: Laboratory, training: Training) -> list[freeze.Constraint]:
    return [freeze.hard(laboratory.params, masks(laboratory, training), name=training.method)]


def _soft(laboratory: Laboratory, training: Training) -> list[freeze.Constraint]:
    return [freeze.soft(laboratory.params, scores(laboratory), strength=laboratory.settings.freeze.soft)]


def _column(laboratory: Laboratory, training: Training) -> list[freeze.Constraint]:
    return [freeze.column(laboratory.params, scores(laboratory), fraction=float(parse(training.fraction)))]


def _embedding(laboratory: Laboratory, training: Training) -> list[freeze.Constraint]:
    return [freeze.leaves(laboratory.params, None, scope="embedding")]


def _l2_sp(laboratory: Laboratory, training: Training) -> list[freeze.Constraint]:
    return [freeze.l2_sp(laboratory.params, None, strength=laboratory.settings.freeze.l2_sp)]


def _ewc(laboratory: Laboratory, training: Training) -> list[freeze.Constraint]:
    found = freeze.fisher(roles.restrict(laboratory.params, laboratory.definition.scope), squares(laboratory))
    return [freeze.ewc(laboratory.params, found, strength=laboratory.settings.freeze.ewc)]


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of arm.

    Attributes:
      hold: the constraints of its training.
      sized: whether it takes a fraction: one arm for each of `freeze.fractions`.
      replays: whether samples of other languages are mixed in.
      after: whether it is made of the trained `full` arm instead of being trained.
    """

    hold: Hold = _nothing
    sized: bool = False
    replays: bool = False
    after: bool = False


ARMS: dict[str, Kind] = {
    "full": Kind(),
    "core": Kind(_hard, sized=True),
    "random": Kind(_hard, sized=True),
    "bottom": Kind(_hard, sized=True),
    "column": Kind(_column, sized=True),
    "soft": Kind(_soft),
    "embedding": Kind(_embedding),
    "l2_sp": Kind(_l2_sp),
    "ewc": Kind(_ewc),
    "replay": Kind(replays=True),
    "reversion": Kind(sized=True, after=True),
}


def frozen_pretraining(settings: ConfigDict, run: Run) -> None:
    """Score, select, train every arm with every seed, evaluate on the way, report after each seed.

    Args:
      settings: see configs/frozen_pretraining.py.
      run: the work directory; what is finished in it is not done again, and a training goes on at its checkpoint.
    """
    laboratory = lab.prepare(settings, run)
    found = list(arms(settings))
    recipe(settings)  # refuses a schedule that does not fit before the first hour of work
    lab.check(laboratory)
    feed(laboratory, Training("replay" if "replay" in found else "full", 0))
    for language in settings.score.languages:
        score(laboratory, language)
    cells.observe(laboratory, NAME, Arm(cells.BASE), laboratory.params)
    for number, seed in enumerate(settings.train.seeds):
        for arm in found:
            if not ARMS[arm.partition(" ")[0]].after:
                learn(laboratory, Training(arm, seed), [each for each in found if each.startswith("reversion")])
        publish(laboratory, found, settings.train.seeds[: number + 1])


def arms(settings: ConfigDict) -> Iterator[str]:
    """Yield the names of the arms, the trained ones first.

    Raises:
      ValueError: an arm that does not exist, or reversion without the arm that it is made of.
    """
    chosen = settings.freeze
    for name in chosen.arms:
        if name not in ARMS:
            raise ValueError(f"freeze.arms holds {name!r}; there are {', '.join(ARMS)}")
    if any(ARMS[name].after for name in chosen.arms) and "full" not in chosen.arms:
        raise ValueError("the arm reversion is made of the trained arm full: add full to freeze.arms")
    if any(ARMS[name].replays for name in chosen.arms) and not (chosen.replayed or kept(settings)):
        raise ValueError(
            "the arm replay replays other languages than the trained one: name some in evaluate.languages or "
            "freeze.replayed, or take replay out of freeze.arms"
        )
    for name in sorted(chosen.arms, key=lambda name: ARMS[name].after):
        yield from (f"{name} {fraction}" for fraction in chosen.fractions) if ARMS[name].sized else (name,)


def stages(settings: ConfigDict) -> list[Stage]:
    """Return what `frozen_pretraining` would do."""
    found, seeds, samples = list(arms(settings)), settings.train.seeds, settings.train.samples
    trained = [arm for arm in found if not ARMS[arm.partition(" ")[0]].after]
    counts = len(reached(settings))
    measured = [Training(arm, seed) for seed in seeds for arm in found]
    names = [
        f"{each} after {count}"
        for each in measured
        for count in (range(1) if ARMS[each.method].after else range(counts))
    ]
    parameters = stage.count(settings, "everything")
    return [
        *stage.scoring(settings, copies=2 if needs_fisher(settings) else 1),
        Stage(
            "train",
            f"{len(trained)} arms x {len(seeds)} seeds: {', '.join(trained)}",
            samples * len(trained) * len(seeds),
            samples * len(trained) * len(seeds) * settings.data.length,
            12 * parameters * (len(trained) * len(seeds) if settings.train.keep else 1),
            tuple(_mark(each) for each in measured if not ARMS[each.method].after),
        ),
        stage.measuring(settings, names),
    ]


# --- what an arm needs ------------------------------------------------------------------------------------------------


def needs_fisher(settings: ConfigDict) -> bool:
    """Tell whether an arm reads the Fisher information."""
    return "ewc" in settings.freeze.arms


def score(laboratory: Laboratory, language: str) -> None:
    """Score a language by the definition, and by `fisher` beside it where an arm needs that; one pass for both."""
    run, mark = laboratory.run, f"score-{language}"
    if run.done(mark) is None:
        stop = lab.samples(laboratory, language)
        files = [f"scores/{language}"]
        for at in lab.gather(laboratory, language, 0, stop):
            lab.store(laboratory, files[0], language, at)
            if needs_fisher(laboratory.settings):
                files.append(f"fisher/{language}")
                found = laboratory.scorer.finish(laboratory.params, at.sums, at.tokens, "fisher")
                run.save(files[1], found, lab.facts(laboratory, language, at))
        run.finish(mark, *files, **lab.facts(laboratory, language, at))
        lab.forget(laboratory, language, 0, stop)
    run.check()


def scores(laboratory: Laboratory) -> trees.Tree:
    """Return the scores combined over the scored languages, in the scope that may be frozen."""
    combined = lab.combine(laboratory, laboratory.settings.score.languages)
    return roles.restrict(combined, laboratory.settings.freeze.scope)


def squares(laboratory: Laboratory) -> trees.Tree:
    """Return the scores of the rule `fisher`, summed over the scored languages."""
    like = roles.restrict(laboratory.shapes, laboratory.definition.scope)
    total: Any = None
    for language in laboratory.settings.score.languages:
        each = laboratory.run.load(f"fisher/{language}", like)
        total = each if total is None else trees.transform(lambda _, one, other: one + other, total, each)
    found: trees.Tree = total
    return found


def masks(laboratory: Laboratory, training: Training) -> trees.Tree:
    """Return the masks of the region that an arm freezes, or sets back."""
    fraction = training.fraction
    core = find(laboratory, "top", fraction)
    if training.method in ("core", "reversion"):
        return lab.read(laboratory, core).masks
    if training.method == "bottom":
        return lab.read(laboratory, find(laboratory, "bottom", fraction)).masks
    name = f"matched {fraction} seed {training.seed}"

    def make() -> Region:
        part = roles.restrict(laboratory.params, laboratory.settings.freeze.scope)
        return match(lab.read(laboratory, core), part, training.seed, name)

    return lab.read(laboratory, lab.find(laboratory, {name: make})[name]).masks


def find(laboratory: Laboratory, selector: str, fraction: str) -> str:
    """Return the file of the top or bottom of the combined scores, in the scope that is frozen."""
    name = f"{selector} {fraction}"

    def make() -> Region:
        known = lab.provenance(laboratory, laboratory.settings.score.languages).replace(
            name=name, select_scope=laboratory.settings.freeze.scope
        )
        return regions.select(scores(laboratory), fraction, selector, provenance=known)

    return lab.find(laboratory, {name: make})[name]


def recipe(settings: ConfigDict) -> train.Recipe:
    """Return how the config trains.

    Raises:
      ValueError: a value that does not fit; the message says which.
    """
    chosen = settings.train
    names = {field.name for field in dataclasses.fields(train.Recipe)}
    return train.Recipe(**{name: value for name, value in chosen.to_dict().items() if name in names})


def reached(settings: ConfigDict) -> list[int]:
    """Return the sample counts at which an arm is evaluated, the end among them."""
    samples = settings.train.samples
    return sorted({*(count for count in settings.train.counts if 0 < count < samples), samples})


def feed(laboratory: Laboratory, training: Training) -> train.Feed:
    """Return the order in which an arm meets its text."""
    settings = laboratory.settings
    own = train.Order(laboratory.corpus(settings.train.language, "train"), training.seed)
    if not ARMS[training.method].replays:
        return own
    others = tuple(
        train.Order(laboratory.corpus(code, "train"), training.seed)
        for code in settings.freeze.replayed or kept(settings)
    )
    return train.Mix(own, others, settings.freeze.replay)


def kept(settings: ConfigDict) -> list[str]:
    """Return the evaluated languages other than the trained one."""
    return [code for code in settings.evaluate.languages if code != settings.train.language]


def trainer(laboratory: Laboratory, training: Training) -> train.Trainer:
    """Return the compiled training of an arm."""
    settings = laboratory.settings
    return train.Trainer(
        laboratory.model,
        laboratory.compute,
        recipe(settings),
        ARMS[training.method].hold(laboratory, training),
        micro=settings.machine.train_batch * meshes.rows(laboratory.mesh),
        mesh=laboratory.mesh,
    )


# --- training ---------------------------------------------------------------------------------------------------------


def _mark(training: Training) -> str:
    return f"train-{lab.slug(str(training))}"


def learn(laboratory: Laboratory, training: Training, reversions: Sequence[str]) -> None:
    """Train one arm, evaluate it at the counts, and prove that what was frozen did not move.

    Args:
      laboratory: the model and its texts.
      training: the arm and its seed.
      reversions: arms that are made of this one when it is `full`.
    """
    run, settings = laboratory.run, laboratory.settings

    def arm(name: str, count: int) -> Arm:
        return Arm(f"{name} seed {training.seed} after {count}", group=f"{name} after {count}")

    def hook(count: int, params: trees.Tree) -> None:
        cells.observe(laboratory, NAME, arm(training.arm, count), params)

    made_of = reversions if training.method == "full" else ()
    arms_of = [arm(training.arm, count) for count in reached(settings)]
    arms_of += [arm(name, settings.train.samples) for name in made_of]
    # All of them, now: a training that goes on at a checkpoint does not meet the counts before it again.
    lost = [each.name for each in arms_of if cells.remember(laboratory, NAME, each)]
    if run.done(_mark(training)) is not None:
        if not lost:
            return
        # The parameters at that count are gone. The training is exact, so doing it again gives the same figures.
        run.note(f"cells of {lost[0]} are gone or changed: {training} is trained again")
        train.discard(run, str(training))

    made = trainer(laboratory, training)
    tracker = train.track(settings.machine.tracker, run.path("tracker"), str(training), settings.to_dict())
    try:
        state = train.fit(
            run,
            str(training),
            made,
            laboratory.params,
            feed(laboratory, training),
            hook=hook,
            counts=reached(settings),
            keep=settings.machine.keep,
            save_steps=settings.machine.save_steps,
            save_seconds=settings.machine.save_seconds,
            tracker=tracker,
            facts={"model": laboratory.identity, "seed": training.seed},
        )
    finally:
        tracker.close()
    if ARMS[training.method].hold is _hard:
        freeze.verify(laboratory.params, state.params, masks(laboratory, training))
    for name in made_of:
        back = perturb.revert(
            state.params, laboratory.params, masks(laboratory, Training(name, training.seed)), settings.freeze.reversion
        )
        cells.observe(laboratory, NAME, arm(name, settings.train.samples), back)
    run.finish(_mark(training), arm=training.arm, seed=training.seed)
    if not settings.train.keep:
        train.discard(run, str(training))


def export(settings: ConfigDict, run: Run, arm: str, folder: Path, dtype: str) -> None:
    """Write a training's newest checkpoint as a Hugging Face folder, after proving that what was frozen did not move.

    Args:
      settings: the config of the run.
      run: its work directory.
      arm: the training, such as "core 1% seed 0".
      folder: to be made.
      dtype: "float32", or "bfloat16" (rounded to nearest even).

    Raises:
      ValueError: there is no such training, or a frozen entry moved; nothing is written then.
      RunError: its checkpoint is not there.
    """
    found = [Training(name, seed) for name in arms(settings) for seed in settings.train.seeds]
    known = {str(each): each for each in found if not ARMS[each.method].after}
    if arm not in known:
        raise ValueError(f"the run has no training {arm!r}; it has {', '.join(known)}")
    laboratory = lab.prepare(settings, run)
    state = train.load(run, arm, trainer(laboratory, known[arm]))
    if ARMS[known[arm].method].hold is _hard:
        freeze.verify(laboratory.params, state.params, masks(laboratory, known[arm]))
    convert.export(state.params, laboratory.model, folder, laboratory.tokenizer, dtype)


# --- what was found ---------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What an arm ends with, over the seeds: nats per token below and above the untouched model.

    Attributes:
      arm: its name.
      gain: what the trained language gains.
      loss: what the others lose in the mean.
    """

    arm: str
    gain: Span
    loss: Span


def _span(found: statistics.Draws, sign: float = 1.0) -> Span:
    value, low, high, *_ = statistics.estimate(found)
    each = [sign * bound if math.isfinite(bound) else None for bound in (value, low, high)]
    return Span(each[0], *(each[1:] if sign > 0 else each[:0:-1]))


def outcome(laboratory: Laboratory, arm: str, count: int, reference: str = cells.BASE) -> Outcome:
    """Return what an arm gained and lost after `count` samples, against the untouched model or another arm."""
    target = laboratory.settings.train.language
    each = comparison.differences(laboratory, NAME, f"{arm} after {count}", reference)
    others = statistics.mean(each, kept(laboratory.settings))
    return Outcome(arm, _span(each[target], -1.0), _span(others))


def publish(laboratory: Laboratory, names: Sequence[str], seeds: Sequence[int]) -> None:
    """Write tables, curves, the Pareto plot, the verdict and the report of the seeds that are done."""
    settings = laboratory.settings
    end, target = settings.train.samples, settings.train.language
    final = [f"{arm} after {end}" for arm in names]
    pairs = [(f"{core} after {end}", other) for core in names if core.startswith("core") for other in final]
    contrasts = [(core, other) for core, other in pairs if core != other and not other.startswith("core")]
    comparison.assess(laboratory, {NAME: contrasts})
    found = [outcome(laboratory, arm, end) for arm in names]
    note = (
        f"Trained on {settings.train.samples:,} samples of {settings.data.length} tokens ({target}), "
        f"{numerals.plural(len(seeds), 'seed')}; kept languages: {', '.join(kept(settings))}. Intervals: bootstrap "
        "over segments and seeds."
    )
    rows = [[each.arm, list(each.gain), list(each.loss)] for each in found]
    columns = [
        {"name": "arm"},
        {"name": f"perplexity gained in {target}", "kind": "factor"},
        {"name": "perplexity lost in the others", "kind": "factor"},
    ]
    lab.tabulate(
        laboratory,
        "frontier",
        {"title": "Gain and forgetting at the end", "note": note, "columns": columns, "rows": rows},
    )
    points = [
        {
            "label": each.arm,
            "group": each.arm.partition(" ")[0],
            "x": each.loss.value,
            "x_low": each.loss.low,
            "x_high": each.loss.high,
            "y": each.gain.value,
            "y_low": each.gain.low,
            "y_high": each.gain.high,
        }
        for each in found
    ]
    content = {
        "kind": "scatter",
        "title": "Gain against forgetting",
        "note": f"Upper left is better. {note}",
        "x": "forgetting: mean over the kept languages, nats per token",
        "y": f"gain in {target}, nats per token",
        "better": ["low", "high"],
        "points": points,
    }
    lab.tabulate(laboratory, "pareto", content)
    trained = [arm for arm in names if not ARMS[arm.partition(" ")[0]].after]
    for name, what, place in (("learning", f"Gain in {target}", "gain"), ("forgetting", "Mean forgetting", "loss")):
        series: dict[str, Any] = {}
        for arm in trained:
            steps = [(0, Span(0.0))]
            steps += [(count, getattr(outcome(laboratory, arm, count), place)) for count in reached(settings)]
            finite = [(count, span) for count, span in steps if span.value is not None]
            series[arm] = {
                "points": [[count, span.value] for count, span in finite],
                "low": [span.low for _, span in finite],
                "high": [span.high for _, span in finite],
            }
        curve = {
            "kind": "curve",
            "title": f"{what} while training",
            "note": note,
            "across": "samples trained on",
            "upwards": "nats per token",
            "series": series,
        }
        lab.tabulate(laboratory, name, curve)
    lab.tabulate(laboratory, "verdict", verdict("Does freezing the core help?", judge(laboratory, names, seeds)))
    lab.publish(laboratory)


def judge(laboratory: Laboratory, names: Sequence[str], seeds: Sequence[int]) -> list[str]:
    """Return the verdict in paragraphs: what training costs, then the core against every other arm."""
    settings, end = laboratory.settings, laboratory.settings.train.samples
    target = settings.train.language
    paragraphs = []
    if "full" in names:
        full = outcome(laboratory, "full", end)
        paragraphs.append(
            f"Training without any constraint divides the perplexity of {target} by {_times(full.gain)} and multiplies "
            f"that of the {numerals.plural(len(kept(settings)), 'kept language')} by {_times(full.loss)}."
        )
    for core in (arm for arm in names if arm.startswith("core")):
        for other in (arm for arm in names if not arm.startswith("core")):
            each = outcome(laboratory, core, end, f"{other} after {end}")
            paragraphs.append(
                f"The frozen {core} against {other}: {target} {_weigh(each.gain, 'gains')}, and the kept languages "
                f"{_weigh(each.loss, 'lose')}."
            )
    if len(seeds) < 3:
        paragraphs.append(
            f"With {numerals.plural(len(seeds), 'seed')} the spread between trainings is hardly known: take a "
            "difference whose interval is near zero for none."
        )
    return paragraphs


def _times(span: Span) -> str:
    return numerals.factor(span).removeprefix("×")


def _weigh(span: Span, verb: str) -> str:
    """Say a difference in nats per token and whether its interval holds zero."""
    if span.value is None:
        return f"{verb} a figure that is not finite"
    if span.low is None or span.high is None:
        return f"{verb} {_signed(span.value)} nats per token (no interval)"
    what = f"{_signed(span.value)} nats per token ({_signed(span.low)} to {_signed(span.high)})"
    if span.low <= 0 <= span.high:
        return f"{verb} the same within the interval: {what}"
    return f"{verb} {'more' if span.value > 0 else 'less'}: {what}"


def _signed(value: float) -> str:
    return f"{value:+.4f}".replace("-", numerals.MINUS)
