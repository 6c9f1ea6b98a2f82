"""How much memory loading a checkpoint takes beside the parameters: LLaMA-2-7B's shape, random, sharded, in bfloat16.

    python benchmarks/loading.py [--model llama2-7b] [--layers 7] [--devices 8] [--folder DIR]

Writes a checkpoint of `--layers` layers of the preset (0: all; 7B whole is 13.5 GB of files and 27 GB of float32
parameters) as several safetensors files, loads it in a new process onto the shards of `--devices` virtual CPU devices
(fsdp x tensor = devices / 2 x 2), and removes it. On a CPU the shards are this process's own memory, so what is
beside them is its peak resident memory less the bytes of the parameters; the interpreter and JAX are part of it. What
grows with the model is one device's part of the largest stacked leaf: with all 32 layers on 8 devices 0.7 GB, float32.

Prints one JSON line; exit code 1 when more than `--bound` GB (2) stand beside the parameters.
"""

import argparse
import dataclasses
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from lingregions import mesh as meshes
from lingregions import models
from lingregions import tree as trees
from lingregions.models import convert, safetensors

FILE = 1_000_000_000  # bytes of one file


def write(config: models.DecoderConfig, folder: Path) -> None:
    """Write random weights and a config.json; one matrix at a time."""
    draw = np.random.default_rng(0)
    shapes = {name: each.matrix for _, each in trees.walk(models.declare(config)) for name in each.names()}
    (folder / "config.json").write_text(json.dumps(models.dump(config)))

    def values(name: str) -> np.ndarray:
        return draw.standard_normal(shapes[name], np.float32) * np.float32(0.02)

    safetensors.save(folder, shapes, values, "bfloat16", FILE)


def load(folder: Path, devices: int) -> dict[str, float]:
    """Load the checkpoint, and return what it took."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)
    config = models.parse(json.loads((folder / "config.json").read_text()))
    tensor = 2 if devices % 2 == 0 else 1
    mesh = meshes.build(fsdp=devices // tensor, tensor=tensor)
    shardings = meshes.shardings(models.declare(config), mesh)
    jax.block_until_ready(jax.device_put(np.zeros(8, np.float32), meshes.replicated(mesh)))
    before, begin = peak(), time.perf_counter()
    params = convert.load(folder, config, shardings)
    seconds = time.perf_counter() - begin
    leaves = trees.flatten(params)
    held = sum(shard.data.nbytes for leaf in leaves.values() for shard in leaf.addressable_shards)
    part = max(leaf.addressable_shards[0].data.nbytes for leaf in leaves.values())
    return {
        "parameters": trees.count(params),
        "parameters_gb": held / 1e9,
        "largest_part_gb": part / 1e9,
        "before_gb": before / 1e9,
        "peak_gb": peak() / 1e9,
        "beside_the_parameters_gb": (peak() - held) / 1e9,
        "seconds": seconds,
    }


def peak() -> int:
    """Return the peak resident memory of this process in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="llama2-7b", choices=sorted(models.PRESETS))
    parser.add_argument("--layers", type=int, default=7)
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--folder", help="where the checkpoint is written for the while; a temporary folder")
    parser.add_argument("--bound", type=float, default=2.0)
    parser.add_argument("--load", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.load:
        print(json.dumps(load(Path(options.load), options.devices)))
        return 0
    config = models.PRESETS[options.model]
    config = dataclasses.replace(config, layers=options.layers or config.layers)
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        write(config, folder)
        size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        words = [sys.executable, __file__, "--load", str(folder), "--devices", str(options.devices)]
        variables = os.environ | {"JAX_PLATFORMS": "cpu"}
        done = subprocess.run(words, env=variables, stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(done.stdout)
        found |= {"files_gb": size / 1e9, "files": len(list(folder.glob("*.safetensors"))), "layers": config.layers}
    finally:
        shutil.rmtree(folder)
    print(json.dumps({key: round(value, 3) if isinstance(value, float) else value for key, value in found.items()}))
    return int(found["beside_the_parameters_gb"] > options.bound)


if __name__ == "__main__":
    sys.exit(main())
