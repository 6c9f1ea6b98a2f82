"""Token files: the tokens of one language built once, in parallel processes, and memory-mapped ever after.

    FOLDER/<language>-<key>/   ids.bin bytes.bin (int32), offsets.bin (int64), hashes.bin (uint64), meta.json
    FOLDER/.<language>-<key>/  the same while it is being built, with journal.json: what of it is complete

The key hashes the texts' identity, the split, the tokenizer's fingerprint and the reader's strictness, so files of
another tokenizer or of changed texts are never taken for these. A build that was interrupted goes on after the last
complete piece; the finished folder appears by one rename. Special tokens, length and packing are not in the files: they
are chosen later. 8 bytes a token and 16 a document on disk; memory is a few pieces of text a process, whatever the
corpus.
"""

import contextlib
import fcntl
import hashlib
import json
import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lingregions.corpus import tokens as stores
from lingregions.corpus.source import Source
from lingregions.corpus.text import Reading
from lingregions.corpus.tokens import Piece, Tokens
from lingregions.models.tokenizer import Tokenizer

FORMAT = 1
PIECE = 1 << 20  # characters of text that one task tokenizes
DTYPES = {"ids": "<i4", "bytes": "<i4", "offsets": "<i8", "hashes": "<u8"}

Notice = Callable[[int, int], None]  # (bytes read, tokens written) so far


@dataclass
class Journal:
    """What of a build is complete: texts read, documents and tokens written, texts that the tokenizer refused."""

    texts: int = 0
    documents: int = 0
    tokens: int = 0
    refused: int = 0
    messages: list[str] = field(default_factory=list)


class Pool:
    """Processes that tokenize pieces of text; with 0 workers the calling process does it. Use it in a `with`.

    They are spawned, not forked, since a process that has started JAX must not fork.
    """

    def __init__(self, tokenizer: Tokenizer, workers: int, strict: bool = True) -> None:
        self.tokenizer, self.strict, self.workers = tokenizer, strict, workers
        self.executor: ProcessPoolExecutor | None = None
        if workers:
            context = multiprocessing.get_context("spawn")
            self.executor = ProcessPoolExecutor(workers, context, initializer=_start, initargs=(tokenizer, strict))

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *problem: object) -> None:
        if self.executor:
            self.executor.shutdown(cancel_futures=True)

    def encode(self, pieces: Iterable[list[str]]) -> Iterator[tuple[int, Piece]]:
        """Yield (number of texts, their tokens) of each piece in order, with at most two pieces a worker under way."""
        if self.executor is None:
            for piece in pieces:
                yield len(piece), stores.encode(piece, self.tokenizer, self.strict)
            return
        waiting: deque[tuple[int, Future[Piece]]] = deque()
        for piece in pieces:
            waiting.append((len(piece), self.executor.submit(_encode, piece)))
            if len(waiting) > 2 * self.workers:
                size, future = waiting.popleft()
                yield size, future.result()
        for size, future in waiting:
            yield size, future.result()


_worker: dict[str, Any] = {}


def _start(tokenizer: Tokenizer, strict: bool) -> None:
    """Keep the tokenizer in a worker process, so that it travels once."""
    _worker.update(tokenizer=tokenizer, strict=strict)


def _encode(piece: list[str]) -> Piece:
    """Tokenize one piece in a worker process."""
    return stores.encode(piece, _worker["tokenizer"], _worker["strict"])


def place(root: Path, source: Source, language: str, split: str, tokenizer: Tokenizer, strict: bool) -> Path:
    """Return the folder of the token files that these settings give."""
    content = [FORMAT, source.identity(language, split), split, tokenizer.fingerprint, strict]
    return root / f"{language}-{hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]}"


def build(
    root: Path,
    source: Source,
    language: str,
    split: str,
    pool: Pool,
    notice: Notice | None = None,
) -> Path:
    """Return the folder with the token files, built now unless it is there; a second process waits for the first one.

    Raises ValueError (TextError for bad texts) or OSError; what was built so far is kept and a next call goes on from
    it.
    """
    final = place(root, source, language, split, pool.tokenizer, pool.strict)
    if (final / "meta.json").is_file():
        return final
    partial = final.with_name(f".{final.name}")
    root.mkdir(parents=True, exist_ok=True)
    with _lock(final.with_name(f".{final.name}.lock")):
        if not (final / "meta.json").is_file():
            partial.mkdir(exist_ok=True)
            meta = _write(partial, source, language, split, pool, notice)
            _save(partial / "meta.json", meta)
            (partial / "journal.json").unlink(missing_ok=True)
            partial.rename(final)
    return final


def _write(
    partial: Path, source: Source, language: str, split: str, pool: Pool, notice: Notice | None
) -> dict[str, Any]:
    """Tokenize what the journal does not have yet, and return the content of meta.json."""
    journal = Journal()
    with contextlib.suppress(FileNotFoundError):
        journal = Journal(**json.loads((partial / "journal.json").read_text()))
    reading = Reading(pool.strict)
    digest = stores.Digest()
    texts = digest.note(source.documents(language, split, reading))
    for _ in range(journal.texts):  # read again for the digest and the counts, but not tokenized again
        next(texts)
    with contextlib.ExitStack() as stack:
        files = {name: stack.enter_context((partial / f"{name}.bin").open("ab")) for name in DTYPES}
        for name, file in files.items():
            count = journal.tokens if name in ("ids", "bytes") else journal.documents
            file.truncate(count * np.dtype(DTYPES[name]).itemsize)
        for size, piece in pool.encode(_pieces(texts)):
            ends = journal.tokens + np.cumsum(piece.lengths)
            for name, array in (
                ("ids", piece.ids),
                ("bytes", piece.bytes),
                ("offsets", ends),
                ("hashes", piece.hashes),
            ):
                files[name].write(array.astype(DTYPES[name]).tobytes())
            for file in files.values():
                file.flush()
                os.fsync(file.fileno())
            journal.texts += size
            journal.documents += len(piece.lengths)
            journal.tokens += len(piece.ids)
            journal.refused += len(piece.refused)
            journal.messages += piece.refused[: 20 - len(journal.messages)]
            _save(partial / "journal.json", asdict(journal))
            if notice:
                notice(reading.position, journal.tokens)
    return {
        "format": FORMAT,
        "language": language,
        "source": source.name,
        "split": split,
        "licence": source.licence(language),
        "tokenizer": pool.tokenizer.name,
        "tokenizer_fingerprint": pool.tokenizer.fingerprint,
        "vocabulary": pool.tokenizer.vocab_size,
        "digest": digest.hex(),
        "documents": journal.documents,
        "tokens": journal.tokens,
        "empty": reading.empty,
        "skipped": reading.skipped + journal.refused,
        "messages": [*reading.messages, *journal.messages],
    }


def load(folder: Path, tokenizer: Tokenizer) -> Tokens:
    """Return the memory-mapped tokens of a folder.

    Raises ValueError for a folder of another tokenizer or format, or whose files are cut off.
    """
    meta = read(folder)
    if meta["tokenizer_fingerprint"] != tokenizer.fingerprint:
        raise ValueError(
            f"{folder} was built with the tokenizer {meta['tokenizer']} ({meta['tokenizer_fingerprint'][:12]}), not "
            f"with {tokenizer.name} ({tokenizer.fingerprint[:12]}): build it again for this one"
        )
    arrays = {}
    for name, dtype in DTYPES.items():
        path = folder / f"{name}.bin"
        count = meta["tokens"] if name in ("ids", "bytes") else meta["documents"]
        there = path.stat().st_size if path.is_file() else 0
        if there != count * np.dtype(dtype).itemsize:
            raise ValueError(
                f"{path} has {there} bytes, not {count} x {np.dtype(dtype).itemsize}: delete {folder}, build again"
            )
        arrays[name] = np.memmap(path, dtype, "r") if count else np.zeros(0, dtype)
    offsets = np.concatenate([np.zeros(1, np.int64), arrays["offsets"]])
    return Tokens(
        arrays["ids"],
        arrays["bytes"],
        offsets,
        np.asarray(arrays["hashes"]),
        meta["digest"],
        meta["tokenizer_fingerprint"],
        meta["empty"],
        meta["skipped"],
    )


def read(folder: Path) -> dict[str, Any]:
    """Return meta.json of a folder of token files; raises ValueError when it is not one, or of another format."""
    try:
        meta = json.loads((folder / "meta.json").read_text())
        known = meta["format"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(
            f"{folder} holds no token files of `lingregions data build` (meta.json missing or broken)"
        ) from None
    if known != FORMAT:
        raise ValueError(f"{folder} has token files of format {known}, this version reads {FORMAT}: build them again")
    return dict(meta)


def pick(root: Path, language: str, split: str | None, tokenizer: Tokenizer) -> Path:
    """Return the folder below `root` with the language's tokens of this tokenizer (and split, when there are several).

    Raises FileNotFoundError or ValueError that lists what is there.
    """
    there = [(path.parent, read(path.parent)) for path in sorted(root.glob(f"{language}-*/meta.json"))]
    found = [(path, meta) for path, meta in there if meta["tokenizer_fingerprint"] == tokenizer.fingerprint]
    if split is not None and len(found) > 1:
        found = [(path, meta) for path, meta in found if meta["split"] == split]
    if len(found) == 1:
        return found[0][0]
    listed = "; ".join(
        f"{path.name}: {meta['source']}, split {meta['split']}, {meta['tokenizer']}" for path, meta in there
    )
    if found:
        raise ValueError(
            f"{root} has {len(found)} sets of tokens in {language!r} for {tokenizer.name}, keep one: {listed}"
        )
    raise FileNotFoundError(
        f"{root} has no tokens in {language!r} for the tokenizer {tokenizer.name} ({tokenizer.fingerprint[:12]}); "
        f"there: {listed or 'none'}. Build them with `lingregions data build`"
    )


def _pieces(texts: Iterable[str]) -> Iterator[list[str]]:
    """Yield the texts in lists of about `PIECE` characters."""
    piece: list[str] = []
    size = 0
    for text in texts:
        piece.append(text)
        size += len(text)
        if size >= PIECE:
            yield piece
            piece, size = [], 0
    if piece:
        yield piece


def _save(path: Path, content: dict[str, Any]) -> None:
    """Write JSON so that either the old or the new content is there, whenever the process dies."""
    beside = path.with_suffix(".new")
    with beside.open("w") as file:
        json.dump(content, file, indent=1, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold a lock that the system lets go when the process ends, however it ends."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
        path.unlink(missing_ok=True)
