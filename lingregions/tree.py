"""Verbs over pytrees, by path: the words in which everything parallel to the parameters is spoken of.

Parameters, importance scores, gradient sums and region masks are nested dicts of one structure. A *path* joins the keys
with dots (`layers.self_attn.q_proj`); the leaf there stacks the layers on its first axis. Nothing here copies an array,
except `fingerprint`, which reads every value once.
"""

import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

Tree = dict[str, Any]


def walk(tree: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield (path, leaf) in the order of sorted keys, which is also the order of `jax.tree.leaves`."""
    for keys, leaf in sorted(traverse_util.flatten_dict(tree).items(), key=lambda item: item[0]):
        yield ".".join(keys), leaf


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return {path: leaf}, sorted by path."""
    return dict(walk(tree))


def unflatten(leaves: Mapping[str, Any]) -> Tree:
    """Return the nested dict whose paths are the keys of `leaves`: the inverse of `flatten`."""
    tree: Tree = traverse_util.unflatten_dict(dict(leaves), sep=".")
    return tree


def merge(tree: Mapping[str, Any], part: Mapping[str, Any]) -> Tree:
    """Return `tree` with the leaves of `part` put in the place of its own.

    Raises:
      ValueError: `part` has a path that `tree` lacks.
    """
    leaves, changed = flatten(tree), flatten(part)
    unknown = sorted(changed.keys() - leaves.keys())
    if unknown:
        raise ValueError(f"{unknown[0]!r} is not in the tree to merge into ({len(unknown)} such paths)")
    return unflatten(leaves | changed)


def transform(function: Callable[..., Any], tree: Mapping[str, Any], *others: Mapping[str, Any]) -> Tree:
    """Apply `function(path, leaf, *others' leaves)` to every leaf of parallel trees."""
    parallel = [flatten(other) for other in others]
    return unflatten({path: function(path, leaf, *(each[path] for each in parallel)) for path, leaf in walk(tree)})


def assert_parallel(tree: Mapping[str, Any], other: Mapping[str, Any], what: str = "tree") -> None:
    """Check that `other` has exactly the paths and shapes of `tree`.

    Raises:
      ValueError: names the first path that differs and both shapes; `what` says in the message what `other` is.
    """
    ours, theirs = flatten(tree), flatten(other)
    for path in sorted(ours.keys() | theirs.keys()):
        if path not in theirs:
            raise ValueError(f"{what}: {path!r} is missing")
        if path not in ours:
            raise ValueError(f"{what}: {path!r} is not among the {len(ours)} expected paths")
        if tuple(ours[path].shape) != tuple(theirs[path].shape):
            raise ValueError(f"{what}: {path!r} has shape {theirs[path].shape}, expected {ours[path].shape}")


def count(tree: Mapping[str, Any]) -> int:
    """Return the number of parameters as a Python integer: a 13B stacked leaf alone passes 2**31."""
    return sum(int(np.prod(leaf.shape, dtype=object)) for _, leaf in walk(tree))


def checksum(bits: jax.Array) -> jax.Array:
    """Return two uint32 sums over the uint32 words of one array, the same on every mesh: integers add in any order.

    A word that changes, or changes place, changes the sums: it is mixed with its position, one to one. Costs one read.
    Both sums are one reduction of two operands: XLA compiles that for a CPU to twenty times the speed of two.
    """
    position = functools.reduce(
        lambda total, axis: total * jnp.uint32(0x9E3779B1) + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis),
        range(bits.ndim),
        jnp.zeros((), jnp.uint32),
    )
    mixed = (bits ^ (position * jnp.uint32(0x85EBCA6B))) * jnp.uint32(0xC2B2AE35)
    mixed = (mixed ^ (mixed >> jnp.uint32(15))) * jnp.uint32(0x27D4EB2F)
    none = jnp.uint32(0)
    sums = jax.lax.reduce((mixed, mixed ^ (mixed >> jnp.uint32(13))), (none, none), _added, tuple(range(bits.ndim)))
    return jnp.stack(sums)


def _added(one: tuple[jax.Array, jax.Array], two: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    return one[0] + two[0], one[1] + two[1]


@jax.jit
def _named(values: jax.Array) -> jax.Array:
    """Return the checksum of float values as float32."""
    return checksum(jax.lax.bitcast_convert_type(values.astype(jnp.float32), jnp.uint32))


def fingerprint(tree: Mapping[str, Any], context: str = "") -> str:
    """Return 32 hex digits that name these float values at these paths, whatever the mesh they lie on.

    The "model hash" of scores and regions. It tells models apart (another checkpoint, one changed scalar); it is not a
    defence against somebody who forges a file. Costs one read of every value, on the devices; no array is gathered.

    Args:
      tree: parameters, any float dtype (compared as float32).
      context: text that belongs to the identity, such as the resolved model config.
    """
    digest = hashlib.sha256(context.encode())
    for path, leaf in walk(tree):
        digest.update(f"{path}{tuple(leaf.shape)}".encode())
        digest.update(np.asarray(_named(leaf)).tobytes())
    return digest.hexdigest()[:32]


def occupied(mask: jax.Array) -> jax.Array:
    """Return where along its first axis a mask has any entry: bool [n, ...] -> bool [n].

    The largest of its bytes: compiled for a CPU, twenty times as fast as to count them.
    """
    return jnp.max(mask.astype(jnp.uint8), axis=tuple(range(1, mask.ndim))) > 0
