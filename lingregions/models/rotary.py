"""Rotary positions: the angles by which queries and keys turn, and their stretching beyond the trained context."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from lingregions.models.config import LayerKind, RotaryScaling


def frequencies(head_dim: int, theta: float, scaling: RotaryScaling | None = None) -> np.ndarray:
    """Return float32 [H / 2], the rotary angle per position of each pair.

    "llama3" (transformers' `_compute_llama3_parameters`): wavelengths longer than context / low factor are stretched by
    `factor`, those shorter than context / high factor are kept, and the ones between are blended.
    """
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    plain = (1.0 / np.float32(theta) ** exponents).astype(np.float32)
    if scaling is None:
        return plain
    if scaling.kind == "linear":
        return plain / np.float32(scaling.factor)
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    wavelength = np.float32(2 * math.pi) / plain
    blend = np.clip((np.float32(scaling.original_context) / wavelength - low) / (high - low), 0.0, 1.0)
    return ((1 - blend) * plain / scaling.factor + blend * plain).astype(np.float32)


def angles(head_dim: int, kind: LayerKind, T: int, start: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """Return (cos, sin), float32 [T, 1, H / 2], of the positions 0 .. T - 1.

    With `start`, int32 [B], of the positions start .. start + T - 1 of each sample: [B, T, 1, H / 2].
    """
    positions = jnp.arange(T, dtype=jnp.float32)
    if start is not None:
        positions = start.astype(jnp.float32)[:, None] + positions[None, :]
    each = (
        np.zeros(head_dim // 2, np.float32) if kind.theta is None else frequencies(head_dim, kind.theta, kind.scaling)
    )
    turn = jnp.multiply.outer(positions, jnp.asarray(each))[..., None, :]
    return jnp.cos(turn), jnp.sin(turn)


def rotate(values: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Turn the pairs (h, h + H / 2) of [B, T, N, H] by their angles, in the dtype of `values`."""
    first, second = jnp.split(values, 2, axis=-1)
    cos, sin = (turn.astype(values.dtype).reshape(-1, *turn.shape[-3:]) for turn in (cos, sin))
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
