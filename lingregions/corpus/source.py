"""Source: a named place of documents in several languages; and those that lie on no disk of the user's.

`UDHR` is the Universal Declaration of Human Rights in the package, with the splits all, first and second (its halves);
`in_memory` makes a source of strings. What else may be named in a config is in `source_names.py`.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Protocol

from lingregions.corpus.languages import LANGUAGES
from lingregions.corpus.split import parse_split
from lingregions.corpus.text import Reading

_UDHR_LICENCE = "Universal Declaration of Human Rights, translations of the United Nations; free of copyright"


class Source(Protocol):
    """A named place of documents in several languages."""

    @property
    def name(self) -> str:
        """Return the name in the config."""

    @property
    def split(self) -> str:
        """Return the split that is meant when none is named."""

    def languages(self) -> list[str]:
        """Return the ISO codes of the languages that are there, sorted."""

    def resolve(self, language: str, split: str) -> tuple[str, str]:
        """Return (split to read, split whose slice is to be taken by document from what was read)."""

    def documents(self, language: str, split: str, reading: Reading) -> Iterator[str]:
        """Yield the documents of one split in their fixed order; raises ValueError for a split that is not there."""

    def identity(self, language: str, split: str) -> str:
        """Return a sha256 of what `documents` would read, without tokenizing it: the key of token files."""

    def size(self, language: str, split: str) -> int:
        """Return the bytes (as `Reading.position` counts them) to read, 0 when unknown."""

    def licence(self, language: str) -> str:
        """Return the licence note, empty when none is known."""

    def left_out(self, language: str | None) -> list[str]:
        """Return what lies there and is not read, a sentence each: of one language, or of none when None."""


class Simple:
    """What the sources that are read by split `all`, or by name, have in common."""

    split: str = "all"

    def resolve(self, language: str, split: str) -> tuple[str, str]:
        """Return the split's name, and the split itself for its slice."""
        return parse_split(split)[0], split

    def size(self, language: str, split: str) -> int:
        """Return 0: it is read at once."""
        return 0

    def licence(self, language: str) -> str:
        """Return nothing: none is known; a manifest can say it."""
        return ""

    def left_out(self, language: str | None) -> list[str]:
        """Return nothing: all of it is read."""
        return []

    def _only_all(self, split: str, what: str) -> None:
        """Refuse any split but `all`."""
        if split != "all":
            raise ValueError(
                f"{what} has the split all (with a slice, such as all[:90%]), not {split!r}: in a config, "
                "--config.data.score_split=all --config.data.evaluate_split=all --config.data.held=0.1 (a tenth of the "
                "documents is kept for evaluation)"
            )


@dataclass(frozen=True)
class _Udhr(Simple):
    """The UDHR, one document a language, shipped with the package; see data/udhr/PROVENANCE.md."""

    name: str = "udhr"

    def languages(self) -> list[str]:
        """Return all thirty codes."""
        return sorted(LANGUAGES)

    def documents(self, language: str, split: str, reading: Reading) -> Iterator[str]:
        """Yield the whole document, or its first or second half."""
        if split not in ("all", "first", "second"):
            raise ValueError(f"the splits of udhr are all, first and second, not {split!r}")
        if language not in LANGUAGES:
            raise ValueError(f"udhr has no {language!r}; it has {' '.join(self.languages())}")
        whole = self._file(language).decode()
        chosen = whole.strip("\n") if split == "all" else _halves(whole)[split == "second"]
        yield from reading.accept(chosen, f"udhr/{language}.txt")

    def identity(self, language: str, split: str) -> str:
        """Return the sha256 of the file and the split."""
        return hashlib.sha256(self._file(language) + split.encode()).hexdigest()

    def licence(self, language: str) -> str:
        """Return the licence note."""
        return _UDHR_LICENCE

    def _file(self, language: str) -> bytes:
        return resources.files("lingregions.corpus").joinpath(f"data/udhr/{language}.txt").read_bytes()


UDHR = _Udhr()


def _halves(whole: str) -> tuple[str, str]:
    """Return the halves of a text, cut at the line boundary nearest to half of its UTF-8 bytes (the earlier of two).

    The line feed at the cut and those at the ends belong to neither half. Raises ValueError for a text of one line.
    """
    raw = whole.strip("\n").encode()
    boundaries = [match.start() for match in re.finditer(b"\n", raw)]
    if not boundaries:
        raise ValueError("a text of one line has no line boundary to cut it in halves at")
    cut = min(boundaries, key=lambda place: (abs(2 * place - (len(raw) - 1)), place))
    return raw[:cut].decode().strip("\n"), raw[cut:].decode().strip("\n")


@dataclass(frozen=True)
class _Texts(Simple):
    """Documents in memory, of whichever language they are asked for as."""

    texts: tuple[str, ...]

    @property
    def name(self) -> str:
        """Return how many there are: they have no other name."""
        return f"{len(self.texts)} texts in memory"

    def languages(self) -> list[str]:
        """Return nothing: no language is named."""
        return []

    def documents(self, language: str, split: str, reading: Reading) -> Iterator[str]:
        """Yield the texts."""
        self._only_all(split, "a list of texts")
        for number, document in enumerate(self.texts):
            yield from reading.accept(document, f"text {number} in memory")

    def identity(self, language: str, split: str) -> str:
        """Return a sha256 of the texts, each with its length."""
        sha = hashlib.sha256()
        for document in self.texts:
            raw = document.encode("utf-8", "surrogatepass")
            sha.update(len(raw).to_bytes(8, "little") + raw)
        return sha.hexdigest()


def in_memory(texts: Sequence[str]) -> Source:
    """Return texts as a source, one a document; raises ValueError for anything but strings."""
    held = tuple(texts)
    if not all(isinstance(each, str) for each in held):
        raise ValueError("texts in memory are a list of strings, one a document")
    return _Texts(held)
