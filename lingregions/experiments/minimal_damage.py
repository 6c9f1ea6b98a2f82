"""How little is enough? Nested regions from one scalar to a twentieth of the model, and what carries the core.

From one score file per language: the top of the whole scope at every fraction, its damage as a curve, and the smallest
set that multiplies a language's perplexity by ten. Then the core (the paper's: the top of each matrix) without its
first 10, 100 and 1,000 scalars, only those, the super weights alone (arXiv 2411.07191), and the core without its
outlier dimensions and norms: is the collapse carried by a handful of scalars that other papers found without any
language?

The ranking over the whole scope is by |theta x gradient| in nats, summed over the languages: scaled to the same sum in
every matrix, as for the core, the 576 gains of a norm would rank above nearly every weight.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from lingregions import models, regions, scoring
from lingregions import tree as trees
from lingregions.experiments import comparison, extremes, stage
from lingregions.experiments import laboratory as lab
from lingregions.experiments.cell import Arm, measure
from lingregions.experiments.finding import LEVEL, Findings, verdict
from lingregions.experiments.laboratory import Laboratory, magnitudes
from lingregions.experiments.scalars import Scalar, members
from lingregions.experiments.stage import Stage
from lingregions.models import roles
from lingregions.regions import Region, geometry
from lingregions.regions.select import parse
from lingregions.report import numerals
from lingregions.run import Run

FIRST = 10  # the largest set whose scalars are named
TIMES = 10  # the perplexity that counts as broken, as a multiple of the untouched model's


def minimal_damage(settings: ConfigDict, run: Run) -> None:
    """Score, select at every fraction, take the core apart, remove, evaluate, report.

    Args:
      settings: see configs/minimal_damage.py.
      run: the work directory; what is finished in it is not done again.
    """
    laboratory = lab.prepare(settings, run)
    lab.check(laboratory)
    for language in settings.score.languages:
        lab.score(laboratory, language)
    files = find(laboratory)
    made = [
        Arm(name, functools.partial(lab.read, laboratory, file), group=name.partition(" seed ")[0])
        for name, file in files.items()
    ]
    measure(laboratory, "minimal_damage", made)
    compare(laboratory, files)


def stages(settings: ConfigDict) -> list[Stage]:
    """Return what `minimal_damage` would do."""
    found = nested(settings) | dict.fromkeys(pieces(settings), settings.select.core)
    return [
        *stage.scoring(settings),
        stage.selecting(settings, found),
        stage.measuring(settings, list(found)),
    ]


def nested(settings: ConfigDict) -> dict[str, str]:
    """Return {arm: fraction} of the nested regions: by score, by |theta|, and random ones."""
    chosen = settings.select
    ranked = {f"{name} {each}": each for name in ("top", "magnitude") for each in chosen.fractions}
    return ranked | {f"random {each} seed {seed}": each for each in chosen.random for seed in chosen.seeds}


def pieces(settings: ConfigDict) -> list[str]:
    """Return the arms that take the core apart."""
    core, counts = f"core {settings.select.core}", settings.select.counts
    return [
        core,
        *(f"{core} without its top {each}" for each in counts),
        *(f"top {each} of the core only" for each in counts),
        "super weights only",
        f"{core} without super weights",
        f"{core} without outlier dimensions",
        f"{core} without outlier dimensions and norms",
    ]


# --- regions ----------------------------------------------------------------------------------------------------------


def find(laboratory: Laboratory) -> dict[str, str]:
    """Make the regions; returns {arm: file}."""
    settings = laboratory.settings
    chosen, languages = settings.select, settings.score.languages
    known = lab.provenance(laboratory, languages)

    @functools.cache
    def ranking() -> trees.Tree:
        total: trees.Tree | None = None
        for language in languages:
            total = scoring.combine(total, lab.load(laboratory, language), normalised=False)
        return roles.restrict(total or {}, chosen.scope)

    def top(name: str, fraction: str) -> Region:
        return regions.select(ranking(), fraction, within="scope", provenance=known.replace(name=name))

    def largest(name: str, fraction: str) -> Region:
        named = lab.provenance(laboratory, (), "magnitude").replace(name=name)
        return regions.select(magnitudes(laboratory), fraction, within="scope", provenance=named)

    def drawn(name: str, fraction: str) -> Region:
        like, seed = roles.restrict(laboratory.shapes, chosen.scope), int(name.rpartition(" ")[2])
        return regions.select(like, fraction, "random", seed=seed, provenance=known.replace(name=name))

    kinds = {"top": top, "magnitude": largest, "random": drawn}
    wanted: dict[str, Callable[[], Region]] = {
        name: functools.partial(kinds[name.partition(" ")[0]], name, fraction)
        for name, fraction in nested(settings).items()
    }
    files = lab.find(laboratory, wanted)

    core_name, *rest = pieces(settings)

    def core() -> Region:
        part = roles.restrict(lab.combine(laboratory, languages), chosen.scope)
        return regions.select(part, chosen.core, provenance=known.replace(name=core_name))

    files |= lab.find(laboratory, {core_name: core})
    whole = functools.cache(functools.partial(lab.read, laboratory, files[core_name]))

    def first(count: int) -> Region:
        """The scalars of the core that come first in the ranking over the whole scope."""
        inside = trees.transform(lambda _, values, mask: jnp.where(mask, values, 0), ranking(), whole().masks)
        part = Fraction(count, trees.count(inside))
        return regions.select(inside, part, within="scope", provenance=known)

    def without(part: Region) -> Region:
        return regions.subtract(whole(), part)

    supers = functools.cache(lambda: super_weights(laboratory, whole()))
    outliers = functools.cache(lambda: outlier_dimensions(laboratory, whole()))
    parts: dict[str, Callable[[], Region]] = {}
    for count in chosen.counts:
        only = functools.partial(first, count)
        parts[f"{core_name} without its top {count}"] = functools.partial(lambda only: without(only()), only)
        parts[f"top {count} of the core only"] = only
    parts["super weights only"] = supers
    parts[f"{core_name} without super weights"] = lambda: without(supers())
    parts[f"{core_name} without outlier dimensions"] = lambda: without(outliers())
    parts[f"{core_name} without outlier dimensions and norms"] = lambda: regions.restrict(
        without(outliers()), "decoder_without_norms"
    )
    files |= lab.find(laboratory, {name: functools.partial(_named, parts[name], name) for name in rest})
    ranking.cache_clear()
    return files


def _named(make: Callable[[], Region], name: str) -> Region:
    return make().rename(name)


def super_weights(laboratory: Laboratory, like: Region) -> Region:
    """Return the super weights as a region parallel to `like`; empty, with a note, where the activations show none."""
    found = models.super_weights(extremes.watch(laboratory), laboratory.settings.select.spike)
    if not found:
        laboratory.run.note("no super weight: no layer's activations spike at both ends of the down projection")
    laboratory.run.log(event="super weights", found=[f"{matrix} {list(index)}" for matrix, index in found])
    known = like.provenance
    named = geometry.points(like.masks, found)
    return dataclasses.replace(
        named, provenance=named.provenance.replace(model=known.model, tokenizer=known.tokenizer, axes=known.axes)
    )


def outlier_dimensions(laboratory: Laboratory, core: Region) -> Region:
    """Return what of the core lies at its outlier dimensions, wherever the axis `embed` is carried.

    As many dimensions as `select.outliers` says: those where the core is fullest, and as many with the largest
    activations.
    """
    count = laboratory.settings.select.outliers
    full = [index for index, _ in geometry.profile(core, "embed").leading(count)]
    massive = models.massive_dimensions(extremes.watch(laboratory), count)
    indices = sorted({*full, *massive})
    laboratory.run.log(event="outlier dimensions", fullest=full, massive=massive)
    return regions.restrict(core, axis="embed", indices=indices)


# --- what was found ---------------------------------------------------------------------------------------------------


def compare(laboratory: Laboratory, files: Mapping[str, str]) -> None:
    """Write the curves, the smallest sets, the pieces of the core, the verdict and the report."""
    settings = laboratory.settings
    core, *rest = pieces(settings)
    ranked = [(f"top {each}", f"magnitude {each}") for each in settings.select.fractions]
    contrasts = [*ranked, *((name, core) for name in rest)]
    found = Findings(comparison.assess(laboratory, {"minimal_damage": contrasts})["minimal_damage"])
    sizes = {name: regions.total(lab.read(laboratory, file)) for name, file in files.items()}
    languages = list(settings.evaluate.languages)
    fractions = sorted(settings.select.fractions, key=parse)

    def curve(kind: str, language: str) -> list[tuple[int, list[float | None]]]:
        """Return (scalars removed, [damage, low, high]) of nested regions, smallest first."""
        cells = [(sizes[f"{kind} {each}"], found.cell(f"{kind} {each}", language=language)) for each in fractions]
        return [(size, cell) for size, cell in cells if cell[0] is not None]

    smallest = {
        (kind, language): crossing(curve(kind, language), math.log(TIMES))
        for kind in ("top", "magnitude")
        for language in (*languages, comparison.EVERY)
    }
    lab.tabulate(laboratory, "damage_by_size", _curves({code: curve("top", code) for code in languages}, "by language"))
    means = {kind: curve(kind, comparison.EVERY) for kind in ("top", "magnitude")}
    groups = {name.rpartition(" seed ")[0]: sizes[name] for name in files if name.startswith("random ")}
    drawn = [(size, found.cell(group)) for group, size in groups.items()]
    means["random"] = sorted((size, cell) for size, cell in drawn if cell[0] is not None)
    lab.tabulate(laboratory, "damage_by_size_and_ranking", _curves(means, "mean over languages, by ranking"))
    whole = trees.count(roles.restrict(laboratory.shapes, settings.select.scope))
    lab.tabulate(laboratory, "smallest_sets", _smallest(smallest, languages, whole))
    lab.tabulate(laboratory, "first_scalars", _first(laboratory, files, sizes, fractions))
    lab.tabulate(laboratory, "pieces", _pieces([core, *rest], sizes, found))
    said = weigh(settings, smallest, sizes, found, whole)
    lab.tabulate(laboratory, "verdict", verdict("Verdict", said))
    lab.publish(laboratory)


def crossing(points: Sequence[tuple[int, list[float | None]]], level: float) -> list[float | None]:
    """Return [value, low, high]: how many scalars it takes until the damage reaches a level.

    Between two measured sizes the damage is taken as straight over the logarithm of the size. The bounds are where the
    upper and the lower bound of the damage reach the level. None: not reached, or reached by the smallest set already
    (the value is then that set's size, and there is no lower bound).

    Args:
      points: (scalars, [damage, low, high]) in nats per token, smallest set first.
      level: nats per token.
    """

    def reach(side: int) -> tuple[float | None, bool]:
        before: tuple[int, float] | None = None
        for size, cell in points:
            damage = cell[side]
            if damage is None:
                continue
            if damage >= level:
                if before is None:
                    return float(size), True
                part = (level - before[1]) / (damage - before[1])
                return float(before[0] * (size / before[0]) ** part), False
            before = (size, damage)
        return None, False

    value, _ = reach(0)
    low, open_below = reach(2)
    return [value, None if open_below else low, reach(1)[0]]


def _curves(series: Mapping[str, Sequence[tuple[int, list[float | None]]]], what: str) -> dict[str, Any]:
    return {
        "kind": "curve",
        "title": f"Damage against the number of scalars removed, {what}",
        "note": "Nested sets: the highest scores of the whole scope, or the largest |theta|; random ones take the same "
        "part of every matrix.",
        "across": "scalars removed",
        "upwards": "perplexity, as a multiple of the untouched model's",
        "series": {
            label: {
                "points": [[size, cell[0]] for size, cell in points],
                "low": [cell[1] for _, cell in points],
                "high": [cell[2] for _, cell in points],
            }
            for label, points in series.items()
            if points
        },
        "logarithmic": True,
        "format": "exponential",
    }


def _smallest(
    smallest: Mapping[tuple[str, str], list[float | None]], languages: Sequence[str], whole: int
) -> dict[str, Any]:
    def row(code: str) -> list[Any]:
        top, largest = smallest["top", code], smallest["magnitude", code]
        return [code, top, None if top[0] is None else top[0] / whole, largest]

    return {
        "title": f"The smallest set that multiplies perplexity by {TIMES}",
        "note": "In scalars: interpolated between the measured sizes, the damage straight over the logarithm of the "
        "size; the interval is where the bounds of the damage reach that level. A dash: not reached, or for a lower "
        "bound, reached by the smallest set that was measured.",
        "columns": [
            {"name": "language"},
            {"name": "by score", "kind": "interval"},
            {"name": "part of the scope", "kind": "percent"},
            {"name": "by |theta|", "kind": "interval"},
        ],
        "rows": [*map(row, languages), row(comparison.EVERY)],
        "totals": 1,
    }


def _first(
    laboratory: Laboratory, files: Mapping[str, str], sizes: Mapping[str, int], fractions: Sequence[str]
) -> dict[str, Any]:
    """Return the table of the scalars that come first by either ranking."""
    rows = []
    for kind, words in (("top", "score"), ("magnitude", "|theta|")):
        seen: dict[Scalar, int] = {}
        for each in fractions:
            name = f"{kind} {each}"
            if 0 < sizes[name] <= FIRST:
                for scalar in members(lab.read(laboratory, files[name])):
                    seen.setdefault(scalar, sizes[name])
        rows += [[words, size, str(scalar)] for scalar, size in seen.items()]
    return {
        "title": "The first scalars",
        "note": f"Layer, matrix and index of the scalars in the sets of up to {FIRST}.",
        "columns": [{"name": "by"}, {"name": "in the set of", "kind": "count"}, {"name": "scalar"}],
        "rows": rows,
    }


def _pieces(names: Sequence[str], sizes: Mapping[str, int], found: Findings) -> dict[str, Any]:
    core = names[0]
    return {
        "title": f"What carries the {core}",
        "note": "Geometric-mean perplexity as a multiple of the untouched model's, and of what the whole core's "
        f"removal gives; the last column counts languages that lose, p < {LEVEL} after Holm's correction.",
        "columns": [
            {"name": "removed"},
            {"name": "scalars", "kind": "count"},
            {"name": "perplexity", "kind": "factor"},
            {"name": "over the core", "kind": "factor"},
            {"name": "harm in"},
        ],
        "rows": [
            [name, sizes[name], found.cell(name), None if name == core else found.cell(name, core), found.worse(name)]
            for name in names
        ],
    }


def weigh(
    settings: ConfigDict,
    smallest: Mapping[tuple[str, str], list[float | None]],
    sizes: Mapping[str, int],
    found: Findings,
    whole: int,
) -> list[str]:
    """Return the verdict: how little breaks the model, whether |theta| does it too, and what carries the core."""
    core, *rest = pieces(settings)
    languages, limit = list(settings.evaluate.languages), math.log(TIMES)
    said = []
    for kind, words in (("top", "by score"), ("magnitude", "by |theta|, which knows no text,")):
        counts = {code: smallest[kind, code][0] for code in languages}
        broken = {code: count for code, count in counts.items() if count is not None}
        if not broken:
            said.append(f"No measured set of the first scalars {words} multiplies a language's perplexity by {TIMES}.")
            continue
        least, most = min(broken, key=lambda code: broken[code]), max(broken, key=lambda code: broken[code])
        takes = (
            f"{numerals.number(broken[least])} in {least}, {numerals.number(broken[most])} in {most}"
            if broken[least] < broken[most]
            else f"{numerals.number(broken[most])} in each"
        )
        said.append(
            f"The first scalars of the whole scope {words} multiply perplexity by {TIMES} in {len(broken)} of "
            f"{numerals.plural(len(languages), 'language')}. It takes {takes} (interpolated between the measured "
            f"sizes), {numerals.percent(broken[most] / whole)} of the scope."
        )
    alone = [name for name in rest if name.endswith(" only")]
    left = [name for name in rest if name not in alone]
    clauses = [
        f"{words} " + ", ".join(f"{name} ({numerals.count(sizes[name])} scalars) {found.words(name)}" for name in names)
        for words, names in (("By themselves:", alone), ("What is left of it:", left))
    ]
    said.append(f"The {core} ({numerals.count(sizes[core])} scalars) gives {found.words(core)}. {'. '.join(clauses)}.")
    last = max(settings.select.counts)
    if min(found.value(name) for name in (f"top {last} of the core only", f"{core} without its top {last}")) > limit:
        said.append(
            f"Its first {numerals.count(last)} scalars break the model without the rest, and the rest without them: "
            "the collapse needs neither."
        )
    bare = rest[-1]
    if found.value(bare) > limit:
        said.append(
            "The core breaks the model without its outlier dimensions and norms too, so what other papers found there "
            "does not explain the collapse; nor does the collapse show that the rest is linguistic."
        )
    else:
        said.append(
            "Without its outlier dimensions and norms the core no longer breaks the model: the collapse is carried by "
            "what other papers found without any language."
        )
    return said
