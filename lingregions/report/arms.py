"""Arms: what the name of an arm says, for a sentence, for a table, and for the company in which it is shown.

An experiment names its arms as it likes; names that follow a grammar known here ("top 1%", "random 1% seed 2",
"top 1% q", "top 1% layer 3", "monolingual ru", "matched to ru seed 1", "3 top dimensions zero residual", "super weight
1 x10") are read as words and set beside their like. Any other is shown as it is.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from lingregions.report import languages, numerals

BASE = "base"
# Panels: arms of one kind, side by side.
WHOLE, OWN, DIMENSIONS, SCALARS, OTHERS = (
    "whole regions",
    "monolingual regions",
    "dimensions",
    "single parameters",
    "other arms",
)


@dataclass(frozen=True)
class Arm:
    """What an arm's name says.

    `kind` is base, top, bottom, random, matched, magnitude, monolingual, control (a random region the size of a
    monolingual one), part (of a region), dimension, scalar or other; `phrase` names it in a sentence, the same for all
    draws of a random one; `label` names it in a table, `short` in a table of its `panel`.
    """

    name: str
    kind: str
    phrase: str
    label: str
    language: str = ""
    size: float | None = None  # fraction of the scope
    part: str = ""
    panel: str = OTHERS
    short: str = ""

    @property
    def region(self) -> bool:
        """Whether the phrase names a region, which a verb can be put before: "Removing the top 1 %"."""
        return self.kind not in ("base", "dimension", "scalar", "other")


_KIND = r"^(?P<kind>core|top|bottom|random|matched[\s_-]?random|matched|magnitude)"
_FRACTION = (
    r"[\s_:-]*(?P<fraction>\d*\.\d+(?:e-?\d+)?|\d+e-\d+|\d+(?:\.\d+)?(?:e-?\d+)?(?=\s*(?:%|percent|pct)))"
    r"\s*(?P<percent>%|percent|pct)?"
)
_SELECTED = re.compile(_KIND + f"(?:{_FRACTION})?" + r"(?:[\s_:-]+(?:seed|draw|s)?[\s_:-]*(?P<draw>\d+))?$")
_PART = re.compile(_KIND + _FRACTION + r"[\s_:-]+(?P<part>[a-z].*?)(?:[\s_:-]+(?:seed|draw)[\s_:-]*(?P<draw>\d+))?$")
_MONOLINGUAL = re.compile(
    r"^(?:monolingual|mono|only|language)[\s_:-]*(?P<code>[a-z]{2,3})"
    r"(?:[\s_:-]+(?P<control>matched[\s_-]?random|matched|random))?(?:[\s_:-]+(?:seed|draw)[\s_:-]*(?P<draw>\d+))?$"
)
_CONTROL = re.compile(
    r"^(?P<control>matched|random)[\s_]+(?:to|like|for)[\s_]+(?P<code>[a-z]{2,3})"
    r"(?:[\s_:-]+(?:seed|draw)[\s_:-]*(?P<draw>\d+))?$"
)
_LAYER = re.compile(r"^layer[\s_]*(\d+)$")
_MODULE = re.compile(r"^(?:q|k|v|o|gate|up|down|norms?|attention|mlp|[a-z_.]+_proj)$")
_DRAW = re.compile(r"[\s_:-]+(?:seed|draw)[\s_:-]*(\d+)(?=$|[\s_:-])")
_DIMENSION = re.compile(r"\bdimensions?\b")
_SCALAR = re.compile(r"^(?:super[\s_-]?weight|scalar|weight|norm[\s_-]?gain|gain)s?\b|\[\d+(?:[\s,]+\d+)*\]")
_PHRASES = {
    "core": ("the core", "core"),
    "top": ("the top", "top"),
    "bottom": ("the bottom", "bottom"),
    "random": ("a random", "random"),
    "matched": ("a matched random", "matched random"),
    "magnitude": ("the largest (by magnitude)", "magnitude"),
}


def parse(name: str, fraction: float | None = None) -> Arm:
    """What the name of an arm says; `fraction` is taken where the name has none (`top` in a run of 1 %)."""
    if name == BASE:
        return Arm(name, "base", "the untouched model", "base", short="base")
    if (match := _MONOLINGUAL.match(name) or _CONTROL.match(name)) and languages.find(match["code"]):
        return _monolingual(name, match)
    if match := _SELECTED.match(name) or _PART.match(name):
        return _selected(name, match, fraction)
    words, draw = stem(name), _DRAW.search(name)
    if " " not in words:
        words = words.replace("_", " ")
    words = re.sub(r"\bx(-?\d)", r"×\1", words)
    label = _drawn(words, draw[1] if draw else None)
    kind, panel = "other", OTHERS
    if layer := _LAYER.match(words):
        return Arm(name, "part", words, label, part=words, panel="layers", short=layer[1])
    if _DIMENSION.search(words):
        kind, panel = "dimension", DIMENSIONS
    elif _SCALAR.search(words):
        kind, panel = "scalar", SCALARS
    return Arm(name, kind, words, label, panel=panel, short=label)


def _drawn(label: str, draw: str | None) -> str:
    return f"{label}, draw{numerals.NARROW}{draw}" if draw else label


def _monolingual(name: str, match: re.Match[str]) -> Arm:
    code, own = match["code"], languages.name(match["code"])
    if not match["control"]:
        label = _drawn(f"{own} region", match["draw"])
        return Arm(name, "monolingual", f"the {own} region", label, code, panel=OWN, short=_drawn(own, match["draw"]))
    how = "matched random" if match["control"].startswith("matched") else "random"
    label = _drawn(f"{own}-sized {how}", match["draw"])
    short = _drawn(f"{own}: {how}", match["draw"])
    return Arm(name, "control", f"a {how} region of the size of the {own} one", label, code, panel=OWN, short=short)


def _selected(name: str, match: re.Match[str], fraction: float | None) -> Arm:
    kind = "matched" if match["kind"].startswith("matched") else match["kind"]
    size = float(match["fraction"]) / (100 if match["percent"] else 1) if match["fraction"] else fraction
    amount = f" {numerals.percentage(size)}" if size is not None else "" if kind == "core" else " region"
    phrase, label = (words + amount for words in _PHRASES[kind])
    part = match.groupdict().get("part")
    if not part:
        label = _drawn(label, match["draw"])
        return Arm(name, "top" if kind == "core" else kind, phrase, label, size=size, panel=WHOLE, short=label)
    layer = _LAYER.match(part)
    within = f"in {part}" if layer or _MODULE.match(part) else part
    return Arm(
        name,
        "part",
        f"{phrase} {within}",
        _drawn(f"{label} {part}", match["draw"]),
        part=part,
        panel=f"{label} by layer" if layer else f"parts and variants of the {label}",
        short=_drawn(layer[1] if layer else part, match["draw"]),
    )


def stem(name: str) -> str:
    """The name of an arm without its seed: what all draws of it share."""
    return _DRAW.sub("", name)


def distinct(arms: Sequence[Arm], field: str = "label") -> dict[str, str]:
    """What each arm is called in a table: in words where no two arms would share them, else by its name."""
    words = {arm.name: getattr(arm, field) or arm.label for arm in arms}
    called = list(words.values())
    return {name: label if called.count(label) == 1 else name for name, label in words.items()}
