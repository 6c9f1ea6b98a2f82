"""The command line: verbs, exit codes, and messages for what a user can mend."""

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest
from ml_collections.config_flags import config_path

import lingregions
from lingregions import VERSION, guide, scoring, settings, verbs
from lingregions.experiments import STUDIES
from lingregions.main import VERBS, main
from lingregions.models import compute
from lingregions.plan import compiled, plan
from lingregions.regions import command

CONFIG = f"--config={Path(__file__).parent.parent / 'configs' / 'core_removal.py'}:tiny"
SMALL = [
    "--config.score.languages=ar",
    "--config.evaluate.languages=sw",
    "--config.select.monolingual=False",
    "--config.machine.progress=none",
    "--config.machine.pictures=False",
]


def test_help_lists_the_verbs(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for verb in VERBS:
        assert f"\n  {verb} " in out


def test_no_words_and_unknown_verbs_are_errors(capsys):
    assert main([]) == 2
    assert main(["rum"]) == 2
    assert "there is no verb 'rum'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("nodes", "installed", "given", "wanted"),
    [
        ((), True, None, "cpu"),
        (("nvidia0",), True, None, "cuda,cpu"),
        (("accel0",), True, None, None),
        (("vfio/0",), True, None, None),
        ((), False, None, None),
        ((), True, "tpu", "tpu"),
    ],
)
def test_jax_looks_for_no_tpu_where_there_is_none(nodes, installed, given, wanted, tmp_path, monkeypatch):
    for node in nodes:
        (tmp_path / node).parent.mkdir(exist_ok=True)
        (tmp_path / node).touch()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if installed else None)
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    if given:
        monkeypatch.setenv("JAX_PLATFORMS", given)
    lingregions._without_tpu(tmp_path)
    assert os.environ.get("JAX_PLATFORMS") == wanted
    if wanted != given:
        monkeypatch.delenv("JAX_PLATFORMS")  # of this process; it was set here


def test_run_then_again(tmp_path, capsys):
    words = ["run", CONFIG, f"--workdir={tmp_path / 'run'}", *SMALL]
    assert main(words) == 0
    assert f"done: {tmp_path / 'run' / 'report.html'}" in capsys.readouterr().out
    before = (tmp_path / "run" / "results.csv").read_bytes()
    assert main(words) == 0
    assert "done already" in capsys.readouterr().out
    assert (tmp_path / "run" / "results.csv").read_bytes() == before
    # Every stage that a dry run plans has left its marks.
    assert main([*words, "--dry-run"]) == 0
    table = capsys.readouterr().out.partition("\n\n")[0]
    done = re.findall(r"(\d+) of (\d+) ", table)
    assert len(done) == 3
    assert all(finished == parts != "0" for finished, parts in done)
    # Another config on the same work directory is refused, key by key; nothing is touched.
    assert main([*words, "--config.seed=1", "--dry-run"]) == 2
    assert "seed: 0 -> 1" in capsys.readouterr().err
    assert main([*words, "--config.seed=1"]) == 2
    assert "seed" in capsys.readouterr().err
    assert (tmp_path / "run" / "results.csv").read_bytes() == before


def test_a_dry_run_writes_nothing(tmp_path, capsys):
    for words in ([f"--workdir={tmp_path / 'run'}", "--dry_run"], [f"--workdir={tmp_path / 'run'}", "--dry-run"]):
        assert main(["run", CONFIG, *words]) == 0
        said = capsys.readouterr().out
        assert "preset:tiny" in said
        assert "\nscore ar " in said
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("rum", 2, "did you mean 'run'?"),
        ("run", 2, "which config?"),
        ("run core_remval:tiny", 2, 'did you mean "core_removal"?'),
        ("run core_removal:tyni", 2, 'core_removal has no variant "tyni"; did you mean "tiny"?'),
        ("run core_removal:tiny --wrkdir=w", 2, 'did you mean "--workdir"?'),
        ("run core_removal:tiny --config.scoer.samples=1", 2, 'did you mean "score"?'),
        ("sweep definition_seeds", 2, 'did you mean "definitions_seeds"?'),
        ("data chekc texts", 2, "invalid choice: 'chekc'"),
        ("run core_removal:tiny --config.score.languages=xx", 2, "unknown language 'xx'"),
        ("regions shwo A", 2, "invalid choice: 'shwo'"),
        ("models shwo A", 2, "invalid choice: 'shwo'"),
        ("plan --jbo=score", 2, "--jbo"),
        ("export --workdir=w", 2, "--training"),
        ("report", 2, "workdir"),
        ("run --help", 0, "lingregions run core_removal:smollm2"),
        ("sweep --help", 0, "definitions_seeds"),
        ("data --help", 0, "lingregions data check texts"),
        ("regions --help", 0, "lingregions regions diff A B"),
        ("models --help", 0, "lingregions models list"),
        ("plan --help", 0, "lingregions plan --model=llama2-7b"),
        ("report --help", 0, "lingregions report runs/core_removal"),
        ("export --help", 0, "lingregions export --workdir"),
        ("--version", 0, f"lingregions {VERSION}"),
    ],
)
def test_a_wrong_word_and_help_cost_no_import_of_jax(words, code, message, tmp_path):
    program = "import sys\nfrom lingregions.main import main\ntry:\n    code = main(sys.argv[1:])\n"
    program += "except SystemExit as stop:\n    code = stop.code\nassert 'jax' not in sys.modules\nsys.exit(code)"
    begin = time.process_time(), os.times().children_user
    found = subprocess.run(
        [sys.executable, "-c", program, *words.split()], capture_output=True, text=True, cwd=tmp_path
    )
    assert found.returncode == code, found.stderr
    assert message in found.stdout + found.stderr
    assert os.times().children_user - begin[1] < 1  # seconds of the processor: those of the wall are others' too


def test_the_words_of_the_parsers_are_those_of_the_registries():
    assert compiled.JOBS == verbs._JOBS
    assert verbs._TRAIN_BATCH == plan.TRAIN_BATCH
    assert (*compute.DTYPES,) == verbs._DTYPES
    assert (*compute.REMAT,) == verbs._REMAT
    assert (compute._PRECISIONS, compute._ATTENTIONS) == (verbs._PRECISIONS, verbs._ATTENTIONS)
    assert (*command._OPERATIONS,) == verbs._OPERATIONS
    assert (*scoring.PRESETS,) == verbs._PRESETS


def test_the_help_of_run_shows_experiments_variants_and_fields(capsys):
    assert main(["run", "--help"]) == 0
    said = capsys.readouterr().out
    for name in (*STUDIES, "tiny", "smollm2", "llama2_7b", "--dry-run"):
        assert f"\n  {name} " in said, name
    shown = guide._fields()
    assert len(shown) >= 20
    assert all(shown.values())
    config = settings.load("core_removal:tiny")
    for key in shown:
        assert f"\n  {key} " in said
        assert config_path.get_value(key, config) is not None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config.scoer.samples=1"], "did you mean"),
        (["--config.score.samples=many"], "samples"),
        (["--config.experiment=core_removla"], "there is no experiment 'core_removla'"),
        (["--config.score.preset=papre"], "papre"),
        (["--config.compute.dtype=float16"], "compute.dtype is 'float16'"),
        (["--config.machine.mesh.tensor=3"], "does not fit 8 devices"),
        (["--config.select.fractions=2"], "fraction"),
        (["--config.data.length=1"], "length"),
        (["--config.model.source=package:nothing"], "nothing"),
    ],
)
def test_mistakes_are_answered_in_words(tmp_path, capsys, words, message):
    assert main(["run", CONFIG, f"--workdir={tmp_path / 'run'}", *SMALL, *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_sigterm_resumes(tmp_path):
    """The real thing: a process that is told to stop says how to go on, and the next one finishes."""
    words = [sys.executable, "-m", "lingregions.main", "run", CONFIG, f"--workdir={tmp_path / 'run'}", *SMALL]
    words += ["--config.score.samples=40", "--config.data.fewer=True"]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
    }
    process = subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "run" / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and '"model"' in metrics.read_text()):
        time.sleep(0.05)  # poll for the state, not for a time
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 143, error
    assert "the same command goes on from there" in error
    assert not (tmp_path / "run" / "report.html").exists()
    subprocess.run(words, env=environment, check=True, timeout=300)
    assert (tmp_path / "run" / "report.html").exists()


def test_data_builds_checks_and_shows(tmp_path, capsys):
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "en.txt").write_text("All human beings are born free.\nAnd equal in dignity and rights.\n")
    words = ["data", "build", str(folder), "--model=preset:tiny", f"--out={tmp_path / 'tokens'}", "--workers=0"]
    assert main(words) == 0
    assert len(list((tmp_path / "tokens").glob("en-*"))) == 1
    assert main(["data", "check", str(folder)]) == 0
    assert main(["data", "show", f"tokens:{tmp_path / 'tokens'}", "--languages=en", "--model=preset:tiny"]) == 0
    assert "All human beings are born free." in capsys.readouterr().out


def test_data_tells_what_is_wrong_and_where(tmp_path, capsys):
    assert main(["data", "check", str(tmp_path / "nothing")]) == 2
    assert "no text source" in capsys.readouterr().err
    (tmp_path / "en.txt").write_bytes(b"fine\n\xff\xfe broken\n")
    assert main(["data", "build", str(tmp_path), "--model=preset:tiny", f"--out={tmp_path / 'tokens'}"]) == 1
    assert "en.txt:2" in capsys.readouterr().out


def test_regions_shows_a_region(tmp_path, capsys):
    assert main(["run", CONFIG, f"--workdir={tmp_path / 'run'}", *SMALL]) == 0
    assert main(["regions", "show", str(tmp_path / "run" / "regions" / "top-1pct.safetensors")]) == 0
    assert "top 1%" in capsys.readouterr().out
    assert main(["regions", "show", str(tmp_path / "none.safetensors")]) == 2


@pytest.mark.parametrize(
    "words",
    [
        ["run", "core_removal:tiny", "--workdir={file}"],
        ["run", "core_removal:tiny", "--workdir={file}/run"],
        ["models", "convert", "preset:tiny", "{file}"],
        ["models", "convert", "preset:tiny", "{file}/model"],
        ["data", "tokenizer", "udhr", "--languages=en", "--preset=tiny", "--out={file}/new"],
        ["data", "build", "udhr", "--languages=en", "--model=preset:tiny", "--out={file}"],
    ],
    ids=lambda words: " ".join(words),
)
def test_a_file_where_a_folder_is_needed_is_for_the_user_to_change(words, tmp_path, capsys):
    (tmp_path / "file").write_text("kept")
    assert main([word.format(file=tmp_path / "file") for word in words]) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert str(tmp_path / "file") in said
    assert (tmp_path / "file").read_text() == "kept"
