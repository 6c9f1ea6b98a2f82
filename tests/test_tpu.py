"""The scoring step as the real TPU compiler sees it, with no TPU: it compiles, fits, and gathers no score.

Needs libtpu (`pip install libtpu`, 0.7 GB), which only this test does; it runs in a process of its own, because libtpu
takes over the process that loads it.
"""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

COMPILE = """
import json, re
import jax
import jax.numpy as jnp
from jax.experimental import topologies
from lingregions import mesh as meshes, models, scores
from lingregions.corpus.batch import Batch

devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:4x4").devices
mesh = meshes.build(fsdp=8, tensor=2, devices=devices)
config = models.LlamaConfig(
    vocab=32_000, embed=1024, mlp=2816, layers=4, heads=8, kv_heads=8, head_dim=128, context=4096
)
scorer = scores.Scorer(
    config, models.Compute(dtype="bfloat16", remat="full"), scores.Definition(), micro=8, mesh=mesh
)
params = models.shapes(config, meshes.shardings(models.declare(config), mesh))
batch = jax.ShapeDtypeStruct((8, 512), jnp.int32, sharding=meshes.batched(mesh))
weight = jax.ShapeDtypeStruct((), jnp.float32, sharding=meshes.replicated(mesh))
with meshes.use(mesh):
    compiled = scorer._step.lower(params, scorer.shapes, Batch(batch, batch, batch), weight).compile()
text = compiled.as_text()
print(json.dumps({
    "gathers": sorted(set(re.findall(r"= (\\w+)\\[[^ ]* all-gather", text))),
    "argument": compiled.memory_analysis().argument_size_in_bytes,
    "output": compiled.memory_analysis().output_size_in_bytes,
    "alias": compiled.memory_analysis().alias_size_in_bytes,
}))
"""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_the_scoring_step_compiles_for_a_slice_and_gathers_no_score():
    variables = {
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-16",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_LOG_DIR": "disabled",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", COMPILE], env=os.environ | variables, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    # Weights are gathered in the compute dtype; float32 arrays - sums, gradients, scores - never.
    assert found["gathers"] == ["bf16"]
    # The sums of the layers, float32 over 16 devices, are updated in place.
    sums = 4 * (4 * (4 * 1024 * 1024 + 3 * 2816 * 1024 + 2 * 1024)) // 16
    assert found["alias"] >= sums
