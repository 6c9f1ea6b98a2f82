"""Rows: a change of a few rows of one layer - a scalar, a gain, what writes one dimension - without a copy of a matrix.

A scalar lies in one row of its matrix [out, in]: what the row gives under the change is all that differs in the product
of the whole. So many changes of one layer are evaluated as one batch in which each sample has rows of its own
(`loss.losses_of_rows`). Costs the reading of one layer's matrix a change.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lingregions import models, perturb
from lingregions import tree as trees
from lingregions.intervention import Intervention
from lingregions.models import roles
from lingregions.regions import stack

_MOST = 16  # rows of one array
_NONE = np.int32(2**30)  # a row that no array has


class Rows(NamedTuple):
    """What some rows of one layer become.

    Attributes:
      layer: of them.
      parts: {path of a stacked array: (where, what)}, int32 [r] and values [r, in], or [r] of a vector.
    """

    layer: int
    parts: Mapping[str, tuple[np.ndarray, np.ndarray]]


def of_intervention(intervention: Intervention, params: trees.Tree, offsets: Mapping[str, float]) -> Rows | None:
    """Return the rows that an intervention changes; None where it does not say its layer, draws, or has many.

    Args:
      intervention: of a region of this model.
      params: untouched.
      offsets: of the model (`models.offsets`).

    Raises:
      ValueError: the region does not lie in the layer that it says.
    """
    kind, layer = perturb.PERTURBATIONS.get(intervention.perturbation), intervention.inside
    if layer is None or intervention.bounds is not None or kind is None or kind.draws:
        return None
    _, amount, _ = perturb.check(intervention.perturbation, intervention.factor, None)
    leaves, parts, how = trees.flatten(params), {}, tuple(sorted(offsets.items()))
    for path, mask in trees.walk(intervention.touched() or {}):
        inside = stack.read(path, mask, layer) if roles.stacked(path) else np.zeros(1, bool)
        # NumPy counts booleans forty times as fast as XLA does on a CPU.
        whole = np.count_nonzero(np.asarray(mask)) if stack.simple(mask) else int(jnp.sum(mask, dtype=jnp.int32))
        if whole != np.count_nonzero(inside):
            raise ValueError(f"{intervention.name}: its region lies not only in layer {layer}, as `inside` says")
        where = np.flatnonzero(inside.any(axis=tuple(range(1, inside.ndim)))).astype(np.int32)
        if len(where) > _MOST:
            return None
        if len(where):
            read = _changed(stack.everywhere(stack.sharding(leaves[path])))
            name, size = intervention.perturbation, np.float32(amount)
            parts[path] = where, np.asarray(read(path, leaves[path], mask, np.int32(layer), where, name, size, how))
    return Rows(layer, parts)


@functools.cache
def _changed(whole: jax.sharding.Sharding) -> Any:
    return jax.jit(perturb.rows, static_argnames=("path", "name", "offsets"), out_shardings=whole)


def of_scalars(
    params: trees.Tree, places: Sequence[tuple[str, tuple[int, ...]]], values: Sequence[float] | np.ndarray
) -> Rows | None:
    """Return the rows in which some scalars get other values; None if they are not of one layer, or have many rows.

    Args:
      params: untouched.
      places: (path, index in the stacked array) of each scalar.
      values: one for each.
    """
    layers = {where[0] if roles.stacked(path) else -1 for path, where in places}
    layer, leaves, parts = layers.pop(), trees.flatten(params), {}
    if layers or layer < 0:
        return None
    for path in dict.fromkeys(path for path, _ in places):
        mine = [(where[1:], value) for (own, where), value in zip(places, values, strict=True) if own == path]
        where = np.unique([index[0] for index, _ in mine]).astype(np.int32)
        if len(where) > _MOST:
            return None
        what = np.array(_taken(stack.everywhere(stack.sharding(leaves[path])))(leaves[path], np.int32(layer), where))
        for (row, *column), value in mine:
            what[(int(np.searchsorted(where, row)), *column)] = value
        parts[path] = where, what
    return Rows(layer, parts)


@functools.cache
def _taken(whole: jax.sharding.Sharding) -> Any:
    return jax.jit(lambda leaf, layer, where: leaf[layer, where], out_shardings=whole)


def together(config: Any, changes: Sequence[Rows]) -> trees.Tree:
    """Return the changes of one layer as one: at the paths of all its arrays (where, what), [K, r] and [K, r, in].

    All changes have as many rows as the fullest needs, in a power of two, so that few programs serve all.
    """
    most = max((len(where) for change in changes for where, _ in change.parts.values()), default=1)
    most = 1 << (most - 1).bit_length()
    found = {}
    for path, declared in trees.walk(models.declare(config)):
        if declared.stacked:
            where = np.full((len(changes), most), _NONE)
            what = np.zeros((len(changes), most, *declared.matrix[1:]), np.float32)
            for number, change in enumerate(changes):
                if path in change.parts:
                    rows, values = change.parts[path]
                    where[number, : len(rows)], what[number, : len(rows)] = rows, values
            found[path] = (where, what)
    tree: trees.Tree = trees.unflatten(found)[roles.LAYERS]
    return tree
