"""The kinds of tables/<name>.json: each file against the section that a hand draws of it.

All figures here are invented for these tests, and no result of any run.
"""

import csv
import json
import math
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_report import parsed, plain, synthetic

from lingregions import report
from lingregions.report import figures, kinds, numerals, page, scatter, tables
from lingregions.report.numerals import Span
from lingregions.report.scatter import Box, Point, Scatter

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
    "densities": {"regions": []},
}


def folder(path: Path, **files: object) -> Path:
    """A work directory that holds nothing but files of tables/."""
    (path / "tables").mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (path / "tables" / f"{name}.json").write_text(json.dumps(content))
    return path


# --- numbers with an interval ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "span", "expected"),
    [
        (numerals.interval, Span(0.12, 0.1, 0.15), "0.12 (0.10 to 0.15)"),
        (numerals.interval, Span(0.012, -0.001, 0.025), "0.012 (−0.001 to 0.025)"),
        (numerals.interval, Span(7.604, 6.2, 8.0), "7.60 (6.20 to 8.00)"),
        (numerals.interval, Span(1234.4, 1000, 2000), "1,234 (1,000 to 2,000)"),
        (numerals.interval, Span(-0.0001, -0.2, 0.2), "0.00 (−0.20 to 0.20)"),
        (numerals.interval, Span(0.0, 0.0, 0.0), "0 (0 to 0)"),
        (numerals.interval, Span(2.5e7, 1e7, 3e7), "2.5 × 10⁷ (1.0 × 10⁷ to 3.0 × 10⁷)"),
        (numerals.interval, Span(0.5), "0.50"),
        (numerals.interval, Span(0.5, 0.25, None), "0.50 (0.25 to –)"),
        (numerals.interval, Span(None, 0.1, 0.2), "–"),
        (numerals.interval, None, "–"),
        (numerals.factor, Span(math.log(12.3), math.log(10.1), math.log(15)), "×12.3 (10.1 to 15.0)"),
        (numerals.factor, Span(math.log(1.05)), "×1.05"),
        (numerals.factor, Span(1000, 999, 1001), "×2.0 × 10⁴³⁴ (7.2 × 10⁴³³ to 5.4 × 10⁴³⁴)"),
        (numerals.factor, Span(math.inf, 1, 2), "–"),
        (numerals.probability, 0.04, "0.040"),
        (numerals.probability, 0.0002, "< 0.001"),
        (numerals.probability, None, "–"),
    ],
)
def test_an_interval_is_printed_for_a_reader(function, span, expected):
    assert plain(function(span)) == expected


def test_an_interval_is_stored_as_three_columns():
    columns = (tables.Column("arm"), tables.Column("d", "interval"), tables.Column("times", "factor"))
    table = tables.Table(
        "t", "T", columns, (("a", Span(0.1, None, 0.3), Span(0.0, -math.log(2), 1000.0)), ("b",) + (None,) * 2)
    )
    head, first, second = csv.reader(tables.spreadsheet(table).splitlines())
    assert head == ["arm", "d", "d: low", "d: high", "times", "times: low", "times: high"]
    assert first[:4] == ["a", "0.1", "", "0.3"]
    assert [float(first[4]), float(first[5])] == pytest.approx([1.0, 0.5])
    assert first[6].endswith("e+434")
    assert second == ["b"] + [""] * 6


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True) | st.none(), min_size=3, max_size=3))
def test_no_interval_is_ever_printed_as_nan_or_infinity(parts):
    for kind in numerals.SPANS:
        assert not re.search("nan|inf", numerals.KINDS[kind](Span(*parts)))


# --- the files ------------------------------------------------------------------------------------------------------


def test_every_kind_has_its_smallest_file():
    assert set(LEAST) == set(kinds.BUILDERS)


@pytest.mark.parametrize("kind", LEAST)
def test_every_kind_of_file_is_shown(tmp_path, kind):
    content = {"kind": kind, "title": "A <title>", "headline": "Something was found.", "note": "A note."}
    page_ = parsed(report.write(folder(tmp_path, it=content | LEAST[kind])).read_text())
    assert "A <title>" in page_.text
    assert page_.text[page_.text.index("Something was found.") - 1] != "A note."
    assert "A note." in page_.text
    assert (tmp_path / "headline.txt").read_text().startswith("Something was found.\n")


def test_a_table_holds_intervals_and_factors(tmp_path):
    content = {
        "title": "Losses",
        "columns": ["arm", {"name": "nats", "kind": "interval"}, {"name": "times", "kind": "factor"}],
        "rows": [["top", [2.5, 2.25, 2.75], [math.log(10), None, None]], ["none", None, [None, None, None]]],
        "totals": 1,
    }
    page_ = parsed(report.write(folder(tmp_path, losses=content), pictures=False).read_text())
    assert page_.tables["Losses"] == [
        ["arm", "nats", "times"],
        ["top", "2.50 (2.25 to 2.75)", "×10.0"],
        ["none", "–", "–"],
    ]
    assert (tmp_path / "tables" / "losses.csv").read_text().splitlines()[1].startswith("top,2.5,2.25,2.75,10.0")


def test_texts_are_shown_in_their_direction_and_on_one_line(tmp_path):
    rows = [["مرة", "كان\nيا ما\u202e كان"], ["<b>", "a\tb\x00\x1b"]]
    content = {"kind": "texts", "title": "What it writes", "columns": ["prompt", "without"], "rows": rows}
    markup = report.write(folder(tmp_path, texts=content), pictures=False).read_text()
    assert parsed(markup).tables["What it writes"][1:] == [["مرة", "كان↵يا ما\u202e كان"], ["<b>", "a b␀␛"]]
    assert markup.count('dir="auto"') == 6
    assert "\x00" not in markup


def test_a_verdict_is_shown_first_and_stands_in_the_headline_file(tmp_path):
    verdict = {"kind": "verdict", "title": "Is it linguistic?", "paragraphs": ["Not shown.", "Not at all."]}
    synthetic(tmp_path)
    markup = report.write(folder(tmp_path, zz={**verdict, "headline": "Dimension 7 is enough."}), False).read_text()
    page_ = parsed(markup)
    head = markup[markup.index("<h1>") : markup.index("<nav")]
    assert re.findall(r"<(?:h1|p)[^>]*>([^<]{9})", head)[0] == "Dimension"
    assert head.index("Removing the top") < head.index("Is it linguistic?") < head.index("Not at all.")
    assert head.index("Not at all.") < head.index("How far to trust it") < head.index("Collapse by itself")
    assert page_.text.count("Is it linguistic?") == 1  # not among the sections again
    first, computed, title, *_ = (tmp_path / "headline.txt").read_text().split("\n\n")
    assert first == "Dimension 7 is enough."
    assert computed.startswith("Removing the top 1 % multiplies")
    assert title == "Is it linguistic?:"


def test_the_summary_of_a_run_is_plain_text(tmp_path):
    facts_ = report.gather(folder(tmp_path, it={"kind": "verdict", "title": "", "paragraphs": ["1\u00a0%"]}))
    assert page.summary(facts_) == f"{tmp_path.name}: nothing has been measured yet.\n\nVerdict:\n\n1 %\n"


def test_bands_are_drawn_where_there_is_an_interval(tmp_path):
    series = {
        "ru": {"points": [[1e-7, 0], [1e-5, 5], [1e-3, 9]], "low": [-1, None, 8], "high": [1, 6, 10]},
        "en": [[1e-6, 2]],
    }
    content = {"kind": "curve", "title": "C", "across": "share", "upwards": "times", "format": "exponential"}
    content |= {"x_format": "percent", "logarithmic": True, "series": series}
    markup = report.write(folder(tmp_path, it=content)).read_text()
    text = plain(markup)
    assert markup.count('class="band f0"') == 2  # a stretch on either side of the gap
    assert "The shaded bands are the intervals." in text
    assert ">10⁴<" in text  # e^9 is 8,103: the axis of powers holds it
    assert ">1.0 × 10⁻⁵ %<" in text
    stored = list(csv.reader((tmp_path / "tables" / "it.csv").read_text().splitlines()))
    assert stored[0] == ["series", "share", "times", "times: low", "times: high"]
    assert [stored[1][:2], stored[2][3:]] == [["ru", "1e-07"], ["", ""]]
    assert (tmp_path / "figures" / "it.png").stat().st_size > 1000


def test_a_point_without_a_number_is_left_out_and_told(tmp_path):
    series = {"ru": {"points": [[1, 2], [2, None], [3, 4]], "low": [1, None, 3], "high": [3, None, 5]}}
    content = {"kind": "curve", "title": "C", "across": "x", "upwards": "y", "series": series}
    (section,) = report.gather(folder(tmp_path, it=content)).extras
    assert section.items[0].series[0] == figures.Series("ru", ((1, 2), (3, 4)), ((1, 3), (3, 5)))
    assert section.paragraphs[-1] == "Left out, because a number is missing or not finite: 1 point."


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"columns": [{"name": "a", "kind": "interval"}], "rows": [[1]]}, r"holds 1; expected \[value, low, high\]"),
        ({"columns": [{"name": "a", "kind": "factor"}], "rows": [[[1, "x", 2]]]}, "'x' is not a number"),
        ({"columns": ["a"], "rows": [[[1, 2, 3]]]}, "a list belongs in one of kind interval or factor"),
        ({"kind": "verdict", "paragraphs": "words"}, "paragraphs has to be a list of texts"),
        ({"kind": "scatter", "x": "a", "y": "b", "points": [{"label": "p", "x": 1}]}, "none that has both"),
        ({**LEAST["scatter"], "kind": "scatter", "better": ["up"]}, "expected two of 'low' or 'high'"),
        ({**LEAST["scatter"], "kind": "scatter", "x_format": "factor"}, "an axis has kind 'factor'"),
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
        report.gather(folder(tmp_path, bad={"title": "x", **content}))


# --- scatter --------------------------------------------------------------------------------------------------------


def drawn(*points: tuple[str, float, float], better: tuple[str, ...] = ()) -> Scatter:
    found = tuple(Point(label, label[0], Span(x, x - 1, x + 1), Span(y)) for label, x, y in points)
    return Scatter("s", "S", "x", "y", found, better=better)


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
    figure = drawn(("a", 1, 5), ("b", 2, 3), ("c", 4, 1), ("d", 2, 6), ("e", 5, 7), better=better)
    assert [point.label for point in figure.front()] == expected


def test_a_scatter_tells_groups_by_colour_and_by_marker(tmp_path):
    points = [
        {"label": f"{group} {number}", "group": group, "x": number, "y": number**2, "y_low": 0, "y_high": 20}
        for number in range(3)
        for group in ("full", "frozen")
    ]
    content = {
        "kind": "scatter",
        "title": "S",
        "x": "cost",
        "y": "gain",
        "points": [*points, {"label": "lost", "x": 1}],
    }
    page_ = parsed(markup := report.write(folder(tmp_path, it={**content, "better": ["low", "high"]})).read_text())
    outlines = set(re.findall(r'<path d="([^"]+)" transform="[^"]+" class="spot f(\d)"', markup))
    assert outlines == {(scatter.MARKERS[0][0], "0"), (scatter.MARKERS[1][0], "1")}
    assert "Not drawn, because a value is missing: lost." in page_.text
    assert page_.tables["S: the points"][:2] == [
        ["point", "group", "cost", "gain"],
        ["full 0", "full", "0", "0.0 (0.0 to 20.0)"],
    ]
    assert (tmp_path / "figures" / "it.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "tables" / "it_points.csv").exists()


@given(st.lists(st.tuples(st.floats(-10, 10), st.floats(-10, 10)), min_size=1, max_size=25))
def test_no_label_lies_on_another_or_on_a_marker(places):
    figure = drawn(*((f"arm number {number}", x, y) for number, (x, y) in enumerate(places)))
    found = scatter.layout(figure)
    boxes = [box for *_, box in found.labels if box is not None]
    assert not [1 for place, box in enumerate(boxes) for other in boxes[:place] if box.meets(other)]
    for point in figure.drawn:
        x, y = found.spot(point)
        assert not [box for box in boxes if box.meets(Box(x - 6, y - 6, x + 6, y + 6))]


def test_a_label_that_finds_no_room_is_left_out():
    box = Box(0, 0, 100, 40)
    assert scatter.arrange([(20, 20)], ["ten letters and more"], box) == [None]
    assert scatter.arrange([(20, 20)], ["ten"], box) == [Box(29, 13, 50, 27)]  # to the right, 7 units a letter
    assert scatter.arrange([(90, 20)], ["ten"], box) == [Box(60, 13, 81, 27)]  # to the left, where the right is outside


def test_a_logarithmic_axis_holds_what_a_float_cannot():
    figure = Scatter("s", "S", "x", "y", (Point("a", "", Span(1.0), Span(921.0)),), upwards_kind="exponential")
    assert "10⁴⁰⁰" in (markup := figures.html(figure))
    assert "a: 1.00, ×9.7 × 10³⁹⁹" in plain(markup)
