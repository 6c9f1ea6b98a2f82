"""Verbs over trees: paths, scopes, the comparison of structures, and the name of a model's values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from lingregions import mesh as meshes
from lingregions import models
from lingregions import tree as trees
from lingregions.models import roles

# A decoder as a hand draws it; the leaves are names, so that every expected value can be read.
DRAWN = {
    "embed_tokens": "E",
    "layers": {
        "input_layernorm": "n1",
        "mlp": {"down_proj": "d", "up_proj": "u"},
        "post_attention_layernorm": "n2",
        "self_attn": {"q_proj": "q"},
    },
    "norm": "n",
}
PATHS = [
    "embed_tokens",
    "layers.input_layernorm",
    "layers.mlp.down_proj",
    "layers.mlp.up_proj",
    "layers.post_attention_layernorm",
    "layers.self_attn.q_proj",
    "norm",
]

keys = st.sampled_from(["a", "a0", "a_", "a_b", "ab", "b"])  # prefixes of each other, where a wrong order would show
nested = st.dictionaries(
    keys,
    st.recursive(st.integers(0, 9), lambda child: st.dictionaries(keys, child, min_size=1, max_size=3), max_leaves=6),
    max_size=3,
)


def shape(*sizes: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, np.float32)


# Paths.


def test_flatten_joins_the_keys_with_dots_and_sorts():
    assert list(trees.flatten(DRAWN)) == PATHS
    assert trees.flatten(DRAWN)["layers.mlp.up_proj"] == "u"
    assert trees.flatten({}) == {}


@given(nested)
def test_unflatten_undoes_flatten(tree):
    assert trees.unflatten(trees.flatten(tree)) == tree


@given(nested)
def test_the_order_is_the_one_of_jax_and_of_the_sorted_paths(tree):
    flat = trees.flatten(tree)
    assert list(flat.values()) == jax.tree.leaves(tree)
    assert list(flat) == sorted(flat)


@given(nested, st.randoms())
def test_the_order_of_insertion_does_not_matter(tree, random):
    items = list(trees.flatten(tree).items())
    random.shuffle(items)
    assert list(trees.flatten(trees.unflatten(dict(items))).items()) == list(trees.flatten(tree).items())


def test_transform_gives_the_path_and_the_leaves_of_all_trees():
    found = trees.transform(
        lambda path, a, b: f"{path}={a}{b}", {"x": {"y": "1"}, "z": "2"}, {"z": "4", "x": {"y": "3"}}
    )
    assert found == {"x": {"y": "x.y=13"}, "z": "z=24"}


# Scopes.


@pytest.mark.parametrize(
    ("scope", "paths"),
    [
        ("decoder", PATHS[1:6]),
        ("decoder_without_norms", [PATHS[2], PATHS[3], PATHS[5]]),
        ("norms", [PATHS[1], PATHS[4]]),
        ("everything", PATHS),
        ("layers.mlp.*", [PATHS[2], PATHS[3]]),
        ("norm, *.q_proj", [PATHS[5], PATHS[6]]),
        ("embed_tokens,", [PATHS[0]]),
    ],
)
def test_a_scope_keeps_the_paths_that_it_names(scope, paths):
    assert list(trees.flatten(roles.restrict(DRAWN, scope))) == paths


def test_named_scopes_hold_what_the_method_says():
    declared = models.declare(models.PRESETS["llama2-7b"])
    # 32 layers of 202,383,360 parameters, of which 2 x 4096 are norms.
    assert trees.count(roles.restrict(declared, "decoder")) == 6_476_267_520
    assert trees.count(roles.restrict(declared, "decoder_without_norms")) == 6_476_005_376
    assert trees.count(roles.restrict(declared, "norms")) == 32 * 2 * 4096
    assert trees.count(roles.restrict(models.declare(models.PRESETS["llama2-13b"]), "decoder")) == 12_688_179_200


@pytest.mark.parametrize("scope", ["", ",", "decodre", "Layers.*"])
def test_an_empty_scope_is_refused_with_what_there_is(scope):
    with pytest.raises(ValueError, match=r"holds no parameter; named scopes are decoder, .*'embed_tokens'"):
        roles.restrict(DRAWN, scope)


def test_an_empty_scope_of_an_empty_tree_is_refused():
    with pytest.raises(ValueError, match="an empty tree"):
        roles.restrict({}, "everything")


@pytest.mark.parametrize("scope", sorted(roles.SCOPES))
def test_merging_a_scope_back_gives_the_tree(scope):
    assert trees.merge(DRAWN, roles.restrict(DRAWN, scope)) == DRAWN


def test_merge_replaces_and_leaves_its_operands_alone():
    part = {"layers": {"mlp": {"up_proj": "new"}}}
    merged = trees.merge(DRAWN, part)
    assert merged["layers"]["mlp"] == {"down_proj": "d", "up_proj": "new"}
    assert DRAWN["layers"]["mlp"]["up_proj"] == "u"
    assert {path for path in PATHS if trees.flatten(merged)[path] != trees.flatten(DRAWN)[path]} == {PATHS[3]}


def test_merge_refuses_a_path_that_the_tree_lacks():
    with pytest.raises(ValueError, match=r"'layers.mlp.gate_proj' is not in the tree to merge into \(1 such paths\)"):
        trees.merge(DRAWN, {"layers": {"mlp": {"gate_proj": "g", "up_proj": "u"}}})


# Structure.


def test_parallel_trees_pass_whatever_their_dtype():
    trees.assert_parallel({"a": {"b": shape(2, 3)}}, {"a": {"b": np.zeros((2, 3), bool)}})
    trees.assert_parallel({}, {})


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"a": {"b": shape(2, 3)}}, "region: 'c' is missing"),
        ({"a": {"b": shape(2, 3), "x": shape(1)}, "c": shape(4)}, "region: 'a.x' is not among the 2 expected paths"),
        ({"a": {"b": shape(3, 2)}, "c": shape(4)}, r"region: 'a.b' has shape \(3, 2\), expected \(2, 3\)"),
        ({"a": shape(2, 3), "c": shape(4)}, "region: 'a' is not among"),
        # The first in the order of paths is the one that is named.
        ({"a": {"b": shape(2)}, "c": shape(5)}, r"'a.b' has shape \(2,\)"),
        ({"c": shape(5)}, "'a.b' is missing"),
    ],
)
def test_the_first_difference_is_named(other, message):
    with pytest.raises(ValueError, match=message):
        trees.assert_parallel({"a": {"b": shape(2, 3)}, "c": shape(4)}, other, "region")


def test_count_is_exact_beyond_32_bits():
    # One stacked MLP leaf of a 13B model, a scalar, and an empty array: 2,831,155,200 + 1 + 0.
    tree = {"mlp": shape(40, 13_824, 5120), "scalar": shape(), "none": shape(0, 7)}
    assert trees.count(tree) == 2_831_155_201 > 2**31
    assert type(trees.count(tree)) is int
    assert trees.count({"huge": shape(2**40, 2**40)}) == 2**80


# The fingerprint.


@pytest.fixture(scope="module")
def values() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {"a": rng.normal(size=(2, 8, 4)).astype(np.float32), "b": rng.normal(size=(8,)).astype(np.float32)}


def put(tree, mesh, **specs):
    return {
        path: jax.device_put(leaf, NamedSharding(mesh, specs.get(path, PartitionSpec()))) for path, leaf in tree.items()
    }


def test_the_fingerprint_does_not_depend_on_where_the_values_lie(values, mesh, lone_mesh):
    expected = trees.fingerprint(values)
    assert len(expected) == 32
    int(expected, 16)
    flat = meshes.build(tensor=8)
    for tree in (
        jax.tree.map(jnp.asarray, values),
        put(values, lone_mesh),
        put(values, mesh),
        put(values, mesh, a=PartitionSpec("data", "fsdp", "tensor"), b=PartitionSpec(("data", "tensor"))),
        put(values, flat, a=PartitionSpec(None, "tensor"), b=PartitionSpec("tensor")),
    ):
        assert trees.fingerprint(tree) == expected


def test_the_fingerprint_never_changes_between_versions():
    # Recorded once: a change here makes every published region one "of another model".
    drawn = {"w": np.arange(6, dtype=np.float32).reshape(1, 2, 3), "v": np.array([-0.5, 2.0], np.float32)}
    assert trees.fingerprint(drawn) == "b1a6266bde0fdd80bfc98b696aff0e61"


def test_one_changed_bit_anywhere_is_another_model(values):
    found = {trees.fingerprint(values)}
    for place in np.ndindex(2, 8, 4):
        changed = values["a"].copy()
        changed.view(np.uint32)[place] ^= np.uint32(1)
        found.add(trees.fingerprint({**values, "a": changed}))
    for bit in range(32):
        changed = values["b"].copy()
        changed.view(np.uint32)[3] ^= np.uint32(1 << bit)
        found.add(trees.fingerprint({**values, "b": changed}))
    assert len(found) == 1 + 64 + 32


def test_two_values_that_change_places_are_another_model(values):
    flat = values["a"].reshape(-1)
    found = {trees.fingerprint(values)}
    for first in range(0, 64, 7):
        for second in range(first + 1, 64, 9):
            swapped = flat.copy()
            swapped[[first, second]] = swapped[[second, first]]
            found.add(trees.fingerprint({**values, "a": swapped.reshape(2, 8, 4)}))
    assert len(found) == 1 + sum(len(range(first + 1, 64, 9)) for first in range(0, 64, 7))


def test_layers_or_rows_that_change_places_are_another_model(values):
    a = values["a"]
    assert len({trees.fingerprint({"a": each}) for each in (a, a[::-1], a[:, ::-1], a[..., ::-1])}) == 4


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": np.float32([0.0])}, {"a": np.float32([-0.0])}),
        ({"a": np.float32([1.0])}, {"b": np.float32([1.0])}),
        ({"a": {"b": np.float32([1.0])}}, {"a": np.float32([1.0])}),
        ({"a": np.zeros((2, 3), np.float32)}, {"a": np.zeros((3, 2), np.float32)}),
        ({"a": np.zeros(3, np.float32)}, {"a": np.zeros(4, np.float32)}),
        ({"a": np.float32([1e-45])}, {"a": np.float32([0.0])}),
        ({"a": np.float32([1, 2]), "b": np.float32([3])}, {"a": np.float32([1, 3]), "b": np.float32([2])}),
    ],
)
def test_signs_names_shapes_and_places_are_told_apart(one, other):
    assert trees.fingerprint(one) != trees.fingerprint(other)


def test_the_context_belongs_to_the_name(values):
    assert len({trees.fingerprint(values, context) for context in ("", "llama", "llama2")}) == 3


def test_half_precision_is_named_by_the_values_that_it_holds():
    exact = np.float32([0.5, -2.0, 0.0])
    assert trees.fingerprint({"a": jnp.asarray(exact, jnp.bfloat16)}) == trees.fingerprint({"a": exact})


@pytest.mark.parametrize("shape", [(3,), (3, 2), (3, 2, 5)])
def test_where_a_mask_has_entries(shape):
    mask = np.zeros(shape, bool)
    mask.reshape(3, -1)[1, -1] = True
    assert np.asarray(trees.occupied(jnp.asarray(mask))).tolist() == [False, True, False]
