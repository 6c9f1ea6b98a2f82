"""Dimensions of the residual stream: which, where, and what is done to them, on the tiny model."""

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from lingregions import regions, settings
from lingregions.experiments import STUDIES
from lingregions.experiments.context import prepare
from lingregions.experiments.dimension_dependence import _changes, _random, _region, _special
from lingregions.intervention import Intervention
from lingregions.run import Run

pytestmark = pytest.mark.usefixtures("one_device")

CONFIG = Path(__file__).parent.parent / "configs" / "dimension_dependence.py"
WORDS = (
    "--config.score.languages=ar,zh",
    "--config.score.samples=1",
    "--config.evaluate.languages=ar,sw",
    "--config.evaluate.samples=1",
    "--config.machine.progress=none",
    "--config.machine.pictures=False",
)
L, D, N, K, F, V = 2, 64, 64, 32, 128, 264  # of the tiny preset: N and K are heads times head size
STUDY = STUDIES["dimension_dependence"]


def chosen(*words: str):
    return settings.load(f"{CONFIG}:tiny", [*WORDS, *words])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with Run.open(tmp_path_factory.mktemp("dimensions") / "run", chosen()) as run:
        STUDY.perform(chosen(), run)
    return run.folder


def test_names_say_which_dimension_or_how_many():
    dimensions = {"top": [507, 3, 4], "random 2": [9, 8, 7]}
    one = Intervention(kind="dimension", count=1, part="residual", perturbation="zero")
    assert _special(one, "top", dimensions).name == "dimension 507 residual"
    three = dataclasses.replace(one, count=3, part="norms", perturbation="scale", factor=10.0)
    assert _special(three, "top", dimensions).name == "3 top dimensions norms scale 10"
    assert _random(three, 2).name == "3 random dimensions norms scale 10 seed 2"
    assert _random(one, 2).group == _random(one)


def test_several_dimensions_get_fewer_changes_than_one():
    found = _changes(chosen())
    # One dimension: 4 places and 3 changes; three: 3 places and 1 change.
    assert [sum(each.count == count for each in found) for count in (1, 3)] == [4 * 3, 3]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ('dimensions.places=("attic",)', "no place 'attic'"),
        ('dimensions.changes=("scale",)', "needs an amount"),
        ('dimensions.changes=("melt",)', "no perturbation 'melt'"),
        ("dimensions.counts=(0,)", "one or more numbers from 1"),
        ("dimensions.counts=(30,)", "the model has 64 dimensions"),
    ],
)
def test_what_does_not_exist_is_refused_by_the_plan(word, message):
    with pytest.raises(ValueError, match=message):
        STUDY.plan(chosen(f"--config.{word}"))


def test_a_dimension_is_its_index_in_every_matrix_that_carries_it(tmp_path):
    with Run.open(tmp_path / "run", chosen()) as run:
        context = prepare(chosen(), run)

        def sizes(place: str, layer: int | None = None) -> dict[str, int]:
            wanted = Intervention(kind="top dimension", count=2, part=place, layer=layer, perturbation="zero")
            found = _region(context, wanted, [5, 9])
            for path, mask in found.leaves().items():
                axis = dict(found.provenance.axes)[path].index("embed")
                other = tuple(each for each in range(mask.ndim) if each != axis)
                assert set(np.flatnonzero(np.asarray(mask).any(axis=other))) == {5, 9}
            return {path: sum(counts) for path, counts in regions.counts(found).items()}

        everywhere = sizes("residual")
        assert everywhere["embed_tokens"] == 2 * V
        assert everywhere["norm"] == 2
        assert everywhere["layers.self_attn.q_proj"] == 2 * L * N
        assert everywhere["layers.self_attn.k_proj"] == 2 * L * K
        assert everywhere["layers.mlp.down_proj"] == 2 * L * F
        assert sizes("outputs") == {"layers.mlp.down_proj": 2 * L * F, "layers.self_attn.o_proj": 2 * L * N}
        assert sum(sizes("norms").values()) == 2 * (2 * L + 1)
        assert sizes("input norm", 1) == {"layers.input_layernorm": 2}


def test_every_intervention_is_measured_and_planned(folder):
    rows = list(csv.DictReader((folder / "results.csv").read_text().splitlines()))
    names = list(dict.fromkeys(row["intervention"] for row in rows))
    assert len(rows) == 2 * len(names)
    *others, measuring = STUDY.plan(chosen())
    assert [step.finished(folder) for step in others] == [step.parts for step in others]
    assert measuring.rows >= len(rows)  # a dimension that comes first of two kinds is one intervention
    nats = {(row["intervention"], row["language"]): row["nll_nats"] for row in rows}
    unchanged = [(name, code) for name in names[1:] for code in ("ar", "sw") if nats[name, code] == nats["base", code]]
    assert len(names) > 30
    assert unchanged == []


def test_the_tables_say_what_was_measured(folder):
    tables = {path.stem: json.loads(path.read_text()) for path in (folder / "tables").glob("*.json")}
    dimensions = {row[0]: [int(each) for each in row[1].split()] for row in tables["dimensions"]["rows"]}
    assert {kind: len(each) for kind, each in dimensions.items()} == {"top": 3, "massive": 3, "random 0": 3}
    assert not set(dimensions["random 0"]) & {*dimensions["top"], *dimensions["massive"]}
    rows = tables["effect_of_dimensions"]["rows"]
    assert [row[0] for row in rows] == ["top", "massive", "random"] * len(_changes(chosen()))
    assert [row[5] is None for row in rows] == [False, False, True] * len(_changes(chosen()))
    assert tables["single_dimensions"]["rows"] == ["top", "massive", "random"]
    assert {"several_residual", "several_outputs", "several_norms"} <= set(tables)
    assert f"The core is fullest at dimension {dimensions['top'][0]}" in tables["verdict"]["paragraphs"][0]
    assert 5 < len(tables["verdict"]["headline"].split()) <= 25
    assert "The dimensions" in (folder / "report.html").read_text()
