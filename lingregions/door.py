"""Door: everything that a config asks for is checked before any work and before a work directory exists.

`run`, `sweep` and `--dry-run` pass the same door. All that is wrong is told in one message, a sentence a problem. What
lies on this machine is opened; what would have to be fetched first (a model of the hub, a package) is not fetched for a
dry run, and a large text is not tokenized here: it is there, has the split, and is long enough by its bytes.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from lingregions import experiments, forecast, models, report, scoring, train
from lingregions import mesh as meshes
from lingregions.corpus import corpus as corpora
from lingregions.corpus.source import Source as TextSource
from lingregions.corpus.source_names import find_source, most_bytes
from lingregions.experiments import context
from lingregions.experiments import step as planned
from lingregions.models import source as sources
from lingregions.regions.select import parse
from lingregions.run.files import exit_code
from lingregions.settings import SettingsError

_AMPERE = 8.0  # compute capability from which on a GPU multiplies in bfloat16; a T4 is 7.5
_SMALL = 4_000_000  # bytes of the largest text that is tokenized to see whether it is long enough
_CHOICES = {
    "packing": ("packed", "paper"),
    "document": ("line", "paragraph", "file"),
    "bos": ("", "none", "document", "sample"),
    "eos": ("", "none", "document"),
}
# What a problem may be raised as by the parts of the package that know it.
_TOLD = (ValueError, OSError, ModuleNotFoundError)


def check(settings: ConfigDict, workdir: Path, fetch: bool = False) -> None:
    """Return if all that a config asks for is possible.

    Args:
      settings: the config.
      workdir: where the run will write; need not exist.
      fetch: fetch a model that is not on this machine, to check it too.

    Raises:
      SettingsError: all that is wrong, a sentence a line.
    """
    if found := problems(settings, workdir, fetch)[1]:
        raise refusal(found)


def problems(settings: ConfigDict, workdir: Path, fetch: bool = False) -> tuple[Sequence[planned.Step], list[str]]:
    """Return the steps that a config asks for, none where they cannot be known, and all that is wrong; see `check`."""
    steps: list[planned.Step] = []
    found = list(dict.fromkeys(_problems(settings, workdir, fetch, steps)))
    return steps, found


def refusal(found: Sequence[str]) -> SettingsError:
    """Return the error that tells problems."""
    if len(found) == 1:
        return SettingsError(found[0])
    return SettingsError("\n".join([f"{len(found)} things keep this from running:", *(f"- {each}" for each in found)]))


def _problems(settings: ConfigDict, workdir: Path, fetch: bool, steps: list[planned.Step]) -> Iterator[str]:
    yield from _attempt(lambda: experiments.find(settings.experiment))
    yield from _attempt(lambda: train.require(settings.machine.get("tracker", "none")))
    yield from _attempt(report.require)
    yield from _attempt(lambda: models.Compute(**settings.compute.to_dict(), **settings.machine.compute.to_dict()))
    if "score" in settings:
        yield from _attempt(lambda: context.define(settings))
    values = list(_values(settings))
    yield from values
    if not settings.machine.distributed:  # else the devices are known when the hosts have met
        yield from _attempt(lambda: meshes.build(**settings.machine.mesh.to_dict()))
        yield from _units(settings.compute.dtype, jax.devices()[0])
    if "train" in settings and settings.compute.parameters != "float32":
        yield "compute.parameters is 'bfloat16', in which most steps of a training round to nothing; take float32"
    opened: list[sources.Source] = []
    yield from _attempt(lambda: opened.extend(_model(settings, fetch)))
    if not values:  # else every text would tell the same again
        yield from _texts(settings, opened[0] if opened else None)
    refused = list(_attempt(lambda: steps.extend(experiments.find(settings.experiment).plan(settings))))
    yield from refused
    if not refused:
        yield from space(steps, workdir)
        yield from _memory(settings)


def _attempt(work: Callable[..., Any], *given: Any) -> Iterator[str]:
    """Yield what a piece of work has to complain of."""
    try:
        work(*given)
    except _TOLD as error:
        if exit_code(error) != 2:  # the disk or the network: nothing that the user asked for is wrong
            raise
        yield str(error)
    except KeyError as error:
        yield f"there is no {error}"


def _units(dtype: str, device: Any) -> Iterator[str]:
    """Check that a card multiplies in a dtype; older ones have no units for bfloat16."""
    capability = str(getattr(device, "compute_capability", "") or "")
    if dtype == "bfloat16" and capability and float(capability) < _AMPERE:
        yield (
            f"compute.dtype is 'bfloat16', and a {device.device_kind} (compute capability {capability}) has no units "
            "for it: XLA would compute in float32 and round; set --config.compute.dtype=float32, as fast and more exact"
        )


def _values(settings: ConfigDict) -> Iterator[str]:
    """Check plain values by themselves."""
    data = settings.data
    for key, choices in _CHOICES.items():
        if data[key] not in choices:
            yield f"data.{key} is {data[key]!r}; it must be one of {', '.join(map(repr, choices))}"
    if data.length < 2:
        yield f"data.length is {data.length}; a sample needs at least 2 tokens"
    if not 0 <= data.held < 1:
        yield f"data.held is {data.held}; it is the part of the documents kept for evaluation, at least 0 and below 1"
    for rule in (*settings.score.rules, *filter(None, [settings.score.rule])) if "score" in settings else ():
        if rule not in scoring.RULES:
            yield f"there is no score rule {rule!r}; there are {', '.join(scoring.RULES)}"
    for use in ("score", "evaluate", "train"):
        if use in settings and settings[use].samples < 0:
            yield f"{use}.samples is {settings[use].samples}; it is a number of samples, or 0 for all"
    for key in ("score_batch", "evaluate_batch", "train_batch"):
        if settings.machine.get(key, 1) < 1:
            yield f"machine.{key} is {settings.machine[key]}; a step needs at least 1 sample"
    if settings.machine.get("micro", "given") not in ("given", "auto"):
        yield f"machine.micro is {settings.machine.micro!r}; it is 'given' or 'auto'"
    if settings.machine.get("kept_states", 0.0) < 0:
        yield f"machine.kept_states is {settings.machine.kept_states} GB; it is 0 for none, or more"
    for fraction in settings.select.fractions if "select" in settings else ():
        yield from _attempt(parse, fraction)


# --- the model and the texts ------------------------------------------------------------------------------------------


def _model(settings: ConfigDict, fetch: bool) -> list[sources.Source]:
    """Open the model, unless it would have to be fetched and must not be."""
    name = settings.model.source
    kind, _, rest = name.partition(":")
    here = True
    if kind == "package" and rest in sources.PACKAGES:
        version = sources.PACKAGES[rest].version
        here = (sources.folder(settings.machine.cache or None) / "packages" / f"{rest}-{version}").is_dir()
    elif kind not in ("package", "preset", "random") and "/" in name and not Path(name).expanduser().exists():
        here = planned.hub_config(name) is not None
        if not here and name.startswith((".", "/", "~")):
            here = True  # a path: that nothing is there is for `resolve` to say
    if not (here or fetch):
        return []
    return [sources.resolve(name, settings.machine.cache or None, sources.tell if not here else lambda message: None)]


def _texts(settings: ConfigDict, model: sources.Source | None) -> Iterator[str]:
    """Check the texts of every use and language."""
    data = settings.data
    for use in ("score", "evaluate", "train"):
        if use not in settings:
            continue
        chosen = settings[use]
        name = corpora.source_of(data, use)
        languages = chosen.languages if "languages" in chosen else (chosen.language,)
        if name.startswith("tokens:"):
            if model is not None:
                for language in languages:
                    yield from _attempt(_open, settings, use, language, model)
            continue
        try:
            source = find_source(name, column=data.column, document=data.document)
        except _TOLD as error:
            yield str(error)
            continue
        for language in languages:
            yield from _attempt(_long_enough, settings, use, language, name, source, model)


def _long_enough(
    settings: ConfigDict, use: str, language: str, name: str, source: TextSource, model: sources.Source | None
) -> None:
    """Raise unless a text has its split and holds the samples that are asked for, as far as can be told at once."""
    split = settings.data[f"{use}_split"]
    whole, _ = source.resolve(language, split)
    size = None if name.startswith("tfds:") else source.size(language, whole)
    most, asked = most_bytes(source, language), settings[use].samples * settings.data.length
    if model is not None and size is not None and size <= _SMALL:
        _open(settings, use, language, model)
    elif use != "train" and most is not None and not settings.data.fewer and most < asked:  # no token is below a byte
        raise ValueError(
            f"{language}, {use}: {name} holds {most:,} bytes, which cannot be {asked:,} tokens ({use}.samples x "
            "data.length); bring more text, ask for fewer samples, or set --config.data.fewer=True"
        )


def _open(settings: ConfigDict, use: str, language: str, model: sources.Source) -> None:
    options = corpora.options(settings.data, use, settings.seed)
    corpus = corpora.open(language=language, tokenizer=model.tokenizer, vocabulary=model.config.vocab, **options)
    corpus.draw(settings[use].samples or len(corpus), settings.seed, fewer=settings.data.fewer or use == "train")


# --- disk and memory --------------------------------------------------------------------------------------------------


def space(steps: Sequence[planned.Step], workdir: Path) -> Iterator[str]:
    """Yield a sentence where the disk does not hold what steps have yet to write to a work directory."""
    needed = sum(each.bytes or 0 for each in steps if not each.parts or each.finished(workdir) < each.parts)
    there = forecast.free(workdir)
    if needed > there:
        yield (
            f"{needed / 1e9:,.1f} GB are kept in {workdir}, and {there / 1e9:,.1f} GB are free there: give a "
            "--workdir on a larger disk, or ask for fewer languages, snapshots or fractions"
        )


def _memory(settings: ConfigDict) -> Iterator[str]:
    """Check that memory holds the largest step."""
    if settings.machine.distributed:
        return
    try:
        need = forecast.memory(settings)
    except _TOLD:
        return  # said before: a mesh or dtype that does not exist
    if need.total and need.peak > need.total:
        yield (
            f"{need.job} needs about {need.peak / 1e9:,.1f} GB of memory, and there are {need.total / 1e9:,.1f} GB: "
            "take a smaller model, --config.machine.compute.remat=full, smaller batches or more devices (see "
            "lingregions plan)"
        )
