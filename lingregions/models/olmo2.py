"""OLMo 2: norms after attention and MLP, and of all queries and keys together; no norm before.

The reference is transformers' Olmo2ForCausalLM.
"""

from collections.abc import Mapping
from typing import Any

from lingregions.models.config import DecoderConfig, Variant
from lingregions.models.config_json import Fields, common


def _parse(raw: Mapping[str, Any]) -> DecoderConfig:
    """Return the config that a Hugging Face `config.json` describes.

    Raises:
      ValueError: as `llama` does.
    """
    fields = Fields(raw, "OLMo 2")
    fields.require(hidden_act="silu")
    fields.rest.setdefault("rms_norm_eps", 1e-5)
    return fields.config(family="olmo2", norms="after", qk_norm="whole")


def _dump(config: DecoderConfig) -> dict[str, Any]:
    """Return the `config.json` of the config."""
    return common(config, "Olmo2ForCausalLM") | {"hidden_act": "silu", "attention_bias": False}


_PRESETS: dict[str, DecoderConfig] = {
    "olmo2-1b": DecoderConfig(
        family="olmo2",
        vocab=100_352,
        embed=2048,
        mlp=8192,
        layers=16,
        heads=16,
        kv_heads=16,
        head_dim=128,
        context=4096,
        eps=1e-6,
        rope_theta=500_000.0,
        norms="after",
        qk_norm="whole",
    ),
}

VARIANT = Variant(_parse, _dump, _PRESETS)
