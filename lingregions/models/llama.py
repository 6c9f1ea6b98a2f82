"""LLaMA: the shared decoder as it is; the reference are logits and gradients of transformers' LlamaForCausalLM."""

from collections.abc import Mapping
from typing import Any

from lingregions.models.config import DecoderConfig, RotaryScaling

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


def parse(raw: Mapping[str, Any]) -> DecoderConfig:
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
    config = DecoderConfig(
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


def _rope(rest: dict[str, Any], context: int) -> tuple[float, RotaryScaling | None]:
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
        return theta, RotaryScaling("linear", float(settings["factor"]), original_context=context)
    return theta, RotaryScaling(
        kind="llama3",
        factor=float(settings["factor"]),
        low_frequency_factor=float(settings["low_freq_factor"]),
        high_frequency_factor=float(settings["high_freq_factor"]),
        original_context=int(settings["original_max_position_embeddings"]),
    )


def dump(config: DecoderConfig) -> dict[str, Any]:
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


PRESETS: dict[str, DecoderConfig] = {
    # Small enough to score on a CPU in seconds, with every feature on: grouped heads, an untied head.
    "tiny": DecoderConfig(
        vocab=264, embed=64, mlp=128, layers=2, heads=4, kv_heads=2, head_dim=16, context=512, std=0.1
    ),
    "smollm2-135m": DecoderConfig(
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
    "llama2-7b": DecoderConfig(
        vocab=32_000, embed=4096, mlp=11_008, layers=32, heads=32, kv_heads=32, head_dim=128, context=4096
    ),
    "llama2-13b": DecoderConfig(
        vocab=32_000, embed=5120, mlp=13_824, layers=40, heads=40, kv_heads=40, head_dim=128, context=4096
    ),
    "llama2-70b": DecoderConfig(
        vocab=32_000, embed=8192, mlp=28_672, layers=80, heads=64, kv_heads=8, head_dim=128, context=4096
    ),
}
