"""GGUF: the weights, config and tokenizer metadata of one llama.cpp file, dequantised by the `gguf` package.

llama.cpp turns the rotary pairs (2h, 2h + 1), Hugging Face (h, h + H / 2), so the rows of q and k are permuted in the
file; they are put back here. Values are bit-equal to those of transformers' own GGUF reader. Opening costs about two
seconds for a vocabulary of 50,000 (the package parses every token), dequantising about two for 135 M parameters.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from lingregions import models
from lingregions.models.safetensors import BLOCK, check_finite

_OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
# Metadata of the "llama" architecture -> Hugging Face config key.
_CONFIG = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
    "rope.dimension_count": "head_dim",
    "vocab_size": "vocab_size",
}
# Metadata that must have this value: another would change the maths.
_FIXED = {"expert_count": 0, "expert_used_count": 0, "rope.scaling.type": "none"}


@dataclasses.dataclass(frozen=True, eq=False)
class Gguf:
    """One GGUF file of the llama architecture.

    Attributes:
      path: the file.
      metadata: keys and values of its head.
      tensors: Hugging Face name -> tensor of the `gguf` package (a view of the file).
    """

    path: Path
    metadata: Mapping[str, Any] = dataclasses.field(repr=False)
    tensors: Mapping[str, Any] = dataclasses.field(repr=False)

    @property
    def where(self) -> str:
        """What messages call it."""
        return str(self.path)

    @functools.cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each tensor by its Hugging Face name; GGUF counts axes from the last."""
        return {name: tuple(int(size) for size in reversed(each.shape)) for name, each in self.tensors.items()}

    @functools.cached_property
    def config(self) -> Any:
        """The model config that the metadata describes.

        Raises:
          ValueError: another architecture than llama, or metadata that asks for other maths.
        """
        kind = self.metadata.get("general.architecture")
        if kind != "llama":
            raise ValueError(f"{self.path}: the GGUF architecture {kind!r} is not supported; supported: 'llama'")
        raw: dict[str, Any] = {"model_type": "llama", "tie_word_embeddings": "lm_head.weight" not in self.tensors}
        wrong = []
        for key, value in self.metadata.items():
            if not key.startswith("llama."):
                continue
            short = key.removeprefix("llama.")
            if short in _FIXED or short == "attention.value_length":
                expected = _FIXED.get(short, self.metadata.get("llama.attention.key_length"))
                wrong += [] if value == expected else [f"{key} = {value!r}"]
            elif short not in _CONFIG or isinstance(value, list):
                wrong.append(f"{key} = {value!r}")
            elif raw.setdefault(_CONFIG[short], _shortest(value)) != _shortest(value):
                wrong.append(f"{key} = {value!r}, where the head has {raw[_CONFIG[short]]}")
        if "rope_freqs.weight" in self.tensors:
            wrong.append("the tensor rope_freqs (scaled rotary frequencies)")
        if wrong:
            raise ValueError(
                f"{self.path}: the GGUF file asks for maths that is not read from GGUF: {'; '.join(wrong)}; "
                "use the model's Hugging Face folder"
            )
        if "vocab_size" not in raw and "model.embed_tokens.weight" in self.shapes:
            raw["vocab_size"] = self.shapes["model.embed_tokens.weight"][0]
        return models.parse(raw)

    def _order(self, name: str) -> np.ndarray:
        """Return, for each row of the Hugging Face tensor, its row in the file, int64 [out]."""
        rows = np.arange(self.shapes[name][0])
        projection = re.search(r"self_attn\.([qk])_proj", name)
        if projection:
            heads = self.config.heads if projection[1] == "q" else self.config.kv_heads
            rows = rows.reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)
        return rows

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """Return the part `index` (slices of step 1) of a tensor as float32, dequantised.

        Raises:
          ValueError: a quantisation that `gguf` cannot undo, NaN or infinity.
        """
        tensor, shape = self.tensors[name], self.shapes[name]
        bounds = [part.indices(size) for part, size in zip(index, shape, strict=True)]
        out = np.empty([stop - start for start, stop, _ in bounds], np.float32)
        if len(shape) == 1:
            out[...] = self._dequantise(name, tensor.data)[index]
        else:
            rows = self._order(name)[index[0]]
            block = max(1, BLOCK // (4 * math.prod(shape[1:])))
            for first in range(0, len(rows), block):
                values = self._dequantise(name, tensor.data[rows[first : first + block]])
                out[first : first + block] = values[(slice(None), *index[1:])]
        check_finite(out, f"{self.path}: {name}")
        return out

    def _dequantise(self, name: str, data: np.ndarray) -> np.ndarray:
        kind = self.tensors[name].tensor_type
        try:
            return gguf.dequantize(data, kind)
        except NotImplementedError as error:
            raise ValueError(f"{self.path}: {name} is quantised as {kind.name}, which `gguf` cannot undo") from error


def load(path: Path) -> Gguf:
    """Return a GGUF file, its head parsed; values are read later.

    Raises:
      ValueError: the file is not GGUF, or is cut.
    """
    try:
        reader = gguf.GGUFReader(path)
        metadata = {key: field.contents() for key, field in reader.fields.items()}
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        raise ValueError(f"{path}: not a GGUF file that `gguf` can read, or cut ({error})") from error
    tensors = {}
    for tensor in reader.tensors:
        tensors[_name(tensor.name)] = tensor
    return Gguf(path, metadata, tensors)


def _name(name: str) -> str:
    """Return the Hugging Face name of a GGUF tensor; one that is not known keeps its own, and is found unexpected."""
    layer = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)
    if layer and layer[2] in _LAYER:
        return f"model.layers.{int(layer[1])}.{_LAYER[layer[2]]}.weight"
    stem = name.removesuffix(".weight")
    return f"{_OUTER[stem]}.weight" if stem in _OUTER else name


def _shortest(value: Any) -> Any:
    """Return a float32 of the metadata as the shortest decimal that rounds to it: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value))) if isinstance(value, float) else value
