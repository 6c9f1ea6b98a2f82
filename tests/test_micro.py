"""machine.micro = "auto": the most samples that fit, asked of the compiler at most three times a job."""

import json
from pathlib import Path
from typing import Any

import pytest
from ml_collections import ConfigDict

from lingregions import experiments, main, micro, settings
from lingregions.plan import compiled, cost

GIGABYTE = 10**9


@pytest.fixture
def config(tmp_path: Path) -> ConfigDict:
    words = [
        "pretraining:tiny",
        f"--config.machine.cache={tmp_path}",
        "--config.train.batch=24",
        "--config.machine.micro=auto",
    ]
    words += [f"--config.machine.mesh.{axis}={size}" for axis, size in {"data": 2, "fsdp": 2, "tensor": 2}.items()]
    return settings.parse(words).config


def test_the_largest_that_fits_is_taken_and_asked_for_three_times_at_most(
    config: ConfigDict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On four parts of the batch axes; the estimate is half of the truth, 1 GB and 1 GB a sample."""
    asked: list[int] = []

    def compile(step: compiled.Step) -> compiled.Compiled:
        asked.append(step.micro // 4)
        return compiled.Compiled(peak=GIGABYTE + step.micro // 4 * GIGABYTE)

    monkeypatch.setattr(compiled, "compile", compile)
    monkeypatch.setattr(cost, "memory", lambda step: cost.Memory(0, (GIGABYTE + step.micro // 4 * GIGABYTE) // 2))
    monkeypatch.setattr(micro, "_room", lambda settings, step: 9.5 * GIGABYTE)
    config.evaluate.samples = 0
    # A step of training is 24 samples, 6 a part: a micro-batch of 1 or 2, since 4 does not divide it.
    assert micro.choose(config) == {"evaluate_batch": 8, "train_batch": 2}
    assert asked == [16, 8, 2]
    assert config.machine.evaluate_batch == 8  # so it is in the config.json of the run
    micro.choose(config)
    assert asked == [16, 8, 2]  # what the compiler said is kept
    monkeypatch.setattr(micro, "_room", lambda settings, step: 1.0)
    assert micro.choose(config) == {"evaluate_batch": 1, "train_batch": 1}


def test_steps_are_evenly_filled(config: ConfigDict) -> None:
    step: Any = compiled.Step("evaluate", None, None, (2, 1, 1), 2, 8)  # type: ignore[arg-type]
    config.evaluate.languages, config.evaluate.samples = ("en", "sw", "ar"), 11
    # 33 samples on two parts: 17 steps of 1 a part, 9 of 2, 5 of 4, 3 of 6 (not 8), 2 of 9 (not 16), 1 of 17.
    assert micro._sizes(config, step, 2) == [1, 2, 4, 6, 9, 17]


def test_a_run_records_what_it_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the real compiler: all samples of a language are scored in one step, those of all four evaluated in one."""
    monkeypatch.setattr(experiments, "perform", lambda config, run: False)
    words = ["core_removal:tiny", f"--workdir={tmp_path / 'run'}", f"--config.machine.cache={tmp_path}"]
    words += [f"--config.machine.mesh.{axis}={size}" for axis, size in {"data": 1, "fsdp": 1, "tensor": 8}.items()]
    assert main.main(["run", *words, "--config.machine.micro=auto"]) == 0
    machine = json.loads((tmp_path / "run" / "config.json").read_text())["machine"]
    assert (machine["score_batch"], machine["evaluate_batch"]) == (3, 8)
    assert "machine.score_batch=3: the most that fits\n" in capsys.readouterr().out


def test_no_other_word(tmp_path: Path) -> None:
    assert main.main(["run", "core_removal:tiny", f"--workdir={tmp_path}", "--config.machine.micro=most"]) == 2
