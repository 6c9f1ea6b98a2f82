"""The same removal with each definition of importance: does the collapse depend on how importance is defined?

All rules of one preset are gathered in one pass over a language (docs/method.md 1); the released code's own weighting
and precision (preset `paper`) need a pass of their own. Every definition's top is removed at the same fractions from
the same matrices and evaluated on the same text; beside it the overlap of the regions. |theta| is among the definitions
and needs no text: what a score does beyond it is what it knows about language.

Costs one scoring pass a preset, and on disk one tree of scores a definition until its regions are made.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from lingregions import regions, scoring
from lingregions import tree as trees
from lingregions.experiments import comparison, stage
from lingregions.experiments import laboratory as lab
from lingregions.experiments.cell import Arm, measure
from lingregions.experiments.core_removal import magnitudes
from lingregions.experiments.finding import LEVEL, Findings, verdict
from lingregions.experiments.laboratory import Laboratory
from lingregions.experiments.stage import Stage
from lingregions.models import roles
from lingregions.regions import Region, geometry
from lingregions.regions.select import parse
from lingregions.report import numerals
from lingregions.run import Run


def definitions(settings: ConfigDict, run: Run) -> None:
    """Score with every definition, remove what each calls the top, evaluate, compare, report.

    Args:
      settings: see configs/definitions.py.
      run: the work directory; what is finished in it is not done again.
    """
    named = passes(settings)
    laboratory = lab.prepare(settings, run)
    lab.check(laboratory)
    for preset, names in named.items():
        collect(laboratory, preset, names)
    files = find(laboratory)
    made = [
        Arm(arm(name, fraction), functools.partial(lab.read, laboratory, files[arm(name, fraction)]))
        for fraction in settings.select.fractions
        for name in settings.score.definitions
    ]
    measure(laboratory, "definitions", made)
    compare(laboratory, files)


def stages(settings: ConfigDict) -> list[Stage]:
    """Return what `definitions` would do."""
    presets = [
        preset
        for preset, names in passes(settings).items()
        if any(scoring.RULES[split(name, preset)[0]].reads != "nothing" for name in names)
    ]
    scored = [
        dataclasses.replace(
            planned,
            what=f"{', '.join(settings.score.definitions)} of every parameter, on {settings.data.source}",
            marks=tuple(_mark(settings, preset, language) for preset in presets),
        )
        for language, planned in zip(
            settings.score.languages, stage.scoring(settings, passes=len(presets), copies=0), strict=True
        )
    ]
    found = {
        arm(name, fraction): fraction for name in settings.score.definitions for fraction in settings.select.fractions
    }
    # The sums of scores are gone when the regions are there.
    return [
        *scored,
        stage.selecting(settings, found),
        stage.measuring(settings, list(found)),
    ]


def arm(name: str, fraction: str) -> str:
    """Return the name of an arm: "taylor sound 1%"."""
    return f"{name} {fraction}"


def split(name: str, preset: str) -> tuple[str, str]:
    """Return (rule, preset) of a definition's name, "fisher" or "taylor paper".

    Args:
      name: an entry of `score.definitions`.
      preset: the preset of a name that says none.

    Raises:
      ValueError: there is no such rule or preset.
    """
    rule, _, given = name.partition(" ")
    if rule not in scoring.RULES or (given or preset) not in scoring.PRESETS:
        raise ValueError(
            f"there is no definition {name!r}: it is a rule ({', '.join(scoring.RULES)}), and where it is not the "
            f"config's own a preset ({', '.join(scoring.PRESETS)}), such as 'taylor paper'"
        )
    return rule, given or preset


def passes(settings: ConfigDict) -> dict[str, list[str]]:
    """Return {preset: definitions that one pass over a language gathers}.

    Raises:
      ValueError: a definition that does not exist, or is named twice.
    """
    names = list(settings.score.definitions)
    if len(names) < 2 or len(set(names)) < len(names):
        raise ValueError(f"score.definitions compares two or more, each named once, not {', '.join(names) or 'none'}")
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(split(name, settings.score.preset)[1], []).append(name)
    return found


# --- regions ----------------------------------------------------------------------------------------------------------


def collect(laboratory: Laboratory, preset: str, names: Sequence[str]) -> None:
    """Add every scored language to the running sum of each definition of one preset; one pass over each language.

    The sums lie under totals/, one tree a definition, whose header lists the languages that are in it.
    """
    run = laboratory.run
    rules = {name: split(name, preset)[0] for name in names}
    read = {name: rule for name, rule in rules.items() if scoring.RULES[rule].reads != "nothing"}
    if not read or all(_made(laboratory, name) for name in read):
        return
    own = _with(laboratory, preset, list(read.values()))
    for language in laboratory.settings.score.languages:
        wanted = [name for name in read if language not in _added(run, name)]
        if wanted:
            stop = lab.samples(own, language)
            *_, at = lab.gather(own, language, 0, stop)
            # Before anything is added: the passes of two presets share the name of the resume point.
            lab.forget(own, language, 0, stop)
            for name in wanted:
                found = own.scorer.finish(own.params, at.sums, at.tokens, read[name])
                before = _added(run, name)
                total = scoring.combine(_total(own, name) if before else None, found, own.definition.normalised)
                header = lab.facts(own, language, at) | {"rule": read[name], "languages": [*before, language]}
                run.save(_place(name), total, header)
            run.finish(_mark(laboratory.settings, preset, language), **lab.facts(own, language, at))
        run.check()


def _with(laboratory: Laboratory, preset: str, rules: Sequence[str]) -> Laboratory:
    """Return a laboratory that scores by another preset; it shares model and texts."""
    settings = laboratory.settings.copy_and_resolve_references()
    with settings.unlocked():
        settings.score.preset, settings.score.rules = preset, tuple(rules)
    return dataclasses.replace(laboratory, settings=settings)


def _mark(settings: ConfigDict, preset: str, language: str) -> str:
    """Return the name of the stage that scores a language by a preset."""
    return f"score-{language}" + ("" if preset == settings.score.preset else f"-{preset}")


def _place(name: str) -> str:
    return f"totals/{lab.slug(name)}"


def _added(run: Run, name: str) -> list[str]:
    """Return the languages that are in the sum of a definition."""
    header = run.header(_place(name))
    return [] if header is None else list(header["languages"])


def _total(laboratory: Laboratory, name: str) -> trees.Tree:
    like = roles.restrict(laboratory.shapes, laboratory.definition.scope)
    found: trees.Tree = laboratory.run.load(_place(name), like)
    return found


def _made(laboratory: Laboratory, name: str) -> bool:
    """Whether all regions of a definition are there."""
    fractions = laboratory.settings.select.fractions
    return all(laboratory.run.done(f"region-{lab.slug(arm(name, fraction))}") is not None for fraction in fractions)


def find(laboratory: Laboratory) -> dict[str, str]:
    """Make the top of every definition at every fraction; returns {arm: file}. The sums are then removed."""
    files: dict[str, str] = {}
    for name in laboratory.settings.score.definitions:
        files |= select(laboratory, name)
        laboratory.run.discard(_place(name))
    return files


def select(laboratory: Laboratory, name: str) -> dict[str, str]:
    """Make the top of one definition at every fraction; returns {arm: file}."""
    settings = laboratory.settings
    rule, preset = split(name, settings.score.preset)
    own, reads = _with(laboratory, preset, ()), scoring.RULES[rule].reads != "nothing"
    known = lab.provenance(own, settings.score.languages if reads else (), rule)

    @functools.cache
    def values() -> trees.Tree:
        return roles.restrict(_total(own, name), settings.select.scope) if reads else magnitudes(own)

    def top(fraction: str) -> Region:
        return regions.select(values(), fraction, provenance=known.replace(name=arm(name, fraction)))

    return lab.find(laboratory, {arm(name, each): functools.partial(top, each) for each in settings.select.fractions})


# --- what was found ---------------------------------------------------------------------------------------------------


def compare(laboratory: Laboratory, files: Mapping[str, str]) -> None:
    """Write what each definition's top costs, how much they share, the verdict, and the report."""
    settings = laboratory.settings
    names, fractions = list(settings.score.definitions), list(settings.select.fractions)
    contrasts = [
        (arm(name, fraction), arm(names[0], fraction)) for fraction in fractions for name in names if name != names[0]
    ]
    found = Findings(comparison.assess(laboratory, {"definitions": contrasts})["definitions"])
    shared = {
        fraction: geometry.overlap([lab.read(laboratory, files[arm(name, fraction)]) for name in names]).iou()
        for fraction in fractions
    }
    for fraction, values in shared.items():
        part = float(parse(fraction))
        content = {
            "kind": "overlap",
            "title": f"Overlap between the definitions' top {fraction}",
            "names": names,
            "values": values.tolist(),
            "chance": part / (2 - part),
        }
        lab.tabulate(laboratory, f"overlap_{lab.slug(fraction)}", content)
    lab.tabulate(laboratory, "removal_by_definition", _table(names, fractions, found, shared))
    if len(fractions) > 1:
        size = trees.count(roles.restrict(laboratory.shapes, settings.select.scope))
        lab.tabulate(laboratory, "curve_by_definition", _curve(names, fractions, found, size))
    lab.tabulate(laboratory, "verdict", verdict("Verdict", weigh(names, fractions, found, shared)))
    lab.publish(laboratory)


def _table(
    names: Sequence[str], fractions: Sequence[str], found: Findings, shared: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    rows = []
    for fraction in fractions:
        for place, name in enumerate(names):
            own, first = arm(name, fraction), arm(names[0], fraction)
            against = [found.cell(own, first), found.worse(own, first)] if place else [None, None]
            rows.append([name, fraction, float(shared[fraction][0, place]), found.cell(own), *against])
    return {
        "title": "The same removal with each definition",
        "note": "Perplexity over all languages (geometric mean) as a multiple of the untouched model's, and as a "
        f"multiple of what {names[0]} gives at the same fraction; the last column counts languages in which it does "
        f"more harm than that, p < {LEVEL} after Holm's correction. Intervals: paired bootstrap over segments.",
        "columns": [
            {"name": "definition"},
            {"name": "fraction"},
            {"name": f"overlap with {names[0]} (IoU)", "kind": "share"},
            {"name": "perplexity", "kind": "factor"},
            {"name": f"over {names[0]}", "kind": "factor"},
            {"name": "more harm in"},
        ],
        "rows": rows,
    }


def _curve(names: Sequence[str], fractions: Sequence[str], found: Findings, size: int) -> dict[str, Any]:
    def series(name: str) -> dict[str, Any]:
        cells = [(float(parse(each)) * size, found.cell(arm(name, each))) for each in fractions]
        kept = sorted((x, cell) for x, cell in cells if cell[0] is not None)
        return {
            "points": [[x, cell[0]] for x, cell in kept],
            "low": [cell[1] for _, cell in kept],
            "high": [cell[2] for _, cell in kept],
        }

    return {
        "kind": "curve",
        "title": "Damage against the number of parameters removed, by definition",
        "across": "parameters removed",
        "upwards": "perplexity, as a multiple of the untouched model's",
        "series": {name: series(name) for name in names},
        "logarithmic": True,
        "x_format": "number",
        "format": "exponential",
    }


def weigh(
    names: Sequence[str], fractions: Sequence[str], found: Findings, shared: Mapping[str, np.ndarray]
) -> list[str]:
    """Return the verdict: which definitions do more or less harm than the first, and which need no text."""
    said = []
    for fraction in fractions:
        ranked = sorted(names, key=lambda name: -found.value(arm(name, fraction)))
        least, most = ranked[-1], ranked[0]
        beside = [name for name in names if name != names[0]]
        more = [name for name in beside if found.sign(arm(name, fraction), arm(names[0], fraction)) > 0]
        less = [name for name in beside if found.sign(arm(name, fraction), arm(names[0], fraction)) < 0]
        alike = [name for name in beside if name not in more and name not in less]
        clauses = [
            f"{numerals.listed(group)} {words} {names[0]}"
            for group, words in ((more, "more than"), (less, "less than"), (alike, "no different from"))
            if group
        ]
        overlaps = [float(shared[fraction][0, names.index(name)]) for name in beside]
        said.append(
            f"At {fraction} the harm goes from {found.words(arm(least, fraction))} ({least}) to "
            f"{found.words(arm(most, fraction))} ({most}) perplexity: {'; '.join(clauses)}. Their regions share "
            f"{numerals.share(min(overlaps))} to {numerals.share(max(overlaps))} (IoU) with that of {names[0]}."
        )
    blind = [name for name in names if scoring.RULES[name.partition(" ")[0]].reads == "nothing"]
    for name in blind:
        hurt = [each for each in fractions if found.value(arm(name, each)) > math.log(10)]
        said.append(
            f"{numerals.sentence(name)} knows no text and no language, and its removal "
            + (
                f"multiplies perplexity by more than 10 at {numerals.listed(hurt)}: where a definition does no more "
                "harm than that, its collapse says nothing about language."
                if hurt
                else "multiplies perplexity by less than 10 at every fraction."
            )
        )
    return said
