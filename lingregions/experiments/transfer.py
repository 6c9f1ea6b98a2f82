"""Does what two languages' regions share say how much one gains when the other is trained?

A few steps of language A, in which the top of A's scores alone moves (`inside`); the gain is what every other language
then predicts better, nats per token. Beside it the same steps with everything free, inside a random region matched to
the top (`regions.matched`, outside the top). The first language is also trained inside what its top shares with each
other's, and inside a random region matched to that: fewer entries that move learn less, whatever they are.

*Overlap beyond chance*: (IoU - c) / (1 - c), c = f / (2 - f) the IoU of two independent regions of fraction f. The
monolingual regions of `monolingual_regions` share nothing by construction; what is compared here are the tops that they
are cut from. Whether overlap and gain go together over the ordered pairs is asked of `statistics.mantel`, which
permutes languages, not pairs; typological distance (same group or not, by `select.family`) is asked the same, and taken
out. With five languages there are 120 permutations: no p-value is below 1/120.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from lingregions import regions, statistics
from lingregions.corpus import languages as registry
from lingregions.effects import Effects
from lingregions.experiments import claims, inside, learning, selection, step, study, tables
from lingregions.experiments.context import Context
from lingregions.intervention import UNTOUCHED, Intervention
from lingregions.regions import geometry


def _top(settings: ConfigDict, language: str, other: str = "") -> Intervention:
    """Return the training of a language inside its top, or inside what that shares with the top of another."""
    part = f"shared with {other}" if other else ""
    return Intervention(kind="top", fraction=settings.select.fractions[0], region_language=language, part=part)


def _matched(settings: ConfigDict, language: str, other: str = "") -> Intervention:
    """Return its control: inside a random region matched to that one."""
    return dataclasses.replace(_top(settings, language, other), kind="matched")


def _full(language: str) -> Intervention:
    """Return the training of a language in which everything moves."""
    return Intervention(kind="full", region_language=language)


def _places(settings: ConfigDict) -> list[tuple[str, str]]:
    """Return (language, "") for each top, and (first language, other) for what its top shares with each other one."""
    first, *others = settings.train.languages
    return [*((code, "") for code in (first, *others)), *((first, code) for code in others)]


def _trainings(settings: ConfigDict, seed: int) -> list[inside.Training]:
    """Return the trainings of a seed; a matched region is drawn with it."""
    found = [inside.Training(dataclasses.replace(_full(code), seed=seed), (code,)) for code in settings.train.languages]
    for code, other in _places(settings):
        top, matched = (dataclasses.replace(make(settings, code, other), seed=seed) for make in (_top, _matched))
        found += [inside.Training(top, (code,), (top.group.name,)), inside.Training(matched, (code,), (matched.name,))]
    return found


def _selections(settings: ConfigDict) -> dict[str, selection.Selection]:
    """Return the tops, what each two share, and the random regions matched to either."""
    fraction = settings.select.fractions[0]
    wanted = {name: each for name, each in selection.monolingual(settings).items() if name.startswith("top ")}
    for code, other in _places(settings):
        name = _top(settings, code, other).name
        if other:
            wanted[name] = selection.Selection(fraction, functools.partial(_shared, settings, code, other))
        for seed in settings.train.seeds:
            drawn = dataclasses.replace(_matched(settings, code, other), seed=seed).name
            wanted[drawn] = selection.matched(drawn, fraction, name, seed)
    return wanted


def _shared(settings: ConfigDict, first: str, second: str, context: Context) -> regions.Region:
    tops = [selection.read(context, _top(settings, code).name) for code in (first, second)]
    found = regions.intersect(*tops, name=_top(settings, first, second).name)
    if not regions.total(found):
        raise ValueError(f"the top {settings.select.fractions[0]} of {first} and of {second} share nothing: take more")
    return found


def _steps(settings: ConfigDict, config: Any) -> list[step.Step]:
    """Score, select, train inside each region, evaluate every language."""
    end = settings.train.samples
    ends = functools.partial(learning.after, count=end)
    contrasts = [
        (ends(_top(settings, code, other)), ends(_matched(settings, code, other))) for code, other in _places(settings)
    ]
    return [
        *step.score(settings, config),
        step.select(settings, config, _selections(settings)),
        step.measure(settings, [], contrasts),
        *(inside.step(settings, config, each) for seed in settings.train.seeds for each in _trainings(settings, seed)),
    ]


# --- what is shown ----------------------------------------------------------------------------------------------------

# How a gain is called -> (settings, trained on, other) -> (training, control); shared: of the first language.
_GAINS: dict[str, Callable[[ConfigDict, str, str], tuple[Intervention, Intervention | None]]] = {
    "everything": lambda settings, code, other: (_full(code), None),
    "top": lambda settings, code, other: (_top(settings, code), None),
    "top over matched": lambda settings, code, other: (_top(settings, code), _matched(settings, code)),
    "shared": lambda settings, code, other: (_top(settings, code, other), None),
    "shared over matched": lambda settings, code, other: (
        _top(settings, code, other),
        _matched(settings, code, other),
    ),
}


def _sides(settings: ConfigDict, name: str, code: str, other: str) -> tuple[Intervention, Intervention]:
    """Return what is compared for a gain, at the end of the trainings."""
    training, control = _GAINS[name](settings, code, other)
    end = settings.train.samples
    return learning.after(training, end), UNTOUCHED if control is None else learning.after(control, end)


def _gain(settings: ConfigDict, found: Effects, name: str, code: str, other: str) -> tables.Cell:
    """Return [gain, low, high] of a language after a training on another, nats per token."""
    return tables.turned(found.cell(*_sides(settings, name, code, other), other))


def _mean(settings: ConfigDict, found: Effects, name: str) -> tables.Cell:
    """Return the mean gain of the others after the trainings of the first language, one for each other."""
    first, *others = settings.train.languages
    draws = {code: found.differences(*_sides(settings, name, first, code), (code,))[code] for code in others}
    return tables.turned(statistics.mean(draws).cell)


def _show(context: Context) -> dict[str, Any]:
    """Return overlaps, gains by pair, what goes with what, and the verdict."""
    settings, found, codes = context.settings, context.effects(), list(context.settings.train.languages)
    fraction = float(regions.parse(settings.select.fractions[0]))
    chance = fraction / (2 - fraction)
    iou = geometry.overlap([selection.read(context, _top(settings, code).name) for code in codes]).iou()
    beyond = (iou - chance) / (1 - chance)
    groups = registry.families(settings.select.family).values()
    related = np.asarray([[any({a, b} <= {*group} for group in groups) for b in codes] for a in codes], float)
    pairs = {pair: (codes.index(pair[0]), codes.index(pair[1])) for pair in itertools.permutations(codes, 2)}
    gains = {
        (name, *pair): _gain(settings, found, name, *pair)
        for name in _GAINS
        for pair, (first, _) in pairs.items()
        if not (first and name.startswith("shared"))
    }
    rows: dict[str, list[Any]] = {}
    means: dict[str, tables.Cell] = {}
    for name in _GAINS:
        if name.startswith("shared"):
            means[name] = _mean(settings, found, name)
            continue
        gain = np.zeros_like(beyond)
        for pair, place in pairs.items():
            gain[place] = np.nan if (value := gains[name, *pair][0]) is None else value
        means[name] = [
            None if each is None else tables.finite(each)
            for each in statistics.pairs({place: float(gain[place]) for place in pairs.values()}, len(codes))
        ]
        alone, family = statistics.mantel(beyond, gain), statistics.mantel(related, gain)
        rows[name] = [name, *alone, *family, *statistics.mantel(beyond, gain, related)]
    own = {code: _gain(settings, found, "top", code, code) for code in codes}
    note = (
        f"Nats per token after {settings.train.samples} samples of {settings.data.length} tokens; intervals: paired "
        "bootstrap over segments and seeds. Over matched: minus the same of a matched random region."
    )
    return {
        "overlap": tables.overlap(
            f"What the top {settings.select.fractions[0]} of two languages share", codes, iou, fraction
        ),
        "correlation": tables.table(
            "What goes with the gain of another language",
            {"trained inside": "text"}
            | {"overlap": "number", "p": "probability", "same group": "number", "p, group": "probability"}
            | {"overlap, group taken out": "number", "p, taken out": "probability"},
            rows.values(),
            f"Rank correlation over the {len(pairs)} ordered pairs of {len(codes)} languages, and its p "
            f"over permutations of the languages. Same group: of one {settings.select.family}.",
        ),
        "means": tables.table(
            "Mean gain of another language",
            {"trained inside": "text", "gain": "interval"},
            means.items(),
            "Nats per token, mean over the ordered pairs, jackknife over the languages; of shared, over the pairs "
            f"of {codes[0]} with each other, bootstrap over segments.",
        ),
        "by_pair": tables.table(
            "Pair by pair",
            {"trained on": "text", "evaluated": "text", "same group": "text", "overlap beyond chance": "share"}
            | dict.fromkeys(_GAINS, "interval"),
            [
                [
                    *pair,
                    "yes" if related[place] else "no",
                    float(beyond[place]),
                    *(gains.get((name, *pair)) for name in _GAINS),
                ]
                for pair, place in pairs.items()
            ],
            note,
        ),
        "gains": tables.heatmap(
            "Gain of training inside the top",
            "trained on",
            {a: {b: own[a][0] if a == b else gains["top", a, b][0] for b in codes} for a in codes},
            "nats per token",
            format="number",
        ),
        "verdict": claims.verdict(
            "transfer",
            "Does shared region mean shared gain?",
            means=means,
            rows=rows,
            own=own,
            gained=_signs(gains, "top"),
            above=_signs(gains, "top over matched"),
            shared=_signs(gains, "shared over matched"),
            number=len(pairs),
            others=len(codes) - 1,
            first=codes[0],
            family=settings.select.family,
        ),
    }


def _signs(gains: Mapping[tuple[str, str, str], tables.Cell], name: str) -> dict[str, int]:
    """Return in how many pairs a gain lies above and below zero, interval included."""
    sides = [claims.side(cell) for (kind, *_), cell in gains.items() if kind == name]
    return {"more": sides.count(1), "less": sides.count(-1)}


def _check(settings: ConfigDict) -> None:
    """Refuse too few languages to correlate over, and what `inside` refuses.

    Raises:
      ValueError: says which.
    """
    inside.check(settings)
    if len(settings.train.languages) < 3:
        raise ValueError("two languages are one pair, over which nothing correlates: train.languages needs three")


STUDY = study.Study(_steps, _show, _check)
