"""JSON objects of a model's files: read whole, or refused in one sentence that names the file."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
      ValueError: not UTF-8, not JSON, nested too deep, a key that occurs twice, or no object.
    """
    return parse_object(path.read_bytes(), str(path))


def parse_object(text: bytes, where: str) -> dict[str, Any]:
    """Return the JSON object in a text; `where` is what the message of a ValueError calls it."""
    try:
        content = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:  # ValueError covers broken UTF-8 and numbers of 5,000 digits
        raise ValueError(f"{where}: not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{where}: expected a JSON object, found {type(content).__name__}")
    return content


def _unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object, refusing a key that occurs twice: the second would hide the first."""
    out: dict[str, Any] = {}
    for key, value in pairs:
        if key in out:
            raise ValueError(f"{key} occurs twice")
        out[key] = value
    return out
