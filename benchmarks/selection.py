"""Time exact selection against a loop of torch.topk and random.sample, on the matrices of a real model's decoder.

Both sides take the top, the bottom and a random 1 % of the same scores in the same run: ours as three regions, the loop
as the released code does it (`get_top_bottom_tensor`: one boolean tensor per matrix and kind). Prints one JSON line.

    python benchmarks/selection.py [--fraction 0.01] [--repeats 5]

Needs torch beside the package; both use every core.
"""

import argparse
import json
import random
import statistics
import time
import tracemalloc
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import peer

from lingregions.regions import select
from lingregions.tree import Tree, flatten

# SmolLM2-135M: 30 layers, embed 576, 9 heads and 3 kv heads of 64, mlp 1536: 210 matrices, 106,168,320 entries.
LAYERS, EMBED, KV_HEADS, MLP = 30, 576, 192, 1536
SHAPES = {
    "self_attn": {
        "q_proj": (EMBED, EMBED),
        "k_proj": (KV_HEADS, EMBED),
        "v_proj": (KV_HEADS, EMBED),
        "o_proj": (EMBED, EMBED),
    },
    "mlp": {"gate_proj": (MLP, EMBED), "up_proj": (MLP, EMBED), "down_proj": (EMBED, MLP)},
}


def scores(seed: int) -> Tree:
    """Return scores with the shape of real ones: products of two normal variables, a few rows and columns far above."""
    draw = np.random.default_rng(seed)

    def leaf(shape: tuple[int, int]) -> jax.Array:
        values = draw.standard_normal((LAYERS, *shape), np.float32)
        values *= draw.standard_normal((LAYERS, *shape), np.float32)
        values *= np.exp(draw.standard_normal((LAYERS, shape[0], 1), np.float32))
        values *= np.exp(draw.standard_normal((LAYERS, 1, shape[1]), np.float32))
        return jnp.asarray(np.abs(values, out=values))

    return {"layers": {block: {name: leaf(shape) for name, shape in each.items()} for block, each in SHAPES.items()}}


def ours(tree: Tree, fraction: float) -> list[Tree]:
    found = [select(tree, fraction, "top"), select(tree, fraction, "bottom"), select(tree, fraction, "random", seed=0)]
    return jax.block_until_ready([each.masks for each in found])


def loop(tree: Tree, fraction: float) -> list[dict[tuple[str, int], object]]:
    import torch

    masks: list[dict[tuple[str, int], object]] = [{}, {}, {}]
    for path, leaf in flatten(tree).items():
        stack = torch.from_numpy(np.array(leaf))
        for layer in range(LAYERS):
            values = stack[layer].reshape(-1)
            count = int(fraction * values.numel())
            picks = (
                values.topk(count).indices,
                values.topk(count, largest=False).indices,
                random.sample(range(values.numel()), count),
            )
            for kind, places in enumerate(picks):
                mask = torch.zeros(stack.shape[1:], dtype=torch.bool)
                mask.view(-1)[places] = True
                masks[kind][path, layer] = mask
    return masks


def clock(functions: list[Callable[[], object]], repeats: int) -> list[list[float]]:
    """Return the times of each function; they take turns, so that a busy moment of the machine meets all of them."""
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(repeats):
        for function, each in zip(functions, times, strict=True):
            start = time.perf_counter()
            result = function()
            each.append(time.perf_counter() - start)
            del result
    return times


def memory(tree: Tree, fraction: float) -> int:
    """Return the peak of what NumPy and Python hold, beyond the masks, while the three regions are selected.

    The masks become `jax.Array`s without a copy and XLA computes nothing here, so this is all there is.
    """
    tracemalloc.start()
    masks = ours(tree, fraction)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak - sum(leaf.nbytes for each in masks for leaf in flatten(each).values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fraction", type=float, default=0.01)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--smoke", action="store_true", help="run on a busy machine too, and give no ratio")
    flags = parser.parse_args()
    others = peer.quiet(flags.smoke)
    tree = scores(0)
    masks, reference = ours(tree, flags.fraction), loop(tree, flags.fraction)
    for kind in (0, 1):
        for path, leaf in flatten(masks[kind]).items():
            for layer in range(LAYERS):
                assert (np.asarray(leaf[layer]) == reference[kind][path, layer].numpy()).all(), (path, layer)
    del masks, reference
    mine, theirs = clock([lambda: ours(tree, flags.fraction), lambda: loop(tree, flags.fraction)], flags.repeats)
    extra = memory(tree, flags.fraction)
    largest = max(leaf.shape[1] * leaf.shape[2] for leaf in flatten(tree).values())
    report = {
        "fraction": flags.fraction,
        "ours_seconds": round(statistics.median(mine), 3),
        "loop_seconds": round(statistics.median(theirs), 3),
        "rows": {"all": peer.row([two / one for one, two in zip(mine, theirs, strict=True)], others)},
        "extra_bytes": extra,
        "largest_matrix_bytes": 4 * largest,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
