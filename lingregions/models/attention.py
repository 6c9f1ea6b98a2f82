"""Causal attention within documents, grouped heads, softmax in float32.

Query t sees key s where s <= t and both lie in one document (`segments` equal). One function, several implementations;
"auto" takes what suits the platform that the program is compiled for:

- `splash` on a TPU: Pallas kernels (models/splash.py).
- `cudnn` on a GPU in bfloat16: cuDNN through `jax.nn.dot_product_attention`; where it cannot run, `blocked`.
- `blocked` elsewhere: plain JAX, blocks of queries against the keys up to their end, so that the upper triangle costs
  nothing; its own backward pass keeps one number a query instead of the probabilities. The fastest on a CPU (SmolLM2's
  layer on two cores, ms forward / with backward: 10 / 50; `reference` 45 / 87; JAX's own 48 / 95).
- `reference`: one einsum over [T, T], what the others are tested against.

Queries that come after a cache of keys (generation) have the one einsum over all slots of the cache.
"""

import functools
import warnings
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from lingregions import mesh as meshes
from lingregions.models import splash

# Far below every logit, yet finite: a row that sees nothing becomes uniform instead of NaN.
HIDDEN = -1e30


def resolve(implementation: str, dtype: jnp.dtype) -> str:
    """Return the implementation that a name stands for with activations of this dtype: itself, or what "auto" takes."""
    if implementation != "auto":
        return implementation
    platform = meshes.platform()
    if platform == "tpu":
        return "splash"
    return "cudnn" if platform == "gpu" and dtype == jnp.bfloat16 else "blocked"


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segments: jax.Array,
    implementation: str,
    block: int,
    start: jax.Array | None = None,
) -> jax.Array:
    """Return softmax(query key^T / sqrt(H)) value under the causal document mask.

    Args:
      query: [B, T, N, H].
      key: [B, T, K, H]; heads n * K / N .. share key head n (grouped-query attention). With `start` [B, S, K, H].
      value: [B, T, K, H]; with `start` [B, S, K, H].
      segments: int32 [B, T], the document of each token; 0 is padding, which sees only padding.
      implementation: "auto" or one of the list above.
      block: queries a block of "blocked".
      start: None, or int32 [B]: query t of a sample is its token `start` + t and sees the slots 0 .. start + t of a
        cache; `segments`, `implementation` and `block` then say nothing.

    Returns:
      [B, T, N, H] in the dtype of `query`.

    Raises:
      RuntimeError: "cudnn", asked for by name, cannot run here ("auto" then warns and takes "blocked").
    """
    chosen = resolve(implementation, query.dtype)
    if start is None and chosen == "splash":
        return splash.attend(query, key, value, segments)
    if start is None and chosen == "cudnn":
        try:
            return _cudnn(query, key, value, segments)
        except (RuntimeError, NotImplementedError, ValueError) as error:
            if implementation != "auto":
                raise RuntimeError(f"attention 'cudnn' cannot run here ({error}); 'auto' takes what can") from error
            warnings.warn(f"attention 'cudnn' cannot run here ({error}); 'blocked' does it instead", stacklevel=2)
    B, T, N, H = query.shape
    K = key.shape[2]
    # [B, K, G, T, H]: the G queries of one key head lie together, so each matrix product serves all of them.
    grouped = query.reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4)
    key, value = key.transpose(0, 2, 1, 3), value.transpose(0, 2, 1, 3)
    if start is not None:
        last = start[:, None] + jnp.arange(T)[None, :]
        out = _whole(grouped, key, value, jnp.arange(key.shape[2])[None, None, :] <= last[:, :, None])
    elif chosen == "reference":
        out = _whole(grouped, key, value, _seen(segments, 0, T))
    else:
        out = _blocked(grouped, key, value, segments, min(block, T))
    return out.transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)


def _cudnn(query: jax.Array, key: jax.Array, value: jax.Array, segments: jax.Array) -> jax.Array:
    same = (segments[:, :, None] == segments[:, None, :])[:, None]
    return jax.nn.dot_product_attention(query, key, value, mask=same, is_causal=True, implementation="cudnn")


def _whole(query: jax.Array, key: jax.Array, value: jax.Array, seen: jax.Array) -> jax.Array:
    probabilities, _ = _softmax(_logits(query, key, seen))
    return jnp.einsum("bkgts,bksh->bkgth", probabilities.astype(query.dtype), value)


def _seen(segments: jax.Array, start: int, end: int) -> jax.Array:
    """Return bool [B, end - start, end]: whether the queries `start` .. see the keys before `end`."""
    causal = jnp.arange(start, end)[:, None] >= jnp.arange(end)[None, :]
    return causal[None] & (segments[:, start:end, None] == segments[:, None, :end])


def _logits(query: jax.Array, key: jax.Array, seen: jax.Array) -> jax.Array:
    """Return float32 [B, K, G, t, S] of queries [B, K, G, t, H] against keys [B, K, S, H], where `seen` [B, t, S]."""
    scale = np.float32(query.shape[4] ** -0.5)
    logits = jnp.einsum("bkgth,bksh->bkgts", query, key, preferred_element_type=jnp.float32) * scale
    return jnp.where(seen[:, None, None], logits, np.float32(HIDDEN))


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
        probabilities, normaliser = _softmax(
            _logits(query[:, :, :, start:end], key[:, :, :end], _seen(segments, start, end))
        )
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
        probabilities = jnp.exp(_logits(rows, keys, _seen(segments, start, end)) - normalisers[:, :, :, start:end])
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
