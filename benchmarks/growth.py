"""How cost grows: with tokens, languages, interventions, parameters, and devices, each by itself, and the exponent.

On small models; the work of a size is the processor time of all cores, the least of some rounds, which other jobs
disturb less than the time of a clock. Of devices it is the operations that the compiler counts on one of them, for the
same step of scoring (the body of its loop over layers once). The exponent is that of the least-squares line through the
logarithms: 1 is proportional, -1 is shared out evenly. Prints a line an axis on the error stream and one JSON line;
the ratio is 1 over the steepest exponent of the first four.

    python benchmarks/growth.py [--rounds 5] [--quick]
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

LANGUAGES = ("ar", "zh", "en", "sw", "ru", "tr", "vi", "ko")
DEVICES = (1, 2, 4, 8)


def decoder(embed: int, layers: int) -> Any:
    """Return the config of a model of this width and depth."""
    from lingregions import models

    heads = embed // 64
    sizes = {"vocab": 2048, "context": 512, "mlp": 3 * embed, "heads": heads, "kv_heads": heads, "head_dim": 64}
    return models.DecoderConfig(embed=embed, layers=layers, tied=True, **sizes)


def scoring(config: Any, length: int) -> tuple[Callable[[], None], int]:
    """Return a step of scoring one sample, and the parameters of the model."""
    import jax

    from lingregions import models, scoring
    from lingregions import tree as trees
    from lingregions.corpus.batch import Batch

    params = models.initialize(config, jax.random.key(0))
    scorer = scoring.Scorer(config, models.Compute(), scoring.PRESETS["sound"], micro=1)
    tokens = np.random.default_rng(0).integers(1, config.vocab, (1, length)).astype(np.int32)
    batch, sums = Batch(tokens, np.ones_like(tokens), np.ones_like(tokens)), scorer.start(params)

    def step() -> None:
        nonlocal sums
        sums, *_ = scorer.add(params, sums, batch, lambda host: host)
        jax.block_until_ready(sums)

    return step, trees.count(params)


def axes(quick: bool) -> dict[str, list[tuple[int, Callable[[], Any]]]]:
    """Return for each axis its sizes and what is done at each."""
    import lingregions as lr

    wide, deep = (128, 2) if quick else (256, 8)
    samples, most = (2, 8) if quick else (4, 16)
    model = lr.load("package:lingregions")
    values = model.magnitudes()

    def evaluating(languages: int, interventions: int) -> Callable[[], Any]:
        made = [values.select("1%", "random", seed=seed).zero() for seed in range(interventions)]
        return lambda: model.evaluate(LANGUAGES[:languages], made, samples=samples, length=64)

    widths = [(width, scoring(decoder(width, deep), 128)) for width in (64, 128, 256, 512)]
    return {
        "tokens": [(size, scoring(decoder(wide, deep), size)[0]) for size in (64, 128, 256, 512)],
        "languages": [(size, evaluating(size, 1)) for size in (1, 2, 4, 8)],
        "interventions": [(size, evaluating(1, size)) for size in (1, 2, 4, most)],
        "parameters": [(count, step) for _, (step, count) in widths],
    }


def work(step: Callable[[], Any], rounds: int) -> float:
    """Return the processor seconds of a step that has been compiled, the least of some rounds."""
    step()
    times = []
    for _ in range(rounds):
        start = time.process_time()
        step()
        times.append(time.process_time() - start)
    return min(times)


def operations(count: int) -> float:
    """Return the operations of one of so many devices in a step of scoring eight samples."""
    import jax

    from lingregions import mesh as meshes
    from lingregions import models, scoring

    config, mesh = decoder(512, 4), meshes.build(1, count, 1, devices=jax.devices()[:count])
    params = models.shapes(config, meshes.shardings(models.declare(config), mesh))
    scorer = scoring.Scorer(config, models.Compute(), scoring.PRESETS["sound"], micro=8, mesh=mesh)
    return float(scorer.lower(params, 128).compile().cost_analysis()["flops"])


def exponent(sizes: list[int], costs: list[float]) -> float:
    """Return the slope of log cost over log size."""
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


def main() -> None:
    """Measure each axis."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="small sizes")
    parser.add_argument("--devices", action="store_true", help=argparse.SUPPRESS)  # in a process that has eight
    asked = parser.parse_args()
    if asked.devices:
        print(json.dumps([operations(count) for count in DEVICES]))
        return
    found: dict[str, Any] = {}

    def add(name: str, sizes: list[int], costs: list[float], unit: str) -> None:
        found[name] = {"sizes": sizes, unit: [float(f"{each:.4g}") for each in costs]}
        found[name]["exponent"] = round(exponent(sizes, costs), 2)
        print(f"{name}: {found[name]}", file=sys.stderr, flush=True)

    for name, steps in axes(asked.quick).items():
        costs = [work(step, 2 if asked.quick else asked.rounds) for _, step in steps]
        add(name, [size for size, _ in steps], costs, "seconds")
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={max(DEVICES)}"
    command = [sys.executable, __file__, "--devices"]
    done = subprocess.run(command, env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}, stdout=-1, check=True)
    add("devices", list(DEVICES), json.loads(done.stdout), "operations")
    steepest = max(each["exponent"] for name, each in found.items() if name != "devices")
    print(json.dumps({"benchmark": "growth", "axes": found, "rows": {"steepest": {"ratio": round(1 / steepest, 2)}}}))


if __name__ == "__main__":
    main()
