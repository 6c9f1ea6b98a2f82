"""The fair control: a random region matched to another in count, in magnitude of the weights, and in rows and columns.

A region found by a score is anything but a uniform draw: it sits on large weights, and on a few rows and columns. A
control that differs in all of that shows nothing about language. `match` draws, in every matrix, as many entries as the
region has

- exactly as many in each bin of |theta| (`QUANTILES` of the matrix), and
- as many in each row and column, in expectation.

The probabilities are the ones that iterative proportional fitting finds for these three margins, starting from no other
structure: a cell's is the product of a row, a column and a bin factor, at most 1. Of them a sample of exact size in
every bin is drawn by Pareto sampling (Rosen, 1997: order the cells by odds(u) / odds(probability), take the first).
Entries of the region itself may be drawn again, and must be where it fills a row: report the overlap beside the damage.
In vectors (norms) a row holds one entry, so only the magnitudes are matched. Cost, on the host: about 0.1 s for a
million entries and a dozen float32 copies of one matrix a thread.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from lingregions import permutation
from lingregions import tree as trees
from lingregions.regions import region, stack
from lingregions.regions.region import Region

# Edges of the bins of |theta|: finer towards the top, where a score that is a product with theta selects.
QUANTILES = (*(step / 20 for step in range(1, 19)), 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9999)
ROUNDS = 30  # of proportional fitting; margins then agree to well under one entry


def match(what: Region, params: Mapping[str, Any], seed: int, name: str = "") -> Region:
    """Return a random region matched to `what` in count, |theta| bins, row and column counts of every matrix.

    Args:
      what: the region to match.
      params: parameters, parallel to the region's masks (or with more leaves), on any sharding.
      seed: every matrix draws from (seed, its name) alone, whatever the mesh.
      name: name of the result.

    Raises:
      ValueError: parameters that are not parallel to the region.
    """
    leaves, values = what.leaves(), trees.flatten(params)
    trees.assert_parallel(leaves, {path: each for path, each in values.items() if path in leaves}, "parameters")
    masks = {}
    for path, mask in leaves.items():
        named = region.matrices(path, mask)

        def fill(layer: int, out: np.ndarray, path: str = path, named: list[str] = named) -> None:
            wanted = stack.read(path, leaves[path], layer)
            theta = np.abs(stack.read(path, values[path], layer).astype(np.float32, copy=False))
            _draw(wanted, theta, permutation.derive(seed, named[layer], "matched"), out)

        masks[path] = stack.build(path, mask, fill, stack.threads(mask, values[path]))
    own = what.provenance
    return Region(
        trees.unflatten(masks),
        own.replace(
            name=name or f"matched to {own.name} seed {seed}",
            definition=f"drawn at random, matched in |theta|, rows and columns of every matrix to: {own.definition}",
            selector="matched",
            seed=seed,
            selection=None,
            versions=region.versions(),
            parents=(own,),
        ),
    )


def _draw(wanted: np.ndarray, theta: np.ndarray, seed: int, out: np.ndarray) -> None:
    """Write a matched mask of one matrix."""
    out[...] = False
    if not wanted.any():
        return
    # Rows and columns without an entry get none; what is left is a smaller matrix.
    rows = np.flatnonzero(wanted.any(axis=1)) if wanted.ndim == 2 else np.arange(1)
    columns = np.flatnonzero(wanted.any(axis=0)) if wanted.ndim == 2 else np.arange(wanted.size)
    window = np.ix_(rows, columns)
    kept = wanted.reshape(-1, wanted.shape[-1])[window]
    bins = np.searchsorted(np.quantile(theta, QUANTILES), theta.reshape(-1, theta.shape[-1])[window], side="right")
    chance = _fit(kept, bins, margins=wanted.ndim == 2)
    place = (rows[:, None] * wanted.shape[-1] + columns).reshape(-1)
    luck = (permutation.permute(place, wanted.size, seed) + 0.5) / wanted.size
    with np.errstate(divide="ignore"):
        rank = luck / (1 - luck) * (1 / chance.reshape(-1).astype(np.float64) - 1)
    flat = out.reshape(-1)
    for each, count in enumerate(np.bincount(bins[kept], minlength=len(QUANTILES) + 1)):
        cells = np.flatnonzero(bins.reshape(-1) == each)
        if count:
            flat[place[cells[np.argpartition(rank[cells], count - 1)[:count]]]] = True


def _fit(kept: np.ndarray, bins: np.ndarray, margins: bool) -> np.ndarray:
    """Return the probability of each cell, float32, whose sums over bins (and rows and columns) are those of `kept`."""
    size = len(QUANTILES) + 1
    held = np.bincount(bins[kept], minlength=size)
    chance = (held / np.maximum(np.bincount(bins.reshape(-1), minlength=size), 1)).astype(np.float32)[bins]
    if not margins:
        return chance
    targets = [kept.sum(axis=1, dtype=np.float32, keepdims=True), kept.sum(axis=0, dtype=np.float32, keepdims=True)]
    for _ in range(ROUNDS):
        for axis, target in zip((1, 0), targets, strict=True):
            chance *= target / chance.sum(axis=axis, keepdims=True)
            np.minimum(chance, 1, out=chance)
        found = np.bincount(bins.reshape(-1), weights=chance.reshape(-1), minlength=size)
        chance *= (held / np.maximum(found, np.finfo(np.float32).tiny)).astype(np.float32)[bins]
        np.minimum(chance, 1, out=chance)
    return np.maximum(chance, np.finfo(np.float32).tiny)
