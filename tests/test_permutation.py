"""The stateless permutation: a bijection, a pure function of (n, seed, index), and not visibly ordered."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lingregions.permutation import _LARGEST, derive, permute


@settings(deadline=None)
@given(n=st.integers(1, 3000), seed=st.integers(0, 2**70))
def test_every_place_is_taken_exactly_once(n: int, seed: int) -> None:
    assert sorted(permute(np.arange(n), n, seed)) == list(range(n))


@settings(deadline=None)
@given(n=st.integers(1, _LARGEST), seed=st.integers(0, 2**64), data=st.data())
def test_an_index_goes_to_the_same_place_alone_and_in_company(n: int, seed: int, data: st.DataObject) -> None:
    indices = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=8))
    together = permute(np.array(indices, np.uint64), n, seed)
    assert [int(permute(np.array(index), n, seed)) for index in indices] == together.tolist()
    assert all(0 <= place < n for place in together.tolist())
    assert len(set(together.tolist())) == len(set(indices))


def test_small_permutations_occur_about_equally_often() -> None:
    # 4! = 24 orders over 4,800 seeds: 200 of each expected. A chi-square with 23 degrees of freedom exceeds 60 with
    # probability 4e-5; the seeds are fixed, so the figure is too.
    counts = dict.fromkeys(itertools.permutations(range(4)), 0)
    for seed in range(4800):
        counts[tuple(permute(np.arange(4), 4, seed).tolist())] += 1
    assert sum((count - 200) ** 2 / 200 for count in counts.values()) < 60


def test_neighbours_are_scattered() -> None:
    # For a uniform permutation the mean distance of the images of neighbours is n/3, and the rank correlation with the
    # identity has standard deviation 1/sqrt(n) = 0.003.
    n = 100_000
    places = permute(np.arange(n), n, 7)
    assert abs(np.abs(np.diff(places)).mean() / (n / 3) - 1) < 0.02
    assert abs(np.corrcoef(places, np.arange(n))[0, 1]) < 5 / math.sqrt(n)
    # The first tenth of the order is spread evenly over ten bins of range(n): binomial, standard deviation 30.
    assert np.abs(np.bincount(places[: n // 10] // (n // 10), minlength=10) - 1000).max() < 150


def test_the_order_never_changes_between_versions() -> None:
    # Recorded once: a change here changes every published sample order and random region.
    assert permute(np.arange(10), 10, 0).tolist() == [9, 2, 4, 6, 0, 5, 8, 3, 7, 1]
    assert permute(np.arange(3), 6_476_005_376, 42).tolist() == [2255976340, 3889490544, 4730838589]
    assert derive(0, "score", "ar") == 8169569745487659711


def test_seeds_and_names_make_different_orders() -> None:
    orders = {tuple(permute(np.arange(50), 50, seed)) for seed in range(200)}
    assert len(orders) == 200
    assert len({derive(1, "a"), derive(1, "b"), derive(2, "a"), derive(1, "a", "b"), derive(1, "ab"), derive(1)}) == 6
    assert 0 <= derive(2**80, "x") < 2**63


def test_shape_is_kept_and_nothing_gives_nothing() -> None:
    grid = np.arange(12).reshape(3, 4)
    assert (permute(grid, 12, 3).ravel() == permute(grid.ravel(), 12, 3)).all()
    assert permute(np.zeros(0, np.int64), 5, 1).shape == (0,)
    assert permute(np.array([0]), 1, 9).tolist() == [0]


@pytest.mark.parametrize(
    ("index", "n", "seed", "message"),
    [
        ([0], 0, 0, "1 <= n"),
        ([0], _LARGEST + 1, 0, "1 <= n"),
        ([5], 5, 0, r"outside the permutation of range\(5\)"),
        ([-1], 5, 0, "outside"),
        ([0], 5, -1, "non-negative"),
        ([0.5], 5, 0, "integers, not float64"),
    ],
)
def test_impossible_requests_are_refused(index: list, n: int, seed: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        permute(np.array(index), n, seed)
