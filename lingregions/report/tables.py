"""Table: columns of one kind each, and rows; shown by the page, and written as Markdown and as CSV."""

import csv
import io
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

from lingregions.report import numerals
from lingregions.report.numerals import Cell, Span


@dataclass(frozen=True)
class Column:
    """One column: what stands over it, and the kind of its cells (a key of `numerals.KINDS`)."""

    name: str
    kind: str = "text"

    def __post_init__(self) -> None:
        if self.kind not in numerals.KINDS:
            raise ValueError(f"column {self.name!r} has kind {self.kind!r}; known kinds: {', '.join(numerals.KINDS)}")

    @property
    def numeric(self) -> bool:
        """Whether the column is set flush right."""
        return self.kind != "text"


@dataclass(frozen=True)
class Table:
    """A table. `name` is its file stem; the last `totals` rows are set apart (means over the rows above)."""

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""
    totals: int = 0
    # settings: keys and long values, which may break anywhere; prose: texts side by side, in any script and direction.
    look: Literal["sortable", "settings", "prose"] = "sortable"
    folded: bool = False  # so large that the page shows it only on demand

    def __post_init__(self) -> None:
        for position, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise ValueError(
                    f"table {self.name!r}: row {position} has {len(row)} cells for {len(self.columns)} columns"
                )

    def keys(self) -> list[list[str]]:
        """What each cell is sorted by: its number in full precision, or its text."""
        return [
            [
                _stored(cell, "number" if column.kind == "exponential" else column.kind)[0]
                for column, cell in zip(self.columns, row, strict=True)
            ]
            for row in self.rows
        ]

    def printed(self) -> list[list[str]]:
        """Every cell as it is read."""
        return [
            [numerals.KINDS[column.kind](cell) for column, cell in zip(self.columns, row, strict=True)]
            for row in self.rows
        ]


def slug(text: str) -> str:
    """A title as a file stem and as an anchor: lower case, words joined by underscores."""
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_") or "untitled"


def distinct(names: Sequence[str]) -> list[str]:
    """The names, one that is taken with a number behind it."""
    taken: list[str] = []
    for name in names:
        number, own = 2, name
        while own in taken:
            own, number = f"{name}_{number}", number + 1
        taken.append(own)
    return taken


def visible(cell: str) -> str:
    """A text on one line: a line break as an arrow, any other control character as its picture."""
    pictures = {code: chr(0x2400 + code) for code in range(32)} | {9: " ", 10: "↵", 13: "↵", 127: "\u2421"}
    return cell.replace("\r\n", "\n").translate(pictures)


def _escaped(cell: str) -> str:
    """A cell of Markdown that shows what it holds: no markup, no cell border, no second line."""
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", escape(visible(cell), quote=False))


def markdown(table: Table) -> str:
    """The table as Markdown, with its title above and its note below."""

    def line(cells: list[str]) -> str:
        return f"| {' | '.join(map(_escaped, cells))} |"

    lines = [f"**{_escaped(table.title)}**", "", line([column.name for column in table.columns])]
    lines.append("|" + "|".join("---:" if column.numeric else "---" for column in table.columns) + "|")
    lines += [line(row) for row in table.printed()]
    if table.note:
        lines += ["", _escaped(table.note)]
    return "\n".join(lines) + "\n"


def spreadsheet(table: Table) -> str:
    """The table as CSV: ASCII headers, numbers in full precision, a missing cell empty, an interval three columns."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    names = distinct([slug(column.name) for column in table.columns])
    ends = (("", "_low", "_high") if column.kind in numerals.SPANS else ("",) for column in table.columns)
    writer.writerow(f"{name}{end}" for name, which in zip(names, ends, strict=True) for end in which)
    for row in table.rows:
        writer.writerow(itertools.chain(*(_stored(cell, it.kind) for it, cell in zip(table.columns, row, strict=True))))
    return buffer.getvalue()


def _stored(cell: Cell, kind: str) -> list[str]:
    if kind not in numerals.SPANS:
        return [numerals.raw(cell, kind)]
    return [numerals.raw(part, numerals.SPANS[kind]) for part in (cell if isinstance(cell, Span) else Span(None))]
