"""Safetensors: the weights of a Hugging Face folder, read and written by byte range.

A file is 8 bytes of header length, a JSON header {name: {dtype, shape, data_offsets}}, and the raw values. Reading by
range gives a shard of a tensor without the rest of it; writing streams one tensor at a time. Neither needs more memory
than `BLOCK` beside the values asked for; plain reads, for the pages of a memory map would count as the process's own.
"""

import dataclasses
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from lingregions.models import evidence
from lingregions.models.evidence import INDEX, SINGLE
from lingregions.models.json_object import parse_object, read_object

# Name in the header -> NumPy dtype of the stored values; weights in other types (quantised ones) are refused.
_DTYPES = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F64": np.dtype("<f8"),
}
CODES = {"float32": "F32", "bfloat16": "BF16"}
BLOCK = 32 << 20  # bytes read and widened at a time


@dataclasses.dataclass(frozen=True)
class _Entry:
    """Where one tensor lies: file, dtype (name in the header), shape, first byte."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int


@dataclasses.dataclass(frozen=True)
class _Safetensors:
    """The tensors of one or several safetensors files.

    Attributes:
      where: what messages call it.
      entries: tensor name -> where it lies.
    """

    where: str
    entries: Mapping[str, _Entry]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each tensor, by name."""
        return {name: entry.shape for name, entry in self.entries.items()}

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """Return the part `index` (slices of step 1) of a tensor as float32.

        Raises:
          ValueError: the tensor is quantised, or holds NaN or infinity.
        """
        entry = self.entries[name]
        if entry.dtype not in _DTYPES:
            raise ValueError(
                f"{entry.file}: {name} is stored as {entry.dtype}, which is not a plain weight ({', '.join(_DTYPES)}); "
                "use the checkpoint before quantisation"
            )
        dtype, bounds = (
            _DTYPES[entry.dtype],
            [part.indices(size) for part, size in zip(index, entry.shape, strict=True)],
        )
        out = np.empty([stop - start for start, stop, _ in bounds], np.float32)
        row = math.prod(entry.shape[1:])
        block = max(1, BLOCK // max(1, row * dtype.itemsize))
        start, stop, _ = bounds[0]
        with entry.file.open("rb") as file:
            for first in range(start, stop, block):
                rows = min(block, stop - first)
                file.seek(entry.start + first * row * dtype.itemsize)
                values = np.fromfile(file, dtype, rows * row).reshape(rows, *entry.shape[1:])
                part = out[first - start : first - start + rows]
                part[...] = values[(slice(None), *index[1:])]
                check_finite(part, f"{entry.file}: {name}")
        return out


def check_finite(values: np.ndarray, what: str) -> None:
    """Check that weights are numbers.

    Raises:
      ValueError: NaN or infinity, with `what` and how many.
    """
    finite = np.isfinite(values)
    if not finite.all():
        raise ValueError(
            f"{what} holds {int(finite.size - finite.sum())} NaN or infinite values (float16 overflows above 65504): "
            "nothing computed from it would mean anything; take the bfloat16 or float32 weights"
        )


def load(folder: Path) -> _Safetensors:
    """Return the tensors of `model.safetensors`, or of the shards that `model.safetensors.index.json` names.

    Only headers are read here.

    Raises:
      FileNotFoundError: no safetensors file (advice, if there are pickles), or a missing shard.
      ValueError: a file that is cut or malformed, an index that points outside the folder or at the wrong file, a
        tensor that occurs twice.
    """
    if (folder / SINGLE).is_file():
        return _Safetensors(str(folder / SINGLE), _read_header(folder / SINGLE))
    if not (folder / INDEX).is_file():
        raise FileNotFoundError(evidence.no_weights(folder))
    mapping = _mapping(folder / INDEX)
    files = sorted(set(mapping.values()))
    absent = [file for file in files if not (folder / file).is_file()]
    if absent:
        raise FileNotFoundError(
            f"{folder}: {len(absent)} of the {len(files)} shards that {INDEX} names are missing: "
            f"{', '.join(absent[:5])}; download them again"
        )
    entries: dict[str, _Entry] = {}
    for file in files:
        for name, entry in _read_header(folder / file).items():
            if name in entries:
                raise ValueError(f"{folder}: the tensor {name} is both in {entries[name].file.name} and in {file}")
            if mapping.get(name) != file:
                raise ValueError(
                    f"{folder}: {file} holds {name}, which {INDEX} says is in {mapping.get(name, 'no file')}"
                )
            entries[name] = entry
    lost = sorted(mapping.keys() - entries.keys())
    if lost:
        raise ValueError(
            f"{folder}: {mapping[lost[0]]} lacks {lost[0]}, which {INDEX} says it holds; download it again"
        )
    return _Safetensors(str(folder / INDEX), entries)


def _mapping(path: Path) -> dict[str, str]:
    """Return tensor name -> file name of an index, all of them plain names within its folder."""
    files = read_object(path).get("weight_map")
    if not isinstance(files, dict):
        raise ValueError(f"{path}: not a safetensors index (no weight_map)")
    for name, file in files.items():
        # A link that lies in the folder is fine (the hub cache is made of them); a path that leaves it is not.
        plain = isinstance(file, str) and Path(file).name == file and file.isprintable() and len(file.encode()) < 256
        if not plain or file in ("", ".", ".."):
            raise ValueError(
                f"{path}: {name[:80]!r} is said to be in {str(file)[:80]!r}, which is not a file name in this folder; "
                "refused"
            )
    return files


def _read_header(path: Path) -> dict[str, _Entry]:
    """Return where each tensor of one file lies.

    The library checks the file first: its length, its header (at most 100 MB), and that the tensors fill it without gap
    or overlap; it does not say where they lie, which reading by range needs.

    Raises:
      ValueError: whatever the format forbids.
    """
    with path.open("rb") as file:
        start = file.read(8)
        if start == b"version ":
            raise ValueError(f"{path}: a Git LFS pointer, not the weights; run `git lfs pull` in the folder")
        try:
            with safe_open(path, "numpy"):
                pass
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"{path}: the safetensors header is broken, or the file is cut ({error}); download it again"
            ) from error
        length = int.from_bytes(start, "little")
        content = parse_object(file.read(length), str(path))
    content.pop("__metadata__", None)
    return {
        name: _Entry(path, value["dtype"], tuple(value["shape"]), 8 + length + value["data_offsets"][0])
        for name, value in content.items()
    }


def save(
    folder: Path,
    shapes: Mapping[str, tuple[int, ...]],
    values: Callable[[str], np.ndarray],
    dtype: str,
    limit: int,
    write: bool = True,
) -> None:
    """Write tensors one after the other, as `model.safetensors`, or as shards of at most `limit` bytes and an index.

    Args:
      folder: an existing folder.
      shapes: tensor name -> shape, in the order of writing.
      values: gives a float32 tensor by name; called once for each, in that order.
      dtype: "float32" or "bfloat16" (rounded to nearest even).
      limit: bytes of a shard; a single tensor may be larger.
      write: False for the processes of a multi-host run that only take part in gathering `values`.

    Raises:
      ValueError: a value that is not finite in `dtype`.
    """
    code = CODES[dtype]
    stored = _DTYPES[code]
    size = {name: math.prod(shape) * stored.itemsize for name, shape in shapes.items()}
    shards: list[list[str]] = [[]]
    for name in shapes:
        if shards[-1] and sum(size[each] for each in shards[-1]) + size[name] > limit:
            shards.append([])
        shards[-1].append(name)
    files = [f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
    if len(shards) == 1:
        files = [SINGLE]
    for file, names in zip(files, shards, strict=True):
        head = _header(names, shapes, size, code)
        with open(folder / file if write else os.devnull, "wb") as out:
            out.write(head)
            for name in names:
                narrow = np.ascontiguousarray(values(name)).astype(stored, copy=False)
                check_finite(narrow, name)
                out.write(narrow.reshape(-1).view(np.uint8).data)
            out.flush()
            if write:
                os.fsync(out.fileno())
    if write and len(shards) > 1:
        where = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        index = {"metadata": {"total_size": sum(size.values())}, "weight_map": where}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _header(names: Sequence[str], shapes: Mapping[str, tuple[int, ...]], size: Mapping[str, int], code: str) -> bytes:
    """Return the length and the JSON header of a file with these tensors, padded to a multiple of 8 bytes."""
    content: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers refuses a file that does not say so
    start = 0
    for name in names:
        content[name] = {"dtype": code, "shape": list(shapes[name]), "data_offsets": [start, start + size[name]]}
        start += size[name]
    text = json.dumps(content, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
