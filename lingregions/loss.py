"""The one loss: next-token negative log-likelihood, as sums - nats, tokens, bytes - that are divided once, at the end.

Scoring, evaluation and training all call `nll`. Softmax and sums are float32 whatever the compute dtype. The vocabulary
is met in chunks of tokens, so no [B, T, V] array exists: forward costs 2 B T D V FLOPs and [B, chunk, V] floats of
memory; with gradients the slope of the hidden state is found in the same pass, and the head's own gradient (training
only) costs the logits once more.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lingregions import models
from lingregions import tree as trees
from lingregions.corpus.batch import Batch
from lingregions.models.compute import DTYPES


class Loss(NamedTuple):
    """Sums over the targets of each sample.

    Attributes:
      nll: float32 [B], negative log-likelihood in nats.
      tokens: int32 [B], number of targets.
      bytes: int32 [B], UTF-8 bytes that the targets stand for.
    """

    nll: jax.Array
    tokens: jax.Array
    bytes: jax.Array


def targets(batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Return (the token after each, whether it counts): int32 and bool [B, T].

    The token at t + 1 is a target of position t where both lie in one document and neither is padding.
    """
    following = jnp.roll(batch.tokens, -1, axis=1)
    same = (batch.segments[:, 1:] == batch.segments[:, :-1]) & (batch.segments[:, :-1] != 0)
    return following, jnp.pad(same, ((0, 0), (0, 1)))


def nll(
    config: Any, compute: models.Compute, params: trees.Tree, batch: Batch, limits: trees.Tree | None = None
) -> Loss:
    """Return the summed next-token loss of every sample of a batch; differentiable in `params`.

    Args:
      config: model config.
      compute: how to run it.
      params: float32 parameters.
      batch: int32 arrays [B, T].
      limits: bounds on what comes from some weights (see `models.bounded`).

    Returns:
      `Loss` with sums a sample; a sample of padding alone gives 0 nats, 0 tokens, 0 bytes.
    """
    return watch(config, compute, params, batch, watched=False, limits=limits)[0]


def watch(
    config: Any,
    compute: models.Compute,
    params: trees.Tree,
    batch: Batch,
    watched: bool = True,
    limits: trees.Tree | None = None,
) -> tuple[Loss, trees.Tree]:
    """Return `nll` and the sums of squares of what enters each weight (see `models.hidden`), from one pass."""
    each, counts, inputs = _each(config, compute, params, batch, watched, limits)
    sums = Loss(
        nll=jnp.sum(jnp.where(counts, each, jnp.float32(0)), axis=1),
        tokens=jnp.sum(counts, axis=1, dtype=jnp.int32),
        bytes=jnp.sum(jnp.where(counts, jnp.roll(batch.bytes, -1, axis=1), 0), axis=1, dtype=jnp.int32),
    )
    return sums, inputs


def losses(
    config: Any, compute: models.Compute, params: trees.Tree, batch: Batch, limits: trees.Tree | None = None
) -> tuple[jax.Array, jax.Array]:
    """Return the loss of every target: float32 [B, T] nats at the position *before* the target, and bool [B, T].

    A position that has no target gives 0 and False. `nll` are the sums of these over T.
    """
    each, counts, _ = _each(config, compute, params, batch, watched=False, limits=limits)
    return jnp.where(counts, each, jnp.float32(0)), counts


def _each(
    config: Any,
    compute: models.Compute,
    params: trees.Tree,
    batch: Batch,
    watched: bool,
    limits: trees.Tree | None,
) -> tuple[jax.Array, jax.Array, trees.Tree]:
    """Return the loss [B, T] of the token after each position, whether it counts, and what `models.hidden` watched."""
    with jax.default_matmul_precision(compute.precision):
        hidden, inputs = models.hidden(config, compute, params, batch.tokens, batch.segments, watched, limits)
        table = models.head(config, params).astype(DTYPES[compute.dtype])
        following, counts = targets(batch)
        return cross_entropy(hidden, table, following, min(compute.chunk, hidden.shape[1])), counts, inputs


def cross_entropy(hidden: jax.Array, table: jax.Array, following: jax.Array, chunk: int) -> jax.Array:
    """Return -log softmax(hidden table^T)[following], float32 [B, T], `chunk` tokens at a time.

    Args:
      hidden: [B, T, D].
      table: [V, D].
      following: int32 [B, T].
      chunk: tokens of each sample a step; the last step is filled up with zeros.
    """
    T = hidden.shape[1]
    short = -T % chunk
    if short:
        hidden = jnp.pad(hidden, ((0, 0), (0, short), (0, 0)))
        following = jnp.pad(following, ((0, 0), (0, short)))
    each = _cross_entropy(_split(hidden, chunk), table, _split(following, chunk))
    return _join(each)[:, :T]


def _split(values: jax.Array, chunk: int) -> jax.Array:
    """[B, T, ...] to [T / chunk, B, chunk, ...]."""
    B, T = values.shape[:2]
    return jnp.moveaxis(values.reshape(B, T // chunk, chunk, *values.shape[2:]), 1, 0)


def _join(values: jax.Array) -> jax.Array:
    """[T / chunk, B, chunk, ...] to [B, T, ...]."""
    values = jnp.moveaxis(values, 0, 1)
    return values.reshape(values.shape[0], -1, *values.shape[3:])


def _chunk(hidden: jax.Array, table: jax.Array, following: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the loss [B, t], the weights exp(logits - top) [B, t, V] and their sum [B, t, 1] of one chunk."""
    logits = jnp.einsum("btd,vd->btv", hidden, table, preferred_element_type=jnp.float32)
    # A comparison, not a gather: it keeps a vocabulary that is split over devices where it lies.
    picked = jnp.sum(jnp.where(_hot(logits, following), logits, jnp.float32(0)), axis=-1)
    top = jnp.max(logits, axis=-1, keepdims=True)
    weights = jnp.exp(logits - top)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    # top - picked first: it is exact where they are close, so a large logit costs a small loss no digits.
    return jnp.log(total)[..., 0] + (top[..., 0] - picked), weights, total


def _hot(logits: jax.Array, following: jax.Array) -> jax.Array:
    return jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1) == following[..., None]


def _slope(weights: jax.Array, total: jax.Array, following: jax.Array) -> jax.Array:
    """Return d loss / d logits = softmax - one-hot."""
    return weights / total - _hot(weights, following).astype(weights.dtype)


@jax.custom_vjp
def _cross_entropy(hidden: jax.Array, table: jax.Array, following: jax.Array) -> jax.Array:
    return jax.lax.map(lambda each: _chunk(each[0], table, each[1])[0], (hidden, following))


def _forward(hidden: Any, table: Any, following: Any) -> tuple[jax.Array, Any]:
    def one(each: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        nats, weights, total = _chunk(each[0], table.value, each[1])
        slope = _slope(weights, total, each[1]).astype(table.value.dtype)
        return nats, jnp.einsum("btv,vd->btd", slope, table.value)

    nats, slopes = jax.lax.map(one, (hidden.value, following.value))
    # Scoring does not ask for the head's gradient: then nothing but the slopes need be kept.
    kept = (hidden.value, table.value, following.value) if table.perturbed else None
    return nats, (slopes, kept)


def _backward(kept: Any, gradient: jax.Array) -> tuple[jax.Array, jax.Array | None, None]:
    slopes, inputs = kept
    d_hidden = slopes * gradient[..., None].astype(slopes.dtype)
    if inputs is None:
        return d_hidden, None, None
    hidden, table, following = inputs

    def add(total: jax.Array, each: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        values, ids, cotangent = each
        _, weights, normaliser = _chunk(values, table, ids)
        d_logits = (_slope(weights, normaliser, ids) * cotangent[..., None]).astype(table.dtype)
        return total + jnp.einsum("btv,btd->vd", d_logits, values, preferred_element_type=jnp.float32), None

    d_table, _ = jax.lax.scan(add, jnp.zeros(table.shape, jnp.float32), (hidden, following, gradient))
    return d_hidden, d_table.astype(table.dtype), None


_cross_entropy.defvjp(_forward, _backward, symbolic_zeros=True)
