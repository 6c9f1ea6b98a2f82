"""Grid: the cells of a sweep, each with its values, its name and its config.

    config.base = "../core_removal.py:tiny"             # the experiment's config, relative to this file
    config.grid = ConfigDict({"score": {"preset": ("sound", "paper")}, "seed": (0, 1)})
    config.cells = ({"score.preset": "paper", "seed": 7},)  # optional: cells beside the product

On the command line `--config.grid.seed=0,1,2` changes the grid, and any other `--config.KEY=VALUE` the config of the
experiment in all cells. Resolving a cell runs its config file: milliseconds.
"""

import dataclasses
import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict

from lingregions import settings
from lingregions.settings import SettingsError

_LONGEST = 120  # characters of a cell's name
_DEFAULT = "default"  # how a name and a label write "", which leaves a value to another setting


@dataclasses.dataclass(frozen=True)
class Cell:
    """One work directory of a sweep.

    Attributes:
      name: of its folder, such as "preset=paper_seed=1".
      label: the same for readers, such as "preset paper, seed 1".
      values: {dotted key: value}, in the order of the grid.
      config: the resolved, locked config.
    """

    name: str
    label: str
    values: Mapping[str, Any]
    config: ConfigDict


@dataclasses.dataclass(frozen=True)
class Grid:
    """A sweep as it is asked for.

    Attributes:
      keys: the dotted keys that differ between cells, in alphabetical order.
      cells: the product, the last key fastest; then the single cells.
      config: what the folder of the sweep was begun with: the config of the first cell, and the grid.
    """

    keys: tuple[str, ...]
    cells: tuple[Cell, ...]
    config: Mapping[str, Any]


class Asked(NamedTuple):
    """What the words of a sweep ask for: the cells shard, shard + shards, ... of a grid, counted from 1."""

    invocation: settings.Invocation
    grid: Grid
    shard: int
    shards: int


def ask(words: Sequence[str]) -> Asked:
    """Return what the words after `sweep` ask for.

    Raises:
      SettingsError: a mistake in the words, the sweep's config, or that of a cell.
    """
    mine, theirs = _split(words)
    values = flags.FlagValues()
    flags.DEFINE_string("shard", "1/1", "the cells of one of several processes: 2/4 is the second of four", values)
    asked = settings.parse(mine, values)
    number, count = _shard(str(asked.flags["shard"].value))
    if asked.fresh and count > 1:
        raise SettingsError("--fresh moves aside the whole sweep, the other shards too: give it without --shard")
    return Asked(asked, _resolve(asked.source, asked.config, theirs), number, count)


def _shard(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None:
        raise SettingsError(f"--shard={text}: i/n is needed, such as 2/4, the second of four")
    number, count = int(match[1]), int(match[2])
    if not 1 <= number <= count:
        raise SettingsError(f"--shard={text}: shards are counted from 1, so i must lie in 1 to {max(count, 1)}")
    return number, count


def _split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Part the words of a command line: those for the sweep's own config and flags, and those for every cell's."""
    mine: list[str] = []
    theirs: list[str] = []
    for word in words:
        path = settings.key(word)
        own = path is None or path.partition(".")[0] in ("base", "grid", "cells")
        (mine if own else theirs).append(word)
    return mine, theirs


def _resolve(source: str, sweep: ConfigDict, overrides: Sequence[str] = ()) -> Grid:
    """Return the grid of a sweep's config.

    Args:
      source: the config file of the sweep, with its variant, as given.
      sweep: its config.
      overrides: words for the config of every cell.

    Raises:
      SettingsError: this is no sweep, an axis has no values or twice the same, a key is not in the config of the
        experiment or takes no such value, an override sets a key of the grid, or two cells are the same.
    """
    if "base" not in sweep or "grid" not in sweep:
        raise SettingsError(f"{source} is no sweep: a sweep names a `base` and a `grid`; run it with: lingregions run")
    base = str(settings.locate(source).parent / sweep.base)
    axes = dict(settings.leaves(sweep.grid))
    for key, values in axes.items():
        if not isinstance(values, tuple) or not values:
            raise SettingsError(f"grid.{key} of {source} is {values!r}; a tuple of values is needed, such as (0, 1)")
    single = tuple(dict(cell) for cell in sweep.get("cells", ()))
    keys = tuple(sorted({*axes, *(key for cell in single for key in cell)}))
    for path in map(settings.key, overrides):
        if path in keys:
            raise SettingsError(f"{path} is a key of the grid: set its values with --config.grid.{path}=...")
    chosen = [*(dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values()) if axes), *single]
    if not chosen:
        raise SettingsError(f"{source} has no cells: its grid is empty")
    cells = tuple(_cells(base, overrides, keys, chosen))
    names = Counter(cell.name for cell in cells)
    if twice := [name for name, count in names.items() if count > 1]:
        raise SettingsError(f"{source} has the cell {twice[0]} twice")
    config = {**cells[0].config.to_dict(), "grid": axes, "cells": single}
    return Grid(keys, cells, config)


def _cells(
    base: str, overrides: Sequence[str], keys: Sequence[str], chosen: Sequence[Mapping[str, Any]]
) -> Iterator[Cell]:
    short = _shorten(keys)
    for given in chosen:
        config = settings.load(base, overrides, given)
        full = dict(settings.leaves(config))
        values = {key: full[key] for key in keys}
        label = ", ".join(f"{short[key]} {text(value) or _DEFAULT}" for key, value in values.items())
        yield Cell(_name(short, values), label, values, config)


def _shorten(keys: Sequence[str]) -> dict[str, str]:
    """The last word of each key; where two keys share it, the whole keys."""
    last = Counter(key.rpartition(".")[2] for key in keys)
    return {key: key if last[key.rpartition(".")[2]] > 1 else key.rpartition(".")[2] for key in keys}


def _name(short: Mapping[str, str], values: Mapping[str, Any]) -> str:
    """A folder's name that tells the values; where that loses something, a checksum of the values ends it."""
    exact = "_".join(f"{short[key]}={text(value) or _DEFAULT}" for key, value in values.items())
    plain = re.sub(r"[^A-Za-z0-9.,+=_-]+", "-", exact.replace("%", "pct"))
    if plain.replace("pct", "%") == exact and len(plain) <= _LONGEST:
        return plain
    known = json.dumps({key: values[key] for key in sorted(values)}, sort_keys=True)
    return f"{plain[: _LONGEST - 9]}-{hashlib.sha256(known.encode()).hexdigest()[:8]}"


def text(value: Any) -> str:
    """Return a value as it is written on the command line: ("ar", "zh") is ar,zh."""
    return ",".join(map(text, value)) if isinstance(value, tuple | list) else str(value)
