"""Exact removal against the proxies: the figures by hand, the predictions against other ways to the same numbers."""

import csv
import dataclasses
import functools
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lingregions import loss, models, perturb, settings
from lingregions import mesh as meshes
from lingregions import tree as trees
from lingregions.corpus.batch import Batch
from lingregions.experiments import STUDIES, audit, calibration, context, scalars
from lingregions.experiments.context import Context
from lingregions.experiments.scalars import Scalar
from lingregions.models import roles
from lingregions.regions import geometry
from lingregions.run import Interrupted, Run

pytestmark = pytest.mark.usefixtures("one_device")

CONFIG = Path(__file__).parent.parent / "configs" / "proxy_audit.py"
SCOPE = "layers.mlp.down_proj,layers.self_attn.v_proj,layers.input_layernorm"
UP, NORM = "model.layers.{}.mlp.up_proj.weight", "model.norm.weight"


# --- scalars ----------------------------------------------------------------------------------------------------------


def small() -> trees.Tree:
    """Two layers of a 2 x 3 matrix, and a norm."""
    matrix = jnp.array([[[1.0, 9.0, 3.0], [4.0, 5.0, 9.0]], [[9.0, 0.0, 2.0], [6.0, -0.0, 7.0]]], jnp.float32)
    return {"layers": {"mlp": {"up_proj": matrix}}, "norm": jnp.array([8.0, 2.5], jnp.float32)}


def test_ranks_over_matrices_with_ties_by_layer_and_index():
    # By hand: 9 at (0, 0 1), (0, 1 2), (1, 0 0); 8 in the norm; 7 at (1, 1 2); 6; 5; 4 ...
    expected = [
        Scalar(UP.format(0), (0, 1)),
        Scalar(UP.format(0), (1, 2)),
        Scalar(UP.format(1), (0, 0)),
        Scalar(NORM, (0,)),
        Scalar(UP.format(1), (1, 2)),
    ]
    assert scalars.ranked(small(), 0, 5) == expected
    assert scalars.ranked(small(), 2, 4) == expected[2:4]
    assert len(scalars.ranked(small(), 0, 14)) == 14
    with pytest.raises(ValueError, match=r"ranks 3 to 15 of 14 scores"):
        scalars.ranked(small(), 3, 15)


def test_members_are_the_points_of_a_region():
    places = [(UP.format(0), (1, 2)), (UP.format(1), (0, 0)), (NORM, (1,))]
    assert scalars.members(geometry.points(small(), places)) == [Scalar(*each) for each in places]


def test_values_come_in_the_order_of_the_scalars():
    chosen = [Scalar(NORM, (1,)), Scalar(UP.format(1), (1, 2)), Scalar(UP.format(0), (0, 0)), Scalar(NORM, (0,))]
    assert scalars.gather(small(), chosen).tolist() == [2.5, 7.0, 1.0, 8.0]


def test_replaced_values_are_there_and_then_gone_to_the_last_bit():
    params = small()
    before = {path: np.array(leaf) for path, leaf in trees.walk(params)}
    wanted = [Scalar(UP.format(1), (1, 1)), Scalar(NORM, (0,)), Scalar(UP.format(0), (0, 2))]

    def change() -> None:
        with scalars.replaced(params, wanted, [1.5, 2.5, 3.5]):
            assert scalars.gather(params, wanted).tolist() == [1.5, 2.5, 3.5]
            assert sum(int((np.asarray(leaf) != before[path]).sum()) for path, leaf in trees.walk(params)) == 3
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        change()
    for path, leaf in trees.walk(params):  # also the sign of zero
        np.testing.assert_array_equal(np.asarray(leaf).view(np.uint32), before[path].view(np.uint32))


def test_scalars_on_eight_devices():
    mesh = meshes.build(data=2, fsdp=2, tensor=2, devices=jax.devices())
    config = models.PRESETS["tiny"]
    places = meshes.shardings(models.declare(config), mesh)
    params = models.initialize(config, jax.random.key(0), places)
    alone = {path: np.array(leaf) for path, leaf in trees.walk(params)}
    wanted = scalars.ranked(trees.transform(lambda _, leaf: jnp.abs(leaf), roles.restrict(params, SCOPE)), 250, 270)
    sizes = np.sort(np.concatenate([np.abs(alone[path]).reshape(-1) for path in SCOPE.split(",")]))[::-1]
    np.testing.assert_array_equal(np.abs(scalars.gather(params, wanted)), sizes[250:270])
    with scalars.replaced(params, wanted, np.arange(20.0)):
        assert scalars.gather(params, wanted).tolist() == list(range(20))
        for path, leaf in trees.walk(params):
            assert leaf.sharding.is_equivalent_to(trees.flatten(places)[path], leaf.ndim)
    for path, leaf in trees.walk(params):
        np.testing.assert_array_equal(np.asarray(leaf), alone[path])


def test_a_scalar_says_where_it_is():
    assert str(Scalar("model.layers.11.mlp.down_proj.weight", (507, 1229))) == "layer 11 mlp.down_proj [507 1229]"
    assert str(Scalar("model.layers.1.self_attn.q_proj.weight", (0, 2))) == "layer 1 q_proj [0 2]"
    assert Scalar(UP.format(1), (0, 2)).where == (1, 0, 2)


# --- what is sampled --------------------------------------------------------------------------------------------------


def test_strata_and_blocks_by_hand():
    assert audit.strata(("10%", "100%")) == [("top 10%", "0", "10%"), ("10% to 100%", "10%", "100%")]
    with pytest.raises(ValueError, match="must grow"):
        audit.strata(("10%", "1%"))
    tree = {"layers": {"mlp": {"up_proj": jnp.arange(200, dtype=jnp.float32).reshape(2, 10, 10)}}, "norm": jnp.ones(3)}
    blocks = audit.sample(tree, ("10%", "100%"), 30, seed=5)
    # The norm's three entries: the top tenth holds none of them.
    assert [(block.path, block.stratum, len(block.scalars)) for block in blocks] == [
        ("layers.mlp.up_proj", "top 10%", 20),
        ("layers.mlp.up_proj", "10% to 100%", 30),
        ("norm", "10% to 100%", 3),
    ]
    assert scalars.gather(tree, blocks[0].scalars).tolist() == list(range(199, 179, -1))
    below = scalars.gather(tree, blocks[1].scalars)
    assert below[0] < 180
    np.testing.assert_array_equal(np.diff(below), -1)
    found = audit.items(blocks, 3, (10, 25))
    # One, the middle power and the last of each block; then the groups that fit.
    assert [(item.size, item.first) for item in found if item.block == 0] == [(1, 0), (1, 3), (1, 19), (10, 0)]
    assert [(item.size, item.first) for item in found if item.block == 1] == [(1, 0), (1, 4), (1, 29), (10, 0), (25, 0)]
    assert [(item.size, item.first) for item in found if item.block == 2] == [(1, 0), (1, 1), (1, 2)]


# --- how well they agree ----------------------------------------------------------------------------------------------


def sample(exact: list[float], predicted: list[float], floor: float = 0.0) -> calibration.Sample:
    n = len(exact)
    names = np.array(["a"] * n)
    return calibration.Sample(
        np.array(exact), {"taylor": np.array(predicted)}, names, names, names, np.ones(n, int), np.full(n, floor)
    )


def test_figures_by_hand():
    part = sample([1.0, 4.0, 9.0, 16.0], [1.0, 3.0, 2.0, 4.0])
    # Ranks 1 2 3 4 against 1 3 2 4: 1 - 6 (0 + 1 + 1 + 0) / (4 x 15) = 0.8.
    assert calibration.measure("spearman", part, "taylor") == pytest.approx(0.8)
    assert calibration.recall(part, "taylor", 1) == 1.0
    assert calibration.recall(part, "taylor", 2) == 0.5  # 16 and 9 against 16 and 4
    assert math.isnan(calibration.recall(part, "taylor", 4))
    squares = sample([1.0, 4.0, 16.0], [1.0, 2.0, 4.0])
    assert calibration.measure("slope", squares, "taylor") == pytest.approx(2.0)
    assert calibration.measure("factor", squares, "taylor") == pytest.approx(math.log(2))  # of 1, 2, 4
    even = sample([1.0, 4.0, 16.0, 64.0], [1.0, 2.0, 4.0, 8.0])
    assert calibration.measure("factor", even, "taylor") == pytest.approx(math.log(8) / 2)  # 1, 2, 4, 8
    still = sample([1.0, 2.0, 3.0], [5.0, 5.0, 5.0])
    assert math.isnan(calibration.measure("spearman", still, "taylor"))
    assert math.isnan(calibration.measure("slope", still, "taylor"))


def test_ties_share_their_rank():
    part = sample([1.0, 2.0, 2.0, 3.0], [1.0, 2.0, 3.0, 3.0])
    # Ranks 1 2.5 2.5 4 against 1 2 3.5 3.5, about their mean: (2.25 + 0 + 0 + 1.5) / sqrt(4.5 x 4.5).
    assert calibration.measure("spearman", part, "taylor") == pytest.approx(3.75 / 4.5)


def test_what_is_below_the_noise_floor_is_counted_and_left_out_of_sizes():
    rows = [
        {"matrix": "m", "stratum": stratum, "size": 1, "language": "ar", "exact": exact, "taylor": taylor}
        for stratum, exact, taylor in [
            ("rounding, top", -0.5, 0.0),
            ("rounding, top", 0.25, 0.0),
            ("top", 0.4, 1e-9),
            ("top", -2.0, 1.0),
            ("top", 4.0, 2.0),
            ("top", 8.0, 4.0),
        ]
    ]
    part, noise = calibration.collect(rows, ["taylor"])
    assert noise == {"ar": 0.5}
    assert part.exact.tolist() == [0.4, 2.0, 4.0, 8.0]
    assert part.measurable.tolist() == [False, True, True, True]
    assert calibration.measure("factor", part, "taylor") == pytest.approx(math.log(2))
    assert calibration.measure("slope", part, "taylor") == pytest.approx(1.0)


def test_intervals_hold_the_figure_and_shrink_with_the_sample():
    rng = np.random.default_rng(0)
    x = np.exp(rng.normal(size=400))
    y = x * np.exp(rng.normal(size=400) / 2)
    widths = []
    for n in (40, 400):
        part = sample(list(y[:n]), list(x[:n]))
        value, low, high = calibration.interval("spearman", part, "taylor", 3)
        assert low < value < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 2
    assert calibration.interval("spearman", sample([1.0, 2.0], [1.0, 2.0]), "taylor", 3) == [None] * 3


# --- the experiment ---------------------------------------------------------------------------------------------------


def chosen(**values):
    small = {
        "score.languages": ("ar", "zh"),
        "score.samples": 1,
        "audit.languages": ("zh", "ar"),
        "audit.strata": ("1%", "100%"),
        "audit.groups": (5, 40),
        "audit.singles": 2,
        "audit.draws": 3,
        "audit.nodes": 8,
        "select.scope": SCOPE,
        "machine.progress": "none",
        "machine.pictures": False,
    }
    return settings.load(f"{CONFIG}:tiny", values=small | values)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audit") / "run"
    wanted = chosen()
    with Run.open(folder, wanted) as run:
        STUDIES["proxy_audit"].perform(wanted, run)
    return folder


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    wanted = chosen()
    with Run.open(tmp_path_factory.mktemp("given") / "run", wanted) as run:
        yield context.prepare(wanted, run)


def table(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "audit.csv").read_text().splitlines()))


def blocks(folder: Path) -> dict[tuple[str, str], list[Scalar]]:
    raw = json.loads((folder / "audit" / "blocks.json").read_text())
    return {(path, stratum): [Scalar(name, tuple(entry)) for name, entry in members] for path, stratum, members in raw}


def text(given: Context, language: str) -> Batch:
    corpus, positions = given.samples(language, "score")
    return Batch(*map(jnp.asarray, corpus.batch(positions[:1])))


@functools.cache
def compiled(config, compute):
    return jax.jit(functools.partial(loss.nll, config, compute))


def mean(given: Context, params: trees.Tree, language: str) -> float:
    found = compiled(given.model.config, given.model.compute)(params, text(given, language))
    return float(found.nll[0]) / int(found.tokens[0])


def test_every_set_is_removed_in_every_language(whole):
    rows = table(whole)
    real = [row for row in rows if not row["stratum"].startswith("rounding")]
    # Tiny: down_proj 2 x 64 x 128, v_proj 2 x 32 x 64, the norm 2 x 64; of 1 % the norm has 1, of the rest 40.
    sizes = {"top 1%": {"layers.input_layernorm": [1]}}
    for path in ("layers.input_layernorm", "layers.mlp.down_proj", "layers.self_attn.v_proj"):
        for stratum in ("top 1%", "1% to 100%"):
            expected = sizes.get(stratum, {}).get(path, [1, 1, 5, 40])
            for language in ("ar", "zh"):
                found = [
                    int(row["size"])
                    for row in real
                    if (row["matrix"], row["stratum"], row["language"]) == (path, stratum, language)
                ]
                assert found == expected, (path, stratum)
    assert sum(row["stratum"].startswith("rounding") for row in rows) == 3 * 2


def test_exact_effects_are_those_of_removing_a_region(whole, given):
    """Another way to the same: masks, `perturb.apply`, and the loss of one language alone."""
    members = blocks(whole)
    picked = [row for row in table(whole) if row["language"] == "zh" and not row["stratum"].startswith("rounding")]
    base = mean(given, given.model.params, "zh")
    for row in picked:
        first, size = int(row["first"]), int(row["size"])
        group = members[row["matrix"], row["stratum"]][first : first + size]
        like = roles.restrict(given.model.params, SCOPE)
        masks = geometry.points(like, [(each.matrix, each.entry) for each in group]).masks
        removed = mean(given, perturb.apply(given.model.params, masks, "zero"), "zh")
        np.testing.assert_allclose(float(row["exact"]), removed - base, atol=2e-6)


def test_the_first_order_is_the_score(whole, given):
    """Of one scalar |theta g| is what the score says, and the signed sum is minus or plus that."""
    members, like = blocks(whole), roles.restrict(given.model.shapes, given.definition.scope)
    with Run.open(whole, chosen()) as run:
        scores = {language: run.load(f"scores/{language}", like) for language in ("ar", "zh")}
    for row in table(whole):
        if row["size"] == "1" and not row["stratum"].startswith("rounding"):
            scalar = members[row["matrix"], row["stratum"]][int(row["first"])]
            (score,) = scalars.gather(scores[row["language"]], [scalar])
            np.testing.assert_allclose(float(row["taylor"]), score, rtol=1e-4, atol=1e-9)
            np.testing.assert_allclose(abs(float(row["signed"])), score, rtol=1e-4, atol=1e-9)


def test_integrated_gradients_of_a_block_are_its_exact_effect(whole):
    for row in table(whole):
        if row["size"] == "40":
            np.testing.assert_allclose(float(row["integrated"]), float(row["exact"]), rtol=1e-3, atol=3e-6)


def test_the_second_order_is_the_curvature_of_the_gauss_newton_matrix(given):
    """Against the definition: the mean over tokens of the variance, under the model's own predictions, of d logits."""
    scores = roles.restrict(given.model.params, "layers.mlp.down_proj")
    (block,) = audit.sample(trees.transform(lambda _, leaf: jnp.abs(leaf), scores), ("100%",), 50, 0)
    batch, params = text(given, "ar"), given.model.params
    gradients = audit.ScalarGradients(given.model.config, given.model.compute, [block])
    (found,) = audit.predict(gradients, params, batch, [block], draws=100, nodes=1, seed=7)
    item = audit.Item(0, 50, 0)
    predicted = found.predict(item)

    like = roles.restrict(params, SCOPE)
    masks = geometry.points(like, [(each.matrix, each.entry) for each in block.scalars]).masks
    inside = trees.flatten(masks)["layers.mlp.down_proj"]

    def logits(leaf: jax.Array) -> jax.Array:
        whole = trees.merge(params, {"layers": {"mlp": {"down_proj": leaf}}})
        compute = models.Compute(attention="reference")
        hidden, _ = models.hidden(given.model.config, compute, whole, batch.tokens, batch.segments)
        return hidden[0] @ models.head(given.model.config, whole).T

    theta = params["layers"]["mlp"]["down_proj"]

    @jax.jit
    def forward(leaf: jax.Array, direction: jax.Array) -> tuple[jax.Array, jax.Array]:
        # A backward pass by hand has no forward derivative: that of the backward pass itself, which is linear, is one.
        values, pull = jax.vjp(logits, leaf)
        _, push = jax.vjp(lambda cotangent: pull(cotangent)[0], jnp.zeros_like(values))
        return values, push(direction)[0]

    values, slope = forward(theta, jnp.where(inside, theta, 0))
    chance = jax.nn.softmax(values)
    spread = jnp.sum(chance * slope**2, -1) - jnp.sum(chance * slope, -1) ** 2
    _, counts = loss.targets(batch)
    curvature = float(jnp.sum(jnp.where(counts[0], spread, 0))) / int(jnp.sum(counts))
    assert curvature > 0
    # 100 draws of a square: a standard error of a seventh.
    np.testing.assert_allclose(2 * (predicted["second"] - predicted["signed"]), curvature, rtol=0.35)


# --- gains of 1 + w, and capped logits --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gemma() -> tuple[models.DecoderConfig, trees.Tree, Batch]:
    sizes = {"vocab": 40, "embed": 16, "mlp": 24, "layers": 2, "heads": 2, "kv_heads": 1, "head_dim": 8}
    how = {"local": (True, False), "window": 4, "std": 0.3, "logit_softcap": 1.5}
    config = dataclasses.replace(models.PRESETS["gemma2-2b"], **sizes, **how)
    tokens = np.random.default_rng(0).integers(3, 40, (1, 12)).astype(np.int32)
    return (
        config,
        models.initialize(config, jax.random.key(1)),
        Batch(tokens, np.ones_like(tokens), np.ones_like(tokens)),
    )


def test_predictions_follow_the_gains_and_the_cap_of_the_family(gemma):
    config, params, batch = gemma
    norm = [Scalar(f"model.layers.{layer}.post_attention_layernorm.weight", (d,)) for layer in range(2) for d in (3, 5)]
    down = [Scalar("model.layers.1.mlp.down_proj.weight", (d, 2 * d)) for d in range(6)]
    drawn = [audit.Block(each[0].path, "all", tuple(each)) for each in (norm, down)]
    gradients = audit.ScalarGradients(config, models.Compute(), drawn)
    whole = compiled(config, models.Compute())
    base, found = whole(params, batch), audit.predict(gradients, params, batch, drawn, draws=1, nodes=8, seed=1)
    slopes = trees.flatten(jax.grad(lambda params: whole(params, batch).nll[0])(params))
    for block, prediction in zip(drawn, found, strict=True):
        masks = geometry.points(params, [(each.matrix, each.entry) for each in block.scalars]).masks
        removed = perturb.apply(params, masks, "zero", offsets=models.offsets(config))
        with scalars.replaced(params, block.scalars, scalars.removed(config, block.scalars)):
            np.testing.assert_allclose(whole(params, batch).nll, whole(removed, batch).nll, rtol=1e-6)
        exact, tokens = float(whole(removed, batch).nll[0] - base.nll[0]), int(base.tokens[0])
        predicted = prediction.predict(audit.Item(0, len(block.scalars), 0))
        assert abs(exact) > 1e-3
        np.testing.assert_allclose(predicted["integrated"] * tokens, exact, rtol=2e-3, atol=1e-5)
        used = [
            trees.flatten(params)[each.path][each.where] - scalars.removed(config, [each])[0] for each in block.scalars
        ]
        slope = [slopes[each.path][each.where] for each in block.scalars]
        np.testing.assert_allclose(predicted["signed"] * tokens, -np.dot(used, slope), rtol=1e-4)


def test_labels_are_drawn_from_capped_logits(gemma):
    config, params, batch = gemma
    sharp = params | {"embed_tokens": params["embed_tokens"] * 1000}  # without a cap one token would have it all
    gradients = audit.ScalarGradients(config, models.Compute(), [])
    assert (gradients.labels(sharp, batch, 0) != gradients.labels(sharp, batch, 1)).any()


def test_tables_and_verdict_are_written(whole):
    tables = {path.stem: json.loads(path.read_text()) for path in (whole / "tables").glob("*.json")}
    assert [row[0] for row in tables["audit_strata"]["rows"]] == ["top 1%", "1% to 100%"]
    # Two scalars of each block but the norm's top, in two languages: 5 x 2 + 1 sets, each counted twice.
    assert sum(row[1] for row in tables["audit_strata"]["rows"]) == 2 * 11
    assert {row[0] for row in tables["audit_groups"]["rows"]} == {1, 5, 40}
    assert [row[2] for row in tables["audit_proxies"]["rows"]] == [11] * 6
    assert tables["audit_matrices"]["columns"] == ["zh", "ar"]
    singles, groups, limits = tables["verdict"]["paragraphs"]
    assert singles.startswith("Single scalars: over 11 of them in 2 languages")
    assert groups.startswith("Groups of 40: the exact effect is")
    assert limits.startswith(("The score ranks single scalars", "On this text the score is no reliable rank"))
    assert "rank correlation" in (whole / "headline.txt").read_text()


def test_a_killed_run_goes_on(whole, tmp_path, monkeypatch):
    folder, check, left = tmp_path / "run", Run.check, 19
    wanted = chosen()

    def stop(self):
        nonlocal left
        left -= 1
        if left == 0:
            raise Interrupted(15, self.folder)
        check(self)

    monkeypatch.setattr(Run, "check", stop)
    with pytest.raises(Interrupted), Run.open(folder, wanted) as run:
        STUDIES["proxy_audit"].perform(wanted, run)
    assert 0 < len(table(folder)) < len(table(whole))
    monkeypatch.setattr(Run, "check", check)
    with Run.open(folder, wanted) as run:
        STUDIES["proxy_audit"].perform(wanted, run)
    assert table(folder) == table(whole)


def test_what_is_not_scored_cannot_be_audited(tmp_path):
    wanted = chosen(**{"audit.languages": ("ar", "en")})
    with Run.open(tmp_path / "run", wanted) as run, pytest.raises(ValueError, match=r"'en', which score.languages"):
        STUDIES["proxy_audit"].perform(wanted, run)


def test_the_plan_counts_passes(whole):
    *scoring, sampled, predicted, removed = STUDIES["proxy_audit"].plan(chosen())
    assert len(scoring) == 2
    # 3 kinds x 2 strata = 6 blocks; 1 + 2 x 3 + 8 x 6 passes; 1 + 3 + 6 x (2 + 2) removals; in two languages.
    assert (predicted.samples, removed.samples) == (2 * 55, 2 * 28)
    assert all(stage.finished(whole) == stage.parts for stage in (sampled, predicted))
