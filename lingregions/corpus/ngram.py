"""N-gram model of bytes: what a text is predicted with before any network, in bits per byte.

Interpolated after Witten and Bell (1991): the more different bytes have followed a context, the more goes to the
shorter one; bytes never seen have 1/256 below that. Costs a sort of the training text an order.
"""

from collections.abc import Iterable

import numpy as np

ORDER = 5


def bits_per_byte(trained: Iterable[bytes], read: Iterable[bytes], order: int = ORDER) -> float:
    """Return the mean bits by which a model of some documents predicts each byte of others.

    Args:
      trained: documents that are counted.
      read: documents that are predicted; the first bytes of each have a shorter context.
      order: bytes of a context and the one after it, at most 7.

    Raises:
      ValueError: no byte is read, or an order that is none.
    """
    if not 1 <= order <= 7:
        raise ValueError(f"an n-gram model of order {order}: it lies between 1 and 7")
    counted, (asked, asked_depth) = _join(trained), _join(read)
    if not len(asked):
        raise ValueError("there is no byte to predict")
    chance = np.full(len(asked), 1 / 256)
    for length in range(1, order + 1):
        grams, counts = np.unique(_grams(*counted, length), return_counts=True)
        contexts, first, kinds = np.unique(grams >> 8, return_index=True, return_counts=True)
        totals = np.add.reduceat(counts, first) if len(counts) else counts
        deep = asked_depth >= length - 1
        wanted = _grams(asked, asked_depth, length)
        total, kind = _look(contexts, totals, wanted >> 8), _look(contexts, kinds, wanted >> 8)
        known = total > 0
        longer = (_look(grams, counts, wanted) + kind * chance[deep]) / np.maximum(total + kind, 1)
        chance[deep] = np.where(known, longer, chance[deep])
    return float(-np.mean(np.log2(chance)))


def _join(documents: Iterable[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Return documents as one array of bytes int64 [N], and how many of its own document stand before each, [N]."""
    parts = [np.frombuffer(each, np.uint8).astype(np.int64) for each in documents]
    empty = np.zeros(0, np.int64)
    return np.concatenate([empty, *parts]), np.concatenate([empty, *(np.arange(len(each)) for each in parts)])


def _grams(text: np.ndarray, depth: np.ndarray, length: int) -> np.ndarray:
    """Return int64: the last `length` bytes up to each place, packed, where its document has so many."""
    packed = np.zeros(len(text), np.int64)
    for back in range(length):
        packed[back:] |= text[: max(len(text) - back, 0)] << (8 * back)
    return packed[depth >= length - 1]


def _look(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return the values of some keys (sorted), 0 where there are none."""
    if not len(keys):
        return np.zeros(len(wanted), np.int64)
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], 0)
