"""What is done to a region: parameters -> parameters, everything outside bit-identical (docs/method.md 3).

`apply` is pure: it returns new arrays for the leaves that the region has and shares the others. `applied` does it for a
while and puts every bit back: the way to try many interventions on one model. A new perturbation is
one function and one entry of `PERTURBATIONS`; the contract tests then hold for it by themselves.

Cost: one reading of the leaves and masks concerned, and a copy of those leaves while the change lasts. `applied` copies
one layer where a region lies in one of an array, and nothing where it has no two scalars in one line of a matrix (a
dimension of inputs or outputs): the arrays are changed in place.
"""

import contextlib
import dataclasses
import functools
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lingregions import tree as trees
from lingregions.models.roles import stacked

# values, mask, amount and key of one matrix -> its values, of which only those inside the mask are used.
_Change = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]
_Offsets = tuple[tuple[str, float], ...]


@dataclasses.dataclass(frozen=True)
class _Perturbation:
    """One way to change a region.

    Attributes:
      change: see `_Change`; what it returns outside of the mask is not looked at.
      amount: whether it takes one, and the default (None: it takes none; NaN: it must be given).
      draws: whether it draws random numbers, and so needs a seed.
    """

    change: _Change
    amount: float | None = None
    draws: bool = False


_NEEDED = float("nan")  # an amount without a default


def _zero(values: jax.Array, mask: jax.Array, amount: jax.Array, key: jax.Array) -> jax.Array:
    """Removal: +0.0."""
    return jnp.zeros_like(values)


def _set(values: jax.Array, mask: jax.Array, amount: jax.Array, key: jax.Array) -> jax.Array:
    """Every scalar becomes the amount."""
    return jnp.broadcast_to(amount, values.shape)


def _scale(values: jax.Array, mask: jax.Array, amount: jax.Array, key: jax.Array) -> jax.Array:
    """Every scalar is multiplied by the amount."""
    return values * amount


def _negate(values: jax.Array, mask: jax.Array, amount: jax.Array, key: jax.Array) -> jax.Array:
    """The sign changes."""
    return -values


def _noise(values: jax.Array, mask: jax.Array, amount: jax.Array, key: jax.Array) -> jax.Array:
    """Gaussian noise is added whose L2 norm is `amount` times that of the region's values in this matrix."""
    none = jnp.zeros_like(values)
    drawn = jnp.where(mask, jax.random.normal(key, values.shape, values.dtype), none)
    norm, goal = _norm(drawn), _norm(jnp.where(mask, values, none)) * amount
    return values + drawn * (goal / jnp.maximum(norm, jnp.finfo(values.dtype).tiny))


def _norm(values: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.sum(values * values))


def _shuffle(values: jax.Array, mask: jax.Array, amount: jax.Array, key: jax.Array) -> jax.Array:
    """The region's values in this matrix change places among themselves."""
    flat, inside = values.reshape(-1), mask.reshape(-1)
    # Those inside come first, in the order of what they drew; the i-th place inside takes the i-th of them.
    order = jnp.where(inside, jax.random.uniform(key, flat.shape), jnp.float32(2))
    _, drawn = jax.lax.sort((order, flat), num_keys=1)
    places = jnp.maximum(jnp.cumsum(inside, dtype=jnp.int32) - 1, 0)
    return drawn[places].reshape(values.shape)


def _mean(values: jax.Array, mask: jax.Array, amount: jax.Array, key: jax.Array) -> jax.Array:
    """Every scalar becomes the mean of the whole matrix."""
    return jnp.broadcast_to(jnp.mean(values), values.shape)


PERTURBATIONS: dict[str, _Perturbation] = {
    "zero": _Perturbation(_zero),
    "set": _Perturbation(_set, amount=_NEEDED),
    "scale": _Perturbation(_scale, amount=_NEEDED),
    "negate": _Perturbation(_negate),
    "noise": _Perturbation(_noise, amount=1.0, draws=True),
    "shuffle": _Perturbation(_shuffle, draws=True),
    "mean": _Perturbation(_mean),
}


def _changed_leaf(
    values: jax.Array,
    mask: jax.Array,
    amount: jax.Array,
    key: jax.Array,
    place: jax.Array,
    first: jax.Array | int = 0,
    *,
    name: str,
    layered: bool,
    offset: float | None,
) -> jax.Array:
    """Return a changed array; one of the layers may begin with layer `first` instead of the first of all.

    Args:
      values: the array.
      mask: bool, of its shape.
      amount: float32 [].
      key: of the seed.
      place: uint32 [], stands for the path: each array draws numbers of its own.
      first: int32 [].
      name: of the perturbation.
      layered: whether the first axis is that of the layers.
      offset: what the model adds to the values where it uses them, if anything.
    """
    kind = PERTURBATIONS[name]

    def change(values: jax.Array) -> jax.Array:
        own = jax.random.fold_in(key, place)
        if not layered:
            return jnp.where(mask, kind.change(values, mask, amount, own), values)
        keys = jax.vmap(functools.partial(jax.random.fold_in, own))(jnp.arange(values.shape[0]) + first)
        if kind.draws:  # one layer after the other: what is drawn, or sorted, is as large as the matrix
            new = jax.lax.map(lambda each: kind.change(each[0], each[1], amount, each[2]), (values, mask, keys))
        else:
            new = jax.vmap(kind.change, (0, 0, None, 0))(values, mask, amount, keys)
        return jnp.where(mask, new, values)

    wide = values.astype(jnp.float32)
    # What is changed is what the model uses: a gain 1 + w is removed by w = -1.
    new = change(wide) if offset is None else change(wide + jnp.float32(offset)) - jnp.float32(offset)
    return jnp.where(mask, new.astype(values.dtype), values)


# Of arrays one by one: those of one shape share a program.
_STATIC = ("name", "layered", "offset")
_altered = jax.jit(_changed_leaf, static_argnames=_STATIC)
_overwrite = jax.jit(_changed_leaf, static_argnames=_STATIC, donate_argnames=("values",))


def _place(path: str) -> jax.Array:
    """Return the number that stands for a path."""
    return jnp.asarray(zlib.crc32(path.encode()), jnp.uint32)


@functools.partial(jax.jit, static_argnames=("name", "offsets"))
def _changed(
    part: trees.Tree, masks: trees.Tree, name: str, amount: jax.Array, key: jax.Array, offsets: _Offsets = ()
) -> trees.Tree:
    added = dict(offsets)

    def leaf(path: str, values: jax.Array, mask: jax.Array) -> jax.Array:
        return _changed_leaf(
            *(values, mask, amount, key, _place(path)), name=name, layered=stacked(path), offset=added.get(path)
        )

    return trees.transform(leaf, part, masks)


@jax.jit
def _swap(part: trees.Tree, other: trees.Tree, masks: trees.Tree) -> trees.Tree:
    swapped: trees.Tree = jax.tree.map(lambda theta, value, mask: jnp.where(mask, value, theta), part, other, masks)
    return swapped


def _covered(params: trees.Tree, masks: trees.Tree) -> trees.Tree:
    """Return the leaves of `params` that `masks` has.

    Raises:
      ValueError: a mask has a path or a shape that the parameters lack.
    """
    leaves = trees.flatten(params)
    part = trees.unflatten({path: leaves[path] for path in trees.flatten(masks) if path in leaves})
    trees.assert_parallel(part, masks, "region")
    return part


def check(name: str, amount: float | None, seed: int | None) -> tuple[_Perturbation, float, int]:
    """Return the perturbation of this name, its amount and its seed.

    Raises:
      ValueError: there is no such perturbation; it needs an amount or a seed that is missing, or takes none.
    """
    if name not in PERTURBATIONS:
        raise ValueError(f"there is no perturbation {name!r}; there are {', '.join(PERTURBATIONS)}")
    kind = PERTURBATIONS[name]
    if amount is None:
        amount = kind.amount
    elif kind.amount is None:
        raise ValueError(f"the perturbation {name} takes no amount; {amount} was given")
    if amount is not None and amount != amount:
        raise ValueError(f"the perturbation {name} needs an amount: a number")
    if kind.draws != (seed is not None):
        raise ValueError(f"the perturbation {name} " + ("needs a seed" if kind.draws else f"takes no seed; {seed=}"))
    return kind, 0.0 if amount is None else amount, 0 if seed is None else seed


def _change(
    part: trees.Tree,
    masks: trees.Tree,
    name: str,
    amount: float | None,
    seed: int | None,
    offsets: Mapping[str, float] | None,
) -> trees.Tree:
    _, size, number = check(name, amount, seed)
    added = tuple(sorted((offsets or {}).items()))
    out: trees.Tree = _changed(part, masks, name, jnp.float32(size), jax.random.key(number), added)
    return out


def apply(
    params: trees.Tree,
    masks: trees.Tree,
    name: str,
    amount: float | None = None,
    seed: int | None = None,
    offsets: Mapping[str, float] | None = None,
) -> trees.Tree:
    """Return `params` with a perturbation of the region; everything outside keeps every bit.

    Args:
      params: the parameter tree; what is computed is float32, and rounded where the parameters are not.
      masks: bool tree parallel to the parameters of some scope.
      name: a key of `PERTURBATIONS`.
      amount: of `set` (the value), `scale` (the factor) and `noise` (its norm, relative to the region's; 1 by default).
      seed: of `noise` and `shuffle`, which draw matrix by matrix; the same numbers on every mesh.
      offsets: of the model (`models.offsets`), if it has any: values plus these are what is changed.

    Raises:
      ValueError: the region belongs to another model, or as `check` says.
    """
    return trees.merge(params, _change(_covered(params, masks), masks, name, amount, seed, offsets))


def revert(params: trees.Tree, original: trees.Tree, masks: trees.Tree, factor: float) -> trees.Tree:
    """Return `params` moved back to `original` inside the region by a part of the way: 1 is all of it.

    Raises:
      ValueError: the region belongs to another model, or the factor is not between 0 and 1.
    """
    if not 0 <= factor <= 1:
        raise ValueError(f"a region is set back by a factor between 0 and 1, not by {factor}")
    if factor == 1:
        return trees.merge(params, _swap(_covered(params, masks), _covered(original, masks), masks))
    back = _between(_covered(params, masks), _covered(original, masks), masks, jnp.float32(factor))
    return trees.merge(params, back)


@jax.jit
def _between(part: trees.Tree, other: trees.Tree, masks: trees.Tree, factor: jax.Array) -> trees.Tree:
    def leaf(theta: jax.Array, value: jax.Array, mask: jax.Array) -> jax.Array:
        return jnp.where(mask, theta + factor.astype(theta.dtype) * (value - theta), theta)

    perturbed: trees.Tree = jax.tree.map(leaf, part, other, masks)
    return perturbed


def rows(
    path: str,
    values: jax.Array,
    mask: jax.Array,
    layer: jax.Array,
    where: jax.Array,
    name: str,
    amount: jax.Array,
    offsets: _Offsets = (),
) -> jax.Array:
    """Return what a perturbation that draws nothing makes of some rows of one layer: [r, in], or [r] of a vector.

    Args:
      path: of a stacked array.
      values: the array, [L, out, in] or [L, out].
      mask: bool, of the same shape.
      layer: int32 [].
      where: int32 [r], the rows.
      name: of the perturbation.
      amount: float32 [], as `check` returns it.
      offsets: of the model, as pairs.
    """
    part, inside = (jax.lax.dynamic_slice_in_dim(each, layer, 1) for each in (values, mask))
    offset, given = dict(offsets).get(path), (amount, jax.random.key(0), _place(path))
    return _changed_leaf(part, inside, *given, name=name, layered=True, offset=offset)[0][where]


# --- for a while, in place --------------------------------------------------------------------------------------------


_occupied = jax.jit(trees.occupied)


@jax.jit
def _crowding(mask: jax.Array) -> jax.Array:
    """Return the most entries in one line along the last axis, and along the one before it, int32 [2]."""
    return jnp.stack([jnp.max(jnp.sum(mask, axis=axis, dtype=jnp.int32)) for axis in (-1, -2)[: mask.ndim]])


def _lonely(mask: jax.Array, first: int) -> int | None:
    """Return the axis (-1 or -2) on which every entry of a mask is alone, or None; `first` is a layer that has some.

    That layer tells of most regions that there is none.
    """
    crowding: list[int] = []
    for part in (_layer(mask, jnp.int32(first)), mask):
        crowding = np.asarray(_crowding(part)).tolist()
        if 1 not in crowding:
            return None
    return -1 - crowding.index(1)


@functools.partial(jax.jit, static_argnames=("axis",))
def _lift(values: jax.Array, mask: jax.Array, axis: int) -> jax.Array:
    """Return the bits inside the mask, summed along an axis on which they are alone: exact, and keeps the shards."""
    bits = jax.lax.bitcast_convert_type(values, jnp.uint32)
    return jnp.sum(jnp.where(mask, bits, jnp.uint32(0)), axis=axis, keepdims=True, dtype=jnp.uint32)


@jax.jit
def _layer(values: jax.Array, layer: jax.Array) -> jax.Array:
    """Return one layer [1, ...], a copy."""
    return jax.lax.dynamic_slice_in_dim(values, layer, 1)


@functools.partial(jax.jit, donate_argnames=("values",))
def _put(values: jax.Array, layer: jax.Array, new: jax.Array) -> jax.Array:
    """Return the values with one layer [1, ...] replaced."""
    return jax.lax.dynamic_update_slice_in_dim(values, new, layer, 0)


@functools.partial(jax.jit, donate_argnames=("values",))
def _lower(values: jax.Array, mask: jax.Array, bits: jax.Array) -> jax.Array:
    """Undo: put lifted bits back."""
    kept = jax.lax.bitcast_convert_type(jnp.broadcast_to(bits, values.shape), values.dtype)
    return jnp.where(mask, kept, values)


@contextlib.contextmanager
def applied(
    params: trees.Tree,
    masks: trees.Tree,
    name: str,
    amount: float | None = None,
    seed: int | None = None,
    offsets: Mapping[str, float] | None = None,
) -> Iterator[trees.Tree]:
    """Perturb a region of `params` while the context lasts, and put every bit back afterwards, whatever happens in it.

    The dict `params` itself is changed and yielded: no other reference to its arrays may be used meanwhile, or
    afterwards (JAX says "Array has been deleted"). See `apply` for the arguments.

    Raises:
      ValueError: as `apply` does.
    """
    _, size, number = check(name, amount, seed)
    _covered(params, masks)
    undo: dict[str, Callable[[jax.Array], jax.Array]] = {}
    leaves, key, added = trees.flatten(masks), jax.random.key(number), offsets or {}
    try:
        for path, mask in leaves.items():
            values = _leaf(params, path)
            layers = np.flatnonzero(_occupied(mask)).tolist()
            if not layers:
                continue
            given = (jnp.float32(size), key, _place(path))
            options: dict[str, Any] = {"name": name, "layered": stacked(path), "offset": added.get(path)}
            if stacked(path) and len(layers) == 1:  # the other layers are left alone
                layer = jnp.int32(layers[0])
                before = _layer(values, layer)
                undo[path] = functools.partial(_put, layer=layer, new=before)
                new = _put(values, layer, _altered(before, _layer(mask, layer), *given, layer, **options))
            elif values.dtype == jnp.float32 and (axis := _lonely(mask, layers[0])) is not None:
                bits = _lift(values, mask, axis)
                undo[path] = functools.partial(_lower, mask=mask, bits=bits)
                new = _overwrite(values, mask, *given, **options)
            else:
                undo[path] = functools.partial(lambda new, values: values, values=values)
                new = _altered(values, mask, *given, **options)
            _put_leaf(params, path, new)
        yield params
    finally:
        for path, back in undo.items():
            _put_leaf(params, path, back(_leaf(params, path)))


def _leaf(params: trees.Tree, path: str) -> Any:
    return functools.reduce(lambda node, key: node[key], path.split("."), params)


def _put_leaf(params: trees.Tree, path: str, leaf: Any) -> None:
    *parents, last = path.split(".")
    functools.reduce(lambda node, key: node[key], parents, params)[last] = leaf
