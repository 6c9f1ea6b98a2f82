"""The mask folders of the paper's released code: one boolean torch tensor a file, `<Hugging Face name>.pt`.

Read and written without torch. A `.pt` file is a zip archive of a pickle and raw storages; the pickle is read by an
unpickler that knows three names (a tensor, a boolean storage, an ordered dict) and refuses every other one, as torch's
own `weights_only=True` does, so that a file from a stranger can run nothing. A folder becomes a region only when every
matrix is there exactly once with its shape; the released loader only prints what does not match.
"""

import collections
import io
import math
import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import numpy as np
from jax import ShapeDtypeStruct

from lingregions import tree as trees
from lingregions.regions import region, stack
from lingregions.regions.region import UNKNOWN, Provenance, Region
from lingregions.run import replacing

PREFIX = "module."  # DistributedDataParallel puts it before every name
LOCAL_HEADER = 30  # bytes of a zip entry before its name
ALIGNMENT = 64  # torch.save starts every storage at such an offset


class _Storage(collections.namedtuple("_Storage", "kind key numel")):
    """A storage as the pickle names it."""


def _tensor(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> dict[str, Any]:
    """Stand in for `torch._utils._rebuild_tensor_v2`: say what the tensor is; the bytes are read later."""
    return {"storage": storage, "offset": offset, "size": tuple(size), "stride": tuple(stride)}


class _Unpickler(pickle.Unpickler):
    """Unpickles one boolean tensor and nothing else."""

    ALLOWED: ClassVar[dict[tuple[str, str], Any]] = {
        ("torch._utils", "_rebuild_tensor_v2"): _tensor,
        ("torch", "BoolStorage"): "bool",
        ("collections", "OrderedDict"): collections.OrderedDict,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it holds {module}.{name}, where a boolean tensor is all that is read")
        return self.ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        match pid:
            case ("storage", "bool", str(key), str(), int(numel)) if numel >= 0:
                return _Storage("bool", key, numel)
        raise pickle.UnpicklingError(f"it refers to {str(pid)[:80]}, where a boolean storage is all that is read")


def read(path: str | os.PathLike[str]) -> np.ndarray:
    """Return the boolean tensor of a `.pt` file.

    Raises:
      ValueError: not a zip-format torch file, damaged, or anything but one boolean tensor in it.
    """

    def refuse(why: object) -> NoReturn:
        raise ValueError(f"{path} is not a mask of the released code: {why}")

    try:
        with zipfile.ZipFile(path) as archive:
            inside = [name for name in archive.namelist() if name.split("/")[1:] == ["data.pkl"]]
            if len(inside) != 1:
                refuse("it has no data.pkl (a torch file of before version 1.6? save it again with a newer torch)")
            found = _Unpickler(io.BytesIO(archive.read(inside[0]))).load()
            if not (isinstance(found, dict) and isinstance(found.get("storage"), _Storage)):
                refuse(f"it holds a {type(found).__name__}, not a tensor")
            storage = found["storage"]
            data = archive.read(f"{inside[0].removesuffix('data.pkl')}data/{storage.key}")
    except zipfile.BadZipFile as error:
        refuse(f"{error} (cut short, or of a torch before version 1.6?)")
    except (pickle.UnpicklingError, KeyError, TypeError, EOFError, AttributeError, IndexError) as error:
        refuse(error)
    size, stride, offset = found["size"], found["stride"], found["offset"]
    numbers = (offset, *size, *stride)
    if len(size) != len(stride) or not all(isinstance(each, int) and each >= 0 for each in numbers):
        refuse(f"its shape {size} does not go with its strides {stride}")
    last = offset + sum((each - 1) * step for each, step in zip(size, stride, strict=True))
    if len(data) != storage.numel or math.prod(size) > len(data) or (math.prod(size) and last >= len(data)):
        refuse(f"{len(data)} bytes of storage do not hold a tensor of shape {size}")
    values = np.frombuffer(data, np.uint8)
    if values.size and values.max() > 1:
        refuse("its storage has bytes that are neither 0 nor 1")
    return np.array(np.lib.stride_tricks.as_strided(values[offset:], size, stride)).view(np.bool_)


def write(path: str | os.PathLike[str], mask: np.ndarray) -> None:
    """Write a boolean tensor as `torch.save` does: `torch.load(path, weights_only=True)` returns it.

    Raises:
      RunError: the disk is full, read-only or closed to us.
    """
    with replacing(Path(path)) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
        for name, content in (
            ("data.pkl", _pickle(mask.shape)),
            ("byteorder", b"little"),
            ("data/0", np.ascontiguousarray(mask, np.bool_).tobytes()),
            ("version", b"3\n"),
        ):
            # A fixed date: the same mask gives the same file.
            entry = zipfile.ZipInfo(f"archive/{name}", date_time=(1980, 1, 1, 0, 0, 0))
            start = archive.start_dir + LOCAL_HEADER + len(entry.filename.encode())
            padding = -(start + 4) % ALIGNMENT
            entry.extra = b"FB" + padding.to_bytes(2, "little") + b"Z" * padding
            archive.writestr(entry, content)


def _pickle(shape: tuple[int, ...]) -> bytes:
    """Return the pickle of `_rebuild_tensor_v2(storage 0, 0, shape, strides, False, OrderedDict())`, protocol 2."""

    def number(value: int) -> bytes:
        text = value.to_bytes((value.bit_length() + 8) // 8, "little", signed=True)
        return pickle.LONG1 + bytes([len(text)]) + text

    def text(value: str) -> bytes:
        return pickle.BINUNICODE + len(value).to_bytes(4, "little") + value.encode()

    def name(module: str, attribute: str) -> bytes:
        return pickle.GLOBAL + f"{module}\n{attribute}\n".encode()

    def group(*parts: bytes) -> bytes:
        return pickle.MARK + b"".join(parts) + pickle.TUPLE

    strides = [math.prod(shape[place + 1 :]) for place in range(len(shape))]
    storage = group(text("storage"), name("torch", "BoolStorage"), text("0"), text("cpu"), number(math.prod(shape)))
    arguments = group(
        storage + pickle.BINPERSID,
        number(0),
        group(*map(number, shape)),
        group(*map(number, strides)),
        pickle.NEWFALSE,
        name("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE,
    )
    return pickle.PROTO + b"\x02" + name("torch._utils", "_rebuild_tensor_v2") + arguments + pickle.REDUCE + pickle.STOP


def load(
    folder: str | os.PathLike[str], like: Mapping[str, Any] | None = None, provenance: Provenance = UNKNOWN
) -> Region:
    """Return the region of a mask folder.

    Args:
      folder: holds one `<Hugging Face name>.pt` a matrix (a prefix `module.` is dropped).
      like: tree of arrays or `ShapeDtypeStruct`s with exactly the matrices to expect; None expects whole stacks of
        layers, whatever they are.
      provenance: what is known of the region; the folder itself says nothing.

    Raises:
      ValueError: a matrix that is missing, twice there, unexpected, of another shape, or not boolean; names it.
      FileNotFoundError: there is no such folder, or no `.pt` file in it.
    """
    files: dict[str, Path] = {}
    for file in sorted(Path(folder).glob("*.pt")):
        name = file.name.removesuffix(".pt").removeprefix(PREFIX)
        if name in files:
            raise ValueError(f"{name} is twice in {folder}: {files[name].name} and {file.name}")
        files[name] = file
    if not files:
        raise FileNotFoundError(f"there is no folder {folder} with .pt files in it")
    shapes = _guess(files) if like is None else trees.flatten(like)
    expected = {name for path, leaf in shapes.items() for name in region.matrices(path, leaf)}
    for word, names in (("lacks", expected - files.keys()), ("has the unexpected", files.keys() - expected)):
        if names:
            raise ValueError(f"{folder} {word} {sorted(names)[0]}.pt ({len(names)} such of {len(expected)} expected)")
    masks = {}
    for path, leaf in shapes.items():
        named = region.matrices(path, leaf)

        def fill(layer: int, out: np.ndarray, named: list[str] = named) -> None:
            mask = read(files[named[layer]])
            if mask.shape != out.shape:
                raise ValueError(f"{files[named[layer]]} has shape {mask.shape}, expected {out.shape}")
            out[...] = mask

        masks[path] = stack.build(path, leaf, fill)
    known = provenance.replace(
        name=provenance.name or Path(folder).name,
        definition=provenance.definition or f"imported from the mask folder {Path(folder).name}",
        versions=provenance.versions or region.versions(),
    )
    return Region(trees.unflatten(masks), known)


def _guess(files: Mapping[str, Path]) -> dict[str, ShapeDtypeStruct]:
    """Return the stacked shapes that the files suggest: every kind of matrix in every layer up to the last there."""
    layers: dict[str, list[int]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for name, file in files.items():
        path, layer = region.locate(name)
        if layer is None or layer == 0:
            shapes[path] = read(file).shape
        if layer is not None:
            layers.setdefault(path, []).append(layer)
    deepest = max((max(found) for found in layers.values()), default=0)
    for path in layers:
        if path not in shapes:
            raise ValueError(f"{region.names(path, 1)[0]}.pt is missing, though {path!r} is there for other layers")
        shapes[path] = (deepest + 1, *shapes[path])
    return {path: ShapeDtypeStruct(shape, np.bool_) for path, shape in sorted(shapes.items())}


def save(what: Region, folder: str | os.PathLike[str]) -> None:
    """Write a region as a mask folder, one byte an entry of the scope, as the released code reads it.

    Raises:
      ValueError: the folder holds `.pt` files already.
      RunError: the disk is full, read-only or closed to us.
    """
    place = Path(folder)
    if any(place.glob("*.pt")):
        raise ValueError(f"{place} holds .pt files already; name a new folder, so that two regions are never mixed")
    for path, leaf in what.leaves().items():
        for name, mask in stack.walk(path, leaf):
            write(place / f"{name}.pt", mask)
