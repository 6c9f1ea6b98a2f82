"""Data: all that a report is computed from, and how it is read from the work directory of a run.

Read: `config.json`, `environment.json`, `results.csv`, `effects.csv` (before: damage.csv), `metrics.jsonl` (notes,
timings, and what the events `model`, `tokenizer` and `data` say of them), the facts of `done/*.json`, `regions/`, and
`tables/*.json`, by which any experiment adds a section without code here (see `kinds`). What can't be read is an error
that names file and line, except for parts that a run which has not finished may lack: these become notes.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from lingregions.report import kinds, survey
from lingregions.report.effects import EFFECTS, RESULTS, ReportError, read_effects, read_results
from lingregions.report.sections import Section
from lingregions.report.survey import Overlap, Survey


@dataclass(frozen=True)
class ReportData:
    """What a run measured and how: the input of `page`.

    `identity` says exactly which model, tokenizer and text it was; `stages` is {kind: {name: facts}}, what finished
    stages and regions record of themselves; `timings` are records of description, amount, unit and seconds. `extras`
    and `verdicts` are the sections of tables/*.json, `headlines` their sentences for the top.
    """

    experiment: str
    results: pd.DataFrame = field(
        default_factory=lambda: pd.DataFrame(columns=[*RESULTS, "segments", "nll", "bits_per_byte"])
    )
    effects: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=[*EFFECTS, "family"]))
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
    notes: tuple[str, ...] = ()

    @property
    def source(self) -> str:
        """Source of the model, as the config names it; "" where it names none."""
        model = self.config.get("model")
        source = model.get("source") if isinstance(model, Mapping) else model
        return source if isinstance(source, str) else ""


def _object(path: Path, notes: list[str] | None = None) -> dict[str, Any]:
    """The JSON object of a file; ReportError if it is none. One that is missing is noted where notes are taken."""
    if notes is not None and not path.exists():
        notes.append(f"{path.name} is missing from the work directory.")
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ReportError(f"{path}: {error}") from error
    if not isinstance(content, dict):
        raise ReportError(f"{path}: a JSON object is expected")
    return content


def _extra(path: Path, content: Mapping[str, Any]) -> Section:
    """The section that a file `tables/<name>.json` describes; ReportError names the file and the key that is wrong."""
    try:
        return kinds.build(path.stem, content)
    except KeyError as error:
        raise ReportError(f"{path}: the key {error} is missing") from error
    except (TypeError, ValueError, AttributeError, IndexError) as error:
        raise ReportError(f"{path}: {error}") from error


def _metrics(path: Path, notes: list[str]) -> Iterator[dict[str, Any]]:
    """The records of a metrics.jsonl; a last line that breaks off (a killed run) is noted, any other is an error."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            if number == len(lines):
                notes.append(f"{path.name} breaks off in its last line: the run was interrupted while writing it.")
                return
            raise ReportError(f"{path}:{number}: {error}") from error
        if isinstance(record, dict):
            yield record


_IDENTITY = ("model", "tokenizer", "data")  # events of metrics.jsonl whose fields say what was measured


def read(folder: Path) -> ReportData:
    """Read what the run in `folder` has written.

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
    tables: dict[str, pd.DataFrame] = {}
    interventions: list[str] = []
    experiments: list[str] = []
    if measured:
        tables["results"] = read_results(folder / "results.csv")
        interventions, experiments = (tables["results"][name].tolist() for name in ("intervention", "experiment"))
        names = (folder / name for name in ("effects.csv", "damage.csv"))
        if path := next((path for path in names if path.exists()), None):
            tables["effects"] = read_effects(path)
    events = list(_metrics(folder / "metrics.jsonl", notes))
    notes += [str(event.get("text", "")) for event in events if event.get("event") == "note"]
    identity = {
        event["event"]: {key: value for key, value in event.items() if key not in ("event", "time")}
        for event in events
        if event.get("event") in _IDENTITY
    }
    described = [(path, _object(path)) for path in files]
    sections = [(content.get("kind"), _extra(path, content)) for path, content in described]
    paths = sorted((folder / "regions").glob("*.safetensors"), key=lambda path: path.stem)
    try:
        surveys, overlap = survey.read(paths, interventions)
    except (ValueError, KeyError) as error:
        raise ReportError(f"{folder / 'regions'}: {error}") from error
    records = {region.name: region.facts for region in surveys}
    return ReportData(
        experiment=str(config.get("experiment") or next(iter(experiments), folder.name)),
        **tables,
        config=config,
        environment=environment,
        identity=identity,
        stages={**_stages(folder / "done"), **({"region": records} if records else {})},
        timings=tuple(event for event in events if event.get("event") == "timed"),
        surveys=surveys,
        overlap=overlap,
        extras=tuple(section for kind, section in sections if kind != "verdict"),
        verdicts=tuple(section for kind, section in sections if kind == "verdict"),
        headlines=tuple(str(content["headline"]) for _, content in described if content.get("headline")),
        notes=tuple(notes),
    )


def _stages(folder: Path) -> dict[str, dict[str, Any]]:
    """What finished stages record of themselves, by kind and name; one that only names itself says nothing."""
    stages: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("*.json")):
        stage = _object(path).get("facts") or {}
        if len(stage) > 1:
            kind, _, name = path.stem.partition("-")
            stages.setdefault(kind, {})[name or path.stem] = stage
    return stages
