"""Every experiment, whole, on the tiny model: what it writes, that it resumes, and that the machine changes nothing."""

import csv
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lingregions import mesh as meshes
from lingregions import models, regions, settings
from lingregions import tree as trees
from lingregions.experiments import STUDIES, study
from lingregions.experiments.measurement import _RESULTS
from lingregions.finished import Run as Finished
from lingregions.models import roles
from lingregions.run import Interrupted, Run, checkpoint
from lingregions.scores import combine

pytestmark = pytest.mark.usefixtures("one_device")

CONFIGS = Path(__file__).parent.parent / "configs"
PATHS = sorted(path for path in CONFIGS.glob("*.py") if path.stem != "base")
SMALL = (
    "--config.score.languages=ar,zh",
    "--config.score.samples=2",
    "--config.evaluate.languages=ar,sw",
    "--config.evaluate.samples=1",
    "--config.machine.progress=none",
    "--config.machine.pictures=False",
)


def config(*overrides: str):
    return settings.load(f"{CONFIGS / 'core_removal.py'}:tiny", [*SMALL, *overrides])


def finish(folder: Path, *overrides: str) -> list[dict[str, str]]:
    chosen = config(*overrides)
    with Run.open(folder, chosen) as run:
        STUDIES[chosen.experiment].perform(chosen, run)
    return list(csv.DictReader((folder / "results.csv").read_text().splitlines()))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, finish(folder, "--config.machine.pictures=True")


FURTHER = {"complements": "frozen_pretraining"}  # a second config of an experiment


def test_a_config_for_every_experiment_and_an_experiment_for_every_config():
    assert {path.stem for path in PATHS} == {*STUDIES, *FURTHER}
    assert set(FURTHER.values()) <= set(STUDIES)


@pytest.mark.parametrize(
    ("path", "variant"),
    [pytest.param(path, variant, id=f"{path.stem}-{variant}") for path in PATHS for variant in settings.variants(path)],
)
def test_every_variant_resolves(path, variant):
    chosen = settings.load(f"{path}:{variant}")
    assert chosen.experiment == FURTHER.get(path.stem, path.stem)
    if path.stem == "pretraining":  # the one that scores nothing
        assert len(chosen.train.languages) == (30 if variant == "thirty" else 4)
        return
    trained = {"disentangling": 4, "transfer": 3 if variant == "tiny" else 5}  # those that train inside regions
    assert len(chosen.score.languages) == trained.get(path.stem, 6)
    if variant.startswith("llama2"):
        assert (*chosen.score.snapshots, chosen.score.samples) == (10_000, 100_000)
        assert "evaluate" not in chosen or len(set(chosen.evaluate.languages)) == trained.get(path.stem, 30)


def test_results_hold_one_row_per_intervention_and_language(whole):
    _, rows = whole
    assert list(rows[0]) == [*_RESULTS, "row_crc32"]
    names = ["base", "top 1%", "bottom 1%", "random 1% seed 0", "magnitude 1%"]
    assert [(row["intervention"], row["language"]) for row in rows] == [
        (name, code) for name in names for code in ("ar", "sw")
    ]
    for row in rows:
        nats, tokens, size = float(row["nll_nats"]), int(row["tokens"]), int(row["bytes"])
        # 64 byte tokens a sample, the first without context: 63 targets of one byte each.
        assert (tokens, size) == (63, 63)
        np.testing.assert_allclose(float(row["perplexity"]), np.exp(nats / tokens), rtol=1e-8)
        np.testing.assert_allclose(float(row["bits_per_byte"]), nats / np.log(2) / size, rtol=1e-12)


def test_interventions_differ_from_the_base(whole):
    _, rows = whole
    nats = {(row["intervention"], row["language"]): row["nll_nats"] for row in rows}
    for name, language in nats:
        assert (nats[name, language] == nats["base", language]) == (name == "base")


def test_regions_are_found_and_saved_with_their_origin(whole):
    folder, _ = whole
    names = {path.stem for path in (folder / "regions").glob("*.safetensors")}
    assert names == {
        *("top-1pct", "bottom-1pct", "random-1pct-seed-0", "magnitude-1pct", "top-1pct-ar", "top-1pct-zh"),
        *("monolingual-ar", "monolingual-zh"),
    }
    found = {name: regions.load(folder / "regions" / f"{name}.safetensors") for name in names}
    core = found["top-1pct"]
    # floor(1 %) of each matrix of the tiny preset, by hand: q, o 64 x 64 -> 40; k, v 32 x 64 -> 20; gate, up, down
    # 128 x 64 -> 81; norms of 64 -> 0; two layers.
    assert regions.total(core) == 2 * (2 * 40 + 2 * 20 + 3 * 81)
    assert core.provenance.languages == ("ar", "zh")
    assert len(core.provenance.model) == 32
    assert regions.equals(found["monolingual-ar"], regions.subtract(found["top-1pct-ar"], found["top-1pct-zh"]))
    assert regions.total(regions.intersect(found["monolingual-ar"], found["monolingual-zh"])) == 0


def test_report_and_settings_are_written(whole):
    folder, _ = whole
    page = (folder / "report.html").read_text()
    assert "core_removal" in page
    for name in ("config.json", "environment.json", "metrics.jsonl", "tables/texts.json"):
        assert (folder / name).stat().st_size > 0
    assert list((folder / "figures").glob("*.png"))


@pytest.mark.parametrize("steps", [1, 4, 10, 14])
def test_an_interrupted_run_goes_on_and_gives_the_same(whole, tmp_path, monkeypatch, steps):
    """Stop at the n-th safe point - inside a language, between regions, between cells - and run the command again."""
    _, expected = whole
    folder = tmp_path / "run"
    left = steps
    check = Run.check

    def stop(self):
        nonlocal left
        left -= 1
        if left == 0:
            raise Interrupted(15, self.folder)
        check(self)

    monkeypatch.setattr(Run, "check", stop)
    with pytest.raises(Interrupted):
        finish(folder)
    monkeypatch.setattr(Run, "check", check)
    before = {path: path.stat().st_mtime_ns for path in (folder / "regions").glob("*.safetensors")}
    assert finish(folder) == expected
    assert {path: path.stat().st_mtime_ns for path in before} == before  # what was finished is not made again


def test_a_signal_inside_a_language_saves_the_sums(whole, tmp_path, monkeypatch):
    """The sums so far are saved, and read back: 1 + 1 samples give the scores of 2."""
    reference, expected = whole
    folder = tmp_path / "run"
    read = []
    load = Run.load
    monkeypatch.setattr(Run, "load", lambda self, name, like: read.append(name) or load(self, name, like))
    begin = Run._begin
    monkeypatch.setattr(Run, "_begin", lambda self, *words: begin(self, *words) or setattr(self, "interrupted", 15))
    with pytest.raises(Interrupted):
        finish(folder)
    monkeypatch.setattr(Run, "_begin", begin)
    assert (folder / "resume" / "ar-0-2").is_dir()
    assert read == []
    assert finish(folder) == expected
    assert read[0] == "resume/ar-0-2"
    assert not (folder / "resume" / "ar-0-2").exists()
    ours, theirs = (regions.load(place / "regions" / "top-1pct-ar.safetensors") for place in (folder, reference))
    assert regions.equals(ours, theirs)


def test_eight_devices_change_nothing(whole, tmp_path, monkeypatch):
    reference, expected = whole
    monkeypatch.setattr(meshes, "build", functools.partial(meshes.build, devices=jax.devices()))
    rows = finish(tmp_path / "run", *(f"--config.machine.mesh.{axis}=2" for axis in meshes.MESH_AXES))
    for row, other in zip(rows, expected, strict=True):
        assert row["intervention"] == other["intervention"]
        np.testing.assert_allclose(float(row["nll_nats"]), float(other["nll_nats"]), rtol=1e-6)
    regions_of = sorted((reference / "regions").glob("*.safetensors"))
    assert len(regions_of) == 8
    for path in regions_of:
        assert regions.equals(regions.load(path), regions.load(tmp_path / "run" / "regions" / path.name)), path.stem


def test_batches_change_nothing(whole, tmp_path):
    _, expected = whole
    rows = finish(tmp_path / "run", "--config.machine.score_batch=3", "--config.machine.evaluate_batch=2")
    for row, other in zip(rows, expected, strict=True):
        np.testing.assert_allclose(float(row["nll_nats"]), float(other["nll_nats"]), rtol=1e-6)


def test_preset_paper_runs_and_differs(whole, tmp_path):
    _, expected = whole
    rows = finish(tmp_path / "run", "--config.score.preset=paper")
    assert [row["nll_nats"] for row in rows if row["intervention"] == "base"] == [
        row["nll_nats"] for row in expected if row["intervention"] == "base"
    ]
    assert [row["nll_nats"] for row in rows if row["intervention"] == "top 1%"] != [
        row["nll_nats"] for row in expected if row["intervention"] == "top 1%"
    ]


def test_snapshots_are_the_scores_of_fewer_samples(whole, tmp_path):
    reference, _ = whole
    words = ("--config.score.samples=3", "--config.score.snapshots=(2,)")
    finish(tmp_path / "run", *words)
    like = roles.restrict(models.shapes(models.PRESETS["tiny"]), "decoder")
    with Run.open(tmp_path / "run", config(*words)) as run:
        assert run.header("scores/ar")["samples"] == [3]
        assert run.header("scores/ar-2")["samples"] == [2]
        ours = trees.flatten(run.load("scores/ar-2", like))
    with Run.open(reference, config("--config.machine.pictures=True")) as run:
        theirs = trees.flatten(run.load("scores/ar", like))
    assert ours.keys() == theirs.keys()
    for path, values in ours.items():
        np.testing.assert_array_equal(values, theirs[path])


def test_scores_are_saved_in_bfloat16_and_everything_is_selected_from_them(whole, tmp_path):
    finish(tmp_path / "run", "--config.score.dtype=bfloat16")
    short, fine = Finished.open(tmp_path / "run"), Finished.open(whole[0])
    saved = checkpoint.shapes(tmp_path / "run" / "scores" / "ar", 1)
    assert {leaf.dtype for leaf in saved.values()} == {jnp.dtype(jnp.bfloat16)}
    scores = {language: short.scores(language) for language in ("ar", "zh")}
    for language, own in scores.items():
        assert own.definition.dtype == "bfloat16"
        theirs = trees.flatten(fine.scores(language).values)
        for path, values in trees.flatten(own.values).items():
            assert values.dtype == np.float32
            np.testing.assert_array_equal(values, theirs[path].astype(jnp.bfloat16).astype(jnp.float32))
        assert regions.equals(short.region(f"top 1% {language}"), own.select("1%"))
    assert regions.equals(short.region("top 1%"), combine(scores.values()).select("1%"))
    assert json.loads(short.region("top 1%").provenance.score)["dtype"] == "bfloat16"


def test_scores_of_a_language_are_read_once_for_all_regions(tmp_path, monkeypatch):
    read, load = [], Run.load
    monkeypatch.setattr(Run, "load", lambda self, name, like: read.append(name) or load(self, name, like))
    finish(tmp_path / "run")
    assert read == ["scores/ar", "scores/zh"]


def test_a_matched_region_has_the_size_of_the_top_and_none_of_it(tmp_path):
    words = (
        "--config.select.selectors=top,matched",
        "--config.select.seeds=(0,1)",
        "--config.select.monolingual=False",
    )
    rows = finish(tmp_path / "run", *words)
    names = ["base", "top 1%", "matched 1% seed 0", "matched 1% seed 1"]
    assert list(dict.fromkeys(row["intervention"] for row in rows)) == names
    top, *drawn = (
        regions.load(tmp_path / "run" / "regions" / f"{name}.safetensors")
        for name in ("top-1pct", "matched-1pct-seed-0", "matched-1pct-seed-1")
    )
    for each in drawn:
        assert regions.counts(each) == regions.counts(top)
        assert regions.total(regions.intersect(each, top)) == 0
    assert not regions.equals(*drawn)


def test_a_matched_region_needs_its_top(tmp_path):
    with pytest.raises(ValueError, match="matched regions are matched to the top: add top"):
        finish(tmp_path / "run", "--config.select.selectors=matched")


def test_fewer_samples_than_asked(tmp_path):
    with pytest.raises(ValueError, match=r"100000 samples of 64 tokens asked for.*allow fewer"):
        finish(tmp_path / "strict", "--config.score.samples=100000")


def test_not_a_number_in_the_weights_stops_with_language_and_sample(tmp_path, monkeypatch):
    prepare = study.prepare

    def poison(chosen, run):
        found = prepare(chosen, run)
        found.model.params["norm"] = found.model.params["norm"] * np.float32(np.nan)
        return found

    monkeypatch.setattr(study, "prepare", poison)
    with pytest.raises(FloatingPointError, match=r"ar, samples 0 to 0: the loss of sample\(s\) \[0\]"):
        finish(tmp_path / "run")


def reliable(folder: Path, samples: int) -> None:
    words = [SMALL[0], *SMALL[-2:], f"--config.score.samples={samples}"]
    chosen = settings.load(f"{CONFIGS / 'reliability.py'}:tiny", words)
    with Run.open(folder, chosen) as run:
        STUDIES["reliability"].perform(chosen, run)


def test_one_sample_has_no_halves(tmp_path):
    with pytest.raises(ValueError, match="halves need two or more"):
        reliable(tmp_path / "run", 1)


def test_reliability_of_the_tiny_model(tmp_path):
    """Hand-checkable facts of the tables: what must be 1, what must be chance, what must be there."""
    reliable(tmp_path / "run", 5)
    tables = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "run" / "tables").glob("*.json")}
    rules = ["taylor", "taylor_abs", "fisher", "magnitude", "wanda"]
    assert tables["definitions"]["names"] == rules
    values = np.array(tables["definitions"]["values"])
    np.testing.assert_array_equal(np.diagonal(values), 1.0)
    np.testing.assert_array_equal(values, values.T)
    ceiling = {row[0]: row[1:] for row in tables["ceiling"]["rows"]}
    assert list(ceiling) == rules
    # |theta| knows no samples: its halves are equal, and its languages too.
    assert ceiling["magnitude"] == [1.0, 1.0, 1.0, 1.0, [0.0, None, None]]  # two languages: no interval
    own, _, shared, most, missing = ceiling["taylor"]
    assert 0.01 < shared < own < 1
    assert missing == [pytest.approx(most - shared), None, None]
    headline = (tmp_path / "run" / "headline.txt").read_text()
    assert "no difference between languages is shown" in headline
    # The halves of five samples are 0..2 and 2..5; growth stops at 1, 2 and 4 of them.
    assert set(tables["split_half"]["halves"]) == {"ar", "zh"}
    assert set(tables["split_half"]["growth"]["ar"]) == {"1", "2", "4"}
    assert np.array(tables["layers"]["values"]).shape == (2, 2)
    windows = {path.stem.removeprefix("taylor-ar-") for path in (tmp_path / "run" / "windows").glob("taylor-ar-*")}
    assert windows == {"all", "second", "1", "2", "4"}
    assert "halves of one language" in (tmp_path / "run" / "report.html").read_text()
