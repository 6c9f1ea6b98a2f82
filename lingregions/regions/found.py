"""Found: what a selection took of one leaf, and what it met there."""

import dataclasses
from collections.abc import Mapping

import jax


@dataclasses.dataclass(frozen=True)
class Found:
    """Masks of one leaf, and for each of its matrices (taken, all zero, ties at the threshold, ties taken)."""

    mask: jax.Array
    taken: list[int]
    zero: list[bool]
    tied: list[int]
    quota: list[int]


def complain(name: str, missing: int, negative: int) -> ValueError:
    """Return the error of a matrix of scores of which some are NaN, or negative."""
    if missing:
        return ValueError(
            f"{name}: {missing:,} scores are NaN; a selection over them means nothing: find the step that made them"
        )
    return ValueError(
        f"{name}: {negative:,} scores are negative; a score is a magnitude, so take its absolute value first"
    )


def share(equal: Mapping[str, list[int]], quota: int) -> dict[str, list[int]]:
    """Return how many of its ties each matrix takes: the first `quota` in the order of path, layer, flat index."""
    shares: dict[str, list[int]] = {}
    for path, counts in equal.items():
        shares[path] = []
        for ties in counts:
            taken = min(ties, quota)
            shares[path].append(taken)
            quota -= taken
    return shares
