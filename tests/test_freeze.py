"""Constraints on an optimizer: every method keeps its promise, whatever it is put around and wherever it lies."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import strategies
from jax.sharding import NamedSharding, PartitionSpec

from lingregions import freeze, train
from lingregions import tree as trees
from lingregions.models import roles
from lingregions.regions.packed import pack_mask

Tree = dict[str, Any]
RECIPE = train.Recipe(samples=200, batch=1, rate=0.1, decay=0.1, clip=1.0, warmup=3)
SHAPES = {
    "layers.input_layernorm": (2, 16),
    "layers.mlp.down_proj": (2, 16, 32),
    "layers.mlp.up_proj": (2, 32, 16),
    "norm": (16,),
}
SPECS = {
    "layers.input_layernorm": PartitionSpec(None, "fsdp"),
    "layers.mlp.down_proj": PartitionSpec(None, "fsdp", "tensor"),
    "layers.mlp.up_proj": PartitionSpec(None, "tensor", "fsdp"),
    "norm": PartitionSpec("fsdp"),
}


def draw(seed: int, mesh: jax.sharding.Mesh | None = None, change: Callable[..., Any] = lambda values: values) -> Tree:
    """Random leaves of SHAPES, on the mesh where there is one."""
    generator = np.random.default_rng(seed)
    leaves = {path: change(generator.standard_normal(shape).astype(np.float32)) for path, shape in SHAPES.items()}
    if mesh is None:
        return trees.unflatten({path: jnp.asarray(leaf) for path, leaf in leaves.items()})
    return trees.unflatten(
        {path: jax.device_put(leaf, NamedSharding(mesh, SPECS[path])) for path, leaf in leaves.items()}
    )


def layers(tree: Tree) -> Tree:
    return roles.restrict(tree, "decoder")


def masked(mesh: jax.sharding.Mesh | None = None) -> Tree:
    """About a third of every matrix, and all of one: `down_proj` is frozen entirely."""
    masks = draw(5, mesh, lambda values: values > 0.4)
    return trees.transform(
        lambda path, mask: jnp.ones_like(mask) if path == "layers.mlp.down_proj" else mask, layers(masks)
    )


def parameters(mesh: jax.sharding.Mesh | None = None) -> Tree:
    """Weights with a -0.0, a +0.0 and a subnormal among the frozen ones of `up_proj`, and the first of the others."""
    params = draw(1, mesh)
    values = np.array(params["layers"]["mlp"]["up_proj"])
    frozen = np.argwhere(np.asarray(masked()["layers"]["mlp"]["up_proj"]))
    for place, value in zip(frozen, (-0.0, 0.0, 1e-42), strict=False):
        values[tuple(place)] = value
    params["layers"]["mlp"]["up_proj"] = jax.device_put(values, params["layers"]["mlp"]["up_proj"].sharding)
    return params


# How each method is asked for in the contracts. A method that is not here fails them.
OPTIONS: dict[str, dict[str, Any]] = {
    "hard": {},
    "column": {"fraction": "25%"},
    "leaves": {"scope": "*_layernorm,norm"},
    "soft": {"strength": 2.0},
    "l2_sp": {"strength": 0.5},
    "ewc": {"strength": 0.5},
}


def given(name: str, mesh: jax.sharding.Mesh | None = None) -> Any:
    """What a method needs; scores with a tail that `soft` freezes."""
    return {
        "masks": lambda: masked(mesh),
        "scores": lambda: layers(draw(6, mesh, lambda values: np.abs(values) ** 12)),
        "fisher": lambda: layers(draw(6, mesh, np.square)),
        "nothing": lambda: None,
    }[freeze.METHODS[name].given]()


def make(name: str, params: Tree, mesh: jax.sharding.Mesh | None = None) -> freeze.Constraint:
    return freeze.METHODS[name].make(params, given(name, mesh), **OPTIONS[name])


def frozen(name: str) -> dict[str, np.ndarray]:
    """Which entries a method must keep, from its definition, in NumPy."""
    nothing = {path: np.zeros(shape, bool) for path, shape in SHAPES.items()}
    scores = {path: np.asarray(leaf) for path, leaf in trees.flatten(given("soft")).items()}
    if name == "hard":
        return nothing | {path: np.asarray(mask) for path, mask in trees.flatten(masked()).items()}
    if name == "leaves":
        return nothing | {path: np.ones(SHAPES[path], bool) for path in ("layers.input_layernorm", "norm")}
    if name == "soft":
        sizes = {}
        for path, values in scores.items():
            mean = values.mean(axis=tuple(range(1, values.ndim)), keepdims=True)
            sizes[path] = np.round(255 / (1 + 2.0 * values / mean)) == 0
        return nothing | sizes
    if name == "column":
        found = {}
        for path in ("layers.mlp.down_proj", "layers.mlp.up_proj"):
            sums = scores[path].sum(1)  # over the outputs: one sum a column
            kept = np.argsort(np.argsort(-sums, axis=1), axis=1) < sums.shape[1] // 4
            found[path] = np.broadcast_to(kept[:, None, :], SHAPES[path])
        return nothing | found
    return nothing


def run(constraints: list[freeze.Constraint], params: Tree, steps: int = 200) -> Tree:
    """AdamW with clipping and decay inside its constraints, on random gradients, applied as optax does."""
    optimizer = freeze.wrap(train.optimizer(RECIPE), constraints, params)
    arrays = freeze.arrays(constraints)

    @jax.jit
    def advance(carry: Any, arrays: Any, gradients: Tree) -> Any:
        def one(carry: Any, gradient: Tree) -> Any:
            theta, state = carry
            with jax.numpy_dtype_promotion("standard"):
                updates, state = optimizer.update(gradient, state, theta, constraints=arrays)
            return (freeze.apply(theta, updates), state), None

        return jax.lax.scan(one, carry, gradients)[0]

    generator = np.random.default_rng(9)
    gradients = {path: generator.standard_normal((steps, *shape)).astype(np.float32) for path, shape in SHAPES.items()}
    with jax.numpy_dtype_promotion("standard"):
        state = optimizer.init(params)
    return advance((params, state), arrays, trees.unflatten(gradients))[0]


def bits(leaf: Any) -> np.ndarray:
    return np.asarray(leaf).view(np.uint32)


def assert_kept(before: Tree, after: Tree, masks: dict[str, np.ndarray]) -> None:
    """Frozen entries are the same bits; of the others nearly all have moved (in 200 steps of rate 0.1, all have)."""
    ours, theirs = trees.flatten(before), trees.flatten(after)
    for path, mask in masks.items():
        same = bits(ours[path]) == bits(theirs[path])
        assert same[mask].all(), path
        assert not same[~mask].any(), path


# ---- packed masks ----


@hypothesis.given(strategies.sampled_from([(3, 21, 5), (2, 3), (19,), (1,)]), strategies.integers(0, 2**32 - 1))
@hypothesis.settings(max_examples=20)
def test_packing_gives_back_the_mask(shape: tuple[int, ...], seed: int) -> None:
    mask = np.random.default_rng(seed).random(shape) < 0.5
    np.testing.assert_array_equal(np.asarray(pack_mask(jnp.asarray(mask)).unpack()), mask)


def test_a_byte_holds_eight_neighbours_along_one_axis() -> None:
    mask = np.zeros((1, 8, 3), bool)
    mask[0, 0, 0] = mask[0, 3, 0] = mask[0, 7, 1] = True
    packed = pack_mask(jnp.asarray(mask))
    assert packed.axis == 1
    assert np.asarray(packed.bits).tolist() == [[[1 + 8, 128, 0]]]


@pytest.mark.parametrize(
    ("shape", "spec", "axis", "expected"),
    [
        ((2, 64, 32), PartitionSpec(None, "tensor", "fsdp"), 1, PartitionSpec(None, "tensor", "fsdp")),
        # Eight rows split in two are four a device, no whole byte: the columns are packed instead.
        ((2, 8, 32), PartitionSpec(None, "tensor", "fsdp"), 2, PartitionSpec(None, "tensor", "fsdp")),
        ((8, 6, 6), PartitionSpec(None, "tensor", "fsdp"), 0, PartitionSpec(None, "tensor", "fsdp")),
        # No axis gives whole bytes to every device: one is filled up, and is whole everywhere.
        ((3, 6, 10), PartitionSpec(None, "tensor", None), 2, PartitionSpec(None, "tensor", None)),
        ((64,), PartitionSpec("fsdp"), 0, PartitionSpec("fsdp")),
        ((6,), PartitionSpec("fsdp"), 0, PartitionSpec(None)),
    ],
)
def test_packing_keeps_the_shards(
    mesh: jax.sharding.Mesh, shape: tuple[int, ...], spec: PartitionSpec, axis: int, expected: PartitionSpec
) -> None:
    mask = np.random.default_rng(0).random(shape) < 0.5
    packed = pack_mask(jax.device_put(mask, NamedSharding(mesh, spec)))
    assert packed.axis == axis
    assert packed.bits.sharding.is_equivalent_to(NamedSharding(mesh, expected), len(shape))
    assert packed.bits.nbytes == np.prod([-(-n // 8) if place == axis else n for place, n in enumerate(shape)])
    np.testing.assert_array_equal(np.asarray(jax.jit(lambda packed: packed.unpack())(packed)), mask)


# ---- contracts over the registry ----


@pytest.fixture(scope="module")
def trained() -> dict[str, tuple[Tree, Tree]]:
    """{method: (parameters before, after 200 updates)}."""
    found = {}
    for name in freeze.METHODS:
        params = parameters()
        found[name] = (params, run([make(name, params)], params))
    return found


@pytest.mark.parametrize("name", freeze.METHODS)
def test_what_is_frozen_is_the_same_bits_after_200_updates_and_the_rest_moves(
    name: str, trained: dict[str, tuple[Tree, Tree]]
) -> None:
    before, after = trained[name]
    masks = frozen(name)
    if name not in ("l2_sp", "ewc"):
        assert any(mask.any() for mask in masks.values())
    assert_kept(before, after, masks)


@pytest.mark.parametrize("name", freeze.METHODS)
def test_the_same_on_eight_devices(name: str, mesh: jax.sharding.Mesh, trained: dict[str, tuple[Tree, Tree]]) -> None:
    params = parameters(mesh)
    constraint = make(name, params, mesh)
    for path, leaf in constraint.arrays.items():
        for each in jax.tree.leaves(leaf):
            whole = trees.flatten(params)[path].sharding
            assert each.sharding.is_equivalent_to(whole, each.ndim), path
    after = trees.flatten(run([constraint], params))
    assert_kept(params, trees.unflatten(after), frozen(name))
    alone = trees.flatten(trained[name][1])
    for path, leaf in after.items():
        np.testing.assert_allclose(np.asarray(leaf), np.asarray(alone[path]), rtol=1e-3, atol=1e-4, err_msg=path)
    assert constraint.identity == make(name, parameters()).identity


@pytest.mark.parametrize("name", freeze.METHODS)
def test_identity_tells_what_a_constraint_was_made_from(name: str) -> None:
    params = parameters()
    first = make(name, params)
    options = {
        "hard": {"thaw": freeze._Thaw(1, 2)},
        "column": {"fraction": "50%"},
        "leaves": {"scope": "norm"},
    }.get(name, {"strength": 0.25})
    assert freeze.METHODS[name].make(params, given(name), **OPTIONS[name] | options).identity != first.identity
    assert make(name, params).identity == first.identity


def test_all_methods_at_once_are_as_frozen_as_each() -> None:
    params = parameters()
    after = run([make(name, params) for name in freeze.METHODS], params, steps=20)
    every = [frozen(name) for name in freeze.METHODS]
    for path, leaf in trees.flatten(params).items():
        mask = functools.reduce(np.logical_or, [each[path] for each in every])
        same = bits(leaf) == bits(trees.flatten(after)[path])
        assert same[mask].all()
        assert not same[~mask].any()


def test_masks_are_arguments_not_constants() -> None:
    params = parameters()
    for name in freeze.METHODS:
        constraint = make(name, params)
        optimizer = freeze.wrap(optax.sgd(0.1), [constraint], params)
        arrays = freeze.arrays([constraint])
        traced = jax.make_jaxpr(
            lambda arrays, optimizer=optimizer: optimizer.update(
                params, optimizer.init(params), params, constraints=arrays
            )
        )(arrays)
        # `params` themselves are closed over here; nothing else is, whatever its size.
        foreign = [each for each in traced.consts if not any(each is leaf for leaf in jax.tree.leaves(params))]
        assert all(np.size(each) <= 1 for each in foreign), name


# ---- what each does ----


def sgd(constraints: list[freeze.Constraint], params: Tree, gradient: Tree, clip: float = 1e9) -> list[Tree]:
    """Updates of clipped gradient descent with rate 1, step after step (the parameters move)."""
    optimizer = freeze.wrap(optax.chain(optax.clip_by_global_norm(clip), optax.sgd(1.0)), constraints, params)
    state, found = optimizer.init(params), []
    for _ in range(4):
        updates, state = optimizer.update(gradient, state, params, constraints=freeze.arrays(constraints))
        params = freeze.apply(params, updates)
        found.append(updates)
    return found


def one(*values: float) -> Tree:
    """A tree of one stacked gain: a single layer."""
    return {"layers": {"input_layernorm": jnp.asarray([values], jnp.float32)}}


def first(tree: Tree) -> list[float]:
    found: list[float] = np.asarray(tree["layers"]["input_layernorm"])[0].tolist()
    return found


def test_frozen_gradients_do_not_weigh_in_the_norm() -> None:
    masks = {"layers": {"input_layernorm": jnp.asarray([[True, False, False]])}}
    params = one(1, 1, 1)
    # The norm of (3, 4) is 5: clipped to 5 nothing changes, though 1,000 stands beside them.
    updates = sgd([freeze.hard(params, masks)], params, one(1000, 3, 4), clip=5.0)[0]
    np.testing.assert_allclose(first(updates), [0, -3, -4], rtol=1e-6)
    assert np.signbit(first(updates)[0])  # -0.0


def test_a_frozen_minus_zero_stays_under_plain_optax_too() -> None:
    masks = {"layers": {"input_layernorm": jnp.asarray([[True, False]])}}
    params = one(-0.0, 1)
    updates = sgd([freeze.hard(params, masks)], params, one(5, 5))[0]
    assert np.signbit(first(optax.apply_updates(params, updates))[0])


def test_a_whole_leaf_is_kept_from_the_optimizer() -> None:
    params = parameters()
    constraint = freeze.hard(params, masked())
    assert constraint.whole == {"layers.mlp.down_proj"}
    assert set(constraint.arrays) == {"layers.input_layernorm", "layers.mlp.up_proj"}
    with jax.numpy_dtype_promotion("standard"):
        state = freeze.wrap(train.optimizer(RECIPE), [constraint], params).init(params)
        plain = freeze.wrap(train.optimizer(RECIPE), [], params).init(params)
    size = sum(leaf.size for leaf in jax.tree.leaves(state))
    assert sum(leaf.size for leaf in jax.tree.leaves(plain)) - size == 2 * 2 * 16 * 32


def test_a_region_thaws() -> None:
    masks = {"layers": {"input_layernorm": jnp.asarray([[True, False]])}}
    params = one(1, 1)
    at_once = sgd([freeze.hard(params, masks, freeze.thaw(4, 0.5))], params, one(1, 1))
    assert [first(each) for each in at_once] == [[0, -1], [0, -1], [-1, -1], [-1, -1]]
    slowly = sgd([freeze.hard(params, masks, freeze.thaw(4, 0.25, 0.75))], params, one(1, 1))
    assert [first(each) for each in slowly] == [[0, -1], [0, -1], [-0.5, -1], [-1, -1]]
    never = sgd([freeze.hard(params, masks, freeze.thaw(4, 0))], params, one(1, 1))
    assert first(never[0]) == [-1, -1]


def test_a_thawing_region_takes_part_in_the_norm_only_once_it_moves() -> None:
    masks = {"layers": {"input_layernorm": jnp.asarray([[True, False]])}}
    params = one(1, 1)
    found = sgd([freeze.hard(params, masks, freeze.thaw(4, 0.5))], params, one(4, 3), clip=1.0)
    np.testing.assert_allclose(first(found[1]), [0, -1], rtol=1e-6)
    np.testing.assert_allclose(first(found[2]), [-0.8, -0.6], rtol=1e-6)


def test_thaw_refuses_an_order_that_is_none() -> None:
    with pytest.raises(ValueError, match="0 <= begin <= end"):
        freeze.thaw(10, 0.5, 0.25)


def test_soft_slows_by_the_score_over_its_mean() -> None:
    # Mean 1; sizes 1/(1+0), 1/(1+1), 1/(1+2), 1/(1+2000)... the last below half of 1/255: it does not move.
    params = one(1, 1, 1)
    updates = sgd([freeze._soft(params, one(0, 1, 2))], params, one(1, 1, 1))[0]
    np.testing.assert_allclose(first(updates), [-1, -round(255 / 2) / 255, -85 / 255], rtol=1e-6)
    still = first(sgd([freeze._soft(params, one(0, 0, 3), strength=1000)], params, one(1, 1, 1))[0])
    assert still == [-1, -1, 0]
    assert np.signbit(still[2])


def test_soft_leaves_a_matrix_without_scores_alone_and_refuses_what_is_no_score() -> None:
    params = one(1, 1)
    assert first(sgd([freeze._soft(params, one(0, 0))], params, one(1, 2))[0]) == [-1, -2]
    with pytest.raises(ValueError, match="negative or not finite"):
        freeze._soft(params, one(-1, 1))


def test_l2_sp_pulls_to_the_start() -> None:
    params = one(1, 1)
    updates = sgd([freeze._l2_sp(params, strength=0.5)], params, one(2, 0))
    # theta - start is 0, then -2: the pull adds 0.5 x -2 to the gradient of 2.
    assert [first(each) for each in updates[:2]] == [[-2, 0], [-1, 0]]


def test_ewc_pulls_by_the_information_over_its_mean() -> None:
    params = one(1, 1)
    updates = sgd([freeze._ewc(params, one(3, 1), strength=0.5)], params, one(2, 2))
    # Information over its mean: 1.5 and 0.5; the second step adds 0.5 x (1.5, 0.5) x -2.
    assert [first(each) for each in updates[:2]] == [[-2, -2], [-0.5, -1.5]]
    with pytest.raises(ValueError, match="all zero"):
        freeze._ewc(params, one(0, 0), strength=1.0)


def test_fisher_undoes_the_weight_in_the_score() -> None:
    params = one(2, 0, 0.5)
    assert first(freeze.fisher(params, one(8, 0, 1))) == [2, 0, 4]


def test_columns_by_hand() -> None:
    scores = {"layers": {"mlp": {"up_proj": jnp.asarray([[[1.0, 5, 0, 0], [1, 0, 4, 0]]])}}}
    mask = freeze._columns(scores, "25%")["layers"]["mlp"]["up_proj"]
    assert np.asarray(mask).tolist() == [[[False, True, False, False]] * 2]
    mask = freeze._columns(scores, "50%", "out")["layers"]["mlp"]["up_proj"]
    assert np.asarray(mask).tolist() == [[[True] * 4, [False] * 4]]
    names = {"layers.mlp.up_proj": ("layers", "mlp", "embed")}
    named = freeze._columns(scores, "25%", "embed", names)["layers"]["mlp"]["up_proj"]
    assert np.asarray(named).tolist() == [[[False, True, False, False]] * 2]


def test_columns_leave_gains_out_and_refuse_an_axis_that_is_not_there() -> None:
    scores = layers(draw(6, None, np.abs))
    assert set(trees.flatten(freeze._columns(scores, "25%"))) == {"layers.mlp.down_proj", "layers.mlp.up_proj"}
    with pytest.raises(ValueError, match="no matrix has the axis 'vocab'"):
        freeze._columns(scores, "25%", "vocab")


def test_a_region_of_another_model_is_refused() -> None:
    params = parameters()
    with pytest.raises(ValueError, match=r"region: 'layers.mlp.gate_proj' is not among"):
        freeze.hard(params, {"layers": {"mlp": {"gate_proj": jnp.ones((2, 32, 16), bool)}}})
    with pytest.raises(ValueError, match="expected"):
        freeze.hard(params, {"layers": {"mlp": {"up_proj": jnp.ones((2, 16, 16), bool)}}})
    with pytest.raises(ValueError, match="a mask is bool"):
        freeze.hard(params, {"layers": {"mlp": {"up_proj": jnp.ones((2, 32, 16))}}})


def test_names_are_distinct() -> None:
    params = parameters()
    constraint = freeze.hard(params, masked())
    with pytest.raises(ValueError, match="distinct names"):
        freeze.wrap(optax.sgd(1.0), [constraint, constraint], params)
    freeze.wrap(optax.sgd(1.0), [constraint, dataclasses.replace(constraint, name="again")], params)


def test_verify_counts_the_bits_that_differ() -> None:
    params = parameters()
    freeze.verify(params, params, masked())
    values = np.array(params["layers"]["mlp"]["down_proj"])
    values[1, 0, :3] += 1
    values[1, 4, 4] = -values[1, 4, 4]
    changed = trees.merge(params, {"layers": {"mlp": {"down_proj": jnp.asarray(values)}}})
    with pytest.raises(ValueError, match=r"model.layers.1.mlp.down_proj.weight: 4 frozen entries"):
        freeze.verify(params, changed, masked())
    # Equal as numbers, not as bits.
    zero = one(0.0)
    with pytest.raises(ValueError, match="1 frozen"):
        freeze.verify(zero, one(-0.0), {"layers": {"input_layernorm": jnp.ones((1, 1), bool)}})
    # A weight outside of the region may be anything.
    free = trees.merge(params, {"norm": params["norm"] + 1})
    freeze.verify(params, free, masked())
