"""Mistral: the shared decoder with one window for all layers; the reference is transformers' MistralForCausalLM."""

from collections.abc import Mapping
from typing import Any

from lingregions.models.config import DecoderConfig, Variant
from lingregions.models.config_json import Fields, common


def _parse(raw: Mapping[str, Any]) -> DecoderConfig:
    """Return the config that a Hugging Face `config.json` describes.

    Raises:
      ValueError: as `llama` does.
    """
    fields = Fields(raw, "Mistral")
    window = fields.maybe("sliding_window")
    fields.require(hidden_act="silu")
    return fields.config(family="mistral", window=window)


def _dump(config: DecoderConfig) -> dict[str, Any]:
    """Return the `config.json` of the config."""
    return common(config, "MistralForCausalLM") | {"hidden_act": "silu", "sliding_window": config.window}


_PRESETS: dict[str, DecoderConfig] = {
    "mistral-7b": DecoderConfig(
        family="mistral",
        vocab=32_000,
        embed=4096,
        mlp=14_336,
        layers=32,
        heads=32,
        kv_heads=8,
        head_dim=128,
        context=32_768,
        window=4096,
    ),
}

VARIANT = Variant(_parse, _dump, _PRESETS)
