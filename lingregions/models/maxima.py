"""Where a model's activations are extreme, and the single weights and dimensions that this points to.

Two published readings of one forward pass, neither of which looks at a loss. *Super weights* (arXiv 2411.07191, section
3.1): a layer whose `down_proj` has one channel of extreme magnitude going in and one coming out; the weight between the
two is the candidate. *Massive activations* (arXiv 2402.17762, section 2): the few dimensions of the residual stream
whose magnitudes lie above all others by orders of magnitude. Legend: L layers, D embed, F mlp.
"""

from typing import Any, NamedTuple

import numpy as np

from lingregions.models.roles import matrix_name


class ActivationMaxima(NamedTuple):
    """The largest magnitude of every channel over tokens, float32; NaN where an activation was NaN.

    Attributes:
      residual: [L + 1, D], the residual stream that enters layer 0 .. L - 1, and last what leaves the stack.
      down_in: [L, F], the input of the down projection.
      down_out: [L, D], its output, within its bound if there is one.
    """

    residual: Any
    down_in: Any
    down_out: Any


def super_weights(maxima: ActivationMaxima, threshold: float = 100.0) -> list[tuple[str, tuple[int, int]]]:
    """Return the candidates for super weights, the most extreme first, at most one a layer.

    A layer's spike is its largest maximum over the median of the maxima of all layers and channels; the layer is a
    candidate where the spikes of both the input and the output of `down_proj` reach `threshold`, and its rank is the
    product of the two. The weight is at row = the output channel, column = the input channel of the largest maximum
    (the first of several). arXiv 2411.07191 reads the spikes off a plot by eye; the number is ours. It also removes a
    weight and looks again, because a massive activation, once written, makes the layers that erase it spike as well.
    SmolLM2 gives layer 11 [507, 1229] first, whose spikes are in the thousands, then layers 28 and 29, which take away
    what it wrote, and behind them, with spikes of 100 to 400, some of the layers 2, 9 and 27.

    Args:
      maxima: from `models.activation_maxima`; one prompt is enough.
      threshold: of both spikes, relative.

    Returns:
      Pairs (Hugging Face name of the matrix, (row, column)).

    Raises:
      ValueError: the activations hold NaN or infinity.
    """
    sides = [_finite(values) for values in (maxima.down_in, maxima.down_out)]
    spikes = [each.max(axis=1) / max(float(np.median(each)), np.finfo(np.float32).tiny) for each in sides]
    found = np.flatnonzero((spikes[0] >= threshold) & (spikes[1] >= threshold))
    ranked = found[np.argsort(-(spikes[0] * spikes[1])[found], kind="stable")]
    columns, rows = (each.argmax(axis=1) for each in sides)
    return [(matrix_name("down", layer), (int(rows[layer]), int(columns[layer]))) for layer in ranked]


def massive_dimensions(maxima: ActivationMaxima, count: int) -> list[int]:
    """Return the `count` embed dimensions with the largest magnitudes in the residual stream, the largest first.

    A dimension's magnitude is its largest maximum at any depth; of two equal ones the lower index comes first. In arXiv
    2402.17762 an activation is *massive* when it is above 100 and about 1000 times the median magnitude of its hidden
    state; a few dimensions hold all of those. Here the caller says how many are wanted, whether they reach that or not.

    Raises:
      ValueError: `count` is not between 1 and D, or the activations hold NaN or infinity.
    """
    sizes = _finite(maxima.residual).max(axis=0)
    if not 1 <= count <= len(sizes):
        raise ValueError(f"{count} massive dimensions of {len(sizes)}: count must be between 1 and the embed size")
    return [int(dimension) for dimension in np.argsort(-sizes, kind="stable")[:count]]


def _finite(values: Any) -> np.ndarray:
    found = np.asarray(values, np.float64)
    if not np.isfinite(found).all():
        raise ValueError("the maxima hold NaN or infinity: the model's activations overflow, so none is extreme")
    return found
