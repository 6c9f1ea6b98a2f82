"""The decoder that all families share: RMSNorm, rotary positions, grouped-query attention, gated MLP; in Flax Linen.

Each weight is declared once (`parameters`); the modules read the declaration for shapes, and initialisation, shardings,
import and export read it too. Weights are in the index space of Hugging Face, [out, in], with the layers stacked on a
leading axis that `nn.scan` walks. What families vary stands in `DecoderConfig`. Legend: B batch, T tokens, D embed,
N heads, K kv heads, H head_dim, F mlp, V vocab, L layers.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lingregions import mesh as meshes
from lingregions import tree as trees
from lingregions.models import roles
from lingregions.models.attention import attend
from lingregions.models.compute import DTYPES, REMAT, Compute
from lingregions.models.config import DecoderConfig
from lingregions.models.parameter import Parameter
from lingregions.models.rotary import angles, rotate


@functools.cache
def parameters(config: DecoderConfig) -> dict[str, Parameter]:
    """Return every parameter of the model by its role: the one declaration."""
    std, out = config.std, config.std / math.sqrt(2 * config.layers)
    sizes = {
        "layers": config.layers,
        "embed": config.embed,
        "heads": config.heads * config.head_dim,
        "kv_heads": config.kv_heads * config.head_dim,
        "mlp": config.mlp,
        "vocab": config.vocab,
    }

    def parameter(role: str, *axes: str, scale: float | None) -> Parameter:
        axes = (roles.LAYERS, *axes) if roles.ROLES[role].stacked else axes
        return Parameter(role, tuple(sizes[axis] for axis in axes), axes, scale, config.head_dim)

    declared = [
        parameter("q", "heads", "embed", scale=std),
        parameter("k", "kv_heads", "embed", scale=std),
        parameter("v", "kv_heads", "embed", scale=std),
        parameter("o", "embed", "heads", scale=out),
        parameter("gate", "mlp", "embed", scale=std),
        parameter("up", "mlp", "embed", scale=std),
        parameter("down", "embed", "mlp", scale=out),
        parameter("input_norm", "embed", scale=None),
        parameter("post_attention_norm", "embed", scale=None),
        parameter("embedding", "vocab", "embed", scale=std),
        parameter("final_norm", "embed", scale=None),
        *([] if config.tied else [parameter("head", "vocab", "embed", scale=std)]),
    ]
    return {each.role: each for each in declared}


def declare(config: DecoderConfig) -> trees.Tree:
    """Return the declaration in the structure of the parameter tree."""
    return trees.unflatten({each.path: each for each in parameters(config).values()})


def head(params: Mapping[str, Any]) -> jax.Array:
    """Return the [V, D] matrix from hidden state to logits: the head, or the embedding that stands in for it."""
    own, shared = roles.path("head"), roles.path("embedding")
    table: jax.Array = params[own] if own in params else params[shared]
    return table


def narrow(values: jax.Array, dtype: Any) -> jax.Array:
    """Return float32 values in a compute dtype."""
    if dtype == jnp.bfloat16:
        # The same numbers as the cast alone, which XLA would do before its loop over the layers, for all of them at
        # once: half as much memory again.
        values = jax.lax.reduce_precision(values, exponent_bits=8, mantissa_bits=7)
    return values.astype(dtype)


@jax.custom_vjp
def narrow_into(values: jax.Array, buffer: jax.Array) -> jax.Array:
    """Return `narrow(values, buffer.dtype)`; the gradient goes to `buffer`, in its dtype, and none to `values`.

    JAX gives a gradient the dtype of its argument: that of a float32 weight is what bfloat16 found, in twice the bytes.
    """
    return narrow(values, buffer.dtype)


narrow_into.defvjp(
    lambda values, buffer: (narrow_into(values, buffer), None),
    lambda _, cotangent: (None, cotangent),
)


def normalize(values: jax.Array, eps: float) -> jax.Array:
    """Return values / sqrt(mean(values^2) + eps) over the last axis: RMSNorm without its gain, in float32 inside."""
    wide = values.astype(jnp.float32)
    return (wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + np.float32(eps))).astype(values.dtype)


class _Block(nn.Module):
    """A part of the decoder: its parameters are declared by role, and what passes them can be captured and bounded."""

    config: DecoderConfig
    compute: Compute

    def weight(self, role: str) -> jax.Array:
        """Return one declared parameter in the compute dtype."""
        declared = parameters(self.config)[role]
        values = self.param(declared.key, declared.initialize, declared.matrix)
        if self.has_variable("gradient_buffers", declared.key):
            return narrow_into(values, self.get_variable("gradient_buffers", declared.key))
        return narrow(values, DTYPES[self.compute.dtype])

    def capture_input(self, values: jax.Array, role: str, segments: jax.Array) -> None:
        """Put the sums of squares of a weight's input, float32 [in], into the collection "inputs" if it is asked for.

        Padding does not count. The norm of the input activations is what the score `wanda` needs.
        """
        if self.is_mutable_collection("inputs"):
            wide = values.astype(jnp.float32) * (segments != 0)[..., None].astype(jnp.float32)
            self.put_variable("inputs", parameters(self.config)[role].key, jnp.sum(wide * wide, axis=(0, 1)))

    def capture_maxima(self, values: jax.Array, key: str, segments: jax.Array) -> None:
        """Put the largest magnitude of each channel over all tokens into the collection "maxima" if it is asked for.

        Float32 [channels]; padding does not count.
        """
        if self.is_mutable_collection("maxima"):
            sizes = jnp.where((segments != 0)[..., None], jnp.abs(values.astype(jnp.float32)), np.float32(0))
            self.put_variable("maxima", key, jnp.max(sizes, axis=(0, 1)))

    def bound(self, values: jax.Array, role: str) -> jax.Array:
        """Clip what comes from a weight to [-bound, bound] if the collection "bounds" holds a bound for it."""
        key = parameters(self.config)[role].key
        if not self.has_variable("bounds", key):
            return values
        most: jax.Array = self.get_variable("bounds", key).astype(values.dtype)
        return jnp.clip(values, -most, most)

    def project(self, values: jax.Array, role: str, segments: jax.Array) -> jax.Array:
        """Return values [B, T, in] times the declared matrix [out, in], as [B, T, out], within its bound."""
        self.capture_input(values, role, segments)
        return self.bound(jnp.einsum("bti,oi->bto", values, self.weight(role)), role)

    def norm(self, values: jax.Array, role: str, segments: jax.Array) -> jax.Array:
        """Return the RMSNorm of [B, T, D] with the declared gain [D], within its bound."""
        scaled = normalize(values, self.config.eps)
        self.capture_input(scaled, role, segments)
        return self.bound(self.weight(role)[None, None, :] * scaled, role)


class Attention(_Block):
    """Grouped-query self-attention with rotary positions."""

    def remember(self, values: jax.Array, key: str, start: jax.Array | None) -> jax.Array:
        """Return the keys or values that queries may see, and keep them in the collection "cache" if it is asked for.

        Without `start` these are the [B, T, K, H] given; with it, those of the cache [B, S, K, H] with the given ones
        put into the slots `start` .. start + T - 1 of each sample.
        """
        if start is not None:
            put = jax.vmap(lambda kept, new, slot: jax.lax.dynamic_update_slice(kept, new, (slot, 0, 0)))
            values = put(self.get_variable("cache", key), values, start)
        if self.is_mutable_collection("cache"):
            values = meshes.constrain(values, "batch", "tokens", "kv_heads", "features")
            self.put_variable("cache", key, values)
        return values

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        segments: jax.Array,
        rope: tuple[jax.Array, jax.Array],
        start: jax.Array | None = None,
    ) -> jax.Array:
        """Map [B, T, D] to [B, T, D]; with `start` the tokens follow those in the cache."""
        B, T, _ = x.shape
        N, K, H = self.config.heads, self.config.kv_heads, self.config.head_dim
        query = rotate(self.project(x, "q", segments).reshape(B, T, N, H), *rope)
        key = rotate(self.project(x, "k", segments).reshape(B, T, K, H), *rope)
        value = self.project(x, "v", segments).reshape(B, T, K, H)
        key, value = self.remember(key, "key", start), self.remember(value, "value", start)
        out = attend(query, key, value, segments, self.compute.attention, self.compute.block, start)
        return self.project(out.reshape(B, T, N * H), "o", segments)


class Mlp(_Block):
    """SwiGLU: down(silu(gate x) * up x)."""

    @nn.compact
    def __call__(self, x: jax.Array, segments: jax.Array) -> jax.Array:
        """Map [B, T, D] to [B, T, D]."""
        hidden = nn.silu(self.project(x, "gate", segments)) * self.project(x, "up", segments)
        out = self.project(hidden, "down", segments)
        self.capture_maxima(hidden, "down_in", segments)
        self.capture_maxima(out, "down_out", segments)
        return out


class Layer(_Block):
    """One decoder layer: x + attention(norm x), then x + mlp(norm x)."""

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        segments: jax.Array,
        rope: tuple[jax.Array, jax.Array],
        start: jax.Array | None = None,
    ) -> tuple[jax.Array, None]:
        """Map [B, T, D] to ([B, T, D], nothing), the form that a scan over layers wants."""
        self.capture_maxima(x, "residual", segments)
        attention, mlp = (
            Attention(self.config, self.compute, name="self_attn"),
            Mlp(self.config, self.compute, name="mlp"),
        )
        mixed = attention(self.norm(x, "input_norm", segments), segments, rope, start)
        x = meshes.constrain(x + mixed, "batch", "tokens", "features")
        mapped = mlp(self.norm(x, "post_attention_norm", segments), segments)
        return meshes.constrain(x + mapped, "batch", "tokens", "features"), None


# Collections that the scan over layers stacks on their first axis.
_STACKED = ("params", "inputs", "maxima", "bounds", "cache", "gradient_buffers")


class Decoder(_Block):
    """Tokens to the last hidden state, which `loss` multiplies with the head without building all logits."""

    @nn.compact
    def __call__(self, tokens: jax.Array, segments: jax.Array, start: jax.Array | None = None) -> jax.Array:
        """Map int32 [B, T] tokens and documents to the normed hidden state [B, T, D] in the compute dtype.

        Collections, all optional: "inputs" and "maxima" capture, "bounds" clips, "gradient_buffers" take the gradients
        of their weights, "cache" keeps keys and values. With `start`, int32 [B], the tokens of each sample are its one
        document's from position `start` on, and the cache holds those before.
        """
        # Each device looks up its part of the embed axis for all samples, then the parts change places: with whole rows
        # the whole table, and its gradient, would lie on every device.
        x = jnp.take(self.weight("embedding"), meshes.constrain(tokens, "copies", "tokens"), axis=0)
        x = meshes.constrain(x, "copies", "tokens", "embed")
        x = meshes.constrain(x, "batch", "tokens", "features")
        layer: Any = Layer
        if REMAT[self.compute.remat] is not None:
            layer = nn.remat(Layer, policy=REMAT[self.compute.remat], prevent_cse=False)
        stack = nn.scan(
            layer,
            variable_axes=dict.fromkeys(_STACKED, 0),
            split_rngs={"params": True},
            in_axes=(nn.broadcast, nn.broadcast, nn.broadcast),
            length=self.config.layers,
            unroll=self.compute.unroll,
        )
        rope = angles(self.config.head_dim, self.config.kinds[0], tokens.shape[1], start)
        x, _ = stack(self.config, self.compute, name=roles.LAYERS)(x, segments, rope, start)
        self.capture_maxima(x, "residual", segments)
        if not self.config.tied:
            self.weight("head")  # declared with the others; `loss` applies it
        return self.norm(x, "final_norm", segments)
