"""Qwen2 and Qwen2.5: biases on q, k and v, and a window in the upper layers if it is switched on.

The reference is transformers' Qwen2ForCausalLM.
"""

from collections.abc import Mapping
from typing import Any

from lingregions.models.config import DecoderConfig, Variant
from lingregions.models.config_json import KINDS, Fields, common, dump_kinds


def windows(fields: Fields) -> dict[str, Any]:
    """Take the keys of the window of Qwen 2 and 3: which layers have it, and how large it is."""
    used, size = bool(fields.maybe("use_sliding_window")), fields.maybe("sliding_window")
    first, count = fields.take("max_window_layers", 28), int(fields.rest.get("num_hidden_layers") or 0)
    local = fields.layers("layer_types", KINDS, count) or tuple(layer >= first for layer in range(count))
    return {"window": size, "local": local} if used and size is not None and any(local) else {}


def dump_windows(config: DecoderConfig) -> dict[str, Any]:
    """Return the keys that `windows` takes."""
    if config.window is None:
        return {"use_sliding_window": False, "sliding_window": None}
    return {"use_sliding_window": True, "sliding_window": config.window, "layer_types": dump_kinds(config)}


def _parse(raw: Mapping[str, Any]) -> DecoderConfig:
    """Return the config that a Hugging Face `config.json` describes.

    Raises:
      ValueError: as `llama` does.
    """
    fields = Fields(raw, "Qwen2")
    found = windows(fields)
    fields.require(hidden_act="silu")
    return fields.config(family="qwen2", biases=("q", "k", "v"), **found)


def _dump(config: DecoderConfig) -> dict[str, Any]:
    """Return the `config.json` of the config."""
    return common(config, "Qwen2ForCausalLM") | {"hidden_act": "silu"} | dump_windows(config)


_PRESETS: dict[str, DecoderConfig] = {
    "qwen2.5-0.5b": DecoderConfig(
        family="qwen2",
        vocab=151_936,
        embed=896,
        mlp=4864,
        layers=24,
        heads=14,
        kv_heads=2,
        head_dim=64,
        context=32_768,
        eps=1e-6,
        rope_theta=1_000_000.0,
        tied=True,
        biases=("q", "k", "v"),
    ),
    "qwen2.5-7b": DecoderConfig(
        family="qwen2",
        vocab=152_064,
        embed=3584,
        mlp=18_944,
        layers=28,
        heads=28,
        kv_heads=4,
        head_dim=128,
        context=131_072,
        eps=1e-6,
        rope_theta=1_000_000.0,
        biases=("q", "k", "v"),
    ),
}

VARIANT = Variant(_parse, _dump, _PRESETS)
