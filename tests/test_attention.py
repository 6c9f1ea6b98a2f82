"""Attention on every platform: what "auto" takes, and that all implementations give the same numbers.

The Pallas kernels run interpreted here; that they compile for a TPU is what test_tpu.py and test_plan.py hold.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from lingregions import mesh as meshes
from lingregions import models
from lingregions.models import attention, splash


def draw(B: int, T: int, N: int, K: int, H: int, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    shapes = ((B, T, N, H), (B, T, K, H), (B, T, K, H), (B, T, N, H))
    return [jnp.asarray(rng.normal(size=shape).astype(np.float32), dtype) for shape in shapes]


def documents(B: int, T: int) -> jax.Array:
    """Two documents and padding behind them, cut elsewhere in every sample."""
    ends = np.array([[T // 3 + sample, T - 5 * sample - 2] for sample in range(B)])
    place = np.arange(T)[None]
    return jnp.asarray(np.where(place < ends[:, :1], 1, np.where(place < ends[:, 1:], 2, 0)).astype(np.int32))


def real(segments: jax.Array, ndim: int) -> np.ndarray:
    """One where a token is no padding: [B, T, 1, ...]."""
    return np.asarray(segments != 0, np.float32).reshape(*segments.shape, *[1] * (ndim - 2))


def both(implementation: str, mesh=None):
    """The values and the three gradients, jitted, on a mesh in use."""

    def run(query, key, value, cotangent, segments):
        def attend(*arrays):
            return attention.attend(*arrays, segments, implementation, 128)

        out, pull = jax.vjp(attend, query, key, value)
        return out, *pull(cotangent)

    def call(*arrays):
        with meshes.use(mesh):
            return jax.jit(run)(*arrays)

    return call


# 128 tokens are one block; 200 are filled up to 256, two blocks of 256 or one; heads of 16 and 64 fill no register.
@pytest.mark.parametrize(
    ("T", "N", "K", "H"), [(128, 2, 2, 64), (200, 4, 2, 16), (40, 4, 1, 16)], ids=["one", "padded, grouped", "short"]
)
def test_the_kernels_give_the_values_and_gradients_of_one_einsum(T, N, K, H):
    arrays, segments = draw(2, T, N, K, H), documents(2, T)
    weight = real(segments, 4)
    expected, found = (both(name)(*arrays[:3], arrays[3] * weight, segments) for name in ("reference", "splash"))
    for name, ours, theirs in zip(("values", "query", "key", "value"), found, expected, strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_allclose(np.asarray(ours) * weight, np.asarray(theirs) * weight, atol=2e-5, err_msg=name)


# 2 x 4: two heads and one kv head a device; 8 ways: the two kv heads are repeated; heads that do not divide stay whole.
@pytest.mark.parametrize(
    ("sizes", "N", "K"),
    [((1, 2, 4), 8, 4), ((1, 1, 8), 8, 2), ((2, 1, 4), 6, 2)],
    ids=["whole", "repeated", "undivided"],
)
def test_on_a_mesh_every_device_attends_with_its_own_heads(sizes, N, K):
    arrays, segments = draw(4, 128, N, K, 16), documents(4, 128)
    expected = both("reference")(*arrays, segments)
    found = both("splash", meshes.build(*sizes))(*arrays, segments)
    weight = real(segments, 4)
    for name, ours, theirs in zip(("values", "query", "key", "value"), found, expected, strict=True):
        np.testing.assert_allclose(np.asarray(ours) * weight, np.asarray(theirs) * weight, atol=2e-5, err_msg=name)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "parts", "times"), [(8, 8, 8, 1), (8, 2, 8, 4), (8, 1, 4, 4), (12, 3, 4, 4), (64, 8, 16, 2)]
)
def test_kv_heads_are_repeated_as_often_as_it_takes(heads, kv_heads, parts, times):
    assert splash._times(heads, kv_heads, parts) == times


def test_bfloat16_is_close():
    arrays, segments = draw(1, 128, 2, 1, 64, jnp.bfloat16), jnp.ones((1, 128), jnp.int32)
    expected, found = (both(name)(*arrays, segments) for name in ("reference", "splash"))
    for ours, theirs in zip(found, expected, strict=True):
        ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
        assert np.linalg.norm(ours - theirs) < 0.01 * np.linalg.norm(theirs)


# What "auto" takes.


@pytest.mark.parametrize(
    ("platform", "dtype", "expected"),
    [
        ("cpu", "float32", "blocked"),
        ("cpu", "bfloat16", "blocked"),
        ("tpu", "float32", "splash"),
        ("tpu", "bfloat16", "splash"),
        ("gpu", "float32", "blocked"),
        ("gpu", "bfloat16", "cudnn"),
    ],
)
def test_auto_takes_what_suits_the_platform_of_the_mesh_in_use(platform, dtype, expected):
    mesh = AbstractMesh(
        (1, 2, 1),
        meshes.MESH_AXES,
        axis_types=(AxisType.Auto,) * 3,
        abstract_device=AbstractDevice(device_kind="any", num_cores=1, platform=platform),
    )
    with jax.sharding.use_abstract_mesh(mesh):
        assert attention._resolve("auto", jnp.dtype(dtype)) == expected
        assert attention._resolve("reference", jnp.dtype(dtype)) == "reference"


def test_auto_is_the_default_and_blocked_where_no_mesh_is_in_use():
    assert models.Compute().attention == "auto"
    assert attention._resolve("auto", jnp.dtype("float32")) == "blocked"


def test_cudnn_that_cannot_run_is_refused_by_name_and_replaced_by_auto(monkeypatch):
    arrays, segments = draw(1, 8, 2, 2, 16, jnp.bfloat16), jnp.ones((1, 8), jnp.int32)
    with pytest.raises(RuntimeError, match="attention 'cudnn' cannot run here .*; 'auto' takes what can"):
        both("cudnn")(*arrays, segments)
    monkeypatch.setattr(meshes, "platform", lambda: "gpu")
    with pytest.warns(UserWarning, match="'blocked' does it instead"):
        found = both("auto")(*arrays, segments)
    for ours, theirs in zip(found, both("blocked")(*arrays, segments), strict=True):
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))


def test_splash_serves_the_decoder():
    config = models.PRESETS["tiny"]
    params = models.initialize(config, jax.random.key(0))
    tokens, segments = np.arange(80, dtype=np.int32).reshape(2, 40), documents(2, 40)
    run = jax.jit(models.hidden, static_argnums=(0, 1))
    found = [run(config, models.Compute(attention=each), params, tokens, segments)[0] for each in ("splash", "auto")]
    weight = real(segments, 3)
    np.testing.assert_allclose(np.asarray(found[0]) * weight, np.asarray(found[1]) * weight, atol=2e-5)


# Windows and caps.


def seen_by_hand(query, key, value, segments, window, softcap, scale):
    """Attention of each query alone, in float64."""
    query, key, value = (np.asarray(each, np.float64) for each in (query, key, value))
    out = np.zeros(query.shape)
    for b, t, n in np.ndindex(query.shape[:3]):
        k = n * key.shape[2] // query.shape[2]
        seen = [s for s in range(max(0, t + 1 - window), t + 1) if segments[b, s] == segments[b, t]]
        logits = scale * np.array([query[b, t, n] @ key[b, s, k] for s in seen])
        weights = np.exp(softcap * np.tanh(logits / softcap))
        out[b, t, n] = (weights / weights.sum()) @ value[b, seen, k]
    return out


def windowed(implementation: str, windows, kind=None, softcap=1.5):
    """The values and the three gradients with a window, a cap and a scale."""

    def run(query, key, value, cotangent, segments):
        def attend(*arrays):
            how = attention.Logits(0.4, softcap)
            place = None if kind is None else jnp.int32(kind)
            return attention.attend(*arrays, segments, implementation, 16, None, how, windows, place)

        out, pull = jax.vjp(attend, query, key, value)
        return out, *pull(cotangent)

    return jax.jit(run)


@pytest.mark.parametrize("windows", [((5,), None), ((None, 5), 1), ((5, None), 1)], ids=["one", "local", "global"])
@pytest.mark.parametrize("implementation", ["reference", "blocked", "splash"])
def test_windows_and_caps_are_those_of_the_formula(implementation, windows):
    arrays, segments = draw(2, 40, 4, 2, 8), documents(2, 40)
    weight = real(segments, 4)
    arrays = [*arrays[:3], arrays[3] * weight]
    window = windows[0][windows[1] or 0] or 40
    expected = seen_by_hand(*arrays[:3], np.asarray(segments), window, 1.5, 0.4)
    found = windowed(implementation, *windows)(*arrays, segments)
    np.testing.assert_allclose(np.asarray(found[0]) * weight, expected * weight, atol=3e-6)
    # The hand-written gradients are those that JAX finds for the reference.
    reference = windowed("reference", (window,))(*arrays, segments)
    for ours, theirs in zip(found[1:], reference[1:], strict=True):
        np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), atol=2e-5)


def test_auto_takes_no_kernel_that_knows_no_cap():
    arrays, segments = draw(1, 8, 2, 2, 4, jnp.bfloat16), jnp.ones((1, 8), jnp.int32)
    with pytest.raises(RuntimeError, match="'cudnn' cannot run here .*it knows no cap of the logits"):
        attention.attend(*arrays[:3], segments, "cudnn", 8, None, attention.Logits(None, 2.0))
