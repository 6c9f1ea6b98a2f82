"""Documents out of files: `.txt`, `.jsonl` and `.parquet`, the first two also as `.gz`, `.xz` and `.zst`.

A document is a line, a paragraph (blank lines separate) or a whole file of text, one object of JSONL, one row of
Parquet. Everything is UTF-8, read as a stream; a byte order mark and the CR of CRLF are dropped, the rest of a text is
kept as it is. Bad input stops with file:line and advice; with `strict=False` it is counted and left out instead. Texts
without any visible character are counted as empty. Reading costs one pass; decompression runs at tens of megabytes a
second.
"""

import gzip
import importlib
import io
import json
import lzma
import re
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

READABLE = ".txt and .jsonl (also .gz, .xz, .zst) and .parquet"
_ENDINGS = re.compile(r"(?:(?P<form>\.txt|\.jsonl)(?P<compression>\.gz|\.xz|\.zst)?|\.parquet)$", re.IGNORECASE)
_PACKAGES = {".parquet": "pyarrow", ".zst": "zstandard"}
_DOCUMENTS = ("line", "paragraph", "file")
_SHOWN = 20  # messages about skipped texts that are kept; all are counted
_CHUNK = 1 << 20
_LONGEST = 1 << 26  # bytes of a line: no text has one, and a packed file of a few kilobytes may
_FRAME = 1 << 12  # bytes of Zstandard that are unpacked at a time: to 128 MB at most
_ROWS = 64  # of Parquet that are in memory at a time


class TextError(ValueError):
    """A text that cannot be used, with its file and line."""


@dataclass
class Reading:
    """How to read, and what was met on the way: one is passed along with an iteration and filled by it.

    `strict` raises at the first bad text; otherwise bad texts are left out, counted in `skipped`, the first of them
    noted in `messages`. `position` is the number of (compressed) bytes read so far, for progress bars.
    """

    strict: bool = True
    documents: int = 0
    empty: int = 0
    skipped: int = 0
    messages: list[str] = field(default_factory=list)
    finished: int = 0
    handle: IO[bytes] | None = None

    def refuse(self, where: str, what: str) -> None:
        """Raise TextError, or count and remember the text that is left out."""
        if self.strict:
            raise TextError(f"{where}: {what} (strict=False leaves such texts out and counts them)")
        self.skipped += 1
        if len(self.messages) < _SHOWN:
            self.messages.append(f"{where}: {what}")

    def accept(self, text: str, where: str) -> Iterator[str]:
        """Yield the text if it can be used, and count it."""
        if not text.strip():
            self.empty += 1
            return
        if "\0" in text:
            self.refuse(where, "a NUL character: is this a binary file, or UTF-16?")
            return
        try:
            text.encode()
        except UnicodeEncodeError as error:
            self.refuse(where, f"a lone surrogate U+{ord(text[error.start]):04X} cannot be written as UTF-8")
            return
        self.documents += 1
        yield text

    @property
    def position(self) -> int:
        """Return the number of bytes read so far, compressed as they are."""
        return self.finished + (self.handle.tell() if self.handle and not self.handle.closed else 0)


def kind(path: Path) -> tuple[str, str]:
    """Return (format, compression) of a file name, such as (".txt", ".xz"); raises ValueError for any other.

    Dots before these endings are part of the name, and capitals make no other ending.
    """
    match = _ENDINGS.search(path.name)
    if not match:
        raise ValueError(f"{path}: not a text file that can be read; readable are {READABLE}")
    return (match["form"] or ".parquet").lower(), (match["compression"] or "").lower()


def stem(path: Path) -> str:
    """Return a file's name without the endings that `kind` knows: the same for a text packed and unpacked."""
    return _ENDINGS.sub("", path.name)


def require(path: Path) -> None:
    """Raise TextError, before anything is read, when a file needs a package that is not installed."""
    form, compression = kind(path)
    for ending, package in _PACKAGES.items():
        if ending in (form, compression):
            try:
                importlib.import_module(package)
            except ModuleNotFoundError:
                raise TextError(f"{path}: reading {ending} needs {package}: pip install {package}") from None


def read(path: Path, reading: Reading, *, column: str = "text", document: str = "line") -> Iterator[str]:
    """Yield the documents of one file in order.

    `column` names the field of JSONL and Parquet; `document` ("line", "paragraph", "file") applies to `.txt`.
    Raises TextError with file:line in strict reading.
    """
    if document not in _DOCUMENTS:
        raise ValueError(f"a document of a text file is one of {', '.join(_DOCUMENTS)}, not {document!r}")
    form, _ = kind(path)
    require(path)
    if form == ".parquet":
        yield from _parquet(path, reading, column)
    elif form == ".jsonl":
        yield from _jsonl(path, reading, column)
    else:
        yield from _txt(path, reading, document)


def _txt(path: Path, reading: Reading, document: str) -> Iterator[str]:
    """Yield the lines, paragraphs or the whole of a text file."""
    pieces: list[str] = []
    start = 1
    for number, line in _lines(path, reading):
        text = _decode(line, f"{path}:{number}", reading)
        if text is None:
            continue
        if document == "line":
            yield from reading.accept(text, f"{path}:{number}")
        elif document == "paragraph" and not text.strip():
            if pieces:
                yield from reading.accept("\n".join(pieces), f"{path}:{start}")
            pieces, start = [], number + 1
        else:
            pieces.append(text)
    if document == "file" or pieces:
        yield from reading.accept("\n".join(pieces).strip("\n"), f"{path}:{start}")


def _jsonl(path: Path, reading: Reading, column: str) -> Iterator[str]:
    """Yield field `column` of every object."""
    for number, line in _lines(path, reading):
        where = f"{path}:{number}"
        text = _decode(line, where, reading)
        if text is None or not text.strip():
            continue
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as error:  # not only JSONDecodeError: a number of 5,000 digits, 10,000 `[`
            reading.refuse(where, f"not a JSON object ({_json_error(error)})")
            continue
        if not isinstance(record, dict):
            reading.refuse(where, f"a JSON {type(record).__name__} where an object with the field {column!r} is needed")
        elif column not in record:
            there = ", ".join(map(repr, record)) or "none"
            reading.refuse(where, f"no field {column!r}; fields there: {there}")
        else:
            yield from _string(record[column], column, where, reading)


def _json_error(error: ValueError | RecursionError) -> str:
    """Return in a few words why a line is no JSON."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at column {error.colno}"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error).split(";")[0]


def _parquet(path: Path, reading: Reading, column: str) -> Iterator[str]:
    """Yield column `column` of every row; a damaged page ends the file as a cut archive does."""
    from pyarrow import ArrowException, parquet

    broken = (
        ArrowException,
        OSError,
        ValueError,
        OverflowError,
        MemoryError,
    )  # all that damaged pages were seen to raise
    try:
        table = parquet.ParquetFile(path)
        names = table.schema_arrow.names
    except broken as error:
        raise TextError(f"{path}: not a Parquet file, or cut off ({_line(error)})") from None
    with table:
        if column not in names:
            raise TextError(f"{path}: no column {column!r}; columns there: {', '.join(names)}")
        number = 0
        batches = table.iter_batches(_ROWS, columns=[column])
        while True:
            try:
                rows = next(batches, None)
                values = [] if rows is None else rows.column(0).to_pylist()
            except broken as error:
                reading.refuse(f"{path}:row {number + 1}", f"the file is damaged from here on ({_line(error)})")
                break
            if rows is None:
                break
            for value in values:
                number += 1
                yield from _string(value, column, f"{path}:row {number}", reading)
    reading.finished += path.stat().st_size


def _line(error: BaseException) -> str:
    """Return the first line of an error of another package."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _string(value: Any, column: str, where: str, reading: Reading) -> Iterator[str]:
    """Yield a field's value if it is a string."""
    if isinstance(value, str):
        yield from reading.accept(value, where)
    else:
        name = "null" if value is None else type(value).__name__
        reading.refuse(where, f"the field {column!r} holds {name}, not a string")


def _decode(line: bytes, where: str, reading: Reading) -> str | None:
    """Return the text of a line, or None when it is not UTF-8 and reading goes on."""
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = line[error.start]
        utf16 = line.startswith((b"\xff\xfe", b"\xfe\xff"))
        advice = "is the file in another encoding, such as Windows-1256? Convert it: iconv -f ENCODING -t UTF-8"
        if utf16:
            advice = "this looks like UTF-16, convert it: iconv -f UTF-16 -t UTF-8"
        reading.refuse(where, f"invalid UTF-8 (byte 0x{byte:02x} at byte {error.start + 1} of the line); {advice}")
        return None


def _lines(path: Path, reading: Reading) -> Iterator[tuple[int, bytes]]:
    """Yield (number from 1, line without its LF or CRLF) of a file, and say where a cut archive ends."""
    number = 0
    with ExitStack() as stack:
        raw = stack.enter_context(path.open("rb"))
        reading.handle = raw
        stream = stack.enter_context(_decompressed(raw, kind(path)[1]))
        try:
            while line := stream.readline(_LONGEST):
                number += 1
                if len(line) == _LONGEST:
                    reading.refuse(f"{path}:{number}", f"a line of {_LONGEST >> 20} MiB and more: no text, or a bomb")
                    while line and not line.endswith(b"\n"):
                        line = stream.readline(_LONGEST)
                    continue
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                yield number, line.removesuffix(b"\n").removesuffix(b"\r")
        except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
            reading.refuse(f"{path}:{number + 1}", f"the archive is cut off or damaged here ({error}); fetch it again")
        reading.handle = None
        reading.finished += path.stat().st_size


def _decompressed(raw: IO[bytes], compression: str) -> IO[bytes]:
    """Return the stream of plain bytes."""
    if compression == ".gz":
        return io.BufferedReader(gzip.GzipFile(fileobj=raw), _CHUNK)
    if compression == ".xz":
        return io.BufferedReader(lzma.LZMAFile(raw), _CHUNK)
    if compression == ".zst":
        return io.BufferedReader(_Zstandard(raw), _CHUNK)
    return raw


class _Zstandard(io.RawIOBase):
    """A readable stream of Zstandard frames that raises EOFError when the last is cut (the package's own does not)."""

    def __init__(self, raw: IO[bytes]) -> None:
        import zstandard

        self.package = zstandard
        self.raw = raw
        self.frame: Any = None
        self.left = b""
        self.ready = memoryview(b"")

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` with plain bytes; return how many, 0 at the end."""
        while not self.ready:
            data = self.left or self.raw.read(_FRAME)
            self.left = b""
            if not data:
                if self.frame is not None:
                    raise EOFError("compressed file ended before the end of its last frame")
                return 0
            if self.frame is None:
                self.frame = self.package.ZstdDecompressor().decompressobj()
            try:
                self.ready = memoryview(self.frame.decompress(data))
            except self.package.ZstdError as error:
                raise EOFError(str(error)) from None
            if self.frame.eof:
                self.left, self.frame = self.frame.unused_data, None
        size = min(len(buffer), len(self.ready))
        buffer[:size], self.ready = self.ready[:size], self.ready[size:]
        return size
