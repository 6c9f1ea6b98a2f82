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
from lingregions.experiments import STAGES, continuation, scalars
from lingregions.experiments import laboratory as lab
from lingregions.experiments.cell import BASE
from lingregions.experiments.comparison import EVERY, Compared
from lingregions.experiments.finding import Findings
from lingregions.experiments.scalars import Scalar
from lingregions.experiments.single_parameter import (
    CLIPPED,
    MASSIVE,
    ORDINARY,
    SCORE,
    SUPER,
    TWIN,
    Candidate,
    limits,
    weigh,
)
from lingregions.experiments.single_parameter import single_parameter as experiment
from lingregions.models import roles
from lingregions.run import Run
from lingregions.statistics import Estimate

pytestmark = pytest.mark.usefixtures("one_device")

CONFIG = Path(__file__).parent.parent / "configs" / "single_parameter.py"
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
        experiment(wanted, run)
    return folder


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory):
    wanted = chosen()
    with Run.open(tmp_path_factory.mktemp("laboratory") / "run", wanted) as run:
        yield lab.prepare(wanted, run)


def candidates(folder: Path) -> dict[Scalar, list[str]]:
    raw = json.loads((folder / "scalars.json").read_text())
    return {Scalar(matrix, tuple(entry)): kinds for (matrix, entry), kinds in raw}


def nats(folder: Path) -> dict[tuple[str, str], float]:
    rows = csv.DictReader((folder / "results.csv").read_text().splitlines())
    return {(row["arm"], row["language"]): float(row["nll_nats"]) for row in rows}


def changed(laboratory: lab.Laboratory, scalar: Scalar, factor: float) -> trees.Tree:
    """The parameters with one scalar multiplied, as a copy."""
    leaf = trees.flatten(laboratory.params)[scalar.path]
    value = jnp.float32(factor) * leaf[scalar.where]
    return trees.merge(laboratory.params, trees.unflatten({scalar.path: leaf.at[scalar.where].set(value)}))


def test_the_scalars_are_what_they_are_said_to_be(whole, laboratory):
    found = candidates(whole)
    kinds = [kind for each in found.values() for kind in each]
    assert sorted(kinds) == sorted([SUPER, SCORE, MASSIVE, TWIN, ORDINARY])
    assert [set(each) <= {TWIN, ORDINARY} for each in found.values()] == [False, False, False, True, True]
    by_kind = {kind: scalar for scalar, kinds in found.items() for kind in kinds}

    ids = [256, *b"The quick brown fox jumps over the lazy dog."]  # bos, and bytes as tokens
    tokens = jnp.asarray([ids], jnp.int32)
    peaks = models.activation_maxima(
        laboratory.model, laboratory.compute, laboratory.params, tokens, jnp.ones_like(tokens)
    )
    layer = int(by_kind[SUPER].where[0])
    assert by_kind[SUPER].matrix == f"model.layers.{layer}.mlp.down_proj.weight"
    assert by_kind[SUPER].entry == (int(peaks.down_out[layer].argmax()), int(peaks.down_in[layer].argmax()))
    gain = "model.layers.1.input_layernorm.weight"
    assert by_kind[MASSIVE] == Scalar(gain, (int(peaks.residual.max(0).argmax()),))
    assert by_kind[ORDINARY] == Scalar(gain, (10,))
    assert by_kind[TWIN].matrix == by_kind[SUPER].matrix
    assert by_kind[TWIN] != by_kind[SUPER]

    like = roles.restrict(laboratory.shapes, "decoder")
    with Run.open(whole, chosen()) as run:
        scores = [trees.flatten(run.load(f"scores/{language}", like)) for language in ("ar", "zh")]
    summed = {path: np.asarray(scores[0][path]) + np.asarray(scores[1][path]) for path in scores[0]}
    best = by_kind[SCORE]
    assert summed[best.path][best.where] == max(values.max() for values in summed.values())


def test_an_arm_changes_one_scalar(whole, laboratory):
    """Against a copy of the parameters, and the evaluation of one language alone."""
    losses = nats(whole)
    evaluator = evaluate.build(laboratory.model, laboratory.compute, laboratory.mesh)
    for scalar in candidates(whole):
        for factor in (0.0, 2.0):
            params = changed(laboratory, scalar, factor)
            for language in ("en", "sw"):
                corpus, positions = lab.draw(laboratory, language, "evaluate")
                batches = [corpus.batch([position]) for position in sorted(positions.tolist())]
                found = evaluate.evaluate(evaluator, params, batches, laboratory.place)
                np.testing.assert_allclose(losses[f"{scalar} x{factor:g}", language], found.nll, rtol=1e-6)
                assert found.nll != losses[BASE, language]


def test_everything_is_put_back_to_the_last_bit(whole):
    losses = nats(whole)
    assert [losses["restored", code] for code in ("en", "sw")] == [losses[BASE, code] for code in ("en", "sw")]
    words = json.loads((whole / "tables" / "verdict.json").read_text())["paragraphs"][-1]
    assert "to the last bit" in words


def test_clipping_bounds_what_down_proj_gives(whole, laboratory):
    """The bounds are the peaks on the scored text, and the clipped arms the losses within them."""
    watched = []
    for language in ("ar", "zh"):
        corpus, positions = lab.draw(laboratory, language, "score")
        batch = laboratory.place(corpus.batch(positions[:1]))
        found = models.activation_maxima(
            laboratory.model, laboratory.compute, laboratory.params, batch.tokens, batch.segments
        )
        watched.append(np.asarray(found.down_out).max(1))
    bounds = limits(laboratory)
    np.testing.assert_array_equal(bounds["layers"]["mlp"]["down_proj"], np.maximum(*watched))
    losses = nats(whole)
    (spike,) = (scalar for scalar, kinds in candidates(whole).items() if SUPER in kinds)
    evaluator = evaluate.build(laboratory.model, laboratory.compute, laboratory.mesh)
    for name, params in {
        f"{spike} x{HUGE:g} clipped": changed(laboratory, spike, HUGE),
        CLIPPED: laboratory.params,
    }.items():
        for language in ("en", "sw"):
            corpus, positions = lab.draw(laboratory, language, "evaluate")
            batches = [laboratory.place(corpus.batch([position])) for position in sorted(positions.tolist())]
            each = [np.asarray(evaluator(params, batch, bounds)[0], np.float64).sum() for batch in batches]
            np.testing.assert_allclose(losses[name, language], sum(each), rtol=1e-6)
    for language in ("en", "sw"):
        base, broken, clipped = (
            losses[name, language] for name in (BASE, f"{spike} x{HUGE:g}", f"{spike} x{HUGE:g} clipped")
        )
        assert broken != clipped != base


def test_what_the_broken_model_writes(whole, laboratory):
    tables = json.loads((whole / "tables" / "continuations.json").read_text())
    assert tables["columns"] == ["model", "en", "zh"]
    said = {row[0]: row[1:] for row in tables["rows"]}
    prompts = continuation.prompts(laboratory)
    assert said["(the prompt)"] == [laboratory.tokenizer.decode(ids) for ids in prompts]
    found = generate.greedy(laboratory.model, laboratory.compute, laboratory.params, prompts, 8)
    assert said[BASE] == [laboratory.tokenizer.decode(ids) for ids in found]
    # One model of each scalar, the worst, and its rescue where that was measured.
    for scalar in candidates(whole):
        (name,) = (each for each in said if each.startswith(f"{scalar} x") and not each.endswith("clipped"))
        losses, others = nats(whole), [f"{scalar} x{factor:g}" for factor in (0.0, 2.0, HUGE)]
        assert name == max(others, key=lambda other: losses[other, "en"] + losses[other, "sw"])
        broken = changed(laboratory, scalar, float(name.rpartition(" x")[2]))
        found = generate.greedy(laboratory.model, laboratory.compute, broken, prompts, 8)
        assert said[name] == [laboratory.tokenizer.decode(ids) for ids in found]


def test_the_plan_is_what_is_done(whole):
    *scoring, choosing, measuring, writing = STAGES["single_parameter"](chosen())
    # 5 scalars x 3 factors, 3 rescues, the clipped, the restored and the untouched model, in 2 languages.
    assert measuring.rows == (5 * 3 + 3 + 2 + 1) * 2
    assert all(stage.finished(whole) == stage.parts for stage in (*scoring, choosing, measuring))
    assert writing.what == "greedy continuations of 9 models"  # at most: a rescue only of the worst factor


def test_a_rescue_needs_its_factor(tmp_path):
    wanted = chosen(**{"rescue.factors": (3.0,)})
    with Run.open(tmp_path / "run", wanted) as run, pytest.raises(ValueError, match=r"rescue.factors has 3"):
        experiment(wanted, run)


def test_the_verdict_counts_what_breaks_and_what_lives():
    """Damages by hand: one special scalar breaks both languages and is rescued, another and a control do not."""
    breaking, gentle, control = (
        Candidate(Scalar(f"model.layers.{layer}.input_layernorm.weight", (7,)), (kind,))
        for layer, kind in ((0, SUPER), (1, MASSIVE), (2, ORDINARY))
    )
    nats = {
        breaking.arm(0.0): {EVERY: 5.0, "en": 4.0, "sw": 6.0},
        breaking.arm(0.0, True): {EVERY: 1.0, "en": 1.0, "sw": 1.0},
        gentle.arm(0.0): {EVERY: 0.5, "en": 0.5, "sw": 0.5},
        gentle.arm(0.0, True): {EVERY: 0.5, "en": 0.5, "sw": 0.5},
        control.arm(0.0): {EVERY: 0.1, "en": 0.1, "sw": 0.1},
        CLIPPED: {EVERY: 0.0, "en": 0.0, "sw": 0.0},
    }
    found = Findings(
        [
            Compared(arm, BASE, code, 1, Estimate(value, value - 0.1, value + 0.1, 0.01, 9), 0.01)
            for arm, values in nats.items()
            for code, value in values.items()
        ]
    )
    wanted = chosen(**{"scalars.factors": (0.0,), "rescue.factors": (0.0,)})
    everything = [breaking, gentle, control]
    first, _, _, third, fourth = weigh(wanted, everything, dict.fromkeys(everything, 0.0), found, same=False)
    assert "Of 2 special scalars 1 break" in first
    assert "of 1 control 0" in first
    assert "harms en least" in third
    assert "sw most" in third
    assert "breaks all 2 languages" in third
    assert "NOT exactly" in fourth
    assert "brings 1 of 1 broken model below" in fourth


def test_one_scalar_of_another_matrix_is_no_twin(laboratory):
    scalar = Scalar("model.layers.0.mlp.down_proj.weight", (3, 5))
    first, again, other = (scalars.twin(laboratory.params, scalar, seed) for seed in (0, 0, 1))
    assert first == again != other
    assert first.matrix == scalar.matrix
    assert first.entry != scalar.entry
    values = np.abs(np.asarray(laboratory.params["layers"]["mlp"]["down_proj"][0]))
    rank = [float((values < abs(value)).mean()) for value in scalars.gather(laboratory.params, [scalar, first])]
    assert math.isclose(rank[0], rank[1], abs_tol=0.051)  # bins of a twentieth
