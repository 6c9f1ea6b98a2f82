"""One scalar: how much of a model hangs on a single parameter, and can it be rescued?

The paper changes one scalar on a special dimension and the model breaks. Here the candidates come from three sides: the
highest scores, the super weights (arXiv 2411.07191; from the activations of one forward pass over a fixed prompt,
without data) and the gains of one layer's input norm at the dimensions of massive activations (arXiv 2402.17762).
Controls: a scalar of the same matrix and magnitude beside every super weight, and gains at ordinary dimensions. Each is
multiplied by several factors in place, no copy of the model; then the model writes; and it is rescued: by putting the
scalar back, and by clipping what the down projection gives to the most that the untouched model gives on the scored
text.
"""

import functools
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from lingregions import mesh as meshes
from lingregions import models, permutation, scoring
from lingregions import tree as trees
from lingregions.experiments import cell as cells
from lingregions.experiments import comparison, continuation, extremes, scalars, stage
from lingregions.experiments import laboratory as lab
from lingregions.experiments.cell import BASE, Arm
from lingregions.experiments.finding import Findings, verdict
from lingregions.experiments.laboratory import Laboratory
from lingregions.experiments.scalars import Scalar
from lingregions.experiments.stage import Stage
from lingregions.models import ActivationMaxima, roles
from lingregions.regions import Region, geometry
from lingregions.report import numerals
from lingregions.run import Run

NAME = "single_parameter"
RESTORED = "restored"  # the arm that is measured last, when every change has been undone
CLIPPED = f"{BASE} clipped"
TIMES = 10.0  # the perplexity that counts as broken, as a multiple of the untouched model's

SCORE, SUPER, MASSIVE = "high score", "super weight", "gain at a massive dimension"
TWIN, ORDINARY = "twin of a super weight", "gain at an ordinary dimension"
CONTROLS = (TWIN, ORDINARY)


class Candidate(NamedTuple):
    """A scalar and why it was chosen."""

    scalar: Scalar
    kinds: tuple[str, ...]

    @property
    def control(self) -> bool:
        """Whether nothing but the comparison speaks for it."""
        return set(self.kinds) <= set(CONTROLS)

    def arm(self, factor: float, clipped: bool = False) -> str:
        """Return the name of the arm that multiplies it: "layer 11 mlp.down_proj [507 1229] x0"."""
        return f"{self.scalar} x{factor:g}{' clipped' * clipped}"


def single_parameter(settings: ConfigDict, run: Run) -> None:
    """Score, find the scalars, multiply each, evaluate, write, rescue, report.

    Args:
      settings: see configs/single_parameter.py.
      run: the work directory; what is finished in it is not done again.

    Raises:
      ValueError: a rescue from a factor that no scalar is multiplied by.
    """
    for factor in settings.rescue.factors:
        if factor not in settings.scalars.factors:
            raise ValueError(f"rescue.factors has {factor:g}, which scalars.factors lacks: nothing to rescue from")
    laboratory = lab.prepare(settings, run)
    lab.check(laboratory)
    for language in settings.score.languages:
        lab.score(laboratory, language)
    candidates = choose(laboratory)
    bounds = limits(laboratory)
    arms = {arm.name: arm for arm in plan(laboratory, candidates, bounds)}
    cells.measure(laboratory, NAME, list(arms.values()))
    compare(laboratory, candidates, arms)


def stages(settings: ConfigDict) -> list[Stage]:
    """Return what `single_parameter` would do, if no scalar is chosen twice and every super weight is found."""
    chosen = settings.scalars
    special = chosen.leading + chosen.supers + chosen.massive
    number = special + chosen.supers + len(chosen.ordinary)
    rescues = special * len(settings.rescue.factors)
    return [
        *stage.scoring(settings),
        Stage("choose", f"{number} scalars", marks=("scalars",)),
        stage.measuring(settings, number * len(chosen.factors) + rescues + 2),
        continuation.stage(number + special),
    ]


# --- which ------------------------------------------------------------------------------------------------------------


def choose(laboratory: Laboratory) -> list[Candidate]:
    """Return the scalars, special ones first; chosen once, and kept in scalars.json."""
    run, file = laboratory.run, "scalars.json"
    if run.done("scalars") is None:
        run.write(file, json.dumps(_candidates(laboratory), indent=1) + "\n")
        run.finish("scalars", file)
    raw = run.agree(json.loads(run.path(file).read_text()))
    return [Candidate(Scalar(matrix, tuple(entry)), tuple(kinds)) for (matrix, entry), kinds in raw]


def _candidates(laboratory: Laboratory) -> list[Candidate]:
    settings, chosen = laboratory.settings, laboratory.settings.scalars
    found: dict[Scalar, list[str]] = {}

    def add(kind: str, members: Sequence[Scalar]) -> None:
        for each in members:
            found.setdefault(each, []).append(kind)

    peaks = probe(laboratory)
    supers = [Scalar(matrix, entry) for matrix, entry in models.super_weights(peaks, chosen.spike)[: chosen.supers]]
    if len(supers) < chosen.supers:
        laboratory.run.note(f"{len(supers)} super weights, {chosen.supers} were asked for: no other layer spikes")
    add(SUPER, supers)
    add(SCORE, scalars.ranked(ranking(laboratory), 0, chosen.leading) if chosen.leading else [])
    massive = models.massive_dimensions(peaks, chosen.massive) if chosen.massive else []
    add(MASSIVE, [_gain(settings, dimension) for dimension in massive])
    for each in supers:
        add(TWIN, [scalars.twin(laboratory.params, each, permutation.derive(settings.seed, each.matrix))])
    add(ORDINARY, [_gain(settings, dimension) for dimension in chosen.ordinary if dimension not in massive])
    everything = [Candidate(scalar, tuple(kinds)) for scalar, kinds in found.items()]
    return sorted(everything, key=lambda each: each.control)


def _gain(settings: ConfigDict, dimension: int) -> Scalar:
    return Scalar(roles.matrix_name("input_norm", settings.scalars.layer), (dimension,))


def probe(laboratory: Laboratory) -> ActivationMaxima:
    """Return the peaks of the activations over the fixed prompt of the config."""
    ids = laboratory.tokenizer.encode(laboratory.settings.scalars.prompt).ids
    bos = laboratory.tokenizer.bos
    row = np.asarray([*([] if bos is None else [bos]), *ids], np.int32)
    tokens = np.tile(row, (meshes.rows(laboratory.mesh), 1))
    with meshes.use(laboratory.mesh):
        found = models.activation_maxima(
            laboratory.model, laboratory.compute, laboratory.params, tokens, np.ones_like(tokens)
        )
    return ActivationMaxima(*map(np.asarray, found))


def ranking(laboratory: Laboratory) -> trees.Tree:
    """Return the scores in nats, summed over the languages: comparable between matrices, as unit sums are not."""
    total: trees.Tree | None = None
    for language in laboratory.settings.score.languages:
        total = scoring.combine(total, lab.load(laboratory, language), normalised=False)
    return roles.restrict(total or {}, laboratory.settings.select.scope)


# --- what is done to them ---------------------------------------------------------------------------------------------


def limits(laboratory: Laboratory) -> trees.Tree:
    """Return the bounds of the rescue: the largest output of each layer's down projection on the scored text."""
    most = extremes.watch(laboratory).down_out.max(axis=1) * np.float32(laboratory.settings.rescue.slack)
    return roles.tree({"down": most.astype(np.float32)})


def plan(laboratory: Laboratory, candidates: Sequence[Candidate], bounds: trees.Tree) -> list[Arm]:
    """Return the arms: every scalar with every factor, the rescues, and last the model with everything put back."""
    settings = laboratory.settings

    def arm(candidate: Candidate, factor: float, clipped: bool = False) -> Arm:
        # Zero is +0.0 as in every removal, not the product, which may be -0.0.
        what: dict[str, Any] = {"perturbation": "zero"} if factor == 0 else {"perturbation": "scale", "amount": factor}
        region = functools.partial(point, laboratory, candidate.scalar)
        return Arm(candidate.arm(factor, clipped), region, limits=bounds if clipped else None, **what)

    changed = [arm(each, factor) for each in candidates for factor in settings.scalars.factors]
    rescued = [arm(each, factor, True) for each in candidates if not each.control for factor in settings.rescue.factors]
    return [*changed, Arm(CLIPPED, limits=bounds), *rescued, Arm(RESTORED)]


def point(laboratory: Laboratory, scalar: Scalar) -> Region:
    """Return the region of one scalar: masks of its own array only."""
    like = trees.unflatten({scalar.path: trees.flatten(laboratory.shapes)[scalar.path]})
    return geometry.points(like, [(scalar.matrix, scalar.entry)], str(scalar))


# --- what it does -----------------------------------------------------------------------------------------------------


def compare(laboratory: Laboratory, candidates: Sequence[Candidate], arms: Mapping[str, Arm]) -> None:
    """Let the worst of each scalar's models write; tables, verdict, report."""
    settings = laboratory.settings
    factors, rescued = list(settings.scalars.factors), list(settings.rescue.factors)
    contrasts = [
        (each.arm(factor, True), each.arm(factor)) for each in candidates if not each.control for factor in rescued
    ]
    found = Findings(comparison.assess(laboratory, {NAME: contrasts})[NAME])
    worst = {each: _worst(each, factors, found) for each in candidates}
    said = [each.arm(worst[each]) for each in candidates]
    said += [each.arm(worst[each], True) for each in candidates if not each.control and worst[each] in rescued]
    for name in (BASE, *said):
        continuation.write(laboratory, arms.get(name, Arm(BASE)))
    same = undone(laboratory)
    tables = {
        "scalars": _scalars(laboratory, candidates),
        "damage_of_scalars": _damage(candidates, factors, found),
        "damage_by_factor": _curve(candidates, factors, found),
        "damage_by_language": _languages(settings, candidates, worst, found),
        "rescue": _rescue(candidates, rescued, found),
        "verdict": verdict("Verdict", weigh(settings, candidates, worst, found, same)),
    }
    for name, content in tables.items():
        lab.tabulate(laboratory, name, content)
    continuation.tabulate(laboratory, "continuations", said)
    lab.publish(laboratory)


def _rank(found: Findings, arm: str) -> float:
    """Return the damage of an arm, infinite where it is not a number: a model that gives NaN is broken most."""
    value = found.value(arm)
    return math.inf if math.isnan(value) else value


def _worst(candidate: Candidate, factors: Sequence[float], found: Findings) -> float:
    return max(factors, key=lambda factor: _rank(found, candidate.arm(factor)))


def undone(laboratory: Laboratory) -> bool:
    """Tell whether the model with everything put back loses what the untouched one loses, to the last bit."""
    rows = [row for row in laboratory.run.rows("results") if row["experiment"] == NAME]
    losses = {(row["arm"], row["language"]): row["nll_nats"] for row in rows}
    return all(losses[BASE, code] == losses[RESTORED, code] for code in laboratory.settings.evaluate.languages)


def _scalars(laboratory: Laboratory, candidates: Sequence[Candidate]) -> dict[str, Any]:
    members = [each.scalar for each in candidates]
    values, combined = scalars.gather(laboratory.params, members), scalars.gather(ranking(laboratory), members)
    count = len(laboratory.settings.score.languages)
    return {
        "title": "The scalars",
        "note": f"Super weights and massive dimensions are those of one forward pass over the prompt "
        f"“{laboratory.settings.scalars.prompt}”; the score is the mean over the scored languages.",
        "columns": [
            {"name": "scalar"},
            {"name": "chosen as"},
            {"name": "value", "kind": "number"},
            {"name": "score, nats per token", "kind": "number"},
        ],
        "rows": [
            [str(each.scalar), ", ".join(each.kinds), float(value), float(score) / count]
            for each, value, score in zip(candidates, values, combined, strict=True)
        ],
    }


def _damage(candidates: Sequence[Candidate], factors: Sequence[float], found: Findings) -> dict[str, Any]:
    return {
        "title": "One scalar, multiplied",
        "note": "Perplexity over all languages (geometric mean) as a multiple of the untouched model's, with its "
        "interval. Controls are below.",
        "columns": [
            {"name": "scalar"},
            {"name": "chosen as"},
            *({"name": f"times {factor:g}", "kind": "factor"} for factor in factors),
        ],
        "rows": [
            [str(each.scalar), ", ".join(each.kinds), *(found.cell(each.arm(factor)) for factor in factors)]
            for each in candidates
        ],
    }


def _curve(candidates: Sequence[Candidate], factors: Sequence[float], found: Findings) -> dict[str, Any]:
    series = {}
    for each in candidates:
        line = [(factor, *found.cell(each.arm(factor))) for factor in sorted({*factors, 1.0} - {1.0})]
        kept = [(factor, value, low, high) for factor, value, low, high in line if value is not None]
        series[str(each.scalar)] = {
            "points": [[factor, value] for factor, value, _, _ in kept],
            "low": [low for *_, low, _ in kept],
            "high": [high for *_, high in kept],
        }
    return {
        "kind": "curve",
        "title": "Damage by factor",
        "across": "factor",
        "upwards": "perplexity, times the untouched model's",
        "format": "exponential",
        "series": series,
        "note": "Over all languages (geometric mean). At factor 1 every curve is at 1.",
    }


def _languages(
    settings: ConfigDict, candidates: Sequence[Candidate], worst: Mapping[Candidate, float], found: Findings
) -> dict[str, Any]:
    languages = list(settings.evaluate.languages)
    return {
        "title": "The worst factor of each scalar, by language",
        "note": "Perplexity as a multiple of the untouched model's.",
        "columns": [{"name": "scalar"}, *({"name": code, "kind": "factor"} for code in languages)],
        "rows": [
            [each.arm(worst[each]), *(found.cell(each.arm(worst[each]), language=code) for code in languages)]
            for each in candidates
        ],
    }


def _rescue(candidates: Sequence[Candidate], factors: Sequence[float], found: Findings) -> dict[str, Any]:
    rows = [
        [
            each.arm(factor),
            found.cell(each.arm(factor)),
            found.cell(each.arm(factor, True)),
            found.cell(each.arm(factor, True), each.arm(factor)),
        ]
        for each in candidates
        if not each.control
        for factor in factors
    ]
    return {
        "title": "Rescue by clipping",
        "note": f"Every layer's output of {roles.display_name(roles.path('down'))} is clipped to the largest magnitude "
        "that the untouched model gives on the scored text. Perplexity over all languages, as a multiple of the "
        "untouched model's; last column: with clipping as a multiple of without. First row: what clipping alone does.",
        "columns": [
            {"name": "model"},
            {"name": "as it is", "kind": "factor"},
            {"name": "clipped", "kind": "factor"},
            {"name": "clipped over as it is", "kind": "factor"},
        ],
        "rows": [[BASE, [0.0, None, None], found.cell(CLIPPED), None], *rows],
    }


def weigh(
    settings: ConfigDict, candidates: Sequence[Candidate], worst: Mapping[Candidate, float], found: Findings, same: bool
) -> list[str]:
    """Return the paragraphs of the verdict, from the figures alone."""
    special = [each for each in candidates if not each.control]
    controls = [each for each in candidates if each.control]
    words = []

    def broken(members: Sequence[Candidate]) -> list[Candidate]:
        """Those whose interval lies above `TIMES`, with some factor."""
        limit = math.log(TIMES)
        arms = {each: [found.cell(each.arm(factor)) for factor in settings.scalars.factors] for each in members}
        return [each for each, cells in arms.items() if any((cell[1] or cell[0] or 0) > limit for cell in cells)]

    words.append(
        f"Of {numerals.plural(len(special), 'special scalar')} {len(broken(special))} break the model alone - "
        f"perplexity over all languages more than {TIMES:g} times the untouched model's with some factor, interval "
        f"included - and of {numerals.plural(len(controls), 'control')} {len(broken(controls))}."
    )
    if 0.0 in settings.scalars.factors:
        clauses = [f"{each.scalar} ({', '.join(each.kinds)}) {found.words(each.arm(0.0))}" for each in candidates]
        words.append(f"Perplexity without the scalar: {'; '.join(clauses)}.")
    clauses = [f"{each.arm(worst[each])} {found.words(each.arm(worst[each]))}" for each in candidates]
    words.append(f"With the worst factor of each: {'; '.join(clauses)}.")
    if special:
        first = max(special, key=lambda each: _rank(found, each.arm(worst[each])))
        languages = list(settings.evaluate.languages)
        cells = {code: found.cell(first.arm(worst[first]), language=code) for code in languages}
        known = {code: cell[0] for code, cell in cells.items() if cell[0] is not None}
        if known:
            name, order = first.arm(worst[first]), sorted(known, key=lambda code: known[code])
            least, most = order[0], order[-1]
            words.append(
                f"{name} harms {least} least ({found.words(name, language=least)}) and {most} most "
                f"({found.words(name, language=most)}): "
                + (
                    f"it breaks all {len(languages)} languages, so it is no part of one language, and that a region "
                    "with it collapses the model says little about language."
                    if len(known) == len(languages) and known[least] > math.log(TIMES)
                    else "not every language breaks."
                )
            )
    pairs = [(each, factor) for each in special for factor in settings.rescue.factors]
    hurt = [(each, factor) for each, factor in pairs if _rank(found, each.arm(factor)) > math.log(TIMES)]
    saved = [pair for pair in hurt if _rank(found, pair[0].arm(pair[1], True)) < math.log(TIMES)]
    words.append(
        "Rescue: putting the scalar back gives the untouched model's losses "
        f"{'to the last bit' if same else 'NOT exactly'}; clipping, which alone costs {found.words(CLIPPED)}, brings "
        f"{len(saved)} of {numerals.plural(len(hurt), 'broken model')} below {TIMES:g} times the untouched model's "
        "perplexity."
    )
    return words
