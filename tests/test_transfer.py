"""Transfer: what moves inside a region and what does not, turns of languages, the tables by hand, Mantel's test."""

import csv
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lingregions import freeze, regions, settings, statistics
from lingregions import tree as trees
from lingregions.experiments import STUDIES, inside, transfer
from lingregions.run import Run

pytestmark = pytest.mark.usefixtures("one_device")

CONFIG = Path(__file__).parent.parent / "configs" / "transfer.py"


def chosen(**values):
    return settings.load(f"{CONFIG}:tiny", values={"machine.progress": "none", "machine.pictures": False} | values)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder, wanted = tmp_path_factory.mktemp("transfer") / "run", chosen()
    with Run.open(folder, wanted) as run:
        STUDIES["transfer"].perform(wanted, run)
    return folder


def table(folder: Path, name: str) -> list[list]:
    return json.loads((folder / "tables" / f"{name}.json").read_text())["rows"]


def means_of(folder: Path) -> dict[tuple[str, str], float]:
    rows = list(csv.DictReader((folder / "results.csv").read_text().splitlines()))
    return {(row["intervention"], row["language"]): float(row["nll_nats"]) / int(row["tokens"]) for row in rows}


# --- what moves -------------------------------------------------------------------------------------------------------

PARAMS = {"a": jnp.asarray([1.0, 2.0, 3.0, 4.0]), "b": jnp.asarray([5.0, 6.0])}


def part(*places: int) -> regions.Region:
    mask = np.isin(np.arange(4), places)
    return regions.Region({"a": jnp.asarray(mask)}, regions.Provenance(name=f"{places}"))


def moved(found, others=False, steps=1) -> list[dict[str, list[float]]]:
    """What every step of plain gradient descent, gradient -1 everywhere, adds to the parameters."""
    import optax

    held = inside._constraints(PARAMS, found, others)
    optimizer = freeze.wrap(optax.sgd(1.0), held, PARAMS)
    state, added = optimizer.init(PARAMS), []
    for _ in range(steps):
        gradient = jax.tree.map(lambda leaf: -jnp.ones_like(leaf), PARAMS)
        updates, state = optimizer.update(gradient, state, PARAMS, constraints=freeze.arrays(held))
        added.append({path: np.asarray(leaf).tolist() for path, leaf in trees.flatten(updates).items()})
    return added


def test_what_is_outside_a_region_is_everything_else_whatever_its_scope():
    found = trees.flatten(inside._outside(PARAMS, part(1, 2).masks))
    assert {path: np.asarray(mask).tolist() for path, mask in found.items()} == {
        "a": [True, False, False, True],
        "b": [True, True],
    }


def test_the_entries_of_the_region_alone_move_or_alone_do_not():
    assert moved([]) == [{"a": [1, 1, 1, 1], "b": [1, 1]}]
    assert moved([part(1, 2)]) == [{"a": [0, 1, 1, 0], "b": [0, 0]}]
    assert moved([part(1, 2)], others=True) == [{"a": [1, 0, 0, 1], "b": [1, 1]}]


def test_regions_take_turns():
    still = {"b": [0, 0]}
    assert moved([part(0), part(2, 3)], steps=3) == [
        {"a": [1, 0, 0, 0], **still},
        {"a": [0, 0, 1, 1], **still},
        {"a": [1, 0, 0, 0], **still},
    ]


# --- configs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"train.languages": ("es",)}, "train.languages needs two or more"),
        ({"train.languages": ("es", "pt")}, "train.languages needs three"),
        ({"train.languages": ("es", "pt", "sw")}, "sw is trained but not in score.languages"),
        ({"train.warmup": 9}, "a warm-up of 9 steps"),
    ],
)
def test_what_cannot_be_trained_is_refused_by_the_plan(values, said):
    values = {"score.languages": ("es", "pt", "ru"), "evaluate.languages": ("es", "pt", "ru", "sw")} | values
    with pytest.raises(ValueError, match=said):
        STUDIES["transfer"].plan(chosen(**values))


def test_the_first_language_shares_a_region_with_each_other():
    wanted = chosen()
    assert len(transfer._selections(wanted)) == 3 + 3 + 2 * 2  # tops, their controls, two pairs and their controls
    made = transfer._trainings(wanted, 7)
    assert [each.regions for each in made[3:5]] == [("top 1% es",), ("matched 1% to es seed 7",)]
    assert made[-1].regions == ("matched 1% to es shared with ru seed 7",)
    assert (made[-2].regions, made[-2].languages) == (("top 1% es shared with ru",), ("es",))


# --- whole ------------------------------------------------------------------------------------------------------------


def test_the_tables_by_hand(whole):
    folder, nats, end = whole, means_of(whole), f"after {chosen().train.samples} seed 0"
    rows = {tuple(row[:2]): row for row in table(folder, "by_pair")}
    assert len(rows) == 6
    assert [rows[pair][2] for pair in (("es", "pt"), ("es", "ru"))] == ["yes", "no"]
    top, control = (nats[f"{what} {end}", "ru"] for what in ("top 1% pt", "matched 1% to pt"))
    full, shared = (nats[f"{what} {end}", "ru"] for what in ("full pt", "top 1% es shared with ru"))
    base = nats["base", "ru"]
    expected = [base - full, base - top, control - top]
    np.testing.assert_allclose([cell[0] for cell in rows["pt", "ru"][4:7]], expected, atol=1e-9)
    np.testing.assert_allclose(rows["es", "ru"][7][0], base - shared, atol=1e-9)
    tops = [regions.load(folder / "regions" / f"top-1pct-{code}.safetensors") for code in ("pt", "ru")]
    both, either = regions.total(regions.intersect(*tops)), regions.total(regions.union(*tops))
    chance = 0.01 / 1.99
    np.testing.assert_allclose(rows["pt", "ru"][3], (both / either - chance) / (1 - chance))
    assert rows["pt", "ru"][7:] == rows["ru", "es"][7:] == [None, None]
    means = {row[0]: row[1][0] for row in table(folder, "means")}
    np.testing.assert_allclose(means["top"], np.mean([row[5][0] for row in rows.values()]), atol=1e-12)
    both = [rows["es", code][8][0] for code in ("pt", "ru")]
    np.testing.assert_allclose(means["shared over matched"], np.mean(both), atol=1e-12)


# --- Mantel's test ----------------------------------------------------------------------------------------------------


def test_the_permutation_test_by_hand():
    # Three things, one pair of them alike: of the six permutations two leave that pair where it is.
    near = np.asarray([[0, 1, 0], [1, 0, 0], [0, 0, 0]], float)
    gain = np.asarray([[9, 5, 1], [6, 9, 2], [3, 4, 9]], float)
    value, p = statistics.mantel(near, gain)
    ranks = np.asarray([5, 1, 6, 2, 3, 4]) - 3.5
    pairs = np.asarray([1, 0, 1, 0, 0, 0])
    expected = np.corrcoef(ranks, pairs)[0, 1]
    assert value == pytest.approx(expected)
    assert p == pytest.approx(2 / 6)
    assert statistics.mantel(near, -gain)[0] == pytest.approx(-expected)
    assert statistics.mantel(near, gain, near) == (None, None)  # nothing of it is left
    assert statistics.mantel(np.zeros((3, 3)), gain) == (None, None)
    assert statistics.mantel(near, np.where(gain == 6, np.nan, gain)) == (None, None)


def test_a_figure_that_goes_along_is_taken_out():
    kin = np.kron(np.eye(2), np.ones((2, 2)))
    rng = np.random.default_rng(0)
    first, second = (kin + 0.1 * rng.random((4, 4)) for _ in range(2))
    # Of a yes or no, taking it out leaves each rank minus the mean rank of its own kind: the four pairs of relatives
    # hold the ranks 9 to 12, the eight others 1 to 8.
    pairs = ~np.eye(4, dtype=bool)
    left = []
    for each in (first, second):
        ranks = np.argsort(np.argsort(each[pairs])) + 1.0
        left.append(ranks - np.where(kin[pairs] == 1, 10.5, 4.5))
    value, p = statistics.mantel(first, second, kin)
    assert value == pytest.approx(np.corrcoef(*left)[0, 1])
    assert statistics.mantel(first, second)[0] > max(value, 0.5)
    assert p > 1 / 24


def test_more_permutations_than_can_be_taken_are_drawn_alike():
    values = np.random.default_rng(1).random((9, 9))
    found = statistics.mantel(values, values)
    assert found == statistics.mantel(values, values)
    assert found == (pytest.approx(1), pytest.approx(1 / 5041))
