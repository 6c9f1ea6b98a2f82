"""Table: columns of one kind each, and rows. Printed as HTML, Markdown and CSV from the same cells."""

import csv
import io
import itertools
import re
from dataclasses import dataclass
from html import escape

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
    settings: bool = False  # keys and long values, which may break anywhere
    prose: bool = False  # texts side by side, in whatever script and direction
    folded: bool = False  # so large that the page shows it only on demand
    breaks: tuple[tuple[int, str], ...] = ()  # (row, what the rows from here on have in common)

    def __post_init__(self) -> None:
        for position, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise ValueError(
                    f"table {self.name!r}: row {position} has {len(row)} cells for {len(self.columns)} columns"
                )

    def printed(self) -> list[list[str]]:
        """Every cell as it is read."""
        return [
            [numerals.KINDS[column.kind](cell) for column, cell in zip(self.columns, row, strict=True)]
            for row in self.rows
        ]


def slug(text: str) -> str:
    """A title as a file stem and as an anchor: lower case, words joined by underscores."""
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_") or "untitled"


def column(name: str, cells: list[Cell]) -> Column:
    """The column whose kind the cells suggest: whole numbers are counts, other numbers numbers, all else text."""
    present = [cell for cell in cells if cell is not None]
    if present and all(isinstance(cell, int) and not isinstance(cell, bool) for cell in present):
        return Column(name, "count")
    if present and all(isinstance(cell, int | float) and not isinstance(cell, bool) for cell in present):
        return Column(name, "number")
    return Column(name)


def _visible(cell: str) -> str:
    """A text on one line: a line break as an arrow, any other control character as its picture."""
    pictures = {code: chr(0x2400 + code) for code in range(32)} | {9: " ", 10: "↵", 13: "↵", 127: "\u2421"}
    return cell.replace("\r\n", "\n").translate(pictures)


def html(table: Table) -> str:
    """The table as HTML: headers with a scope, the first cell of a row its header, numbers flush right."""
    direction = ' dir="auto"' if table.prose else ""
    classes = [' class="n"' if column.numeric else direction for column in table.columns]
    look = " settings" if table.settings else " prose" if table.prose else ""
    heads = "".join(
        f'<th scope="col"{css}>{escape(column.name)}</th>' for column, css in zip(table.columns, classes, strict=True)
    )
    lines = [
        f'<figure class="table{look}" id="table_{escape(table.name)}">',
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(table.title)}">',
        f"<table><caption>{escape(table.title)}</caption>",
        f"<thead><tr>{heads}</tr></thead>",
        "<tbody>",
    ]
    for position, row in enumerate(table.printed()):
        if table.prose:
            row = [_visible(cell) for cell in row]
        cells = "".join(
            f'<th scope="row"{css}>{escape(cell)}</th>' if place == 0 else f"<td{css}>{escape(cell)}</td>"
            for place, (cell, css) in enumerate(zip(row, classes, strict=True))
        )
        total = ' class="total"' if position >= len(table.rows) - table.totals else ""
        if title := dict(table.breaks).get(position):
            span = f'colspan="{len(table.columns)}"'
            lines.append(f'<tr class="break"><th scope="rowgroup" {span}>{escape(title)}</th></tr>')
        lines.append(f"<tr{total}>{cells}</tr>")
    lines.append("</tbody></table></div>")
    if table.note:
        lines.append(f"<figcaption>{escape(table.note)}</figcaption>")
    lines.append("</figure>")
    if table.folded:
        size = f"{numerals.plural(len(table.rows), 'row')}, {numerals.plural(len(table.columns), 'column')}"
        lines = [f"<details><summary>{escape(table.title)} ({size})</summary>", *lines, "</details>"]
    return "\n".join(lines)


def markdown(table: Table) -> str:
    """The table as Markdown, with its title above and its note below."""

    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    lines = [f"**{table.title}**", "", line([column.name for column in table.columns])]
    lines.append("|" + "|".join("---:" if column.numeric else "---" for column in table.columns) + "|")
    lines += [line(row) for row in table.printed()]
    if table.note:
        lines += ["", table.note]
    return "\n".join(lines) + "\n"


def spreadsheet(table: Table) -> str:
    """The table as CSV with every number in full precision; a missing cell is empty, an interval three columns."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    names = [
        [column.name, f"{column.name}: low", f"{column.name}: high"] if column.kind in numerals.SPANS else [column.name]
        for column in table.columns
    ]
    writer.writerow(itertools.chain(*names))
    for row in table.rows:
        writer.writerow(itertools.chain(*(_stored(cell, it.kind) for it, cell in zip(table.columns, row, strict=True))))
    return buffer.getvalue()


def _stored(cell: Cell, kind: str) -> list[str]:
    if kind not in numerals.SPANS:
        return [numerals.raw(cell, kind)]
    return [numerals.raw(part, numerals.SPANS[kind]) for part in (cell if isinstance(cell, Span) else Span(None))]
