"""Verdict: the headline of a run and the paragraphs that weigh its figures, computed from them.

Nothing is claimed that is not in the figures, and a factor of perplexity stands with its interval wherever the run has
one. That a model collapses does not by itself show that a region is linguistic (docs/method.md 6): every verdict says
so, compares with the controls that were measured, and names those that were not.
"""

import math
import re
from collections.abc import Sequence

from lingregions.report import languages, numerals
from lingregions.report.arms import BASE, Arm
from lingregions.report.damage import EVERY, Damage, average, clear
from lingregions.report.numerals import Span

_SENTENCE = re.compile(r".+?[.!?](?=\s+[A-Z“]|$)", re.DOTALL)
CONTROLS = ("random", "matched", "magnitude")

# What can show that a region is linguistic, and the words by which a run's arms and tables tell that it was measured.
EVIDENCE = {
    "controls matched in size and weight magnitude": ("matched",),
    "the largest weights by magnitude alone": ("magnitude",),
    "the smallest set that does the damage": ("minimal",),
    "monolingual regions (own language against the others)": ("monolingual",),
    "freezing in further training": ("freez", "frozen"),
}
FEW = 10  # segments; an interval over fewer is rough


def times(damage: Damage, span: Span) -> str:
    """A difference in nats as a factor with its interval, as a sentence has it: 4.0 × 10⁶ (3.1 × 10⁶ to 5.2 × 10⁶)."""
    words = numerals.factor(span).removeprefix("×")
    return f"{words} (no interval)" if damage.assessed and span.low is None else words


def headline(damage: Damage, verb: str = "Removing") -> str:
    """The experiment in one sentence, from its figures: what the arms do to the geometric mean perplexity."""
    if BASE not in damage.arms:
        return f"{damage.experiment}: the untouched model was not measured, so no damage can be stated."
    groups: dict[str, list[str]] = {}
    arms = {arm.phrase: arm for arm in damage.parsed()}
    for arm in damage.parsed():
        groups.setdefault(arm.phrase, []).append(arm.name)
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
    if not any(arm.kind == "top" for arm in arms.values()) and (sentence := _own(damage, verb)):
        return sentence
    size = arms[known[0][0]].size
    alike = [(phrase, cost) for phrase, cost in known if size is not None and arms[phrase].size == size]
    if len(known) > 4 and len(alike) >= 2:  # a sentence holds four arms: those of the first one's size, controls first
        order = {kind: place for place, kind in enumerate(("top", *CONTROLS))}
        chosen = sorted(alike, key=lambda item: order.get(arms[item[0]].kind, len(order)))[:4]
        known = [item for item in alike if item in chosen]
    elif len(known) > 4:  # or the three worst and the mildest
        ranked = sorted(known, key=lambda item: -item[1])
        known = [*ranked[:3], ranked[-1]]
    most = max(len(damage.measured(name)) for names in groups.values() for name in names)

    def by(phrase: str, cost: float) -> str:
        names = groups[phrase]
        return times(damage, damage.span(names[0]) if len(names) == 1 else Span(cost))

    def named(phrase: str) -> str:
        draws = sum(map(damage.seeds, groups[phrase]))
        words = phrase if arms[phrase].region else f"“{phrase}”"
        return f"{words} ({draws} draws)" if draws > 1 else words

    (first, cost), *others = known
    subject = f"{verb} {named(first)}" if arms[first].region else f"The change {named(first)}"
    sentence = (
        f"{subject} multiplies the geometric-mean perplexity over {numerals.plural(most, 'language')} by "
        f"{by(first, cost)}"
    )
    return "; ".join([sentence, *(f"{named(phrase)} by {by(phrase, value)}" for phrase, value in others)]) + "."


def _own(damage: Damage, verb: str) -> str:
    """The headline of monolingual regions: each on its own language, and the same of their controls; "" without any."""
    clauses: list[str] = []
    count = 0
    for kind, phrase in (("monolingual", "a monolingual region"), ("control", "a random region of its size")):
        found = [arm for arm in damage.parsed() if arm.kind == kind]
        span = mean([damage.span(arm.name, arm.language) for arm in found])
        if kind == "monolingual" and span.value is None:
            return ""
        if span.value is not None:
            multiplies = "" if clauses else " multiplies the perplexity of its own language"
            clauses.append(f"{phrase}{multiplies} by {times(damage, span)}")
            count = max(count, len({arm.language for arm in found}))
    over = f": geometric means over {numerals.plural(count, 'language')}" if count > 1 else ""
    return f"{verb} {', '.join(clauses)}{over}."


def opening(paragraphs: Sequence[str], longest: int = 240) -> list[str]:
    """The first sentence of some paragraphs, if it is short enough for a headline."""
    found = _SENTENCE.match(paragraphs[0]) if paragraphs else None
    return [found[0]] if found and len(found[0]) <= longest else []


def weigh(damage: Damage, measured: Sequence[str] = (), own: bool = False) -> tuple[str, ...]:
    """Paragraphs that weigh the figures: the contrast with the controls and how far it can be trusted; then a caution.

    `measured` names the other tables of the run, which tell, as the experiment's name does, what was measured; `own`
    says that the experiment has written a verdict of its own, which leaves only what holds of any run.
    """
    if BASE not in damage.arms:
        return ("Without the untouched model there is nothing to compare with.",)
    arms = [arm for arm in damage.parsed() if damage.cost(arm.name) is not None]
    tops = [arm for arm in arms if arm.kind == "top"]
    # A control is one of the same size; the first region that has any is the one that the verdict is about.
    sized = {top: [arm for arm in arms if arm.kind in CONTROLS and arm.size == top.size] for top in tops}
    top, controls = next(((top, others) for top, others in sized.items() if others), (None, []))
    sentences = []
    if top is not None and not own:
        drawn = [arm for arm in controls if arm.kind != "magnitude"] or controls
        sentences.append(_contrast(damage, top, max(drawn, key=lambda arm: _cost(damage, arm.name))))
        sentences.append(_consistency(damage, top, controls))
        sentences += [_magnitude(damage, top, arm) for arm in controls if arm.kind == "magnitude"]
    elif tops and not own:
        sentences.append(
            "No random control of the same size was measured, so nothing says whether these parameters matter more "
            "than any others."
        )
    for kind in ("random", "matched"):
        draws = [arm for arm in controls if arm.kind == kind]
        if sum(damage.seeds(arm.name) for arm in draws) == 1:
            covered = ", whose interval covers the texts but not the draw" if damage.assessed else ""
            sentences.append(
                f"{numerals.sentence(draws[0].phrase)} is a single draw{covered}: differences from it of less than "
                "about 2 times carry no weight."
            )
    if not own:
        sentences += _specificity(damage, arms)
    sentences.append(_precision(damage, measured))
    weighed = " ".join(sentence for sentence in sentences if sentence)
    return tuple(
        paragraph
        for paragraph in (weighed, _caution(arms, [damage.experiment, *measured]) if arms else "")
        if paragraph
    )


def _cost(damage: Damage, arm: str) -> float:
    cost = damage.cost(arm)
    assert cost is not None  # arms without a damage were left out
    return cost


def _difference(damage: Damage, arm: Arm, other: Arm) -> Span:
    """What an arm costs beyond another, with the interval where damage.csv compares the two."""
    value = _cost(damage, arm.name) - _cost(damage, other.name)
    found = damage.contrast(arm.name, other.name)
    return Span(value, found.low, found.high) if found else Span(value)


def _contrast(damage: Damage, top: Arm, control: Arm) -> str:
    own, other = damage.span(top.name), damage.span(control.name)
    worst = "" if control.kind == "magnitude" else "the worst control, "
    write = numerals.interval if damage.assessed else numerals.decimal
    costs, others = (write(span if damage.assessed else span.value) for span in (own, other))
    start = (
        f"{numerals.sentence(top.phrase)} costs {costs} nats per token on average, {worst}{control.phrase}, {others}"
    )
    span = _difference(damage, top, control)
    assert span.value is not None
    if span.low is not None and clear(span) <= 0:
        return (
            f"{start}: a perplexity {times(damage, span)} times as high, and the interval does not lie above 1, so "
            "this run shows no region that matters more than its control."
        )
    if span.value < math.log(2):
        return (
            f"{start}: the difference is less than a factor of 2 in perplexity, so this run shows no region that "
            "matters more than its control."
        )
    if damage.assessed and span.low is None:
        apart = (own.low or 0.0) > (other.high if other.high is not None else math.inf)
        verb = "do not overlap" if apart else "overlap, so the difference may be one of chance"
        return f"{start}; the two were not compared segment by segment, and their intervals {verb}."
    end = " This run's model depends on these parameters far more than on as many others."
    return f"{start}: a perplexity {times(damage, span)} times higher." + (end if span.value > math.log(10) else "")


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
    sure = ""
    if all(damage.contrast(top.name, arm.name) for arm in controls):
        signs = [[damage.contrast(top.name, arm.name, code) for arm in controls] for code in codes]
        count = sum(all(line is not None and line.sign > 0 for line in lines) for lines in signs)
        sure = f", with intervals that hold no equality in {count}"
    return (
        f"It does more harm than every control in {len(ahead)} of {numerals.plural(len(codes), 'language')}{sure} "
        f"(least in {languages.name(least)}, {times(damage, damage.span(top.name, least))} times; most in "
        f"{languages.name(most)}, {times(damage, damage.span(top.name, most))} times)."
    )


def _magnitude(damage: Damage, top: Arm, control: Arm) -> str:
    """What the largest weights, chosen without any text, say of the collapse."""
    own, other = damage.span(top.name), damage.span(control.name)
    assert own.value is not None
    assert other.value is not None
    start = f"{numerals.sentence(control.phrase)}, chosen without any text,"
    if other.value < math.log(10):
        return f"{start} multiply the perplexity by {times(damage, other)} only: their size alone does not explain it."
    compared = f"the perplexity without the top is {times(damage, _difference(damage, top, control))} times theirs"
    if clear(_difference(damage, top, control)) < 0 or other.value >= own.value:
        compared = "no less than the top"
    return (
        f"{start} collapse the model too ({times(damage, other)} times; {compared}): that removing a region is fatal "
        "says nothing about language."
    )


def _specificity(damage: Damage, arms: Sequence[Arm]) -> list[str]:
    found: list[tuple[float, Arm, str]] = []
    for arm in arms:
        own = damage.damage(arm.name, arm.language)
        others = apart(damage, arm, [code for code in damage.languages if code != arm.language])
        if arm.kind == "monolingual" and own is not None and others.value is not None:
            name, factor = languages.name(arm.language), times(damage, damage.span(arm.name, arm.language))
            sentence = (
                f"{numerals.sentence(arm.phrase)} costs {name} {factor} times its perplexity and the other languages "
                f"{times(damage, others)} times on (geometric) average."
            )
            found.append((own - others.value, arm, sentence))
    if len(found) <= 3:
        return [sentence for *_, sentence in found]
    ahead = [arm for more, arm, _ in found if more > 0]
    *_, first = max(found, key=lambda item: item[0])
    *_, last = min(found, key=lambda item: item[0])
    return [
        f"In {len(ahead)} of {len(found)} monolingual regions the own language loses more than the others do on "
        f"average. The most specific: {first} The least: {last}"
    ]


def apart(damage: Damage, arm: Arm, codes: Sequence[str]) -> Span:
    """Mean damage of an arm over some languages, with an interval (see `mean`)."""
    return mean([damage.span(arm.name, code) for code in codes])


def mean(figures: Sequence[Span]) -> Span:
    """Mean of figures of different languages, with an interval; those without a value are left out.

    The texts of two languages are independent, so the bounds of a mean of n lie the root of the sum of the squared
    distances, over n, from it; without bounds where any language has none.
    """
    spans = [span for span in figures if span.value is not None]
    value = average([span.value for span in spans])
    if value is None or any(span.low is None or span.high is None for span in spans):
        return Span(value)
    below = math.hypot(*((span.value or 0.0) - (span.low or 0.0) for span in spans)) / len(spans)
    above = math.hypot(*((span.high or 0.0) - (span.value or 0.0) for span in spans)) / len(spans)
    return Span(value, value - below, value + above)


def less(first: Span, second: Span) -> Span:
    """The difference of two independent figures, with its interval where both have one."""
    if first.value is None or second.value is None:
        return Span(None)
    value = first.value - second.value
    if first.low is None or first.high is None or second.low is None or second.high is None:
        return Span(value)
    below = math.hypot(first.value - first.low, second.high - second.value)
    above = math.hypot(first.high - first.value, second.value - second.low)
    return Span(value, value - below, value + above)


def _precision(damage: Damage, measured: Sequence[str]) -> str:
    """What the figures can be trusted to: intervals over segments, or none."""
    tokens = sorted(row.tokens for row in damage.cells.values() if row.arm == BASE and row.tokens > 0)
    amount = _range(tokens) + " tokens"
    if not damage.assessed:
        if not tokens or tokens[0] >= 2000:
            return ""
        bare = "" if any("interval" in name for name in measured) else " and the figures carry no interval"
        return f"Each language was evaluated on {amount}{bare}: read orders of magnitude, not per cent."
    counts = sorted({line.segments for line in damage.contrasts.values() if line.language != EVERY})
    if not counts:
        return ""
    rough = " With so few segments an interval is rough itself." if counts[0] < FEW else ""
    over = f" on {amount}" if tokens else ""
    return (
        f"Each language was evaluated{over}; the intervals are of a bootstrap over {_range(counts)} segments a "
        f"language.{rough}"
    )


def _range(values: Sequence[int]) -> str:
    if not values:
        return "0"
    first, last = numerals.count(values[0]), numerals.count(values[-1])
    return first if first == last else f"{first} to {last}"


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
