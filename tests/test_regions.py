"""Regions as sets: what they say, algebra, densities, concentration, overlap, places, reliability, matched controls."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jax.sharding import NamedSharding, PartitionSpec

from lingregions import mesh as meshes
from lingregions import tree as trees
from lingregions.models.parameter import Parameter
from lingregions.regions import (
    Provenance,
    Region,
    complement,
    counts,
    density,
    equals,
    geometry,
    intersect,
    reliability,
    restrict,
    select,
    subtract,
    total,
    union,
)
from lingregions.regions.matched import _QUANTILES, match
from lingregions.regions.region import Selection, declared, locate, matrices, names

DECLARATION = {
    "embed_tokens": Parameter("embedding", (6, 4), ("vocab", "embed"), 0.1),
    "layers": {
        "input_layernorm": Parameter("input_norm", (2, 4), ("layers", "embed"), None),
        "mlp": {
            "down_proj": Parameter("down", (2, 4, 3), ("layers", "embed", "mlp"), 0.1),
            "up_proj": Parameter("up", (2, 3, 4), ("layers", "mlp", "embed"), 0.1),
        },
    },
}
SHAPES = {path: parameter.shape for path, parameter in trees.walk(DECLARATION)}
LIKE = trees.unflatten({path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in SHAPES.items()})


def build(masks: dict[str, np.ndarray], name: str = "a region", **known: object) -> Region:
    tree = trees.unflatten({path: jnp.asarray(mask, bool) for path, mask in masks.items()})
    return Region(tree, Provenance(name=name, **declared(DECLARATION), **known))


def empty() -> dict[str, np.ndarray]:
    return {path: np.zeros(shape, bool) for path, shape in SHAPES.items()}


def shard(what: Region) -> Region:
    """The same region on eight devices."""
    mesh = meshes.build(fsdp=2, tensor=4)
    specs = {"embed_tokens": PartitionSpec(None, "tensor")} | {
        path: PartitionSpec(None, *["tensor" if size == 4 else None for size in shape[1:]])
        for path, shape in SHAPES.items()
        if path != "embed_tokens"
    }
    masks = {path: jax.device_put(mask, NamedSharding(mesh, specs[path])) for path, mask in what.leaves().items()}
    return Region(trees.unflatten(masks), what.provenance)


regions = st.fixed_dictionaries({path: hnp.arrays(bool, shape) for path, shape in SHAPES.items()}).map(build)


# ---- names ----


def test_names_and_places_are_inverse() -> None:
    for path, parameter in trees.walk(DECLARATION):
        assert matrices(path, parameter) == parameter.names()
        for layer, name in enumerate(parameter.names()):
            assert locate(name) == (path, layer if parameter.stacked else None)
    assert names("lm_head", None) == ["lm_head.weight"]
    assert locate("lm_head.weight") == ("lm_head", None)
    with pytest.raises(ValueError, match="'model.rotary.inv_freq' is not the name of a weight"):
        locate("model.rotary.inv_freq")


# ---- what a region says of itself ----


def test_a_selection_says_what_it_met() -> None:
    assert str(Selection(1, 1, 1)) == "1 of 1 entries in 1 matrices"
    met = Selection(1000, 30, 4, ("small", "less"), ("dead",), (("even", 5, 2), ("row", 4, 1)))
    assert str(met).split("; ") == [
        "30 of 1,000 entries in 4 matrices",
        "2 matrices too small to select from (first: small)",
        "1 matrices whose scores are all zero (first: dead)",
        "2 matrices with ties at the threshold (3 of 9 tied entries taken)",
    ]


MAGNITUDE, TAYLOR = '{"rule": "magnitude"}', '{"rule": "taylor"}'


@pytest.mark.parametrize(
    ("known", "name"),
    [
        ({"selector": "top", "fraction": "0.01"}, "top 1%"),
        ({"selector": "top", "fraction": "1/3", "languages": ("vi",)}, "top 100/3% vi"),
        ({"selector": "top", "languages": ("vi", "ru")}, "top"),
        ({"selector": "random", "fraction": "0.5", "seed": 7}, "random 50% seed 7"),
        ({"selector": "bottom", "part": "down", "layer": 2}, "bottom down layer 2"),
        ({"selector": "top", "score": MAGNITUDE}, "magnitude"),
        ({"selector": "bottom", "score": MAGNITUDE}, "bottom"),
        ({"selector": "top", "score": TAYLOR}, "top"),
        ({"selector": "top", "score": MAGNITUDE, "languages": ("vi",)}, "top vi"),
        ({"selector": "top", "name": "core"}, "core"),
        ({"name": "core"}, "core"),
        ({}, "region"),
    ],
)
def test_a_region_is_called_as_what_is_done_to_it(known: dict, name: str) -> None:
    own = Provenance(**known)
    assert own.named().name == name
    assert build({"norm": np.ones(2)}, **{"name": ""} | known).zero().name == name


def test_a_fraction_of_the_scope_is_said_that_of_each_matrix_is_not() -> None:
    for within, said in (("scope", "scope"), ("matrix", "")):
        assert build({"norm": np.ones(2)}, name="", selector="top", within=within).zero().within == said


def test_a_region_shows_its_size_and_its_densest_matrices() -> None:
    masks = empty()
    masks["layers.mlp.up_proj"][1, 0] = True  # 4 of 12
    masks["layers.input_layernorm"][0, 2] = True  # 1 of 4
    masks["embed_tokens"][5] = True  # 4 of 24
    what = build(masks, languages=("vi", "ru"), samples=(3, 4))
    assert repr(what) == "Region(a region: 9 of 80 parameters, 11.2 %)"
    assert repr(Region({})) == "Region(unnamed: 0 of 0 parameters, 0 %)"
    assert list(what._facts()["densest matrices"].items()) == [
        ("model.layers.1.mlp.up_proj.weight", "4 (33.3 %)"),
        ("model.layers.0.input_layernorm.weight", "1 (25 %)"),
        ("model.embed_tokens.weight", "4 (16.7 %)"),
    ]
    assert (what._facts()["languages"], what._facts()["samples"]) == ("vi ru", "3 4")


def test_removal_is_what_has_no_effect() -> None:
    gain = Parameter("input_norm", (2, 4), ("layers", "embed"), None, offset=1.0)
    assert declared({"layers": {"input_layernorm": gain}}) == {
        "axes": (("layers.input_layernorm", ("layers", "embed")),),
        "removal": (("layers.input_layernorm", -1.0),),
    }
    assert declared(DECLARATION)["removal"] == ()


def test_a_region_is_a_set_of_scalars() -> None:
    masks = empty()
    masks["layers.mlp.up_proj"][1, 2, 3] = masks["embed_tokens"][5, 0] = True
    what = build(masks)
    assert ("model.layers.1.mlp.up_proj.weight", (2, 3)) in what
    assert ("model.layers.0.mlp.up_proj.weight", (2, 3)) not in what
    assert ("model.embed_tokens.weight", (5, 0)) in what
    assert ("model.embed_tokens.weight", (0, 0)) not in what
    assert ("model.layers.0.self_attn.q_proj.weight", (0, 0)) not in what
    assert what != build({path: mask for path, mask in masks.items() if path != "embed_tokens"})
    assert what == what.rename("again", "said otherwise")
    renamed = [what.rename("again", words).provenance for words in ("", "said otherwise")]
    assert [(each.name, each.definition) for each in renamed] == [("again", ""), ("again", "said otherwise")]
    with pytest.raises(TypeError):
        what | {1}  # type: ignore[operator]


def test_an_intervention_has_the_seed_of_its_region_beside_that_of_its_noise() -> None:
    known = {"random": 7, "top": None}
    drawn, found = (build({"norm": np.ones(2)}, name="", selector=each, seed=seed) for each, seed in known.items())
    assert (drawn.noise(seed=1).seed, drawn.noise(seed=1).noise_seed) == (7, 1)
    assert (found.noise(seed=1).seed, found.noise(seed=1).noise_seed) == (1, None)
    assert (drawn.zero().seed, found.zero().seed) == (7, None)
    with pytest.raises(ValueError, match="region 'a region' is empty"):
        build(empty()).zero()


class Held:
    """A model at hand: parameters and a hash."""

    source, fingerprint = "held", "m1"

    def __init__(self, shape: tuple[int, ...] = (2, 3, 4)) -> None:
        self.params = {"layers": {"mlp": {"up_proj": jnp.ones(shape)}}, "norm": jnp.ones(4)}


def test_a_region_meets_its_model(tmp_path: Path) -> None:
    masks = np.zeros((2, 3, 4), bool)
    masks[0, 0, 0] = True
    own, unknown, other = (build({"layers.mlp.up_proj": masks}, model=model) for model in ("m1", "", "m2"))
    for fitting in (own, unknown):
        assert fitting.on(Held()) is fitting
    with pytest.raises(ValueError, match="found on model hash m2, held has m1"):
        other.on(Held())
    with pytest.raises(ValueError, match=r"'layers.mlp.up_proj' has shape \(2, 3, 4\), expected \(2, 3, 5\)"):
        own.on(Held((2, 3, 5)))
    with pytest.raises(ValueError, match="'norms' is not among"):
        build({"norms": np.ones(4)}).on(Held())
    with pytest.raises(ValueError, match="came without its model"):
        own.matched(0)
    model = Held()
    found = own.matched(0, model)
    assert (len(found), len(found & own), found.model) == (1, 0, model)
    own.save(tmp_path / "own.safetensors")
    assert Region.load(tmp_path / "own.safetensors").model is None
    assert Region.load(tmp_path / "own.safetensors", model).model is model
    other.save(tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="another model"):
        Region.load(tmp_path / "other.safetensors", model)


# ---- algebra ----


@given(a=regions, b=regions, c=regions)
@settings(max_examples=40)
def test_the_laws_of_sets(a: Region, b: Region, c: Region) -> None:
    nothing = build(empty())
    assert equals(union(a, b), union(b, a))
    assert equals(union(a, b, c), union(a, union(b, c)))
    assert equals(intersect(a, union(b, c)), union(intersect(a, b), intersect(a, c)))
    assert equals(subtract(a, b), intersect(a, complement(b)))
    assert equals(subtract(a, b, c), subtract(a, union(b, c)))
    assert equals(complement(union(a, b)), intersect(complement(a), complement(b)))
    assert equals(complement(complement(a)), a)
    assert equals(union(a, nothing), a)
    assert equals(subtract(a, a), nothing)
    assert total(union(a, b)) == total(a) + total(b) - total(intersect(a, b))
    assert equals(a, b) == all((np.asarray(x) == np.asarray(b.leaves()[path])).all() for path, x in a.leaves().items())


@given(a=regions, b=regions)
@settings(max_examples=5)
def test_algebra_on_shards_stays_there(a: Region, b: Region) -> None:
    left, right = shard(a), shard(b)
    for whole, spread in ((union(a, b), union(left, right)), (subtract(a, b), subtract(left, b))):
        assert equals(whole, spread)
        for path, mask in spread.leaves().items():
            assert mask.sharding.is_equivalent_to(left.leaves()[path].sharding, mask.ndim)
    assert counts(left) == counts(a)
    np.testing.assert_array_equal(geometry.overlap([left, b]).table(), geometry.overlap([a, b]).table())
    np.testing.assert_array_equal(geometry.profile(left, "embed").counts, geometry.profile(a, "embed").counts)


def test_results_remember_where_they_come_from() -> None:
    one = build(empty(), "vi", model="m1", languages=("vi",), score="taylor")
    two = build(empty(), "ru", model="m1", languages=("ru", "vi"), score="fisher")
    own = subtract(one, two, name="monolingual vi").provenance
    assert (own.name, own.model, own.languages, own.score) == ("monolingual vi", "m1", ("vi", "ru"), "")
    assert own.parents == (one.provenance, two.provenance)
    assert union(one, two).name == "union(vi, ru)"
    assert own.axes == declared(DECLARATION)["axes"]
    assert isinstance(hash(own), int)


def test_what_does_not_fit_is_refused_by_path_and_model() -> None:
    masks = empty()
    masks["layers.mlp.up_proj"] = np.zeros((2, 5, 4), bool)
    with pytest.raises(ValueError, match=r"region 'odd': 'layers.mlp.up_proj' has shape \(2, 5, 4\)"):
        union(build(empty()), build(masks, "odd"))
    del masks["layers.mlp.up_proj"]
    with pytest.raises(ValueError, match="'layers.mlp.up_proj' is missing"):
        equals(build(empty()), build(masks))
    with pytest.raises(ValueError, match="different models: m1 and m2"):
        union(build(empty(), model="m1"), build(empty(), model="m2"))
    with pytest.raises(ValueError, match="at least one region"):
        union()


def test_restriction_by_scope_layer_and_axis() -> None:
    full = complement(build(empty()))
    assert {path: sum(each) for path, each in counts(restrict(full, "layers.mlp.*")).items()} == {
        "embed_tokens": 0,
        "layers.input_layernorm": 0,
        "layers.mlp.down_proj": 24,
        "layers.mlp.up_proj": 24,
    }
    for layer, (first, second) in enumerate([(1, 0), (0, 1)]):
        assert counts(restrict(full, layers=[layer])) == {
            "embed_tokens": [0],
            "layers.input_layernorm": [4 * first, 4 * second],
            "layers.mlp.down_proj": [12 * first, 12 * second],
            "layers.mlp.up_proj": [12 * first, 12 * second],
        }
    part = restrict(full, axis="embed", indices=[3, 1])
    assert counts(part) == {
        "embed_tokens": [12],
        "layers.input_layernorm": [2, 2],
        "layers.mlp.down_proj": [6, 6],
        "layers.mlp.up_proj": [6, 6],
    }
    np.testing.assert_array_equal(np.asarray(part.masks["layers"]["mlp"]["down_proj"])[0].any(axis=1), [0, 1, 0, 1])
    np.testing.assert_array_equal(np.asarray(part.masks["layers"]["mlp"]["up_proj"])[0].any(axis=0), [0, 1, 0, 1])
    for words, wrong in (
        ("index 2 lies outside the 2 layers", {"layers": [2]}),
        ("index 4 lies outside the 4 axis 'embed'", {"axis": "embed", "indices": [4]}),
        ("has no axis 'heads'", {"axis": "heads", "indices": [0]}),
        ("go together", {"axis": "embed"}),
        ("holds no parameter", {"scope": "layers.self_attn.*"}),
    ):
        with pytest.raises(ValueError, match=words):
            restrict(full, **wrong)


def test_a_part_says_of_what_it_is_and_how_that_was_selected() -> None:
    scores = {path: np.arange(np.prod(shape), dtype=np.float32).reshape(shape) for path, shape in SHAPES.items()}
    chosen = select(trees.unflatten(scores), 0.5, provenance=Provenance(**declared(DECLARATION))).provenance
    own = restrict(Region(trees.unflatten(empty()), chosen), layers=[1]).provenance
    assert (own.selector, own.fraction, own.within, own.layer) == ("top", "0.5", "matrix", 1)
    assert own.definition == "of the highest scores, 0.5 of each matrix: what lies in layer 1"
    own = restrict(build(empty(), selector=""), "layers.mlp.*").provenance
    assert (own.selector, own.fraction, own.within, own.layer) == ("", "", "", None)
    assert (own.name, own.definition) == ("a region layers.mlp.*", "of a region: what lies in layers.mlp.*")


# ---- geometry ----


def test_density_counts_every_matrix() -> None:
    masks = empty()
    masks["layers.mlp.up_proj"][1, 0] = True
    masks["layers.input_layernorm"][0, 2] = True
    masks["embed_tokens"][5] = True
    what = build(masks)
    assert total(what) == 4 + 1 + 4
    assert density(what) == {
        "embed_tokens": [4 / 24],
        "layers.input_layernorm": [1 / 4, 0.0],
        "layers.mlp.down_proj": [0.0, 0.0],
        "layers.mlp.up_proj": [0.0, 4 / 12],
    }


def test_concentration_along_a_named_axis() -> None:
    masks = empty()
    masks["layers.mlp.up_proj"][0, :, 2] = True  # [mlp, embed]: all of dimension 2
    masks["layers.mlp.down_proj"][0, 2, :2] = True  # [embed, mlp]: two of dimension 2
    masks["layers.mlp.down_proj"][1, 1, 0] = True
    masks["layers.input_layernorm"][1, 3] = True
    what = build(masks)
    found = geometry.profile(what, "embed")
    np.testing.assert_array_equal(found.counts, [0, 1, 5, 1])
    assert found.leading(3) == [(2, 5), (1, 1), (3, 1)]
    assert found.leading(9) == found.leading(3)
    assert found.fullest == 5 / 7
    assert found.gini == pytest.approx(2 * (2 * 1 + 3 * 1 + 4 * 5) / (4 * 7) - 5 / 4)
    with pytest.raises(ValueError, match="no matrix of region 'a region' carries the axis 'heads'"):
        geometry.profile(what, "heads")
    with pytest.raises(ValueError, match="does not know the axes of 'embed_tokens'"):
        geometry.profile(Region(what.masks), "embed")


@given(values=st.lists(st.integers(0, 50), min_size=1, max_size=20))
def test_gini_is_the_mean_difference(values: list[int]) -> None:
    array = np.array(values, np.int64)
    pairs = np.abs(array[:, None] - array[None, :]).sum()
    expected = pairs / (2 * len(values) * array.sum()) if array.sum() else 0.0
    assert geometry._Concentration(array).gini == pytest.approx(expected)


def test_gini_by_hand() -> None:
    for values, gini in (([1, 1, 1, 1], 0.0), ([0, 0, 0, 8], 0.75), ([0, 0], 0.0), ([1, 3], 0.25)):
        assert geometry._Concentration(np.array(values)).gini == pytest.approx(gini)
    even = geometry._Concentration(np.full(300, 2))
    assert even.fullest == pytest.approx(0.01)


def test_a_dimension_and_a_scalar_by_place() -> None:
    dimension = geometry.slab(LIKE, DECLARATION, "embed", [2])
    assert equals(dimension, restrict(complement(build(empty())), axis="embed", indices=[2]))
    assert dimension.name == "embed 2"
    super_weight = geometry.points(LIKE, [("model.layers.1.mlp.down_proj.weight", (3, 1))])
    assert total(super_weight) == 1
    assert bool(super_weight.masks["layers"]["mlp"]["down_proj"][1, 3, 1])
    both = geometry.points(
        LIKE, [("model.embed_tokens.weight", (5, 0)), ("model.layers.0.input_layernorm.weight", [1])]
    )
    assert total(both) == 2
    for words, wrong in (
        ("no entry", ("model.layers.1.mlp.down_proj.weight", (4, 0))),
        ("no entry", ("model.layers.1.mlp.down_proj.weight", (0,))),
        ("no entry", ("model.layers.2.mlp.down_proj.weight", (0, 0))),
        ("not in the scope", ("model.layers.0.self_attn.q_proj.weight", (0, 0))),
    ):
        with pytest.raises(ValueError, match=words):
            geometry.points(LIKE, [wrong])


def test_overlap_by_hand_and_its_conventions() -> None:
    first, second = empty(), empty()
    first["layers.mlp.up_proj"][0, 0] = True  # 4
    second["layers.mlp.up_proj"][0, 0, :2] = True  # 2 of them
    second["layers.mlp.down_proj"][1, 0, 0] = True  # and 1 elsewhere
    found = geometry.overlap([build(first, "a"), build(second, "b"), build(empty(), "none")])
    np.testing.assert_array_equal(found.table(), [[4, 2, 0], [2, 3, 0], [0, 0, 0]])
    np.testing.assert_allclose(found.iou(), [[1, 2 / 5, 0], [2 / 5, 1, 0], [0, 0, 1]])
    np.testing.assert_allclose(found.containment(), [[1, 2 / 4, 0], [2 / 3, 1, 0], [1, 1, 1]])
    np.testing.assert_allclose(found.iou(path="layers.mlp.up_proj")[0, 1], 2 / 4)
    np.testing.assert_allclose(found.iou(layer=1)[0, 1], 0)
    np.testing.assert_array_equal(found.table("layers.mlp.up_proj", 0)[:2, :2], [[4, 2], [2, 2]])
    with pytest.raises(ValueError, match="there is no matrix 'embed_tokens' in layer 0"):
        found.table("embed_tokens", 0)


def test_clusters_by_hand() -> None:
    similarity = np.array([[1, 0.1, 0.8, 0.1], [0.1, 1, 0.3, 0.7], [0.8, 0.3, 1, 0.1], [0.1, 0.7, 0.1, 1]])
    found = geometry.cluster(similarity)
    assert [(first, second, size) for first, second, _, size in found.merges] == [(0, 2, 2), (1, 3, 2), (4, 5, 4)]
    np.testing.assert_allclose([each[2] for each in found.merges], [0.2, 0.3, 1 - (0.1 + 0.1 + 0.3 + 0.1) / 4])
    assert found.order == (0, 2, 1, 3)
    assert geometry.cluster(np.ones((1, 1))).order == (0,)


# ---- reliability ----


def test_agreement_of_halves_per_layer_and_matrix() -> None:
    first = {"layers": {"w": np.array([[[9, 8, 1, 1]], [[9, 8, 1, 1]]], np.float32)}}
    second = {"layers": {"w": np.array([[[9, 8, 1, 1]], [[9, 1, 8, 1]]], np.float32)}}
    found = reliability.agree(select(first, 0.5), select(second, 0.5))
    assert found.layers == (1.0, pytest.approx(1 / 3))
    assert found.matrices == {"layers.w": (1.0, pytest.approx(1 / 3))}
    assert found.iou == pytest.approx(3 / 5)


def test_kappa_and_the_noise_ceiling() -> None:
    # By chance two halves of a set share a quarter of it: IoU 1/3, agreement beyond chance 0.
    assert reliability.kappa(1 / 3, 0.5) == pytest.approx(0)
    assert reliability.kappa(1.0, 0.01) == 1
    assert reliability._overlap(reliability.kappa(0.37, 0.01), 0.01) == pytest.approx(0.37)
    # kappa 1/2 on halves is 2/3 on the whole; with p = 0 in the limit IoU 1/3 (o = 1/2) becomes 1/2 (o = 2/3).
    assert reliability.extrapolate(1 / 3, 1e-12) == pytest.approx(1 / 2)
    assert reliability.ceiling(1 / 3, 1 / 3, 1e-12) == pytest.approx(1 / 2)
    assert reliability.ceiling(1.0, 1.0, 0.01) == 1
    assert reliability.ceiling(0.001, 1.0, 0.01) == pytest.approx(0.01 / 1.99)  # below chance counts as chance


# ---- matched controls ----


@pytest.fixture(scope="module")
def crowded() -> tuple[Region, trees.Tree]:
    """A region on large weights and few rows, as a Taylor score gives it, and the weights."""
    generator = np.random.default_rng(0)
    theta = generator.standard_normal((2, 90, 80)).astype(np.float32)
    gain = generator.standard_normal((2, 80)).astype(np.float32)
    slope = np.exp(1.5 * generator.standard_normal((2, 90, 1)) + generator.standard_normal((2, 1, 80)))
    scores = np.abs(theta * slope * generator.standard_normal(theta.shape)).astype(np.float32)
    params = {"layers": {"input_layernorm": gain, "w": theta}}
    return select({"layers": {"input_layernorm": np.abs(gain), "w": scores}}, 0.05), params


def test_matched_regions_have_the_margins(crowded: tuple[Region, trees.Tree]) -> None:
    what, params = crowded
    drawn = [match(what, params, seed, outside=False) for seed in range(12)]
    theta, kept = np.abs(params["layers"]["w"]), np.asarray(what.masks["layers"]["w"])
    for layer in range(2):
        edges = np.quantile(theta[layer], _QUANTILES)
        bins = [
            np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(_QUANTILES) + 1)
            for values in (theta[layer][kept[layer]], theta[layer][np.asarray(drawn[0].masks["layers"]["w"])[layer]])
        ]
        np.testing.assert_array_equal(bins[0], bins[1])
        for axis in (0, 1):
            wanted = kept[layer].sum(axis=axis)
            found = np.mean([np.asarray(each.masks["layers"]["w"])[layer].sum(axis=axis) for each in drawn], axis=0)
            # A mean of 12 draws of a count c has a standard deviation of at most sqrt(c / 12).
            assert np.abs(found - wanted).max() < 5 * np.sqrt(max(wanted) / 12)
            assert np.abs(found - wanted).mean() < np.sqrt(wanted / 12).mean()
    assert all(counts(each) == counts(what) for each in drawn)
    assert len({np.asarray(each.masks["layers"]["w"]).tobytes() for each in drawn}) == 12
    assert drawn[0].provenance.parents == (what.provenance,)
    assert drawn[0].provenance.seed == 0


def test_a_control_outside_the_region_is_as_crowded(crowded: tuple[Region, trees.Tree]) -> None:
    what, params = crowded
    control, uniform = match(what, params, 0), select(params, 0.05, "random", seed=0)
    assert counts(control) == counts(what)
    assert total(intersect(control, what)) == 0
    theta = np.abs(params["layers"]["w"])
    for layer in range(2):
        kept, ours, plain = (np.asarray(each.masks["layers"]["w"])[layer] for each in (what, control, uniform))
        for axis in (0, 1):
            wanted = kept.sum(axis=axis)
            gap, chance = (np.abs(each.sum(axis=axis) - wanted).sum() for each in (ours, plain))
            assert gap < 0.6 * chance
        # The mean magnitude falls short only where the region has taken nearly all large weights of a bin.
        assert theta[layer][ours].mean() > 0.9 * theta[layer][kept].mean()
    with pytest.raises(ValueError, match=r"takes more than half of model\.layers\.0\.input_layernorm\.weight"):
        match(complement(what), params, 0)


def test_matched_regions_are_the_same_on_every_mesh(crowded: tuple[Region, trees.Tree]) -> None:
    what, params = crowded
    mesh = meshes.build(fsdp=2, tensor=4)
    place = {"input_layernorm": PartitionSpec(None, "fsdp"), "w": PartitionSpec(None, "fsdp", "tensor")}
    spread = jax.tree.map(lambda leaf, spec: jax.device_put(leaf, NamedSharding(mesh, spec)), params["layers"], place)
    masks = jax.tree.map(lambda leaf, like: jax.device_put(leaf, like.sharding), what.masks["layers"], spread)
    assert equals(match(what, params, 3), match(Region({"layers": masks}, what.provenance), {"layers": spread}, 3))


def test_a_matched_region_avoids_what_it_is_told_to(crowded: tuple[Region, trees.Tree]) -> None:
    what, params = crowded
    other = match(what, params, 3)
    found = match(what, params, 3, avoid=other)
    assert total(intersect(found, other)) == total(intersect(found, what)) == 0
    assert counts(found) == counts(what)
    assert f"outside {other.name}" in found.provenance.definition


def test_a_region_that_fills_a_row_is_matched_there() -> None:
    mask = np.zeros((1, 4, 6), bool)
    mask[0, 2] = True
    what = Region({"layers": {"w": jnp.asarray(mask)}})
    theta = np.random.default_rng(0).standard_normal((1, 4, 6)).astype(np.float32)
    assert equals(match(what, {"layers": {"w": theta}}, 0, outside=False), what)
    outside = match(what, {"layers": {"w": theta}}, 0)
    assert counts(outside) == counts(what)
    assert total(intersect(outside, what)) == 0
    nothing = Region({"layers": {"w": jnp.zeros((1, 4, 6), bool)}})
    assert total(match(nothing, {"layers": {"w": theta}}, 0)) == 0
    with pytest.raises(ValueError, match=r"parameters: 'layers.w' has shape \(1, 4, 5\)"):
        match(what, {"layers": {"w": theta[..., :5]}}, 0)
