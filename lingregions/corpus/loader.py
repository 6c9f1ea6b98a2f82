"""Batches for the devices, prepared while they compute: each host builds only the rows that its own devices hold.

One thread stays `ahead` batches in front. Nothing more is needed: a batch is a gather from token arrays
(`Corpus.batch`), millions of tokens a second; worker processes would only add copies. A `Corpus` is a random-access
source (`len` and `[]`), for pipelines that add steps of their own.

The state of a loader is one integer: after i batches it stands at sample start + i x size. No host count, no iterator
state.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import jax
import numpy as np

from lingregions.corpus.batch import Array, Batch
from lingregions.corpus.corpus import Corpus


def load(
    corpus: Corpus,
    size: int,
    *,
    seed: int | None,
    start: int = 0,
    stop: int | None = None,
    sharding: jax.sharding.Sharding | None = None,
    ahead: int = 2,
) -> Iterator[Batch]:
    """Yield global batches of `size` samples: samples start..stop of the order of `seed`, or of the corpus when None.

    `stop` is the end of the first pass when None; the last batch is filled with padding rows. With `sharding` (of the
    [size, T] arrays over the devices of all hosts) the batches are global `jax.Array`s, to which each host contributes
    the rows of its own devices; without, NumPy arrays of all rows. Raises ValueError for a range that is not there.
    """
    stop = len(corpus) if stop is None else stop
    if size < 1 or not 0 <= start <= stop or (seed is None and stop > len(corpus)):
        raise ValueError(
            f"samples {start}..{stop} in batches of {size}: size is 1 or more, 0 <= start <= stop, and stop is at most "
            f"{len(corpus)} (the samples of the corpus) when no seed orders them"
        )
    waiting: deque[Future[Batch]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="loader") as worker:
        for first in range(start, stop, size):
            waiting.append(worker.submit(_batch, corpus, first, min(first + size, stop), size, seed, sharding))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _batch(
    corpus: Corpus, start: int, stop: int, size: int, seed: int | None, sharding: jax.sharding.Sharding | None
) -> Batch:
    """Return one global batch: samples start..stop, then padding rows up to `size`."""
    positions = np.arange(start, stop) if seed is None else corpus.order(seed, start, stop)
    if sharding is None:
        return corpus.batch(positions, size)
    shape = (size, corpus.length)
    indices = sharding.addressable_devices_indices_map(shape).values()
    spans = {index[0].indices(size)[:2] for index in indices if index is not None}
    rows = np.unique(np.concatenate([np.arange(*span) for span in spans]))
    local = corpus.batch(positions[rows[rows < len(positions)]], len(rows))

    def globally(array: Array) -> jax.Array:
        def piece(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None  # JAX asks for addressable pieces only
            first, last, _ = index[0].indices(size)
            place = int(np.searchsorted(rows, first))
            return np.asarray(array[place : place + last - first, index[1]])

        return jax.make_array_from_callback(shape, sharding, piece)

    return Batch(*map(globally, local))
