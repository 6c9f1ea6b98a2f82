"""One scalar: how much of a model hangs on a single parameter, and can it be rescued?

The paper changes one scalar on a special dimension and the model breaks. Here the candidates come from three sides: the
highest scores, the super weights (arXiv 2411.07191; from the activations of one forward pass over a fixed prompt,
without data) and the gains of one layer's input norm at the dimensions of massive activations (arXiv 2402.17762).
Controls: a scalar of the same matrix and magnitude beside every super weight, and gains at ordinary dimensions. Each is
multiplied by several factors in place, no copy of the model; then the model writes; and it is rescued: by putting the
scalar back, and by clipping what the MLP's down projection gives to the most that the untouched model gives on the
scored text.
"""

import dataclasses
import functools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from lingregions import models, permutation, regions
from lingregions import tree as trees
from lingregions.effects import Effects
from lingregions.experiments import activations, claims, generation, measurement, scalars, scored, step, study, tables
from lingregions.experiments.context import Context
from lingregions.intervention import SCALAR, UNTOUCHED, Intervention
from lingregions.models import ActivationMaxima, roles
from lingregions.regions import Region, geometry

_FILE = "scalars.json"
_SCORE, _SUPER, _MASSIVE = "high score", "super weight", "gain at a massive dimension"
_TWIN, _ORDINARY = "twin of a super weight", "gain at an ordinary dimension"
_CONTROLS = (_TWIN, _ORDINARY)
_CLIPPED = Intervention(bounded=True)  # the untouched model with its activations clipped
_RESTORED = Intervention(kind="restored")  # measured last, when every change has been undone


class _Candidate(NamedTuple):
    """A scalar and why it was chosen."""

    scalar: scalars.Scalar
    reasons: tuple[str, ...]

    @property
    def control(self) -> bool:
        """Whether nothing but the comparison speaks for it."""
        return set(self.reasons) <= set(_CONTROLS)

    def times(self, factor: float, clipped: bool = False) -> Intervention:
        """Return the intervention that multiplies it: "layer 11 mlp.down_proj [507 1229] x0"."""
        # Zero is +0.0 as in every removal, not the product, which may be -0.0.
        change: dict[str, Any] = {"perturbation": "scale", "factor": factor} if factor else {"perturbation": "zero"}
        return Intervention(kind=SCALAR, target=str(self.scalar), bounded=clipped, **change)


def _check(settings: ConfigDict) -> None:
    """Refuse a rescue from a factor that no scalar is multiplied by.

    Raises:
      ValueError: says which.
    """
    for factor in settings.rescue.factors:
        if factor not in settings.scalars.factors:
            raise ValueError(f"rescue.factors has {factor:g}, which scalars.factors lacks: nothing to rescue from")
    if not settings.scalars.factors:
        raise ValueError("scalars.factors is empty: say by what the scalars are multiplied")


def _steps(settings: ConfigDict, config: Any) -> list[step.Step]:
    """Score, choose scalars, multiply each, write; if no scalar is chosen twice and every super weight is found."""
    chosen = settings.scalars
    special = chosen.leading + chosen.supers + chosen.massive
    number = special + chosen.supers + len(chosen.ordinary)
    rescues = special * len(settings.rescue.factors)
    return [
        *step.score(settings, config),
        step.once("choose", f"{number} scalars", "scalars", _choose),
        step.measure_found(settings, number * len(chosen.factors) + rescues + 2, _plan),
        step.generate(number + special, _written),
    ]


# --- which ------------------------------------------------------------------------------------------------------------


def _choose(context: Context) -> step.Found:
    """Choose the scalars, special ones first."""
    context.run.write(_FILE, json.dumps(_candidates(context), indent=1) + "\n")
    return [_FILE], {}


def _chosen(context: Context) -> list[_Candidate]:
    """Return the scalars that were chosen, special ones first."""
    raw = context.run.agree(json.loads(context.run.path(_FILE).read_text()))
    return [_Candidate(scalars.Scalar(matrix, tuple(entry)), tuple(reasons)) for (matrix, entry), reasons in raw]


def _candidates(context: Context) -> list[_Candidate]:
    settings, chosen, params = context.settings, context.settings.scalars, context.model.params
    found: dict[scalars.Scalar, list[str]] = {}

    def add(reason: str, members: Sequence[scalars.Scalar]) -> None:
        for each in members:
            found.setdefault(each, []).append(reason)

    def gains(dimensions: Sequence[int]) -> list[scalars.Scalar]:
        return [scalars.Scalar(roles.matrix_name("input_norm", chosen.layer), (dimension,)) for dimension in dimensions]

    maxima = _prompted(context)
    supers = [
        scalars.Scalar(matrix, entry) for matrix, entry in models.super_weights(maxima, chosen.spike)[: chosen.supers]
    ]
    if len(supers) < chosen.supers:
        context.run.note(f"{len(supers)} super weights, {chosen.supers} were asked for: no other layer spikes")
    add(_SUPER, supers)
    add(_SCORE, scalars.ranked(scored.values(context, "nats"), 0, chosen.leading) if chosen.leading else [])
    massive = models.massive_dimensions(maxima, chosen.massive) if chosen.massive else []
    add(_MASSIVE, gains(massive))
    add(_TWIN, [_twin_of(params, each, permutation.derive(settings.seed, each.matrix)) for each in supers])
    add(_ORDINARY, gains([dimension for dimension in chosen.ordinary if dimension not in massive]))
    everything = [_Candidate(scalar, tuple(reasons)) for scalar, reasons in found.items()]
    return sorted(everything, key=lambda each: each.control)


def _twin_of(params: trees.Tree, scalar: scalars.Scalar, seed: int) -> scalars.Scalar:
    """Return another scalar of the same matrix with a magnitude in the same bin: `matched.match` of one scalar."""
    like = trees.unflatten({scalar.path: trees.flatten(params)[scalar.path]})
    (found,) = scalars.members(regions.match(geometry.points(like, [scalar]), like, seed))
    return found


def _prompted(context: Context) -> ActivationMaxima:
    """Return the maxima of the activations over the fixed prompt of the config."""
    model = context.model
    ids = model.tokenizer.encode(context.settings.scalars.prompt).ids
    bos = model.tokenizer.bos
    row = np.asarray([*([] if bos is None else [bos]), *ids], np.int32)
    tokens = np.tile(row, (model.rows, 1))
    return ActivationMaxima(*map(np.asarray, model.run(models.activation_maxima, tokens, np.ones_like(tokens))))


# --- what is done to them ---------------------------------------------------------------------------------------------


def _bounds(context: Context) -> trees.Tree:
    """Return the bounds of the rescue: the largest output of each layer's down projection on the scored text."""
    most = activations.maxima(context).down_out.max(axis=1) * np.float32(context.settings.rescue.slack)
    return roles.tree({"down": most.astype(np.float32)})


def _plan(context: Context) -> step.Planned:
    """Return every scalar with every factor, the rescues, and last the model with everything put back."""
    settings, chosen, most = context.settings, _chosen(context), _bounds(context)

    def bound(each: _Candidate, factor: float, clipped: bool = False) -> Intervention:
        make = functools.partial(_point, context, each.scalar)
        bounds, layer = most if clipped else None, each.scalar.layer
        return dataclasses.replace(each.times(factor, clipped), region=make, bounds=bounds, inside=layer)

    changed = [bound(each, factor) for each in chosen for factor in settings.scalars.factors]
    rescued = [bound(each, factor, True) for each, factor in _rescues(settings, chosen)]
    pairs = [(each.times(factor, True), each.times(factor)) for each, factor in _rescues(settings, chosen)]
    return [*changed, dataclasses.replace(_CLIPPED, bounds=most), *rescued, _RESTORED], pairs


def _rescues(settings: ConfigDict, chosen: Sequence[_Candidate]) -> list[tuple[_Candidate, float]]:
    """Return every special scalar with every factor that it is rescued from."""
    return [(each, factor) for each in chosen if not each.control for factor in settings.rescue.factors]


def _point(context: Context, scalar: scalars.Scalar) -> Region:
    """Return the region of one scalar: masks of its own array only."""
    like = trees.unflatten({scalar.path: trees.flatten(context.model.shapes)[scalar.path]})
    return geometry.points(like, [(scalar.matrix, scalar.entry)], str(scalar))


def _written(context: Context) -> list[Intervention]:
    """Return the worst of each scalar's models, and what its rescue makes of it, with their regions."""
    chosen, factors = _chosen(context), _worst(context.settings, _chosen(context), context.effects())
    wanted = [each.times(factors[each]) for each in chosen]
    rescued = _rescues(context.settings, chosen)
    wanted += [each.times(factors[each], True) for each in chosen if (each, factors[each]) in rescued]
    measured = {each: each for each in context.measured}
    return [measured[each] for each in wanted]


# --- what is shown ----------------------------------------------------------------------------------------------------


def _harm(found: Effects, intervention: Intervention) -> float:
    """Return an effect, infinite where it is not a number: a model that gives NaN is broken most."""
    value = found.value(intervention)
    return math.inf if math.isnan(value) else value


def _worst(settings: ConfigDict, chosen: Sequence[_Candidate], found: Effects) -> dict[_Candidate, float]:
    """Return the factor of each scalar that harms most."""
    factors = settings.scalars.factors
    return {each: max(factors, key=lambda factor: _harm(found, each.times(factor))) for each in chosen}


def _undone(context: Context) -> bool:
    """Tell whether the model with everything put back loses what the untouched one loses, to the last bit."""
    rows, codes = measurement.results(context), context.settings.evaluate.languages
    losses = [[rows[each.name, code]["nll_nats"] for code in codes] for each in (UNTOUCHED, _RESTORED)]
    return losses[0] == losses[1]


def _show(context: Context) -> dict[str, Any]:
    """Return the scalars, what multiplying each does, the rescues, what the models write, and the verdict."""
    settings, found, chosen = context.settings, context.effects(), _chosen(context)
    factors = _worst(settings, chosen, found)
    most = {each: each.times(factors[each]) for each in chosen}
    title = "The worst factor of each scalar, by language"
    return {
        "scalars": _scalars(context, chosen),
        "effect_of_scalars": _effects(settings, chosen, found),
        "effect_by_factor": _curve(settings, chosen, found),
        "effect_by_language": tables.by_language(found, {each.name: each for each in most.values()}, title, "scalar"),
        "rescue": _rescue(settings, chosen, found),
        "continuations": generation.table(context, _written(context)),
        "verdict": _verdict(settings, most, found, _undone(context)),
    }


def _verdict(
    settings: ConfigDict, most: Mapping[_Candidate, Intervention], found: Effects, restored: bool
) -> dict[str, Any]:
    """Return what the figures say.

    Args:
      settings: the config.
      most: each scalar with the intervention that harms most.
      found: the effects.
      restored: whether everything put back gave the untouched losses to the bit.
    """
    broken = list(_broken(settings, most, found))
    hurt = [pair for pair in _rescues(settings, list(most)) if _harm(found, pair[0].times(pair[1])) > claims.BROKEN]
    special = {each: intervention for each, intervention in most.items() if not each.control}
    facts = {
        "most": most,
        "special": [each for each in most if not each.control],
        "controls": [each for each in most if each.control],
        "broken": {False: sum(not each.control for each in broken), True: sum(each.control for each in broken)},
        "first": max(special.values(), key=functools.partial(_harm, found), default=None),
        "hurt": hurt,
        "saved": [pair for pair in hurt if _harm(found, pair[0].times(pair[1], True)) < claims.BROKEN],
        "clipped": _CLIPPED,
        "restored": restored,
        "breaking": claims.BROKEN,
    }
    return claims.verdict("single_parameter", "How much hangs on one parameter?", found, **facts)


def _broken(settings: ConfigDict, chosen: Mapping[_Candidate, Intervention], found: Effects) -> Iterator[_Candidate]:
    """Yield the scalars that break the model with some factor, interval included."""
    for each in chosen:
        cells = [found.cell(each.times(factor)) for factor in settings.scalars.factors]
        if any((low if low is not None else value or 0) > claims.BROKEN for value, low, _ in cells):
            yield each


def _scalars(context: Context, chosen: Sequence[_Candidate]) -> dict[str, Any]:
    members = [each.scalar for each in chosen]
    values = scalars.gather(context.model.params, members)
    scores = scalars.gather(scored.values(context, "nats"), members) / len(context.settings.score.languages)
    note = (
        "Super weights and massive dimensions are those of one forward pass over the prompt "
        f"“{context.settings.scalars.prompt}”; the score is the mean over the scored languages."
    )
    columns = {"scalar": "text", "chosen as": "text", "value": "number", "score, nats per token": "number"}
    rows = [
        [str(each.scalar), ", ".join(each.reasons), float(value), float(score)]
        for each, value, score in zip(chosen, values, scores, strict=True)
    ]
    return tables.table("The scalars", columns, rows, note)


def _effects(settings: ConfigDict, chosen: Sequence[_Candidate], found: Effects) -> dict[str, Any]:
    factors = settings.scalars.factors
    columns = {"scalar": "text", "chosen as": "text"} | {f"times {factor:g}": "factor" for factor in factors}
    rows = [
        [str(each.scalar), ", ".join(each.reasons), *(found.cell(each.times(factor)) for factor in factors)]
        for each in chosen
    ]
    return tables.table("One scalar, multiplied", columns, rows, f"{tables.NOTE} Controls are below.")


def _curve(settings: ConfigDict, chosen: Sequence[_Candidate], found: Effects) -> dict[str, Any]:
    factors = sorted({*settings.scalars.factors} - {1.0})
    series = {str(each.scalar): [(factor, found.cell(each.times(factor))) for factor in factors] for each in chosen}
    note = "Over all languages (geometric mean). At factor 1 every curve is at 1."
    return tables.curve("Effect by factor", "factor", series, note=note)


def _rescue(settings: ConfigDict, chosen: Sequence[_Candidate], found: Effects) -> dict[str, Any]:
    columns = {"model": "text", "as it is": "factor", "clipped": "factor", "clipped over as it is": "factor"}
    rows: list[list[Any]] = [[UNTOUCHED.name, [0.0, None, None], found.cell(_CLIPPED), None]]
    for each, factor in _rescues(settings, chosen):
        plain, clipped = each.times(factor), each.times(factor, True)
        rows.append([plain.name, found.cell(plain), found.cell(clipped), found.cell(clipped, plain)])
    note = (
        "The output of every layer's down projection is clipped to the largest magnitude that the untouched model "
        "gives on the scored text. Perplexity over all languages, as a multiple of the untouched model's; last column: "
        "with clipping as a multiple of without. First row: what clipping alone does."
    )
    return tables.table("Rescue by clipping", columns, rows, note)


STUDY = study.Study(_steps, _show, _check)
