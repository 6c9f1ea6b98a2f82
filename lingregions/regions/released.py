"""The mask folders of the paper's released code: one boolean torch tensor a file, `<Hugging Face name>.pt`.

Read and written without torch. A `.pt` file is a zip archive of a pickle and raw storages. Nothing is unpickled: the
instructions of the pickle are read as data, only those that describe a boolean tensor are known, and no size that a
file states is allocated before the file is found to hold as much, so that one from a stranger can run nothing and
exhaust nothing. A folder becomes a region only when every
matrix is there exactly once with its shape; the released loader only prints what does not match.
"""

import errno
import math
import os
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax import ShapeDtypeStruct

from lingregions import tree as trees
from lingregions.regions import region, stack
from lingregions.regions.region import UNKNOWN, Provenance, Region
from lingregions.run import replacing

_PREFIX = "module."  # DistributedDataParallel puts it before every name
_LOCAL_HEADER = 30  # bytes of a zip entry before its name
_ALIGNMENT = 64  # torch.save starts every storage at such an offset
_PICKLE = 1 << 16  # bytes that the pickle of one tensor may have; torch writes about 160
_AXES = 8
# What zipfile, pickletools and arithmetic with damaged numbers raise.
_DAMAGE = (ValueError, LookupError, TypeError, EOFError, RuntimeError, OverflowError, struct.error)


class _Global(NamedTuple):
    """A name that the pickle would import."""

    name: str


class _Storage(NamedTuple):
    """A boolean storage as the pickle names it."""

    key: str
    numel: int


class _Tensor(NamedTuple):
    """A tensor as the pickle describes it."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


_REBUILD, _BOOL, _ORDERED = "torch._utils _rebuild_tensor_v2", "torch BoolStorage", "collections OrderedDict"
_VALUES = {"BINUNICODE", "SHORT_BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1"}
_CONSTANTS: dict[str, Any] = {"NEWTRUE": True, "NEWFALSE": False, "NONE": None, "EMPTY_TUPLE": ()}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def _describe(content: bytes) -> _Tensor:
    """Return what a pickle says of its one tensor, without executing it.

    Raises:
      ValueError: it says anything else; LookupError, TypeError: it makes no sense.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    argument: Any
    for opcode, argument, _ in pickletools.genops(content):
        match opcode.name:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case name if name in _VALUES:
                stack.append(argument)
            case name if name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            case "GLOBAL":
                stack.append(_known(argument))
            case "STACK_GLOBAL":
                attribute, module = stack.pop(), stack.pop()
                stack.append(_known(f"{module} {attribute}"))
            case "MARK":
                marks.append(len(stack))
            case "TUPLE":
                start = marks.pop()
                stack[start:] = [tuple(stack[start:])]
            case name if name in _TUPLES:
                start = len(stack) - _TUPLES[name]
                stack[start:] = [tuple(stack[start:])]
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "BINPERSID":
                stack.append(_storage(stack.pop()))
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                stack.append(_reduce(function, arguments))
            case name:
                raise ValueError(f"it holds the pickle instruction {name}, where a boolean tensor is all that is read")
    if len(stack) != 1 or not isinstance(stack[0], _Tensor):
        raise ValueError(f"it holds a {type(stack[-1]).__name__}, not a tensor")
    return stack[0]


def _known(name: str) -> _Global:
    if name not in (_REBUILD, _BOOL, _ORDERED):
        raise ValueError(f"it holds {name.replace(' ', '.')[:80]}, where a boolean tensor is all that is read")
    return _Global(name)


def _storage(pid: Any) -> _Storage:
    match pid:
        case ("storage", _Global(name), str(key), str(), int(numel)) if name == _BOOL and numel >= 0:
            return _Storage(key, numel)
    raise ValueError("it refers to something else than a boolean storage, which is all that is read")


def _reduce(function: Any, arguments: Any) -> Any:
    match function, arguments:
        case _Global(name), () if name == _ORDERED:
            return {}
        case _Global(name), (_Storage() as storage, int(offset), tuple(size), tuple(stride), *_) if name == _REBUILD:
            numbers = (offset, *size, *stride)
            if len(size) == len(stride) <= _AXES and all(isinstance(each, int) and each >= 0 for each in numbers):
                return _Tensor(storage, offset, size, stride)
            raise ValueError(f"its {len(size)} sizes do not go with its {len(stride)} strides, or are no sizes")
    raise ValueError("it calls a function, where a boolean tensor is all that is read")


def _stored(archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    """Return a member that is stored as it is: torch compresses nothing, and what is compressed may be a bomb."""
    entry = archive.getinfo(name)
    if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > limit:
        raise ValueError(f"its member {name!r} is compressed, or has more than {limit} bytes")
    return archive.read(entry)


def _read(path: str | os.PathLike[str]) -> np.ndarray:
    """Return the boolean tensor of a `.pt` file.

    Raises:
      ValueError: not a zip-format torch file, damaged, or anything but one boolean tensor in it.
    """
    try:
        with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
            inside = [name for name in archive.namelist() if name.split("/")[1:] == ["data.pkl"]]
            if len(inside) != 1:
                raise ValueError("no data.pkl in it (a torch file of before version 1.6? save it with a newer torch)")
            found = _describe(_stored(archive, inside[0], _PICKLE))
            name = f"{inside[0].removesuffix('data.pkl')}data/{found.storage.key}"
            data = _stored(archive, name, os.fstat(file.fileno()).st_size)
        return _strided(np.frombuffer(data, np.uint8), found)
    except zipfile.BadZipFile as error:
        raise ValueError(
            f"{path} is not a mask of the released code: {error} (cut short, or of a torch before version 1.6?)"
        ) from error
    except OSError as error:
        if error.errno != errno.EINVAL:  # what seeking to a damaged place gives; others are faults of the disk
            raise
        raise ValueError(f"{path} is not a mask of the released code: its directory is damaged") from error
    except _DAMAGE as error:
        raise ValueError(f"{path} is not a mask of the released code: {str(error)[:200]}") from error


def _strided(values: np.ndarray, found: _Tensor) -> np.ndarray:
    """Return the tensor that lies in a storage."""
    size, stride, offset = found.size, found.stride, found.offset
    last = offset + sum((each - 1) * step for each, step in zip(size, stride, strict=True))
    count: int = math.prod(size)
    if len(values) != found.storage.numel or count > len(values) or (count and last >= len(values)):
        raise ValueError(f"{len(values)} bytes of storage do not hold a tensor of shape {size}")
    if values.size and values.max() > 1:
        raise ValueError("its storage has bytes that are neither 0 nor 1")
    return np.array(np.lib.stride_tricks.as_strided(values[offset:], size, stride)).view(np.bool_)


def _write(path: str | os.PathLike[str], mask: np.ndarray) -> None:
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
            start = archive.start_dir + _LOCAL_HEADER + len(entry.filename.encode())
            padding = -(start + 4) % _ALIGNMENT
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
        name = file.name.removesuffix(".pt").removeprefix(_PREFIX)
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
            mask = _read(files[named[layer]])
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
            shapes[path] = _read(file).shape
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
            _write(place / f"{name}.pt", mask)
