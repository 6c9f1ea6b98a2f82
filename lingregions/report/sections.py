"""Section: a title, sentences, tables and figures; and the builders of the sections that many experiments share.

A builder takes measured values and returns a section whose sentences are computed from them. An experiment adds its own
by composing these, or without any code here by leaving a file `tables/<name>.json` in its work directory (see `facts`).
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lingregions.models import roles
from lingregions.report import languages, numerals
from lingregions.report.figures import Curve, Figure, Grid, Series, tallest
from lingregions.report.numerals import Cell
from lingregions.report.survey import Overlap, Survey
from lingregions.report.tables import Column, Table, slug


@dataclass(frozen=True)
class Section:
    """One part of a report. `items` follow the paragraphs in order."""

    title: str
    paragraphs: tuple[str, ...] = ()
    items: tuple[Table | Figure, ...] = ()


# --- regions --------------------------------------------------------------------------------------------------------

DRAWN = 4  # regions that get a figure each; more are compared in one


def densities(surveys: Sequence[Survey]) -> Section:
    """Where each region lies: a table of all, layer x matrix heat maps, and the residual axis of the first ones.

    Regions with the same count in every matrix share one heat map. Where more than a few differ, as the monolingual
    regions do, they are set side by side: one map of layers x regions, one of matrices x regions.
    """
    groups: dict[tuple[tuple[int | None, ...], ...], list[Survey]] = {}
    for survey in surveys:
        groups.setdefault(survey.counts, []).append(survey)
    alike, alone = list(groups.values()), []
    if len(alike) > DRAWN:
        alone = [group[0] for group in alike if len(group) == 1 and not group[0].even]
        alike = [group for group in alike if len(group) > 1 or group[0].even]
    items: list[Table | Figure] = [catalogue(surveys)]
    items += [density(group[0], _several([survey.name for survey in group])) for group in alike]
    if alone:
        items += [profile(alone, "layer"), profile(alone, "matrix")]
    carrying = [survey for survey in surveys if sum(survey.carried)]
    items += [along(survey) for survey in carrying[:DRAWN]]
    items += [carriers(survey) for survey in carrying if _peaked(survey)][:1]
    paragraphs = []
    if even := [survey.name for survey in surveys if survey.even]:
        paragraphs.append(
            f"In {_whom(even, surveys)} every matrix holds the same share, because the selection is made per matrix: "
            "the map of layers and matrices cannot tell which layer or module matters more, only the axis shows where "
            "inside the matrices a region lies."
        )
    said: dict[str, list[str]] = {}
    for survey in surveys:
        for note in survey.notes:
            said.setdefault(note, []).append(survey.name)
    paragraphs += [f"{numerals.sentence(_whom(names, surveys))}: {note}" for note, names in said.items()]
    return Section("Where the regions lie", tuple(paragraphs), tuple(items))


def _several(names: Sequence[str]) -> str:
    if len(names) <= 3:
        return numerals.listed(list(names))
    return f"{names[0]}, {names[1]} and {len(names) - 2} others"


def _whom(names: Sequence[str], surveys: Sequence[Survey]) -> str:
    return "every region" if len(names) == len(surveys) > 1 else _several(names)


def catalogue(surveys: Sequence[Survey]) -> Table:
    """One row per region: its size, and how much of it the fullest indices of the residual axis hold."""
    axis = surveys[0].axis if surveys else "embed"
    rows: list[tuple[Cell, ...]] = []
    for survey in surveys:
        total = sum(survey.carried)
        fullest = sorted(survey.carried, reverse=True)[: max(1, len(survey.carried) // 100)]
        best = ", ".join(str(int(index)) for index, _ in tallest(_shares(survey), 6))
        rows.append(
            (
                survey.name,
                survey.selected,
                survey.selected / survey.size if survey.size else None,
                sum(fullest) / total if total else None,
                None if not total else best if _peaked(survey) else "none stands out",
            )
        )
    return Table(
        "regions",
        "Regions",
        (
            Column("region"),
            Column("parameters", "count"),
            Column("share of the scope", "percent"),
            Column(f"held by the fullest 1 % of the axis {axis}", "percent"),
            Column("fullest indices"),
        ),
        tuple(rows),
        f"The fullest 1 % are the indices of the axis {axis} with the most entries, at least one; in a region spread "
        "evenly over the axis they hold their own share of the indices.",
    )


def profile(surveys: Sequence[Survey], by: str) -> Grid:
    """Density of several regions by layer, or by matrix over all layers, with counts; parallel regions only."""
    first = surveys[0]
    labels = first.layers if by == "layer" else tuple(map(roles.label, first.matrices))

    def sums(table: tuple[tuple[int | None, ...], ...]) -> list[int]:
        lines = table if by == "layer" else tuple(zip(*table, strict=True))
        return [sum(cell or 0 for cell in line) for line in lines]

    counts = list(zip(*(sums(survey.counts) for survey in surveys), strict=True))
    sizes = list(zip(*(sums(survey.sizes) for survey in surveys), strict=True))
    return Grid(
        f"density_by_{by}",
        f"Parameters by {by}, region by region",
        by,
        labels,
        tuple(survey.name for survey in surveys),
        tuple(
            tuple(count / size if size else None for count, size in zip(*pair, strict=True))
            for pair in zip(counts, sizes, strict=True)
        ),
        kind="percent",
        unit=f"of the {by}",
        note=f"Printed: parameters of the region. Colour: their share of the {by}.",
        labels=tuple(counts),
        label="parameters",
    )


def density(survey: Survey, who: str = "") -> Grid:
    """Density of a region per (layer, matrix) as colour, with the number of its entries in the cell."""
    values = tuple(
        tuple(count / size if size and count is not None else None for count, size in zip(counts, sizes, strict=True))
        for counts, sizes in zip(survey.counts, survey.sizes, strict=True)
    )
    present = [value for row in values for value in row if value is not None]
    mean = survey.selected / survey.size if survey.size else 0.0
    return Grid(
        f"density_{slug(survey.name)}",
        f"Parameters by layer and matrix: {who or survey.name}",
        "layer",
        survey.layers,
        tuple(map(roles.label, survey.matrices)),
        values,
        kind="percent",
        unit="of the matrix",
        note="Printed: parameters of the region in the matrix. Colour: their share of the matrix.",
        high=max([1.5 * mean, *present]),  # an even region is a middling colour, not the strongest
        labels=survey.counts,
        label="parameters",
    )


def _shares(survey: Survey) -> list[tuple[float, float]]:
    return [
        (float(index), count / capacity if capacity else 0.0)
        for index, (count, capacity) in enumerate(zip(survey.carried, survey.capacity, strict=True))
    ]


def _peaked(survey: Survey) -> bool:
    # Twice the mean of the axis: below that the fullest indices of a random region are noise.
    return max(survey.carried) * len(survey.carried) >= 2 * sum(survey.carried)


def along(survey: Survey) -> Curve:
    """Density of a region along the residual axis: the indices that carry it stand out."""
    points = tuple(_shares(survey))
    level = sum(survey.carried) / sum(survey.capacity) if sum(survey.capacity) else None
    return Curve(
        f"axis_{slug(survey.name)}",
        f"Density of {survey.name} along the axis {survey.axis}",
        f"index of the axis {survey.axis}",
        "density",
        (Series(survey.name, points),),
        "Share of the entries at an index that the region holds, over every matrix that carries the axis; the highest "
        "are labelled with their index.",
        needles=True,
        peaks=6 if _peaked(survey) else 0,
        kind="percent",
        level=level,
        level_label="mean over the axis",
    )


def carriers(survey: Survey, most: int = 12) -> Table:
    """The indices of the residual axis that hold the most entries of a region."""
    total = sum(survey.carried)
    order = sorted(range(len(survey.carried)), key=lambda index: (-survey.carried[index], index))[:most]
    rows = [
        (
            str(index),
            survey.carried[index],
            survey.carried[index] / survey.capacity[index] if survey.capacity[index] else None,
            survey.carried[index] / total if total else None,
        )
        for index in order
    ]
    return Table(
        f"indices_{slug(survey.name)}",
        f"Indices of the axis {survey.axis} that carry {survey.name}",
        (
            Column("index"),
            Column("entries", "count"),
            Column("density", "percent"),
            Column("share of the region", "percent"),
        ),
        tuple(rows),
    )


def overlap(found: Overlap, title: str = "Overlap of the regions", name: str = "overlap") -> Section:
    """Intersection over union between regions, as a heat map and a sentence."""
    names = tuple(map(languages.name, found.names))
    pairs = [
        (value, names[column], names[row])
        for row in range(len(names))
        for column in range(row)
        if (value := found.values[row][column]) is not None and math.isfinite(value)
    ]
    sentence = ""
    if len(pairs) == 1:
        value, first, second = pairs[0]
        sentence = f"{first} and {second} share an intersection over union (IoU) of {numerals.share(value)}."
    elif pairs:
        low, high = min(pairs), max(pairs)
        sentence = (
            f"The intersection over union (IoU) of two regions lies between {numerals.share(low[0])} ({low[1]} and "
            f"{low[2]}) and {numerals.share(high[0])} ({high[1]} and {high[2]}); 1 is the same region, 0 none in "
            "common."
        )
    if pairs and found.chance is not None:
        sentence += f" Independent regions of these sizes would share at most {numerals.share(found.chance)}."
    grid = Grid(name, title, "region", names, names, found.values, kind="share", unit="IoU", low=0.0, high=1.0)
    return Section(title, (sentence,) if sentence else (), (grid,))


def reliability(
    halves: Mapping[str, float] | None = None,
    growth: Mapping[str, Mapping[float, float]] | None = None,
    title: str = "Reliability",
    name: str = "reliability",
) -> Section:
    """Whether the region would come out again: split-half IoU per region, and IoU against the number of samples.

    `halves` maps a region to the IoU of the regions from two disjoint halves of its samples; `growth` maps a region to
    {samples: IoU with the region from all samples}.
    """
    paragraphs: list[str] = []
    items: list[Table | Figure] = []
    if halves:
        worst, best = min(halves, key=lambda region: halves[region]), max(halves, key=lambda region: halves[region])
        span = (
            f"between {numerals.share(halves[worst])} ({languages.name(worst)}) and {numerals.share(halves[best])} "
            f"({languages.name(best)})"
            if len(halves) > 1
            else f"of {numerals.share(halves[best])}"
        )
        paragraphs.append(
            f"Regions found from two disjoint halves of the samples share an IoU {span}: what differs between the "
            "halves is sampling noise, and no overlap between languages or definitions can be trusted beyond it."
        )
        items.append(
            Table(
                f"{name}_split_half",
                "Split-half IoU",
                (Column("region"), Column("IoU of the two halves", "share")),
                tuple((languages.name(region), value) for region, value in halves.items()),
            )
        )
    if growth:
        series = tuple(
            Series(languages.name(region), tuple(sorted((float(x), y) for x, y in points.items())))
            for region, points in growth.items()
            if points
        )
        steps = [x for line in series for x, _ in line.points]
        if series:
            curve = Curve(
                f"{name}_growth",
                "IoU with the final region, against the number of samples",
                "samples",
                "IoU",
                series,
                logarithmic=min(steps) > 0 and max(steps) >= 8 * min(steps),
                kind="share",
            )
            items.append(curve)
    return Section(title, tuple(paragraphs), tuple(items))


# --- settings -------------------------------------------------------------------------------------------------------

_SECRET = re.compile(r"\b(hf_[A-Za-z0-9]{16,}|[a-z]+://[^/\s:@]+:[^/\s@]+@)")
_IDENTITY = re.compile(r"hash|fingerprint|sha256|checksum|tokenizer|token_ids|revision|special", re.IGNORECASE)

_HASH = re.compile(r"\b([0-9a-f]{16})[0-9a-f]{16,}\b")  # shown in part where many stand side by side


def flatten(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as (dotted key, value), with anything that looks like a credential left out."""
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            rows += flatten(value, f"{path}.")
        elif isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
            for position, item in enumerate(value):
                rows += flatten({str(position): item}, f"{path}.")
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
    identity: Mapping[str, Any] | None = None,
    timings: Sequence[Mapping[str, Any]] = (),
    stages: Mapping[str, Mapping[str, Mapping[str, Any]]] | None = None,
) -> Section:
    """Everything needed to repeat the run: identities (hashes, tokenizer), the configuration, the machine, the time.

    `stages` is {kind: {name: facts}}, such as what is recorded of each score: what all of a kind have in common is said
    once, the rest in a table of that kind.
    """
    chosen, machine = flatten(config), flatten(environment)
    exact = [*flatten(identity or {}), *(row for row in [*machine, *chosen] if _IDENTITY.search(row[0]))]
    varying = []
    for kind, facts in (stages or {}).items():
        common, table = compare(kind, facts)
        exact += common
        varying.append(table)
    exact = list(dict.fromkeys(exact))
    columns = (Column("setting"), Column("value"))
    rest = tuple(row for row in machine if row not in exact)
    tables = (
        Table("identity", "Model, tokenizer and data", columns, tuple(exact), settings=True),
        *varying,
        Table("configuration", "Configuration, as resolved", columns, tuple(chosen), settings=True),
        Table("environment", "Environment", columns, rest, settings=True),
        times(timings),
    )
    return Section("Settings", (), tuple(table for table in tables if table.rows))


def compare(kind: str, facts: Mapping[str, Mapping[str, Any]]) -> tuple[list[tuple[str, str]], Table]:
    """What several records of one kind have in common, as settings, and a table of what differs between them."""
    flat = {name: dict(flatten(record)) for name, record in facts.items()}
    keys = list(dict.fromkeys(key for record in flat.values() for key in record))
    shared = [key for key in keys if len({record.get(key) for record in flat.values()}) == 1] if len(flat) > 1 else []
    differing = [key for key in keys if key not in shared]
    first = next(iter(flat.values()), {})
    table = Table(
        f"settings_{slug(kind)}",
        f"{numerals.sentence(kind)}: what differs",
        (Column(kind), *(Column(key) for key in differing)),
        tuple((name, *(_HASH.sub(r"\1…", record.get(key, "")) for key in differing)) for name, record in flat.items()),
        settings=True,
    )
    return [(f"{kind}.{key}", first[key]) for key in shared], table


def times(timings: Sequence[Mapping[str, Any]]) -> Table:
    """How long each piece of work took; pieces of one description (a run that was resumed) are added up."""
    work: dict[tuple[str, str], list[float]] = {}
    for record in timings:
        amount, seconds = record.get("amount"), record.get("seconds")
        if isinstance(amount, int | float) and isinstance(seconds, int | float):
            total = work.setdefault((str(record.get("description", "")), str(record.get("unit", ""))), [0.0, 0.0])
            total[0] += amount
            total[1] += seconds
    return Table(
        "time",
        "Time",
        (
            Column("work"),
            Column("amount", "number"),
            Column("unit"),
            Column("seconds", "number"),
            Column("a second", "number"),
        ),
        tuple(
            (description, amount, unit, seconds, amount / seconds if seconds else None)
            for (description, unit), (amount, seconds) in work.items()
        ),
    )


def notes(sentences: Sequence[str]) -> Section:
    """What a reader has to know before trusting the figures: warnings, shortfalls, ties."""
    return Section("Notes", tuple(dict.fromkeys(sentences)))
