"""Token files: the tokens of one language built once, in parallel processes, and memory-mapped ever after.

    FOLDER/<language>-<key>/   ids.bin bytes.bin (int32), offsets.bin (int64), hashes.bin (uint64), meta.json
    FOLDER/.<language>-<key>/  the same while it is being built, with journal.json: what of it is complete

The key hashes the texts' identity, the split, the tokenizer's fingerprint and the reader's strictness, so files of
another tokenizer or of changed texts are never taken for these. A build that was interrupted goes on after the last
complete piece; the finished folder appears by one rename. Every file has a checksum (CRC-32, which can be continued
after an interruption; the headers, BLAKE2) that `load` verifies, at about a gigabyte a second. Special tokens, length
and packing are not in the files: they are chosen later. 8 bytes a token and 16 a document on disk; memory is a few
pieces of text a process, whatever the corpus.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import multiprocessing
import os
import shutil
import threading
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from multiprocessing import connection
from pathlib import Path
from typing import IO, Any

import numpy as np

from lingregions.corpus import tokens as stores
from lingregions.corpus.check import Excerpt
from lingregions.corpus.source import UDHR, Source
from lingregions.corpus.text import Reading
from lingregions.corpus.tokens import Piece, Tokens
from lingregions.models.tokenizer import Tokenizer

_FORMAT = 2
_PIECE = 1 << 20  # characters of text that one task tokenizes
_DTYPES = {"ids": "<i4", "bytes": "<i4", "offsets": "<i8", "hashes": "<u8"}

_CHUNK = 1 << 23  # bytes that are verified at a time

_Notice = Callable[[int, int], None]  # (bytes read, tokens written) so far
_Say = Callable[[str], None]  # a sentence for people


@dataclass
class _Journal:
    """What of a build is complete: texts read, documents and tokens written, texts that the tokenizer refused.

    `about` says what is built: the same texts in other content give another folder, and this one is out of date then.
    """

    about: list[Any] = field(default_factory=list)
    texts: int = 0
    documents: int = 0
    tokens: int = 0
    refused: int = 0
    messages: list[str] = field(default_factory=list)
    checksums: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_DTYPES, 0))

    def size(self, name: str) -> int:
        """Return the bytes that file `name` has now."""
        return (self.tokens if name in ("ids", "bytes") else self.documents) * np.dtype(_DTYPES[name]).itemsize


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
        try:
            yield from self._parallel(self.executor, pieces)
        except BrokenProcessPool:
            raise OSError(
                "a process that tokenizes was killed (out of memory?): try again, with fewer workers"
            ) from None

    def _parallel(self, executor: ProcessPoolExecutor, pieces: Iterable[list[str]]) -> Iterator[tuple[int, Piece]]:
        waiting: deque[tuple[int, Future[Piece]]] = deque()
        for piece in pieces:
            waiting.append((len(piece), executor.submit(_encode, piece)))
            if len(waiting) > 2 * self.workers:
                size, future = waiting.popleft()
                yield size, future.result()
        for size, future in waiting:
            yield size, future.result()


_worker: dict[str, Any] = {}


def _start(tokenizer: Tokenizer, strict: bool) -> None:
    """Keep the tokenizer in a worker process, so that it travels once, and end the process with its parent."""
    _worker.update(tokenizer=tokenizer, strict=strict)
    threading.Thread(target=_follow, daemon=True).start()


def _follow() -> None:
    """End this process when its parent does: a worker waits for work on a pipe that its siblings hold open too."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def _encode(piece: list[str]) -> Piece:
    """Tokenize one piece in a worker process."""
    return stores.encode(piece, _worker["tokenizer"], _worker["strict"])


def _place(root: Path, source: Source, language: str, split: str, tokenizer: Tokenizer, strict: bool) -> Path:
    """Return the folder of the token files that these settings give."""
    content = [_FORMAT, source.identity(language, split), split, tokenizer.fingerprint, strict]
    return root / f"{language}-{hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]}"


def build(
    root: Path,
    source: Source,
    language: str,
    split: str,
    pool: Pool,
    notice: _Notice | None = None,
    say: _Say | None = None,
) -> Path:
    """Return the folder with the token files, built now unless it is there; a second process waits for the first one.

    Half-written folders that nobody can go on with are removed, and `say` hears of it. Raises ValueError (TextError
    for bad texts) or OSError; what was built so far is kept and a next call goes on from it.
    """
    final = _place(root, source, language, split, pool.tokenizer, pool.strict)
    if (final / "meta.json").is_file():
        return final
    partial = final.with_name(f".{final.name}")
    root.mkdir(parents=True, exist_ok=True)
    about = [language, source.name, split, pool.tokenizer.fingerprint, pool.strict]
    for outdated, held, found in halves(root):
        if not held and outdated != partial and found in (about, None) and _remove(outdated) and say:
            reason = "from texts that have changed since" if found else "without a journal"
            say(f"{outdated}, half-written {reason}, is removed")
    with _lock(_lock_of(partial)):
        if not (final / "meta.json").is_file():
            partial.mkdir(exist_ok=True)
            try:
                meta = _write(partial, about, source, pool, notice)
            except OSError as error:
                if error.errno is None or error.filename:
                    raise
                raise OSError(error.errno, error.strerror, str(partial)) from error  # a full disk names no file
            _save(partial / "meta.json", meta)
            (partial / "journal.json").unlink(missing_ok=True)
            partial.rename(final)
    return final


def halves(root: Path) -> list[tuple[Path, bool, list[Any] | None]]:
    """Return (folder, whether a living process holds it, what is built there) of the half-written folders in `root`."""
    found = []
    for partial in sorted(root.glob(".*-*/")):
        about = None
        with contextlib.suppress(ValueError):
            about = _Journal(**_unsealed(partial / "journal.json")).about
        with contextlib.suppress(OSError), _lock(_lock_of(partial), wait=False):
            found.append((partial, False, about))
            continue
        found.append((partial, True, about))
    return found


def _remove(partial: Path) -> bool:
    """Remove a half-written folder unless a process has taken hold of it; return whether it did."""
    with contextlib.suppress(BlockingIOError), _lock(_lock_of(partial), wait=False):
        shutil.rmtree(partial)
        return True
    return False


def _write(partial: Path, about: list[Any], source: Source, pool: Pool, notice: _Notice | None) -> dict[str, Any]:
    """Tokenize what the journal does not have yet, and return the content of meta.json."""
    language, _, split, *_ = about
    journal = _Journal(about)
    if (partial / "journal.json").is_file():
        journal = _Journal(**_unsealed(partial / "journal.json"))
    reading = Reading(pool.strict)
    digest, excerpt = stores.Digest(), Excerpt(language)
    texts = excerpt.note(digest.note(source.documents(language, split, reading)))
    for _ in range(journal.texts):  # read again for the digest and the counts, but not tokenized again
        next(texts)
    with contextlib.ExitStack() as stack:
        files = {name: stack.enter_context(_reopened(partial / f"{name}.bin", journal)) for name in _DTYPES}
        for size, piece in pool.encode(_pieces(texts)):
            _append(files, journal, size, piece)
            _save(partial / "journal.json", asdict(journal))
            if notice:
                notice(reading.position, journal.tokens)
    return {
        "format": _FORMAT,
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
        "warnings": [] if source is UDHR else excerpt.warnings(),
        "checksums": journal.checksums,
    }


def _reopened(path: Path, journal: _Journal) -> IO[bytes]:
    """Open a file to write after what the journal knows of it.

    Raises ValueError when that is not there any more, or is not what was written.
    """
    size, crc = journal.size(path.stem), 0
    file = path.open("ab+")
    file.seek(0)
    left = size
    while left and (chunk := file.read(min(left, _CHUNK))):
        crc, left = zlib.crc32(chunk, crc), left - len(chunk)
    if left or crc != journal.checksums[path.stem]:
        file.close()
        raise ValueError(f"{path} does not hold what was written before the interruption: delete {path.parent}")
    file.truncate(size)
    return file


def _append(files: dict[str, IO[bytes]], journal: _Journal, texts: int, piece: Piece) -> None:
    """Write a piece to the disk and into the journal."""
    ends = journal.tokens + np.cumsum(piece.lengths)
    arrays = {"ids": piece.ids, "bytes": piece.bytes, "offsets": ends, "hashes": piece.hashes}
    for name, array in arrays.items():
        content = array.astype(_DTYPES[name]).tobytes()
        journal.checksums[name] = zlib.crc32(content, journal.checksums[name])
        files[name].write(content)
    for file in files.values():
        file.flush()
        os.fsync(file.fileno())
    journal.texts += texts
    journal.documents += len(piece.lengths)
    journal.tokens += len(piece.ids)
    journal.refused += len(piece.refused)
    journal.messages += piece.refused[: 20 - len(journal.messages)]


def load(folder: Path, tokenizer: Tokenizer) -> Tokens:
    """Return the memory-mapped tokens of a folder, their checksums verified.

    Raises ValueError that names the file for a folder of another tokenizer or format, or whose files are missing, cut
    off or changed.
    """
    meta = read(folder)
    if meta["tokenizer_fingerprint"] != tokenizer.fingerprint:
        raise ValueError(
            f"{folder} was built with the tokenizer {meta['tokenizer']} ({meta['tokenizer_fingerprint'][:12]}), not "
            f"with {tokenizer.name} ({tokenizer.fingerprint[:12]}): build it again for this one"
        )
    counts = _Journal(documents=meta["documents"], tokens=meta["tokens"], checksums=meta["checksums"])
    arrays = {name: _verified(folder / f"{name}.bin", counts, tokenizer) for name in _DTYPES}
    return Tokens(
        arrays["ids"],
        arrays["bytes"],
        np.concatenate([np.zeros(1, np.int64), arrays["offsets"]]),
        np.asarray(arrays["hashes"]),
        meta["digest"],
        meta["tokenizer_fingerprint"],
        meta["empty"],
        meta["skipped"],
        tuple(meta["messages"]),
        tuple(meta["warnings"]),
    )


def _verified(path: Path, counts: _Journal, tokenizer: Tokenizer) -> np.ndarray:
    """Return a file as a memory-mapped array; raises ValueError where it is not what was written."""
    dtype, size = np.dtype(_DTYPES[path.stem]), counts.size(path.stem)
    there = path.stat().st_size if path.is_file() else 0
    again = f"delete {path.parent}, build again"
    if there != size:
        what = f"{there} bytes, not {size // dtype.itemsize} x {dtype.itemsize}"
        raise ValueError(f"{path} " + (f"has {what}" if path.is_file() else "is missing") + f": {again}")
    array = np.memmap(path, dtype, "r") if size else np.zeros(0, dtype)
    crc, step = 0, _CHUNK // dtype.itemsize
    for start in range(0, len(array), step):
        chunk = np.asarray(array[start : start + step])
        crc = zlib.crc32(chunk.data, crc)
        if path.stem == "ids":
            stores.check(chunk, tokenizer.vocab_size, f"{path}: the vocabulary of {tokenizer.name}")
    if crc != counts.checksums[path.stem]:
        raise ValueError(f"{path} is damaged (its checksum is wrong): {again}")
    return array


def read(folder: Path) -> dict[str, Any]:
    """Return meta.json of a folder of token files; raises ValueError when it is not one, or of another format."""
    path = folder / "meta.json"
    if not path.is_file():
        raise ValueError(f"{folder} holds no token files of `lingregions data build` (no meta.json)")
    meta = _unsealed(path)
    known = meta.get("format")
    if known != _FORMAT:
        raise ValueError(
            f"{folder} has token files of format {known}, this version reads {_FORMAT}: delete them, build again"
        )
    return meta


def pick(root: Path, language: str, split: str | None, tokenizer: Tokenizer) -> Path:
    """Return the folder below `root` with the language's tokens of this tokenizer (and split, when there are several).

    Raises FileNotFoundError or ValueError that lists what is there.
    """
    there = [(path.parent, read(path.parent)) for path in sorted(root.glob(f"{language}-*/meta.json"))]
    for path, meta in there:
        if meta["language"] != language:
            raise ValueError(f"{path} holds tokens in {meta['language']!r}, not in {language!r}: its name was changed")
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
    """Yield the texts in lists of about `_PIECE` characters."""
    piece: list[str] = []
    size = 0
    for text in texts:
        piece.append(text)
        size += len(text)
        if size >= _PIECE:
            yield piece
            piece, size = [], 0
    if piece:
        yield piece


def _sealed(content: dict[str, Any]) -> dict[str, Any]:
    """Return a JSON object with the checksum of the rest of it added."""
    text = json.dumps(content, sort_keys=True)
    return {**content, "checksum": hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}


def _unsealed(path: Path) -> dict[str, Any]:
    """Return what `_save` wrote, without the checksum; raises ValueError that names the file otherwise.

    An object without a checksum is returned as it is when its format says that another version wrote it.
    """
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read ({type(error).__name__}): delete {path.parent}, build again") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged (no JSON object): delete {path.parent}, build again")
    given = content.pop("checksum", None)
    other = content.get("format", _FORMAT) != _FORMAT and given is None
    if not other and given != _sealed(content)["checksum"]:
        raise ValueError(f"{path} is damaged (its checksum is wrong): delete {path.parent}, build again")
    return content


def _save(path: Path, content: dict[str, Any]) -> None:
    """Write JSON with its checksum so that either the old or the new content is there, whenever the process dies."""
    beside = path.with_suffix(".new")
    with beside.open("w") as file:
        json.dump(_sealed(content), file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def _lock_of(partial: Path) -> Path:
    return partial.with_name(f"{partial.name}.lock")


@contextlib.contextmanager
def _lock(path: Path, wait: bool = True) -> Iterator[None]:
    """Hold a lock that the system lets go when the process ends, however it ends.

    Raises BlockingIOError where another process holds it and `wait` is false; OSError on a disk that has no locks.
    """
    while True:
        with path.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except OSError as error:
                if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                    raise
                message = (
                    f"this disk has no locks ({error.strerror}); put token files on another one (machine.cache, --out)"
                )
                raise OSError(error.errno, message, str(path)) from None
            # Who held it before may have removed the file: then a third process can hold a new one of the same name.
            if not path.exists() or path.stat().st_ino != os.fstat(file.fileno()).st_ino:
                continue
            yield
            path.unlink(missing_ok=True)
            return
