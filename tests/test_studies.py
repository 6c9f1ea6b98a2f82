"""Every study of the registry, whole, on the tiny model: what it declares is what it does, down to the headline."""

import csv
import functools
import json
from pathlib import Path

import jax
import notebooks
import pytest

from lingregions import effects, settings
from lingregions import mesh as meshes
from lingregions.experiments import STUDIES, claims, perform
from lingregions.intervention import UNTOUCHED, Intervention
from lingregions.run import Run

CONFIGS = Path(__file__).parent.parent / "configs"


CHANGES = {"reliability": ("--config.score.samples=2",)}  # of the notebooks


def load(name: str):
    return settings.load(f"{CONFIGS / name}.py:tiny", ["--config.machine.progress=none", *CHANGES.get(name, ())])


@pytest.fixture(scope="module", params=list(STUDIES))
def done(request, tmp_path_factory):
    config = load(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(meshes, "build", functools.partial(meshes.build, devices=jax.devices()[:1]))
        with Run.open(tmp_path_factory.mktemp("study") / "runs" / f"{request.param}_tiny", config) as run:
            assert perform(config, run)
            assert not perform(config, run)
    return request.param, config, run.folder


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []


def test_what_a_dry_run_plans_is_what_a_run_finishes(done):
    name, config, folder = done
    planned = STUDIES[name].plan(config)
    evaluated = "evaluate" in config
    assert sum(len(step.marks) for step in planned) >= (2 if name in ("pretraining", "emergence") else 3)
    marked = [mark for step in planned for mark in step.marks]
    assert [mark for mark in marked if not (folder / "done" / f"{mark}.json").exists()] == []
    # Where two kinds name the same dimension or scalar, one intervention stands for both.
    count = len(rows(folder / "results.csv"))
    assert 0 < count <= sum(step.rows for step in planned) if evaluated else count == 0


def test_every_row_is_an_intervention_and_its_name_comes_from_its_columns(done):
    _, config, folder = done
    if "evaluate" not in config:
        assert not (folder / "effects.csv").exists()
        return
    measured, table = rows(folder / "results.csv"), rows(folder / "effects.csv")
    names = {Intervention.from_columns(row): row["intervention"] for row in measured}
    assert all(record.name == name for record, name in names.items())
    assert names[UNTOUCHED] == "base"
    languages = set(config.evaluate.languages)
    assert {(row["intervention"], row["language"]) for row in measured} == {
        (name, code) for name in names.values() for code in languages
    }
    groups = {record.group for record in names} - {UNTOUCHED}
    assert len(groups) > 1
    against_base = {Intervention.from_columns(row) for row in table if row["control"] == "base"}
    assert against_base == groups
    assert {row["language"] for row in table} == {effects.ALL, *languages}


def test_the_headline_is_one_short_sentence_and_the_verdict_says_more(done):
    name, _, folder = done
    verdict = json.loads((folder / "tables" / "verdict.json").read_text())
    assert 3 < len(verdict["headline"].split()) <= claims._WORDS
    assert verdict["headline"].endswith(".")
    assert verdict["paragraphs"]
    assert not [
        text for text in (verdict["headline"], *verdict["paragraphs"]) if "None" in text or "nan" in text.split()
    ]
    assert verdict["headline"] in (folder / "headline.txt").read_text()
    if name == "frozen_pretraining":
        assert "emov" not in verdict["headline"]


@pytest.mark.slow
def test_its_notebook_shows_it_from_a_clean_kernel(done):
    name, _, folder = done
    (notebook,) = (notebooks.ROOT / "colab").glob(f"??_{name}.ipynb")
    notebooks.run(notebook, folder.parent.parent)


@pytest.mark.parametrize("name", STUDIES)
def test_what_no_study_can_do_is_refused_before_the_work(name):
    config = load(name)
    with config.unlocked():
        config["score" if "score" in config else "evaluate"].languages = ("ar", "ar")
    with pytest.raises(ValueError, match="each named once"):
        STUDIES[name].plan(config)
