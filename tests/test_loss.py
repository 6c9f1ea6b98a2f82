"""The loss against ten lines of NumPy in float64: sums of targets only, exact gradients, no array of all logits."""

import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lingregions import loss, models
from lingregions import mesh as meshes
from lingregions import tree as trees
from lingregions.corpus.batch import Batch
from lingregions.models import Compute, DecoderConfig, roles

CONFIG = DecoderConfig(vocab=40, embed=8, mlp=12, layers=2, heads=4, kv_heads=2, head_dim=2, context=64, std=0.5)
TIED = DecoderConfig(
    vocab=40, embed=8, mlp=12, layers=1, heads=2, kv_heads=1, head_dim=4, context=64, std=0.5, tied=True
)
B, T, D, V = 4, 10, 8, 40
DIFFERENTIATE = jax.jit(loss.differentiate, static_argnums=(0, 1))

SEGMENTS = np.int32(
    [
        [1, 1, 1, 1, 1, 1, 1, 1, 1, 1],
        [1, 1, 1, 2, 3, 3, 0, 0, 0, 0],  # the second document has one token
        [1, 2, 3, 4, 5, 6, 7, 8, 9, 10],  # all have
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    ]
)
TARGETS = [9, 2 + 0 + 1, 0, 0]


def draw(seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    tokens, sizes = rng.integers(0, V, (B, T)), rng.integers(0, 5, (B, T))
    return Batch(tokens.astype(np.int32), SEGMENTS, sizes.astype(np.int32))


def reference(hidden: Any, table: Any, batch: Batch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(nats, tokens, bytes) of each sample, target by target, in float64."""
    logits = np.asarray(hidden, np.float64) @ np.asarray(table, np.float64).T
    sums = np.zeros((3, len(logits)))
    for b, t in np.ndindex(logits.shape[0], logits.shape[1] - 1):
        if batch.segments[b, t] == batch.segments[b, t + 1] != 0:
            row = logits[b, t] - logits[b, t].max()
            sums[0, b] += np.log(np.exp(row).sum()) - row[batch.tokens[b, t + 1]]
            sums[1:, b] += 1, batch.bytes[b, t + 1]
    return sums[0], sums[1], sums[2]


# Targets.


def test_targets_by_hand():
    batch = Batch(np.int32([[7, 8, 9, 5, 6, 0]]), np.int32([[1, 1, 1, 2, 2, 0]]), np.zeros((1, 6), np.int32))
    following, counts = loss.targets(batch)
    assert np.asarray(counts).tolist() == [[True, True, False, True, False, False]]
    assert np.asarray(following)[np.asarray(counts)].tolist() == [8, 9, 6]


def test_the_first_token_never_follows_the_last():
    whole = Batch(np.int32([[7, 8]]), np.int32([[1, 1]]), np.zeros((1, 2), np.int32))
    assert np.asarray(loss.targets(whole)[1]).tolist() == [[True, False]]


@given(st.lists(st.integers(0, 3), min_size=2, max_size=12))
def test_every_neighbour_in_one_document_is_a_target(segments):
    batch = Batch(np.zeros((1, len(segments)), np.int32), np.int32([segments]), np.zeros((1, len(segments)), np.int32))
    pairs = itertools.pairwise(segments)
    assert np.asarray(loss.targets(batch)[1]).tolist()[0] == [one == other != 0 for one, other in pairs] + [False]


# The model's loss.


@pytest.fixture(scope="module")
def params():
    return models.initialize(CONFIG, jax.random.key(0))


@pytest.fixture(scope="module")
def expected(params):
    step = jax.jit(models.hidden, static_argnums=(0, 1))
    hidden, _ = step(CONFIG, Compute(), params, draw().tokens, draw().segments)
    return reference(hidden, params["lm_head"], draw())


def nll(config: DecoderConfig, params: trees.Tree, batch: Batch, **compute: Any) -> loss.Loss:
    return jax.jit(loss.nll, static_argnums=(0, 1))(config, Compute(**compute), params, batch)


def test_sums_are_those_of_the_reference(params, expected):
    found = nll(CONFIG, params, draw())
    np.testing.assert_allclose(np.asarray(found.nll), expected[0], rtol=2e-6)
    assert np.asarray(found.tokens).tolist() == expected[1].tolist() == TARGETS
    assert np.asarray(found.bytes).tolist() == expected[2].tolist()
    assert (found.nll.dtype, found.tokens.dtype, found.bytes.dtype) == (jnp.float32, jnp.int32, jnp.int32)


def test_a_sample_without_targets_is_zero_and_not_nan(params):
    found = nll(CONFIG, params, draw())
    assert [np.asarray(each)[2:].tolist() for each in found] == [[0, 0]] * 3


@pytest.mark.parametrize("chunk", [1, 3, 10, 256])
def test_the_chunk_changes_nothing_beyond_rounding(params, expected, chunk):
    found = nll(CONFIG, params, draw(), chunk=chunk)
    np.testing.assert_allclose(np.asarray(found.nll), expected[0], rtol=2e-6)


def test_bytes_are_those_of_the_targets_by_hand(params):
    sizes = np.int32([[1000, 1, 2, 100, 4, 5, 999, 999, 999, 999]])
    batch = Batch(*(each[1:2] for each in draw()))._replace(bytes=sizes)
    # Targets are the second and third token of the first document, and the last of the third.
    assert np.asarray(nll(CONFIG, params, batch).bytes).tolist() == [1 + 2 + 5]


def test_half_precision_keeps_a_float32_loss(params, expected):
    found = nll(CONFIG, params, draw(), dtype="bfloat16")
    assert found.nll.dtype == jnp.float32
    np.testing.assert_allclose(np.asarray(found.nll), expected[0], rtol=0.03)


def test_eight_devices_give_what_one_gives(params, expected, mesh):
    placed = jax.device_put(params, meshes.shardings(models.declare(CONFIG), mesh))
    with jax.set_mesh(mesh):
        found = nll(CONFIG, placed, meshes.place(draw(), mesh))
    np.testing.assert_allclose(np.asarray(found.nll), expected[0], rtol=2e-6)
    assert np.asarray(found.tokens).tolist() == TARGETS


@pytest.mark.parametrize("config", [CONFIG, TIED], ids=["untied", "tied"])
def test_every_gradient_is_that_of_a_plain_loss(config):
    params, batch = models.initialize(config, jax.random.key(1)), draw(1)
    weight = jnp.arange(1.0, B + 1)

    def ours(params):
        return jnp.sum(loss.nll(config, Compute(chunk=4), params, batch).nll * weight)

    def plain(params):
        hidden, _ = models.hidden(config, Compute(attention="reference"), params, batch.tokens, batch.segments)
        scores = jax.nn.log_softmax(jnp.einsum("btd,vd->btv", hidden, models.head(config, params)))
        each = jnp.take_along_axis(scores[:, :-1], jnp.asarray(batch.tokens)[:, 1:, None], axis=2)[..., 0]
        counts = (SEGMENTS[:, 1:] == SEGMENTS[:, :-1]) & (SEGMENTS[:, 1:] != 0)
        return -jnp.sum(each * counts.astype(np.float32) * weight[:, None])

    found, expected = (trees.flatten(jax.jit(jax.grad(each))(params)) for each in (ours, plain))
    for path in expected:
        difference = np.linalg.norm(np.asarray(found[path]) - np.asarray(expected[path]))
        assert difference < 1e-5 * np.linalg.norm(np.asarray(expected[path])), path


# Cross-entropy alone.


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


@pytest.fixture(scope="module")
def drawn():
    rng = np.random.default_rng(2)
    hidden, table = rng.normal(size=(2, 7, D)).astype(np.float32), rng.normal(size=(V, D)).astype(np.float32)
    return hidden, table, rng.integers(0, V, (2, 7)).astype(np.int32), rng.normal(size=(2, 7)).astype(np.float32)


def entropy(hidden: np.ndarray, table: np.ndarray, following: np.ndarray) -> np.ndarray:
    """The loss of each token, in float64."""
    logits = np.asarray(hidden, np.float64) @ np.asarray(table, np.float64).T
    return -np.log(np.take_along_axis(softmax(logits), following[..., None], 2)[..., 0])


@pytest.mark.parametrize("chunk", [1, 2, 7])
def test_values_and_slopes_by_the_formula(drawn, chunk):
    hidden, table, following, cotangent = drawn

    def both(hidden, table):
        out, pull = jax.vjp(lambda hidden, table: loss.cross_entropy(hidden, table, following, chunk), hidden, table)
        return out, *pull(cotangent)

    found = jax.jit(both)(hidden, table)
    # d loss / d logits = softmax - one-hot.
    slope = (softmax(hidden.astype(np.float64) @ table.T) - np.eye(V)[following]) * cotangent[..., None]
    expected = entropy(hidden, table, following), slope @ table, np.einsum("btv,btd->vd", slope, hidden)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == jnp.float32
        np.testing.assert_allclose(np.asarray(ours), theirs, rtol=2e-5, atol=1e-5)


def test_slopes_are_finite_differences(drawn):
    hidden, table, following, cotangent = drawn

    def total(hidden, table):
        return jnp.sum(loss.cross_entropy(hidden, table, following, 3) * cotangent)

    found = jax.jit(jax.grad(total, argnums=(0, 1)))(hidden, table)
    rng, h = np.random.default_rng(3), 1e-5
    for place, values in enumerate((hidden, table)):
        direction = rng.normal(size=values.shape)
        pair = [
            [each + sign * h * direction if each is values else each for each in (hidden, table)] for sign in (1, -1)
        ]
        up, down = ((entropy(*each, following) * cotangent).sum() for each in pair)
        slope = float((np.asarray(found[place], np.float64) * direction).sum())
        assert abs(slope - (up - down) / (2 * h)) < 1e-4 * abs(slope)


@pytest.mark.parametrize("argument", [0, 1])
def test_either_gradient_alone_is_the_one_of_both(drawn, argument):
    hidden, table, following, cotangent = drawn

    def total(hidden, table):
        return jnp.sum(loss.cross_entropy(hidden, table, following, 4) * cotangent)

    both = jax.jit(jax.grad(total, argnums=(0, 1)))(hidden, table)[argument]
    np.testing.assert_array_equal(
        np.asarray(jax.jit(jax.grad(total, argnums=argument))(hidden, table)), np.asarray(both)
    )


def test_scoring_does_not_keep_what_only_the_head_needs(drawn):
    hidden, table, following, _ = drawn

    def kept(argument):
        def total(hidden, table):
            return loss.cross_entropy(hidden, table, following, 7).sum()

        return str(jax.make_jaxpr(jax.grad(total, argnums=argument))(hidden, table)).count("exp")

    # With the head's gradient the weights are computed once more, backwards.
    assert (kept(0), kept(1)) == (1, 2)


def logits(*rows: list[float]) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Hidden states whose logits are these, and the first entry as the target."""
    return jnp.float32([rows]), jnp.eye(len(rows[0])), jnp.zeros((1, len(rows)), jnp.int32)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ([0.0, 0.0], np.log(2)),
        ([3.0, 0.0], np.log1p(np.exp(-3))),
        ([1e4, 0.0], 0.0),
        ([0.0, 1e4], 1e4),
        ([-1e30, 1e30], 2e30),
        ([1e30, 1e30], np.log(2)),
        ([-1e30, -1e30], np.log(2)),
        # A good prediction among large logits keeps its digits.
        ([1010.0, 1000.0], np.log1p(np.exp(-10))),
        ([-1000.0, -1010.0], np.log1p(np.exp(-10))),
    ],
)
def test_large_logits_neither_overflow_nor_lose_digits(row, expected):
    hidden, table, following = logits(row)
    value, slope = jax.value_and_grad(lambda each: loss.cross_entropy(each, table, following, 1).sum())(hidden)
    assert float(value) == pytest.approx(expected, rel=2e-3 if expected < 1e-4 else 1e-6)
    np.testing.assert_allclose(np.asarray(slope)[0, 0], softmax(np.float64(row)) - [1, 0], atol=1e-6)


def test_the_last_chunk_that_is_filled_up_adds_nothing():
    hidden, table, following = logits([1.0, 2.0], [3.0, 4.0], [5.0, 7.0])
    found = jax.grad(lambda table: loss.cross_entropy(hidden, table, following, 2).sum())(table)
    whole = jax.grad(lambda table: loss.cross_entropy(hidden, table, following, 3).sum())(table)
    np.testing.assert_allclose(np.asarray(found), np.asarray(whole), rtol=1e-6)


# Memory.


@pytest.mark.parametrize(("config", "remat"), [(CONFIG, "full"), (TIED, "none")])
def test_a_bfloat16_gradient_has_half_the_bytes_and_the_same_digits(config, remat):
    params, batch = models.initialize(config, jax.random.key(0)), draw()
    compute = Compute(dtype="bfloat16", remat=remat, block=4, chunk=5)
    plain = jax.jit(jax.grad(lambda params: jnp.sum(loss.nll(config, compute, params, batch).nll) * jnp.float32(0.3)))
    found, told = DIFFERENTIATE(config, compute, params, params, batch, jnp.float32(0.3))
    expected, found = trees.flatten(plain(params)), trees.flatten(found)
    assert found.keys() == expected.keys()
    for path, leaf in found.items():
        assert leaf.dtype == (jnp.bfloat16 if path.startswith("layers.") else jnp.float32), path
        np.testing.assert_array_equal(np.asarray(leaf, np.float32), np.asarray(expected[path]), path)
    np.testing.assert_array_equal(told.nll, loss.nll(config, compute, params, batch).nll)


@pytest.mark.parametrize("shape", [(2, 2, 2), (1, 8, 1), (1, 4, 2), (8, 1, 1), (1, 1, 8)])
@pytest.mark.parametrize("vocab", [48, 43])
def test_the_gradient_of_the_head_is_the_same_on_every_mesh(shape, vocab):
    rng, mesh = np.random.default_rng(1), meshes.build(*shape)
    hidden, table = rng.normal(size=(8, 6, 16)).astype(np.float32), rng.normal(size=(vocab, 16)).astype(np.float32)
    following, weight = rng.integers(0, vocab, (8, 6)).astype(np.int32), rng.normal(size=(8, 6)).astype(np.float32)

    @jax.jit
    def slopes(hidden, table):
        return jax.grad(lambda *each: jnp.sum(loss.cross_entropy(*each, following, 3) * weight), argnums=(0, 1))(
            hidden, table
        )

    logits = np.einsum("btd,vd->btv", hidden, table).astype(np.float64)
    chances = np.exp(logits - logits.max(-1, keepdims=True))
    chances /= chances.sum(-1, keepdims=True)
    chances[np.arange(8)[:, None], np.arange(6), following] -= 1
    expected = np.einsum("btv,btd->vd", chances * weight[..., None], hidden.astype(np.float64))
    with jax.set_mesh(mesh):
        _, found = slopes(meshes.place(hidden, mesh), jax.device_put(table, meshes.replicated(mesh)))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_the_gradient_of_a_part_is_that_part_of_the_gradient():
    params, batch = models.initialize(CONFIG, jax.random.key(0)), draw()
    for dtype in ("float32", "bfloat16"):
        compute = Compute(dtype=dtype, block=4, chunk=5)
        whole, _ = DIFFERENTIATE(CONFIG, compute, params, params, batch, jnp.float32(1))
        part = roles.restrict(params, "decoder_without_norms")
        found, _ = DIFFERENTIATE(CONFIG, compute, params, part, batch, jnp.float32(1))
        assert trees.flatten(found).keys() == trees.flatten(part).keys()
        for path, leaf in trees.walk(found):
            assert np.any(leaf)
            np.testing.assert_allclose(
                np.asarray(leaf, np.float32), np.asarray(trees.flatten(whole)[path], np.float32), rtol=1e-5, atol=1e-6
            )


def keep(path: str, theta: jax.Array, gradient: jax.Array, totals: loss.Totals) -> loss.Totals:
    """Adds the gradient, and puts down what it was said to be the gradient of."""
    return {"sum": totals["sum"] + gradient.astype(jnp.float32), "theta": theta}


@pytest.mark.parametrize("config", [CONFIG, TIED], ids=["plain", "tied"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("scope", "remat"), [("decoder_without_norms", "none"), ("everything", "none"), ("everything", "dots")]
)
def test_layer_by_layer_the_same_gradient_is_added(config, dtype, scope, remat):
    params, batch = models.initialize(config, jax.random.key(0)), draw()
    part, compute = roles.restrict(params, scope), Compute(dtype=dtype, block=4, chunk=5, remat=remat)
    totals = {path: {"sum": jnp.ones_like(leaf), "theta": jnp.zeros_like(leaf)} for path, leaf in trees.walk(part)}
    accumulate = jax.jit(loss.accumulate, static_argnums=(0, 1, 6))
    found, told, inputs = accumulate(config, compute, params, totals, batch, jnp.float32(0.3), keep)
    expected, losses = DIFFERENTIATE(config, compute, params, part, batch, jnp.float32(0.3))
    assert found.keys() == trees.flatten(part).keys()
    for path, slope in trees.walk(expected):
        np.testing.assert_array_equal(found[path]["theta"], trees.flatten(params)[path], path)
        slope = np.asarray(slope, np.float32)
        assert np.any(slope)
        # Sums of at most 16 tokens in another order; and one is added to each.
        atol = 16 * 2.0**-24 * max(1, np.abs(slope).max())
        np.testing.assert_allclose(np.asarray(found[path]["sum"]) - 1, slope, rtol=0, atol=atol, err_msg=path)
    np.testing.assert_array_equal(told.nll, losses.nll)
    assert not inputs


def compiled(job: str, remat: str, length: int, held: str = "float32") -> Any:
    """A backward pass of the tiny model over four samples, its layers unrolled: what a loop does is counted once."""
    config, slopes = models.PRESETS["tiny"], jax.ShapeDtypeStruct((), np.float32)
    params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, held), models.shapes(config))
    batch = Batch(*(jax.ShapeDtypeStruct((4, length), np.int32) for _ in range(3)))
    compute = Compute(remat=remat, block=64, unroll=config.layers)
    if job == "train":
        return DIFFERENTIATE.lower(config, compute, params, params, batch, slopes).compile()
    part = roles.restrict(models.shapes(config), "decoder_without_norms")
    totals = {path: {"sum": leaf, "theta": leaf} for path, leaf in trees.walk(part)}
    step = jax.jit(loss.accumulate, static_argnums=(0, 1, 6), donate_argnums=3)
    return step.lower(config, compute, params, totals, batch, slopes, keep).compile()


def test_products_that_are_kept_are_not_computed_again():
    again = 2 * 4 * 256 * (73_728 - 2 * 128 * 64)  # products of both layers; what down gives is not needed again
    train, score = (
        {remat: compiled(job, remat, 256).cost_analysis()["flops"] for remat in ("none", "dots", "full")}
        for job in ("train", "score")
    )
    assert train["dots"] == pytest.approx(train["none"], rel=0.01)
    assert train["full"] - train["dots"] > again
    assert score["full"] == score["none"]
    # The loop over the layers backwards is counted as one of them; norms and activations are computed again.
    assert score["none"] - score["dots"] > 0.9 * again / 2


@pytest.mark.parametrize("held", ["float32", "bfloat16"])
def test_no_weight_is_kept_for_the_backward_pass(held):
    none, dots = (compiled("score", remat, 4, held).memory_analysis().temp_size_in_bytes for remat in ("none", "dots"))
    products = 2 * 4 * 4 * (2 * (3 * 64 + 2 * 32 + 2 * 128) + 64)  # layers, samples, tokens; with what is at work
    assert dots - none < 4 * products < 4 * 73_728 / 2


def sizes(jaxpr: Any) -> Iterator[int]:
    """Number of entries of every array that a program makes, inner programs included."""
    for equation in jaxpr.eqns:
        yield from (int(np.prod(each.aval.shape)) for each in equation.outvars if hasattr(each.aval, "shape"))
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda each: hasattr(each, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from sizes(inner)


def largest(chunk: int, backward: bool) -> int:
    config = DecoderConfig(vocab=500, embed=4, mlp=4, layers=1, heads=1, kv_heads=1, head_dim=4, context=64)
    batch = Batch(*(jax.ShapeDtypeStruct((2, 64), np.int32) for _ in range(3)))

    def total(params, batch):
        return loss.nll(config, Compute(block=8, chunk=chunk), params, batch).nll.sum()

    program = jax.make_jaxpr(jax.grad(total) if backward else total)(models.shapes(config), batch)
    return max(sizes(program.jaxpr))


@pytest.mark.parametrize("backward", [False, True])
def test_no_array_holds_all_logits(backward):
    assert largest(chunk=64, backward=backward) == 2 * 64 * 500  # the check sees such an array where there is one
    assert largest(chunk=8, backward=backward) == 2 * 8 * 500


def test_compiled_memory_stays_below_all_logits():
    hidden = jax.ShapeDtypeStruct((2, 512, 4), np.float32)
    table, following = jax.ShapeDtypeStruct((1000, 4), np.float32), jax.ShapeDtypeStruct((2, 512), np.int32)

    def total(hidden, table, following):
        return loss.cross_entropy(hidden, table, following, 16).sum()

    compiled = jax.jit(jax.grad(total, argnums=(0, 1))).lower(hidden, table, following).compile()
    # All logits are 4 MB, those of a chunk 128 kB, of which a few copies may live.
    assert compiled.memory_analysis().temp_size_in_bytes < 1_000_000 < 4 * 2 * 512 * 1000
