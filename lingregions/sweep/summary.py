"""Summary: the rows of all cells in one table, and the cells side by side in one report.

Everything is computed from the files of finished cells, in the order of the grid: a sweep that was killed and resumed,
or shared by several machines, gives the same bytes. An effect is in nats per token, the logarithm of the ratio of the
perplexities.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from lingregions import report
from lingregions.report import effects as measured
from lingregions.report import numerals
from lingregions.run import Run, RunError, identities, table
from lingregions.sweep.grid import Cell, Grid, text

_TABLES = ("results.csv", "effects.csv", "damage.csv")  # of a cell, put together row by row
_SEED = "seed"  # cells that differ in it alone are repetitions


class _Effect(NamedTuple):
    """Mean effect of an intervention over the languages in one cell, nats per token; bounds where known."""

    intervention: str
    control: str
    value: float | None
    low: float | None
    high: float | None


def write(folder: Path, grid: Grid, states: Mapping[str, str], finished: Sequence[Cell]) -> None:
    """Write results.csv, effects.csv, tables and report of a sweep.

    Args:
      folder: of the sweep.
      grid: all its cells.
      states: {name of a cell: how it stands, in words}.
      finished: the cells whose rows are taken.

    Raises:
      InUse: another process is writing them.
      RunError: two cells that ask for one model or text were made from two.
    """
    _check_sources(folder, finished)
    with Run.open(folder, grid.config) as run:
        for name in _TABLES:
            if content := _join(folder, grid.keys, finished, name):
                run.write(name, content)
        for name, shown in _tables(folder, grid, states, finished).items():
            run.write(f"tables/{name}.json", json.dumps(shown, ensure_ascii=False, indent=1) + "\n")
        if jax.process_index() == 0:
            report.write(run.folder, grid.cells[0].config.machine.pictures)


def _check_sources(folder: Path, cells: Sequence[Cell]) -> None:
    """Refuse to set side by side what was made before and after weights or texts changed under the same path."""
    seen: dict[str, tuple[str, str]] = {}
    for cell in cells:
        asked = {name: cell.config[name].to_dict() for name in ("model", "data", "compute") if name in cell.config}
        for name, known in identities(folder / "cells" / cell.name).items():
            drawn = name.startswith("data/") or known["place"].startswith("preset:")  # by the seed
            key = json.dumps([name, asked, cell.config.seed if drawn else None], sort_keys=True)
            other, digest = seen.setdefault(key, (cell.name, known["digest"]))
            if digest != known["digest"]:
                raise RunError(
                    f"the {name} at {known['place']} is another one in {cell.name} than in {other}: its content "
                    "changed between the two. Put the right one there, and remove the cells of the other from "
                    f"{folder / 'cells'}"
                )


def _join(folder: Path, keys: Sequence[str], cells: Sequence[Cell], name: str) -> bytes:
    """Return the rows of a table of all cells as CSV, behind the fields of the grid; nothing where no cell has it.

    Raises:
      RunError: a row of a cell is not what was measured.
    """
    paths = [(cell, folder / "cells" / cell.name / name) for cell in cells]
    found = [(cell, row) for cell, path in paths if path.exists() for row in table.read(path)]
    columns = list(dict.fromkeys(column for _, row in found for column in row))
    rows = [
        [*(text(cell.values[key]) for key in keys), *(row.get(column, "") for column in columns)] for cell, row in found
    ]
    return table.dump([*keys, *columns], rows) if rows else b""


def _mean_effects(folder: Path) -> list[_Effect]:
    """Return the mean effects of a finished cell, from its table of effects; none where it has no such table."""
    path = next((folder / name for name in _TABLES[1:] if (folder / name).exists()), None)
    if path is None:
        return []
    found = measured.read_effects(path)
    rows = found[found["language"] == measured.MEAN].to_dict("records")
    return [
        _Effect(row["intervention"], row["control"], *(_finite(row[name]) for name in ("effect_nats", "low", "high")))
        for row in rows
    ]


def _tables(folder: Path, grid: Grid, states: Mapping[str, str], finished: Sequence[Cell]) -> dict[str, dict[str, Any]]:
    """Return the tables of the report: the cells, every effect in each, and that over the seeds."""
    effects = {cell.name: _mean_effects(folder / "cells" / cell.name) for cell in finished}
    found = {"cells": _cells(folder, grid, states) | {"headline": _headline(grid, finished, effects)}}
    if any(effects.values()):
        found["cells_effects"] = _effects(grid, finished, effects)
        found["cells_heatmap"] = _heatmap(finished, effects)
        if any(len({text(cell.values[key]) for cell in finished}) > 1 for key in grid.keys if key == _SEED):
            found["cells_seeds"] = _seeds(grid, finished, effects)
    return found


def _headline(grid: Grid, finished: Sequence[Cell], effects: Mapping[str, Sequence[_Effect]]) -> str:
    """How far the sweep is, and between what the first intervention's effects lie."""
    said = f"{len(finished)} of {len(grid.cells)} cells over {' and '.join(grid.keys)} are finished"
    first = [effects[cell.name][0] for cell in finished if effects[cell.name]]
    values = [effect.value for effect in first if effect.value is not None]
    compared = {(effect.intervention, effect.control) for effect in first}
    if len(compared) != 1 or not values:
        return f"{said}."
    low, high = numerals.number(min(values)), numerals.number(max(values))
    return f"{said}; {first[0].intervention}: mean effect from {low} to {high} nats per token."


def _cells(folder: Path, grid: Grid, states: Mapping[str, str]) -> dict[str, Any]:
    rows = []
    for cell in grid.cells:
        said = folder / "cells" / cell.name / "headline.txt"
        first = said.read_text(encoding="utf-8").partition("\n")[0] if said.exists() else None
        rows.append([*_values(grid, cell), states[cell.name], first, f"cells/{cell.name}"])
    return {
        "title": "Cells of the sweep",
        "note": "Each cell is a work directory with a report of its own.",
        "columns": [*({"name": key} for key in grid.keys), *({"name": name} for name in ("state", "result", "folder"))],
        "rows": rows,
    }


def _effects(grid: Grid, finished: Sequence[Cell], effects: Mapping[str, Sequence[_Effect]]) -> dict[str, Any]:
    return {
        "title": "Effects by cell and intervention",
        "note": "Difference in NLL per token, mean over the languages, in nats; with its 95 % interval where the cell "
        "has one. The rows of every language are in results.csv and effects.csv.",
        "columns": [
            *({"name": key} for key in grid.keys),
            {"name": "intervention"},
            {"name": "control"},
            {"name": "effect (nats/token)", "kind": "interval"},
        ],
        "rows": [
            [*_values(grid, cell), effect.intervention, effect.control, [effect.value, effect.low, effect.high]]
            for cell in finished
            for effect in effects[cell.name]
        ],
    }


def _heatmap(finished: Sequence[Cell], effects: Mapping[str, Sequence[_Effect]]) -> dict[str, Any]:
    names = list(
        dict.fromkeys(
            effect.intervention for cell in finished for effect in effects[cell.name] if effect.control == measured.BASE
        )
    )
    by = {
        cell.name: {
            effect.intervention: effect.value for effect in effects[cell.name] if effect.control == measured.BASE
        }
        for cell in finished
    }
    return {
        "kind": "heatmap",
        "title": "Effect of every intervention in every cell",
        "note": "Against the untouched model of the cell, mean over the languages.",
        "corner": "cell",
        "rows": [cell.label for cell in finished],
        "columns": names,
        "values": [[by[cell.name].get(name) for name in names] for cell in finished],
        "format": "decimal",
        "unit": "nats/token",
    }


def _seeds(grid: Grid, finished: Sequence[Cell], effects: Mapping[str, Sequence[_Effect]]) -> dict[str, Any]:
    groups: dict[tuple[str, ...], list[float | None]] = {}
    keys = [key for key in grid.keys if key != _SEED]
    for cell in finished:
        for effect in effects[cell.name]:
            group = (*(text(cell.values[key]) for key in keys), effect.intervention, effect.control)
            groups.setdefault(group, []).append(effect.value)
    return {
        "title": "Effects over the seeds",
        "note": "Mean of the cells that differ in the seed alone, with the lowest and the highest of them.",
        "columns": [
            *({"name": key} for key in keys),
            {"name": "intervention"},
            {"name": "control"},
            {"name": "seeds", "kind": "count"},
            {"name": "mean (lowest to highest), nats/token", "kind": "interval"},
        ],
        "rows": [[*group, len(values), list(_spread(values))] for group, values in groups.items()],
    }


def _spread(values: Sequence[float | None]) -> Iterator[float | None]:
    present = [value for value in values if value is not None]
    yield math.fsum(present) / len(present) if present else None
    yield min(present, default=None)
    yield max(present, default=None)


def _values(grid: Grid, cell: Cell) -> list[str]:
    return [text(cell.values[key]) for key in grid.keys]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
