"""Several processes, as on a pod: 2 x 4 devices give what 1 x 8 give, after a kill too, and who is missing is named.

Both sides run the same program on the mesh data 2 x fsdp 2 x tensor 2; only the collectives between the devices are
others, so the bounds are those of rounding.
"""

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from lingregions import regions

CONFIG = Path(__file__).parent.parent / "configs" / "core_removal.py"

# What a user's run does, and a short training on top, with a region held.
SCRIPT = """
import sys, traceback

import jax
import numpy as np
from jax.experimental import multihost_utils

from lingregions import freeze, main, regions, settings, train
from lingregions import mesh as meshes
from lingregions import tree as trees
from lingregions.models import roles
from lingregions.experiments import context
from lingregions.run import Run, cluster, failure

words = sys.argv[1:]
code = main.main(["run", *words])
if code:
    sys.exit(code)
asked = settings.parse(words)
cluster.exchange("the training", timeout=120)  # process 0 may still write its report, on a busy machine


def fit(run):
    given = context.prepare(asked.config, run)
    model = given.model
    core = regions.load(asked.workdir / "regions" / "top-1pct.safetensors", model.shapes)
    constraint = freeze.hard(model.params, roles.restrict(core.masks, "decoder_without_norms"))
    recipe = train.Recipe(samples=24, batch=8, warmup=1, rate=1e-3)
    micro = meshes.rows(model.mesh)
    trainer = train.Trainer(model.config, model.compute, recipe, [constraint], micro=micro, mesh=model.mesh)
    state = train.fit(run, "held", trainer, model.params, train.Order(given.corpus("ar", "score"), 0))
    found = trees.flatten(multihost_utils.process_allgather(state.params, tiled=True))
    if jax.process_index() == 0:
        np.savez(asked.workdir / "trained.npz", **found)


try:
    with Run.open(asked.workdir / "training", asked.config) as run:
        fit(run)
except Exception:
    traceback.print_exc()
    failure.abandon(1)
    raise
"""


def environment(devices: int, process: int | None = None, port: int = 0) -> dict[str, str]:
    variables = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}",
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
    }
    if process is not None:
        variables |= {
            "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
            "JAX_NUM_PROCESSES": "2",
            "JAX_PROCESS_ID": str(process),
        }
    return variables


def launch(script: str, words: list[str], variables: dict[str, str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", script, *words]
    return subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        number: int = probe.getsockname()[1]
    return number


def job(folder: Path, *words: str) -> list[str]:
    shape = ["--config.machine.mesh.data=2", "--config.machine.mesh.fsdp=2", "--config.machine.mesh.tensor=2"]
    texts = ["--config.score.languages=ar,zh", "--config.evaluate.languages=sw", "--config.score.samples=12"]
    quiet = ["--config.machine.progress=none", "--config.machine.pictures=False", "--config.select.monolingual=False"]
    return [f"--config={CONFIG}:tiny", f"--workdir={folder}", *shape, *texts, *quiet, *words]


def pair(folder: Path, *words: str) -> list[subprocess.Popen[str]]:
    address = port()
    words = ("--config.machine.distributed=True", *words)
    return [launch(SCRIPT, job(folder, *words), environment(4, process, address)) for process in range(2)]


def end(processes: list[subprocess.Popen[str]], timeout: float = 600) -> list[str]:
    try:
        return [process.communicate(timeout=timeout)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def same(text: str, other: str, what: str) -> None:
    """Numbers of one value but for rounding, or equal words."""
    try:
        numbers = float(text), float(other)
    except ValueError:
        assert text == other, what
    else:
        np.testing.assert_allclose(*numbers, rtol=1e-6, atol=1e-6, err_msg=what)


@pytest.mark.slow
def test_two_processes_one_of_them_killed_give_what_one_process_gives(tmp_path):
    two, one = tmp_path / "two", tmp_path / "one"
    alone = launch(SCRIPT, job(one), environment(8))  # meanwhile
    try:
        killed = pair(two, "--config.machine.save_seconds=0.0")
        while not any(path.name.isdecimal() for path in two.glob("resume/*/*")) and killed[0].poll() is None:
            time.sleep(0.02)  # poll for the state, not for a time
        killed[1].send_signal(signal.SIGKILL)
        said = end(killed)
        assert killed[0].returncode != 0, said[0]  # it ends by itself, and soon
        assert not (two / "report.html").exists()

        resumed = pair(two)
        said = end(resumed)
        assert [process.returncode for process in resumed] == [0, 0], "\n\n".join(said)
        assert "goes on from sample" in said[0]
        said = end([alone])
        assert alone.returncode == 0, said[0]
    finally:
        alone.kill()

    for name in ("results.csv", "effects.csv"):
        ours, theirs = rows(two / name), rows(one / name)
        assert len(ours) == len(theirs) > 0
        for row, other in zip(ours, theirs, strict=True):
            assert list(row) == list(other)
            for key in set(row) - {"checksum"}:  # of digits that rounding may change
                same(row[key], other[key], f"{name}: {key} of {row}")
    paths = sorted((one / "regions").glob("*.safetensors"))
    assert paths
    for path in paths:
        mine, other = regions.load(two / "regions" / path.name), regions.load(path)
        assert regions.equals(mine, other), path.stem
        assert mine.provenance.model == other.provenance.model
    tables = sorted(path.name for path in (one / "tables").iterdir())
    assert sorted(path.name for path in (two / "tables").iterdir()) == tables
    assert (two / "report.html").exists()
    with np.load(two / "trained.npz") as ours, np.load(one / "trained.npz") as theirs:
        assert sorted(ours) == sorted(theirs)
        for path in ours:
            np.testing.assert_allclose(ours[path], theirs[path], rtol=1e-4, atol=1e-6, err_msg=path)
    losses = [
        [line["loss"] for line in map(json.loads, path.read_text().splitlines()) if "loss" in line]
        for path in (two / "training" / "metrics.jsonl", one / "training" / "metrics.jsonl")
    ]
    assert len(losses[0]) == 3
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-6)


# One of the two is killed, stopped or slow on the way into a stage: FAULT says where, how and which.
FAULTY = """
import os, signal, time

from lingregions import regions, train
from lingregions.run import Run, failure

failure._GRACE = 0.5
STAGES = {
    "scoring": (Run, "save"),
    "selection": (regions, "save"),
    "evaluation": (Run, "add"),
    "training": (train.Trainer, "step"),
}
stage, how, who = os.environ["FAULT"].split()
place, name = STAGES[stage]
whole = getattr(place, name)


def faulty(*words, **others):
    if who == os.environ["JAX_PROCESS_ID"]:
        setattr(place, name, whole)
        print("fault", flush=True)
        if how == "slow":
            time.sleep(14)  # longer than one may be silent
        else:
            os.kill(os.getpid(), getattr(signal, how))
    return whole(*words, **others)


setattr(place, name, faulty)
"""


@pytest.mark.slow
def test_a_process_that_is_killed_or_stopped_is_named_in_every_stage_and_the_same_command_goes_on(tmp_path):
    folder, host = tmp_path / "run", socket.gethostname()
    words = [f"--config={CONFIG}:tiny", f"--workdir={folder}", "--config.machine.distributed=True"]
    words += ["--config.machine.mesh.data=2", "--config.machine.save_seconds=0.0"]
    words += ["--config.score.languages=ar", "--config.evaluate.languages=sw", "--config.score.samples=4"]
    words += ["--config.evaluate.samples=2", "--config.select.monolingual=False", "--config.select.selectors=top"]
    words += ["--config.machine.progress=none", "--config.machine.pictures=False"]
    killed, stopped = "ended without a word: was it killed?", "has said nothing for 12 s: stopped, or cut off?"
    for fault, message in (
        ("scoring SIGSTOP 1", stopped),
        ("selection SIGKILL 0", killed),
        ("evaluation SIGSTOP 0", stopped),
        ("training SIGKILL 1", killed),
        ("training slow 1", ""),
    ):
        variables = [environment(1, process, number) | {"FAULT": fault} for number in [port()] for process in range(2)]
        wait = f"--config.machine.wait_seconds={60.0 if message == killed else 12.0}"  # of silence, before it is told
        both = [launch(FAULTY + SCRIPT, [*words, wait], each) for each in variables]
        bad = int(fault[-1])
        if message:
            left = both[1 - bad]
            try:
                said = left.communicate(timeout=120)[0]
            finally:
                both[bad].kill()
                lost = both[bad].communicate()[0]
            ours = f"process {bad} ({host}) {message} The same command goes on" in said and left.returncode == 1
            # Where process 0 is killed, JAX may be faster, and aborts with words of its own for it.
            jax_ended = fault.endswith("KILL 0") and "leader task" in said and left.returncode == -signal.SIGABRT
            assert ours or jax_ended, f"{fault}: {left.returncode}: {said}\n\nof the other: {lost}"
            assert "fault" in lost, fault
        else:
            said = "\n\n".join(end(both, 120))
            assert [each.returncode for each in both] == [0, 0], said
            assert "fault" in said
    assert (folder / "report.html").exists()
    assert (folder / "trained.npz").exists()


MEETING = """
import os, sys, time

from lingregions.run import Run, RunError, cluster, failure, meeting

cluster.PATIENCE, failure._GRACE = 0.2, 0.2
meeting.connect(os.environ, 60)
me, folder = int(os.environ["JAX_PROCESS_ID"]), sys.argv[1]


def refused(part, action):
    try:
        action()
    except (RunError, ValueError) as error:
        assert part in str(error), f"{part!r} is not in {error}"
    else:
        raise AssertionError(part)


def load():
    with cluster.ready("the loading of the model", 60):
        if me == 1:
            raise ValueError("no such file: weights")


def late():
    if me == 0:
        cluster.exchange("the start of scoring", timeout=0.5)
    else:
        time.sleep(1)
        cluster.exchange("the start of scoring", timeout=60)
        raise RunError("none")


assert [value for _, value in cluster.exchange("numbers", str(me))] == ["0", "1"]
refused(["failed on 1 of 2 processes; process 1 (", "no such file: weights"][me], load)
refused(["process 1 of 2 did not come to 'the start of scoring' within 0 s; here are 0 (", "none"][me], late)
refused("they do not run the same program", lambda: cluster.exchange(["this", "that"][me], timeout=60))
refused("process 1 (", lambda: Run.open(folder, {"seed": me}))
refused("config than process 0", lambda: Run.open(folder, {"seed": me}))
refused("seed: 0 -> 1", lambda: Run.open(folder, {"seed": me}))
refused("process 1 (", lambda: Run.open(f"{folder}-{me}", {"machine": {"wait_seconds": 1.0}}))
with Run.open(folder, {"seed": 0}):
    pass
if me == 1:
    failure.abandon(3, "the disk of this host is full")
print("waiting", flush=True)
cluster.exchange("what never comes", timeout=60)
"""


@pytest.mark.slow
def test_processes_fail_together_and_say_who_and_why(tmp_path):
    address = port()
    both = [launch(MEETING, [str(tmp_path / "run")], environment(1, process, address)) for process in range(2)]
    said = end(both, 120)
    assert [process.returncode for process in both] == [1, 3], "\n\n".join(said)
    assert "waiting for process 1 of 2 at 'the start of scoring'" in said[0]
    assert f"process 1 ({socket.gethostname()}) failed: the disk of this host is full" in said[0]
