"""The laboratory: how scoring meets the mesh."""

from pathlib import Path

import numpy as np
import pytest

from lingregions import settings
from lingregions.experiments import laboratory as lab
from lingregions.run import Run

pytestmark = pytest.mark.usefixtures("one_device")

CONFIG = Path(__file__).parent.parent / "configs" / "core_removal.py"


def test_scoring_fills_the_mesh_where_groups_are_only_summed(tmp_path):
    """On eight parts of the batch a step takes eight samples, although a group of the definition is one."""
    words = ["--config.score.samples=12", "--config.score.languages=ar", "--config.score.snapshots=10,"]
    words += ["--config.machine.progress=none"]
    taken: list[list[int]] = []
    sums = []
    for size in (1, 8):
        chosen = settings.load(f"{CONFIG}:tiny", [*words, f"--config.machine.score_batch={size}"])
        with Run.open(tmp_path / str(size), chosen) as run:
            laboratory = lab.prepare(chosen, run)
            add, steps = laboratory.scorer.add, []

            def counted(params, held, group, put, add=add, steps=steps):
                steps.append(len(group.tokens))
                return add(params, held, group, put)

            laboratory.scorer.add = counted
            snapshots = list(lab.gather(laboratory, "ar", 0, 12, (10,)))
            assert [each.position for each in snapshots] == [10, 12]
            taken.append(steps)
            sums.append(snapshots[-1])
    assert taken == [[1] * 12, [8, 2, 2]]
    assert sums[0].tokens == sums[1].tokens
    np.testing.assert_allclose(sums[0].nll, sums[1].nll, rtol=1e-6)
