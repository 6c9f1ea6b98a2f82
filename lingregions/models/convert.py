"""Convert: Hugging Face or GGUF weights to parameters, and parameters to a Hugging Face folder.

The declaration of the model (`models.declare`) is the only list of names, shapes and axes. Every matrix it declares is
found exactly once with its exact shape, or nothing is loaded. Values go by layer slice straight to the shard where they
belong: beside the parameters, a process holds one device's part of one stacked leaf (`benchmarks/loading.py`).
"""

import dataclasses
import filecmp
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from lingregions import models
from lingregions import tree as trees
from lingregions.models import evidence, gguf, safetensors
from lingregions.models.evidence import EMBEDDING, HEAD
from lingregions.models.tokenizer import Tokenizer

# Where a model that wraps a text model with others keeps it: {prefix: what stands there in the text model by itself}.
_WRAPPED = {"language_model.": "", "model.language_model.": "model."}
# Buffers that old checkpoints carry: functions of the config, and recomputed.
_BUFFERS = re.compile(r"(.*\.)?rotary_emb\.(inv_freq|cos_cached|sin_cached)")
_SHARD = 5_000_000_000  # bytes of an exported file, the size that Hugging Face uses


class Weights(Protocol):
    """Tensors by Hugging Face name, from any kind of file."""

    @property
    def where(self) -> str:
        """What messages call it."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of each tensor."""

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """Return part of a tensor as float32."""


def open_weights(path: str | Path) -> Weights:
    """Return the weights of a Hugging Face folder or of a GGUF file; only headers are read."""
    path = Path(path)
    return gguf.load(path) if path.is_file() else safetensors.load(path)


def load(source: str | Path | Weights, config: Any, shardings: Mapping[str, Any], dtype: str = "float32") -> trees.Tree:
    """Return the parameters of a Hugging Face folder (safetensors) or a GGUF file, each leaf on its shards.

    Args:
      source: the folder or file, or weights that are open already.
      config: the model config; it decides which tensors are expected.
      shardings: from `mesh.shardings(models.declare(config), mesh)`.
      dtype: of the parameters, "float32" or "bfloat16" (rounded to nearest even).

    Raises:
      FileNotFoundError: a file that is missing.
      ValueError: a tensor that is missing, unexpected, of another shape, quantised or not finite; a broken file.
    """
    weights = check(open_weights(source) if isinstance(source, str | Path) else source, config)
    declaration = models.declare(config)
    if "lm_head" not in declaration and HEAD in weights.shapes:
        _check_head(weights)
    places = trees.flatten(shardings)
    return trees.transform(lambda path, parameter: _place(weights, parameter, places[path], dtype), declaration)


def _place(weights: Weights, parameter: models.Parameter, sharding: Any, dtype: str) -> jax.Array:
    """Return one leaf; each distinct part of it is read once, whatever the number of devices that hold a copy."""
    holders: dict[tuple[tuple[int, int], ...], list[jax.Device]] = {}
    for device, index in sharding.addressable_devices_indices_map(parameter.shape).items():
        bounds = tuple(each.indices(size)[:2] for each, size in zip(index, parameter.shape, strict=True))
        holders.setdefault(bounds, []).append(device)
    shards: list[jax.Array] = []
    for bounds, devices in holders.items():
        values = _read(weights, parameter, bounds).astype(jnp.dtype(dtype), copy=False)
        # Waiting keeps the host copy of one part alive, not those of all.
        shards += jax.block_until_ready([jax.device_put(values, device) for device in devices])
    return jax.make_array_from_single_device_arrays(parameter.shape, sharding, shards)


def _read(weights: Weights, parameter: models.Parameter, bounds: tuple[tuple[int, int], ...]) -> np.ndarray:
    """Return one part of a leaf on the host, layer by layer."""
    files = parameter.files()
    if not parameter.stacked:
        return weights.read(files[0][0], tuple(slice(*each) for each in bounds))
    values = np.empty([stop - start for start, stop in bounds], np.float32)
    for place, layer in enumerate(range(*bounds[0])):
        name, shift = files[layer]
        (first, last), *others = bounds[1:]
        values[place] = weights.read(name, (slice(first + shift, last + shift), *(slice(*each) for each in others)))
    return values


@dataclasses.dataclass(frozen=True)
class _Renamed:
    """Weights some of whose tensors go by other names, {name: as stored}; the others as they are, or not at all."""

    weights: Weights
    stored: Mapping[str, str]
    others: bool = True

    @property
    def where(self) -> str:
        return self.weights.where

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        shapes = dict(self.weights.shapes)
        renamed = {name: shapes.pop(stored) for name, stored in self.stored.items()}
        return shapes | renamed if self.others else renamed

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        return self.weights.read(self.stored.get(name, name), index)


def text_model(weights: Weights) -> Weights:
    """Return the text model in the weights of one that wraps it with others, under the names that it has alone."""
    stored = {}
    for name in weights.shapes:
        for prefix, alone in _WRAPPED.items():
            if name.startswith(prefix):
                stored[alone + name.removeprefix(prefix)] = name
    return _Renamed(weights, stored, others=False)


def check(weights: Weights, config: Any) -> Weights:
    """Return weights that hold every declared matrix with its shape, and nothing that is not understood.

    Costs no read of a value. A tied model may have its one matrix under the name of the head.

    Raises:
      ValueError: what is missing, unexpected or of another shape, and what that tells.
    """
    declaration = models.declare(config)
    tied, layers = "lm_head" not in declaration, evidence.count_layers(weights.shapes)
    if config.layers > max(1000, len(weights.shapes)):  # 2^31 of them have no time for a name each
        raise ValueError(f"{weights.where}: the config has {config.layers} layers, and the weights have {layers}")
    if tied and HEAD in weights.shapes and EMBEDDING not in weights.shapes:
        weights = _Renamed(weights, {EMBEDDING: HEAD})
    found = {name: shape for name, shape in weights.shapes.items() if not _BUFFERS.fullmatch(name)}
    expected = {name: _shape(parts) for name, parts in _stored(declaration).items()}
    if tied and EMBEDDING in found:
        found.pop(HEAD, None)
    missing = [name for name in expected if name not in found]
    unexpected = sorted(name for name in found if name not in expected)
    misshaped = [
        f"{name} {list(found[name])} instead of {list(shape)}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    if not (missing or unexpected or misshaped):
        return weights
    lines = [
        f"{len(names)} {what}: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", misshaped))
        if names
    ]
    advice = evidence.explain(expected, found, config.layers)
    raise ValueError(
        f"{weights.where}: the tensors are not those of the config ({len(expected)} expected).\n  "
        + "\n  ".join(lines + ([f"advice: {advice}"] if advice else []))
    )


def _check_head(weights: Weights) -> None:
    """Check that a head that comes with a tied model is the embedding, row block by row block."""
    shape = weights.shapes[EMBEDDING]
    if weights.shapes[HEAD] == shape:
        step = max(1, safetensors.BLOCK // (4 * shape[1]))
        blocks = ((slice(first, first + step), slice(None)) for first in range(0, shape[0], step))
        if all(np.array_equal(weights.read(HEAD, block), weights.read(EMBEDDING, block)) for block in blocks):
            return
    raise ValueError(
        f"{weights.where}: config.json says that the head is the embedding (tie_word_embeddings), but {HEAD} has other "
        "values; set tie_word_embeddings to false if the head was trained on its own"
    )


def export(
    params: Mapping[str, Any],
    config: Any,
    folder: str | Path,
    tokenizer: Tokenizer | None = None,
    dtype: str = "float32",
    limit: int = _SHARD,
) -> None:
    """Write a Hugging Face folder that transformers loads: config.json, safetensors, and the tokenizer's files.

    The folder appears when it is complete, or not at all; where it lies there complete already, written by the same
    call, nothing changes. In a multi-host run every process calls this, and the first one writes. Costs one matrix of
    host memory at a time.

    Args:
      params: the parameter tree, on any mesh.
      config: its model config.
      folder: must not exist yet, be empty, or hold this very export.
      tokenizer: written along, its special ids also into config.json.
      dtype: "float32" (read back bit for bit) or "bfloat16" (rounded to nearest even).
      limit: bytes of one file, from which on the weights are split over several.

    Raises:
      FileExistsError: the folder holds something else already.
      ValueError: parameters that do not fit the config, or are not finite in `dtype`; a tokenizer of another model.
    """
    folder = Path(os.path.abspath(folder))
    if dtype not in safetensors.CODES:
        raise ValueError(f"dtype {dtype!r} is not one of {', '.join(safetensors.CODES)}")
    if occupied := folder.is_dir() and any(folder.iterdir()):
        _refuse_unless(folder, (folder / "config.json").is_file())
    declaration = models.declare(config)
    trees.assert_parallel(declaration, params, "the parameters to export")
    head = models.dump(config) | {"dtype": dtype, "torch_dtype": dtype}  # transformers 5 reads the one, 4 the other
    if tokenizer is not None:
        tokenizer.check(config.vocab)
        head |= {"bos_token_id": tokenizer.bos, "eos_token_id": tokenizer.eos}
    leaves, stored = trees.flatten(params), _stored(declaration)
    shapes = {name: _shape(parts) for name, parts in stored.items()}

    def tensor(name: str) -> np.ndarray:
        parts = [_host(leaves[parameter.path], layer) for parameter, layer in stored[name]]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    writes = jax.process_index() == 0
    partial = folder.parent / f".{folder.name}.partial-{os.getpid()}"
    try:
        if writes:
            partial.mkdir(parents=True)
            (partial / "config.json").write_text(json.dumps(head, indent=2) + "\n", encoding="utf-8")
            if tokenizer is not None:
                tokenizer.save(partial)
        safetensors.save(partial, shapes, tensor, dtype, limit, writes)
        if writes and occupied:
            _refuse_unless(folder, _same_files(partial, folder))
        elif writes:
            os.rename(partial, folder)
    finally:
        if writes:
            shutil.rmtree(partial, ignore_errors=True)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("export")


def _refuse_unless(folder: Path, same: bool) -> None:
    if not same:
        raise FileExistsError(f"{folder}: not empty; choose another folder, or remove this one")


def _same_files(first: Path, second: Path) -> bool:
    """Tell whether two folders hold the same files, to the byte."""
    names = sorted(path.name for path in first.iterdir())
    if names != sorted(path.name for path in second.iterdir()):
        return False
    return not any(filecmp.cmpfiles(first, second, names, shallow=False)[1:])


def _stored(declaration: Mapping[str, Any]) -> dict[str, list[tuple[models.Parameter, int | None]]]:
    """Return, by Hugging Face name, the matrices (parameter, layer or None) that lie in it, from its first row on."""
    found: dict[str, list[tuple[int, models.Parameter, int | None]]] = {}
    for _, parameter in trees.walk(declaration):
        for layer, (name, first) in enumerate(parameter.files()):
            found.setdefault(name, []).append((first, parameter, layer if parameter.stacked else None))
    return {name: [each[1:] for each in sorted(parts, key=lambda each: each[0])] for name, parts in found.items()}


def _shape(parts: Sequence[tuple[models.Parameter, int | None]]) -> tuple[int, ...]:
    """Return the shape of a tensor of these matrices, one below the other."""
    return sum(each.matrix[0] for each, _ in parts), *parts[0][0].matrix[1:]


def _host(leaf: Any, layer: int | None) -> np.ndarray:
    """Return one matrix on the host, gathered from all hosts if it lies on several."""
    values = leaf if layer is None else _layer(leaf, np.int32(layer))
    if isinstance(values, jax.Array) and not values.is_fully_addressable:
        values = multihost_utils.process_allgather(values, tiled=True)
    return np.asarray(values)


@jax.jit
def _layer(leaf: jax.Array, layer: jax.Array) -> jax.Array:
    """Return one matrix of a stacked leaf; the layer is an argument, so that one program serves all of them."""
    matrix: jax.Array = jax.lax.dynamic_index_in_dim(leaf, layer, keepdims=False)
    return matrix
