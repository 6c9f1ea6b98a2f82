"""Steps as the real TPU compiler sees them, with no TPU: they compile, fit, and gather no score and no mask.

Needs libtpu (`pip install 'lingregions[tpu]'`, 0.7 GB), which only this test does; `plan.compiled` gives it a process
of its own, because libtpu takes over the process that loads it.
"""

import dataclasses
import math

import pytest

from lingregions import models
from lingregions import tree as trees
from lingregions.models import roles
from lingregions.plan import compiled, cost, hardware
from lingregions.plan.compiled import Step

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not compiled.installed(), reason="libtpu is not installed"),
]
# Wide enough for the compiler to treat it as it treats the big ones, few enough layers to compile in seconds.
MODEL = models.DecoderConfig(
    vocab=32_000, embed=1024, mlp=2816, layers=4, heads=8, kv_heads=4, head_dim=128, context=4096
)
COMPUTE = models.Compute(dtype="bfloat16", remat="full")


@pytest.mark.parametrize("job", ["score", "select"])
def test_the_step_compiles_for_a_slice_and_gathers_no_score(job):
    step = Step(job, MODEL, COMPUTE, (1, 8, 2), 8, 512, 8, "v5e-16")
    found = compiled.compile(step)
    assert found.fits
    assert found.gathered(samples=8) == []
    # Weights are gathered in the compute dtype; float32 arrays - sums, gradients, scores - and masks never. One array
    # beside them: the ids of the batch, since each device looks its part of the embedding up for all samples.
    types = {shape for shape in found.gathers if not shape.startswith("bf16[")}
    if job == "select":
        assert not found.gathers
    else:
        assert [(found.gathers[shape], shape.partition("[")[0], _size(shape)) for shape in types] == [
            (1, "s32", 8 * 512)
        ]
        # The sums of the layers, float32 over 16 devices, are updated in place.
        assert found.reused >= 4 * trees.count(roles.restrict(models.shapes(MODEL), "decoder")) // 16
    # All that is given lies on its shards; where buffers begin adds a little.
    assert cost.memory(step).arguments <= found.arguments <= 1.01 * cost.memory(step).arguments
    assert found.peak < cost.memory(step).arguments + 1.5 * cost.memory(step).temporaries


def test_a_training_step_keeps_no_whole_gradient():
    step = Step("train", MODEL, COMPUTE, (1, 16, 1), 16, 512, 16, "v5e-16")
    found = compiled.compile(step)
    assert found.fits
    # The gradient of the head alone would be this large in float32 before it is on its shards.
    assert found.peak - found.arguments < 4 * MODEL.vocab * MODEL.embed
    assert found.arguments <= 1.01 * cost.memory(step).arguments
    # Parameters and moments of the layers are updated in place.
    assert found.reused >= 12 * trees.count(roles.restrict(models.shapes(MODEL), "decoder")) // 16


def _size(shape: str) -> int:
    return math.prod(map(int, shape.partition("[")[2].rstrip("]").split(",")))


def test_what_is_too_big_is_refused_with_what_it_needs():
    wide = dataclasses.replace(MODEL, embed=8192, mlp=32_768, layers=16)
    step = Step("evaluate", wide, COMPUTE, (1, 1, 1), 1, 128, 1, "v5e-1")
    found = compiled.compile(step, quick=True)
    assert not found.fits
    assert found.memory == hardware.CHIPS["v5e"].memory
    assert found.needed > cost.memory(step).arguments
