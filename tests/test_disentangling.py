"""Disentangling: where each training may move the model, and its tables by hand from results.csv."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from lingregions import settings
from lingregions.experiments import STUDIES
from lingregions.experiments import disentangling as study
from lingregions.run import Run

pytestmark = pytest.mark.usefixtures("one_device")

CONFIG = Path(__file__).parent.parent / "configs" / "disentangling.py"


def chosen(**values):
    small = {"train.languages": ("es", "ru"), "machine.progress": "none", "machine.pictures": False}
    return settings.load(f"{CONFIG}:tiny", values=small | values)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder, wanted = tmp_path_factory.mktemp("disentangling") / "run", chosen()
    with Run.open(folder, wanted) as run:
        STUDIES["disentangling"].perform(wanted, run)
    return folder


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"evaluate.languages": ("es", "en")}, "ru is trained but not evaluated: add it to evaluate.languages"),
        ({"evaluate.languages": ("es", "ru")}, "every evaluated language is trained"),
        ({"train.seeds": ()}, "train.seeds is empty"),
    ],
)
def test_what_cannot_be_trained_is_refused_by_the_plan(values, said):
    with pytest.raises(ValueError, match=said):
        STUDIES["disentangling"].plan(chosen(**values))


def test_where_each_training_may_move_the_model():
    wanted = chosen()
    made = {each.kind: study._training(wanted, each, 4) for each in study._records(wanted)}
    assert made["own"].regions == made["outside"].regions == ("monolingual ru",)
    assert (made["outside"].outside, made["own"].outside) == (True, False)
    assert made["matched"].regions == ("matched to ru seed 4",)
    assert made["full"].regions == made["together"].regions == ()
    assert made["disjoint"].regions == ("monolingual es", "monolingual ru")
    assert made["disjoint matched"].languages == ("es", "ru")
    assert len(made["disjoint"].removed) == 2


def test_the_outcomes_by_hand(whole):
    wanted, folder = chosen(), whole
    results = list(csv.DictReader((folder / "results.csv").read_text().splitlines()))
    nats = {(row["intervention"], row["language"]): float(row["nll_nats"]) / int(row["tokens"]) for row in results}
    end = f"after {wanted.train.samples} seed 0"
    rows = {row[0]: row[1:] for row in json.loads((folder / "tables" / "outcomes.json").read_text())["rows"]}
    assert len(rows) == 2 * 4 + 3
    gain, loss, specificity, growth = (cell[0] for cell in rows["own es"])
    after = f"own es {end}"
    others = [code for code in wanted.evaluate.languages if code != "es"]
    np.testing.assert_allclose(gain, nats["base", "es"] - nats[after, "es"], atol=1e-9)
    lost = [nats[after, code] - nats["base", code] for code in others]
    np.testing.assert_allclose(loss, np.mean(lost), atol=1e-9)

    def specific(removal, before):
        own, *rest = (nats[removal, code] - nats[before, code] for code in ("es", *others))
        return own - np.mean(rest)

    removed = specific(f"monolingual es after own es {end}", after)
    np.testing.assert_allclose([specificity, growth], [removed, removed - specific("monolingual es", "base")])
    joint, apart = rows["disjoint"], rows["disjoint matched"]
    trained = [nats["base", code] - nats[f"disjoint {end}", code] for code in ("es", "ru")]
    np.testing.assert_allclose(joint[0][0], np.mean(trained), atol=1e-9)
    compared = {row[0]: row[1:] for row in json.loads((folder / "tables" / "compared.json").read_text())["rows"]}
    np.testing.assert_allclose(compared["disjoint"][0][0], joint[0][0] - apart[0][0], atol=1e-9)
    np.testing.assert_allclose(compared["disjoint"][3][0], joint[2][0] - apart[2][0], atol=1e-9)
