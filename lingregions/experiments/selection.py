"""Selections: the regions of a run by name - how each is made, once, and read back from regions/<name>.safetensors."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from lingregions import regions
from lingregions.experiments import scored
from lingregions.experiments.context import Context, slug
from lingregions.intervention import UNTOUCHED, Intervention
from lingregions.models import roles
from lingregions.regions import Region, algebra
from lingregions.scores import Scores, combine

DRAWN = ("random", "matched")  # selectors that draw: one region a seed


class Selection(NamedTuple):
    """How a region is made.

    Attributes:
      fraction: the part of each matrix that it holds, at most.
      make: makes it, after the languages were scored and the selections before it were made.
      ranking: what it is taken from, where that is one ranking alone: see `scored.ranking`.
    """

    fraction: str
    make: Callable[[Context], Region]
    ranking: str = ""


def ranked(
    name: str,
    fraction: str,
    ranking: str = "combined",
    selector: str = "top",
    seed: int | None = None,
    scope: str = "",
    **options: Any,
) -> Selection:
    """Return the selection of a part of each matrix by a ranking.

    Args:
      name: of the region.
      fraction: such as "1%".
      ranking: what is ranked: see `scored.ranking`.
      selector: "top", "bottom" or "random".
      seed: of "random".
      scope: in place of `select.scope`.
      **options: of `Scores.select`.
    """

    def make(context: Context) -> Region:
        place = scope or context.settings.select.scope
        return scored.ranking(context, ranking).select(fraction, selector, seed=seed, scope=place, name=name, **options)

    return Selection(fraction, make, ranking)


def matched(name: str, fraction: str, to: str, seed: int, avoid: Sequence[str] = (), scope: str = "") -> Selection:
    """Return the selection of a random region matched to another in size, |theta|, rows and columns.

    Args:
      name: of the region.
      fraction: of the other.
      to: its name.
      seed: of the draw.
      avoid: names of regions of which it may hold nothing.
      scope: in place of `select.scope`.
    """

    def make(context: Context) -> Region:
        part = roles.restrict(context.model.params, scope or context.settings.select.scope)
        others = [read(context, each) for each in avoid]
        beside = regions.union(*others).rename("what is avoided") if others else None
        return regions.match(read(context, to), part, seed, name, avoid=beside)

    return Selection(fraction, make)


def monolingual(settings: Any) -> dict[str, Selection]:
    """Return the top of each scored language, and what of it no other has: top(A) minus the union of all top(B)."""
    languages, fraction = settings.score.languages, settings.select.fractions[0]
    tops = {language: f"top {fraction} {language}" for language in languages}

    def own(language: str, context: Context) -> Region:
        found = read(context, tops[language])
        origins = [found.provenance]
        for other in languages:
            if other != language:  # one at a time: the masks of all languages would be the peak of the run's memory
                each = read(context, tops[other])
                origins.append(each.provenance)
                found = regions.subtract(found, each)
        definition = f"the top {fraction} of {language} without the top {fraction} of any other scored language"
        known = algebra.combine("difference", origins, f"monolingual {language}").replace(definition=definition)
        return dataclasses.replace(found, provenance=known)

    return {top: ranked(top, fraction, language) for language, top in tops.items()} | {
        f"monolingual {language}": Selection(fraction, functools.partial(own, language)) for language in languages
    }


def make(context: Context, wanted: Mapping[str, Selection]) -> None:
    """Make every region that has no file yet, in their order, and save it.

    Where the combined scores are ranked, those of each language are read once, for the sum and for its own regions,
    which then come first.
    """
    missing = {name: each for name, each in wanted.items() if context.run.done(_mark(name)) is None}

    def languages() -> Iterator[Scores]:
        for language in context.settings.score.languages:
            scored.ranking(context, language)
            for name in [name for name, each in missing.items() if each.ranking == language]:
                _make(context, name, missing.pop(name))
            yield context.rankings.pop(language)

    if any(each.ranking == "combined" for each in missing.values()):
        total = combine(languages())
        context.rankings.clear()
        context.rankings["combined"] = total
    for name, selection in missing.items():
        _make(context, name, selection)
    context.run.check()
    context.rankings.clear()


def _make(context: Context, name: str, selection: Selection) -> None:
    context.run.check()
    save(context, selection.make(context))
    context.run.finish(_mark(name), file(name), region=name)


def _mark(name: str) -> str:
    return f"region-{slug(name)}"


def save(context: Context, region: Region, path: str = "") -> str:
    """Save a region in the file of its name (or another), and note what its selection met; returns the file."""
    found = region.provenance.selection
    if found is not None and not found.selected:  # its removal would be a figure of 1.00 that says nothing
        raise ValueError(f"region {region.name} is empty: {found}; take a larger fraction")
    told = any(note.endswith(f": {found}") for note in context.run.notes)  # of another region of the same matrices
    if found is not None and (found.empty or found.zero or found.cut) and not told:
        context.run.note(f"region {region.name}: {found}")
    path = path or file(region.name)
    place = context.run.path(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    regions.save(region, place)
    return path


def file(name: str) -> str:
    """Return the file of a region in the work directory."""
    return f"regions/{slug(name)}.safetensors"


def read(context: Context, name: str, path: str = "") -> Region:
    """Return a region of this run by its name (or its file), on the shards of the parameters."""
    model = context.model
    place = context.run.path(path or file(name))
    return regions.load(place, model.shapes, model.fingerprint, model.tokenizer.fingerprint)


def named(context: Context, intervention: Intervention) -> Region:
    """Return the region of the name of an intervention."""
    return read(context, intervention.name)


def bound(
    context: Context, intervention: Intervention, region: Callable[[Context, Intervention], Region] | None = None
) -> Intervention:
    """Return an intervention with its region, which is read when it is asked for; the untouched model has none.

    Args:
      context: after the regions were made.
      intervention: any.
      region: where its region is from; by default `own`.
    """
    if intervention == UNTOUCHED:
        return intervention
    return dataclasses.replace(intervention, region=functools.partial(region or own, context, intervention))


def own(context: Context, intervention: Intervention) -> Region:
    """Return the region of an intervention: the one of its name, or the part of it that the intervention says."""
    whole = dataclasses.replace(intervention, part="", layer=None)
    found = read(context, whole.name)
    if intervention.layer is not None:
        return regions.restrict(found, layers=[intervention.layer], name=intervention.name)
    if intervention.part:
        return regions.restrict(found, roles.PARTS[intervention.part.replace(" ", "_")], name=intervention.name)
    return found
