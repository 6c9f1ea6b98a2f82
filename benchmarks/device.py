"""Score, evaluate and train in bfloat16 on this machine's device against torch: tokens/s and share of the peak FLOP/s.

    python benchmarks/device.py [--models smollm2-135m 1b] [--jobs score evaluate train] [--torch PYTHON] [--smoke]

For a machine with a GPU (or a TPU, without torch). Both sides have the same random weights, written once as a Hugging
Face folder, and the same tokens; each side and job runs in a process of its own, one after the other, `--rounds` times
in turn. torch runs transformers' model with `scaled_dot_product_attention` and `torch.compile`: float32 parameters
under autocast to score and train (as ours), bfloat16 parameters to evaluate (its faster way). Training is AdamW with
clipping on the whole model, fused in torch.

FLOPs are those of the model, counted by hand (`flops`): products of matrices, attention over the keys that a query
sees, and vocabulary; nothing that is computed again counts. The peak of a device comes from `lingregions.plan`, or
--peak. Prints a line a measurement on the error stream and one JSON line at the end. `--torch` is the interpreter that
has torch and transformers (this one otherwise; "" leaves torch out). `--smoke` tries everything on a tiny model, on a
CPU too, and gives no ratio.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import peer

SHAPES: dict[str, dict[str, int]] = {  # what a model is run with: samples a step, tokens a sample
    "smollm2-135m": {"batch": 32, "length": 512},
    "1b": {"batch": 16, "length": 512},
    "3b": {"batch": 8, "length": 512},
    "tiny": {"batch": 2, "length": 64},
}
JOBS = ("score", "evaluate", "train")
AGREE = 2e-2  # relative difference of two losses in bfloat16


def config(name: str) -> Any:
    """Return the model config of a name."""
    from lingregions import models

    if name == "1b":  # the shape of TinyLlama: 1,100,048,384 parameters
        sizes = {"vocab": 32_000, "embed": 2048, "mlp": 5632, "layers": 22, "heads": 32, "kv_heads": 4, "head_dim": 64}
        return models.DecoderConfig(**sizes, context=2048)
    if name == "3b":
        return models.PRESETS["llama3.2-3b"]
    return models.PRESETS[name]


def flops(model: Any, job: str, samples: int, T: int) -> float:
    """Return the operations of a step: 2 for each multiply-add, and twice the forward pass for the backward pass."""
    D, F, V, L = model.embed, model.mlp, model.vocab, model.layers
    heads, kv_heads = model.heads * model.head_dim, model.kv_heads * model.head_dim
    layers = 2 * T * L * D * (2 * heads + 2 * kv_heads + 3 * F) + 2 * L * 2 * heads * T * (T + 1) / 2
    vocabulary = 2 * T * D * V
    # Scores need no gradient of the head itself, only that of its input.
    times = {"evaluate": (1, 1), "score": (3, 2), "train": (3, 3)}[job]
    return samples * (times[0] * layers + times[1] * vocabulary)


def write(name: str, folder: Path, T: int, samples: int) -> None:
    """Write the model as a Hugging Face folder, and tokens int32 [samples, T] beside it."""
    import jax

    from lingregions import models
    from lingregions.models import convert

    jax.config.update("jax_platforms", "cpu")
    chosen = config(name)
    convert.export(models.initialize(chosen, jax.random.key(0)), chosen, folder)
    np.save(folder / "tokens.npy", np.random.default_rng(0).integers(0, chosen.vocab, (samples, T), np.int32))


def ours(folder: Path, job: str, steps: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Return what a job takes with this package."""
    import jax

    from lingregions import evaluate, models, scoring, train
    from lingregions import mesh as meshes
    from lingregions.corpus.batch import Batch
    from lingregions.models import convert
    from lingregions.plan.hardware import LOCAL

    tokens = np.load(folder / "tokens.npy")
    chosen = models.parse(json.loads((folder / "config.json").read_text()))
    compute, mesh = models.Compute(**settings), meshes.build(fsdp=-1)
    params = convert.load(folder, chosen, meshes.shardings(models.declare(chosen), mesh))
    batch = Batch(tokens, np.ones_like(tokens), np.ones_like(tokens))
    size = len(tokens)
    if job == "score":
        scorer = scoring.Scorer(chosen, compute, scoring.Definition(), micro=size, mesh=mesh)
        state: Any = scorer.start(params)

        def step() -> float:
            nonlocal state
            state, count, nll = scorer.add(params, state, batch, lambda each: meshes.place(each, mesh))
            jax.block_until_ready(state)
            return nll / count

    elif job == "evaluate":
        evaluator, placed = evaluate.build(chosen, compute, mesh), meshes.place(batch, mesh)

        def step() -> float:
            nll, real = jax.device_get(evaluator(params, placed, None))
            return float(nll.sum(dtype=np.float64) / real.sum())

    else:
        recipe = train.Recipe(samples=size * (steps + 2), batch=size, warmup=1, spike=0.0)
        trainer = train.Trainer(chosen, compute, recipe, micro=size, mesh=mesh)
        state = trainer.start(params)
        del params

        def step() -> float:
            nonlocal state
            state, told = trainer.step(state, batch)
            return float(jax.block_until_ready(told).loss)

    device = jax.devices()[0]
    peak = next((chip.flops for kind, chip in LOCAL.items() if kind in device.device_kind), None)
    times, loss = peer.clock(step, steps)
    used = (device.memory_stats() or {}).get("peak_bytes_in_use")
    return {
        "seconds": times,
        "loss": loss,
        "peak_bytes": used,
        "device": f"{len(jax.devices())} x {device.device_kind}",
        "peak_flops": peak and peak * len(jax.devices()),
    }


def torch(folder: Path, job: str, steps: int, compiled: bool) -> dict[str, Any]:
    """Return what a job takes with transformers' model."""
    import torch as library
    from transformers import AutoModelForCausalLM, utils

    utils.logging.disable_progress_bar()
    library.set_float32_matmul_precision("high")
    where = "cuda" if library.cuda.is_available() else "cpu"
    tokens = library.from_numpy(np.load(folder / "tokens.npy").astype(np.int64)).to(where)
    dtype = library.bfloat16 if job == "evaluate" else library.float32
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa").to(where).eval()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(job == "train" or (job == "score" and ".layers." in name))

    def objective(tokens: Any) -> Any:
        logits = model(tokens, use_cache=False).logits[:, :-1]
        # Autocast leaves the loss itself in float32, as ours is.
        return library.nn.functional.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())

    run = library.compile(objective) if compiled else objective
    optimizer: Any = None
    if job == "train":
        decay = {"lr": 5e-5, "betas": (0.9, 0.95), "weight_decay": 0.001}
        optimizer = library.optim.AdamW(model.parameters(), fused=where == "cuda", **decay)

    def step() -> float:
        if job == "evaluate":
            with library.inference_mode():
                return float(run(tokens))
        with library.autocast(where, library.bfloat16):
            loss = run(tokens)
        loss.backward()
        if optimizer is not None:
            library.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if where == "cuda":
            library.cuda.synchronize()
        return float(loss.detach())

    times, loss = peer.clock(step, steps)
    on_gpu = where == "cuda"
    return {
        "seconds": times,
        "loss": loss,
        "peak_bytes": library.cuda.max_memory_allocated() if on_gpu else None,
        "device": library.cuda.get_device_name() if on_gpu else "cpu",
    }


def run(flags: argparse.Namespace, side: str, folder: Path, job: str) -> dict[str, Any]:
    """Measure one side of one job in a process of its own."""
    python = (flags.torch if side == "torch" else None) or sys.executable
    command = [python, __file__, f"--side={side}", f"--folder={folder}", f"--job={job}", f"--steps={flags.steps}"]
    command += [f"--compute={flags.compute}", *(["--eager"] if flags.eager else [])]
    # Both libraries take the memory that they need, not all of it.
    environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "TQDM_DISABLE": "1"}
    return peer.spawn(command, environment)


def compare(flags: argparse.Namespace, name: str, folder: Path, job: str) -> dict[str, Any]:
    """Measure a job on both sides, in turn."""
    sides = ["ours"] if flags.torch == "" else ["ours", "torch"]
    times: dict[str, list[float]] = {side: [] for side in sides}
    last: dict[str, dict[str, Any]] = {}
    samples, T = np.load(folder / "tokens.npy", mmap_mode="r").shape
    for number in range(flags.rounds):
        for side in sides:
            last[side] = run(flags, side, folder, job)
            times[side] += last[side]["seconds"]
            speed = samples * T / statistics.median(last[side]["seconds"])
            print(f"{name} {job}, round {number + 1}, {side}: {speed:.0f} tokens/s", file=sys.stderr, flush=True)
    losses = {side: found["loss"] for side, found in last.items()}
    if max(losses.values()) > (1 + AGREE) * min(losses.values()):
        raise ValueError(f"{name} {job}: the losses differ, so the work does: {losses}")
    seconds = {side: statistics.median(each) for side, each in times.items()}
    work = flops(config(name), job, samples, T)
    peak = flags.peak * 1e12 if flags.peak else last["ours"]["peak_flops"]
    report: dict[str, Any] = {
        "model": name,
        "job": job,
        "batch": samples,
        "length": T,
        "device": {side: found["device"] for side, found in last.items()},
        "tokens_per_second": {side: round(samples * T / each, 1) for side, each in seconds.items()},
        "tflops_per_second": {side: round(work / each / 1e12, 3) for side, each in seconds.items()},
        "share_of_peak": {side: round(work / each / peak, 3) for side, each in seconds.items()} if peak else None,
        "peak_bytes": {side: found["peak_bytes"] for side, found in last.items()},
        "loss_nats": losses,
    }
    if "torch" in seconds and not flags.smoke:
        report["ours_over_torch"] = round(seconds["torch"] / seconds["ours"], 3)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["smollm2-135m", "1b"], choices=sorted(SHAPES))
    parser.add_argument("--jobs", nargs="+", default=list(JOBS), choices=JOBS)
    parser.add_argument("--batch", type=int, default=0, help="samples a step; as SHAPES says when 0")
    parser.add_argument("--steps", type=int, default=20, help="timed steps of a process")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each side")
    parser.add_argument("--compute", default='{"dtype": "bfloat16"}', help="settings of ours, as JSON")
    parser.add_argument("--peak", type=float, default=0.0, help="TFLOP/s of all devices in bfloat16")
    parser.add_argument("--torch", default=sys.executable, help='Python with torch and transformers; "": without torch')
    parser.add_argument("--eager", action="store_true", help="torch without torch.compile")
    parser.add_argument("--smoke", action="store_true", help="a tiny model, one step, no ratio")
    parser.add_argument("--side", choices=["ours", "torch", "write"], help=argparse.SUPPRESS)
    parser.add_argument("--job", choices=JOBS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.side == "write":
        (name,) = flags.models
        write(name, flags.folder, SHAPES[name]["length"], flags.batch or SHAPES[name]["batch"])
        return
    if flags.side:
        work = ours if flags.side == "ours" else torch
        print(json.dumps(work(flags.folder, flags.job, flags.steps, _option(flags))))
        return
    if flags.smoke:
        flags.models, flags.steps, flags.rounds = ["tiny"], 1, 1
    found = []
    for name in flags.models:
        with tempfile.TemporaryDirectory() as parent:
            folder = Path(parent) / "model"
            words = ["--side=write", f"--models={name}", f"--folder={folder}", f"--batch={flags.batch}"]
            subprocess.run([sys.executable, __file__, *words], check=True, env=os.environ | {"JAX_PLATFORMS": "cpu"})
            found += [compare(flags, name, folder, job) for job in flags.jobs]
    print(json.dumps(found))


def _option(flags: argparse.Namespace) -> Any:
    return json.loads(flags.compute) if flags.side == "ours" else not flags.eager


if __name__ == "__main__":
    main()
