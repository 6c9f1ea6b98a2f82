"""Several processes, as on a pod: the whole main job on 2 x 2 devices gives what one process gives."""

import csv
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from lingregions import regions

CONFIG = Path(__file__).parent.parent / "configs" / "core_removal.py"


def launch(folder: Path, devices: int, *words: str, **variables: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "lingregions.main", "run", f"--config={CONFIG}:tiny", f"--workdir={folder}"]
    command += ["--config.score.languages=ar,zh", "--config.evaluate.languages=sw", "--config.machine.progress=none"]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    }
    return subprocess.Popen(
        [*command, "--config.machine.pictures=False", *words],
        env=environment | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
def test_two_processes_give_what_one_gives(tmp_path):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    shape = ["--config.machine.mesh.fsdp=2", "--config.machine.mesh.data=2"]
    running = [
        launch(
            tmp_path / "two",
            2,
            *shape,
            "--config.machine.distributed=True",
            JAX_COORDINATOR_ADDRESS=address,
            JAX_NUM_PROCESSES="2",
            JAX_PROCESS_ID=str(process),
        )
        for process in range(2)
    ]
    for process in running:
        out, _ = process.communicate(timeout=240)
        assert process.returncode == 0, out
    one = launch(tmp_path / "one", 1)
    out, _ = one.communicate(timeout=240)
    assert one.returncode == 0, out

    ours, theirs = (
        list(csv.DictReader((tmp_path / name / "results.csv").read_text().splitlines())) for name in ("two", "one")
    )
    assert len(ours) == len(theirs) == 4
    for row, other in zip(ours, theirs, strict=True):
        assert (row["arm"], row["tokens"], row["bytes"]) == (other["arm"], other["tokens"], other["bytes"])
        np.testing.assert_allclose(float(row["nll_nats"]), float(other["nll_nats"]), rtol=1e-6)
    for path in (tmp_path / "one" / "regions").glob("*.safetensors"):
        mine = regions.load(tmp_path / "two" / "regions" / path.name)
        assert regions.equals(mine, regions.load(path)), path.stem
        assert mine.provenance.model == regions.load(path).provenance.model
    assert (tmp_path / "two" / "report.html").exists()
