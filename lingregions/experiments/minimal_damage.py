"""How little is enough? Nested regions from one scalar to a twentieth of the model, and what carries the core.

From one score file per language: the top of the whole scope at every fraction, its effect as a curve, and the smallest
set that multiplies a language's perplexity by ten. Then the core (the paper's: the top of each matrix) without its
first 10, 100 and 1,000 scalars, only those, the super weights alone (arXiv 2411.07191), and the core without its
outlier dimensions and norms: is the collapse carried by a handful of scalars that other papers found without any
language?

The ranking over the whole scope is by |theta x gradient| in nats, summed over the languages: scaled to the same sum in
every matrix, as for the core, the 576 gains of a norm would rank above nearly every weight.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from lingregions import models, regions
from lingregions import tree as trees
from lingregions.effects import ALL, Effects
from lingregions.experiments import activations, claims, scalars, scored, selection, step, study, tables
from lingregions.experiments.context import Context
from lingregions.intervention import Intervention
from lingregions.regions import Region, geometry

_FIRST = 10  # the largest set whose scalars are named
_RANKED = {"top": "nats", "magnitude": "magnitude"}  # kinds of nested regions -> their ranking
_Points = Sequence[tuple[int, tables.Cell]]  # (scalars removed, [effect, low, high]), the smallest set first


def _check(settings: ConfigDict) -> None:
    """Refuse fractions and counts that select nothing.

    Raises:
      ValueError: says which.
    """
    chosen = settings.select
    for fraction in (*chosen.random, chosen.core):
        regions.parse(fraction)
    if not chosen.counts or min(chosen.counts) < 1 or chosen.outliers < 1:
        raise ValueError("select.counts and select.outliers are numbers of scalars and dimensions: 1 or more")
    if chosen.random and not chosen.seeds:
        raise ValueError("select.random asks for random regions, but select.seeds is empty")


def _nested(settings: ConfigDict, kind: str) -> list[Intervention]:
    """Return the removals of the first scalars by score ("top") or by |theta| ("magnitude")."""
    fractions = settings.select.fractions
    return [Intervention(kind=kind, fraction=each, within="scope", perturbation="zero") for each in fractions]


def _drawn(settings: ConfigDict) -> list[Intervention]:
    """Return the removals of random regions: a part of every matrix."""
    chosen = settings.select
    return [
        Intervention(kind="random", fraction=each, perturbation="zero", seed=seed)
        for each in chosen.random
        for seed in chosen.seeds
    ]


def _removal(settings: ConfigDict, part: str = "") -> Intervention:
    """Return the removal of the core, or of a part of it: "without its top 10", "top 10 only", ..."""
    return Intervention(kind="core", fraction=settings.select.core, part=part, perturbation="zero")


_SUPER_WEIGHTS = Intervention(kind="super weights", part="only", perturbation="zero")


def _pieces(settings: ConfigDict) -> dict[Intervention, Callable[[Context], Region]]:
    """Return the removals that take the core apart, what stands alone first, and what makes the region of each."""

    def without(part: Callable[[Context], Region], context: Context) -> Region:
        return regions.subtract(_core(context), part(context))

    def bare(context: Context) -> Region:
        return regions.restrict(without(_outlier_dimensions, context), "decoder_without_norms")

    firsts = {count: functools.partial(_leading, count) for count in settings.select.counts}
    return {
        **{_removal(settings, f"top {count} only"): make for count, make in firsts.items()},
        _SUPER_WEIGHTS: _super_weights,
        **{
            _removal(settings, f"without its top {count}"): functools.partial(without, make)
            for count, make in firsts.items()
        },
        _removal(settings, "without super weights"): functools.partial(without, _super_weights),
        _removal(settings, "without outlier dimensions"): functools.partial(without, _outlier_dimensions),
        _removal(settings, "without outlier dimensions and norms"): bare,
    }


def _steps(settings: ConfigDict, config: Any) -> list[step.Step]:
    """Score, select at every fraction, take the core apart, remove."""
    ranked = [each for kind in _RANKED for each in _nested(settings, kind)]
    whole = _removal(settings)
    wanted = {
        each.name: selection.ranked(each.name, each.fraction, _RANKED[each.kind], within="scope") for each in ranked
    }
    wanted |= {
        each.name: selection.ranked(each.name, each.fraction, "shapes", "random", each.seed)
        for each in _drawn(settings)
    }
    wanted[whole.name] = selection.ranked(whole.name, whole.fraction)
    for each, make in _pieces(settings).items():
        wanted[each.name] = selection.Selection(whole.fraction, functools.partial(_named, make, each.name))
    pairs = list(zip(_nested(settings, "top"), _nested(settings, "magnitude"), strict=True))
    return [
        *step.score(settings, config),
        step.select(settings, config, wanted),
        step.measure(
            settings,
            [*ranked, *_drawn(settings), whole, *_pieces(settings)],
            [*pairs, *((each, whole) for each in _pieces(settings))],
            region=selection.named,
        ),
    ]


# --- the core taken apart ---------------------------------------------------------------------------------------------


def _named(make: Callable[[Context], Region], name: str, context: Context) -> Region:
    return make(context).rename(name)


def _core(context: Context) -> Region:
    return selection.read(context, _removal(context.settings).name)


def _leading(count: int, context: Context) -> Region:
    """Return the scalars of the core that come first in the ranking over the whole scope."""
    whole = _core(context)
    inside = trees.transform(
        lambda _, values, mask: jnp.where(mask, values, 0), scored.values(context, "nats"), whole.masks
    )
    own = dataclasses.replace(scored.ranking(context, "nats"), values=inside)
    part = Fraction(count, trees.count(inside))
    return own.select(part, scope=context.settings.select.scope, within="scope")


def _super_weights(context: Context) -> Region:
    """Return the super weights, parallel to the core; empty, with a note, where the activations show none."""
    found = models.super_weights(activations.maxima(context), context.settings.select.spike)
    if not found:
        context.run.note("no super weight: no layer's activations spike at both ends of the down projection")
    context.run.log(event="super weights", found=[f"{matrix} {list(index)}" for matrix, index in found])
    like = _core(context)
    named = geometry.points(like.masks, found)
    known = {name: getattr(like.provenance, name) for name in ("model", "tokenizer", "axes", "removal")}
    return dataclasses.replace(named, provenance=named.provenance.replace(**known))


def _outlier_dimensions(context: Context) -> Region:
    """Return what of the core lies at its outlier dimensions, wherever the axis `embed` is carried.

    As many dimensions as `select.outliers` says: those where the core is fullest, and as many with the largest
    activations.
    """
    whole, count = _core(context), context.settings.select.outliers
    full = [index for index, _ in geometry.profile(whole, "embed").leading(count)]
    massive = models.massive_dimensions(activations.maxima(context), count)
    context.run.log(event="outlier dimensions", fullest=full, massive=massive)
    return regions.restrict(whole, axis="embed", indices=sorted({*full, *massive}))


# --- what is shown ----------------------------------------------------------------------------------------------------


def _crossing(points: _Points, level: float) -> tables.Cell:
    """Return [value, low, high]: how many scalars it takes until the effect reaches a level.

    Between two measured sizes the effect is taken as straight over the logarithm of the size. The bounds are where the
    upper and the lower bound of the effect reach the level. None: not reached, or reached by the smallest set already
    (the value is then that set's size, and there is no lower bound).

    Args:
      points: (scalars, [effect, low, high]) in nats per token, smallest set first.
      level: nats per token.
    """

    def reach(side: int) -> tuple[float | None, bool]:
        before: tuple[int, float] | None = None
        for size, cell in points:
            effect = cell[side]
            if effect is None:
                continue
            if effect >= level:
                if before is None:
                    return float(size), True
                part = (level - before[1]) / (effect - before[1])
                return float(before[0] * (size / before[0]) ** part), False
            before = (size, effect)
        return None, False

    value, _ = reach(0)
    low, open_below = reach(2)
    return [value, None if open_below else low, reach(1)[0]]


def _show(context: Context) -> dict[str, Any]:
    """Return the curves, the smallest sets, the first scalars, the pieces of the core, and the verdict."""
    settings, found = context.settings, context.effects()
    sizes = {each: regions.total(selection.read(context, each.name)) for each in found.measured if each.perturbation}
    languages = list(settings.evaluate.languages)

    def points(interventions: Sequence[Intervention], language: str = ALL) -> _Points:
        every = sorted((sizes[each], found.cell(each, language=language)) for each in interventions)
        return [(size, cell) for size, cell in every if cell[0] is not None]

    tops, largest = _nested(settings, "top"), _nested(settings, "magnitude")
    smallest = {
        kind: {code: _crossing(points(_nested(settings, kind), code), claims.BROKEN) for code in (*languages, ALL)}
        for kind in _RANKED
    }
    groups = {each.group: each for each in _drawn(settings)}
    curves = {"top": points(tops), "magnitude": points(largest), "random": points(list(groups.values()))}
    scope = step.count(context.model.config, settings.select.scope)
    return {
        "effect_by_size": _curves({code: points(tops, code) for code in languages}, "by language"),
        "effect_by_size_and_ranking": _curves(curves, "mean over languages, by ranking"),
        "smallest_sets": _smallest(smallest, languages, scope),
        "first_scalars": _first(context, sizes),
        "pieces": _table_of_pieces(settings, sizes, found),
        "verdict": _verdict(settings, smallest, sizes, found, scope),
    }


def _curves(series: Mapping[str, _Points], what: str) -> dict[str, Any]:
    note = (
        "Nested sets: the highest scores of the whole scope, or the largest |theta|; random ones take the same part of "
        "every matrix."
    )
    title = f"Effect against the number of scalars removed, {what}"
    return tables.curve(title, "scalars removed", series, note=note, logarithmic=True)


_Smallest = Mapping[str, Mapping[str, tables.Cell]]  # {kind: {language: scalars, low, high}}


def _smallest(smallest: _Smallest, languages: Sequence[str], scope: int) -> dict[str, Any]:
    def row(code: str) -> list[Any]:
        top, largest = smallest["top"][code], smallest["magnitude"][code]
        return [code, top, None if top[0] is None else top[0] / scope, largest]

    columns = {
        **{"language": "text", "by score": "interval", "part of the scope": "percent"},
        "by |theta|": "interval",
    }
    note = (
        "In scalars: interpolated between the measured sizes, the effect straight over the logarithm of the size; the "
        "interval is where the bounds of the effect reach that level. A dash: not reached, or for a lower bound, "
        "reached by the smallest set that was measured."
    )
    rows = [*map(row, languages), row(ALL)]
    return tables.table("The smallest set that multiplies perplexity by 10", columns, rows, note, totals=1)


def _first(context: Context, sizes: Mapping[Intervention, int]) -> dict[str, Any]:
    """Return the table of the scalars that come first by either ranking."""
    rows = []
    for kind, words in (("top", "score"), ("magnitude", "|theta|")):
        seen: dict[scalars.Scalar, int] = {}
        for each in sorted(_nested(context.settings, kind), key=lambda each: sizes[each]):
            if 0 < sizes[each] <= _FIRST:
                for scalar in scalars.members(selection.read(context, each.name)):
                    seen.setdefault(scalar, sizes[each])
        rows += [[words, size, str(scalar)] for scalar, size in seen.items()]
    columns = {"by": "text", "in the set of": "count", "scalar": "text"}
    note = f"Layer, matrix and index of the scalars in the sets of up to {_FIRST}."
    return tables.table("The first scalars", columns, rows, note)


def _table_of_pieces(settings: ConfigDict, sizes: Mapping[Intervention, int], found: Effects) -> dict[str, Any]:
    whole = _removal(settings)
    columns = {
        **{"removed": "text", "scalars": "count", "perplexity": "factor", "over the core": "factor"},
        "harm in": "text",
    }
    rows = [
        [
            each.name,
            sizes[each],
            found.cell(each),
            None if each == whole else found.cell(each, whole),
            tables.harmed(found, each),
        ]
        for each in (whole, *_pieces(settings))
    ]
    return tables.table(f"What carries the {whole.name}", columns, rows, tables.NOTE)


def _verdict(
    settings: ConfigDict, smallest: _Smallest, sizes: Mapping[Intervention, int], found: Effects, scope: int
) -> dict[str, Any]:
    """Return what the figures say: how little breaks the model, whether |theta| does it too, what carries the core."""
    counts = {
        kind: {code: cell[0] for code, cell in each.items() if code != ALL and cell[0] is not None}
        for kind, each in smallest.items()
    }
    most = max(settings.select.counts)
    facts = {
        "core": _removal(settings),
        "smallest": {kind: sorted((count, code) for code, count in each.items()) for kind, each in counts.items()},
        "scope": scope,
        "sizes": sizes,
        "alone": [each for each in _pieces(settings) if each.part.endswith("only")],
        "left": [each for each in _pieces(settings) if not each.part.endswith("only")],
        "most": most,
        "first": _removal(settings, f"top {most} only"),
        "rest": _removal(settings, f"without its top {most}"),
        "bare": _removal(settings, "without outlier dimensions and norms"),
    }
    return claims.verdict("minimal_damage", "How little is enough?", found, **facts)


STUDY = study.Study(_steps, _show, _check)
