"""The mesh, and where every named axis lies on it; the golden file says it for the tiny model in words."""

import dataclasses
import json
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from lingregions import mesh as meshes
from lingregions import models
from lingregions import tree as trees
from lingregions.corpus.batch import Batch

GOLDEN = Path(__file__).parent / "golden" / "shardings_tiny.json"
PRESETS = sorted(models.PRESETS)


class Declared(NamedTuple):
    """All that `shardings` asks of a leaf."""

    axes: tuple[str, ...]
    shape: tuple[int, ...]


# Building.


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        ({"data": 8}, (8, 1, 1)),
        ({"data": 2, "fsdp": 2, "tensor": 2}, (2, 2, 2)),
        ({"fsdp": 2, "tensor": 4}, (1, 2, 4)),
        ({"data": -1}, (8, 1, 1)),
        ({"data": 2, "fsdp": -1}, (2, 4, 1)),
        ({"data": 2, "fsdp": 4, "tensor": -1}, (2, 4, 1)),
    ],
)
def test_the_sizes_multiply_to_the_devices(sizes, shape):
    mesh = meshes.build(**sizes)
    assert mesh.axis_names == meshes.MESH_AXES == ("data", "fsdp", "tensor")
    assert mesh.devices.shape == shape
    assert set(mesh.devices.flat) == set(jax.devices())
    assert mesh.axis_types == (AxisType.Auto,) * 3


def test_a_part_of_the_devices_can_be_given(lone_mesh):
    assert lone_mesh.devices.shape == (1, 1, 1)
    assert meshes.build(tensor=-1, devices=jax.devices()[2:5]).devices.flatten().tolist() == jax.devices()[2:5]


@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"data": 3},
        {"data": 16},
        {"data": 16, "fsdp": -1},
        {"data": 3, "tensor": -1},
        {"data": -1, "fsdp": -1},
        {"data": 0},
        {"data": 0, "fsdp": -1},
        {"data": -2, "fsdp": -4},
        {"data": -2, "fsdp": -1},
    ],
)
def test_sizes_that_do_not_fit_are_refused_with_the_numbers(sizes):
    asked = [sizes.get(axis, 1) for axis in meshes.MESH_AXES]
    expected = "a mesh of data {} x fsdp {} x tensor {} does not fit 8 devices".format(*asked)
    with pytest.raises(ValueError, match=expected):
        meshes.build(**sizes)


# Rules.


@pytest.mark.parametrize("preset", PRESETS)
def test_every_axis_of_every_preset_has_a_rule(preset):
    for path, parameter in trees.walk(models.declare(models.PRESETS[preset])):
        assert set(parameter.axes) <= meshes.AXIS_RULES.keys(), path
        assert len(parameter.axes) == len(parameter.shape), path


def test_the_rules_name_axes_of_the_mesh():
    for rule in meshes.AXIS_RULES.values():
        assert set([rule] if isinstance(rule, str) else rule or ()) <= set(meshes.MESH_AXES)


def test_an_axis_without_a_rule_is_an_error():
    with pytest.raises(KeyError, match="head_dim"):
        meshes.spec(("layers", "head_dim"))


@pytest.mark.parametrize(
    ("axes", "shape", "expected"),
    [
        (("layers", "heads", "embed"), (3, 8, 6), (None, "tensor", "fsdp")),
        (("layers", "embed", "mlp"), (3, 6, 8), (None, "fsdp", "tensor")),
        (("vocab", "embed"), (257, 6), (None, "fsdp")),  # 257 rows do not go on 2 devices
        (("vocab", "embed"), (256, 7), ("tensor", None)),
        (("embed",), (1,), (None,)),
        (("batch", "tokens"), (8, 5), (("data", "fsdp"), None)),
        (("batch", "tokens"), (6, 5), (None, None)),  # 6 samples do not go on 2 x 2 devices
        (("batch", "tokens", "features"), (4, 5, 6), (("data", "fsdp"), None, None)),
    ],
)
def test_an_axis_is_split_where_it_divides(mesh, axes, shape, expected):
    assert tuple(meshes.spec(axes, shape, mesh)) == expected


def test_without_a_mesh_the_rules_stand_alone():
    assert tuple(meshes.spec(("vocab", "embed"))) == ("tensor", "fsdp")


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_lies_on_every_mesh(preset):
    declared = models.declare(models.PRESETS[preset])
    for sizes in ((2, 2, 2), (1, 8, 1), (1, 1, 8), (8, 1, 1), (1, 4, 2)):
        mesh = meshes.build(*sizes)
        for path, sharding in trees.walk(meshes.shardings(declared, mesh)):
            parameter = trees.flatten(declared)[path]
            part = sharding.shard_shape(parameter.shape)
            rules = [meshes.AXIS_RULES[axis] for axis in parameter.axes]
            for size, whole, units, rule in zip(part, parameter.shape, parameter.units, rules, strict=True):
                ways = mesh.shape[rule] if rule else 1
                assert size == (whole if units % ways else whole // ways), path


def test_a_head_stays_on_one_device(mesh):
    # 3 kv heads of 64 on `tensor` = 2: 192 rows would divide, and cut the second head in two.
    parameter = trees.flatten(models.declare(models.PRESETS["smollm2-135m"]))["layers.self_attn.k_proj"]
    assert (parameter.shape, parameter.units) == ((30, 192, 576), (30, 3, 576))
    assert meshes.shardings({"k": parameter}, mesh)["k"].spec == PartitionSpec(None, None, "fsdp")


@dataclasses.dataclass(frozen=True)
class Chip:
    """A device as a machine of several TPU slices, 2 x 2 chips each, shows it."""

    id: int
    slice_index: int
    coords: tuple[int, int, int]
    process_index: int = 0
    core_on_chip: int = 0
    platform: str = "tpu"
    device_kind: str = "TPU v5p"


def test_data_runs_over_the_slices():
    chips = [Chip(number, number % 2, (number // 2 % 2, number // 4, 0)) for number in range(8)]
    grid = meshes.build(data=4, fsdp=2, devices=chips).devices
    assert [[chip.slice_index for chip in row.flat] for row in grid] == [[0, 0], [0, 0], [1, 1], [1, 1]]
    with pytest.raises(ValueError, match="the 8 devices lie on 2 slices, .* it must be a multiple of 2, not 1"):
        meshes.build(fsdp=8, devices=chips)


def test_the_big_models_are_split_whole():
    # 70B on fsdp 4 x tensor 2: every matrix in eight equal parts; only the norms, split by fsdp alone, in four.
    mesh, declared = meshes.build(1, 4, 2), models.declare(models.PRESETS["llama2-70b"])
    parts = sum(
        int(np.prod(sharding.shard_shape(trees.flatten(declared)[path].shape), dtype=object))
        for path, sharding in trees.walk(meshes.shardings(declared, mesh))
    )
    norms = 161 * 8192
    assert parts == (68_976_648_192 - norms) // 8 + norms // 4


def test_shardings_of_the_tiny_model_are_the_golden_ones(mesh):
    declared = models.declare(models.PRESETS["tiny"])
    found = {
        path: {"shape": list(trees.flatten(declared)[path].shape), "spec": list(sharding.spec)}
        for path, sharding in trees.walk(meshes.shardings(declared, mesh))
    }
    assert found == json.loads(GOLDEN.read_text())["parameters"]


def test_shardings_ask_for_axes_and_shape_only(mesh):
    found = meshes.shardings({"a": {"b": Declared(("embed", "mlp"), (4, 3))}}, mesh)
    assert found["a"]["b"].spec == PartitionSpec("fsdp", None)


# Batches and activations.


def batch(B: int, T: int = 3) -> Batch:
    return Batch(*(np.arange(B * T, dtype=np.int32).reshape(B, T) + 100 * field for field in range(3)))


def test_rows_counts_the_parts_of_a_batch(mesh, lone_mesh):
    assert (meshes.rows(mesh), meshes.rows(lone_mesh), meshes.rows(meshes.build(tensor=8))) == (4, 1, 1)


def test_place_keeps_the_values_and_splits_the_samples(mesh):
    placed = meshes.place(batch(8), mesh)
    for ours, theirs in zip(placed, batch(8), strict=True):
        assert ours.dtype == np.int32
        np.testing.assert_array_equal(np.asarray(ours), theirs)
        assert ours.sharding == meshes.batched(mesh)
        assert {shard.data.shape for shard in ours.addressable_shards} == {(2, 3)}
    # Samples 0 and 1 lie on the two devices of data 0, fsdp 0; 6 and 7 on those of data 1, fsdp 1.
    where = {shard.device: shard.index[0].indices(8)[:2] for shard in placed.tokens.addressable_shards}
    assert {where[device] for device in mesh.devices[0, 0]} == {(0, 2)}
    assert {where[device] for device in mesh.devices[1, 1]} == {(6, 8)}


def test_place_refuses_samples_that_do_not_divide(mesh):
    with pytest.raises(ValueError, match="partitioned 4 times, but the dimension size is 6"):
        meshes.place(batch(6), mesh)


def test_replicated_is_whole_everywhere(mesh):
    values = jax.device_put(np.arange(6.0, dtype=np.float32), meshes.replicated(mesh))
    assert values.is_fully_replicated


def test_constrain_pins_on_the_mesh_in_use_and_nowhere_else(mesh, lone_mesh):
    def pinned(values: jax.Array) -> jax.Array:
        return meshes.constrain(values * 2, "batch", "tokens", "features")

    values = jnp.ones((4, 3, 2))
    with jax.set_mesh(mesh):
        assert jax.jit(pinned)(values).sharding.spec == PartitionSpec(("data", "fsdp"))
        assert "sharding_constraint" in str(jax.make_jaxpr(pinned)(values))
    assert "sharding_constraint" not in str(jax.make_jaxpr(pinned)(values))
    with jax.set_mesh(lone_mesh):
        assert "sharding_constraint" not in str(jax.make_jaxpr(pinned)(values))
