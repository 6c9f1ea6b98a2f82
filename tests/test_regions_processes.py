"""Two processes over one mesh find, combine, match, write and read the regions that one process does, byte for byte."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys

import jax

process, processes, port, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 4 // processes)
if processes > 1:
    jax.distributed.initialize(f"localhost:{port}", processes, process)

import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from lingregions import mesh as meshes
from lingregions import regions
from lingregions.regions import matched

mesh = meshes.build(fsdp=2, tensor=2)
draw = np.random.default_rng(0)
host = {"layers": {"n": draw.random((3, 8), np.float32), "w": draw.random((3, 16, 8), np.float32)}}
specs = {"layers": {"n": PartitionSpec(None, "fsdp"), "w": PartitionSpec(None, "tensor", "fsdp")}}
scores = jax.tree.map(
    lambda leaf, spec: jax.make_array_from_callback(leaf.shape, NamedSharding(mesh, spec), lambda i: leaf[i]),
    host,
    specs,
)
found = {
    "top": regions.select(scores, 0.1),
    "host": regions.select(scores, 0.1, method="host"),
    "bottom": regions.select(scores, 0.1, "bottom", within="scope"),
    "random": regions.select(scores, 0.2, "random", seed=1),
}
found["matched"] = matched.match(found["top"], scores, 5)
found["union"] = regions.union(*found.values())
for name, each in found.items():
    regions.save(each, f"{folder}/{name}.safetensors")
    assert regions.equals(regions.load(f"{folder}/{name}.safetensors", like=scores), each)
if processes > 1:
    jax.distributed.shutdown()
"""


@pytest.mark.slow
def test_two_processes_write_the_files_of_one(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        words = [str(processes), str(port), str(folder)]
        children = [
            subprocess.Popen([sys.executable, "-c", SCRIPT, str(each), *words], stderr=subprocess.PIPE, text=True)
            for each in range(processes)
        ]
        try:
            for child in children:
                _, said = child.communicate(timeout=180)
                assert child.returncode == 0, said[-2000:]
        finally:
            for child in children:
                child.kill()
    names = sorted(each.name for each in (tmp_path / "1").iterdir())
    assert len([name for name in names if name.endswith(".safetensors")]) == 6  # and a card beside each
    assert sorted(each.name for each in (tmp_path / "2").iterdir()) == names
    for name in names:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes(), name
