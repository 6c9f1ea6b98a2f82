"""Measurements: finished once, they stay what they were, and come with the sums of their segments and their effects."""

import csv
import dataclasses
from pathlib import Path

import numpy as np
import pytest

from lingregions import evaluate, models, settings
from lingregions import tree as trees
from lingregions.effects import Effects
from lingregions.experiments import context as contexts
from lingregions.experiments import measurement
from lingregions.experiments.context import Context
from lingregions.intervention import UNTOUCHED, Intervention
from lingregions.models import roles
from lingregions.regions import geometry
from lingregions.run import Run

pytestmark = pytest.mark.usefixtures("one_device")

CONFIG = Path(__file__).parent.parent / "configs" / "core_removal.py"
NAME = roles.matrix_name("down", 1)
SCALED = Intervention(kind="scalar", target="it", perturbation="scale", factor=100.0)
NOISE = [Intervention(kind="noisy", perturbation="noise", factor=50.0, seed=seed) for seed in (0, 1)]
NAMES = ["base", "it x100", "noisy noise 50 seed 0", "noisy noise 50 seed 1"]


def run_settings(*words: str, languages: str = "ar,en", samples: int = 2):
    chosen = [f"--config.evaluate.languages={languages}", f"--config.evaluate.samples={samples}"]
    chosen += ["--config.machine.progress=none"]
    return settings.load(f"{CONFIG}:tiny", [*chosen, "--config.machine.pictures=False", *words])


def interventions(context: Context) -> list[Intervention]:
    like = roles.restrict(context.model.shapes, "decoder")
    region = geometry.points(like, [(NAME, (3, 5))], "it")
    return [dataclasses.replace(each, region=region) for each in (SCALED, *NOISE)]


def measure(folder: Path, *words: str) -> tuple[list[dict[str, str]], Effects]:
    chosen = run_settings(*words)
    with Run.open(folder, chosen) as run:
        context = contexts.prepare(chosen, run)
        before = {path: np.array(leaf) for path, leaf in trees.walk(context.model.params)}
        measurement.measure(context, interventions(context))
        for path, leaf in trees.walk(context.model.params):
            np.testing.assert_array_equal(before[path], np.asarray(leaf), err_msg=path)
        context.contrasts[SCALED, NOISE[0]] = None
        found = context.effects()
    return list(csv.DictReader((folder / "results.csv").read_text().splitlines())), found


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, *measure(folder)


def test_the_untouched_model_comes_first_and_every_intervention_has_every_language(whole):
    _, rows, _ = whole
    assert [(row["intervention"], row["language"]) for row in rows] == [
        (name, code) for name in NAMES for code in ("ar", "en")
    ]
    assert [Intervention.from_columns(row) for row in rows[::2]] == [UNTOUCHED, SCALED, *NOISE]


def test_the_segments_of_a_cell_add_up_to_its_row(whole):
    folder, rows, _ = whole
    for row in rows:
        path = folder / "segments" / row["intervention"].replace(" ", "-") / f"{row['language']}.csv"
        found = list(csv.DictReader(path.read_text().splitlines()))
        assert len(found) == int(row["segments"])
        assert sum(int(each["tokens"]) for each in found) == int(row["tokens"])
        assert sum(int(each["bytes"]) for each in found) == int(row["bytes"])
        np.testing.assert_allclose(sum(float(each["nll"]) for each in found), float(row["nll_nats"]), rtol=1e-12)


def test_segments_of_eight_tokens(whole):
    """64 tokens of one document: 7 targets in the first segment, 8 in the others."""
    folder, _, _ = whole
    chosen = run_settings()
    with Run.open(folder, chosen) as run:
        context = contexts.prepare(chosen, run)
        _, positions = context.samples("en", "evaluate")
        found = measurement._segments(context, "base", "en")
    assert found.number.tolist() == [8 * position + part for position in sorted(positions) for part in range(8)]
    assert found.tokens.tolist() == [7, *[8] * 7] * len(positions)


def test_segments_are_documents_where_the_config_says_so(tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "en.txt").write_text("one\ntwenty-two\n" * 6)
    words = [f"--config.data.source={tmp_path / 'texts'}", "--config.data.evaluate_split=all"]
    chosen = run_settings(*words, "--config.evaluate.segment=0", languages="en", samples=1)
    with Run.open(tmp_path / "run", chosen) as run:
        context = contexts.prepare(chosen, run)
        measurement.measure(context, [])
        found = measurement._segments(context, "base", "en")
    # A document of n bytes is n tokens, the first without a target; the sample of 64 tokens ends in the middle of one.
    lengths = [3, 10] * 6
    whole = [each - 1 for each, end in zip(lengths, np.cumsum(lengths), strict=True) if end <= 64]
    assert found.tokens.tolist()[: len(whole)] == whole


@pytest.mark.parametrize("size", [2, 3, 5])
def test_a_batch_of_several_languages_is_each_of_them_alone(whole, tmp_path, size):
    _, rows, _ = whole
    found, _ = measure(tmp_path / "run", f"--config.machine.evaluate_batch={size}")
    for row, other in zip(found, rows, strict=True):
        assert (row["intervention"], row["language"], row["segments"]) == (
            other["intervention"],
            other["language"],
            other["segments"],
        )
        np.testing.assert_allclose(float(row["nll_nats"]), float(other["nll_nats"]), rtol=1e-6)


def test_a_finished_cell_is_not_measured_again_and_a_damaged_one_is(whole, monkeypatch):
    folder, rows, _ = whole
    asked = []
    stream = evaluate.stream
    monkeypatch.setattr(evaluate, "stream", lambda *given: asked.append(1) or stream(*given))
    again, _ = measure(folder)
    assert not asked
    assert again == rows
    cell = folder / "segments" / "noisy-noise-50-seed-1" / "en.csv"
    sound = cell.read_bytes()
    cell.write_bytes(sound.replace(b"1", b"2", 1))
    again, _ = measure(folder)
    assert asked == [1]
    assert again == rows
    assert cell.read_bytes() == sound


def test_every_group_is_compared_with_the_untouched_model_and_contrasts_beside(whole):
    _, rows, found = whole
    group = NOISE[0].group
    pairs = [(SCALED, UNTOUCHED, 1), (group, UNTOUCHED, 2), (SCALED, group, 1)]
    lines = [(row.intervention, row.control, row.language, row.seeds) for row in found]
    assert lines == [(one, other, code, seeds) for one, other, seeds in pairs for code in ("all", "ar", "en")]
    nats = {(row["intervention"], row["language"]): float(row["nll_nats"]) / int(row["tokens"]) for row in rows}
    for row in found:
        assert row.low <= row.effect_nats <= row.high
        assert row.p_adjusted >= row.p
    np.testing.assert_allclose(
        found.value(SCALED, language="en"), nats["it x100", "en"] - nats["base", "en"], rtol=1e-9
    )
    mean = (nats[NAMES[2], "ar"] + nats[NAMES[3], "ar"]) / 2 - nats["base", "ar"]
    np.testing.assert_allclose(found.value(group, language="ar"), mean, rtol=1e-6)


def test_interventions_of_one_name_are_refused(tmp_path):
    with Run.open(tmp_path / "run", run_settings()) as run:
        context = contexts.prepare(run_settings(), run)
        with pytest.raises(ValueError, match="two interventions are called 'base'"):
            measurement.measure(context, [Intervention()])


def test_bounds_limit_what_an_intervention_computes(tmp_path):
    with Run.open(tmp_path / "run", run_settings()) as run:
        context = contexts.prepare(run_settings(), run)
        layers = models.PRESETS["tiny"].layers
        loose, tight = (
            Intervention(kind=kind, bounds=roles.tree({"down": np.full(layers, bound, np.float32)}))
            for kind, bound in (("loose", np.inf), ("tight", 1e-3))
        )
        measurement.measure(context, [loose, tight])
        nats = {name: row["nll_nats"] for (name, code), row in measurement.results(context).items() if code == "en"}
    np.testing.assert_allclose(nats["loose"], nats["base"], rtol=1e-7)
    assert abs(nats["tight"] - nats["base"]) > 1e-3
