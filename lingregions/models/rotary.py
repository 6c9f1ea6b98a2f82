"""Rotary positions: the angles by which queries and keys turn, and their stretching beyond the trained context."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from lingregions.models.config import LayerKind, RotaryScaling


def _frequencies(head_dim: int, theta: float, scaling: RotaryScaling | None = None, T: int = 1) -> np.ndarray:
    """Return float32 [H / 2], the rotary angle per position of each pair, in texts of T tokens.

    The kinds of scaling are those of transformers' `modeling_rope_utils`:
      linear: all are divided by the factor.
      dynamic: the base grows with what T exceeds the original context by (NTK).
      llama3: wavelengths longer than context / low factor are stretched by the factor, those shorter than context /
        high factor are kept, and the ones between are blended.
      yarn: the same with pairs of less than `slow` and more than `fast` rotations in the context (arXiv 2309.00071).
      longrope: every pair has its own divisor, one set up to the original context, one beyond (arXiv 2402.13753).
    """
    if scaling is not None and scaling.kind == "dynamic":
        length = max(T, scaling.original_context)
        stretch = scaling.factor * length / scaling.original_context - (scaling.factor - 1)
        theta *= stretch ** (head_dim / (head_dim - 2))
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    plain = (1.0 / np.float32(theta) ** exponents).astype(np.float32)
    if scaling is None or scaling.kind == "dynamic":
        return plain
    if scaling.kind == "linear":
        return plain / np.float32(scaling.factor)
    if scaling.kind == "longrope":
        return plain / np.asarray(scaling.long if scaling.original_context < T else scaling.short, np.float32)
    kept = _kept_by_yarn(head_dim, theta, scaling) if scaling.kind == "yarn" else _kept_by_llama3(plain, scaling)
    return ((1 - kept) * plain / scaling.factor + kept * plain).astype(np.float32)


def _kept_by_llama3(plain: np.ndarray, scaling: RotaryScaling) -> np.ndarray:
    """Return how much of each frequency is kept, 0 .. 1."""
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    wavelength = np.float32(2 * math.pi) / plain
    return np.clip((np.float32(scaling.original_context) / wavelength - low) / (high - low), 0.0, 1.0)


def _kept_by_yarn(head_dim: int, theta: float, scaling: RotaryScaling) -> np.ndarray:
    """Return how much of each frequency is kept, 0 .. 1."""

    def pair(rotations: float) -> float:
        """Return which pair, counted in fractions, turns so often within the original context."""
        return head_dim * math.log(scaling.original_context / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    first, last = pair(scaling.fast), pair(scaling.slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, head_dim - 1)
    last += 0.001 if first == last else 0.0
    ramp = (np.arange(head_dim // 2, dtype=np.float32) - first) / (last - first)
    kept: np.ndarray = 1 - np.clip(ramp, 0.0, 1.0).astype(np.float32)
    return kept


def angles(head_dim: int, kind: LayerKind, T: int, start: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """Return (cos, sin), float32 [T, 1, H / 2], of the positions 0 .. T - 1.

    With `start`, int32 [B], of the positions start .. start + T - 1 of each sample: [B, T, 1, H / 2].
    """
    positions = jnp.arange(T, dtype=jnp.float32)
    if start is not None:
        positions = start.astype(jnp.float32)[:, None] + positions[None, :]
    # A layer without positions turns by nothing: times one, plus zero.
    each = np.zeros(head_dim // 2, np.float32)
    if kind.theta is not None:
        each = _frequencies(head_dim, kind.theta, kind.scaling, T)
    turn = jnp.multiply.outer(positions, jnp.asarray(each))[..., None, :]
    cos, sin = jnp.cos(turn), jnp.sin(turn)
    if kind.scaling is None or kind.scaling.attention_factor == 1:
        return cos, sin
    size = np.float32(kind.scaling.attention_factor)
    return cos * size, sin * size


def rotate(values: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Turn the pairs (h, h + H / 2) of [B, T, N, H] by their angles, in the dtype of `values`."""
    first, second = jnp.split(values, 2, axis=-1)
    cos, sin = (turn.astype(values.dtype).reshape(-1, *turn.shape[-3:]) for turn in (cos, sin))
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
