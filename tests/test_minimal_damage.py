"""Nested regions, the smallest set, and the core taken apart, on the tiny model."""

import csv
import functools
import json
import math
from pathlib import Path

import jax
import pytest

from lingregions import mesh as meshes
from lingregions import regions, settings
from lingregions.experiments import STUDIES
from lingregions.experiments.minimal_damage import _crossing
from lingregions.run import Run

CONFIG = Path(__file__).parent.parent / "configs" / "minimal_damage.py"
WORDS = (
    "--config.score.languages=ar,zh",
    "--config.score.samples=1",
    "--config.evaluate.languages=ar,sw",
    "--config.evaluate.samples=1",
    "--config.select.fractions=('0.01%','1%')",
    "--config.select.counts=(10,)",
    "--config.machine.progress=none",
    "--config.machine.pictures=False",
)
CORE = 2 * (2 * 40 + 2 * 20 + 3 * 81)  # 1 % of each matrix of the tiny preset, see test_experiments
WHOLE = 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 128 * 64 + 2 * 64)  # entries of its decoder


def chosen():
    return settings.load(f"{CONFIG}:tiny", WORDS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(meshes, "build", functools.partial(meshes.build, devices=jax.devices()[:1]))
        with Run.open(tmp_path_factory.mktemp("minimal") / "run", chosen()) as run:
            STUDIES["minimal_damage"].perform(chosen(), run)
    return run.folder


def read(folder: Path, name: str) -> regions.Region:
    return regions.load(folder / "regions" / f"{name}.safetensors")


def table(folder: Path, name: str):
    return json.loads((folder / "tables" / f"{name}.json").read_text())


def test_a_larger_fraction_of_the_scope_holds_the_smaller(folder):
    for kind in ("top", "magnitude"):
        small, large = read(folder, f"{kind}-0.01pct"), read(folder, f"{kind}-1pct")
        assert [regions.total(each) for each in (small, large)] == [math.floor(WHOLE / 1e4), math.floor(WHOLE / 100)]
        assert regions.total(regions.subtract(small, large)) == 0


def test_the_pieces_make_the_core(folder):
    core, first = read(folder, "core-1pct"), read(folder, "core-1pct-top-10-only")
    assert (regions.total(core), regions.total(first)) == (CORE, 10)
    rest = read(folder, "core-1pct-without-its-top-10")
    assert regions.equals(rest, regions.subtract(core, first))
    assert regions.total(rest) == CORE - 10
    bare = read(folder, "core-1pct-without-outlier-dimensions-and-norms")
    assert 0 < regions.total(bare) < CORE
    assert regions.total(regions.subtract(bare, read(folder, "core-1pct-without-outlier-dimensions"))) == 0
    norms = {path: sum(counts) for path, counts in regions.counts(bare).items() if "layernorm" in path}
    assert norms == {"layers.input_layernorm": 0, "layers.post_attention_layernorm": 0}
    supers = read(folder, "super-weights-only")
    assert {path for path, counts in regions.counts(supers).items() if any(counts)} == {"layers.mlp.down_proj"}
    assert 1 <= regions.total(supers) <= 2  # at most one a layer


def test_every_intervention_is_measured_and_planned(folder):
    rows = list(csv.DictReader((folder / "results.csv").read_text().splitlines()))
    steps = STUDIES["minimal_damage"].plan(chosen())
    assert len(rows) == 2 * len({row["intervention"] for row in rows}) == steps[-1].rows > 0
    assert [step.finished(folder) for step in steps] == [step.parts for step in steps]


def test_the_tables_say_what_was_measured(folder):
    pieces = {row[0]: row[1:] for row in table(folder, "pieces")["rows"]}
    assert pieces["core 1%"][0] == CORE
    assert pieces["core 1% top 10 only"][0] == 10
    series = table(folder, "effect_by_size")["series"]
    assert set(series) == {"ar", "sw"}
    assert [x for x, _ in series["ar"]["points"]] == [math.floor(WHOLE / 1e4), math.floor(WHOLE / 100)]
    assert [row[0] for row in table(folder, "smallest_sets")["rows"]] == ["ar", "sw", "all"]
    said = table(folder, "verdict")
    assert len(said["headline"].split()) <= 25
    assert said["headline"].startswith("No measured set of the first scalars")
    assert f"The core 1% ({CORE} scalars) gives" in said["paragraphs"][2]
    assert "smallest set" in (folder / "report.html").read_text()


def test_the_crossing_is_interpolated_over_the_logarithm_of_the_size():
    # From 10 to 1000 scalars the damage goes from 0 to 2: it is 1 in the middle of the logarithm, at 100. Its lower
    # bound goes from -1 to 1 and reaches 1 at the end, its upper bound from 1.
    points = [(10, [0.0, -1.0, 1.0]), (1000, [2.0, 1.0, 3.0])]
    assert _crossing(points, 1.0) == pytest.approx([100.0, None, 1000.0])
    # At level 2 the upper bound gets there half way.
    assert _crossing(points, 2.0) == pytest.approx([1000.0, 100.0, None])


def test_a_level_that_is_not_reached_or_reached_at_once():
    assert _crossing([(10, [0.0, 0.0, 0.0]), (100, [0.5, 0.4, 0.6])], 1.0) == [None, None, None]
    assert _crossing([(10, [3.0, 2.0, 4.0])], 1.0) == [10.0, None, 10.0]
