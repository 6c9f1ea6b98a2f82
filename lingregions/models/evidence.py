"""Evidence: what the files, names and shapes of a checkpoint tell when they are not those of the expected model.

Everything is looked at before one thing is said: a missing head is no reason to tie it where a reward head lies beside
it, and a tensor of another shape none to blame the tokenizer where config.json is stale. Reads headers and JSON only.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lingregions.models.json_object import read_object

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
_ADAPTER = "adapter_config.json"
_QUANTISED = (
    "a quantised checkpoint, whose weights are no longer numbers to take apart: take the one before quantisation"
)
_MERGE = "merge them into the model first (peft's merge_and_unload), save it, and give that folder"

# What a name that does not belong tells about the checkpoint, the strongest evidence first.
_NAMES = (
    (r"qweight|qzeros|\.scales|\.SCB|absmax|weight_scale|weight_packed|quant_state|quant_map", _QUANTISED),
    (r"lora_|base_model\.|modules_to_save", f"these are adapter weights: {_MERGE}"),
    (
        r"_orig_mod\.",
        "the names have the prefix '_orig_mod.' of torch.compile: remove the prefix, or save the model that was "
        "compiled instead of the compiled one",
    ),
    (
        r"^(score|classifier|classification_head|v_head|value_head|reward_head|rm_head|regression_head|qa_outputs)\.",
        "it ends in the head of a classifier or reward model, not in that of a language model: take the language model "
        "that it was trained from",
    ),
    (r"qkv_proj|query_key_value|c_attn|W_pack|wqkv", "q, k and v are fused in one tensor: split them by rows first"),
    (r"gate_up_proj|c_fc", "gate and up are fused in one tensor: split it by rows first"),
    (r"\.bias$", "the layers have biases, which this architecture lacks"),
    (r"^(layers|embed_tokens|norm)\.", "the names lack 'model.': save the whole causal model, not its base"),
    (r"^(tok_embeddings|layers\.\d+\.attention\.w)", "the original LLaMA format: convert it to Hugging Face's first"),
    (r"[qk]_norm|pre_feedforward|post_feedforward", "another architecture: its norms are not those of the config"),
)


def refuse_config(folder: Path, raw: Mapping[str, Any]) -> None:
    """Refuse a config.json that says by itself why its weights cannot be used.

    Raises:
      ValueError: the weights are quantised.
    """
    method = raw.get("quantization_config") or raw.get("compression_config")
    if method:
        kind = method.get("quant_method") if isinstance(method, Mapping) else None
        raise ValueError(f"{folder}: {_QUANTISED} (config.json: quant_method {kind!r})")


def refuse_adapter(folder: Path) -> None:
    """Refuse a folder that holds an adapter and no model.

    Raises:
      ValueError: names the model that the adapter belongs to.
    """
    if (folder / _ADAPTER).is_file() and not ((folder / SINGLE).is_file() or (folder / INDEX).is_file()):
        base = read_object(folder / _ADAPTER).get("base_model_name_or_path")
        raise ValueError(f"{folder}: the weights of an adapter of {base or 'another model'}, not a model: {_MERGE}")


def no_weights(folder: Path) -> str:
    """Return the message for a folder with neither the single file of weights nor the index of shards."""
    pickles = sorted(file.name for ending in ("bin", "pt", "pth") for file in folder.glob(f"*.{ending}"))
    others = sorted(file.name for file in folder.glob("*.safetensors"))
    shards = [match for name in others if (match := re.fullmatch(r"(.+)-(\d+)-of-(\d+)\.safetensors", name))]
    if shards:
        return (
            f"{folder}: {len(shards)} of {int(shards[0][3])} shards are there, but not the index that says which "
            f"tensor lies in which: copy {INDEX} from where the shards come from"
        )
    if others:
        return f"{folder}: neither {SINGLE} nor {INDEX}; {others[0]} would have to be named {SINGLE}"
    if pickles:
        return (
            f"{folder}: weights only as pickles ({pickles[0]}), which can run any code when opened and are not read; "
            "convert once, where torch is installed: "
            "AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder)"
        )
    return f"{folder}: neither {SINGLE} nor {INDEX}"


def explain(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], layers: int) -> str | None:
    """Return the one thing that is wrong with tensors that are not those of the config, or None where nothing tells.

    Args:
      expected: shape of each tensor of the config, by name.
      found: shape of each tensor that is there.
      layers: what the config says.
    """
    missing, unexpected = expected.keys() - found.keys(), sorted(found.keys() - expected.keys())
    for pattern, text in _NAMES:
        if any(re.search(pattern, name) for name in unexpected):
            return text
    prefix = _prefix(missing, unexpected)
    if prefix:
        return f"the names have the prefix {prefix!r}, which a wrapper around the model put there: remove the prefix"
    if missing == {HEAD} and not unexpected:
        return "if the head of this model is its embedding, set tie_word_embeddings to true in config.json"
    rows, vocab = found.get(EMBEDDING, (0,))[0], expected.get(EMBEDDING, (0,))[0]
    if rows and rows != vocab:
        return (
            f"config.json says vocab_size {vocab}, and the embedding has {rows} rows: the embedding was resized after "
            f"config.json was written; set vocab_size to {rows}"
        )
    there = count_layers(found)
    if there and there != layers:
        return f"the config has {layers} layers, and the weights have {there}: one of them is of another model"
    if any(name in found and found[name] != shape for name, shape in expected.items()):
        return "the config belongs to another model than the weights"
    return None


def count_layers(names: Iterable[str]) -> int:
    """Return how many layers the names of tensors speak of."""
    return 1 + max(
        (int(match[1]) for name in names if (match := re.search(r"\blayers\.(\d{1,9})\.", name))), default=-1
    )


def _prefix(missing: Iterable[str], unexpected: Iterable[str]) -> str:
    """Return what stands before all missing names in the unexpected ones, or ''."""
    missing, unexpected = set(missing), set(unexpected)
    for name in missing:
        for other in unexpected:
            prefix = other.removesuffix(name)
            if prefix != other and all(prefix + each in unexpected for each in missing):
                return prefix
        break
    return ""
