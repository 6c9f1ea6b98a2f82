"""Facts: all that a report is computed from, and how they are read from the work directory of a run.

Read: `config.json`, `environment.json`, `results.csv`, `damage.csv` (intervals), `metrics.jsonl` (notes, timings, and
what the events `model`, `tokenizer` and `data` say of them), the facts of `done/*.json`, `regions/`, and
`tables/*.json`, by which any experiment adds a section without code here (see `kinds`). What can't be read is an error
that names file and line, except for parts that a run which has not finished may lack: these become notes.
"""

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lingregions.regions import file
from lingregions.report import kinds
from lingregions.report import survey as surveying
from lingregions.report.damage import Contrast, Row
from lingregions.report.sections import Section
from lingregions.report.survey import Overlap, Survey

COLUMNS = (
    *("experiment", "arm", "language", "nll_nats", "tokens", "bytes"),
    *("perplexity", "bits_per_byte", "segments", "checksum"),  # may be missing: older runs have not the last two
)
DAMAGE = (
    *("experiment", "arm", "reference", "language", "seeds", "segments"),
    *("damage_nats", "low", "high", "p", "p_adjusted"),
)


class ReportError(ValueError):
    """A work directory that can't be reported on: which file, which line, what is wrong with it."""


@dataclass(frozen=True)
class Facts:
    """What a run measured and how: the input of `render`.

    `identity` says exactly which model, tokenizer and text it was; `stages` is {kind: {name: facts}}, what finished
    stages and regions record of themselves; `timings` are records of description, amount, unit and seconds. `extras`
    and `verdicts` are the sections of tables/*.json, `headlines` their sentences for the top; `tables` names their
    files, which the verdict takes as what else was measured; `fraction` is the size of a region where an arm's name
    doesn't say it; `verb` is what was done to the regions ("Removing").
    """

    experiment: str
    rows: tuple[Row, ...]
    contrasts: tuple[Contrast, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    identity: Mapping[str, Any] = field(default_factory=dict)
    stages: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    timings: tuple[Mapping[str, Any], ...] = ()
    surveys: tuple[Survey, ...] = ()
    overlap: Overlap | None = None
    extras: tuple[Section, ...] = ()
    verdicts: tuple[Section, ...] = ()
    headlines: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    fraction: float | None = None
    verb: str = "Removing"


# --- results --------------------------------------------------------------------------------------------------------


def _lines(path: Path, needed: Sequence[str], columns: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Where each line of a CSV file stands, and its cells; those of `needed` are there."""
    with path.open(newline="", encoding="utf-8") as stream:
        reader = csv.DictReader(stream)
        called = {"intervention": "arm", "control": "reference", "effect_nats": "damage_nats"}
        reader.fieldnames = [called.get(name, name) for name in reader.fieldnames or ()]
        lacking = [name for name in needed if name not in (reader.fieldnames or ())]
        if lacking:
            raise ReportError(f"{path}:1: columns {', '.join(lacking)} are missing; expected {', '.join(columns)}")
        for record in reader:
            where = f"{path}:{reader.line_num}"
            if any(record[name] is None for name in needed):
                raise ReportError(f"{where}: the line breaks off; expected {len(reader.fieldnames or ())} cells")
            yield where, record


def results(path: Path) -> tuple[Row, ...]:
    """The rows of a results.csv.

    Raises:
      ReportError: a column is missing, a cell is not a number, or `perplexity` contradicts exp(nll_nats / tokens),
        which means that `nll_nats` is not the sum that it has to be. The message names the line.
    """
    rows = []
    for where, record in _lines(path, COLUMNS[:6], COLUMNS):
        try:
            row = Row(
                record["experiment"],
                record["arm"],
                record["language"],
                float(record["nll_nats"] or "nan"),
                int(record["tokens"]),
                int(record["bytes"]),
                int(record.get("segments") or 0) or None,
            )
        except ValueError as error:
            raise ReportError(f"{where}: {error}") from error
        _check(row, record.get("perplexity") or "", where)
        rows.append(row)
    return tuple(rows)


def contrasts(path: Path) -> tuple[Contrast, ...]:
    """The lines of a damage.csv; a cell that is empty or not finite is None.

    Raises:
      ReportError: a column is missing, a cell is not a number, an interval is upside down, or a p-value is none. The
        message names the line.
    """
    found = []
    for where, record in _lines(path, DAMAGE, DAMAGE):
        try:
            values = [float(record[name] or "nan") for name in DAMAGE[6:]]
            nats, low, high, p, adjusted = (value if math.isfinite(value) else None for value in values)
            experiment, arm, reference, language = (record[name] for name in DAMAGE[:4])
            counts = int(record["seeds"]), int(record["segments"])
            line = Contrast(experiment, arm, reference, language, *counts, nats, low, high, p, adjusted)
        except ValueError as error:
            raise ReportError(f"{where}: {error}") from error
        if low is not None and high is not None and low > high:
            raise ReportError(f"{where}: the interval from {low:.6g} to {high:.6g} is upside down")
        for name, value in (("p", p), ("p_adjusted", adjusted)):
            if value is not None and not 0 <= value <= 1:
                raise ReportError(f"{where}: {name} is {value:.6g}, which is no probability")
        found.append(line)
    return tuple(found)


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


def contents(path: Path) -> dict[str, Any]:
    """The JSON object of a file `tables/<name>.json`; ReportError if it is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ReportError(f"{path}: {error}") from error
    if not isinstance(content, dict):
        raise ReportError(f"{path}: a JSON object is expected")
    return content


def extra(path: Path, content: Mapping[str, Any]) -> Section:
    """The section that a file `tables/<name>.json` describes.

    Raises:
      ReportError: it is of no known kind, or lacks something; the message names the file and the key.
    """
    try:
        return kinds.build(path.stem, content)
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


def gather(folder: Path) -> Facts:
    """Read the facts of the run in `folder`.

    Raises:
      ReportError: the folder holds neither results.csv nor tables, or a file of it can't be read.
    """
    notes: list[str] = []
    files = sorted((folder / "tables").glob("*.json"))
    config = _object(folder / "config.json", notes)
    # The results of a sweep are those of many runs, under the fields of its grid: its tables tell what they say.
    measured = "grid" not in config and (folder / "results.csv").exists()
    if not measured and not files:
        raise ReportError(
            f"{folder}: there is no results.csv and no table, so nothing has been measured that could be reported"
        )
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
    described = [(path, contents(path)) for path in files]
    made = [(content.get("kind"), extra(path, content)) for path, content in described]
    surveys, overlap, records = _regions(folder / "regions", [row.arm for row in rows])
    fraction = find(config, "fraction")
    perturbation = find(config, "perturbation")
    return Facts(
        experiment=str(config.get("experiment") or (rows[0].experiment if rows else folder.name)),
        rows=rows,
        contrasts=next(
            (contrasts(folder / each) for each in ("effects.csv", "damage.csv") if (folder / each).exists()), ()
        )
        if measured
        else (),
        config=config,
        environment=environment,
        identity=identity,
        stages={**stages, **({"region": records} if records else {})},
        timings=tuple(timings),
        surveys=surveys,
        overlap=overlap,
        extras=tuple(section for kind, section in made if kind != "verdict"),
        verdicts=tuple(section for kind, section in made if kind == "verdict"),
        headlines=tuple(str(content["headline"]) for _, content in described if content.get("headline")),
        tables=tuple(path.stem for path in files),
        notes=tuple(notes),
        fraction=float(fraction) if isinstance(fraction, int | float) and 0 < fraction <= 1 else None,
        verb=VERBS.get(str(perturbation), "Perturbing") if perturbation else "Removing",
    )
