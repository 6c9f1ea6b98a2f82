"""Time removals of a region of SmolLM2, evaluated in thirty languages, against a plain loop over a transformers model.

A removal is one region of random scalars, 1 % of each matrix, set to zero, and the NLL of the same tokens under it: 30
languages, 2 windows of 512 of the UDHR each. The plain loop does for each removal what a script does: load the model
from its folder (safetensors, float32), zero the region with the loader of the README, evaluate window by window. Ours
loads and compiles once, changes the parameters in place and puts them back. Each side runs in a process of its own, in
turn; the losses of both must agree. Prints a line a process on the error stream and one JSON line at the end: removals
an hour once warm, and over all removals with start, load and compilation.

    python benchmarks/removals.py [--removals 3] [--languages 30] [--windows 2] [--rounds 1]

Needs torch beside the package (`make parity` installs both into .venv-parity), Linux, and a quiet machine: from a busy
one no ratio is given.
"""

import argparse
import json
import os
import runpy
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import peer
from peer import MODEL

LENGTH = 512
FRACTION = "1%"
SIDES = ("ours", "torch")


def text(tokenizer: Any, languages: int, windows: int) -> dict[str, np.ndarray]:
    """Return {language: int32 [windows, T]}, from the start of the UDHR."""
    from lingregions import corpus

    folder = Path(corpus.__file__).parent / "data" / "udhr"
    paths = sorted(folder.glob("*.txt"))[:languages]
    return {
        path.stem: np.resize(tokenizer.encode(path.read_text(encoding="utf-8")).ids, (windows, LENGTH)).astype(np.int32)
        for path in paths
    }


def prepare(folder: Path, removals: int, languages: int, windows: int) -> None:
    """Write the model as a Hugging Face folder, the regions and the tokens, for both sides."""
    import jax

    from lingregions import mesh as meshes
    from lingregions import models, regions
    from lingregions.models import convert, roles
    from lingregions.models.source import resolve

    jax.config.update("jax_platforms", "cpu")
    source = resolve(MODEL)
    params = source.load(meshes.build(devices=jax.devices()[:1]))
    convert.export(params, source.config, folder / "model", source.tokenizer)
    like = roles.restrict(models.shapes(source.config), "decoder")
    for seed in range(removals):
        regions.save(regions.select(like, FRACTION, "random", seed=seed), folder / f"{seed}.safetensors")
    np.savez(folder / "tokens.npz", **text(source.tokenizer, languages, windows))


def ours(folder: Path, removals: int) -> tuple[float, list[float], list[float]]:
    """Return the seconds until the first removal begins, those of each removal, and the summed NLL of each."""
    begin = time.perf_counter()
    import jax

    from lingregions import evaluate, models, perturb, regions
    from lingregions import mesh as meshes
    from lingregions.corpus.batch import Batch
    from lingregions.models.compute import Compute
    from lingregions.models.source import resolve

    jax.config.update("jax_platforms", "cpu")
    source = resolve(str(folder / "model"))
    mesh = meshes.build(devices=jax.devices()[:1])
    params = source.load(mesh)
    shapes = models.shapes(source.config, meshes.shardings(models.declare(source.config), mesh))
    evaluator = evaluate.build(source.config, Compute(unroll=3), mesh)
    tokens = [row[None] for rows in np.load(folder / "tokens.npz").values() for row in rows]
    batches = [Batch(each, np.ones_like(each), np.ones_like(each)) for each in tokens]
    start, times, losses = time.perf_counter() - begin, [], []
    for seed in range(removals):
        begin = time.perf_counter()
        region = regions.load(folder / f"{seed}.safetensors", shapes)
        with perturb.applied(params, region.masks, "zero") as changed:
            found = evaluate.stream(evaluator, changed, batches, lambda each: meshes.place(each, mesh))
            nll = sum(float(each.nll.sum()) for each in found)
        times.append(time.perf_counter() - begin)
        losses.append(nll)
    return start, times, losses


def torch(folder: Path, removals: int, attention: str) -> tuple[float, list[float], list[float]]:
    """Return the same of a loop over transformers' model, which is loaded again for each removal."""
    begin = time.perf_counter()
    import torch as library
    from transformers import AutoModelForCausalLM, utils

    utils.logging.disable_progress_bar()
    space = runpy.run_path(str(Path(__file__).parent.parent / "examples" / "zero_region.py"))
    tokens = [row for rows in np.load(folder / "tokens.npz").values() for row in rows]
    start, times, losses = time.perf_counter() - begin, [], []
    for seed in range(removals):
        begin, total = time.perf_counter(), 0.0
        model = AutoModelForCausalLM.from_pretrained(
            folder / "model", dtype=library.float32, attn_implementation=attention
        ).eval()
        space["zero"](model, folder / f"{seed}.safetensors")
        with library.inference_mode():
            for row in tokens:
                window = library.from_numpy(row.astype(np.int64))[None]
                logits = model(window, use_cache=False).logits[0, :-1]
                total += library.nn.functional.cross_entropy(logits, window[0, 1:], reduction="sum").item()
        times.append(time.perf_counter() - begin)
        losses.append(total)
    return start, times, losses


def run(flags: argparse.Namespace, side: str, folder: Path) -> dict[str, Any]:
    """Run one side in a process of its own."""
    command = [sys.executable, __file__, f"--side={side}", f"--folder={folder}", f"--removals={flags.removals}"]
    begin = time.perf_counter()
    found = peer.spawn([*command, f"--attention={flags.attention}"], os.environ | {"TQDM_DISABLE": "1"})
    return found | {"whole": time.perf_counter() - begin}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--removals", type=int, default=3, help="removals of a process; the first also compiles")
    parser.add_argument("--languages", type=int, default=30)
    parser.add_argument("--windows", type=int, default=2, help="of a language")
    parser.add_argument("--rounds", type=int, default=1, help="processes of each side")
    parser.add_argument("--attention", default="sdpa", help="torch's attention")
    parser.add_argument("--smoke", action="store_true", help="run on a busy machine too, and give no ratio")
    parser.add_argument("--side", choices=SIDES, help="measure one side only, in this process")
    parser.add_argument("--folder", type=Path, help="of --side")
    flags = parser.parse_args()
    if flags.side:
        start, times, losses = (
            ours(flags.folder, flags.removals)
            if flags.side == "ours"
            else torch(flags.folder, flags.removals, flags.attention)
        )
        print(json.dumps({"start": start, "seconds": times, "nll_nats": losses}))
        return

    others = [peer.quiet(flags.smoke)]
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as name:
        prepare(Path(name), flags.removals, flags.languages, flags.windows)
        for number in range(flags.rounds):
            for side in SIDES:
                others.append(peer.busy())
                found[side].append(run(flags, side, Path(name)))
                seconds = ", ".join(f"{each:.1f}" for each in found[side][-1]["seconds"])
                print(f"round {number + 1}: {side}: removals of {seconds} s", file=sys.stderr, flush=True)
    losses = {side: np.asarray(found[side][-1]["nll_nats"]) for side in SIDES}
    worst = float(np.max(np.abs(losses["ours"] / losses["torch"] - 1)))
    if worst > 1e-4:
        raise ValueError(f"the losses differ by {worst:.1e}, so the work does: {losses}")
    # The first removal of a process also compiles, or touches memory first.
    warm = {
        side: 3600 / statistics.median(second for each in runs for second in each["seconds"][1:] or each["seconds"])
        for side, runs in found.items()
    }
    whole = {
        side: 3600 * flags.removals / statistics.median(each["whole"] for each in runs) for side, runs in found.items()
    }
    report: dict[str, Any] = {
        "removals": flags.removals,
        "tokens_a_removal": flags.languages * flags.windows * LENGTH,
        "cores": len(os.sched_getaffinity(0)),
        "torch_attention": flags.attention,
        "removals_an_hour": {side: round(value, 1) for side, value in warm.items()},
        "removals_an_hour_with_start": {side: round(value, 1) for side, value in whole.items()},
        "largest_relative_difference_of_losses": worst,
        "busy_cores_of_others": round(max(others), 2),
    }
    report["rows"] = {
        "warm": peer.row([warm["ours"] / warm["torch"]], max(others)),
        "with start": peer.row([whole["ours"] / whole["torch"]], max(others)),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
