"""The decoder that all families share: RMSNorm, rotary positions, grouped-query attention, gated MLP; in Flax Linen.

Each weight is declared once (`_parameters`); the modules read the declaration for shapes, and initialisation, shards,
import and export read it too. Weights are in the index space of Hugging Face, [out, in], with the layers stacked on a
leading axis that `nn.scan` walks. What families vary stands in `DecoderConfig`. Legend: B batch, T tokens, D embed,
N heads, K kv heads, H head_dim, F mlp, V vocab, L layers.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from lingregions import mesh as meshes
from lingregions import tree as trees
from lingregions.models import roles
from lingregions.models.attention import Logits, attend
from lingregions.models.compute import PRODUCT, REMAT, Compute
from lingregions.models.config import DecoderConfig, LayerKind
from lingregions.models.parameter import Parameter
from lingregions.models.rotary import angles, rotate


@functools.cache
def _parameters(config: DecoderConfig) -> dict[str, Parameter]:
    """Return every parameter of the model by its role: the one declaration."""
    std, out = config.std, config.std / math.sqrt(2 * config.layers)
    sizes = {
        "layers": config.layers,
        "embed": config.embed,
        "heads": config.heads * config.head_dim,
        "kv_heads": config.kv_heads * config.head_dim,
        "features": config.head_dim,
        "mlp": config.mlp,
        "vocab": config.vocab,
    }
    rows = {"k": sizes["heads"], "v": sizes["heads"] + sizes["kv_heads"], "up": config.mlp, "q": 0, "gate": 0}

    def parameter(role: str, *axes: str, scale: float | None = std) -> Parameter:
        axes = (roles.LAYERS, *axes) if roles.ROLES[role].stacked else axes
        offset = config.norm_offset if roles.ROLES[role].kind == "norm" else 0.0
        stem = "mlp.gate_up_proj" if role in ("gate", "up") else "self_attn.qkv_proj"
        fused = (stem, rows[role]) if config.fused and role in rows else None
        return Parameter(role, tuple(sizes[axis] for axis in axes), axes, scale, config.head_dim, offset, fused)

    outputs = {"q": "heads", "k": "kv_heads", "v": "kv_heads", "o": "embed"}
    norms = {
        "before": ("input_norm", "post_attention_norm"),
        "after": ("post_attention_norm", "post_mlp_norm"),
        "around": ("input_norm", "post_attention_norm", "pre_mlp_norm", "post_mlp_norm"),
    }[config.norms]
    normed = {"": (), "head": ("features", "features"), "whole": ("heads", "kv_heads")}[config.qk_norm]
    declared = [
        *(parameter(role, outputs[role], "embed") for role in ("q", "k", "v")),
        parameter("o", "embed", "heads", scale=out),
        parameter("gate", "mlp", "embed"),
        parameter("up", "mlp", "embed"),
        parameter("down", "embed", "mlp", scale=out),
        *(parameter(role, "embed", scale=None) for role in norms),
        *(parameter(role, axis, scale=None) for role, axis in zip(("q_norm", "k_norm"), normed, strict=False)),
        *(parameter(f"{role}_bias", outputs[role]) for role in config.biases),
        parameter("embedding", "vocab", "embed"),
        parameter("final_norm", "embed", scale=None),
        *([] if config.tied else [parameter("head", "vocab", "embed")]),
    ]
    return {each.role: each for each in declared}


def _distinct_kinds(config: DecoderConfig) -> tuple[LayerKind, ...]:
    """Return the kinds of layers that the model has, in the order in which they come."""
    return tuple(dict.fromkeys(config.kinds))


def _declare(config: DecoderConfig) -> trees.Tree:
    """Return the declaration in the structure of the parameter tree."""
    return trees.unflatten({each.path: each for each in _parameters(config).values()})


def _head(params: Mapping[str, Any]) -> jax.Array:
    """Return the [V, D] matrix from hidden state to logits: the head, or the embedding that stands in for it."""
    own, shared = roles.path("head"), roles.path("embedding")
    table: jax.Array = params[own] if own in params else params[shared]
    return table


def _narrow(values: jax.Array, dtype: Any) -> jax.Array:
    """Return float32 values in a compute dtype."""
    if dtype == jnp.bfloat16:
        # The same numbers as the cast alone, which XLA would do before its loop over the layers, for all of them at
        # once: half as much memory again.
        values = jax.lax.reduce_precision(values, exponent_bits=8, mantissa_bits=7)
    return values.astype(dtype)


@jax.custom_vjp
def _narrow_into(values: jax.Array, buffer: jax.Array) -> jax.Array:
    """Return `narrow(values, buffer.dtype)`; the gradient goes to `buffer`, in its dtype, and none to `values`.

    JAX gives a gradient the dtype of its argument: that of a float32 weight is what bfloat16 found, in twice the bytes.
    """
    return _narrow(values, buffer.dtype)


_narrow_into.defvjp(
    lambda values, buffer: (_narrow_into(values, buffer), None),
    lambda _, cotangent: (None, cotangent),
)


@jax.custom_vjp
def _product(values: jax.Array, weight: jax.Array) -> jax.Array:
    """Return values [B, T, in] times a matrix [out, in], [B, T, out]."""
    return jnp.einsum("bti,oi->bto", values, weight)


def _product_slopes(kept: tuple[jax.Array, jax.Array], slope: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the slopes of both operands; flattened to two axes, a CPU multiplies them without a copy."""
    values, weight = kept
    rows, flat = (each.reshape(-1, each.shape[-1]) for each in (values, slope))
    return jnp.einsum("bto,oi->bti", slope, weight), jnp.einsum("mo,mi->oi", flat, rows)


_product.defvjp(lambda values, weight: (_product(values, weight), (values, weight)), _product_slopes)


def _normalize(values: jax.Array, eps: float) -> jax.Array:
    """Return values / sqrt(mean(values^2) + eps) over the last axis: RMSNorm without its gain, in float32 inside."""
    wide = values.astype(jnp.float32)
    return (wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + np.float32(eps))).astype(values.dtype)


def _insert(kept: jax.Array, new: jax.Array, slot: jax.Array) -> jax.Array:
    """Return the [S, K, H] kept with the new ones [T, K, H] from a slot on."""
    return jax.lax.dynamic_update_slice(kept, new, (slot, 0, 0))


class _Block(nn.Module):
    """A part of the decoder: its parameters are declared by role, and what passes them can be captured and bounded."""

    config: DecoderConfig
    compute: Compute

    def weight(self, role: str) -> jax.Array:
        """Return one declared parameter in the compute dtype."""
        declared = _parameters(self.config)[role]
        values = self.param(declared.key, declared.initialize, declared.matrix)
        if self.has_variable("gradient_buffers", declared.key):
            return _narrow_into(values, self.get_variable("gradient_buffers", declared.key))
        return _narrow(values, self.compute.activations)

    def changed(self, role: str) -> tuple[jax.Array, jax.Array] | None:
        """Return which rows each sample has of its own and what they hold: the collection "rows", if it is there."""
        key = _parameters(self.config)[role].key
        if not self.has_variable("rows", key):
            return None
        where, rows = cast(tuple[jax.Array, jax.Array], self.get_variable("rows", key))
        return where, _narrow(rows, self.compute.activations)

    def vector(self, role: str) -> jax.Array:
        """Return one declared vector [1, n], or [B, n] where samples have entries of their own."""
        vector, changed = self.weight(role), self.changed(role)
        if changed is None:
            return vector[None]
        own: jax.Array = jax.vmap(lambda where, entries: vector.at[where].set(entries, mode="drop"))(*changed)
        return own

    def capture_input(self, values: jax.Array, role: str, segments: jax.Array) -> None:
        """Put the sums of squares of a weight's input, float32 [in], into the collection "inputs" if it is asked for.

        Values are [B, T, in] or [B, T, N, in]; padding does not count. The norm of the input activations is what the
        score `wanda` needs.
        """
        if self.is_mutable_collection("inputs"):
            real = (segments != 0).astype(jnp.float32).reshape(*segments.shape, *(1,) * (values.ndim - 2))
            wide = values.astype(jnp.float32) * real
            total = jnp.sum(wide * wide, axis=tuple(range(values.ndim - 1)))
            self.put_variable("inputs", _parameters(self.config)[role].key, total)

    def capture_maxima(self, values: jax.Array, key: str, segments: jax.Array) -> None:
        """Put the largest magnitude of each channel over all tokens into the collection "maxima" if it is asked for.

        Float32 [channels]; padding does not count.
        """
        if self.is_mutable_collection("maxima"):
            sizes = jnp.where((segments != 0)[..., None], jnp.abs(values.astype(jnp.float32)), np.float32(0))
            self.put_variable("maxima", key, jnp.max(sizes, axis=(0, 1)))

    def capture_active(self, gate: jax.Array, segments: jax.Array) -> None:
        """Put how many tokens open each neuron's gate, int32 [F], into the collection "active" if it is asked for.

        The activations are above zero exactly where what enters them, [B, T, F], is; padding does not count.
        """
        if self.is_mutable_collection("active"):
            opened = (gate > 0) & (segments != 0)[..., None]
            self.put_variable("active", "gate", jnp.sum(opened, axis=(0, 1), dtype=jnp.int32))

    def bound(self, values: jax.Array, role: str) -> jax.Array:
        """Clip what comes from a weight to [-bound, bound] if the collection "bounds" holds a bound for it."""
        key = _parameters(self.config)[role].key
        if not self.has_variable("bounds", key):
            return values
        most: jax.Array = self.get_variable("bounds", key).astype(values.dtype)
        return jnp.clip(values, -most, most)

    def project(self, values: jax.Array, role: str, segments: jax.Array) -> jax.Array:
        """Return values [B, T, in] times the matrix [out, in], plus its bias if any: [B, T, out], within its bound."""
        self.capture_input(values, role, segments)
        out, changed = checkpoint_name(_product(values, self.weight(role)), PRODUCT), self.changed(role)
        if changed is not None:
            where, rows = changed
            put: Any = jax.vmap(lambda out, where, new: out.at[:, where].set(new, mode="drop"))
            out = put(out, where, jnp.einsum("bti,bri->btr", values, rows))
        if role in self.config.biases:
            # What enters a bias is one, for every token.
            self.capture_input(jnp.ones_like(out), f"{role}_bias", segments)
            out = out + self.vector(f"{role}_bias")[:, None, :]
        return self.bound(out, role)

    def norm(self, values: jax.Array, role: str, segments: jax.Array) -> jax.Array:
        """Return the RMSNorm of the last axis times the declared gain, within its bound; [B, T, D] or [B, T, N, H]."""
        offset = self.config.norm_offset
        # With an offset the product is in float32 too, as Gemma has it: 1 + w has more digits than w.
        scaled = _normalize(values.astype(jnp.float32) if offset else values, self.config.eps)
        self.capture_input(scaled, role, segments)
        gain = self.vector(role)
        gain = gain.reshape(len(gain), *(1,) * (values.ndim - 2), -1)
        if offset:
            gain = np.float32(offset) + gain.astype(jnp.float32)
        return self.bound((gain * scaled).astype(values.dtype), role)


class _Attention(_Block):
    """Grouped-query self-attention with rotary positions."""

    def remember(self, values: jax.Array, key: str, start: jax.Array | None) -> jax.Array:
        """Return the keys or values that queries may see, and keep them in the collection "cache" if it is asked for.

        Without `start` these are the [B, T, K, H] given; with it, those of the cache [B, S, K, H] with the given ones
        put into the slots `start` .. start + T - 1 of each sample.
        """
        if start is not None:
            put = jax.vmap(_insert)
            values = put(self.get_variable("cache", key), values, start)
        if self.is_mutable_collection("cache"):
            values = meshes.constrain(values, "batch", "tokens", "kv_heads", "features")
            self.put_variable("cache", key, values)
        return values

    def heads(self, x: jax.Array, role: str, segments: jax.Array, rope: tuple[jax.Array, jax.Array]) -> jax.Array:
        """Return the queries or keys of [B, T, D], normed if the family norms them, and turned: [B, T, N or K, H]."""
        values, norm = self.project(x, role, segments), f"{role}_norm"
        if self.config.qk_norm == "whole":
            values = self.norm(values, norm, segments)
        values = values.reshape(*x.shape[:2], -1, self.config.head_dim)
        if self.config.qk_norm == "head":
            values = self.norm(values, norm, segments)
        return rotate(values, *rope)

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        segments: jax.Array,
        rope: tuple[jax.Array, jax.Array],
        start: jax.Array | None = None,
        kind: jax.Array | None = None,
    ) -> jax.Array:
        """Map [B, T, D] to [B, T, D]; with `start` the tokens follow those in the cache; `kind` as in `_Layer`."""
        B, T, _ = x.shape
        query, key = self.heads(x, "q", segments, rope), self.heads(x, "k", segments, rope)
        value = self.project(x, "v", segments).reshape(B, T, self.config.kv_heads, self.config.head_dim)
        key, value = self.remember(key, "key", start), self.remember(value, "value", start)
        logits = Logits(self.config.attention_scale, self.config.attention_softcap)
        windows = tuple(each.window for each in _distinct_kinds(self.config))
        how = self.compute.attention, self.compute.block
        out = checkpoint_name(attend(query, key, value, segments, *how, start, logits, windows, kind), PRODUCT)
        return self.project(out.reshape(B, T, -1), "o", segments)


class _Mlp(_Block):
    """The gated MLP: down(activation(gate x) * up x)."""

    @nn.compact
    def __call__(self, x: jax.Array, segments: jax.Array) -> jax.Array:
        """Map [B, T, D] to [B, T, D]."""
        activation = nn.silu if self.config.activation == "silu" else nn.gelu  # nn.gelu is the approximation by tanh
        gate = self.project(x, "gate", segments)
        self.capture_active(gate, segments)
        hidden = activation(gate) * self.project(x, "up", segments)
        out = self.project(hidden, "down", segments)
        self.capture_maxima(hidden, "down_in", segments)
        self.capture_maxima(out, "down_out", segments)
        return out


class _Layer(_Block):
    """One decoder layer: x + attention(x), then x + mlp(x), with norms before, after or around the two."""

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        segments: jax.Array,
        rope: tuple[jax.Array, jax.Array],
        start: jax.Array | None = None,
        kind: jax.Array | None = None,
    ) -> tuple[jax.Array, None]:
        """Map [B, T, D] to ([B, T, D], nothing), the form that a scan over layers wants.

        Where the layers are not all of one kind, `kind`, int32 [], says which of `_distinct_kinds` this one is, and the
        angles in `rope` have an axis of kinds in front.
        """
        self.capture_maxima(x, "residual", segments)
        if kind is not None:
            cos, sin = (jnp.take(part, kind, axis=0) for part in rope)
            rope = cos, sin
        before, after = self.config.norms != "after", self.config.norms != "before"
        attention, mlp = (block(self.config, self.compute, name=name) for block, name in _BLOCKS)
        entering = self.norm(x, "input_norm", segments) if before else x
        mixed = attention(entering, segments, rope, start, kind)
        mixed = self.norm(mixed, "post_attention_norm", segments) if after else mixed
        x = meshes.constrain(x + mixed, "batch", "tokens", "features")
        middle = "pre_mlp_norm" if after else "post_attention_norm"
        mapped = mlp(self.norm(x, middle, segments) if before else x, segments)
        mapped = self.norm(mapped, "post_mlp_norm", segments) if after else mapped
        return meshes.constrain(x + mapped, "batch", "tokens", "features"), None


_BLOCKS: tuple[tuple[Any, str], ...] = ((_Attention, "self_attn"), (_Mlp, "mlp"))
# Collections that the scan over layers stacks on their first axis.
_STACKED = ("params", "inputs", "maxima", "active", "bounds", "cache", "gradient_buffers")


class _Last(_Block):
    """What follows the layers: the last norm."""

    @nn.compact
    def __call__(self, x: jax.Array, segments: jax.Array) -> jax.Array:
        """Map [B, T, D] to [B, T, D]."""
        return self.norm(x, "final_norm", segments)


def _embed(config: DecoderConfig, table: jax.Array, tokens: jax.Array) -> jax.Array:
    """Return what enters the first layer [B, T, D], from the embedding [V, D] in the compute dtype."""
    # Each device looks up its part of the embed axis for all samples, then the parts change places: with whole rows
    # the whole table, and its gradient, would lie on every device.
    x = jnp.take(table, meshes.constrain(tokens, "copies", "tokens"), axis=0)
    x = meshes.constrain(x, "copies", "tokens", "embed")
    x = meshes.constrain(x, "batch", "tokens", "features")
    return x * jnp.asarray(math.sqrt(config.embed), x.dtype) if config.scaled_embedding else x


def _turns(
    config: DecoderConfig, length: int, start: jax.Array | None = None
) -> tuple[tuple[jax.Array, jax.Array], jax.Array | None]:
    """Return the angles of rotation and the kind of every layer, int32 [L], as `_Layer` wants them."""
    kinds = _distinct_kinds(config)
    turns = [angles(config.head_dim, kind, length, start) for kind in kinds]
    if len(kinds) == 1:
        return turns[0], None
    rope = jnp.stack([cos for cos, _ in turns]), jnp.stack([sin for _, sin in turns])
    return rope, jnp.asarray([kinds.index(kind) for kind in config.kinds], jnp.int32)


def _enter(config: DecoderConfig, compute: Compute, params: Mapping[str, Any], tokens: jax.Array) -> jax.Array:
    """Return what enters the first layer, [B, T, D] in the compute dtype."""
    return _embed(config, _narrow(params[roles.path("embedding")], compute.activations), tokens)


def _layer(
    config: DecoderConfig,
    compute: Compute,
    weights: trees.Tree,
    place: jax.Array,
    x: jax.Array,
    segments: jax.Array,
    capture: bool = False,
    rows: trees.Tree | None = None,
) -> tuple[jax.Array, trees.Tree]:
    """Return what leaves one layer, and the sums of squares of what enters its weights if `capture` asks for them.

    Args:
      config: model config.
      compute: how to run it.
      weights: of this layer, without the axis of layers.
      place: int32 [], which layer it is.
      x: what enters it, [B, T, D].
      segments: int32 [B, T].
      capture: whether to gather what enters each weight.
      rows: rows that each sample has of its own: at the paths of some of the weights (where, what), int32 [B, r] and
        float32 [B, r, in], or [B, r] of a vector; one beyond the last is none.
    """
    rope, kinds = _turns(config, x.shape[1])
    kind = None if kinds is None else jnp.take(kinds, place)
    module, mutable = _Layer(config, compute), ["inputs"] if capture else []
    found: Any = module.apply(
        {"params": weights} | ({"rows": rows} if rows else {}), x, segments, rope, None, kind, mutable=mutable
    )
    (out, _), state = found
    return out, state.get("inputs", {})


def _leave(
    config: DecoderConfig, compute: Compute, params: Mapping[str, Any], x: jax.Array, segments: jax.Array
) -> jax.Array:
    """Return the last hidden state from what left the last layer, both [B, T, D]."""
    key = _parameters(config)["final_norm"].key
    return cast(jax.Array, _Last(config, compute).apply({"params": {key: params[key]}}, x, segments))


class _Decoder(_Block):
    """Tokens to the last hidden state, which `loss` multiplies with the head without building all logits."""

    @nn.compact
    def __call__(self, tokens: jax.Array, segments: jax.Array, start: jax.Array | None = None) -> jax.Array:
        """Map int32 [B, T] tokens and documents to the normed hidden state [B, T, D] in the compute dtype.

        Collections, all optional: "inputs" and "maxima" capture, "bounds" clips, "gradient_buffers" take the gradients
        of their weights, "cache" keeps keys and values. With `start`, int32 [B], the tokens of each sample are its one
        document's from position `start` on, and the cache holds those before.
        """
        x = _embed(self.config, self.weight("embedding"), tokens)
        layer: Any = _Layer
        if REMAT[self.compute.remat] is not None:
            layer = nn.remat(_Layer, policy=REMAT[self.compute.remat], prevent_cse=False)
        stack = nn.scan(
            layer,
            variable_axes=dict.fromkeys(_STACKED, 0),
            split_rngs={"params": True},
            in_axes=(nn.broadcast, nn.broadcast, nn.broadcast, 0),
            length=self.config.layers,
            unroll=self.compute.unroll,
        )
        rope, kinds = _turns(self.config, tokens.shape[1], start)
        x, _ = stack(self.config, self.compute, name=roles.LAYERS)(x, segments, rope, start, kinds)
        self.capture_maxima(x, "residual", segments)
        if not self.config.tied:
            self.weight("head")  # declared with the others; `loss` applies it
        return self.norm(x, "final_norm", segments)


class Architecture(NamedTuple):
    """What the package needs to know of a family of models; a variant of the shared decoder gives the first two.

    Attributes:
      parse: Hugging Face config.json -> config, whose `family` is the key of the architecture.
      dump: config -> Hugging Face config.json.
      module: Linen module, called with (config, compute) and then (tokens, segments) -> hidden [B, T, D].
      declare: config -> tree of `Parameter`.
      head: params -> [V, D].
      enter: (config, compute, params, tokens) -> what enters the first layer [B, T, D].
      layer: (config, compute, weights of one layer, its place, x, segments, capture, rows that each sample has of its
        own) -> (x, inputs of its weights).
      leave: (config, compute, params, x, segments) -> hidden [B, T, D]. These three are `module` in pieces.
    """

    parse: Callable[[Mapping[str, Any]], Any]
    dump: Callable[[Any], dict[str, Any]]
    module: Callable[..., nn.Module] = _Decoder
    declare: Callable[[Any], trees.Tree] = _declare
    head: Callable[[Mapping[str, Any]], jax.Array] = _head
    enter: Callable[..., jax.Array] = _enter
    layer: Callable[..., tuple[jax.Array, trees.Tree]] = _layer
    leave: Callable[..., jax.Array] = _leave
