"""Set algebra on regions: union, intersection, difference, complement, restriction, on masks that stay on their shards.

Regions combine only when they are parallel (the same paths and shapes) and of one model; the result remembers its
parents.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lingregions import tree as trees
from lingregions.models import roles
from lingregions.regions import region
from lingregions.regions.region import Provenance, Region


@functools.partial(jax.jit, static_argnums=0)
def _merge(operation: Callable[..., jax.Array], first: trees.Tree, second: trees.Tree) -> trees.Tree:
    merged: trees.Tree = jax.tree.map(operation, first, second)
    return merged


def align(other: Region, first: Region) -> trees.Tree:
    """Return the masks of `other`, on the devices of `first`: copied only where they lie on others.

    Raises:
      ValueError: the two are not parallel; the message names the path.
    """
    trees.assert_parallel(first.masks, other.masks, f"region {other.name!r}")

    def place(_: str, ours: jax.Array, theirs: jax.Array) -> jax.Array:
        return (
            theirs if theirs.sharding.device_set == ours.sharding.device_set else jax.device_put(theirs, ours.sharding)
        )

    return trees.transform(place, first.masks, other.masks)


def _minus(first: jax.Array, second: jax.Array) -> jax.Array:
    return first & ~second


def _fold(verb: str, operation: Callable[..., jax.Array], regions: Sequence[Region], name: str) -> Region:
    if not regions:
        raise ValueError(f"{verb} needs at least one region")
    masks = regions[0].masks
    for other in regions[1:]:
        masks = _merge(operation, masks, align(other, regions[0]))
    return Region(masks, combine(verb, [each.provenance for each in regions], name))


def union(*regions: Region, name: str = "") -> Region:
    """Return the entries that lie in at least one of the regions.

    Raises:
      ValueError: the regions are not parallel (the message names the path) or not of one model.
    """
    return _fold("union", jnp.logical_or, regions, name)


def intersect(*regions: Region, name: str = "") -> Region:
    """Return the entries that lie in all of the regions; raises as `union` does."""
    return _fold("intersection", jnp.logical_and, regions, name)


def subtract(first: Region, *others: Region, name: str = "") -> Region:
    """Return the entries of `first` that lie in none of `others`; raises as `union` does.

    The monolingual region of A is `subtract(top of A, top of B, top of C, ...)` (docs/method.md 2).
    """
    return _fold("difference", _minus, (first, *others), name)


def complement(first: Region, name: str = "") -> Region:
    """Return the entries of the scope that do not lie in the region."""
    masks = jax.tree.map(jnp.logical_not, first.masks)
    return Region(masks, combine("complement", [first.provenance], name))


def restrict(
    first: Region,
    scope: str | None = None,
    layers: Sequence[int] | None = None,
    axis: str | None = None,
    indices: Sequence[int] | None = None,
    name: str = "",
) -> Region:
    """Return the part of a region that lies in a scope, in some layers, or at some indices of a named axis.

    The result is parallel to the region: what is left out is empty, not gone.

    Args:
      first: the region.
      scope: a name in `roles.SCOPES` or path patterns ("layers.mlp.*").
      layers: layers to keep; leaves that stack no layers then become empty.
      axis: a named axis ("embed"); matrices that do not carry it become empty.
      indices: the indices of that axis to keep, in every matrix that carries it.
      name: name of the result.

    Raises:
      ValueError: an axis without indices, a layer or index out of range, or a region that does not know its axes.
    """
    if (axis is None) != (indices is None):
        raise ValueError("an axis and its indices go together")
    kept = set(first.leaves()) if scope is None else set(trees.flatten(roles.restrict(first.masks, scope)))
    named = dict(first.provenance.axes)
    if axis is not None and not any(axis in each for each in named.values()):
        known = sorted({each for names in named.values() for each in names})
        raise ValueError(f"region {first.name!r} has no axis {axis!r}; it knows {known}")

    def part(path: str, mask: jax.Array) -> jax.Array:
        if path not in kept or (axis is not None and axis not in named.get(path, ())):
            return jnp.zeros_like(mask)
        if layers is not None:
            if not region.stacked(path):
                return jnp.zeros_like(mask)
            mask = mask & _line(mask, 0, layers, f"layers of {path}")
        if axis is not None and indices is not None:
            mask = mask & _line(mask, named[path].index(axis), indices, f"axis {axis!r} of {path}")
        return mask

    own = first.provenance
    one = layers[0] if layers is not None and len(layers) == 1 else None
    words = [
        scope or "",
        "" if layers is None or one is not None else f"layers {', '.join(map(str, layers))}",
        "" if axis is None or indices is None else f"{axis} {', '.join(map(str, indices))}",
    ]
    lies = " ".join(filter(None, [*words, "" if one is None else f"layer {one}"]))
    origin = combine("restriction", [own], name).replace(
        name=name,
        definition=f"of {own.definition or own.name or 'a region'}: what lies in {lies}",
        part=" ".join(filter(None, [own.part, *words])).replace("_", " "),
        layer=own.layer if one is None else one,
        **({} if not own.selector else {"selector": own.selector, "fraction": own.fraction, "within": own.within}),
        seed=own.seed,
    )
    if not own.selector and not name:
        origin = origin.replace(name=" ".join(filter(None, [own.name, *words, "" if one is None else f"layer {one}"])))
    return Region(trees.transform(part, first.masks), origin.named())


def _line(mask: jax.Array, place: int, indices: Sequence[int], what: str) -> jax.Array:
    """Return a mask that is true at `indices` of one axis and broadcasts along the others."""
    size = mask.shape[place]
    wrong = [index for index in indices if not 0 <= index < size]
    if wrong:
        raise ValueError(f"index {wrong[0]} lies outside the {size} {what}")
    chosen = jnp.zeros((size,), bool).at[jnp.asarray(list(indices), jnp.int32)].set(True)
    return chosen.reshape([size if axis == place else 1 for axis in range(mask.ndim)])


def equals(first: Region, second: Region) -> bool:
    """Whether two parallel regions hold the same entries; raises ValueError when they are not parallel."""
    return bool(_equal(first.masks, align(second, first)))


@jax.jit
def _equal(first: trees.Tree, second: trees.Tree) -> jax.Array:
    return jnp.all(jnp.stack(jax.tree.leaves(jax.tree.map(lambda a, b: jnp.all(a == b), first, second))))


def combine(verb: str, parents: Sequence[Provenance], name: str = "") -> Provenance:
    """Return the provenance of a result: what the parents share stays, the rest is left to them.

    Raises:
      ValueError: the parents are of different models.
    """
    models = {parent.model for parent in parents if parent.model}
    if len(models) > 1:
        raise ValueError(
            f"{verb} of regions of different models: {' and '.join(sorted(models))}; score both on one model"
        )
    inner = ", ".join(parent.name or "a region" for parent in parents)
    languages = tuple(dict.fromkeys(language for parent in parents for language in parent.languages))

    def shared(field: str, empty: Any = "") -> Any:
        values = {getattr(parent, field) for parent in parents}
        return values.pop() if len(values) == 1 else empty

    return Provenance(
        name=name or f"{verb}({inner})",
        definition=f"{verb} of: {'; '.join(parent.definition or parent.name or 'a region' for parent in parents)}",
        score=shared("score"),
        languages=languages,
        score_scope=shared("score_scope"),
        select_scope=shared("select_scope"),
        samples=shared("samples", ()),
        data_seed=shared("data_seed", None),
        model=next(iter(models), ""),
        tokenizer=shared("tokenizer"),
        data=shared("data"),
        axes=shared("axes", ()),
        removal=shared("removal", ()),
        versions=region.versions(),
        parents=tuple(parents),
    )
