"""Remove what only one language has: does its own language lose most, and its relatives more than strangers?

The monolingual region of A is the top of A's scores without the top of any other scored language (docs/method.md 2).
Every region is removed, every language evaluated: the matrix of damages. What the removal of as many similar scalars
does to any language is known from random regions matched to it in size, |theta|, rows and columns (`regions.matched`),
outside the top of every scored language: what is in all of them would break the model by itself.

With d(B) the damage of B in nats per token, the logarithm of its perplexity as a multiple of the untouched model's:

- *specificity* of A's region: d(A) minus the mean of d over the evaluated languages outside A's family;
- *kinship*: the mean of d over A's evaluated relatives (without A) minus the same mean;
- both *over control*: minus the same figure of the matched random region;
- *over other regions*: d(A) minus the mean damage of A by the regions of the other scored languages outside its family:
  the control that is made in the same way.

Each with a paired bootstrap over segments, languages apart (`statistics.combine`); the languages themselves are not
resampled: the figures are about these.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from lingregions import regions, statistics
from lingregions.corpus import languages as registry
from lingregions.experiments import cell as cells
from lingregions.experiments import comparison, continuation, stage
from lingregions.experiments import laboratory as lab
from lingregions.experiments.cell import BASE, Arm
from lingregions.experiments.finding import Findings, number, verdict
from lingregions.experiments.laboratory import Laboratory, alone
from lingregions.experiments.stage import Stage
from lingregions.models import roles
from lingregions.regions import Region
from lingregions.regions.matched import match
from lingregions.report import numerals
from lingregions.report.numerals import Span
from lingregions.run import Run
from lingregions.statistics import Estimate

NAME = "monolingual_regions"


def monolingual_regions(settings: ConfigDict, run: Run) -> None:
    """Score, find the regions and their controls, remove, evaluate, write, report.

    Args:
      settings: see configs/monolingual_regions.py.
      run: the work directory; what is finished in it is not done again.

    Raises:
      ValueError: a scored language is not evaluated, or no evaluated language lies outside its family.
    """
    circles = {language: circle(settings, language) for language in settings.score.languages}
    laboratory = lab.prepare(settings, run)
    lab.check(laboratory)
    for language in settings.score.languages:
        lab.score(laboratory, language)
    arms = plan(laboratory, find(laboratory))
    cells.measure(laboratory, NAME, arms)
    for arm in (Arm(BASE), *arms):
        if arm.name in (BASE, *map(own, settings.score.languages)):
            continuation.write(laboratory, arm)
    compare(laboratory, circles)


def stages(settings: ConfigDict) -> list[Stage]:
    """Return what `monolingual_regions` would do; a region holds less than the fraction from which it is made."""
    languages, fraction = settings.score.languages, settings.select.fractions[0]
    mine = [own(language) for language in languages]
    controls = [control(language, seed) for language in languages for seed in settings.select.seeds]
    names = [*(f"top {fraction} {language}" for language in languages), *mine, *controls]
    return [
        *stage.scoring(settings),
        stage.selecting(settings, dict.fromkeys(names, fraction)),
        stage.measuring(settings, [*mine, *controls]),
        continuation.stage(mine),
    ]


# --- regions and languages --------------------------------------------------------------------------------------------


def own(language: str) -> str:
    """Return the name of a language's region and of the arm that removes it."""
    return f"monolingual {language}"


def control(language: str, seed: int | None = None) -> str:
    """Return the name of the random region matched to a language's, or of all seeds of it."""
    return f"matched to {language}" + ("" if seed is None else f" seed {seed}")


class Circle(NamedTuple):
    """The evaluated languages, seen from one of them.

    Attributes:
      language: the one.
      family: name of its family.
      relatives: the others of its family.
      strangers: those outside.
    """

    language: str
    family: str
    relatives: tuple[str, ...]
    strangers: tuple[str, ...]

    @property
    def specificity(self) -> dict[str, float]:
        """Weights of the languages in d(own) - mean of d(strangers)."""
        return {self.language: 1.0} | dict.fromkeys(self.strangers, -1 / len(self.strangers))

    @property
    def kinship(self) -> dict[str, float]:
        """Weights of the languages in mean of d(relatives) - mean of d(strangers); empty without relatives."""
        if not self.relatives:
            return {}
        near = dict.fromkeys(self.relatives, 1 / len(self.relatives))
        return near | dict.fromkeys(self.strangers, -1 / len(self.strangers))


def circle(settings: ConfigDict, language: str) -> Circle:
    """Return which evaluated languages are of a language's family, and which are not.

    Raises:
      ValueError: the language is not evaluated, or no other family is.
    """
    evaluated = tuple(settings.evaluate.languages)
    if language not in evaluated:
        raise ValueError(f"{language} is scored but not evaluated: its region's own damage would not be known")
    groups = registry.families(settings.select.family)
    name = next(name for name, codes in groups.items() if language in codes)
    relatives = tuple(code for code in evaluated if code in groups[name] and code != language)
    strangers = tuple(code for code in evaluated if code not in groups[name])
    if not strangers:
        raise ValueError(
            f"every evaluated language is of the {settings.select.family} {name}, as {language}: add others"
        )
    return Circle(language, name, relatives, strangers)


def find(laboratory: Laboratory) -> dict[str, str]:
    """Make the regions and their controls; returns {name: file}."""
    settings = laboratory.settings
    files = alone(laboratory)
    fraction, languages = settings.select.fractions[0], settings.score.languages

    @functools.cache
    def tops() -> Region:
        first, *others = (lab.read(laboratory, files[f"top {fraction} {each}"]) for each in languages)
        return regions.union(first, *others).rename("the top of every scored language")

    def matched(language: str, seed: int) -> Region:
        part = roles.restrict(laboratory.params, settings.select.scope)
        return match(lab.read(laboratory, files[own(language)]), part, seed, control(language, seed), avoid=tops())

    wanted = {
        control(language, seed): functools.partial(matched, language, seed)
        for language in settings.score.languages
        for seed in settings.select.seeds
    }
    return files | lab.find(laboratory, wanted)


def plan(laboratory: Laboratory, files: Mapping[str, str]) -> list[Arm]:
    """Return the arms: every language's region, then every control."""
    settings = laboratory.settings

    def arm(name: str, group: str = "") -> Arm:
        return Arm(name, functools.partial(lab.read, laboratory, files[name]), group=group)

    languages = settings.score.languages
    controls = [(language, seed) for language in languages for seed in settings.select.seeds]
    return [arm(own(each)) for each in languages] + [arm(control(*each), control(each[0])) for each in controls]


# --- what was found ---------------------------------------------------------------------------------------------------


class Index(NamedTuple):
    """A figure of one region: as it is, and over its control; nats per token."""

    plain: Estimate
    over: Estimate


def index(laboratory: Laboratory, language: str, weights: Mapping[str, float]) -> Index | None:
    """Return the weighted sum of damages of a language's region, against nothing and against its control.

    None where there are no weights, or no control.
    """
    if not weights or not laboratory.settings.select.seeds:
        return None
    sides = [
        statistics.combine(comparison.differences(laboratory, NAME, own(language), reference, tuple(weights)), weights)
        for reference in (BASE, control(language))
    ]
    return Index(*map(statistics.estimate, sides))


def exchange(laboratory: Laboratory, circle: Circle) -> Estimate | None:
    """Return the damage of a language by its own region minus the mean by those of scored strangers, nats per token."""
    code, others = circle.language, [each for each in laboratory.settings.score.languages if each in circle.strangers]
    if not others:
        return None
    # One language, one seed: every difference was resampled with the same draws, so they average draw by draw.
    each = [comparison.differences(laboratory, NAME, own(code), own(other), (code,))[code] for other in others]
    value, values, null = (np.mean(side, axis=0) for side in zip(*((one[:3]) for one in each), strict=True))
    return statistics.estimate(statistics.Draws(float(value), values, null, each[0].units))


def compare(laboratory: Laboratory, circles: Mapping[str, Circle]) -> None:
    """Tables, verdict, report."""
    settings = laboratory.settings
    contrasts = [(own(language), control(language)) for language in circles if settings.select.seeds]
    found = Findings(comparison.assess(laboratory, {NAME: contrasts})[NAME])
    specific = {code: index(laboratory, code, each.specificity) for code, each in circles.items()}
    kin = {code: index(laboratory, code, each.kinship) for code, each in circles.items()}
    swapped = {code: exchange(laboratory, each) for code, each in circles.items()}
    tables = {
        "damage_matrix": _matrix(settings, found),
        "specificity": _specificity(laboratory, circles, found, specific, kin, swapped),
        "relatives": _relatives(settings, circles, found),
        "verdict": verdict("Verdict", weigh(settings, circles, found, specific, kin, swapped)),
    }
    if settings.select.seeds:
        tables["control_matrix"] = _matrix(settings, found, controls=True)
    for name, content in tables.items():
        lab.tabulate(laboratory, name, content)
    continuation.tabulate(laboratory, "continuations", [own(language) for language in circles])
    lab.publish(laboratory)


def _matrix(settings: ConfigDict, found: Findings, controls: bool = False) -> dict[str, Any]:
    languages, name = list(settings.evaluate.languages), control if controls else own
    return {
        "kind": "heatmap",
        "title": "Damage by matched random regions" if controls else "Damage by monolingual regions",
        "corner": "region of",
        "rows": list(settings.score.languages),
        "columns": languages,
        "values": [
            [number(found.value(name(row), language=code)) for code in languages] for row in settings.score.languages
        ],
        "format": "exponential",
        "unit": "times the untouched model's perplexity",
        "note": "Random regions as large as each language's, matched in |theta|, rows and columns, and outside "
        "the top of every scored language."
        if controls
        else "Row: the language whose region is removed. Column: the language that is evaluated.",
    }


def _mean(found: Findings, arm: str, languages: Sequence[str]) -> list[float | None] | None:
    """Return the mean damage of some languages as a cell without interval."""
    if not languages:
        return None
    return [number(sum(found.value(arm, language=code) for code in languages) / len(languages)), None, None]


def _cell(estimate: Estimate) -> list[float | None]:
    return [number(each) for each in estimate[:3]]


def _specificity(
    laboratory: Laboratory,
    circles: Mapping[str, Circle],
    found: Findings,
    specific: Mapping[str, Index | None],
    kin: Mapping[str, Index | None],
    swapped: Mapping[str, Estimate | None],
) -> dict[str, Any]:
    rows = []
    for code, each in circles.items():
        size = regions.total(lab.read(laboratory, f"regions/{lab.slug(own(code))}.safetensors"))
        figures = [*(specific[code] or (None, None)), swapped[code], *(kin[code] or (None, None))]
        rows.append(
            [
                code,
                size,
                found.cell(own(code), language=code),
                _mean(found, own(code), each.relatives),
                _mean(found, own(code), each.strangers),
                found.cell(control(code), language=code) if laboratory.settings.select.seeds else None,
                *(None if figure is None else _cell(figure) for figure in figures),
            ]
        )
    return {
        "title": "Own language, family, others",
        "note": "Perplexity as a multiple of the untouched model's (geometric means over languages), and the indices "
        "in nats per token: specificity is own minus others, kinship family minus others. Family: the same "
        f"{laboratory.settings.select.family}. Over control: minus the same of the matched random region. Over other "
        "regions: own minus what the own language loses by the regions of scored strangers.",
        "columns": [
            {"name": "region of"},
            {"name": "scalars", "kind": "count"},
            {"name": "own", "kind": "factor"},
            {"name": "family", "kind": "factor"},
            {"name": "others", "kind": "factor"},
            {"name": "own, control", "kind": "factor"},
            {"name": "specificity", "kind": "interval"},
            {"name": "over control", "kind": "interval"},
            {"name": "over other regions", "kind": "interval"},
            {"name": "kinship", "kind": "interval"},
            {"name": "kinship over control", "kind": "interval"},
        ],
        "rows": rows,
    }


def _relatives(settings: ConfigDict, circles: Mapping[str, Circle], found: Findings) -> dict[str, Any]:
    controlled = bool(settings.select.seeds)
    return {
        "title": "Relatives one by one",
        "note": "Perplexity of a language as a multiple of the untouched model's, without the region of its relative; "
        "last column: of what the matched random region gives.",
        "columns": [
            {"name": "region of"},
            {"name": "family"},
            {"name": "language"},
            {"name": "perplexity", "kind": "factor"},
            *([{"name": "over control", "kind": "factor"}] if controlled else []),
        ],
        "rows": [
            [
                code,
                each.family,
                relative,
                found.cell(own(code), language=relative),
                *([found.cell(own(code), control(code), relative)] if controlled else []),
            ]
            for code, each in circles.items()
            for relative in (code, *each.relatives)
        ],
    }


def weigh(
    settings: ConfigDict,
    circles: Mapping[str, Circle],
    found: Findings,
    specific: Mapping[str, Index | None],
    kin: Mapping[str, Index | None],
    swapped: Mapping[str, Estimate | None],
) -> list[str]:
    """Return the paragraphs of the verdict, from the figures alone."""
    clauses, first = [], []
    for code, each in circles.items():
        most = max(settings.evaluate.languages, key=lambda other: found.value(own(code), language=other))
        first.append(most == code)
        strangers = _mean(found, own(code), each.strangers)
        assert strangers is not None
        far = numerals.factor(Span(*strangers))
        clauses.append(f"{code} {found.words(own(code), language=code)}, others {far}")
    words = [
        "Perplexity of the own language without its region, and of languages outside its family, as a multiple of "
        f"the untouched model's: {'; '.join(clauses)}. The own language is the most harmed in {sum(first)} of "
        f"{len(first)} rows."
    ]
    others = {code: figure for code, figure in swapped.items() if figure is not None}
    if others:
        more = [code for code, figure in others.items() if figure.low > 0]
        words.append(
            "By its own region a language loses more than by the regions of scored languages outside its family, "
            f"interval included, for {_listed(more)} ({len(more)} of {len(others)})."
        )
    measured = {code: figure for code, figure in specific.items() if figure is not None}
    if not measured:
        return [*words, "There was no matched control: any region of that size might do the same."]
    above = [code for code, figure in measured.items() if figure.plain.low > 0]
    beyond = [code for code, figure in measured.items() if figure.over.low > 0]
    words.append(
        f"The specificity index is above zero, interval included, for {_listed(above)} ({len(above)} of "
        f"{len(measured)}), and above that of the matched random region for {_listed(beyond)} ({len(beyond)} of "
        f"{len(measured)})."
    )
    related = {code: figure for code, figure in kin.items() if figure is not None}
    if related:
        near = [code for code, figure in related.items() if figure.over.low > 0]
        said = [
            f"{code} ({', '.join(circles[code].relatives)}) {_span(figure.over)}" for code, figure in related.items()
        ]
        words.append(
            f"Relatives against strangers, over the control, nats per token: {'; '.join(said)}; above zero, interval "
            f"included, for {_listed(near)} ({len(near)} of {len(related)})."
        )
    whole, part = len(measured), len(beyond)
    if part == whole:
        judged = (
            "On this text every monolingual region harms its own language more than others, and more so than as many "
            "similar scalars drawn at random do: it holds something of that language. The difference is one of degree, "
            "as the damage of the others shows."
        )
    elif part:
        judged = (
            "On this text some monolingual regions hold something of their language beyond what as many similar "
            "scalars drawn at random do, and some cannot be told from that."
        )
    else:
        judged = (
            "On this text no monolingual region can be told from as many similar scalars drawn at random, as far as "
            "its own language against others goes."
        )
    return [*words, judged]


def _listed(codes: Sequence[str]) -> str:
    return numerals.listed(list(codes)) if codes else "none"


def _span(estimate: Estimate) -> str:
    if math.isnan(estimate.low):
        return f"{estimate.value:.2f}"
    return f"{estimate.value:.2f} ({estimate.low:.2f} to {estimate.high:.2f})"
