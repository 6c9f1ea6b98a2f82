"""Time a training step on SmolLM2: against transformers with torch's AdamW, and frozen against free.

Same weights, same English batch, float32, all parameters, AdamW with clipping and weight decay. Ours and torch run in
processes of their own, one at a time and in turn, both under glibc's default malloc and under one that keeps its pages;
torch with its fused AdamW and the faster of its two attentions. In our processes steps with a hard-frozen 1 % of the
decoder stand between plain ones - plain, hard, hard, plain - so that both meet the same machine: each four give one
ratio, hard over plain, and the overhead is their median. Prints a line a round on the error stream and one JSON line at
the end.

    python benchmarks/train_step.py [--batch 4] [--micro 2] [--length 512] [--steps 4] [--rounds 3]

Needs torch beside the package (`make parity` installs both into .venv-parity), Linux, and a quiet machine: beside other
work no ratio to torch is given (see peer.py).
"""

import argparse
import functools
import json
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import peer
from peer import MODEL, SIDES, text

# Of both sides. The rate is small: that the work is the same shows in the losses, which stay the same after a step.
RATE, BETAS, EPSILON, DECAY, CLIP = 1e-5, (0.9, 0.95), 1e-8, 0.001, 1.0


def ours(flags: argparse.Namespace) -> dict[str, Any]:
    """Return the seconds of plain and of frozen steps, in pairs, and the losses of the first two."""
    import jax

    from lingregions import freeze, regions, train
    from lingregions import mesh as meshes
    from lingregions.corpus.batch import Batch
    from lingregions.models import roles
    from lingregions.models.compute import Compute
    from lingregions.models.source import resolve

    jax.config.update("jax_platforms", "cpu")
    source = resolve(MODEL)
    mesh = meshes.build(devices=jax.devices()[:1])
    start = [source.load(mesh)]
    tokens = text(source, flags.batch, flags.length)
    batch = Batch(tokens, np.ones_like(tokens), np.ones_like(tokens))
    part = roles.restrict(start[0], "decoder_without_norms")
    region = regions.select(jax.tree.map(abs, part), "1%")
    # A schedule of a million steps: the rate stays what it is.
    recipe = train.Recipe(
        samples=1_000_000 * flags.batch,
        batch=flags.batch,
        rate=RATE,
        betas=BETAS,
        epsilon=EPSILON,
        decay=DECAY,
        clip=CLIP,
        warmup=0,
    )

    def side(constraints: list[Any]) -> Callable[[], float]:
        trainer = train.Trainer(
            source.config, Compute(**json.loads(flags.compute)), recipe, constraints, flags.micro, mesh
        )
        held = {"state": trainer.start(start[0])}

        def step() -> float:
            held["state"], told = trainer.step(held["state"], batch)
            jax.block_until_ready(held["state"])
            return float(told.loss)

        return step

    plain, hard = side([]), side([freeze.hard(start[0], region.masks)])
    start.clear()
    del part, region
    losses = [plain(), plain()]
    hard()
    times: dict[str, list[float]] = {"plain": [], "hard": []}
    for number in range(flags.steps):
        # The order turns: neither gains from a machine that grows faster or slower, or from what the other leaves.
        for name, step in [("plain", plain), ("hard", hard)][:: -1 if number % 2 else 1]:
            times[name].append(clock(step))
    return {"seconds": times["plain"], "hard": times["hard"], "losses": losses}


def torch(flags: argparse.Namespace) -> dict[str, Any]:
    """Return the seconds of steps of transformers' model under torch's AdamW, and the losses of the first two."""
    import torch as library
    from transformers import AutoModelForCausalLM, utils

    from lingregions.models.source import resolve

    utils.logging.disable_progress_bar()
    source = resolve(MODEL)
    tokens = library.from_numpy(text(source, flags.batch, flags.length).astype(np.int64))
    file = source.files[0]
    model = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=library.float32, attn_implementation=flags.attention
    ).train()
    gains = [each for name, each in model.named_parameters() if "norm" in name]
    rest = [each for name, each in model.named_parameters() if "norm" not in name]
    optimizer = library.optim.AdamW(
        [{"params": rest, "weight_decay": DECAY}, {"params": gains, "weight_decay": 0.0}],
        lr=RATE,
        betas=BETAS,
        eps=EPSILON,
        fused=True,
    )
    total = flags.batch * (flags.length - 1)

    def step() -> float:
        told = 0.0
        for begin in range(0, flags.batch, flags.micro):
            micro = tokens[begin : begin + flags.micro]
            logits = model(micro, use_cache=False).logits[:, :-1]
            loss = library.nn.functional.cross_entropy(logits.flatten(0, 1), micro[:, 1:].flatten(), reduction="sum")
            (loss / total).backward()
            told += loss.item()
        library.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        return told / total

    losses = [step(), step()]
    return {"seconds": [clock(step) for _ in range(flags.steps)], "losses": losses}


def fours(found: dict[str, Any]) -> list[float]:
    """Return hard over plain, of the two steps of each in every four."""
    plain, hard = found["seconds"], found.get("hard", [])
    return [sum(hard[each : each + 2]) / sum(plain[each : each + 2]) for each in range(0, len(hard), 2)]


def clock(step: Callable[[], float]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def run(flags: argparse.Namespace, side: str, attention: str, steps: int) -> dict[str, Any]:
    """Run one side in a process of its own."""
    command = [sys.executable, __file__, f"--side={side}", f"--attention={attention}", f"--steps={steps}"]
    command += [f"--batch={flags.batch}", f"--micro={flags.micro}", f"--length={flags.length}"]
    command += [f"--compute={flags.compute}"]
    return peer.side(command, side)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=4, help="samples a step")
    parser.add_argument("--micro", type=int, default=2, help="samples a micro-batch, on both sides")
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--steps", type=int, default=4, help="timed steps (ours: of each kind) of a process; even")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each side")
    parser.add_argument("--compute", default='{"unroll": 3}', help="settings of ours, as JSON")
    parser.add_argument("--attention", default="", help="torch's attention; both are tried when it is not given")
    parser.add_argument("--smoke", action="store_true", help="run on a busy machine too, and give no ratio to torch")
    parser.add_argument("--side", choices=list(SIDES), help="measure one side only, in this process")
    flags = parser.parse_args()
    if flags.batch % flags.micro:
        raise SystemExit("--batch must be a multiple of --micro: torch pads nothing")
    if flags.steps % 2:
        raise SystemExit("--steps must be even: a plain and a frozen step change places")
    if flags.side:
        flags.attention = flags.attention or "sdpa"
        found = ours(flags) if flags.side.startswith("ours") else torch(flags)
        found["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps(found))
        return

    turns = peer.take_turns(functools.partial(run, flags), flags)
    losses = {side: runs[-1]["losses"] for side, runs in turns.found.items()}
    for side, each in losses.items():
        # The second loss is that after one update: the same step was taken.
        if any(abs(loss / same - 1) > 1e-5 for loss, same in zip(each, losses["torch"], strict=True)):
            raise ValueError(f"the losses differ, so the work does: {losses} ({side})")
    frozen = [each for runs in turns.found.values() for found in runs for each in fours(found)]
    rows = turns.rows(peer.flops("train", flags.micro, flags.length))
    for each in rows.values():
        each.pop("memory", None)  # our processes hold two trainings
    report = {
        "batch": flags.batch,
        "micro": flags.micro,
        "length": flags.length,
        "compute": json.loads(flags.compute),
        "losses_nats": losses["ours"],
        **turns.facts(),
        "peak_bytes_of": "ours holds two trainings",
        "frozen_over_plain": peer.row(frozen, 0.0),  # both meet the same machine
        "rows": rows | {"frozen": peer.row([1 / each for each in frozen], 0.0)},
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
