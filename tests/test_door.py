"""The door: everything that is wrong with a config, told at once and before any work directory exists."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from ml_collections import ConfigDict

from lingregions import door, forecast, report, settings
from lingregions.main import main

SMALL = ["--config.score.languages=ar", "--config.evaluate.languages=sw", "--config.machine.progress=none"]

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """Rates are kept there, so that no test reads those of another."""
    monkeypatch.setenv("LINGREGIONS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def config(*words: str, name: str = "core_removal") -> ConfigDict:
    return settings.load(f"{name}:tiny", [*SMALL, *words])


@pytest.mark.parametrize("name", sorted(path.stem for path in settings.CONFIGS.glob("*.py") if path.stem != "base"))
def test_every_tiny_config_passes(name, tmp_path):
    steps, problems = door.problems(settings.load(f"{name}:tiny"), tmp_path / "run")
    assert problems == []
    assert [step.tokens for step in steps if step.tokens]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--config.experiment=core_removla", "there is no experiment 'core_removla'"),
        (
            "--config.compute.dtype=float16",
            "compute.dtype is 'float16'; it must be one of float32, bfloat16; in float16",
        ),
        ("--config.machine.compute.remat=some", "remat"),
        ("--config.data.packing=loose", "data.packing is 'loose'; it must be one of 'packed', 'paper'"),
        ("--config.data.document=page", "data.document is 'page'"),
        ("--config.data.bos=always", "data.bos is 'always'"),
        ("--config.data.length=1", "data.length is 1"),
        ("--config.data.held=1.5", "data.held is 1.5"),
        ("--config.score.preset=papre", "score.preset is 'papre'"),
        ("--config.score.rules=tailor", "there is no score rule 'tailor'"),
        ("--config.score.samples=-1", "score.samples is -1"),
        ("--config.machine.score_batch=0", "machine.score_batch is 0"),
        ("--config.machine.kept_states=-1", "kept_states"),
        ("--config.select.fractions=200%", "fraction"),
        ("--config.select.modules=quux", "quux"),
        ("--config.machine.mesh.data=3", "does not fit 1 devices"),
        ("--config.model.source=preset:tyni", "there is no preset 'tyni'"),
        ("--config.model.source=./nowhere", "no such file or folder"),
        ("--config.data.source=nowhere", "no text source 'nowhere'"),
        ("--config.data.evaluate_split=third", "third"),
        ("--config.score.samples=100000", "samples"),
        ("--config.model.source=preset:llama2-70b", "of memory, and there are"),
    ],
)
def test_what_a_config_asks_for_is_checked(words, said, tmp_path):
    _, problems = door.problems(config(words), tmp_path / "run")
    assert any(said in each for each in problems), problems


@pytest.mark.parametrize("key", ["score.languages", "evaluate.languages", "select.fractions"])
def test_what_is_empty_is_told_once(key, tmp_path):
    found = door.problems(settings.load("core_removal:tiny", [f"--config.{key}="]), tmp_path / "run")[1]
    assert [each.partition(" ")[0] for each in found] == [key]


@pytest.mark.parametrize(
    ("capability", "dtype", "number"),
    [
        ("7.5", "bfloat16", 1),
        ("7.5", "float32", 0),
        ("8.0", "bfloat16", 0),
        ("9.0", "bfloat16", 0),
        (None, "bfloat16", 0),
    ],
)
def test_a_card_without_units_for_bfloat16_is_told(capability, dtype, number):
    card = SimpleNamespace(device_kind="Tesla T4", **({"compute_capability": capability} if capability else {}))
    told = list(door._units(dtype, card))
    assert len(told) == number
    assert all("Tesla T4 (compute capability 7.5) has no units for it" in each for each in told)


def test_all_problems_are_told_at_once(tmp_path):
    with pytest.raises(settings.SettingsError) as caught:
        door.check(config("--config.compute.dtype=float16", "--config.data.length=1"), tmp_path / "run")
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{len(lines) - 1} things keep this from running:"
    assert len(lines) == len(set(lines))


def test_a_text_that_is_too_large_to_be_tokenized_is_measured_in_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(door, "_SMALL", 10)
    (tmp_path / "texts").mkdir()
    for language in ("ar", "sw"):
        (tmp_path / "texts" / f"{language}.txt").write_text("All human beings are born free.\n" * 20)
    words = [f"--config.data.source={tmp_path / 'texts'}", "--config.data.evaluate_split=all"]
    words += ["--config.data.score_split=all", "--config.score.samples=10", "--config.evaluate.samples=11"]
    found = door.problems(config(*words), tmp_path / "run")[1]
    assert len(found) == 1, found
    assert re.search(r"sw, evaluate: .* holds 640 bytes, which cannot be 704 tokens", found[0])


def test_a_disk_without_room_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(forecast, "free", lambda folder: 1000)
    found = door.problems(config(), tmp_path / "run")[1]
    assert len(found) == 1
    assert "0.0 GB are free there" in found[0]


def test_a_report_that_cannot_be_written_is_told_before_the_work(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report.util, "find_spec", lambda name: None if name == "altair" else name)
    assert main(["run", "core_removal:tiny", f"--workdir={tmp_path / 'run'}", *SMALL]) == 2
    assert "a report needs altair: pip install 'lingregions[report]'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_refused_run_leaves_nothing_and_the_next_one_begins(tmp_path, capsys):
    words = ["run", "core_removal:tiny", f"--workdir={tmp_path / 'run'}", *SMALL, "--config.select.monolingual=False"]
    words += ["--config.machine.pictures=False"]
    for dry in ([], ["--dry-run"]):
        assert main([*words, "--config.data.length=1", *dry]) == 2
        assert "data.length is 1" in capsys.readouterr().err
        assert not (tmp_path / "run").exists()
    assert main(words) == 0


def test_a_dry_run_says_tokens_disk_time_and_memory_and_then_the_config(tmp_path, capsys, cache):
    words = ["run", "core_removal:tiny", f"--workdir={tmp_path / 'run'}", *SMALL, "--dry-run"]
    assert main(words) == 0
    table, _, plain = capsys.readouterr().out.partition("\n\n")
    head, *rows = table.splitlines()
    assert head.split() == ["step", "samples", "tokens", "GB", "time", "what"]
    assert rows[0].split()[:4] == ["score", "ar", "3", "192"]
    assert rows[-1].startswith("total")
    assert re.search(r"^time: at .* tokens a second scored .* tried out on ", plain, re.MULTILINE)
    assert re.search(r"^memory: about \d+\.\d GB at the most \(score\), \d+\.\d GB there$", plain, re.MULTILINE)
    assert "\nmodel.source = preset:tiny\n" in plain
    assert not (tmp_path / "run").exists()
    rates = json.loads((cache / "rates.json").read_text())
    assert len(rates) == 1
    # After a run the next dry run knows its rates, and which stages are finished.
    words += ["--config.select.monolingual=False", "--config.machine.pictures=False"]
    assert main([word for word in words if word != "--dry-run"]) == 0
    capsys.readouterr()
    assert main(words) == 0
    said = capsys.readouterr().out
    assert f"as the run in {tmp_path / 'run'} measured" in said
    assert "1 of 1" in said


def test_rates_that_cannot_be_read_are_measured_again(cache, tmp_path):
    cache.mkdir()
    (cache / "rates.json").write_text("[")
    assert "tried out" in forecast.render(config(), door.problems(config(), tmp_path)[0], tmp_path / "run")
