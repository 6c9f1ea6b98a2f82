"""Records: the JSON objects of a work directory - strict values, and a checksum of all fields beside them."""

import json
import math
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lingregions.run import environment
from lingregions.run.files import RunError


def strict_json(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields as strict JSON values; see `Run.log`."""
    found: dict[str, Any] = {}
    for key, value in fields.items():
        plain = _json_value(key, value)
        found[key] = _nulled(plain)
        if not isinstance(plain, dict) and found[key] != plain:
            found[f"{key}_repr"] = repr(plain)
    return found


def _json_value(key: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        return strict_json({str(name): item for name, item in value.items()})
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        return np.asarray(value).tolist()
    if isinstance(value, list | tuple):
        return [_json_value(key, item) for item in value]
    if isinstance(value, str | os.PathLike):
        return environment.masked(str(value))
    if value is None or isinstance(value, bool | int | float):
        return value
    raise TypeError(f"{key} is of type {type(value).__name__}; give a number, text, list or dict")


def _nulled(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return [_nulled(item) for item in value] if isinstance(value, list) else value


def read_object(path: Path) -> dict[str, Any] | None:
    """Return the object in a file; None when the file is absent, cut, or holds something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def seal(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON object with `crc32` beside its fields (`schema` among them): the checksum of all of them."""
    return {**value, "crc32": checksum(value)}


def unseal(path: Path, value: Any, schema: int) -> dict[str, Any]:
    """Return a JSON object that `seal` made, without the checksum.

    Args:
      path: where it was read, for messages.
      value: what was read there.
      schema: the value of its field `schema`.

    Raises:
      RunError: it was changed since it was written, or is of another schema.
    """
    if not isinstance(value, dict):
        raise RunError(f"{path} is damaged: it holds no JSON object")
    if value.get("schema") != schema:
        raise RunError(f"{path} has schema {value.get('schema')}, this version reads {schema}")
    fields = {key: each for key, each in value.items() if key != "crc32"}
    if value.get("crc32") != checksum(fields):
        raise RunError(f"{path} is damaged: it does not match its checksum")
    return fields


def checksum(value: Mapping[str, Any]) -> str:
    """Return the CRC-32 of a JSON object, in hex, whatever the order of its fields."""
    return f"{zlib.crc32(json.dumps(value, sort_keys=True).encode()):08x}"
