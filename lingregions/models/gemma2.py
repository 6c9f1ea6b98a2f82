"""Gemma 2: 1 + w norms around attention and MLP, a GELU gate, every other layer local, capped logits.

The reference is transformers' Gemma2ForCausalLM. Embeddings are multiplied by D^1/2. A gain w of 0 is the gain 1: what
removes a channel is w = -1, as `Parameter.offset` declares.
"""

from collections.abc import Mapping
from typing import Any

from lingregions.models.config import DecoderConfig, Variant
from lingregions.models.config_json import KINDS, Fields, common, dump_kinds

SHARED: dict[str, Any] = {"activation": "gelu", "norms": "around", "norm_offset": 1.0, "scaled_embedding": True}
_GELU = "gelu_pytorch_tanh"


def shared(fields: Fields, pattern: int) -> dict[str, Any]:
    """Take the keys that Gemma 2 and 3 have beyond the common ones; each `pattern`-th layer is global by default."""
    count = int(fields.rest.get("num_hidden_layers") or 0)
    pattern = int(fields.take("sliding_window_pattern", pattern))
    local = fields.layers("layer_types", KINDS, count) or tuple((layer + 1) % pattern > 0 for layer in range(count))
    window, both = fields.maybe("sliding_window"), "use_bidirectional_attention"
    fields.rest[both] = bool(fields.maybe(both))
    fields.require(hidden_activation=_GELU, hidden_act=_GELU, use_bidirectional_attention=False)
    return SHARED | {
        "window": window,
        "local": local,
        "attention_scale": float(fields.take("query_pre_attn_scalar", 256)) ** -0.5,
        "attention_softcap": fields.maybe("attn_logit_softcapping"),
        "logit_softcap": fields.maybe("final_logit_softcapping"),
        "tied": bool(fields.take("tie_word_embeddings", True)),
    }


def dump_shared(config: DecoderConfig, architecture: str) -> dict[str, Any]:
    """Return the keys of Gemma 2 and 3."""
    scale = config.head_dim if config.attention_scale is None else round(config.attention_scale**-2, 6)
    return common(config, architecture) | {
        "hidden_activation": _GELU,
        "attention_bias": False,
        "sliding_window": config.window,
        "layer_types": dump_kinds(config),
        "query_pre_attn_scalar": int(scale) if scale == int(scale) else scale,
        "attn_logit_softcapping": config.attention_softcap,
        "final_logit_softcapping": config.logit_softcap,
    }


def _parse(raw: Mapping[str, Any]) -> DecoderConfig:
    """Return the config that a Hugging Face `config.json` describes.

    Raises:
      ValueError: as `llama` does.
    """
    fields = Fields(raw, "Gemma 2")
    return fields.config(family="gemma2", **shared(fields, 2))


def _dump(config: DecoderConfig) -> dict[str, Any]:
    """Return the `config.json` of the config."""
    return dump_shared(config, "Gemma2ForCausalLM")


_PRESETS: dict[str, DecoderConfig] = {
    "gemma2-2b": DecoderConfig(
        family="gemma2",
        vocab=256_000,
        embed=2304,
        mlp=9216,
        layers=26,
        heads=8,
        kv_heads=4,
        head_dim=256,
        context=8192,
        eps=1e-6,
        tied=True,
        window=4096,
        local=(True, False) * 13,
        attention_scale=256**-0.5,
        attention_softcap=50.0,
        logit_softcap=30.0,
        **SHARED,
    ),
}

VARIANT = Variant(_parse, _dump, _PRESETS)
