"""Run: one work directory, its config, and everything that is written there."""

import contextlib
import json
import logging
import os
import signal
import time
import traceback as traces
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from types import FrameType, TracebackType
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import config_dict

from lingregions.run import checkpoint, cluster, environment, files
from lingregions.run.agreement import agree, require_same_config, require_same_folder
from lingregions.run.files import InUse, RunError, Unavailable
from lingregions.run.progress import Bar, Display
from lingregions.run.record import read_object, seal, strict_json, unseal
from lingregions.run.stored_config import (
    difference,
    is_begun,
    is_moved,
    plain_config,
    read_config,
    refuse_difference,
    stamped,
)
from lingregions.run.table import Row, Table

_SCHEMA = 1  # of identities.json and of the marks in done/
_logger = logging.getLogger("lingregions")


class Interrupted(SystemExit):
    """Raised by `Run.check` after SIGTERM or SIGINT; the exit code is 128 + the signal's number (143, 130)."""

    def __init__(self, number: int, folder: Path) -> None:
        """Say which signal it was and how to go on."""
        super().__init__(128 + number)
        self.number = number
        self.message = (
            f"stopped by {signal.Signals(number).name}; what is finished is kept in {folder}, "
            "the same command goes on from there"
        )

    def __str__(self) -> str:
        return self.message


class Run:
    """A work directory held by this process; see the package docstring. Make one with `Run.open`."""

    def __init__(self, folder: Path, config: dict[str, Any], resumed: bool, lock: files.Lock | None) -> None:
        """For `open`, which has done the checks."""
        self.folder, self.config, self.resumed = folder, config, resumed
        self.notes: list[str] = []  # what was found, repaired or changed, in words
        self.moved = False  # whether the config names another place for a model or a text that lay elsewhere before
        self.interrupted: int | None = None  # the signal that asked this process to stop
        self._lock = lock
        self._tables: dict[str, Table] = {}
        self._handlers: dict[int, Any] = {}
        writer = jax.process_index() == 0
        self._display = Display((config.get("machine") or {}).get("progress", "auto") if writer else "none")

    # Opening and closing

    @classmethod
    def open(
        cls, workdir: str | os.PathLike[str], config: config_dict.ConfigDict | Mapping[str, Any], fresh: bool = False
    ) -> "Run":
        """Open a work directory: a new one, or one that was begun with the same config.

        Probes the disk, takes the lock, repairs what a killed process left, writes config.json and environment.json.
        A config may differ from the stored one only in its section `machine`, and in where a model or a text lies.

        Args:
          workdir: a folder on a local or mounted disk; made if it is not there.
          config: the resolved config; every value must be JSON.
          fresh: move an existing work directory aside, to `<workdir>.old-1` and so on, and begin again.

        Raises:
          RunError: the folder is not ours, damaged, of another format, of another config (the difference is listed), in
            use by another process (`InUse`), or cannot be written; nothing in it has been changed.
        """
        folder, plain = _folder(workdir), plain_config(config)
        wait = float((plain.get("machine") or {}).get("wait_seconds", cluster.WAIT))
        require_same_config(plain, wait)
        run, problem, kind = None, "", 0
        if jax.process_index() == 0:
            try:
                run = cls._open(folder, plain, fresh)
            except RunError as error:
                problem, kind = str(error), isinstance(error, Unavailable) + isinstance(error, InUse)
        said = agree([problem, kind, bool(run and run.resumed), bool(run and run.moved)])
        problem, kind, resumed, moved = said
        if problem:
            raise {0: RunError, 1: Unavailable, 2: InUse}[kind](problem)
        try:
            require_same_folder(folder, wait)
        except BaseException:
            if run is not None:
                run.close()
            raise
        if run is None:
            run = cls(folder, plain, resumed, None)
            run.moved = moved
        return run

    @staticmethod
    def examine(workdir: str | os.PathLike[str], config: config_dict.ConfigDict | Mapping[str, Any]) -> bool:
        """Tell whether a work directory was begun with this config, without opening it. Only reads.

        Raises:
          RunError: `open` would refuse it as not ours, damaged, of another format or of another config.
        """
        folder = _folder(workdir)
        stored = read_config(folder)
        if stored is not None:
            refuse_difference(folder, stored, plain_config(config))
        return stored is not None

    @staticmethod
    def relocated(workdir: str | os.PathLike[str], config: config_dict.ConfigDict | Mapping[str, Any]) -> bool:
        """Tell whether a work directory was begun with a model or texts elsewhere. Only reads; raises as `stored`."""
        return is_moved(Run.stored(workdir).to_dict(), plain_config(config))

    @staticmethod
    def stored(workdir: str | os.PathLike[str]) -> config_dict.ConfigDict:
        """Return the config that a work directory was begun with. Only reads.

        Raises:
          RunError: there is none, or it is not ours, damaged or of another format.
        """
        folder = _folder(workdir)
        found = read_config(folder)
        if found is None:
            raise RunError(f"{folder} is no work directory yet: nothing was begun there")
        return config_dict.ConfigDict(found).lock()

    @classmethod
    def _open(cls, folder: Path, config: dict[str, Any], fresh: bool) -> "Run":
        aside = None
        stored = None if fresh else read_config(folder)  # looks only: a foreign folder stays as it is
        if fresh and is_begun(folder):
            lock = files.Lock(folder)
            aside = _move_aside(folder)
            lock.release()
        with files.explained(folder):
            folder.mkdir(parents=True, exist_ok=True)
        files.probe(folder)
        lock = files.Lock(folder)
        try:
            stored = read_config(folder)  # again, now that nobody else writes
            if stored is not None:
                refuse_difference(folder, stored, config)
            run = cls(folder, config, stored is not None, lock)
            run.moved = stored is not None and is_moved(stored, config)
            run._begin(stored, aside)
        except BaseException:
            lock.release()
            raise
        return run

    # Identities

    def identify(self, name: str, digest: str, place: str = "") -> None:
        """Record what this work directory is made from, or hold it against what was recorded when it was begun.

        Process 0 does it, with no word to the others: it may stand where one of them fails alone.

        Args:
          name: "model", "tokenizer", "data/<language>/<use>" and the like.
          digest: the hash of its content.
          place: where it was read, for messages.

        Raises:
          RunError: it is not what it was.
        """
        if jax.process_index() != 0:
            return
        known, place = identities(self.folder), environment.masked(place)
        before = known.get(name)
        if before is None:
            known[name] = {"digest": digest, "place": place}
            self._write_json("identities.json", seal({"schema": _SCHEMA, "identities": known}))
        elif before["digest"] != digest:
            raise RunError(
                f"the {name} at {place or before['place']} is not the one with which {self.folder} was begun: its hash "
                f"was {before['digest'][:16]} (at {before['place']}) and is {digest[:16]}. Put the earlier one back, "
                "give another --workdir, or --fresh to begin again"
            )

    def _begin(self, stored: dict[str, Any] | None, aside: Path | None) -> None:
        assert self._lock is not None
        swept = files.sweep(self.folder)
        cut = files.repair(self.path("metrics.jsonl"))
        if stored != self.config:
            self._write_json("config.json", stamped(self.config))
        self.log(event="opened", resumed=self.resumed)
        if aside is not None:
            self.note(f"the work directory that was here is now {aside}")
        if self._lock.stale and stored is not None:
            self.note(f"{self._lock.stale} ended without closing this work directory")
        for path in swept:
            self.note(f"{path.relative_to(self.folder)} was left half-written and is removed")
        if cut:
            self.note(f"the last line of metrics.jsonl was cut and is removed: {cut[:200]!r}")
        if stored is not None:
            for line in difference(stored, self.config):
                self.note(f"the config changed, in what decides no figure: {line}")
        self._record_environment()

    def _record_environment(self) -> None:
        """Write environment.json; one that differs stays beside it with a number, as earlier figures came from it."""
        path, now = self.path("environment.json"), environment.describe(self.config.get("compute"))
        if path.exists():
            before = read_object(path) or {}
            if before == now:
                return
            number = 1 + len(list(self.folder.glob("environment-*.json")))
            os.replace(path, self.path(f"environment-{number}.json"))
            changed = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
            self.note(f"the environment changed ({', '.join(changed)}); the earlier one is environment-{number}.json")
        self._write_json("environment.json", now)

    def close(self) -> None:
        """Give the work directory free."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> "Run":
        """Turn SIGTERM and SIGINT into a request that `check` answers; a second signal acts at once."""
        for number in (signal.SIGTERM, signal.SIGINT):
            # Outside of the main thread Python sets no handlers: signals then act as ever.
            with contextlib.suppress(ValueError):
                self._handlers[number] = signal.signal(number, self._interrupt)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()
        try:
            if isinstance(error, Interrupted):
                self.log(event="interrupted", signal=signal.Signals(error.number).name)
            elif error is not None:  # the terminal shows one sentence; what led to it is kept here
                with contextlib.suppress(RunError):  # never instead of what went wrong first
                    self.log(event="failed", error=str(error), traceback=traces.format_exception(error))
        finally:
            self.close()

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self.interrupted is not None:
            signal.signal(number, self._handlers.get(number, signal.SIG_DFL))
            signal.raise_signal(number)
            return
        self.interrupted = number
        # A handler may run in the middle of a print: write past the buffers.
        os.write(2, f"{signal.Signals(number).name}: stopping at the next safe point\n".encode())

    def check(self) -> None:
        """A safe point: everything finished is on disk.

        With several processes all must call it at the same point; a signal to one of them stops all.

        Raises:
          Interrupted: a signal asked us to stop.
        """
        number = self._requested()
        if number:
            raise Interrupted(number, self.folder)

    def stopping(self) -> bool:
        """Tell whether `check` would raise: the moment to save what is half done. All processes call it together."""
        return bool(self._requested())

    def _requested(self) -> int:
        """The number of the signal that some process got, 0 if none."""
        number = self.interrupted or 0
        if jax.process_count() > 1:
            number = int(np.max(multihost_utils.process_allgather(np.int32(number))))
        return number

    def agree(self, value: Any) -> Any:
        """Return process 0's `value` (JSON) in every process: for what a clock or a disk decides."""
        return agree(value)

    # Files

    def path(self, *parts: str) -> Path:
        """Return a path in the work directory.

        Raises:
          ValueError: it would lie outside.
        """
        relative = PurePosixPath(*parts) if parts else PurePosixPath()
        if relative.is_absolute() or ".." in relative.parts:
            raise ValueError(f"{relative} lies outside of the work directory")
        return self.folder.joinpath(*relative.parts)

    def write(self, name: str, content: bytes | str) -> Path:
        """Write a file (text as UTF-8), whole or not at all, and return its path."""
        path = self.path(name)
        if jax.process_index() == 0:
            files.write(path, content.encode() if isinstance(content, str) else content)
        return path

    def _write_json(self, name: str, value: Any) -> None:
        self.write(name, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")

    # Metrics, notes, tables

    def log(self, **fields: Any) -> None:
        """Append one line to metrics.jsonl: {"time": seconds since 1970, **fields}.

        The line is strict JSON: a number that is not finite becomes null, and `<key>_repr` beside it says which it was.

        Raises:
          TypeError: a field is no number, text, list or dict.
        """
        if jax.process_index() == 0:
            line = json.dumps(
                {"time": round(time.time(), 3), **strict_json(fields)}, ensure_ascii=False, allow_nan=False
            )
            files.append(self.path("metrics.jsonl"), line.encode() + b"\n")

    def note(self, text: str) -> None:
        """Tell the user something that the figures do not: on the terminal, in `notes`, and in metrics.jsonl."""
        text = environment.masked(text)
        self.notes.append(text)
        if jax.process_index() == 0:
            _logger.warning("%s", text)
        self.log(event="note", text=text)

    def table(self, name: str, columns: Mapping[str, type], keys: Sequence[str]) -> None:
        """Declare the table `<name>.csv`: typed columns in order, and which of them name a cell; read what is there.

        Raises:
          RunError: the file that is there has other columns or a broken row.
        """
        table = Table(self.path(f"{name}.csv"), columns, keys, writer=jax.process_index() == 0)
        self._tables[name] = table
        if table.cut:
            self.note(f"the last row of {name}.csv was cut and is removed: {table.cut[:200]!r}")

    def add(self, name: str, row: Mapping[str, Any]) -> None:
        """Add a finished row to a table at once on disk; the same row again changes nothing.

        Raises:
          ValueError: the row does not fit the columns.
          RunError: the cell is there with other values.
        """
        self._table(name).add(row)

    def rows(self, name: str) -> list[Row]:
        """Return the rows of a table, those of earlier processes first."""
        found: list[Row] = agree(self._table(name).rows())
        return found

    def _table(self, name: str) -> Table:
        if name not in self._tables:
            raise ValueError(f"table {name} is not declared; declared are {sorted(self._tables)}")
        return self._tables[name]

    # Stages

    def finish(self, name: str, /, *artefacts: str, **facts: Any) -> None:
        """Mark a stage as finished: done/<name>.json with facts and a checksum of the files or folders it vouches for.

        Reads the artefacts once, about a second a gigabyte.
        """
        if jax.process_index() == 0:
            vouched = {artefact: files.digest(self.path(artefact)) for artefact in artefacts}
            mark = {"schema": _SCHEMA, "files": vouched, **strict_json({"facts": facts})}
            self._write_json(f"done/{name}.json", seal(mark))

    def done(self, name: str) -> dict[str, Any] | None:
        """Return the facts of a finished stage; None if it is not finished, or an artefact is gone or changed (noted).

        Reads the artefacts once, about a second a gigabyte.
        """
        facts = self._done(name) if jax.process_index() == 0 else None
        found: dict[str, Any] | None = agree(facts)
        return found

    def _done(self, name: str) -> dict[str, Any] | None:
        facts, problem = verify(self.folder, name)
        if problem:
            self.note(f"{problem}; {name} is done again")
        return facts

    # Trees of arrays

    def save(self, name: str, tree: Any, header: Mapping[str, Any]) -> None:
        """Save a pytree of (sharded) arrays under a name, with a JSON header; the one before stays until then.

        Raises:
          RunError: the disk refuses; what was saved before is intact.
        """
        version = agree(checkpoint.newest(self.path(name))) + 1
        checkpoint.save(self.path(name), version, tree, strict_json(header))

    def load(self, name: str, like: Any) -> Any:
        """Return a saved tree with the structure, shapes, dtypes and shardings of `like`, whatever mesh it came from.

        Raises:
          RunError: nothing is saved, it is another tree (the first path that differs is named), or a file is damaged.
        """
        return checkpoint.load(self.path(name), agree(checkpoint.newest(self.path(name))), like)

    def header(self, name: str) -> dict[str, Any] | None:
        """Return the header of a saved tree; None when nothing is saved under that name."""
        return checkpoint.header(self.path(name), agree(checkpoint.newest(self.path(name))))

    def discard(self, name: str) -> None:
        """Remove a saved tree that is no longer wanted, such as a resume point; nothing happens when there is none."""
        if jax.process_index() == 0:
            checkpoint.discard(self.path(name))

    # Progress

    def whole(self, sizes: Sequence[float], parts: Sequence[float]) -> contextlib.AbstractContextManager[None]:
        """Show the steps of a run as a whole while they are performed; see `Display.whole`."""
        return self._display.whole(sizes, parts)

    def step(self, place: int, name: str) -> contextlib.AbstractContextManager[None]:
        """Show one of these steps while the block performs it, and say when it is finished."""
        return self._display.step(place, name)

    @contextlib.contextmanager
    def progress(self, description: str, total: float, unit: str) -> Iterator[Bar]:
        """Show a piece of work while the block runs: `bar.advance(n)`; what it took goes to metrics.jsonl."""
        with self._display.bar(description, total, unit) as bar:
            yield bar
        self.log(event="timed", description=description, amount=bar.completed, unit=unit, seconds=round(bar.seconds, 3))


def verify(folder: Path, name: str) -> tuple[dict[str, Any] | None, str]:
    """Return the facts of a finished stage of a work directory, None if it is not finished; and why a mark is void.

    Only reads, so the work directory need not be open; about a second a gigabyte of the artefacts.
    """
    path = folder / "done" / f"{name}.json"
    if not path.exists():
        return None, ""
    try:
        marker = unseal(path, read_object(path), _SCHEMA)
    except RunError as error:
        return None, str(error)
    facts: dict[str, Any] = marker["facts"]
    for artefact, digest in marker["files"].items():
        where = folder / artefact
        if not where.exists():
            return None, f"{artefact} is gone"
        if files.digest(where) != digest:
            return None, f"{artefact} is not what {name} wrote"
    return facts, ""


def _folder(workdir: str | os.PathLike[str]) -> Path:
    text = os.fspath(workdir)
    if "://" in text:
        raise RunError(f"--workdir={text} is a remote address; mount it and give the folder")
    return Path(text).expanduser().absolute()


def identities(folder: Path) -> dict[str, dict[str, str]]:
    """Return {name: {digest, place}} of what a work directory is made from, as far as it has been seen."""
    path = folder / "identities.json"
    if not path.exists():
        return {}
    found: dict[str, dict[str, str]] = unseal(path, read_object(path), _SCHEMA)["identities"]
    return found


def _move_aside(folder: Path) -> Path:
    number = 1
    while (aside := folder.with_name(f"{folder.name}.old-{number}")).exists():
        number += 1
    with files.explained(folder):
        folder.rename(aside)
    return aside
