"""Phi-3: files hold q, k and v in one tensor, and gate and up in another; long contexts by longrope.

Here they are parted, so that a region of q is one as in every family. The reference is transformers' Phi3ForCausalLM.
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
    fields = Fields(raw, "Phi-3")
    window = fields.maybe("sliding_window")
    fields.require(hidden_act="silu")
    fields.rest.setdefault("rms_norm_eps", 1e-5)
    scaling = dict(fields.maybe("rope_scaling") or {})
    if scaling.get("type") in ("su", "yarn"):  # earlier names of longrope
        scaling["type"] = "longrope"
    fields.rest["rope_scaling"] = scaling
    return fields.config(family="phi3", window=window, fused=True)


def _dump(config: DecoderConfig) -> dict[str, Any]:
    """Return the `config.json` of the config."""
    original = config.context if config.rope_scaling is None else config.rope_scaling.original_context
    # transformers' own default of the padding is a token that a smaller vocabulary does not have.
    inert = {"hidden_act": "silu", "pad_token_id": None}
    how = {"sliding_window": config.window, "original_max_position_embeddings": original}
    return common(config, "Phi3ForCausalLM") | inert | how


_PRESETS: dict[str, DecoderConfig] = {
    "phi3-mini-4k": DecoderConfig(
        family="phi3",
        vocab=32_064,
        embed=3072,
        mlp=8192,
        layers=32,
        heads=32,
        kv_heads=32,
        head_dim=96,
        context=4096,
        window=2047,
        fused=True,
    ),
}

VARIANT = Variant(_parse, _dump, _PRESETS)
