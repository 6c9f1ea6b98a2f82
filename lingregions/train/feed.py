"""Feed: the endless order of samples that a training goes through; a resume point in it is one integer."""

import dataclasses
import hashlib
import math
from typing import Protocol

import numpy as np

from lingregions.corpus.batch import Batch
from lingregions.corpus.corpus import Corpus


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
