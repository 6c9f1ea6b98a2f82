"""Kills at random moments: the same command goes on, what it writes is the same to the bit, and nothing is left behind.

    python benchmarks/chaos.py [--kills 3] [--seed 0] [--only run,train,export,data,sweep,pod]

Every scenario is a command of tiny size: `run` (scoring, selection, evaluation), `train` (a frozen training, saved at
every step), `export` of it, `data` (token files, with workers), `sweep`, and `pod`, a `run` of two processes. It is
performed undisturbed; then begun, killed (SIGKILL, the parent process alone, or one of the two) at a random moment
after its first file and begun again, until it ends by itself. Where that comes before all kills were made, it is begun
anew in another folder. So every scenario has exactly so many kills, and every start that is to end, ends.

Prints one JSON line a scenario: kills, folders in which the command came to its end, files there at each kill and at
the end, files compared, which differ, what is left that an undisturbed run has not, processes that outlived their
parent or partner. Exit code 1 where anything differs, is left or lives on; what a failed command said is shown. A
command that takes longer than ten minutes is ended. `environment-1.json` is left, rightly so, where the checkout
changed meanwhile.
"""

import argparse
import collections
import contextlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 600  # of one command
ORPHANS = 20  # seconds in which the children and the partner of a killed process must have ended
QUIET = ("--config.machine.progress=none", "--config.machine.pictures=False", "--config.machine.save_seconds=0")


class Scenario(NamedTuple):
    """A command, in whose words {out} is the folder it writes and {place} the one of all scenarios.

    Attributes:
      words: of the command line.
      compared: patterns of the files below {out} that must be the same to the bit.
      after: the scenario whose undisturbed folder it reads.
      processes: that perform it together.
    """

    words: Sequence[str]
    compared: Sequence[str]
    after: str = ""
    processes: int = 1


RESULTS = ("results.csv", "effects.csv", "segments/**/*.csv", "regions/*", "tables/verdict.json")
SCENARIOS = {
    "run": Scenario(("run", "--config=configs/core_removal.py:tiny", "--workdir={out}", *QUIET), RESULTS),
    "train": Scenario(
        (
            *("run", "--config=configs/frozen_pretraining.py:tiny", "--workdir={out}", *QUIET),
            *("--config.freeze.treatments=full,core", "--config.machine.save_steps=1"),
        ),
        RESULTS,
    ),
    "export": Scenario(
        ("export", "--workdir={place}/train/whole/out", "--training=core 1% seed 0", "--out={out}"), ("**/*",), "train"
    ),
    "data": Scenario(
        ("data", "build", "{place}/texts", "--model=preset:tiny", "--workers=2", "--out={out}"), ("**/*",)
    ),
    "sweep": Scenario(
        (
            *("sweep", "--config=configs/sweeps/definitions_seeds.py:tiny", "--workdir={out}", *QUIET),
            *("--config.score.languages=ar", "--config.evaluate.languages=sw", "--config.select.selectors=top"),
            *("--config.score.samples=1", "--config.evaluate.samples=1", "--config.select.monolingual=False"),
        ),
        ("results.csv", "effects.csv", "cells/*/results.csv", "cells/*/effects.csv", "cells/*/regions/*"),
    ),
    "pod": Scenario(
        (
            *("run", "--config=configs/core_removal.py:tiny", "--workdir={out}", *QUIET),
            *("--config.machine.distributed=True", "--config.machine.mesh.data=2", "--config.select.selectors=top"),
            *("--config.score.languages=ar,zh", "--config.evaluate.languages=sw", "--config.select.monolingual=False"),
            *("--config.score.samples=8", "--config.evaluate.samples=2"),
        ),
        RESULTS,
        processes=2,
    ),
}


class Command:
    """A command in a process group of its own, and what it says in a file beside its folder."""

    def __init__(self, scenario: Scenario, folder: Path) -> None:
        """Start it."""
        folder.mkdir(parents=True, exist_ok=True)
        self.out, self.said, self.started = folder / "out", folder.with_suffix(".txt"), time.monotonic()
        self.since = time.time()
        words = [word.format(out=self.out, place=folder.parent.parent) for word in scenario.words]
        program = [sys.executable, "-m", "lingregions.main", *words]
        with socket.create_server(("localhost", 0)) as free:
            together = {"JAX_COORDINATOR_ADDRESS": f"localhost:{free.getsockname()[1]}"}
        self.processes: list[subprocess.Popen[bytes]] = []
        with open(self.said, "wb") as said:
            for number in range(scenario.processes):
                own = together | {"JAX_NUM_PROCESSES": str(scenario.processes), "JAX_PROCESS_ID": str(number)}
                group = self.processes[0].pid if number else 0
                self.processes.append(
                    subprocess.Popen(
                        program, cwd=ROOT, stdout=said, stderr=said, env=os.environ | own, process_group=group
                    )
                )
        self.process = self.processes[0]

    def begun(self) -> float:
        """Return the seconds until it wrote something; what stands there from a start before does not count."""
        while self.process.poll() is None and not written(self.out.parent, self.since):
            time.sleep(0.05)
        return time.monotonic() - self.started

    def end(self) -> None:
        """Wait until it ends, and raise with what it said where it failed."""
        try:
            codes = [each.wait(max(SECONDS - (time.monotonic() - self.started), 0)) for each in self.processes]
        finally:
            self.outlived(0)
        if any(codes):
            raise RuntimeError(f"exit codes {codes}:\n{self.said.read_text(errors='replace')[-4000:]}")

    def kill(self, after: float, which: int) -> bool:
        """Kill a process so many seconds from now; returns whether it still ran, raises where it had failed before."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.processes[which].wait(after)
            self.end()
            return False
        self.processes[which].kill()
        self.processes[which].wait()
        return True

    def outlived(self, seconds: float) -> bool:
        """Return whether a child lives longer than so many seconds, and end those that do."""
        until = time.monotonic() + seconds
        with contextlib.suppress(ProcessLookupError):
            while time.monotonic() < until:
                for each in self.processes:
                    each.poll()  # one that has ended is of the group until it is asked for
                os.killpg(self.process.pid, 0)
                time.sleep(0.1)
            os.killpg(self.process.pid, signal.SIGKILL)
            return True
        return False


def written(folder: Path, since: float) -> bool:
    """Return whether a folder or anything in it is newer than that; not where something vanishes meanwhile."""
    with contextlib.suppress(OSError):
        return any(path.stat().st_mtime > since for path in (folder, *folder.rglob("*")))
    return False


def names(folder: Path) -> "collections.Counter[str]":
    """Count the files and folders below, without the numbers that orbax gives to versions and to pieces of arrays."""
    relative = (path.relative_to(folder).as_posix() for path in folder.rglob("*"))
    numbered = (re.sub(r"(?<=/)\d+(?=/|$)", "N", name) for name in relative if not re.search(r"/[0-9a-f]{32}$", name))
    return collections.Counter(numbered)


def contents(folder: Path, patterns: Sequence[str]) -> dict[str, bytes]:
    """Return the files that two performances must have alike."""
    found = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(found)}


def trial(scenario: Scenario, kills: int, draw: random.Random, place: Path) -> dict[str, Any]:
    """Perform a scenario undisturbed and killed, and return how the folders compare."""
    started, whole = time.monotonic(), place / "whole"
    undisturbed = Command(scenario, whole)
    begun = undisturbed.begun()
    undisturbed.end()
    seconds = time.monotonic() - undisturbed.started
    expected, there = contents(whole / "out", scenario.compared), names(whole)
    found: dict[str, Any] = {
        "kills": 0,
        "ends": 0,
        "files": [],
        "files_at_the_end": there.total(),
        "compared": len(expected),
    }
    differ, left, orphans = set[str](), set[str](), 0
    while not found["ends"] or found["kills"] < kills:
        folder, ended = place / f"killed-{found['ends']}", False
        while not ended:
            command = Command(scenario, folder)
            if found["kills"] == kills:
                command.end()
                ended = True
            elif ended := not (
                command.begun()
                and command.kill(draw.uniform(0, max(seconds - begun, 0.01)), draw.randrange(scenario.processes))
            ):
                continue
            else:
                found["kills"] += 1
                orphans += command.outlived(ORPHANS)
                found["files"].append(names(folder).total())
        found["ends"] += 1
        killed = contents(folder / "out", scenario.compared)
        differ |= {name for name in {*expected, *killed} if expected.get(name) != killed.get(name)}
        left |= set(names(folder) - there)
    whole_seconds = {"undisturbed_seconds": round(seconds, 1), "seconds": round(time.monotonic() - started, 1)}
    return found | {"differ": sorted(differ), "left": sorted(left), "orphans": orphans} | whole_seconds


def texts(folder: Path, draw: random.Random, lines: int = 8_000) -> None:
    """Write the texts of scenario `data`: words drawn at random, half a megabyte in each of three languages."""
    folder.mkdir()
    for code in ("de", "en", "fr"):
        words = ["".join(draw.choices("abcdefghijklmnop", k=draw.randint(2, 9))) for _ in range(500)]
        page = "".join(" ".join(draw.choices(words, k=12)) + "\n" for _ in range(lines))
        (folder / f"{code}.txt").write_text(page)


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=3, help="of each scenario")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default=",".join(SCENARIOS), help="scenarios, with commas between")
    flags = parser.parse_args()
    chosen, bad = flags.only.split(","), False
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        texts(place / "texts", random.Random(flags.seed))
        for each in (each for each in SCENARIOS if each in chosen):
            scenario = SCENARIOS[each]
            if scenario.after and not (place / scenario.after).exists():
                Command(SCENARIOS[scenario.after], place / scenario.after / "whole").end()
            # A draw for each scenario: --only repeats the moments of the whole.
            found = trial(scenario, flags.kills, random.Random(f"{flags.seed} {each}"), place / each)
            print(json.dumps({"scenario": each, **found}), flush=True)
            bad |= bool(found["differ"] or found["left"] or found["orphans"] or not found["compared"])
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
