"""ActivationMaxima against the same decoder in NumPy, what is read off them, and bounds on what weights give."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lingregions import loss, models
from lingregions import mesh as meshes
from lingregions import tree as trees
from lingregions.corpus.batch import Batch
from lingregions.models import ActivationMaxima, Compute, DecoderConfig

CONFIG = DecoderConfig(vocab=20, embed=8, mlp=12, layers=2, heads=4, kv_heads=2, head_dim=2, context=64, std=0.5)
L, D, F = 2, 8, 12
COMPUTE = Compute(block=4)
SEGMENTS = np.int32([[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 2, 2, 0, 0], [0, 0, 0, 0, 0, 0, 0], [1, 2, 2, 2, 2, 2, 2]])
TOKENS = np.random.default_rng(0).integers(0, 20, SEGMENTS.shape).astype(np.int32)
PROJECTIONS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
PROJECTIONS += ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
INSIDE = tuple(f"layers.{name}" for name in (*PROJECTIONS, "input_layernorm", "post_attention_layernorm"))


@pytest.fixture(scope="module")
def params() -> trees.Tree:
    return models.initialize(CONFIG, jax.random.key(5))


def reference(params: trees.Tree, tokens: np.ndarray, bounds: dict[str, Any] | None = None) -> dict[str, np.ndarray]:
    """What one document goes through, float64: the residual stream [L + 1, T, D], down_proj's input and output."""
    weights = {path: np.asarray(leaf, np.float64) for path, leaf in trees.walk(params)}
    bounds = bounds or {}
    T, N, K, H = len(tokens), CONFIG.heads, CONFIG.kv_heads, CONFIG.head_dim
    turn = np.arange(T)[:, None] * CONFIG.rope_theta ** -(np.arange(0, H, 2) / H)

    def clip(values: np.ndarray, name: str, layer: int) -> np.ndarray:
        bound = np.asarray(bounds.get(f"layers.{name}", [np.inf] * L))[layer]
        return np.clip(values, -bound, bound)

    def project(values: np.ndarray, name: str, layer: int) -> np.ndarray:
        return clip(values @ weights[f"layers.{name}"][layer].T, name, layer)

    def norm(values: np.ndarray, name: str, layer: int) -> np.ndarray:
        scaled = values / np.sqrt((values**2).mean(-1, keepdims=True) + CONFIG.eps)
        return clip(scaled * weights[f"layers.{name}"][layer], name, layer)

    def rotate(values: np.ndarray) -> np.ndarray:
        first, second = np.split(values, 2, axis=-1)
        cos, sin = np.cos(turn)[:, None], np.sin(turn)[:, None]
        return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)

    x = weights["embed_tokens"][tokens]
    found: dict[str, list[np.ndarray]] = {"residual": [x], "down_in": [], "down_out": []}
    for layer in range(L):
        normed = norm(x, "input_layernorm", layer)
        q, k, v = (project(normed, name, layer).reshape(T, -1, H) for name in PROJECTIONS[:3])
        q, k, v = rotate(q), np.repeat(rotate(k), N // K, axis=1), np.repeat(v, N // K, axis=1)
        logits = np.einsum("tnh,snh->nts", q, k) / math.sqrt(H) + np.triu(np.full((T, T), -np.inf), 1)
        mixed = np.exp(logits - logits.max(-1, keepdims=True))
        mixed = np.einsum("nts,snh->tnh", mixed / mixed.sum(-1, keepdims=True), v).reshape(T, N * H)
        x = x + project(mixed, "self_attn.o_proj", layer)
        normed = norm(x, "post_attention_layernorm", layer)
        gate = project(normed, "mlp.gate_proj", layer)
        hidden = gate / (1 + np.exp(-gate)) * project(normed, "mlp.up_proj", layer)
        out = project(hidden, "mlp.down_proj", layer)
        x = x + out
        for key, values in {"residual": x, "down_in": hidden, "down_out": out}.items():
            found[key].append(values)
    return {key: np.stack(values) for key, values in found.items()}


def expected(params: trees.Tree, bounds: dict[str, Any] | None = None) -> ActivationMaxima:
    """The largest magnitudes over the documents of SEGMENTS, each of which goes through the reference alone."""
    documents = [
        reference(params, row[segments == number], bounds)
        for row, segments in zip(TOKENS, SEGMENTS, strict=True)
        for number in np.unique(segments[segments > 0])
    ]
    sizes = {key: [np.abs(each[key]).max(axis=1) for each in documents] for key in documents[0]}
    return ActivationMaxima(**{key: np.max(each, axis=0) for key, each in sizes.items()})


def near(found: ActivationMaxima, wanted: ActivationMaxima) -> None:
    for name in ActivationMaxima._fields:
        np.testing.assert_allclose(getattr(found, name), getattr(wanted, name), rtol=2e-5, atol=2e-6, err_msg=name)


def measure(params: trees.Tree, bounds: trees.Tree | None = None, tokens: np.ndarray = TOKENS) -> ActivationMaxima:
    return models.activation_maxima(CONFIG, COMPUTE, params, tokens, SEGMENTS, bounds)


# ActivationMaxima.


def test_peaks_are_those_of_the_reference(params: trees.Tree) -> None:
    found = measure(params)
    assert [each.shape for each in found] == [(L + 1, D), (L, F), (L, D)]
    assert {each.dtype for each in found} == {jnp.dtype("float32")}
    near(found, expected(params))


def test_padding_does_not_count(params: trees.Tree) -> None:
    # The token of the padding has a huge embedding, and is nowhere else.
    tokens = np.where(SEGMENTS == 0, 19, TOKENS % 19).astype(np.int32)
    huge = params | {"embed_tokens": params["embed_tokens"].at[19].set(1e4)}
    same = [measure(each, tokens=tokens) for each in (params, huge)]
    for one, other in zip(*same, strict=True):
        np.testing.assert_array_equal(one, other)
    assert measure(huge, tokens=np.full_like(tokens, 19)).residual.max() >= 1e4


def test_eight_devices_see_the_peaks_of_one(params: trees.Tree, mesh: jax.sharding.Mesh) -> None:
    placed = jax.device_put(params, meshes.shardings(models.declare(CONFIG), mesh))
    with meshes.use(mesh):
        tokens, segments = (meshes.place(each, mesh) for each in (TOKENS, SEGMENTS))
        found = models.activation_maxima(CONFIG, COMPUTE, placed, tokens, segments)
    assert all(each.sharding.is_fully_replicated for each in found)
    near(found, expected(params))


def test_half_precision_gives_float32_peaks(params: trees.Tree) -> None:
    found = models.activation_maxima(CONFIG, dataclasses.replace(COMPUTE, dtype="bfloat16"), params, TOKENS, SEGMENTS)
    assert {each.dtype for each in found} == {jnp.dtype("float32")}
    apart = [np.abs(one - other).max() for one, other in zip(found, expected(params), strict=True)]
    assert all(1e-4 < each < 0.3 for each in apart), apart


# What is read off them.


def test_a_planted_super_weight_is_found(params: trees.Tree) -> None:
    """Layer 1 drives channel 7 of its MLP hard, and one weight carries it to dimension 3."""
    mlp = params["layers"]["mlp"]
    planted = {
        "gate_proj": mlp["gate_proj"].at[1, 7].multiply(100),
        "up_proj": mlp["up_proj"].at[1, 7].multiply(100),
        "down_proj": mlp["down_proj"].at[1, 3, 7].set(40.0),
    }
    changed = params | {"layers": params["layers"] | {"mlp": planted}}
    assert models.super_weights(measure(params)) == []
    assert models.super_weights(measure(changed)) == [("model.layers.1.mlp.down_proj.weight", (3, 7))]
    assert models.massive_dimensions(measure(changed), 1) == [3]


def test_a_planted_massive_dimension_is_found(params: trees.Tree) -> None:
    planted = params | {"embed_tokens": params["embed_tokens"].at[:, 5].set(-2000.0).at[:, 2].set(900.0)}
    assert models.massive_dimensions(measure(planted), 2) == [5, 2]


def drawn(spikes: dict[int, tuple[float, float]]) -> ActivationMaxima:
    """Four layers with maxima of 2, and in some layers one spike in (channel 10 + l) and one out (channel l)."""
    found = ActivationMaxima(np.full((5, 6), 1.0), np.full((4, 20), 2.0), np.full((4, 6), 2.0))
    for layer, (into, out) in spikes.items():
        found.down_in[layer, 10 + layer], found.down_out[layer, layer] = into, out
    return found


def test_candidates_need_both_spikes_and_come_most_extreme_first() -> None:
    maxima = drawn({0: (200.0, 200.0), 1: (1e5, 199.0), 2: (300.0, 400.0), 3: (199.0, 1e5)})
    layers = [f"model.layers.{layer}.mlp.down_proj.weight" for layer in range(4)]
    assert models.super_weights(maxima) == [(layers[2], (2, 12)), (layers[0], (0, 10))]
    assert models.super_weights(maxima, 201 / 2) == [(layers[2], (2, 12))]
    every = models.super_weights(maxima, 99.0)
    assert [name for name, _ in every] == [layers[1], layers[3], layers[2], layers[0]]


def test_massive_dimensions_by_hand() -> None:
    residual = np.ones((3, 5))
    residual[0, 4], residual[1, 1], residual[2, 3], residual[2, 0] = 7, 9, 7, 8
    maxima = ActivationMaxima(residual, np.ones((2, 4)), np.ones((2, 5)))
    assert models.massive_dimensions(maxima, 4) == [1, 0, 3, 4]
    for count in (0, 6):
        with pytest.raises(ValueError, match="count must be between 1 and the embed size"):
            models.massive_dimensions(maxima, count)


def test_a_model_that_overflows_has_no_extreme(params: trees.Tree) -> None:
    broken = measure(params | {"embed_tokens": params["embed_tokens"].at[:, 1].set(jnp.inf)})
    with pytest.raises(ValueError, match="NaN or infinity"):
        models.super_weights(broken)
    with pytest.raises(ValueError, match="NaN or infinity"):
        models.massive_dimensions(broken, 1)


# Limits.


def bounds(bound: float, paths: tuple[str, ...] = INSIDE) -> trees.Tree:
    return trees.unflatten({path: np.full(L, bound, np.float32) for path in paths})


@functools.cache
def losses() -> Any:
    return jax.jit(loss.losses, static_argnums=(0, 1))


def nats(params: trees.Tree, bounds: trees.Tree | None) -> np.ndarray:
    batch = Batch(TOKENS, SEGMENTS, np.ones_like(TOKENS))
    return np.asarray(losses()(CONFIG, COMPUTE, params, batch, bounds)[0])


def test_infinite_bounds_change_nothing(params: trees.Tree) -> None:
    everywhere = bounds(math.inf) | {"norm": np.float32(math.inf)}
    np.testing.assert_array_equal(nats(params, everywhere), nats(params, None))


def test_without_bounds_the_program_has_no_clip(params: trees.Tree) -> None:
    batch = Batch(TOKENS, SEGMENTS, np.ones_like(TOKENS))
    lower = functools.partial(jax.jit(loss.nll, static_argnums=(0, 1)).lower, CONFIG, COMPUTE, params, batch)
    plain = lower().as_text()
    assert lower(None).as_text() == plain
    assert "minimum" not in plain
    assert "minimum" in lower(bounds(1.0)).as_text() or "clamp" in lower(bounds(1.0)).as_text()


def test_bounds_clip_what_their_weights_give(params: trees.Tree) -> None:
    """Every weight has another limit, and each of them is felt."""
    bounds = {path: np.float32([0.4 + 0.02 * i, 0.6 - 0.02 * i]) for i, path in enumerate(INSIDE)}
    bounds["layers.mlp.down_proj"] = np.float32([0.02, 0.01])  # what enters is clipped already
    wanted = expected(params, bounds)
    near(measure(params, trees.unflatten(bounds)), wanted)
    for path in INSIDE:
        without = expected(params, {other: bound for other, bound in bounds.items() if other != path})
        assert max(np.abs(one - other).max() for one, other in zip(without, wanted, strict=True)) > 1e-3, path


def test_a_small_limit_bounds_the_peaks(params: trees.Tree) -> None:
    bound = np.float32([math.inf, 0.01])
    found, free = (measure(params, each) for each in ({"layers": {"mlp": {"down_proj": bound}}}, None))
    assert found.down_out[1].max() == np.float32(0.01) < free.down_out[1].min()
    np.testing.assert_array_equal(found.down_out[0], free.down_out[0])
    np.testing.assert_array_equal(found.down_in, free.down_in)


def test_the_limit_of_the_last_norm(params: trees.Tree) -> None:
    step = jax.jit(models.hidden, static_argnums=(0, 1, 5))
    run = functools.partial(step, CONFIG, COMPUTE, params, TOKENS, SEGMENTS, False)
    free, bounded = run()[0], run({"norm": np.float32(0.5)})[0]
    np.testing.assert_allclose(bounded, np.clip(free, -0.5, 0.5), rtol=1e-6)
    assert np.abs(free).max() > 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"layers": {"mlp": {"down": np.ones(L)}}}, "'layers.mlp.down' is no projection or norm of the model"),
        ({"embed_tokens": np.float32(1)}, "'embed_tokens' is no projection or norm"),
        ({"layers": {"mlp": {"down_proj": np.float32(1)}}}, r"shape \(\), expected \(2,\)"),
        ({"norm": np.ones(D)}, r"shape \(8,\), expected \(\)"),
    ],
)
def test_bounds_that_would_be_ignored_are_refused(params: trees.Tree, wrong: trees.Tree, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measure(params, wrong)
