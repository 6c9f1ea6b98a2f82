"""Time a step of scoring or of evaluation on SmolLM2 against torch, in float32.

Scoring is forward and backward, gradients of the layers only; --job=evaluate the forward pass alone, losses brought to
the host, against torch under no_grad.

Both sides have the same weights and the same batch of English text. Each runs in processes of its own, one at a time
and in turn (A B C D A B C D ...), since two in one process would share threads and memory: both under glibc's default
malloc and under one that keeps its pages, torch with the faster of its two attentions. Speeds are medians over all
steps of all rounds, a ratio the median of the rounds', ours over torch. Prints a line a round on the error stream and
one JSON line at the end.

    python benchmarks/score_step.py [--job score] [--batch 2] [--length 512] [--steps 5] [--rounds 3]

Needs torch beside the package (`make parity` installs both into .venv-parity), Linux, and a quiet machine: with two
threads beside other work torch was seen to fall to 5 to 35 tokens/s where a single one kept 56 to 64 (see peer.py).
"""

import argparse
import functools
import json
import resource
import sys
from typing import Any

import numpy as np
import peer
from peer import MODEL, SIDES, text


def ours(job: str, batch: int, length: int, steps: int, settings: dict[str, Any]) -> tuple[list[float], float]:
    """Return the seconds of each step of the scorer or the evaluation, and the mean loss."""
    import jax

    from lingregions import evaluate, scoring
    from lingregions import mesh as meshes
    from lingregions.corpus.batch import Batch
    from lingregions.models.compute import Compute
    from lingregions.models.source import resolve

    jax.config.update("jax_platforms", "cpu")
    source = resolve(MODEL)
    mesh = meshes.build(devices=jax.devices()[:1])
    params = source.load(mesh)
    tokens = text(source, batch, length)
    group = Batch(tokens, np.ones_like(tokens), np.ones_like(tokens))
    compute = Compute(**settings)
    if job == "evaluate":
        evaluator = evaluate.build(source.config, compute, mesh)

        def forward() -> float:
            (losses,) = evaluate.stream(evaluator, params, [group], lambda each: meshes.place(each, mesh))
            return float(losses.nll.mean())

        return peer.clock(forward, steps)
    scorer = scoring.Scorer(source.config, compute, scoring.Definition(group=batch), micro=batch, mesh=mesh)
    state: dict[str, Any] = {"sums": scorer.start(params)}

    def step() -> float:
        state["sums"], count, nll = scorer.add(params, state["sums"], group, lambda each: meshes.place(each, mesh))
        jax.block_until_ready(state["sums"])
        return nll / count

    return peer.clock(step, steps)


def torch(job: str, batch: int, length: int, steps: int, attention: str) -> tuple[list[float], float]:
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

    @library.set_grad_enabled(job == "score")
    def step() -> float:
        logits = model(tokens, use_cache=False).logits[:, :-1]
        loss = library.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum")
        if job == "score":
            loss.backward()
        return loss.item() / (batch * (length - 1))

    return peer.clock(step, steps)


def measure(flags: argparse.Namespace) -> None:
    """Run one side in this process and print what it found."""
    if flags.side.startswith("ours"):
        times, loss = ours(flags.job, flags.batch, flags.length, flags.steps, json.loads(flags.compute))
    else:
        times, loss = torch(flags.job, flags.batch, flags.length, flags.steps, flags.attention)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": times, "loss": loss, "peak_bytes": peak}))


def run(flags: argparse.Namespace, side: str, attention: str, steps: int) -> dict[str, Any]:
    """Run one side in a process of its own."""
    command = [sys.executable, __file__, f"--side={side}", f"--attention={attention}", f"--steps={steps}"]
    command += [
        f"--job={flags.job}",
        f"--batch={flags.batch}",
        f"--length={flags.length}",
        f"--compute={flags.compute}",
    ]
    return peer.side(command, side)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--job", choices=["score", "evaluate"], default="score")
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

    turns = peer.take_turns(functools.partial(run, flags), flags)
    losses = {side: runs[-1]["loss"] for side, runs in turns.found.items()}
    for side, loss in losses.items():
        if abs(loss / losses["torch"] - 1) > 1e-5:
            raise ValueError(f"the losses differ, so the work does: {losses} ({side})")
    report = {
        "job": flags.job,
        "batch": flags.batch,
        "length": flags.length,
        "compute": json.loads(flags.compute),
        "loss_nats": losses["ours"],
        **turns.facts(),
        "rows": turns.rows(peer.flops(flags.job, flags.batch, flags.length)),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
