"""Summary: the rows of all cells in one table, and the cells side by side in one report.

Everything is computed from the files of finished cells, in the order of the grid: a sweep that was killed and resumed,
or shared by several machines, gives the same bytes. Damage is in nats per token, the logarithm of the ratio of the
perplexities.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from lingregions import report
from lingregions.report import numerals
from lingregions.report.damage import BASE, average, collect
from lingregions.report.facts import results
from lingregions.run import Run, table
from lingregions.sweep.grid import Cell, Grid, text

TABLES = ("results.csv", "damage.csv")  # of a cell, put together row by row
SEED = "seed"  # cells that differ in it alone are repetitions
EVERY = "all"  # in the column "language" of damage.csv: the mean over all of them


class Loss(NamedTuple):
    """What an arm costs in a cell against a reference: mean over languages, nats per token; bounds where known."""

    arm: str
    reference: str
    value: float | None
    low: float | None
    high: float | None


def write(folder: Path, grid: Grid, states: Mapping[str, str], finished: Sequence[Cell]) -> None:
    """Write results.csv, damage.csv, tables and report of a sweep.

    Args:
      folder: of the sweep.
      grid: all its cells.
      states: {name of a cell: how it stands, in words}.
      finished: the cells whose rows are taken.

    Raises:
      InUse: another process is writing them.
    """
    with Run.open(folder, grid.config) as run:
        for name in TABLES:
            if content := join(folder, grid.keys, finished, name):
                run.write(name, content)
        for name, shown in tables(folder, grid, states, finished).items():
            run.write(f"tables/{name}.json", json.dumps(shown, ensure_ascii=False, indent=1) + "\n")
        if jax.process_index() == 0:
            report.write(run.folder, grid.cells[0].config.machine.pictures)


def join(folder: Path, keys: Sequence[str], cells: Sequence[Cell], name: str) -> bytes:
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


def losses(folder: Path) -> list[Loss]:
    """Return what each arm of a finished cell costs: from damage.csv with its intervals, else from results.csv."""
    path = folder / "damage.csv"
    if path.exists():
        return [
            Loss(row["arm"], row["reference"], *(_number(row[name]) for name in ("damage_nats", "low", "high")))
            for row in table.read(path)
            if row["language"] == EVERY
        ]
    if not (folder / "results.csv").exists():
        return []
    return [
        Loss(arm, BASE, figures.cost(arm), None, None)
        for figures in collect(results(folder / "results.csv"))
        for arm in figures.arms
        if arm != BASE
    ]


def tables(folder: Path, grid: Grid, states: Mapping[str, str], finished: Sequence[Cell]) -> dict[str, dict[str, Any]]:
    """Return the tables of the report: the cells, what every arm costs in each, and that over the seeds."""
    costs = {cell.name: losses(folder / "cells" / cell.name) for cell in finished}
    found = {"cells": _cells(folder, grid, states) | {"headline": _headline(grid, finished, costs)}}
    if any(costs.values()):
        found["cells_damage"] = _damage(grid, finished, costs)
        found["cells_heatmap"] = _heatmap(finished, costs)
        if any(len({text(cell.values[key]) for cell in finished}) > 1 for key in grid.keys if key == SEED):
            found["cells_seeds"] = _seeds(grid, finished, costs)
    return found


def _headline(grid: Grid, finished: Sequence[Cell], costs: Mapping[str, Sequence[Loss]]) -> str:
    """How far the sweep is, and between what the first arm's damage lies."""
    said = f"{len(finished)} of {len(grid.cells)} cells over {' and '.join(grid.keys)} are finished"
    first = [costs[cell.name][0] for cell in finished if costs[cell.name]]
    values = [loss.value for loss in first if loss.value is not None]
    arms = {(loss.arm, loss.reference) for loss in first}
    if len(arms) != 1 or not values:
        return f"{said}."
    low, high = numerals.number(min(values)), numerals.number(max(values))
    return f"{said}; {first[0].arm} costs from {low} to {high} nats per token."


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


def _damage(grid: Grid, finished: Sequence[Cell], costs: Mapping[str, Sequence[Loss]]) -> dict[str, Any]:
    return {
        "title": "Damage by cell and arm",
        "note": "Difference in NLL per token, mean over the languages, in nats; with its 95 % interval where the cell "
        "has one. The rows of every language are in results.csv and damage.csv.",
        "columns": [
            *({"name": key} for key in grid.keys),
            {"name": "arm"},
            {"name": "against"},
            {"name": "damage (nats/token)", "kind": "interval"},
        ],
        "rows": [
            [*_values(grid, cell), loss.arm, loss.reference, [loss.value, loss.low, loss.high]]
            for cell in finished
            for loss in costs[cell.name]
        ],
    }


def _heatmap(finished: Sequence[Cell], costs: Mapping[str, Sequence[Loss]]) -> dict[str, Any]:
    names = list(dict.fromkeys(loss.arm for cell in finished for loss in costs[cell.name] if loss.reference == BASE))
    by = {cell.name: {loss.arm: loss.value for loss in costs[cell.name] if loss.reference == BASE} for cell in finished}
    return {
        "kind": "heatmap",
        "title": "Damage of every arm in every cell",
        "note": "Against the untouched model of the cell, mean over the languages.",
        "corner": "cell",
        "rows": [cell.label for cell in finished],
        "columns": names,
        "values": [[by[cell.name].get(name) for name in names] for cell in finished],
        "format": "decimal",
        "unit": "nats/token",
    }


def _seeds(grid: Grid, finished: Sequence[Cell], costs: Mapping[str, Sequence[Loss]]) -> dict[str, Any]:
    groups: dict[tuple[str, ...], list[float | None]] = {}
    keys = [key for key in grid.keys if key != SEED]
    for cell in finished:
        for loss in costs[cell.name]:
            group = (*(text(cell.values[key]) for key in keys), loss.arm, loss.reference)
            groups.setdefault(group, []).append(loss.value)
    return {
        "title": "Damage over the seeds",
        "note": "Mean of the cells that differ in the seed alone, with the lowest and the highest of them.",
        "columns": [
            *({"name": key} for key in keys),
            {"name": "arm"},
            {"name": "against"},
            {"name": "seeds", "kind": "count"},
            {"name": "mean (lowest to highest), nats/token", "kind": "interval"},
        ],
        "rows": [[*group, len(values), list(_spread(values))] for group, values in groups.items()],
    }


def _spread(values: Sequence[float | None]) -> Iterator[float | None]:
    present = [value for value in values if value is not None]
    yield average(values)
    yield min(present, default=None)
    yield max(present, default=None)


def _values(grid: Grid, cell: Cell) -> list[str]:
    return [text(cell.values[key]) for key in grid.keys]


def _number(word: str) -> float | None:
    value = float(word or "nan")
    return value if math.isfinite(value) else None
