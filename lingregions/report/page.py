"""The page: sections to one HTML document that needs nothing but itself.

No script, no request (a content policy forbids both), colours for light, dark and paper, tables that scroll by
themselves on a phone. `compose` turns facts into sections and `render` sections into text; both are pure, so equal
facts give equal pages.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from html import escape

import lingregions
from lingregions.report import damage, figures, losses, numerals, sections, style, tables, verdict
from lingregions.report.facts import Facts
from lingregions.report.sections import Section
from lingregions.report.tables import Table

LONG = 160  # characters of a headline that is set smaller
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def compose(facts: Facts) -> tuple[Section, ...]:
    """The sections of a report: damage, regions, overlap, what the experiment adds, settings, notes."""
    experiments = damage.collect(facts.rows, facts.fraction, facts.contrasts)
    several = len(experiments) > 1
    parts = [
        losses.section(experiment, f": {experiment.experiment}" if several else "", facts.tables)
        for experiment in experiments
    ]
    if facts.surveys:
        parts.append(sections.densities(facts.surveys))
    if facts.overlap is not None:
        parts.append(sections.overlap(facts.overlap, name="overlap_of_regions"))
    parts += facts.extras
    parts.append(sections.settings(facts.config, facts.environment, facts.identity, facts.timings, facts.stages))
    if facts.notes:
        parts.append(sections.notes(facts.notes))
    return tuple(part for part in parts if part.paragraphs or part.items)


def lead(facts: Facts) -> tuple[str, tuple[Section, ...]]:
    """The headline, and what is said before anything else: the experiment's own verdict, then what holds of any run.

    A headline that a table of the run offers goes before the one that is computed from the damage.
    """
    experiments = damage.collect(facts.rows, facts.fraction, facts.contrasts)
    # The base is one for all experiments of a run; each experiment's sentence stands by itself.
    computed = [verdict.headline(experiment, facts.verb) for experiment in experiments[:2]]
    said = [sentence for part in facts.verdicts for sentence in verdict.opening(part.paragraphs)][:1]
    if said and not any(arm.region for experiment in experiments for arm in experiment.parsed()[:1]):
        computed = (
            [] if facts.headlines else said
        )  # of changes that remove no region the experiment itself knows what matters
    first, *others = [*facts.headlines, *filter(None, [" ".join(computed)])] or [
        f"{facts.experiment}: nothing has been measured yet."
    ]
    weighed = verdict.weigh(experiments[0], facts.tables, bool(facts.verdicts)) if experiments else ()
    own = []
    for part in facts.verdicts:  # what became the headline is not said twice
        paragraphs = [words.removeprefix(first).strip() for words in part.paragraphs]
        own.append(replace(part, title=part.title or "Verdict", paragraphs=tuple(filter(None, paragraphs))))
    parts = (Section("", tuple(others)), *own, Section("How far to trust it" if own else "", weighed))
    return first, tuple(part for part in parts if part.paragraphs)


def summary(facts: Facts) -> str:
    """The headline and the verdict as plain text: what a terminal shows of a run."""
    headline, parts = lead(facts)
    lines = [headline]
    for part in parts:
        lines += [f"{part.title}:"] if part.title else []
        lines += part.paragraphs
    return "\n\n".join(lines).replace(numerals.NARROW, " ") + "\n"


def _markup(section: Section, anchor: str) -> str:
    lines = [f'<section id="{anchor}">', f"<h2>{escape(section.title)}</h2>"]
    lines += [f"<p>{escape(paragraph)}</p>" for paragraph in section.paragraphs]
    lines += [tables.html(item) if isinstance(item, Table) else figures.html(item) for item in section.items]
    return "\n".join([*lines, "</section>"])


def anchors(parts: Sequence[Section]) -> list[str]:
    """One distinct anchor per section."""
    taken: list[str] = []
    for part in parts:
        name, number = tables.slug(part.title), 2
        while name in taken:
            name, number = f"{tables.slug(part.title)}_{number}", number + 1
        taken.append(name)
    return taken


def render(facts: Facts) -> str:
    """The report of `facts` as one self-contained HTML document."""
    headline, verdicts = lead(facts)
    parts = compose(facts)
    names = anchors(parts)
    weighed = "\n".join(
        line
        for part in verdicts
        for line in (
            *([f'<p class="verdict">{escape(part.title)}</p>'] if part.title else []),
            *(f"<p>{escape(paragraph)}</p>" for paragraph in part.paragraphs),
        )
    )
    model = facts.config.get("model")
    source = model.get("source") if isinstance(model, Mapping) else model
    kicker = " · ".join([facts.experiment, *([source] if isinstance(source, str) else [])])
    links = "".join(
        f'<li><a href="#{name}">{escape(part.title)}</a></li>' for name, part in zip(names, parts, strict=True)
    )
    body = "\n".join(_markup(part, name) for part, name in zip(parts, names, strict=True))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="generator" content="lingregions {escape(lingregions.VERSION)}">
<title>{escape(facts.experiment)}: {escape(headline)}</title>
<link rel="icon" href="data:,">
<style>
{style.sheet()}</style>
</head>
<body>
<header>
<p class="kicker">{escape(kicker)}</p>
<h1{' class="long"' if len(headline) > LONG else ""}>{escape(headline)}</h1>
{weighed}
<nav aria-label="Contents"><ul>{links}</ul></nav>
</header>
<main>
{body}
</main>
<footer>Written by lingregions {escape(lingregions.VERSION)}. Every table lies beside this page in tables/ as Markdown
and as CSV with full precision; the figures lie in figures/ as PNG; results.csv holds the measurements.</footer>
</body>
</html>
"""
