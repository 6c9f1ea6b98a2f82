"""Qwen3: a norm of each head's query and key, and no biases; the reference is transformers' Qwen3ForCausalLM."""

from collections.abc import Mapping
from typing import Any

from lingregions.models.config import DecoderConfig, Variant
from lingregions.models.config_json import Fields, common
from lingregions.models.qwen2 import dump_windows, windows


def _parse(raw: Mapping[str, Any]) -> DecoderConfig:
    """Return the config that a Hugging Face `config.json` describes.

    Raises:
      ValueError: as `llama` does.
    """
    fields = Fields(raw, "Qwen3")
    found = windows(fields)
    fields.require(hidden_act="silu")
    return fields.config(family="qwen3", qk_norm="head", **found)


def _dump(config: DecoderConfig) -> dict[str, Any]:
    """Return the `config.json` of the config."""
    inert = {"hidden_act": "silu", "attention_bias": False}
    return common(config, "Qwen3ForCausalLM") | inert | dump_windows(config)


_PRESETS: dict[str, DecoderConfig] = {
    "qwen3-0.6b": DecoderConfig(
        family="qwen3",
        vocab=151_936,
        embed=1024,
        mlp=3072,
        layers=28,
        heads=16,
        kv_heads=8,
        head_dim=128,
        context=40_960,
        eps=1e-6,
        rope_theta=1_000_000.0,
        tied=True,
        qk_norm="head",
    ),
}

VARIANT = Variant(_parse, _dump, _PRESETS)
