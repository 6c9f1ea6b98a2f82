"""Feed: the endless order of samples that a training goes through; a resume point in it is one integer."""

import dataclasses
import functools
import hashlib
import math
from typing import Protocol

import numpy as np

from lingregions.corpus.batch import Batch
from lingregions.corpus.corpus import Corpus
from lingregions.permutation import derive, permute

_TURN = 8192  # samples: the shares of texts are kept to so many parts


class Feed(Protocol):
    """What a training needs to know of its text."""

    @property
    def fingerprint(self) -> str:
        """Names all that decides the samples: a resumed training must have the same."""

    def batch(self, start: int, stop: int, size: int) -> Batch:
        """Return samples start..stop of the order as host arrays, filled up with padding to `size` rows."""

    def describe(self, sample: int) -> str:
        """Say where one sample of the order comes from, down to the documents."""


@dataclasses.dataclass(frozen=True, eq=False)
class Order:
    """The samples of one corpus in the order that a seed names, pass after pass."""

    corpus: Corpus
    seed: int

    @property
    def fingerprint(self) -> str:
        """Names corpus and seed."""
        return hashlib.sha256(f"{self.corpus.fingerprint} order {self.seed}".encode()).hexdigest()

    def batch(self, start: int, stop: int, size: int) -> Batch:
        """Return samples start..stop of the order, filled up with padding to `size` rows."""
        return self.corpus.batch(self.corpus.order(self.seed, start, stop), size)

    def describe(self, sample: int) -> str:
        """Say which sample of the corpus this is, and which documents stand in it."""
        position = int(self.corpus.order(self.seed, sample, sample + 1)[0])
        found = self.corpus.documents([position])
        numbers = np.unique(found[found >= 0]).tolist()
        documents = f"document {numbers[0]}" if len(numbers) == 1 else f"documents {numbers[0]} to {numbers[-1]}"
        return f"{self.corpus.source} ({self.corpus.language}, {self.corpus.split}), sample {position}, {documents}"


@dataclasses.dataclass(frozen=True, eq=False)
class Mix:
    """A training order with a share of samples from other texts, evenly spread, one text after the other: replay.

    Of every 1 / `share` samples the last is replayed: sample k is one of `others` where floor((k + 1) share) exceeds
    floor(k share), and the next one of `main` everywhere else.
    """

    main: Feed
    others: tuple[Feed, ...]
    share: float

    def __post_init__(self) -> None:
        """Refuse a mixture that is none."""
        if not self.others:
            raise ValueError("a mixture needs the text of another language beside that of the trained one")
        if not 0 < self.share < 1:
            raise ValueError(f"the share of other texts in a mixture lies between 0 and 1, not at {self.share}")

    @property
    def fingerprint(self) -> str:
        """Names the texts and the share."""
        names = " ".join(each.fingerprint for each in (self.main, *self.others))
        return hashlib.sha256(f"{names} mixed {self.share!r}".encode()).hexdigest()

    def locate(self, sample: int) -> tuple[Feed, int]:
        """Return where a sample of the order comes from: the feed, and the place in its own order."""
        before, after = math.floor(sample * self.share), math.floor((sample + 1) * self.share)
        if after == before:
            return self.main, sample - before
        return self.others[before % len(self.others)], before // len(self.others)

    def batch(self, start: int, stop: int, size: int) -> Batch:
        """Return samples start..stop of the order, filled up with padding to `size` rows."""
        found = [self.locate(sample) for sample in range(start, stop)]
        rows = [feed.batch(place, place + 1, 1) for feed, place in found]
        stacked = (np.concatenate(each) for each in zip(*rows, strict=True))
        return Batch(*(np.pad(each, ((0, size - len(rows)), (0, 0))) for each in stacked))

    def describe(self, sample: int) -> str:
        """Say where one sample of the order comes from."""
        feed, place = self.locate(sample)
        return feed.describe(place)


@dataclasses.dataclass(frozen=True, eq=False)
class Turns:
    """Several texts in turns of `size` samples, each in its own order: batches of one text each."""

    feeds: tuple[Feed, ...]
    size: int

    @property
    def fingerprint(self) -> str:
        """Names the texts and the length of a turn."""
        names = " ".join(each.fingerprint for each in self.feeds)
        return hashlib.sha256(f"{names} in turns of {self.size}".encode()).hexdigest()

    def locate(self, sample: int) -> tuple[Feed, int]:
        """Return where a sample of the order comes from: the feed, and the place in its own order."""
        turn, place = divmod(sample, self.size)
        rounds, which = divmod(turn, len(self.feeds))
        return self.feeds[which], rounds * self.size + place

    def batch(self, start: int, stop: int, size: int) -> Batch:
        """Return samples start..stop of one turn, filled up with padding to `size` rows.

        Raises:
          ValueError: they are of several turns.
        """
        if stop - start > self.size - start % self.size:
            raise ValueError(f"samples {start} to {stop - 1} are of several turns of {self.size}")
        feed, place = self.locate(start)
        return feed.batch(place, place + stop - start, size)

    def describe(self, sample: int) -> str:
        """Say where one sample of the order comes from."""
        feed, place = self.locate(sample)
        return feed.describe(place)


@dataclasses.dataclass(frozen=True, eq=False)
class Blend:
    """Several texts in fixed shares, none before the others: what a model of many languages is trained on.

    The order repeats in turns of `_TURN` samples, in each of which a text has its share, rounded, at places that a seed
    draws; samples of one text follow each other in its own order.
    """

    feeds: tuple[Feed, ...]
    shares: tuple[float, ...]
    seed: int

    def __post_init__(self) -> None:
        """Refuse shares that are none."""
        if len(self.feeds) != len(self.shares) or not self.feeds or min(self.shares) <= 0:
            raise ValueError(f"{len(self.feeds)} texts need as many shares above zero, not {self.shares}")

    @property
    def fingerprint(self) -> str:
        """Names the texts, their shares and the seed."""
        names = " ".join(f"{each.fingerprint} {share!r}" for each, share in zip(self.feeds, self.shares, strict=True))
        return hashlib.sha256(f"{names} blended {self.seed}".encode()).hexdigest()

    @functools.cached_property
    def _turn(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return which feed each place of a turn is of, how many of the same stand before it, and how many each has."""
        ends = np.rint(np.cumsum(self.shares) / math.fsum(self.shares) * _TURN).astype(np.int64)
        counts = np.diff(ends, prepend=0)
        places = permute(np.arange(_TURN, dtype=np.int64), _TURN, derive(self.seed, "blend"))
        which = np.searchsorted(ends, places, "right")
        before = np.zeros(_TURN, np.int64)
        for number, count in enumerate(counts):
            before[which == number] = np.arange(count)
        return which, before, counts

    def locate(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Return int64 [n], [n]: the feed of each sample start..stop of the order, and its place in that feed."""
        which, before, counts = self._turn
        turn, place = np.divmod(np.arange(start, stop, dtype=np.int64), _TURN)
        return which[place], turn * counts[which[place]] + before[place]

    def batch(self, start: int, stop: int, size: int) -> Batch:
        """Return samples start..stop of the order, filled up with padding to `size` rows."""
        which, places = self.locate(start, stop)
        rows: Batch | None = None
        for number in np.unique(which):
            mine = np.flatnonzero(which == number)
            found = self.feeds[number].batch(int(places[mine[0]]), int(places[mine[-1]]) + 1, len(mine))
            if rows is None:
                rows = Batch(*(np.zeros((size, each.shape[1]), each.dtype) for each in found))
            for whole, part in zip(rows, found, strict=True):
                whole[mine] = part
        assert rows is not None
        return rows

    def describe(self, sample: int) -> str:
        """Say where one sample of the order comes from."""
        which, places = self.locate(sample, sample + 1)
        return self.feeds[int(which[0])].describe(int(places[0]))
