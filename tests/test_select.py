"""Selection equals a stable sort, on the host and on the device, whole and sharded; and says what it met."""

import fractions
import functools
import importlib.util
import json
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jax.sharding import NamedSharding, PartitionSpec

from lingregions import mesh as meshes
from lingregions import permutation
from lingregions import tree as trees
from lingregions.regions import SELECTORS, Provenance, equals, select, subtract, total
from lingregions.regions import region as regions
from lingregions.regions.rank_device import rank
from lingregions.regions.select import _decimal, parse

TINY = np.float32(1e-45)  # the smallest subnormal: zero to hardware that flushes
VALUES = [0.0, -0.0, TINY, 2 * TINY, np.float32(1e-38), 0.5, 1.0, np.float32(1 + 2**-23), 2.0, 3e38, np.inf]
SHARDS = {
    "embed_tokens": PartitionSpec("tensor", "fsdp"),
    "layers.mlp.up_proj": PartitionSpec(None, "tensor", "fsdp"),
    "layers.input_layernorm": PartitionSpec(None, "fsdp"),
}


def stable(scores: np.ndarray, fraction: float, largest: bool) -> np.ndarray:
    """The definition: the first floor(fraction x size) of a stable sort of one matrix."""
    count = int(fractions.Fraction(str(fraction)) * scores.size)
    flat = scores.reshape(-1).astype(np.float64) + 0.0
    mask = np.zeros(scores.size, bool)
    mask[np.argsort(-flat if largest else flat, kind="stable")[:count]] = True
    return mask.reshape(scores.shape)


def sharded(leaves: dict[str, np.ndarray]) -> trees.Tree:
    mesh = meshes.build(data=1, fsdp=2, tensor=4)
    return trees.unflatten(
        {path: jax.device_put(leaf, NamedSharding(mesh, SHARDS[path])) for path, leaf in leaves.items()}
    )


def whole(leaves: dict[str, np.ndarray]) -> trees.Tree:
    return trees.unflatten({path: jnp.asarray(leaf) for path, leaf in leaves.items()})


def draw(seed: int, kinds: int | None = None) -> dict[str, np.ndarray]:
    """Scores of a tiny model: all different, or of a few values."""
    generator = np.random.default_rng(seed)

    def leaf(*shape: int) -> np.ndarray:
        values = np.abs(generator.standard_normal(shape)).astype(np.float32)
        return values if kinds is None else generator.choice(np.array(VALUES[:kinds], np.float32), shape)

    return {
        "embed_tokens": leaf(16, 8),
        "layers.input_layernorm": leaf(3, 8),
        "layers.mlp.up_proj": leaf(3, 12, 8),
    }


# One shape for every example: the device implementation compiles once.
@given(
    scores=hnp.arrays(np.float32, (2, 6, 7), elements=st.sampled_from(VALUES)),
    fraction=st.sampled_from([1e-7, 0.01, 0.03, 0.1, 0.25, 0.5, 0.9, 1.0]),
    selector=st.sampled_from(["top", "bottom"]),
    method=st.sampled_from(["host", "device"]),
)
@settings(max_examples=200)
def test_selection_equals_a_stable_sort(scores: np.ndarray, fraction: float, selector: str, method: str) -> None:
    tree = {"layers": {"w": jnp.asarray(scores)}}
    found = np.asarray(select(tree, fraction, selector, method=method).masks["layers"]["w"])
    for layer in range(2):
        np.testing.assert_array_equal(found[layer], stable(scores[layer], fraction, selector == "top"))


@pytest.mark.parametrize("kinds", [None, 1, 3, len(VALUES)])
@pytest.mark.parametrize("within", ["matrix", "scope"])
def test_sharded_equals_whole_and_device_equals_host(kinds: int | None, within: str) -> None:
    leaves = draw(0, kinds)
    for selector in ("top", "bottom"):
        for fraction in (0.05, 0.6):
            host = select(whole(leaves), fraction, selector, within=within, method="host")
            for tree, method in ((whole(leaves), "device"), (sharded(leaves), "device"), (sharded(leaves), "host")):
                other = select(tree, fraction, selector, within=within, method=method)
                assert equals(host, other)
                assert other.provenance == host.provenance
                for path, mask in other.leaves().items():
                    assert mask.sharding == trees.flatten(tree)[path].sharding
            everything = np.concatenate([leaf.reshape(-1) for leaf in leaves.values()])
            for path, mask in host.leaves().items():
                layers = zip(leaves[path], np.asarray(mask), strict=True)
                if within == "matrix":
                    pairs = layers if path.startswith("layers.") else [(leaves[path], np.asarray(mask))]
                    for scores, taken in pairs:
                        np.testing.assert_array_equal(taken, stable(scores, fraction, selector == "top"))
            if within == "scope":
                taken = np.concatenate([np.asarray(mask).reshape(-1) for mask in host.leaves().values()])
                np.testing.assert_array_equal(taken, stable(everything, fraction, selector == "top"))


def test_large_matrices_meet_the_bracket_and_the_chunks() -> None:
    generator = np.random.default_rng(1)
    heavy = np.abs(generator.standard_cauchy((300, 700))).astype(np.float32)
    rounded = np.floor(heavy * 4).astype(np.float32)  # thousands of ties at every threshold
    ramp = np.sort(heavy.reshape(-1)).reshape(heavy.shape)
    for scores in (heavy, rounded, ramp, np.full_like(heavy, 2), np.where(heavy < 60, 0, heavy).astype(np.float32)):
        for fraction in (1e-5, 0.01, 0.2, 0.5, 0.97, 1.0):
            for selector in ("top", "bottom"):
                found = select({"layers": {"w": scores[None]}}, fraction, selector, method="host")
                mask = np.asarray(found.masks["layers"]["w"])[0]
                np.testing.assert_array_equal(mask, stable(scores, fraction, selector == "top"))


def test_bfloat16_scores_select_as_their_float32_values() -> None:
    leaves = draw(2)
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), whole(leaves))
    exact = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), rounded)
    for selector in ("top", "bottom"):
        for method in ("host", "device"):
            found = select(rounded, 0.2, selector, method=method)
            assert equals(found, select(exact, 0.2, selector, method="host"))


def test_a_row_of_equals_is_taken_from_the_left() -> None:
    scores = np.array([[0, 9, 0, 0], [5, 5, 5, 5], [0, 0, 7, 0]], np.float32)
    for method in ("host", "device"):
        top = select({"layers": {"w": scores[None]}}, fractions.Fraction(1, 3), "top", method=method)
        drawn = np.array([[0, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0]], bool)
        np.testing.assert_array_equal(np.asarray(top.masks["layers"]["w"])[0], drawn)
        assert top.provenance.selection is not None
        assert top.provenance.selection.cut == (("model.layers.0.w.weight", 4, 2),)
        bottom = select({"layers": {"w": scores[None]}}, "1/3", "bottom", method=method)
        drawn = np.array([[1, 0, 1, 1], [0, 0, 0, 0], [1, 0, 0, 0]], bool)
        np.testing.assert_array_equal(np.asarray(bottom.masks["layers"]["w"])[0], drawn)


def test_the_report_counts_what_was_met() -> None:
    scores = {
        "layers": {
            "big": np.arange(200, dtype=np.float32).reshape(2, 10, 10) + 1,
            "small": np.ones((2, 3), np.float32),
            "dead": np.zeros((2, 5, 20), np.float32),
        }
    }
    for method in ("host", "device"):
        selection = select(scores, "1%", method=method).provenance.selection
        assert selection is not None
        assert (selection.entries, selection.selected, selection.matrices) == (200 + 6 + 200, 4, 6)
        assert selection.empty == ("model.layers.0.small.weight", "model.layers.1.small.weight")
        assert selection.zero == ("model.layers.0.dead.weight", "model.layers.1.dead.weight")
        assert selection.cut == (("model.layers.0.dead.weight", 100, 1), ("model.layers.1.dead.weight", 100, 1))
        assert "2 matrices too small" in str(selection)
        assert "2 of 200 tied entries taken" in str(selection)


@pytest.mark.parametrize("method", ["host", "device"])
@pytest.mark.parametrize("within", ["matrix", "scope"])
def test_nan_and_negative_scores_are_refused_by_name(method: str, within: str) -> None:
    for value, word in ((np.nan, "NaN"), (-1.0, "negative"), (-np.inf, "negative")):
        leaves = draw(3)
        leaves["layers.mlp.up_proj"][1, 2, 3:5] = value
        message = rf"model\.layers\.1\.mlp\.up_proj\.weight: 2 scores are {word}"
        with pytest.raises(ValueError, match=message):
            select(whole(leaves), 0.1, within=within, method=method)


@pytest.mark.parametrize("method", ["host", "device"])
def test_every_kind_of_nan_is_refused_and_infinity_is_not(method: str) -> None:
    # What lies above 0x7F800000, infinity, is NaN: the first, the quiet one, the last, one with a sign.
    for bits in (0x7F800001, 0x7FC00000, 0x7FFFFFFF, 0xFF800001):
        scores = np.array([[[0x3F800000, bits], [0x7F800000, 0]]], np.uint32).view(np.float32)
        with pytest.raises(ValueError, match=r"layers\.0\.w\.weight: 1 scores are NaN"):
            select({"layers": {"w": jnp.asarray(scores)}}, 0.25, method=method)
    scores[0, 0, 1] = 2
    mask = select({"layers": {"w": jnp.asarray(scores)}}, 0.25, method=method).masks["layers"]["w"]
    assert np.asarray(mask).tolist() == [[[False, False], [True, False]]]


def test_fractions_are_exact_nested_and_checked() -> None:
    leaves = whole(draw(4))
    before = None
    for fraction in (1e-7, 0.01, 0.3, 0.5, 1.0):
        found = select(leaves, fraction)
        assert before is None or total(subtract(before, found)) == 0
        before = found
    assert before is not None
    assert total(before) == trees.count(before.masks)
    # 0.29 x 100 is 28.999999999999996 in floats, and a floor of it 28.
    assert total(select({"layers": {"w": np.ones((1, 10, 10), np.float32)}}, 0.29)) == 29
    assert parse("1%") == parse(0.01) == parse(np.float32(0.01)) == fractions.Fraction(1, 100)
    assert parse(1e-7) == fractions.Fraction(1, 10**7)
    assert [_decimal(parse(each)) for each in ("1%", 1.0, fractions.Fraction(1, 3))] == ["0.01", "1.0", "1/3"]
    for wrong in (0, -0.1, 1.5, "150%", True, "one", "", float("nan"), None):
        with pytest.raises(ValueError, match="fraction"):
            select(leaves, wrong)


def test_random_is_nested_seeded_and_the_same_on_every_mesh() -> None:
    leaves = draw(5)
    first = select(whole(leaves), 0.1, "random", seed=7)
    assert total(first) == 12 + 3 * 0 + 3 * 9
    assert equals(first, select(sharded(leaves), 0.1, "random", seed=7))
    assert total(subtract(first, select(whole(leaves), 0.4, "random", seed=7))) == 0
    assert not equals(first, select(whole(leaves), 0.1, "random", seed=8))
    seed = permutation.derive(7, "model.layers.2.mlp.up_proj.weight")
    places = permutation.permute(np.arange(9), 96, seed)
    mask = np.asarray(first.masks["layers"]["mlp"]["up_proj"])[2]
    np.testing.assert_array_equal(np.flatnonzero(mask.reshape(-1)), np.sort(places))


def test_random_needs_shapes_only() -> None:
    leaves = draw(6)
    shapes = {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in leaves.items()}
    assert equals(select(trees.unflatten(shapes), 0.2, "random", seed=0), select(whole(leaves), 0.2, "random", seed=0))


def test_wrong_requests_say_what_is_wrong() -> None:
    leaves = whole(draw(7))
    for words, wrong in (
        ("there is no selector 'best'; there are bottom, random, top", {"selector": "best"}),
        ("needs a seed", {"selector": "random"}),
        ("takes no seed", {"seed": 1}),
        ("not within 'layer'", {"within": "layer"}),
        ("not 'gpu'", {"method": "gpu"}),
        ("of each matrix", {"selector": "random", "seed": 1, "within": "scope"}),
    ):
        with pytest.raises(ValueError, match=re.escape(words)):
            select(leaves, 0.1, **wrong)
    with pytest.raises(ValueError, match="float32 or bfloat16, not int32"):
        select({"layers": {"w": jnp.ones((1, 2, 2), jnp.int32)}}, 0.5)


def test_no_score_is_gathered_from_its_shard() -> None:
    mesh = meshes.build(data=1, fsdp=2, tensor=4)
    where = NamedSharding(mesh, SHARDS["layers.mlp.up_proj"])
    scores = jax.ShapeDtypeStruct((3, 64, 128), jnp.float32, sharding=where)
    function = jax.jit(functools.partial(rank, largest=True), out_shardings=(where, meshes.replicated(mesh)))
    compiled = function.lower(scores, jax.ShapeDtypeStruct((), jnp.uint32)).compile()
    program = compiled.as_text()
    assert "all-reduce" in program
    assert not [each for each in ("all-gather", "all-to-all", "collective-permute") if each in program]


TPU_SCRIPT = """
import functools, json
import jax, jax.numpy as jnp
from jax.experimental import mesh_utils, topologies
from jax.sharding import AxisType, Mesh, NamedSharding
from lingregions import mesh as meshes, models, tree as trees
from lingregions.regions.rank_device import rank

devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:4x4").devices
grid = mesh_utils.create_device_mesh((1, 4, 4), devices, allow_split_physical_axes=True)
mesh = Mesh(grid, meshes.MESH_AXES, axis_types=(AxisType.Auto,) * 3)
found = {}
for path in ("layers.self_attn.o_proj", "layers.mlp.down_proj"):
    parameter = trees.flatten(models.declare(models.PRESETS["llama2-7b"]))[path]
    where = NamedSharding(mesh, meshes.spec(parameter.axes, parameter.shape, mesh))
    function = jax.jit(functools.partial(rank, largest=True), out_shardings=(where, meshes.replicated(mesh)))
    scores = jax.ShapeDtypeStruct(parameter.shape, jnp.float32, sharding=where)
    count = jax.ShapeDtypeStruct((), jnp.uint32, sharding=meshes.replicated(mesh))
    compiled = function.lower(scores, count).compile()
    found[path] = ["all-gather" in compiled.as_text(), compiled.memory_analysis().temp_size_in_bytes]
print(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="compiles for a TPU: needs the package libtpu")
def test_selection_compiles_for_a_tpu_slice() -> None:
    variables = {
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-16",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_LOG_DIR": "disabled",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    # A process of its own: libtpu installs signal handlers.
    child = subprocess.run(
        [sys.executable, "-c", TPU_SCRIPT], capture_output=True, text=True, check=False, env=os.environ | variables
    )
    assert child.returncode == 0, child.stderr[-2000:]
    for gathers, temporary in json.loads(child.stdout.splitlines()[-1]).values():
        assert not gathers
        assert temporary < 2**20  # bytes a device, where a leaf's scores take 128 and 344 MiB


@pytest.mark.parametrize("selector", sorted(SELECTORS))
def test_every_selector_takes_k_of_every_matrix_and_records_itself(selector: str) -> None:
    seed = 3 if selector == "random" else None
    found = select(whole(draw(8)), 0.25, selector, seed=seed, provenance=Provenance(model="abc", languages=("vi",)))
    for path, mask in found.leaves().items():
        size = int(np.prod(regions.shape(path, mask)))
        taken = np.asarray(mask).reshape(-1, size).sum(axis=1)
        np.testing.assert_array_equal(taken, size // 4)
    own = found.provenance
    assert (own.selector, own.fraction, own.within, own.seed) == (selector, "0.25", "matrix", seed)
    name = f"{selector} 25% vi" + (" seed 3" if selector == "random" else "")
    assert (own.model, own.languages, own.name) == ("abc", ("vi",), name)
    assert dict(own.versions)["numpy"] == np.__version__
    assert Provenance.parse(own.describe()) == own
