"""Parameters held in bfloat16: half the bytes, and every figure of a model whose files are bfloat16 is the same."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lingregions as lr
from lingregions import door, generate, models, settings, train
from lingregions import tree as trees
from lingregions.experiments import scalars
from lingregions.models import Compute, convert
from lingregions.models.tokenizer import Tokenizer
from lingregions.regions import file

pytestmark = pytest.mark.usefixtures("one_device")
SMALL = {"embed": 16, "mlp": 24, "layers": 6, "heads": 2, "kv_heads": 1, "head_dim": 8, "vocab": 264, "std": 0.3}
CONFIGS = {
    "llama": models.PRESETS["tiny"],
    "gemma": dataclasses.replace(models.PRESETS["gemma3-270m"], **SMALL, local=(True,) * 5 + (False,)),
}


@pytest.fixture(scope="module", params=list(CONFIGS))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[lr.Model, lr.Model]:
    """A model of bfloat16 files, held in float32 and in bfloat16."""
    config, folder = CONFIGS[request.param], tmp_path_factory.mktemp("models") / request.param
    convert.export(models.initialize(config, jax.random.key(0)), config, folder, Tokenizer.bytes(), "bfloat16")
    wide, narrow = (lr.load(str(folder), compute=Compute(parameters=dtype)) for dtype in ("float32", "bfloat16"))
    return wide, narrow


def test_half_the_bytes_of_the_same_model(pair: tuple[lr.Model, lr.Model]) -> None:
    wide, narrow = pair
    assert {leaf.dtype for leaf in jax.tree.leaves(narrow.params)} == {jnp.dtype(jnp.bfloat16)}
    size = [sum(leaf.nbytes for leaf in jax.tree.leaves(model.params)) for model in pair]
    assert size[0] == 2 * size[1]
    assert wide.fingerprint == narrow.fingerprint
    assert "held in bfloat16" in repr(narrow)
    assert "held" not in repr(wide)


def test_a_region_says_what_removal_sets_its_entries_to(pair: tuple[lr.Model, lr.Model], tmp_path: Path) -> None:
    model, path = pair[0], tmp_path / "core.safetensors"
    core = model.magnitudes().select("1%")
    core.save(path)
    assert lr.Region.load(path).provenance == core.provenance
    gemma = model.config.norm_offset == 1
    for name, matrix in file.header(path).matrices.items():
        assert matrix.removal == (-1 if gemma and "norm" in name else 0), name
    assert len(core.provenance.removal) == (6 if gemma else 0)
    assert (core | core).provenance.removal == core.provenance.removal


@pytest.mark.users
@pytest.mark.parametrize("rule", ["taylor", "fisher", "magnitude", "wanda"])
def test_scores_are_the_same_bits(pair: tuple[lr.Model, lr.Model], rule: str) -> None:
    one, two = (
        trees.flatten(model.score(model.corpus("udhr", "sw", length=48), samples=2, definition=rule).values)
        for model in pair
    )
    for path, values in one.items():
        assert two[path].dtype == jnp.float32
        assert np.any(values)
        np.testing.assert_array_equal(two[path], values, path)


def test_interventions_do_the_same_and_every_bit_is_back(pair: tuple[lr.Model, lr.Model]) -> None:
    frames = []
    for model in pair:
        before = model.fingerprint, [np.asarray(leaf).copy() for leaf in jax.tree.leaves(model.params)]
        core = model.score(model.corpus("udhr", "es", length=48), samples=1).select("2%")
        matched = core.matched(seed=0)
        changes = [core.zero(), core.scale(2.0), core.shuffle(seed=1), matched.zero()]
        frames.append(model.evaluate([model.corpus("udhr", "sw", length=48)], changes, samples=1))
        assert trees.fingerprint(model.params) == trees.fingerprint(
            jax.tree.unflatten(jax.tree.structure(model.params), before[1])
        )
    assert frames[0]["effect_nats"].abs().min() > 0
    one, two = (frame.set_index(["intervention", "language"])["effect_nats"] for frame in frames)
    removals = [name for name in one.index if not {"scale", "shuffle"} & set(name[0].split())]
    assert len(removals) == 4
    exact = one.index if not models.offsets(pair[0].config) else removals
    np.testing.assert_array_equal(one[exact], two[exact])
    # A gain 1 + w that is doubled or moved is rounded when w is stored.
    np.testing.assert_allclose(one, two, rtol=0.05, atol=5e-3)


def test_a_scalar_and_a_continuation(pair: tuple[lr.Model, lr.Model]) -> None:
    written = []
    for model in pair:
        chosen = [scalars.Scalar("model.layers.1.mlp.down_proj.weight", (3, 5))]
        before = scalars.gather(model.params, chosen)
        with scalars.replaced(model.params, chosen, [0.5]):
            assert scalars.gather(model.params, chosen) == 0.5
            written.append(generate.greedy(model.config, model.compute, model.params, [[5, 6, 7]], 8, mesh=model.mesh))
        assert scalars.gather(model.params, chosen) == before
    np.testing.assert_array_equal(*written)


def test_training_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="held in bfloat16, in which most steps round to nothing"):
        train.Trainer(models.PRESETS["tiny"], Compute(parameters="bfloat16"), train.Recipe(1000, 4), [])
    config = Path(__file__).parent.parent / "configs" / "frozen_pretraining.py"
    asked = settings.load(f"{config}:tiny", ["--config.compute.parameters=bfloat16"])
    assert (
        "compute.parameters is 'bfloat16', in which most steps of a training"
        in door.problems(asked, tmp_path / "w")[1][0]
    )
    with pytest.raises(ValueError, match="compute.parameters is 'float16'"):
        Compute(parameters="float16")
