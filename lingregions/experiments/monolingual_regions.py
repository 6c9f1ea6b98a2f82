"""Remove what only one language has: does its own language lose most, and its relatives more than strangers?

The monolingual region of A is the top of A's scores without the top of any other scored language (docs/method.md 2).
Every region is removed, every language evaluated: the matrix of effects. What the removal of as many similar scalars
does to any language is known from random regions matched to it in size, |theta|, rows and columns (`regions.matched`),
outside the top of every scored language: what is in all of them would break the model by itself.

With d(B) the effect on B in nats per token, the logarithm of its perplexity as a multiple of the untouched model's:

- *specificity* of A's region: d(A) minus the mean of d over the evaluated languages outside A's family;
- *relatedness*: the mean of d over A's evaluated relatives (without A) minus the same mean;
- both *over control*: minus the same figure of the matched random region;
- *over other regions*: d(A) minus the mean effect on A of the regions of the other scored languages outside its family:
  the control that is made in the same way.

Each with a paired bootstrap over segments, languages apart (`statistics.combine`); the languages themselves are not
resampled: the figures are about these.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from lingregions import regions, statistics
from lingregions.corpus import languages as registry
from lingregions.effects import Effects
from lingregions.experiments import claims, generation, selection, step, study, tables
from lingregions.experiments.context import Context
from lingregions.intervention import UNTOUCHED, Intervention
from lingregions.statistics import Estimate


class _Neighbours(NamedTuple):
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
    def relatedness(self) -> dict[str, float]:
        """Weights of the languages in mean of d(relatives) - mean of d(strangers); empty without relatives."""
        if not self.relatives:
            return {}
        near = dict.fromkeys(self.relatives, 1 / len(self.relatives))
        return near | dict.fromkeys(self.strangers, -1 / len(self.strangers))


def _neighbours(settings: ConfigDict, language: str) -> _Neighbours:
    """Return which evaluated languages are of a language's family, and which are not.

    Raises:
      ValueError: the language is not evaluated, or no other family is.
    """
    evaluated = tuple(settings.evaluate.languages)
    if language not in evaluated:
        raise ValueError(f"{language} is scored but not evaluated: what its own region does to it would not be known")
    groups = registry.families(settings.select.family)
    name = next(name for name, codes in groups.items() if language in codes)
    relatives = tuple(code for code in evaluated if code in groups[name] and code != language)
    strangers = tuple(code for code in evaluated if code not in groups[name])
    if not strangers:
        raise ValueError(
            f"every evaluated language is of the {settings.select.family} {name}, as {language}: add others"
        )
    return _Neighbours(language, name, relatives, strangers)


def _check(settings: ConfigDict) -> None:
    """Refuse a scored language that is not evaluated, or without an evaluated stranger.

    Raises:
      ValueError: says which.
    """
    for language in settings.score.languages:
        _neighbours(settings, language)


def _own(language: str) -> Intervention:
    """Return the removal of what only this language has."""
    return Intervention(kind="monolingual", region_language=language, perturbation="zero")


def _control(language: str, seed: int | None = None) -> Intervention:
    """Return the removal of the random region matched to a language's; of all seeds where none is said."""
    return Intervention(kind="matched", region_language=language, perturbation="zero", seed=seed)


def _steps(settings: ConfigDict, config: Any) -> list[step.Step]:
    """Score, select, remove, write; a region holds less than the fraction from which it is made."""
    languages, fraction = settings.score.languages, settings.select.fractions[0]
    mine = [_own(language) for language in languages]
    drawn = [_control(language, seed) for language in languages for seed in settings.select.seeds]
    tops = [f"top {fraction} {language}" for language in languages]
    wanted = selection.monolingual(settings) | {
        each.name: selection.matched(each.name, fraction, _own(each.region_language).name, each.seed or 0, tops)
        for each in drawn
    }

    def bound(context: Context) -> list[Intervention]:
        return [selection.bound(context, each) for each in mine]

    return [
        *step.score(settings, config),
        step.select(settings, config, wanted),
        step.measure(settings, [*mine, *drawn], [(_own(each), _control(each)) for each in languages if drawn]),
        step.generate(len(mine), bound, [each.name for each in mine]),
    ]


# --- what is shown ----------------------------------------------------------------------------------------------------


class _Index(NamedTuple):
    """A figure of one region: as it is, and over its control; nats per token."""

    plain: Estimate
    over: Estimate


class _Figures(NamedTuple):
    """The indices of one region, None where there are no weights or no control."""

    specificity: _Index | None
    relatedness: _Index | None
    over_others: Estimate | None


def _figures(settings: ConfigDict, found: Effects, each: _Neighbours) -> _Figures:
    """Return the indices of the region of a language."""

    def index(weights: Mapping[str, float]) -> _Index | None:
        if not weights or not settings.select.seeds:
            return None
        sides = (
            statistics.combine(found.differences(_own(each.language), reference, tuple(weights)), weights)
            for reference in (UNTOUCHED, _control(each.language))
        )
        return _Index(*map(statistics.estimate, sides))

    return _Figures(index(each.specificity), index(each.relatedness), _over_others(settings, found, each))


def _over_others(settings: ConfigDict, found: Effects, each: _Neighbours) -> Estimate | None:
    """Return the effect on a language of its own region minus the mean of those of scored strangers."""
    code, others = each.language, [other for other in settings.score.languages if other in each.strangers]
    if not others:
        return None
    # One language, one seed: every difference was resampled with the same draws, so they average draw by draw.
    draws = [found.differences(_own(code), _own(other), (code,))[code] for other in others]
    return statistics.estimate(statistics.weigh(draws, [1 / len(draws)] * len(draws)))


def _show(context: Context) -> dict[str, Any]:
    """Return the matrices, the indices, the relatives one by one, what the models write, and the verdict."""
    settings, found = context.settings, context.effects()
    near = {language: _neighbours(settings, language) for language in settings.score.languages}
    indices = {language: _figures(settings, found, each) for language, each in near.items()}
    shown = {
        "effect_matrix": tables.by_language(
            found, {code: _own(code) for code in near}, "Effect of monolingual regions", "region of"
        ),
        "specificity": _specificity(context, near, found, indices),
        "relatives": _relatives(settings, near, found),
        "continuations": generation.table(context, [_own(language) for language in near]),
        "verdict": _verdict(near, found, indices),
    }
    if settings.select.seeds:
        title = "Effect of random regions matched to them"
        shown["control_matrix"] = tables.by_language(
            found, {code: _control(code) for code in near}, title, "matched to"
        )
    return shown


def _mean(found: Effects, intervention: Intervention, languages: Sequence[str]) -> tables.Cell | None:
    """Return the mean effect on some languages as a cell without interval."""
    if not languages:
        return None
    total = sum(found.value(intervention, language=code) for code in languages)
    return [tables.finite(total / len(languages)), None, None]


def _specificity(
    context: Context, near: Mapping[str, _Neighbours], found: Effects, indices: Mapping[str, _Figures]
) -> dict[str, Any]:
    columns = {
        **{"region of": "text", "scalars": "count", "own": "factor", "family": "factor", "others": "factor"},
        **{"own, control": "factor", "specificity": "interval", "specificity over control": "interval"},
        **{"over other regions": "interval", "relatedness": "interval", "relatedness over control": "interval"},
    }
    rows = []
    for code, each in near.items():
        specific, related, others = indices[code]
        estimates = [*(specific or (None, None)), others, *(related or (None, None))]
        rows.append(
            [
                code,
                regions.total(selection.read(context, _own(code).name)),
                found.cell(_own(code), language=code),
                _mean(found, _own(code), each.relatives),
                _mean(found, _own(code), each.strangers),
                found.cell(_control(code), language=code) if context.settings.select.seeds else None,
                *(None if each is None else each.cell for each in estimates),
            ]
        )
    note = (
        "Perplexity as a multiple of the untouched model's (geometric means over languages), and the indices in nats "
        "per token: specificity is own minus others, relatedness family minus others. Family: the same "
        f"{context.settings.select.family}. Over control: minus the same of the matched random region. Over other "
        "regions: own minus what the own language loses by the regions of scored strangers."
    )
    return tables.table("Own language, family, others", columns, rows, note)


def _relatives(settings: ConfigDict, near: Mapping[str, _Neighbours], found: Effects) -> dict[str, Any]:
    controlled = bool(settings.select.seeds)
    columns = {"region of": "text", "family": "text", "language": "text", "perplexity": "factor"}
    rows = []
    for code, each in near.items():
        for relative in (code, *each.relatives):
            row = [code, each.family, relative, found.cell(_own(code), language=relative)]
            rows.append([*row, found.cell(_own(code), _control(code), relative)] if controlled else row)
    note = (
        "Perplexity of a language as a multiple of the untouched model's, without the region of its relative; last "
        "column: of what the matched random region gives."
    )
    return tables.table(
        "Relatives one by one", columns | ({"over control": "factor"} if controlled else {}), rows, note
    )


def _most_harmed(found: Effects, intervention: Intervention) -> str:
    return max(found.languages, key=lambda code: found.value(intervention, language=code))


def _verdict(near: Mapping[str, _Neighbours], found: Effects, indices: Mapping[str, _Figures]) -> dict[str, Any]:
    """Return what the figures say."""
    specific = {code: each.specificity for code, each in indices.items() if each.specificity is not None}
    related = {code: each.relatedness for code, each in indices.items() if each.relatedness is not None}
    others = {code: each.over_others for code, each in indices.items() if each.over_others is not None}
    facts = {
        "own": _own,
        "near": near,
        "strangers": {code: _mean(found, _own(code), each.strangers) for code, each in near.items()},
        "first": [code for code in near if _most_harmed(found, _own(code)) == code],
        "others": others,
        "over_others": [code for code, each in others.items() if each.low > 0],
        "specific": specific,
        "above": [code for code, each in specific.items() if each.plain.low > 0],
        "beyond": [code for code, each in specific.items() if each.over.low > 0],
        "related": related,
        "closer": [code for code, each in related.items() if each.over.low > 0],
    }
    return claims.verdict("monolingual_regions", "Does a language lose most without its own region?", found, **facts)


STUDY = study.Study(_steps, _show, _check)
