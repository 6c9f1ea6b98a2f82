"""Facts: all that a report is computed from, and how they are read from the work directory of a run.

Read: `config.json`, `environment.json`, `results.csv`, `metrics.jsonl` (notes, timings, and what the events `model`,
`tokenizer` and `data` say of them), the facts of `done/*.json`, `regions/`, and `tables/*.json`, by which any
experiment adds a section without code here. Such a file is one JSON object with a `title`, optionally a `note` (a
sentence or a list of them) and a `kind`:

    table (default)  columns: names, or {"name", "kind"}; rows: lists of cells
    heatmap          rows, columns: names; values: list of lists; optionally corner, unit, format
    overlap          names; values: square list of lists of IoU; optionally chance
    reliability      halves: {region: IoU}; growth: {region: {samples: IoU}}
    curve            across, upwards: axis titles; series: {label: [[x, y], ...]}; optionally logarithmic, format
    densities        regions: a list of {name, layers, matrices, counts, sizes, axis, carried, capacity} (see `Survey`)

A number that is missing is null. What can't be read is an error that names file and line, except for parts that a run
which has not finished may lack: these become notes.
"""

import csv
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lingregions.regions import file
from lingregions.report import sections
from lingregions.report import survey as surveying
from lingregions.report.damage import Row
from lingregions.report.figures import Curve, Grid, Series
from lingregions.report.sections import Section
from lingregions.report.survey import Overlap, Survey
from lingregions.report.tables import Column, Table, column

COLUMNS = ("experiment", "arm", "language", "nll_nats", "tokens", "bytes", "perplexity", "bits_per_byte")


class ReportError(ValueError):
    """A work directory that can't be reported on: which file, which line, what is wrong with it."""


@dataclass(frozen=True)
class Facts:
    """What a run measured and how: the input of `render`.

    `identity` says exactly which model, tokenizer and text it was; `stages` is {kind: {name: facts}}, what finished
    stages and regions record of themselves; `timings` are records of description, amount, unit and seconds. `headline`
    is the sentence of a run that removes nothing; `tables` names the extra sections' files, which the verdict takes as
    what else was measured; `fraction` is the size of a region where an arm's name doesn't say it; `verb` is what was
    done to the regions ("Removing").
    """

    experiment: str
    rows: tuple[Row, ...]
    config: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    identity: Mapping[str, Any] = field(default_factory=dict)
    stages: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    timings: tuple[Mapping[str, Any], ...] = ()
    surveys: tuple[Survey, ...] = ()
    overlap: Overlap | None = None
    extras: tuple[Section, ...] = ()
    headline: str = ""
    tables: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    fraction: float | None = None
    verb: str = "Removing"


# --- results --------------------------------------------------------------------------------------------------------


def results(path: Path) -> tuple[Row, ...]:
    """The rows of a results.csv.

    Raises:
      ReportError: a column is missing, a cell is not a number, or `perplexity` contradicts exp(nll_nats / tokens),
      which
        means that `nll_nats` is not the sum that it has to be. The message names the line.
    """
    rows = []
    with path.open(newline="", encoding="utf-8") as stream:
        reader = csv.DictReader(stream)
        lacking = [name for name in COLUMNS[:6] if name not in (reader.fieldnames or ())]
        if lacking:
            raise ReportError(f"{path}:1: columns {', '.join(lacking)} are missing; expected {', '.join(COLUMNS)}")
        for record in reader:
            where = f"{path}:{reader.line_num}"
            if None in record.values():
                raise ReportError(f"{where}: the line breaks off; expected {len(COLUMNS)} cells")
            try:
                row = Row(
                    record["experiment"],
                    record["arm"],
                    record["language"],
                    float(record["nll_nats"] or "nan"),
                    int(record["tokens"]),
                    int(record["bytes"]),
                )
            except ValueError as error:
                raise ReportError(f"{where}: {error}") from error
            _check(row, record.get("perplexity", ""), where)
            rows.append(row)
    return tuple(rows)


def _check(row: Row, perplexity: str, where: str) -> None:
    try:
        stated = float(perplexity)
    except ValueError:
        return
    if row.nll is None or not math.isfinite(stated) or stated <= 0:
        return
    if abs(math.log(stated) - row.nll) > 1e-3:
        raise ReportError(
            f"{where}: perplexity {perplexity} is not exp(nll_nats / tokens) = exp({row.nll:.6g}); nll_nats has to be "
            "the sum over the tokens, in nats"
        )


# --- files by which an experiment adds a section ----------------------------------------------------------------------


def _paragraphs(content: Mapping[str, Any]) -> tuple[str, ...]:
    note = content.get("note", ())
    return (note,) if isinstance(note, str) and note else tuple(note)


def _number(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is not a number")
    return float(value) if math.isfinite(value) else None


def _numbers(values: Any) -> tuple[tuple[float | None, ...], ...]:
    return tuple(tuple(_number(value) for value in row) for row in values)


def _table(name: str, content: Mapping[str, Any]) -> Section:
    rows = tuple(tuple(row) for row in content["rows"])
    columns = []
    for position, entry in enumerate(content["columns"]):
        if isinstance(entry, Mapping):
            columns.append(Column(entry["name"], entry.get("kind", "text")))
        else:
            columns.append(column(entry, [row[position] for row in rows]))
    table = Table(name, content["title"], tuple(columns), rows, totals=int(content.get("totals", 0)))
    return Section(content["title"], _paragraphs(content), (table,))


def _heatmap(name: str, content: Mapping[str, Any]) -> Section:
    grid = Grid(
        name,
        content["title"],
        content.get("corner", ""),
        tuple(content["rows"]),
        tuple(content["columns"]),
        _numbers(content["values"]),
        kind=content.get("format", "number"),
        unit=content.get("unit", ""),
    )
    return Section(content["title"], _paragraphs(content), (grid,))


def _overlap(name: str, content: Mapping[str, Any]) -> Section:
    found = Overlap(tuple(content["names"]), _numbers(content["values"]), _number(content.get("chance")))
    section = sections.overlap(found, content["title"], name)
    return Section(section.title, (*section.paragraphs, *_paragraphs(content)), section.items)


def _reliability(name: str, content: Mapping[str, Any]) -> Section:
    growth = {
        region: {float(samples): float(iou) for samples, iou in points.items()}
        for region, points in content.get("growth", {}).items()
    }
    section = sections.reliability(content.get("halves"), growth, content["title"], name)
    return Section(section.title, (*section.paragraphs, *_paragraphs(content)), section.items)


def _curve(name: str, content: Mapping[str, Any]) -> Section:
    series = tuple(
        Series(label, tuple((float(x), float(y)) for x, y in points))
        for label, points in content["series"].items()
        if points
    )
    if not series:
        raise ValueError("series holds no point")
    curve = Curve(
        name,
        content["title"],
        content["across"],
        content["upwards"],
        series,
        logarithmic=bool(content.get("logarithmic", False)),
        kind=content.get("format", "number"),
    )
    return Section(content["title"], _paragraphs(content), (curve,))


def _densities(name: str, content: Mapping[str, Any]) -> Section:
    section = sections.densities([survey(entry) for entry in content["regions"]])
    return Section(content["title"], (*section.paragraphs, *_paragraphs(content)), section.items)


def _integers(values: Any) -> tuple[tuple[int | None, ...], ...]:
    return tuple(tuple(None if value is None else int(value) for value in row) for row in values)


def survey(content: Mapping[str, Any]) -> Survey:
    """A survey from the JSON object that describes it."""
    return Survey(
        name=content["name"],
        layers=tuple(map(str, content["layers"])),
        matrices=tuple(content["matrices"]),
        counts=_integers(content["counts"]),
        sizes=_integers(content["sizes"]),
        axis=content.get("axis", "embed"),
        carried=tuple(map(int, content.get("carried", ()))),
        capacity=tuple(map(int, content.get("capacity", ()))),
        definition=content.get("definition", ""),
    )


BUILDERS: dict[str, Callable[[str, Mapping[str, Any]], Section]] = {
    "table": _table,
    "heatmap": _heatmap,
    "overlap": _overlap,
    "reliability": _reliability,
    "curve": _curve,
    "densities": _densities,
}


def extra(path: Path) -> Section:
    """The section that a file `tables/<name>.json` describes.

    Raises:
      ReportError: the file is no JSON object of a known kind; the message names the file and the key.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise TypeError("a JSON object is expected")
        kind = content.get("kind", "table")
        if kind not in BUILDERS:
            raise ValueError(f"kind {kind!r} is unknown; there are {', '.join(BUILDERS)}")
        return BUILDERS[kind](path.stem, content)
    except KeyError as error:
        raise ReportError(f"{path}: the key {error} is missing") from error
    except (TypeError, ValueError, AttributeError, IndexError) as error:
        raise ReportError(f"{path}: {error}") from error


# --- the work directory -----------------------------------------------------------------------------------------------


def _object(path: Path, notes: list[str]) -> dict[str, Any]:
    if not path.exists():
        notes.append(f"{path.name} is missing from the work directory.")
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ReportError(f"{path}: {error}") from error
    if not isinstance(content, dict):
        raise ReportError(f"{path}: a JSON object is expected")
    return content


def metrics(path: Path, notes: list[str]) -> Iterator[dict[str, Any]]:
    """The records of a metrics.jsonl; a last line that breaks off (a killed run) is noted, any other is an error."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            if number == len(lines):
                notes.append(f"{path.name} breaks off in its last line: the run was interrupted while writing it.")
                return
            raise ReportError(f"{path}:{number}: {error}") from error
        if isinstance(record, dict):
            yield record


def find(config: Mapping[str, Any], key: str) -> Any:
    """The first value of a key anywhere in a nested config; None if it is nowhere."""
    if key in config:
        return config[key]
    for value in config.values():
        if isinstance(value, Mapping) and (found := find(value, key)) is not None:
            return found
    return None


def _regions(folder: Path, arms: list[str]) -> tuple[tuple[Survey, ...], Overlap | None, dict[str, dict[str, Any]]]:
    try:
        headers = {path: file.header(path) for path in sorted(folder.glob("*.safetensors"), key=lambda path: path.stem)}
        # In the order of the arms, where they are called like one.
        places = {arm: place for place, arm in reversed(list(enumerate(arms)))}
        paths = sorted(headers, key=lambda path: places.get(headers[path].provenance.name, len(arms)))
        surveys, overlap = surveying.read(paths)
    except (ValueError, KeyError) as error:
        raise ReportError(f"{folder}: {error}") from error
    records: dict[str, dict[str, Any]] = {}
    for path, found in zip(paths, surveys, strict=True):
        origin = headers[path].provenance
        records[found.name] = {
            "definition": found.definition,
            "model hash": origin.model,
            "tokenizer hash": origin.tokenizer,
            "data fingerprint": origin.data,
            "content hash": headers[path].digest,
        }
    return surveys, overlap, records


IDENTITY = ("model", "tokenizer", "data")  # events of metrics.jsonl whose fields say what was measured
VERBS = {
    "zero": "Removing",
    "scale": "Scaling",
    "negate": "Negating",
    "noise": "Adding noise to",
    "shuffle": "Shuffling",
}


def _headline(path: Path) -> str:
    """The sentence that a table offers as the headline of a run without removals; a table of a run has it or none."""
    return str(json.loads(path.read_text(encoding="utf-8")).get("headline", ""))


def gather(folder: Path) -> Facts:
    """Read the facts of the run in `folder`.

    Raises:
      ReportError: the folder holds neither results.csv nor tables, or a file of it can't be read.
    """
    notes: list[str] = []
    files = sorted((folder / "tables").glob("*.json"))
    measured = (folder / "results.csv").exists()
    if not measured and not files:
        raise ReportError(
            f"{folder}: there is no results.csv and no table, so nothing has been measured that could be reported"
        )
    config = _object(folder / "config.json", notes)
    environment = _object(folder / "environment.json", notes)
    rows = results(folder / "results.csv") if measured else ()
    identity: dict[str, Any] = {}
    stages: dict[str, dict[str, Any]] = {}
    timings = []
    for record in metrics(folder / "metrics.jsonl", notes):
        event = record.get("event")
        if event == "note":
            notes.append(str(record.get("text", "")))
        elif event in IDENTITY:
            identity[event] = {key: value for key, value in record.items() if key not in ("event", "time")}
        elif event == "timed":
            timings.append(record)
    for path in sorted((folder / "done").glob("*.json")):
        stage = _object(path, notes).get("facts") or {}
        if len(stage) > 1:  # a stage that only names itself says nothing
            kind, _, name = path.stem.partition("-")
            stages.setdefault(kind, {})[name or path.stem] = stage
    extras = tuple(extra(path) for path in files)
    surveys, overlap, records = _regions(folder / "regions", [row.arm for row in rows])
    fraction = find(config, "fraction")
    perturbation = find(config, "perturbation")
    return Facts(
        experiment=str(config.get("experiment") or (rows[0].experiment if rows else folder.name)),
        rows=rows,
        config=config,
        environment=environment,
        identity=identity,
        stages={**stages, **({"region": records} if records else {})},
        timings=tuple(timings),
        surveys=surveys,
        overlap=overlap,
        extras=extras,
        headline=next(filter(None, map(_headline, files)), ""),
        tables=tuple(path.stem for path in files),
        notes=tuple(notes),
        fraction=float(fraction) if isinstance(fraction, int | float) and 0 < fraction <= 1 else None,
        verb=VERBS.get(str(perturbation), "Perturbing") if perturbation else "Removing",
    )
