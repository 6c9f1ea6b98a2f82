"""config.json of Hugging Face: what the families have in common when they read and write one.

Every key is taken once. What is left over and is not known to change nothing is refused by name, for it might be
maths that the decoder does not have.
"""

import math
from collections.abc import Mapping
from typing import Any

from lingregions.models.config import DecoderConfig, RotaryScaling

# Keys that change nothing here: names, training, serving, generation; `source` refuses what is quantised.
_INERT = frozenset(
    """architectures model_type torch_dtype dtype transformers_version _name_or_path name_or_path use_cache pad_token_id
    bos_token_id eos_token_id is_llama_config return_dict output_hidden_states output_attentions tokenizer_class
    pretraining_tp id2label label2id problem_type task_specific_params chunk_size_feed_forward is_encoder_decoder
    _attn_implementation _attn_implementation_autoset transformers.js_config unsloth_version unsloth_fixed
    max_length min_length do_sample temperature top_p top_k typical_p num_beams num_beam_groups diversity_penalty
    repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size early_stopping bad_words_ids
    num_return_sequences max_new_tokens return_dict_in_generate output_scores forced_bos_token_id forced_eos_token_id
    remove_invalid_values exponential_decay_length_penalty suppress_tokens begin_suppress_tokens
    max_sequence_length vocab_type license finetuning_task cache_implementation auto_map resid_pdrop embd_pdrop
    _sliding_window_pattern quantization_config""".split()  # noqa: SIM905
)
# Keys whose value must be this one: any other changes the maths in a way that the decoder does not have.
_FIXED: dict[str, Any] = {
    "attention_dropout": 0.0,
    "attention_bias": False,
    "mlp_bias": False,
    "sliding_window": None,
    "rope_interleaved": False,
    "partial_rotary_factor": 1.0,
}
# By kind of scaling: keys that it needs, and those that it may have.
_ROTARY = {
    "default": ((), ()),
    "linear": (("factor",), ()),
    "dynamic": (("factor",), ("original_max_position_embeddings",)),
    "llama3": (("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"), ()),
    "yarn": (
        ("factor",),
        (
            "original_max_position_embeddings",
            "attention_factor",
            "beta_fast",
            "beta_slow",
            "mscale",
            "mscale_all_dim",
            "truncate",
        ),
    ),
    "longrope": (("short_factor", "long_factor"), ("original_max_position_embeddings", "factor", "attention_factor")),
}


class Fields:
    """The keys of one config.json, each taken once."""

    def __init__(self, raw: Mapping[str, Any], name: str) -> None:
        """Take the keys of `raw`; `name` is the family's, for messages."""
        self.rest, self.name = dict(raw), name

    def take(self, key: str, default: Any = None) -> Any:
        """Return the value of a key, or the default where it has none.

        Raises:
          ValueError: it has none, and there is no default.
        """
        value = self.rest.pop(key, None)
        if value is None and default is None:
            raise ValueError(f"config.json has no {key!r}: it does not describe a {self.name} model")
        return default if value is None else value

    def maybe(self, key: str) -> Any:
        """Return the value of a key, None where it has none."""
        return self.rest.pop(key, None)

    def require(self, **values: Any) -> None:
        """Take `_FIXED` and these keys.

        Raises:
          ValueError: one has another value than this.
        """
        expected = {key: value for key, value in (_FIXED | values).items() if key in self.rest}
        given = {key: self.rest.pop(key) for key in expected}
        wrong = [
            f"{key} = {given[key]!r} (supported: {value!r})" for key, value in expected.items() if given[key] != value
        ]
        if wrong:
            raise ValueError(f"this {self.name} config asks for maths that is not implemented: {'; '.join(wrong)}")

    def layers(self, key: str, meaning: Mapping[Any, bool], count: int) -> tuple[bool, ...]:
        """Return what a list with one entry a layer says of each; empty where it says no of all, or there is none.

        Raises:
          ValueError: another number of layers, or a word without a meaning.
        """
        given = self.maybe(key)
        if given is None:
            return ()
        if not isinstance(given, list) or len(given) != count or any(each not in meaning for each in given):
            raise ValueError(
                f"config.json: {key} must hold {' or '.join(map(str, meaning))} for each of {count} layers"
            )
        found = tuple(meaning[each] for each in given)
        return found if any(found) else ()

    def _rotary(self, context: int, theta: float = 10_000.0) -> dict[str, Any]:
        """Take the rotary keys: `rope_parameters` (transformers 5), or `rope_theta` with `rope_scaling`."""
        given = {**(self.maybe("rope_scaling") or {}), **(self.maybe("rope_parameters") or {})}
        plain, original = self.maybe("rope_theta"), self.maybe("original_max_position_embeddings")
        given.setdefault("rope_theta", theta if plain is None else plain)
        base, scaling = rotary(given, context, original)
        return {"rope_theta": base, "rope_scaling": scaling}

    def config(self, theta: float = 10_000.0, **differences: Any) -> DecoderConfig:
        """Return the config of the keys that all families have, and what differs.

        Raises:
          ValueError: a key is missing, or is unknown and might change the maths.
        """
        heads, embed = int(self.take("num_attention_heads")), int(self.take("hidden_size"))
        context = int(self.take("max_position_embeddings", 2048))
        common = self._rotary(context, theta) if "rope_theta" not in differences else {}
        common |= {
            "vocab": int(self.take("vocab_size")),
            "embed": embed,
            "mlp": int(self.take("intermediate_size")),
            "layers": int(self.take("num_hidden_layers")),
            "heads": heads,
            "kv_heads": int(self.take("num_key_value_heads", heads)),
            "head_dim": int(self.take("head_dim", embed // heads)),
            "context": context,
            "eps": float(self.take("rms_norm_eps", 1e-6)),
            "tied": bool(self.take("tie_word_embeddings", False)),
            "std": float(self.take("initializer_range", 0.02)),
        }
        config = DecoderConfig(**common | differences)
        unknown = sorted(key for key, value in self.rest.items() if key not in _INERT and value is not None)
        if unknown:
            raise ValueError(
                f"config.json has keys that are not known here and might change the maths: {', '.join(unknown)}; "
                "if they change nothing, remove them from the file"
            )
        return config


def rotary(given: Mapping[str, Any], context: int, original: int | None = None) -> tuple[float, RotaryScaling | None]:
    """Return the base and the scaling of one set of rotary keys.

    Args:
      given: `rope_theta`, `rope_type` (or `type`), and the keys of that type.
      context: of the config.
      original: the original context, where the config says it outside of these keys.

    Raises:
      ValueError: a kind that is not implemented, keys that it lacks or has not, or no base.
    """
    rest = {key: value for key, value in given.items() if value is not None}
    if "rope_theta" not in rest:
        raise ValueError("the rotary keys have no rope_theta, the base of the frequencies")
    theta = float(rest.pop("rope_theta"))
    old, kind = rest.pop("type", None), rest.pop("rope_type", None)
    kind = kind or old or "default"
    if rest.get("partial_rotary_factor") == 1.0:
        del rest["partial_rotary_factor"]
    if kind not in _ROTARY:
        raise ValueError(f"rope type {kind!r} is not implemented; supported: {', '.join(_ROTARY)}")
    needed, allowed = _ROTARY[kind]
    if not set(needed) <= rest.keys() <= {*needed, *allowed}:
        raise ValueError(f"rope type {kind!r} needs the keys {sorted(needed)}, the config has {sorted(rest)}")
    return theta, None if kind == "default" else _scaling(kind, rest, context, original or context)


def _scaling(kind: str, given: Mapping[str, Any], context: int, original: int) -> RotaryScaling:
    own = int(given.get("original_max_position_embeddings", original))
    if kind in ("linear", "dynamic"):
        return RotaryScaling(kind, float(given["factor"]), original_context=context)
    factor = float(given.get("factor", context / own))
    if kind == "llama3":
        return RotaryScaling(kind, factor, float(given["low_freq_factor"]), float(given["high_freq_factor"]), own)
    if kind == "longrope":
        stretched = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(own))
        sides = (tuple(map(float, given[key])) for key in ("short_factor", "long_factor"))
        short, long = sides
        attention = float(given.get("attention_factor", stretched))
        return RotaryScaling(kind, factor, original_context=own, attention_factor=attention, short=short, long=long)
    parts = [given.get(key, 0.0) for key in ("mscale", "mscale_all_dim")]
    above, below = (
        0.1 * part * math.log(factor) + 1 if factor > 1 else 1.0 for part in (parts if all(parts) else (1, 0))
    )
    return RotaryScaling(
        kind,
        factor,
        original_context=own,
        attention_factor=float(given.get("attention_factor", above / below)),
        fast=float(given.get("beta_fast", 32.0)),
        slow=float(given.get("beta_slow", 1.0)),
        truncate=bool(given.get("truncate", True)),
    )


def dump_rotary(theta: float, scaling: RotaryScaling | None) -> dict[str, Any]:
    """Return one set of rotary keys: the inverse of `rotary`."""
    if scaling is None:
        return {"rope_type": "default", "rope_theta": theta}
    found: dict[str, Any] = {"rope_type": scaling.kind, "rope_theta": theta, "factor": scaling.factor}
    original = {"original_max_position_embeddings": scaling.original_context}
    if scaling.kind == "llama3":
        found |= {"low_freq_factor": scaling.low_frequency_factor, "high_freq_factor": scaling.high_frequency_factor}
        return found | original
    if scaling.kind in ("yarn", "longrope"):
        found |= original | {"attention_factor": scaling.attention_factor}
    if scaling.kind == "yarn":
        found |= {"beta_fast": scaling.fast, "beta_slow": scaling.slow, "truncate": scaling.truncate}
    if scaling.kind == "longrope":
        found |= {"short_factor": list(scaling.short), "long_factor": list(scaling.long)}
    return found


def common(config: DecoderConfig, architecture: str) -> dict[str, Any]:
    """Return the keys that all families have; `architecture` is the name of transformers' class."""
    return {
        "architectures": [architecture],
        "model_type": config.family,
        "vocab_size": config.vocab,
        "hidden_size": config.embed,
        "intermediate_size": config.mlp,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.context,
        "rms_norm_eps": config.eps,
        "rope_parameters": dump_rotary(config.rope_theta, config.rope_scaling),
        "tie_word_embeddings": config.tied,
        "initializer_range": config.std,
        "attention_dropout": 0.0,
    }


KINDS = {"sliding_attention": True, "full_attention": False}


def dump_kinds(config: DecoderConfig) -> list[str]:
    """Return `layer_types`: the kind of attention of each layer."""
    return [
        "full_attention" if config.kind(layer).window is None else "sliding_attention" for layer in range(config.layers)
    ]
