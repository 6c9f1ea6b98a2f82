"""Time interventions that leave the first layers alone, with the states before them kept against whole passes.

Two series on SmolLM2, each measured both ways in turn in one process: single scalars, spread over the 30 layers, those
of one layer many at a time, and the removal of 1 % of one layer, layer by layer. Both ways must give the same losses.
What compiles is not counted; the pass that makes the kept states is. Prints a line a round on the error stream and one
JSON line: medians of whole over kept, of seconds a series.

    python benchmarks/by_layer.py [--scalars 300] [--windows 2] [--length 512] [--rounds 3]

Needs Linux and a quiet machine: --smoke tries it out on a busy one.
"""

import argparse
import functools
import json
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import peer


def series(model: Any, scalars: int) -> dict[str, list[Any]]:
    """Return the interventions: {series: one a scalar, or one a layer}."""
    import jax
    import jax.numpy as jnp

    from lingregions import regions
    from lingregions import tree as trees
    from lingregions.intervention import Intervention
    from lingregions.models import roles
    from lingregions.regions import geometry

    layers, embed = model.config.layers, model.config.embed
    down = trees.flatten(model.shapes)[roles.path("down")]
    rng = np.random.default_rng(0)

    def scalar(number: int) -> Intervention:
        layer = number % layers
        name = roles.matrix_name("down", layer)
        entry = (int(rng.integers(embed)), int(rng.integers(model.config.mlp)))
        like = trees.unflatten({roles.path("down"): down})
        make = functools.partial(geometry.points, like, [(name, entry)], "scalar")
        return Intervention(kind="scalar", target=f"{number}", perturbation="zero", region=make, inside=layer)

    largest = regions.select(jax.tree.map(jnp.abs, roles.restrict(model.params, "decoder")), "1%")
    parts = [
        Intervention(kind="layer", layer=layer, perturbation="zero", region=regions.restrict(largest, layers=[layer]))
        for layer in range(layers)
    ]
    return {"scalars": [scalar(number) for number in range(scalars)], "layers": parts}


def measure(model: Any, interventions: Sequence[Any], texts: Any, room: float) -> tuple[float, float, list[float]]:
    """Return the seconds of a series, those of all cores together, and the loss under each intervention."""
    from lingregions import prefix

    length = max(corpus.length for corpus, _ in texts.values())
    tokens = sum(len(positions) * length for _, positions in texts.values())
    begun = time.perf_counter(), time.process_time()
    known, nll = prefix.Prefix(model.stages, tokens, room), []
    beside = model.together(interventions, known, length)
    for each in interventions:
        with model.under(each, texts, known, beside=beside[each]) as found:
            nll += [result.nll for _, result in found]
    return time.perf_counter() - begun[0], time.process_time() - begun[1], nll


def main() -> None:
    """Measure both series both ways."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scalars", type=int, default=300)
    parser.add_argument("--windows", type=int, default=2, help="samples")
    parser.add_argument("--length", type=int, default=512, help="tokens a sample")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--smoke", action="store_true", help="try it out on a busy machine")
    asked = parser.parse_args()
    others = peer.quiet(asked.smoke)

    import lingregions as lr

    model = lr.load(peer.MODEL)
    texts = {"sw": (model.corpus("udhr", "sw", length=asked.length, split="second"), np.arange(asked.windows))}
    result: dict[str, Any] = {
        "benchmark": "by_layer",
        "others": round(others, 2),
        "windows": asked.windows,
        "length": asked.length,
        "rows": {},
    }
    for name, interventions in series(model, asked.scalars).items():
        for room in (1.0, 0.0):
            measure(model, interventions[model.config.layers - 1 :: model.config.layers], texts, room)
        rounds: dict[float, list[tuple[float, float]]] = {1.0: [], 0.0: []}
        for number in range(asked.rounds):
            losses = {}
            for room, times in rounds.items():
                *took, losses[room] = measure(model, interventions, texts, room)
                times.append((took[0], took[1]))
            np.testing.assert_allclose(losses[1.0], losses[0.0], rtol=1e-5)
            said = "; ".join(
                f"{what} {times[-1][0]:.1f} s" for what, times in zip(("kept", "whole"), rounds.values(), strict=True)
            )
            print(f"{name}, round {number + 1}: {said}", file=sys.stderr, flush=True)
        ratios = np.asarray(rounds[0.0]) / np.asarray(rounds[1.0])
        result["rows"][name] = peer.row(ratios[:, 0].tolist(), others)
        result[name] = {
            "interventions": len(interventions),
            "kept_seconds": round(statistics.median(wall for wall, _ in rounds[1.0]), 2),
            "whole_seconds": round(statistics.median(wall for wall, _ in rounds[0.0]), 2),
            "cpu_ratio": round(float(np.median(ratios[:, 1])), 2),  # beside other work it says more
        }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
