"""Damage with intervals: what damage.csv adds to the report, arms by kind, and the verdict that weighs them.

All measurements here are invented for these tests, and no result of any run.
"""

import csv
import math
import re
from pathlib import Path

import pytest
from test_report import parsed, plain, row

from lingregions import report
from lingregions.report import arms, damage, facts, losses, verdict
from lingregions.report.damage import Contrast
from lingregions.report.numerals import Span

TWO, FOUR = math.log(2), math.log(4)


def line(arm: str, language: str, low: float, value: float, high: float, reference: str = "base", **other) -> Contrast:
    """A line of damage.csv from factors of perplexity."""
    known = {"seeds": 1, "segments": 20, "p": 0.001, "p_adjusted": 0.004} | other
    bounds = {"damage_nats": math.log(value), "low": math.log(low), "high": math.log(high)}
    return Contrast("core_removal", arm, reference, language, **(known | bounds))


def hand() -> report.Facts:
    """Base 10 and 40; top x 500 and x 2000; two draws of random, x 1 and x 4, x 4 and x 16, taken together."""
    rows = [row("base", "en", 10), row("base", "ru", 40), row("top_0.01", "en", 5e3), row("top_0.01", "ru", 8e4)]
    rows += [row("random 1% seed 0", "en", 10), row("random 1% seed 0", "ru", 160)]
    rows += [row("random 1% seed 1", "en", 40), row("random 1% seed 1", "ru", 640)]
    lines = [
        line("top_0.01", "all", 900, 1000, 1200),
        line("top_0.01", "en", 400, 500, 600),
        line("top_0.01", "ru", 1500, 2000, 2500),
        line("random 1%", "all", 2, 4, 8, seeds=2),
        line("random 1%", "en", 0.5, 2, 3, seeds=2),
        line("random 1%", "ru", 4, 8, 16, seeds=2),
        line("top_0.01", "all", 200, 250, 300, reference="random 1%"),
        line("top_0.01", "en", 240, 250, 260, reference="random 1%"),
        line("top_0.01", "ru", 0.5, 250, 400, reference="random 1%"),
    ]
    return report.Facts("core_removal", tuple(rows), contrasts=tuple(lines))


def collected(facts_: report.Facts) -> damage.Damage:
    return damage.collect(facts_.rows, facts_.fraction, facts_.contrasts)[0]


def written(folder: Path, facts_: report.Facts) -> Path:
    """A work directory with results.csv and damage.csv of these facts."""
    with (folder / "results.csv").open("w", newline="") as stream:
        rows = [[r.experiment, r.arm, r.language, r.nll_nats, r.tokens, r.bytes] for r in facts_.rows]
        csv.writer(stream).writerows([facts.COLUMNS[:6], *rows])
    with (folder / "damage.csv").open("w", newline="") as stream:
        lines = [[getattr(each, name) for name in facts.DAMAGE] for each in facts_.contrasts]
        csv.writer(stream).writerows([facts.DAMAGE, *lines])
    return folder


# --- damage.csv -----------------------------------------------------------------------------------------------------


def test_the_intervals_are_read_as_they_were_written(tmp_path):
    known = hand()
    assert report.gather(written(tmp_path, known)).contrasts == known.contrasts


def test_what_is_not_finite_is_no_interval(tmp_path):
    head = ",".join(facts.DAMAGE)
    (tmp_path / "results.csv").write_text(",".join(facts.COLUMNS) + "\n")
    (tmp_path / "damage.csv").write_text(f"{head}\ne,top,base,en,1,1,0.5,nan,,nan,inf\n")
    (found,) = report.gather(tmp_path).contrasts
    assert (found.span, found.p, found.p_adjusted, found.sign) == (Span(0.5), None, None, 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("experiment,arm\n", r"damage.csv:1: columns reference, language, seeds, segments, damage_nats, low"),
        ("HEAD\ne,top,base,en,1,9,0.5,0.1\n", r"damage.csv:2: the line breaks off; expected 11 cells"),
        ("HEAD\ne,top,base,en,one,9,0.5,0.1,0.9,0,0\n", r"damage.csv:2: .*'one'"),
        ("HEAD\ne,top,base,en,1,9,0.5,0.9,0.1,0,0\n", r"damage.csv:2: the interval from 0.9 to 0.1 is upside down"),
        ("HEAD\ne,top,base,en,1,9,0.5,0.1,0.9,0,1.5\n", r"damage.csv:2: p_adjusted is 1.5, which is no probability"),
    ],
)
def test_intervals_that_cannot_be_read_name_file_and_line(tmp_path, text, message):
    (tmp_path / "results.csv").write_text(",".join(facts.COLUMNS) + "\n")
    (tmp_path / "damage.csv").write_text(text.replace("HEAD", ",".join(facts.DAMAGE)))
    with pytest.raises(report.ReportError, match=message):
        report.gather(tmp_path)


def test_results_of_before_and_of_now_are_read(tmp_path):
    head = ",".join(facts.COLUMNS)
    for columns, end in ((facts.COLUMNS, ",12,0123456789abcdef"), (facts.COLUMNS, ""), (facts.COLUMNS[:8], "")):
        text = f"{','.join(columns)}\ne,base,en,100.0,100,300,2.71828,0.48{end}\n"
        (tmp_path / "results.csv").write_text(text)
        (found,) = report.gather(tmp_path).rows
        assert (found.nll, found.segments) == (1.0, 12 if end else None), head


# --- the damage section ---------------------------------------------------------------------------------------------


def test_the_page_shows_every_factor_with_its_interval():
    page_ = parsed(report.render(hand()))
    shown = {title: [[plain(cell) for cell in cells] for cells in rows] for title, rows in page_.tables.items()}
    head, *rows = shown["Damage by arm"]
    assert head[1:6] == [
        "perplexity (geometric mean)",
        "times the base",
        "damage (nats/token)",
        "p",
        "harmed for certain",
    ]
    assert rows == [
        ["base", "20.0", "–", "–", "–", "–", "–", "–"],
        ["top 1 %", "20,000", "×1,000 (900 to 1,200)", "6.91 (6.80 to 7.09)", "0.004", "2 of 2", "English", "Russian"],
        ["random 1 % (2 draws)", "80.0", "×4.00 (2.00 to 8.00)", "1.39 (0.69 to 2.08)", "0.004", "1 of 2"]
        + ["English", "Russian"],
    ]
    assert shown["Damage by language and arm"][1:] == [
        ["Russian", "Slavic", "7.601", "2.079"],
        ["English", "Germanic", "6.215", "0.693°"],
        ["mean", "", "6.908", "1.386"],
    ]
    assert shown["Arms against each other"][1:] == [
        ["top 1 %", "random 1 %", "×250 (200 to 300)", "0.004", "1 of 2", "0 of 2"]
    ]
    assert shown["Perplexity as a multiple of the untouched model's"][1:] == [
        ["Russian", "×2,000 (1,500 to 2,500)", "×8.00 (4.00 to 16.0)"],
        ["English", "×500 (400 to 600)", "×2.00 (0.500 to 3.00)"],
        ["geometric mean", "×1,000 (900 to 1,200)", "×4.00 (2.00 to 8.00)"],
    ]
    text = plain(" ".join(page_.text))
    assert "The intervals hold 95 %" in text
    assert "no interval" not in text


def test_draws_are_pooled_as_a_hand_does():
    found = collected(hand())
    assert found.arms == ("base", "top_0.01", "random 1%")
    assert found.damage("random 1%", "en") == pytest.approx(TWO)  # the mean of log 1 and log 4
    assert found.seeds("random 1%") == 2
    assert found.cells["base", "en"].tokens == 100
    # Without a damage.csv that takes them together each draw is an arm of its own.
    assert damage.collect(hand().rows)[0].arms == ("base", "top_0.01", "random 1% seed 0", "random 1% seed 1")


def test_draws_are_told_by_a_seed_anywhere_in_the_name():
    rows = [row("base", "en", 1), row("frozen seed 0 after 8", "en", 2), row("frozen seed 1 after 8", "en", 8)]
    found = damage.collect(rows, contrasts=[line("frozen after 8", "en", 2, 4, 8, seeds=2)])[0]
    assert found.damage("frozen after 8", "en") == pytest.approx(FOUR)


def test_without_intervals_the_page_says_so():
    text = " ".join(parsed(report.render(report.Facts("core_removal", hand().rows))).text)
    assert "This run has no damage.csv, so no figure here has an interval." in text


def test_an_arm_without_an_interval_has_no_factor_and_is_told():
    known = hand()
    rows = (*known.rows, row("bottom_0.01", "en", 20), row("bottom_0.01", "ru", 80))
    page_ = parsed(report.render(report.Facts("core_removal", rows, contrasts=known.contrasts)))
    assert [plain(cell) for cell in page_.tables["Damage by arm"][-1]][2:5] == ["–", "0.69", "–"]
    text = plain(" ".join(page_.text))
    assert "damage.csv holds no interval for bottom_0.01" in text
    assert "the bottom 1 % by 2.00 (no interval)" in text


def test_intervals_of_an_earlier_measurement_are_told():
    known = hand()
    stale = [each for each in known.contrasts if each.language != "ru"] + [line("top_0.01", "ru", 3, 4, 5)]
    notes = collected(report.Facts("core_removal", known.rows, contrasts=tuple(stale))).notes
    assert [note for note in notes if "differ in 1 cell (top_0.01 / ru)" in note]


# --- many arms ------------------------------------------------------------------------------------------------------


def many() -> report.Facts:
    """A base, four whole regions, nine parts and twenty layers."""
    names = ["top 1%", "bottom 1%", "random 1%", "magnitude 1%"]
    names += [f"top 1% {part}" for part in ("q", "k", "v", "o", "gate", "up", "down", "norms", "without norms")]
    names += [f"top 1% layer {layer}" for layer in range(20)]
    factors = {name: 2.0 + place for place, name in enumerate(names)}
    rows = [row("base", code, 10) for code in ("en", "ru")]
    rows += [row(name, code, 10 * factor) for name, factor in factors.items() for code in ("en", "ru")]
    lines = [
        line(name, code, 0.5 * factor, factor, 2 * factor)
        for name, factor in factors.items()
        for code in ("all", "en", "ru")
    ]
    return report.Facts("core_removal", tuple(rows), contrasts=tuple(lines))


def test_many_arms_are_set_beside_their_like():
    items = {item.name: item for item in losses.section(collected(many())).items}
    assert [name for name in items if name.startswith(("damage_", "layers_"))][:5] == [
        "damage_by_arm",
        "damage_whole_regions",
        "damage_parts_and_variants_of_the_top_1",
        "layers_top_1_by_layer",
        "damage_top_1_by_layer",
    ]
    assert items["damage_parts_and_variants_of_the_top_1"].columns[-2:] == ("norms", "without norms")
    layers = items["damage_top_1_by_layer"]
    assert (layers.columns, layers.compact) == (tuple(map(str, range(20))), True)
    assert layers.printed(0, 0) == "2.7"  # log 15
    curve = items["layers_top_1_by_layer"].series[0]
    assert curve.points[3] == (3.0, pytest.approx(math.log(18)))
    assert curve.band[3] == (pytest.approx(math.log(9)), pytest.approx(math.log(36)))
    assert [title for _, title in items["damage_by_arm"].breaks] == [
        "whole regions",
        "parts and variants of the top 1\u00a0%",
        "top 1\u00a0% by layer",
    ]


def test_many_arms_make_a_page_that_folds_what_is_long():
    markup = report.render(many())
    page_ = parsed(markup)
    assert markup.count("<details>") == 9 + 3  # 33 arms by 4, and perplexity, NLL, bits
    assert [cells for cells in page_.tables["Damage by arm"] if len(cells) == 1] == [
        ["whole regions"],
        ["parts and variants of the top 1\u00a0%"],
        ["top 1\u00a0% by layer"],
    ]
    assert page_.tables["Damage by arm"][-1][0] == "layer 19"


@pytest.mark.parametrize(
    ("name", "kind", "phrase", "panel", "short"),
    [
        ("top 1% q", "part", "the top 1 % in q", "parts and variants of the top 1 %", "q"),
        ("top 1% down_proj", "part", "the top 1 % in down_proj", "parts and variants of the top 1 %", "down_proj"),
        (
            "top 3% without norms",
            "part",
            "the top 3 % without norms",
            "parts and variants of the top 3 %",
            "without norms",
        ),
        ("random 1% q seed 2", "part", "a random 1 % in q", "parts and variants of the random 1 %", "q, draw 2"),
        ("top 1% layer 11", "part", "the top 1 % in layer 11", "top 1 % by layer", "11"),
        ("layer 3", "part", "layer 3", "layers", "3"),
        ("top 0.0001%", "top", "the top 0.0001 %", "whole regions", "top 0.0001 %"),
        ("monolingual ru", "monolingual", "the Russian region", "monolingual regions", "Russian"),
        (
            "monolingual ru random",
            "control",
            "a random region of the size of the Russian one",
            "monolingual regions",
            "Russian: random",
        ),
        (
            "matched to ru seed 1",
            "control",
            "a matched random region of the size of the Russian one",
            "monolingual regions",
            "Russian: matched random, draw 1",
        ),
        (
            "dimension 507 zero residual",
            "dimension",
            "dimension 507 zero residual",
            "dimensions",
            "dimension 507 zero residual",
        ),
        (
            "3 random dimensions noise norms seed 0",
            "dimension",
            "3 random dimensions noise norms",
            "dimensions",
            "3 random dimensions noise norms, draw 0",
        ),
        (
            "11 mlp.down_proj [507 1229] x-1",
            "scalar",
            "11 mlp.down_proj [507 1229] ×-1",
            "single parameters",
            "11 mlp.down_proj [507 1229] ×-1",
        ),
        ("super weight 1 x10", "scalar", "super weight 1 ×10", "single parameters", "super weight 1 ×10"),
        ("core minus top 10", "other", "core minus top 10", "other arms", "core minus top 10"),
    ],
)
def test_the_name_of_an_arm_says_where_it_belongs(name, kind, phrase, panel, short):
    found = arms.parse(name)
    assert tuple(map(plain, (found.kind, found.phrase, found.panel, found.short))) == (kind, phrase, panel, short)


# --- families -------------------------------------------------------------------------------------------------------


def test_damage_by_family_is_that_of_a_hand():
    codes = {"ru": 16, "uk": 4, "en": 2, "fr": 2}
    rows = [row("base", code, 10) for code in codes]
    rows += [row("monolingual ru", code, 10 * factor) for code, factor in codes.items()]
    lines = [line("monolingual ru", "ru", 8, 16, 32), line("monolingual ru", "uk", 2, 4, 8)]
    # Half widths of log 2 (en) and log 2 (fr): the mean's is their root sum of squares over two, log 2 / sqrt 2.
    lines += [line("monolingual ru", code, 1, 2, 4) for code in ("en", "fr")]
    found = damage.collect(rows, contrasts=lines)[0]
    head, cells = parsed(report.render(report.Facts("e", tuple(rows), contrasts=tuple(lines)))).tables[
        "Monolingual regions: own language, own family, all others"
    ]
    assert head[3:] == ["own language", "rest of the family", "all others", "own over all others"]
    assert list(map(plain, cells)) == [
        "Russian region",
        "Slavic",
        "1",
        "×16.0 (8.00 to 32.0)",
        "×4.00 (2.00 to 8.00)",
        "×2.00 (1.23 to 3.27)",  # 2 / 1.6325 and 2 x 1.6325
        # half width sqrt(1 + 1/2) log 2 = log 2.337
        "×8.00 (3.42 to 18.7)",
    ]
    weighed = plain(verdict.weigh(found)[0])
    assert (
        "The Russian region costs Russian 16.0 (8.00 to 32.0) times its perplexity and the other languages" in weighed
    )


def test_many_monolingual_regions_are_counted():
    rows = [row("base", code, 10) for code in ("ru", "ar", "zh", "ko", "en")]
    for place, own in enumerate(("ru", "ar", "zh", "ko")):
        for code in ("ru", "ar", "zh", "ko", "en"):
            rows.append(row(f"monolingual {own}", code, 10 * (place + 1 if code == own else 2)))
    weighed = plain(verdict.weigh(damage.collect(rows)[0])[0])
    assert "In 2 of 4 monolingual regions the own language loses more than the others do on average." in weighed
    assert "The most specific: The Korean region costs Korean 4.00 times" in weighed
    assert "The least: The Russian region costs Russian 1.00 times" in weighed


# --- headline and verdict -------------------------------------------------------------------------------------------


def test_the_headline_gives_every_factor_its_interval():
    assert plain(verdict.headline(collected(hand()))) == (
        "Removing the top 1 % multiplies the geometric-mean perplexity over 2 languages by 1,000 (900 to 1,200); a "
        "random 1 % (2 draws) by 4.00 (2.00 to 8.00)."
    )


def test_a_change_that_is_no_region_is_not_removed():
    rows = [row("base", "en", 1), row("dimension 7 scale 10 norms", "en", 3)]
    assert verdict.headline(damage.collect(rows)[0]) == (
        "The change “dimension 7 scale 10 norms” multiplies the geometric-mean perplexity over 1 language by 3.00."
    )


def test_the_verdict_weighs_intervals():
    weighed, caution = map(plain, verdict.weigh(collected(hand())))
    assert weighed.startswith(
        "The top 1 % costs 6.91 (6.80 to 7.09) nats per token on average, the worst control, a random 1 %, 1.39 (0.69 "
        "to 2.08): a perplexity 250 (200 to 300) times higher. This run's model depends on these parameters far more"
    )
    assert "in 2 of 2 languages, with intervals that hold no equality in 1 (least in English, 500 (400 to" in weighed
    assert "single draw" not in weighed
    assert "evaluated on 100 tokens; the intervals are of a bootstrap over 20 segments a language." in weighed
    assert caution.startswith("Collapse by itself does not show that a region is linguistic")


def test_a_difference_whose_interval_holds_none_is_no_region():
    known = hand()
    lines = [each for each in known.contrasts if each.reference == "base"]
    lines.append(line("top_0.01", "all", 0.9, 250, 3000, reference="random 1%", segments=4))
    weighed = plain(verdict.weigh(collected(report.Facts("e", known.rows, contrasts=tuple(lines))))[0])
    assert "250 (0.900 to 3,000) times as high, and the interval does not lie above 1, so this run shows no" in weighed


def test_arms_that_were_not_compared_are_not_given_an_interval():
    known = hand()
    lines = tuple(each for each in known.contrasts if each.reference == "base")
    weighed = plain(verdict.weigh(collected(report.Facts("e", known.rows, contrasts=lines)))[0])
    assert "were not compared segment by segment, and their intervals do not overlap." in weighed


@pytest.mark.parametrize(
    ("magnitude", "expected"),
    [
        (
            1e4,
            "collapse the model too (1,000 times; the perplexity without the top is 10.0 times theirs): that",
        ),
        (2e6, "collapse the model too (2.0 × 10⁵ times; no less than the top): that removing a region is fatal says"),
        (20, "multiply the perplexity by 2.00 only: their size alone does not explain it."),
    ],
)
def test_the_verdict_weighs_the_largest_weights(magnitude, expected):
    rows = [row("base", "en", 10), row("top_0.01", "en", 1e5), row("random_0.01", "en", 20)]
    rows.append(row("magnitude_0.01", "en", magnitude))
    weighed = plain(verdict.weigh(damage.collect(rows)[0])[0])
    assert "the worst control, a random 1 %, 0.693" in weighed
    assert f"The largest (by magnitude) 1 %, chosen without any text, {expected}" in weighed


def test_an_own_verdict_leaves_what_holds_of_any_run():
    weighed, caution = map(plain, verdict.weigh(collected(hand()), own=True))
    assert weighed == (
        "Each language was evaluated on 100 tokens; the intervals are of a bootstrap over 20 segments a language."
    )
    assert "Collapse by itself" in caution


def test_a_single_draw_and_few_segments_are_told():
    rows = [row("base", "en", 10), row("top_0.01", "en", 1e5), row("random_0.01", "en", 20)]
    lines = [line(arm, code, 1, 2, 4, segments=4) for arm in ("top_0.01", "random_0.01") for code in ("all", "en")]
    weighed = plain(verdict.weigh(damage.collect(rows, contrasts=lines)[0])[0])
    assert "A random 1 % is a single draw, whose interval covers the texts but not the draw" in weighed
    assert "over 4 segments a language. With so few segments an interval is rough itself." in weighed


def test_no_factor_stands_bare_on_a_page_with_intervals():
    text = plain(" ".join(parsed(report.render(hand())).text))
    assert not re.findall(r"×[\d.,]+(?: × 10\S+)?(?! \(|[\d.,]| ×)", text)


def test_the_headline_of_monolingual_regions_is_about_their_own_languages():
    rows = [row("base", code, 10) for code in ("ru", "ar")]
    lines = []
    for code, factor in (("ru", 32), ("ar", 2)):
        rows += [row(f"monolingual {code}", each, 10 * (factor if each == code else 1)) for each in ("ru", "ar")]
        rows += [row(f"matched to {code} seed 0", each, 20) for each in ("ru", "ar")]
        # Two half widths of log 2: the mean's is log 2 / sqrt 2.
        lines.append(line(f"monolingual {code}", code, factor / 2, factor, 2 * factor))
        lines.append(line(f"matched to {code}", code, 1, 2, 4))
    assert plain(verdict.headline(damage.collect(rows, contrasts=lines)[0])) == (
        "Removing a monolingual region multiplies the perplexity of its own language by 8.00 (4.90 to 13.1), a random "
        "region of its size by 2.00 (1.23 to 3.27): geometric means over 2 languages."
    )


@pytest.mark.parametrize(
    ("paragraphs", "expected"),
    [
        (["It costs 2.47 (2.12 to 2.83). That is all."], ["It costs 2.47 (2.12 to 2.83)."]),
        (["One sentence without an end"], []),
        (["Too long " * 40 + "."], []),
        ([], []),
    ],
)
def test_a_verdict_opens_with_its_first_sentence(paragraphs, expected):
    assert verdict.opening(paragraphs) == expected


def test_the_experiment_itself_has_the_word_where_no_region_is_removed():
    rows = (row("base", "en", 1), row("full after 8", "en", 3))
    own = report.Section("Verdict", ("Training helps. A bit.",))
    assert report.summary(report.Facts("e", rows, verdicts=(own,))).startswith(
        "Training helps.\n\nVerdict:\n\nA bit.\n\nHow"
    )
    assert report.summary(report.Facts("e", rows)).startswith("The change “full after 8” multiplies")
    assert report.summary(report.Facts("e", rows, verdicts=(own,), headlines=("First.",))).startswith(
        "First.\n\nVerdict:"
    )


def test_the_name_of_an_experiment_tells_what_it_measured():
    rows = [row("base", "en", 1, experiment="frozen_pretraining"), row("x", "en", 3, experiment="frozen_pretraining")]
    *_, caution = verdict.weigh(damage.collect(rows)[0])
    assert "this run measured freezing in further training; it did not measure controls matched" in caution
