"""Scalars: single parameters by name and index, read and changed a few at a time without a mask or a copy of the model.

A region of a few scalars is a tree of masks as large as the model. Where hundreds of single scalars are removed one
after the other, index and value are arguments of one compiled scatter into the array itself: one program for each array
and number of scalars, a millisecond a change.
"""

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import numpy as np

from lingregions import models, regions
from lingregions import tree as trees
from lingregions.models import roles
from lingregions.regions import Region, stack


class Scalar(NamedTuple):
    """One parameter.

    Attributes:
      matrix: Hugging Face name, "model.layers.11.mlp.down_proj.weight".
      entry: its index in [out, in].
    """

    matrix: str
    entry: tuple[int, ...]

    @property
    def path(self) -> str:
        """Path of its array in the parameter tree."""
        return roles.locate(self.matrix)[0]

    @property
    def layer(self) -> int | None:
        """Its layer; None outside of the layers."""
        return roles.locate(self.matrix)[1]

    @property
    def where(self) -> tuple[int, ...]:
        """Index in that array, the layer first where layers are stacked."""
        return (*(() if self.layer is None else (self.layer,)), *self.entry)

    def __str__(self) -> str:
        """Short name for tables: "layer 11 mlp.down_proj [507 1229]"."""
        path, layer = roles.locate(self.matrix)
        return (
            f"{'' if layer is None else f'layer {layer} '}{roles.display_name(path)} [{' '.join(map(str, self.entry))}]"
        )


def members(region: Region) -> list[Scalar]:
    """Return the scalars of a region, by path, layer and index: the inverse of `geometry.points`."""
    return [
        Scalar(name, tuple(map(int, index)))
        for path, mask in region.leaves().items()
        for name, matrix in stack.walk(path, mask)
        for index in np.argwhere(matrix)
    ]


def ranked(scores: trees.Tree, start: int, stop: int) -> list[Scalar]:
    """Return the scalars at ranks start .. stop - 1 of all scores of a tree, highest score first.

    Ties go by path, layer and index, as everywhere (`regions.select`).

    Raises:
      ValueError: ranks that do not exist.
    """
    total = trees.count(scores)
    if not 0 <= start < stop <= total:
        raise ValueError(f"ranks {start} to {stop} of {total} scores: 0 <= start < stop <= {total} is needed")
    found = regions.select(scores, Fraction(stop, total), within="scope")
    if start:
        found = regions.subtract(found, regions.select(scores, Fraction(start, total), within="scope"))
    scalars = members(found)
    order = np.argsort(-gather(scores, scalars), kind="stable")
    return [scalars[place] for place in order]


def places(scalars: Sequence[Scalar]) -> dict[str, np.ndarray]:
    """Return {path: int32 [axes, n], the indices in its array}, sorted by path, scalars in their order."""
    found: dict[str, list[tuple[int, ...]]] = {}
    for each in scalars:
        found.setdefault(each.path, []).append(each.where)
    return {path: np.asarray(found[path], np.int32).T for path in sorted(found)}


def spread(scalars: Sequence[Scalar], parts: Mapping[str, Any]) -> np.ndarray:
    """Return values [..., n] in the order of the scalars, from {path: [..., how many of its array]}."""
    used = dict.fromkeys(parts, 0)
    columns = []
    for each in scalars:
        columns.append(np.asarray(parts[each.path])[..., used[each.path]])
        used[each.path] += 1
    return np.stack(columns, axis=-1)


def gather(tree: trees.Tree, scalars: Sequence[Scalar]) -> np.ndarray:
    """Return the values of a tree parallel to the parameters at these scalars, in their order."""
    leaves = trees.flatten(tree)
    parts = {path: np.asarray(_take(leaves[path], _filled(where))) for path, where in places(scalars).items()}
    return spread(scalars, parts)


def removed(config: Any, scalars: Sequence[Scalar]) -> np.ndarray:
    """Return the values that scalars have when they are removed, float64 [n]: 0, and -1 of a gain 1 + w."""
    added = models.offsets(config)
    return np.array([0.0 - added.get(each.path, 0.0) for each in scalars])


@contextlib.contextmanager
def replaced(params: trees.Tree, scalars: Sequence[Scalar], values: Sequence[float] | np.ndarray) -> Iterator[None]:
    """Give scalars other values while the context lasts, in place; afterwards every bit is as it was.

    The dict `params` itself is changed: no other reference to its arrays may be used meanwhile or afterwards.

    Args:
      params: the parameters.
      scalars: none twice.
      values: one for each.
    """
    before = gather(params, scalars)
    try:
        _put(params, scalars, np.asarray(values, np.float32))
        yield
    finally:
        _put(params, scalars, before)


def _put(params: trees.Tree, scalars: Sequence[Scalar], values: np.ndarray) -> None:
    owners = np.asarray([each.path for each in scalars])
    for path, where in places(scalars).items():
        *parents, last = path.split(".")
        node = functools.reduce(lambda node, key: node[key], parents, params)
        chosen = values[owners == path]
        node[last] = _scatter(node[last], _filled(where), _filled(chosen).astype(node[last].dtype))


def _filled(values: np.ndarray) -> np.ndarray:
    """Repeat the last column up to a power of ten: few programs serve every number of scalars."""
    n = values.shape[-1]
    return np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, 10 ** len(str(n - 1)) - n if n > 1 else 0)], mode="edge")


def _take(leaf: jax.Array, where: np.ndarray) -> jax.Array:
    out: jax.Array = _taken(stack.everywhere(stack.sharding(leaf)))(leaf, where)
    return out


@functools.cache
def _taken(whole: jax.sharding.Sharding) -> Any:
    return jax.jit(lambda leaf, where: leaf[tuple(where)], out_shardings=whole)


def _scatter(leaf: jax.Array, where: np.ndarray, values: np.ndarray) -> jax.Array:
    out: jax.Array = _scattered(stack.sharding(leaf))(leaf, where, values)
    return out


@functools.cache
def _scattered(own: jax.sharding.Sharding) -> Any:
    return jax.jit(lambda leaf, where, values: leaf.at[tuple(where)].set(values), donate_argnums=0, out_shardings=own)
