"""Causal attention within documents, grouped heads, softmax in float32.

Query t sees key s where s <= t and both lie in one document (`segments` equal). Two implementations of one function:
`reference` (one einsum over [T, T]) and `blocked` (blocks of queries against the keys up to their end, so that the
upper triangle costs nothing; its own backward pass keeps one number a query instead of the probabilities).
"""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

# Far below every logit, yet finite: a row that sees nothing becomes uniform instead of NaN.
HIDDEN = -1e30


def attend(
    query: jax.Array, key: jax.Array, value: jax.Array, segments: jax.Array, implementation: str, block: int
) -> jax.Array:
    """Return softmax(query key^T / sqrt(H)) value under the causal document mask.

    Args:
      query: [B, T, N, H].
      key: [B, T, K, H]; heads n * K / N .. share key head n (grouped-query attention).
      value: [B, T, K, H].
      segments: int32 [B, T], the document of each token; 0 is padding, which sees only padding.
      implementation: "blocked" or "reference".
      block: queries a block.

    Returns:
      [B, T, N, H] in the dtype of `query`.
    """
    B, T, N, H = query.shape
    K = key.shape[2]
    # [B, K, G, T, H]: the G queries of one key head lie together, so each matrix product serves all of them.
    grouped = query.reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4)
    key, value = key.transpose(0, 2, 1, 3), value.transpose(0, 2, 1, 3)
    if implementation == "reference":
        out = _reference(grouped, key, value, segments)
    else:
        out = _blocked(grouped, key, value, segments, min(block, T))
    return out.transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)


def _reference(query: jax.Array, key: jax.Array, value: jax.Array, segments: jax.Array) -> jax.Array:
    probabilities, _ = _softmax(_logits(query, key, segments, 0))
    return jnp.einsum("bkgts,bksh->bkgth", probabilities.astype(query.dtype), value)


def _logits(query: jax.Array, key: jax.Array, segments: jax.Array, start: int) -> jax.Array:
    """Return float32 [B, K, G, t, S]: the queries from position `start` against the first S keys, masked."""
    t, S, H = query.shape[3], key.shape[2], query.shape[4]
    logits = jnp.einsum("bkgth,bksh->bkgts", query, key, preferred_element_type=jnp.float32) * np.float32(H**-0.5)
    causal = jnp.arange(start, start + t)[:, None] >= jnp.arange(S)[None, :]
    same = segments[:, start : start + t, None] == segments[:, None, :S]
    return jnp.where((causal[None] & same)[:, None, None], logits, np.float32(HIDDEN))


def _softmax(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the probabilities and the log of their normaliser, [..., t, S] and [..., t, 1]."""
    top = jnp.max(logits, axis=-1, keepdims=True)
    weights = jnp.exp(logits - top)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    return weights / total, jnp.log(total) + top


def _blocks(T: int, block: int) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of each block of queries; the last may be short."""
    return ((start, min(start + block, T)) for start in range(0, T, block))


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _blocked(query: jax.Array, key: jax.Array, value: jax.Array, segments: jax.Array, block: int) -> jax.Array:
    return _forward(query, key, value, segments, block)[0]


def _forward(
    query: jax.Array, key: jax.Array, value: jax.Array, segments: jax.Array, block: int
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    outs, normalisers = [], []
    for start, end in _blocks(query.shape[3], block):
        probabilities, normaliser = _softmax(_logits(query[:, :, :, start:end], key[:, :, :end], segments, start))
        outs.append(jnp.einsum("bkgts,bksh->bkgth", probabilities.astype(query.dtype), value[:, :, :end]))
        normalisers.append(normaliser)
    out = jnp.concatenate(outs, axis=3)
    return out, (query, key, value, segments, out, jnp.concatenate(normalisers, axis=3))


def _backward(
    block: int, kept: tuple[jax.Array, ...], gradient: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    query, key, value, segments, out, normalisers = kept
    dtype, H = query.dtype, query.shape[4]
    # Row sums of dP * P, which need no probabilities: sum_s dP P = dO . O.
    inner = jnp.sum((gradient * out).astype(jnp.float32), axis=-1, keepdims=True)
    d_query = []
    d_key, d_value = jnp.zeros(key.shape, jnp.float32), jnp.zeros(value.shape, jnp.float32)
    for start, end in _blocks(query.shape[3], block):
        rows, cotangent = query[:, :, :, start:end], gradient[:, :, :, start:end]
        keys, values = key[:, :, :end], value[:, :, :end]
        probabilities = jnp.exp(_logits(rows, keys, segments, start) - normalisers[:, :, :, start:end])
        d_probabilities = jnp.einsum("bkgth,bksh->bkgts", cotangent, values, preferred_element_type=jnp.float32)
        d_logits = probabilities * (d_probabilities - inner[:, :, :, start:end]) * np.float32(H**-0.5)
        d_logits = d_logits.astype(dtype)
        d_query.append(jnp.einsum("bkgts,bksh->bkgth", d_logits, keys))
        d_value = d_value.at[:, :, :end].add(
            jnp.einsum("bkgts,bkgth->bksh", probabilities.astype(dtype), cotangent, preferred_element_type=jnp.float32)
        )
        d_key = d_key.at[:, :, :end].add(
            jnp.einsum("bkgts,bkgth->bksh", d_logits, rows, preferred_element_type=jnp.float32)
        )
    return jnp.concatenate(d_query, axis=3), d_key.astype(dtype), d_value.astype(dtype), None


_blocked.defvjp(_forward, _backward)
