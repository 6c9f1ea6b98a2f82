"""Emergence: checkpoints in their order, each measured as it is, and the curves over a training."""

import csv
import json
import shutil

import pytest

from lingregions import model as nouns
from lingregions import regions, settings
from lingregions.experiments import STUDIES, emergence
from lingregions.main import main
from lingregions.models import source as sources

QUIET = ["--config.machine.progress=none", "--config.machine.pictures=False"]
FEW = ["--config.score.languages=es,ru", "--config.evaluate.languages=es,ru,en", "--config.evaluate.samples=1"]


def load(*words: str):
    given = [f"--config.{word}" for word in words]
    few = [word for word in FEW if not any(each.startswith(word.partition("=")[0]) for each in given)]
    return settings.load("configs/emergence.py:tiny", [*few, *given])


def found(*words: str) -> list[tuple[int, str, bool]]:
    return [(each.reached, each.source, each.last) for each in emergence._checkpoints(load(*words))]


def test_checkpoints_are_ordered_by_the_number_in_their_names(tmp_path):
    for name in ("step-8", "step-16", "step-128", "notes"):
        (tmp_path / name).mkdir()
        if name != "notes":
            (tmp_path / name / "config.json").touch()
    last = ("model.source=org/name", "model.reached=500")
    assert found(f"model.checkpoints=untrained,{tmp_path}/*", *last) == [
        (0, "untrained", False),
        *((number, str(tmp_path / f"step-{number}"), False) for number in (8, 16, 128)),
        (500, "org/name", True),
    ]
    # The last one lies among them: it is named once.
    inside = (f"model.source={tmp_path / 'step-128'}", "model.reached=0")
    assert [each[0] for each in found(f"model.checkpoints={tmp_path}/*", *inside)] == [8, 16, 128]
    assert found("model.checkpoints=a/b-70m@step1000,a/b-70m@step2000", "model.reached=9999")[:2] == [
        (1000, "a/b-70m@step1000", False),
        (2000, "a/b-70m@step2000", False),
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("model.checkpoints=a/b@step2,a/b@step1",),
            "a/b@step2 was saved at 2, a/b@step1 after it at 1: name them old",
        ),
        (("model.checkpoints=a/b@step9", "model.reached=5"), "preset:tiny after it at 5"),
        (("model.checkpoints=a/b@main",), "a/b@main has no number in its name"),
        (("model.checkpoints=nowhere/*",), "nowhere holds no folder with a config.json"),
        (("evaluate.languages=es,en",), "ru is scored but not evaluated"),
        (("score.languages=es", "evaluate.languages=es,fr"), "of the branch of es: add others"),
    ],
)
def test_what_has_no_order_or_cannot_be_measured_is_refused(words, said):
    with pytest.raises(ValueError, match=said):
        STUDIES["emergence"].plan(load(*words))


def test_something_is_there_since_the_first_checkpoint_after_which_it_never_fails():
    ways = [emergence._Checkpoint(reached, "x") for reached in (1, 2, 3, 4)]
    assert emergence._since(ways, lambda at: at.reached in (1, 3, 4)) == 3
    assert emergence._since(ways, lambda at: True) == 1
    assert emergence._since(ways, lambda at: at.reached < 4) is None


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Three folders of one training - random weights, half-way, the end - and the end once more, as if at 13."""
    folder = tmp_path_factory.mktemp("training") / "run"
    words = ["samples=16", "batch=8", "counts=8", "folders=float32", "keep=False"]
    words = [f"--config.train.{word}" for word in words]
    assert main(["run", "pretraining:tiny", f"--workdir={folder}", *words, *QUIET]) == 0
    assert {path.name for path in (folder / "models").iterdir()} == {"0", "8", "16"}
    shutil.copytree(folder / "models" / "16", folder / "models" / "13")
    return folder / "models"


def rows(folder) -> dict[tuple[str, str], dict[str, str]]:
    read = csv.DictReader((folder / "results.csv").read_text().splitlines())
    return {(row["intervention"], row["language"]): row for row in read}


def test_every_checkpoint_is_measured_as_it_is_and_two_that_are_equal_agree(trained, tmp_path, lone_mesh):
    words = [f"model.source={trained}/16", f"model.checkpoints={trained}/*", "model.reached=16"]
    words = [f"--config.{word}" for word in words]
    assert main(["run", "emergence:tiny", f"--workdir={tmp_path}", *FEW, *words, *QUIET]) == 0
    measured, chosen = rows(tmp_path), load()
    languages = chosen.evaluate.languages
    for name, twin in (("top 1%", "top 1% after 13"), ("base", "checkpoint after 13"), ("monolingual es", None)):
        for code in languages:
            other = twin or "monolingual es after 13"
            assert measured[name, code]["nll_nats"] == measured[other, code]["nll_nats"], (name, code)
    # The middle one against its own folder, loaded by itself.
    middle = nouns.load(str(trained / "8"), lone_mesh)
    corpus = middle.corpus("udhr", "ru", length=64, split="second")
    positions = corpus.draw(chosen.evaluate.samples, chosen.seed)
    ((_, result),) = middle.losses({"ru": (corpus, positions)}, 8)
    assert float(measured["checkpoint after 8", "ru"]["nll_nats"]) == pytest.approx(result.nll, rel=1e-6)
    core = regions.load(tmp_path / "regions" / "top-1pct-after-8.safetensors")
    assert core.provenance.model == middle.fingerprint
    assert core.provenance.languages == tuple(chosen.score.languages)
    table = json.loads((tmp_path / "tables" / "checkpoints.json").read_text())["rows"]
    assert [row[0] for row in table] == [0, 8, 13, 16]
    assert table[2][2:4] == table[3][2:4]
    agreement = json.loads((tmp_path / "tables" / "agreement.json").read_text())["series"]
    shares = dict(agreement["core, with that of the last"]["points"])
    half = json.loads((tmp_path / "done" / "regions-last.json").read_text())["facts"]["half"]
    assert shares[13] == pytest.approx(1 / regions.reliability.ceiling(half, half, 0.01))
    assert shares[8] < shares[13]
    # Done again, nothing is computed again; a checkpoint that changed is told.
    before = (tmp_path / "results.csv").read_bytes()
    assert main(["run", "emergence:tiny", f"--workdir={tmp_path}", *FEW, *words, *QUIET]) == 0
    assert (tmp_path / "results.csv").read_bytes() == before


def test_a_checkpoint_of_another_model_is_refused(trained, tmp_path, capsys):
    config = json.loads((trained / "8" / "config.json").read_text())
    other = tmp_path / "other-9"
    shutil.copytree(trained / "8", other)
    (other / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    words = [f"--config.model.checkpoints={other}", f"--config.model.source={trained}/16", "--config.model.reached=16"]
    assert main(["run", "emergence:tiny", f"--workdir={tmp_path / 'run'}", *FEW, *words, *QUIET]) == 2
    assert "other-9 has another sizes or maths than" in capsys.readouterr().err


def test_a_model_at_other_parameters_shares_what_is_compiled_and_leaves_the_first_alone(lone_mesh):
    first = nouns.load("preset:tiny", lone_mesh)
    drawn = sources.resolve("preset:tiny").load(lone_mesh, nouns.jax.random.key(7))
    second = first.at(drawn, "another")
    assert second.evaluator is first.evaluator
    assert second.fingerprint != first.fingerprint
    corpus = first.corpus("udhr", "es", length=64)
    whole = first.score(corpus, samples=3)
    parts = [first.score(corpus, samples=1), first.score(corpus, samples=2, skip=1)]
    assert second.score(corpus, samples=3).provenance.model != whole.provenance.model
    assert sum(each.nll for each in parts) == pytest.approx(whole.nll, rel=1e-6)
