"""GGUF: weights, config and tokenizer metadata of llama.cpp's files, dequantised by the `gguf` package.

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
from lingregions.models import roles
from lingregions.models.safetensors import BLOCK, check_finite


class _Dialect(NamedTuple):
    """What llama.cpp's converter makes of an architecture.

    Attributes:
      model_type: its name in a Hugging Face config.
      stems: Hugging Face stem of tensors that it calls otherwise than `roles.ROLES` does.
      permuted: whether the rows of q and k are.
      offset: what it adds to the gains of norms.
      implied: keys of a Hugging Face config that are not in the file.
    """

    model_type: str
    stems: Mapping[str, str]
    permuted: bool
    offset: float
    implied: Mapping[str, Any]


_DIALECTS = {
    "llama": _Dialect("llama", {}, True, 0.0, {}),
    "gemma3": _Dialect(
        "gemma3_text",
        {"post_attention_norm": "post_attention_layernorm", "ffn_norm": "pre_feedforward_layernorm"},
        False,
        1.0,
        {"rope_local_base_freq": 10_000.0, "query_pre_attn_scalar": 256},
    ),
}
# Metadata of an architecture, without its name in front -> Hugging Face config key.
_CONFIG = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.sliding_window": "sliding_window",
    "rope.freq_base": "rope_theta",
    "rope.dimension_count": "head_dim",
    "vocab_size": "vocab_size",
}
_REAL = ("attention.layer_norm_rms_epsilon", "rope.freq_base")
_HEAD = 1 << 27  # bytes that a head may have; one with 262,144 tokens has 13 MB
_AXES = 4
_UNMEANT = {("llama", "attention.sliding_window")}  # what the family of an architecture does not have
_GEMMA3_27B = 62  # layers
# Metadata that must have this value: another would change the maths.
_FIXED = {"expert_count": 0, "expert_used_count": 0, "rope.scaling.type": "none"}


# Metadata types of GGUF: a text, an array, and those that are one number.
_TEXT, _ARRAY = 8, 9
_NUMBERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}


class _Entry(NamedTuple):
    """Where one tensor lies: file, shape as Hugging Face has it, quantisation, first byte, shape of its bytes."""

    file: Path
    shape: tuple[int, ...]
    kind: gguf.GGMLQuantizationType
    start: int
    stored: tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class _Gguf:
    """One GGUF model.

    Attributes:
      path: the file, the first one of a model in parts.
      files: all of them, in order.
      metadata: keys and values of the head of the first.
      tensors: Hugging Face name -> where the tensor lies.
    """

    path: Path
    files: tuple[Path, ...]
    metadata: Mapping[str, Any] = dataclasses.field(repr=False)
    tensors: Mapping[str, _Entry] = dataclasses.field(repr=False)

    @property
    def where(self) -> str:
        """What messages call it."""
        return str(self.path)

    @property
    def _dialect(self) -> _Dialect | None:
        kind = self.metadata.get("general.architecture")
        return _DIALECTS.get(kind) if isinstance(kind, str) else None

    @functools.cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each tensor, by its Hugging Face name."""
        return {name: entry.shape for name, entry in self.tensors.items()}

    @functools.cached_property
    def config(self) -> Any:
        """The model config that the metadata describes.

        Raises:
          ValueError: another architecture than those of `_DIALECTS`, or metadata that asks for other maths.
        """
        if self.metadata.get("general.type", "model") != "model":
            raise ValueError(
                f"{self.path}: {self.metadata['general.type']!r} by its own word (general.type), not a model; an "
                "adapter is merged into its model first"
            )
        kind, dialect = self.metadata.get("general.architecture"), self._dialect
        if dialect is None:
            known = ", ".join(map(repr, _DIALECTS))
            raise ValueError(f"{self.path}: the GGUF architecture {kind!r} is not supported; supported: {known}")
        raw: dict[str, Any] = {"model_type": dialect.model_type, **dialect.implied}
        raw["tie_word_embeddings"] = roles.matrix_name("head") not in self.tensors
        wrong = []
        for key, value in self.metadata.items():
            if not key.startswith(f"{kind}."):
                continue
            short = key.removeprefix(f"{kind}.")
            if short in _FIXED or short == "attention.value_length":
                expected = _FIXED.get(short, self.metadata.get(f"{kind}.attention.key_length"))
                wrong += [] if value == expected else [f"{key} = {value!r}"]
            elif short not in _CONFIG or not _is_number(value, short in _REAL) or (kind, short) in _UNMEANT:
                wrong.append(f"{key} = {value!r}")
            elif raw.setdefault(_CONFIG[short], _shortest(value)) != _shortest(value):
                wrong.append(f"{key} = {value!r}, where the head has {raw[_CONFIG[short]]}")
        if kind == "gemma3" and raw.get("num_hidden_layers") == _GEMMA3_27B:
            wrong.append("the scale of attention of Gemma 3 27B, which the file does not hold")
        if "rope_freqs.weight" in self.tensors:
            wrong.append("the tensor rope_freqs (scaled rotary frequencies)")
        if wrong:
            raise ValueError(
                f"{self.path}: the GGUF file asks for maths that is not read from GGUF: {'; '.join(wrong)}; "
                "use the model's Hugging Face folder"
            )
        embedding = roles.matrix_name("embedding")
        if "vocab_size" not in raw and embedding in self.shapes:
            raw["vocab_size"] = self.shapes[embedding][0]
        try:
            return models.parse(raw)
        except (ValueError, ArithmeticError) as error:
            raise ValueError(f"{self.path}: the metadata has sizes that no model has ({error})") from error

    def _order(self, name: str) -> np.ndarray:
        """Return, for each row of the Hugging Face tensor, its row in the file, int64 [out]."""
        rows = np.arange(self.shapes[name][0])
        path = roles.locate(name)[0]
        if self._dialect is not None and self._dialect.permuted and path in (roles.path("q"), roles.path("k")):
            heads = self.config.heads if path == roles.path("q") else self.config.kv_heads
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
        data = np.memmap(entry.file, np.uint8, "r", entry.start, entry.stored)
        if data.ndim == 1:
            out[...] = self._dequantise(name, data)[index]
            out -= np.float32(self._dialect.offset if self._dialect is not None else 0)
        else:
            rows = self._order(name)[index[0]]
            block = max(1, BLOCK // (4 * math.prod(entry.shape[1:])))
            for first in range(0, len(rows), block):
                values = self._dequantise(name, data[rows[first : first + block]])
                out[first : first + block] = values[(slice(None), *index[1:])]
        check_finite(out, f"{entry.file}: {name}")
        return out

    def _dequantise(self, name: str, data: np.ndarray) -> np.ndarray:
        kind = self.tensors[name].kind
        try:
            return gguf.dequantize(data, kind)
        except NotImplementedError as error:
            raise ValueError(f"{self.path}: {name} is quantised as {kind.name}, which `gguf` cannot undo") from error


def load(path: Path) -> _Gguf:
    """Return a GGUF model, its head parsed; values are read later.

    Args:
      path: the file, or any one of a model in parts, which lie beside it.

    Raises:
      FileNotFoundError: a part is not there.
      ValueError: a file is not GGUF of version 2 or 3, is cut, breaks the format, or names something twice.
    """
    files = parts(path)
    absent = [file.name for file in files if not file.is_file()]
    if absent:
        raise FileNotFoundError(
            f"{path}: one of {len(files)} parts of a model, and {len(absent)} of them are missing: "
            f"{', '.join(absent[:5])}; put all parts into one folder"
        )
    metadata, tensors = _open(files[0])
    # A part that was renamed to look whole still says what it is.
    if metadata.get("split.count", 1) not in (len(files), 0):
        raise ValueError(
            f"{path}: one of {metadata['split.count']} parts of a model; give them back their names, "
            "<name>-00001-of-<count>.gguf, in one folder"
        )
    for number, file in enumerate(files[1:], 1):
        head, more = _open(file, metadata.get("general.architecture"))
        if (head.get("split.no"), head.get("split.count")) != (number, len(files)):
            raise ValueError(f"{file}: part {head.get('split.no')} by its head, {number} by its name")
        twice = tensors.keys() & more.keys()
        if twice:
            raise ValueError(f"{file}: the tensor {min(twice)} is in another part too")
        tensors |= more
    return _Gguf(files[0], files, metadata, tensors)


def parts(path: Path) -> tuple[Path, ...]:
    """Return the files of a model of which one is given, by the names that llama.cpp gives to parts."""
    match = re.fullmatch(r"(.+)-\d{5}-of-(\d{5})\.gguf", path.name)
    if match is None or not int(match[2]):
        return (path,)
    return tuple(path.with_name(f"{match[1]}-{n:05}-of-{match[2]}.gguf") for n in range(1, int(match[2]) + 1))


def _open(path: Path, architecture: Any = None) -> tuple[dict[str, Any], dict[str, _Entry]]:
    """Return the metadata and the tensors of one file; only the first of several says what architecture they are."""
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ValueError(f"{path}: not a GGUF file")
        if not os.fstat(file.fileno()).st_size > 24:
            raise ValueError(f"{path}: cut within its head; download it again")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            try:
                return _parse(_Cursor(content, 4), path, architecture)
            except (struct.error, ValueError, KeyError) as error:
                raise ValueError(f"{path}: the head is broken or cut ({error}); download it again") from error


@dataclasses.dataclass
class _Cursor:
    """A place in the bytes of a head."""

    content: mmap.mmap
    place: int

    def take(self, size: int, what: str) -> int:
        """Step over some bytes, and return where they start."""
        start = self.place
        if start + size > min(len(self.content), _HEAD):
            raise ValueError(f"{what} of {size} bytes at byte {start}")
        self.place += size
        return start

    def number(self, form: str) -> Any:
        return struct.unpack_from(form, self.content, self.take(struct.calcsize(form), "a number"))[0]

    def text(self) -> str:
        size = self.number("<Q")
        start = self.take(size, "a text")
        return self.content[start : start + size].decode("utf-8", errors="replace")

    def value(self, kind: int) -> Any:
        if kind == _TEXT:
            return self.text()
        if kind == _ARRAY:
            return self.array(self.number("<I"), self.number("<Q"))
        return self.number(_NUMBERS[kind])

    def array(self, kind: int, size: int) -> list[Any]:
        if kind == _ARRAY:
            raise ValueError("an array of arrays, which no model needs")
        if kind == _TEXT:
            if size > len(self.content):
                raise ValueError(f"an array of {size} texts at byte {self.place}")
            return [self.text() for _ in range(size)]
        dtype = np.dtype(_NUMBERS[kind])
        start = self.take(size * dtype.itemsize, "an array")
        values: list[Any] = np.frombuffer(self.content[start : self.place], dtype).tolist()
        return values


def _parse(head: _Cursor, path: Path, architecture: Any) -> tuple[dict[str, Any], dict[str, _Entry]]:
    """Return the metadata, and where each tensor lies, of a file."""
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
        name, axes = head.text(), head.number("<I")
        if not 1 <= axes <= _AXES:
            raise ValueError(f"{name} has {axes} axes")
        # GGUF counts axes from the last.
        shape = tuple(reversed([head.number("<Q") for _ in range(axes)]))
        raw.append((name, shape, gguf.GGMLQuantizationType(head.number("<I")), head.number("<Q")))
    alignment = metadata.get("general.alignment", 32)
    if not _is_number(alignment, real=False) or alignment < 1 or alignment & (alignment - 1):
        raise ValueError(f"general.alignment is {alignment!r}, not a power of two")
    kind = metadata.get("general.architecture", architecture)
    stems = _DIALECTS[kind].stems if isinstance(kind, str) and kind in _DIALECTS else {}
    base = -(-head.place // alignment) * alignment
    tensors: dict[str, _Entry] = {}
    for name, shape, quantisation, offset in raw:
        if not all(shape) or offset % alignment:
            raise ValueError(f"{name} has the shape {list(shape)} and starts at {offset}")
        stored = gguf.quant_shape_to_byte_shape(shape, quantisation)
        known = _name(name, stems)
        if known in tensors:
            raise ValueError(f"the tensor {name} occurs twice")
        if base + offset + math.prod(stored) > len(head.content):
            raise ValueError(f"{len(head.content)} bytes, {name} ends at {base + offset + math.prod(stored)}")
        tensors[known] = _Entry(path, shape, quantisation, base + offset, stored)
    _check_overlap(tensors)
    return metadata, tensors


def _check_overlap(tensors: Mapping[str, _Entry]) -> None:
    reached = 0
    for name, entry in sorted(tensors.items(), key=lambda item: item[1].start):
        if entry.start < reached:
            raise ValueError(f"the bytes of {name} are those of another tensor too")
        reached = entry.start + math.prod(entry.stored)


def _name(name: str, stems: Mapping[str, str]) -> str:
    """Return the Hugging Face name of a GGUF tensor; one that is not known keeps its own, and is found unexpected."""
    layer = re.fullmatch(r"blk\.(\d{1,9})\.(\w+)\.weight", name)
    stem = layer[2] if layer else name.removesuffix(".weight")
    if stem in stems:
        return f"model.layers.{int(layer[1])}.{stems[stem]}.weight" if layer else name
    role = _ROLES.get((stem, layer is not None))
    return name if role is None else role.tensor.format(layer=layer and int(layer[1]))


# By llama.cpp's name and whether every layer has one; the first role of a name is LLaMA's.
_ROLES = {(role.gguf, role.stacked): role for role in reversed(roles.ROLES.values()) if role.kind != "bias"}


def _is_number(value: Any, real: bool) -> bool:
    """Return whether a value of the metadata is a finite number; a whole one unless it may be `real`."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    return whole or (real and isinstance(value, float) and math.isfinite(value))


def _shortest(value: Any) -> Any:
    """Return a float32 of the metadata as the shortest decimal that rounds to it: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value))) if isinstance(value, float) else value
