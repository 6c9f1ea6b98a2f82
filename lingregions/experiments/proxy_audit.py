"""Is the score a measure of what removal does? Exact removal of scalars and groups against what the proxies predict.

The score |theta x gradient| stands for |L(D) - L(D; theta_j = 0)| (docs/method.md 1), and a region is chosen as if the
scores of its members added up. Both are tested on the text that the score was computed on: scalars in strata of the
score, in every kind of matrix, are removed one by one, and in groups of neighbouring rank; `audit` says what is
predicted. Rounding has an effect too: scalars moved by one unit in the last place give the noise floor, and what lies
below it is counted, not hidden.

Costs a forward pass a removal, and backward passes for the predictions (`audit.predict`). Nothing is copied: index and
value are arguments of one program.
"""

import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from lingregions import mesh as meshes
from lingregions import models, permutation
from lingregions import tree as trees
from lingregions.corpus.batch import Batch
from lingregions.experiments import audit, scalars, stage
from lingregions.experiments import laboratory as lab
from lingregions.experiments.audit import PREDICTORS, Block, Item
from lingregions.experiments.calibration import (
    ROUNDING,
    Sample,
    collect,
    factor,
    interval,
    measure,
    recall,
    slope,
    spearman,
)
from lingregions.experiments.laboratory import Laboratory
from lingregions.experiments.scalars import Scalar
from lingregions.experiments.stage import Stage
from lingregions.models import roles
from lingregions.run import Run
from lingregions.statistics import LEVEL

# audit.csv: one row per (removed set, language); nats per token.
COLUMNS: dict[str, type] = {
    "matrix": str,
    "stratum": str,
    "size": int,
    "first": int,
    "language": str,
    "exact": float,
    "taylor": float,
    "signed": float,
    "second": float,
    "integrated": float,
}
Told = Mapping[str, Mapping[str, float]]  # {language: {predictor: nats per token}}
KEYS = ("matrix", "stratum", "size", "first", "language")


def proxy_audit(settings: ConfigDict, run: Run) -> None:
    """Score, sample scalars, predict, remove exactly, compare, report.

    Args:
      settings: see configs/proxy_audit.py.
      run: the work directory; what is finished in it is not done again.

    Raises:
      ValueError: a language is audited that is not scored.
    """
    strangers = [each for each in settings.audit.languages if each not in settings.score.languages]
    if strangers:
        raise ValueError(f"audit.languages has {strangers[0]!r}, which score.languages lacks")
    laboratory = lab.prepare(settings, run)
    lab.check(laboratory)
    for language in settings.score.languages:
        lab.score(laboratory, language)
    blocks = choose(laboratory)
    batches = {language: text(laboratory, language) for language in settings.audit.languages}
    slopes = audit.Slopes(laboratory.model, laboratory.compute, blocks)
    for language, batch in batches.items():
        predict(laboratory, slopes, blocks, language, batch)
    remove(laboratory, blocks, batches)
    compare(laboratory)
    lab.publish(laboratory)


def stages(settings: ConfigDict) -> list[Stage]:
    """Return what `proxy_audit` would do, if every stratum of every kind of matrix holds enough scalars."""
    chosen = settings.audit
    kinds = len(trees.flatten(roles.restrict(models.declare(stage.model(settings)), settings.select.scope)))
    blocks = kinds * len(chosen.strata)
    languages, each = len(chosen.languages), chosen.samples
    backward = 1 + 2 * chosen.draws + chosen.nodes * blocks
    removals = 1 + chosen.rounding + blocks * (chosen.singles + len(chosen.groups))

    def made(name: str, what: str, passes: int, marks: tuple[str, ...] = ()) -> Stage:
        samples = passes * languages * each
        return Stage(name, what, samples, samples * settings.data.length, marks=marks)

    return [
        *stage.scoring(settings),
        Stage("sample", f"{blocks} blocks of {max(chosen.groups)} scalars", marks=("audit-blocks",)),
        made(
            "predict",
            "first and second order, integrated gradients",
            backward,
            tuple(f"audit-{language}" for language in chosen.languages),
        ),
        made("remove", f"{removals} exact removals in {languages} languages", removals),
    ]


# --- what is removed --------------------------------------------------------------------------------------------------


def choose(laboratory: Laboratory) -> list[Block]:
    """Return the sampled blocks; made once, from the scores combined over the scored languages."""
    settings, run, file = laboratory.settings, laboratory.run, "audit/blocks.json"
    if run.done("audit-blocks") is None:
        combined = roles.restrict(lab.combine(laboratory, settings.score.languages), settings.select.scope)
        found = audit.sample(combined, settings.audit.strata, max(settings.audit.groups), settings.seed)
        run.write(file, json.dumps(found) + "\n")
        run.finish("audit-blocks", file, scalars=sum(len(block.scalars) for block in found))
    raw = run.agree(json.loads(run.path(file).read_text()))
    return [
        Block(path, stratum, tuple(Scalar(matrix, tuple(index)) for matrix, index in members))
        for path, stratum, members in raw
    ]


def items(settings: ConfigDict, blocks: Sequence[Block]) -> list[Item]:
    """Return what is removed of the blocks."""
    return audit.items(blocks, settings.audit.singles, settings.audit.groups)


def text(laboratory: Laboratory, language: str) -> Batch:
    """Return the first samples that the score of a language was computed on, as one batch on the host."""
    settings = laboratory.settings
    corpus, positions = lab.draw(laboratory, language, "score")
    wanted = positions[: settings.audit.samples]
    rows = meshes.rows(laboratory.mesh)
    return corpus.batch(wanted, -(-len(wanted) // rows) * rows)


# --- predicted, and true ----------------------------------------------------------------------------------------------


def predict(laboratory: Laboratory, slopes: audit.Slopes, blocks: Sequence[Block], language: str, batch: Batch) -> None:
    """Write what the proxies predict in one language, audit/<language>.csv, unless it is there."""
    settings, run, file = laboratory.settings, laboratory.run, f"audit/{language}.csv"
    if run.done(f"audit-{language}") is not None:
        return
    chosen = settings.audit
    wanted: dict[int, list[Item]] = {}
    for item in items(settings, blocks):
        wanted.setdefault(item.block, []).append(item)
    lines = io.StringIO()
    lines.write(",".join(("block", "size", "first", *PREDICTORS)) + "\n")
    with run.progress(f"predict {language}", len(blocks), "blocks") as bar, meshes.use(laboratory.mesh):
        found = audit.predict(
            slopes,
            laboratory.params,
            laboratory.place(batch),
            blocks,
            chosen.draws,
            chosen.nodes,
            permutation.derive(settings.seed, language),
        )
        for number, prediction in enumerate(found):
            for item in wanted[number]:
                values = prediction.predict(item)
                lines.write(",".join(map(repr, (*item, *(values[name] for name in PREDICTORS)))) + "\n")
            bar.advance(1)
            run.check()
    run.write(file, lines.getvalue())
    run.finish(f"audit-{language}", file)


def predicted(laboratory: Laboratory, language: str) -> dict[Item, dict[str, float]]:
    """Return {set of scalars: {predictor: nats per token}} as `predict` wrote it."""
    lines = laboratory.run.agree(laboratory.run.path(f"audit/{language}.csv").read_text().splitlines())
    found = {}
    for line in lines[1:]:
        cells = line.split(",")
        found[Item(*map(int, cells[:3]))] = dict(zip(PREDICTORS, map(float, cells[3:]), strict=True))
    return found


def remove(laboratory: Laboratory, blocks: Sequence[Block], batches: Mapping[str, Batch]) -> None:
    """Remove every set of scalars and write its exact effect in every language beside the predictions: audit.csv."""
    settings, run, params = laboratory.settings, laboratory.run, laboratory.params
    run.table("audit", COLUMNS, KEYS)
    known = {tuple(row[key] for key in KEYS) for row in run.rows("audit")}
    languages = list(batches)
    predictions = {language: predicted(laboratory, language) for language in languages}
    sizes = [len(batch.tokens) for batch in batches.values()]
    rows = {
        language: slice(start, start + size)
        for language, start, size in zip(languages, np.cumsum([0, *sizes]).tolist(), sizes, strict=False)
    }
    whole = laboratory.place(Batch(*(np.concatenate(each) for each in zip(*batches.values(), strict=True))))
    base = audit.means(laboratory.evaluator(params, whole, None), rows)

    def add(names: tuple[str, str, int, int], members: Sequence[Scalar], values: Any, told: Told) -> None:
        if all((*names, language) in known for language in languages):
            return
        with scalars.replaced(params, members, values):
            found = audit.means(laboratory.evaluator(params, whole, None), rows)
        for language in languages:
            cell = dict(zip(KEYS, (*names, language), strict=True))
            run.add("audit", {**cell, "exact": found[language] - base[language], **told[language]})
        run.check()

    everything = items(settings, blocks)
    nudged = np.unique(np.linspace(0, len(blocks) - 1, settings.audit.rounding).round().astype(int)).tolist()
    nothing = {language: dict.fromkeys(PREDICTORS, 0.0) for language in languages}
    with run.progress("remove", len(nudged) + len(everything), "removals") as bar:
        for number in nudged:
            block, last = blocks[number], len(blocks[number].scalars) - 1
            (value,) = scalars.gather(params, block.scalars[last:])
            names = (block.path, f"{ROUNDING}, {block.stratum}", 1, last)
            add(names, block.scalars[last:], [audit.nudge(value)], nothing)
            bar.advance(1)
        for item in everything:
            block = blocks[item.block]
            members = block.scalars[item.first : item.first + item.size]
            told = {language: predictions[language][item] for language in languages}
            add((block.path, block.stratum, item.size, item.first), members, np.zeros(len(members)), told)
            bar.advance(1)


# --- how well they agree ----------------------------------------------------------------------------------------------


NAMES = {
    "taylor": "score: sum of |theta g|",
    "signed": "first order: |sum of theta g|",
    "second": "second order",
    "integrated": "integrated gradients",
}


def compare(laboratory: Laboratory) -> None:
    """Write the tables and the verdict."""
    settings, seed = laboratory.settings, laboratory.settings.seed
    laboratory.run.table("audit", COLUMNS, KEYS)
    sample, noise = collect(laboratory.run.rows("audit"), PREDICTORS)
    alone = sample.take(sample.size == 1)
    languages = list(settings.audit.languages)
    names = [name for name, *_ in audit.strata(settings.audit.strata) if name in alone.stratum]
    tables = {
        "audit_proxies": _proxies(alone, languages, seed),
        "audit_matrices": _matrices(alone, languages),
        "audit_strata": _strata(alone, names, seed),
        "audit_groups": _groups(sample, seed),
        "audit_calibration": _calibration(sample, names),
        "audit_noise": _noise(alone, noise),
    }
    for name, content in tables.items():
        lab.tabulate(laboratory, name, content)
    lab.tabulate(laboratory, "verdict", _verdict(sample, names, noise, seed))


def _single(predictors: Sequence[str]) -> list[str]:
    """Of one scalar the sum of |theta g| and |the sum of theta g| are the same."""
    return [name for name in predictors if name != "signed"]


def _proxies(alone: Sample, languages: Sequence[str], seed: int) -> dict[str, Any]:
    few, many = max(1, len(alone) // len(languages) // 10), max(1, len(alone) // len(languages) // 4)
    rows = []
    for name in _single(PREDICTORS):
        for language in languages:
            part = alone.take(alone.language == language)
            rows.append(
                [
                    NAMES[name],
                    language,
                    len(part),
                    interval(spearman, part, name, seed),
                    recall(part, name, few),
                    recall(part, name, many),
                    interval(slope, part, name, seed),
                    interval(factor, part, name, seed),
                ]
            )
    return {
        "title": "Proxies against exact removal, single scalars",
        "note": "Scalars were drawn in strata of the score, so they spread over many orders of magnitude, and a rank "
        "correlation over them is higher than over scalars drawn alike. Recall: share of the largest exact effects "
        "that are among as many largest predictions. Slope: of log effect over log prediction, 1 where proportional; "
        f"median ratio: effect over prediction; both without what is below the noise floor. Intervals ({LEVEL:.0%}): "
        "bootstrap over scalars within strata. Integrated gradients follow the way on which the scalar's whole block "
        "goes to zero.",
        "columns": [
            {"name": "proxy"},
            {"name": "language"},
            {"name": "scalars", "kind": "count"},
            {"name": "Spearman", "kind": "interval"},
            {"name": f"recall at {few}", "kind": "share"},
            {"name": f"recall at {many}", "kind": "share"},
            {"name": "slope", "kind": "interval"},
            {"name": "median ratio", "kind": "factor"},
        ],
        "rows": rows,
    }


def _matrices(alone: Sample, languages: Sequence[str]) -> dict[str, Any]:
    kinds = list(dict.fromkeys(alone.matrix.tolist()))
    values = [
        [
            measure(spearman, alone.take((alone.matrix == kind) & (alone.language == language)), "taylor")
            for language in languages
        ]
        for kind in kinds
    ]
    return {
        "kind": "heatmap",
        "title": "Spearman of score and exact effect, by kind of matrix and language",
        "corner": "matrix",
        "rows": [roles.in_layer(kind) for kind in kinds],
        "columns": list(languages),
        "values": [[value if math.isfinite(value) else None for value in row] for row in values],
        "format": "share",
        "unit": "rank correlation",
        "note": "Single scalars, all strata.",
    }


def _strata(alone: Sample, names: Sequence[str], seed: int) -> dict[str, Any]:
    rows = []
    for name in names:
        part = alone.take(alone.stratum == name)
        rows.append(
            [
                name,
                len(part),
                int((~part.audible).sum()),
                float(np.median(part.predicted["taylor"])),
                float(np.median(part.exact)),
                interval(spearman, part, "taylor", seed),
                interval(slope, part, "taylor", seed),
                interval(factor, part, "taylor", seed),
                interval(factor, part, "second", seed),
            ]
        )
    return {
        "title": "Calibration of the score by stratum, single scalars",
        "note": "All kinds of matrix and languages together: each scalar counts once a language. Medians in nats per "
        "token. Ratio: exact effect over prediction.",
        "columns": [
            {"name": "stratum of the score"},
            {"name": "scalars x languages", "kind": "count"},
            {"name": "below the noise floor", "kind": "count"},
            {"name": "median score", "kind": "number"},
            {"name": "median exact", "kind": "number"},
            {"name": "Spearman inside", "kind": "interval"},
            {"name": "slope", "kind": "interval"},
            {"name": "ratio to the score", "kind": "factor"},
            {"name": "ratio to the second order", "kind": "factor"},
        ],
        "rows": rows,
    }


def _groups(sample: Sample, seed: int) -> dict[str, Any]:
    rows = []
    for size in sorted(set(sample.size.tolist())):
        part = sample.take(sample.size == size)
        for name in PREDICTORS if size > 1 else _single(PREDICTORS):
            rows.append(
                [
                    int(size),
                    NAMES[name],
                    len(part),
                    int((~part.audible).sum()),
                    interval(spearman, part, name, seed),
                    interval(factor, part, name, seed),
                ]
            )
    return {
        "title": "Groups removed at once",
        "note": "Groups of neighbouring rank in one kind of matrix. The sum of the scores is what adding up a region's "
        "scores says of its removal; the sum with signs is the first order; integrated gradients of the largest groups "
        "are quadrature of the exact effect.",
        "columns": [
            {"name": "scalars removed", "kind": "count"},
            {"name": "proxy"},
            {"name": "groups x languages", "kind": "count"},
            {"name": "below the noise floor", "kind": "count"},
            {"name": "Spearman", "kind": "interval"},
            {"name": "ratio exact / predicted", "kind": "factor"},
        ],
        "rows": rows,
    }


def _calibration(sample: Sample, names: Sequence[str]) -> dict[str, Any]:
    series = {}
    for size in sorted(set(sample.size.tolist())):
        points, low, high = [], [], []
        for name in names:
            part = sample.take((sample.size == size) & (sample.stratum == name) & (sample.exact > 0))
            part = part.take(part.predicted["taylor"] > 0)
            if len(part):
                quarter, half, most = np.quantile(np.log(part.exact), [0.25, 0.5, 0.75])
                points.append([float(np.median(part.predicted["taylor"])), float(half)])
                low.append(float(quarter))
                high.append(float(most))
        label = "one scalar" if size == 1 else f"{size} scalars"
        order = np.argsort([x for x, _ in points])
        series[label] = {
            "points": [points[place] for place in order],
            "low": [low[place] for place in order],
            "high": [high[place] for place in order],
        }
    xs = [x for line in series.values() for x, _ in line["points"]]
    series["equal"] = {"points": [[x, math.log(x)] for x in (min(xs), max(xs))]}
    return {
        "kind": "curve",
        "title": "Exact effect against the sum of scores",
        "across": "sum of scores, nats per token",
        "upwards": "exact effect, nats per token",
        "logarithmic": True,
        "format": "exponential",
        "series": series,
        "note": "Medians over the strata of all kinds of matrix and languages, band: quartiles. On the line `equal` "
        "the scores of a group add up to the effect of its removal.",
    }


def _noise(alone: Sample, noise: Mapping[str, float]) -> dict[str, Any]:
    rows = []
    for language, floor in noise.items():
        part = alone.take(alone.language == language)
        rows.append([language, floor, len(part), int((~part.audible).sum())])
    return {
        "title": "Noise floor",
        "note": "The largest effect of moving one scalar by one unit in the last place of float32: what rounding alone "
        "does to the mean loss. An exact effect below it is not told apart from rounding.",
        "columns": [
            {"name": "language"},
            {"name": "floor, nats per token", "kind": "number"},
            {"name": "scalars", "kind": "count"},
            {"name": "below it", "kind": "count"},
        ],
        "rows": rows,
    }


def _said(cell: Sequence[float | None], times: bool = False) -> str:
    """Say an interval in words; `times`: it is a logarithm of a factor."""
    values = [None if each is None else (math.exp(each) if times else each) for each in cell]
    if values[0] is None:
        return "not measurable"
    bounds = "" if values[1] is None or values[2] is None else f" ({values[1]:.2g} to {values[2]:.2g})"
    return f"{values[0]:.2g}{bounds}"


def _added(cells: Mapping[str, Sequence[float | None]]) -> str:
    """Say whether the scores of a group add up to its effect: ratios of exact to predicted, as logarithms."""
    plain, second = cells["taylor"], cells["second"]
    if plain[0] is None or plain[2] is None or plain[2] >= 0:
        return "That scores add up to the effect of a group is not contradicted."
    said = "Scores do not add up: signs cancel inside a group, so their sum overstates what its removal does"
    if second[0] is not None and abs(second[0]) < abs(plain[0]) / 2:
        said += "; the first order with its signs, and the curvature, come closer"
    return f"{said}."


def _verdict(sample: Sample, names: Sequence[str], noise: Mapping[str, float], seed: int) -> dict[str, Any]:
    """Return the verdict in one paragraph, from the figures alone."""
    alone, most = sample.take(sample.size == 1), int(sample.size.max())
    ranks = {name: interval(spearman, alone, name, seed) for name in _single(PREDICTORS)}
    inside = {name: interval(spearman, alone.take(alone.stratum == name), "taylor", seed) for name in names}
    ratios = {name: interval(factor, alone.take(alone.stratum == name), "taylor", seed) for name in names}
    tenth = max(1, len(alone) // max(1, len(noise)) // 10)
    shares = [recall(alone.take(alone.language == language), "taylor", tenth) for language in noise]
    found = float(np.mean(shares)) if shares else math.nan
    words = [
        f"Single scalars: over {len(alone) // max(1, len(noise))} of them in {len(noise)} languages, sampled in "
        f"strata, the rank correlation with the exact effect of removal is {_said(ranks['taylor'])} for the score, "
        f"{_said(ranks['second'])} with the second order and {_said(ranks['integrated'])} for integrated gradients; "
        f"inside one stratum it is {_said(inside[names[0]])} ({names[0]}) and {_said(inside[names[-1]])} "
        f"({names[-1]}); of the {tenth} largest effects in each language {found:.0%} are among as many largest scores. "
        f"The exact effect is {_said(ratios[names[0]], True)} times the score in the {names[0]}, and "
        f"{_said(ratios[names[-1]], True)} times in the stratum {names[-1]} (medians). "
        f"{int((~alone.audible).sum())} of {len(alone)} effects lie below the noise floor "
        f"({max(noise.values(), default=0.0):.1e} nats per token) and say nothing."
    ]
    if most > 1:
        part = sample.take(sample.size == most)
        top = part.take(part.stratum == names[0])
        cells = {name: interval(factor, part, name, seed) for name in PREDICTORS}
        order = {name: interval(spearman, part, name, seed) for name in PREDICTORS}
        words.append(
            f"Groups of {most}: the exact effect is {_said(cells['taylor'], True)} times the sum of their scores, "
            f"{_said(cells['signed'], True)} times the sum with signs and {_said(cells['second'], True)} times the "
            f"second order (medians); rank correlation {_said(order['taylor'])}, {_said(order['signed'])} and "
            f"{_said(order['second'])}."
        )
        if len(top):
            over = interval(factor, top, "taylor", seed)
            words.append(f"In the {names[0]} of the score the exact effect is {_said(over, True)} times the sum.")
        words.append(_added(cells))
    value, low, _ = ranks["taylor"]
    if value is not None and low is not None and low >= 0.9:
        judged = "The score ranks single scalars over orders of magnitude as exact removal does."
    elif value is not None and low is not None and low >= 0.5:
        judged = "The score ranks single scalars roughly as exact removal does."
    else:
        judged = "On this text the score is no reliable rank of what exact removal of a scalar does."
    judged += (
        " It is a statement about these tokens: whether the same scalars matter on other text is the question of the "
        "experiment reliability."
    )
    return {
        "kind": "verdict",
        "title": "Is the score a measure of removal?",
        "paragraphs": [" ".join([*words, judged])],
        "headline": f"Score against exact removal of single scalars: rank correlation {_said(ranks['taylor'])}.",
    }
