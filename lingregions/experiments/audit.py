"""Audit: what the proxies of importance predict for sampled scalars and groups of them, and what removal really does.

Exact: L(D; theta_G = 0) - L(D) for a set G of scalars, nats per token (docs/method.md 1); theta is what the model uses,
which of a gain 1 + w is 1 + w. Predicted, on the same D:

- *taylor*, what a sum of scores says: the sum over G of |theta_j g_j|;
- *signed*, the first order: -sum theta_j g_j;
- *second* order: the same + 1/2 theta' H theta over G, where H is the Gauss-Newton matrix: theta' H theta = the mean
  over draws of (sum theta_j g~_j)^2 / tokens, g~ the gradient of the summed loss of labels that the model itself draws.
  A draw costs one backward pass for all parameters together, as the score does, where an exact Hessian-vector product
  is one a set; the mean is free of bias, as the squared gradients of the true labels (the empirical Fisher) are not,
  and the terms off the diagonal are there inside G;
- *integrated* gradients: minus the integral of theta_j g_j while the block in which G lies goes to zero together, by
  Gauss and Legendre. For the whole block this is quadrature of the exact effect; for parts of it an attribution.

A block is a run of neighbouring ranks of one kind of matrix in one stratum of the score; single scalars are drawn from
it, and its first 10, 100, ... are groups.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lingregions import loss, models, permutation, regions
from lingregions import tree as trees
from lingregions.corpus.batch import Batch
from lingregions.experiments import scalars

PREDICTORS = ("taylor", "signed", "second", "integrated")


class Block(NamedTuple):
    """Neighbouring ranks of the score in one kind of matrix.

    Attributes:
      path: of the kind.
      stratum: the part of the ranks, such as "0.1% to 1%".
      scalars: highest score first.
    """

    path: str
    stratum: str
    scalars: tuple[scalars.Scalar, ...]


class Item(NamedTuple):
    """A set of scalars that is removed at once.

    Attributes:
      block: the number of its block.
      size: how many scalars it holds.
      first: the place of the first of them in the block.
    """

    block: int
    size: int
    first: int

    def _of(self, values: Any) -> Any:
        """Return its part of what belongs to the scalars of the block, [..., n]."""
        return values[..., self.first : self.first + self.size]


def strata(edges: Sequence[str]) -> list[tuple[str, str, str]]:
    """Return (name, from, to) of the parts of the ranks that upper edges such as ("1%", "100%") bound.

    Raises:
      ValueError: edges that do not grow.
    """
    parts = list(map(regions.parse, edges))
    if sorted(set(parts)) != parts:
        raise ValueError(f"audit.strata are {', '.join(edges)}; they must grow, such as 0.1%, 1%, 100%")
    lower = ("0", *edges[:-1])
    return [
        (f"top {high}" if low == "0" else f"{low} to {high}", low, high) for low, high in zip(lower, edges, strict=True)
    ]


def sample(tree: trees.Tree, edges: Sequence[str], size: int, seed: int) -> list[Block]:
    """Return one block in every stratum of every kind of matrix: the very first ranks of the top, random ones below.

    Args:
      tree: scores.
      edges: see `strata`.
      size: scalars of a block; fewer where the stratum holds fewer, and no block where it holds none.
      seed: of where the blocks lie.
    """
    found = []
    for path, leaf in trees.walk(tree):
        one = trees.unflatten({path: leaf})
        total = trees.count(one)
        for name, low, high in strata(edges):
            first = 0 if low == "0" else int(regions.parse(low) * total)
            room = int(regions.parse(high) * total) - first
            if room < 1:
                continue
            count = min(size, room)
            spare = room - count + 1
            start = first + (permutation.derive(seed, path, name) % spare if first else 0)
            found.append(Block(path, name, tuple(scalars.ranked(one, start, start + count))))
    return found


def items(blocks: Sequence[Block], singles: int, groups: Sequence[int]) -> list[Item]:
    """Return what is removed: single scalars, spread over the block by powers of their rank, and its first `groups`."""
    found = []
    for number, block in enumerate(blocks):
        places = np.unique(np.geomspace(1, len(block.scalars), singles).round().astype(int) - 1)
        found += [Item(number, 1, int(place)) for place in places]
        found += [Item(number, size, 0) for size in groups if 1 < size <= len(block.scalars)]
    return found


# --- gradients --------------------------------------------------------------------------------------------------------


class ScalarGradients:
    """The compiled gradients at the scalars of all blocks: made once, used for every language, label and node.

    Args:
      config: model config.
      compute: how to run it.
      blocks: whose scalars are asked for.
    """

    def __init__(self, config: Any, compute: models.Compute, blocks: Sequence[Block]) -> None:
        self.every = [each for block in blocks for each in block.scalars]
        self.removed = scalars.removed(config, self.every)
        self._ends = np.cumsum([len(block.scalars) for block in blocks])[:-1]
        self._where = scalars.places(self.every)
        self._gradient, self._labels = _programs(config, compute)

    def gradient(self, params: trees.Tree, batch: Batch, labels: Any = None) -> np.ndarray:
        """Return the gradient of the summed loss, float64 [n], nats; of other labels int32 [B, T] than the text's."""
        following = loss.targets(batch)[0] if labels is None else labels
        found = self._gradient(params, batch, following, self._where)
        return scalars.spread(self.every, found).astype(np.float64)

    def labels(self, params: trees.Tree, batch: Batch, seed: int) -> jax.Array:
        """Return labels int32 [B, T] drawn from what the model predicts after each position."""
        out: jax.Array = self._labels(params, batch, jax.random.key(seed))
        return out

    def split(self, values: np.ndarray) -> list[np.ndarray]:
        """Return the values [..., n] of all scalars by block."""
        return np.split(values, self._ends, axis=-1)


@functools.cache
def _programs(config: Any, compute: models.Compute) -> tuple[Any, Any]:
    """Return the compiled gradient and labels, made once for a model."""
    return jax.jit(functools.partial(_gradient, config, compute)), jax.jit(functools.partial(_labels, config, compute))


def _gradient(
    config: Any, compute: models.Compute, params: trees.Tree, batch: Batch, following: jax.Array, where: Any
) -> dict[str, jax.Array]:
    leaves = trees.flatten(params)

    def objective(part: dict[str, jax.Array]) -> jax.Array:
        whole = trees.merge(params, trees.unflatten(part))
        hidden, _ = models.hidden(config, compute, whole, batch.tokens, batch.segments)
        table = models.head(config, whole).astype(compute.activations)
        chunk = min(compute.chunk, hidden.shape[1])
        each = loss.cross_entropy(hidden, table, following, chunk, models.logit_softcap(config))
        return jnp.sum(jnp.where(loss.targets(batch)[1], each, jnp.float32(0)))

    with jax.default_matmul_precision(compute.precision):
        found = jax.grad(objective)({path: leaves[path].astype(jnp.float32) for path in where})
    return {path: found[path][tuple(place)] for path, place in where.items()}


def _labels(config: Any, compute: models.Compute, params: trees.Tree, batch: Batch, key: jax.Array) -> jax.Array:
    cap = models.logit_softcap(config)
    with jax.default_matmul_precision(compute.precision):
        hidden, _ = models.hidden(config, compute, params, batch.tokens, batch.segments)
        table = models.head(config, params).astype(compute.activations)

        def draw(each: tuple[jax.Array, jax.Array]) -> jax.Array:
            values, key = each
            logits = jnp.einsum("td,vd->tv", values, table, preferred_element_type=jnp.float32)
            if cap is not None:
                logits = np.float32(cap) * jnp.tanh(logits / np.float32(cap))
            return jax.random.categorical(key, logits).astype(jnp.int32)

        drawn: jax.Array = jax.lax.map(draw, (hidden, jax.random.split(key, hidden.shape[0])))
        return drawn


class _Predictions(NamedTuple):
    """What the proxies say of the scalars of one block in one language, per token.

    Attributes:
      first: float64 [n], theta_j g_j: what removal takes from the loss to first order.
      drawn: float64 [draws, n], theta_j g~_j / sqrt(tokens).
      path: float64 [n], theta_j times the mean g_j on the way to zero.
    """

    first: np.ndarray
    drawn: np.ndarray
    path: np.ndarray

    def predict(self, item: Item) -> dict[str, float]:
        """Return {predictor: nats per token} for a set of scalars."""
        first = item._of(self.first)
        curvature = float(np.mean(item._of(self.drawn).sum(-1) ** 2))
        return {
            "taylor": float(np.abs(first).sum()),
            "signed": -float(first.sum()),
            "second": -float(first.sum()) + curvature / 2,
            "integrated": -float(item._of(self.path).sum()),
        }


def predict(
    gradients: ScalarGradients,
    params: trees.Tree,
    batch: Batch,
    blocks: Sequence[Block],
    draws: int,
    nodes: int,
    seed: int,
) -> Iterator[_Predictions]:
    """Yield the predictions for every block, on one batch of one language.

    Costs 1 + draws + nodes x blocks backward passes, and a forward pass a draw.

    Args:
      gradients: of the blocks.
      params: the parameters, the same bits afterwards.
      batch: the text, on the mesh.
      blocks: as given to `gradients`.
      draws: of labels, for the second order.
      nodes: of Gauss and Legendre, on the way of each block to zero.
      seed: of the labels.
    """
    tokens = int(np.asarray(loss.targets(batch)[1]).sum())
    theta = scalars.gather(params, gradients.every).astype(np.float64) - gradients.removed  # what the model uses
    first = gradients.split(theta * gradients.gradient(params, batch) / tokens)
    drawn = gradients.split(
        np.stack(
            [
                theta
                * gradients.gradient(params, batch, gradients.labels(params, batch, permutation.derive(seed, draw)))
                for draw in range(draws)
            ]
        )
        / np.sqrt(tokens)
    )
    points, weights = np.polynomial.legendre.leggauss(nodes)
    for number, block in enumerate(blocks):
        own, removed = (gradients.split(each)[number] for each in (theta, gradients.removed))
        path = np.zeros(len(own))
        for point, weight in zip(points, weights, strict=True):
            with scalars.replaced(params, block.scalars, removed + own * (1 - point) / 2):
                path += weight / 2 * own * gradients.split(gradients.gradient(params, batch))[number] / tokens
        yield _Predictions(first[number], drawn[number], path)
