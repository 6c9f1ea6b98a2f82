"""Remove the core linguistic region, and what else a fair comparison needs, and see what each language loses.

The paper's first experiment: the core is the top of the scores combined over the scored languages, taken in every
matrix; its removal is set against removing the bottom and random regions of the same size, against random ones that are
matched to it, and against the largest weights. Parts of the core - one kind of matrix, one layer, the norms or all but
them - are removed by themselves where the config asks for it.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from ml_collections import ConfigDict

from lingregions import regions
from lingregions import tree as trees
from lingregions.experiments import cell as cells
from lingregions.experiments import comparison, stage
from lingregions.experiments import laboratory as lab
from lingregions.experiments.finding import LEVEL, Findings, number, verdict
from lingregions.experiments.laboratory import Laboratory
from lingregions.experiments.stage import Stage
from lingregions.models import roles
from lingregions.regions import Region
from lingregions.regions.algebra import combine
from lingregions.regions.matched import match
from lingregions.run import Run

DRAWN = ("random", "matched")  # selectors that draw: one arm a seed


class Removal(NamedTuple):
    """One region that is removed.

    Attributes:
      selector: an entry of `SELECTORS`; "magnitude": the largest |theta|; "matched": random, but matched to the top.
      fraction: part of each matrix, as the config says it.
      seed: of a selector that draws.
      part: "", or what of the region is removed: a key of `roles.PARTS` in words, or "layer 3".
    """

    selector: str
    fraction: str
    seed: int | None = None
    part: str = ""

    @property
    def group(self) -> str:
        """The name without the seed."""
        return f"{self.selector} {self.fraction}" + (f" {self.part}" if self.part else "")

    def __str__(self) -> str:
        return self.group + ("" if self.seed is None else f" seed {self.seed}")


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
    removals = list(plan(settings, laboratory.model.layers))
    made = [
        cells.Arm(str(each), functools.partial(take, laboratory, files, each), group=each.group) for each in removals
    ]
    cells.measure(laboratory, "core_removal", made)
    compare(laboratory, removals)


def stages(settings: ConfigDict) -> list[Stage]:
    """Return what `core_removal` would do."""
    languages, first = settings.score.languages, settings.select.fractions[0]
    removals = list(plan(settings, stage.model(settings).layers))
    found = {str(each): each.fraction for each in removals if not each.part}
    if settings.select.monolingual:
        found |= {name: first for each in languages for name in (f"top {first} {each}", f"monolingual {each}")}
    return [
        *stage.scoring(settings),
        stage.selecting(settings, found),
        stage.measuring(settings, list(map(str, removals))),
    ]


def plan(settings: ConfigDict, layers: int) -> Iterator[Removal]:
    """Yield what is removed: every selector at every fraction, with every seed; then the parts of the first top.

    Args:
      settings: the config.
      layers: of the model.

    Raises:
      ValueError: a part that does not exist, or one of a top that is not among the removals.
    """
    chosen = settings.select
    for fraction in chosen.fractions:
        for selector in chosen.selectors:
            seeds = chosen.seeds if selector in DRAWN else (None,)
            yield from (Removal(selector, fraction, seed) for seed in seeds)
    named = range(layers) if tuple(chosen.layers) == ("all",) else chosen.layers
    parts = [*(each.replace("_", " ") for each in chosen.modules), *(f"layer {each}" for each in named)]
    if parts and "top" not in chosen.selectors:
        raise ValueError("select.modules and select.layers take parts of the top: add top to select.selectors")
    for part in parts:
        if _module(part) not in roles.PARTS and part not in {f"layer {each}" for each in range(layers)}:
            raise ValueError(
                f"there is no part {part!r}; select.modules may hold {', '.join(roles.PARTS)}, and select.layers "
                f"numbers below {layers} or the word all"
            )
        yield Removal("top", chosen.fractions[0], part=part)


def _module(part: str) -> str:
    """Return the key of `roles.PARTS` that a part's words stand for."""
    return part.replace(" ", "_")


# --- regions ----------------------------------------------------------------------------------------------------------


def find(laboratory: Laboratory) -> dict[str, str]:
    """Make the regions of the config; returns {name: file}.

    Those that are removed whole; and for the first fraction, if `select.monolingual`, the top of each language and what
    of it no other language has: top(A) minus the union of top(B) for every other scored B (docs/method.md 2).
    """
    settings = laboratory.settings
    languages, scope = settings.score.languages, settings.select.scope
    known = lab.provenance(laboratory, languages)
    whole = [each for each in plan(settings, laboratory.model.layers) if not each.part]

    @functools.cache
    def combined() -> trees.Tree:
        return lab.combine(laboratory, languages)

    def select(wanted: Removal) -> Region:
        if wanted.selector == "matched":
            top = Removal("top", wanted.fraction)
            if top not in whole:
                raise ValueError(
                    f"the arm {wanted} is matched to {top}, which is not among the arms: add top to selectors"
                )
            assert wanted.seed is not None
            part = roles.restrict(laboratory.params, scope)
            return match(lab.read(laboratory, files[str(top)]), part, wanted.seed, str(wanted))
        named = known.replace(name=str(wanted))
        if wanted.selector == "magnitude":
            return regions.select(
                magnitudes(laboratory),
                wanted.fraction,
                provenance=lab.provenance(laboratory, (), "magnitude").replace(
                    name=str(wanted), definition=f"the largest |theta|, {wanted.fraction} of each matrix"
                ),
            )
        like = roles.restrict(laboratory.shapes if wanted.selector == "random" else combined(), scope)
        return regions.select(like, wanted.fraction, wanted.selector, seed=wanted.seed, provenance=named)

    files: dict[str, str] = {}
    # The matched ones last: they start from the file of their top.
    for each in sorted(whole, key=lambda each: each.selector == "matched"):
        files |= lab.find(laboratory, {str(each): functools.partial(select, each)})
    combined.cache_clear()
    return files | (alone(laboratory) if settings.select.monolingual else {})


def magnitudes(laboratory: Laboratory) -> trees.Tree:
    """Return |theta| in the select scope."""
    part = roles.restrict(laboratory.params, laboratory.settings.select.scope)
    return trees.transform(lambda _, theta: jnp.abs(theta), part)


def alone(laboratory: Laboratory) -> dict[str, str]:
    """Make the top of each scored language, and what of it no other has; returns {name: file}."""
    settings = laboratory.settings
    languages, fraction = settings.score.languages, settings.select.fractions[0]
    tops = {language: f"top {fraction} {language}" for language in languages}

    def top(language: str) -> Region:
        named = lab.provenance(laboratory, (language,)).replace(name=tops[language])
        part = roles.restrict(lab.load(laboratory, language), settings.select.scope)
        return regions.select(part, fraction, "top", provenance=named)

    files = lab.find(laboratory, {tops[language]: functools.partial(top, language) for language in languages})

    def own(language: str) -> Region:
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

    return files | lab.find(laboratory, {f"monolingual {each}": functools.partial(own, each) for each in languages})


def take(laboratory: Laboratory, files: dict[str, str], wanted: Removal) -> Region:
    """Return the region of a removal."""
    found = lab.read(laboratory, files[str(wanted._replace(part=""))])
    if not wanted.part:
        return found
    if _module(wanted.part) in roles.PARTS:
        return regions.restrict(found, roles.PARTS[_module(wanted.part)], name=str(wanted))
    return regions.restrict(found, layers=[int(wanted.part.removeprefix("layer "))], name=str(wanted))


# --- what was found ---------------------------------------------------------------------------------------------------


def compare(laboratory: Laboratory, removals: Sequence[Removal]) -> None:
    """Weigh every top against its controls and the parts of it against each other; write tables, verdict and report."""
    groups = list(dict.fromkeys((each.selector, each.fraction, each.group) for each in removals if not each.part))
    contrasts = [
        (f"top {fraction}", group)
        for selector, fraction, group in groups
        if selector != "top" and Removal("top", fraction) in removals
    ]
    found = Findings(comparison.assess(laboratory, {"core_removal": contrasts})["core_removal"])
    if contrasts:
        rows = [
            [arm, control, found.cell(arm), found.cell(control), found.cell(arm, control), found.worse(arm, control)]
            for arm, control in contrasts
        ]
        content = {
            "title": "The top against its controls",
            "note": "Perplexity over all languages (geometric mean) as a multiple of the untouched model's, and of the "
            "top's as a multiple of the control's; the last column counts languages in which the top does more harm, "
            f"p < {LEVEL} after Holm's correction. Intervals: paired bootstrap over segments and seeds.",
            "columns": [
                {"name": "region"},
                {"name": "control"},
                {"name": "region removed", "kind": "factor"},
                {"name": "control removed", "kind": "factor"},
                {"name": "region over control", "kind": "factor"},
                {"name": "more harm in"},
            ],
            "rows": rows,
        }
        lab.tabulate(laboratory, "contrasts", content)
    parts = [each for each in removals if each.part]
    if parts:
        lab.tabulate(laboratory, "parts", _parts(laboratory, found, parts))
        languages = list(laboratory.settings.evaluate.languages)
        heatmap = {
            "kind": "heatmap",
            "title": f"Damage of each part of the top {parts[0].fraction} by language",
            "corner": "part",
            "rows": [each.part for each in parts],
            "columns": languages,
            "values": [[number(found.value(str(each), language=code)) for code in languages] for each in parts],
            "format": "exponential",
            "unit": "perplexity as a multiple of the untouched model's",
        }
        lab.tabulate(laboratory, "parts_by_language", heatmap)
    lab.tabulate(laboratory, "verdict", verdict("Verdict", weigh(found, contrasts, parts)))
    lab.publish(laboratory)


def _parts(laboratory: Laboratory, found: Findings, parts: Sequence[Removal]) -> dict[str, Any]:
    """Return the table of what each part of the top costs by itself, and how large it is."""
    files = {f"top {parts[0].fraction}": f"regions/{lab.slug(f'top {parts[0].fraction}')}.safetensors"}
    sizes = [regions.total(take(laboratory, files, each)) for each in parts]
    return {
        "title": f"Parts of the top {parts[0].fraction}, removed by themselves",
        "note": "Geometric-mean perplexity as a multiple of the untouched model's.",
        "columns": [
            {"name": "part"},
            {"name": "parameters", "kind": "count"},
            {"name": "perplexity", "kind": "factor"},
            {"name": "harm in"},
        ],
        "rows": [
            [each.part, size, found.cell(str(each)), found.worse(str(each))]
            for each, size in zip(parts, sizes, strict=True)
        ],
    }


def weigh(found: Findings, contrasts: Sequence[tuple[str, str]], parts: Sequence[Removal]) -> list[str]:
    """Return the verdict: what the first top does beyond each control, and what this can and cannot show."""
    said = []
    if contrasts:
        top = contrasts[0][0]
        own = [control for arm, control in contrasts if arm == top]
        clauses = "; ".join(found.against(top, control) for control in own)
        said.append(f"Removing {top} multiplies perplexity by {found.words(top)[1:]} over all languages; {clauses}.")
        magnitude = [control for control in own if control.startswith("magnitude")]
        if magnitude and found.sign(magnitude[0]) > 0 and found.value(magnitude[0]) > math.log(10):
            said.append(
                f"The largest weights alone ({magnitude[0]}: {found.words(magnitude[0])}) break the model as well, and "
                "they were found without any text: that the core's removal ends in collapse shows that its parameters "
                "are indispensable, not that they are linguistic."
            )
        elif not magnitude:
            said.append(
                "The largest weights were not removed for comparison (select.selectors with magnitude): collapse by "
                "itself does not show that a region is linguistic."
            )
    if parts:
        ranked = sorted(parts, key=lambda each: -found.value(str(each)))
        said.append(
            "Of its parts, removed by themselves, the most harmful is "
            f"{ranked[0].part} ({found.words(str(ranked[0]))}), the least {ranked[-1].part} "
            f"({found.words(str(ranked[-1]))})."
        )
    return said
