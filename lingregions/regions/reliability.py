"""How far a region can be trusted: agreement of halves of the data, what more data would do, a ceiling.

Two regions of one fraction p of a matrix agree by chance on IoU p / (2 - p), so IoU alone flatters large fractions. The
agreement beyond chance of two sets of equal size is

    kappa = (o - p) / (1 - p),  o = share of one set that lies in the other = 2 IoU / (1 + IoU),

which is also the correlation of their two 0/1 masks. A region found on half of the data is noisier than the one found
on all of it; Spearman and Brown's formula for a test of `factor` times the length says by how much, under their
assumption that the halves are parallel and their errors independent: kappa' = factor kappa / (1 + (factor - 1) kappa).
From it follows the *noise ceiling*: two regions whose true masks are the same would still show no more than the
geometric mean of their reliabilities. Masks are thresholded scores, so this is a model, not a theorem: read it to one
digit.
"""

import dataclasses
import math

import numpy as np

from lingregions.regions import geometry
from lingregions.regions.region import Region


@dataclasses.dataclass(frozen=True)
class _Agreement:
    """Intersection over union of two regions that should be one.

    Attributes:
      iou: over everything.
      layers: of each layer.
      matrices: path -> of each layer's matrix.
    """

    iou: float
    layers: tuple[float, ...]
    matrices: dict[str, tuple[float, ...]]


def agree(first: Region, second: Region) -> _Agreement:
    """Return the agreement of two parallel regions, overall, per layer and per matrix."""
    overlap = geometry.overlap([first, second])
    return _Agreement(
        float(overlap.iou()[0, 1]),
        tuple(float(overlap.iou(layer=layer)[0, 1]) for layer in range(overlap.layers)),
        {path: tuple(float(_iou(each)) for each in shared) for path, shared in overlap.shared.items()},
    )


def _iou(shared: np.ndarray) -> float:
    union = int(shared[0, 0] + shared[1, 1] - shared[0, 1])
    return int(shared[0, 1]) / union if union else 1.0


def kappa(iou: float, fraction: float) -> float:
    """Return the agreement beyond chance of two regions of one fraction: 0 by chance, 1 when equal."""
    return (2 * iou / (1 + iou) - fraction) / (1 - fraction)


def _overlap(kappa: float, fraction: float) -> float:
    """Return the intersection over union that goes with an agreement beyond chance: the inverse of `kappa`."""
    shared = fraction + kappa * (1 - fraction)
    return shared / (2 - shared)


def extrapolate(half: float, fraction: float, factor: float = 2.0) -> float:
    """Return the IoU expected between two regions from `factor` times the data, by Spearman and Brown's formula."""
    beyond = kappa(half, fraction)
    return _overlap(factor * beyond / (1 + (factor - 1) * beyond), fraction)


def ceiling(first: float, second: float, fraction: float) -> float:
    """Return the noise ceiling: the highest IoU to expect between the regions of two languages on all their data.

    Args:
      first: split-half IoU of one language.
      second: split-half IoU of the other.
      fraction: part of a matrix that the regions take.
    """
    full = [max(0.0, kappa(extrapolate(half, fraction), fraction)) for half in (first, second)]
    return _overlap(math.sqrt(full[0] * full[1]), fraction)
