"""The decoder, its gradients and its scores equal transformers' in float64, from golden files (`golden/write.py`).

First block by block, each fed with what transformers fed it, then whole; then what must not matter: how documents are
packed, the order of samples, padding, the settings of `Compute`, and the number of devices.
"""

import dataclasses
import functools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import cases
from golden.compare import apart, assert_near, batch, distance, distances, gradient_of, logits_of, stack
from safetensors import safe_open

from lingregions import loss, models, scoring
from lingregions import mesh as meshes
from lingregions import tree as trees
from lingregions.models import decoder, rotary
from lingregions.models.compute import Compute

# What was promised: logits absolute, the others relative L2 of every tensor.
LOGITS, GRADIENTS, SCORES = 1e-4, 1e-4, 1e-4
# Two float32 computations of one thing, relative: another order of sums. 1e-6 is what is wanted; it holds for logits,
# and for losses, not for every single tensor of a gradient: one was seen at 1.6e-6, as float32 gradients here are up to
# 1.7e-6 from float64 themselves. So a single tensor has a wider bound, all together the one that `earned` counts.
ALIKE, TENSORS = 1e-6, 4e-6
REFERENCE = Compute(attention="reference", chunk=cases.LENGTH)
# Every choice at least once; blocks and chunks that do and do not divide 40 tokens, or exceed them.
COMPUTES = {
    "reference": REFERENCE,
    "blocked": Compute(),
    "short last block": Compute(block=7, chunk=16),
    "whole blocks": Compute(block=8, chunk=20),
    "remat full": Compute(remat="full", block=16, chunk=1),
    "remat dots": Compute(remat="dots", block=16, chunk=39),
    "reference, remat full": Compute(remat="full", attention="reference", chunk=7),
    "unrolled": Compute(unroll=2, block=16),
    "unrolled, remat dots": Compute(unroll=3, remat="dots", block=9),
}


@dataclasses.dataclass(frozen=True)
class Golden:
    """One case: the model, its documents, and what transformers found."""

    name: str
    about: dict[str, Any]
    arrays: dict[str, np.ndarray]

    @functools.cached_property
    def weights(self) -> cases.Weights:
        return cases.weights(self.about["config"], self.about["seed"])

    @functools.cached_property
    def config(self) -> models.DecoderConfig:
        return models.parse(self.about["config"])

    @functools.cached_property
    def params(self) -> trees.Tree:
        return stack(self.weights, self.config)

    @functools.cached_property
    def groups(self) -> list[list[cases.Sample]]:
        return cases.groups(self.about["config"], self.about["seed"])

    def under(self, prefix: str) -> dict[str, np.ndarray]:
        """The arrays below a prefix, by the rest of their names."""
        return {name.removeprefix(prefix): each for name, each in self.arrays.items() if name.startswith(prefix)}

    def layer(self, index: int) -> trees.Tree:
        """The parameters of one layer."""
        return jax.tree.map(lambda leaf: leaf[index], self.params["layers"])


@functools.cache
def read(name: str) -> Golden:
    with safe_open(cases.HERE / f"{name}.safetensors", "np") as file:
        about = json.loads(file.metadata()["case"])
        return Golden(name, about, {key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118


@pytest.fixture(params=list(cases.CASES))
def golden(request: pytest.FixtureRequest) -> Golden:
    return read(request.param)


@pytest.fixture(params=["gqa", "llama3"])
def grouped(request: pytest.FixtureRequest) -> Golden:
    """The cases with grouped heads, one tied, one not: enough for what depends on no config."""
    return read(request.param)


def test_golden_is_of_these_models(golden: Golden) -> None:
    assert golden.about["config"] == cases.CASES[golden.name]
    assert golden.about["seed"] == cases.seed(golden.name)
    assert golden.about["weights"] == cases.digest(golden.weights)
    assert all(np.isfinite(each).all() for each in golden.arrays.values())
    assert all(np.abs(each).max() > 0 for each in golden.arrays.values())


def test_golden_files_are_small() -> None:
    assert sum(path.stat().st_size for path in cases.HERE.iterdir() if path.is_file()) < 1_000_000


# Block by block.


def angles(golden: Golden) -> tuple[jax.Array, jax.Array]:
    return rotary.angles(golden.config.head_dim, golden.config.kinds[0], cases.LENGTH)


def test_angles(golden: Golden) -> None:
    cos, sin = angles(golden)
    for found, name in ((cos, "cos"), (sin, "sin")):
        expected = golden.arrays[f"blocks/{name}"]  # transformers repeats the angles for the second half of a head
        np.testing.assert_allclose(np.concatenate([found[:, 0]] * 2, axis=-1), expected, atol=1e-5, rtol=0)


def test_llama3_frequencies_by_hand() -> None:
    # Wavelengths 2 pi 100^(h / 4), context 32: kept below 32 / 4, stretched by 8 above 32 / 1. Between them
    # 32 / 19.869 = 1.6105, so (1.6105 - 1) / (4 - 1) = 0.20351 of it is kept.
    kept = 0.20351
    by_hand = [1.0, (kept + (1 - kept) / 8) / 10**0.5, 0.1 / 8, 0.1 / 10**0.5 / 8]
    np.testing.assert_allclose(rotary._frequencies(8, 100.0, read("llama3").config.rope_scaling), by_hand, rtol=1e-4)


def inputs(golden: Golden) -> tuple[np.ndarray, jax.Array]:
    """What enters layer 1 in transformers, [1, T, D], and one document number for all tokens."""
    return golden.arrays["blocks/model.layers.0"][None], jnp.ones((1, cases.LENGTH), jnp.int32)


@pytest.mark.parametrize("attention", ["blocked", "reference"])
def test_blocks_of_a_layer(golden: Golden, attention: str) -> None:
    compute = Compute(attention=attention, block=16)
    x, segments = inputs(golden)
    rope = angles(golden)
    watched = ("__call__", "norm", "project")
    run = functools.partial(
        decoder._Layer(golden.config, compute).apply,
        capture_intermediates=lambda _, method: method in watched,
        mutable=["intermediates"],
    )
    (out, _), state = jax.jit(run)({"params": golden.layer(1)}, x, segments, rope)
    kept = state["intermediates"]
    queries, keys, values, attended = kept["self_attn"]["project"]
    heads = (1, cases.LENGTH, -1, golden.config.head_dim)
    found = {
        "": out,
        ".input_layernorm": kept["norm"][0],
        ".self_attn.query": rotary.rotate(queries.reshape(heads), *rope),
        ".self_attn.key": rotary.rotate(keys.reshape(heads), *rope),
        ".self_attn.v_proj": values,
        ".self_attn": attended,
        ".post_attention_layernorm": kept["norm"][1],
        ".mlp": kept["mlp"]["__call__"][0],
    }
    expected = golden.under("blocks/model.layers.1")
    assert found.keys() == expected.keys()
    for name, each in found.items():
        np.testing.assert_allclose(each[0], expected[name], atol=LOGITS, rtol=0, err_msg=name)


@pytest.mark.parametrize("attention", ["blocked", "reference"])
def test_attention_alone(golden: Golden, attention: str) -> None:
    _, segments = inputs(golden)
    expected = golden.under("blocks/model.layers.1")
    out = jax.jit(decoder._Attention(golden.config, Compute(attention=attention, block=16)).apply)(
        {"params": golden.layer(1)["self_attn"]},
        expected[".input_layernorm"][None],
        segments,
        angles(golden),
    )
    np.testing.assert_allclose(out[0], expected[".self_attn"], atol=LOGITS, rtol=0)


def test_mlp_alone(golden: Golden) -> None:
    _, segments = inputs(golden)
    expected = golden.under("blocks/model.layers.1")
    out = jax.jit(decoder._Mlp(golden.config, Compute()).apply)(
        {"params": golden.layer(1)["mlp"]}, expected[".post_attention_layernorm"][None], segments
    )
    np.testing.assert_allclose(out[0], expected[".mlp"], atol=LOGITS, rtol=0)


def test_norm_alone(golden: Golden) -> None:
    x = golden.arrays[f"blocks/model.layers.{golden.config.layers - 1}"]
    scaled = decoder._normalize(jnp.asarray(x), golden.config.eps) * golden.params["norm"][None]
    np.testing.assert_allclose(scaled, golden.arrays["blocks/model.norm"], atol=LOGITS, rtol=0)
    # The eps of these models is seen: another one is not near.
    other = decoder._normalize(jnp.asarray(x), golden.config.eps + 0.02) * golden.params["norm"][None]
    assert np.abs(other - golden.arrays["blocks/model.norm"]).max() > 10 * LOGITS


def test_outputs_of_the_layers(golden: Golden) -> None:
    tokens, segments = cases.pack(golden.groups[0][:1])
    x = jnp.take(golden.params["embed_tokens"], tokens, axis=0)
    np.testing.assert_array_equal(x[0], golden.arrays["blocks/model.embed_tokens"])
    run = jax.jit(decoder._Layer(golden.config, REFERENCE).apply)
    rope = angles(golden)
    for index in range(golden.config.layers):
        x, _ = run({"params": golden.layer(index)}, x, segments, rope)
        np.testing.assert_allclose(x[0], golden.arrays[f"blocks/model.layers.{index}"], atol=LOGITS, rtol=0)
    hidden, _ = jax.jit(functools.partial(models.hidden, golden.config, REFERENCE))(golden.params, tokens, segments)
    np.testing.assert_allclose(hidden[0], golden.arrays["blocks/model.norm"], atol=LOGITS, rtol=0)


# Whole.


@pytest.mark.parametrize("name", ["reference", "short last block"])
def test_logits(golden: Golden, name: str) -> None:
    compute = COMPUTES[name]
    tokens, segments = cases.pack(golden.groups[0])
    found = logits_of(golden.config, compute)(golden.params, tokens, segments)
    np.testing.assert_allclose(found[0], golden.arrays["blocks/logits"], atol=LOGITS, rtol=0)


@pytest.mark.parametrize("change", ["rope_theta", "rope_scaling", "eps", "layers turned round", "gains of one"])
def test_logits_notice_a_change(golden: Golden, change: str) -> None:
    """What the comparison of logits would see: each part of the model matters by far more than the tolerance."""
    config, params = golden.config, golden.params
    if change == "rope_theta":
        config = dataclasses.replace(config, rope_theta=1.1 * config.rope_theta)
    elif change == "rope_scaling" and config.rope_scaling is not None:
        config = dataclasses.replace(config, rope_scaling=None)
    elif change == "rope_scaling":
        config = dataclasses.replace(config, rope_scaling=models.RotaryScaling("linear", 2.0))
    elif change == "eps":
        config = dataclasses.replace(config, eps=1.5 * config.eps + 1e-4)
    elif change == "layers turned round":
        params = params | {"layers": jax.tree.map(lambda leaf: leaf[::-1], params["layers"])}
    else:
        ones = jnp.ones_like(params["layers"]["input_layernorm"])
        params = params | {"layers": params["layers"] | {"input_layernorm": ones}}
    tokens, segments = cases.pack(golden.groups[0])
    found = logits_of(config, REFERENCE)(params, tokens, segments)
    assert np.abs(found[0] - golden.arrays["blocks/logits"]).max() > 10 * LOGITS


def test_bfloat16_is_as_near_as_torch_is(golden: Golden) -> None:
    tokens, segments = cases.pack(golden.groups[0])
    found = logits_of(golden.config, Compute(dtype="bfloat16"))(golden.params, tokens, segments)
    away = distance(found[0], golden.arrays["blocks/logits"])
    # torch's own distance from float64 is the yardstick. Far below it, bfloat16 was not used.
    assert golden.about["bfloat16"] / 5 < away < 2 * golden.about["bfloat16"]


@pytest.mark.parametrize("attention", ["blocked", "reference"])
def test_loss_of_every_sample(golden: Golden, attention: str) -> None:
    """Documents that lie packed in a sample have the loss that each has alone in transformers."""
    samples = [sample for group in golden.groups for sample in group]
    compute = Compute(attention=attention, block=16, chunk=7)
    found = jax.jit(functools.partial(loss.nll, golden.config, compute))(golden.params, batch(samples))
    np.testing.assert_allclose(found.nll, golden.about["nll"], rtol=1e-5)
    assert np.asarray(found.tokens).tolist() == [39, 38, 35, 31, 28, 32]  # documents less one token each
    expected = [sum(int(np.sum(document[1:] % 4 + 1)) for document in sample) for sample in samples]
    assert np.asarray(found.bytes).tolist() == expected


# Every setting on one model, two on all of them. `gqa` has three layers, which two a step do not divide.
@pytest.mark.parametrize(
    ("case", "name"),
    [("gqa", name) for name in COMPUTES]
    + [(case, name) for case in cases.CASES if case != "gqa" for name in ("reference", "short last block")],
)
def test_gradients(case: str, name: str) -> None:
    golden, compute = read(case), COMPUTES[name]
    found, _ = gradient_of(golden.config, compute)(golden.params, batch(golden.groups[0]))
    assert_near(found, stack(golden.under("gradient/"), golden.config), GRADIENTS)


# Scores.


def score(golden: Golden, definition: scoring.Definition, mesh: Any = None, micro: int = 1) -> trees.Tree:
    scorer = scoring.Scorer(golden.config, Compute(block=16), definition, micro=micro, mesh=mesh)
    params, put = golden.params, lambda each: each
    if mesh is not None:
        params = jax.device_put(params, meshes.shardings(models.declare(golden.config), mesh))
        put = functools.partial(meshes.place, mesh=mesh)
    sums, tokens = scorer.start(params), 0
    for group in golden.groups:
        sums, count, _ = scorer.add(params, sums, batch(group), put)
        tokens += count
    assert tokens == 39 + 38 + 35 + 31 + 28 + 32
    return scorer.finish(params, sums, tokens)


@pytest.mark.parametrize("micro", [1, 2])
@pytest.mark.parametrize("weighting", scoring._WEIGHTINGS)
def test_scores(golden: Golden, weighting: str, micro: int) -> None:
    found = score(golden, scoring.Definition(weighting=weighting, group=2), micro=micro)
    assert_near(found, stack(golden.under(f"scores/taylor.{weighting}/"), golden.config, "decoder"), SCORES)


@pytest.mark.parametrize("key", ["taylor_abs.token", "fisher.batch_mean", "wanda.token"])
def test_scores_of_other_rules(key: str) -> None:
    golden, (rule, weighting) = read("llama3"), key.split(".")
    found = score(golden, scoring.Definition(rule=rule, weighting=weighting, group=2))
    assert_near(found, stack(golden.under(f"scores/{key}/"), golden.config, "decoder"), SCORES)


def test_weightings_differ(golden: Golden) -> None:
    """The two golden scores are further apart than the tolerance by far: neither test passes with the other's maths."""
    token, mean = (golden.under(f"scores/taylor.{each}/") for each in scoring._WEIGHTINGS)
    assert all(distance(token[name], mean[name] / 3) > 100 * SCORES for name in token)  # 3 groups


def test_scores_summed_in_bfloat16(golden: Golden) -> None:
    """Three sums in bfloat16 are off by a few times 2^-9, and not by nothing."""
    definition = scoring.Definition(weighting="batch_mean", accumulator="bfloat16", group=2)
    expected = stack(golden.under("scores/taylor.batch_mean/"), golden.config, "decoder")
    away = distances(score(golden, definition), expected)
    assert all(1e-4 < each < 3e-2 for each in away.values()), away


# What must not matter.


PLAIN = Compute(block=16, chunk=16)
ROWS = 8  # one shape, so one compilation: eight samples, the last ones padding alone


def gradients(golden: Golden, samples: list[cases.Sample], compute: Compute = PLAIN) -> tuple[trees.Tree, loss.Loss]:
    """The gradient of the summed loss of up to eight samples, and the loss of each."""
    padded = batch([*samples, *([[]] * (ROWS - len(samples)))])
    slope, found = gradient_of(golden.config, compute)(golden.params, padded)
    return slope, loss.Loss(*(np.asarray(each)[: len(samples)] for each in found))


def flat(golden: Golden) -> list[cases.Sample]:
    """The samples of all groups."""
    return [sample for group in golden.groups for sample in group]


def test_packed_documents_equal_documents_alone(grouped: Golden) -> None:
    packed_slope, packed = gradients(grouped, flat(grouped))
    alone = [[document] for sample in flat(grouped) for document in sample]
    assert len(alone) > ROWS
    (first, some), (second, rest) = gradients(grouped, alone[:ROWS]), gradients(grouped, alone[ROWS:])
    assert_near(packed_slope, jax.tree.map(jnp.add, first, second), TENSORS)
    apart = np.concatenate([some.nll, rest.nll])
    sizes = [len(sample) for sample in flat(grouped)]
    sums = np.add.reduceat(apart, np.cumsum([0, *sizes[:-1]]))
    np.testing.assert_allclose(packed.nll, sums, rtol=ALIKE)
    assert int(packed.tokens.sum()) == int(some.tokens.sum() + rest.tokens.sum())


def test_a_document_does_not_see_another(grouped: Golden) -> None:
    tokens, segments = cases.pack([grouped.groups[0][1]])
    cut = len(grouped.groups[0][1][0])
    logits = functools.partial(logits_of(grouped.config, Compute(block=8)), grouped.params)
    before = np.asarray(logits(tokens, segments))
    other = tokens.copy()
    other[:, :cut] = (tokens[:, :cut] + 1) % grouped.config.vocab
    after = np.asarray(logits(other, segments))
    np.testing.assert_array_equal(before[:, cut:], after[:, cut:])
    assert np.abs(before[:, :cut] - after[:, :cut]).min(axis=-1).max() > 0
    # With the border taken away it does.
    joined = np.asarray(logits(other, np.ones_like(segments))) - np.asarray(logits(tokens, np.ones_like(segments)))
    assert np.abs(joined[:, cut:]).max() > 0.01


def test_a_token_does_not_see_later_ones(grouped: Golden) -> None:
    tokens, segments = cases.pack(grouped.groups[0][:1])
    logits = functools.partial(logits_of(grouped.config, Compute(block=8)), grouped.params)
    before = np.asarray(logits(tokens, segments))
    for cut in (1, 7, 8, 20, 39):  # at and beside the borders of blocks
        other = tokens.copy()
        other[:, cut:] = (tokens[:, cut:] + 1) % grouped.config.vocab
        after = np.asarray(logits(other, segments))
        np.testing.assert_array_equal(before[:, :cut], after[:, :cut])
        assert np.abs(before[:, cut] - after[:, cut]).max() > 0.01


def test_what_stands_in_padding_does_not_matter(grouped: Golden) -> None:
    padded = batch([*flat(grouped), [], []])
    filled = padded._replace(
        tokens=np.where(padded.segments == 0, 7, padded.tokens).astype(np.int32),
        bytes=np.where(padded.segments == 0, 9, padded.bytes).astype(np.int32),
    )
    assert (padded.tokens != filled.tokens).any()
    zeros, sevens = (gradient_of(grouped.config, PLAIN)(grouped.params, each) for each in (padded, filled))
    jax.tree.map(np.testing.assert_array_equal, zeros, sevens)


def test_longer_samples_change_nothing(grouped: Golden) -> None:
    slope, found = gradients(grouped, flat(grouped))
    wider = batch([*flat(grouped), [], []], cases.LENGTH + 13)
    wide_slope, wide = gradient_of(grouped.config, PLAIN)(grouped.params, wider)
    assert_near(wide_slope, slope, TENSORS)
    np.testing.assert_allclose(wide.nll[:6], found.nll, rtol=ALIKE)
    for each in wide:
        assert np.asarray(each)[6:].tolist() == [0, 0]


def test_nothing_but_padding_is_no_loss_and_no_slope(grouped: Golden) -> None:
    slope, found = gradients(grouped, [[]] * ROWS)
    assert all(each.tolist() == [0] * ROWS for each in found)
    assert all(not np.asarray(leaf).any() for leaf in jax.tree.leaves(slope))


def test_order_of_samples(grouped: Golden) -> None:
    order = [3, 0, 5, 4, 1, 2]
    slope, found = gradients(grouped, flat(grouped))
    turned_slope, turned = gradients(grouped, [flat(grouped)[place] for place in order])
    assert_near(turned_slope, slope, TENSORS)
    np.testing.assert_allclose(turned.nll, found.nll[order], rtol=ALIKE)
    assert len(set(found.nll.tolist())) == len(order)


# `linear` has one key head, which two devices cut in half.
@pytest.mark.parametrize(
    ("case", "compute"),
    [
        pytest.param("gqa", PLAIN, id="gqa-blocked"),
        pytest.param("llama3", REFERENCE, id="llama3-reference"),
        pytest.param("linear", REFERENCE, id="linear-reference"),
    ],
)
def test_one_and_eight_devices(case: str, compute: Compute, mesh: jax.sharding.Mesh) -> None:
    golden = read(case)
    host = batch([*flat(golden), [], []])
    slope, found = gradient_of(golden.config, compute)(golden.params, host)
    logits = logits_of(golden.config, compute)(golden.params, host.tokens, host.segments)
    with jax.set_mesh(mesh):
        params = jax.device_put(golden.params, meshes.shardings(models.declare(golden.config), mesh))
        placed = meshes.place(host, mesh)
        wide_slope, wide = gradient_of(golden.config, compute)(params, placed)
        wide_logits = logits_of(golden.config, compute)(params, placed.tokens, placed.segments)
    # They are split in fact: a fourth of a matrix on each device, a fourth of the batch.
    gate = params["layers"]["mlp"]["gate_proj"]
    assert len(gate.sharding.device_set) == 8
    assert gate.addressable_shards[0].data.size * 4 == gate.size
    assert len(placed.tokens.addressable_shards) == 8
    assert placed.tokens.addressable_shards[0].data.shape == (2, cases.LENGTH)
    assert distance(wide_logits, logits) <= ALIKE
    np.testing.assert_allclose(wide.nll, found.nll, rtol=ALIKE)
    assert_near(wide_slope, slope, TENSORS)


def earned(config: models.DecoderConfig, tokens: int) -> float:
    """Return what two float32 computations of a gradient may differ by, relative, from a count of the roundings.

    A sum of n terms takes n roundings, and an entry of the gradient hangs on all of those on the way down to the loss
    and back: K of them, each of at most u = 2^-24 and as good as random, come to sqrt(K) u (Higham and Mary 2019, SIAM
    J. Sci. Comput. 41, A2815), and two computations that sum in different orders to sqrt(2) of that. Which orders these
    are, the processor decides too: for "gqa" 8 devices against 1 were seen below 1e-6, at 1.6e-6 and at 1.8e-6, alike
    in every matrix, since the way down is common to all: there is no single product to be made the same.
    """
    D, T, V, F, NH = config.embed, cases.LENGTH, config.vocab, config.mlp, config.heads * config.head_dim
    layer = 4 * D + config.head_dim + 2 * T + NH + F  # two norms, q and gate, logits, softmax, values, o, down
    there = config.layers * layer + 2 * D + V  # the last norm, the head, the softmax over the vocabulary
    return float(np.sqrt(2 * (2 * there + tokens)) * 2.0**-24)


def test_scores_on_one_and_eight_devices(grouped: Golden, mesh: jax.sharding.Mesh) -> None:
    definition = scoring.Definition(weighting="batch_mean", group=2)
    one = score(grouped, definition)
    with jax.set_mesh(mesh):
        eight = score(grouped, definition, mesh, micro=4)
    assert apart(eight, one) <= earned(grouped.config, tokens=39 + 38 + 35 + 31 + 28 + 32) < TENSORS
    assert_near(eight, one, TENSORS)
    assert_near(eight, stack(grouped.under("scores/taylor.batch_mean/"), grouped.config, "decoder"), SCORES)
