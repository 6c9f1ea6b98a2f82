"""Numbers as a reader wants them: each against what a hand writes."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from workdirs import plain

from lingregions.report import numerals
from lingregions.report.numerals import Span


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
        (numerals._exponential, math.log(1.03), "1.03"),
        (numerals._exponential, 400 * math.log(10), "1.0 × 10⁴⁰⁰"),
        (numerals._exponential, math.log(2.74e7), "2.7 × 10⁷"),
        (numerals._exponential, -math.inf, "–"),
        (numerals._decimal, 14.35, "14.350"),
        (numerals._decimal, -0.0004, "0.000"),
        (numerals._decimal, -0.5, "−0.500"),
        (numerals._decimal, 2.5e7, "2.5 × 10⁷"),
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


@pytest.mark.parametrize(
    ("function", "span", "expected"),
    [
        (numerals._interval, Span(0.12, 0.1, 0.15), "0.12 (0.10 to 0.15)"),
        (numerals._interval, Span(0.012, -0.001, 0.025), "0.012 (−0.001 to 0.025)"),
        (numerals._interval, Span(7.604, 6.2, 8.0), "7.60 (6.20 to 8.00)"),
        (numerals._interval, Span(1234.4, 1000, 2000), "1,234 (1,000 to 2,000)"),
        (numerals._interval, Span(-0.0001, -0.2, 0.2), "0.00 (−0.20 to 0.20)"),
        (numerals._interval, Span(0.0, 0.0, 0.0), "0 (0 to 0)"),
        (numerals._interval, Span(2.5e7, 1e7, 3e7), "2.5 × 10⁷ (1.0 × 10⁷ to 3.0 × 10⁷)"),
        (numerals._interval, Span(0.5), "0.50"),
        (numerals._interval, Span(0.5, 0.25, None), "0.50 (0.25 to –)"),
        (numerals._interval, Span(None, 0.1, 0.2), "–"),
        (numerals._interval, None, "–"),
        (numerals.factor, Span(math.log(12.3), math.log(10.1), math.log(15)), "×12.3 (10.1 to 15.0)"),
        (numerals.factor, Span(math.log(1.05)), "×1.05"),
        (numerals.factor, Span(1000, 999, 1001), "×2.0 × 10⁴³⁴ (7.2 × 10⁴³³ to 5.4 × 10⁴³⁴)"),
        (numerals.factor, Span(math.inf, 1, 2), "–"),
        (numerals._probability, 0.04, "0.040"),
        (numerals._probability, 0.0002, "< 0.001"),
        (numerals._probability, None, "–"),
    ],
)
def test_an_interval_is_printed_for_a_reader(function, span, expected):
    assert plain(function(span)) == expected


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True) | st.none(), min_size=3, max_size=3))
def test_no_interval_is_ever_printed_as_nan_or_infinity(parts):
    for kind in numerals.SPANS:
        assert not re.search("nan|inf", numerals.KINDS[kind](Span(*parts)))
