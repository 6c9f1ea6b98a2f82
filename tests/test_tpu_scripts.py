"""The scripts for Cloud TPU against a `gcloud` that records what it is asked and keeps the state of one slice."""

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ROOT / "tpu_scripts"
VERBS = sorted(path.stem for path in SCRIPTS.glob("*.sh") if path.stem != "common")
CONFIG = f"--config={ROOT / 'configs' / 'core_removal.py'}:tiny"
SMALL = [
    "--config.score.languages=ar",
    "--config.evaluate.languages=sw",
    "--config.select.monolingual=False",
    "--config.machine.progress=none",
    "--config.machine.pictures=False",
]

# Files beside it: `request` and `slice` hold states, the next one first; `answers` what becomes of each run.
GCLOUD = """#!{python}
import json, os, pathlib, shutil, signal, subprocess, sys, time

here, words = pathlib.Path(os.environ["FAKE"]), sys.argv[1:]
with open(here / "calls", "a") as file:
    file.write(json.dumps(words) + "\\n")
kind, verb, rest = words[2], words[3], words[4:]
option = dict(word[2:].partition("=")[::2] for word in rest if word.startswith("--"))


def pop(path):
    lines = path.read_text().split()
    path.write_text("\\n".join(lines[1:] or lines))
    return lines[0]


if verb == "describe":
    path = here / {{"queued-resources": "request", "tpu-vm": "slice"}}[kind]
    if not path.exists():
        sys.exit("ERROR: (gcloud) NOT_FOUND: there is none")
    print(pop(path))
elif verb == "create":
    if kind == "queued-resources":
        (here / "request").write_text("WAITING_FOR_RESOURCES PROVISIONING ACTIVE")
    (here / "slice").write_text("CREATING READY")
elif verb == "delete":
    for name in ("request", "slice"):
        (here / name).unlink(missing_ok=True)
elif verb == "scp":
    source, target = (word.removeprefix(rest[0].partition(":")[0] + ":") for word in rest[:2])
    shutil.copy(source, here / "copied" if option["worker"] == "all" else target)
elif "lingregions run" in option["command"]:
    answer = pop(here / "answers")
    if answer.isdecimal():
        sys.exit(int(answer))
    run = subprocess.Popen(["bash", "-c", option["command"]], cwd=here / "home")
    if answer == "preempted":
        while run.poll() is None and '"model"' not in (metrics.read_text() if (
            metrics := pathlib.Path(os.environ["WORKDIR"]) / "metrics.jsonl").exists() else ""):
            time.sleep(0.05)
        run.send_signal(signal.SIGKILL)
        run.wait()
        (here / "slice").write_text("PREEMPTED")
        sys.exit(255)
    sys.exit(run.wait())
elif option["worker"] == "0":
    sys.exit(subprocess.run(["bash", "-c", option["command"]]).returncode)
"""


class Cloud:
    """A Google Cloud with one slice in it."""

    def __init__(self, folder: Path):
        self.folder = folder
        for name in ("bin", "home"):
            (folder / name).mkdir()
        gcloud = folder / "bin" / "gcloud"
        gcloud.write_text(GCLOUD.format(python=sys.executable))
        gcloud.chmod(0o755)
        self.variables = {
            "PATH": f"{gcloud.parent}:{os.environ['PATH']}",
            "HOME": str(folder),
            "FAKE": str(folder),
            "PROJECT": "lab",
            "ZONE": "us-west4-a",
            "TPU": "regions",
            "TYPE": "v5litepod-16",
            "MOUNT": str(folder),
            "WORKDIR": str(folder / "run"),
            "POLL": "0",
        }

    def put(self, **states: str) -> None:
        for name, text in states.items():
            (self.folder / name).write_text(text)

    def __call__(self, verb: str, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        command = ["bash", str(SCRIPTS / f"{verb}.sh"), *words]
        environment = {name: value for name, value in (self.variables | variables).items() if value}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)

    @property
    def calls(self) -> list[list[str]]:
        path = self.folder / "calls"
        return [json.loads(line)[2:] for line in path.read_text().splitlines()] if path.exists() else []

    def did(self) -> list[str]:
        """What changed something, in order."""
        return [" ".join(call[:2]) for call in self.calls if call[1] != "describe"]


@pytest.fixture
def cloud(tmp_path: Path) -> Cloud:
    return Cloud(tmp_path)


@pytest.mark.parametrize("verb", VERBS)
def test_every_script_says_how_it_is_used(cloud, verb):
    said = cloud(verb, "--help")
    assert said.returncode == 0
    assert f"tpu_scripts/{verb}.sh" in said.stdout
    assert "Settings: common.sh." in said.stdout
    wrong = cloud(verb, "--no-such-thing")
    assert wrong.returncode == 2
    assert "--no-such-thing" in wrong.stderr
    assert cloud.calls == []


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("name", ["PROJECT", "ZONE", "TPU"])
def test_a_variable_that_is_not_set_is_named(cloud, verb, name):
    said = cloud(verb, **{name: ""})
    assert said.returncode == 2
    assert f"{verb}.sh: ${name} is not set" in said.stderr
    assert cloud.calls == []


@pytest.mark.parametrize(
    ("verb", "words", "variables", "message"),
    [
        ("create", [], {"TYPE": ""}, "$TYPE is not set"),
        ("create", [], {"TYPE": "v9-8"}, "set $RUNTIME"),
        ("create", [], {"TPU": "My_TPU"}, "$TPU is 'My_TPU'"),
        ("setup", [], {"NFS": "a:/b", "BUCKET": "c"}, "both set"),
        ("setup", [], {"NFS": "a"}, "host:/share"),
        ("run", ["--", CONFIG], {"WORKDIR": ""}, "$WORKDIR is not set"),
        ("run", ["--", CONFIG], {"WORKDIR": "gs://bucket/run"}, "mount a bucket"),
        ("run", ["--", CONFIG, "--workdir=here"], {}, "not as --workdir"),
        ("run", ["--keep", "--", CONFIG], {}, "outlives the slice"),
        ("run", [], {}, "nothing to run"),
        ("fetch", [], {}, "where to?"),
        ("fetch", ["here"], {"WORKDIR": ""}, "$WORKDIR is not set"),
    ],
)
def test_mistakes_are_answered_before_anything_is_done(cloud, verb, words, variables, message):
    said = cloud(verb, *words, **variables)
    assert said.returncode == 2
    assert message in said.stderr
    assert cloud.calls == []


@pytest.mark.parametrize(
    ("verb", "words", "variables", "commands"),
    [
        (
            "create",
            ["--spot"],
            {},
            [
                "gcloud compute tpus queued-resources create regions --project=lab --zone=us-west4-a "
                "--accelerator-type=v5litepod-16 --spot --node-id=regions --runtime-version=v2-alpha-tpuv5-lite"
            ],
        ),
        (
            "create",
            ["--plain"],
            {"TYPE": "v4-32"},
            [
                "gcloud compute tpus tpu-vm create regions --project=lab --zone=us-west4-a --accelerator-type=v4-32 "
                "--version=tpu-ubuntu2204-base"
            ],
        ),
        (
            "run",
            ["--", "--config=c.py:tiny", "--config.a=it's b"],
            {"WORKDIR": "/mnt/x"},
            [
                "gcloud compute tpus tpu-vm ssh regions --project=lab --zone=us-west4-a --worker=all "
                "'--command=cd lingregions && exec .venv/bin/lingregions run --config=c.py:tiny "
                r"'\''--config.a=it'\''\'\'''\''s b'\'' --workdir=/mnt/x --config.machine.distributed=True'"
            ],
        ),
        (
            "delete",
            [],
            {},
            [
                "gcloud compute tpus queued-resources delete regions --project=lab --zone=us-west4-a --quiet --force",
            ],
        ),
        (
            "stop",
            [],
            {},
            [
                "gcloud compute tpus tpu-vm ssh regions --project=lab --zone=us-west4-a --worker=all "
                r"'--command=pkill -TERM -f '\''lingregions [r]un'\'' || true'"
            ],
        ),
    ],
)
def test_a_dry_run_prints_the_commands_and_runs_none(cloud, verb, words, variables, commands):
    for said in (cloud(verb, "--dry-run", *words, **variables), cloud(verb, *words, **variables, DRY_RUN="1")):
        assert said.returncode == 0, said.stderr
        assert said.stdout.splitlines() == commands
    assert cloud.calls == []


def test_every_dry_run_runs_nothing(cloud):
    cloud.variables["NFS"] = "10.0.0.2:/share"
    for verb in VERBS:
        words = {"run": ["--", CONFIG], "fetch": ["here"]}.get(verb, [])
        said = cloud(verb, "--dry-run", *words)
        assert said.returncode == 0, said.stderr
        assert "gcloud compute tpus" in said.stdout
    assert cloud.calls == []


def test_a_slice_is_asked_for_once_and_deleted_once(cloud):
    assert cloud("status").stdout == "ABSENT\n"
    said = cloud("create", "--wait")
    assert said.returncode == 0, said.stderr
    assert "regions: WAITING" in said.stderr
    assert cloud("status", WORKDIR="").stdout == "READY\n"
    assert "there already: READY" in cloud("create").stderr
    assert cloud("delete").returncode == 0
    assert "there is no regions" in cloud("delete").stderr
    assert cloud.did() == ["queued-resources create", "queued-resources delete"]


def test_a_plain_slice_is_found_and_deleted_as_one(cloud):
    assert cloud("create", "--plain", "--wait").returncode == 0
    assert cloud("delete").returncode == 0
    assert cloud.did() == ["tpu-vm create", "tpu-vm delete"]


def test_what_was_taken_away_is_not_used(cloud):
    cloud.put(request="ACTIVE", slice="PREEMPTED")  # the request does not know it yet
    assert cloud("status").stdout == "GONE\n"
    assert "regions is GONE" in cloud("run", "--", CONFIG).stderr
    assert "delete.sh clears its name" in cloud("create").stderr
    assert cloud.did() == []


def test_setup_copies_the_commit_and_mounts_one_disk(cloud):
    cloud.put(request="ACTIVE", slice="READY")
    said = cloud("setup", NFS="10.0.0.2:/share")
    assert said.returncode == 0, said.stderr
    with tarfile.open(cloud.folder / "copied") as archive:
        assert {"pyproject.toml", "requirements.lock", "lingregions/main.py"} <= set(archive.getnames())
    command = cloud.calls[-1][-1]
    assert f"sudo mount -t nfs 10.0.0.2:/share {cloud.folder}" in command
    assert "-e '.[tpu,report]'" in command
    assert cloud("setup", BUCKET="gs://ours").returncode == 0
    assert f"--rename-dir-limit=100000 ours {cloud.folder}" in cloud.calls[-1][-1]
    for call in (cloud.calls[-1], cloud.calls[-2]):
        assert "--worker=all" in call
    # What is sent is a program that a shell can read.
    subprocess.run(["bash", "-n", "-c", command.removeprefix("--command=")], check=True)


def test_fetch_brings_the_results_without_what_is_large(cloud, tmp_path):
    for name in ("report.html", "regions/top.safetensors", "scores/ar/1/x", "resume/ar/1/x"):
        path = cloud.folder / "run" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    assert cloud("fetch", str(tmp_path / "few")).returncode == 0
    assert {path.name for path in (tmp_path / "few").iterdir()} == {"report.html", "regions"}
    assert cloud("fetch", "--all", str(tmp_path / "all")).returncode == 0
    assert (tmp_path / "all" / "scores" / "ar" / "1" / "x").read_text() == "scores/ar/1/x"


def test_a_run_that_cannot_start_or_keeps_failing_is_given_up(cloud):
    cloud.put(request="ACTIVE", slice="READY", answers="2")
    said = cloud("run", "--keep", "--", CONFIG, NFS="a:/b")
    assert said.returncode == 2
    assert "cannot start" in said.stderr
    cloud.put(answers="1 134 1")
    said = cloud("run", "--keep", "--", CONFIG, NFS="a:/b")
    assert said.returncode == 2
    assert "failed 3 times on a slice that is there; its last code is 1" in said.stderr
    cloud.put(answers="7")
    assert cloud("run", "--", CONFIG).returncode == 7


@pytest.mark.slow
def test_a_spot_slice_that_was_taken_away_comes_back_and_resumes(cloud):
    """The real run dies by SIGKILL with its slice; the second one, on a new slice, goes on in the same folder."""
    program = cloud.folder / "home" / "lingregions" / ".venv" / "bin" / "lingregions"
    program.parent.mkdir(parents=True)
    variables = {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        "JAX_COORDINATOR_ADDRESS": "localhost:1",
        "JAX_NUM_PROCESSES": "1",
        "JAX_PROCESS_ID": "0",
    }
    lines = [f"export {name}={value}" for name, value in variables.items()]
    program.write_text("\n".join(["#!/bin/bash", *lines, f'exec {sys.executable} -m lingregions.main "$@"']))
    program.chmod(0o755)
    cloud.put(request="ACTIVE", slice="READY", answers="preempted run")
    said = cloud("run", "--keep", "--spot", "--", CONFIG, *SMALL, NFS="10.0.0.2:/share")
    assert said.returncode == 0, said.stderr
    assert "taken away: asking for it again" in said.stderr
    assert cloud.did() == [
        "tpu-vm ssh",
        "queued-resources delete",
        "queued-resources create",
        "tpu-vm scp",
        "tpu-vm ssh",
        "tpu-vm ssh",
    ]
    created = next(call for call in cloud.calls if call[1] == "create")
    assert "--spot" in created
    opened = [json.loads(line) for line in (cloud.folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["resumed"] for line in opened if line.get("event") == "opened"] == [False, True]
    assert (cloud.folder / "run" / "report.html").exists()
