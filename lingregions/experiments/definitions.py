"""The same removal with each definition of importance: does the collapse depend on how importance is defined?

All rules of one preset are gathered in one pass over a language (docs/method.md 1); the released code's own weighting
and precision (preset `paper`) need a pass of their own. Every definition's top is removed at the same fractions from
the same matrices and evaluated on the same text; beside it the overlap of the regions. |theta| is among the definitions
and needs no text: what a score does beyond it is what it knows about language.

Costs one scoring pass a preset, and on disk one tree of scores a definition until its regions are made.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from lingregions import regions, scoring
from lingregions.corpus import corpus as corpora
from lingregions.effects import Effects
from lingregions.experiments import claims, scored, selection, step, study, tables
from lingregions.experiments.context import Context, slug
from lingregions.intervention import Intervention
from lingregions.regions import Region, geometry
from lingregions.scores import add


def _check(settings: ConfigDict) -> None:
    """Refuse definitions that do not exist, and fewer than two."""
    _passes(settings)


def _split(name: str, preset: str) -> tuple[str, str]:
    """Return (rule, preset) of a definition's name in the config, "fisher" or "taylor paper".

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


def _passes(settings: ConfigDict) -> dict[str, dict[str, str]]:
    """Return {preset: {definition: rule}}, what one pass over a language gathers; what reads no text is left out.

    Raises:
      ValueError: a definition that does not exist, or is named twice, or too few.
    """
    names = list(settings.score.definitions)
    if len(names) < 2 or len(set(names)) < len(names):
        raise ValueError(f"score.definitions compares two or more, each named once, not {', '.join(names) or 'none'}")
    found: dict[str, dict[str, str]] = {}
    for name in names:
        rule, preset = _split(name, settings.score.preset)
        if _reads(name):
            found.setdefault(preset, {})[name] = rule
    return found


def _reads(name: str) -> bool:
    """Whether a definition reads text."""
    return scoring.RULES[name.partition(" ")[0]].reads != "nothing"


def _removal(name: str, fraction: str) -> Intervention:
    """Return the removal of a definition's top."""
    return Intervention(kind="top", definition=name, fraction=fraction, perturbation="zero")


def _steps(settings: ConfigDict, config: Any) -> list[step.Step]:
    """Score with every definition, remove what each calls the top."""
    names, fractions, presets = settings.score.definitions, settings.select.fractions, _passes(settings)
    marks = {
        language: tuple(_mark(settings, each, language) for each in presets) for language in settings.score.languages
    }
    total = step.add(step.score(settings, config, passes=len(presets), copies=0), "score", "")
    collected = dataclasses.replace(
        total,
        what=f"{', '.join(names)} of every parameter, on {corpora.source_of(settings.data, 'score')}",
        perform=_collect_all,
        marks=tuple(mark for each in marks.values() for mark in each),
    )
    wanted = {
        _removal(name, each).name: selection.Selection(each, functools.partial(_top, name=name, fraction=each))
        for name in names
        for each in fractions
    }
    first = names[0]
    pairs = [(_removal(name, each), _removal(first, each)) for each in fractions for name in names if name != first]
    return [
        collected,
        # The sums of scores are gone when the regions are there.
        step.select(settings, config, wanted),
        step.Step("discard", "the sums of scores", _discard),
        step.measure(settings, [_removal(name, each) for each in fractions for name in names], pairs),
    ]


# --- scores and regions -----------------------------------------------------------------------------------------------


def _collect_all(context: Context) -> None:
    for preset, rules in _passes(context.settings).items():
        _collect(context, preset, rules)


def _collect(context: Context, preset: str, rules: Mapping[str, str]) -> None:
    """Add every scored language to the running sum of each definition of one preset; one pass over each language.

    The sums lie under totals/, one tree a definition, whose header lists the languages that are in it.
    """
    run = context.run
    if all(_complete(context, name) for name in rules):
        return
    own = _with_preset(context, preset, list(rules.values()))
    for language in context.settings.score.languages:
        wanted = [name for name in rules if language not in _added(context, name)]
        if wanted:
            stop = scored.count(own, language)
            *_, at = scored.gather(own, language, 0, stop)
            # Before anything is added: the passes of two presets share the name of the resume point.
            scored.discard(own, language, 0, stop)
            for name in wanted:
                before = scored.read(own, _place(name)) if _added(context, name) else None
                total = add(before, scored.finish(own, language, at, rules[name]))
                run.save(_place(name), total.values, total.header())  # sums, in float32 whatever scores are rounded to
            run.finish(_mark(context.settings, preset, language), samples=at.position, tokens=at.tokens, nll=at.nll)
        run.check()


def _with_preset(context: Context, preset: str, rules: Sequence[str]) -> Context:
    """Return a context that scores by another preset; it shares model and texts."""
    settings = context.settings.copy_and_resolve_references()
    with settings.unlocked():
        settings.score.preset, settings.score.rules = preset, tuple(rules)
    return dataclasses.replace(context, settings=settings)


def _mark(settings: ConfigDict, preset: str, language: str) -> str:
    """Return the mark of a language that was scored by a preset."""
    return f"score-{language}" + ("" if preset == settings.score.preset else f"-{preset}")


def _place(name: str) -> str:
    return f"totals/{slug(name)}"


def _added(context: Context, name: str) -> list[str]:
    """Return the languages that are in the sum of a definition."""
    header = context.run.header(_place(name))
    return [] if header is None else list(header["languages"])


def _complete(context: Context, name: str) -> bool:
    """Whether all regions of a definition are there."""
    names = [_removal(name, fraction).name for fraction in context.settings.select.fractions]
    return all(context.run.done(f"region-{slug(each)}") is not None for each in names)


def _top(context: Context, name: str, fraction: str) -> Region:
    """Return the top of one definition."""
    settings, scope = context.settings, context.settings.select.scope
    if name not in context.rankings:
        context.rankings.clear()
        own = _with_preset(context, _split(name, settings.score.preset)[1], ())
        context.rankings[name] = scored.read(own, _place(name)) if _reads(name) else own.model.magnitudes(scope)
    return context.rankings[name].select(fraction, scope=scope, name=_removal(name, fraction).name)


def _discard(context: Context) -> None:
    for name in context.settings.score.definitions:
        context.run.discard(_place(name))


# --- what is shown ----------------------------------------------------------------------------------------------------


def _show(context: Context) -> dict[str, Any]:
    """Return what each definition's top costs, how much they share, and the verdict."""
    settings, found = context.settings, context.effects()
    names, fractions = list(settings.score.definitions), list(settings.select.fractions)
    shared = {
        fraction: geometry.overlap([selection.read(context, _removal(name, fraction).name) for name in names]).iou()
        for fraction in fractions
    }
    shown: dict[str, Any] = {}
    for fraction, values in shared.items():
        title = f"Overlap between the definitions' top {fraction}"
        shown[f"overlap_{slug(fraction)}"] = tables.overlap(title, names, values, float(regions.parse(fraction)))
    shown["removal_by_definition"] = _table(names, fractions, found, shared)
    if len(fractions) > 1:
        size = step.count(context.model.config, settings.select.scope)
        points = sorted((float(regions.parse(each)) * size, each) for each in fractions)
        shown["curve_by_definition"] = tables.curve(
            "Effect against the number of parameters removed, by definition",
            "parameters removed",
            {name: [(x, found.cell(_removal(name, each))) for x, each in points] for name in names},
            logarithmic=True,
            x_format="number",
        )
    blind = [name for name in names if not _reads(name)]
    facts = {
        "names": names,
        "largest": fractions[-1],
        "removal": _removal,
        "sizes": [_compared(names, fraction, found, shared[fraction][0]) for fraction in fractions],
        "blind": {
            name: [each for each in fractions if found.value(_removal(name, each)) > claims.BROKEN] for name in blind
        },
    }
    return shown | {"verdict": claims.verdict("definitions", "Does the definition matter?", found, **facts)}


def _compared(names: Sequence[str], fraction: str, found: Effects, shared: np.ndarray) -> dict[str, Any]:
    """Return what is said of one fraction: who does more, less or as much harm as the first, and the overlaps."""
    first, *others = (_removal(name, fraction) for name in names)
    ranked = sorted((first, *others), key=lambda each: -found.value(each))
    signs = {sign: [each.definition for each in others if found.sign(each, first) == sign] for sign in (1, -1, 0)}
    low, high = float(shared[1:].min()), float(shared[1:].max())
    return {"fraction": fraction, "most": ranked[0], "least": ranked[-1], "signs": signs, "low": low, "high": high}


def _table(
    names: Sequence[str], fractions: Sequence[str], found: Effects, shared: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    rows = []
    for fraction in fractions:
        first = _removal(names[0], fraction)
        for place, name in enumerate(names):
            cells = tables.against(found, _removal(name, fraction), first if place else None)
            rows.append([name, fraction, float(shared[fraction][0, place]), *cells])
    columns = {
        **{"definition": "text", "fraction": "text", f"overlap with {names[0]} (IoU)": "share"},
        **{"perplexity": "factor", f"over {names[0]}": "factor", "more harm in": "text"},
    }
    return tables.table("The same removal with each definition", columns, rows, tables.NOTE)


STUDY = study.Study(_steps, _show, _check)
