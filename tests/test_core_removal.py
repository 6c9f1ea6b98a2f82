"""What core removal adds to a run: parts of the core, groups of seeds, controls that are weighed with intervals."""

import csv
import functools
import json
import math
from pathlib import Path

import jax
import pytest

from lingregions import mesh as meshes
from lingregions import regions, settings
from lingregions.experiments import EXPERIMENTS, STAGES
from lingregions.experiments.comparison import Compared
from lingregions.experiments.core_removal import Removal, plan, weigh
from lingregions.experiments.finding import Findings
from lingregions.run import Run
from lingregions.statistics import Estimate

CONFIG = Path(__file__).parent.parent / "configs" / "core_removal.py"
WORDS = (
    "--config.score.languages=ar,zh",
    "--config.score.samples=1",
    "--config.evaluate.languages=ar,sw",
    "--config.evaluate.samples=1",
    "--config.select.monolingual=False",
    "--config.machine.progress=none",
    "--config.machine.pictures=False",
)
PARTS = ("--config.select.modules=q,down,without_norms", "--config.select.layers=all")


def chosen(*words: str, variant: str = "tiny"):
    return settings.load(f"{CONFIG}:{variant}", [*(WORDS if variant == "tiny" else ()), *words])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    config = chosen("--config.select.selectors=top,random,magnitude", "--config.select.seeds=0,1", *PARTS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(meshes, "build", functools.partial(meshes.build, devices=jax.devices()[:1]))
        with Run.open(tmp_path_factory.mktemp("core") / "run", config) as run:
            EXPERIMENTS["core_removal"](config, run)
    assert all(stage.finished(run.folder) == stage.parts for stage in STAGES["core_removal"](config))
    return run.folder


def table(folder: Path, name: str):
    return json.loads((folder / "tables" / f"{name}.json").read_text())


def test_the_plan_names_every_removal():
    config = chosen("--config.select.selectors=top,matched", "--config.select.seeds=0,1", *PARTS)
    found = list(plan(config, layers=2))
    assert [str(each) for each in found] == [
        *("top 1%", "matched 1% seed 0", "matched 1% seed 1"),
        *("top 1% q", "top 1% down", "top 1% without norms", "top 1% layer 0", "top 1% layer 1"),
    ]
    assert [each.group for each in found[1:3]] == ["matched 1%", "matched 1%"]


@pytest.mark.parametrize("word", ["modules=q,w", "layers=0,2"])
def test_a_part_that_does_not_exist(word):
    with pytest.raises(ValueError, match="there is no part '(w|layer 2)'"):
        list(plan(chosen(f"--config.select.{word}"), layers=2))


def test_parts_need_their_top():
    with pytest.raises(ValueError, match="add top to"):
        list(plan(chosen('--config.select.selectors=("random",)', *PARTS), layers=2))


def test_the_thirty_languages_are_one_command():
    config = chosen(variant="smollm2_thirty")
    assert len(set(config.evaluate.languages)) == 30
    assert config.model.source == chosen(variant="smollm2").model.source
    groups = [each.group for each in plan(config, layers=30)]
    assert groups == ["top 1%", "bottom 1%", *["random 1%"] * 3, *["matched 1%"] * 3, "magnitude 1%"]


def test_a_part_is_the_top_in_that_part(folder):
    # floor(1 %) of each matrix of the tiny preset: q, o 40; k, v 20; gate, up, down 81; norms 0; two layers.
    sizes = {row[0]: row[1] for row in table(folder, "parts")["rows"]}
    layer = 2 * 40 + 2 * 20 + 3 * 81
    assert sizes == {
        "q": 2 * 40,
        "down": 2 * 81,
        "without norms": 2 * layer,
        "layer 0": layer,
        "layer 1": layer,
    }


def test_the_whole_top_without_its_empty_norms_is_the_top(folder):
    nats = {
        (row["arm"], row["language"]): row["nll_nats"]
        for row in csv.DictReader((folder / "results.csv").read_text().splitlines())
    }
    for code in ("ar", "sw"):
        assert nats["top 1% without norms", code] == nats["top 1%", code]
        assert len({nats[arm, code] for arm in ("base", "top 1%", "top 1% q", "top 1% down", "top 1% layer 0")}) == 5


def test_the_magnitude_takes_the_largest_weights(folder):
    found = regions.load(folder / "regions" / "magnitude-1pct.safetensors")
    assert found.provenance.languages == ()
    assert regions.total(found) == regions.total(regions.load(folder / "regions" / "top-1pct.safetensors"))


def test_contrasts_are_differences_of_groups(folder):
    damage = {
        (row["arm"], row["reference"]): row
        for row in csv.DictReader((folder / "damage.csv").read_text().splitlines())
        if row["language"] == "all"
    }
    assert damage["random 1%", "base"]["seeds"] == "2"
    rows = {row[1]: row for row in table(folder, "contrasts")["rows"]}
    assert set(rows) == {"random 1%", "magnitude 1%"}
    for control, (_, _, own, other, difference, _) in rows.items():
        assert own[0] == pytest.approx(float(damage["top 1%", "base"]["damage_nats"]))
        assert other[0] == pytest.approx(float(damage[control, "base"]["damage_nats"]))
        assert difference[0] == pytest.approx(own[0] - other[0])
    assert table(folder, "parts_by_language")["columns"] == ["ar", "sw"]
    assert "top 1%" in table(folder, "verdict")["paragraphs"][0]


# The words of a verdict, from lines drawn by hand.


def line(arm: str, reference: str, language: str, value: float, low: float, high: float, p: float = 0.01) -> Compared:
    return Compared(arm, reference, language, 1, Estimate(value, low, high, p, 10), p)


LINES = (
    line("top 1%", "base", "all", math.log(1000), math.log(500), math.log(2000)),
    line("magnitude 1%", "base", "all", math.log(20), math.log(10), math.log(40)),
    line("top 1%", "magnitude 1%", "all", math.log(50), math.log(25), math.log(100)),
    line("top 1%", "magnitude 1%", "ar", 1.0, 0.5, 1.5, p=0.04),
    line("top 1%", "magnitude 1%", "sw", 1.0, -0.5, 1.5, p=0.06),
    line("top 1% q", "base", "all", math.log(2), math.nan, math.nan),
)


def test_words_and_cells_of_a_difference():
    found = Findings(LINES)
    assert found.words("top 1%") == "×1,000 (500 to 2,000)"
    assert found.cell("top 1% q") == [math.log(2), None, None]
    assert found.worse("top 1%", "magnitude 1%") == "1 of 2 languages"
    assert [found.sign("top 1%"), found.sign("top 1% q"), found.sign("top 1%", "magnitude 1%", "sw")] == [1, 0, 0]
    with pytest.raises(KeyError):
        found.get("bottom 1%")


def test_a_collapse_that_magnitude_shares_is_not_called_linguistic():
    said = weigh(Findings(LINES), [("top 1%", "magnitude 1%")], [Removal("top", "1%", part="q")])
    assert said[0].startswith("Removing top 1% multiplies perplexity by 1,000 (500 to 2,000) over all languages")
    assert "does more harm than magnitude 1%: ×50.0 (25.0 to 100) its perplexity" in said[0]
    assert "not that they are linguistic" in said[1]
    assert "most harmful is q (×2.00)" in said[2]
