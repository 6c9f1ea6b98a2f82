"""Packed: a mask at one bit an entry, on the shards of what it masks, that a compiled step reads without unpacking it.

What a region freezes is an argument of the training step, for every parameter of its scope: an eighth of the bytes that
bool takes. `regions.file` packs masks on disk along the flat index instead.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec


@functools.partial(jax.tree_util.register_dataclass, data_fields=["bits"], meta_fields=["axis", "size"])
@dataclasses.dataclass(frozen=True)
class Packed:
    """A mask at one bit an entry: eight neighbours along one axis share a byte, so that the others stay as they are.

    Attributes:
      bits: uint8, shaped as the mask but for `axis`, which is an eighth as long; bit b of byte i is entry 8 i + b.
      axis: which axis is packed.
      size: entries of the mask along it.
    """

    bits: jax.Array
    axis: int
    size: int

    def unpack(self) -> jax.Array:
        """Return the mask, bool; inside a compiled step it is never written to memory."""
        after = self.axis + 1
        places = jnp.arange(8, dtype=jnp.uint8).reshape(8, *([1] * (self.bits.ndim - after)))
        ones = (jnp.expand_dims(self.bits, after) >> jnp.broadcast_to(places, self._apart)) & jnp.uint8(1)
        shape = list(self.bits.shape)
        shape[self.axis] *= 8
        return jax.lax.slice_in_dim(ones.reshape(shape), 0, self.size, axis=self.axis).astype(bool)

    @property
    def _apart(self) -> tuple[int, ...]:
        """The shape with the eight bits on an axis of their own."""
        return (*self.bits.shape[: self.axis + 1], 8, *self.bits.shape[self.axis + 1 :])


def pack_mask(mask: jax.Array) -> Packed:
    """Return a bool mask at one bit an entry, split over devices as it was.

    The packed axis is one whose parts on each device are whole bytes: the last but one if it can be (a TPU holds eight
    of its indices in one register, so unpacking moves nothing), else the last, else the first. Where none can be, the
    axis that wastes least is filled up, and lies whole on every device.
    """
    parts = _parts(mask)
    order = [axis for axis in (mask.ndim - 2, mask.ndim - 1, 0) if axis >= 0]
    whole = [axis for axis in order if mask.shape[axis] % (8 * parts[axis]) == 0]
    axis = (
        whole[0] if whole else min(order, key=lambda axis: parts[axis] * -(-mask.shape[axis] // 8) / mask.shape[axis])
    )
    sharding: Any = mask.sharding
    if isinstance(sharding, NamedSharding) and not whole:
        spec = [*sharding.spec, *[None] * (mask.ndim - len(sharding.spec))]
        spec[axis] = None
        sharding = NamedSharding(sharding.mesh, PartitionSpec(*spec))
    bits = jax.jit(_pack, static_argnums=1, out_shardings=sharding)(mask, axis)
    return Packed(bits, axis, mask.shape[axis])


def _pack(mask: jax.Array, axis: int) -> jax.Array:
    short = -mask.shape[axis] % 8
    filled = jnp.pad(mask, [(0, short if place == axis else 0) for place in range(mask.ndim)])
    shape = (*filled.shape[:axis], filled.shape[axis] // 8, 8, *filled.shape[axis + 1 :])
    weights = (jnp.uint8(1) << jnp.arange(8, dtype=jnp.uint8)).reshape(8, *([1] * (mask.ndim - axis - 1)))
    ones = filled.reshape(shape).astype(jnp.uint8)
    return jnp.sum(ones * jnp.broadcast_to(weights, shape), axis=axis + 1, dtype=jnp.uint8)


def _parts(array: jax.Array) -> list[int]:
    """Return in how many parts each axis is split."""
    if not isinstance(array.sharding, NamedSharding):
        return [1] * array.ndim
    spec = [*array.sharding.spec, *[None] * (array.ndim - len(array.sharding.spec))]
    named = [() if each is None else (each,) if isinstance(each, str) else tuple(each) for each in spec]
    return [math.prod(array.sharding.mesh.shape[name] for name in names) for names in named]
