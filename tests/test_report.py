"""The report: its figures against a hand's, its words against its figures, its page against a parser.

All measurements here are synthetic: invented for these tests, and no result of any run.
"""

import csv
import html.parser
import json
import math
import re
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lingregions import regions, report
from lingregions.models import roles
from lingregions.report import (
    arms,
    damage,
    facts,
    figures,
    languages,
    numerals,
    page,
    sections,
    survey,
    tables,
    verdict,
)
from lingregions.report.damage import Row

LANGUAGES = ("ar", "zh", "ko", "vi", "es", "ru", "en", "fr", "ja", "tr", "sw")


def row(arm: str, language: str, perplexity: float, tokens: int = 100, experiment: str = "core_removal") -> Row:
    """A measurement with a given perplexity; 3 bytes a token."""
    return Row(experiment, arm, language, math.log(perplexity) * tokens, tokens, 3 * tokens)


def synthetic(folder: Path) -> Path:
    """A work directory as a run leaves it, with invented figures."""
    rows = []
    for position, language in enumerate(LANGUAGES):
        base = 1.6 + 0.15 * position
        costs = {"base": 0.0, "top_0.01": 11.0 + 1.1 * ((position * 5) % 7), "bottom_0.01": 0.01 * (position % 4)}
        costs["random_0.01"] = 0.35 + 0.07 * ((position * 3) % 5)
        for arm, cost in costs.items():
            tokens = 480 + 7 * position
            nats = (base + cost) * tokens
            rows.append(("core_removal", arm, language, nats, tokens, 3 * tokens))
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "results.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(facts.COLUMNS)
        for experiment, arm, language, nats, tokens, size in rows:
            bits = nats / math.log(2) / size
            writer.writerow([experiment, arm, language, nats, tokens, size, math.exp(nats / tokens), bits])
    config = {
        "experiment": "core_removal",
        "model": "preset:synthetic",
        "fractions": [0.01],
        "perturbation": "zero",
        "languages": list(LANGUAGES[:6]),
        "scores": {"rule": "taylor", "samples": 3, "length": 512, "seed": 0, "dtype": "float32"},
        "evaluate": {"languages": list(LANGUAGES), "batch": 8},
    }
    (folder / "config.json").write_text(json.dumps(config))
    environment = {
        "versions": {"jax": "0.0", "lingregions": "0.0"},
        "devices": ["cpu:0"],
        "precision": "float32, matrix products at highest",
        "model_hash": "0123456789abcdef",
        "data": {language: {"fingerprint": f"{position:016x}"} for position, language in enumerate(LANGUAGES[:3])},
    }
    (folder / "environment.json").write_text(json.dumps(environment))
    (folder / "metrics.jsonl").write_text(
        "".join(
            json.dumps(record) + "\n"
            for record in (
                {"event": "opened", "resumed": False},
                {"event": "note", "text": "2 samples in ko, 3 were asked for."},
                {"event": "timed", "description": "score ar", "amount": 1536, "unit": "tokens", "seconds": 4.0},
                {"event": "timed", "description": "score ar", "amount": 512, "unit": "tokens", "seconds": 1.0},
                {"event": "tokenizer", "name": "synthetic", "first_token_ids": [1, 415, 22], "bos": None},
            )
        )
    )
    extra = folder / "tables"
    extra.mkdir(exist_ok=True)
    names = list(LANGUAGES[:6])
    iou = [[1.0 if a == b else 0.1 + 0.02 * abs(i - j) for j, b in enumerate(names)] for i, a in enumerate(names)]
    (extra / "overlap_languages.json").write_text(
        json.dumps({"kind": "overlap", "title": "Overlap of languages", "names": names, "values": iou, "chance": 0.005})
    )
    growth = {name: {n: 1 - 0.8 / (n + position / 3) for n in (1, 2, 4, 8, 16)} for position, name in enumerate(names)}
    halves = {name: 0.3 + 0.04 * position for position, name in enumerate(names)}
    (extra / "reliability.json").write_text(
        json.dumps({"kind": "reliability", "title": "Reliability", "halves": halves, "growth": growth})
    )
    (extra / "densities.json").write_text(
        json.dumps({"kind": "densities", "title": "Where the regions lie", "regions": [core(), monolingual()]})
    )
    (extra / "modules.json").write_text(
        json.dumps(
            {
                "title": "Damage by module",
                "note": "One module's share of the region alone.",
                "columns": ["module", {"name": "times the base", "kind": "exponential"}, "parameters"],
                "rows": [["q", 4.1, 1234567], ["down", 15.2, 2345678], ["norms", None, 345]],
            }
        )
    )
    return folder


def core() -> dict[str, object]:
    """A region of one fraction in every matrix, on 12 layers and 96 residual indices."""
    shapes = [9216, 3072, 3072, 9216, 24576, 24576, 24576, 96, 96]
    sizes = [shapes for _ in range(12)]
    carried = [300 + (2000 if index in (7, 43, 90) else 0) + (index * 37) % 91 for index in range(96)]
    return {
        "name": "core",
        "layers": list(range(12)),
        "matrices": [roles.in_layer(each.path) for each in list(roles.ROLES.values())[:9]],
        "counts": [[size // 50 for size in row] for row in sizes],
        "sizes": sizes,
        "carried": carried,
        "capacity": [12000] * 96,
        "definition": "Top 2 % of the scores summed over six languages",
    }


def monolingual() -> dict[str, object]:
    """A region whose density differs from matrix to matrix."""
    region = core()
    counts = [
        [size * (layer * (place + 2) % 11) // 1500 for place, size in enumerate(sizes)]
        for layer, sizes in enumerate(region["sizes"])  # type: ignore[arg-type, var-annotated]
    ]
    return {**region, "name": "only ru", "counts": counts, "carried": [], "capacity": [], "definition": ""}


def parsed(markup: str) -> "Reader":
    """The page, read by a parser that refuses unbalanced tags and any address outside the page."""
    reader = Reader()
    reader.feed(markup)
    reader.close()
    assert reader.open == []
    return reader


class Reader(html.parser.HTMLParser):
    """Checks balance as it reads, and collects the tables as {caption: rows of cells}, the text and the ids."""

    VOID = frozenset({"meta", "link", "br", "img", "line", "circle", "path"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.text: list[str] = []
        self.tables: dict[str, list[list[str]]] = {}
        self._rows: list[list[str]] = []
        self._caption = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.ids += [values["id"]] if values.get("id") else []
        self.links += [value for key in ("href", "src") if (value := values.get(key))]
        assert tag != "script"
        if tag == "table":
            self._rows = []
        if tag == "tr":
            self._rows.append([])
        if tag in ("td", "th"):
            self._rows[-1].append("")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self.VOID:
            return
        assert self.open.pop() == tag
        if tag == "table":
            self.tables[self._caption] = self._rows

    def handle_data(self, data: str) -> None:
        inside = self.open[-1] if self.open else ""
        if inside == "caption":
            self._caption = data
        elif inside in ("td", "th"):
            self._rows[-1][-1] += data
        if inside != "style":
            self.text.append(data)


def plain(text: str) -> str:
    """Text with ordinary spaces."""
    return text.replace("\u00a0", " ")


def hand() -> tuple[Row, ...]:
    """Perplexities 10 and 40 (geometric mean 20); top x 500 and x 2000 (x 1000); bottom 1.03; random x 1, x 4."""
    return (
        row("base", "en", 10),
        row("base", "ru", 40),
        row("top_0.01", "en", 5e3),
        row("top_0.01", "ru", 8e4),
        row("bottom_0.01", "en", 10),
        row("bottom_0.01", "ru", 42.436),  # 40 x 1.03^2
        row("random_0.01", "en", 10),
        row("random_0.01", "ru", 160),
    )


# --- numerals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "value", "expected"),
    [
        (numerals.number, 0, "0"),
        (numerals.number, 1.0, "1.00"),
        (numerals.number, 16.049, "16.0"),
        (numerals.number, 1234.5, "1,234"),
        (numerals.number, -0.03, "−0.0300"),
        (numerals.number, 1.7e6, "1.7 × 10⁶"),
        (numerals.number, 9.96e6, "1.0 × 10⁷"),
        (numerals.number, 0.9998, "1.00"),
        (numerals.number, 0.00012, "1.2 × 10⁻⁴"),
        (numerals.number, math.nan, "–"),
        (numerals.number, math.inf, "–"),
        (numerals.number, None, "–"),
        (numerals.exponential, math.log(1.03), "1.03"),
        (numerals.exponential, 400 * math.log(10), "1.0 × 10⁴⁰⁰"),
        (numerals.exponential, math.log(2.74e7), "2.7 × 10⁷"),
        (numerals.exponential, -math.inf, "–"),
        (numerals.decimal, 14.35, "14.350"),
        (numerals.decimal, -0.0004, "0.000"),
        (numerals.decimal, -0.5, "−0.500"),
        (numerals.decimal, 2.5e7, "2.5 × 10⁷"),
        (numerals.count, 6738415616, "6,738,415,616"),
        (numerals.count, -3, "−3"),
        (numerals.share, 0.14, "0.14"),
        (numerals.share, 0.005, "0.0050"),
        (numerals.percent, 0.01, "1 %"),
        (numerals.percent, 0.00303, "0.303 %"),
        (numerals.percent, 1e-7, "1.0 × 10⁻⁵ %"),
        (numerals.text, None, "–"),
        (numerals.text, math.nan, "–"),
    ],
)
def test_numbers_are_printed_for_a_reader(function, value, expected):
    assert plain(function(value)) == expected


def test_a_stored_number_keeps_every_bit_and_may_be_beyond_a_float():
    assert float(numerals.raw(0.1 + 0.2, "number")) == 0.1 + 0.2
    assert numerals.raw(400 * math.log(10), "exponential").startswith(("9.99999999", "1.0000000"))
    assert numerals.raw(1000.0, "exponential").endswith("e+434")
    assert numerals.raw(math.nan, "number") == ""
    assert numerals.raw(None, "text") == ""


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_no_number_is_ever_printed_as_nan_or_infinity(value):
    for kind in numerals.KINDS:
        assert not re.search("nan|inf", numerals.KINDS[kind](value))


# --- damage ---------------------------------------------------------------------------------------------------------


def test_means_and_damage_are_those_of_a_hand():
    figures_ = damage.collect(hand())[0]
    assert math.exp(figures_.mean("base")) == pytest.approx(20)
    assert math.exp(figures_.mean("top_0.01")) == pytest.approx(2e4)
    assert figures_.damage("top_0.01", "ru") == pytest.approx(math.log(2000))
    assert figures_.cost("random_0.01") == pytest.approx(math.log(2))
    # 100 tokens of log(10) nats are 332.19 bits, for 300 bytes
    assert figures_.cells["base", "en"].bits_per_byte == pytest.approx(1.10731)


def test_the_page_shows_the_figures_of_a_hand():
    page_ = parsed(report.render(report.Facts("core_removal", hand())))
    assert [[plain(cell) for cell in line] for line in page_.tables["Damage by arm"][1:]] == [
        ["base", "20.0", "–", "–", "–", "–", "2"],
        ["top 1 %", "20,000", "1,000", "6.908", "English 6.215", "Russian 7.601", "2"],
        ["bottom 1 %", "20.6", "1.03", "0.030", "English 0.000", "Russian 0.059", "2"],
        ["random 1 %", "40.0", "2.00", "0.693", "English 0.000", "Russian 1.386", "2"],
    ]
    assert [[plain(cell) for cell in line] for line in page_.tables["Damage by language and arm"]] == [
        ["language", "family", "top 1 %", "bottom 1 %", "random 1 %"],
        ["Russian", "Slavic", "7.601", "0.059", "1.386"],
        ["English", "Germanic", "6.215", "0.000", "0.000"],
        ["mean", "", "6.908", "0.030", "0.693"],
    ]
    assert page_.tables["Perplexity"][-1] == ["geometric mean", "", "", "–", "20.0", "20,000", "20.6", "40.0"]
    assert page_.tables["NLL in nats per token"][1][4:6] == ["3.689", "11.290"]
    assert page_.tables["Bits per byte"][1][4:6] == ["1.774", "5.429"]


def test_the_headline_says_what_the_arms_do():
    assert plain(verdict.headline(damage.collect(hand())[0])) == (
        "Removing the top 1 % multiplies the geometric-mean perplexity over 2 languages by 1,000; the bottom 1 % by "
        "1.03; a random 1 % by 2.00."
    )


def test_the_headline_takes_the_draws_of_a_random_arm_together_and_only_four_arms():
    rows = [*hand(), row("random_0.01_seed1", "en", 80), row("random_0.01_seed1", "ru", 320)]
    assert "a random 1 % (2 draws) by 4.00" in plain(verdict.headline(damage.collect(rows)[0]))  # sqrt(2 x 8)
    rows += [row(f"{kind}_0.05", "en", 1e9) for kind in ("top", "bottom")]
    assert "5 %" not in plain(verdict.headline(damage.collect(rows)[0]))  # the first arm's size
    rows = [row("base", "en", 1)] + [row(f"layer_{place}", "en", 10.0 + place) for place in range(9)]
    assert verdict.headline(damage.collect(rows)[0]) == (
        "Removing layer 8 multiplies the geometric-mean perplexity over 1 language by 18.0; layer 7 by 17.0; layer 6 "
        "by 16.0; layer 0 by 10.0."
    )


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([], "nothing has been measured yet"),
        ([row("top_0.01", "en", 5)], "the untouched model was not measured"),
        ([row("base", "en", 10)], "geometric-mean perplexity of 10.0 over 1 language; no perturbed arm"),
        ([row("base", "en", 10, tokens=0)], "nothing has been measured yet"),
    ],
)
def test_an_unfinished_run_says_so(rows, expected):
    markup = report.render(report.Facts("core_removal", tuple(rows)))
    assert expected in plain(markup)
    parsed(markup)


@pytest.mark.parametrize(
    ("name", "fraction", "kind", "phrase", "label"),
    [
        ("base", None, "base", "the untouched model", "base"),
        ("top_0.01", None, "top", "the top 1 %", "top 1 %"),
        ("top 3%", None, "top", "the top 3 %", "top 3 %"),
        ("core", 0.01, "top", "the core 1 %", "core 1 %"),
        ("bottom", 0.05, "bottom", "the bottom 5 %", "bottom 5 %"),
        ("top", None, "top", "the top region", "top region"),
        ("random_0.01_seed3", None, "random", "a random 1 %", "random 1 %, draw 3"),
        ("random_3", 0.01, "random", "a random 1 %", "random 1 %, draw 3"),
        ("matched_random_0.01", None, "matched", "a matched random 1 %", "matched random 1 %"),
        ("top_1e-05", None, "top", "the top 0.001 %", "top 0.001 %"),
        ("monolingual_ru", None, "monolingual", "the Russian region", "Russian region"),
        ("layer_11_zero", 0.01, "other", "layer 11 zero", "layer 11 zero"),
    ],
)
def test_the_name_of_an_arm_is_read(name, fraction, kind, phrase, label):
    arm = arms.parse(name, fraction)
    assert (arm.kind, plain(arm.phrase), plain(arm.label)) == (kind, phrase, label)


def test_arms_that_would_share_a_label_keep_their_names():
    rows = [row(arm, "en", 2) for arm in ("top_0.01", "top 1%", "bottom_0.01")]
    labels = damage.collect(rows)[0].labels()
    assert {arm: plain(label) for arm, label in labels.items()} == {
        "top_0.01": "top_0.01",
        "top 1%": "top 1%",
        "bottom_0.01": "bottom 1 %",
    }


# --- verdict --------------------------------------------------------------------------------------------------------


def test_the_verdict_weighs_the_controls_and_what_was_not_measured():
    weighed, caution = map(plain, verdict.weigh(damage.collect(hand())[0]))
    assert "The top 1 % costs 6.908 nats per token on average, the worst control, a random 1 %, 0.693" in weighed
    assert "a perplexity 500 times higher" in weighed  # 1000 / 2
    assert "more harm than every control in 2 of 2 languages" in weighed
    assert "is a single draw" in weighed
    assert "evaluated on 100 tokens" in weighed
    assert "does not show that a region is linguistic" in caution
    assert "This run measured none of these." in caution


def test_the_verdict_finds_no_region_where_the_control_does_as_much_harm():
    rows = [row("base", "en", 10), row("top_0.01", "en", 1e6), row("magnitude_0.01", "en", 9e5)]
    weighed, caution = map(plain, verdict.weigh(damage.collect(rows)[0]))
    assert "this run shows no region that matters more than its control" in weighed
    assert "this run measured the largest weights by magnitude alone; it did not measure" in caution


def test_the_verdict_claims_nothing_without_a_control():
    rows = [row("base", "en", 10), row("top_0.01", "en", 1e6)]
    weighed = verdict.weigh(damage.collect(rows)[0])[0]
    assert "No random control" in weighed
    assert "far more" not in weighed


def test_the_verdict_compares_regions_of_one_size():
    rows = [
        row("base", "en", 10),
        row("top_0.01", "en", 1e3),
        row("top_0.05", "en", 1e6),
        row("random_0.05", "en", 1e5),
    ]
    weighed = plain(verdict.weigh(damage.collect(rows)[0])[0])
    assert weighed.startswith(
        "The top 5 % costs 11.513 nats per token on average, the worst control, a random 5 %, 9.210"
    )


def test_the_verdict_says_whom_a_monolingual_region_harms():
    rows = [row("base", code, 10) for code in ("ru", "en", "fr")]
    rows += [row("monolingual_ru", "ru", 100), row("monolingual_ru", "en", 20), row("monolingual_ru", "fr", 20)]
    weighed, caution = verdict.weigh(damage.collect(rows)[0], ["minimal_damage"])
    assert "The Russian region costs Russian 10.0 times its perplexity and the other languages 2.00 times" in weighed
    assert "monolingual regions (own language against the others)" in caution.split("it did not measure")[0]
    assert "the smallest set that does the damage" in caution.split("it did not measure")[0]


# --- what may be missing or wrong -------------------------------------------------------------------------------------


def test_missing_and_overflowing_cells_are_dashes_with_a_note():
    rows = (
        row("base", "en", 10),
        row("base", "ru", 40),
        row("base", "tr", 20),
        row("top_0.01", "en", 1e4),
        Row("core_removal", "top_0.01", "ru", math.inf, 100, 300),
        Row("core_removal", "random_0.01", "en", 0.0, 0, 0),
        Row("core_removal", "random_0.01", "ru", math.nan, 100, 300),
    )
    markup = report.render(report.Facts("core_removal", rows))
    page_ = parsed(markup)
    text = plain(" ".join(page_.text))
    assert "2 of 9 cells (top_0.01 / tr, random_0.01 / tr), shown as a dash." in text
    assert "not finite for top_0.01 / ru and random_0.01 / ru" in text
    assert "No token was evaluated for random_0.01 / en" in text
    assert page_.tables["Damage by language and arm"][1:] == [
        ["Russian", "Slavic", "–", "–"],
        ["English", "Germanic", "6.908", "–"],
        ["Turkish", "Turkic", "–", "–"],
        ["mean", "", "6.908", "–"],
    ]
    assert not re.search(r"\b(nan|inf|infinity)\b", text, re.IGNORECASE)


def test_perplexities_beyond_a_float_are_numbers_like_any_other():
    rows = (row("base", "en", 10), Row("core_removal", "top_0.01", "en", 921.034037 * 100, 100, 300))
    text = plain(report.render(report.Facts("core_removal", rows)))
    assert "multiplies the geometric-mean perplexity over 1 language by 1.0 × 10³⁹⁹" in text
    assert ">1.0 × 10⁴⁰⁰<" in text
    assert "10<sup>" not in text
    assert "Infinity" not in text


def test_a_cell_measured_twice_counts_once():
    rows = [row("base", "en", 10), row("base", "en", 10), row("top_0.01", "en", 20), row("top_0.01", "en", 40)]
    figures_ = damage.collect(rows)[0]
    assert figures_.cost("top_0.01") == pytest.approx(math.log(4))
    assert [note for note in figures_.notes if "1 cell in results.csv" in note]


def test_several_experiments_are_told_apart():
    rows = (*hand(), row("base", "en", 10, experiment="second"), row("top_0.01", "en", 20, experiment="second"))
    page_ = parsed(report.render(report.Facts("both", rows)))
    assert "What each language loses: core_removal" in page_.text
    assert "What each language loses: second" in page_.text
    assert len(set(page_.ids)) == len(page_.ids)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("experiment,arm,language,nll_nats,tokens\n", r"results.csv:1: columns bytes are missing"),
        ("HEAD\ne,base,en,1.0,x,3,,\n", r"results.csv:2: .*'x'"),
        ("HEAD\ne,base,en,1.0\n", r"results.csv:2: the line breaks off"),
        ("HEAD\ne,base,en,2.302585,100,300,10.0,\n", r"results.csv:2: perplexity 10.0 is not exp\(nll_nats / tokens\)"),
    ],
)
def test_results_that_cannot_be_read_name_file_and_line(tmp_path, text, message):
    (tmp_path / "results.csv").write_text(text.replace("HEAD", ",".join(facts.COLUMNS)))
    with pytest.raises(report.ReportError, match=message):
        report.gather(tmp_path)


def test_results_may_hold_what_a_float_cannot(tmp_path):
    head = ",".join(facts.COLUMNS)
    lines = [head, "e,top,en,100000.0,100,300,1.97e+434,480.9", "e,base,en,nan,1,3,nan,nan", ""]
    (tmp_path / "results.csv").write_text("\n".join(lines))
    first, second = report.gather(tmp_path).rows
    assert first.nll == 1000
    assert second.nll is None


def test_a_folder_without_results_is_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(report.ReportError, match=r"no results.csv"):
        report.write(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_metrics_that_break_off_are_noted_and_broken_ones_refused(tmp_path):
    synthetic(tmp_path)
    whole = (tmp_path / "metrics.jsonl").read_text()
    (tmp_path / "metrics.jsonl").write_text(whole + '{"event": "no')
    assert any("breaks off in its last line" in note for note in report.gather(tmp_path).notes)
    (tmp_path / "metrics.jsonl").write_text('{"event": "no\n' + whole)
    with pytest.raises(report.ReportError, match=r"metrics.jsonl:1: "):
        report.gather(tmp_path)


# --- the page -------------------------------------------------------------------------------------------------------


def test_the_page_is_well_formed_and_needs_nothing_else(tmp_path):
    markup = report.write(synthetic(tmp_path), pictures=False).read_text()
    page_ = parsed(markup)
    assert len(set(page_.ids)) == len(page_.ids)
    assert {link for link in page_.links if not link.startswith("#")} == {"data:,"}
    assert {link[1:] for link in page_.links if link.startswith("#")} <= set(page_.ids)
    assert not re.search(r"https?:|@import|url\(|//[a-z]", markup)
    assert "default-src 'none'" in markup
    assert "prefers-color-scheme: dark" in markup
    assert markup.count("<svg") == markup.count('role="img" aria-label="')
    assert not re.search(r"\b(nan|inf|infinity)\b", " ".join(page_.text), re.IGNORECASE)


def test_equal_facts_give_equal_pages(tmp_path):
    facts_ = report.gather(synthetic(tmp_path))
    assert report.render(facts_) == report.render(facts_)


def test_settings_notes_and_time_are_shown(tmp_path):
    page_ = parsed(report.write(synthetic(tmp_path), pictures=False).read_text())
    identity = dict(page_.tables["Model, tokenizer and data"][1:])
    assert identity["model_hash"] == "0123456789abcdef"
    assert identity["tokenizer.first_token_ids"] == "1, 415, 22"
    assert identity["tokenizer.bos"] == "none"
    assert identity["data.zh.fingerprint"] == f"{1:016x}"
    assert dict(page_.tables["Configuration, as resolved"][1:])["scores.seed"] == "0"
    assert dict(page_.tables["Environment"][1:])["versions.jax"] == "0.0"
    assert page_.tables["Time"][1:] == [["score ar", "2,048", "tokens", "5.00", "410"]]
    assert "2 samples in ko, 3 were asked for." in page_.text


def test_names_are_escaped_everywhere(tmp_path):
    wicked = "<script>alert('&\"')</script>"
    folder = synthetic(tmp_path)
    rows = [row("base", wicked, 10, experiment=wicked), row(wicked, wicked, 20, experiment=wicked)]
    with (folder / "results.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows(
            [facts.COLUMNS[:6], *([r.experiment, r.arm, r.language, r.nll_nats, r.tokens, r.bytes] for r in rows)]
        )
    (folder / "config.json").write_text(json.dumps({"experiment": wicked, "model": wicked, wicked: [wicked]}))
    (folder / "tables" / "wicked.json").write_text(
        json.dumps({"title": wicked, "note": wicked, "columns": [wicked], "rows": [[wicked]]})
    )
    markup = report.write(folder, pictures=False).read_text()
    page_ = parsed(markup)  # refuses a script
    assert [wicked] in page_.tables[wicked]


def test_what_looks_like_a_credential_is_left_out():
    settings = {"source": "https://user:secret@example.org/x", "login": "hf_" + "A" * 30, "tokenizer": "plain"}
    cells = str(sections.settings(settings, {}))
    assert "secret" not in cells
    assert "AAAA" not in cells
    assert "plain" in cells


# --- what is written --------------------------------------------------------------------------------------------------


def test_everything_lies_beside_the_page(tmp_path):
    folder = synthetic(tmp_path)
    report.write(folder)
    pictures = sorted(path.name for path in (folder / "figures").iterdir())
    assert pictures == [
        "axis_core.png",
        "damage.png",
        "density_core.png",
        "density_only_ru.png",
        "overlap_languages.png",
        "perplexity_by_arm.png",
        "reliability_growth.png",
    ]
    for picture in pictures:
        content = (folder / "figures" / picture).read_bytes()
        assert content.startswith(b"\x89PNG\r\n\x1a\n")
        metre = int.from_bytes(content[(place := content.index(b"pHYs") + 4) : place + 4], "big")
        assert metre * 0.0254 >= 150  # dots per inch
    stored = list(csv.reader((folder / "tables" / "damage.csv").read_text().splitlines()))
    facts_ = report.gather(folder)
    expected = damage.collect(facts_.rows)[0].damage("top_0.01", "ru")
    assert [float(cells[2]) for cells in stored if cells[0] == "Russian"] == [expected]
    assert (folder / "tables" / "damage.md").read_text().startswith("**Damage by language and arm (nats per token)**")
    assert not [path for path in folder.rglob("*") if path.name.startswith(".") or path.suffix in (".tmp", ".partial")]


def test_without_matplotlib_the_page_is_whole_and_says_what_to_install(tmp_path, monkeypatch):
    folder = synthetic(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    markup = report.write(folder).read_text()
    assert "pip install" in markup
    assert "lingregions[report]" in markup
    assert "Damage by language and arm" in parsed(markup).tables
    assert not list(folder.rglob("*.png"))
    assert (folder / "tables" / "damage.csv").exists()


def test_a_failure_leaves_the_report_of_before(tmp_path, monkeypatch):
    folder = synthetic(tmp_path)
    before = report.write(folder).read_text()
    picture = (folder / "figures" / "damage.png").read_bytes()

    def fail(figure, path):
        path.write_bytes(b"half a pic")
        raise OSError("the disk is on fire")

    monkeypatch.setattr(figures, "draw", fail)
    with pytest.raises(OSError, match="fire"):
        report.write(folder)
    assert (folder / "report.html").read_text() == before
    assert (folder / "figures" / "damage.png").read_bytes() == picture
    assert len(list((folder / "figures").iterdir())) == 7


def test_two_tables_of_one_name_are_refused(tmp_path):
    folder = synthetic(tmp_path)
    (folder / "tables" / "damage.json").write_text(json.dumps({"title": "x", "columns": ["a"], "rows": [["b"]]}))
    with pytest.raises(report.ReportError, match="'damage'"):
        report.write(folder)
    assert not (folder / "report.html").exists()


# --- sections from files ----------------------------------------------------------------------------------------------


def test_files_add_their_sections(tmp_path):
    folder = synthetic(tmp_path)
    (folder / "tables" / "grid.json").write_text(
        json.dumps({"kind": "heatmap", "title": "Grid", "rows": ["a"], "columns": ["b", "c"], "values": [[1, None]]})
    )
    (folder / "tables" / "line.json").write_text(
        json.dumps(
            {"kind": "curve", "title": "Line", "across": "x", "upwards": "y", "series": {"s": [[1, 2]], "t": []}}
        )
    )
    page_ = parsed(report.write(folder, pictures=False).read_text())
    assert page_.tables["Grid"] == [["", "b", "c"], ["a", "1.00", "–"]]
    assert page_.tables["Damage by module"][1:3] == [
        ["q", "60.3", "1,234,567"],
        ["down", "4.0\u00a0×\u00a010⁶", "2,345,678"],
    ]
    text = plain(" ".join(page_.text))
    assert "lies between 0.12 (Arabic and Chinese) and 0.20 (Arabic and Russian)" in text
    assert "Independent regions of these sizes would share at most 0.0050." in text
    assert "between 0.30 (Arabic) and 0.50 (Russian)" in text
    assert page_.tables["Regions"][1][:2] == ["core", "23,580"]
    assert page_.tables["Regions"][1][4].startswith("7, 90, 43, ")
    assert "In core every matrix holds the same share" in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "a JSON object is expected"),
        ("{", "bad.json: "),
        ('{"kind": "poem", "title": "x"}', "kind 'poem' is unknown; there are table, texts"),
        ('{"title": "x", "rows": []}', "the key 'columns' is missing"),
        ('{"title": "x", "columns": ["a"], "rows": [["b", "c"]]}', "row 0 has 2 cells for 1 columns"),
        ('{"title": "x", "columns": [{"name": "a", "kind": "odd"}], "rows": []}', "kind 'odd'; known kinds: text"),
        ('{"kind": "heatmap", "title": "x", "rows": ["a"], "columns": ["b"], "values": [[1, 2]]}', "1 rows x 1 col"),
        ('{"kind": "heatmap", "title": "x", "rows": ["a"], "columns": ["b"], "values": [["c"]]}', "'c' is not a num"),
        ('{"kind": "curve", "title": "x", "across": "a", "upwards": "b", "series": {}}', "series holds no point"),
    ],
)
def test_a_file_that_describes_no_section_is_refused(tmp_path, content, message):
    synthetic(tmp_path)
    (tmp_path / "tables" / "bad.json").write_text(content)
    with pytest.raises(report.ReportError, match=message):
        report.gather(tmp_path)


# --- regions ----------------------------------------------------------------------------------------------------------


def region(name: str, query: list[list[int]], norm: list[int]) -> regions.Region:
    """A region of one layer: q_proj [4, 3] (axes heads, embed) and a norm [3] (embed)."""
    axes = (
        ("layers.input_layernorm", ("layers", "embed")),
        ("layers.self_attn.q_proj", ("layers", "heads", "embed")),
    )
    masks = {
        "layers": {
            "input_layernorm": jnp.asarray([norm], bool),
            "self_attn": {"q_proj": jnp.asarray([query], bool)},
        }
    }
    selection = regions.Selection(15, 0, 2, empty=("model.layers.0.input_layernorm.weight",))
    return regions.Region(masks, regions.Provenance(name, "drawn by hand", model="m0", axes=axes, selection=selection))


def test_region_files_are_surveyed_as_a_hand_counts(tmp_path):
    first = region("first", [[1, 0, 0], [1, 0, 0], [0, 0, 1], [0, 0, 0]], [1, 0, 0])
    second = region("second", [[1, 0, 0], [0, 0, 0], [0, 0, 1], [0, 1, 1]], [0, 0, 0])
    for what in (first, second):
        regions.save(what, tmp_path / f"{what.name}.safetensors")
    (one, two), overlap = survey.read(sorted(tmp_path.iterdir()))
    assert (one.name, one.layers, one.matrices) == ("first", ("0",), ("self_attn.q_proj", "input_layernorm"))
    assert (one.counts, one.sizes) == (((3, 1),), ((12, 3),))
    assert one.carried == (3, 0, 1)
    assert one.capacity == (5, 5, 5)
    assert two.carried == (1, 1, 2)
    # first: 4 entries, second: 4; in common [0, 0] and [2, 2]
    assert overlap.values == ((1.0, 2 / 6), (2 / 6, 1.0))
    # 4/15 each: 16/225 of 8/15 - 16/225
    assert overlap.chance == pytest.approx(16 / 104)
    assert one.notes == ("1 matrix is too small for the fraction to select one entry (k < 1).",)


def test_the_regions_of_a_run_are_reported(tmp_path):
    folder = synthetic(tmp_path)
    (folder / "regions").mkdir()
    regions.save(region("r<1>", [[1, 0, 0]] * 4, [0, 0, 0]), folder / "regions" / "a.safetensors")
    regions.save(region("r<1>", [[0, 0, 0]] * 4, [0, 0, 0]), folder / "regions" / "b.safetensors")
    (folder / "tables" / "densities.json").unlink()
    page_ = parsed(report.write(folder, pictures=False).read_text())
    text = plain(" ".join(page_.text))
    assert page_.tables["Regions"][1][:3] == ["r<1>", "4", "26.7\u00a0%"]
    assert "Every region: 1 matrix is too small for the fraction to select one entry (k < 1)." in text
    assert page_.tables["Parameters by layer and matrix: r<1>"] == [["layer", "q", "norm 1"], ["0", "4", "0"]]
    assert page_.tables["Overlap of the regions"][1:] == [["r<1>", "1.00", "0.00"], ["r<1> (2)", "0.00", "–"]]
    identity = dict(page_.tables["Model, tokenizer and data"][1:])
    assert (identity["region.model hash"], identity["region.definition"]) == ("m0", "drawn by hand")
    assert [line[0] for line in page_.tables["Region: what differs"]] == ["region", "r<1>", "r<1> (2)"]


def test_a_damaged_region_file_is_named(tmp_path):
    folder = synthetic(tmp_path)
    (folder / "regions").mkdir()
    (folder / "regions" / "a.safetensors").write_bytes(b"no tensors here")
    with pytest.raises(report.ReportError, match=r"a\.safetensors"):
        report.gather(folder)


def test_regions_come_in_the_order_of_the_arms(tmp_path):
    folder = synthetic(tmp_path)
    (folder / "regions").mkdir()
    for stem, name in (("a", "extra"), ("b", "random_0.01"), ("c", "top_0.01")):
        regions.save(region(name, [[1, 0, 0]] * 4, [0, 0, 0]), folder / "regions" / f"{stem}.safetensors")
    assert [each.name for each in report.gather(folder).surveys] == ["top_0.01", "random_0.01", "extra"]


def test_many_different_regions_are_set_side_by_side():
    surveys = [
        survey.Survey(f"only {place}", ("0", "1"), ("self_attn.q_proj", "mlp.up_proj"), counts, ((10, 10), (10, 10)))
        for place, counts in enumerate([((place, 9), (1, 1)) for place in range(5)])
    ]
    items = {item.name: item for item in sections.densities(surveys).items}
    assert set(items) == {"regions", "density_by_layer", "density_by_matrix"}
    assert items["density_by_layer"].labels == ((9, 10, 11, 12, 13), (2, 2, 2, 2, 2))
    assert items["density_by_matrix"].labels == ((1, 2, 3, 4, 5), (10, 10, 10, 10, 10))
    assert items["density_by_matrix"].rows == ("q", "up")
    assert items["density_by_layer"].values[0][4] == 13 / 20


def test_what_stages_have_in_common_is_said_once(tmp_path):
    folder = synthetic(tmp_path)
    (folder / "done").mkdir()
    for code, samples in (("ar", 3), ("zh", 2)):
        record = {"facts": {"seed": 0, "samples": samples, "data": "ab" * 32}, "files": {}}
        (folder / "done" / f"score-{code}.json").write_text(json.dumps(record))
    (folder / "done" / "region-top.json").write_text(json.dumps({"facts": {"region": "top"}, "files": {}}))
    page_ = parsed(report.write(folder, pictures=False).read_text())
    identity = dict(page_.tables["Model, tokenizer and data"][1:])
    assert (identity["score.seed"], identity["score.data"]) == ("0", "ab" * 32)
    assert page_.tables["Score: what differs"] == [["score", "samples"], ["ar", "3"], ["zh", "2"]]
    assert not [key for key in identity if key.startswith("region")]


@given(st.lists(st.lists(st.booleans(), min_size=12, max_size=12), min_size=1, max_size=9))
def test_common_entries_are_counted_for_every_pair(masks):
    label = sum(np.asarray(mask, np.uint64) << np.uint64(place) for place, mask in enumerate(masks))
    array = np.asarray(masks, int)
    np.testing.assert_array_equal(survey._common(label, len(masks)), array @ array.T)


@pytest.mark.parametrize(
    ("counts", "sizes", "even"),
    [
        (((10, 1),), ((1000, 150),), True),  # floor(0.01 x 150) = 1
        (((10, 2),), ((1000, 150),), False),
        (((10, 0),), ((1000, 50),), True),  # k < 1
        (((0, 0),), ((1000, 50),), False),  # empty
        (((10, None),), ((1000, None),), True),
    ],
)
def test_one_fraction_of_every_matrix_is_recognised(counts, sizes, even):
    assert survey.Survey("r", ("0",), ("a", "b"), counts, sizes).even is even


# --- figures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("anchors", [figures.LIGHT, figures.DARK])
def test_every_shade_is_legible_and_the_scale_is_monotone(anchors):
    colours = [figures.shade(anchors, step / (figures.STEPS - 1)) for step in range(figures.STEPS)]
    light = [figures.luminance(colour) for colour in colours]
    assert light in (sorted(light), sorted(light, reverse=True))
    for colour, background in zip(colours, light, strict=True):
        text = 0.0 if figures.ink(colour) == "#000" else 1.0
        high, low = max(text, background), min(text, background)
        assert (high + 0.05) / (low + 0.05) >= 4.5  # WCAG AA


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_cover_what_they_measure(low, span):
    values = figures.ticks(low, low + span)
    slack = 1e-6 * (values[-1] - values[0])
    assert values[0] <= low + slack
    assert values[-1] >= low + span - slack
    assert 2 <= len(values) <= 8


@given(st.floats(-50, 5000), st.floats(0, 5000))
def test_powers_of_ten_cover_what_they_measure(low, span):
    values = figures.powers(low, low + span)
    assert values[0] * math.log(10) <= low + 1e-6
    assert values[-1] * math.log(10) >= low + span - 1e-6
    assert 2 <= len(values) <= 9


def test_binning_keeps_every_peak():
    points = [(float(x), 9.0 if x in (5, 77) else 1.0) for x in range(100)]
    binned = figures.bins(points, 10)
    assert len(binned) == 10
    assert [x for x, y in binned if y == 9.0] == [5.0, 77.0]


@pytest.mark.parametrize(
    ("value", "low", "high", "expected"),
    [
        (0.0, 0, 15, 0),
        (15.0, 0, 15, 15),
        (-3.0, 0, 15, 0),
        (99.0, 0, 15, 15),
        (1.0, 1, 1, 0),
        (None, 0, 1, None),
        (math.nan, 0, 1, None),
    ],
)
def test_a_value_finds_its_shade(value, low, high, expected):
    assert figures.step(value, low, high) == expected


def test_a_figure_of_nothing_but_equal_values_is_drawn(tmp_path):
    grid = figures.Grid("g", "Grid", "", ("a",), ("b",), ((0.0,),))
    strip = figures.Strip("s", "Strip", "x", ("a",), ((("b", 0.0),),), (0.0,), "mean")
    curve = figures.Curve("c", "Curve", "x", "y", (figures.Series("s", ((1.0, 0.0),)),), logarithmic=True)
    for figure in (grid, strip, curve):
        assert parsed(figures.html(figure)).open == []
        figures.draw(figure, tmp_path / f"{figure.name}.png")
    assert len(list(tmp_path.iterdir())) == 3


# --- tables and languages -------------------------------------------------------------------------------------------


def test_markdown_and_csv_hold_the_same_cells():
    columns = (tables.Column("a|b"), tables.Column("n", "number"))
    table = tables.Table("t", "Title", columns, (("x|y", 0.1), (None, None)))
    assert tables.markdown(table) == "**Title**\n\n| a\\|b | n |\n|---|---:|\n| x\\|y | 0.100 |\n| – | – |\n"
    assert tables.spreadsheet(table) == "a|b,n\nx|y,0.1\n,\n"


def test_relatives_stand_side_by_side():
    codes = languages.arrange(["ru", "en", "qq", "fr", "uk", "de", "no"])
    assert codes.index("uk") == codes.index("ru") + 1
    assert {codes[place] for place in range(codes.index("en"), codes.index("en") + 3)} == {"en", "de", "no"}
    assert codes[-1] == "qq"
    assert (languages.name("no"), languages.family("no"), languages.family("qq")) == ("Norwegian", "Germanic", "")


def test_anchors_are_distinct():
    parts = [sections.Section("A title"), sections.Section("A title"), sections.Section("表")]
    assert page.anchors(parts) == ["a_title", "a_title_2", "untitled"]
