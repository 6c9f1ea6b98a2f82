"""Time all five score rules in one pass against a pass each, on SmolLM2.

The same sample, all in one process and in turn: a round is one step of each. The rules that read no gradient have a
pass without one, so that five passes are less than five times one. Prints one JSON line.

    python benchmarks/rules.py [--length 512] [--rounds 5]

Needs a quiet machine: --smoke tries it out on a busy one.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import peer


def steps(length: int) -> dict[str, Callable[[], float]]:
    """Return {rule: a step of it alone}, and under "all" one of all of them; each gives its seconds."""
    import jax

    from lingregions import mesh as meshes
    from lingregions import scoring
    from lingregions.corpus.batch import Batch
    from lingregions.models.compute import Compute
    from lingregions.models.source import resolve

    source = resolve(peer.MODEL)
    mesh = meshes.build(devices=jax.devices()[:1])
    params, tokens = source.load(mesh), peer.text(source, 1, length)
    batch = Batch(tokens, np.ones_like(tokens), np.ones_like(tokens))

    def made(rules: tuple[str, ...]) -> Callable[[], float]:
        compute = Compute(unroll=3, chunk=128)
        scorer = scoring.Scorer(source.config, compute, scoring.Definition(rules[0]), rules, 1, mesh)

        def step() -> float:
            # The sums begin anew each time: five rules together hold more memory than all the rest.
            sums: Any = jax.block_until_ready(scorer.start(params))

            def add() -> float:
                nonlocal sums
                sums, _, nll = scorer.add(params, sums, batch, lambda host: meshes.place(host, mesh))
                jax.block_until_ready(sums)
                return nll

            return peer.clock(add, 1)[0][0]

        return step

    return {rule: made((rule,)) for rule in scoring.RULES} | {"all": made(tuple(scoring.RULES))}


def main() -> None:
    """Measure both ways."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=512, help="tokens of the sample")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--smoke", action="store_true", help="try it out on a busy machine")
    asked = parser.parse_args()
    others = peer.quiet(asked.smoke)
    rounds = steps(asked.length)
    times: dict[str, list[float]] = {name: [] for name in rounds}
    for _ in range(asked.rounds):
        for name, step in rounds.items():
            times[name].append(step())
    together = times.pop("all")
    paired = [sum(each) / one for one, each in zip(together, zip(*times.values(), strict=True), strict=True)]
    seconds = {name: round(statistics.median(each), 3) for name, each in (times | {"all": together}).items()}
    print(json.dumps({"benchmark": "rules", "seconds": seconds, "rows": {"five": peer.row(paired, others)}}))


if __name__ == "__main__":
    main()
