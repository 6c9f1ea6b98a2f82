"""Feed: the endless order of samples that a training goes through; a resume point in it is one integer."""

import dataclasses
import hashlib
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
