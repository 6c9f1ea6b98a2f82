"""Perturbations: what is outside the region keeps every bit, and what was inside comes back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lingregions import mesh as meshes
from lingregions import models, perturb
from lingregions import tree as trees

SHAPES = {"layers.input_layernorm": (2, 4), "layers.mlp.up_proj": (2, 3, 4), "norm": (4,)}
MASKED = ["layers.input_layernorm", "layers.mlp.up_proj"]
# Bit patterns where arithmetic would show: both zeros, subnormals, infinities, quiet and signalling NaN with payloads.
ODD = [0x00000000, 0x80000000, 0x00000001, 0x807FFFFF, 0x7F800000, 0xFF800000, 0x7FC00123, 0x7F800001, 0xFFFFFFFF]

words = st.one_of(st.sampled_from(ODD), st.integers(0, 2**32 - 1))


def tree(draw: st.DrawFn) -> trees.Tree:
    drawn = {path: draw(hnp.arrays(np.uint32, shape, elements=words)) for path, shape in SHAPES.items()}
    return trees.unflatten({path: jnp.asarray(values.view(np.float32)) for path, values in drawn.items()})


@st.composite
def cases(draw: st.DrawFn) -> tuple[trees.Tree, trees.Tree]:
    """Parameters of any bits, and a region of them."""
    masks = {path: jnp.asarray(draw(hnp.arrays(np.bool_, SHAPES[path]))) for path in MASKED}
    return tree(draw), trees.unflatten(masks)


def bits(tree: trees.Tree) -> dict[str, np.ndarray]:
    return {path: np.asarray(leaf).view(np.uint32) for path, leaf in trees.walk(tree)}


def assert_identical(one: trees.Tree, other: trees.Tree) -> None:
    for path, words in bits(one).items():
        np.testing.assert_array_equal(words, bits(other)[path], err_msg=path)


def full(value: bool) -> trees.Tree:
    return trees.unflatten({path: jnp.full(SHAPES[path], value) for path in MASKED})


@pytest.fixture
def params() -> trees.Tree:
    values = {path: np.float32(np.arange(1, np.prod(size) + 1).reshape(size)) for path, size in SHAPES.items()}
    return trees.unflatten({path: jnp.asarray(leaf) for path, leaf in values.items()})


def test_zero_by_hand(params):
    masks = {"layers": {"input_layernorm": jnp.array([[True, False, False, False], [False, False, True, False]])}}
    found = perturb.zero(params, masks)
    assert found["layers"]["input_layernorm"].tolist() == [[0, 2, 3, 4], [5, 6, 0, 8]]
    assert params["layers"]["input_layernorm"].tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]


def test_removed_values_are_positive_zeros_whatever_they_were():
    params = {"w": jnp.asarray(np.uint32(ODD).view(np.float32))}
    found = perturb.zero(params, {"w": jnp.ones(len(ODD), bool)})
    assert bits(found)["w"].tolist() == [0] * len(ODD)


@given(cases())
def test_a_region_that_is_put_back_leaves_no_trace(case):
    params, masks = case
    assert_identical(perturb.restore(perturb.zero(params, masks), params, masks), params)


@pytest.mark.parametrize("name", sorted(perturb.PERTURBATIONS))
@given(case=cases())
def test_the_complement_keeps_every_bit(name, case):
    params, masks = case
    found, leaves = bits(perturb.PERTURBATIONS[name](params, masks)), trees.flatten(masks)
    for path, words in bits(params).items():
        outside = ~np.asarray(leaves[path]) if path in leaves else np.ones(words.shape, bool)
        np.testing.assert_array_equal(found[path][outside], words[outside], err_msg=path)


@pytest.mark.parametrize("name", sorted(perturb.PERTURBATIONS))
@given(case=cases())
def test_every_perturbation_is_undone(name, case):
    params, masks = case
    assert_identical(perturb.restore(perturb.PERTURBATIONS[name](params, masks), params, masks), params)


@given(cases())
def test_removing_twice_is_removing_once(case):
    params, masks = case
    once = perturb.zero(params, masks)
    assert_identical(perturb.zero(once, masks), once)


@given(st.data())
def test_restore_takes_from_the_original_inside_and_keeps_the_rest(data):
    params, masks = data.draw(cases())
    original = tree(data.draw)
    found, leaves = bits(perturb.restore(params, original, masks)), trees.flatten(masks)
    for path, words in bits(params).items():
        expected = np.where(leaves[path], bits(original)[path], words) if path in leaves else words
        np.testing.assert_array_equal(found[path], expected, err_msg=path)


@pytest.mark.parametrize("name", sorted(perturb.PERTURBATIONS))
def test_an_empty_region_changes_nothing(name, params):
    assert_identical(perturb.PERTURBATIONS[name](params, full(False)), params)
    assert_identical(perturb.PERTURBATIONS[name](params, {}), params)


@pytest.mark.parametrize("name", sorted(perturb.PERTURBATIONS))
def test_the_tree_keeps_its_structure_and_shares_what_the_region_does_not_hold(name, params):
    found = perturb.PERTURBATIONS[name](params, full(True))
    trees.assert_parallel(params, found)
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype("float32")}
    assert found["norm"] is params["norm"]
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(params))


def test_removing_everything_leaves_nothing(params):
    found = perturb.zero(params, full(True))
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(found["layers"]))
    assert np.asarray(found["norm"]).all()


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({"layers": {"mlp": {"gate_proj": np.ones((2, 3, 4), bool)}}}, "region: 'layers.mlp.gate_proj' is not among"),
        (
            {"layers": {"mlp": {"up_proj": np.ones((3, 3, 4), bool)}}},
            r"'layers.mlp.up_proj' has shape \(3, 3, 4\), exp",
        ),
        ({"layers": {"mlp": {"up_proj": np.ones((2, 4, 3), bool)}}}, r"has shape \(2, 4, 3\), expected \(2, 3, 4\)"),
        ({"layers": np.ones((2, 3, 4), bool)}, "region: 'layers' is not among"),
    ],
)
@pytest.mark.parametrize("name", sorted(perturb.PERTURBATIONS))
def test_a_region_of_another_model_is_refused_by_path(params, name, masks, message):
    with pytest.raises(ValueError, match=message):
        perturb.PERTURBATIONS[name](params, masks)
    with pytest.raises(ValueError, match=message):
        perturb.restore(params, params, masks)


def test_restoring_from_another_model_is_refused(params):
    other = {"layers": {"input_layernorm": jnp.ones((2, 5))}, "norm": jnp.ones(4)}
    masks = {"layers": {"input_layernorm": jnp.ones((2, 4), bool)}}
    with pytest.raises(ValueError, match="'layers.input_layernorm' has shape"):
        perturb.restore(params, other, masks)


@pytest.mark.parametrize("name", sorted(perturb.PERTURBATIONS))
def test_sharded_is_unsharded_and_stays_on_its_shards(name, mesh):
    config = models.LlamaConfig(vocab=8, embed=8, mlp=8, layers=2, heads=2, kv_heads=2, head_dim=4, context=8)
    params = models.initialize(config, jax.random.key(0))
    masks = jax.tree.map(lambda leaf: jnp.abs(leaf) > 0.02, trees.restrict(params, "decoder"))
    places = meshes.shardings(models.declare(config), mesh)
    placed, spread = jax.device_put(params, places), jax.device_put(masks, trees.restrict(places, "decoder"))
    found = perturb.PERTURBATIONS[name](placed, spread)
    assert_identical(found, perturb.PERTURBATIONS[name](params, masks))
    back = perturb.restore(found, placed, spread)
    assert_identical(back, params)
    for path, place in trees.walk(places):
        assert trees.flatten(found)[path].sharding == trees.flatten(back)[path].sharding == place, path
