"""Every definition of importance from its pass, their regions and removals, on the tiny model."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from lingregions import regions, settings
from lingregions.experiments import STUDIES
from lingregions.experiments.definitions import _passes
from lingregions.run import Interrupted, Run

pytestmark = pytest.mark.usefixtures("one_device")

CONFIGS = Path(__file__).parent.parent / "configs"
WORDS = (
    "--config.score.languages=ar,zh",
    "--config.score.samples=2",
    "--config.evaluate.languages=ar,sw",
    "--config.evaluate.samples=1",
    "--config.machine.progress=none",
    "--config.machine.pictures=False",
)
NAMES = ("taylor", "taylor paper", "taylor_abs", "fisher", "magnitude", "wanda")


def chosen(*words: str, experiment: str = "definitions"):
    return settings.load(f"{CONFIGS / experiment}.py:tiny", [*WORDS, *words])


def finish(folder: Path, config) -> Path:
    with Run.open(folder, config) as run:
        STUDIES[config.experiment].perform(config, run)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return finish(tmp_path_factory.mktemp("definitions") / "run", chosen())


def read(folder: Path, name: str) -> regions.Region:
    return regions.load(folder / "regions" / f"{name}.safetensors")


def test_one_pass_gathers_the_rules_of_a_preset():
    assert _passes(chosen()) == {
        # The largest weights need no pass.
        "sound": {name: name for name in ("taylor", "taylor_abs", "fisher", "wanda")},
        "paper": {"taylor paper": "taylor"},
    }


@pytest.mark.parametrize("names", ["taylor", "taylor,taylor", "taylor,hessian", "taylor,taylor loud"])
def test_definitions_that_cannot_be_compared(names):
    config = chosen()
    with config.unlocked():
        config.score.definitions = tuple(names.split(","))
    with pytest.raises(ValueError, match="definition"):
        _passes(config)


@pytest.mark.parametrize("preset", ["sound", "paper"])
def test_the_region_of_a_definition_is_that_of_a_run_of_its_own(folder, tmp_path, preset):
    config = chosen(
        f"--config.score.preset={preset}",
        '--config.select.selectors=("top",)',
        "--config.select.monolingual=False",
        experiment="core_removal",
    )
    alone = read(finish(tmp_path / "run", config), "top-1pct")
    name = "taylor" if preset == "sound" else "taylor-paper"
    assert regions.equals(alone, read(folder, f"{name}-1pct"))


def test_the_magnitude_needs_no_language(folder):
    assert read(folder, "magnitude-1pct").provenance.languages == ()
    assert read(folder, "wanda-1pct").provenance.languages == ("ar", "zh")


def test_every_definition_is_removed_and_planned(folder):
    rows = list(csv.DictReader((folder / "results.csv").read_text().splitlines()))
    arms = ["base", *(f"{name} {fraction}" for fraction in ("0.1%", "1%") for name in NAMES)]
    assert list(dict.fromkeys(row["intervention"] for row in rows)) == arms
    planned = STUDIES["definitions"].plan(chosen())
    assert [step.finished(folder) for step in planned] == [step.parts for step in planned]
    assert not list((folder / "totals").glob("*"))  # the sums are gone


def test_the_tables_say_what_was_measured(folder):
    tables = {path.stem: json.loads(path.read_text()) for path in (folder / "tables").glob("*.json")}
    values = np.array(tables["overlap_1pct"]["values"])
    np.testing.assert_array_equal(np.diagonal(values), 1.0)
    rows = tables["removal_by_definition"]["rows"]
    assert [row[:2] for row in rows] == [[name, fraction] for fraction in ("0.1%", "1%") for name in NAMES]
    assert [row[2] for row in rows[6:]] == pytest.approx(values[0])
    damage = {
        (row["intervention"], row["control"]): float(row["effect_nats"])
        for row in csv.DictReader((folder / "effects.csv").read_text().splitlines())
        if row["language"] == "all"
    }
    for name, fraction, _, own, against, _ in rows:
        assert own[0] == pytest.approx(damage[f"{name} {fraction}", "base"])
        if name != "taylor":
            assert against[0] == pytest.approx(own[0] - damage[f"taylor {fraction}", "base"])
    assert set(tables["curve_by_definition"]["series"]) == set(NAMES)
    # A paragraph a fraction, and one on |theta|, which reads no text.
    first, second, blind = tables["verdict"]["paragraphs"]
    assert (first[:7], second[:5]) == ("At 0.1%", "At 1%")
    assert blind.startswith("Magnitude knows no text")
    assert all(name in first for name in NAMES)
    assert "each definition" in (folder / "report.html").read_text()


@pytest.mark.parametrize("steps", [1, 3])
def test_an_interrupted_pass_goes_on_and_finds_the_same(folder, tmp_path, monkeypatch, steps):
    """Stop inside the first pass over a language (1), and between the two presets' passes (3)."""
    check, left = Run.check, steps

    def stop(self):
        nonlocal left
        left -= 1
        if left == 0:
            raise Interrupted(15, self.folder)
        check(self)

    monkeypatch.setattr(Run, "check", stop)
    with pytest.raises(Interrupted):
        finish(tmp_path / "run", chosen())
    monkeypatch.setattr(Run, "check", check)
    finish(tmp_path / "run", chosen())
    for path in (folder / "regions").glob("*.safetensors"):
        assert regions.equals(regions.load(path), read(tmp_path / "run", path.stem)), path.stem
