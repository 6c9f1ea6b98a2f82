"""GGUF: the weights, config and tokenizer metadata of one llama.cpp file, dequantised by the `gguf` package.

llama.cpp turns the rotary pairs (2h, 2h + 1), Hugging Face (h, h + H / 2), so the rows of q and k are permuted in the
file; they are put back here. Values are bit-equal to those of transformers' own GGUF reader. The head is parsed here,
for the package's reader builds two arrays for each token of the vocabulary: 4 s and 170 MB for SmolLM2, against 0.1 s.
"""

import dataclasses
import functools
import math
import mmap
import os
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

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


# Metadata types of GGUF that are one number; 8 is a string, 9 an array.
_NUMBERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}


class Entry(NamedTuple):
    """Where one tensor lies: shape as Hugging Face has it, quantisation, first byte, shape of its bytes."""

    shape: tuple[int, ...]
    kind: gguf.GGMLQuantizationType
    start: int
    stored: tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Gguf:
    """One GGUF file of the llama architecture.

    Attributes:
      path: the file.
      metadata: keys and values of its head.
      tensors: Hugging Face name -> where the tensor lies.
    """

    path: Path
    metadata: Mapping[str, Any] = dataclasses.field(repr=False)
    tensors: Mapping[str, Entry] = dataclasses.field(repr=False)

    @property
    def where(self) -> str:
        """What messages call it."""
        return str(self.path)

    @functools.cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each tensor, by its Hugging Face name."""
        return {name: entry.shape for name, entry in self.tensors.items()}

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
        entry = self.tensors[name]
        bounds = [part.indices(size) for part, size in zip(index, entry.shape, strict=True)]
        out = np.empty([stop - start for start, stop, _ in bounds], np.float32)
        # Mapped for this call alone, so that the file does not stay in the process's memory.
        data = np.memmap(self.path, np.uint8, "r", entry.start, entry.stored)
        if data.ndim == 1:
            out[...] = self._dequantise(name, data)[index]
        else:
            rows = self._order(name)[index[0]]
            block = max(1, BLOCK // (4 * math.prod(entry.shape[1:])))
            for first in range(0, len(rows), block):
                values = self._dequantise(name, data[rows[first : first + block]])
                out[first : first + block] = values[(slice(None), *index[1:])]
        check_finite(out, f"{self.path}: {name}")
        return out

    def _dequantise(self, name: str, data: np.ndarray) -> np.ndarray:
        kind = self.tensors[name].kind
        try:
            return gguf.dequantize(data, kind)
        except NotImplementedError as error:
            raise ValueError(f"{self.path}: {name} is quantised as {kind.name}, which `gguf` cannot undo") from error


def load(path: Path) -> Gguf:
    """Return a GGUF file, its head parsed; values are read later.

    Raises:
      ValueError: the file is not GGUF of version 2 or 3, is cut, or names something twice.
    """
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ValueError(f"{path}: not a GGUF file")
        if not os.fstat(file.fileno()).st_size > 24:
            raise ValueError(f"{path}: cut within its head; download it again")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            try:
                metadata, tensors = _parse(_Cursor(content, 4), len(content))
            except (struct.error, ValueError, KeyError) as error:
                raise ValueError(f"{path}: the head is broken or cut ({error}); download it again") from error
    return Gguf(path, metadata, tensors)


@dataclasses.dataclass
class _Cursor:
    """A place in the bytes of a head."""

    content: mmap.mmap
    place: int

    def number(self, form: str) -> Any:
        value = struct.unpack_from(form, self.content, self.place)[0]
        self.place += struct.calcsize(form)
        return value

    def text(self) -> str:
        size = self.number("<Q")
        start = self.place
        if start + size > len(self.content):
            raise ValueError(f"a text of {size} bytes at byte {start}")
        self.place += size
        return self.content[start : self.place].decode("utf-8", errors="replace")

    def value(self, kind: int) -> Any:
        if kind == 8:
            return self.text()
        if kind == 9:
            inner, size = self.number("<I"), self.number("<Q")
            if size > len(self.content):
                raise ValueError(f"an array of {size} values at byte {self.place}")
            return [self.value(inner) for _ in range(size)]
        return self.number(_NUMBERS[kind])


def _parse(head: _Cursor, size: int) -> tuple[dict[str, Any], dict[str, Entry]]:
    """Return the metadata, and where each tensor lies, of a file of `size` bytes."""
    version = head.number("<I")
    if version not in (2, 3):
        raise ValueError(f"version {version}; 2 and 3 are known")
    count, keys = head.number("<Q"), head.number("<Q")
    metadata: dict[str, Any] = {}
    for _ in range(keys):
        key = head.text()
        if key in metadata:
            raise ValueError(f"the key {key} occurs twice")
        metadata[key] = head.value(head.number("<I"))
    raw = []
    for _ in range(count):
        name = head.text()
        # GGUF counts axes from the last.
        shape = tuple(reversed([head.number("<Q") for _ in range(head.number("<I"))]))
        raw.append((name, shape, gguf.GGMLQuantizationType(head.number("<I")), head.number("<Q")))
    alignment = metadata.get("general.alignment", 32)
    base = -(-head.place // alignment) * alignment
    tensors: dict[str, Entry] = {}
    for name, shape, kind, offset in raw:
        stored = gguf.quant_shape_to_byte_shape(shape, kind)
        if _name(name) in tensors:
            raise ValueError(f"the tensor {name} occurs twice")
        if base + offset + math.prod(stored) > size:
            raise ValueError(f"{size} bytes, {name} ends at {base + offset + math.prod(stored)}")
        tensors[_name(name)] = Entry(shape, kind, base + offset, stored)
    return metadata, tensors


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
