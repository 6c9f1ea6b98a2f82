"""Causal attention within documents, grouped heads, softmax in float32.

Query t sees key s where s <= t and both lie in one document (`segments` equal), and in a layer with a window of W
where t - s < W. One function, several implementations;
"auto" takes what suits the platform that the program is compiled for:

- `splash` on a TPU: Pallas kernels (models/splash.py).
- `cudnn` on a GPU in bfloat16: cuDNN through `jax.nn.dot_product_attention`; where it cannot run, as with capped
  logits, `blocked`.
- `blocked` elsewhere: plain JAX, blocks of queries against the keys up to their end, so that the upper triangle costs
  nothing; its own backward pass keeps one number a query instead of the probabilities. The fastest on a CPU (SmolLM2's
  layer on two cores, ms forward / with backward: 10 / 50; `reference` 45 / 87; JAX's own 48 / 95).
- `reference`: one einsum over [T, T], what the others are tested against.

Queries that come after a cache of keys (generation) have the one einsum over all slots of the cache.
"""

import functools
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lingregions import mesh as meshes
from lingregions.models import splash

# Far below every logit, yet finite: a row that sees nothing becomes uniform instead of NaN.
_HIDDEN = -1e30


class Logits(NamedTuple):
    """What becomes of queries times keys.

    Attributes:
      scale: they are multiplied by it; None for H^-1/2.
      softcap: then x becomes c tanh(x / c) with this c; None for none.
    """

    scale: float | None = None
    softcap: float | None = None

    def _factor(self, head_dim: int) -> float:
        """Return the scale."""
        return head_dim**-0.5 if self.scale is None else self.scale


def _resolve(implementation: str, dtype: jnp.dtype, softcap: float | None = None) -> str:
    """Return the implementation that a name stands for with activations of this dtype: itself, or what "auto" takes."""
    if implementation != "auto":
        return implementation
    platform = meshes.platform()
    if platform == "tpu":
        return "splash"
    return "cudnn" if platform == "gpu" and dtype == jnp.bfloat16 and softcap is None else "blocked"


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segments: jax.Array,
    implementation: str,
    block: int,
    start: jax.Array | None = None,
    logits: Logits | None = None,
    windows: tuple[int | None, ...] = (None,),
    kind: jax.Array | None = None,
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
      logits: scale and cap of the logits; None for H^-1/2 and no cap.
      windows: tokens that a query sees, itself included, one for each kind of layer; None for all before it.
      kind: int32 [], the place in `windows`; None where there is one kind only.

    Returns:
      [B, T, N, H] in the dtype of `query`.

    Raises:
      RuntimeError: "cudnn", asked for by name, cannot run here ("auto" then warns and takes "blocked").
    """
    logits = logits or Logits()
    chosen = _resolve(implementation, query.dtype, logits.softcap)
    if start is None and chosen == "splash":
        return splash.attend(query, key, value, segments, logits._factor(query.shape[3]), logits.softcap, windows, kind)
    window = _window(windows, kind)
    if start is None and chosen == "cudnn":
        try:
            return _cudnn(query, key, value, segments, logits, window)
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
        last, slots = (start[:, None] + jnp.arange(T)[None, :])[:, :, None], jnp.arange(key.shape[2])[None, None, :]
        seen = slots <= last
        out = _whole(grouped, key, value, seen if window is None else seen & (last - slots < window), logits)
    elif chosen == "reference":
        out = _whole(grouped, key, value, _seen(segments, 0, T, window), logits)
    else:
        out = _blocked(grouped, key, value, segments, window, min(block, T), logits)
    return out.transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)


def _window(windows: tuple[int | None, ...], kind: jax.Array | None) -> jax.Array | None:
    """Return the window of this layer, int32 []; None where no layer has one."""
    if set(windows) == {None}:
        return None
    sizes = jnp.asarray([_ALL if each is None else each for each in windows], jnp.int32)
    return sizes[0] if kind is None else jnp.take(sizes, kind)


_ALL = 2**30  # a window that holds every text


def _cudnn(
    query: jax.Array, key: jax.Array, value: jax.Array, segments: jax.Array, logits: Logits, window: jax.Array | None
) -> jax.Array:
    if logits.softcap is not None:
        raise NotImplementedError("it knows no cap of the logits")
    same = (segments[:, :, None] == segments[:, None, :])[:, None]
    if window is not None:
        same &= _near(0, query.shape[1], window)[None, None]
    return jax.nn.dot_product_attention(
        query, key, value, mask=same, scale=logits.scale, is_causal=True, implementation="cudnn"
    )


def _whole(query: jax.Array, key: jax.Array, value: jax.Array, seen: jax.Array, logits: Logits) -> jax.Array:
    probabilities, _ = _softmax(_logits(query, key, seen, logits))
    return jnp.einsum("bkgts,bksh->bkgth", probabilities.astype(query.dtype), value)


def _near(start: int, end: int, window: jax.Array) -> jax.Array:
    """Return bool [end - start, end]: whether a key is within the window of the queries `start` .."""
    return jnp.arange(start, end)[:, None] - jnp.arange(end)[None, :] < window


def _seen(segments: jax.Array, start: int, end: int, window: jax.Array | None) -> jax.Array:
    """Return bool [B, end - start, end]: whether the queries `start` .. see the keys before `end`."""
    causal = jnp.arange(start, end)[:, None] >= jnp.arange(end)[None, :]
    if window is not None:
        causal &= _near(start, end, window)
    return causal[None] & (segments[:, start:end, None] == segments[:, None, :end])


def _logits(query: jax.Array, key: jax.Array, seen: jax.Array, how: Logits) -> jax.Array:
    """Return float32 [B, K, G, t, S] of queries [B, K, G, t, H] against keys [B, K, S, H], where `seen` [B, t, S]."""
    scale = np.float32(how._factor(query.shape[4]))
    logits = jnp.einsum("bkgth,bksh->bkgts", query, key, preferred_element_type=jnp.float32) * scale
    if how.softcap is not None:
        logits = np.float32(how.softcap) * jnp.tanh(logits / np.float32(how.softcap))
    return jnp.where(seen[:, None, None], logits, np.float32(_HIDDEN))


def _softmax(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the probabilities and the log of their normaliser, [..., t, S] and [..., t, 1]."""
    top = jnp.max(logits, axis=-1, keepdims=True)
    weights = jnp.exp(logits - top)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    return weights / total, jnp.log(total) + top


def _blocks(T: int, block: int) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of each block of queries; the last may be short."""
    return ((start, min(start + block, T)) for start in range(0, T, block))


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _blocked(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segments: jax.Array,
    window: jax.Array | None,
    block: int,
    how: Logits,
) -> jax.Array:
    return _forward(query, key, value, segments, window, block, how)[0]


def _forward(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segments: jax.Array,
    window: jax.Array | None,
    block: int,
    how: Logits,
) -> tuple[jax.Array, tuple[Any, ...]]:
    outs, normalisers = [], []
    for start, end in _blocks(query.shape[3], block):
        probabilities, normaliser = _softmax(
            _logits(query[:, :, :, start:end], key[:, :, :end], _seen(segments, start, end, window), how)
        )
        outs.append(jnp.einsum("bkgts,bksh->bkgth", probabilities.astype(query.dtype), value[:, :, :end]))
        normalisers.append(normaliser)
    out = jnp.concatenate(outs, axis=3)
    return out, (query, key, value, segments, window, out, jnp.concatenate(normalisers, axis=3))


def _backward(
    block: int, how: Logits, kept: tuple[Any, ...], gradient: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, None, None]:
    query, key, value, segments, window, out, normalisers = kept
    dtype, scale = query.dtype, np.float32(how._factor(query.shape[4]))
    # Row sums of dP * P, which need no probabilities: sum_s dP P = dO . O.
    inner = jnp.sum((gradient * out).astype(jnp.float32), axis=-1, keepdims=True)
    d_query = []
    d_key, d_value = jnp.zeros(key.shape, jnp.float32), jnp.zeros(value.shape, jnp.float32)
    for start, end in _blocks(query.shape[3], block):
        rows, cotangent = query[:, :, :, start:end], gradient[:, :, :, start:end]
        keys, values = key[:, :, :end], value[:, :, :end]
        logits = _logits(rows, keys, _seen(segments, start, end, window), how)
        probabilities = jnp.exp(logits - normalisers[:, :, :, start:end])
        d_probabilities = jnp.einsum("bkgth,bksh->bkgts", cotangent, values, preferred_element_type=jnp.float32)
        d_logits = probabilities * (d_probabilities - inner[:, :, :, start:end]) * scale
        if how.softcap is not None:
            # d c tanh(x / c) = 1 - tanh^2; a hidden logit has no part in this, and its square would be infinite.
            tanh = jnp.where(probabilities > 0, logits / np.float32(how.softcap), np.float32(0))
            d_logits *= 1 - tanh * tanh
        d_logits = d_logits.astype(dtype)
        d_query.append(jnp.einsum("bkgts,bksh->bkgth", d_logits, keys))
        d_value = d_value.at[:, :, :end].add(
            jnp.einsum("bkgts,bkgth->bksh", probabilities.astype(dtype), cotangent, preferred_element_type=jnp.float32)
        )
        d_key = d_key.at[:, :, :end].add(
            jnp.einsum("bkgts,bkgth->bksh", d_logits, rows, preferred_element_type=jnp.float32)
        )
    return jnp.concatenate(d_query, axis=3), d_key.astype(dtype), d_value.astype(dtype), None, None


_blocked.defvjp(_forward, _backward)
