"""Intervals: figures by hand, coverage by simulation, and what two interventions must share to be compared."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lingregions import statistics
from lingregions.evaluate import Segments
from lingregions.statistics import Draws


def documents(nll: list[float], tokens: list[int]) -> Segments:
    n = len(nll)
    return Segments(np.arange(n), np.asarray(nll, float), np.asarray(tokens), np.full(n, 3))


def test_the_difference_is_of_sums_divided_once():
    base, intervention = documents([1, 2, 3], [1, 1, 2]), documents([2, 4, 9], [1, 1, 2])
    found = statistics.compare([{"en": intervention}], [{"en": base}])["en"]
    assert found.value == (15 - 6) / 4
    assert found.units == 3


def test_a_resample_by_hand():
    """Two documents: each resample holds one twice, the other twice, or both."""
    base, intervention = documents([0, 0], [1, 3]), documents([1, 9], [1, 3])
    found = statistics.compare([{"en": intervention}], [{"en": base}], draws=4000)["en"]
    values, counts = np.unique(found.values.round(9), return_counts=True)
    assert values.tolist() == [1, 2.5, 3]  # 2 / 2, 10 / 4, 18 / 6
    np.testing.assert_allclose(counts / 4000, [0.25, 0.5, 0.25], atol=0.03)


def test_pairing_leaves_only_what_differs():
    """Segments of very different difficulty, the intervention worse by exactly 0.1 a token in each: no width."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(5, 50, 12)
    nll = rng.gamma(2, 10, 12) * tokens
    base, intervention = (
        documents(nll.tolist(), tokens.tolist()),
        documents((nll + 0.1 * tokens).tolist(), tokens.tolist()),
    )
    found = statistics.estimate(statistics.compare([{"en": intervention}], [{"en": base}])["en"])
    np.testing.assert_allclose([found.value, found.low, found.high], 0.1, rtol=1e-9)
    assert found.p < 0.003  # 2 of 2^12 changes of sign are as extreme


@pytest.mark.parametrize(("n", "least"), [(2, 0.5), (3, 0.25), (5, 0.0625)])
def test_few_documents_cannot_be_significant(n, least):
    """All documents worse: of the 2^n changes of sign two are as extreme."""
    base, intervention = documents([0.0] * n, [10] * n), documents([5.0 + each for each in range(n)], [10] * n)
    found = statistics.estimate(statistics.compare([{"en": intervention}], [{"en": base}], draws=8000)["en"])
    assert found.p == pytest.approx(least, abs=0.02)


def test_no_difference_is_not_significant():
    base = documents([5.0, 7.0, 9.0], [2, 3, 4])
    found = statistics.estimate(statistics.compare([{"en": base}], [{"en": base}])["en"])
    assert (found.value, found.low, found.high, found.p) == (0, 0, 0, 1)


@pytest.mark.parametrize(("n", "least"), [(4, 0.83), (8, 0.90), (30, 0.92)])
def test_the_interval_covers_what_it_says(n, least):
    """Of many experiments with a known difference as many have it in their interval as `estimate` tells."""
    rng, hits, trials = np.random.default_rng(n), 0, 400
    for trial in range(trials):
        tokens = rng.integers(20, 60, n)
        change = rng.normal(0.5, 0.4, n) * tokens
        base = np.zeros((1, n))
        found = statistics.estimate(
            statistics._resample(change[None], base, tokens, 500, trial, statistics._choose(1, 1, 500, 0))
        )
        hits += found.low <= 0.5 <= found.high
    assert least < hits / trials < 0.985


def test_seeds_widen_the_interval():
    """Two seeds that disagree: the interval reaches from one to the other, whatever the documents say."""
    tokens, base = [10] * 20, [0.0] * 20
    seeds = [{"en": documents([level * 10.0] * 20, tokens)} for level in (1, 3)]
    found = statistics.estimate(statistics.compare(seeds, [{"en": documents(base, tokens)}])["en"])
    assert found.value == 2
    assert (found.low, found.high) == (1, 3)
    alone = statistics.estimate(statistics.compare(seeds[:1], [{"en": documents(base, tokens)}])["en"])
    assert (alone.low, alone.high) == (1, 1)


def test_a_seed_is_set_against_the_same_seed():
    """Three seeds far apart, and an intervention that is 1 nat a document above its control under each of them."""
    tokens = [10] * 20
    levels = {
        name: [{"en": documents([level + more] * 20, tokens)} for level in (10.0, 50.0, 90.0)]
        for name, more in (("intervention", 1.0), ("control", 0.0))
    }
    found = statistics.estimate(statistics.compare(levels["intervention"], levels["control"])["en"])
    assert found[:3] == pytest.approx((0.1, 0.1, 0.1))
    # Two seeds against three cannot be paired.
    assert statistics.estimate(statistics.compare(levels["intervention"][:2], levels["control"])["en"]).low < 0


def test_a_seed_is_one_model_in_all_languages():
    """What a seed changes everywhere does not average out over languages."""
    tokens, codes = [10] * 20, [f"l{number}" for number in range(25)]
    seeds = [{code: documents([level * 10.0] * 20, tokens) for code in codes} for level in (1, 3)]
    base = [{code: documents([0.0] * 20, tokens) for code in codes}]
    each = statistics.compare(seeds, base)
    found, one = statistics.estimate(statistics.mean(each)), statistics.estimate(each["l0"])
    assert (found.low, found.high) == pytest.approx((one.low, one.high))
    assert found.high - found.low == pytest.approx(2)


def test_other_documents_are_refused():
    one, other = documents([1, 2], [3, 4]), documents([1, 2], [3, 5])
    with pytest.raises(ValueError, match="en: they were not measured on the same segments"):
        statistics.compare([{"en": one}], [{"en": other}])


def test_one_document_has_no_interval():
    found = statistics.estimate(statistics.compare([{"en": documents([2], [2])}], [{"en": documents([1], [2])}])["en"])
    assert found.value == 0.5
    assert all(map(math.isnan, (found.low, found.high, found.p)))


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_model_that_gave_no_number_has_no_interval(wrong):
    intervention, base = documents([wrong, 1, 1], [1, 1, 1]), documents([1, 1, 1], [1, 1, 1])
    found = statistics.estimate(statistics.compare([{"en": intervention}], [{"en": base}])["en"])
    assert not math.isfinite(found.value)
    assert all(map(math.isnan, (found.low, found.high, found.p)))


def test_combinations_over_languages_by_hand():
    each = {"a": Draws(1.0, np.array([0.0, 2.0]), np.array([1.0, -1.0]), 5)}
    each["b"] = Draws(4.0, np.array([3.0, 5.0]), np.array([4.0, 4.0]), 7)
    found = statistics.combine(each, {"a": 1, "b": -1})
    assert (found.value, found.values.tolist(), found.null.tolist(), found.units) == (-3, [-3, -3], [-3, -5], 11)
    assert statistics.mean(each).value == 2.5
    assert statistics.mean(each, ["b"]).values.tolist() == [3, 5]


def test_holm_by_hand():
    found = statistics.holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": math.nan})
    # Of three: 0.01 x 3, 0.03 x 2, then 0.04 x 1, which may not be below the one before.
    assert [found[key] for key in "abc"] == pytest.approx([0.03, 0.06, 0.06])
    assert math.isnan(found["d"])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_never_lowers_and_keeps_the_order(values):
    given_values = {str(place): value for place, value in enumerate(values)}
    found = statistics.holm(given_values)
    assert all(value <= found[key] <= 1 for key, value in given_values.items())
    ordered = sorted(given_values, key=lambda key: given_values[key])
    assert all(found[one] <= found[two] for one, two in itertools.pairwise(ordered))


def test_the_same_seed_gives_the_same_draws():
    base, intervention = documents([1, 2, 3], [1, 1, 2]), documents([2, 4, 9], [1, 1, 2])
    one, two, other = (
        statistics.compare([{"en": intervention}], [{"en": base}], seed=seed)["en"].values for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, two)
    assert (one != other).any()


def test_pairs_of_languages_are_left_out_by_language():
    """Without language 0 the mean is 3, without 1 it is 2, without 2 it is 1: pseudo-values 0, 2, 4, whose error is
    2 / sqrt(3); Student's t with two degrees of freedom is 4.3027 at 97.5 %."""
    values = {(1, 0): 1.0, (2, 0): 2.0, (2, 1): 3.0}
    assert statistics.pairs(values, 3) == pytest.approx(
        (2.0, 2 - 4.3027 * 2 / 3**0.5, 2 + 4.3027 * 2 / 3**0.5), rel=1e-4
    )
    assert statistics.pairs({(1, 0): 0.25}, 2) == (0.25, None, None)
    assert statistics.pairs({}, 1) == (None, None, None)
