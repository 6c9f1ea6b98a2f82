"""Style: the one sheet of the page, for light, dark, phone and paper. Restrained: the figures are the ornament."""

from lingregions.report import figures, svg

_LIGHT = "--paper: #fff; --ink: #1b1f24; --quiet: #59636e; --rule: #d5dae0; --band: #f4f6f8; --accent: #0072b2"
_DARK = "--paper: #12161b; --ink: #e3e7ec; --quiet: #9aa5b1; --rule: #343c46; --band: #1a2027; --accent: #6cb8ea"

_TEXT = """
* { box-sizing: border-box }
html { -webkit-text-size-adjust: 100% }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
}
main, header, footer { max-width: 64rem; margin: 0 auto; padding: 0 1.25rem }
header { padding-top: 2.5rem }
h1 { margin: 0 0 1.25rem; font-size: 1.75rem; line-height: 1.3; font-weight: 600; max-width: 48rem; text-wrap: pretty }
h1.long { font-size: 1.35rem; line-height: 1.35 }
h2 {
  margin: 3rem 0 .75rem; padding-top: .9rem; border-top: 1px solid var(--rule);
  font-size: 1.25rem; font-weight: 600;
}
p { margin: 0 0 .9rem; max-width: 44rem; overflow-wrap: break-word }
a { color: var(--accent); text-underline-offset: .15em }
nav { margin: 1.5rem 0 0; font-size: .9rem }
nav ul { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; list-style: none; margin: 0; padding: 0 }
.verdict { margin: 1.1rem 0 .3rem; font-weight: 600 }
.kicker { margin: 0 0 .5rem; color: var(--quiet); font-size: .9rem }
footer {
  margin-top: 3rem; padding-top: 1rem; padding-bottom: 2.5rem;
  border-top: 1px solid var(--rule); color: var(--quiet); font-size: .85rem;
}
"""

_TABLES = """
figure { margin: 1.5rem 0 2rem }
figcaption { color: var(--quiet); font-size: .85rem; margin-top: .4rem; max-width: 44rem }
.scroll { overflow-x: auto }
.scroll:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px }
table { border-collapse: collapse; font-size: .85rem; line-height: 1.35; font-variant-numeric: tabular-nums }
caption, .caption { text-align: left; font-weight: 600; font-size: .95rem; margin: 0; padding: 0 0 .5rem }
caption { white-space: nowrap }
th, td { padding: .3rem .7rem; text-align: left; font-weight: 400; vertical-align: baseline }
thead th { font-weight: 600; border-bottom: 1px solid var(--ink); vertical-align: bottom }
.table tbody th { min-width: 7.5rem }
.n { text-align: right; white-space: nowrap }
thead .n { white-space: normal }
.table tbody tr:nth-child(even):not(.total) { background: var(--band) }
tr.total > * { font-weight: 600; border-top: 1px solid var(--ink) }
.grid td.n { border: 1px solid var(--paper); min-width: 3.4rem }
.grid tr.total > td.n { border-top: 1px solid var(--ink) }
.compact table { font-size: .72rem }
.compact th, .compact td { padding: .15rem .3rem }
.compact td.n { min-width: 0 }
.upright { writing-mode: vertical-rl; transform: rotate(180deg); white-space: nowrap }
tr.break th { padding-top: .9rem; font-weight: 600; color: var(--quiet) }
details { margin: .75rem 0 }
summary { cursor: pointer; font-weight: 600; font-size: .95rem }
summary:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px }
.group, .snone { color: var(--quiet) }
.group { white-space: nowrap }
.settings td { overflow-wrap: anywhere; min-width: 14rem }
.prose th, .prose td {
  min-width: 9rem; max-width: 24rem; vertical-align: top; overflow-wrap: anywhere; unicode-bidi: isolate;
}
.legend { display: flex; align-items: center; gap: .5rem; font-size: .8rem; color: var(--quiet); margin: .5rem 0 0 }
.legend .bar { display: flex; border: 1px solid var(--rule) }
.legend i { display: block; width: .6rem; height: .7rem }
"""

_CHARTS = """
svg {
  display: block; width: 100%; min-width: 34rem; height: auto;
  font-size: 12.5px; font-variant-numeric: tabular-nums;
}
svg text { fill: var(--ink) }
svg .label { fill: var(--quiet) }
svg .value { font-weight: 600 }
svg .halo { paint-order: stroke; stroke: var(--paper); stroke-width: 4px; stroke-linejoin: round }
.rule, .thread { stroke: var(--rule) }
.mark { stroke: var(--ink); stroke-width: 2.5 }
.dot { fill: var(--accent); fill-opacity: .55 }
.level { stroke: var(--ink); stroke-dasharray: 2 3 }
.line { fill: none; stroke-width: 2 }
.needle { fill: none; stroke-width: 1 }
.band { fill-opacity: .16; stroke: none }
.bar { stroke-width: 1.5; stroke-opacity: .7 }
.leader { stroke: var(--quiet); stroke-width: .75 }
.front { fill: none; stroke: var(--ink); stroke-dasharray: 2 3 }
.spot { stroke: var(--paper); stroke-width: 1 }
circle.point { fill: var(--paper); stroke-width: 1.5 }
"""

_PHONE = """
h1 { font-size: 1.35rem }
h1.long { font-size: 1.15rem }
caption { white-space: normal }
header { padding-top: 1.5rem }
th[scope="row"], thead th:first-child { position: sticky; left: 0; background: var(--paper) }
.table tbody tr:nth-child(even):not(.total) th { background: var(--band) }
.settings th[scope="row"] { position: static; overflow-wrap: anywhere }
.settings td { min-width: 9rem }
"""

_PAPER = """
body { font-size: 10pt }
nav { display: none }
.scroll { overflow: visible }
tr, svg, .grid { break-inside: avoid }
svg { max-height: 22cm }
h2, caption, .caption { break-after: avoid }
.grid td, .legend i { print-color-adjust: exact; -webkit-print-color-adjust: exact }
table { font-size: 8pt }
th, td { padding: .15rem .35rem }
.grid td.n { min-width: 0 }
"""


def sheet() -> str:
    """The style sheet of a page."""
    series = "".join(
        f".c{place} {{ stroke: {colour} }}\n.f{place} {{ fill: {colour} }}\n" for place, colour in enumerate(svg.SERIES)
    )
    return "".join(
        [
            f":root {{ color-scheme: light dark; {_LIGHT} }}",
            _TEXT,
            _TABLES,
            _CHARTS,
            f"svg {{ max-width: {svg.WIDTH}px }}\n",
            series,
            figures.palette(figures.LIGHT),
            f"@media (max-width: 40rem) {{{_PHONE}}}\n",
            "@media screen and (prefers-color-scheme: dark) {\n",
            f":root {{ {_DARK} }}\n{figures.palette(figures.DARK)}}}\n",
            f"@media print {{{_PAPER}}}\n",
        ]
    )
