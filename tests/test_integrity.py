"""What is on disk is what was written, and what a living process holds is left alone: faults injected for real."""

import dataclasses
import errno
import fcntl
import json
import math
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from lingregions import corpus, models, regions
from lingregions import main as command
from lingregions.models import convert
from lingregions.models.tokenizer import Tokenizer
from lingregions.run import InUse, Run, RunError, Unavailable, checkpoint, files, record, replacing

REGION = str(Path(__file__).parent.parent / "regions" / "core.safetensors")


def config(source: str = "preset:tiny") -> ConfigDict:
    return ConfigDict({"model": {"source": source}, "seed": 0, "machine": {"progress": "none"}})


def tree() -> dict[str, Any]:
    values = np.random.default_rng(0).standard_normal((3, 5, 7)).astype(np.float32)
    return {"a": jnp.asarray(values), "b": jnp.asarray(values[0], jnp.bfloat16), "mask": jnp.asarray(values > 0)}


# --- checksums --------------------------------------------------------------------------------------------------------


FLIPPING = """
import json, shutil, sys
from pathlib import Path
import numpy as np
from lingregions.run import RunError, checkpoint

folder, wanted = Path(sys.argv[1]), np.load(sys.argv[2])
parts = sorted(path for path in (folder / "kept").rglob("*") if path.is_file())
random, outcomes = np.random.default_rng(0), []
for trial in range(60):
    shutil.copytree(folder / "kept", folder / "bad", dirs_exist_ok=True)
    path = folder / "bad" / parts[trial % len(parts)].relative_to(folder / "kept")
    content = bytearray(path.read_bytes())
    if content:
        content[random.integers(len(content))] ^= 1 << int(random.integers(8))
    path.write_bytes(content)
    try:
        header = checkpoint.header(folder / "bad", 1)
        found = checkpoint.load(folder / "bad", 1, {"a": wanted})
    except RunError as error:
        outcomes.append(str(error))
    else:
        outcomes.append("equal" if header == {"position": 64} and np.array_equal(found["a"], wanted) else "WRONG")
print(json.dumps(outcomes))
"""


def test_every_flipped_bit_of_a_saved_tree_is_found(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "kept", 1, {"a": tree()["a"]}, {"position": 64})
    np.save(tmp_path / "a.npy", tree()["a"])
    # In a process of its own: what orbax leaves behind when one of several reads fails disturbs those that follow.
    words = [sys.executable, "-c", FLIPPING, str(tmp_path), str(tmp_path / "a.npy")]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=300)
    outcomes = json.loads(done.stdout)
    assert len(outcomes) == 60
    refused = [each for each in outcomes if each != "equal"]
    assert len(refused) > 10
    assert [each for each in refused if str(tmp_path / "bad" / "1") not in each] == []


def test_values_changed_behind_the_readers_back_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save(tmp_path / "kept", 1, tree(), {})
    restore = checkpoint._restore

    def changed(folder: Path, version: int, **items: Any) -> Any:
        found = restore(folder, version, **items)
        if "tree" in items:
            found.tree["a"] = found.tree["a"].at[2, 4, 6].multiply(-1)
        return found

    monkeypatch.setattr(checkpoint, "_restore", changed)
    with pytest.raises(RunError, match="a does not match its checksum; remove it to make it again"):
        checkpoint.load(tmp_path / "kept", 1, tree())


def test_what_is_saved_in_bfloat16_is_read_in_float32_and_not_the_other_way(tmp_path: Path) -> None:
    saved = tree()
    checkpoint.save(tmp_path / "kept", 1, {"b": saved["b"]}, {})
    for like in (saved["b"], saved["b"].astype(jnp.float32)):
        found = checkpoint.load(tmp_path / "kept", 1, {"b": like})["b"]
        assert found.dtype == like.dtype
        np.testing.assert_array_equal(found, like)
    for wrong in (jnp.float16, jnp.int32):
        with pytest.raises(RunError, match=r"b is saved as bfloat16\[5,7\], asked for as (float16|int32)\[5,7\]"):
            checkpoint.load(tmp_path / "kept", 1, {"b": saved["b"].astype(wrong)})
    checkpoint.save(tmp_path / "wide", 1, {"a": saved["a"]}, {})
    with pytest.raises(RunError, match=r"a is saved as float32\[3,5,7\], asked for as bfloat16\[3,5,7\]"):
        checkpoint.load(tmp_path / "wide", 1, {"a": saved["a"].astype(jnp.bfloat16)})


def test_entries_that_change_places_change_the_sum() -> None:
    first = jnp.asarray([[1.0, 2.0], [3.0, 4.0]])
    sums = [checkpoint._sums({"x": x})["x"] for x in (first, first.T, first[::-1], first.at[0, 0].set(-1.0))]
    assert len(set(sums)) == 4


def test_another_schema_and_a_wrong_sum_are_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    value = record.seal({"schema": 1, "position": 64})
    assert record.unseal(path, value, 1) == {"schema": 1, "position": 64}
    with pytest.raises(RunError, match=f"^{path} is damaged: it does not match its checksum$"):
        record.unseal(path, {**value, "position": 65}, 1)
    with pytest.raises(RunError, match=f"^{path} has schema 2, this version reads 1$"):
        record.unseal(path, record.seal({"schema": 2, "position": 64}), 1)
    with pytest.raises(RunError, match=f"^{path} is damaged: it holds no JSON object$"):
        record.unseal(path, [value], 1)


# --- identities -------------------------------------------------------------------------------------------------------


def test_what_changed_under_the_same_path_is_refused_and_named(tmp_path: Path) -> None:
    with Run.open(tmp_path / "run", config("weights")) as run:
        run.identify("model", "1" * 64, "weights")
        run.identify("data/zh/score", "2" * 64, "texts")
    with Run.open(tmp_path / "run", config("weights")) as run:
        run.identify("model", "1" * 64, "weights")
        with pytest.raises(RunError, match="the data/zh/score at texts is not the one with which .* --fresh"):
            run.identify("data/zh/score", "3" * 64, "texts")


def test_what_moved_goes_on(tmp_path: Path) -> None:
    with Run.open(tmp_path / "run", config("here")) as run:
        run.identify("model", "1" * 64, "here")
    assert not Run.relocated(tmp_path / "run", config("here"))
    assert Run.relocated(tmp_path / "run", config("there"))
    with Run.open(tmp_path / "run", config("there")) as run:
        assert run.moved
        run.identify("model", "1" * 64, "there")
    with Run.open(tmp_path / "run", config("there")) as run:
        assert not run.moved
        with pytest.raises(RunError, match="the model at there"):
            run.identify("model", "4" * 64, "there")


def test_forged_identities_are_found(tmp_path: Path) -> None:
    with Run.open(tmp_path / "run", config()) as run:
        run.identify("model", "1" * 64)
        path = tmp_path / "run" / "identities.json"
        path.write_text(path.read_text().replace("1" * 64, "2" * 64))
        with pytest.raises(RunError, match="identities.json is damaged: it does not match its checksum"):
            run.identify("model", "2" * 64)


def test_passwords_and_tokens_are_stored_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef0123")
    source = "https://user:hunter22@models.example/llama"
    with Run.open(tmp_path / "run", config(source)) as run:
        run.identify("model", "1" * 64, source)
        run.note("the key 0123456789abcdef0123 was refused")
        run.log(event="model", source=source, token="hf_abcdefghijklmnopqrstuvwxyz")
    stored = b"".join(path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file())
    for secret in (b"hunter22", b"0123456789abcdef0123", b"hf_abcdef"):
        assert secret not in stored
    with Run.open(tmp_path / "run", config(source)) as run:  # and the same command still goes on
        assert not run.moved


KILLED = """
import os, signal, sys
from lingregions import main
from lingregions.run import Run
save = Run.save
def deadly(self, name, *rest):
    save(self, name, *rest)
    if name.startswith("resume/"):
        os.kill(os.getpid(), signal.SIGKILL)
Run.save = deadly
main.main(["run", *sys.argv[1:]])
"""


def test_weights_and_texts_replaced_inside_a_language_are_never_mixed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    udhr = Path(corpus.__file__).parent / "data" / "udhr"
    texts = tmp_path / "texts"
    texts.mkdir()
    for code in ("ar", "sw"):
        shutil.copy(udhr / f"{code}.txt", texts)
    tiny = models.PRESETS["tiny"]
    for seed in (0, 1):
        params = models.initialize(tiny, jax.random.key(seed))
        convert.export(params, tiny, tmp_path / f"weights-{seed}", Tokenizer.bytes())
    (tmp_path / "weights").symlink_to("weights-0")
    words = [
        f"--config={Path(__file__).parent.parent / 'configs' / 'core_removal.py'}:tiny",
        f"--workdir={tmp_path / 'run'}",
        f"--config.model.source={tmp_path / 'weights'}",
        f"--config.data.source={texts}",
        *("--config.data.score_split=all", "--config.data.evaluate_split=all", "--config.select.monolingual=False"),
        *("--config.score.languages=ar", "--config.evaluate.languages=sw", "--config.machine.save_seconds=0"),
        *("--config.machine.progress=none", "--config.machine.pictures=False"),
    ]
    killed = subprocess.run([sys.executable, "-c", KILLED, *words], capture_output=True, check=False, timeout=300)
    assert killed.returncode == -signal.SIGKILL, killed.stderr

    (tmp_path / "weights").unlink()
    (tmp_path / "weights").symlink_to("weights-1")
    assert command.main(["run", *words]) == 2
    assert f"the model at {tmp_path / 'weights'} is not the one with which" in capsys.readouterr().err
    (tmp_path / "weights").unlink()
    (tmp_path / "weights").symlink_to("weights-0")

    before = (texts / "ar.txt").read_text()
    (texts / "ar.txt").write_text(before + "one more line\n")
    assert command.main(["run", *words]) == 2
    assert f"the data/ar/score at {texts} is not the one with which" in capsys.readouterr().err
    (texts / "ar.txt").write_text(before)

    assert command.main(["run", *words]) == 0
    assert "scoring ar goes on from sample" in (tmp_path / "run" / "metrics.jsonl").read_text()


def test_scoring_goes_on_over_eight_four_and_one_devices(tmp_path: Path) -> None:
    words = [
        f"--config={Path(__file__).parent.parent / 'configs' / 'core_removal.py'}:tiny",
        *("--config.select.monolingual=False", "--config.select.selectors=top", "--config.score.languages=ar"),
        *("--config.evaluate.languages=sw", "--config.machine.save_seconds=0", "--config.machine.progress=none"),
        *("--config.score.samples=24", "--config.machine.pictures=False"),
    ]

    def run(program: str, folder: str, devices: int) -> int:
        flags = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu"}
        call = [sys.executable, "-c", program, *words, f"--workdir={tmp_path / folder}"]
        return subprocess.run(call, env=flags, capture_output=True, check=False, timeout=300).returncode

    whole = "import sys; from lingregions import main; sys.exit(main.main(['run', *sys.argv[1:]]))"
    assert [run(KILLED, "moved", devices) for devices in (8, 4)] == [-signal.SIGKILL] * 2
    assert run(whole, "moved", 1) == 0
    assert run(whole, "alone", 1) == 0
    said = (tmp_path / "moved" / "metrics.jsonl").read_text()
    starts = [int(each) for each in re.findall(r"scoring ar goes on from sample (\d+)", said)]
    assert len(starts) == 2
    assert 0 < starts[0] < starts[1] < 24
    moved, alone = (regions.load(tmp_path / name / "regions" / "top-1pct.safetensors") for name in ("moved", "alone"))
    assert regions.equals(moved, alone)
    assert moved.provenance == alone.provenance


def test_a_hub_that_is_down_is_one_sentence_and_worth_another_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def down(*_: object, **__: object) -> None:
        raise OSError(errno.ENETUNREACH, "Network is unreachable", "hub with hf_abcdefghijklmnopqrst")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", down)
    words = [f"--config={Path(__file__).parent.parent / 'configs' / 'core_removal.py'}:tiny"]
    words += [f"--workdir={tmp_path / 'run'}", "--config.model.source=meta-llama/Llama-2-7b-hf"]
    assert command.main(["run", *words, "--config.machine.progress=none"]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert "meta-llama/Llama-2-7b-hf is neither a folder here nor in the hub's cache, and cannot be fetched" in said
    assert "hf_abc" not in said


# --- what a living process holds --------------------------------------------------------------------------------------

SAVING = """
import os, signal, sys
from pathlib import Path
from lingregions.run import Run, replacing
with Run.open(sys.argv[1], {"machine": {"progress": "none"}}) as run:
    tree = run.path("scores/ar/1.orbax-checkpoint-tmp-7/tree")
    tree.mkdir(parents=True)
    (tree / "d").write_bytes(b"half")
    with replacing(run.path("regions/core.safetensors")) as partial, open(partial, "wb") as file:
        file.write(b"half")
        file.flush()
        print("deep", flush=True)
        os.kill(os.getpid(), signal.SIGSTOP)
        file.write(b" and whole")
    os.rename(tree.parent, run.path("scores/ar/1"))
"""


def test_a_sweep_leaves_what_a_stopped_process_is_saving(tmp_path: Path) -> None:
    cell = tmp_path / "sweep" / "cells" / "seed=1"
    Run.open(tmp_path / "sweep", config()).close()
    words = [sys.executable, "-c", SAVING, str(cell)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as saving:
        assert saving.stdout is not None
        assert saving.stdout.readline() == "deep\n"
        with Run.open(tmp_path / "sweep", config()) as run:  # as the sweep that has finished its own cells does
            assert run.notes == []
        with pytest.raises(InUse):
            Run.open(cell, {"machine": {"progress": "none"}})
        saving.send_signal(signal.SIGCONT)
        assert saving.wait(60) == 0
    assert (cell / "regions" / "core.safetensors").read_bytes() == b"half and whole"
    assert (cell / "scores" / "ar" / "1" / "tree" / "d").read_bytes() == b"half"


def test_what_a_killed_process_was_saving_is_removed_by_the_next(tmp_path: Path) -> None:
    words = [sys.executable, "-c", SAVING, str(tmp_path / "run")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as saving:
        assert saving.stdout is not None
        assert saving.stdout.readline() == "deep\n"
        saving.kill()
    with Run.open(tmp_path / "run", {"machine": {"progress": "none"}}) as run:
        assert [note.partition(" was left")[0] for note in run.notes[1:3]] == [
            "regions/core.safetensors.partial",
            "scores/ar/1.orbax-checkpoint-tmp-7",
        ]
    assert not list((tmp_path / "run").rglob("*partial*"))


def test_a_file_that_another_process_is_writing_is_its_own(tmp_path: Path) -> None:
    with replacing(tmp_path / "a.bin") as partial:
        partial.write_bytes(b"first")
        assert files.sweep(tmp_path) == []
        with pytest.raises(InUse, match="a.bin is being written by another process"), replacing(tmp_path / "a.bin"):
            pass
    assert (tmp_path / "a.bin").read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [tmp_path / "a.bin"]


def test_what_a_killed_export_left_beside_its_target_is_removed(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    for process in (gone.pid, os.getpid()):
        (tmp_path / f".out.partial-{process}").mkdir()
    assert files.sweep_beside(tmp_path / "out") == [tmp_path / f".out.partial-{gone.pid}"]
    assert list(tmp_path.iterdir()) == [tmp_path / f".out.partial-{os.getpid()}"]


@pytest.fixture(params=[errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def unlockable(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: int, how: int) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.mark.usefixtures("unlockable")
def test_a_disk_without_locks_has_one_writer_too(tmp_path: Path) -> None:
    with Run.open(tmp_path / "run", config()) as run:
        run.write("a.txt", "written")
        with pytest.raises(InUse, match=rf"process {os.getpid()} on .* knows no locks.* remove .*\.lock-held"):
            Run.open(tmp_path / "run", config())
    claim = tmp_path / "run" / ".lock-held"
    assert not claim.exists()
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    claim.write_text(json.dumps({"pid": gone.pid, "host": socket.gethostname()}))
    Run.open(tmp_path / "run", config()).close()
    claim.write_text(json.dumps({"pid": 1, "host": "far", "since": "yesterday"}))
    with pytest.raises(InUse, match="in use by process 1 on far since yesterday"):
        Run.open(tmp_path / "run", config())


# --- figures that say nothing -----------------------------------------------------------------------------------------


def test_a_fraction_that_selects_nothing_is_no_experiment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        f"--config={Path(__file__).parent.parent / 'configs' / 'core_removal.py'}:tiny",
        *(f"--workdir={tmp_path / 'run'}", "--config.select.fractions=0.0001%", "--config.score.languages=ar"),
        *("--config.evaluate.languages=sw", "--config.select.monolingual=False", "--config.machine.progress=none"),
    ]
    assert command.main(["run", *words]) == 2
    assert "region top 0.0001% is empty: 0 of 73,984 entries" in capsys.readouterr().err
    assert not (tmp_path / "run" / "results.csv").exists()


def test_a_config_with_a_number_that_is_none_is_refused() -> None:
    raw = models.dump(models.PRESETS["tiny"])
    assert models.parse(raw) == models.PRESETS["tiny"]
    with pytest.raises(ValueError, match="rms_norm_eps is inf: no model can be built of that"):
        models.parse({**raw, "rms_norm_eps": float("inf")})
    llama3 = {"rope_type": "llama3", "rope_theta": 1e4, "original_max_position_embeddings": 64}
    for message, rotary in {
        "rope_theta is inf": {"rope_theta": math.inf},
        "rope_theta is 0.0": {"rope_theta": 0.0},
        "the rotary keys have no rope_theta": {"rope_theta": None},
        "rope scaling factor is nan": {"rope_type": "linear", "rope_theta": 1e4, "factor": math.nan},
        "minus the low one is 0.0": {**llama3, "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0},
    }.items():
        with pytest.raises(ValueError, match=message):
            models.parse({**raw, "rope_parameters": rotary})
    for field, value in {"eps": -1.0, "logit_softcap": 0.0, "attention_scale": (-4.0) ** -0.5}.items():
        with pytest.raises(ValueError, match=f"config {field} is .* no model can be built of that"):
            dataclasses.replace(models.PRESETS["tiny"], **{field: value})


# --- the disk, the network, memory ------------------------------------------------------------------------------------


def test_a_disk_that_fills_inside_orbax_is_one_sentence_and_there_is_a_way_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    big = {"w": jnp.asarray(np.random.default_rng(0).standard_normal((512, 512)).astype(np.float32))}
    with Run.open(tmp_path / "run", config()) as run:
        run.save("scores/ar", big, {"samples": 1})
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
        try:
            with pytest.raises(Unavailable, match="cannot write .*scores/ar/2.*What was complete before is intact"):
                run.save("scores/ar", big, {"samples": 2})
            checkpointer = checkpoint.Checkpointer(run.path("checkpoints/core"), 2)
            with pytest.raises(Unavailable, match="cannot write .*checkpoints/core"), checkpointer:
                checkpointer.save(1, big, {"step": 1})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert run.header("scores/ar") == {"samples": 1}
    assert "Traceback" not in caplog.text
    with Run.open(tmp_path / "run", config()) as run:
        run.save("scores/ar", big, {"samples": 2})
        np.testing.assert_array_equal(run.load("scores/ar", big)["w"], big["w"])
        assert not list((tmp_path / "run").rglob("*tmp*"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("models", "convert", "preset:tiny", "out"), "cannot write out: the file would be larger than"),
        (("data", "build", "udhr", "--languages=sw", "--model=preset:tiny", "--workers=0", "--out=out"), "'out/.sw-"),
        (("regions", "combine", "union", REGION, REGION, "--out=out.safetensors"), "cannot write out.safetensors:"),
    ],
)
def test_what_a_full_disk_refuses_is_named_and_nothing_half_written_has_its_name(
    words: tuple[str, ...],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 10, hard))
    try:
        assert command.main(words) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    said = capsys.readouterr()
    assert message in said.out + said.err
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("out") and not path.is_dir()] == []
    assert command.main(words) == 0


class XlaRuntimeError(RuntimeError):
    """As JAX raises it."""


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ValueError("fraction is 2"), 2, "fraction is 2"),
        (FileNotFoundError("no such model"), 2, "no such model"),
        (ModuleNotFoundError("pip install zstandard"), 2, "pip install zstandard"),
        (FloatingPointError("nan in ar"), 2, "nan in ar"),
        (RunError("another config"), 2, "another config"),
        (InUse("in use"), 1, "in use"),
        (ConnectionError("the hub cannot be reached"), 1, "the hub cannot be reached"),
        (OSError(errno.ENOSPC, "No space left on device", "x"), 1, "no space is left on the disk; the same command"),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "x"), 1, "the disk quota is used up; the same command"),
        (ValueError("RESOURCE_EXHAUSTED: write [OS error 28: No space left on device]"), 1, "no space is left"),
        (XlaRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes"), 1, "memory is exhausted"),
        (MemoryError(), 1, "memory is exhausted (no more can be had)"),
        (KeyError("digest"), 1, "KeyError in test_integrity.py, line"),
        (RecursionError("too deep"), 1, "RecursionError in test_integrity.py, line"),
    ],
)
def test_every_error_is_one_sentence_with_its_code(
    error: Exception, code: int, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def verb(words: object) -> int:
        """Fail."""
        raise error

    monkeypatch.setitem(command.VERBS, "run", verb)
    assert command.main(["run"]) == code
    said = capsys.readouterr().err
    assert message in said
    assert len(said.splitlines()) == 1
    assert command.main(["run", "--debug"]) == code
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_the_work_directory_keeps_what_led_to_a_failure(tmp_path: Path) -> None:
    with pytest.raises(KeyError), Run.open(tmp_path / "run", config()):
        raise KeyError("digest")
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["event"] == "failed"
    assert textwrap.dedent('raise KeyError("digest")') in "".join(last["traceback"])


def test_a_tracker_that_is_not_installed_stops_a_run_before_its_first_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    words = ["--config=configs/frozen_pretraining.py:tiny", "--config.machine.tracker=wandb"]
    assert command.main(["run", *words, f"--workdir={tmp_path / 'run'}", "--dry-run"]) == 2
    assert command.main(["run", *words, f"--workdir={tmp_path / 'run'}"]) == 2
    assert capsys.readouterr().err.count("pip install wandb, or choose 'none'") == 2
    assert not (tmp_path / "run" / "scores").exists()
