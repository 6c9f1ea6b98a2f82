"""Dimensions of the residual stream: which, where, and what is done to them, on the tiny model."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from lingregions import regions, settings
from lingregions.experiments import EXPERIMENTS, STAGES, laboratory
from lingregions.experiments.dimension_dependence import Change, arm, choose, plan
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


def chosen(*words: str):
    return settings.load(f"{CONFIG}:tiny", [*WORDS, *words])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with Run.open(tmp_path_factory.mktemp("dimensions") / "run", chosen()) as run:
        EXPERIMENTS["dimension_dependence"](chosen(), run)
    return run.folder


def test_names_say_which_dimension_or_how_many():
    assert Change("top", 1, "residual", "zero").name([507, 3]) == "dimension 507 zero residual"
    assert Change("top", 3, "norms", "scale 10").name([507, 3, 4]) == "3 top dimensions scale 10 norms"
    drawn = Change("random", 1, "outputs", "noise", seed=2)
    assert drawn.name([9]) == "dimension 9 noise outputs"
    assert drawn.group == "1 random dimension noise outputs"
    assert Change("random", 3, "outputs", "zero", seed=2).name([9, 8, 7]) == "3 random dimensions zero outputs seed 2"


def test_several_dimensions_get_fewer_changes_than_one():
    found = list(plan(chosen()))
    # Three kinds; one dimension: 4 places and 3 changes; three: 3 places and 1 change.
    assert [sum(each.number == count for each in found) for count in (1, 3)] == [3 * 4 * 3, 3 * 3]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ('dimensions.places=("attic",)', "no place 'attic'"),
        ('dimensions.changes=("scale",)', "needs an amount"),
        ('dimensions.changes=("melt",)', "no perturbation 'melt'"),
    ],
)
def test_what_does_not_exist(word, message):
    with pytest.raises(ValueError, match=message):
        list(plan(chosen(f"--config.{word}")))


def test_a_dimension_is_its_index_in_every_matrix_that_carries_it(tmp_path):
    with Run.open(tmp_path / "run", chosen()) as run:
        made = laboratory.prepare(chosen(), run)

        def sizes(place: str) -> dict[str, int]:
            region = arm(made, Change("top", 2, place, "zero"), [5, 9]).region()
            for path, mask in region.leaves().items():
                axis = dict(region.provenance.axes)[path].index("embed")
                other = tuple(each for each in range(mask.ndim) if each != axis)
                indices = np.flatnonzero(np.asarray(mask).any(axis=other))
                assert set(indices) <= {5, 9}
            return {path: sum(counts) for path, counts in regions.counts(region).items()}

        everywhere = sizes("residual")
        assert everywhere["embed_tokens"] == 2 * V
        assert everywhere["norm"] == 2
        assert everywhere["layers.self_attn.q_proj"] == 2 * L * N
        assert everywhere["layers.self_attn.k_proj"] == 2 * L * K
        assert everywhere["layers.mlp.down_proj"] == 2 * L * F
        assert sizes("outputs") == {"layers.mlp.down_proj": 2 * L * F, "layers.self_attn.o_proj": 2 * L * N}
        assert sum(sizes("norms").values()) == 2 * (2 * L + 1)
        assert sizes("layer 1 norm") == {"layers.input_layernorm": 2}


def test_every_arm_is_measured_and_planned(folder):
    rows = list(csv.DictReader((folder / "results.csv").read_text().splitlines()))
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    assert len(rows) == 2 * len(arms)
    *others, measuring = STAGES["dimension_dependence"](chosen())
    assert all(stage.finished(folder) == stage.parts for stage in others)
    assert measuring.rows >= len(rows)  # a dimension that comes first of two kinds is one arm
    nats = {(row["arm"], row["language"]): row["nll_nats"] for row in rows}
    assert all(nats[arm, code] != nats["base", code] for arm in arms[1:] for code in ("ar", "sw"))


def test_the_tables_say_what_was_measured(folder):
    tables = {path.stem: json.loads(path.read_text()) for path in (folder / "tables").glob("*.json")}
    dimensions = {row[0]: [int(each) for each in row[1].split()] for row in tables["dimensions"]["rows"]}
    assert {kind: len(each) for kind, each in dimensions.items()} == {"top": 3, "massive": 3, "random seed 0": 3}
    assert not set(dimensions["random seed 0"]) & {*dimensions["top"], *dimensions["massive"]}
    rows = tables["damage_of_dimensions"]["rows"]
    assert len(rows) == len(list(plan(chosen())))
    assert all((row[5] is None) == (row[0] == "random") for row in rows)
    assert tables["single_dimensions"]["rows"] == ["top", "massive", "random"]
    assert {"several_residual", "several_outputs", "several_norms", "verdict"} <= set(tables)
    assert "The dimensions" in (folder / "report.html").read_text()


def test_more_dimensions_than_there_are(folder, tmp_path):
    config = chosen("--config.dimensions.counts=(30,)")
    with Run.open(tmp_path / "run", config) as run:
        made = laboratory.prepare(config, run)
        with pytest.raises(ValueError, match="the model has 64 dimensions"):
            choose(made, regions.load(folder / "regions" / "top-1pct.safetensors"))
