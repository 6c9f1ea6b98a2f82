"""Where a region lies: densities, concentration along named axes, overlap between regions; and regions given by place.

Every count is exact: int32 for one matrix on the device, Python or int64 integers beyond. Masks stay on their shards; what
reaches the host is one number a matrix, or one an index of an axis.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lingregions import tree as trees
from lingregions.regions import algebra, region, stack
from lingregions.regions.region import Provenance, Region

FULLEST = 0.01  # "share of the fullest 1 %": part of the indices of an axis


@functools.lru_cache(maxsize=256)
def _compiled(function: Callable[..., jax.Array], where: jax.sharding.Sharding) -> Any:
    """Return `function` jitted with a result that every process can read."""
    return jax.jit(function, out_shardings=stack.everywhere(where))


def _sum(mask: jax.Array) -> jax.Array:
    return jnp.sum(mask, axis=tuple(range(1, mask.ndim)), dtype=jnp.int32)


def counts(what: Region) -> dict[str, list[int]]:
    """Return how many entries each matrix has in the region: {path: one integer a layer}."""
    found = {}
    for path, mask in what.leaves().items():
        where = stack.sharding(mask)
        table = _compiled(_sum if region.stacked(path) else jnp.count_nonzero, where)(mask)
        found[path] = [int(each) for each in np.asarray(table).reshape(-1)]
    return found


def total(what: Region) -> int:
    """Return how many entries the region has."""
    return sum(map(sum, counts(what).values()))


def density(what: Region) -> dict[str, list[float]]:
    """Return the part of each matrix that lies in the region: {path: one fraction a layer}, the layer x matrix table."""
    leaves = what.leaves()
    return {
        path: [each / math.prod(region.shape(path, leaves[path])) for each in found]
        for path, found in counts(what).items()
    }
