"""Host views of stacked leaves: one layer's matrix at a time, out of and into arrays that stay sharded.

Reading never holds more than one matrix; on one CPU device it copies nothing. Building a mask holds, beside the shards
of this process, one boolean matrix a thread.
"""

import concurrent.futures
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from lingregions.regions import region

_ALIGNMENT = 64  # bytes; an array that starts at such an address becomes a CPU `jax.Array` without a copy


def sharding(leaf: Any) -> jax.sharding.Sharding:
    """Return where `leaf` lies; the default device for a NumPy array or a `ShapeDtypeStruct` without sharding."""
    found = getattr(leaf, "sharding", None)
    return jax.sharding.SingleDeviceSharding(jax.devices()[0]) if found is None else found


def simple(leaf: Any) -> bool:
    """Whether the whole leaf can be seen from the host without a copy: NumPy, or one CPU device."""
    devices: list[Any] = list(sharding(leaf).device_set)
    return isinstance(leaf, np.ndarray) or (len(devices) == 1 and devices[0].platform == "cpu")


def read(path: str, leaf: Any, layer: int) -> np.ndarray:
    """Return one matrix of `leaf` on this host; every process must ask for it when the leaf spans processes."""
    if not region.stacked(path):
        return _whole(leaf)
    if simple(leaf):
        matrix: np.ndarray = np.asarray(leaf)[layer]
        return matrix
    if not leaf.is_fully_addressable:
        return _whole(leaf[layer])
    matrix = np.empty(leaf.shape[1:], leaf.dtype)
    for shard in leaf.addressable_shards:
        first, last, _ = shard.index[0].indices(leaf.shape[0])
        if first <= layer < last and shard.replica_id == 0:
            matrix[shard.index[1:]] = np.asarray(shard.data[layer - first])
    return matrix


def _whole(leaf: Any) -> np.ndarray:
    if isinstance(leaf, np.ndarray) or leaf.is_fully_addressable:
        return np.asarray(leaf)
    return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))


def threads(*leaves: Any) -> int | None:
    """Return how many threads may `read` these leaves: one where reading is collective and its order must agree."""
    return None if all(getattr(leaf, "is_fully_addressable", True) for leaf in leaves) else 1


def walk(path: str, leaf: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (Hugging Face name, matrix) by layer."""
    for layer, name in enumerate(region.matrices(path, leaf)):
        yield name, read(path, leaf, layer)


def build(path: str, like: Any, fill: Callable[[int, np.ndarray], None], workers: int | None = None) -> jax.Array:
    """Return the mask of the shape and sharding of `like` that `fill` writes, matrix by matrix.

    Args:
      path: path of the leaf.
      like: array or `ShapeDtypeStruct` that has the shape and the sharding.
      fill: called as fill(layer, out) for every layer, from several threads; writes all of `out` (bool, C order).
      workers: how many threads; the number of cores when None.
    """
    where, full = sharding(like), tuple(like.shape)
    layers = full[0] if region.stacked(path) else 1
    matrix = region.shape(path, like)
    if len(where.device_set) == 1:
        buffer = _aligned((layers, *matrix))
        each(lambda layer: fill(layer, buffer[layer]), range(layers), workers)
        placed: jax.Array = jax.device_put(buffer.reshape(full), where)
        return placed

    indices: Mapping[Any, Any] = where.addressable_devices_indices_map(full)
    parts: dict[tuple[tuple[int, int], ...], np.ndarray] = {}
    for index in indices.values():
        window = _window(index, full)
        parts.setdefault(window, np.empty([last - first for first, last in window], np.bool_))

    def scatter(layer: int) -> None:
        scratch = np.empty(matrix, np.bool_)
        fill(layer, scratch)
        for window, part in parts.items():
            if not region.stacked(path):
                part[...] = scratch[_slices(window)]
            elif window[0][0] <= layer < window[0][1]:
                part[layer - window[0][0]] = scratch[_slices(window[1:])]

    each(scatter, range(layers), workers)
    pieces = [jax.device_put(parts[_window(index, full)], device) for device, index in indices.items()]
    return jax.make_array_from_single_device_arrays(full, where, pieces)


def each(function: Callable[[int], None], items: Iterable[int], workers: int | None = None) -> None:
    """Call `function` on every item, in threads: NumPy lets go of the interpreter while it works."""
    workers = workers or (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    if workers == 1:
        for item in items:
            function(item)
        return
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(function, items):
            pass


def _window(index: tuple[slice, ...], full: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    return tuple(each.indices(size)[:2] for each, size in zip(index, full, strict=True))


def _slices(window: tuple[tuple[int, int], ...]) -> tuple[slice, ...]:
    return tuple(slice(first, last) for first, last in window)


def _aligned(full: tuple[int, ...]) -> np.ndarray:
    size = int(np.prod(full))
    raw = np.empty(size + _ALIGNMENT, np.bool_)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + size].reshape(full)


def everywhere(where: jax.sharding.Sharding) -> jax.sharding.Sharding:
    """Return the sharding, on the same devices, of a small result that every process wants to read."""
    return NamedSharding(where.mesh, PartitionSpec()) if isinstance(where, NamedSharding) else where
