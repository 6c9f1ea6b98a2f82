"""The device mesh, and the one table that says which named axis lies on which mesh axis.

Mesh axes: `data` (copies of the parameters, split batch), `fsdp` (split parameters, split batch), `tensor` (split
heads, MLP and vocabulary). Parameters, gradient sums, scores, regions, optimizer state and batches derive their
sharding from `AXIS_RULES`. On several TPU slices, joined by a slower network than the chips of one, `data` runs over
the slices: parameters are gathered inside a slice, and only sums cross between them.
"""

import contextlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lingregions import tree as trees

MESH_AXES = ("data", "fsdp", "tensor")

# Logical axis -> mesh axes. The first rule that names an axis decides; None keeps the axis whole.
AXIS_RULES: dict[str, str | tuple[str, ...] | None] = {
    "layers": None,
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
    "batch": ("data", "fsdp"),
    "copies": "data",  # the batch where `fsdp` splits another axis
    "tokens": None,
    "features": None,  # the embed axis of activations: split by batch already
}


def build(data: int = 1, fsdp: int = 1, tensor: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Return the mesh of `data` x `fsdp` x `tensor` devices.

    One of the three may be -1: it takes the devices that the others leave. Several TPU slices lie one after
    the other along `data`.

    Raises:
      ValueError: the product is not the number of devices, or `data` is no multiple of the number of slices.
    """
    devices = jax.devices() if devices is None else list(devices)
    shape = [data, fsdp, tensor]
    if shape.count(-1) == 1:
        rest = math.prod(size for size in shape if size != -1)
        shape[shape.index(-1)] = max(1, len(devices) // rest) if rest else -1
    if min(shape) < 1 or math.prod(shape) != len(devices):
        raise ValueError(
            f"a mesh of data {data} x fsdp {fsdp} x tensor {tensor} does not fit {len(devices)} devices; "
            "the three sizes must multiply to the number of devices (one of them may be -1: the rest)"
        )
    slices = len({getattr(device, "slice_index", None) for device in devices if device.platform == "tpu"}) or 1
    if shape[0] % slices:
        raise ValueError(
            f"the {len(devices)} devices lie on {slices} slices, which `data` runs over: it must be a multiple of "
            f"{slices}, not {shape[0]}"
        )
    # Splitting a physical axis of the torus is slower than not, and better than refusing the shape.
    if slices == 1:
        grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    else:
        grid = mesh_utils.create_hybrid_device_mesh(
            (shape[0] // slices, *shape[1:]), (slices, 1, 1), devices, allow_split_physical_axes=True
        )
    return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * 3)


def platform() -> str:
    """Return "cpu", "gpu" or "tpu": of the devices of the mesh in `use`, else of JAX's default."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else str(device.platform)


def spec(axes: Sequence[str], shape: Sequence[int] | None = None, mesh: Any = None) -> PartitionSpec:
    """Return how an array with these named axes is split.

    With `shape` and `mesh` an axis that the mesh does not divide evenly stays whole (a vocabulary of 32,003 on
    `tensor` = 2): correct everywhere, at the price of memory.

    Args:
      axes: name of each axis, a key of `AXIS_RULES`.
      shape: what of each axis may be parted: its size, or the number of heads where heads are fused with their content.
      mesh: device mesh, concrete or abstract.

    Raises:
      KeyError: an axis that has no rule.
    """
    parts: list[str | tuple[str, ...] | None] = []
    for place, axis in enumerate(axes):
        rule = AXIS_RULES[axis]
        if rule is not None and shape is not None and mesh is not None:
            names = (rule,) if isinstance(rule, str) else rule
            if shape[place] % math.prod(mesh.shape[name] for name in names):
                rule = None
        parts.append(rule)
    return PartitionSpec(*parts)


def shardings(declaration: Mapping[str, Any], mesh: Mesh) -> trees.Tree:
    """Return the tree of `NamedSharding` for a tree of `Parameter`: anything with `.axes` and `.units` or `.shape`."""

    def place(path: str, parameter: Any) -> NamedSharding:
        return NamedSharding(mesh, spec(parameter.axes, getattr(parameter, "units", parameter.shape), mesh))

    return trees.transform(place, declaration)


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding that keeps a whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batched(mesh: Mesh) -> NamedSharding:
    """Return the sharding of an array whose first axis is the batch; the batch must divide over `data` x `fsdp`."""
    return NamedSharding(mesh, PartitionSpec(AXIS_RULES["batch"]))


def place(batch: Any, mesh: Mesh) -> Any:
    """Put a host batch (a pytree of NumPy arrays [B, ...], the same on every host) on the mesh, split along B."""
    sharding = batched(mesh)

    def put(values: np.ndarray) -> jax.Array:
        return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])

    return jax.tree.map(put, batch)


def rows(mesh: Mesh) -> int:
    """Return the number of parts that the batch is split in: a batch size must be a multiple of it."""
    parts: int = mesh.shape["data"] * mesh.shape["fsdp"]
    return parts


def use(mesh: Mesh | None) -> contextlib.AbstractContextManager[Any]:
    """Return a context in which `constrain` pins activations to this mesh; without a mesh, one that does nothing."""
    return contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)


def constrain(values: jax.Array, *axes: str) -> jax.Array:
    """Pin an activation with these named axes to its place on the mesh in `use`, if there is one."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return values
    constrained: jax.Array = jax.lax.with_sharding_constraint(values, spec(axes, values.shape, mesh))
    return constrained
