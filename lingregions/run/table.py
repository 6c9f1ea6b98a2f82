"""Tables that grow row by row and are their own resume point: CSV files with the checksum of each row at its end."""

import csv
import io
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lingregions.run import files

Row = dict[str, Any]
_SUM = "row_crc32"  # the last column: the checksum of the words before it
_ADVICE = "put the file back, or start afresh with --fresh"


def read(path: Path) -> list[dict[str, str]]:
    """Return the rows of a table on disk as text by column, without their checksums; a table without any is taken.

    Raises:
      RunError: a row is not what was written.
    """
    with open(path, encoding="utf-8", newline="") as file:
        reader = csv.reader(file)
        try:
            lines = [(reader.line_num, words) for words in reader]
        except (ValueError, csv.Error) as error:
            raise files.RunError(f"{path} is damaged after line {reader.line_num} ({error}); {_ADVICE}") from None
    header = lines[0][1] if lines else []
    sealed, rows = header[-1:] == [_SUM], []
    for number, words in lines[1:]:
        if sealed and (len(words) != len(header) or _sum(words[:-1]) != words[-1]):
            raise files.RunError(
                f"{path}:{number} was changed since it was written: the row does not match its checksum; {_ADVICE}"
            )
        row = dict(zip(header, words, strict=sealed))
        row.pop(_SUM, None)
        rows.append(row)
    return rows


def dump(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> bytes:
    """Return the whole file of a table: its header, and its rows with their checksums."""
    return _line([*columns, _SUM]) + b"".join(_line([*row, _sum(row)]) for row in rows)


def _sum(words: Sequence[object]) -> str:
    return f"{zlib.crc32(_line(words)):08x}"


class Table:
    """Rows of fixed, typed columns, at most one a key; on disk as CSV with a header line."""

    def __init__(self, path: Path, columns: Mapping[str, type], keys: Sequence[str], writer: bool) -> None:
        """Read the rows that are there.

        Args:
          path: the CSV file; the first row creates it.
          columns: name -> str, int, float or bool, in the order of the file.
          keys: the columns that name a cell.
          writer: whether this process writes the file.

        Raises:
          RunError: the file has other columns, or a value that is not of its column's type.
        """
        unknown = [key for key in keys if key not in columns]
        if unknown or not keys:
            raise ValueError(f"keys of table {path.name} must be among its columns {list(columns)}, not {list(keys)}")
        self.path, self.columns, self.keys, self.writer = path, dict(columns), tuple(keys), writer
        self._rows: dict[tuple[Any, ...], Row] = {}
        self.cut = files.repair(path) if writer else b""
        if writer and path.exists() and path.stat().st_size:
            self._read()

    def rows(self) -> list[Row]:
        """The rows in the order in which they were added."""
        return [dict(row) for row in self._rows.values()]

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a row; a row that is there already, value for value, is not added again.

        Raises:
          ValueError: the row has other columns, a value of another type, or a line break in a word.
          RunError: the cell is there with other values, or the disk refuses.
        """
        if set(row) != set(self.columns):
            raise ValueError(f"a row of {self.path.name} has columns {sorted(self.columns)}, not {sorted(row)}")
        typed = {name: self._typed(name, row[name]) for name in self.columns}
        key = tuple(typed[name] for name in self.keys)
        there = self._rows.get(key)
        if there is not None:
            if _texts(there) != _texts(typed):
                cell = ", ".join(f"{name} {value}" for name, value in zip(self.keys, key, strict=True))
                raise files.RunError(
                    f"{self.path} has a row for {cell} with other values: {there} is there, {typed} was to be added. "
                    "A finished cell is never overwritten; start afresh with --fresh"
                )
            return
        if self.writer:
            if not self.path.exists() or self.path.stat().st_size == 0:
                files.write(self.path, dump(list(self.columns), []))
            words = _texts(typed)
            files.append(self.path, _line([*words, _sum(words)]))
        self._rows[key] = typed

    def _typed(self, name: str, value: Any) -> Any:
        kind = self.columns[name]
        if hasattr(value, "item"):
            value = value.item()  # a NumPy or JAX scalar
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise ValueError(f"{name} of {self.path.name} is of type {kind.__name__}, not {value!r}")
        if isinstance(value, str) and ("\n" in value or "\r" in value):
            raise ValueError(f"{name} of {self.path.name} must stay on one line: {value!r}")
        return value

    def _read(self) -> None:
        rows = read(self.path)
        with open(self.path, encoding="utf-8", newline="") as file:
            header = next(csv.reader(file), [])
        if header != [*self.columns, _SUM]:
            raise files.RunError(
                f"{self.path} has columns {header}, this version writes {[*self.columns, _SUM]}; "
                "start afresh with --fresh or use another --workdir"
            )
        for number, words in enumerate(rows, 2):
            try:
                row = {name: _parse(word, self.columns[name]) for name, word in words.items()}
            except ValueError as error:
                raise files.RunError(f"{self.path}:{number}: {error}; start afresh with --fresh") from None
            self._rows[tuple(row[name] for name in self.keys)] = row


def _parse(word: str, kind: type) -> Any:
    if kind is bool:
        if word not in ("True", "False"):
            raise ValueError(f"{word!r} is neither True nor False")
        return word == "True"
    return kind(word)


def _texts(row: Row) -> list[str]:
    """As written: repr keeps every bit of a float; infinity and not-a-number are inf and nan."""
    return [repr(value) if isinstance(value, float) else str(value) for value in row.values()]


def _line(words: Sequence[object]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(words)
    return text.getvalue().encode()
