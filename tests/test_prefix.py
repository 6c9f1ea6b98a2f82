"""What lies before the first touched layer is computed once, and every loss is that of the whole pass."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest
import toy

import lingregions as lr
from lingregions import evaluate, models, perturb, prefix, rows
from lingregions import mesh as meshes
from lingregions import tree as trees
from lingregions.corpus.batch import Batch
from lingregions.intervention import Intervention
from lingregions.models import Compute, DecoderConfig, roles
from lingregions.regions import geometry

# Local and global attention by turns, norms around, a capped head: what layers may differ in, and what follows them.
CONFIG = DecoderConfig(
    vocab=40,
    embed=8,
    mlp=16,
    layers=8,
    heads=4,
    kv_heads=2,
    head_dim=4,
    context=64,
    std=0.4,
    norms="around",
    window=3,
    local=(True, False) * 4,
    logit_softcap=30.0,
)
B, T = 8, 12


def batches() -> list[Batch]:
    rng = np.random.default_rng(0)
    segments = np.sort(rng.integers(1, 3, (B, T)), axis=1).astype(np.int32)
    segments[:2, 9:] = 0
    return [Batch(rng.integers(0, 39, (B, T)).astype(np.int32), segments, np.ones((B, T), np.int32)) for _ in range(2)]


DOWN = "layers.mlp.down_proj"


def matrix(params: trees.Tree, layer: int) -> trees.Tree:
    """Masks of one matrix of a layer, on the shards of its array."""
    values = trees.flatten(params)[DOWN]
    mask = np.zeros(values.shape, bool)
    mask[layer] = True
    return trees.unflatten({DOWN: jax.device_put(mask, values.sharding)})


@pytest.fixture(params=["decoder", "toy"])
def config(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setitem(models.ARCHITECTURES, "toy", toy.ARCHITECTURE)
    return CONFIG if request.param == "decoder" else toy.ToyConfig(layers=8)


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 2, 2)])
def test_losses_are_those_of_the_whole_pass(config: Any, shape: tuple[int, int, int]) -> None:
    mesh = meshes.build(*shape, devices=jax.devices()[: int(np.prod(shape))])
    params = models.initialize(config, jax.random.key(1), meshes.shardings(models.declare(config), mesh))
    whole, stages = evaluate.build(config, Compute(block=4, chunk=5), mesh), prefix.Stages(config, Compute(), mesh)
    given = [meshes.place(each, mesh) for each in batches()]
    known = prefix.Prefix(stages, 2 * B * T)
    assert known.places == tuple(range(1, 9))
    untouched = [np.asarray(whole(params, each)[0]) for each in given]
    for layer in range(1, 8):
        evaluator = known.evaluator(layer, params, "texts", given)
        assert evaluator is not None
        with perturb.applied(params, matrix(params, layer), "negate"):
            for each, before in zip(given, untouched, strict=True):
                (found, counted), (expected, counts) = evaluator(params, each), whole(params, each)
                assert np.abs(np.asarray(expected) - before).max() > 1e-3  # it does something
                np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-6)
                np.testing.assert_array_equal(counted, counts)
    assert stages._after._cache_size() == 1  # one program for all layers


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 2, 2)])
def test_many_scalars_and_rows_of_a_layer_at_a_time(config: Any, shape: tuple[int, int, int]) -> None:
    """Every array of the layers, changed in a scalar and in rows, all at once: the losses of whole passes."""
    mesh = meshes.build(*shape, devices=jax.devices()[: int(np.prod(shape))])
    params = models.initialize(config, jax.random.key(1), meshes.shardings(models.declare(config), mesh))
    whole, stages = evaluate.build(config, Compute(block=4, chunk=5), mesh), prefix.Stages(config, Compute(), mesh)
    given = [meshes.place(each, mesh) for each in batches()]
    known, rng = prefix.Prefix(stages, 2 * B * T), np.random.default_rng(0)
    for layer in (1, 7):
        changed = []
        for path, values in trees.walk(params["layers"]):
            for number in (1, 3):
                places = np.stack([rng.integers(0, size, number) for size in values.shape[1:]], axis=1)
                places = np.unique(np.insert(places, 0, layer, axis=1), axis=0).tolist()
                new = rng.normal(size=len(places)) * 4
                changed.append(
                    [(f"layers.{path}", tuple(place), value) for place, value in zip(places, new, strict=True)]
                )
        changes = [
            rows.of_scalars(params, [each[:2] for each in members], [each[2] for each in members])
            for members in changed
        ]
        assert None not in changes
        evaluators = known.evaluators(changes, params, "texts", given)  # type: ignore[arg-type]
        for members, evaluator in zip(changed, evaluators, strict=True):
            mine = dict(trees.flatten(params))
            for path, place, value in members:
                mine[path] = mine[path].at[place].set(value)
            for each in given:
                (found, counted), (expected, counts) = evaluator(params, each), whole(trees.unflatten(mine), each)
                assert np.abs(np.asarray(expected) - np.asarray(whole(params, each)[0])).max() > 1e-3
                np.testing.assert_allclose(found, expected, rtol=5e-5, atol=5e-6)
                np.testing.assert_array_equal(counted, counts)
    # However many at a time, and one program for each number, whatever the layer and the arrays.
    alone = known.evaluators(changes[-2:], params, "texts", given)  # type: ignore[arg-type]
    again = known.evaluators(changes, params, "texts", given)[-2:]  # type: ignore[arg-type]
    for each, other in zip(alone, again, strict=True):
        np.testing.assert_allclose(each(params, given[0])[0], other(params, given[0])[0], rtol=2e-5, atol=2e-6)
    assert stages._of_rows._cache_size() == 2


def test_which_changes_are_evaluated_together() -> None:
    stages = prefix.Stages(CONFIG, Compute())
    known = prefix.Prefix(stages, 100)
    # Layer 0 has nothing before it, None has its own pass; four of one layer, by two batches of 2,048 tokens.
    layers = [3, None, 3, 0, 5, 3, 0, 3, 3]
    assert known.groups(layers, 1024) == [[0, 2, 5], [1], [0, 2, 5], [3], [4], [0, 2, 5], [6], [7, 8], [7, 8]]
    assert known.groups(layers, 9999) == [[number] for number in range(9)]


def test_little_room_keeps_few_layers_and_begins_at_the_last_of_them() -> None:
    stages, tokens = prefix.Stages(CONFIG, Compute()), 1000
    size = tokens * CONFIG.embed * 4 / 1e9
    assert prefix.Prefix(stages, tokens, 0.99 * size).places == ()
    assert prefix.Prefix(stages, tokens, 100 * size).places == tuple(range(1, 9))
    some = prefix.Prefix(stages, tokens, 3.5 * size)
    assert some.places == (3, 5, 8)
    assert [some._begin(first) for first in range(9)] == [None, None, None, 3, 3, 5, 5, 5, 8]
    deep = prefix.Stages(dataclasses.replace(CONFIG, layers=30, local=(True, False) * 15), Compute())
    # A tenth of the layers is the least that is worth it.
    assert [prefix.Prefix(deep, tokens)._begin(first) for first in (0, 2, 3)] == [None, None, 3]
    assert prefix.Prefix(stages, tokens, 0.0)._begin(8) is None


@pytest.mark.parametrize(
    ("path", "first"),
    [("embed_tokens", 0), ("norm", 8), ("lm_head", 8), ("layers.mlp.up_proj", 5), ("layers.input_layernorm", 5)],
)
def test_the_first_touched_layer(path: str, first: int) -> None:
    leaf = trees.flatten(models.shapes(CONFIG))[path]
    mask = np.zeros(leaf.shape, bool)
    assert geometry.first_layer({path: jax.numpy.asarray(mask)}, 8) == 8
    mask[(5,) if path.startswith("layers") else 0] = True
    assert geometry.first_layer(trees.unflatten({path: jax.numpy.asarray(mask)}), 8) == first


def test_a_series_is_measured_as_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the door: interventions on the embedding, early, late, on the last norm, with bounds."""
    model = lr.load("preset:tiny")
    ends = trees.flatten(model.shapes)
    everything = {
        path: {path: jax.device_put(np.ones(ends[path].shape, bool), ends[path].sharding)}
        for path in ("embed_tokens", "norm")
    }
    late = matrix(model.params, 1)
    made = [
        Intervention(kind="late", perturbation="scale", factor=30.0, region=Masks(late)),
        Intervention(kind="embedding", perturbation="scale", factor=2.0, region=Masks(everything["embed_tokens"])),
        Intervention(kind="last", perturbation="scale", factor=0.5, region=lambda: Masks(everything["norm"])),
        Intervention(
            kind="bounded",
            perturbation="scale",
            factor=30.0,
            region=Masks(late),
            bounds=roles.tree({"down": np.full(2, 0.01, np.float32)}),
        ),
    ]
    text = model.corpus(["Some words of a text that is long enough to be two samples."] * 3, "en", length=32)
    begun = []
    first = prefix.Prefix._begin
    monkeypatch.setattr(prefix.Prefix, "_begin", lambda self, layer: begun.append(first(self, layer)) or begun[-1])
    found = model.evaluate([text], made)
    assert begun == [1, None, 2]
    monkeypatch.setattr(prefix.Prefix, "_begin", lambda self, layer: None)
    expected = model.evaluate([text], made)
    assert found["effect_nats"].abs().min() > 1e-4
    np.testing.assert_allclose(found["effect_nats"], expected["effect_nats"], rtol=1e-4, atol=1e-6)


def test_interventions_of_one_layer_are_measured_as_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scalars by every perturbation, with one that draws and one with too many rows among them."""
    model = lr.load("preset:tiny")
    changes: list[dict[str, Any]] = [
        *({"perturbation": "scale", "factor": factor} for factor in (-9.0, 30.0, 0.5)),
        *({"perturbation": name} for name in ("zero", "negate", "mean")),
        {"perturbation": "set", "factor": 2.0},
        {"perturbation": "noise", "factor": 20.0, "noise_seed": 3},
    ]
    shape = trees.flatten(model.shapes)[DOWN]
    mask = np.zeros(shape.shape, bool)
    mask[1, 3, 5] = mask[1, 7, 2] = True
    two = Masks(trees.unflatten({DOWN: jax.device_put(mask, shape.sharding)}))
    made = [Intervention(kind="two", region=two, inside=1, **change) for change in changes]
    made.append(Intervention(kind="matrix", perturbation="negate", region=Masks(matrix(model.params, 1)), inside=1))
    text = model.corpus(["Some words of a text that is long enough to be two samples."] * 3, "en", length=32)
    calls = []
    many, one_group = prefix.Prefix.evaluators, prefix.Prefix.groups

    def alternate(self: prefix.Prefix, layers: list[int | None], tokens: int) -> list[list[int]]:
        """Two groups whose members come by turns, as those of two layers may."""
        groups = one_group(self, layers, tokens)
        return [group[group.index(number) % 2 :: 2] for number, group in enumerate(groups)]

    monkeypatch.setattr(prefix.Prefix, "groups", alternate)
    monkeypatch.setattr(
        prefix.Prefix, "evaluators", lambda self, rows, *rest: calls.append(len(rows)) or many(self, rows, *rest)
    )
    found = model.evaluate([text], made)
    assert calls == [4, 3]  # each is evaluated once
    expected = model.evaluate([text], [dataclasses.replace(each, inside=None) for each in made])
    assert calls == [4, 3]
    assert found["effect_nats"].abs().min() > 1e-6
    np.testing.assert_allclose(found["effect_nats"], expected["effect_nats"], rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="lies not only in layer 0"):
        rows.of_intervention(dataclasses.replace(made[0], inside=0), model.params, {})


class Masks:
    """Masks alone, as an intervention reads them of a region."""

    def __init__(self, masks: trees.Tree) -> None:
        self.masks = masks
