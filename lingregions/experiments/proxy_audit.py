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
from lingregions import permutation
from lingregions.corpus.batch import Batch
from lingregions.experiments import audit, claims, scalars, scored, step, study, tables
from lingregions.experiments.calibration import (
    ROUNDING,
    Sample,
    collect,
    interval,
    measure,
    recall,
)
from lingregions.experiments.context import Context
from lingregions.models import roles
from lingregions.rows import of_scalars
from lingregions.statistics import LEVEL

# audit.csv: one row per (removed set, language); nats per token.
_COLUMNS: dict[str, type] = {
    **{"matrix": str, "stratum": str, "size": int, "first": int, "language": str, "exact": float},
    **dict.fromkeys(audit.PREDICTORS, float),
}
_KEYS = ("matrix", "stratum", "size", "first", "language")
_Predicted = Mapping[str, Mapping[str, float]]  # {language: {predictor: nats per token}}


def _check(settings: ConfigDict) -> None:
    """Refuse a language that is not scored, and strata that do not grow.

    Raises:
      ValueError: says which.
    """
    chosen = settings.audit
    for language in chosen.languages:
        if language not in settings.score.languages:
            raise ValueError(f"audit.languages has {language!r}, which score.languages lacks")
    if not chosen.languages or not chosen.groups or chosen.singles < 1:
        raise ValueError("audit.languages and audit.groups need one or more, and audit.singles is 1 or more")
    audit.strata(chosen.strata)


def _steps(settings: ConfigDict, config: Any) -> list[step.Step]:
    """Score, sample, predict, remove; as if every stratum of every kind of matrix held enough scalars."""
    chosen = settings.audit
    blocks = len(step.declared(config, settings.select.scope)) * len(chosen.strata)
    languages, each = len(chosen.languages), chosen.samples
    backward = 1 + 2 * chosen.draws + chosen.nodes * blocks
    removals = 1 + chosen.rounding + blocks * (chosen.singles + len(chosen.groups))

    def cost(passes: int) -> dict[str, Any]:
        samples = passes * languages * each
        return {"samples": samples, "tokens": samples * settings.data.length}

    marks = tuple(f"audit-{language}" for language in chosen.languages)
    return [
        *step.score(settings, config),
        step.once("sample", f"{blocks} blocks of {max(chosen.groups)} scalars", "audit-blocks", _sample),
        step.Step("predict", "first and second order, integrated gradients", _predict, **cost(backward), marks=marks),
        step.Step("remove", f"{removals} exact removals in {languages} languages", _remove, **cost(removals)),
    ]


# --- what is removed --------------------------------------------------------------------------------------------------


def _sample(context: Context) -> step.Found:
    """Sample the blocks from the scores combined over the scored languages, audit/blocks.json."""
    settings, file = context.settings, "audit/blocks.json"
    values = scored.values(context, "combined")
    found = audit.sample(values, settings.audit.strata, max(settings.audit.groups), settings.seed)
    context.run.write(file, json.dumps(found) + "\n")
    context.rankings.clear()
    return [file], {"scalars": sum(len(block.scalars) for block in found)}


def _blocks(context: Context) -> list[audit.Block]:
    """Return the blocks as `_sample` wrote them."""
    raw = context.run.agree(json.loads(context.run.path("audit/blocks.json").read_text()))
    return [
        audit.Block(path, stratum, tuple(scalars.Scalar(matrix, tuple(index)) for matrix, index in members))
        for path, stratum, members in raw
    ]


def _items(settings: ConfigDict, blocks: Sequence[audit.Block]) -> list[audit.Item]:
    return audit.items(blocks, settings.audit.singles, settings.audit.groups)


def _text(context: Context, language: str) -> Batch:
    """Return the first samples that the score of a language was computed on, as one batch on the host."""
    corpus, positions = context.samples(language, "score")
    wanted, rows = positions[: context.settings.audit.samples], context.model.rows
    return corpus.batch(wanted, -(-len(wanted) // rows) * rows)


# --- predicted, and true ----------------------------------------------------------------------------------------------


def _predict(context: Context) -> None:
    """Write what the proxies predict in each language, audit/<language>.csv, unless it is there."""
    missing = [code for code in context.settings.audit.languages if context.run.done(f"audit-{code}") is None]
    if missing:
        blocks = _blocks(context)
        gradients = audit.ScalarGradients(context.model.config, context.model.compute, blocks)
        for language in missing:
            _predict_language(context, gradients, blocks, language)


def _predict_language(
    context: Context, gradients: audit.ScalarGradients, blocks: Sequence[audit.Block], language: str
) -> None:
    settings, run, model, file = context.settings, context.run, context.model, f"audit/{language}.csv"
    wanted: dict[int, list[audit.Item]] = {}
    for item in _items(settings, blocks):
        wanted.setdefault(item.block, []).append(item)
    lines = io.StringIO()
    lines.write(",".join(("block", "size", "first", *audit.PREDICTORS)) + "\n")
    draws, nodes, seed = settings.audit.draws, settings.audit.nodes, permutation.derive(settings.seed, language)
    with run.progress(f"predict {language}", len(blocks), "blocks") as bar, meshes.use(model.mesh):
        batch = model.place(_text(context, language))
        for number, prediction in enumerate(audit.predict(gradients, model.params, batch, blocks, draws, nodes, seed)):
            for item in wanted[number]:
                values = prediction.predict(item)
                lines.write(",".join(map(repr, (*item, *(values[name] for name in audit.PREDICTORS)))) + "\n")
            bar.advance(1)
            run.check()
    run.write(file, lines.getvalue())
    run.finish(f"audit-{language}", file)


def _predictions(context: Context, language: str) -> dict[audit.Item, dict[str, float]]:
    """Return {set of scalars: {predictor: nats per token}} as `_predict` wrote it."""
    lines = context.run.agree(context.run.path(f"audit/{language}.csv").read_text().splitlines())
    found = {}
    for line in lines[1:]:
        cells = line.split(",")
        found[audit.Item(*map(int, cells[:3]))] = dict(zip(audit.PREDICTORS, map(float, cells[3:]), strict=True))
    return found


def _nudge(value: float) -> np.float32:
    """Return the next float32 towards zero: a change whose true effect is far below what float32 can tell."""
    nearer: np.float32 = np.nextafter(np.float32(value), np.float32(0))
    return nearer


def _means(losses: tuple[Any, Any], rows: Mapping[str, slice]) -> dict[str, float]:
    """Return the mean loss in nats per token of each language, whose samples are these rows of a batch."""
    nats, counts = (np.asarray(each) for each in losses)
    return {
        language: float(nats[chosen].sum(dtype=np.float64) / counts[chosen].sum()) for language, chosen in rows.items()
    }


def _remove(context: Context) -> None:
    """Remove every set of scalars and write its exact effect in every language beside the predictions: audit.csv."""
    settings, run, model, params = context.settings, context.run, context.model, context.model.params
    blocks = _blocks(context)
    batches = {language: _text(context, language) for language in settings.audit.languages}
    run.table("audit", _COLUMNS, _KEYS)
    known = {tuple(row[key] for key in _KEYS) for row in run.rows("audit")}
    languages = list(batches)
    predictions = {language: _predictions(context, language) for language in languages}
    sizes = [len(batch.tokens) for batch in batches.values()]
    rows = {
        language: slice(start, start + size)
        for language, start, size in zip(languages, np.cumsum([0, *sizes]).tolist(), sizes, strict=False)
    }
    whole = model.place(Batch(*(np.concatenate(each) for each in zip(*batches.values(), strict=True))))
    base = _means(model.evaluator(params, whole, None), rows)
    before = model.series(whole.tokens.size, settings.machine.kept_states)

    everything = _items(settings, blocks)
    moved = np.unique(np.linspace(0, len(blocks) - 1, settings.audit.rounding).round().astype(int)).tolist()
    removals: list[tuple[tuple[str, str, int, int], Sequence[scalars.Scalar], Any, _Predicted]] = []
    nothing = {language: dict.fromkeys(audit.PREDICTORS, 0.0) for language in languages}
    for number in moved:
        block, last = blocks[number], len(blocks[number].scalars) - 1
        names = (block.path, f"{ROUNDING}, {block.stratum}", 1, last)
        (value,) = scalars.gather(params, block.scalars[last:])
        removals.append((names, block.scalars[last:], [_nudge(value)], nothing))
    for item in everything:
        block = blocks[item.block]
        chosen = block.scalars[item.first : item.first + item.size]
        names, said = (
            (block.path, block.stratum, item.size, item.first),
            {each: predictions[each][item] for each in languages},
        )
        removals.append((names, chosen, scalars.removed(model.config, chosen), said))
    changes = [
        of_scalars(params, [(each.path, each.where) for each in members], values) for _, members, values, _ in removals
    ]
    groups = before.groups([None if each is None else each.layer for each in changes], whole.tokens.size)
    evaluated: dict[int, Any] = {}
    with run.progress("remove", len(removals), "removals") as bar:
        for number, (names, members, values, predicted) in enumerate(removals):
            if all((*names, language) in known for language in languages):
                bar.advance(1)
                continue
            if len(groups[number]) > 1:
                if number not in evaluated:
                    alike = [each for place in groups[number] if (each := changes[place]) is not None]
                    found = before.evaluators(alike, params, "audit", [whole])
                    evaluated |= dict(zip(groups[number], found, strict=True))
                means = _means(evaluated[number](params, whole, None), rows)
            else:
                first = min(each.layer or 0 for each in members)
                evaluator = before.evaluator(first, params, "audit", [whole]) or model.evaluator
                with scalars.replaced(params, members, values):
                    means = _means(evaluator(params, whole, None), rows)
            for language in languages:
                cell = dict(zip(_KEYS, (*names, language), strict=True))
                run.add("audit", {**cell, "exact": means[language] - base[language], **predicted[language]})
            run.check()
            bar.advance(1)


# --- what is shown ----------------------------------------------------------------------------------------------------


_NAMES = {
    "taylor": "score: sum of |theta g|",
    "signed": "first order: |sum of theta g|",
    "second": "second order",
    "integrated": "integrated gradients",
}
_SINGLE = tuple(name for name in audit.PREDICTORS if name != "signed")  # of one scalar it is the score


def _show(context: Context) -> dict[str, Any]:
    """Return how well the proxies agree with what removal did, and the verdict."""
    settings, seed = context.settings, context.settings.seed
    context.run.table("audit", _COLUMNS, _KEYS)
    sample, noise = collect(context.run.rows("audit"), audit.PREDICTORS)
    alone = sample.take(sample.size == 1)
    languages = list(settings.audit.languages)
    names = [name for name, *_ in audit.strata(settings.audit.strata) if name in alone.stratum]
    return {
        "audit_proxies": _proxies(alone, languages, seed),
        "audit_matrices": _matrices(alone, languages),
        "audit_strata": _strata(alone, names, seed),
        "audit_groups": _groups(sample, seed),
        "audit_calibration": _calibration(sample, names),
        "audit_noise": _noise(alone, noise),
        "verdict": _verdict(sample, names, noise, seed),
    }


def _proxies(alone: Sample, languages: Sequence[str], seed: int) -> dict[str, Any]:
    few, many = max(1, len(alone) // len(languages) // 10), max(1, len(alone) // len(languages) // 4)
    rows = []
    for name in _SINGLE:
        for language in languages:
            part = alone.take(alone.language == language)
            ranks, shares = (
                interval("spearman", part, name, seed),
                [recall(part, name, most) for most in (few, many)],
            )
            sizes = [interval(figure, part, name, seed) for figure in ("slope", "factor")]
            rows.append([_NAMES[name], language, len(part), ranks, *shares, *sizes])
    columns = {
        **{"proxy": "text", "language": "text", "scalars": "count", "Spearman": "interval"},
        **{f"recall at {few}": "share", f"recall at {many}": "share", "slope": "interval", "median ratio": "factor"},
    }
    note = (
        "Scalars were drawn in strata of the score, so they spread over many orders of magnitude, and a rank "
        "correlation over them is higher than over scalars drawn alike. Recall: share of the largest exact effects "
        "that are among as many largest predictions. Slope: of log effect over log prediction, 1 where proportional; "
        f"median ratio: effect over prediction; both without what is below the noise floor. Intervals ({LEVEL:.0%}): "
        "bootstrap over scalars within strata. Integrated gradients follow the way on which the scalar's whole block "
        "goes to zero."
    )
    return tables.table("Proxies against exact removal, single scalars", columns, rows, note)


def _matrices(alone: Sample, languages: Sequence[str]) -> dict[str, Any]:
    def part(kind: str, language: str) -> Sample:
        return alone.take((alone.matrix == kind) & (alone.language == language))

    values = {
        roles.in_layer(kind): {code: measure("spearman", part(kind, code), "taylor") for code in languages}
        for kind in dict.fromkeys(alone.matrix.tolist())
    }
    title = "Spearman of score and exact effect, by kind of matrix and language"
    note = "Single scalars, all strata."
    return tables.heatmap(title, "matrix", values, "rank correlation", format="share", note=note)


def _strata(alone: Sample, names: Sequence[str], seed: int) -> dict[str, Any]:
    rows = []
    for name in names:
        part = alone.take(alone.stratum == name)
        medians = [float(np.median(values)) for values in (part.predicted["taylor"], part.exact)]
        figures = [interval(figure, part, "taylor", seed) for figure in ("spearman", "slope", "factor")]
        below = int((~part.measurable).sum())
        rows.append([name, len(part), below, *medians, *figures, interval("factor", part, "second", seed)])
    columns = {
        **{"stratum of the score": "text", "scalars x languages": "count", "below the noise floor": "count"},
        **{"median score": "number", "median exact": "number", "Spearman inside": "interval", "slope": "interval"},
        **{"ratio to the score": "factor", "ratio to the second order": "factor"},
    }
    note = (
        "All kinds of matrix and languages together: each scalar counts once a language. Medians in nats per token. "
        "Ratio: exact effect over prediction."
    )
    return tables.table("Calibration of the score by stratum, single scalars", columns, rows, note)


def _groups(sample: Sample, seed: int) -> dict[str, Any]:
    rows = []
    for size in sorted(set(sample.size.tolist())):
        part = sample.take(sample.size == size)
        for name in audit.PREDICTORS if size > 1 else _SINGLE:
            figures = [interval(figure, part, name, seed) for figure in ("spearman", "factor")]
            rows.append([int(size), _NAMES[name], len(part), int((~part.measurable).sum()), *figures])
    columns = {
        **{"scalars removed": "count", "proxy": "text", "groups x languages": "count"},
        **{"below the noise floor": "count", "Spearman": "interval", "ratio exact / predicted": "factor"},
    }
    note = (
        "Groups of neighbouring rank in one kind of matrix. The sum of the scores is what adding up a region's scores "
        "says of its removal; the sum with signs is the first order; integrated gradients of the largest groups are "
        "quadrature of the exact effect."
    )
    return tables.table("Groups removed at once", columns, rows, note)


def _calibration(sample: Sample, names: Sequence[str]) -> dict[str, Any]:
    series: dict[str, list[tuple[float, tables.Cell]]] = {}
    for size in sorted(set(sample.size.tolist())):
        points: list[tuple[float, tables.Cell]] = []
        for name in names:
            part = sample.take((sample.size == size) & (sample.stratum == name) & (sample.exact > 0))
            part = part.take(part.predicted["taylor"] > 0)
            if len(part):
                quarter, half, most = np.quantile(np.log(part.exact), [0.25, 0.5, 0.75]).tolist()
                points.append((float(np.median(part.predicted["taylor"])), [half, quarter, most]))
        series["one scalar" if size == 1 else f"{size} scalars"] = sorted(points, key=lambda point: point[0])
    xs = [x for points in series.values() for x, _ in points]
    series["equal"] = [(x, [math.log(x), None, None]) for x in (min(xs), max(xs))]
    return tables.curve(
        "Exact effect against the sum of scores",
        "sum of scores, nats per token",
        series,
        "exact effect, nats per token",
        logarithmic=True,
        note="Medians over the strata of all kinds of matrix and languages, band: quartiles. On the line “equal” the "
        "scores of a group add up to the effect of its removal.",
    )


def _noise(alone: Sample, noise: Mapping[str, float]) -> dict[str, Any]:
    rows = []
    for language, floor in noise.items():
        part = alone.take(alone.language == language)
        rows.append([language, floor, len(part), int((~part.measurable).sum())])
    columns = {"language": "text", "floor, nats per token": "number", "scalars": "count", "below it": "count"}
    note = (
        "The largest effect of moving one scalar by one unit in the last place of float32: what rounding alone does to "
        "the mean loss. An exact effect below it is not told apart from rounding."
    )
    return tables.table("Noise floor", columns, rows, note)


def _verdict(sample: Sample, names: Sequence[str], noise: Mapping[str, float], seed: int) -> dict[str, Any]:
    """Return the verdict, from the figures alone."""
    alone, most, languages = sample.take(sample.size == 1), int(sample.size.max()), max(1, len(noise))
    groups = sample.take(sample.size == most)
    inside = {name: alone.take(alone.stratum == name) for name in (names[0], names[-1])}
    tenth = max(1, len(alone) // languages // 10)
    shares = [recall(alone.take(alone.language == language), "taylor", tenth) for language in noise]
    top = groups.take(groups.stratum == names[0])
    return claims.verdict(
        "proxy_audit",
        "Is the score a measure of removal?",
        scalars=len(alone) // languages,
        languages=len(noise),
        ranks={name: interval("spearman", alone, name, seed) for name in _SINGLE},
        inside={name: interval("spearman", part, "taylor", seed) for name, part in inside.items()},
        ratios={name: interval("factor", part, "taylor", seed) for name, part in inside.items()},
        tenth=tenth,
        found=float(np.mean(shares)) if shares else math.nan,
        below=int((~alone.measurable).sum()),
        effects_alone=len(alone),
        floor=max(noise.values(), default=0.0),
        most=most,
        together={name: interval("factor", groups, name, seed) for name in audit.PREDICTORS},
        order={name: interval("spearman", groups, name, seed) for name in audit.PREDICTORS},
        top=interval("factor", top, "taylor", seed) if len(top) else None,
    )


STUDY = study.Study(_steps, _show, _check)
