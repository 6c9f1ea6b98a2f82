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
from lingregions.models import roles

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


def do(name: str, params: trees.Tree, masks: trees.Tree) -> trees.Tree:
    """Any perturbation of the registry, with what it needs."""
    return perturb.apply(params, masks, name, **needs(name))


def needs(name: str) -> dict[str, float | int]:
    kind = perturb.PERTURBATIONS[name]
    return ({} if kind.amount is None else {"amount": 3.0}) | ({"seed": 5} if kind.draws else {})


def full(value: bool) -> trees.Tree:
    return trees.unflatten({path: jnp.full(SHAPES[path], value) for path in MASKED})


@pytest.fixture
def params() -> trees.Tree:
    values = {path: np.float32(np.arange(1, np.prod(size) + 1).reshape(size)) for path, size in SHAPES.items()}
    return trees.unflatten({path: jnp.asarray(leaf) for path, leaf in values.items()})


def test_zero_by_hand(params):
    masks = {"layers": {"input_layernorm": jnp.array([[True, False, False, False], [False, False, True, False]])}}
    found = perturb.apply(params, masks, "zero")
    assert found["layers"]["input_layernorm"].tolist() == [[0, 2, 3, 4], [5, 6, 0, 8]]
    assert params["layers"]["input_layernorm"].tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]


def test_removed_values_are_positive_zeros_whatever_they_were():
    params = {"w": jnp.asarray(np.uint32(ODD).view(np.float32))}
    found = perturb.apply(params, {"w": jnp.ones(len(ODD), bool)}, "zero")
    assert bits(found)["w"].tolist() == [0] * len(ODD)


@given(cases())
def test_a_region_that_is_put_back_leaves_no_trace(case):
    params, masks = case
    assert_identical(perturb.revert(perturb.apply(params, masks, "zero"), params, masks, 1.0), params)


@pytest.mark.parametrize("name", sorted(perturb.PERTURBATIONS))
@given(case=cases())
def test_the_complement_keeps_every_bit(name, case):
    params, masks = case
    found, leaves = bits(do(name, params, masks)), trees.flatten(masks)
    for path, words in bits(params).items():
        outside = ~np.asarray(leaves[path]) if path in leaves else np.ones(words.shape, bool)
        np.testing.assert_array_equal(found[path][outside], words[outside], err_msg=path)


@pytest.mark.parametrize("name", sorted(perturb.PERTURBATIONS))
@given(case=cases())
def test_every_perturbation_is_undone(name, case):
    params, masks = case
    assert_identical(perturb.revert(do(name, params, masks), params, masks, 1.0), params)


@given(cases())
def test_removing_twice_is_removing_once(case):
    params, masks = case
    once = perturb.apply(params, masks, "zero")
    assert_identical(perturb.apply(once, masks, "zero"), once)


@given(st.data())
def test_restore_takes_from_the_original_inside_and_keeps_the_rest(data):
    params, masks = data.draw(cases())
    original = tree(data.draw)
    found, leaves = bits(perturb.revert(params, original, masks, 1.0)), trees.flatten(masks)
    for path, words in bits(params).items():
        expected = np.where(leaves[path], bits(original)[path], words) if path in leaves else words
        np.testing.assert_array_equal(found[path], expected, err_msg=path)


@pytest.mark.parametrize("name", sorted(perturb.PERTURBATIONS))
def test_an_empty_region_changes_nothing(name, params):
    assert_identical(do(name, params, full(False)), params)
    assert_identical(do(name, params, {}), params)


@pytest.mark.parametrize("name", sorted(perturb.PERTURBATIONS))
def test_the_tree_keeps_its_structure_and_shares_what_the_region_does_not_hold(name, params):
    found = do(name, params, full(True))
    trees.assert_parallel(params, found)
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype("float32")}
    assert found["norm"] is params["norm"]
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(params))


def test_removing_everything_leaves_nothing(params):
    found = perturb.apply(params, full(True), "zero")
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
        do(name, params, masks)
    with pytest.raises(ValueError, match=message):
        perturb.revert(params, params, masks, 1.0)


def test_restoring_from_another_model_is_refused(params):
    other = {"layers": {"input_layernorm": jnp.ones((2, 5))}, "norm": jnp.ones(4)}
    masks = {"layers": {"input_layernorm": jnp.ones((2, 4), bool)}}
    with pytest.raises(ValueError, match="'layers.input_layernorm' has shape"):
        perturb.revert(params, other, masks, 1.0)


@pytest.mark.parametrize("name", sorted(perturb.PERTURBATIONS))
def test_sharded_is_unsharded_and_stays_on_its_shards(name, mesh):
    config = models.DecoderConfig(vocab=8, embed=8, mlp=8, layers=2, heads=2, kv_heads=2, head_dim=4, context=8)
    params = models.initialize(config, jax.random.key(0))
    masks = jax.tree.map(lambda leaf: jnp.abs(leaf) > 0.02, roles.restrict(params, "decoder"))
    places = meshes.shardings(models.declare(config), mesh)
    placed, spread = jax.device_put(params, places), jax.device_put(masks, roles.restrict(places, "decoder"))
    found = do(name, placed, spread)
    for path, leaf in trees.walk(do(name, params, masks)):  # `noise` and `mean` add up, in another order
        bound = 1e-5 if name in ("noise", "mean") else 0
        np.testing.assert_allclose(trees.flatten(found)[path], leaf, rtol=bound, atol=bound * 1e-3, err_msg=path)
    back = perturb.revert(found, placed, spread, 1.0)
    assert_identical(back, params)
    for path, place in trees.walk(places):
        assert trees.flatten(found)[path].sharding == trees.flatten(back)[path].sharding == place, path


# What each does, by hand; the rest holds for all.


def one(name: str, values: list[list[float]], inside: list[list[int]], **asked: float | int) -> np.ndarray:
    """A perturbation of one stacked leaf of one layer."""
    params = {"layers": {"w": jnp.asarray([values], jnp.float32)}}
    masks = {"layers": {"w": jnp.asarray([inside], bool)}}
    return np.asarray(perturb.apply(params, masks, name, **asked)["layers"]["w"][0])


@pytest.mark.parametrize(
    ("name", "amount", "expected"),
    [
        ("zero", None, [[0, 2], [3, 0]]),
        ("set", -7.0, [[-7, 2], [3, -7]]),
        ("scale", 0.5, [[0.5, 2], [3, -2]]),
        ("negate", None, [[-1, 2], [3, 4]]),
        ("mean", None, [[0.5, 2], [3, 0.5]]),
    ],
)
def test_by_hand(name, amount, expected):
    asked = {} if amount is None else {"amount": amount}
    assert one(name, [[1, 2], [3, -4]], [[1, 0], [0, 1]], **asked).tolist() == expected


@pytest.mark.parametrize(
    ("name", "amount", "expected"),
    [("zero", None, [-1, 2]), ("set", 3.0, [2, 2]), ("scale", 2.0, [2, 2]), ("negate", None, [-2.5, 2])],
)
def test_a_gain_that_is_used_as_one_plus_it_is_changed_as_it_is_used(name, amount, expected):
    params = {"layers": {"norm": jnp.asarray([[0.5, 2]])}, "norm": jnp.asarray([0.5, 2])}
    inside = jnp.asarray([True, False])
    masks, offsets = {"layers": {"norm": inside[None]}, "norm": inside}, {"layers.norm": 1.0}
    found = perturb.apply(params, masks, name, amount, offsets=offsets)
    assert found["layers"]["norm"].tolist() == [expected]
    assert found["norm"].tolist() == perturb.apply(params, masks, name, amount)["norm"].tolist()  # that one has none
    with perturb.applied(params, masks, name, amount, offsets=offsets) as changed:
        assert changed["layers"]["norm"].tolist() == [expected]
    assert params["layers"]["norm"].tolist() == [[0.5, 2]]


def test_each_layer_has_its_own_mean_and_its_own_noise():
    params = {"layers": {"w": jnp.asarray([[[1, 3]], [[10, 30]]], jnp.float32)}}
    masks = {"layers": {"w": jnp.asarray([[[True, False]], [[True, False]]])}}
    assert perturb.apply(params, masks, "mean")["layers"]["w"].tolist() == [[[2, 3]], [[20, 30]]]
    found = np.asarray(perturb.apply(params, masks, "noise", amount=1.0, seed=0)["layers"]["w"])
    # One scalar a layer: noise of its own norm is plus or minus itself.
    np.testing.assert_allclose(np.abs(found[:, 0, 0] - [1, 10]), [1, 10], rtol=1e-6)


@given(st.integers(0, 2**31 - 1), st.sampled_from([0.25, 1.0, 4.0]))
def test_noise_has_the_norm_that_was_asked_for(seed, amount):
    rng = np.random.default_rng(seed)
    values, inside = rng.normal(size=(5, 6)).astype(np.float32), rng.random((5, 6)) < 0.5
    inside[0, 0] = True
    found = one("noise", values.tolist(), inside.tolist(), amount=amount, seed=seed)
    norm = np.linalg.norm((found - values)[inside])
    np.testing.assert_allclose(norm, amount * np.linalg.norm(values[inside]), rtol=1e-4)
    again = one("noise", values.tolist(), inside.tolist(), amount=amount, seed=seed)
    np.testing.assert_array_equal(found, again)
    assert (found != one("noise", values.tolist(), inside.tolist(), amount=amount, seed=seed + 1)).any()


@given(st.integers(0, 2**31 - 1))
def test_shuffling_keeps_the_values_and_moves_them(seed):
    rng = np.random.default_rng(seed)
    values, inside = np.arange(1, 31, dtype=np.float32).reshape(5, 6), rng.random((5, 6)) < 0.7
    found = one("shuffle", values.tolist(), inside.tolist(), seed=seed)
    assert sorted(found[inside].tolist()) == sorted(values[inside].tolist())
    assert (found[inside] != values[inside]).any()


@pytest.mark.parametrize(
    ("name", "asked", "message"),
    [
        ("remove", {}, "no perturbation 'remove'; there are zero, set"),
        ("scale", {}, "scale needs an amount"),
        ("zero", {"amount": 1.0}, "zero takes no amount; 1.0 was given"),
        ("noise", {}, "noise needs a seed"),
        ("negate", {"seed": 1}, "negate takes no seed"),
    ],
)
def test_what_a_perturbation_needs(params, name, asked, message):
    with pytest.raises(ValueError, match=message):
        perturb.apply(params, full(True), name, **asked)
    with pytest.raises(ValueError, match=message), perturb.applied(params, full(True), name, **asked):
        pass


def test_setting_a_region_back_by_hand(params):
    masks = {"layers": {"input_layernorm": jnp.array([[True, False, False, False], [False, False, True, False]])}}
    moved = jax.tree.map(lambda leaf: leaf + 4, params)
    found = perturb.revert(moved, params, masks, 0.25)
    assert found["layers"]["input_layernorm"].tolist() == [[4, 6, 7, 8], [9, 10, 10, 12]]
    whole = perturb.revert(moved, params, masks, 1.0)
    assert whole["layers"]["input_layernorm"].tolist() == [[1, 6, 7, 8], [9, 10, 7, 12]]
    assert_identical(perturb.revert(moved, params, masks, 0.0), moved)
    with pytest.raises(ValueError, match="between 0 and 1, not by 2"):
        perturb.revert(moved, params, masks, 2)


@pytest.mark.parametrize("name", sorted(perturb.PERTURBATIONS))
def test_what_is_drawn_is_drawn_for_one_layer_after_the_other(name, params):
    program = str(jax.make_jaxpr(lambda params: perturb.apply(params, full(True), name, **needs(name)))(params))
    assert ("scan[" in program) == perturb.PERTURBATIONS[name].draws


# In place, for a while.

CROWDS = {
    "alone in rows": [[1, 0, 0], [0, 1, 0]],
    "alone in columns": [[1, 0, 1], [0, 1, 0]],
    "crowded": [[1, 1, 0]] * 2,
}


@pytest.mark.parametrize("crowd", CROWDS, ids=lambda name: name.replace(" ", "-"))
@pytest.mark.parametrize("name", sorted(perturb.PERTURBATIONS))
def test_applied_is_apply_for_a_while_and_leaves_every_bit(name, crowd):
    drawn = np.random.default_rng(0).choice(np.uint32([*ODD, 0x40490FDB, 0xC0490FDB]), (2, 2, 3))
    params = {"layers": {"w": jnp.copy(drawn.view(np.float32))}, "norm": jnp.ones(3)}
    masks = {"layers": {"w": jnp.asarray([CROWDS[crowd], [[0, 0, 0], [0, 0, 1]]], bool)}}
    # Looking at an array from NumPy would hold its memory: what is to be changed in place is looked at afterwards only.
    before, expected = (
        {"layers.w": drawn, "norm": np.ones(3, np.float32).view(np.uint32)},
        bits(do(name, params, masks)),
    )
    norm, old = params["norm"], params["layers"]["w"]
    with perturb.applied(params, masks, name, **needs(name)) as changed:
        assert changed is params
        assert old.is_deleted() == (crowd != "crowded")
        # The payload of a NaN that came out of arithmetic is nobody's promise.
        during = jnp.copy(params["layers"]["w"])
        assert params["norm"] is norm
    np.testing.assert_array_equal(during, expected["layers.w"].view(np.float32))
    for path, words in before.items():
        np.testing.assert_array_equal(bits(params)[path], words)


@given(hnp.arrays(np.bool_, hnp.array_shapes(min_dims=1, max_dims=3, max_side=4)).filter(np.any))
def test_an_axis_on_which_every_entry_is_alone_is_found_in_all_layers(mask):
    axis = perturb._lonely(jnp.asarray(mask), int(np.flatnonzero(mask.reshape(len(mask), -1).any(1))[0]))
    alone = [each for each in (-1, -2)[: mask.ndim] if mask.sum(axis=each).max() == 1]
    assert axis == (alone[0] if alone else None)


@pytest.mark.parametrize("name", sorted(perturb.PERTURBATIONS))
def test_a_region_in_one_layer_is_changed_there_in_place(name):
    """What is drawn there is what is drawn in the change of all layers."""
    drawn = np.random.default_rng(0).normal(size=(3, 2, 3)).astype(np.float32)
    params = {"layers": {"w": jnp.copy(drawn)}}
    masks = {"layers": {"w": jnp.asarray([[[0, 0, 0]] * 2, [[0, 0, 0]] * 2, CROWDS["crowded"]], bool)}}
    expected, old = bits(do(name, params, masks)), params["layers"]["w"]
    with perturb.applied(params, masks, name, **needs(name)):
        assert old.is_deleted()
        during = jnp.copy(params["layers"]["w"])
    np.testing.assert_array_equal(np.asarray(during).view(np.uint32), expected["layers.w"])
    np.testing.assert_array_equal(params["layers"]["w"], drawn)


def test_applied_puts_back_after_an_error(params):
    masks = full(False)
    masks["layers"]["input_layernorm"] = masks["layers"]["input_layernorm"].at[1, 2].set(True)
    before = bits(params)

    def fail() -> None:
        with perturb.applied(params, masks, "zero"):
            assert params["layers"]["input_layernorm"][1, 2] == 0
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        fail()
    for path, words in before.items():
        np.testing.assert_array_equal(bits(params)[path], words)


def test_applied_on_shards(mesh):
    config = models.DecoderConfig(vocab=8, embed=8, mlp=8, layers=2, heads=2, kv_heads=2, head_dim=4, context=8)
    places = meshes.shardings(models.declare(config), mesh)
    params = jax.device_put(models.initialize(config, jax.random.key(0)), places)
    before = bits(params)
    mask = jnp.zeros((2, 8, 8), bool).at[1, 3, 5].set(True).at[0, 3, 5].set(True)
    masks = {"layers": {"mlp": {"down_proj": jax.device_put(mask, places["layers"]["mlp"]["down_proj"])}}}
    with perturb.applied(params, masks, "scale", amount=10.0):
        changed = bits(params)["layers.mlp.down_proj"] != before["layers.mlp.down_proj"]
        assert changed.sum() == 2
        assert params["layers"]["mlp"]["down_proj"].sharding == places["layers"]["mlp"]["down_proj"]
    assert_identical(
        params, jax.tree.map(jnp.asarray, trees.unflatten({k: v.view(np.float32) for k, v in before.items()}))
    )
