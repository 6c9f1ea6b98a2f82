"""Scalars one at a time: which are chosen, that each is changed alone and put back, what is written, the rescue."""

import csv
import json
import math
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from lingregions import evaluate, generate, models, settings
from lingregions import tree as trees
from lingregions.effects import ALL, Effect, Effects
from lingregions.experiments import STUDIES, scalars
from lingregions.experiments.context import Context, prepare
from lingregions.experiments.scalars import Scalar
from lingregions.experiments.single_parameter import (
    _CLIPPED,
    _MASSIVE,
    _ORDINARY,
    _SCORE,
    _SUPER,
    _TWIN,
    _bounds,
    _Candidate,
    _chosen,
    _twin_of,
    _verdict,
)
from lingregions.intervention import BASE, UNTOUCHED
from lingregions.models import roles
from lingregions.report import numerals
from lingregions.run import Run

pytestmark = pytest.mark.usefixtures("one_device")

CONFIG = Path(__file__).parent.parent / "configs" / "single_parameter.py"
STUDY = STUDIES["single_parameter"]
HUGE = 1e5  # a scalar times this swamps the residual stream of the tiny model


def chosen(**values):
    small = {
        "score.languages": ("ar", "zh"),
        "score.samples": 1,
        "evaluate.languages": ("en", "sw"),
        "scalars.factors": (0.0, 2.0, HUGE),
        "scalars.leading": 1,
        "rescue.factors": (HUGE,),
        "machine.progress": "none",
        "machine.pictures": False,
    }
    return settings.load(f"{CONFIG}:tiny", values=small | values)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("single") / "run"
    wanted = chosen()
    with Run.open(folder, wanted) as run:
        STUDY.perform(wanted, run)
    return folder


@pytest.fixture(scope="module")
def context(whole):
    wanted = chosen()
    with Run.open(whole, wanted) as run:
        yield prepare(wanted, run)


def nats(folder: Path) -> dict[tuple[str, str], float]:
    rows = csv.DictReader((folder / "results.csv").read_text().splitlines())
    return {(row["intervention"], row["language"]): float(row["nll_nats"]) for row in rows}


def changed(context: Context, scalar: Scalar, factor: float) -> trees.Tree:
    """The parameters with one scalar multiplied, as a copy."""
    leaf = trees.flatten(context.model.params)[scalar.path]
    value = jnp.float32(factor) * leaf[scalar.where]
    return trees.merge(context.model.params, trees.unflatten({scalar.path: leaf.at[scalar.where].set(value)}))


def test_the_scalars_are_what_they_are_said_to_be(whole, context):
    found = _chosen(context)
    reasons = [reason for each in found for reason in each.reasons]
    assert sorted(reasons) == sorted([_SUPER, _SCORE, _MASSIVE, _TWIN, _ORDINARY])
    assert [each.control for each in found] == [False, False, False, True, True]
    by_kind = {reason: each.scalar for each in found for reason in each.reasons}

    ids = [256, *b"The quick brown fox jumps over the lazy dog."]  # bos, and bytes as tokens
    tokens = jnp.asarray([ids], jnp.int32)
    peaks = models.activation_maxima(
        context.model.config, context.model.compute, context.model.params, tokens, jnp.ones_like(tokens)
    )
    layer = int(by_kind[_SUPER].where[0])
    assert by_kind[_SUPER].matrix == f"model.layers.{layer}.mlp.down_proj.weight"
    assert by_kind[_SUPER].entry == (int(peaks.down_out[layer].argmax()), int(peaks.down_in[layer].argmax()))
    gain = "model.layers.1.input_layernorm.weight"
    assert by_kind[_MASSIVE] == Scalar(gain, (int(peaks.residual.max(0).argmax()),))
    assert by_kind[_ORDINARY] == Scalar(gain, (10,))
    assert by_kind[_TWIN].matrix == by_kind[_SUPER].matrix
    assert by_kind[_TWIN] != by_kind[_SUPER]

    like = roles.restrict(context.model.shapes, "decoder")
    scores = [trees.flatten(context.run.load(f"scores/{language}", like)) for language in ("ar", "zh")]
    summed = {path: np.asarray(scores[0][path]) + np.asarray(scores[1][path]) for path in scores[0]}
    best = by_kind[_SCORE]
    assert summed[best.path][best.where] == max(values.max() for values in summed.values())


def test_an_intervention_changes_one_scalar(whole, context):
    """Against a copy of the parameters, and the evaluation of one language alone."""
    losses = nats(whole)
    evaluator = evaluate.build(context.model.config, context.model.compute, context.model.mesh)
    for scalar in (each.scalar for each in _chosen(context)):
        for factor in (0.0, 2.0):
            params = changed(context, scalar, factor)
            for language in ("en", "sw"):
                corpus, positions = context.samples(language, "evaluate")
                batches = [corpus.batch([position]) for position in sorted(positions.tolist())]
                nll = sum(each.nll.sum() for each in evaluate.stream(evaluator, params, batches, context.model.place))
                np.testing.assert_allclose(losses[f"{scalar} x{factor:g}", language], nll, rtol=1e-6)
                assert nll != losses[BASE, language]


def test_everything_is_put_back_to_the_last_bit(whole):
    losses = nats(whole)
    assert [losses["restored", code] for code in ("en", "sw")] == [losses[BASE, code] for code in ("en", "sw")]
    words = json.loads((whole / "tables" / "verdict.json").read_text())["paragraphs"][-1]
    assert "to the last bit" in words


def test_clipping_bounds_what_down_proj_gives(whole, context):
    """The bounds are the maxima on the scored text, and the clipped models have the losses within them."""
    watched = []
    for language in ("ar", "zh"):
        corpus, positions = context.samples(language, "score")
        batch = context.model.place(corpus.batch(positions[:1]))
        found = models.activation_maxima(
            context.model.config, context.model.compute, context.model.params, batch.tokens, batch.segments
        )
        watched.append(np.asarray(found.down_out).max(1))
    most = _bounds(context)
    np.testing.assert_array_equal(most["layers"]["mlp"]["down_proj"], np.maximum(*watched))
    losses = nats(whole)
    (spike,) = (each.scalar for each in _chosen(context) if _SUPER in each.reasons)
    evaluator = evaluate.build(context.model.config, context.model.compute, context.model.mesh)
    for name, params in {
        f"{spike} x{HUGE:g} clipped": changed(context, spike, HUGE),
        _CLIPPED.name: context.model.params,
    }.items():
        for language in ("en", "sw"):
            corpus, positions = context.samples(language, "evaluate")
            batches = [context.model.place(corpus.batch([position])) for position in sorted(positions.tolist())]
            each = [np.asarray(evaluator(params, batch, most)[0], np.float64).sum() for batch in batches]
            np.testing.assert_allclose(losses[name, language], sum(each), rtol=1e-6)
    for language in ("en", "sw"):
        base, broken, clipped = (
            losses[name, language] for name in (BASE, f"{spike} x{HUGE:g}", f"{spike} x{HUGE:g} clipped")
        )
        assert broken != clipped != base


def test_what_the_broken_model_writes(whole, context):
    tables = json.loads((whole / "tables" / "continuations.json").read_text())
    assert tables["columns"] == ["model", "times the perplexity", "en", "zh"]
    said = {row[0]: row[2:] for row in tables["rows"]}
    times = {row[0]: row[1] for row in tables["rows"]}
    effect = json.loads((whole / "tables" / "effect_of_scalars.json").read_text())
    worst = max(effect["rows"][0][2:], key=lambda cell: cell[0])
    assert numerals.factor(numerals.Span(*worst)) in times.values()
    assert (times["(the prompt)"], times[BASE]) == ("", "")
    prompts = [context.corpus(code, "evaluate").batch([0]).tokens[0, :16].tolist() for code in ("en", "zh")]
    assert said["(the prompt)"] == [context.model.tokenizer.decode(ids) for ids in prompts]
    found = generate.greedy(context.model.config, context.model.compute, context.model.params, prompts, 8)
    assert said[BASE] == [context.model.tokenizer.decode(ids) for ids in found]
    # One model of each scalar, the worst, and its rescue where that was measured.
    for scalar in (each.scalar for each in _chosen(context)):
        (name,) = (each for each in said if each.startswith(f"{scalar} x") and not each.endswith("clipped"))
        losses, others = nats(whole), [f"{scalar} x{factor:g}" for factor in (0.0, 2.0, HUGE)]
        assert name == max(others, key=lambda other: losses[other, "en"] + losses[other, "sw"])
        broken = changed(context, scalar, float(name.rpartition(" x")[2]))
        found = generate.greedy(context.model.config, context.model.compute, broken, prompts, 8)
        assert said[name] == [context.model.tokenizer.decode(ids) for ids in found]


def test_the_plan_is_what_is_done(whole):
    *scoring, choosing, measuring, writing = STUDY.plan(chosen())
    # 5 scalars x 3 factors, 3 rescues, the clipped, the restored and the untouched model, in 2 languages.
    assert measuring.rows == (5 * 3 + 3 + 2 + 1) * 2
    steps = [*scoring, choosing, measuring]
    assert [step.finished(whole) for step in steps] == [step.parts for step in steps]
    assert writing.what == "greedy continuations of 9 models"  # at most: a rescue only of the worst factor


def test_a_rescue_needs_its_factor():
    with pytest.raises(ValueError, match=r"rescue.factors has 3"):
        STUDY.plan(chosen(**{"rescue.factors": (3.0,)}))


def effects(nats: dict) -> Effects:
    """Effects drawn by hand, each with an interval of 0.1 on either side."""
    rows = [
        Effect(each, UNTOUCHED, code, "", value, value - 0.1, value + 0.1, 0.01, 0.01, 1, 9)
        for each, values in nats.items()
        for code, value in values.items()
    ]
    return Effects(tuple(rows), {UNTOUCHED: {"en": None, "sw": None}})


def test_the_verdict_counts_what_breaks_and_what_lives():
    """Effects by hand: one special scalar breaks both languages and is rescued, another and a control do not."""
    breaking, gentle, control = (
        _Candidate(Scalar(f"model.layers.{layer}.input_layernorm.weight", (7,)), (reason,))
        for layer, reason in ((0, _SUPER), (1, _MASSIVE), (2, _ORDINARY))
    )
    found = effects(
        {
            breaking.times(0.0): {ALL: 5.0, "en": 4.0, "sw": 6.0},
            breaking.times(0.0, True): {ALL: 1.0, "en": 1.0, "sw": 1.0},
            gentle.times(0.0): {ALL: 0.5, "en": 0.5, "sw": 0.5},
            gentle.times(0.0, True): {ALL: 0.5, "en": 0.5, "sw": 0.5},
            control.times(0.0): {ALL: 0.1, "en": 0.1, "sw": 0.1},
            _CLIPPED: {ALL: 0.0, "en": 0.0, "sw": 0.0},
        }
    )
    wanted = chosen(**{"scalars.factors": (0.0,), "rescue.factors": (0.0,)})
    most = {each: each.times(0.0) for each in (breaking, gentle, control)}
    said = _verdict(wanted, most, found, restored=False)
    assert said["headline"] == "A single scalar can break the model: 1 of 2 special ones do, none of the 1 control."
    first, _, third, fourth = said["paragraphs"]
    assert "Of 2 special scalars 1 break" in first
    assert "of 1 control 0" in first
    assert "harms en least" in third
    assert "sw most" in third
    assert "breaks all 2 languages" in third
    assert "NOT exactly" in fourth
    assert "1 of 1 broken model below" in fourth


def test_one_scalar_of_another_matrix_is_no_twin(context):
    scalar = Scalar("model.layers.0.mlp.down_proj.weight", (3, 5))
    first, again, other = (_twin_of(context.model.params, scalar, seed) for seed in (0, 0, 1))
    assert first == again != other
    assert first.matrix == scalar.matrix
    assert first.entry != scalar.entry
    values = np.abs(np.asarray(context.model.params["layers"]["mlp"]["down_proj"][0]))
    rank = [float((values < abs(value)).mean()) for value in scalars.gather(context.model.params, [scalar, first])]
    assert math.isclose(rank[0], rank[1], abs_tol=0.051)  # bins of a twentieth
