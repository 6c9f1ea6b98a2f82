"""Further pre-training with constraints, whole, on the tiny model: what is written, and what never moves."""

import csv
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from lingregions import main, regions, settings, train
from lingregions import mesh as meshes
from lingregions import tree as trees
from lingregions.experiments import STUDIES, context, measurement, scored, selection
from lingregions.experiments import frozen_pretraining as study
from lingregions.experiments.frozen_pretraining import _TREATMENTS
from lingregions.intervention import Intervention
from lingregions.models import source as sources
from lingregions.run import Run

pytestmark = pytest.mark.usefixtures("one_device")

CONFIG = Path(__file__).parent.parent / "configs" / "frozen_pretraining.py"
SMALL = (
    "--config.score.languages=en",
    "--config.score.samples=1",
    "--config.evaluate.languages=hu,en",
    "--config.evaluate.samples=1",
    "--config.train.samples=4",
    "--config.train.batch=2",
    "--config.train.counts=(2,)",
    "--config.train.warmup=0",
    "--config.machine.progress=none",
    "--config.machine.pictures=False",
)
TRAINED = ("full", "core", "random", "ewc", "replay", "reversion")


def config(*words: str):
    given = {settings.key(word) for word in words}
    return settings.load(f"{CONFIG}:tiny", [*(word for word in SMALL if settings.key(word) not in given), *words])


def finish(folder: Path, *words: str) -> list[dict[str, str]]:
    chosen = config(*words)
    with Run.open(folder, chosen) as run:
        STUDIES[chosen.experiment].perform(chosen, run)
    return list(csv.DictReader((folder / "results.csv").read_text().splitlines()))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, finish(folder, f"--config.freeze.treatments={','.join(TRAINED)}")


def test_every_arm_is_measured_on_the_way_and_at_the_end(whole):
    folder, rows = whole
    named = ["full", "core 1%", "random 1%", "ewc", "replay"]
    names = [f"{training} after {count} seed 0" for training in named for count in (2, 4)]
    names += ["base", "reversion 1% after 4 seed 0"]
    assert {row["intervention"] for row in rows} == set(names)
    assert {(row["intervention"], row["language"]) for row in rows} == {
        (training, code) for training in names for code in ("hu", "en")
    }
    assert "Does freezing the core help?" in (folder / "report.html").read_text()
    tables = {path.stem: json.loads(path.read_text()) for path in (folder / "tables").glob("*.json")}
    assert len(tables["pareto"]["points"]) == len(TRAINED)
    gain = {row[0]: row[1] for row in tables["frontier"]["rows"]}
    nats = {(row["intervention"], row["language"]): float(row["nll_nats"]) / int(row["tokens"]) for row in rows}
    for training, (value, low, high) in gain.items():
        np.testing.assert_allclose(value, nats["base", "hu"] - nats[f"{training} after 4 seed 0", "hu"], rtol=1e-6)
        assert low <= value <= high
    verdict = tables["verdict"]
    assert "he core" in verdict["headline"]
    first, second, *_ = verdict["paragraphs"]
    assert first.startswith("Training without any constraint divides the perplexity of hu by")
    assert second.startswith("The frozen core 1% against full: hu gains")
    assert tables["learning"]["series"]["full"]["points"][0] == [0, 0.0]


def test_every_arm_trains_something_else(whole):
    _, rows = whole
    ended = [row for row in rows if row["language"] == "hu" and row["samples"] == "4"]
    ends = {row["intervention"]: row["nll_nats"] for row in ended}
    assert len(ends) == len(TRAINED)
    assert len(set(ends.values())) == len(ends)


def test_every_training_is_held_to_what_it_says(tmp_path):
    """The constraints themselves are tested in test_freeze.py; here: which of them a training takes, and of what."""
    chosen = config(f"--config.freeze.treatments={','.join(_TREATMENTS)}")
    held = {}
    with Run.open(tmp_path / "run", chosen) as run:
        given = context.prepare(chosen, run)
        scored.score(given, "en", ("fisher",))
        for training in study._trainings(chosen, 0):
            selection.make(given, study._selections(chosen, training))
            held[training.kind] = study._constraints(given, training)
    free = {training for training, constraints in held.items() if not constraints}
    assert free == {"full", "replay", "reversion"}
    assert [each.name for each in held["core"]] == ["core"]
    assert held["core replay"][0].arrays.keys() == held["thaw"][0].arrays.keys() == held["core"][0].arrays.keys()
    assert held["ewc replay"][0].identity == held["ewc"][0].identity  # they differ in their text
    identities = [found[0].identity for kind, found in held.items() if found and kind != "ewc replay"]
    assert len(set(identities)) == len(identities)
    assert held["embedding"][0].whole == {"embed_tokens"}
    ours, drawn = held["soft"][0].arrays, held["soft random"][0].arrays
    assert ours.keys() == drawn.keys()
    for path, steps in ours.items():
        one, other = (np.asarray(each).reshape(len(each), -1) for each in (steps, drawn[path]))
        np.testing.assert_array_equal(np.sort(one), np.sort(other), err_msg=path)
        assert (one != other).any(axis=1).all(), path


def test_soft_freezing_is_held_against_the_same_steps_at_random_places(tmp_path):
    rows = finish(tmp_path / "run", "--config.freeze.treatments=full,soft,soft random", "--config.freeze.soft=8.0")
    ends = {row["intervention"]: row for row in rows if row["language"] == "hu" and row["samples"] == "4"}
    nats = {name.partition(" after")[0]: float(row["nll_nats"]) / int(row["tokens"]) for name, row in ends.items()}
    assert len(set(nats.values())) == 3
    (told,) = [
        text
        for text in json.loads((tmp_path / "run" / "tables" / "verdict.json").read_text())["paragraphs"]
        if text.startswith("Slowed by their scores, against the same steps at random places of each matrix: hu gains ")
    ]
    assert told.endswith("nats per token.")


def test_what_is_frozen_is_the_base_to_the_bit_in_what_is_exported(whole, tmp_path):
    folder, _ = whole
    words = ["export", f"--workdir={folder}", "--training=core 1% seed 0", f"--out={tmp_path / 'model'}"]
    assert main.main(words) == 0
    mesh = meshes.build(devices=jax.devices()[:1])
    base = sources.resolve("preset:tiny").load(mesh, jax.random.key(0))
    written = trees.flatten(sources.resolve(str(tmp_path / "model")).load(mesh, jax.random.key(0)))
    frozen = regions.load(folder / "regions" / "top-1pct.safetensors").leaves()
    moved = 0
    for path, leaf in trees.walk(base):
        ours, theirs = (np.asarray(each).view(np.uint32) for each in (leaf, written[path]))
        inside = np.asarray(frozen[path]) if path in frozen else np.zeros(ours.shape, bool)
        np.testing.assert_array_equal(ours[inside], theirs[inside], err_msg=path)
        moved += int((ours != theirs)[~inside].sum())
    assert moved > 0.9 * trees.count(base)


@pytest.mark.users
def test_a_core_that_thaws_is_frozen_up_to_there(tmp_path):
    words = ["--config.freeze.treatments=core,thaw", "--config.train.samples=8", "--config.train.counts=(4,)"]
    nats = {row["intervention"]: row["nll_nats"] for row in finish(tmp_path / "run", *words) if row["language"] == "hu"}
    # Half of four steps the core is frozen.
    assert nats["thaw 1% after 4 seed 0"] == nats["core 1% after 4 seed 0"]
    assert nats["thaw 1% after 8 seed 0"] != nats["core 1% after 8 seed 0"]


def test_a_core_is_set_back_by_parts(tmp_path):
    words = ["--config.freeze.treatments=full,core,core replay,ewc replay,reversion", "--config.train.samples=8"]
    rows = finish(tmp_path / "run", *words, "--config.freeze.reversion=(0.5,1.0)")
    nats = {row["intervention"]: row["nll_nats"] for row in rows if row["language"] == "hu"}
    ends = [f"reversion 1%{part} after 8 seed 0" for part in ("", " 0.5")]
    assert len({nats[name] for name in ("full after 8 seed 0", *ends)}) == 3
    alone = {nats[f"{name} after 8 seed 0"] for name in ("core 1%", "core replay 1%", "ewc replay")}
    assert len(alone) == 3


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--training=core seed 9"], 2, "no training 'core seed 9'; it has full seed 0, core 1% seed 0"),
        (["--training=reversion 1% seed 0"], 2, "no training 'reversion 1% seed 0'"),
    ],
)
def test_what_cannot_be_exported(whole, tmp_path, capsys, words, code, message):
    folder, _ = whole
    assert main.main(["export", f"--workdir={folder}", f"--out={tmp_path / 'model'}", *words]) == code
    assert message in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


def test_a_frozen_entry_that_moved_is_never_exported(whole, tmp_path, monkeypatch, capsys):
    folder, _ = whole
    load = train.load

    def broken(*given):
        state = load(*given)
        state.params["layers"]["mlp"]["down_proj"] = state.params["layers"]["mlp"]["down_proj"] * np.float32(1.5)
        return state

    monkeypatch.setattr(train, "load", broken)
    words = [f"--workdir={folder}", "--training=core 1% seed 0", f"--out={tmp_path / 'model'}"]
    assert main.main(["export", *words]) == 2
    assert "mlp.down_proj" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


def test_a_folder_without_a_run_has_nothing_to_export(tmp_path, capsys):
    words = [f"--workdir={tmp_path / 'none'}", "--training=full seed 0", f"--out={tmp_path / 'model'}"]
    assert main.main(["export", *words]) == 2
    assert "no work directory yet" in capsys.readouterr().err


def test_stopped_and_taken_up_again_is_the_same(whole, tmp_path, monkeypatch):
    """A kill after the first evaluation of the second training; the trained ones are not trained again."""
    _, rows = whole
    observe, asked = measurement.observe, []

    def stop(given, intervention, params):
        asked.append(intervention.name)
        if len(asked) == 3:
            raise KeyboardInterrupt
        observe(given, intervention, params)

    words = ("--config.freeze.treatments=full,core",)
    monkeypatch.setattr(measurement, "observe", stop)
    with pytest.raises(KeyboardInterrupt):
        finish(tmp_path / "run", *words)
    monkeypatch.setattr(measurement, "observe", observe)
    fitted = []
    fit = train.fit
    monkeypatch.setattr(
        train, "fit", lambda run, name, *given, **named: fitted.append(name) or fit(run, name, *given, **named)
    )
    found = {(row["intervention"], row["language"]): row for row in finish(tmp_path / "run", *words)}
    assert fitted == ["core 1% seed 0"]
    expected = {(row["intervention"], row["language"]): row for row in rows}
    for cell, row in found.items():
        assert row == expected[cell]


def test_killed_between_two_evaluations_it_knows_the_first(tmp_path, monkeypatch):
    """The checkpoint is later than the count that was evaluated: its hook is not called again."""
    step, taken = train.Trainer.step, []

    def stop(given, state, batch):
        taken.append(1)
        if len(taken) == 4:  # three of four steps are done, the count is two
            raise KeyboardInterrupt
        return step(given, state, batch)

    words = ("--config.freeze.treatments=full", "--config.train.batch=1", "--config.machine.save_steps=1")
    monkeypatch.setattr(train.Trainer, "step", stop)
    with pytest.raises(KeyboardInterrupt):
        finish(tmp_path / "run", *words)
    monkeypatch.setattr(train.Trainer, "step", step)
    found = finish(tmp_path / "run", *words)
    assert {row["intervention"] for row in found} == {"base", "full after 2 seed 0", "full after 4 seed 0"}
    series = json.loads((tmp_path / "run" / "tables" / "learning.json").read_text())["series"]["full"]["points"]
    assert [count for count, _ in series] == [0, 2, 4]


def test_a_cell_of_a_finished_training_that_is_lost_is_trained_for_again(whole, tmp_path):
    """Never measured on other parameters than its own; the checkpoints are gone here too."""
    _, rows = whole
    words = ("--config.freeze.treatments=full", "--config.train.keep=False")
    folder = tmp_path / "run"
    finish(folder, *words)
    assert not list((folder / "checkpoints").glob("*"))
    (folder / "segments" / "full-after-2-seed-0" / "hu.csv").unlink()
    found = {(row["intervention"], row["language"]): row for row in finish(folder, *words)}
    expected = {(row["intervention"], row["language"]): row for row in rows}
    assert len(found) == 6
    for cell, row in found.items():
        assert row == expected[cell]
    assert "full seed 0 is trained again" in (folder / "metrics.jsonl").read_text()


def test_the_text_of_replay_is_mixed_in(tmp_path):
    chosen = config("--config.freeze.replay=0.25")
    with Run.open(tmp_path / "run", chosen) as run:
        given = context.prepare(chosen, run)
        found = study._feed(given, Intervention(kind="replay", seed=0))
    assert isinstance(found, train.Mix)
    assert [found.locate(sample)[0].corpus.language for sample in range(8)] == ["hu"] * 3 + ["en"] + ["hu"] * 3 + ["en"]
    assert [found.locate(sample)[1] for sample in range(8)] == [0, 1, 2, 0, 3, 4, 5, 1]
    batch = found.batch(2, 5, 4)
    for row, (code, place) in enumerate([("hu", 2), ("en", 0), ("hu", 3)]):
        corpus = given.corpus(code, "train")
        alone = corpus.batch(corpus.order(0, place, place + 1))
        np.testing.assert_array_equal(batch.tokens[row], alone.tokens[0])
    assert not batch.segments[3].any()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config.freeze.treatments=core,frozen"], "holds 'frozen'; there are full, core"),
        (["--config.freeze.treatments="], "freeze.treatments is empty: name one or more of full, core"),
        (["--config.freeze.fractions="], "freeze.fractions is empty: say how much"),
        (["--config.freeze.treatments=core,reversion"], "add full to freeze.treatments"),
        (["--config.freeze.reversion=(1.5,)"], "set back by a factor between 0 and 1"),
        (["--config.freeze.thaw=(1.0,0.5)"], "thaws between fractions"),
        (["--config.train.language=de"], "de is trained but not evaluated"),
        (["--config.evaluate.languages=hu"], "only hu is evaluated"),
        (["--config.train.warmup=9"], "warm-up of 9 steps in a training of 2 steps"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_the_work(tmp_path, words, message):
    with pytest.raises(ValueError, match=message):
        finish(tmp_path / "run", *words)
    assert not (tmp_path / "run" / "results.csv").exists()
