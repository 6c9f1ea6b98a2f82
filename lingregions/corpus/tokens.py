"""The tokens of one language's documents, without special tokens: what is built once and sampled from for ever.

Four flat arrays, in memory for small texts and memory-mapped from files for large ones (`build.py` writes those): ids
and bytes (int32, one a token), offsets (int64, one more than documents) and hashes (uint64, one a document: equal texts
have equal hashes, which is what splits go by, so a duplicate never stands on both sides). 8 bytes a token, 16 a
document. Token ids are int32 everywhere: uint16 files cut every vocabulary above 65,535.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lingregions.corpus.text import Reading
from lingregions.models.tokenizer import Tokenizer


@dataclass(frozen=True, eq=False)
class Tokens:
    """The tokens of documents 0..d-1: document i holds ids[offsets[i]:offsets[i + 1]].

    `bytes` are the UTF-8 bytes of each token; `digest` is a sha256 of the texts in order, `tokenizer` the fingerprint
    of the tokenizer; `empty` and `skipped` count the texts that gave no document.
    """

    ids: np.ndarray
    bytes: np.ndarray
    offsets: np.ndarray
    hashes: np.ndarray
    digest: str
    tokenizer: str
    empty: int = 0
    skipped: int = 0
    messages: tuple[str, ...] = ()  # why texts were skipped, the first of them
    warnings: tuple[str, ...] = ()  # what a user should look at

    def __len__(self) -> int:
        """Return the number of documents."""
        return len(self.hashes)


class Piece(NamedTuple):
    """The tokens of some documents: ids int32 [n], bytes int32 [n], lengths int64 [d], hashes uint64 [d].

    `refused` says of each text that the tokenizer could not take why.
    """

    ids: np.ndarray
    bytes: np.ndarray
    lengths: np.ndarray
    hashes: np.ndarray
    refused: list[str]


def encode(texts: Iterable[str], tokenizer: Tokenizer, strict: bool = True) -> Piece:
    """Return the tokens of texts; a text that the tokenizer refuses stops it, or is noted when not `strict`.

    Raises ValueError when the tokenizer gives ids outside its own vocabulary, or bytes that do not sum to the text's.
    """
    ids: list[np.ndarray] = []
    sizes: list[np.ndarray] = []
    hashes: list[int] = []
    refused: list[str] = []
    for text in texts:
        raw = text.encode()
        try:
            encoding = tokenizer.encode(text)
        except ValueError as error:
            if strict:
                raise
            refused.append(str(error))
            continue
        counted = int(np.sum(encoding.bytes, dtype=np.int64))
        if counted != len(raw):
            raise ValueError(
                f"{tokenizer.name} accounts for {counted} of the {len(raw)} UTF-8 bytes of {text[:40]!r}, "
                "so bits per byte would be wrong"
            )
        ids.append(np.asarray(encoding.ids, np.int32))
        sizes.append(np.asarray(encoding.bytes, np.int32))
        hashes.append(int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest(), "little"))
    joined = np.concatenate([np.zeros(0, np.int32), *ids])
    check(joined, tokenizer.vocab_size, f"the vocabulary of the tokenizer {tokenizer.name}")
    lengths = np.array([len(piece) for piece in ids], np.int64)
    return Piece(joined, np.concatenate([np.zeros(0, np.int32), *sizes]), lengths, np.array(hashes, np.uint64), refused)


def check(ids: np.ndarray, vocabulary: int, what: str) -> None:
    """Raise ValueError when an id lies outside range(vocabulary); `what` names that range."""
    if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < vocabulary:
        raise ValueError(
            f"token ids {int(ids.min())}..{int(ids.max())} lie outside {what}, which has {vocabulary} entries: "
            "is this the tokenizer of another model?"
        )


class Digest:
    """A sha256 over texts in order, each with its length, so that moving a boundary changes it."""

    def __init__(self) -> None:
        self.sha = hashlib.sha256()

    def note(self, texts: Iterable[str]) -> Iterator[str]:
        """Yield the texts, taking each into the digest."""
        for text in texts:
            raw = text.encode()
            self.sha.update(len(raw).to_bytes(8, "little"))
            self.sha.update(raw)
            yield text

    def hex(self) -> str:
        """Return the digest of the texts so far."""
        return self.sha.hexdigest()


def tokenize(texts: Iterable[str], tokenizer: Tokenizer, reading: Reading) -> Tokens:
    """Return the tokens of the texts, held in memory; `reading` is the one that fills while `texts` are read."""
    digest = Digest()
    piece = encode(digest.note(texts), tokenizer, reading.strict)
    for message in piece.refused:
        reading.refuse("tokenizer", message)
    return Tokens(
        piece.ids,
        piece.bytes,
        np.concatenate([np.zeros(1, np.int64), np.cumsum(piece.lengths)]),
        piece.hashes,
        digest.hex(),
        tokenizer.fingerprint,
        reading.empty,
        reading.skipped,
        tuple(reading.messages),
    )
