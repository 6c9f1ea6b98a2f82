"""Section: a title, sentences, tables and figures; and the builders of the sections that many experiments share.

A builder takes what was measured and returns a section. An experiment adds its own by composing these, or without any
code here by leaving a file `tables/<name>.json` in its work directory (see `kinds`).
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd

from lingregions.report import atlas, charts, effect_figures, languages, numerals
from lingregions.report.effects import MEAN, sign
from lingregions.report.figures import Figure
from lingregions.report.numerals import Cell, Span
from lingregions.report.survey import Overlap, Survey
from lingregions.report.tables import Column, Table, slug
from lingregions.statistics import LEVEL


@dataclass(frozen=True)
class Section:
    """One part of a report. `items` follow the paragraphs in order."""

    title: str
    paragraphs: tuple[str, ...] = ()
    items: tuple[Table | Figure, ...] = ()


def named(codes: Sequence[str]) -> list[str]:
    """What regions, or languages by their codes, are called."""
    return [languages.name(code) for code in codes]


# --- effects ----------------------------------------------------------------------------------------------------------

_OPEN = 20  # rows of a table that is shown without being asked for
_LONGEST = 1500  # rows of a table on the page; of more, the file is named


def _columns(*names: str) -> tuple[Column, ...]:
    """Columns by name, with the kind behind a colon where it is not text: "effect, nats per token:interval"."""
    return tuple(Column(*name.split(":")) for name in names)


def effects(found: pd.DataFrame, results: pd.DataFrame, prefix: str = "") -> Section:
    """What each intervention does to each language: the picture first, then the tables it is drawn from.

    Args:
      found: rows of effects.csv of one experiment.
      results: rows of results.csv of the same.
      prefix: of the names of its files, where a run has several experiments.
    """
    items: list[Table | Figure] = []
    paragraph = (
        "An effect is a difference in NLL per token between an intervention and its control (the untouched model "
        "unless another is named), in nats: the logarithm of the ratio of the two perplexities. 0.69 nats double the "
        "perplexity, 2.3 multiply it by ten. Perplexities of different languages or tokenizers are not comparable; "
        "bits per byte are."
    )
    sure = "This run has no table of effects, so no figure here has an interval."
    if not found.empty:
        single = _printed(found)
        if not single.empty:
            items.append(effect_figures.effects(single, f"{prefix}effects", "Effect in every language"))
        grid = effect_figures.effects_map(single, f"{prefix}effects_map", "Every intervention in every language")
        items += [grid] if grid else []
        items += [_by_intervention(found, prefix), _by_language(single, prefix)]
        sure = (
            f"The intervals hold {numerals.percent(LEVEL)}: a bootstrap over segments, paired between intervention and "
            "control, and over the seeds where there are several. A p-value comes from random changes of sign; those "
            "of one intervention are corrected over the languages (Holm)."
        )
    for measure, title, kind in (("nll", "Perplexity", "exponential"), ("bits_per_byte", "Bits per byte", "decimal")):
        if not results.empty:
            items.append(_measured(results, measure, f"{prefix}{slug(title)}", title, kind))
    return Section("What each language loses", (paragraph, sure, *_gaps(results)), tuple(items))


def _printed(found: pd.DataFrame) -> pd.DataFrame:
    """The rows of single languages, relatives side by side, under the names of the languages."""
    single = found[found["language"] != MEAN]
    order = {code: place for place, code in enumerate(languages.arrange(list(dict.fromkeys(single["language"]))))}
    single = single.sort_values("language", key=lambda codes: codes.map(order), kind="stable")
    single = single.assign(language=single["language"].map(languages.name))
    pairs = dict.fromkeys(zip(found["intervention"], found["control"], strict=True))
    ranks = {pair: rank for rank, pair in enumerate(pairs)}
    places = [ranks[pair] for pair in zip(single["intervention"], single["control"], strict=True)]
    return single.iloc[np.argsort(places, kind="stable")]


_SPAN = ["effect_nats", "low", "high"]
_EFFECT = ("times the perplexity:factor", "effect, nats per token:interval")


def _by_intervention(found: pd.DataFrame, prefix: str) -> Table:
    """One row an (intervention, control): the mean over languages, and how many languages are harmed."""
    rows: list[tuple[Cell, ...]] = []
    for (intervention, control), group in found.groupby(["intervention", "control"], sort=False):
        single, overall = group[group["language"] != MEAN], group[group["language"] == MEAN]
        *span, p = overall[[*_SPAN, "p_adjusted"]].iloc[0].tolist() if len(overall) else [None] * 4
        finite = single.dropna(subset=["effect_nats"]).sort_values("effect_nats")
        order: list[str | None] = [*named(finite["language"].tolist())] or [None]
        harmed = f"{(sign(single) > 0).sum()} of {len(single)}"
        seeds = int(group["seeds"].max())
        rows.append((intervention, control, seeds, Span(*span), Span(*span), p, harmed, order[0], order[-1]))
    heads = _columns(
        "intervention", "control", "seeds:count", *_EFFECT, "p:probability", "languages harmed", "least", "most"
    )
    note = "Mean over languages. Harmed: the interval of the language lies above no effect."
    name, title = f"{prefix}effects_by_intervention", "Effects by intervention"
    return Table(name, title, heads, tuple(rows), note, folded=len(rows) > _OPEN)


def _by_language(single: pd.DataFrame, prefix: str) -> Table:
    """One row an (intervention, control, language)."""
    shown, keys = single.head(_LONGEST), ["intervention", "control", "language", "family"]
    spans = [Span(*span) for span in shown[_SPAN].to_numpy(float).tolist()]
    rows = zip(*(shown[key] for key in keys), spans, spans, shown["p_adjusted"], shown["segments"], strict=True)
    heads = _columns(*keys, *_EFFECT, "p, adjusted:probability", "segments:count")
    note = f"The first {_LONGEST:,} of {len(single):,} rows; all are in effects.csv." if len(single) > _LONGEST else ""
    return Table(f"{prefix}effects_by_language", "Effects by language", heads, tuple(rows), note, folded=True)


def _measured(results: pd.DataFrame, measure: str, name: str, title: str, kind: str) -> Table:
    """One measure of every intervention (rows) in every language (columns), seed by seed."""
    codes = languages.arrange(list(dict.fromkeys(results["language"])))
    wide = results.pivot_table(
        index="intervention", columns="language", values=measure, aggfunc="last", sort=False, dropna=False
    )
    wide = wide.reindex(index=list(dict.fromkeys(results["intervention"])), columns=codes)
    heads = (Column("intervention"), *(Column(languages.name(code), kind) for code in codes))
    return Table(name, title, heads, tuple(wide.itertuples(name=None)), folded=True)


def _gaps(results: pd.DataFrame) -> list[str]:
    """Sentences on what was not measured, or is not finite."""
    said = []
    cells = results.drop_duplicates(["intervention", "language"], keep="last")
    if missing := results["intervention"].nunique() * results["language"].nunique() - len(cells):
        said.append(
            f"Not measured, because the run has not finished or failed there: {numerals.plural(missing, 'cell')} of "
            f"{len(cells) + missing}, shown as a dash."
        )
    if lost := [
        f"{row['intervention']} / {row['language']}" for row in cells.to_dict("records") if math.isnan(row["nll"])
    ]:
        said.append(
            f"The NLL is not finite for {numerals.listed(lost[:6])}{' and others' if len(lost) > 6 else ''}: no token "
            "was evaluated, or the perturbed model overflows there; shown as a dash and left out of the means."
        )
    return said


# --- regions --------------------------------------------------------------------------------------------------------

_EXPLORED = 8  # regions whose matrices the page opens


def regions(surveys: Sequence[Survey], overlaps: Overlap | None = None) -> Section:
    """Where each region lies: a table of all, the atlas, the residual axis; and how far they are the same."""
    chosen = surveys[:_EXPLORED]
    items: list[Table | Figure] = [_catalogue(surveys), *atlas.atlas(chosen)]
    items += [along] if (along := atlas.residual(chosen)) else []
    paragraphs = []
    if even := [survey.name for survey in surveys if survey.even]:
        paragraphs.append(
            f"In {_whom(even, surveys)} every matrix holds the same share, because the selection is made per matrix: "
            "no layer or role stands out by its count, only by where inside the matrix the entries lie."
        )
    if len(surveys) > len(chosen):
        paragraphs.append(f"The figures open the first {len(chosen)} of {len(surveys)} regions; the table has all.")
    for note in dict.fromkeys(note for survey in surveys for note in survey.notes):
        whom = _whom([survey.name for survey in surveys if note in survey.notes], surveys)
        paragraphs.append(f"{numerals.sentence(whom)}: {note}")
    if overlaps is not None:
        paragraphs += overlap_words(overlaps)
        items += charts.overlap(overlaps, "overlap_of_regions", "Overlap of the regions")
        items += [both] if overlaps.cells and (both := atlas.pairs(overlaps)) else []
    return Section("Where the regions lie", tuple(paragraphs), tuple(items))


def _whom(names: Sequence[str], surveys: Sequence[Survey]) -> str:
    if len(names) == len(surveys) > 1:
        return "every region"
    return numerals.listed(names) if len(names) <= 3 else f"{names[0]}, {names[1]} and {len(names) - 2} others"


def _catalogue(surveys: Sequence[Survey]) -> Table:
    """One row per region: its size, and how much of it the fullest indices of the residual axis hold."""
    axis = surveys[0].axis if surveys else "embed"
    rows: list[tuple[Cell, ...]] = []
    for survey in surveys:
        total, length = sum(survey.carried), len(survey.carried)
        order = sorted(range(length), key=lambda index: (-survey.carried[index], index))
        held = sum(survey.carried[index] for index in order[: max(1, length // 100)])
        stands_out = bool(total) and survey.carried[order[0]] * length >= 2 * total  # below that a maximum is noise
        fullest = ", ".join(map(str, order[:6])) if stands_out else "none stands out"
        share = survey.selected / survey.size if survey.size else None
        rows.append((survey.name, survey.selected, share, *((held / total, fullest) if total else (None, None))))
    heads = _columns("region", "parameters:count", "share of the scope:percent")
    heads += _columns(f"held by the fullest 1 % of the axis {axis}:percent", "fullest indices")
    note = "A region spread evenly over the axis holds at its fullest 1 % of the indices about 1 % of its entries."
    return Table("regions", "Regions", heads, tuple(rows), note)


def overlap_words(found: Overlap) -> list[str]:
    """One sentence on which regions share most and least; none where no pair was compared."""
    names = named(found.names)
    values = [
        (value, names[column], names[row])
        for row in range(len(names))
        for column in range(row)
        if (value := found.values[row][column]) is not None and math.isfinite(value)
    ]
    if not values:
        return []
    low, high = min(values), max(values)
    said = f"{high[1]} and {high[2]} share an intersection over union (IoU) of {numerals.share(high[0])}"
    if len(values) > 1:
        said += f", the most of all pairs; {low[1]} and {low[2]} share {numerals.share(low[0])}, the least"
    if found.chance is not None:
        said += f". Independent regions of these sizes would share at most {numerals.share(found.chance)}"
    return [f"{numerals.sentence(said)}."]


# --- settings -------------------------------------------------------------------------------------------------------

_SECRET = re.compile(r"\b(hf_[A-Za-z0-9]{16,}|[a-z]+://[^/\s:@]+:[^/\s@]+@)")
_IDENTITY = re.compile(r"hash|fingerprint|sha256|checksum|tokenizer|token_ids|revision|special", re.IGNORECASE)

_HASH = re.compile(r"\b([0-9a-f]{16})[0-9a-f]{16,}\b")  # shown in part where many stand side by side


def _flatten(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as (dotted key, value), with anything that looks like a credential left out."""
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            rows += _flatten(value, f"{path}.")
        elif isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
            for position, item in enumerate(value):
                rows += _flatten({str(position): item}, f"{path}.")
        else:
            rows.append((path, _SECRET.sub("[redacted]", _setting(value))))
    return rows


def _setting(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(_setting(item) for item in value) or "none"
    if isinstance(value, Mapping) or value is None or value == "":
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return repr(value) if isinstance(value, float) and math.isfinite(value) else numerals.text(value)


def settings(
    config: Mapping[str, Any],
    environment: Mapping[str, Any],
    identity: Mapping[str, Any] = MappingProxyType({}),
    timings: Sequence[Mapping[str, Any]] = (),
    stages: Mapping[str, Mapping[str, Mapping[str, Any]]] = MappingProxyType({}),
) -> Section:
    """Everything needed to repeat the run: identities (hashes, tokenizer), the configuration, the machine, the time.

    `stages` is {kind: {name: facts}}, such as what is recorded of each score: what all of a kind have in common is said
    once, the rest in a table of that kind.
    """
    chosen, machine = _flatten(config), _flatten(environment)
    exact = [*_flatten(identity), *(row for row in [*machine, *chosen] if _IDENTITY.search(row[0]))]
    varying = []
    for kind, facts in stages.items():
        common, table = _compared(kind, facts)
        exact += common
        varying.append(table)
    exact = list(dict.fromkeys(exact))
    heads = _columns("setting", "value")
    rest = tuple(row for row in machine if row not in exact)
    tables = (
        Table("identity", "Model, tokenizer and data", heads, tuple(exact), look="settings"),
        *varying,
        Table("configuration", "Configuration, as resolved", heads, tuple(chosen), look="settings"),
        Table("environment", "Environment", heads, rest, look="settings"),
        _times(timings),
    )
    found = tuple(replace(table, folded=True) for table in tables if table.rows)
    return Section("How to repeat it", (), found)


def _compared(kind: str, facts: Mapping[str, Mapping[str, Any]]) -> tuple[list[tuple[str, str]], Table]:
    """What several records of one kind have in common, as settings, and a table of what differs between them."""
    flat = {name: dict(_flatten(record)) for name, record in facts.items()}
    keys = list(dict.fromkeys(key for record in flat.values() for key in record))
    shared = [key for key in keys if len({record.get(key) for record in flat.values()}) == 1] if len(flat) > 1 else []
    differing = [key for key in keys if key not in shared]
    first = next(iter(flat.values()), {})
    rows = tuple(
        (name, *(_HASH.sub(r"\1…", record.get(key, "")) for key in differing)) for name, record in flat.items()
    )
    title, heads = f"{numerals.sentence(kind)}: what differs", tuple(map(Column, (kind, *differing)))
    table = Table(f"settings_{slug(kind)}", title, heads, rows, look="settings")
    return [(f"{kind}.{key}", first[key]) for key in shared], table


def _times(timings: Sequence[Mapping[str, Any]]) -> Table:
    """How long each piece of work took; pieces of one description (a run that was resumed) are added up."""
    work: dict[tuple[str, str], tuple[float, float]] = {}
    for record in timings:
        amount, seconds = record.get("amount"), record.get("seconds")
        if isinstance(amount, int | float) and isinstance(seconds, int | float):
            key = str(record.get("description", "")), str(record.get("unit", ""))
            before = work.get(key, (0.0, 0.0))
            work[key] = before[0] + amount, before[1] + seconds
    rows = tuple(
        (description, amount, unit, seconds, amount / seconds if seconds else None)
        for (description, unit), (amount, seconds) in work.items()
    )
    return Table("time", "Time", _columns("work", "amount:number", "unit", "seconds:number", "a second:number"), rows)
