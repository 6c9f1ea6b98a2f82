"""LLaMA: RMSNorm, rotary positions, grouped-query attention, SwiGLU; a thin Flax Linen decoder.

Each weight is declared once (`Attention.declare` and its neighbours); the modules read the declaration for shapes, and
initialisation, shardings, import and export read it too. Weights are in the index space of Hugging Face, [out, in],
with the layers stacked on a leading axis that `nn.scan` walks. Follows transformers' LlamaForCausalLM, whose logits and
gradients are the reference. Legend: B batch, T tokens, D embed, N heads, K kv heads, H head_dim, F mlp, V vocab,
L layers.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lingregions import mesh as meshes
from lingregions.models.attention import attend
from lingregions.models.compute import DTYPES, REMAT, Compute
from lingregions.models.parameter import Parameter

Tree = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Stretching of the rotary frequencies beyond the original context, as Llama 3.1 does it ("llama3") or "linear"."""

    kind: str
    factor: float
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_context: int = 8192

    def __post_init__(self) -> None:
        """Refuse kinds that are not implemented."""
        if self.kind not in ("linear", "llama3"):
            raise ValueError(f"rope scaling {self.kind!r} is not implemented; there are linear and llama3")


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """What a LLaMA model computes; sizes by the letter legend.

    Attributes:
      vocab: V.
      embed: D.
      mlp: F.
      layers: L.
      heads: N.
      kv_heads: K.
      head_dim: H.
      context: positions that the model was trained for.
      eps: added to the mean square in RMSNorm.
      rope_theta: base of the rotary frequencies.
      rope_scaling: None for plain rotary positions.
      tied: whether the head is the embedding.
      std: standard deviation of random initial weights.
    """

    vocab: int
    embed: int
    mlp: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    context: int
    eps: float = 1e-5
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    tied: bool = False
    std: float = 0.02

    def __post_init__(self) -> None:
        """Refuse sizes that no decoder has."""
        for field in ("vocab", "embed", "mlp", "layers", "heads", "kv_heads", "head_dim", "context"):
            if getattr(self, field) < 1:
                raise ValueError(f"config {field} is {getattr(self, field)}; it must be at least 1")
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} heads cannot share {self.kv_heads} kv heads evenly")
        if self.head_dim % 2:
            raise ValueError(f"head_dim is {self.head_dim}; rotary positions need an even one")


def _stacked(config: LlamaConfig, name: str, axes: tuple[str, str], scale: float | None) -> Parameter:
    sizes = {
        "embed": config.embed,
        "heads": config.heads * config.head_dim,
        "kv_heads": config.kv_heads * config.head_dim,
        "mlp": config.mlp,
    }
    shape = (config.layers, *(sizes[axis] for axis in axes if axis))
    return Parameter(
        f"model.layers.{{layer}}.{name}.weight",
        shape,
        ("layers", *(axis for axis in axes if axis)),
        scale,
        config.head_dim,
    )


def narrow(values: jax.Array, dtype: Any) -> jax.Array:
    """Return float32 values in a compute dtype."""
    if dtype == jnp.bfloat16:
        # The same numbers as the cast alone, which XLA would do before its loop over the layers, for all of them at
        # once: half as much memory again.
        values = jax.lax.reduce_precision(values, exponent_bits=8, mantissa_bits=7)
    return values.astype(dtype)


@jax.custom_vjp
def meet(values: jax.Array, slope: jax.Array) -> jax.Array:
    """Return `narrow(values, slope.dtype)`; the gradient goes to `slope`, in its dtype, and none to `values`.

    JAX gives a gradient the dtype of its argument: that of a float32 weight is what bfloat16 found, in twice the bytes.
    """
    return narrow(values, slope.dtype)


meet.defvjp(lambda values, slope: (meet(values, slope), None), lambda _, cotangent: (None, cotangent))


def normalize(values: jax.Array, eps: float) -> jax.Array:
    """Return values / sqrt(mean(values^2) + eps) over the last axis: RMSNorm without its gain, in float32 inside."""
    wide = values.astype(jnp.float32)
    return (wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + np.float32(eps))).astype(values.dtype)


def frequencies(config: LlamaConfig) -> np.ndarray:
    """Return float32 [H / 2], the rotary angle per position of each pair, scaled as `rope_scaling` says.

    "llama3" (transformers' `_compute_llama3_parameters`): wavelengths longer than context / low factor are stretched by
    `factor`, those shorter than context / high factor are kept, and the ones between are blended.
    """
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    plain = (1.0 / np.float32(config.rope_theta) ** exponents).astype(np.float32)
    scaling = config.rope_scaling
    if scaling is None:
        return plain
    if scaling.kind == "linear":
        return plain / np.float32(scaling.factor)
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    wavelength = np.float32(2 * math.pi) / plain
    blend = np.clip((np.float32(scaling.original_context) / wavelength - low) / (high - low), 0.0, 1.0)
    return ((1 - blend) * plain / scaling.factor + blend * plain).astype(np.float32)


def angles(config: LlamaConfig, T: int, start: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """Return (cos, sin), float32 [T, 1, H / 2], of the positions 0 .. T - 1.

    With `start`, int32 [B], of the positions start .. start + T - 1 of each sample: [B, T, 1, H / 2].
    """
    positions = jnp.arange(T, dtype=jnp.float32)
    if start is not None:
        positions = start.astype(jnp.float32)[:, None] + positions[None, :]
    turn = jnp.multiply.outer(positions, jnp.asarray(frequencies(config)))[..., None, :]
    return jnp.cos(turn), jnp.sin(turn)


def rotate(values: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Turn the pairs (h, h + H / 2) of [B, T, N, H] by their angles, in the dtype of `values`."""
    first, second = jnp.split(values, 2, axis=-1)
    cos, sin = (turn.astype(values.dtype).reshape(-1, *turn.shape[-3:]) for turn in (cos, sin))
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


class _Declared(nn.Module):
    """A module whose parameters are those of its `declare`."""

    config: LlamaConfig
    compute: Compute

    @staticmethod
    def declare(config: LlamaConfig) -> dict[str, Parameter]:
        """Return the parameters of the module itself, by key."""
        raise NotImplementedError

    def weight(self, key: str) -> jax.Array:
        """Return one declared parameter in the compute dtype."""
        declared = self.declare(self.config)[key]
        values = self.param(key, declared.initialize, declared.matrix)
        if self.has_variable("slopes", key):
            return meet(values, self.get_variable("slopes", key))
        return narrow(values, DTYPES[self.compute.dtype])

    def watch(self, values: jax.Array, key: str, segments: jax.Array) -> None:
        """Put the sums of squares of a weight's input, float32 [in], into the collection "inputs" if it is asked for.

        Padding does not count. The norm of the input activations is what the score `wanda` needs.
        """
        if self.is_mutable_collection("inputs"):
            wide = values.astype(jnp.float32) * (segments != 0)[..., None].astype(jnp.float32)
            self.put_variable("inputs", key, jnp.sum(wide * wide, axis=(0, 1)))

    def peak(self, values: jax.Array, key: str, segments: jax.Array) -> None:
        """Put the largest magnitude of each channel over all tokens into the collection "peaks" if it is asked for.

        Float32 [channels]; padding does not count.
        """
        if self.is_mutable_collection("peaks"):
            sizes = jnp.where((segments != 0)[..., None], jnp.abs(values.astype(jnp.float32)), np.float32(0))
            self.put_variable("peaks", key, jnp.max(sizes, axis=(0, 1)))

    def limit(self, values: jax.Array, key: str) -> jax.Array:
        """Clip what comes from a weight to [-bound, bound] if the collection "limits" holds a bound for it."""
        if not self.has_variable("limits", key):
            return values
        bound: jax.Array = self.get_variable("limits", key).astype(values.dtype)
        return jnp.clip(values, -bound, bound)

    def project(self, values: jax.Array, key: str, segments: jax.Array) -> jax.Array:
        """Return values [B, T, in] times the declared matrix [out, in], as [B, T, out], within its limit."""
        self.watch(values, key, segments)
        return self.limit(jnp.einsum("bti,oi->bto", values, self.weight(key)), key)

    def norm(self, values: jax.Array, key: str, segments: jax.Array) -> jax.Array:
        """Return the RMSNorm of [B, T, D] with the declared gain [D], within its limit."""
        scaled = normalize(values, self.config.eps)
        self.watch(scaled, key, segments)
        return self.limit(self.weight(key)[None, None, :] * scaled, key)


class Attention(_Declared):
    """Grouped-query self-attention with rotary positions."""

    @staticmethod
    def declare(config: LlamaConfig) -> dict[str, Parameter]:
        """Return the four projections."""
        std, out = config.std, config.std / math.sqrt(2 * config.layers)
        return {
            "q_proj": _stacked(config, "self_attn.q_proj", ("heads", "embed"), std),
            "k_proj": _stacked(config, "self_attn.k_proj", ("kv_heads", "embed"), std),
            "v_proj": _stacked(config, "self_attn.v_proj", ("kv_heads", "embed"), std),
            "o_proj": _stacked(config, "self_attn.o_proj", ("embed", "heads"), out),
        }

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
        query = rotate(self.project(x, "q_proj", segments).reshape(B, T, N, H), *rope)
        key = rotate(self.project(x, "k_proj", segments).reshape(B, T, K, H), *rope)
        value = self.project(x, "v_proj", segments).reshape(B, T, K, H)
        key, value = self.remember(key, "key", start), self.remember(value, "value", start)
        out = attend(query, key, value, segments, self.compute.attention, self.compute.block, start)
        return self.project(out.reshape(B, T, N * H), "o_proj", segments)


class Mlp(_Declared):
    """SwiGLU: down(silu(gate x) * up x)."""

    @staticmethod
    def declare(config: LlamaConfig) -> dict[str, Parameter]:
        """Return the three projections."""
        std, out = config.std, config.std / math.sqrt(2 * config.layers)
        return {
            "gate_proj": _stacked(config, "mlp.gate_proj", ("mlp", "embed"), std),
            "up_proj": _stacked(config, "mlp.up_proj", ("mlp", "embed"), std),
            "down_proj": _stacked(config, "mlp.down_proj", ("embed", "mlp"), out),
        }

    @nn.compact
    def __call__(self, x: jax.Array, segments: jax.Array) -> jax.Array:
        """Map [B, T, D] to [B, T, D]."""
        hidden = nn.silu(self.project(x, "gate_proj", segments)) * self.project(x, "up_proj", segments)
        out = self.project(hidden, "down_proj", segments)
        self.peak(hidden, "down_in", segments)
        self.peak(out, "down_out", segments)
        return out


class Layer(_Declared):
    """One decoder layer: x + attention(norm x), then x + mlp(norm x)."""

    @staticmethod
    def declare(config: LlamaConfig) -> dict[str, Parameter]:
        """Return the gains of the two norms."""
        return {
            "input_layernorm": _stacked(config, "input_layernorm", ("embed", ""), None),
            "post_attention_layernorm": _stacked(config, "post_attention_layernorm", ("embed", ""), None),
        }

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        segments: jax.Array,
        rope: tuple[jax.Array, jax.Array],
        start: jax.Array | None = None,
    ) -> tuple[jax.Array, None]:
        """Map [B, T, D] to ([B, T, D], nothing), the form that a scan over layers wants."""
        self.peak(x, "residual", segments)
        mixed = Attention(self.config, self.compute, name="self_attn")(
            self.norm(x, "input_layernorm", segments), segments, rope, start
        )
        x = meshes.constrain(x + mixed, "batch", "tokens", "features")
        mapped = Mlp(self.config, self.compute, name="mlp")(
            self.norm(x, "post_attention_layernorm", segments), segments
        )
        return meshes.constrain(x + mapped, "batch", "tokens", "features"), None


class Llama(_Declared):
    """The decoder: tokens to the last hidden state, which `loss` meets with the head without building all logits."""

    @staticmethod
    def declare(config: LlamaConfig) -> dict[str, Parameter]:
        """Return the embedding, the last norm and, when untied, the head."""
        table = ((config.vocab, config.embed), ("vocab", "embed"), config.std)
        outer = {
            "embed_tokens": Parameter("model.embed_tokens.weight", *table),
            "norm": Parameter("model.norm.weight", (config.embed,), ("embed",), None),
        }
        return outer if config.tied else outer | {"lm_head": Parameter("lm_head.weight", *table)}

    @nn.compact
    def __call__(self, tokens: jax.Array, segments: jax.Array, start: jax.Array | None = None) -> jax.Array:
        """Map int32 [B, T] tokens and documents to the normed hidden state [B, T, D] in the compute dtype.

        Collections, all optional: "inputs" and "peaks" gather, "limits" clips, "slopes" take the gradients of their
        weights, "cache" keeps keys and values. With `start`, int32 [B], the tokens of each sample are its one
        document's from position `start` on, and the cache holds those before.
        """
        # Each device looks up its part of the embed axis for all samples, then the parts change places: with whole rows
        # the whole table, and its gradient, would lie on every device.
        x = jnp.take(self.weight("embed_tokens"), meshes.constrain(tokens, "copies", "tokens"), axis=0)
        x = meshes.constrain(x, "copies", "tokens", "embed")
        x = meshes.constrain(x, "batch", "tokens", "features")
        layer: Any = Layer
        if REMAT[self.compute.remat] is not None:
            layer = nn.remat(Layer, policy=REMAT[self.compute.remat], prevent_cse=False)
        stack = nn.scan(
            layer,
            variable_axes={"params": 0, "inputs": 0, "peaks": 0, "limits": 0, "cache": 0, "slopes": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, nn.broadcast, nn.broadcast),
            length=self.config.layers,
            unroll=self.compute.unroll,
        )
        rope = angles(self.config, tokens.shape[1], start)
        x, _ = stack(self.config, self.compute, name="layers")(x, segments, rope, start)
        self.peak(x, "residual", segments)
        if not self.config.tied:
            self.weight("lm_head")  # declared with the others; `loss` applies it
        return self.norm(x, "norm", segments)


def declare(config: LlamaConfig) -> Tree:
    """Return every parameter of the model: the one declaration, in the structure of the parameter tree."""
    layers = Layer.declare(config) | {"self_attn": Attention.declare(config), "mlp": Mlp.declare(config)}
    return Llama.declare(config) | {"layers": layers}


def head(params: Mapping[str, Any]) -> jax.Array:
    """Return the [V, D] matrix from hidden state to logits: the head, or the embedding that stands in for it."""
    table: jax.Array = params["lm_head"] if "lm_head" in params else params["embed_tokens"]
    return table


# Keys of a Hugging Face config that change nothing here: names, training, serving, generation.
INERT = frozenset(
    """architectures model_type torch_dtype dtype transformers_version _name_or_path name_or_path use_cache pad_token_id
    bos_token_id eos_token_id is_llama_config return_dict output_hidden_states output_attentions tokenizer_class
    pretraining_tp id2label label2id problem_type task_specific_params chunk_size_feed_forward is_encoder_decoder
    _attn_implementation _attn_implementation_autoset transformers.js_config unsloth_version unsloth_fixed
    max_sequence_length vocab_type license finetuning_task""".split()  # noqa: SIM905
)
# Keys whose value must be this one: any other changes the maths in a way that the decoder above does not have.
FIXED = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "attention_dropout": 0.0,
    "sliding_window": None,
    "rope_interleaved": False,
    "partial_rotary_factor": 1.0,
}
_ROPE_KEYS = {
    "default": set(),
    "linear": {"factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
}


def parse(raw: Mapping[str, Any]) -> LlamaConfig:
    """Return the config that a Hugging Face `config.json` describes (both the old and the version-5 rope keys).

    Raises:
      ValueError: a key is missing, or is unknown and might change the maths, or asks for maths that is not here.
    """
    rest = dict(raw)
    wrong = [
        f"{key} = {rest[key]!r} (supported: {value!r})"
        for key, value in FIXED.items()
        if key in rest and rest[key] != value
    ]
    if wrong:
        raise ValueError(f"this LLaMA config asks for maths that is not implemented: {'; '.join(wrong)}")
    for key in FIXED:
        rest.pop(key, None)

    def take(key: str, default: Any = None) -> Any:
        value = rest.pop(key, None)
        if value is None and default is None:
            raise ValueError(f"config.json has no {key!r}: it does not describe a LLaMA model")
        return default if value is None else value

    heads, embed = int(take("num_attention_heads")), int(take("hidden_size"))
    context = int(take("max_position_embeddings", 2048))
    theta, scaling = _rope(rest, context)
    config = LlamaConfig(
        vocab=int(take("vocab_size")),
        embed=embed,
        mlp=int(take("intermediate_size")),
        layers=int(take("num_hidden_layers")),
        heads=heads,
        kv_heads=int(take("num_key_value_heads", heads)),
        head_dim=int(take("head_dim", embed // heads)),
        context=context,
        eps=float(take("rms_norm_eps", 1e-6)),
        rope_theta=theta,
        rope_scaling=scaling,
        tied=bool(take("tie_word_embeddings", False)),
        std=float(take("initializer_range", 0.02)),
    )
    unknown = sorted(key for key, value in rest.items() if key not in INERT and value is not None)
    if unknown:
        raise ValueError(
            f"config.json has keys that are not known here and might change the maths: {', '.join(unknown)}; "
            "if they change nothing, remove them from the file"
        )
    return config


def _rope(rest: dict[str, Any], context: int) -> tuple[float, RopeScaling | None]:
    """Take the rope keys out of `rest`: `rope_parameters` (transformers 5), or `rope_theta` with `rope_scaling`."""
    new, old = rest.pop("rope_parameters", None) or {}, rest.pop("rope_scaling", None) or {}
    plain = rest.pop("rope_theta", None)
    settings = dict(old) | dict(new)
    theta = float(settings.pop("rope_theta", plain if plain is not None else 10_000.0))
    kind = settings.pop("rope_type", None) or settings.pop("type", None) or "default"
    settings.pop("type", None)
    if settings.get("partial_rotary_factor") == 1.0:
        del settings["partial_rotary_factor"]
    if kind not in _ROPE_KEYS:
        raise ValueError(f"rope type {kind!r} is not implemented; supported: {', '.join(_ROPE_KEYS)}")
    given = {key for key, value in settings.items() if value is not None}
    if given != _ROPE_KEYS[kind]:
        raise ValueError(
            f"rope type {kind!r} needs the keys {sorted(_ROPE_KEYS[kind])}, the config has {sorted(given)}"
        )
    if kind == "default":
        return theta, None
    if kind == "linear":
        return theta, RopeScaling("linear", float(settings["factor"]), original_context=context)
    return theta, RopeScaling(
        kind="llama3",
        factor=float(settings["factor"]),
        low_frequency_factor=float(settings["low_freq_factor"]),
        high_frequency_factor=float(settings["high_freq_factor"]),
        original_context=int(settings["original_max_position_embeddings"]),
    )


def dump(config: LlamaConfig) -> dict[str, Any]:
    """Return the `config.json` of the config: `parse(dump(config)) == config`, and transformers reads it."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": config.rope_theta}
    scaling = config.rope_scaling
    if scaling is not None:
        rope |= {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling is not None and scaling.kind == "llama3":
        rope |= {
            "low_freq_factor": scaling.low_frequency_factor,
            "high_freq_factor": scaling.high_frequency_factor,
            "original_max_position_embeddings": scaling.original_context,
        }
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab,
        "hidden_size": config.embed,
        "intermediate_size": config.mlp,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.context,
        "rms_norm_eps": config.eps,
        "rope_parameters": rope,
        "tie_word_embeddings": config.tied,
        "initializer_range": config.std,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
    }


PRESETS: dict[str, LlamaConfig] = {
    # Small enough to score on a CPU in seconds, with every feature on: grouped heads, an untied head.
    "tiny": LlamaConfig(vocab=264, embed=64, mlp=128, layers=2, heads=4, kv_heads=2, head_dim=16, context=512, std=0.1),
    "smollm2-135m": LlamaConfig(
        vocab=49_152,
        embed=576,
        mlp=1536,
        layers=30,
        heads=9,
        kv_heads=3,
        head_dim=64,
        context=8192,
        rope_theta=100_000.0,
        tied=True,
        std=0.041666666666666664,
    ),
    "llama2-7b": LlamaConfig(
        vocab=32_000, embed=4096, mlp=11_008, layers=32, heads=32, kv_heads=32, head_dim=128, context=4096
    ),
    "llama2-13b": LlamaConfig(
        vocab=32_000, embed=5120, mlp=13_824, layers=40, heads=40, kv_heads=40, head_dim=128, context=4096
    ),
    "llama2-70b": LlamaConfig(
        vocab=32_000, embed=8192, mlp=28_672, layers=80, heads=64, kv_heads=8, head_dim=128, context=4096
    ),
}
