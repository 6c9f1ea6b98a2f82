"""Comparison: finished runs of several models side by side - what agrees and what does not, where their regions lie.

Reads work directories and computes nothing on a model: effects.csv row by row, and the files of the regions. Runs of
one model, whatever their experiment, stand in one column. Costs one pass over the masks of every region.
"""

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lingregions import report
from lingregions.effects import ALL
from lingregions.experiments import claims, tables
from lingregions.finished import Run
from lingregions.intervention import BASE, SCALAR, Intervention
from lingregions.report import survey
from lingregions.run import replacing, table

_DEPTHS = 10  # parts that the layers of every model are divided into, so that models of other depth compare
_Key = tuple[str, str, str, str]  # experiment, intervention, control, language
_Effects = dict[_Key, "_Effect"]


class _Effect(NamedTuple):
    """A row of effects.csv: the intervention, and what it costs with its interval, nats a token."""

    intervention: Intervention
    cell: tables.Cell

    @property
    def sign(self) -> int:
        """1 or -1 where the interval lies above or below zero, else 0."""
        _, low, high = self.cell
        return 0 if low is None or high is None else (low > 0) - (high < 0)


class _Shown(NamedTuple):
    """What is known of one model: its effects, and where its regions lie, by name."""

    effects: _Effects
    regions: dict[str, survey.Survey]


def write(workdirs: Sequence[Path], out: Path, pictures: bool = True) -> Path:
    """Write a report of several runs into a folder, and return its page.

    Args:
      workdirs: of finished runs, of two models or more.
      out: a folder that does not exist yet, or holds such a report.
      pictures: whether each figure is written as SVG and PNG too.

    Raises:
      ValueError: one model only, a run without effects, or a folder that holds something else.
      RunError: a work directory is none, or damaged.
    """
    runs = [Run.open(folder) for folder in workdirs]
    labels = _labels([run.config["model"]["source"] for run in runs])
    if len(set(labels)) < 2:
        raise ValueError(f"all of them are runs of {labels[0]}: a comparison needs two models or more")
    settings = {"experiment": "comparison", "workdirs": list(map(str, workdirs)), "models": labels}
    stored = out / "config.json"
    known = stored.is_file() and json.loads(stored.read_text(encoding="utf-8")).get("experiment") == "comparison"
    if out.exists() and not known and any(out.iterdir()):
        raise ValueError(f"{out} holds something else already: give another --out")
    found: dict[str, _Shown] = {label: _Shown({}, {}) for label in dict.fromkeys(labels)}
    for label, run in zip(labels, runs, strict=True):
        found[label].effects.update(_read(run))
        surveys, _ = survey.read(sorted(run.folder.glob("regions/*.safetensors")))
        found[label].regions.update({each.name: each for each in surveys})
    (out / "tables").mkdir(parents=True, exist_ok=True)
    for name, content in {"config": settings, **_show(found)}.items():
        with replacing(stored if name == "config" else out / "tables" / f"{name}.json") as path:
            path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", "utf-8")
    return report.write(out, pictures)


def _labels(sources: Sequence[str]) -> list[str]:
    """Return a short name of each model: the last part of its source, or all of it where two would be called alike."""
    short = {source: source.rstrip("/").split("/")[-1].split(":")[-1] for source in sources}
    return [name if list(short.values()).count(name) == 1 else source for source in sources for name in [short[source]]]


def _read(run: Run) -> Iterator[tuple[_Key, _Effect]]:
    """Yield the effects of a run.

    Raises:
      ValueError: it has none.
    """
    path = run.folder / "effects.csv"
    if not path.is_file():
        raise ValueError(f"{run.folder} holds no effects.csv: nothing was removed there that could be compared")
    for row in table.read(path):
        cell = [float(row[name]) if row[name] else None for name in ("effect_nats", "low", "high")]
        cell = [None if value is None else tables.finite(value) for value in cell]
        key = (row["experiment"], row["intervention"], row["control"], row["language"])
        yield key, _Effect(Intervention.from_columns(row), cell)


def _show(found: Mapping[str, _Shown]) -> dict[str, dict[str, Any]]:
    """Return the tables: shared contrasts by experiment, single scalars, where regions lie, and the verdict."""
    shared = _shared(found)
    shown: dict[str, dict[str, Any]] = {}
    for experiment, group in itertools.groupby(shared, key=lambda key: key[0]):
        columns = {"intervention": "text", "control": "text", "language": "text", **dict.fromkeys(found, "factor")}
        rows = []
        for key in group:
            row = {name: each.effects.get(key) for name, each in found.items()}
            rows.append([*key[1:], *(None if cell is None else cell.cell for cell in row.values())])
        shown[f"effects_{experiment}"] = tables.table(
            f"The same interventions: {experiment.replace('_', ' ')}", columns, rows, tables.NOTE
        )
    largest = {name: _largest(each.effects) for name, each in found.items()}
    if any(largest.values()):
        shown["scalars"] = _scalars(largest)
    shown |= _places(found)
    shown["verdict"] = _verdict(found, shared, largest)
    return shown


def _shared(found: Mapping[str, _Shown]) -> list[_Key]:
    """Return what two models or more have measured: over all languages, and a region of one language in its own."""
    counts: dict[_Key, int] = {}
    for each in found.values():
        for key, effect in each.effects.items():
            own = effect.intervention.region_language
            if key[3] == (own or ALL) and effect.intervention.kind != SCALAR:
                counts[key] = counts.get(key, 0) + 1
    return [key for key, count in counts.items() if count > 1]


def _largest(effects: _Effects) -> dict[str, _Effect]:
    """Return {target: the largest effect of changing that one scalar, over all languages}, the largest first.

    What is clipped besides is left aside: it is another change.
    """
    found: dict[str, _Effect] = {}
    for (_, _, control, language), effect in effects.items():
        alone = effect.intervention.kind == SCALAR and not effect.intervention.bounded
        if alone and (control, language) == (BASE, ALL) and effect.cell[0] is not None:
            before = found.get(effect.intervention.target)
            if before is None or (before.cell[0] or 0) < effect.cell[0]:
                found[effect.intervention.target] = effect
    return dict(sorted(found.items(), key=lambda item: -(item[1].cell[0] or 0)))


def _scalars(largest: Mapping[str, Mapping[str, _Effect]], most: int = 5) -> dict[str, Any]:
    columns = {"model": "text", "scalar": "text", "change": "text", "perplexity": "factor"}
    rows = [
        [name, target, f"{each.intervention.perturbation} {each.intervention.factor or ''}".strip(), each.cell]
        for name, targets in largest.items()
        for target, each in list(targets.items())[:most]
    ]
    return tables.table("The scalars on which each model hangs most", columns, rows, tables.NOTE)


def _places(found: Mapping[str, _Shown]) -> dict[str, dict[str, Any]]:
    """Return where regions lie: by depth and by role against an even spread, and on how few dimensions."""
    shown: dict[str, dict[str, Any]] = {}
    own = {
        name: [region for label, region in each.regions.items() if label.startswith("monolingual ")]
        for name, each in found.items()
    }
    own = {name: surveys for name, surveys in own.items() if surveys}
    note = "All monolingual regions of a model together; 1 is what as many entries drawn at random would hold."
    for key, title, place in (
        ("depth", "Monolingual regions by depth", _depth),
        ("roles", "Monolingual regions by role", _role),
    ):
        values = {name: _densities(surveys, place) for name, surveys in own.items()}
        columns = list(dict.fromkeys(column for each in values.values() for column in each))
        grid = {name: {column: each.get(column) for column in columns} for name, each in values.items()}
        if len(grid) > 1:
            unit = "times an even spread"
            shown[key] = tables.heatmap(title, "model", grid, unit, note=note, format="number")
    names = [label for each in found.values() for label in each.regions]
    rows = []
    for label in dict.fromkeys(name for name in names if names.count(name) > 1):
        for name, each in found.items():
            if label in each.regions and any(each.regions[label].carried):
                counts = np.asarray(each.regions[label].carried)
                fullest = np.argsort(-counts, kind="stable")
                held = counts[fullest[: max(1, len(counts) // 100)]].sum() / counts.sum()
                rows.append([label, name, int(counts.sum()), float(held), ", ".join(map(str, fullest[:3].tolist()))])
    if rows:
        kinds = {"region": "text", "model": "text", "entries": "count", "on the fullest 1 %": "share"}
        note = (
            "Of the entries in matrices that carry the residual axis: those at the fullest hundredth of its dimensions."
        )
        shown["concentration"] = tables.table(
            "On how few dimensions a region lies", kinds | {"fullest dimensions": "text"}, rows, note
        )
    return shown


def _depth(region: survey.Survey, layer: str, role: str) -> str | None:
    """Return the tenth of the layers that a layer lies in; None outside of them."""
    if not layer.isdigit():
        return None
    layers = 1 + max(int(each) for each, *_ in region.cells if each.isdigit())
    tenth = int(layer) * _DEPTHS // layers
    return f"{tenth * 100 // _DEPTHS} to {(tenth + 1) * 100 // _DEPTHS} %"


def _role(region: survey.Survey, layer: str, role: str) -> str | None:
    return role


def _densities(
    surveys: Sequence[survey.Survey], place: Callable[[survey.Survey, str, str], str | None]
) -> dict[str, float]:
    """Return {place: density there over the density of the whole}, in the order of the layers."""
    sums: dict[str, list[int]] = {}
    for region in surveys:
        for layer, role, count, size in region.cells:
            if where := place(region, layer, role):
                held = sums.setdefault(where, [0, 0])
                held[0], held[1] = held[0] + count, held[1] + size
    whole = sum(each.selected for each in surveys) / sum(each.size for each in surveys)
    return {where: count / size / whole for where, (count, size) in sums.items()}


def _verdict(
    found: Mapping[str, _Shown], shared: Sequence[_Key], largest: Mapping[str, Mapping[str, _Effect]]
) -> dict[str, Any]:
    """Return in words what agrees: of which contrasts the interval lies on one side in every model that has them."""
    agreed: list[tuple[_Key, dict[str, tables.Cell]]] = []
    parted: list[tuple[_Key, dict[str, tables.Cell]]] = []
    for key in shared:
        effects = {name: each.effects[key] for name, each in found.items() if key in each.effects}
        signs = {each.sign for each in effects.values()}
        (agreed if len(signs) == 1 else parted).append((key, {name: each.cell for name, each in effects.items()}))
    first = {name: next(iter(each.items())) for name, each in largest.items() if each}
    return claims.verdict(
        "comparison",
        "What do the models agree on?",
        models=list(found),
        agreed=agreed,
        parted=parted,
        total=len(shared),
        scalars={name: (target, each.cell) for name, (target, each) in first.items()},
    )
