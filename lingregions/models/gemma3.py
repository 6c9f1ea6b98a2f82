"""Gemma 3, its text: Gemma 2 with norms of queries and keys instead of caps, and a rotary base for local layers.

The reference is transformers' Gemma3ForCausalLM.
"""

from collections.abc import Mapping
from typing import Any

from lingregions.models.config import DecoderConfig, RotaryScaling, Variant
from lingregions.models.config_json import Fields, dump_rotary, rotary
from lingregions.models.gemma2 import SHARED, dump_shared, shared


def _parse(raw: Mapping[str, Any]) -> DecoderConfig:
    """Return the config that a Hugging Face `config.json` describes (both the old and the version-5 rope keys).

    Raises:
      ValueError: as `llama` does.
    """
    fields = Fields(raw, "Gemma 3")
    context = int(fields.rest.get("max_position_embeddings") or 131_072)
    fields.rest["max_position_embeddings"] = context
    kinds = fields.maybe("rope_parameters") or {}
    plain, local = fields.take("rope_theta", 1_000_000.0), fields.take("rope_local_base_freq", 10_000.0)
    near = {"rope_theta": local} | dict(kinds.get("sliding_attention") or {})
    far = {"rope_theta": plain} | dict(fields.maybe("rope_scaling") or {}) | dict(kinds.get("full_attention") or {})
    base, scaling = rotary(near, context)
    if scaling is not None:
        raise ValueError("this Gemma 3 config scales the rotary frequencies of its local layers: not implemented")
    theta, stretched = rotary(far, context)
    how: dict[str, Any] = {"rope_theta": theta, "rope_scaling": stretched, "local_theta": base, "qk_norm": "head"}
    return fields.config(family="gemma3_text", **how, **shared(fields, 6))


def _dump(config: DecoderConfig) -> dict[str, Any]:
    """Return the `config.json` of the config."""
    local = config.rope_theta if config.local_theta is None else config.local_theta
    rope = {
        "full_attention": dump_rotary(config.rope_theta, config.rope_scaling),
        "sliding_attention": dump_rotary(local, None),
    }
    return dump_shared(config, "Gemma3ForCausalLM") | {"rope_parameters": rope}


def _preset(**sizes: Any) -> DecoderConfig:
    local = tuple((layer + 1) % 6 > 0 for layer in range(sizes["layers"]))
    shape = {"vocab": 262_144, "head_dim": 256, "context": 32_768, "eps": 1e-6, "tied": True}
    how = {"rope_theta": 1_000_000.0, "local_theta": 10_000.0, "qk_norm": "head", "attention_scale": 256**-0.5}
    return DecoderConfig(family="gemma3_text", local=local, **shape | how | SHARED | sizes)


_PRESETS: dict[str, DecoderConfig] = {
    "gemma3-270m": _preset(embed=640, mlp=2048, layers=18, heads=4, kv_heads=1, window=512),
    "gemma3-1b": _preset(embed=1152, mlp=6912, layers=26, heads=4, kv_heads=1, window=512),
    "gemma3-4b": _preset(
        vocab=262_208,
        embed=2560,
        mlp=10_240,
        layers=34,
        heads=8,
        kv_heads=4,
        window=1024,
        context=131_072,
        rope_scaling=RotaryScaling("linear", 8.0, original_context=131_072),
    ),
}

VARIANT = Variant(_parse, _dump, _PRESETS)
