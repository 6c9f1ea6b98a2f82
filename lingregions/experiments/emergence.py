"""When do regions come to be? Checkpoints of one training, each scored, harmed and compared with the last.

Of every checkpoint: its core, removed beside a matched random region; its monolingual regions, removed; how far its
core is that of the last model, as a part of what the noise of both allows (`regions.reliability.ceiling`); how much
the tops of two languages share, likewise; its largest activation, and how many entries of the core lie on few
dimensions. An effect is always against the same checkpoint, untouched. Costs two scoring passes and an evaluation of 2
+ seeds + languages interventions a checkpoint; one checkpoint is in memory beside the last.
"""

import dataclasses
import functools
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from lingregions import regions, scores, statistics
from lingregions.corpus import languages as registry
from lingregions.effects import Effects
from lingregions.experiments import activations, claims, measurement, scored, selection, step, study, tables
from lingregions.experiments.context import Context
from lingregions.intervention import UNTOUCHED, Intervention
from lingregions.models import maxima, roles
from lingregions.models import source as sources
from lingregions.regions import Region, geometry, reliability
from lingregions.statistics import Draws, Estimate

_RANDOM = "untrained"  # the checkpoint before the first step: random weights of the same sizes
_FORMED = 0.5  # of what noise allows of the overlap with the last core: from then on it counts as formed
_MASSIVE = 1000.0  # times the median: an activation that arXiv 2402.17762 calls massive


@dataclasses.dataclass(frozen=True)
class _Checkpoint:
    """A model on the way.

    Attributes:
      reached: how far its training was, in steps or samples, as its name or the config says.
      source: where it is.
      last: whether it is `model.source`, the untouched model of the run.
    """

    reached: int
    source: str
    last: bool = False

    @property
    def base(self) -> Intervention:
        """The checkpoint to which nothing is done."""
        return UNTOUCHED if self.last else Intervention(kind="checkpoint", samples=self.reached)

    @property
    def mark(self) -> str:
        """The name under done/ of its regions."""
        return "regions-last" if self.last else f"regions-{self.reached}"

    def removal(self, kind: str, **fields: Any) -> Intervention:
        """Return the removal of a region of this checkpoint from it."""
        return Intervention(kind=kind, perturbation="zero", samples=None if self.last else self.reached, **fields)


def _checkpoints(settings: ConfigDict) -> list[_Checkpoint]:
    """Return the checkpoints, oldest first, the last one (`model.source`) at the end.

    Raises:
      ValueError: a folder that holds none, a name without a number, numbers that do not grow.
    """
    names: list[str] = []
    for name in settings.model.checkpoints:
        folder = Path(name.removesuffix("*")).expanduser()
        inside = [path for path in folder.glob("*/") if (path / "config.json").is_file()] if name.endswith("/*") else []
        if name.endswith("/*") and not inside:
            raise ValueError(f"model.checkpoints: {folder} holds no folder with a config.json")
        names += sorted(map(str, inside), key=_number) or [name]
    end = settings.model.source
    found = [_Checkpoint(_number(name), name) for name in names if Path(name) != Path(end)]
    found.append(_Checkpoint(settings.model.reached or _number(end), end, last=True))
    for each, after in itertools.pairwise(found):
        if each.reached >= after.reached:
            raise ValueError(
                f"model.checkpoints: {each.source} was saved at {each.reached}, {after.source} after it at "
                f"{after.reached}: name them oldest first (of model.source, the last, model.reached says how far it is)"
            )
    return found


def _number(name: str) -> int:
    """Return how far a training was, from the last number in the last part of a name.

    Raises:
      ValueError: there is none.
    """
    numbers = re.findall(r"\d+", re.split(r"[/@]", name.rstrip("/"))[-1])
    if name == _RANDOM:
        return 0
    if not numbers:
        raise ValueError(f"model.checkpoints: {name} has no number in its name that says how far its training was")
    return int(numbers[-1])


def _check(settings: ConfigDict) -> None:
    """Refuse checkpoints without an order, and a scored language that is not evaluated or has no stranger.

    Raises:
      ValueError: says which.
    """
    if len(_checkpoints(settings)) < 2:
        raise ValueError("model.checkpoints is empty: name one or more, or untrained")
    for language in settings.score.languages:
        if language not in settings.evaluate.languages:
            raise ValueError(f"{language} is scored but not evaluated: add it to evaluate.languages")
        if not _strangers(settings, language):
            raise ValueError(f"every evaluated language is of the {settings.select.family} of {language}: add others")


def _strangers(settings: ConfigDict, language: str) -> list[str]:
    """Return the evaluated languages outside a language's family."""
    group = next(codes for codes in registry.families(settings.select.family).values() if language in codes)
    return [code for code in settings.evaluate.languages if code not in group]


def _core(settings: ConfigDict, at: _Checkpoint) -> Intervention:
    return at.removal("top", fraction=settings.select.fractions[0])


def _control(settings: ConfigDict, at: _Checkpoint, seed: int | None = None) -> Intervention:
    return at.removal("matched", fraction=settings.select.fractions[0], seed=seed)


def _own(at: _Checkpoint, language: str) -> Intervention:
    return at.removal("monolingual", region_language=language)


def _removals(settings: ConfigDict, at: _Checkpoint) -> list[Intervention]:
    """Return what is removed from a checkpoint."""
    controls = [_control(settings, at, seed) for seed in settings.select.seeds]
    return [_core(settings, at), *controls, *(_own(at, code) for code in settings.score.languages)]


def _steps(settings: ConfigDict, config: Any) -> list[step.Step]:
    """The last model first: its figures are those of the base; then the others, oldest first."""
    *before, last = _checkpoints(settings)
    (fraction, *_), languages = settings.select.fractions, settings.score.languages
    number = len(_removals(settings, last))
    evaluated, read = step.evaluation(settings, number + 1), 2 * settings.score.samples * len(languages)
    samples = None if not read or evaluated["samples"] is None else read + evaluated["samples"]
    return [
        step.Step(
            f"at {at.reached}",
            f"{at.source}: scored in {len(languages)} languages, then {evaluated['what']}",
            functools.partial(_visit, at=at),
            samples,
            step.tokens(settings, samples),
            (evaluated["bytes"] or 0) + number * step.region_bytes(config, settings.select.scope, fraction),
            (at.mark,),
            evaluated["rows"],
        )
        for at in (last, *before)
    ]


# --- one checkpoint ---------------------------------------------------------------------------------------------------


def _visit(context: Context, at: _Checkpoint) -> None:
    """Score a checkpoint, make its regions, remove them."""
    wanted = _removals(context.settings, at)
    missing = [measurement.remember(context, each) for each in (at.base, *wanted)]
    if any(missing) or context.run.done(at.mark) is None:
        own = _at(context, at)
        _select(own, at)
        measurement.measure(own, [selection.bound(own, each, selection.named) for each in wanted], at.base)
    context.contrasts.update(dict.fromkeys((each, at.base) for each in wanted if not at.last))
    context.contrasts[_core(context.settings, at), _control(context.settings, at)] = None


def _at(context: Context, at: _Checkpoint) -> Context:
    """Return the context with the model of a checkpoint, on the mesh of the last one.

    Raises:
      ValueError: it is another architecture, or reads text with another tokenizer.
    """
    last, machine = context.model, context.settings.machine
    if at.last:
        return context
    found = sources.resolve(last.source if at.source == _RANDOM else at.source, machine.cache or None)
    if at.source == _RANDOM:
        found = dataclasses.replace(found, weights=None)
    if found.config != last.config or found.tokenizer.fingerprint != last.tokenizer.fingerprint:
        what = "sizes or maths" if found.config != last.config else "tokenizer"
        raise ValueError(f"{at.source} has another {what} than {last.source}: checkpoints are of one training")
    params = found.load(last.mesh, jax.random.key(context.settings.seed + 1), last.compute.parameters)
    model = last.at(params, at.source)
    context.run.identify(f"model/{at.reached}", model.fingerprint, at.source)
    return dataclasses.replace(context, model=model)


def _select(context: Context, at: _Checkpoint) -> None:
    """Save the regions of a checkpoint, and in its mark how well they come out again and where they lie."""
    run, settings, model = context.run, context.settings, context.model
    if run.done(at.mark) is not None:
        return
    (fraction, *_), scope = settings.select.fractions, settings.select.scope

    def top(found: scores.Scores, name: str) -> Region:
        return found.select(fraction, scope=scope, name=name)

    sums: list[scores.Scores | None] = [None, None, None]  # of all samples, of their first and second half
    tops: dict[str, Region] = {}
    halves: dict[str, float] = {}
    with run.progress(f"score {at.source}", len(settings.score.languages), "languages") as bar:
        for code in settings.score.languages:
            corpus, stop = context.corpus(code, "score"), scored.count(context, code)
            if stop < 2:
                raise ValueError(f"{code} has {stop} sample: halves need two or more; lower data.length")
            how = {"definition": context.definition, "seed": settings.seed, "batch": settings.machine.score_batch}
            windows = ((0, stop), (0, stop // 2), (stop // 2, stop))
            found = [model.score(corpus, skip=begin, samples=end - begin, **how) for begin, end in windows]
            tops[code], *parts = [top(each, f"top {fraction} {code}") for each in found]
            halves[code] = reliability.agree(*parts).iou
            sums = [scores.add(total, each) for total, each in zip(sums, found, strict=True)]
            bar.advance(1)
            run.check()
    core, *parts = [top(total, _core(settings, at).name) for total in sums if total is not None]
    made = [core]
    params = roles.restrict(model.params, scope)
    made += [regions.match(core, params, seed, _control(settings, at, seed).name) for seed in settings.select.seeds]
    for code, own in tops.items():
        others = regions.union(*(each for other, each in tops.items() if other != code))
        made.append(regions.subtract(own, others).rename(_own(at, code).name))
    files = [selection.save(context, each) for each in made]
    iou = geometry.overlap(list(tops.values())).iou()
    residual = geometry.profile(core, "embed")
    extreme = activations.maxima(context)
    sizes = np.asarray(extreme.residual, np.float64).max(0)
    run.finish(
        at.mark,
        *files,
        half=reliability.agree(*parts).iou,
        halves=halves,
        between=iou.tolist(),
        held=residual.fullest,
        fullest=[index for index, _ in residual.leading(3)],
        massive=float(sizes.max() / np.median(sizes)),
        dimensions=maxima.massive_dimensions(extreme, 3),
        super_weights=[[name, *place] for name, place in maxima.super_weights(extreme)[:3]],
    )


# --- what is shown ----------------------------------------------------------------------------------------------------


def _specificity(settings: ConfigDict, found: Effects, at: _Checkpoint) -> Estimate:
    """Return how much more a language loses by its own region than strangers do, mean over languages, nats a token."""
    draws = [
        found.specificity(_own(at, code), code, at.base, _strangers(settings, code))
        for code in settings.score.languages
    ]
    # The same segments were drawn for every region, so they average draw by draw.
    value, values, null = (np.mean(side, axis=0) for side in zip(*(each[:3] for each in draws), strict=True))
    return statistics.estimate(Draws(float(value), values, null, min(each.units for each in draws)))


def _agreement(context: Context, ways: Sequence[_Checkpoint]) -> dict[str, dict[int, float]]:
    """Return, by how far a training was, overlaps over what the noise of both regions allows.

    Of its core with the last one's, and of the tops of two languages, mean over the pairs.
    """
    fraction = float(regions.parse(context.settings.select.fractions[0]))
    facts = {at: context.run.done(at.mark) or {} for at in ways}
    cores = {at: _unbound(context, at) for at in ways}
    found: dict[str, dict[int, float]] = {"core": {}, "languages": {}}
    for at in ways:
        iou, ceiling = float(geometry.overlap([cores[at], cores[ways[-1]]]).iou()[0, 1]), reliability.ceiling
        if not at.last:
            found["core"][at.reached] = iou / ceiling(facts[at]["half"], facts[ways[-1]]["half"], fraction)
        halves, shared = list(facts[at]["halves"].values()), facts[at]["between"]
        pairs = [
            shared[one][two] / ceiling(halves[one], halves[two], fraction)
            for one, two in itertools.combinations(range(len(halves)), 2)
        ]
        found["languages"][at.reached] = float(np.mean(pairs)) if pairs else 1.0
    return found


def _unbound(context: Context, at: _Checkpoint) -> Region:
    """Return the core of a checkpoint without what says of which model it is: those of two models are compared."""
    path = context.run.path(selection.file(_core(context.settings, at).name))
    return dataclasses.replace(regions.load(path, context.model.shapes), provenance=regions.Provenance(name=at.mark))


def _since(ways: Sequence[_Checkpoint], holds: Callable[[_Checkpoint], bool]) -> int | None:
    """Return how far the first checkpoint was from which on something holds of every one; None: not of the last."""
    after = list(itertools.takewhile(holds, reversed(ways)))
    return after[-1].reached if after else None


def _show(context: Context) -> dict[str, Any]:
    """Return the table of checkpoints, the curves over the training, the families, and the verdict."""
    settings, found = context.settings, context.effects()
    ways, rows = _checkpoints(settings), measurement.results(context)
    facts = {at: context.run.done(at.mark) or {} for at in ways}
    shares = _agreement(context, ways)
    specific = {at: _specificity(settings, found, at).cell for at in ways}
    removed, controls = ({at: found.cell(which(settings, at), at.base) for at in ways} for which in (_core, _control))
    matched = {at: found.get(_core(settings, at), _control(settings, at)) for at in ways}
    columns = {
        **{"trained on": "count", "bits per byte": "number", "core removed": "factor", "over matched": "factor"},
        **{"core of the last": "share", "shared by languages": "share", "specificity": "interval"},
        **{"largest activation": "number", "its dimension": "text", "core on its fullest 1 %": "share"},
    }
    bits = {
        at: np.mean([rows[at.base.name, code]["bits_per_byte"] for code in settings.evaluate.languages]) for at in ways
    }
    table = [
        [
            *(at.reached, tables.finite(float(bits[at])), removed[at], matched[at].cell),
            *(shares["core"].get(at.reached), shares["languages"][at.reached], specific[at]),
            *(facts[at]["massive"], str(facts[at]["dimensions"][0]), facts[at]["held"]),
        ]
        for at in ways
    ]
    note = (
        "Every effect is against the same checkpoint, untouched. Overlaps are parts of what the noise of both regions "
        "allows; specificity is what a language loses by its own region more than strangers do, nats a token; the "
        "largest activation of the residual stream is told as a multiple of the median one."
    )
    families = {
        name: {
            f"{at.reached:,}": float(np.mean([found.value(_core(settings, at), at.base, code) for code in codes]))
            for at in ways
        }
        for name, every in registry.families().items()
        if (codes := [code for code in every if code in settings.evaluate.languages])
    }
    shown = {
        "checkpoints": tables.table("Checkpoints", columns, table, note),
        "families": tables.heatmap("Removal of the core by family", "trained on", families, note=note),
    }

    def curve(
        name: str, title: str, series: Mapping[str, Mapping[int, tables.Cell]], *upwards: str, **format: str
    ) -> None:
        lines = {label: [(place, cell) for place, cell in each.items() if place] for label, each in series.items()}
        if any(lines.values()):  # the axis is logarithmic: the start has no place on it
            options: dict[str, Any] = {"logarithmic": True, "x_format": "count", **format}
            shown[name] = tables.curve(title, "trained on", lines, *upwards, **options)

    def alone(values: Mapping[int, float]) -> dict[int, tables.Cell]:
        return {place: [value, None, None] for place, value in values.items()}

    sides = {"core": removed, "matched random": controls}
    curve(
        "removal",
        "Removal at every checkpoint",
        {k: {at.reached: cell for at, cell in v.items()} for k, v in sides.items()},
    )
    lines = {"core, with that of the last": alone(shares["core"]), "tops of two languages": alone(shares["languages"])}
    curve("agreement", "Regions on the way", lines, "overlap, as a part of what noise allows", format="share")
    own = {"own language over strangers": {at.reached: cell for at, cell in specific.items()}}
    curve("specific", "When monolingual regions part from the core", own, "nats a token", format="number")
    largest = {"residual stream": alone({at.reached: facts[at]["massive"] for at in ways})}
    curve("massive", "The largest activation", largest, "times the median", format="number")
    shown["verdict"] = claims.verdict(
        "emergence",
        "When do regions come to be?",
        None,
        beyond=_since(ways, lambda at: matched[at].sign > 0),
        own=_since(ways, lambda at: (specific[at][1] or 0) > 0),
        formed=_since(ways, lambda at: shares["core"].get(at.reached, 1.0) >= _FORMED),
        massive=_since(ways, lambda at: facts[at]["massive"] >= _MASSIVE),
        total=ways[-1].reached,
        start=ways[0].reached,
        first=removed[ways[0]],
        last=removed[ways[-1]],
        specificity=specific[ways[-1]],
        largest=facts[ways[-1]]["massive"],
        earliest=shares["core"][ways[0].reached],
        number=len(ways),
    )
    return shown


STUDY = study.Study(_steps, _show, _check)
