"""Selection: from a score tree to a region, exactly.

A selector takes a fraction of every matrix (one layer's one tensor), k = floor(fraction x size) in whole numbers, or of
the whole scope. What it takes equals the first k of a stable sort: entries that tie at the threshold are taken by their
flat index in the [out, in] layout, lowest first. So a smaller fraction of the same scores is always part of a larger.

Two implementations, proven equal in the tests:

- *host*, where one CPU sees the scores: a sample brackets the threshold, one pass collects the few entries inside the
  bracket, a partition of those finds it, one pass writes the mask. Memory beyond the mask: the candidates, about 1 % of
  one matrix a thread. Cost: three reads of the scores.
- *device*, on any sharding: bisection over the bits of the non-negative float, read as an unsigned integer (32 counts
  of "how many are at least this"), and over the flat index where ties are cut. The counts are all-reduced; nothing is
  gathered or sorted. Memory beyond the mask: what the compiler needs for one elementwise pass.
"""

import dataclasses
import fractions
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from lingregions import permutation
from lingregions import tree as trees
from lingregions.regions import region, stack
from lingregions.regions.region import Provenance, Region, Selection

_CHUNK = 1 << 16  # entries a pass looks at together: they stay in the cache between two NumPy calls
_SAMPLE = 1 << 12  # entries of a matrix that bracket its threshold
_SCOPE_SAMPLE = 1 << 16  # entries of a whole scope that bracket its threshold
_SPREAD = (
    4.0  # half width of the bracket in standard deviations of the sample's rank; too narrow costs time, never exactness
)
_LIMIT = 2**32 - 1  # entries of one matrix: counts and flat indices are uint32 on the device


@dataclasses.dataclass(frozen=True)
class _Request:
    """What is to be selected: the same for every selector.

    Attributes:
      fraction: exact part of a matrix (or of the scope).
      within: "matrix" or "scope".
      seed: seed of a random selector; None for the others.
      method: "host", "device", or "auto".
    """

    fraction: fractions.Fraction
    within: region.Within
    seed: int | None
    method: str


@dataclasses.dataclass(frozen=True)
class _Found:
    """Masks of one leaf, and for each of its matrices (taken, all zero, ties at the threshold, ties taken)."""

    mask: jax.Array
    taken: list[int]
    zero: list[bool]
    tied: list[int]
    quota: list[int]


_Selector = Callable[[trees.Tree, _Request], dict[str, _Found]]


def parse(fraction: float | str | fractions.Fraction) -> fractions.Fraction:
    """Return a fraction exactly: 0.01 (as it is written, not as the nearest float), "0.01", "1e-7" or "1%".

    Raises:
      ValueError: not a number, or outside (0, 1].
    """
    if type(fraction) is int and fraction >= 1:
        raise ValueError(
            f"the fraction {fraction!r} may mean two things: did you mean '{fraction}%' or {fraction / 100:g}?"
        )
    text = str(fraction).strip()
    try:
        value = fractions.Fraction(text.removesuffix("%").strip()) / (100 if text.endswith("%") else 1)
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"{fraction!r} is not a fraction; write 0.01 or '1%'") from None
    if not 0 < value <= 1:
        raise ValueError(
            f"the fraction {fraction!r} lies outside (0, 1]; a fraction is a part of all entries: 0.01 or '1%'"
        )
    return value


def _decimal(fraction: fractions.Fraction) -> str:
    """Return a fraction as text that `parse` reads back exactly: a decimal where there is one, else a quotient."""
    text = repr(float(fraction))
    return text if fractions.Fraction(text) == fraction else str(fraction)


def select(
    scores: Mapping[str, Any],
    fraction: float | str | fractions.Fraction,
    selector: str = "top",
    *,
    seed: int | None = None,
    within: region.Within = "matrix",
    provenance: Provenance = region.UNKNOWN,
    method: str = "auto",
) -> Region:
    """Return the region that a selector takes from a tree of scores.

    Args:
      scores: tree of float32 or bfloat16 leaves >= 0, [L, out, in] (norms [L, D]), on any sharding; for `random` only
        the shapes and shardings matter (`ShapeDtypeStruct`s will do).
      fraction: part to take, in (0, 1]: a number, or text such as "1%".
      selector: entry of `SELECTORS`: "top", "bottom" or "random".
      seed: seed of `random`; every matrix draws from (seed, its name) alone.
      within: "matrix" takes the fraction of every matrix, "scope" of all of them together (ties then go by path, layer,
        flat index).
      provenance: what is known of the scores; the fields that describe the selection are filled in.
      method: "host", "device", or "auto": host where one CPU holds the scores.

    Raises:
      ValueError: a NaN or a negative score (the message names the tensor and how many), a fraction outside (0, 1], an
        unknown selector, a missing or superfluous seed.
    """
    if selector not in SELECTORS:
        raise ValueError(f"there is no selector {selector!r}; there are {', '.join(sorted(SELECTORS))}")
    if within not in ("matrix", "scope"):
        raise ValueError(
            f"a fraction is taken within every 'matrix' or within the whole 'scope', not within {within!r}"
        )
    if method not in ("auto", "host", "device"):
        raise ValueError(f"a selection runs on the 'host', on the 'device', or 'auto', not {method!r}")
    if (seed is None) == (selector == "random"):
        raise ValueError(
            "a random region needs a seed" if seed is None else f"{selector!r} draws nothing: it takes no seed"
        )
    leaves = trees.flatten(scores)
    for path, leaf in leaves.items():
        if not 0 < math.prod(region.shape(path, leaf)) <= _LIMIT:
            raise ValueError(
                f"{path!r} has matrices of shape {region.shape(path, leaf)}; a matrix holds 1 to {_LIMIT} entries"
            )
    exact = parse(fraction)
    found = SELECTORS[selector](dict(scores), _Request(exact, within, seed, method))
    text = _decimal(exact)
    return Region(
        trees.unflatten({path: each.mask for path, each in found.items()}),
        provenance.replace(
            definition=provenance.definition or _define(selector, text, within),
            selector=selector,
            fraction=text,
            within=within,
            seed=seed,
            selection=_report(leaves, found),
            versions=provenance.versions or region.versions(),
        ).named(),
    )


def _define(selector: str, fraction: str, within: str) -> str:
    part = "of each matrix" if within == "matrix" else "of the whole scope"
    kind = {"top": "the highest scores", "bottom": "the lowest scores", "random": "drawn at random"}.get(
        selector, selector
    )
    return f"{kind}, {fraction} {part}"


def _report(leaves: Mapping[str, Any], found: Mapping[str, _Found]) -> Selection:
    empty, zero, cut, selected, entries, matrices = [], [], [], 0, 0, 0
    for path, each in found.items():
        size = math.prod(region.shape(path, leaves[path]))
        for layer, name in enumerate(region.matrices(path, leaves[path])):
            matrices, entries, selected = matrices + 1, entries + size, selected + each.taken[layer]
            if not each.taken[layer]:
                empty.append(name)
            if each.zero[layer]:
                zero.append(name)
            if each.quota[layer] < each.tied[layer] and each.taken[layer]:
                cut.append((name, each.tied[layer], each.quota[layer]))
    return Selection(entries, selected, matrices, tuple(empty), tuple(zero), tuple(cut))


def _ranked(scores: trees.Tree, request: _Request, largest: bool) -> dict[str, _Found]:
    leaves = trees.flatten(scores)
    for path, leaf in leaves.items():
        if leaf.dtype not in (jnp.float32, jnp.bfloat16):
            raise ValueError(f"{path!r}: scores are float32 or bfloat16, not {leaf.dtype}")
    host = request.method == "host" or (request.method == "auto" and all(map(stack.simple, leaves.values())))
    per_matrix, per_scope = (_host, _host_scope) if host else (_device, _device_scope)
    if request.within == "scope":
        total = sum(math.prod(leaf.shape) for leaf in leaves.values())
        return per_scope(leaves, math.floor(request.fraction * total), largest)
    counts = {path: math.floor(request.fraction * math.prod(region.shape(path, leaf))) for path, leaf in leaves.items()}
    return {path: per_matrix(path, leaf, counts[path], largest) for path, leaf in leaves.items()}


def _random(scores: trees.Tree, request: _Request) -> dict[str, _Found]:
    """Draw positions 0..k-1 of a permutation of each matrix: nested in the fraction, the same on every mesh."""
    if request.within == "scope":
        raise ValueError("a random region takes the fraction of each matrix; within='scope' is for ranked selectors")
    assert request.seed is not None
    found = {}
    for path, leaf in trees.flatten(scores).items():
        size = math.prod(region.shape(path, leaf))
        count = math.floor(request.fraction * size)
        named = region.matrices(path, leaf)
        seeds = [permutation.derive(request.seed, name) for name in named]

        def fill(layer: int, out: np.ndarray, size: int = size, count: int = count, seeds: list[int] = seeds) -> None:
            out[...] = False
            flat = out.reshape(-1)
            for start in range(0, count, _CHUNK):
                index = np.arange(start, min(start + _CHUNK, count), dtype=np.uint64)
                flat[permutation.permute(index, size, seeds[layer])] = True

        layers = len(named)
        mask = stack.build(path, leaf, fill)
        found[path] = _Found(mask, [count] * layers, [False] * layers, [0] * layers, [0] * layers)
    return found


SELECTORS: dict[str, _Selector] = {
    "top": functools.partial(_ranked, largest=True),
    "bottom": functools.partial(_ranked, largest=False),
    "random": _random,
}


def _complain(name: str, missing: int, negative: int) -> ValueError:
    if missing:
        return ValueError(
            f"{name}: {missing:,} scores are NaN; a selection over them means nothing: find the step that made them"
        )
    return ValueError(
        f"{name}: {negative:,} scores are negative; a score is a magnitude, so take its absolute value first"
    )


# ---- host ----


@dataclasses.dataclass(frozen=True)
class _Order:
    """The comparisons of "top" or "bottom", so that the code below is written once, in the words of "top"."""

    within: Callable[..., Any]  # at least as good as
    beyond: Callable[..., Any]  # better than
    largest: bool


_TOP = _Order(np.greater_equal, np.greater, True)
_BOTTOM = _Order(np.less_equal, np.less, False)


def _flat(path: str, leaf: Any, layer: int, name: str) -> np.ndarray:
    """Return one matrix as flat float32 scores, having checked them."""
    values = stack.read(path, leaf, layer).reshape(-1)
    values = values if values.dtype == np.float32 else values.astype(np.float32)
    if not values.min() >= 0:  # also when the minimum is NaN
        missing = int(np.count_nonzero(np.isnan(values)))
        raise _complain(name, missing, int(np.count_nonzero(values < 0)))
    return values


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
) -> tuple[int, np.ndarray]:
    """Return how many values are better than `high`, and those from `low` up to `high`."""
    certain, parts = 0, []
    for start in range(0, values.size, _CHUNK):
        chunk = values[start : start + _CHUNK]
        kept = chunk if low is None else chunk[np.flatnonzero(order.within(chunk, low))]
        if high is not None:
            outside = order.beyond(kept, high)
            certain += int(np.count_nonzero(outside))
            kept = kept[~outside]
        parts.append(kept)
    return certain, np.concatenate(parts)


def _threshold(values: np.ndarray, count: int, order: _Order) -> tuple[np.float32, int, int]:
    """Return the value of the `count`-th best, how many are better, and how many equal it; 1 <= count <= size."""
    low, high = _bracket(_sample(values, min(_SAMPLE, values.size)), count / values.size, order)
    if low is not None and low == high:  # most of the matrix ties there: count, and collect nothing
        better = int(np.count_nonzero(order.beyond(values, low)))
        equal = int(np.count_nonzero(values == low))
        if better < count <= better + equal:
            return low, better, equal
    certain, found = _candidates(values, low, high, order)
    if not certain < count <= certain + found.size:
        certain, found = _candidates(values, None, None, order)
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


def _host(path: str, leaf: Any, count: int, largest: bool) -> _Found:
    order = _TOP if largest else _BOTTOM
    named = region.matrices(path, leaf)
    zero, tied, quota = [False] * len(named), [0] * len(named), [0] * len(named)

    def fill(layer: int, out: np.ndarray) -> None:
        values = _flat(path, leaf, layer, named[layer])
        if not count:
            zero[layer] = bool(values.max() == 0)
            out[...] = False
            return
        threshold, better, tied[layer] = _threshold(values, count, order)
        quota[layer] = count - better
        zero[layer] = bool(threshold == 0 and tied[layer] == values.size)
        _write(values, threshold, tied[layer], quota[layer], out.reshape(-1), order)

    mask = stack.build(path, leaf, fill, stack.threads(leaf))
    return _Found(mask, [count] * len(named), zero, tied, quota)


def _host_scope(leaves: Mapping[str, Any], count: int, largest: bool) -> dict[str, _Found]:
    order = _TOP if largest else _BOTTOM
    threshold, better, equal, zero = _threshold_scope(leaves, count, order)
    quota = _share(equal, count - sum(map(sum, better.values())))
    found = {}
    for path, leaf in leaves.items():
        taken = [more + ties for more, ties in zip(better[path], quota[path], strict=True)]

        def fill(layer: int, out: np.ndarray, path: str = path, leaf: Any = leaf, taken: list[int] = taken) -> None:
            if not taken[layer]:
                out[...] = False
                return
            values = stack.read(path, leaf, layer).reshape(-1).astype(np.float32, copy=False)
            _write(values, threshold, equal[path][layer], quota[path][layer], out.reshape(-1), order)

        found[path] = _Found(
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
            values = _flat(path, leaf, layer, name)
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
                values = stack.read(path, leaf, layer).reshape(-1).astype(np.float32, copy=False)
                certain[path, layer], found[path, layer] = _candidates(values, *bracket, order)
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


def _share(equal: Mapping[str, list[int]], quota: int) -> dict[str, list[int]]:
    """Return how many of its ties each matrix takes: the first `quota` in the order of path, layer, flat index."""
    shares: dict[str, list[int]] = {}
    for path, counts in equal.items():
        shares[path] = []
        for ties in counts:
            taken = min(ties, quota)
            shares[path].append(taken)
            quota -= taken
    return shares


# ---- device ----

# Nothing below compares floats: the hardware may flush subnormals to zero, integers keep them apart. Functions of one
# matrix are mapped over the layers one after the other, so that only one layer's integers are held at a time.


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
            raise _complain(name, first, second)


def _device(path: str, leaf: Any, count: int, largest: bool) -> _Found:
    scores, where = _layered(path, leaf)
    named = region.matrices(path, leaf)
    mask, table = _compiled(rank, where, "mr", largest)(scores, jnp.uint32(count))
    missing, negative, present, ties, quota = (_integers(column) for column in np.asarray(table).T)
    _check(named, missing, negative)
    if not count:  # the bisection then ends at the greatest number, which nothing reaches
        ties = quota = [0] * len(named)
    return _Found(_unlayered(path, mask, leaf), [count] * len(named), [not each for each in present], ties, quota)


def _device_scope(leaves: Mapping[str, Any], count: int, largest: bool) -> dict[str, _Found]:
    """Bisect on the host over counts from the devices: 32 short rounds, summed in Python integers."""
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
    quota = _share(equal, count - sum(map(sum, better.values())))
    found = {}
    for path, (scores, where) in layered.items():
        mask = _compiled(_mark, where, "m", largest)(
            scores,
            jnp.uint32(threshold),
            jnp.asarray(equal[path], jnp.uint32),
            jnp.asarray(quota[path], jnp.uint32),
        )
        taken = [more + ties for more, ties in zip(better[path], quota[path], strict=True)]
        found[path] = _Found(_unlayered(path, mask, leaves[path]), taken, zero[path], equal[path], quota[path])
    return found
