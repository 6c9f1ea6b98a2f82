"""Every family equals transformers in float64 (golden/families.py), and what it declares is what is done to it."""

import functools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import families
from safetensors import safe_open

from lingregions import generate, loss, models, perturb
from lingregions import mesh as meshes
from lingregions import tree as trees
from lingregions.corpus.batch import Batch
from lingregions.models import convert, roles
from lingregions.models.compute import Compute
from lingregions.models.huggingface import complete_config
from lingregions.scoring import Definition, Scorer

LOGITS, GRADIENTS = 1e-4, 1e-4  # what was promised: absolute, and relative L2 of every tensor


@functools.cache
def read() -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    with safe_open(families.FILE, "np") as file:
        about = json.loads(file.metadata()["about"])
        return {key: file.get_tensor(key) for key in file.keys()}, about["cases"]  # noqa: SIM118


class Tensors:
    """Weights of a recipe, as a folder would hold them."""

    where = "the recipe"

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        self.arrays = arrays
        self.shapes = {name: values.shape for name, values in arrays.items()}

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        return self.arrays[name][index]


@functools.cache
def load(name: str) -> tuple[Any, trees.Tree, Batch, dict[str, np.ndarray]]:
    """The config, the parameters, the text and the tensors of a case."""
    case, about = families.CASES[name], read()[1][name]
    arrays = families.weights(
        {tensor: each[0] for tensor, each in about["tensors"].items()}, families.offset(case), about["seed"]
    )
    config = models.parse(json.loads(json.dumps(case)))
    places = meshes.shardings(models.declare(config), meshes.build(devices=jax.devices()[:1]))
    tokens = families.text(case, about["seed"])
    ones = np.ones_like(tokens)
    return config, convert.load(Tensors(arrays), config, places), Batch(tokens, ones, ones), arrays


def logits(config: Any, params: trees.Tree, tokens: np.ndarray, compute: Compute) -> np.ndarray:
    hidden, _ = jax.jit(models.hidden, static_argnums=(0, 1))(config, compute, params, tokens, np.ones_like(tokens))
    found = np.asarray(jnp.einsum("btd,vd->btv", hidden, models.head(config, params))[0], np.float64)
    cap = models.logit_softcap(config)
    return found if cap is None else cap * np.tanh(found / cap)


@pytest.fixture(params=list(families.CASES))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_every_family_has_a_case() -> None:
    cased = {case["model_type"] for case in families.CASES.values()}
    assert cased == set(models.ARCHITECTURES)
    assert read()[1].keys() == families.CASES.keys()


@pytest.mark.parametrize("attention", ["blocked", "reference"])
def test_logits(name: str, attention: str) -> None:
    config, params, batch, _ = load(name)
    found = logits(config, params, batch.tokens, Compute(attention=attention, block=16))[:: families.EVERY]
    assert np.ptp(read()[0][name]) > 2
    np.testing.assert_allclose(found, read()[0][name], atol=LOGITS, rtol=0)


def test_loss_and_gradients(name: str) -> None:
    config, params, batch, arrays = load(name)
    about = read()[1][name]
    compute = Compute(block=16, chunk=13)

    def objective(params: trees.Tree) -> tuple[jax.Array, jax.Array]:
        found = loss.nll(config, compute, params, batch)
        return jnp.sum(found.nll), found.nll

    def add(path: str, theta: jax.Array, gradient: jax.Array, totals: loss.Totals) -> loss.Totals:
        return {"sum": totals["sum"] + gradient}

    @jax.jit
    def both(params: trees.Tree) -> tuple[trees.Tree, jax.Array, dict[str, loss.Totals]]:
        zeros = {path: {"sum": jnp.zeros_like(leaf)} for path, leaf in trees.walk(params)}
        summed = loss.accumulate(config, compute, params, zeros, batch, jnp.float32(1), add)[0]
        return *jax.grad(objective, has_aux=True)(params), summed

    slopes, nll, summed = both(params)
    np.testing.assert_allclose(float(nll[0]), about["nll"], rtol=1e-5)
    for path, leaf in trees.walk(slopes):  # the gradient of training, and that of scoring
        assert np.linalg.norm(summed[path]["sum"] - leaf) <= 1e-5 * np.linalg.norm(leaf), path
    found = {tensor: np.zeros(values.shape) for tensor, values in arrays.items()}
    for path, each in trees.walk(models.declare(config)):
        leaf = np.asarray(trees.flatten(slopes)[path], np.float64)
        for layer, (tensor, first) in enumerate(each.files()):
            found[tensor][first : first + each.matrix[0]] = leaf[layer] if each.stacked else leaf
    for tensor, values in found.items():
        expected = np.array(about["tensors"][tensor][1])
        assert expected[0] > 0
        distance = np.abs(np.array(families.projections(tensor, values)) - expected)
        assert (distance <= GRADIENTS * expected[0]).all(), (tensor, distance / expected[0])


def test_import_export_import(name: str, tmp_path: Any, lone_mesh: jax.sharding.Mesh) -> None:
    config, params, _, arrays = load(name)
    convert.export(params, config, tmp_path / "out")
    with safe_open(next((tmp_path / "out").glob("*.safetensors")), "np") as file:
        assert set(file.keys()) == set(arrays)
        for tensor, values in arrays.items():
            np.testing.assert_array_equal(file.get_tensor(tensor), values)
    raw = json.loads((tmp_path / "out" / "config.json").read_text())
    again = models.parse(complete_config(tmp_path / "out", raw))
    assert again == config
    found = convert.load(tmp_path / "out", again, meshes.shardings(models.declare(again), lone_mesh))
    jax.tree.map(np.testing.assert_array_equal, found, params)


def test_unknown_keys_are_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match="not known here and might change the maths: new_maths"):
        models.parse(families.CASES[name] | {"new_maths": 1})
    with pytest.raises(ValueError, match=r"maths that is not implemented: attention_dropout = 0.1"):
        models.parse(families.CASES[name] | {"attention_dropout": 0.1})


def test_what_generation_is_set_to_changes_nothing(name: str) -> None:
    given = {"do_sample": True, "temperature": 0.9, "top_p": 0.6, "max_length": 4096, "forced_eos_token_id": 2}
    assert models.parse(families.CASES[name] | given) == models.parse(families.CASES[name])


def test_windows_and_layers_are_as_the_family_has_them() -> None:
    kinds = {name: [kind.window for kind in load(name)[0].kinds] for name in ("mistral", "qwen2 window", "gemma2")}
    assert kinds == {"mistral": [7, 7, 7], "qwen2 window": [None, 5, 5], "gemma2": [7, None, 7]}
    bases = [(kind.window, kind.theta) for kind in load("gemma3")[0].kinds]
    assert bases == [(7, 1e4)] * 5 + [(None, 1e6)] + [(7, 1e4)]
    assert [kind.theta for kind in load("smollm3")[0].kinds] == [2e6, 2e6, 2e6, None, 2e6]


def test_writing_stops_where_the_frequencies_would_change() -> None:
    config, params, batch, _ = load("phi3 long")
    with pytest.raises(ValueError, match=r"9 tokens and 30 more exceed 32 tokens, .* change \(longrope\)"):
        generate.greedy(config, Compute(block=16), params, [batch.tokens[0, :9].tolist()], 30)


# A gain 1 + w.


def norm_of_gemma() -> tuple[Any, trees.Tree, Batch, trees.Tree]:
    config, params, batch, _ = load("gemma2")
    gains = roles.restrict(params, "post_attention_norm")
    masks = jax.tree.map(lambda each: jnp.zeros(each.shape, bool).at[1, 3].set(True), gains)
    return config, jax.tree.map(jnp.copy, params), batch, masks


def test_a_gain_of_gemma_is_removed_by_minus_one() -> None:
    config, params, _, masks = norm_of_gemma()
    path = roles.path("post_attention_norm")
    before = np.asarray(trees.flatten(params)[path])
    offsets = models.offsets(config)
    assert {roles._role_at(each).kind for each in offsets} == {"norm"}  # type: ignore[union-attr]
    found = np.asarray(trees.flatten(perturb.apply(params, masks, "zero", offsets=offsets))[path])
    assert found[1, 3] == -1
    tripled = np.asarray(trees.flatten(perturb.apply(params, masks, "scale", 3.0, offsets=offsets))[path])
    np.testing.assert_allclose(tripled[1, 3], 3 * (1 + before[1, 3]) - 1, rtol=1e-6)
    for each in (found, tripled):
        np.testing.assert_array_equal(np.delete(each.ravel(), 16 + 3), np.delete(before.ravel(), 16 + 3))
    with perturb.applied(params, masks, "zero", offsets=offsets) as changed:
        assert float(trees.flatten(changed)[path][1, 3]) == -1
    np.testing.assert_array_equal(np.asarray(trees.flatten(params)[path]), before)


def test_a_score_multiplies_what_the_model_uses() -> None:
    config, params, batch, _ = norm_of_gemma()
    path = roles.path("post_attention_norm")
    gains = trees.flatten(params)[path]
    # w = 0 is the gain 1: its removal changes the loss, so its score is |1 x gradient|, not 0.
    params = trees.merge(params, roles.tree({"post_attention_norm": jnp.zeros_like(gains)}))
    scorer = Scorer(config, Compute(block=16), Definition(group=1), rules=["taylor"], micro=1)
    sums, tokens, _ = scorer.add(params, scorer.start(params), batch)
    scores = np.asarray(trees.flatten(scorer.finish(params, sums, tokens, "taylor"))[path])

    def objective(gains: jax.Array) -> jax.Array:
        whole = trees.merge(params, roles.tree({"post_attention_norm": gains}))
        return jnp.sum(loss.nll(config, Compute(block=16), whole, batch).nll)

    slope = np.asarray(jax.grad(objective)(jnp.zeros_like(gains))) / tokens
    assert np.abs(slope).min() > 0
    np.testing.assert_allclose(scores, np.abs(slope), rtol=2e-3, atol=1e-6)


# Super weights.


def planted(arrays: dict[str, np.ndarray], config: Any, layer: int, row: int, column: int) -> dict[str, np.ndarray]:
    """Drive a channel of one MLP hard, and let one weight carry it on: in the tensors, as files have them."""
    found = {tensor: values.copy() for tensor, values in arrays.items()}
    stem = f"model.layers.{layer}.mlp"
    if config.fused:
        found[f"{stem}.gate_up_proj.weight"][[column, config.mlp + column]] *= 1000
    else:
        for side in ("gate", "up"):
            found[f"{stem}.{side}_proj.weight"][column] *= 1000
    found[f"{stem}.down_proj.weight"][row, column] = 500
    return found


def test_a_planted_super_weight_is_named_as_its_file_has_it(name: str) -> None:
    config, params, batch, arrays = load(name)
    places = meshes.shardings(models.declare(config), meshes.build(devices=jax.devices()[:1]))
    for layer, row, column in ((1, 5, 19), (0, 11, 2)):
        changed = convert.load(Tensors(planted(arrays, config, layer, row, column)), config, places)
        without, found = (
            models.super_weights(models.activation_maxima(config, Compute(), each, batch.tokens, batch.segments))
            for each in (params, changed)
        )
        assert without == []
        assert found[0] == (f"model.layers.{layer}.mlp.down_proj.weight", (row, column))


# arXiv 2411.07191 and its code: (layer, [row, column]) of mlp.down_proj; a preset of the sizes of each model.
PUBLISHED = {
    "mistral-7b": [(1, 2070, 7310)],  # Mistral-7B
    "llama2-7b": [(2, 3968, 7003)],  # LLaMA-7B
    "llama2-13b": [(2, 2231, 2278), (2, 2231, 6939)],  # LLaMA-13B
    "llama3.1-8b": [(1, 788, 2427), (1, 1384, 2427), (1, 4062, 2427)],  # Llama-3-8B
}


@pytest.mark.parametrize("preset", PUBLISHED)
def test_published_super_weights_are_places_of_their_models(preset: str) -> None:
    declared = trees.flatten(models.declare(models.PRESETS[preset]))[roles.path("down")]
    assert declared.axes == ("layers", "embed", "mlp")
    for where in PUBLISHED[preset]:
        assert np.ravel_multi_index(where, declared.shape) >= 0
        tensor = roles.matrix_name("down", where[0])
        assert roles.locate(tensor) == (declared.path, where[0])
        assert declared.files()[where[0]] == (tensor, 0)
