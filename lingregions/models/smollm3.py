"""SmolLM3: every fourth layer has no rotary positions; the reference is transformers' SmolLM3ForCausalLM."""

from collections.abc import Mapping
from typing import Any

from lingregions.models.config import DecoderConfig, Variant
from lingregions.models.config_json import KINDS, Fields, common, dump_kinds


def _parse(raw: Mapping[str, Any]) -> DecoderConfig:
    """Return the config that a Hugging Face `config.json` describes.

    Raises:
      ValueError: as `llama` does.
    """
    fields = Fields(raw, "SmolLM3")
    count, interval = int(fields.rest.get("num_hidden_layers") or 0), int(fields.take("no_rope_layer_interval", 4))
    fields.rest.setdefault("no_rope_layers", [int((layer + 1) % interval != 0) for layer in range(count)])
    unrotated = fields.layers("no_rope_layers", {1: False, 0: True}, count)
    used, size = bool(fields.maybe("use_sliding_window")), fields.maybe("sliding_window")
    local = fields.layers("layer_types", KINDS, count) or unrotated
    fields.require(hidden_act="silu")
    found = {"window": size, "local": local} if used and size is not None and any(local) else {}
    tied = bool(fields.take("tie_word_embeddings", True))
    return fields.config(2_000_000.0, family="smollm3", unrotated=unrotated, tied=tied, **found)


def _dump(config: DecoderConfig) -> dict[str, Any]:
    """Return the `config.json` of the config."""
    rotated = [int(not each) for each in config.unrotated] or [1] * config.layers
    window = {"use_sliding_window": config.window is not None, "sliding_window": config.window}
    # transformers' own default of the padding is a token that a smaller vocabulary does not have.
    inert = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "pad_token_id": None}
    layers = {"no_rope_layers": rotated, "layer_types": dump_kinds(config)}
    return common(config, "SmolLM3ForCausalLM") | inert | window | layers


_PRESETS: dict[str, DecoderConfig] = {
    "smollm3-3b": DecoderConfig(
        family="smollm3",
        vocab=128_256,
        embed=2048,
        mlp=11_008,
        layers=36,
        heads=16,
        kv_heads=4,
        head_dim=128,
        context=65_536,
        eps=1e-6,
        rope_theta=5_000_000.0,
        tied=True,
        unrotated=(False, False, False, True) * 9,
    ),
}

VARIANT = Variant(_parse, _dump, _PRESETS)
