"""Remove the core linguistic region, and what else a fair comparison needs, and see what each language loses.

The paper's first experiment: the core is the top of the scores combined over the scored languages, taken in every
matrix; its removal is set against removing the bottom and a random region of the same size.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

from ml_collections import ConfigDict

from lingregions import regions
from lingregions import tree as trees
from lingregions.experiments import laboratory as lab
from lingregions.experiments import stage
from lingregions.experiments.laboratory import Laboratory
from lingregions.experiments.stage import Stage
from lingregions.regions import Region
from lingregions.regions.algebra import combine
from lingregions.regions.matched import match
from lingregions.run import Run

DRAWN = ("random", "matched")  # selectors that draw: one arm a seed


class Arm(NamedTuple):
    """One region that is removed: an entry of `SELECTORS`, or "matched": random, but matched to the top of its size."""

    selector: str
    fraction: str
    seed: int | None

    def __str__(self) -> str:
        return f"{self.selector} {self.fraction}" + ("" if self.seed is None else f" seed {self.seed}")


def core_removal(settings: ConfigDict, run: Run) -> None:
    """Score, select, remove, evaluate, report.

    Args:
      settings: see configs/core_removal.py.
      run: the work directory; what is finished in it is not done again.
    """
    laboratory = lab.prepare(settings, run)
    lab.check(laboratory)
    for language in settings.score.languages:
        lab.score(laboratory, language)
    files = find(laboratory)
    made: dict[str, Callable[[], trees.Tree]] = {"base": lambda: laboratory.params}
    made |= {str(arm): functools.partial(lab.remove, laboratory, files[str(arm)]) for arm in arms(settings)}
    lab.measure(laboratory, "core_removal", made)
    lab.publish(laboratory)


def stages(settings: ConfigDict) -> list[Stage]:
    """Return what `core_removal` would do."""
    languages, first = settings.score.languages, settings.select.fractions[0]
    found = {str(arm): arm.fraction for arm in arms(settings)}
    if settings.select.monolingual:
        found |= {name: first for each in languages for name in (f"top {first} {each}", f"monolingual {each}")}
    return [
        *stage.scoring(settings),
        stage.selecting(settings, found),
        stage.measuring(settings, [str(arm) for arm in arms(settings)]),
    ]


def arms(settings: ConfigDict) -> Iterator[Arm]:
    """Yield the arms beside "base": every selector at every fraction, the random one with every seed."""
    for fraction in settings.select.fractions:
        for selector in settings.select.selectors:
            seeds = settings.select.seeds if selector in DRAWN else (None,)
            yield from (Arm(selector, fraction, seed) for seed in seeds)


def find(laboratory: Laboratory) -> dict[str, str]:
    """Make the regions of the config; returns {name: file}.

    The arms; and for the first fraction, if `select.monolingual`, the top of each language and what of it no other
    language has: top(A) minus the union of top(B) for every other scored B (docs/method.md 2).
    """
    settings = laboratory.settings
    languages = settings.score.languages
    known = lab.provenance(laboratory, languages)

    @functools.cache
    def combined() -> trees.Tree:
        return lab.combine(laboratory, languages)

    def take(arm: Arm) -> Region:
        if arm.selector == "matched":
            top = Arm("top", arm.fraction, None)
            if top not in arms(settings):
                raise ValueError(
                    f"the arm {arm} is matched to {top}, which is not among the arms: add top to selectors"
                )
            assert arm.seed is not None
            part = trees.restrict(laboratory.params, settings.select.scope)
            return match(lab.read(laboratory, files[str(top)]), part, arm.seed, str(arm))
        like = trees.restrict(laboratory.shapes if arm.selector == "random" else combined(), settings.select.scope)
        named = known.replace(name=str(arm))
        return regions.select(like, arm.fraction, arm.selector, seed=arm.seed, provenance=named)

    files: dict[str, str] = {}
    # The matched ones last: they start from the file of their top.
    for arm in sorted(arms(settings), key=lambda arm: arm.selector == "matched"):
        files |= lab.find(laboratory, {str(arm): functools.partial(take, arm)})
    combined.cache_clear()
    if not settings.select.monolingual:
        return files

    fraction = settings.select.fractions[0]
    tops = {language: f"top {fraction} {language}" for language in languages}

    def top(language: str) -> Region:
        named = lab.provenance(laboratory, (language,)).replace(name=tops[language])
        part = trees.restrict(lab.load(laboratory, language), settings.select.scope)
        return regions.select(part, fraction, "top", provenance=named)

    files |= lab.find(laboratory, {tops[language]: functools.partial(top, language) for language in languages})

    def alone(language: str) -> Region:
        found = lab.read(laboratory, files[tops[language]])
        origins = [found.provenance]
        for other in languages:
            if other != language:  # one at a time: the masks of all languages would be the peak of the run's memory
                each = lab.read(laboratory, files[tops[other]])
                origins.append(each.provenance)
                found = regions.subtract(found, each)
        name = f"monolingual {language}"
        definition = f"the top {fraction} of {language} without the top {fraction} of any other scored language"
        known = combine("difference", origins, name).replace(definition=definition)
        return dataclasses.replace(found, provenance=known)

    return files | lab.find(laboratory, {f"monolingual {each}": functools.partial(alone, each) for each in languages})
