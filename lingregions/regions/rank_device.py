"""Ranking on devices, on any sharding: bisection over the bits of the score, read as an unsigned integer.

32 counts of "how many are at least this" find the threshold, and a bisection over the flat index cuts the ties there.
The counts are all-reduced; nothing is gathered or sorted. Memory beyond the mask: what the compiler needs for one
elementwise pass.

Nothing here compares floats: the hardware may flush subnormals to zero, integers keep them apart. Functions of one
matrix are mapped over the layers one after the other, so that only one layer's integers are held at a time.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from lingregions.regions import region, stack
from lingregions.regions.found import Found, complain, share


def _bits(scores: jax.Array) -> jax.Array:
    """Return the scores as uint32 that order as they do; -0.0 becomes 0.0."""
    if scores.dtype == jnp.bfloat16:
        bits = jax.lax.bitcast_convert_type(scores, jnp.uint16).astype(jnp.uint32) << jnp.uint32(16)
    else:
        bits = jax.lax.bitcast_convert_type(scores, jnp.uint32)
    return jnp.where(bits == jnp.uint32(0x80000000), jnp.uint32(0), bits)


def _keys(scores: jax.Array, largest: bool) -> jax.Array:
    """Return uint32 of which the greatest are wanted."""
    bits = _bits(scores)
    return bits if largest else ~bits


def _count(mask: jax.Array) -> jax.Array:
    return jnp.sum(mask, dtype=jnp.uint32)


def _bisect(bits: int, keep: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """Return the largest number of so many bits for which `keep` holds; where it fails, it fails for all above."""

    def step(turn: jax.Array, number: jax.Array) -> jax.Array:
        trial = number | (jnp.uint32(1) << (bits - 1 - turn).astype(jnp.uint32))
        return jnp.where(keep(trial), trial, number)

    threshold: jax.Array = jax.lax.fori_loop(0, bits, step, jnp.uint32(0))
    return threshold


def _survey(scores: jax.Array) -> jax.Array:
    """Return NaN, negative and non-zero counts of one matrix, uint32[3]."""
    bits = _bits(scores)
    missing = (bits & jnp.uint32(0x7FFFFFFF)) > jnp.uint32(0x7F800000)
    return jnp.stack([_count(missing), _count((bits > jnp.uint32(0x80000000)) & ~missing), _count(bits != 0)])


def _mask(keys: jax.Array, threshold: jax.Array, ties: jax.Array, quota: jax.Array) -> jax.Array:
    """Return the mask of all keys of one matrix above the threshold, and of the first `quota` that equal it."""
    equal = keys == threshold
    position = functools.reduce(
        lambda total, axis: (
            total * jnp.uint32(keys.shape[axis]) + jax.lax.broadcasted_iota(jnp.uint32, keys.shape, axis)
        ),
        range(keys.ndim),
        jnp.zeros(keys.shape, jnp.uint32),
    )
    # `end` is one past the last tie that is taken. Where all ties are taken nothing needs to be looked for.
    end = jax.lax.cond(
        ties > quota,
        lambda: _bisect(keys.size.bit_length(), lambda trial: _count(equal & (position < trial)) <= quota),
        lambda: jnp.uint32(keys.size),
    )
    mask: jax.Array = (keys > threshold) | (equal & (position < end))
    return mask


def rank(scores: jax.Array, count: jax.Array, largest: bool) -> tuple[jax.Array, jax.Array]:
    """Return the mask of the best `count` of every matrix, and its statistics: the device implementation, to be jitted.

    Args:
      scores: [L, ...] float32 or bfloat16, any sharding that keeps the layers together.
      count: uint32 scalar; at most the size of a matrix.
      largest: static; whether the best are the largest.

    Returns:
      bool [L, ...]; uint32 [L, 5]: NaN, negative and non-zero entries, ties at the threshold, ties taken.
    """

    def one(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
        keys = _keys(matrix, largest)
        threshold = _bisect(32, lambda trial: _count(keys >= trial) >= count)
        ties = _count(keys == threshold)
        quota = count - _count(keys > threshold)
        return _mask(keys, threshold, ties, quota), jnp.concatenate([_survey(matrix), jnp.stack([ties, quota])])

    found: tuple[jax.Array, jax.Array] = jax.lax.map(one, scores)
    return found


def _above(scores: jax.Array, threshold: jax.Array, largest: bool) -> jax.Array:
    """Return how many keys of each matrix are at least, and exactly, the threshold: uint32[L, 2]."""

    def one(matrix: jax.Array) -> jax.Array:
        keys = _keys(matrix, largest)
        return jnp.stack([_count(keys >= threshold), _count(keys == threshold)])

    found: jax.Array = jax.lax.map(one, scores)
    return found


def _mark(scores: jax.Array, threshold: jax.Array, ties: jax.Array, quota: jax.Array, largest: bool) -> jax.Array:
    """Return the mask of every matrix, bool[L, ...], given one threshold, and its ties and quota, uint32[L]."""
    masks: jax.Array = jax.lax.map(
        lambda each: _mask(_keys(each[0], largest), threshold, *each[1:]), (scores, ties, quota)
    )
    return masks


def _surveys(scores: jax.Array) -> jax.Array:
    surveys: jax.Array = jax.lax.map(_survey, scores)
    return surveys


@functools.lru_cache(maxsize=256)
def _compiled(function: Callable[..., Any], where: jax.sharding.Sharding, kinds: str, largest: bool | None) -> Any:
    """Return `function` jitted; `kinds` says of each output whether it lies as the scores do (m) or everywhere (r)."""
    outputs = tuple(where if kind == "m" else stack.everywhere(where) for kind in kinds)
    keywords = {} if largest is None else {"largest": largest}
    return jax.jit(functools.partial(function, **keywords), out_shardings=outputs if len(outputs) > 1 else outputs[0])


def _layered(path: str, leaf: Any) -> tuple[jax.Array, jax.sharding.Sharding]:
    """Return the leaf with a layer axis in front, and its sharding."""
    leaf = jnp.asarray(leaf)
    if region.stacked(path):
        return leaf, leaf.sharding
    where = leaf.sharding
    if isinstance(where, NamedSharding):
        where = NamedSharding(where.mesh, PartitionSpec(None, *where.spec))
    return jax.jit(lambda values: values[None], out_shardings=where)(leaf), where


def _unlayered(path: str, mask: jax.Array, leaf: Any) -> jax.Array:
    if region.stacked(path):
        return mask
    lone: jax.Array = jax.jit(lambda values: values[0], out_shardings=stack.sharding(leaf))(mask)
    return lone


def _integers(values: np.ndarray) -> list[int]:
    return [int(each) for each in values]


def _check(named: list[str], missing: list[int], negative: list[int]) -> None:
    for name, first, second in zip(named, missing, negative, strict=True):
        if first or second:
            raise complain(name, first, second)


def rank_leaf(path: str, leaf: Any, count: int, largest: bool) -> Found:
    """Return what is taken of a leaf: the best `count` of each of its matrices.

    Raises:
      ValueError: a score is NaN or negative; the message names the matrix, and says how many.
    """
    scores, where = _layered(path, leaf)
    named = region.matrices(path, leaf)
    mask, table = _compiled(rank, where, "mr", largest)(scores, jnp.uint32(count))
    missing, negative, present, ties, quota = (_integers(column) for column in np.asarray(table).T)
    _check(named, missing, negative)
    if not count:  # the bisection then ends at the greatest number, which nothing reaches
        ties = quota = [0] * len(named)
    return Found(_unlayered(path, mask, leaf), [count] * len(named), [not each for each in present], ties, quota)


def rank_scope(leaves: Mapping[str, Any], count: int, largest: bool) -> dict[str, Found]:
    """Return what is taken of every leaf: the best `count` of all of them together; raises as `rank_leaf`.

    Bisects on the host over counts from the devices: 32 short rounds, summed in Python integers.
    """
    layered = {path: _layered(path, leaf) for path, leaf in leaves.items()}
    zero = {}
    for path, (scores, where) in layered.items():
        missing, negative, present = (
            _integers(column) for column in np.asarray(_compiled(_surveys, where, "r", None)(scores)).T
        )
        _check(region.matrices(path, leaves[path]), missing, negative)
        zero[path] = [not each for each in present]

    def tables(threshold: int) -> dict[str, np.ndarray]:
        pending = {
            path: _compiled(_above, where, "r", largest)(scores, jnp.uint32(threshold))
            for path, (scores, where) in layered.items()
        }
        return {path: np.asarray(each).astype(np.int64) for path, each in pending.items()}

    threshold = 0
    for place in reversed(range(32)):
        trial = threshold | (1 << place)
        if sum(int(table[:, 0].sum()) for table in tables(trial).values()) >= count:
            threshold = trial
    last = tables(threshold)
    equal = {path: _integers(table[:, 1]) for path, table in last.items()}
    better = {path: _integers(table[:, 0] - table[:, 1]) for path, table in last.items()}
    quota = share(equal, count - sum(map(sum, better.values())))
    found = {}
    for path, (scores, where) in layered.items():
        mask = _compiled(_mark, where, "m", largest)(
            scores,
            jnp.uint32(threshold),
            jnp.asarray(equal[path], jnp.uint32),
            jnp.asarray(quota[path], jnp.uint32),
        )
        taken = [more + ties for more, ties in zip(better[path], quota[path], strict=True)]
        found[path] = Found(_unlayered(path, mask, leaves[path]), taken, zero[path], equal[path], quota[path])
    return found
