"""Ranking on the host, where one CPU sees the scores: a stable sort's first k, without a sort.

A sample brackets the threshold, one pass collects the few entries inside the bracket, a partition of those finds it,
one pass writes the mask. Memory beyond the mask: the candidates, about 1 % of one matrix a thread, and a mask of 2^20
entries. Cost: two reads of the scores.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lingregions.regions import region, stack
from lingregions.regions.found import Found, complain, share

# Entries that a pass looks at together. Each call of NumPy takes the interpreter's lock again, and threads that do so
# often wait for each other: with 2^16 entries a selection takes twice as long on two cores.
_CHUNK = 1 << 20
_SAMPLE = 1 << 12  # entries of a matrix that bracket its threshold
_SCOPE_SAMPLE = 1 << 16  # entries of a whole scope that bracket its threshold
# Half width of the bracket in standard deviations of the sample's rank; too narrow costs time, never exactness.
_SPREAD = 4.0


@dataclasses.dataclass(frozen=True)
class _Order:
    """The comparisons of "top" or "bottom", so that the code below is written once, in the words of "top"."""

    within: Callable[..., Any]  # at least as good as
    beyond: Callable[..., Any]  # better than
    largest: bool


_TOP = _Order(np.greater_equal, np.greater, True)
_BOTTOM = _Order(np.less_equal, np.less, False)


def _flat(path: str, leaf: Any, layer: int) -> np.ndarray:
    """Return one matrix as flat float32 scores."""
    return stack.read(path, leaf, layer).reshape(-1).astype(np.float32, copy=False)


def _check(values: np.ndarray, least: np.float32, name: str) -> None:
    """Refuse values of which some are NaN or negative, by the least of them."""
    if not least >= 0:  # also when it is NaN
        missing = int(np.count_nonzero(np.isnan(values)))
        raise complain(name, missing, int(np.count_nonzero(values < 0)))


def _sample(values: np.ndarray, count: int) -> np.ndarray:
    """Return `count` values from all over the matrix; which entries they are never changes a result."""
    places = (np.arange(count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(16)
    return values[(places % np.uint64(values.size)).astype(np.int64)]


def _bracket(sample: np.ndarray, part: float, order: _Order) -> tuple[np.float32 | None, np.float32 | None]:
    """Return (low, high) between which the threshold of the best `part` probably lies; None where it is open."""
    ranked = np.sort(sample)
    ranked = ranked[::-1] if order.largest else ranked
    rank = part * ranked.size
    margin = _SPREAD * math.sqrt(rank * max(0.0, 1 - part) + 1)
    low, high = math.ceil(rank + margin), math.floor(rank - margin)
    return (ranked[low] if low < ranked.size else None), (ranked[high] if high >= 0 else None)


def _candidates(
    values: np.ndarray, low: np.float32 | None, high: np.float32 | None, order: _Order
) -> tuple[int, np.ndarray, np.float32]:
    """Return how many values are better than `high`, those from `low` up to `high`, and the least value of all."""
    certain, parts, least = 0, [], []
    for start in range(0, values.size, _CHUNK):
        chunk = values[start : start + _CHUNK]
        least.append(chunk.min())
        kept = chunk if low is None else chunk[np.flatnonzero(order.within(chunk, low))]
        if high is not None:
            outside = order.beyond(kept, high)
            certain += int(np.count_nonzero(outside))
            kept = kept[~outside]
        parts.append(kept)
    return certain, np.concatenate(parts), np.min(least)


def _threshold(values: np.ndarray, count: int, order: _Order, name: str) -> tuple[np.float32, int, int]:
    """Return the value of the `count`-th best, how many are better, and how many equal it; 1 <= count <= size.

    Checks the values on the way; `name` is that of the matrix, for its message.
    """
    low, high = _bracket(_sample(values, min(_SAMPLE, values.size)), count / values.size, order)
    if low is not None and low == high:  # most of the matrix ties there: count, and collect nothing
        better = int(np.count_nonzero(order.beyond(values, low)))
        equal = int(np.count_nonzero(values == low))
        if better < count <= better + equal:
            _check(values, values.min(), name)
            return low, better, equal
    certain, found, least = _candidates(values, low, high, order)
    _check(values, least, name)
    if not certain < count <= certain + found.size:
        certain, found, _ = _candidates(values, None, None, order)
    place = found.size - (count - certain) if order.largest else count - certain - 1
    threshold = np.partition(found, place)[place]
    better = certain + int(np.count_nonzero(order.beyond(found, threshold)))
    return threshold, better, int(np.count_nonzero(found == threshold))


def _write(values: np.ndarray, threshold: np.float32, ties: int, quota: int, out: np.ndarray, order: _Order) -> None:
    """Write the mask of all that is better than the threshold, and of the first `quota` of the `ties` that equal it."""
    if quota == ties:
        order.within(values, threshold, out=out)
        return
    order.beyond(values, threshold, out=out)
    for start in range(0, values.size, _CHUNK):
        if not quota:
            return
        places = np.flatnonzero(values[start : start + _CHUNK] == threshold)[:quota] + start
        out[places] = True
        quota -= places.size


def rank_leaf(path: str, leaf: Any, count: int, largest: bool) -> Found:
    """Return what is taken of a leaf: the best `count` of each of its matrices.

    Raises:
      ValueError: a score is NaN or negative; the message names the matrix, and says how many.
    """
    order = _TOP if largest else _BOTTOM
    named = region.matrices(path, leaf)
    zero, tied, quota = [False] * len(named), [0] * len(named), [0] * len(named)

    def fill(layer: int, out: np.ndarray) -> None:
        values = _flat(path, leaf, layer)
        if not count:
            _check(values, values.min(), named[layer])
            zero[layer] = bool(values.max() == 0)
            out[...] = False
            return
        threshold, better, tied[layer] = _threshold(values, count, order, named[layer])
        quota[layer] = count - better
        zero[layer] = bool(threshold == 0 and tied[layer] == values.size)
        _write(values, threshold, tied[layer], quota[layer], out.reshape(-1), order)

    mask = stack.build(path, leaf, fill, stack.threads(leaf))
    return Found(mask, [count] * len(named), zero, tied, quota)


def rank_scope(leaves: Mapping[str, Any], count: int, largest: bool) -> dict[str, Found]:
    """Return what is taken of every leaf: the best `count` of all of them together; raises as `rank_leaf`."""
    order = _TOP if largest else _BOTTOM
    threshold, better, equal, zero = _threshold_scope(leaves, count, order)
    quota = share(equal, count - sum(map(sum, better.values())))
    found = {}
    for path, leaf in leaves.items():
        taken = [more + ties for more, ties in zip(better[path], quota[path], strict=True)]

        def fill(layer: int, out: np.ndarray, path: str = path, leaf: Any = leaf, taken: list[int] = taken) -> None:
            if not taken[layer]:
                out[...] = False
                return
            values = _flat(path, leaf, layer)
            _write(values, threshold, equal[path][layer], quota[path][layer], out.reshape(-1), order)

        found[path] = Found(
            stack.build(path, leaf, fill, stack.threads(leaf)), taken, zero[path], equal[path], quota[path]
        )
    return found


def _threshold_scope(
    leaves: Mapping[str, Any], count: int, order: _Order
) -> tuple[np.float32, dict[str, list[int]], dict[str, list[int]], dict[str, list[bool]]]:
    """Return the value of the `count`-th best of the scope and, by path and layer: how many better, equal, all zero."""
    total = sum(math.prod(leaf.shape) for leaf in leaves.values())
    samples: list[np.ndarray] = []
    zero: dict[str, list[bool]] = {}
    for path, leaf in leaves.items():
        zero[path] = []
        for layer, name in enumerate(region.matrices(path, leaf)):
            values = _flat(path, leaf, layer)
            _check(values, values.min(), name)
            zero[path].append(bool(values.max() == 0))
            samples.append(_sample(values, min(values.size, math.ceil(_SCOPE_SAMPLE * values.size / total))))
    if not count:
        nothing = {path: [0] * len(each) for path, each in zero.items()}
        return np.float32(np.inf if order.largest else 0), nothing, nothing, zero
    low, high = _bracket(np.concatenate(samples), count / total, order)
    for bracket in ((low, high), (None, None)):  # the second, open one holds everything
        certain, found = {}, {}
        for path, leaf in leaves.items():
            for layer in range(len(zero[path])):
                values = _flat(path, leaf, layer)
                certain[path, layer], found[path, layer], _ = _candidates(values, *bracket, order)
        sure, pool = sum(certain.values()), np.concatenate(list(found.values()))
        if sure < count <= sure + pool.size:
            break
    place = pool.size - (count - sure) if order.largest else count - sure - 1
    threshold = np.partition(pool, place)[place]
    better = {
        path: [
            certain[path, layer] + int(np.count_nonzero(order.beyond(found[path, layer], threshold)))
            for layer in range(len(each))
        ]
        for path, each in zero.items()
    }
    equal = {
        path: [int(np.count_nonzero(found[path, layer] == threshold)) for layer in range(len(each))]
        for path, each in zero.items()
    }
    return threshold, better, equal, zero
