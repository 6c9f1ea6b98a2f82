"""Losses: the section that says what each arm of an experiment costs each language, from the mean down to the cell.

A few arms stand side by side. Many are set beside their like (parts of a region, layers, monolingual regions, single
parameters, ...), so that thirty languages and forty arms can still be read; what is then too long is folded away. Where
the run has intervals (damage.csv) a factor of perplexity is never printed without its own.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

from lingregions.report import languages, numerals
from lingregions.report.arms import BASE, Arm, distinct
from lingregions.report.damage import EVERY, Damage, clear
from lingregions.report.figures import Curve, Figure, Grid, Series, Strip
from lingregions.report.numerals import Cell, Span
from lingregions.report.sections import Section
from lingregions.report.tables import Column, Table, slug
from lingregions.report.verdict import apart, less
from lingregions.statistics import LEVEL

MOST = 12  # arms side by side before they are set apart by kind, and columns before they are set small
WIDEST = 32  # columns of one heat map
BESIDE = 4  # factors with their intervals in one table


def section(figures: Damage, suffix: str = "", told: Sequence[str] = ()) -> Section:
    """The damage section: means per arm, contrasts, families, dots, heat maps, intervals, then each measure by itself.

    `told` names the tables that the experiment has written: contrasts or families of its own are not told twice.
    """
    stem = slug(figures.experiment) + "_" if suffix else ""
    items: list[Table | Figure] = [summary(figures, stem)]
    for word, build in (("contrast", contrasts), ("relatives", families)):
        if not any(word in name for name in told) and (table := build(figures, stem)):
            items.append(table)
    if strip := spread(figures, stem):
        items.append(strip)
    items += maps(figures, stem)
    if figures.assessed:
        items += intervals(figures, stem)
    items += [
        by_language(figures, f"{stem}perplexity", "Perplexity", "exponential"),
        by_language(figures, f"{stem}nll_per_token", "NLL in nats per token", "decimal"),
        by_language(figures, f"{stem}bits_per_byte", "Bits per byte", "decimal"),
    ]
    paragraph = (
        "Damage is the difference in NLL per token from the untouched model, in nats: the logarithm of the ratio of "
        "the two perplexities. 0.69 nats double the perplexity, 2.3 multiply it by ten. Perplexities of different "
        "languages or tokenizers are not comparable; bits per byte are."
    )
    if figures.assessed:
        sure = (
            f"The intervals hold {numerals.percent(LEVEL)}: a bootstrap over segments, paired between the arms, and "
            "over the draws where an arm was drawn several times. A p-value comes from random changes of sign; those "
            "of one arm are corrected over the languages (Holm)."
        )
    else:
        sure = "This run has no damage.csv, so no figure here has an interval."
    return Section(f"What each language loses{suffix}", (paragraph, sure, *figures.notes), tuple(items))


def _grouped(figures: Damage) -> tuple[list[str], tuple[tuple[int, str], ...]]:
    """All arms, the base first, in the order of their panels; and the rows at which a panel begins."""
    order, breaks = [arm for arm in figures.arms if arm == BASE], []
    panels = figures.panels(MOST)
    for title, arms in panels.items():
        if len(panels) > 1:
            breaks.append((len(order), title))
        order += [arm.name for arm in arms]
    return order, tuple(breaks)


def summary(figures: Damage, stem: str = "") -> Table:
    """One row per arm: geometric mean perplexity, its ratio to the base's, mean damage, extremes over languages."""
    labels = dict(figures.labels())
    order, breaks = _grouped(figures)
    if breaks:  # what a panel has in common is said above it
        labels |= {arm.name: arm.part or arm.short for arm in figures.parsed()}
    labels |= {arm: f"{labels[arm]} ({figures.seeds(arm)} draws)" for arm in order if figures.seeds(arm) > 1}
    rows: list[tuple[Cell, ...]] = []
    for arm in order:
        cost = figures.cost(arm) if arm != BASE else None
        harmed = {code: figures.damage(arm, code) or 0.0 for code in figures.measured(arm)} if arm != BASE else {}
        least = min(harmed, key=lambda code: harmed[code]) if harmed else None
        most = max(harmed, key=lambda code: harmed[code]) if harmed else None
        if not figures.assessed:
            extremes = [
                f"{languages.name(code)} {numerals.decimal(harmed[code])}" if code is not None else None
                for code in (least, most)
            ]
            rows.append((labels[arm], figures.mean(arm), cost, cost, *extremes, len(figures.measured(arm))))
            continue
        found = figures.contrast(arm)
        span = figures.span(arm) if arm != BASE else Span(None)
        rows.append(
            (
                labels[arm],
                figures.mean(arm),
                _sure(span),
                span,
                None if found is None else found.p if found.p_adjusted is None else found.p_adjusted,
                _certain(figures, arm) if found else None,
                None if least is None else languages.name(least),
                None if most is None else languages.name(most),
            )
        )
    columns: tuple[Column, ...] = (
        Column("arm"),
        Column("perplexity (geometric mean)", "exponential"),
        Column("times the base", "exponential"),
        Column("damage (nats/token)", "decimal"),
        Column("least harmed"),
        Column("most harmed"),
        Column("languages", "count"),
    )
    note = ""
    if figures.assessed:
        columns = (
            Column("arm"),
            Column("perplexity (geometric mean)", "exponential"),
            Column("times the base", "factor"),
            Column("damage (nats/token)", "interval"),
            Column("p", "probability"),
            Column("harmed for certain"),
            Column("least harmed"),
            Column("most harmed"),
        )
        note = "Harmed for certain: languages in which the interval lies above no damage."
    return Table(f"{stem}damage_by_arm", "Damage by arm", columns, tuple(rows), note, breaks=breaks)


def _certain(figures: Damage, arm: str, reference: str = BASE) -> str:
    """In how many languages an arm does more harm than another, interval and all: `9 of 11`."""
    lines = [line for code in figures.languages if (line := figures.contrast(arm, reference, code))]
    return f"{sum(line.sign > 0 for line in lines)} of {len(lines)}"


def contrasts(figures: Damage, stem: str = "") -> Table | None:
    """Arms against each other, the second of each pair in the place of the base; None if none were compared."""
    pairs = dict.fromkeys((arm, other) for arm, other, _ in figures.contrasts if other != BASE)
    if not pairs:
        return None
    arms = {arm: figures.parse(arm) for pair in pairs for arm in pair}
    labels = distinct(list(arms.values()))
    owned = any(arms[arm].language for arm, _ in pairs)
    rows: list[tuple[Cell, ...]] = []
    for arm, other in pairs:
        line = figures.contrast(arm, other)
        own = figures.contrast(arm, other, arms[arm].language)
        lines = [each for code in figures.languages if (each := figures.contrast(arm, other, code))]
        rows.append(
            (
                labels[arm],
                labels[other],
                _sure(line.span) if line else None,
                None if line is None else line.p if line.p_adjusted is None else line.p_adjusted,
                *((_sure(own.span) if own else None,) if owned else ()),
                f"{sum(each.sign > 0 for each in lines)} of {len(lines)}",
                f"{sum(each.sign < 0 for each in lines)} of {len(lines)}",
            )
        )
    return Table(
        f"{stem}damage_contrasts",
        "Arms against each other",
        (
            Column("arm"),
            Column("against"),
            Column("times the perplexity", "factor"),
            Column("p", "probability"),
            *((Column("in its own language", "factor"),) if owned else ()),
            Column("more harm for certain"),
            Column("less harm for certain"),
        ),
        tuple(rows),
        "Perplexity under the first as a multiple of that under the second, on the same segments. For certain: "
        "languages whose interval holds no equality.",
    )


def families(figures: Damage, stem: str = "") -> Table | None:
    """What a monolingual region costs its own language, the rest of its family, and all others; None without any."""
    arms = [arm for arm in figures.parsed() if arm.kind in ("monolingual", "control") and figures.measured(arm.name)]
    if not any(arm.kind == "monolingual" for arm in arms):
        return None
    codes = list(dict.fromkeys(arm.language for arm in arms))
    labels = distinct(arms)
    kind = "factor" if figures.assessed else "exponential"

    def cell(span: Span) -> Cell:
        return _sure(span) if figures.assessed else span.value

    rows: list[tuple[Cell, ...]] = []
    for arm in sorted(arms, key=lambda arm: codes.index(arm.language)):
        family = languages.family(arm.language)
        others = [code for code in figures.languages if code != arm.language]
        kin = [code for code in others if family and languages.family(code) == family]
        own = figures.span(arm.name, arm.language)
        far = apart(figures, arm, [code for code in others if code not in kin])
        spans = [own, apart(figures, arm, kin), far, less(own, far)]
        rows.append((labels[arm.name], family, len(kin), *map(cell, spans)))
    return Table(
        f"{stem}damage_by_family",
        "Monolingual regions: own language, own family, all others",
        (
            Column("region removed"),
            Column("family"),
            Column("relatives", "count"),
            Column("own language", kind),
            Column("rest of the family", kind),
            Column("all others", kind),
            Column("own over all others", kind),
        ),
        tuple(rows),
        "Perplexity as a multiple of the untouched model's, geometric means over languages"
        + (
            "; bounds of a mean are put together from those of its languages, whose texts are independent."
            if figures.assessed
            else "."
        ),
    )


def spread(figures: Damage, stem: str = "") -> Strip | None:
    """Perplexity of every language as a dot per arm, on a logarithmic axis; None before anything is measured."""
    order, _ = _grouped(figures)
    arms = [arm for arm in order if figures.mean(arm) is not None]
    if not arms:
        return None
    points = tuple(
        tuple((languages.name(code), nll) for code in figures.languages if (nll := figures.nll(arm, code)) is not None)
        for arm in arms
    )
    return Strip(
        f"{stem}perplexity_by_arm",
        "Perplexity of every language, by arm",
        "perplexity (logarithmic)",
        tuple(figures.labels()[arm] for arm in arms),
        points,
        tuple(figures.mean(arm) for arm in arms),
        "geometric mean",
        "Each dot is one language; the bar is the geometric mean over languages.",
    )


def maps(figures: Damage, stem: str = "") -> list[Table | Figure]:
    """The heat maps of damage, one of each kind of arms, and the mean over layers as a line."""
    items: list[Table | Figure] = []
    for title, arms in figures.panels(MOST).items():
        if title and (line := layers(figures, arms, title, stem)):
            items.append(line)
        for start in range(0, len(arms), WIDEST):
            number = f" ({start // WIDEST + 1})" if len(arms) > WIDEST else ""
            items.append(heatmap(figures, stem, arms[start : start + WIDEST], title + number))
    return items or [heatmap(figures, stem, [], "")]


def layers(figures: Damage, arms: Sequence[Arm], title: str, stem: str = "") -> Curve | None:
    """Mean damage over the layers that were perturbed one by one; None for other arms, or too few."""
    points = sorted(
        (int(arm.short), span) for arm in arms if arm.short.isdigit() and (span := figures.span(arm.name)).value
    )
    if len(points) < 3:
        return None
    band = tuple(None if span.low is None or span.high is None else (span.low, span.high) for _, span in points)
    return Curve(
        f"{stem}layers_{slug(title)}",
        f"Mean damage, {title}" if title != "layers" else "Mean damage by layer",
        "layer",
        "damage (nats per token)",
        (Series("mean", tuple((float(x), span.value or 0.0) for x, span in points), band),),
        "Mean over languages" + ("; the band is its interval." if any(band) else "."),
        kind="decimal",
    )


def heatmap(figures: Damage, stem: str, arms: Sequence[Arm], title: str) -> Grid:
    """Damage per (language, arm) in nats per token, relatives side by side, with the mean over languages last."""
    codes = languages.arrange(figures.languages)
    names = [arm.name for arm in arms]
    compact = len(names) > MOST
    labels = distinct(list(arms), "short" if title else "label")
    marks = tuple(
        tuple(_sure(figures.span(arm, code)) is not None and not clear(figures.span(arm, code)) for arm in names)
        for code in [*codes, EVERY]
    )
    note = "The mean of the damage is the logarithm of the ratio of the geometric-mean perplexities."
    if any(map(any, marks)):
        note += f" {numerals.UNSURE} marks a damage whose interval holds none."
    return Grid(
        f"{stem}damage" + (f"_{slug(title)}" if title else ""),
        "Damage by language and arm" + (f": {title}" if title else ""),
        "language",
        (*(languages.name(code) for code in codes), "mean"),
        tuple(labels[arm] for arm in names),
        (*(tuple(figures.damage(arm, code) for arm in names) for code in codes), tuple(map(figures.cost, names))),
        kind="tenths" if compact else "decimal",
        unit="nats per token",
        note=note,
        groups=() if compact else (*(languages.family(code) for code in codes), ""),
        group="" if compact else "family",
        totals=1,
        marks=marks if any(map(any, marks)) else (),
        compact=compact,
    )


def intervals(figures: Damage, stem: str = "") -> Iterator[Table]:
    """Damage per (language, arm) as a factor with its interval, a few arms a table."""
    labels = figures.labels()
    arms = [arm for arm in _grouped(figures)[0] if figures.contrast(arm) is not None]
    codes = languages.arrange(figures.languages)
    for start in range(0, len(arms), BESIDE):
        chosen = arms[start : start + BESIDE]
        number = start // BESIDE + 1
        ends = " to ".join(dict.fromkeys((labels[chosen[0]], labels[chosen[-1]])))
        yield Table(
            f"{stem}damage_intervals" + (f"_{number}" if number > 1 else ""),
            "Perplexity as a multiple of the untouched model's" + (f": {ends}" if len(arms) > BESIDE else ""),
            (Column("language"), *(Column(labels[arm], "factor") for arm in chosen)),
            (
                *((languages.name(code), *(_sure(figures.span(arm, code)) for arm in chosen)) for code in codes),
                ("geometric mean", *(_sure(figures.span(arm)) for arm in chosen)),
            ),
            totals=1,
            folded=len(arms) > MOST,
        )


def _sure(span: Span) -> Span | None:
    """A factor that may be printed where the run has intervals: none without its own."""
    return span if span.low is not None and span.high is not None else None


def by_language(figures: Damage, name: str, title: str, kind: str) -> Table:
    """One measure per (language, arm), with its mean (of logarithms: the geometric mean) in the last row."""
    codes = languages.arrange(figures.languages)
    bits = name.endswith("bits_per_byte")
    order, _ = _grouped(figures)

    def cell(arm: str, code: str) -> float | None:
        row = figures.cells.get((arm, code))
        return None if row is None else row.bits_per_byte if bits else row.nll

    def tokens(code: str) -> int | None:
        return next((figures.cells[arm, code].tokens for arm in order if (arm, code) in figures.cells), None)

    means = [[value for code in codes if (value := cell(arm, code)) is not None] for arm in order]
    last = tuple(math.fsum(values) / len(values) if values else None for values in means)
    rows = [
        (languages.name(code), code, languages.family(code), tokens(code), *(cell(arm, code) for arm in order))
        for code in codes
    ]
    label = "geometric mean" if kind == "exponential" else "mean"
    labels: Mapping[str, str] = figures.labels()
    return Table(
        name,
        title,
        (
            Column("language"),
            Column("code"),
            Column("family"),
            Column("tokens", "count"),
            *(Column(labels[arm], kind) for arm in order),
        ),
        (*rows, (label, "", "", None, *last)),
        totals=1,
        folded=len(order) > MOST + 1,
    )
