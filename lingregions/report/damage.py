"""Damage: what each arm of an experiment costs each language, in the log domain.

The damage of an arm in a language is the difference of its NLL per token (nats) from the base's, which is the logarithm
of the ratio of the two perplexities. The mean damage over languages is therefore the logarithm of the ratio of the
geometric mean perplexities. Nothing here leaves the log domain, so a perplexity of 1e400 is a number like any other.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lingregions.report import languages, numerals

BASE = "base"


@dataclass(frozen=True)
class Row:
    """One measurement: NLL summed over `tokens` targets (nats), which stand for `bytes` bytes of UTF-8."""

    experiment: str
    arm: str
    language: str
    nll_nats: float
    tokens: int
    bytes: int

    @property
    def nll(self) -> float | None:
        """NLL in nats per token, the logarithm of the perplexity; None if it can't be computed or isn't finite."""
        if self.tokens <= 0 or not math.isfinite(self.nll_nats):
            return None
        return self.nll_nats / self.tokens

    @property
    def bits_per_byte(self) -> float | None:
        """NLL in bits per UTF-8 byte: comparable between languages and tokenizers."""
        if self.bytes <= 0 or not math.isfinite(self.nll_nats):
            return None
        return self.nll_nats / math.log(2) / self.bytes


@dataclass(frozen=True)
class Arm:
    """What an arm's name says.

    `kind` is base, top, bottom, random, matched, magnitude, monolingual or other; `phrase` names it in a sentence, the
    same for all draws of a random one; `label` names it in a table.
    """

    name: str
    kind: str
    phrase: str
    label: str
    language: str = ""
    size: float | None = None  # fraction of the scope


_SELECTED = re.compile(
    r"^(?P<kind>core|top|bottom|random|matched[\s_-]?random|matched|magnitude)"
    r"(?:[\s_:-]*(?P<fraction>\d*\.\d+(?:e-?\d+)?|\d+e-\d+|\d+(?:\.\d+)?(?=\s*(?:%|percent|pct)))\s*(?P<percent>%|percent|pct)?)?"
    r"(?:[\s_:-]+(?:seed|draw|s)?[\s_:-]*(?P<draw>\d+))?$"
)
_MONOLINGUAL = re.compile(r"^(?:monolingual|mono|only|language)[\s_:-]*(?P<code>[a-z]{2,3})$")
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
        return Arm(name, "base", "the untouched model", "base")
    match = _MONOLINGUAL.match(name)
    if match and languages.find(match["code"]):
        own = languages.name(match["code"])
        return Arm(name, "monolingual", f"the {own} region", f"{own} region", match["code"])
    match = _SELECTED.match(name)
    if match is None:
        return Arm(name, "other", name.replace("_", " "), name.replace("_", " "))
    kind = "matched" if match["kind"].startswith("matched") else match["kind"]
    part = float(match["fraction"]) / (100 if match["percent"] else 1) if match["fraction"] else fraction
    amount = f" {numerals.percent(part)}" if part is not None else "" if kind == "core" else " region"
    phrase, label = (words + amount for words in _PHRASES[kind])
    if match["draw"]:
        label += f", draw{numerals.NARROW}{match['draw']}"
    return Arm(name, "top" if kind == "core" else kind, phrase, label, size=part)


@dataclass(frozen=True)
class Damage:
    """The measurements of one experiment, by (arm, language), in the order in which they were first met."""

    experiment: str
    cells: Mapping[tuple[str, str], Row]
    arms: tuple[str, ...]
    languages: tuple[str, ...]
    fraction: float | None = None
    notes: tuple[str, ...] = field(default=())

    def nll(self, arm: str, code: str) -> float | None:
        """NLL in nats per token; None where it was not measured or is not finite."""
        row = self.cells.get((arm, code))
        return row.nll if row else None

    def damage(self, arm: str, code: str) -> float | None:
        """Difference in NLL per token from the base (nats): the log ratio of the two perplexities."""
        base, own = self.nll(BASE, code), self.nll(arm, code)
        return None if base is None or own is None else own - base

    def measured(self, arm: str) -> tuple[str, ...]:
        """Languages in which the arm has a damage (for the base: an NLL)."""
        value = self.nll if arm == BASE else self.damage
        return tuple(code for code in self.languages if value(arm, code) is not None)

    def mean(self, arm: str) -> float | None:
        """Mean NLL per token over the languages measured: the logarithm of the geometric mean perplexity."""
        return average([self.nll(arm, code) for code in self.languages])

    def cost(self, arm: str) -> float | None:
        """Mean damage over the languages measured: the log ratio of the geometric mean perplexities over them."""
        return average([self.damage(arm, code) for code in self.languages])

    def parsed(self) -> tuple[Arm, ...]:
        """What the names of the arms say, the base left out."""
        return tuple(parse(arm, self.fraction) for arm in self.arms if arm != BASE)

    def labels(self) -> dict[str, str]:
        """What each arm is called in a table: in words where no two arms would share them."""
        words = {arm: parse(arm, self.fraction).label for arm in self.arms}
        called = list(words.values())
        return {arm: label if called.count(label) == 1 else arm for arm, label in words.items()}


def average(values: Sequence[float | None]) -> float | None:
    """Mean of the values that are there; None if there are none."""
    present = [value for value in values if value is not None]
    return math.fsum(present) / len(present) if present else None


def collect(rows: Sequence[Row], fraction: float | None = None) -> tuple[Damage, ...]:
    """The measurements of each experiment; of a cell measured twice the later counts, with a note if they differ."""
    experiments: dict[str, dict[tuple[str, str], Row]] = {}
    changed: dict[str, int] = {}
    for row in rows:
        cells = experiments.setdefault(row.experiment, {})
        earlier = cells.get((row.arm, row.language))
        if earlier is not None and earlier != row:
            changed[row.experiment] = changed.get(row.experiment, 0) + 1
        cells[row.arm, row.language] = row
    return tuple(
        _damage(experiment, cells, fraction, changed.get(experiment, 0)) for experiment, cells in experiments.items()
    )


def _damage(experiment: str, cells: Mapping[tuple[str, str], Row], fraction: float | None, changed: int) -> Damage:
    arms = list(dict.fromkeys(arm for arm, _ in cells))
    if BASE in arms:
        arms = [BASE, *(arm for arm in arms if arm != BASE)]
    languages = list(dict.fromkeys(code for _, code in cells))
    notes = []
    missing = [(arm, code) for arm in arms for code in languages if (arm, code) not in cells]
    if missing:
        shown = ", ".join(f"{arm} / {code}" for arm, code in missing[:6]) + (", …" if len(missing) > 6 else "")
        notes.append(
            f"Not measured, because the run has not finished or failed there: {len(missing)} of "
            f"{len(arms) * len(languages)} cells ({shown}), shown as a dash. Means are over the languages that are "
            "there."
        )
    if empty := [key for key, row in cells.items() if row.tokens <= 0]:
        notes.append(
            f"No token was evaluated for {numerals.listed([' / '.join(key) for key in empty])}; shown as a dash."
        )
    if overflow := [key for key, row in cells.items() if row.tokens > 0 and row.nll is None]:
        notes.append(
            f"The NLL is not finite for {numerals.listed([' / '.join(key) for key in overflow])}: the perturbed model "
            "overflows there; shown as a dash and left out of the means, which understate the damage."
        )
    if changed:
        notes.append(
            f"{numerals.plural(changed, 'cell')} in results.csv were measured twice with different results; the "
            "later one counts."
        )
    if BASE not in arms:
        notes.append(f"There is no arm '{BASE}', so no damage can be computed.")
    return Damage(experiment, cells, tuple(arms), tuple(languages), fraction, tuple(notes))


def headline(damage: Damage, verb: str = "Removing") -> str:
    """The experiment in one sentence, from its figures: what the arms do to the geometric mean perplexity."""
    if BASE not in damage.arms:
        return f"{damage.experiment}: the untouched model was not measured, so no damage can be stated."
    groups: dict[str, list[str]] = {}
    sizes: dict[str, float | None] = {}
    for arm in damage.parsed():
        groups.setdefault(arm.phrase, []).append(arm.name)
        sizes[arm.phrase] = arm.size
    costs = {phrase: average([damage.cost(name) for name in names]) for phrase, names in groups.items()}
    known = [(phrase, cost) for phrase, cost in costs.items() if cost is not None]
    base = damage.mean(BASE)
    if not known:
        if base is None:
            return f"{damage.experiment}: nothing has been measured yet."
        return (
            f"The untouched model has a geometric-mean perplexity of {numerals.exponential(base)} over "
            f"{numerals.plural(len(damage.measured(BASE)), 'language')}; no perturbed arm has been measured yet."
        )
    size = sizes[known[0][0]]
    alike = [(phrase, cost) for phrase, cost in known if size is not None and sizes[phrase] == size]
    if len(known) > 4 and 2 <= len(alike) <= 4:  # a sentence holds four arms: those of the first one's size
        known = alike
    elif len(known) > 4:  # or the three worst and the mildest
        ranked = sorted(known, key=lambda item: -item[1])
        known = [*ranked[:3], ranked[-1]]
    most = max(len(damage.measured(name)) for names in groups.values() for name in names)
    (first, cost), *others = known
    draws = {phrase: f" ({len(names)} draws)" if len(names) > 1 else "" for phrase, names in groups.items()}
    sentence = (
        f"{verb} {first}{draws[first]} multiplies the geometric-mean perplexity over "
        f"{numerals.plural(most, 'language')} by {numerals.exponential(cost)}"
    )
    return (
        "; ".join(
            [sentence, *(f"{phrase}{draws[phrase]} by {numerals.exponential(value)}" for phrase, value in others)]
        )
        + "."
    )


CONTROLS = ("random", "matched", "magnitude")

# What can show that a region is linguistic, and the words by which a run's arms and tables tell that it was measured.
EVIDENCE = {
    "controls matched in size and weight magnitude": ("matched",),
    "the largest weights by magnitude alone": ("magnitude",),
    "the smallest set that does the damage": ("minimal",),
    "monolingual regions (own language against the others)": ("monolingual",),
    "freezing in further training": ("freez", "frozen"),
}


def verdict(damage: Damage, measured: Sequence[str] = ()) -> tuple[str, ...]:
    """Paragraphs that weigh the figures: the contrast with the controls and how far it can be trusted; then a caution.

    `measured` names the other tables of the run. Nothing is claimed that is not in the figures: that a model collapses
    does not by itself show that a region is linguistic, and the last paragraph says which evidence is missing.
    """
    if BASE not in damage.arms:
        return ("Without the untouched model there is nothing to compare with.",)
    arms = [arm for arm in damage.parsed() if damage.cost(arm.name) is not None]
    tops = [arm for arm in arms if arm.kind == "top"]
    # A control is one of the same size; the first region that has any is the one that the verdict is about.
    sized = {top: [arm for arm in arms if arm.kind in CONTROLS and arm.size == top.size] for top in tops}
    top, controls = next(((top, others) for top, others in sized.items() if others), (None, []))
    sentences = []
    if top is not None:
        sentences.append(_contrast(damage, top, max(controls, key=lambda arm: _cost(damage, arm.name))))
        sentences.append(_consistency(damage, top, controls))
    elif tops:
        sentences.append(
            "No random control of the same size was measured, so nothing says whether these parameters matter more "
            "than any others."
        )
    for kind in ("random", "matched"):
        draws = [arm for arm in controls if arm.kind == kind]
        if len(draws) == 1:
            sentences.append(
                f"{numerals.sentence(draws[0].phrase)} is a single draw: differences from it of less than about 2 "
                "times carry no weight."
            )
    sentences += _specificity(damage, [arm for arm in arms if arm.kind == "monolingual"])
    tokens = sorted(row.tokens for row in damage.cells.values() if row.arm == BASE and row.tokens > 0)
    if tokens and tokens[0] < 2000:
        amount = f"{tokens[0]:,}" if tokens[0] == tokens[-1] else f"{tokens[0]:,} to {tokens[-1]:,}"
        bare = "" if any("interval" in name for name in measured) else " and the figures carry no interval"
        sentences.append(
            f"Each language was evaluated on {amount} tokens{bare}: read orders of magnitude, not per cent."
        )
    weighed = " ".join(sentence for sentence in sentences if sentence)
    return tuple(paragraph for paragraph in (weighed, _caution(arms, measured) if arms else "") if paragraph)


def _cost(damage: Damage, arm: str) -> float:
    cost = damage.cost(arm)
    assert cost is not None  # arms without a damage were left out
    return cost


def _contrast(damage: Damage, top: Arm, control: Arm) -> str:
    own, other = _cost(damage, top.name), _cost(damage, control.name)
    worst = "" if control.kind == "magnitude" else "the worst control, "
    start = (
        f"{numerals.sentence(top.phrase)} costs {numerals.decimal(own)} nats per token on average, "
        f"{worst}{control.phrase}, {numerals.decimal(other)}"
    )
    if own - other < math.log(2):
        return (
            f"{start}: the difference is less than a factor of 2 in perplexity, so this run shows no region that "
            "matters more than its control."
        )
    return (
        f"{start}: a perplexity {numerals.exponential(own - other)} times higher. This run's model depends on these "
        "parameters far more than on as many others."
        if own - other > math.log(10)
        else f"{start}: a perplexity {numerals.exponential(own - other)} times higher."
    )


def _consistency(damage: Damage, top: Arm, controls: Sequence[Arm]) -> str:
    codes = [
        code for code in damage.measured(top.name) if all(damage.damage(arm.name, code) is not None for arm in controls)
    ]
    if not codes:
        return ""

    def own(code: str) -> float:
        return damage.damage(top.name, code) or 0.0

    ahead = [code for code in codes if all(own(code) > (damage.damage(arm.name, code) or 0.0) for arm in controls)]
    least, most = min(codes, key=own), max(codes, key=own)
    return (
        f"It does more harm than every control in {len(ahead)} of {numerals.plural(len(codes), 'language')} (least in "
        f"{languages.name(least)}, {numerals.exponential(own(least))} times; most in {languages.name(most)}, "
        f"{numerals.exponential(own(most))} times)."
    )


def _specificity(damage: Damage, arms: Sequence[Arm]) -> list[str]:
    sentences = []
    for arm in arms:
        own = damage.damage(arm.name, arm.language)
        others = average([damage.damage(arm.name, code) for code in damage.languages if code != arm.language])
        if own is not None and others is not None:
            name = languages.name(arm.language)
            sentences.append(
                f"{numerals.sentence(arm.phrase)} costs {name} {numerals.exponential(own)} times its perplexity and "
                f"the other languages {numerals.exponential(others)} times on (geometric) average."
            )
    return sentences


def _caution(arms: Sequence[Arm], measured: Sequence[str]) -> str:
    # Arms count by their name, tables by theirs: "magnitude" in an arm or in a table's name is a measurement of it.
    words = " ".join([arm.kind for arm in arms] + [arm.name for arm in arms] + list(measured)).lower()
    have = [what for what, keys in EVIDENCE.items() if any(key in words for key in keys)]
    lack = [what for what in EVIDENCE if what not in have]
    sentence = (
        "Collapse by itself does not show that a region is linguistic: parameters can be indispensable to any text at "
        "all. What can show it is a comparison: "
    )
    if have and lack:
        return f"{sentence}this run measured {numerals.listed(have)}; it did not measure {numerals.listed(lack, 'or')}."
    if lack:
        return f"{sentence}{numerals.listed(lack)}. This run measured none of these."
    return f"{sentence}this run measured {numerals.listed(have)}; see their tables."
