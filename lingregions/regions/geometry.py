"""Where a region lies: densities, concentration along named axes, overlap between regions; and regions given by place.

Every count is exact: int32 for one matrix on the device, Python or int64 integers beyond. Masks stay on their shards;
what reaches the host is one number a matrix, or one an index of an axis. "Dimension d" is index d of the axis `embed`.
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
from lingregions.models import roles
from lingregions.regions import algebra, region, stack
from lingregions.regions.region import Provenance, Region

_FULLEST = 0.01  # "share of the fullest 1 %": part of the indices of an axis


@functools.lru_cache(maxsize=256)
def _compiled(function: Callable[..., jax.Array], where: jax.sharding.Sharding, static: tuple[Any, ...] = ()) -> Any:
    """Return `function(*static, ...)` jitted, with a result that every process can read."""
    return jax.jit(functools.partial(function, *static), out_shardings=stack.everywhere(where))


def _sum(axes: tuple[int, ...], mask: jax.Array) -> jax.Array:
    return jnp.sum(mask, axis=axes, dtype=jnp.int32)


def _along(path: str, mask: jax.Array, kept: Sequence[int]) -> np.ndarray:
    """Return the counts of a leaf summed over all axes but `kept`, int64."""
    gone = tuple(place for place in range(mask.ndim) if place not in kept)
    return np.asarray(_compiled(_sum, stack.sharding(mask), (gone,))(mask)).astype(np.int64)


def _occupied(mask: jax.Array) -> np.ndarray:
    """Return where along the first axis a leaf has any entry, bool."""
    return np.asarray(_compiled(trees.occupied, stack.sharding(mask))(mask))


# ---- how much ----


def counts(what: Region) -> dict[str, list[int]]:
    """Return how many entries each matrix has in the region: {path: one integer a layer}."""
    return {path: _counted(path, mask) for path, mask in what.leaves().items()}


def _counted(path: str, mask: jax.Array) -> list[int]:
    if stack.simple(mask):  # forty times as fast as XLA adds bytes up on a CPU
        matrices = np.asarray(mask) if region.stacked(path) else np.asarray(mask)[None]
        return [int(np.count_nonzero(matrix)) for matrix in matrices]
    return [int(each) for each in _along(path, mask, (0,) if region.stacked(path) else ()).reshape(-1)]


def total(what: Region) -> int:
    """Return how many entries the region has."""
    return sum(map(sum, counts(what).values()))


def density(what: Region) -> dict[str, list[float]]:
    """Return the part of each matrix that lies in the region: {path: a fraction a layer}, the layer x matrix table."""
    leaves = what.leaves()
    return {
        path: [each / math.prod(region.shape(path, leaves[path])) for each in found]
        for path, found in counts(what).items()
    }


def first_layer(masks: trees.Tree, layers: int) -> int:
    """Return the first of `layers` decoder layers that masks touch: 0 for the embedding, `layers` for none of them."""
    found = layers
    for path, mask in trees.walk(masks):
        if region.stacked(path):
            found = min(found, *np.flatnonzero(_occupied(mask))[:1].tolist(), layers)
        elif path == roles.path("embedding") and _occupied(mask).any():
            return 0
    return found


# ---- along an axis ----


@dataclasses.dataclass(frozen=True)
class _Concentration:
    """How unevenly a region lies along a named axis.

    Attributes:
      counts: int64, entries of the region at each index of the axis.
    """

    counts: np.ndarray

    @property
    def gini(self) -> float:
        """Gini coefficient of the counts: 0 when all indices hold the same, 1 - 1/n when one holds all; 0 if empty."""
        ranked, size = np.sort(self.counts), self.counts.size
        whole = int(ranked.sum())
        weighted = int(np.dot(np.arange(1, size + 1, dtype=np.int64), ranked))
        return (2 * weighted / whole - (size + 1)) / size if whole else 0.0

    @property
    def fullest(self) -> float:
        """Share of the region at the fullest 1 % of the indices (at least one index); 0 if empty."""
        whole, places = int(self.counts.sum()), max(1, math.floor(_FULLEST * self.counts.size))
        return int(np.sort(self.counts)[-places:].sum()) / whole if whole else 0.0

    def leading(self, number: int) -> list[tuple[int, int]]:
        """Return the `number` fullest indices as (index, count), fullest first, ties by index; none that are empty."""
        order = np.argsort(-self.counts, kind="stable")[:number]
        return [(int(index), int(self.counts[index])) for index in order if self.counts[index]]


def _named(what: Region, axis: str) -> dict[str, int]:
    """Return {path: place of the axis} for the leaves that carry it."""
    named = dict(what.provenance.axes)
    missing = sorted(what.leaves().keys() - named.keys())
    if missing:
        raise ValueError(
            f"region {what.name!r} does not know the axes of {missing[0]!r}; record them when it is made: "
            "Provenance(**region.declared(declaration))"
        )
    found = {path: named[path].index(axis) for path in what.leaves() if axis in named[path]}
    if not found:
        raise ValueError(f"no matrix of region {what.name!r} carries the axis {axis!r}")
    return found


def profile(what: Region, axis: str) -> _Concentration:
    """Return the concentration along `axis` over all matrices together: for "embed", the whole residual axis.

    Raises:
      ValueError: the region does not know its axes, no matrix carries this one, or they give it different lengths.
    """
    tables = [_along(path, what.leaves()[path], (place,)) for path, place in _named(what, axis).items()]
    lengths = sorted({table.size for table in tables})
    if len(lengths) > 1:
        raise ValueError(
            f"axis {axis!r} has lengths {lengths} in region {what.name!r}; restrict it to one kind of matrix"
        )
    return _Concentration(np.stack(tables).sum(axis=0))


# ---- regions given by place ----


def _empty(like: Any) -> jax.Array:
    return jnp.zeros(like.shape, bool, device=stack.sharding(like))


def slab(
    like: Mapping[str, Any], declaration: Mapping[str, Any], axis: str, indices: Sequence[int], name: str = ""
) -> Region:
    """Return the region of all entries at some indices of a named axis, in every matrix that carries the axis.

    Args:
      like: tree of arrays or `ShapeDtypeStruct`s: the scope, its shapes and shardings.
      declaration: tree of `Parameter` that holds (at least) the same paths, for the names of the axes.
      axis: a named axis, "embed" for a dimension of the residual stream.
      indices: indices of that axis.
      name: name of the region.

    Raises:
      ValueError: no matrix carries the axis, or an index lies outside it.
    """
    declared = trees.flatten(declaration)
    named = tuple((path, tuple(declared[path].axes)) for path in trees.flatten(like))
    if not any(axis in axes for _, axes in named):
        raise ValueError(f"no matrix of the scope carries the axis {axis!r}")
    full = Region(
        trees.transform(lambda _, leaf: jnp.logical_not(_empty(leaf)), like),
        Provenance(
            name=name or f"{axis} {', '.join(map(str, indices))}",
            definition=f"every entry at index {', '.join(map(str, indices))} of the axis {axis}",
            axes=named,
            versions=region.versions(),
        ),
    )
    return Region(algebra.restrict(full, axis=axis, indices=indices).masks, full.provenance)


def points(like: Mapping[str, Any], places: Sequence[tuple[str, Sequence[int]]], name: str = "") -> Region:
    """Return the region of single scalars, each given by (Hugging Face name, index in [out, in]).

    A super weight is `("model.layers.2.mlp.down_proj.weight", (3968, 7003))`.

    Raises:
      ValueError: a matrix outside the scope of `like`, or an index outside the matrix.
    """
    masks = trees.flatten(trees.transform(lambda _, leaf: _empty(leaf), like))
    for matrix, index in places:
        path, layer = region.locate(matrix)
        where = (*(() if layer is None else (layer,)), *index)
        if path not in masks or region.stacked(path) == (layer is None):
            raise ValueError(f"{matrix!r} is not in the scope, which holds {', '.join(sorted(masks))}")
        full = masks[path].shape
        if len(where) != len(full) or not all(0 <= at < size for at, size in zip(where, full, strict=True)):
            raise ValueError(f"{matrix!r} has no entry {tuple(index)}: its shape is {region.shape(path, masks[path])}")
        masks[path] = masks[path].at[where].set(True)
    said = "; ".join(f"{matrix} {list(index)}" for matrix, index in places)
    provenance = Provenance(name=name or "points", definition=f"the scalars {said}", versions=region.versions())
    return Region(trees.unflatten(masks), provenance)


# ---- between regions ----


@dataclasses.dataclass(frozen=True)
class _Overlap:
    """How much regions share, two by two.

    Attributes:
      names: the regions.
      shared: path -> int64 [L, n, n]: entries of a matrix that lie in both; a region's own count on the diagonal.
    """

    names: tuple[str, ...]
    shared: dict[str, np.ndarray]

    def table(self, path: str | None = None, layer: int | None = None) -> np.ndarray:
        """Return the shared counts, int64 [n, n], of everything, of the leaf at `path`, of one layer, or of both."""
        chosen = [
            each if layer is None else each[layer : layer + 1]
            for place, each in self.shared.items()
            if path in (None, place) and (layer is None or region.stacked(place))
        ]
        if not chosen:
            raise ValueError(f"there is no matrix {path!r} in layer {layer}; paths are {', '.join(self.shared)}")
        sums: np.ndarray = np.sum([each.sum(axis=0) for each in chosen], axis=0)
        return sums

    def iou(self, path: str | None = None, layer: int | None = None) -> np.ndarray:
        """Return intersection over union, float64 [n, n]; two empty regions are equal: 1."""
        shared = self.table(path, layer)
        own = np.diagonal(shared)
        union = own[:, None] + own[None, :] - shared
        return np.where(union == 0, 1.0, shared / np.maximum(union, 1))

    def containment(self, path: str | None = None, layer: int | None = None) -> np.ndarray:
        """Return the part of region i that lies in region j, float64 [n, n]; an empty region lies in every other: 1."""
        shared = self.table(path, layer)
        own = np.diagonal(shared)[:, None]
        return np.where(own == 0, 1.0, shared / np.maximum(own, 1))

    @property
    def layers(self) -> int:
        """How many layers there are."""
        return max((each.shape[0] for place, each in self.shared.items() if region.stacked(place)), default=0)


def _pair(axes: tuple[int, ...], first: jax.Array, second: jax.Array) -> jax.Array:
    return jnp.sum(first & second, axis=axes, dtype=jnp.int32)


def _packed(path: str, leaves: Sequence[Mapping[str, jax.Array]]) -> np.ndarray:
    """Return the shared counts of one leaf, int64 [L, n, n], from masks that the host can see."""
    number, layers = len(leaves), len(region.matrices(path, leaves[0][path]))
    shared = np.zeros((layers, number, number), np.int64)

    def count(layer: int) -> None:
        packed = np.stack([np.packbits(stack.read(path, each[path], layer)) for each in leaves])
        for one in range(number):
            both = packed[one] & packed[: one + 1]
            shared[layer, one, : one + 1] = shared[layer, : one + 1, one] = np.bitwise_count(both).sum(
                axis=1, dtype=np.int64
            )

    stack.each(count, range(layers))
    return shared


def overlap(regions: Sequence[Region]) -> _Overlap:
    """Return what regions share, two by two, overall and per layer and matrix.

    Costs n (n + 1) / 2 readings of a mask on the devices; where one CPU holds the masks, n packings of them to bits and
    as many readings of an eighth: 0.5 s for eight regions of SmolLM2.

    Raises:
      ValueError: the regions are not parallel; the message names the path.
    """
    if not regions:
        raise ValueError("an overlap needs at least one region")
    leaves = [trees.flatten(algebra.align(each, regions[0])) for each in regions]
    if all(stack.simple(mask) for each in leaves for mask in each.values()):
        return _Overlap(tuple(each.name for each in regions), {path: _packed(path, leaves) for path in leaves[0]})
    shared = {}
    for path, mask in leaves[0].items():
        axes = tuple(range(1, mask.ndim)) if region.stacked(path) else tuple(range(mask.ndim))
        function = _compiled(_pair, stack.sharding(mask), (axes,))
        pending = {
            (i, j): function(leaves[i][path], leaves[j][path]) for i in range(len(regions)) for j in range(i + 1)
        }
        layers = mask.shape[0] if region.stacked(path) else 1
        shared[path] = np.zeros((layers, len(regions), len(regions)), np.int64)
        for (i, j), each in pending.items():
            shared[path][:, i, j] = shared[path][:, j, i] = np.asarray(each)
    return _Overlap(tuple(each.name for each in regions), shared)


@dataclasses.dataclass(frozen=True)
class _Dendrogram:
    """Average-linkage clustering of n things.

    Attributes:
      merges: (first cluster, second cluster, distance, size), n - 1 of them; clusters below n are the things
        themselves, cluster n + k is the result of merge k (the layout of SciPy's `linkage`).
      order: the things in an order in which no branches cross.
    """

    merges: tuple[tuple[int, int, float, int], ...]
    order: tuple[int, ...]


def cluster(similarity: np.ndarray) -> _Dendrogram:
    """Return the average-linkage (UPGMA) dendrogram of a symmetric similarity matrix such as `Overlap.iou()`.

    The distance is 1 - similarity.
    """
    size = len(similarity)
    if size < 2:
        return _Dendrogram((), tuple(range(size)))
    from scipy.cluster import hierarchy  # slow to import, and wanted by reports alone

    found = hierarchy.linkage(1.0 - np.asarray(similarity, np.float64)[np.triu_indices(size, 1)], "average")
    merges = [(int(first), int(second), float(gap), int(count)) for first, second, gap, count in found]
    return _Dendrogram(tuple(merges), tuple(map(int, hierarchy.leaves_list(found))))
