"""What this machine can do at the most: a large float32 matrix product, and the memory, read and written in place.

The best of some tries, by the same library that the package computes with. What the other benchmarks reach is put
beside it. Prints one JSON line.

    python benchmarks/limits.py
"""

import json
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

SIDE, TRIES = 2048, 7
WORDS = 1 << 27  # float32, 0.5 GB: far more than a cache holds


def best(step: Callable[[], Any]) -> float:
    """Return the seconds of the fastest of some tries."""
    jax.block_until_ready(step())
    times = []
    for _ in range(TRIES):
        start = time.perf_counter()
        jax.block_until_ready(step())
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    """Measure both."""
    matrix = jnp.ones((SIDE, SIDE))
    product = jax.jit(lambda one, two: jnp.matmul(one, two, precision="highest"))
    scale, held = jax.jit(lambda values: values * 2, donate_argnums=0), [jnp.zeros(WORDS)]

    def again() -> jax.Array:
        held.append(scale(held.pop()))
        return held[0]

    report = {
        "products_gflops": round(2 * SIDE**3 / best(lambda: product(matrix, matrix)) / 1e9, 1),
        "memory_gbytes_a_second": round(2 * 4 * WORDS / best(again) / 1e9, 1),
    }
    print(json.dumps({"benchmark": "limits"} | report))


if __name__ == "__main__":
    main()
