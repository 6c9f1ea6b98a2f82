"""Selection: from a score tree to a region, exactly.

A selector takes a fraction of every matrix (one layer's one tensor), k = floor(fraction x size) in whole numbers, or of
the whole scope. What it takes equals the first k of a stable sort: entries that tie at the threshold are taken by their
flat index in the [out, in] layout, lowest first. So a smaller fraction of the same scores is always part of a larger.

Scores are ranked where they lie, by one of two implementations that the tests prove equal: `rank_host`, where one CPU
sees them, and `rank_device`, on any sharding.
"""

import dataclasses
import fractions
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from lingregions import permutation
from lingregions import tree as trees
from lingregions.regions import rank_device, rank_host, region, stack
from lingregions.regions.found import Found
from lingregions.regions.region import Provenance, Region, Selection

_CHUNK = 1 << 15  # positions drawn together: they stay in the cache between two NumPy calls
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


_Selector = Callable[[trees.Tree, _Request], dict[str, Found]]


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


def _report(leaves: Mapping[str, Any], found: Mapping[str, Found]) -> Selection:
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


def _ranked(scores: trees.Tree, request: _Request, largest: bool) -> dict[str, Found]:
    leaves = trees.flatten(scores)
    for path, leaf in leaves.items():
        if leaf.dtype not in (jnp.float32, jnp.bfloat16):
            raise ValueError(f"{path!r}: scores are float32 or bfloat16, not {leaf.dtype}")
    host = request.method == "host" or (request.method == "auto" and all(map(stack.simple, leaves.values())))
    rank_leaf, rank_scope = (
        (rank_host.rank_leaf, rank_host.rank_scope) if host else (rank_device.rank_leaf, rank_device.rank_scope)
    )
    if request.within == "scope":
        total = sum(math.prod(leaf.shape) for leaf in leaves.values())
        return rank_scope(leaves, math.floor(request.fraction * total), largest)
    return {
        path: rank_leaf(path, leaf, math.floor(request.fraction * math.prod(region.shape(path, leaf))), largest)
        for path, leaf in leaves.items()
    }


def _random(scores: trees.Tree, request: _Request) -> dict[str, Found]:
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
        mask = stack.build(path, leaf, fill, workers=1)  # threads of so short calls wait for each other
        found[path] = Found(mask, [count] * layers, [False] * layers, [0] * layers, [0] * layers)
    return found


SELECTORS: dict[str, _Selector] = {
    "top": functools.partial(_ranked, largest=True),
    "bottom": functools.partial(_ranked, largest=False),
    "random": _random,
}
