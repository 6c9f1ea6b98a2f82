"""Effects of interventions: differences that a hand can compute, pooled seeds, look-ups by record, the table."""

import csv
import math

import numpy as np
import pytest

from lingregions import effects
from lingregions.evaluate import Segments
from lingregions.intervention import COLUMNS, UNTOUCHED, Intervention

TOP = Intervention(kind="top", fraction="1%", perturbation="zero")
RANDOM = [Intervention(kind="random", fraction="1%", perturbation="zero", seed=seed) for seed in (0, 1)]
N = 12


def segments(nll: float | np.ndarray) -> Segments:
    values = np.broadcast_to(np.asarray(nll, np.float64), (N,)).copy()
    return Segments(np.arange(N), values, np.full(N, 4), np.full(N, 8))


@pytest.fixture(scope="module")
def found() -> effects.Effects:
    noise = np.linspace(-1, 1, N)
    measured = {
        UNTOUCHED: {"es": segments(8 + noise), "zh": segments(12 + noise)},
        TOP: {"es": segments(20 + noise), "zh": segments(16 - noise)},
        RANDOM[0]: {"es": segments(9 + noise), "zh": segments(12 + noise)},
        RANDOM[1]: {"es": segments(11 + noise), "zh": segments(12 + noise)},
    }
    return effects.compare(measured, [(TOP, RANDOM[0])], seed=3)


def test_a_difference_is_in_nats_per_token(found):
    # 12 nats a segment more, of 4 tokens each; 4 nats more in the other language; their mean.
    assert found.value(TOP, language="es") == 3.0
    assert found.value(TOP, language="zh") == 1.0
    assert found.value(TOP) == 2.0
    assert found.cell(TOP, language="es") == pytest.approx([3.0, 3.0, 3.0])  # every segment says the same


def test_seeds_are_pooled(found):
    # (1 + 3) / 2 nats a segment of 4 tokens.
    assert found.value(RANDOM[1], language="es") == 0.5
    assert found.get(RANDOM[0]).seeds == 2
    assert found.get(RANDOM[0]) is found.get(RANDOM[1])
    assert found.value(TOP, RANDOM[1], "es") == 2.5


def test_languages_that_lose(found):
    assert found.harmed(TOP) == ["es", "zh"]
    assert found.harmed(RANDOM[0]) == ["es"]
    assert [found.sign(TOP), found.sign(RANDOM[0], language="zh")] == [1, 0]


def test_what_was_not_compared(found):
    with pytest.raises(KeyError, match="random 1% seed 0 was not compared with top 1% in all"):
        found.get(RANDOM[0], TOP)
    with pytest.raises(ValueError, match="bottom was not measured"):
        effects.compare(found.measured, [(TOP, Intervention(kind="bottom"))])


def test_the_table(found):
    rows = list(csv.DictReader(found.csv("core_removal").splitlines()))
    assert len(rows) == len(found) == 3 * 3
    assert tuple(rows[0]) == (*effects.HEADER, "row_crc32")
    assert [row["language"] for row in rows[:3]] == ["all", "es", "zh"]
    first, contrast = rows[1], rows[-2]
    assert (first["family"], contrast["family"], rows[0]["family"]) == ("Indo-European", "Indo-European", "")
    assert (first["intervention"], first["control"], float(first["effect_nats"])) == ("top 1%", "base", 3.0)
    assert (contrast["intervention"], contrast["control"], contrast["seeds"]) == ("top 1%", "random 1%", "1")
    assert [Intervention.from_columns(row) for row in rows[::3]] == [TOP, RANDOM[0].group, TOP]
    assert list(found.frame().columns) == list(effects.HEADER[1:])


@pytest.mark.parametrize(
    ("record", "name"),
    [
        (UNTOUCHED, "base"),
        (TOP, "top 1%"),
        (RANDOM[1], "random 1% seed 1"),
        (Intervention(kind="top", fraction="1%", layer=3, perturbation="zero"), "top 1% layer 3"),
        (Intervention(kind="matched", region_language="ar", seed=0, perturbation="zero"), "matched to ar seed 0"),
        (Intervention(kind="monolingual", region_language="ar", perturbation="zero"), "monolingual ar"),
        (Intervention(kind="top", definition="taylor paper", fraction="1%"), "taylor paper 1%"),
        (
            Intervention(kind="top dimension", count=3, part="norms", perturbation="scale", factor=10.0),
            "3 top dimensions norms scale 10",
        ),
        (Intervention(kind="scalar", target="layer 1 mlp.down_proj [5 7]", perturbation="zero"), None),
        (Intervention(kind="core", fraction="1%", samples=8, seed=0), "core 1% after 8 seed 0"),
        (Intervention(bounded=True), "base clipped"),
    ],
)
def test_names_come_from_the_columns_and_back(record, name):
    assert record.name == (name or "layer 1 mlp.down_proj [5 7] x0")
    cells = record.columns()
    assert tuple(cells) == COLUMNS
    assert all(isinstance(cell, str) and cell.isascii() for cell in cells.values())
    assert Intervention.from_columns({"experiment": "x", **cells}) == record


def test_a_model_that_gives_no_number(found):
    broken = {UNTOUCHED: found.measured[UNTOUCHED], TOP: {"es": segments(math.nan), "zh": segments(16.0)}}
    assert effects.compare(broken).cell(TOP, language="es") == [None, None, None]
