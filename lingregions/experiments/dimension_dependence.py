"""Perturb single dimensions of the residual stream: does the model hang on a few, and are they the region's?

The paper finds that the core lies along a few dimensions, and that one scalar of a norm there can break the model. Here
dimension d is index d of the axis `embed` in every matrix that carries it, or only in what writes to the stream
(attention output and MLP down), in the norms, or in one layer's input norm. The dimensions: those where the core is
fullest, those of massive activations (arXiv 2402.17762, found from activations, without scores), and random ones as
controls; one or several at once; set to zero, scaled, or with noise of their own size.
"""

import dataclasses
import functools
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from lingregions import models, permutation, perturb, regions
from lingregions.effects import Effects
from lingregions.experiments import activations, claims, selection, step, study, tables
from lingregions.experiments.context import Context
from lingregions.intervention import Intervention
from lingregions.models import roles
from lingregions.regions import Region, geometry

_AXIS = "embed"
# Places -> scope; beside them the input norm of one layer.
_PLACES = {"residual": "everything", "outputs": "outputs", "norms": "all_norms"}
_INPUT_NORM = "input norm"
_KINDS = ("top", "massive")  # beside the random ones: where the core is fullest, and of the largest activations
_FILE = "dimensions.json"
_Dimensions = Mapping[str, list[int]]  # {"top", "massive" or "random <seed>": dimensions, the first first}


def _check(settings: ConfigDict) -> None:
    """Refuse places and perturbations that do not exist.

    Raises:
      ValueError: says which.
    """
    chosen = settings.dimensions
    for place in chosen.places:
        if place not in _PLACES:
            raise ValueError(f"there is no place {place!r}; dimensions.places may hold {', '.join(_PLACES)}")
    for change in (*chosen.changes, *chosen.single_changes):
        _change(change, settings.seed)
    if not chosen.counts or min(chosen.counts) < 1:
        raise ValueError("dimensions.counts says how many at once: one or more numbers from 1")


def _change(change: str, seed: int) -> dict[str, Any]:
    """Return the fields of an intervention that a change of the config stands for: "scale 10", "zero", "noise"."""
    name, _, amount = change.partition(" ")
    factor = float(amount) if amount else None
    draws = name in perturb.PERTURBATIONS and perturb.PERTURBATIONS[name].draws
    noise_seed = seed if draws else None
    perturb.check(name, factor, noise_seed)
    return {"perturbation": name, "factor": factor, "noise_seed": noise_seed}


def _changes(settings: ConfigDict) -> list[Intervention]:
    """Return what is done, at dimensions that are not known yet: every place and change of one, then of several."""
    chosen, found = settings.dimensions, []
    for count in chosen.counts:
        places: list[dict[str, Any]] = [{"part": place} for place in chosen.places]
        kinds = list(chosen.changes)
        if count == 1:
            places += [{"part": _INPUT_NORM, "layer": layer} for layer in chosen.input_norms]
            kinds = list(dict.fromkeys((*kinds, *chosen.single_changes)))
        found += [
            Intervention(kind="dimension", count=count, **place, **_change(change, settings.seed))
            for place in places
            for change in kinds
        ]
    return found


def _special(change: Intervention, kind: str, dimensions: _Dimensions) -> Intervention:
    """Return a change at the first dimensions of a kind; a single one is named by its index."""
    if change.count == 1:
        return dataclasses.replace(change, target=f"dimension {dimensions[kind][0]}")
    return dataclasses.replace(change, kind=f"{kind} dimension")


def _random(change: Intervention, seed: int | None = None) -> Intervention:
    """Return a change at as many random dimensions: the control."""
    return dataclasses.replace(change, kind="random dimension", seed=seed)


def _steps(settings: ConfigDict, config: Any) -> list[step.Step]:
    """Score, select the core, choose dimensions, perturb."""
    chosen = settings.dimensions
    most = max(chosen.counts)
    if 3 * most > config.embed:
        raise ValueError(
            f"dimensions.counts asks for {most}, and as many of two other kinds; the model has {config.embed} "
            "dimensions"
        )
    name, fraction = _core(settings), settings.select.fractions[0]
    number = len(_changes(settings)) * (len(_KINDS) + len(chosen.seeds))
    return [
        *step.score(settings, config),
        step.select(settings, config, {name: selection.ranked(name, fraction)}),
        step.once("dimensions", f"{most} of each kind, on the scored text", "dimensions", _choose),
        step.measure_found(settings, number, _plan),
    ]


def _core(settings: ConfigDict) -> str:
    return f"top {settings.select.fractions[0]}"


def _choose(context: Context) -> step.Found:
    """Choose the dimensions; random ones are drawn from those that are in neither of the other lists."""
    chosen, size = context.settings.dimensions, context.model.config.embed
    most = max(chosen.counts)
    core = selection.read(context, _core(context.settings))
    top = [int(index) for index, _ in geometry.profile(core, _AXIS).leading(most)]
    massive = models.massive_dimensions(activations.maxima(context), most)
    free = np.setdiff1d(np.arange(size), [*top, *massive])
    found = {"top": top, "massive": massive}
    for seed in chosen.seeds:
        drawn = permutation.permute(np.arange(most), len(free), permutation.derive(seed, "dimensions"))
        found[f"random {seed}"] = [int(free[place]) for place in drawn]
    context.run.write(_FILE, json.dumps(found) + "\n")
    return [_FILE], {}


def _chosen(context: Context) -> _Dimensions:
    found: _Dimensions = context.run.agree(json.loads(context.run.path(_FILE).read_text()))
    return found


def _plan(context: Context) -> step.Planned:
    """Return every change at every kind of dimension; one that comes first of two kinds is one intervention."""
    dimensions, settings = _chosen(context), context.settings
    bound: dict[Intervention, Intervention] = {}
    pairs = []
    for change in _changes(settings):
        drawn = [(_random(change, seed), f"random {seed}") for seed in settings.dimensions.seeds]
        for each, kind in [*((_special(change, kind, dimensions), kind) for kind in _KINDS), *drawn]:
            make = functools.partial(_region, context, each, dimensions[kind][: change.count])
            bound.setdefault(each, dataclasses.replace(each, region=make, inside=each.layer))
            pairs += [(each, _random(change))] if kind in _KINDS and drawn else []
    return list(bound.values()), pairs


def _region(context: Context, each: Intervention, indices: list[int]) -> Region:
    """Return the region of dimensions in the places that an intervention says."""
    scope = "input_norm" if each.part == _INPUT_NORM else _PLACES[each.part]
    part = roles.restrict(context.model.shapes, scope)
    found = geometry.slab(part, models.declare(context.model.config), _AXIS, indices, each.name)
    return found if each.layer is None else regions.restrict(found, layers=[each.layer], name=each.name)


# --- what is shown ----------------------------------------------------------------------------------------------------


def _show(context: Context) -> dict[str, Any]:
    """Return which dimensions they are, each change against the same one at random dimensions, and the verdict."""
    settings, found, dimensions = context.settings, context.effects(), _chosen(context)
    controlled = bool(settings.dimensions.seeds)
    wanted = {
        change: {kind: _special(change, kind, dimensions) for kind in _KINDS}
        | ({"random": _random(change)} if controlled else {})
        for change in _changes(settings)
    }
    columns = {"dimensions": "text", "at once": "count", "change": "text", "where": "text", **tables.AGAINST}
    rows = [
        [kind, change.count, _words(change), _where(change)]
        + tables.against(found, each, None if kind == "random" else kinds.get("random"))
        for change, kinds in wanted.items()
        for kind, each in kinds.items()
    ]
    shown = {
        "dimensions": _dimensions(context, dimensions),
        "effect_of_dimensions": tables.table(
            "Effect of dimensions, against as many random ones", columns, rows, tables.NOTE
        ),
        "single_dimensions": _single(wanted, found),
    }
    for place in settings.dimensions.places if len(settings.dimensions.counts) > 1 else ():
        shown[f"several_{place}"] = _curve(wanted, found, place, settings.dimensions.changes[0])
    facts = {"dimensions": dimensions, "wanted": wanted, "words": _words, "where": _where}
    title = "Do a few dimensions carry the model?"
    return shown | {"verdict": claims.verdict("dimension_dependence", title, found, **facts)}


def _words(change: Intervention) -> str:
    return change.perturbation + ("" if change.factor is None else f" {change.factor:g}")


def _where(change: Intervention) -> str:
    return change.part + ("" if change.layer is None else f" of layer {change.layer}")


def _dimensions(context: Context, dimensions: _Dimensions) -> dict[str, Any]:
    """Return the table of which dimensions are meant, with what of the core they hold."""
    held = geometry.profile(selection.read(context, _core(context.settings)), _AXIS).counts
    whole = int(held.sum())
    columns = {
        **{"kind": "text", "dimensions": "text", "part of the core that they hold": "percent"},
        "shared with top (top: with massive)": "count",
    }
    rows = [
        [
            kind,
            " ".join(map(str, indices)),
            int(held[indices].sum()) / whole if whole else None,
            len(set(indices) & set(dimensions["massive" if kind == "top" else "top"])),
        ]
        for kind, indices in dimensions.items()
    ]
    note = (
        "The first first. Top: where the core is fullest along the residual axis; massive: of the largest activations "
        f"on the scored text. Among the model's {len(held)} dimensions as many random ones would hold "
        f"{len(dimensions['top']) / len(held):.3f} of the core."
    )
    return tables.table("The dimensions", columns, rows, note)


_Wanted = Mapping[Intervention, Mapping[str, Intervention]]  # {change: {kind: intervention}}


def _single(wanted: _Wanted, found: Effects) -> dict[str, Any]:
    """Return the heat map of one dimension: kinds over places and changes."""
    values: dict[str, dict[str, float | None]] = {}
    for change, kinds in wanted.items():
        for kind, each in kinds.items() if change.count == 1 else ():
            values.setdefault(kind, {})[f"{_words(change)}, {_where(change)}"] = found.value(each)
    return tables.heatmap("One dimension", "dimension", values)


def _curve(wanted: _Wanted, found: Effects, place: str, what: str) -> dict[str, Any]:
    """Return the curve of the effect over how many dimensions are changed at once."""
    series: dict[str, list[tuple[float, tables.Cell]]] = {}
    for change, kinds in wanted.items():
        if (change.part, _words(change)) == (place, what):
            for kind, each in kinds.items():
                series.setdefault(kind, []).append((change.count or 0, found.cell(each)))
    return tables.curve(f"Several dimensions at once: {what}, {place}", "dimensions", series)


STUDY = study.Study(_steps, _show, _check)
