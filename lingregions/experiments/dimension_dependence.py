"""Perturb single dimensions of the residual stream: does the model hang on a few, and are they the region's?

The paper finds that the core lies along a few dimensions, and that one scalar of a norm there can break the model. Here
dimension d is index d of the axis `embed` in every matrix that carries it, or only in what writes to the stream
(attention output and MLP down), in the norms, or in one layer's input norm. The dimensions: those where the core is
fullest, those of massive activations (arXiv 2402.17762, found from activations, without scores), and random ones as
controls; one or several at once; set to zero, scaled, or with noise of their own size.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from lingregions import models, permutation, perturb, regions
from lingregions.experiments import comparison, extremes, stage
from lingregions.experiments import laboratory as lab
from lingregions.experiments.cell import Arm, measure
from lingregions.experiments.finding import LEVEL, Findings, number, verdict
from lingregions.experiments.laboratory import Laboratory
from lingregions.experiments.stage import Stage
from lingregions.models import roles
from lingregions.regions import Region, geometry
from lingregions.report import numerals
from lingregions.run import Run

AXIS = "embed"
# Places -> scope; beside them "layer 3 norm", the input norm of one layer.
PLACES = {
    "residual": "everything",
    "outputs": "outputs",
    "norms": "all_norms",
}
_NORM = re.compile(r"^layer (\d+) norm$")


class Change(NamedTuple):
    """Something done to dimensions that are not known yet.

    Attributes:
      kind: "top" (where the core is fullest), "massive" (of the largest activations), or "random".
      number: how many dimensions at once: the first of their kind.
      place: a name in `PLACES`, or "layer 3 norm".
      what: a perturbation and its amount: "zero", "scale 10", "noise".
      seed: of random dimensions.
    """

    kind: str
    number: int
    place: str
    what: str
    seed: int | None = None

    @property
    def group(self) -> str:
        """The name without the draw: "3 random dimensions zero residual"."""
        return f"{self.number} {self.kind} dimension{'s' * (self.number > 1)} {self.what} {self.place}"

    def name(self, dimensions: Sequence[int]) -> str:
        """Return the name of the arm: "dimension 507 zero residual", "3 top dimensions zero residual"."""
        if self.number == 1:
            return f"dimension {dimensions[0]} {self.what} {self.place}"
        return self.group + ("" if self.seed is None else f" seed {self.seed}")


def dimension_dependence(settings: ConfigDict, run: Run) -> None:
    """Score, find the core and the dimensions, perturb, evaluate, report.

    Args:
      settings: see configs/dimension_dependence.py.
      run: the work directory; what is finished in it is not done again.
    """
    changes = list(plan(settings))
    laboratory = lab.prepare(settings, run)
    lab.check(laboratory)
    for language in settings.score.languages:
        lab.score(laboratory, language)
    chosen = choose(laboratory, core(laboratory))
    named = {each: each.name(chosen[each.kind, each.seed]) for each in changes}
    # The same dimension can come first of two kinds: one arm then.
    made = {named[each]: arm(laboratory, each, chosen[each.kind, each.seed]) for each in changes}
    measure(laboratory, "dimension_dependence", list(made.values()))
    compare(laboratory, chosen, named)


def stages(settings: ConfigDict) -> list[Stage]:
    """Return what `dimension_dependence` would do, if no dimension comes first of two kinds."""
    fraction = settings.select.fractions[0]
    return [
        *stage.scoring(settings),
        stage.selecting(settings, {f"top {fraction}": fraction}),
        stage.measuring(settings, len(list(plan(settings)))),
    ]


def plan(settings: ConfigDict) -> Iterator[Change]:
    """Yield the changes: every kind, place and change of one dimension; then of several at once.

    Raises:
      ValueError: a place or a perturbation that does not exist.
    """
    chosen = settings.dimensions
    for place in (*chosen.places, *chosen.single_places):
        if place not in PLACES and not _NORM.match(place):
            raise ValueError(f"there is no place {place!r}; there are {', '.join(PLACES)} and such as 'layer 1 norm'")
    for what in (*chosen.changes, *chosen.single_changes):
        _split(what, settings.seed)
    kinds: list[tuple[str, int | None]] = [("top", None), ("massive", None)]
    kinds += [("random", seed) for seed in chosen.seeds]
    for count in chosen.counts:
        for place in (*chosen.places, *(chosen.single_places if count == 1 else ())):
            for what in dict.fromkeys((*chosen.changes, *(chosen.single_changes if count == 1 else ()))):
                for kind, seed in kinds:
                    yield Change(kind, count, place, what, seed)


def _split(what: str, seed: int) -> dict[str, Any]:
    """Return the arguments of a perturbation: "scale 10" is {"perturbation": "scale", "amount": 10.0, "seed": None}."""
    name, _, amount = what.partition(" ")
    size = float(amount) if amount else None
    draws = name in perturb.PERTURBATIONS and perturb.PERTURBATIONS[name].draws
    perturb.check(name, size, seed if draws else None)
    return {"perturbation": name, "amount": size, "seed": seed if draws else None}


# --- dimensions -------------------------------------------------------------------------------------------------------


def core(laboratory: Laboratory) -> Region:
    """Return the core: the top of the scores combined over the languages, in every matrix."""
    settings = laboratory.settings
    fraction = settings.select.fractions[0]

    def top() -> Region:
        part = roles.restrict(lab.combine(laboratory, settings.score.languages), settings.select.scope)
        named = lab.provenance(laboratory, settings.score.languages).replace(name=f"top {fraction}")
        return regions.select(part, fraction, provenance=named)

    (file,) = lab.find(laboratory, {f"top {fraction}": top}).values()
    return lab.read(laboratory, file)


def choose(laboratory: Laboratory, found: Region) -> dict[tuple[str, int | None], tuple[int, ...]]:
    """Return {(kind, seed): dimensions, the first first}, as many as the largest count asks for.

    Random dimensions are drawn from those that are in neither of the other lists.

    Raises:
      ValueError: more dimensions are asked for than there are.
    """
    chosen, size = laboratory.settings.dimensions, laboratory.model.embed
    most = max(chosen.counts)
    if 3 * most > size:
        raise ValueError(
            f"dimensions.counts asks for {most}, and as many of two other kinds; the model has {size} dimensions"
        )
    top = tuple(index for index, _ in geometry.profile(found, AXIS).leading(most))
    massive = tuple(models.massive_dimensions(extremes.watch(laboratory), most))
    free = np.setdiff1d(np.arange(size), [*top, *massive])
    drawn = {
        ("random", seed): tuple(
            int(free[place])
            for place in permutation.permute(np.arange(most), len(free), permutation.derive(seed, "dimensions"))
        )
        for seed in chosen.seeds
    }
    return {("top", None): top, ("massive", None): massive, **drawn}


def arm(laboratory: Laboratory, change: Change, dimensions: Sequence[int]) -> Arm:
    """Return the arm of a change, for the dimensions of its kind."""
    indices = dimensions[: change.number]
    name = change.name(dimensions)

    def region() -> Region:
        norm = _NORM.match(change.place)
        scope = "input_norm" if norm else PLACES[change.place]
        part = roles.restrict(laboratory.shapes, scope)
        found = geometry.slab(part, models.declare(laboratory.model), AXIS, indices, name)
        return regions.restrict(found, layers=[int(norm[1])], name=name) if norm else found

    return Arm(
        name,
        region,
        group=change.group if change.seed is not None else "",
        **_split(change.what, laboratory.settings.seed),
    )


# --- what was found ---------------------------------------------------------------------------------------------------


def compare(
    laboratory: Laboratory, chosen: Mapping[tuple[str, int | None], Sequence[int]], named: Mapping[Change, str]
) -> None:
    """Set each change against the same one at random dimensions; write tables, verdict and report."""
    settings = laboratory.settings
    groups = {change: change.group if change.seed is not None else name for change, name in named.items()}
    controls = {
        change: change._replace(kind="random", seed=settings.dimensions.seeds[0])
        for change in named
        if change.seed is None and settings.dimensions.seeds
    }
    contrasts = list(dict.fromkeys((groups[change], groups[control]) for change, control in controls.items()))
    found = Findings(comparison.assess(laboratory, {"dimension_dependence": contrasts})["dimension_dependence"])
    lab.tabulate(laboratory, "dimensions", _dimensions(laboratory, chosen))
    rows = []
    for change in dict.fromkeys(each._replace(seed=None) for each in named):
        own = next(group for each, group in groups.items() if each._replace(seed=None) == change)
        against = None if change not in controls else found.cell(own, groups[controls[change]])
        worse = None if change not in controls else found.worse(own, groups[controls[change]])
        rows.append([change.kind, change.number, change.what, change.place, found.cell(own), against, worse])
    content = {
        "title": "Damage of dimensions, against as many random ones",
        "note": "Perplexity over all languages (geometric mean) as a multiple of the untouched model's, and of what "
        "the same change of as many random dimensions gives; the last column counts languages in which it does more "
        f"harm, p < {LEVEL} after Holm's correction. Intervals: paired bootstrap over segments and draws.",
        "columns": [
            {"name": "dimensions"},
            {"name": "at once", "kind": "count"},
            {"name": "change"},
            {"name": "where"},
            {"name": "perplexity", "kind": "factor"},
            {"name": "over random", "kind": "factor"},
            {"name": "more harm in"},
        ],
        "rows": rows,
    }
    lab.tabulate(laboratory, "damage_of_dimensions", content)
    lab.tabulate(laboratory, "single_dimensions", _single(groups, found))
    for place in settings.dimensions.places if len(settings.dimensions.counts) > 1 else ():
        what = settings.dimensions.changes[0]
        lab.tabulate(laboratory, f"several_{lab.slug(place)}", _curve(groups, found, place, what))
    lab.tabulate(laboratory, "verdict", verdict("Verdict", weigh(chosen, groups, controls, found)))
    lab.publish(laboratory)


def _dimensions(laboratory: Laboratory, chosen: Mapping[tuple[str, int | None], Sequence[int]]) -> dict[str, Any]:
    """Return the table of which dimensions are meant, with what of the core they hold."""
    held = geometry.profile(core(laboratory), AXIS).counts
    whole = int(held.sum())

    def row(key: tuple[str, int | None]) -> list[Any]:
        kind, seed = key
        indices = list(chosen[key])
        label = kind if seed is None else f"{kind} seed {seed}"
        shared = len(set(indices) & set(chosen["massive" if kind == "top" else "top", None]))
        return [label, " ".join(map(str, indices)), int(held[indices].sum()) / whole if whole else None, shared]

    return {
        "title": "The dimensions",
        "note": "The first first. Top: where the core is fullest along the residual axis; massive: of the largest "
        f"activations on the scored text. Among the model's {len(held)} dimensions as many random ones would hold "
        f"{len(next(iter(chosen.values()))) / len(held):.3f} of the core.",
        "columns": [
            {"name": "kind"},
            {"name": "dimensions"},
            {"name": "part of the core that they hold", "kind": "percent"},
            {"name": "shared with top (top: with massive)", "kind": "count"},
        ],
        "rows": [row(key) for key in chosen],
    }


def _single(groups: Mapping[Change, str], found: Findings) -> dict[str, Any]:
    """Return the heatmap of one dimension: kinds over places and changes."""
    single = [change for change in groups if change.number == 1]
    kinds = list(dict.fromkeys(change.kind for change in single))
    across = list(dict.fromkeys((change.what, change.place) for change in single))
    cells = {(change.kind, (change.what, change.place)): found.value(groups[change]) for change in single}
    return {
        "kind": "heatmap",
        "title": "One dimension",
        "corner": "dimension",
        "rows": kinds,
        "columns": [f"{what}, {place}" for what, place in across],
        "values": [[number(cells[kind, each]) for each in across] for kind in kinds],
        "format": "exponential",
        "unit": "perplexity as a multiple of the untouched model's",
    }


def _curve(groups: Mapping[Change, str], found: Findings, place: str, what: str) -> dict[str, Any]:
    """Return the curve of damage over how many dimensions are changed at once."""
    series: dict[str, dict[int, list[float | None]]] = {}
    for change, group in groups.items():
        if (change.place, change.what) == (place, what) and (cell := found.cell(group))[0] is not None:
            series.setdefault(change.kind, {})[change.number] = cell
    return {
        "kind": "curve",
        "title": f"Several dimensions at once: {what}, {place}",
        "across": "dimensions",
        "upwards": "perplexity, as a multiple of the untouched model's",
        "series": {
            kind: {
                "points": [[count, cells[count][0]] for count in sorted(cells)],
                "low": [cells[count][1] for count in sorted(cells)],
                "high": [cells[count][2] for count in sorted(cells)],
            }
            for kind, cells in series.items()
        },
        "format": "exponential",
    }


def weigh(
    chosen: Mapping[tuple[str, int | None], Sequence[int]],
    groups: Mapping[Change, str],
    controls: Mapping[Change, Change],
    found: Findings,
) -> list[str]:
    """Return the verdict: whether the special dimensions do more than random ones, and whether they are the core's."""
    top, massive = chosen["top", None], chosen["massive", None]
    said = [
        f"The core is fullest at dimension {top[0]}, the largest activation is at {massive[0]}"
        + (", the same one. " if top[0] == massive[0] else ". ")
        + f"Of the first {len(top)} of each, {len(set(top) & set(massive))} are in both lists."
    ]
    single = [change for change in groups if change.number == 1]
    for what in dict.fromkeys(change.what for change in single):
        clauses: list[str] = []
        alike: list[str] = []
        weighed = [change for change in single if change.what == what and change in controls]
        for kind in dict.fromkeys(change.kind for change in single):
            mine = {change.place: change for change in single if (change.kind, change.what) == (kind, what)}
            harm = (f"×{numerals.exponential(found.value(groups[each]))} ({place})" for place, each in mine.items())
            clauses.append(f"at a {kind} dimension {', '.join(harm)}")
        for change in weighed:
            if found.sign(groups[change], groups[controls[change]]) <= 0:
                alike.append(f"{change.kind} ({change.place})")
        said.append(f"{numerals.sentence(what)}, perplexity over all languages: {'; '.join(clauses)}.")
        if weighed:
            but = f" but {numerals.listed(alike)}" if alike else ""
            whom = f"all{but}" if len(alike) < len(weighed) else "none of the special ones"
            said[-1] += f" The interval of the difference from random lies above zero for {whom}."
    most = max(change.number for change in groups)
    several = [change for change in controls if change.number == most > 1]
    if several:
        above = [change for change in several if found.sign(groups[change], groups[controls[change]]) > 0]
        said.append(
            f"With {most} at once, {len(above)} of {len(several)} changes of the special dimensions do more harm than "
            "the same change of as many random ones."
        )
    if set(top) & set(massive):
        said.append(
            "Dimensions that are special by their activations alone, in any text, are part of what the score finds: "
            "what hangs on them is not by that linguistic."
        )
    return said
