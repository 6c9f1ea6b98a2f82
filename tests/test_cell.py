"""Cells: finished once, they stay what they were, and come with the sums of their segments; and their comparison."""

import csv
import functools
from pathlib import Path

import numpy as np
import pytest

from lingregions import evaluate, models, settings
from lingregions import tree as trees
from lingregions.experiments import cell as cells
from lingregions.experiments import comparison
from lingregions.experiments import laboratory as lab
from lingregions.models import roles
from lingregions.regions import geometry
from lingregions.run import Run

pytestmark = pytest.mark.usefixtures("one_device")

CONFIG = Path(__file__).parent.parent / "configs" / "core_removal.py"
NAME = "model.layers.1.mlp.down_proj.weight"


def prepare(run: Run) -> lab.Laboratory:
    return lab.prepare(run_settings(), run)


def run_settings(*words: str, languages: str = "ar,en", samples: int = 2):
    chosen = [f"--config.evaluate.languages={languages}", f"--config.evaluate.samples={samples}"]
    chosen += ["--config.machine.progress=none"]
    return settings.load(f"{CONFIG}:tiny", [*chosen, "--config.machine.pictures=False", *words])


def scalar(laboratory: lab.Laboratory):
    like = roles.restrict(laboratory.shapes, "decoder")
    return geometry.points(like, [(NAME, (3, 5))], "scalar")


def arms(laboratory: lab.Laboratory) -> list[cells.Arm]:
    region = functools.partial(scalar, laboratory)
    drawn = [cells.Arm(f"noise {seed}", region, "noise", 50.0, seed, group="noise") for seed in (0, 1)]
    return [cells.Arm("scalar x100", region, "scale", 100.0), *drawn]


def measure(folder: Path, *words: str) -> tuple[list[dict[str, str]], dict[str, list[comparison.Compared]]]:
    chosen = run_settings(*words)
    with Run.open(folder, chosen) as run:
        laboratory = lab.prepare(chosen, run)
        before = {path: np.array(leaf) for path, leaf in trees.walk(laboratory.params)}
        cells.measure(laboratory, "scalars", arms(laboratory))
        for path, leaf in trees.walk(laboratory.params):
            np.testing.assert_array_equal(before[path], np.asarray(leaf), err_msg=path)
        found = comparison.assess(laboratory, {"scalars": [("scalar x100", "noise")]})
    return list(csv.DictReader((folder / "results.csv").read_text().splitlines())), found


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, *measure(folder)


def test_the_untouched_model_comes_first_and_every_arm_has_every_language(whole):
    _, rows, _ = whole
    names = ["base", "scalar x100", "noise 0", "noise 1"]
    assert [(row["arm"], row["language"]) for row in rows] == [(arm, code) for arm in names for code in ("ar", "en")]


def test_the_segments_of_a_cell_add_up_to_its_row(whole):
    folder, rows, _ = whole
    for row in rows:
        path = folder / "cells" / "scalars" / row["arm"].replace(" ", "-") / f"{row['language']}.csv"
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
        laboratory = lab.prepare(chosen, run)
        _, positions = lab.draw(laboratory, "en", "evaluate")
        found = cells.segments(laboratory, "scalars", "base", "en")
    assert found.number.tolist() == [8 * position + part for position in sorted(positions) for part in range(8)]
    assert found.tokens.tolist() == [7, *[8] * 7] * len(positions)


def test_segments_are_documents_where_the_config_says_so(tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "en.txt").write_text("one\ntwenty-two\n" * 6)
    words = [f"--config.data.source={tmp_path / 'texts'}", "--config.data.evaluate_split=all"]
    chosen = run_settings(*words, "--config.evaluate.segment=0", languages="en", samples=1)
    with Run.open(tmp_path / "run", chosen) as run:
        laboratory = lab.prepare(chosen, run)
        cells.measure(laboratory, "texts", [])
        found = cells.segments(laboratory, "texts", "base", "en")
    # A document of n bytes is n tokens, the first without a target; the sample of 64 tokens ends in the middle of one.
    lengths = [3, 10] * 6
    whole = [each - 1 for each, end in zip(lengths, np.cumsum(lengths), strict=True) if end <= 64]
    assert found.tokens.tolist()[: len(whole)] == whole


@pytest.mark.parametrize("size", [2, 3, 5])
def test_a_batch_of_several_languages_is_each_of_them_alone(whole, tmp_path, size):
    _, rows, _ = whole
    found, _ = measure(tmp_path / "run", f"--config.machine.evaluate_batch={size}")
    for row, other in zip(found, rows, strict=True):
        assert (row["arm"], row["language"], row["segments"]) == (other["arm"], other["language"], other["segments"])
        np.testing.assert_allclose(float(row["nll_nats"]), float(other["nll_nats"]), rtol=1e-6)


def test_a_finished_cell_is_not_measured_again_and_a_damaged_one_is(whole, monkeypatch):
    folder, rows, _ = whole
    asked = []
    stream = evaluate.stream
    monkeypatch.setattr(evaluate, "stream", lambda *given: asked.append(1) or stream(*given))
    again, _ = measure(folder)
    assert not asked
    assert again == rows
    cell = folder / "cells" / "scalars" / "noise-1" / "en.csv"
    sound = cell.read_bytes()
    cell.write_bytes(sound.replace(b"1", b"2", 1))
    again, _ = measure(folder)
    assert asked == [1]
    assert again == rows
    assert cell.read_bytes() == sound


def test_every_group_is_compared_with_the_untouched_model_and_contrasts_beside(whole):
    folder, rows, found = whole
    lines = [(line.arm, line.reference, line.language, line.seeds) for line in found["scalars"]]
    pairs = [("scalar x100", "base", 1), ("noise", "base", 2), ("scalar x100", "noise", 1)]
    assert lines == [(arm, other, code, seeds) for arm, other, seeds in pairs for code in ("all", "ar", "en")]
    written = list(csv.DictReader((folder / "damage.csv").read_text().splitlines()))
    assert tuple(written[0]) == comparison.DAMAGE
    nats = {(row["arm"], row["language"]): float(row["nll_nats"]) / int(row["tokens"]) for row in rows}
    for line, row in zip(found["scalars"], written, strict=True):
        assert (line.arm, line.reference, line.language) == (row["arm"], row["reference"], row["language"])
        assert float(row["damage_nats"]) == line.estimate.value
        assert line.estimate.low <= line.estimate.value <= line.estimate.high
        assert line.adjusted >= line.estimate.p
    one = next(line for line in found["scalars"] if line.language == "en")
    np.testing.assert_allclose(one.estimate.value, nats["scalar x100", "en"] - nats["base", "en"], rtol=1e-9)
    pooled = next(line for line in found["scalars"] if (line.arm, line.language) == ("noise", "ar"))
    mean = (nats["noise 0", "ar"] + nats["noise 1", "ar"]) / 2 - nats["base", "ar"]
    np.testing.assert_allclose(pooled.estimate.value, mean, rtol=1e-6)


def test_arms_of_one_name_are_refused(tmp_path):
    with Run.open(tmp_path / "run", run_settings()) as run:
        laboratory = prepare(run)
        with pytest.raises(ValueError, match="two arms of scalars are called 'base'"):
            cells.measure(laboratory, "scalars", [cells.Arm("base")])


def test_limits_bound_what_an_arm_computes(tmp_path):
    with Run.open(tmp_path / "run", run_settings()) as run:
        laboratory = prepare(run)
        layers = models.PRESETS["tiny"].layers
        none, tight = (
            {"layers": {"mlp": {"down_proj": np.full(layers, bound, np.float32)}}} for bound in (np.inf, 1e-3)
        )
        cells.measure(laboratory, "clip", [cells.Arm("loose", limits=none), cells.Arm("tight", limits=tight)])
        rows = {row["arm"]: row["nll_nats"] for row in run.rows("results") if row["language"] == "en"}
    np.testing.assert_allclose(rows["loose"], rows["base"], rtol=1e-7)
    assert abs(rows["tight"] - rows["base"]) > 1e-3
