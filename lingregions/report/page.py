"""The page: sections to one HTML document that needs nothing but itself, and the files beside it of the same tables.

Jinja2 fills `page.html` and escapes what it fills in; the style sheet, the script and Vega's bundle stand inside the
document under a content policy that names each of them by its hash and forbids every request. Prose stands in the
template. `_render` is pure: equal data give equal pages.
"""

import base64
import functools
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import altair
import jinja2
import vl_convert
from markupsafe import Markup, escape

import lingregions
from lingregions.report import numerals, sections, tables
from lingregions.report.data import ReportData, read
from lingregions.report.effects import BASE, MEAN, ReportError, at_random
from lingregions.report.figures import THEMES, Figure
from lingregions.report.tables import Table
from lingregions.run import replacing

_VEGA_LITE = altair.SCHEMA_VERSION.removeprefix("v").rpartition(".")[0]  # of bundle and exports, as Altair writes it
_WIDTH = 760  # of an exported figure, in pixels of its SVG
_SCALE = 2  # pixels of a PNG for one of the SVG
_LONGEST = 25  # words of a headline
_FEW_TOKENS = 2000  # of a language; below it an NLL is rough
_FEW_SEGMENTS = 10  # resampled; an interval over fewer is rough


def _compose(data: ReportData) -> tuple[sections.Section, ...]:
    """The sections of a report in their order: effects, what the experiment adds, regions, notes, settings."""
    experiments = list(dict.fromkeys(data.results["experiment"]))
    parts = []
    for experiment in experiments:
        several = len(experiments) > 1
        effects, results = (frame[frame["experiment"] == experiment] for frame in (data.effects, data.results))
        part = sections.effects(effects, results, f"{tables.slug(experiment)}_" if several else "")
        parts.append(sections.Section(f"{part.title}: {experiment}", part.paragraphs, part.items) if several else part)
    # Which texts were used belongs to how a run is repeated, not to what it says.
    texts = [part for part in data.extras if [item.name for item in part.items] == ["texts"]]
    parts += [part for part in data.extras if part not in texts]
    if data.surveys:
        parts.append(sections.regions(data.surveys, data.overlap))
    parts.append(sections.Section("Notes", tuple(dict.fromkeys(map(numerals.sentence, data.notes)))))
    settings = sections.settings(data.config, data.environment, data.identity, data.timings, data.stages)
    items = [replace(item, folded=True) for part in texts for item in part.items]
    parts.append(
        replace(settings, paragraphs=sum((part.paragraphs for part in texts), ()), items=(*items, *settings.items))
    )
    return tuple(part for part in parts if part.paragraphs or part.items)


def _headline(data: ReportData) -> str:
    """One sentence that says what the figures mean: the experiment's own, else the largest mean effect."""
    for sentence in data.headlines:
        if len(sentence.split()) <= _LONGEST:
            return sentence
    against = data.effects[data.effects["control"] == BASE]
    mean = against[against["language"] == MEAN].dropna(subset=["effect_nats"])
    if mean.empty:
        return f"{data.experiment}: {'no effect' if len(data.results) else 'nothing'} has been measured yet."
    row = mean.loc[mean["effect_nats"].idxmax()]
    within = sum(against["intervention"] == row["intervention"]) - 1
    many, times = numerals.plural(within, "language"), numerals.KINDS["exponential"](row["effect_nats"])
    return f"Largest mean effect over {many}: {row['intervention']}, perplexity ×{times}."


def _warnings(data: ReportData) -> list[str]:
    """Sentences on why the figures mean little, where they do: random weights, few tokens, few segments, one seed."""
    said = []
    if data.source.startswith("preset:"):
        said.append("The weights are random: this run shows that the program works, and nothing about language.")
    base = data.results[data.results["intervention"] == BASE]
    if len(base) and base["tokens"].min() < _FEW_TOKENS:
        said.append(f"Few tokens: {numerals.count(int(base['tokens'].min()))} in the shortest language.")
    single = data.effects[data.effects["language"] != MEAN]
    if len(single) and single["segments"].min() < _FEW_SEGMENTS:
        said.append(f"Few segments: intervals rest on {int(single['segments'].min())} in the shortest language.")
    if single[at_random(single)]["seeds"].max() <= 1:
        said.append("Random controls were drawn with one seed: the spread between draws is not known.")
    return said


def _summary(data: ReportData) -> str:
    """The headline, the warnings and the verdict as plain text: what a terminal shows of a run."""
    lines = [_headline(data), *_warnings(data), *(text for text in data.headlines if text != _headline(data))]
    lines += [paragraph for part in data.verdicts for paragraph in part.paragraphs]
    return "\n\n".join(lines).replace(numerals.NARROW, " ") + "\n"


@functools.cache
def _bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script; a few seconds, once a process."""
    bundle = str(vl_convert.javascript_bundle(None, vl_version=_VEGA_LITE))  # type: ignore[arg-type]  # None: all of it
    return re.sub(
        r"\.nan\b", '["na"+"n"]', bundle
    )  # a key of its own: whoever searches a page for nan means its figures


@functools.cache
def _asset(name: str) -> str:
    return resources.files("lingregions.report").joinpath("templates", name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """A script or a style sheet as a content policy names it."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _json(content: Any) -> Markup:
    """JSON that may stand inside a script element: no tag can open or close in it."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _render(
    data: ReportData, parts: Sequence[sections.Section] | None = None, formats: Sequence[str] = ("svg", "png", "csv")
) -> str:
    """The report as one self-contained HTML document.

    Args:
      data: of the run.
      parts: what `_compose` gives for it, where that is known already.
      formats: of the files that lie beside the page for each figure.
    """
    parts = _compose(data) if parts is None else parts
    figures = [item for part in parts for item in part.items if isinstance(item, Figure)]
    style, script, bundle = _asset("page.css"), _asset("page.js"), _bundle() if figures else ""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.tests["table"] = lambda item: isinstance(item, Table)
    environment.filters["visible"] = tables.visible
    environment.filters["breakable"] = lambda key: Markup(re.sub(r"([._/])", r"\1<wbr>", str(escape(key))))
    first = _headline(data)
    policy = f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(bundle)} {_hash(script)}"
    names = tables.distinct([tables.slug(part.title) for part in parts])
    return environment.from_string(_asset("page.html")).render(
        version=lingregions.VERSION,
        policy=policy,
        kicker=" · ".join(filter(None, [data.experiment, data.source])),
        headline=first,
        warnings=_warnings(data),
        caution="These figures mean little." if data.source.startswith("preset:") else "Read these figures with care.",
        lead=next(iter(figures), None),
        verdicts=data.verdicts,
        others=[sentence for sentence in data.headlines if sentence != first],
        parts=list(zip(names, parts, strict=True)),
        formats=formats,
        style=Markup(style),
        script=Markup(script),
        bundle=Markup(bundle),
        specifications=_json({item.name: {**item.spec, "usermeta": {"group": item.group}} for item in figures}),
        themes=_json(THEMES),
    )


# --- the files --------------------------------------------------------------------------------------------------------


def write(folder: Path, pictures: bool = True) -> Path:
    """Write the page, the tables and the figures of a run; see `report.write`."""
    found = read(folder)
    parts = _compose(found)
    items = [item for part in parts for item in part.items]
    names = [item.name for item in items]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ReportError(f"{folder}: two tables or figures are called {twice[0]!r}; rename the file in tables/")
    formats = ("svg", "png", "csv") if pictures else ("csv",)
    for item in items:
        if isinstance(item, Figure):
            _put(folder / "figures" / f"{item.name}.csv", item.frame.to_csv(index=False, lineterminator="\n"))
            if pictures:
                drawn = json.dumps({**item.spec, "width": _WIDTH}, allow_nan=False)
                look: Any = {"vl_version": _VEGA_LITE, "config": THEMES["light"]}  # on white
                svg = vl_convert.vegalite_to_svg(drawn, **look)
                _put(folder / "figures" / f"{item.name}.svg", svg)
                _put(folder / "figures" / f"{item.name}.png", vl_convert.svg_to_png(svg, scale=_SCALE))
        else:
            _put(folder / "tables" / f"{item.name}.md", tables.markdown(item))
            _put(folder / "tables" / f"{item.name}.csv", tables.spreadsheet(item))
    _put(folder / "headline.txt", _summary(found))
    _put(folder / "report.html", _render(found, parts, formats))
    return folder / "report.html"


def _put(path: Path, content: str | bytes) -> None:
    with replacing(path) as target:
        # A lone surrogate in a name can't be encoded; it is shown as an escape rather than losing the report.
        target.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "backslashreplace"))
