"""Would the regions come out again? Every score definition from one pass, their overlap, and what samples do to it.

For every language and every score rule: the region of all samples, of the first and of the second half (disjoint), and
of growing numbers of samples. From these the overlap between definitions and between languages, the split-half overlap
of each language, whole and by layer, and the noise ceiling: how much two languages could share at most, given how well
each reproduces itself. Nothing is removed and nothing evaluated. Costs one and a half scoring passes.
"""

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from lingregions import regions, scoring
from lingregions import tree as trees
from lingregions.experiments import laboratory as lab
from lingregions.experiments import stage
from lingregions.experiments.laboratory import Laboratory, Snapshot
from lingregions.experiments.stage import Stage
from lingregions.models import roles
from lingregions.regions import Region, geometry
from lingregions.regions import reliability as agreement
from lingregions.regions.select import parse
from lingregions.run import Run


def reliability(settings: ConfigDict, run: Run) -> None:
    """Score with every rule, select at every stop, compare, report.

    Args:
      settings: see configs/reliability.py.
      run: the work directory; what is finished in it is not done again.

    Raises:
      ValueError: there are fewer than two samples of a language, so that it has no halves.
    """
    laboratory = lab.prepare(settings, run)
    lab.check(laboratory)
    for language in settings.score.languages:
        collect(laboratory, language)
    core(laboratory)
    compare(laboratory)
    lab.publish(laboratory)


def stages(settings: ConfigDict) -> list[Stage]:
    """Return what `reliability` would do."""
    languages, fraction = settings.score.languages, settings.select.fractions[0]
    stop = settings.score.samples
    windows = len({stop // 2, *_stops(stop)}) + 2
    rules = {lab.define(settings).rule, *settings.score.rules}
    each = len(rules) * windows * stage.region_bytes(settings, fraction)
    scored = [
        dataclasses.replace(
            planned,
            # The second half once more, by itself.
            samples=2 * stop - stop // 2 if stop else None,
            tokens=(2 * stop - stop // 2) * settings.data.length if stop else None,
            bytes=(planned.bytes or 0) + each if stop else None,
            marks=(f"windows-{language}-second", f"windows-{language}"),
        )
        for language, planned in zip(languages, stage.scoring(settings, copies=1), strict=True)
    ]
    names = (f"top {fraction}", f"magnitude {fraction}", *(f"top {fraction} {language}" for language in languages))
    return [*scored, stage.selecting(settings, dict.fromkeys(names, fraction))]


# --- regions ----------------------------------------------------------------------------------------------------------


def place(rule: str, language: str, window: str) -> str:
    """Return the file of one region; `window` is "all", "first", "second", or a number of samples."""
    return f"windows/{rule}-{language}-{window}.safetensors"


def collect(laboratory: Laboratory, language: str) -> None:
    """Make the regions of a language: every rule, every window; and save the scores of the config's own rule."""
    run, stop = laboratory.run, lab.samples(laboratory, language)
    if stop < 2:
        raise ValueError(
            f"{language} has {stop} sample: halves need two or more; lower data.length, or bring more text"
        )
    half, stage = stop // 2, f"windows-{language}"
    # First the second half: the pass over everything then ends with the sums whose scores are kept.
    if run.done(f"{stage}-second") is None:
        *_, at = lab.gather(laboratory, language, half, stop)
        run.finish(f"{stage}-second", *_select(laboratory, language, at, "second"))
        lab.forget(laboratory, language, half, stop)
    if run.done(stage) is None:
        for at in lab.gather(laboratory, language, 0, stop, (half, *_stops(stop))):
            _select(laboratory, language, at, "all" if at.position == stop else str(at.position))
        lab.store(laboratory, f"scores/{language}", language, at)
        known = lab.facts(laboratory, language, at)
        run.finish(stage, *_windows(laboratory, language, half, stop), f"scores/{language}", **known)
        lab.forget(laboratory, language, 0, stop)
    run.check()


def _stops(stop: int) -> list[int]:
    """Return growing numbers of samples below `stop`, doubling: 1, 2, 4, ..."""
    return [2**power for power in range(stop.bit_length()) if 2**power < stop]


def _windows(laboratory: Laboratory, language: str, half: int, stop: int) -> list[str]:
    """Return the files of all windows that the pass over everything makes."""
    names = [*map(str, sorted({half, *_stops(stop)})), "all"]
    return [place(rule, language, name) for rule in laboratory.scorer.rules for name in names]


def _select(laboratory: Laboratory, language: str, at: Snapshot, window: str) -> list[str]:
    """Save the top region of every rule at a snapshot; returns the files."""
    settings, files = laboratory.settings, []
    for rule in laboratory.scorer.rules:
        found = laboratory.scorer.finish(laboratory.params, at.sums, at.tokens, rule)
        known = lab.provenance(laboratory, (language,), rule).replace(name=f"{rule} {language} {window}")
        part = roles.restrict(found, settings.select.scope)
        files.append(place(rule, language, window))
        lab.keep(laboratory, regions.select(part, settings.select.fractions[0], provenance=known), files[-1])
    return files


def core(laboratory: Laboratory) -> None:
    """Make the regions that the report draws: the core, each language's own, and the top by magnitude."""
    settings = laboratory.settings
    languages, fraction = settings.score.languages, settings.select.fractions[0]
    known = lab.provenance(laboratory, languages)

    def combined() -> Region:
        part = roles.restrict(lab.combine(laboratory, languages), settings.select.scope)
        return regions.select(part, fraction, provenance=known.replace(name=f"top {fraction}"))

    def magnitude() -> Region:
        part = roles.restrict(laboratory.params, settings.select.scope)
        sizes = trees.transform(lambda _, theta: scoring.RULES["magnitude"].finish(theta, theta), part)
        named = lab.provenance(laboratory, (), "magnitude").replace(name=f"magnitude {fraction}")
        return regions.select(sizes, fraction, provenance=named)

    def whole(language: str) -> Region:
        file = place(laboratory.definition.rule, language, "all")
        return lab.read(laboratory, file).rename(f"top {fraction} {language}")

    wanted = {f"top {fraction}": combined, f"magnitude {fraction}": magnitude}
    lab.find(laboratory, wanted | {f"top {fraction} {each}": functools.partial(whole, each) for each in languages})


# --- tables -----------------------------------------------------------------------------------------------------------


def compare(laboratory: Laboratory) -> None:
    """Write the tables: definitions, languages, halves, layers, growth and the noise ceiling."""
    settings, rule = laboratory.settings, laboratory.definition.rule
    languages, rules = list(settings.score.languages), laboratory.scorer.rules
    fraction = float(parse(settings.select.fractions[0]))

    def read(rule: str, language: str, window: str = "all") -> Region:
        return lab.read(laboratory, place(rule, language, window))

    def half(language: str) -> str:
        return str(lab.samples(laboratory, language) // 2)

    between_rules = np.mean(
        [geometry.overlap([read(each, language) for each in rules]).iou() for language in languages], axis=0
    )
    between_languages = {
        each: geometry.overlap([read(each, language) for language in languages]).iou() for each in rules
    }
    halves = {
        (each, language): agreement.agree(read(each, language, half(language)), read(each, language, "second"))
        for each in rules
        for language in languages
    }
    _write(
        laboratory,
        "definitions",
        kind="overlap",
        title="Overlap between score definitions",
        names=list(rules),
        values=between_rules.tolist(),
        note=f"Mean over {len(languages)} languages of the overlap between the regions of two definitions of one "
        "language, from the same samples and the same pass.",
    )
    for each in rules:
        if scoring.RULES[each].reads != "nothing":
            order = geometry.cluster(between_languages[each]).order
            _write(
                laboratory,
                f"languages_{each}",
                kind="overlap",
                title=f"Overlap between languages: {each}",
                names=[languages[index] for index in order],
                values=between_languages[each][np.ix_(order, order)].tolist(),
                note="Languages in the order of an average-linkage dendrogram: neighbours share most.",
                chance=fraction / (2 - fraction),
            )
    merges = geometry.cluster(between_languages[rule]).merges
    _write(laboratory, "dendrogram", **_dendrogram(rule, languages, merges))
    growth = {
        language: {
            count: agreement.agree(read(rule, language, str(count)), read(rule, language)).iou
            for count in _stops(lab.samples(laboratory, language))
        }
        for language in languages
    }
    _write(
        laboratory,
        "split_half",
        kind="reliability",
        title=f"Would the regions come out again: {rule}",
        halves={language: halves[rule, language].iou for language in languages},
        growth=growth,
        note="The samples of a smaller number are part of those of a larger one, so the curve overstates stability: "
        "the split halves share no sample.",
    )
    _write(laboratory, "layers", **_layers(languages, {code: halves[rule, code].layers for code in languages}))
    _write(laboratory, "ceiling", **_ceiling(rules, languages, between_languages, halves, fraction))


def _dendrogram(rule: str, languages: Sequence[str], merges: Sequence[tuple[int, int, float, int]]) -> dict[str, Any]:
    """Return the table of which languages join first, from the bottom of the tree to its root."""
    groups, rows = [[language] for language in languages], []
    for first, second, distance, _ in merges:
        rows.append([" ".join(groups[first]), " ".join(groups[second]), 1 - distance])
        groups.append(groups[first] + groups[second])
    return {
        "kind": "table",
        "title": f"Dendrogram of the languages: {rule}",
        "note": "Average linkage: each row joins the two groups that share most on average.",
        "columns": [{"name": "group"}, {"name": "joins"}, {"name": "mean IoU", "kind": "share"}],
        "rows": rows,
    }


def _layers(languages: Sequence[str], layers: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    return {
        "kind": "heatmap",
        "title": "Split-half overlap by layer",
        "corner": "language",
        "rows": list(languages),
        "columns": [str(layer) for layer in range(len(layers[languages[0]]))],
        "values": [list(layers[language]) for language in languages],
        "format": "share",
        "unit": "IoU",
    }


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
        rows.append([rule, *(float(np.mean(each)) if each else None for each in (own, whole, shared, most))])
    rule, own, _, shared, most = rows[0]
    between_two = f", those of two languages by {shared:.2f}, where noise alone would allow {most:.2f}" if pairs else ""
    return {
        "headline": f"By {rule}, the regions of two disjoint halves of one language's samples overlap by {own:.2f} "
        f"(intersection over union, mean of the scored languages){between_two}.",
        "kind": "table",
        "title": "What languages share, and what noise lets them share",
        "note": "Means over languages or pairs of them. Split half: overlap of the regions of two disjoint halves. "
        "Expected at all samples: extrapolated by Spearman and Brown. The noise ceiling is the overlap to expect "
        "between two languages whose true regions were the same: a difference between languages counts only as far as "
        "they share less than that.",
        "columns": [
            {"name": "definition"},
            {"name": "split half", "kind": "share"},
            {"name": "expected at all samples", "kind": "share"},
            {"name": "between languages", "kind": "share"},
            {"name": "noise ceiling", "kind": "share"},
        ],
        "rows": rows,
    }


def _write(laboratory: Laboratory, name: str, **content: Any) -> None:
    laboratory.run.write(f"tables/{name}.json", json.dumps(content, ensure_ascii=False, indent=1) + "\n")
