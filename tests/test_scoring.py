"""Scores: each rule against a few lines of NumPy, and that nothing but the definition decides them."""

import copy
import dataclasses
import functools
import math
import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from lingregions import mesh as meshes
from lingregions import models, scoring
from lingregions import tree as trees
from lingregions.corpus.batch import Batch
from lingregions.models import Compute, DecoderConfig, roles
from lingregions.scoring import Definition, Scorer

CONFIG = DecoderConfig(vocab=40, embed=8, mlp=12, layers=2, heads=4, kv_heads=2, head_dim=2, context=64, std=0.4)
S, T, GROUP = 8, 8, 4  # samples, tokens, samples a group
RULES = tuple(scoring.RULES)
SLOPED = [rule for rule in RULES if scoring.RULES[rule].reads == "gradient"]

# Two groups with very different numbers of targets: 28 and 7.
SEGMENTS = np.zeros((S, T), np.int32)
SEGMENTS[:4] = 1
SEGMENTS[4, :3], SEGMENTS[5, :6], SEGMENTS[6, :4], SEGMENTS[7] = 1, [1, 1, 2, 2, 3, 3], [1, 1, 2, 2], 0
COUNTS = np.array([7, 7, 7, 7, 2, 3, 2, 0])


def corpus(seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    return Batch(rng.integers(0, 39, (S, T)).astype(np.int32), SEGMENTS, np.ones((S, T), np.int32))


def pick(batch: Batch, rows: Any) -> Batch:
    return Batch(*(np.asarray(each)[rows] for each in batch))


@pytest.fixture(scope="module", autouse=True)
def optimised() -> Iterator[None]:
    """Figures that are held to a number of digits are those of programs with all of XLA's optimisations."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()  # a program that was compiled otherwise is not compiled again by itself
    yield
    jax.config.update("jax_disable_most_optimizations", before)
    jax.clear_caches()


@pytest.fixture(scope="module")
def params() -> trees.Tree:
    drawn = models.initialize(CONFIG, jax.random.key(0))
    # A few parameters are zero: nothing can be lost by removing them.
    up = drawn["layers"]["mlp"]["up_proj"]
    return trees.merge(drawn, {"layers": {"mlp": {"up_proj": up.at[:, 3, :].set(0)}}})


@functools.cache
def scorer(
    rules: tuple[str, ...] = RULES,
    accumulator: str = "float32",
    micro: int = GROUP,
    mesh: Mesh | None = None,
    remat: str = "none",
) -> Scorer:
    definition = Definition(rules[0], accumulator=accumulator, group=GROUP)
    return Scorer(CONFIG, Compute(remat=remat), definition, rules, micro, mesh)


def averaging(scorer: Scorer) -> Scorer:
    """The same steps - the weight of a group is an argument of them - under the definition "batch_mean"."""
    other = copy.copy(scorer)
    other.definition = dataclasses.replace(scorer.definition, weighting="batch_mean")
    return other


def gather(
    scorer: Scorer, params: trees.Tree, batch: Batch, sums: scoring.Sums | None = None
) -> tuple[scoring.Sums, int, float]:
    """Run one pass, group by group."""
    sums, tokens, nats = sums or scorer.start(params), 0, 0.0
    put = (lambda each: each) if scorer.mesh is None else (lambda each: meshes.place(each, scorer.mesh))
    for start in range(0, len(batch.tokens), GROUP):
        sums, count, nll = scorer.add(params, sums, pick(batch, slice(start, start + GROUP)), put)
        tokens, nats = tokens + count, nats + nll
    return sums, tokens, nats


def score(scorer: Scorer, params: trees.Tree, batch: Batch) -> dict[str, dict[str, np.ndarray]]:
    """{rule: {path: scores}}."""
    sums, tokens, _ = gather(scorer, params, batch)
    found = {rule: trees.flatten(scorer.finish(params, sums, tokens, rule)) for rule in scorer.rules}
    return {rule: {path: np.asarray(leaf) for path, leaf in leaves.items()} for rule, leaves in found.items()}


def tolerance(rule: str) -> float:
    """A gradient within 1e-6 is, squared, within 2e-6."""
    return 2e-6 if rule == "fisher" else 1e-6


def assert_close(found: Any, expected: Any, tolerance: float) -> None:
    """Compare trees by relative L2, tensor by tensor."""
    assert found.keys() == expected.keys()
    for path, theirs in expected.items():
        error = np.linalg.norm(np.float64(found[path]) - theirs)
        assert error <= tolerance * np.linalg.norm(np.float64(theirs)), (path, error)


# The reference: another decoder, one sample at a time, and NumPy.


def plain(layers: trees.Tree, params: trees.Tree, tokens: jax.Array, segments: jax.Array) -> tuple[jax.Array, Any]:
    """Return the summed loss of one sample [T], and the sums of squares of what enters each weight."""
    N, K, H = CONFIG.heads, CONFIG.kv_heads, CONFIG.head_dim
    real = (segments != 0).astype(jnp.float32)[:, None]
    turn = np.float32(np.arange(T)[:, None, None] / 10_000 ** (np.arange(0, H, 2) / H))
    inputs: list[dict[str, jax.Array]] = []

    def norm(x, gain, key=None):
        x = x / jnp.sqrt((x * x).mean(-1, keepdims=True) + np.float32(CONFIG.eps))
        return watch(x, key) * gain[None] if key else x * gain[None]

    def watch(x, key):
        inputs[-1][key] = (x * x * real).sum(0)
        return x

    def rotate(x):
        a, b = x[..., : H // 2], x[..., H // 2 :]
        return jnp.concatenate([a * np.cos(turn) - b * np.sin(turn), b * np.cos(turn) + a * np.sin(turn)], -1)

    x = params["embed_tokens"][tokens]
    hidden = jnp.tril(jnp.ones((T, T))) * (segments[:, None] == segments[None, :]).astype(jnp.float32) == 0
    for layer in range(CONFIG.layers):
        inputs.append({})
        w = {path: leaf[layer] for path, leaf in trees.flatten(layers["layers"]).items()}
        y = norm(x, w["input_layernorm"], "input_layernorm")
        q, k, v = (
            (watch(y, f"self_attn.{each}_proj") @ w[f"self_attn.{each}_proj"].T).reshape(T, -1, H) for each in "qkv"
        )
        q, k, v = rotate(q), jnp.repeat(rotate(k), N // K, 1), jnp.repeat(v, N // K, 1)
        logits = jnp.where(hidden[None], -np.inf, jnp.einsum("tnh,snh->nts", q, k) / np.float32(math.sqrt(H)))
        y = jnp.einsum("nts,snh->tnh", jax.nn.softmax(logits), v).reshape(T, N * H)
        x = x + watch(y, "self_attn.o_proj") @ w["self_attn.o_proj"].T
        y = norm(x, w["post_attention_layernorm"], "post_attention_layernorm")
        gate, up = (watch(y, f"mlp.{each}_proj") @ w[f"mlp.{each}_proj"].T for each in ("gate", "up"))
        y = gate / (1 + jnp.exp(-gate)) * up
        x = x + watch(y, "mlp.down_proj") @ w["mlp.down_proj"].T
    each = jax.nn.log_softmax(norm(x, params["norm"]) @ params["lm_head"].T)[jnp.arange(T - 1), tokens[1:]]
    counts = (segments[1:] == segments[:-1]) & (segments[1:] != 0)
    return -jnp.where(counts, each, 0.0).sum(), jax.tree.map(lambda *layers: jnp.stack(layers), *inputs)


@functools.cache
def slopes() -> Any:
    one = jax.value_and_grad(plain, has_aux=True)
    return jax.jit(jax.vmap(one, in_axes=(None, None, 0, 0)))


class Reference:
    """What a loop over single samples gives, in float64 from the gradient on: gradients and inputs [S, ...] by path."""

    def __init__(self, params: trees.Tree, batch: Batch) -> None:
        part = roles.restrict(params, "decoder")
        (nll, inputs), gradients = slopes()(part, params, batch.tokens, batch.segments)
        self.nll = np.asarray(nll, np.float64)
        self.theta = {path: np.asarray(leaf, np.float64) for path, leaf in trees.flatten(part).items()}
        self.gradients = {path: np.asarray(leaf, np.float64) for path, leaf in trees.flatten(gradients).items()}
        self.inputs = {f"layers.{path}": np.asarray(leaf, np.float64) for path, leaf in inputs.items()}

    def groups(self, path: str, weighting: str) -> list[np.ndarray]:
        """The gradient g of each group: of its summed loss, or of its mean loss."""
        rows = [slice(start, start + GROUP) for start in range(0, S, GROUP)]
        divisors = [COUNTS[each].sum() if weighting == "batch_mean" else 1 for each in rows]
        return [self.gradients[path][each].sum(0) / n for each, n in zip(rows, divisors, strict=True)]

    def score(self, rule: str, weighting: str) -> dict[str, np.ndarray]:
        found, tokens = {}, COUNTS.sum() if weighting == "token" else 1
        for path, theta in self.theta.items():
            g = self.groups(path, weighting)
            norm = np.sqrt(self.inputs[path].sum(0))
            found[path] = {
                "taylor": lambda theta=theta, g=g: abs(theta * sum(g)) / tokens,
                "taylor_abs": lambda theta=theta, g=g: sum(abs(theta * each) for each in g) / tokens,
                "fisher": lambda theta=theta, g=g: theta**2 * sum(each**2 for each in g) / tokens**2,
                "magnitude": lambda theta=theta: abs(theta),
                "wanda": lambda theta=theta, norm=norm: abs(theta) * (norm[:, None] if theta.ndim == 3 else norm),
            }[rule]()
        return found


@pytest.fixture(scope="module")
def reference(params) -> Reference:
    return Reference(params, corpus())


@pytest.fixture(scope="module")
def whole(params) -> dict[str, dict[str, np.ndarray]]:
    """All rules from one pass in which a micro-batch is a group."""
    return score(scorer(), params, corpus())


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_is_its_formula(params, whole, reference, rule):
    assert_close(whole[rule], reference.score(rule, "token"), 1e-5)


@pytest.fixture(scope="module")
def averaged(params) -> dict[str, dict[str, np.ndarray]]:
    return score(averaging(scorer()), params, corpus())


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_is_its_formula_over_means_of_groups(averaged, whole, reference, rule):
    expected = reference.score(rule, "batch_mean")
    assert_close(averaged[rule], expected, 1e-5)
    if rule in SLOPED:  # the two weightings are not the same thing here
        with pytest.raises(AssertionError):
            assert_close(whole[rule], expected, 0.1)


def test_the_loss_comes_with_the_sums(params, reference):
    _, tokens, nats = gather(scorer(), params, corpus())
    assert tokens == COUNTS.sum() == 35
    assert nats == pytest.approx(reference.nll.sum(), rel=1e-6)


def test_weightings_by_hand():
    # Two groups: 4 targets whose summed loss has the slope 8, and one target with the slope 3. theta is -2.
    theta, rule = jnp.float32([[-2.0]]), scoring.RULES["taylor"]

    def found(weighting: str) -> float:
        sums = rule.init(theta)
        for slope, tokens in ((8.0, 4), (3.0, 1)):
            sums = rule.update(sums, theta, jnp.float32([[slope * scoring._weights(tokens, weighting)]]))
        return float(rule.finish(sums, theta)[0, 0]) * scoring._scales("taylor", weighting, 5)

    assert found("batch_mean") == 2 * (8 / 4 + 3 / 1)
    assert found("token") == pytest.approx(2 * (8 + 3) / 5)
    assert [scoring._weights(0, weighting) for weighting in scoring._WEIGHTINGS] == [1.0, 1.0]
    assert scoring._scales("taylor", "token", 0) == 1.0


# What holds for every rule of the registry.

THETA = np.random.default_rng(5).normal(size=(2, 3, 4)).astype(np.float32)
THETA[0, 1], THETA[1, :, 2] = 0, -0.0


def drawn(rule: str, theta: np.ndarray, seed: int) -> jax.Array:
    """What the rule reads, for one group."""
    rng = np.random.default_rng(seed)
    size = {"inputs": (theta.shape[0], theta.shape[-1])}.get(scoring.RULES[rule].reads, theta.shape)
    values = rng.normal(size=size).astype(np.float32)
    return jnp.asarray(np.abs(values) if scoring.RULES[rule].reads == "inputs" else values)


@pytest.mark.parametrize("theta", [THETA, THETA[:, 0]], ids=["matrix", "gain"])
@pytest.mark.parametrize("rule", RULES)
def test_scores_are_parallel_non_negative_and_zero_for_zero(rule, theta):
    each, theta = scoring.RULES[rule], jnp.asarray(theta)
    sums = each.init(theta)
    assert not np.asarray(sums).any()
    for seed in (1, 2):
        updated = each.update(sums, theta, drawn(rule, np.asarray(theta), seed))
        assert (updated.shape, updated.dtype) == (sums.shape, jnp.float32)
        sums = updated
    found = each.finish(sums, theta)
    assert (found.shape, found.dtype) == (theta.shape, jnp.float32)
    assert ((np.asarray(found) == 0) == (np.asarray(theta) == 0)).all()
    assert (np.asarray(found) >= 0).all()


@pytest.mark.parametrize("rule", RULES)
def test_without_samples_a_score_has_its_shape(rule):
    each = scoring.RULES[rule]
    found = each.finish(each.init(jnp.asarray(THETA)), jnp.asarray(THETA))
    assert found.shape == THETA.shape
    assert np.isfinite(found).all()


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_is_additive_exactly_if_it_says_so(rule):
    each, theta = scoring.RULES[rule], jnp.asarray(THETA)
    one, other = drawn(rule, THETA, 1), drawn(rule, THETA, 2)
    pieces = each.update(each.update(each.init(theta), theta, one), theta, other)
    together = each.update(each.init(theta), theta, one + other)
    assert np.allclose(pieces, together, rtol=1e-6, atol=1e-6) == each.additive


@pytest.mark.parametrize("rule", RULES)
def test_the_scale_undoes_the_number_of_tokens(rule):
    # Twice the samples with the same mean gradient are twice the sum; the score of the mean loss stays.
    each, theta, slope = scoring.RULES[rule], jnp.asarray(THETA), drawn(rule, THETA, 1)
    times = 8 if each.reads == "gradient" else 1
    one, more = (
        np.asarray(each.finish(each.update(each.init(theta), theta, slope * factor), theta))
        for factor in (1.0, float(times))
    )
    np.testing.assert_allclose(more * np.float32(scoring._scales(rule, "token", times)), one, rtol=1e-6)
    assert scoring._scales(rule, "batch_mean", times) == 1


@pytest.mark.parametrize("rule", RULES)
def test_a_whole_pass_is_parallel_non_negative_and_zero_for_zero(params, whole, rule):
    theta = trees.flatten(roles.restrict(params, "decoder"))
    trees.assert_parallel(theta, whole[rule], "scores")
    for path, found in whole[rule].items():
        assert found.dtype == np.float32
        assert (found >= 0).all()
        assert (found[np.asarray(theta[path]) == 0] == 0).all()
    assert (whole[rule]["layers.mlp.up_proj"][:, 3] == 0).all()
    assert (whole[rule]["layers.mlp.up_proj"] > 0).sum() > 150


# Definitions.


def test_the_presets_are_those_of_the_method():
    assert scoring.PRESETS["sound"] == Definition("taylor", "token", "float32", True, 1, "decoder")
    assert scoring.PRESETS["paper"] == Definition("taylor", "batch_mean", "bfloat16", False, 64, "decoder")
    assert Definition() == scoring.PRESETS["sound"]
    assert scoring.PRESETS.keys() == {"sound", "paper"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rule": "tailor"}, "score rule is 'tailor'; it must be one of taylor, taylor_abs, fisher, magnitude, wanda"),
        ({"weighting": "mean"}, "score weighting is 'mean'; it must be one of token, batch_mean"),
        ({"accumulator": "float16"}, "score accumulator is 'float16'; it must be one of float32, bfloat16"),
        ({"group": 0}, "score group is 0 samples; it must be at least 1"),
    ],
)
def test_a_definition_that_does_not_exist_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Definition(**changes)


def test_an_unknown_further_rule_is_refused():
    with pytest.raises(ValueError, match="score rule 'snip' does not exist; rules are taylor,"):
        Scorer(CONFIG, Compute(), Definition(), ["fisher", "snip"])


def test_inputs_outside_the_layers_are_refused():
    with pytest.raises(ValueError, match="'wanda' reads the inputs .* scope 'everything' holds 'embed_tokens'"):
        Scorer(CONFIG, Compute(), Definition("wanda", scope="everything"))


# A score depends on its definition alone.


def test_micro_batches_only_split_a_group(params, whole):
    # Three samples and then one, filled up with two rows of padding.
    found = score(scorer(micro=3), params, corpus())
    for rule in RULES:
        assert_close(found[rule], whole[rule], tolerance(rule))


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_alone_is_the_rule_in_company(params, whole, rule):
    assert_close(score(scorer((rule,)), params, corpus())[rule], whole[rule], tolerance(rule))


def test_the_order_inside_a_group_does_not_matter(params, whole):
    found = score(scorer(), params, pick(corpus(), [3, 1, 0, 2, 7, 6, 5, 4]))
    for rule in RULES:
        assert_close(found[rule], whole[rule], tolerance(rule))


def test_the_order_of_all_samples_does_not_matter_to_additive_rules(params, whole):
    found = score(scorer(), params, pick(corpus(), [7, 3, 4, 0, 6, 2, 5, 1]))
    for rule in RULES:
        if scoring.RULES[rule].additive:
            assert_close(found[rule], whole[rule], tolerance(rule))
        else:
            with pytest.raises(AssertionError):
                assert_close(found[rule], whole[rule], 1e-3)


def test_padding_rows_add_nothing(params, whole):
    # The last sample is padding; without it the group is short and filled up.
    found = score(scorer(), params, pick(corpus(), slice(0, 7)))
    for rule in RULES:
        assert_close(found[rule], whole[rule], 0)


def test_tokens_in_padding_do_not_matter(params, whole):
    batch = corpus()
    found = score(scorer(), params, batch._replace(tokens=np.where(SEGMENTS == 0, 17, batch.tokens)))
    for rule in RULES:
        assert_close(found[rule], whole[rule], 0)


def test_the_same_pass_twice_is_the_same_to_the_bit(params, whole):
    found = score(scorer(), params, corpus())
    for rule in RULES:
        assert_close(found[rule], whole[rule], 0)


# Devices.


def put(params: trees.Tree, mesh: Mesh) -> trees.Tree:
    return jax.device_put(params, meshes.shardings(models.declare(CONFIG), mesh))


@pytest.fixture(scope="module")
def pair_mesh() -> Mesh:
    return meshes.build(fsdp=2, devices=jax.devices()[:2])


@pytest.mark.parametrize(
    ("devices", "micro", "remat"),
    [("lone_mesh", 1, "none"), ("pair_mesh", 2, "none"), ("mesh", GROUP, "none"), ("mesh", GROUP, "dots")],
)
def test_one_two_and_eight_devices_give_the_same_for_any_micro_batch(params, whole, devices, micro, remat, request):
    mesh = request.getfixturevalue(devices)
    found = score(scorer(micro=micro, mesh=mesh, remat=remat), put(params, mesh), corpus())
    for rule in RULES:
        assert_close(found[rule], whole[rule], tolerance(rule))
        ours, theirs = (np.concatenate([np.ravel(leaf) for leaf in each[rule].values()]) for each in (found, whole))
        assert np.linalg.norm(ours - theirs) <= 1e-6 * np.linalg.norm(theirs), rule  # all matrices together


def test_the_same_mesh_gives_the_same_bits(params, mesh):
    placed = put(params, mesh)
    one, other = (score(scorer(mesh=mesh), placed, corpus()) for _ in range(2))
    for rule in RULES:
        assert_close(one[rule], other[rule], 0)


def test_sums_and_scores_stay_on_the_shards_of_their_parameters(params, mesh):
    each, placed = scorer(mesh=mesh), put(params, mesh)
    sums, tokens, _ = gather(each, placed, corpus())
    for shapes, leaf in zip(jax.tree.leaves(each.shapes), jax.tree.leaves(sums), strict=True):
        assert (leaf.shape, leaf.dtype, leaf.sharding) == (shapes.shape, shapes.dtype, shapes.sharding)
    theta = trees.flatten(placed)
    for tree in (sums.open, sums.rules["taylor"], each.finish(placed, sums, tokens, "wanda")):
        for path, leaf in trees.walk(tree):
            assert leaf.sharding == theta[path].sharding, path


def test_languages_do_not_compile_anew(params, mesh):
    for each, placed in ((scorer(), params), (scorer(mesh=mesh), put(params, mesh))):
        for language in range(3):
            batch = pick(corpus(language), slice(0, S - language))  # groups that are full, and one that is short
            sums, tokens, _ = gather(each, placed, batch)
            for rule in RULES:
                each.finish(placed, sums, tokens, rule)
        assert (each._start._cache_size(), each._step._cache_size(), each._close._cache_size()) == (1, 1, 1)
        assert each._finish._cache_size() == len(RULES)


def test_interrupted_is_uninterrupted(params, mesh, whole):
    for each, placed in ((scorer(), params), (scorer(mesh=mesh), put(params, mesh))):
        expected, _, _ = gather(each, placed, corpus())
        half, _, _ = gather(each, placed, pick(corpus(), slice(0, GROUP)))
        kept = jax.device_get(half)
        places = jax.tree.map(lambda leaf: leaf.sharding, half)
        resumed, _, _ = gather(each, placed, pick(corpus(), slice(GROUP, S)), jax.device_put(kept, places))
        for one, other in zip(jax.tree.leaves(expected), jax.tree.leaves(resumed), strict=True):
            np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


def test_sums_are_donated(params):
    each = scorer()
    before = each.start(params)
    after, _, _ = each.add(params, before, pick(corpus(), slice(0, GROUP)))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves([before.rules["taylor"], before.open]))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves([after, params]))
    with pytest.raises((RuntimeError, ValueError), match=r"deleted|donated"):
        each.add(params, before, pick(corpus(), slice(0, GROUP)))


# The bfloat16 accumulator of the released code.


def rounded(values: np.ndarray) -> np.ndarray:
    return np.asarray(values, np.float32).astype(jnp.bfloat16).astype(np.float32)


def assert_bfloat16(found: np.ndarray, expected: np.ndarray) -> None:
    """Equal but for a rounding or two that fall the other way because the gradients differ in their last bits."""
    assert (found == expected).mean() > 0.97
    # One step of bfloat16 is at most 2**-7 of a value; the products with theta round once more, in float32.
    np.testing.assert_allclose(found, expected, rtol=2**-7 + 2**-22)


@pytest.mark.parametrize("micro", [1, GROUP])
def test_bfloat16_rounds_once_a_group_whatever_the_micro_batch(params, reference, micro):
    each = averaging(scorer(("taylor", "wanda"), "bfloat16", micro))
    sums, tokens, _ = gather(each, params, corpus())
    assert {leaf.dtype for leaf in jax.tree.leaves(sums.rules["taylor"])} == {jnp.dtype("bfloat16")}
    found = trees.flatten(each.finish(params, sums, tokens))
    for path, theta in reference.theta.items():
        expected = np.zeros(theta.shape, np.float32)
        for g in reference.groups(path, "batch_mean"):
            expected = rounded(expected + np.float32(g))
        assert_bfloat16(np.asarray(found[path]), np.abs(np.float32(theta) * expected))
    assert_close(
        {path: np.asarray(leaf) for path, leaf in trees.walk(each.finish(params, sums, tokens, "wanda"))},
        reference.score("wanda", "batch_mean"),
        1e-5,
    )


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule not in SLOPED])
def test_rules_without_a_gradient_do_not_care_for_the_accumulator(params, rule):
    # Nothing is rounded, and no room is kept for a gradient that nobody reads.
    for accumulator in scoring._DTYPES:
        each = scorer((rule,), accumulator)
        assert {leaf.dtype for leaf in jax.tree.leaves(each.shapes)} == {np.dtype(np.float32)}
        assert each.shapes.open == {}
        shapes = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in pick(corpus(), slice(0, GROUP))]
        after, _ = each._step.eval_shape(models.shapes(CONFIG), each.shapes, Batch(*shapes), np.float32(1))
        trees.assert_parallel(each.shapes.rules, after.rules)


def test_scores_in_bfloat16_are_those_in_float32_rounded(params):
    each = scorer()
    sums, tokens, _ = gather(each, params, pick(corpus(), slice(0, GROUP)))
    short = Scorer(CONFIG, Compute(), dataclasses.replace(each.definition, dtype="bfloat16"), RULES, GROUP)
    for rule in RULES:
        fine, coarse = (trees.flatten(one.finish(params, sums, tokens, rule)) for one in (each, short))
        assert fine.keys() == coarse.keys()
        for path, values in fine.items():
            assert coarse[path].dtype == jnp.float32
            np.testing.assert_array_equal(coarse[path], np.asarray(values).astype(jnp.bfloat16).astype(np.float32))
        assert any(not np.array_equal(coarse[path], values) for path, values in fine.items())


# Losses that are not numbers.


def test_a_loss_that_is_not_finite_names_the_samples(params):
    broken = params | {"embed_tokens": params["embed_tokens"].at[39].set(jnp.nan)}  # a token that only one sample has
    batch = pick(corpus(), slice(0, GROUP))
    tokens = batch.tokens.copy()
    tokens[3, 5] = 39
    for each in (scorer(), scorer(micro=3)):
        with pytest.raises(FloatingPointError, match=r"the loss of sample\(s\) \[3\] of this group of 4 is not finite"):
            each.add(broken, each.start(broken), batch._replace(tokens=tokens))
    each.add(broken, each.start(broken), batch)


# Languages.


def language(*layers: Any) -> trees.Tree:
    return {"layers": {"mlp": {"up_proj": jnp.float32(layers)}}, "norm": jnp.float32([1.0, 3.0])}


def test_normalised_languages_weigh_alike_in_every_matrix():
    arabic, korean = language([[1, 3]], [[0, 0]]), language([[200, 200]], [[0, 5]])
    total = scoring.combine(scoring.combine(None, arabic, normalised=True), korean, normalised=True)
    assert total["layers"]["mlp"]["up_proj"].tolist() == [[[0.75, 1.25]], [[0.0, 1.0]]]
    assert total["norm"].tolist() == [0.5, 1.5]


def test_plain_languages_are_summed_as_they_are():
    arabic, korean = language([[1, 3]], [[0, 0]]), language([[200, 200]], [[0, 5]])
    total = scoring.combine(scoring.combine(None, arabic, normalised=False), korean, normalised=False)
    assert total["layers"]["mlp"]["up_proj"].tolist() == [[[201, 203]], [[0, 5]]]
    assert total["norm"].tolist() == [2, 6]


@pytest.mark.parametrize("normalised", [False, True])
def test_combining_leaves_the_languages_usable(normalised):
    languages = [language([[k + 1, 3]], [[0, k]]) for k in range(3)]
    total = None
    for each in languages:
        total = scoring.combine(total, each, normalised)
    for k, each in enumerate(languages):
        assert each["layers"]["mlp"]["up_proj"].tolist() == [[[k + 1, 3]], [[0, k]]]


def test_combined_scores_stay_on_their_shards(params, mesh):
    placed = roles.restrict(put(params, mesh), "decoder")
    magnitudes = jax.tree.map(jnp.abs, placed)
    for normalised in (False, True):
        total = scoring.combine(scoring.combine(None, magnitudes, normalised), magnitudes, normalised)
        for path, leaf in trees.walk(total):
            assert leaf.sharding == trees.flatten(placed)[path].sharding
    # Each matrix of the normalised sum of two languages adds up to two.
    for leaf in jax.tree.leaves(total):
        np.testing.assert_allclose(np.asarray(leaf).sum(axis=tuple(range(1, leaf.ndim))), [2, 2], rtol=1e-5)


def test_definitions_are_data():
    assert dataclasses.asdict(scoring.PRESETS["paper"])["accumulator"] == "bfloat16"
    assert hash(Definition()) == hash(scoring.PRESETS["sound"])


@pytest.mark.parametrize("precision", ["highest", "default"])
def test_every_matrix_product_of_a_step_has_the_precision_that_was_asked(precision):
    """Forward, backward, attention, loss: on a TPU float32 would otherwise be multiplied in bfloat16."""
    compute = models.Compute(precision=precision)
    config = models.PRESETS["tiny"]
    scorer = scoring.Scorer(config, compute, scoring.Definition())
    shape = jax.ShapeDtypeStruct((1, 16), jnp.int32)
    jaxpr = jax.make_jaxpr(functools.partial(scoring._step, config, compute, "decoder"))(
        models.shapes(config), scorer.shapes, Batch(shape, shape, shape), jax.ShapeDtypeStruct((), jnp.float32)
    )
    found = re.findall(r"dot_general\[.*?precision=(\S+)", str(jaxpr), re.DOTALL)
    # Seven projections and attention's two products forward; twice that and one recomputed backward; the loss.
    assert len(found) >= 20
    assert {each.strip("(),]") for each in found} == {f"Precision.{precision.upper()}"}


@pytest.mark.parametrize("rules", [(), RULES], ids=["one rule", "all rules"])
def test_a_step_holds_no_gradient_but_that_of_one_layer(rules):
    config = DecoderConfig(vocab=40, embed=32, mlp=96, layers=16, heads=4, kv_heads=2, head_dim=8, context=64)
    part = roles.restrict(models.shapes(config), "decoder")
    scorer = Scorer(config, Compute(), Definition(), rules, micro=1)
    beside = scorer.lower(models.shapes(config), 8).compile().memory_analysis().temp_size_in_bytes
    assert beside < 4 * trees.count(part) / 4, beside
