"""Would the regions come out again? Every score definition from one pass, their overlap, and what samples do to it.

For every language and every score rule: the region of all samples, of the first and of the second half (disjoint), and
of growing numbers of samples. From these the overlap between definitions and between languages, the split-half overlap
of each language, whole and by layer, and the noise ceiling: how much two languages could share at most, given how well
each reproduces itself. Nothing is removed and nothing evaluated. Costs one and a half scoring passes.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from lingregions import regions, scoring, statistics
from lingregions.experiments import claims, scored, selection, step, study, tables
from lingregions.experiments.context import Context, define
from lingregions.regions import Region, geometry
from lingregions.regions import reliability as agreement


def _check(settings: ConfigDict) -> None:
    """Refuse a single sample.

    Raises:
      ValueError: says so.
    """
    if settings.score.samples == 1:
        raise ValueError("score.samples is 1: halves need two or more")


def _steps(settings: ConfigDict, config: Any) -> list[step.Step]:
    """Score with every rule, select at every stop."""
    languages, fraction = settings.score.languages, settings.select.fractions[0]
    stop = settings.score.samples
    windows = len({stop // 2, *_stops(stop)}) + 2
    rules = {define(settings).rule, *settings.score.rules}
    each = len(rules) * windows * step.region_bytes(config, settings.select.scope, fraction)
    read = 2 * stop - stop // 2 if stop else None  # the second half once more, by itself
    collected = [
        dataclasses.replace(
            planned,
            perform=functools.partial(_collect, language=language),
            samples=read,
            tokens=step.tokens(settings, read),
            bytes=(planned.bytes or 0) + each if stop else None,
            marks=(f"windows-{language}-second", f"windows-{language}"),
        )
        for language, planned in zip(languages, step.score(settings, config, copies=1), strict=True)
    ]
    wanted = {
        f"top {fraction}": selection.ranked(f"top {fraction}", fraction),
        f"magnitude {fraction}": selection.ranked(f"magnitude {fraction}", fraction, "magnitude"),
    } | {
        f"top {fraction} {code}": selection.Selection(fraction, functools.partial(_whole, language=code))
        for code in languages
    }
    return [*collected, step.select(settings, config, wanted)]


# --- regions ----------------------------------------------------------------------------------------------------------


def _file(rule: str, language: str, window: str) -> str:
    """Return the file of one region; `window` is "all", "second", or a number of samples."""
    return f"windows/{rule}-{language}-{window}.safetensors"


def _collect(context: Context, language: str) -> None:
    """Make the regions of a language: every rule, every window; and save the scores of the config's own rule."""
    run, stop = context.run, scored.count(context, language)
    if stop < 2:
        raise ValueError(
            f"{language} has {stop} sample: halves need two or more; lower data.length, or bring more text"
        )
    half, mark = stop // 2, f"windows-{language}"
    # First the second half: the pass over everything then ends with the sums whose scores are kept.
    if run.done(f"{mark}-second") is None:
        *_, at = scored.gather(context, language, half, stop)
        run.finish(f"{mark}-second", *_select(context, language, at, "second"))
        scored.discard(context, language, half, stop)
    if run.done(mark) is None:
        counts = sorted({half, *_stops(stop)})
        for at in scored.gather(context, language, 0, stop, counts):
            _select(context, language, at, "all" if at.position == stop else str(at.position))
        own = scored.finish(context, language, at)
        scored.save(context, own, f"scores/{language}")
        files = [_file(rule, language, name) for rule in context.scorer.rules for name in (*map(str, counts), "all")]
        run.finish(mark, *files, f"scores/{language}", **own.header())
        scored.discard(context, language, 0, stop)
    run.check()


def _stops(stop: int) -> list[int]:
    """Return growing numbers of samples below `stop`, doubling: 1, 2, 4, ..."""
    return [2**power for power in range(stop.bit_length()) if 2**power < stop]


def _select(context: Context, language: str, at: scored.Snapshot, window: str) -> list[str]:
    """Save the top region of every rule at a snapshot; returns the files."""
    settings, files = context.settings, []
    for rule in context.scorer.rules:
        own, name = scored.finish(context, language, at, rule), f"{rule} {language} {window}"
        files.append(_file(rule, language, window))
        found = own.select(settings.select.fractions[0], scope=settings.select.scope, name=name)
        selection.save(context, found, files[-1])
    return files


def _whole(context: Context, language: str) -> Region:
    """Return the region of all samples of a language by the config's own rule."""
    found = selection.read(context, "", _file(context.definition.rule, language, "all"))
    return found.rename(f"top {context.settings.select.fractions[0]} {language}")


# --- what is shown ----------------------------------------------------------------------------------------------------


def _show(context: Context) -> dict[str, Any]:
    """Return the tables: definitions, languages, halves, layers, growth and the noise ceiling."""
    settings, rule = context.settings, context.definition.rule
    languages, rules = list(settings.score.languages), context.scorer.rules
    fraction = float(regions.parse(settings.select.fractions[0]))

    def read(rule: str, language: str, window: str = "all") -> Region:
        return selection.read(context, "", _file(rule, language, window))

    counts = {language: scored.count(context, language) for language in languages}
    between_rules = np.mean(
        [geometry.overlap([read(each, language) for each in rules]).iou() for language in languages], axis=0
    )
    between = {each: geometry.overlap([read(each, language) for language in languages]).iou() for each in rules}
    halves = {
        (each, language): agreement.agree(
            read(each, language, str(counts[language] // 2)), read(each, language, "second")
        )
        for each in rules
        for language in languages
    }
    growth = {
        language: {
            count: agreement.agree(read(rule, language, str(count)), read(rule, language)).iou
            for count in _stops(counts[language])
        }
        for language in languages
    }
    ceiling = _ceiling(rules, languages, between, halves, fraction)
    layers = {code: {str(layer): iou for layer, iou in enumerate(halves[rule, code].layers)} for code in languages}
    return {
        "definitions": tables.overlap(
            "Overlap between score definitions",
            rules,
            between_rules,
            note=f"Mean over {len(languages)} languages of the overlap between the regions of two definitions of "
            "one language, from the same samples and the same pass.",
        ),
        **{
            f"languages_{each}": _languages(each, languages, between[each], fraction)
            for each in rules
            if scoring.RULES[each].reads != "nothing"
        },
        "dendrogram": _dendrogram(rule, languages, geometry.cluster(between[rule]).merges),
        "split_half": {
            "kind": "reliability",
            "title": f"Would the regions come out again: {rule}",
            "halves": {language: halves[rule, language].iou for language in languages},
            "growth": growth,
            "note": "The samples of a smaller number are part of those of a larger one, so the curve overstates "
            "stability: the split halves share no sample.",
        },
        "layers": tables.heatmap("Split-half overlap by layer", "language", layers, "IoU", format="share"),
        "ceiling": ceiling,
        "verdict": claims.verdict("reliability", "Would the regions come out again?", row=ceiling["rows"][0]),
    }


def _languages(rule: str, languages: Sequence[str], values: np.ndarray, fraction: float) -> dict[str, Any]:
    """Return the overlaps between languages by one rule."""
    order = geometry.cluster(values).order
    names, note = (
        [languages[index] for index in order],
        "Languages in the order of an average-linkage dendrogram: neighbours share most.",
    )
    return tables.overlap(f"Overlap between languages: {rule}", names, values[np.ix_(order, order)], fraction, note)


def _dendrogram(rule: str, languages: Sequence[str], merges: Sequence[tuple[int, int, float, int]]) -> dict[str, Any]:
    """Return the table of which languages join first, from the bottom of the tree to its root."""
    groups, rows = [[language] for language in languages], []
    for first, second, distance, _ in merges:
        rows.append([" ".join(groups[first]), " ".join(groups[second]), 1 - distance])
        groups.append(groups[first] + groups[second])
    title, note = f"Dendrogram of the languages: {rule}", "Average linkage: each row joins the groups that share most."
    return tables.table(title, {"group": "text", "joins": "text", "mean IoU": "share"}, rows, note)


def _ceiling(
    rules: Sequence[str],
    languages: Sequence[str],
    between: Mapping[str, np.ndarray],
    halves: Mapping[tuple[str, str], Any],
    fraction: float,
) -> dict[str, Any]:
    """Return the table that sets what languages share against what their noise lets them share."""
    rows: list[list[Any]] = []
    pairs = [(i, j) for i in range(len(languages)) for j in range(i)]
    for rule in rules:
        own = [halves[rule, language].iou for language in languages]
        whole = [agreement.extrapolate(each, fraction) for each in own]
        shared = [float(between[rule][pair]) for pair in pairs]
        most = [agreement.ceiling(own[i], own[j], fraction) for i, j in pairs]
        # One language has no pairs: empty cells, not the mean of nothing.
        means = [float(np.mean(each)) if each else None for each in (own, whole, shared, most)]
        missing = {pair: high - low for pair, high, low in zip(pairs, most, shared, strict=True)}
        rows.append([rule, *means, statistics.pairs(missing, len(languages))])
    columns = ("split half", "expected at all samples", "between languages", "noise ceiling")
    return tables.table(
        "What languages share, and what noise lets them share",
        {"definition": "text"} | dict.fromkeys(columns, "share") | {"below the ceiling": "interval"},
        rows,
        "Means over languages or pairs of them. Split half: overlap of the regions of two disjoint halves. Expected at "
        "all samples: extrapolated by Spearman and Brown. The noise ceiling is the overlap to expect between two "
        "languages whose true regions were the same: a difference between languages counts only as far as they share "
        "less than that. The interval of what is missing is a jackknife over the languages (three or more).",
    )


STUDY = study.Study(_steps, _show, _check)
