"""The fair control: a random region matched to another in count, in magnitude of the weights, and in rows and columns.

A region found by a score is anything but a uniform draw: it sits on large weights, and on a few rows and columns. A
control that differs in all of that shows nothing about language. `match` draws, in every matrix, as many entries as the
region has

- as many in each bin of |theta| (`_QUANTILES` of the matrix), and
- as many in each row and column, in expectation.

The probabilities are the ones that iterative proportional fitting finds for these three margins, starting from no other
structure: a cell's is the product of a row, a column and a bin factor, at most 1. Of them a sample of exact size in
every bin is drawn by Pareto sampling (Rosen, 1997: order the cells by odds(u) / odds(probability), take the first).

The core of SmolLM2 is so crowded that a draw with its margins shares 62 % of its entries (IoU 0.45), and would collapse
the model for that reason alone. So the draw is from the entries outside the region, unless told otherwise. The price: a
row that the region fills cannot be matched (the others take its share), and a bin that lacks entries borrows from the
next lower one. In vectors (norms) a row holds one entry, so only the magnitudes are matched. Cost, on the host: about
0.3 s for a million entries and a dozen float32 copies of one matrix a thread.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from lingregions import permutation
from lingregions import tree as trees
from lingregions.regions import region, stack
from lingregions.regions.region import Region

# Edges of the bins of |theta|: finer towards the top, where a score that is a product with theta selects.
_QUANTILES = (*(step / 20 for step in range(1, 19)), 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9999)
_FLOOR = np.float32(1e-20)  # stands for a probability of zero: a cell that is taken only where no other is left
_ROUNDS = 30  # of proportional fitting; margins then agree to well under one entry


def match(
    what: Region,
    params: Mapping[str, Any],
    seed: int,
    name: str = "",
    outside: bool = True,
    avoid: Region | None = None,
) -> Region:
    """Return a random region matched to `what` in count, |theta| bins, row and column counts of every matrix.

    Args:
      what: the region to match.
      params: parameters, parallel to the region's masks (or with more leaves), on any sharding.
      seed: every matrix draws from (seed, its name) alone, whatever the mesh.
      name: name of the result.
      outside: whether to draw from the entries outside the region only; |theta| bins and counts are exact in any case
        where the matrix has the entries, rows and columns as near as they can be.
      avoid: entries that are not drawn either: the control of a monolingual region must not hold what is in the top of
        other languages, which alone breaks a model.

    Raises:
      ValueError: parameters that are not parallel to the region, or no room outside it.
    """
    leaves, values = what.leaves(), trees.flatten(params)
    barred = {} if avoid is None else avoid.leaves()
    if avoid is not None:
        trees.assert_parallel(leaves, barred, "the region to avoid")
    trees.assert_parallel(leaves, {path: each for path, each in values.items() if path in leaves}, "parameters")
    masks = {}
    for path, mask in leaves.items():
        named = region.matrices(path, mask)

        def fill(layer: int, out: np.ndarray, path: str = path, named: list[str] = named) -> None:
            wanted = stack.read(path, leaves[path], layer)
            theta = np.abs(stack.read(path, values[path], layer).astype(np.float32, copy=False))
            closed = wanted if outside else np.zeros_like(wanted)
            if barred:
                closed = closed | stack.read(path, barred[path], layer)
            if np.count_nonzero(wanted) > np.count_nonzero(~closed):
                part = "" if avoid is None else f", with {avoid.name!r},"
                raise ValueError(
                    f"{what.name!r}{part} takes more than half of {named[layer]}: no room for a control outside it"
                )
            _draw(wanted, closed, theta, permutation.derive(seed, named[layer], "matched"), out)

        masks[path] = stack.build(path, mask, fill, stack.threads(mask, values[path]))
    own = what.provenance
    beyond = "" if avoid is None else f" and outside {avoid.name}"
    return Region(
        trees.unflatten(masks),
        own.replace(
            name=name if name or own.selector else f"matched to {own.name} seed {seed}",
            definition=f"drawn at random{' outside it' * outside}{beyond}, matched in |theta|, rows and columns of "
            f"each matrix to: {own.definition}",
            selector="matched",
            seed=seed,
            selection=None,
            versions=region.versions(),
            parents=(own,),
        ).named(),
    )


def _draw(wanted: np.ndarray, closed: np.ndarray, theta: np.ndarray, seed: int, out: np.ndarray) -> None:
    """Write a mask of one matrix, matched to `wanted` and outside `closed`."""
    out[...] = False
    if not wanted.any():
        return
    kept = wanted.reshape(-1, wanted.shape[-1])
    bins = np.searchsorted(np.quantile(theta, _QUANTILES), theta.reshape(kept.shape), side="right")
    chance = _fit(kept, closed.reshape(kept.shape), bins, margins=wanted.ndim == 2).reshape(-1)
    luck = (permutation.permute(np.arange(wanted.size), wanted.size, seed) + 0.5) / wanted.size
    rank = luck / (1 - luck) * (1 / chance.astype(np.float64) - 1)
    free = ~closed.reshape(-1)
    held = np.bincount(bins[kept], minlength=len(_QUANTILES) + 1)
    flat, short = out.reshape(-1), 0
    # From the top down, and what is still short then from anywhere.
    for each in [*reversed(range(held.size)), None]:
        left = free & ~flat if each is None else free & (bins.reshape(-1) == each)
        places, count = np.flatnonzero(left), 0 if each is None else int(held[each])
        taken = min(count + short, places.size)
        short += count - taken
        if taken:
            flat[places[np.argpartition(rank[places], taken - 1)[:taken]]] = True


def _fit(kept: np.ndarray, closed: np.ndarray, bins: np.ndarray, margins: bool) -> np.ndarray:
    """Return the probability of each cell, float32, whose sums over bins (and rows and columns) are those of `kept`."""
    size = len(_QUANTILES) + 1
    held = np.bincount(bins[kept], minlength=size)
    chance = (held / np.maximum(np.bincount(bins.reshape(-1), minlength=size), 1)).astype(np.float32)[bins]
    chance[closed] = 0
    targets = [kept.sum(axis=1, dtype=np.float32, keepdims=True), kept.sum(axis=0, dtype=np.float32, keepdims=True)]
    for _ in range(_ROUNDS if margins else 1):
        for axis, target in zip((1, 0), targets, strict=True) if margins else ():
            chance *= target / np.maximum(chance.sum(axis=axis, keepdims=True), _FLOOR)
            np.minimum(chance, 1, out=chance)
        found = np.bincount(bins.reshape(-1), weights=chance.reshape(-1), minlength=size)
        chance *= (held / np.maximum(found, _FLOOR)).astype(np.float32)[bins]
        np.minimum(chance, 1, out=chance)
    floored: np.ndarray = np.maximum(chance, _FLOOR)
    return floored
