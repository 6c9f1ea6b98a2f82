"""The region file: one safetensors file that holds a region, says what it is, and can be checked.

One tensor a matrix, under its Hugging Face name, over the flattened [out, in] mask in C order. The type says the
coding, whichever is smaller for that matrix:

- uint8: the mask packed eight entries a byte, lowest bit first (`numpy.packbits(mask, bitorder="little")`);
- uint32 or uint64: the sorted flat indices of its entries.

The metadata key `lingregions` holds a JSON header: format number, layout, shape and count of every matrix, provenance
(model, tokenizer and data hashes, definition, scopes, seed, library versions), a digest of the content that does not
depend on the coding, a CRC-32 of every stored tensor and one of the header itself: whatever is read is held against
them. A file of format 1 has the digest alone, so it is read twice and its header is taken as it is. Files are written
beside their place and moved there whole. Writing and loading hold one matrix on the host at a time; the file of a 1 %
region takes 4 bytes an entry: 4 MB for SmolLM2, 260 MB for LLaMA-2-7B.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import math
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from safetensors import SafetensorError, safe_open

from lingregions import tree as trees
from lingregions.regions import geometry, region, stack
from lingregions.regions.region import Provenance, Region
from lingregions.run import replacing
from lingregions.run.record import checksum, seal

_FORMAT = 2
_KEY = "lingregions"
_LAYOUT = (
    "one tensor a matrix under its Hugging Face name; the mask [out, in] is flattened in C order; "
    "uint8: packed bits, lowest bit first; uint32 or uint64: sorted flat indices"
)

_logger = logging.getLogger("lingregions")


@dataclasses.dataclass(frozen=True)
class _Matrix:
    """What the header says of one matrix.

    Attributes:
      shape: [out, in], or [D] for a norm.
      count: entries of the region in it.
      coding: dtype of the stored tensor: "uint8" (packed bits), "uint32" or "uint64" (indices).
      crc32: of the stored bytes, in hex; "" in a file of format 1.
      removal: what removal sets its entries to.
    """

    shape: tuple[int, ...]
    count: int
    coding: str
    crc32: str = ""
    removal: float = 0.0

    @property
    def size(self) -> int:
        """Entries of the matrix."""
        return math.prod(self.shape)


@dataclasses.dataclass(frozen=True)
class Header:
    """What a region file says of itself.

    Attributes:
      provenance: where the region comes from.
      matrices: Hugging Face name -> shape, count and coding.
      digest: sha256 of the content, independent of the coding.
    """

    provenance: Provenance
    matrices: dict[str, _Matrix]
    digest: str

    @property
    def count(self) -> int:
        """Entries of the region."""
        return sum(each.count for each in self.matrices.values())

    @property
    def size(self) -> int:
        """Entries of the scope."""
        return sum(each.size for each in self.matrices.values())


def save(what: Region, path: str | os.PathLike[str]) -> None:
    """Write a region file, whole or not at all; on several processes the first one writes and all must call.

    Raises:
      RunError: the disk is full, read-only or closed to us; a file that was there before is untouched.
    """
    target = Path(path)
    leaves = what.leaves()
    matrices: dict[str, _Matrix] = {}
    places: dict[str, tuple[str, int]] = {}
    for where, counts in geometry.counts(what).items():
        for layer, (name, count) in enumerate(zip(region.matrices(where, leaves[where]), counts, strict=True)):
            full = region.shape(where, leaves[where])
            removal = dict(what.provenance.removal).get(where, 0.0)
            matrices[name] = _Matrix(full, count, _coding(math.prod(full), count), "0" * 8, removal)
            places[name] = (where, layer)
    # Wide types first, so that every tensor starts at a multiple of its item size.
    order = sorted(matrices, key=lambda name: -np.dtype(matrices[name].coding).itemsize)
    chief = jax.process_index() == 0
    digests = {}
    with (
        replacing(target) if chief else contextlib.nullcontext(Path(os.devnull)) as partial,
        open(partial, "wb") as stream,
    ):
        stream.write(_head(what.provenance, matrices, order, "0" * 64))
        for name in order:
            where, layer = places[name]
            mask = stack.read(where, leaves[where], layer)
            digests[name] = _digest(name, mask)
            content = _encode(mask, matrices[name].coding).tobytes()
            matrices[name] = dataclasses.replace(matrices[name], crc32=f"{zlib.crc32(content):08x}")
            stream.write(content)
        stream.seek(0)
        stream.write(_head(what.provenance, matrices, order, _total(digests)))
    if chief:
        from lingregions.regions import publish  # which reads what is written here

        publish.write_card(target)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"region file {target.name}")


def _coding(size: int, count: int) -> str:
    index = "uint32" if size <= 2**32 else "uint64"
    return index if count * np.dtype(index).itemsize < -(-size // 8) else "uint8"


def _encode(mask: np.ndarray, coding: str) -> np.ndarray:
    flat = mask.reshape(-1)
    return np.packbits(flat, bitorder="little") if coding == "uint8" else np.flatnonzero(flat).astype(coding)


def _digest(name: str, mask: np.ndarray) -> bytes:
    bits = np.packbits(mask.reshape(-1), bitorder="little")
    return hashlib.sha256(f"{name}{mask.shape}".encode() + bits.tobytes()).digest()


def _total(digests: Mapping[str, bytes]) -> str:
    return hashlib.sha256(b"".join(digests[name] for name in sorted(digests))).hexdigest()


def _head(provenance: Provenance, matrices: Mapping[str, _Matrix], order: list[str], digest: str) -> bytes:
    """Return the first bytes of the file, length and JSON as of safetensors; checksums do not change how many."""
    own = {
        "format": _FORMAT,
        "layout": _LAYOUT,
        "digest": digest,
        "entries": sum(each.count for each in matrices.values()),
        "scope_entries": sum(each.size for each in matrices.values()),
        "matrices": {name: dataclasses.asdict(each) for name, each in matrices.items()},
        "provenance": provenance.describe(),
    }
    fields: dict[str, Any] = {"__metadata__": {_KEY: json.dumps(seal(own), allow_nan=False)}}
    offset = 0
    for name in order:
        kind = np.dtype(matrices[name].coding)
        items = matrices[name].count if kind.itemsize > 1 else -(-matrices[name].size // 8)
        fields[name] = {
            "dtype": f"U{8 * kind.itemsize}",
            "shape": [items],
            "data_offsets": [offset, offset + items * kind.itemsize],
        }
        offset += items * kind.itemsize
    text = json.dumps(fields).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


class _Reader:
    """An open region file."""

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"there is no region file {self.path}")
        try:
            self.tensors = safe_open(self.path, framework="np")
        except SafetensorError as error:
            raise ValueError(
                f"{self.path} is not a whole safetensors file ({error}); it may be cut short: copy it again"
            ) from error
        self.header = self._header()

    def _header(self) -> Header:
        text = (self.tensors.metadata() or {}).get(_KEY)
        if text is None:
            raise ValueError(f"{self.path} is a safetensors file, but not a region file: it has no {_KEY!r} metadata")
        try:
            fields = json.loads(text)
            self.format = fields["format"]
            if type(self.format) is not int or self.format not in (1, _FORMAT):
                raise ValueError(
                    f"region format {self.format!r}, this version reads {_FORMAT}; "
                    "read it with the version of lingregions that wrote it (see its provenance)"
                )
            if self.format == _FORMAT and fields.pop("crc32", None) != checksum(fields):
                raise ValueError(
                    "the header does not match its checksum; the file was damaged or changed: copy it again"
                )
            matrices = {name: _matrix(name, each) for name, each in fields["matrices"].items()}
            provenance, digest = Provenance.parse(fields["provenance"]), str(fields["digest"])
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            said = (
                str(error)
                if isinstance(error, ValueError)
                else f"the header has another form than a region file ({error!r})"
            )
            raise ValueError(f"{self.path}: {said}") from None
        stored = set(self.tensors.keys())
        if stored != matrices.keys():
            odd = sorted(stored ^ matrices.keys())[0]
            raise ValueError(f"{self.path}: tensor {odd!r} is in the {'file' if odd in stored else 'header'} only")
        return Header(provenance, matrices, digest)

    @property
    def largest(self) -> int:
        """Entries of the largest matrix."""
        return max((each.size for each in self.header.matrices.values()), default=0)

    def check(self, size: int) -> None:
        """Make sure, before masks of `size` bytes are made, that they have room; an old file is read whole first."""
        self._fit(size)
        if self.format == 1:
            _logger.warning("%s is of region format 1: nothing but its masks is covered by a checksum", self.path)
            self.verify()

    def _fit(self, size: int) -> None:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if size > memory:
            raise ValueError(
                f"{self.path}: its masks take {size / 1e9:,.0f} GB, but there are {memory / 1e9:,.0f} GB here"
            )

    def verify(self) -> None:
        """Read every mask; raises ValueError where they are not those that the digest was made of."""
        self._fit(self.largest)
        digests = {}
        for name, matrix in self.header.matrices.items():
            mask = np.empty(matrix.shape, np.bool_)
            self.mask(name, mask)
            digests[name] = _digest(name, mask)
        if _total(digests) != self.header.digest:
            raise ValueError(
                f"{self.path}: the masks do not match the digest in the header; the file was damaged or changed"
            )

    def mask(self, name: str, out: np.ndarray) -> None:
        """Write the mask of one matrix into `out` (bool, its shape); raises ValueError when the content is damaged."""
        matrix, code, flat = self.header.matrices[name], self.tensors.get_tensor(name), out.reshape(-1)
        if code.dtype != matrix.coding:
            raise ValueError(f"{self.path}: {name} is stored as {code.dtype}, the header says {matrix.coding}")
        if matrix.crc32 and f"{zlib.crc32(code):08x}" != matrix.crc32:
            raise ValueError(f"{self.path}: {name} does not match its checksum; the file was damaged or changed")
        if code.dtype == np.uint8:
            if code.size != -(-matrix.size // 8):
                raise ValueError(f"{self.path}: {name} holds {code.size} bytes for {matrix.size} entries")
            flat[...] = np.unpackbits(code, count=matrix.size, bitorder="little").view(np.bool_)
        else:
            if code.size and int(code.max()) >= matrix.size:
                raise ValueError(f"{self.path}: {name} has index {int(code.max())}, beyond its {matrix.size} entries")
            flat[...] = False
            flat[code] = True
        found = int(np.count_nonzero(flat))
        if found != matrix.count:
            raise ValueError(
                f"{self.path}: {name} holds {found} entries, the header says {matrix.count}; the file is damaged"
            )


def _matrix(name: str, fields: Mapping[str, Any]) -> _Matrix:
    """Return what the header says of a matrix; raises ValueError where that cannot be."""
    matrix = _Matrix(
        tuple(fields["shape"]), fields["count"], fields["coding"], fields.get("crc32", ""), fields.get("removal", 0.0)
    )
    numbers = (*matrix.shape, matrix.count)
    if (
        not all(type(each) is int and each >= 0 for each in numbers)
        or matrix.coding not in ("uint8", "uint32", "uint64")
        or matrix.count > matrix.size
        or not isinstance(matrix.removal, float)
    ):
        raise ValueError(f"the header says what cannot be of {name!r}: {dict(fields)}")
    return matrix


def header(path: str | os.PathLike[str]) -> Header:
    """Return what a region file says of itself, without reading its masks; raises as `load` does."""
    return _Reader(path).header


def _read(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Return {Hugging Face name: bool mask [out, in]}, for tools that want NumPy; raises as `load` does."""
    reader = _Reader(path)
    reader.check(reader.header.size)
    masks = {}
    for name, matrix in reader.header.matrices.items():
        masks[name] = np.empty(matrix.shape, np.bool_)
        reader.mask(name, masks[name])
    return masks


def entries(path: str | os.PathLike[str]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (Hugging Face name, sorted flat indices of its entries) by matrix, one at a time; raises as `load` does.

    A 1 % region of LLaMA-2-7B never takes more than one mask of its largest matrix, 45 MB.
    """
    reader = _Reader(path)
    reader.check(reader.largest)
    for name, matrix in reader.header.matrices.items():
        mask = np.empty(matrix.shape, np.bool_)
        reader.mask(name, mask)
        yield name, np.flatnonzero(mask)


def load(
    path: str | os.PathLike[str],
    like: Mapping[str, Any] | jax.Device | None = None,
    model: str | None = None,
    tokenizer: str | None = None,
) -> Region:
    """Return the region of a file, leaf by leaf straight to its shards.

    Args:
      path: the region file.
      like: tree of arrays or `ShapeDtypeStruct`s (the parameters will do) that gives shapes and shardings, and with
        which the region must agree; a device puts the masks there, None on the default one.
      model: hash of the model that the region will be used on.
      tokenizer: fingerprint of its tokenizer.

    Raises:
      ValueError: a file that is cut short, damaged, of another format, or of another model, tokenizer or shape; says
        which.
      FileNotFoundError: there is no such file.
    """
    reader = _Reader(path)
    _agree(reader, model, tokenizer)
    shapes = _shapes(reader)
    if isinstance(like, jax.Device):
        home = jax.sharding.SingleDeviceSharding(like)
        like = {path: jax.ShapeDtypeStruct(each.shape, each.dtype, sharding=home) for path, each in shapes.items()}
    wanted = shapes if like is None else trees.flatten(like)
    for place, shape in shapes.items():
        if place not in wanted:
            raise ValueError(f"{reader.path}: the region has {place!r}, which the model lacks")
        if tuple(wanted[place].shape) != shape.shape:
            theirs = tuple(wanted[place].shape)
            raise ValueError(f"{reader.path}: {place!r} has shape {shape.shape} in the region, {theirs} in the model")
    reader.check(0 if like is not None else reader.header.size)
    masks = {}
    for place in shapes:
        named = region.matrices(place, shapes[place])

        def fill(layer: int, out: np.ndarray, named: list[str] = named) -> None:
            reader.mask(named[layer], out)

        masks[place] = stack.build(place, wanted[place], fill)
    return Region(trees.unflatten(masks), reader.header.provenance)


def _agree(reader: _Reader, model: str | None, tokenizer: str | None) -> None:
    own = reader.header.provenance
    for what, ours, theirs in (("model", own.model, model), ("tokenizer", own.tokenizer, tokenizer)):
        if theirs is not None and ours != theirs:
            raise ValueError(
                f"{reader.path} is a region of another {what}: its {what} hash is {ours or 'not recorded'}, "
                f"that of the {what} in use is {theirs}"
            )


def _shapes(reader: _Reader) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the stacked shape of every path; raises ValueError where layers are missing or differ."""
    layers: dict[str, dict[int | None, tuple[int, ...]]] = {}
    for name, matrix in reader.header.matrices.items():
        path, layer = region.locate(name)
        layers.setdefault(path, {})[layer] = matrix.shape
    shapes = {}
    for path in sorted(layers):
        found = layers[path]
        if None in found:
            shapes[path] = jax.ShapeDtypeStruct(found[None], np.bool_)
            continue
        if (
            sorted(layer for layer in found if layer is not None) != list(range(len(found)))
            or len(set(found.values())) > 1
        ):
            raise ValueError(
                f"{reader.path}: {path!r} does not hold one matrix of one shape for each of {len(found)} layers"
            )
        shapes[path] = jax.ShapeDtypeStruct((len(found), *found[0]), np.bool_)
    return shapes


def verify(
    path: str | os.PathLike[str],
    like: Mapping[str, Any] | None = None,
    model: str | None = None,
    tokenizer: str | None = None,
) -> Header:
    """Return the header of a file whose every mask was read and whose digest holds; raises as `load` does.

    Args as of `load`; `like` gives shapes only.
    """
    reader = _Reader(path)
    _agree(reader, model, tokenizer)
    shapes = _shapes(reader)
    if like is not None:
        trees.assert_parallel(
            {place: each for place, each in trees.flatten(like).items() if place in shapes}, shapes, f"{reader.path}"
        )
    reader.verify()
    return reader.header
