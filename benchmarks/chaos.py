"""Kills at random moments: the same command goes on, the results are the same to the bit, and nothing is left behind.

    python benchmarks/chaos.py [--kills 10] [--seed 0] [--config configs/core_removal.py:tiny]

A run is made undisturbed; then the same run is begun, killed (SIGKILL) after a random time and begun again, until it
has been killed so often, and then left to end. Prints one JSON line: how far each start had come (marks of finished
stages), which results, segments and regions differ, what is left half-written, bytes of both folders. Exit code 1
where anything differs or is left.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def begin(config: str, folder: Path) -> "subprocess.Popen[bytes]":
    """Start the run in a process of its own."""
    words = [f"--config={config}", f"--workdir={folder}", "--config.machine.progress=none"]
    words += ["--config.machine.pictures=False", "--config.machine.save_seconds=0"]
    program = [sys.executable, "-m", "lingregions.main", "run", *words]
    return subprocess.Popen(program, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def artefacts(folder: Path) -> dict[str, bytes]:
    """Return what two runs must have alike: results, segments, regions."""
    patterns = ("results.csv", "effects.csv", "segments/**/*.csv", "regions/*.safetensors")
    found = {path for pattern in patterns for path in folder.glob(pattern)}
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(found)}


def left(folder: Path) -> list[str]:
    """Return what is half-written."""
    return [
        str(path.relative_to(folder)) for path in folder.rglob("*") if ".partial" in path.name or "-tmp" in path.name
    ]


def size(folder: Path) -> int:
    """Return the bytes of all files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def trial(config: str, kills: int, seed: int, place: Path) -> dict[str, Any]:
    """Make both runs, and return how they compare."""
    draw, started = random.Random(seed), time.monotonic()
    assert begin(config, place / "whole").wait() == 0, "the undisturbed run failed"
    seconds, marks = time.monotonic() - started, []
    for _ in range(kills):
        process = begin(config, place / "killed")
        try:
            process.wait(draw.uniform(0.2, 1.0) * seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        marks.append(len(list((place / "killed" / "done").glob("*.json"))))
    code = begin(config, place / "killed").wait()
    whole, killed = artefacts(place / "whole"), artefacts(place / "killed")
    return {
        "config": config,
        "kills": kills,
        "marks": marks,
        "code": code,
        "compared": len(whole),
        "differ": sorted(name for name in {*whole, *killed} if whole.get(name) != killed.get(name)),
        "left": left(place / "killed"),
        "bytes": [size(place / "whole"), size(place / "killed")],
        "seconds": round(time.monotonic() - started, 1),
    }


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--config", default="configs/core_removal.py:tiny")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        found = trial(flags.config, flags.kills, flags.seed, Path(place))
    print(json.dumps(found), flush=True)
    return int(bool(found["code"] or found["differ"] or found["left"] or not found["compared"]))


if __name__ == "__main__":
    sys.exit(main())
