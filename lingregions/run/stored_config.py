"""The config that a work directory was begun with: what config.json holds, and in what another config differs."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import config_dict

from lingregions.run import environment, files
from lingregions.run.files import RunError
from lingregions.run.record import read_object

_FORMAT = 2  # of the work directory; a directory of another format is refused
_MACHINE = ("machine",)  # top-level sections of a config that may not change a figure, and so may change on resume
# Keys that say where something lies. Another place may hold the same: what is there is identified by its hash.
_PLACES = ("model.source", "data.source", "data.score_source", "data.evaluate_source", "data.train_source")

_STAMP = "lingregions_format"  # the key of config.json that says: ours, and which format
# What a process that died at once can leave.
_LEFT = {files.LOCK, files.CLAIM, f".probe{files.PARTIAL}", f"config.json{files.PARTIAL}"}


def plain_config(config: config_dict.ConfigDict | Mapping[str, Any]) -> dict[str, Any]:
    """Return a config, its references resolved, as what config.json can hold.

    Raises:
      RunError: a value is not JSON; it is named.
    """
    values = config.to_dict() if isinstance(config, config_dict.ConfigDict) else dict(config)
    if _STAMP in values:
        raise RunError(f"a config may not have a key {_STAMP}: the work directory uses it")
    for path, value in _paths(values):
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError):
            raise RunError(
                f"config.{path} is {value!r}, which config.json cannot hold; give a number or text"
            ) from None
    plain: dict[str, Any] = _masked(json.loads(json.dumps(values)))
    return plain


def _masked(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _masked(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_masked(each) for each in value]
    return environment.masked(value) if isinstance(value, str) else value


def stamped(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what config.json holds of a plain config: all of it, and the format of the work directory."""
    return {_STAMP: _FORMAT, **config}


def read_config(folder: Path) -> dict[str, Any] | None:
    """Return the config that a work directory was begun with; None for a new or empty folder. Only reads.

    Raises:
      RunError: the folder is a file, foreign, damaged, or of another format.
    """
    with files.explained(folder):
        if folder.exists() and not folder.is_dir():
            raise RunError(f"--workdir={folder} is a file, a folder is needed")
        if _empty(folder):
            return None
    path = folder / "config.json"
    if not path.is_file():
        raise _foreign(folder)
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise RunError(
            f"{path} is cut or no JSON ({error}). Nothing was written; --fresh moves the folder aside and begins again"
        ) from None
    if not isinstance(stored, dict) or _STAMP not in stored:
        raise _foreign(folder)
    number = stored.pop(_STAMP)
    if number != _FORMAT:
        raise RunError(
            f"{folder} has format {number}, this version reads and writes {_FORMAT}. Nothing was written; "
            "use the version that made it, another --workdir, or --fresh"
        )
    return stored


def is_begun(folder: Path) -> bool:
    """Whether there is a work directory, sound or not, to move aside; a folder of anything else is refused."""
    if _empty(folder):
        return False
    path = folder / "config.json"
    config = read_object(path)
    ours = _STAMP in config if config is not None else path.is_file() and (folder / files.LOCK).is_file()
    if not ours:  # the folder of a Hugging Face model holds a config.json too
        raise _foreign(folder)
    return True


def _empty(folder: Path) -> bool:
    return not folder.is_dir() or all(path.name in _LEFT for path in folder.iterdir())


def _foreign(folder: Path) -> RunError:
    return RunError(
        f"{folder} is not a work directory of lingregions: it holds other files. "
        "Nothing was written; give an empty or new folder as --workdir"
    )


def refuse_difference(folder: Path, stored: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Check that a work directory may go on with a config: what decides a figure is what it was begun with.

    Raises:
      RunError: it is not; every key that differs is listed.
    """
    old, new = (
        {path: value for path, value in _paths(each) if path.partition(".")[0] not in _MACHINE and path not in _PLACES}
        for each in (stored, config)
    )
    lines = difference(old, new)
    if lines:
        raise RunError(
            "\n".join([f"{folder} was begun with another config:", *(f"  {line}" for line in lines)])
            + "\nGive another --workdir, or --fresh to move this one aside and begin again"
        )


def is_moved(stored: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    """Tell whether a config names another place for a model or a text than the stored one."""
    old, new = dict(_paths(stored)), dict(_paths(config))
    return any(old.get(path) != new.get(path) for path in _PLACES)


def difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """List the keys in which two configs differ, one line each; they may be flat."""
    old, new = dict(_paths(before)), dict(_paths(after))
    return [
        f"{path}: {_show(old, path)} -> {_show(new, path)}"
        for path in sorted({*old, *new})
        if path not in old or path not in new or old[path] != new[path]
    ]


def _paths(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key in sorted(values):
        if isinstance(values[key], Mapping) and values[key]:
            yield from _paths(values[key], f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", values[key]


def _show(values: Mapping[str, Any], path: str) -> str:
    return json.dumps(values[path], ensure_ascii=False) if path in values else "(not there)"
