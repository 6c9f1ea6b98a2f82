"""The kinds of tables/<name>.json: each file against the section that a hand draws of it.

All figures here are invented for these tests, and no result of any run.
"""

import csv
import math

import pandas as pd
import pytest
from workdirs import parsed, plain, tables_only, workdir

from lingregions import report
from lingregions.report import data, figures, kinds, page, tables
from lingregions.report.charts import Axis
from lingregions.report.numerals import Span

# One file of every kind, as small as it can be.
LEAST = {
    "table": {"columns": ["a"], "rows": [["b"]]},
    "texts": {"columns": ["prompt", "base"], "rows": [["Once", "upon a time"]]},
    "verdict": {"paragraphs": ["It depends."]},
    "heatmap": {"rows": ["a"], "columns": ["b"], "values": [[1]]},
    "overlap": {"names": ["a", "b"], "values": [[1, 0.5], [0.5, 1]]},
    "reliability": {"halves": {"ru": 0.5}},
    "curve": {"across": "x", "upwards": "y", "series": {"s": [[1, 2]]}},
    "scatter": {"x": "cost", "y": "gain", "points": [{"label": "a", "x": 1, "y": 2}]},
}


def test_an_interval_is_stored_as_three_columns():
    columns = (tables.Column("intervention"), tables.Column("d", "interval"), tables.Column("times", "factor"))
    table = tables.Table(
        "t", "T", columns, (("a", Span(0.1, None, 0.3), Span(0.0, -math.log(2), 1000.0)), ("b",) + (None,) * 2)
    )
    head, first, second = csv.reader(tables.spreadsheet(table).splitlines())
    assert head == ["intervention", "d", "d_low", "d_high", "times", "times_low", "times_high"]
    assert first[:4] == ["a", "0.1", "", "0.3"]
    assert [float(first[4]), float(first[5])] == pytest.approx([1.0, 0.5])
    assert first[6].endswith("e+434")
    assert second == ["b"] + [""] * 6


# --- the files ------------------------------------------------------------------------------------------------------


def test_every_kind_has_its_smallest_file():
    assert set(LEAST) == set(kinds._BUILDERS)


@pytest.mark.parametrize("kind", LEAST)
def test_every_kind_of_file_is_shown(tmp_path, kind):
    content = {"kind": kind, "title": "A <title>", "headline": "Something was found.", "note": "A note."}
    page_ = parsed(report.write(tables_only(tmp_path, it=content | LEAST[kind])).read_text())
    assert "A <title>" in page_.text
    assert page_.text[page_.text.index("Something was found.") - 1] != "A note."
    assert "A note." in page_.text
    assert (tmp_path / "headline.txt").read_text().startswith("Something was found.\n")


def test_a_table_holds_intervals_and_factors(tmp_path):
    content = {
        "title": "Losses",
        "columns": ["intervention", {"name": "nats", "kind": "interval"}, {"name": "times", "kind": "factor"}],
        "rows": [["top", [2.5, 2.25, 2.75], [math.log(10), None, None]], ["none", None, [None, None, None]]],
        "totals": 1,
    }
    page_ = parsed(report.write(tables_only(tmp_path, losses=content), pictures=False).read_text())
    assert page_.tables["Losses"] == [
        ["intervention", "nats", "times"],
        ["top", "2.50 (2.25 to 2.75)", "×10.0"],
        ["none", "–", "–"],
    ]
    assert (tmp_path / "tables" / "losses.csv").read_text().splitlines()[1].startswith("top,2.5,2.25,2.75,10.0")


def test_texts_are_shown_in_their_direction_and_on_one_line(tmp_path):
    rows = [["مرة", "كان\nيا ما\u202e كان"], ["<b>", "a\tb\x00\x1b"]]
    content = {"kind": "texts", "title": "What it writes", "columns": ["prompt", "without"], "rows": rows}
    markup = report.write(tables_only(tmp_path, texts=content), pictures=False).read_text()
    assert parsed(markup).tables["What it writes"][1:] == [["مرة", "كان↵يا ما\u202e كان"], ["<b>", "a b␀␛"]]
    assert markup.count('dir="auto"') == 6
    assert "\x00" not in markup


def test_a_verdict_is_shown_below_the_picture_and_stands_in_the_headline_file(tmp_path):
    verdict = {"kind": "verdict", "title": "Verdict", "paragraphs": ["Not shown.", "Not at all."]}
    (workdir(tmp_path) / "tables" / "verdict.json").unlink()
    markup = report.write(
        tables_only(tmp_path, zz={**verdict, "headline": "Dimension 7 is enough."}), False
    ).read_text()
    places = [markup.index(words) for words in ("<h1>Dimension 7", "data-figure", "Not shown.", "Not at all.", "<nav")]
    assert places == sorted(places)
    first, *others = (tmp_path / "headline.txt").read_text().strip().split("\n\n")
    assert (first, others[-2:]) == ("Dimension 7 is enough.", ["Not shown.", "Not at all."])


def test_the_summary_of_a_run_is_plain_text(tmp_path):
    found = data.read(tables_only(tmp_path, it={"kind": "verdict", "title": "", "paragraphs": ["1\u00a0%"]}))
    assert page._summary(found) == f"{tmp_path.name}: nothing has been measured yet.\n\n1 %\n"


def section(folder, content):
    """The section of one file."""
    (found,) = data.read(tables_only(folder, it={"title": "T", **content})).extras
    return found


def test_a_curve_keeps_its_numbers_and_its_bands(tmp_path):
    series = {"ru": {"points": [[1e-7, 0], [1e-5, 5], [1e-3, 9]], "low": [-1, None, 8], "high": [1, 6, 10]}}
    content = {"kind": "curve", "across": "share", "upwards": "times", "format": "exponential", "x_format": "percent"}
    found = section(tmp_path, {**content, "logarithmic": True, "series": {**series, "en": [[1e-6, 2], [2e-6, None]]}})
    (curve,) = found.items
    assert curve.frame["y"].tolist() == [0, 5, 9, 2]
    assert found.paragraphs == (
        "The shaded bands are the intervals.",
        "Left out, because a number is missing or not finite: 1 point.",
    )
    marks = [layer["mark"]["type"] for layer in curve.spec["layer"]]
    assert marks == ["area", "line", "point"]
    (values,) = curve.spec["datasets"].values() if "datasets" in curve.spec else [curve.spec["data"]["values"]]
    assert values[1]["y"] == pytest.approx(5 / math.log(10))  # the axis counts powers of ten
    assert values[1]["low"] is None
    assert plain(values[2]["reading"]) == "8,103 (2,981 to 22,026)"


def test_a_heat_map_of_equal_cells_is_a_sentence(tmp_path):
    content = {"kind": "heatmap", "rows": ["a", "b"], "columns": ["c"], "values": [[0.5], [None]], "format": "share"}
    found = section(tmp_path, {**content, "unit": "IoU"})
    assert (found.items, found.paragraphs) == ((), ("Every cell is 0.50 IoU: there is nothing to draw.",))
    (drawn,) = section(tmp_path, {**content, "values": [[0.5], [0.25]]}).items
    assert drawn.frame["value"].tolist() == [0.5, 0.25]


def test_overlap_is_ordered_by_its_dendrogram(tmp_path):
    values = [[1, 0.1, 0.8], [0.1, 1, 0.1], [0.8, 0.1, 1]]
    found = section(tmp_path, {"kind": "overlap", "names": ["es", "zh", "pt"], "values": values, "chance": 0.05})
    grid, tree = found.items
    names = list(dict.fromkeys(grid.frame["row"]))
    assert abs(names.index("Spanish") - names.index("Portuguese")) == 1
    assert grid.frame["value"].isna().sum() == 3  # the diagonal
    orders = [[layer["encoding"][side]["sort"] for side in "xy"] for layer in grid.spec["layer"]]
    assert orders == [[names, names]] * 2  # whatever each layer leaves out
    # Spanish and Portuguese join at 0.8, Chinese joins them at the mean of 0.1 and 0.1.
    assert sorted({round(value, 6) for value in tree.frame["iou"]}) == [0.1, 0.8, 1.0]
    assert found.paragraphs[0].startswith("Portuguese and Spanish share") or "Spanish" in found.paragraphs[0]
    assert "at most 0.05" in found.paragraphs[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"columns": [{"name": "a", "kind": "interval"}], "rows": [[1]]}, r"holds 1; expected \[value, low, high\]"),
        ({"columns": [{"name": "a", "kind": "factor"}], "rows": [[[1, "x", 2]]]}, "'x' is not a number"),
        ({"columns": ["a"], "rows": [[[1, 2, 3]]]}, "a list belongs in one of kind interval or factor"),
        ({"kind": "verdict", "paragraphs": "words"}, "paragraphs has to be a list of texts"),
        ({"kind": "scatter", "x": "a", "y": "b", "points": [{"label": "p", "x": 1}]}, "none that has both"),
        ({**LEAST["scatter"], "kind": "scatter", "better": ["up"]}, "better has to say low or high"),
        ({**LEAST["scatter"], "kind": "scatter", "x_format": "factor"}, "kind 'factor'"),
        (
            {**LEAST["curve"], "kind": "curve", "series": {"s": {"points": [[1, 2]], "low": [1, 1], "high": [2, 2]}}},
            "series 's' has 1 points, but low or high has not as many",
        ),
        ({**LEAST["curve"], "kind": "curve", "logarithmic": True, "series": {"s": [[0, 2]]}}, "an x of zero or less"),
        ({**LEAST["curve"], "kind": "curve", "series": {"s": [[1, math.inf]]}}, "series holds no point"),
    ],
)
def test_a_file_that_describes_no_section_is_refused(tmp_path, content, message):
    with pytest.raises(report.ReportError, match=message):
        data.read(tables_only(tmp_path, bad={"title": "x", **content}))


# --- scatter --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("better", "expected"),
    [
        (("low", "low"), ["a", "b", "c"]),  # d is as good as b on one axis, and worse on the other
        (("high", "high"), ["e"]),
        (("low", "high"), ["a", "d", "e"]),
        ((), []),
    ],
)
def test_the_front_is_that_of_a_hand(better, expected):
    points = pd.DataFrame({"label": list("abcde"), "x": [1, 2, 4, 2, 5], "y": [5, 3, 1, 6, 7]})
    assert kinds._pareto(points, better) == expected


def test_a_scatter_tells_groups_by_colour_and_by_marker(tmp_path):
    points = [
        {"label": f"{group} {number}", "group": group, "x": number, "y": number**2, "y_low": 0, "y_high": 20}
        for number in range(3)
        for group in ("full", "frozen")
    ]
    content = {"kind": "scatter", "x": "cost", "y": "gain", "points": [*points, {"label": "lost", "x": 1}]}
    found = section(tmp_path, {**content, "better": ["low", "high"]})
    drawn, listing = found.items
    marks = [layer for layer in drawn.spec["layer"] if layer["mark"]["type"] == "point"]
    assert [(mark["encoding"]["color"]["field"], mark["encoding"]["shape"]["field"]) for mark in marks] == [
        ("group",) * 2
    ]
    assert "Not drawn, because a value is missing: lost." in found.paragraphs
    assert listing.rows[0] == ("full 0", "full", Span(0.0), Span(0.0, 0.0, 20.0))
    assert listing.rows[-1] == ("lost", "", Span(1.0), Span(None))
    assert figures.THEMES["light"]["range"]["symbol"][0] != figures.THEMES["light"]["range"]["symbol"][1]


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(0.63, 1.58, [0.8, 1.0, 1.2, 1.4]), (1, 10, [2, 4, 6, 8, 10]), (0.91, 1.152, [0.95, 1.0, 1.05, 1.1, 1.15])],
)
def test_ticks_between_powers_of_ten_are_round(low, high, ticks):
    values = pd.DataFrame({"y": [math.log10(low), math.log10(high)]})
    axis = Axis("perplexity", "exponential")._encode(values)["axis"]
    assert [10**tick for tick in axis["values"]] == pytest.approx(ticks)


def test_ticks_over_many_powers_of_ten_are_powers():
    for low, high, ticks in ((-4, -1.2, [-4, -3, -2, -1]), (0, 7, [*range(8)]), (0.5, 20, [0, 3, 6, 9, 12, 15, 18])):
        values = pd.DataFrame({"y": [low, high]}, dtype=float)
        assert Axis("perplexity", "exponential")._encode(values)["axis"]["values"] == ticks


def test_names_of_columns_are_level_where_they_have_room():
    axis = figures.heads(["Spanish", "Vietnamese"]).to_dict()
    assert axis["labelAngle"] == {"expr": "width >= 156 ? 0 : -90"}  # 2 names of 10 letters of 7 pixels, 8 between
    assert axis["labelAlign"] == {"expr": "width >= 156 ? 'center' : 'left'"}
    assert figures.heads(["es"], "bottom").to_dict()["labelAlign"]["expr"].endswith("'right'")
