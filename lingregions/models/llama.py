"""LLaMA 1, 2 and 3, SmolLM2: the shared decoder as it is; the reference is transformers' LlamaForCausalLM."""

from collections.abc import Mapping
from typing import Any

from lingregions.models.config import DecoderConfig, RotaryScaling, Variant
from lingregions.models.config_json import Fields, common


def _parse(raw: Mapping[str, Any]) -> DecoderConfig:
    """Return the config that a Hugging Face `config.json` describes (both the old and the version-5 rope keys).

    Raises:
      ValueError: a key is missing, or is unknown and might change the maths, or asks for maths that is not here.
    """
    fields = Fields(raw, "LLaMA")
    fields.require(hidden_act="silu")
    return fields.config(family="llama")


def _dump(config: DecoderConfig) -> dict[str, Any]:
    """Return the `config.json` of the config: which `_parse` turns back into it, and transformers reads it."""
    inert = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
    return common(config, "LlamaForCausalLM") | inert


_PRESETS: dict[str, DecoderConfig] = {
    # Small enough to score on a CPU in seconds, with every feature on: grouped heads, an untied head.
    "tiny": DecoderConfig(
        vocab=264, embed=64, mlp=128, layers=2, heads=4, kv_heads=2, head_dim=16, context=512, std=0.1
    ),
    # What `package:lingregions` is: 15.4 million parameters, a third of them the embedding.
    "thirty": DecoderConfig(
        vocab=16_384, embed=320, mlp=896, layers=8, heads=5, kv_heads=5, head_dim=64, context=1024, tied=True
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
    "llama3.2-1b": DecoderConfig(
        vocab=128_256,
        embed=2048,
        mlp=8192,
        layers=16,
        heads=32,
        kv_heads=8,
        head_dim=64,
        context=131_072,
        rope_theta=500_000.0,
        rope_scaling=RotaryScaling("llama3", 32.0, 1.0, 4.0, 8192),
        tied=True,
    ),
    "llama3.1-8b": DecoderConfig(
        vocab=128_256,
        embed=4096,
        mlp=14_336,
        layers=32,
        heads=32,
        kv_heads=8,
        head_dim=128,
        context=131_072,
        rope_theta=500_000.0,
        rope_scaling=RotaryScaling("llama3", 8.0, 1.0, 4.0, 8192),
    ),
}

VARIANT = Variant(_parse, _dump, _PRESETS)
