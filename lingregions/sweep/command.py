"""The verb `sweep`: its flags, one cell after the other, and what is told at the end."""

import contextlib
import dataclasses
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType

from lingregions import door, micro
from lingregions.experiments import perform
from lingregions.experiments import step as planning
from lingregions.run import (
    Interrupted,
    InUse,
    Run,
    RunError,
    cluster,
    environment,
    files,
    meeting,
    programs,
    replacing,
    verify,
)
from lingregions.sweep import summary
from lingregions.sweep.grid import Asked, Cell, Grid

_PATIENCE = 60.0  # seconds to wait while another process begins the same folder

# How a cell stands.
_FINISHED, _FAILED, _ELSEWHERE, _OPEN = "finished", "failed", "running elsewhere", "not finished"


@dataclasses.dataclass(frozen=True)
class _Outcome:
    """What came of one cell: how it stands, and the error of one that failed."""

    state: str
    error: str = ""


def run(asked: Asked) -> int:
    """Run the cells of a sweep that are asked for; returns the exit code: 1 if a cell failed."""
    grid, workdir, fresh = asked.grid, asked.invocation.workdir, asked.invocation.fresh
    cells = grid.cells[asked.shard - 1 :: asked.shards]
    if asked.invocation.dry_run:
        _plan(grid, cells, workdir)
        return 0
    _, problems = _look(workdir, [cell for cell in cells if fresh or not _begun(workdir, cell)], fetch=True)
    if problems:
        raise door.refusal(problems)
    machine = grid.cells[0].config.machine
    if machine.distributed:
        meeting.connect(os.environ, machine.get("wait_seconds", cluster.WAIT))
    folder = workdir.expanduser().absolute()
    programs.keep(machine.cache)  # each cell builds its functions anew, but from most grids the same programs
    with _stopping(folder):
        _begin(folder, grid, fresh)
        outcomes = _run(folder, cells)
        return _finish(folder, grid, outcomes, partial=asked.shards == 1)


def _begun(folder: Path, cell: Cell) -> bool:
    """Tell whether a cell has a folder, be it damaged: such a one fails by itself, and the others go on."""
    try:
        return Run.examine(folder / "cells" / cell.name, cell.config)
    except RunError:
        return True


def _look(folder: Path, cells: Sequence[Cell], fetch: bool = False) -> tuple[list[Sequence[planning.Step]], list[str]]:
    """Return the steps of each cell, and all that keeps them from running: each problem once, with its cells."""
    steps: list[Sequence[planning.Step]] = []
    left: list[planning.Step] = []
    wrong: dict[str, list[str]] = {}
    for cell in cells:
        place = folder / "cells" / cell.name
        planned, problems = door.problems(cell.config, place, fetch)
        steps.append(planned)
        left += [step for step in planned if not step.parts or step.finished(place) < step.parts]
        for problem in problems:
            wrong.setdefault(problem, []).append(cell.name)
    said = [f"{problem} ({_where(names, cells)})" for problem, names in wrong.items()]
    return steps, said or [f"{problem} (all cells)" for problem in door.space(left, folder)]


def _where(names: Sequence[str], cells: Sequence[Cell]) -> str:
    if len(names) == len(cells):
        return "all cells"
    return f"{', '.join(names[:3])}{f' and {len(names) - 3} more cells' if len(names) > 3 else ''}"


@contextlib.contextmanager
def _stopping(folder: Path) -> Iterator[None]:
    """Turn SIGTERM and SIGINT into `Interrupted`, between cells too, where no run is open that would."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number, folder)

    before = {}
    for number in (signal.SIGTERM, signal.SIGINT):
        # Outside of the main thread Python sets no handlers: signals then act as ever.
        with contextlib.suppress(ValueError):
            before[number] = signal.signal(number, stop)
    try:
        yield
    except Interrupted as stopped:
        raise Interrupted(stopped.number, folder) from None  # a cell's names the folder of the cell
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _begin(folder: Path, grid: Grid, fresh: bool) -> None:
    """Write the folder's config.json and environment.json, or hold what is there against this sweep.

    Raises:
      RunError: the folder was begun with another sweep, is not ours, or is to be moved aside while a cell is running.
    """
    if fresh:
        for path in sorted((folder / "cells").glob("*")):
            if (path / ".lock").exists():
                files.Lock(path).release()
    patience = time.monotonic() + _PATIENCE
    # Processes of one run open the folder together; those of other shards may have begun it.
    while fresh or not cluster.alone() or not Run.examine(folder, grid.config):
        try:
            Run.open(folder, grid.config, fresh).close()
            return
        except InUse:
            if time.monotonic() > patience:
                raise
            time.sleep(0.1)  # another shard is writing the two files


def _run(folder: Path, cells: Sequence[Cell]) -> dict[str, _Outcome]:
    outcomes = {}
    for place, cell in enumerate(cells, 1):
        print(f"cell {place} of {len(cells)}: {cell.name}", flush=True)
        outcomes[cell.name] = _attempt(folder, cell)
        print(f"  {_tell(outcomes[cell.name])}", flush=True)
    return outcomes


def _attempt(folder: Path, cell: Cell) -> _Outcome:
    """Carry out a cell unless it is finished; whatever it raises is noted in the folder of the sweep."""
    place, note = folder / "cells" / cell.name, folder / "failed" / f"{cell.name}.json"
    try:
        begun = Run.examine(place, cell.config)
        if not begun or verify(place, "run")[0] is None or Run.relocated(place, cell.config):
            micro.choose(cell.config)
            with Run.open(place, cell.config) as run:
                perform(cell.config, run)
                run.check()  # a signal that came too late for the cell must still stop the sweep
    except InUse:
        return _Outcome(_ELSEWHERE)
    except Exception as error:
        if not cluster.alone():
            raise  # the other processes are in the middle of the cell: they must end too
        said = environment.masked(f"{type(error).__name__}: {error}")
        content = {"cell": cell.values, "error": said, "traceback": environment.masked(traceback.format_exc())}
        with replacing(note) as partial:
            partial.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        return _Outcome(_FAILED, said)
    note.unlink(missing_ok=True)
    return _Outcome(_FINISHED)


def _stand(folder: Path, cell: Cell) -> _Outcome:
    """Return how a cell stands, from its files; checksums are read."""
    place, note = folder / "cells" / cell.name, folder / "failed" / f"{cell.name}.json"
    if verify(place, "run")[0] is not None:
        return _Outcome(_FINISHED)
    if note.exists():
        return _Outcome(_FAILED, str(json.loads(note.read_text(encoding="utf-8"))["error"]))
    return _Outcome(_OPEN)


def _finish(folder: Path, grid: Grid, mine: Mapping[str, _Outcome], partial: bool) -> int:
    """Write the tables if all cells are finished, or `partial` ones; say what is left; return the exit code."""
    outcomes = {}
    for cell in grid.cells:
        outcome = mine.get(cell.name, _Outcome(_OPEN))
        if outcome.state in (_OPEN, _ELSEWHERE):  # of another process, which may have finished it by now
            now = _stand(folder, cell)
            outcome = outcome if now.state == _OPEN else now
        outcomes[cell.name] = outcome
    finished = [cell for cell in grid.cells if outcomes[cell.name].state == _FINISHED]
    if len(finished) == len(grid.cells) or (partial and finished):
        try:
            summary.write(folder, grid, {name: _tell(outcome) for name, outcome in outcomes.items()}, finished)
            print(f"{len(finished)} of {len(grid.cells)} cells: {folder / 'report.html'}")
        except InUse:
            print(f"{len(finished)} of {len(grid.cells)} cells: another process is writing the tables")
    else:
        left = "" if partial else "; the tables are written when all are, or by the command without --shard"
        print(f"{len(finished)} of {len(grid.cells)} cells are finished{left}")
    others = {name: outcome for name, outcome in outcomes.items() if outcome.state != _FINISHED}
    for name, outcome in others.items():
        print(f"  {name}: {_tell(outcome)}", file=sys.stderr)
    return int(any(outcome.state == _FAILED for outcome in mine.values()))


def _tell(outcome: _Outcome) -> str:
    return f"{outcome.state}: {outcome.error}" if outcome.error else outcome.state


def _plan(grid: Grid, cells: Sequence[Cell], folder: Path) -> None:
    """Print the config of the first cell, its steps, and all cells with what they ask for and how they stand.

    Raises:
      SettingsError: what the sweep would be refused for here; on another machine it may go.
    """
    planned, problems = _look(folder, cells)
    lines: list[planning.Step] = []
    for cell, steps in zip(cells, planned, strict=True):
        state = "not begun"
        if _begun(folder, cell):
            parts = sum(each.finished(folder / "cells" / cell.name) for each in steps)
            state = f"{_tell(_stand(folder, cell))}, {parts} of {sum(each.parts for each in steps)} parts done"
        lines.append(planning.add(steps, cell.name, state))
        if len(lines) == 1:
            print(grid.cells[0].config)
            print(f"\nEach cell, such as {cell.name}:\n{planning.tabulate(steps)}\n")
    print(f"{len(cells)} of {len(grid.cells)} cells over {', '.join(grid.keys)}:")
    print(planning.tabulate(lines))
    if problems:
        raise door.refusal(problems)
