"""Training: AdamW as by hand, frozen bits that stay, and a loop that may be killed at any moment."""

import dataclasses
import gc
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lingregions import freeze, loss, models, run, train
from lingregions import mesh as meshes
from lingregions import tree as trees
from lingregions.corpus import corpus as corpora
from lingregions.corpus.batch import Batch
from lingregions.models import roles
from lingregions.models.tokenizer import Tokenizer
from lingregions.run import Run, RunError, checkpoint
from lingregions.train import loop
from lingregions.train.trainer import _program as program

TREE = dict[str, Any]
CONFIG = dataclasses.replace(models.PRESETS["tiny"], embed=32, mlp=64, head_dim=8)
COMPUTE = models.Compute(attention="reference")
LENGTH = 16
# 200 steps; the last batch holds two samples only.
RECIPE = train.Recipe(samples=199 * 8 + 2, batch=8, rate=1e-3, decay=0.1, clip=1.0, warmup=5)


def parameters(mesh: jax.sharding.Mesh) -> TREE:
    """Random weights, with a -0.0 among those that are frozen."""
    params = models.initialize(CONFIG, jax.random.key(3), meshes.shardings(models.declare(CONFIG), mesh))
    up = params["layers"]["mlp"]["up_proj"]
    values = np.array(up)
    values[0, 0, :8] = -0.0
    values[0, 0, 8:] = 9.0
    return trees.merge(params, {"layers": {"mlp": {"up_proj": jax.device_put(values, up.sharding)}}})


def masks(params: TREE) -> TREE:
    """About the largest quarter of each matrix, and all -0.0."""
    part = roles.restrict(params, "decoder_without_norms")
    return jax.tree.map(lambda theta: (jnp.abs(theta) > 0.115) | (theta == 0), part)


def constraints(params: TREE) -> list[freeze.Constraint]:
    return [freeze.hard(params, masks(params)), freeze._leaves(params, scope="embed_tokens")]


def make(mesh: jax.sharding.Mesh) -> train.Trainer:
    """Four samples a micro-batch, two micro-batches a batch."""
    return train.Trainer(CONFIG, COMPUTE, RECIPE, constraints(parameters(mesh)), micro=4, mesh=mesh)


def english(seed: int = 7) -> train.Order:
    return train.Order(corpora.open("udhr", "en", Tokenizer.bytes(), length=LENGTH), seed)


def opened(folder: Path) -> Run:
    return Run.open(folder, {"machine": {"progress": "none"}})


@pytest.fixture(scope="module")
def trainer(lone_mesh: jax.sharding.Mesh) -> train.Trainer:
    return make(lone_mesh)


@pytest.fixture(scope="module")
def spread(mesh: jax.sharding.Mesh) -> train.Trainer:
    """The same training on eight devices."""
    return make(mesh)


@pytest.fixture(scope="module")
def params(lone_mesh: jax.sharding.Mesh) -> TREE:
    return parameters(lone_mesh)


@dataclasses.dataclass(frozen=True)
class Finished:
    """A training that nobody disturbed: what it left, and the parameters that its hook was shown."""

    folder: Path
    state: train.State
    curve: list[dict[str, Any]]
    shown: dict[int, TREE]


@pytest.fixture(scope="module")
def finished(trainer: train.Trainer, params: TREE, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder, shown = tmp_path_factory.mktemp("train") / "run", {}
    with opened(folder) as work:
        state = train.fit(
            work,
            "whole",
            trainer,
            params,
            english(),
            hook=lambda count, now: shown.update({count: jax.tree.map(np.array, now)}),
            counts=(0, 100, 1600, 10_000, RECIPE.samples),
            save_steps=50,
            keep=3,
        )
        return Finished(folder, state, train.curve(work, "whole"), shown)


def bits(leaf: Any) -> np.ndarray:
    return np.asarray(leaf).view(np.uint32)


def assert_same_bits(one: Any, other: Any) -> None:
    for (path, leaf), mate in zip(jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(bits(leaf), bits(mate), err_msg=jax.tree_util.keystr(path))


def figures(curve: Sequence[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [
        tuple(each[key] for key in ("step", "samples", "loss", "gradient_norm", "rate", "tokens")) for each in curve
    ]


# ---- the step ----


@jax.jit
def slope(params: TREE, batch: Batch) -> tuple[jax.Array, TREE]:
    """The mean loss of a whole batch and its gradient, at once and free."""

    def mean(params: TREE) -> jax.Array:
        found = loss.nll(CONFIG, COMPUTE, params, batch)
        return jnp.sum(found.nll) / jnp.sum(found.tokens).astype(jnp.float32)

    return jax.value_and_grad(mean)(params)


def held(params: TREE) -> dict[str, np.ndarray]:
    """Which entries do not move."""
    still = {path: np.zeros(leaf.shape, bool) for path, leaf in trees.walk(params)}
    still |= {path: np.asarray(mask) for path, mask in trees.walk(masks(params))}
    still["embed_tokens"][:] = True
    return still


def test_trainings_that_differ_in_their_regions_alone_are_one_program(params: TREE) -> None:
    others = jax.tree.map(lambda theta: jnp.abs(theta) < 0.115, roles.restrict(params, "decoder_without_norms"))

    def fresh(part: TREE, thaw: Any = None) -> train.Trainer:
        return train.Trainer(CONFIG, COMPUTE, RECIPE, [freeze.hard(params, part, thaw)], micro=4)

    def stepped(made: train.Trainer) -> np.ndarray:
        state = made.start(params)
        for first in (0, 8):  # the rate of the first step is 0
            state, _ = made.step(state, english().batch(first, first + 8, 8))
        return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(state.params)])

    one, other = fresh(masks(params)), fresh(others)
    assert one._program is other._program
    assert one._program is not fresh(others, freeze.thaw(100, 0.5))._program
    moved, known = stepped(one), one._program.step._cache_size()
    moved_other = stepped(other)
    assert one._program.step._cache_size() == known  # nothing is compiled for the second
    program.cache_clear()
    alone = fresh(others)
    assert alone._program is not other._program
    np.testing.assert_array_equal(stepped(alone), moved_other)
    assert not np.array_equal(moved, moved_other)


def test_adamw_as_in_numpy_with_float64(trainer: train.Trainer, params: TREE) -> None:
    """Gradients of the whole batch at once, clipping, decay, warm-up and the update, by hand."""
    feed, state = english(), trainer.start(params)
    still = held(params)
    theta = {path: np.asarray(leaf, np.float64) for path, leaf in trees.walk(params)}
    first, second = ({path: np.zeros_like(leaf) for path, leaf in theta.items()} for _ in range(2))
    for step in range(8):
        batch = feed.batch(8 * step, 8 * step + 8, 8)
        found = {path: np.asarray(leaf, np.float64) for path, leaf in trees.walk(slope(state.params, batch)[1])}
        gradient = {path: np.where(still[path], 0, leaf) for path, leaf in found.items()}
        norm = np.sqrt(sum(np.sum(leaf**2) for leaf in gradient.values()))
        rate = 1e-3 * step / 5 if step <= 5 else 1e-3 * 0.5 * (1 + np.cos(np.pi * (step - 5) / (200 - 5)))
        for path, leaf in gradient.items():
            leaf = leaf * min(1, 1.0 / norm)
            first[path] = 0.9 * first[path] + 0.1 * leaf
            second[path] = 0.95 * second[path] + 0.05 * leaf**2
            change = first[path] / (1 - 0.9 ** (step + 1))
            change /= np.sqrt(second[path] / (1 - 0.95 ** (step + 1))) + 1e-8
            change += 0.0 if "norm" in path else 0.1 * theta[path]
            theta[path] = np.where(still[path], theta[path], theta[path] - rate * change)
        state, told = trainer.step(state, batch)
        np.testing.assert_allclose(float(told.gradient_norm), norm, rtol=1e-5)
        np.testing.assert_allclose(float(told.rate), rate, rtol=1e-5, atol=1e-12)
        assert norm > 1  # else nothing is clipped, and the test does not look at it
    for path, leaf in trees.walk(state.params):
        np.testing.assert_allclose(np.asarray(leaf), theta[path], rtol=1e-5, atol=1e-5, err_msg=path)


@pytest.mark.parametrize("size", [8, 6])
def test_micro_batches_change_nothing(size: int, trainer: train.Trainer, params: TREE) -> None:
    """The last batch too, whose second micro-batch is half padding: the loss is divided once, by all targets."""
    batch = english().batch(0, size, 8)
    nats, _ = slope(params, batch)
    state, told = trainer.step(trainer.start(params), batch)
    np.testing.assert_allclose(float(told.loss), float(nats), rtol=1e-6)
    targets = np.sum((batch.segments[:, 1:] == batch.segments[:, :-1]) & (batch.segments[:, 1:] != 0), axis=1)
    assert int(told.tokens) == targets.sum()
    np.testing.assert_allclose(np.asarray(told.samples) @ targets / targets.sum(), float(nats), rtol=1e-6)
    assert not np.asarray(told.samples)[size:].any()
    # The first moment is a tenth of the clipped gradient. Over all matrices together: some cancel more. The samples'
    # gradients are added up in float64: a sum of theirs in float32 is off by as much as ours.
    still, moments = held(params), trees.flatten(optax.tree.get(state.optimizer, "mu"))

    def moving(tree: dict[str, np.ndarray]) -> np.ndarray:
        leaves = [np.where(still[path], 0, leaf).ravel() for path, leaf in tree.items() if path != "embed_tokens"]
        return np.concatenate(leaves).astype(np.float64)

    alone = [slope(params, Batch(*(leaf[row : row + 1] for leaf in batch)))[1] for row in range(size)]
    theirs = sum(moving(trees.flatten(each)) * count for each, count in zip(alone, targets[:size], strict=True))
    theirs *= 0.1 / np.linalg.norm(theirs)
    assert np.linalg.norm(moving(moments) - theirs) <= 1e-6 * np.linalg.norm(theirs)


def test_clipping_is_to_the_norm_and_what_lies_within_it_keeps_its_bits(params: TREE) -> None:
    def first(clip: float, norm: float) -> list[np.ndarray]:
        """The first moments after an update by the parameters, scaled to a norm."""
        optimizer = train.recipe.optimizer(dataclasses.replace(RECIPE, clip=clip))
        gradient = jax.tree.map(lambda leaf: leaf * np.float32(norm / optax.tree.norm(params)), params)
        with jax.numpy_dtype_promotion("standard"):
            _, state = jax.jit(optimizer.update)(gradient, optimizer.init(params), params)
        return [np.array(leaf) for leaf in jax.tree.leaves(optax.tree.get(state, "mu"))]

    clipped, within, free = first(2.0, 8.0), first(2.0, 1.0), first(0.0, 1.0)
    for ours, theirs in zip(within, free, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for ours, theirs in zip(clipped, free, strict=True):
        np.testing.assert_allclose(ours, 2 * theirs, rtol=1e-5, atol=1e-12)


def test_memory_of_the_compiled_step(lone_mesh: jax.sharding.Mesh, trainer: train.Trainer, params: TREE) -> None:
    """Masks at one bit a parameter, no moments for a whole leaf, the state in place: nothing else is an argument."""
    found = trainer.lower(LENGTH).compile().memory_analysis()
    leaves = trees.flatten(params)
    moving = trees.count(params) - leaves["embed_tokens"].size
    state = 4 * trees.count(params) + 2 * 4 * moving
    packed = sum(mask.size for _, mask in trees.walk(masks(params))) / 8
    batch = 2 * 8 * LENGTH * 4  # tokens and segments; nobody reads the bytes
    scalars = 3 * 4  # steps, the counts of AdamW and of its schedule
    assert found.argument_size_in_bytes == state + packed + batch + scalars
    assert found.alias_size_in_bytes == state + scalars
    # And the step needs no more room for them: no mask is ever unpacked in memory.
    free = train.Trainer(CONFIG, COMPUTE, RECIPE, trainer.constraints[1:], micro=4, mesh=lone_mesh)
    assert found.temp_size_in_bytes == free.lower(LENGTH).compile().memory_analysis().temp_size_in_bytes


def test_micro_batches_split_over_the_mesh(mesh: jax.sharding.Mesh) -> None:
    with pytest.raises(ValueError, match="micro-batches of 2 samples do not split over 4 parts"):
        train.Trainer(CONFIG, COMPUTE, RECIPE, micro=2, mesh=mesh)


# ---- frozen ----


def test_frozen_bits_stay_and_all_else_moves(params: TREE, finished: Finished) -> None:
    freeze.verify(params, finished.state.params, masks(params))
    still = trees.flatten(masks(params))
    for path, leaf in trees.walk(params):
        same = bits(leaf) == bits(trees.flatten(finished.state.params)[path])
        if path == "embed_tokens":
            assert same.all()
        elif path in still:
            assert not same[~np.asarray(still[path])].any()
        elif path != "lm_head":  # a token that no target is moves by decay alone, and a zero would not
            assert not same.any()
    assert np.signbit(np.asarray(finished.state.params["layers"]["mlp"]["up_proj"])[0, 0, :8]).all()


def test_the_training_learns(finished: Finished) -> None:
    losses = [each["loss"] for each in finished.curve]
    assert np.mean(losses[-10:]) < np.mean(losses[:10]) - 1


def test_in_bfloat16_too(lone_mesh: jax.sharding.Mesh, trainer: train.Trainer, params: TREE) -> None:
    """And with the batch in one piece."""
    compute, feed = dataclasses.replace(COMPUTE, dtype="bfloat16"), english()
    trainer = train.Trainer(CONFIG, compute, RECIPE, trainer.constraints, micro=8, mesh=lone_mesh)
    state = trainer.start(params)
    for step in range(200):
        state, _ = trainer.step(state, feed.batch(8 * step, 8 * step + 8, 8))
    freeze.verify(params, state.params, masks(params))
    assert {leaf.dtype.name for leaf in jax.tree.leaves((state.params, state.optimizer))} == {"float32", "int32"}
    moved = np.asarray(params["norm"]) != np.asarray(state.params["norm"])
    assert moved.all()  # float32 masters: updates far below a step of bfloat16 are not lost


def test_restored_on_another_mesh(spread: train.Trainer, trainer: train.Trainer, finished: Finished) -> None:
    with opened(finished.folder) as work:
        state, same = (train.load(work, "whole", each, step=150) for each in (spread, trainer))
    assert_same_bits(state, same)
    for leaf, like in zip(jax.tree.leaves(state), jax.tree.leaves(spread.shapes), strict=True):
        assert leaf.sharding.is_equivalent_to(like.sharding, leaf.ndim)
    moments = [leaf for leaf in jax.tree.leaves(state.optimizer) if leaf.ndim == 3]
    assert moments
    assert all(leaf.addressable_shards[0].data.size == leaf.size / 4 for leaf in moments)
    feed = english()
    for step in range(150, 153):
        state, told = spread.step(state, feed.batch(8 * step, 8 * step + 8, 8))
        np.testing.assert_allclose(float(told.loss), finished.curve[step]["loss"], rtol=1e-5)
    begin = parameters(spread.mesh)
    freeze.verify(begin, state.params, masks(begin))
    moved = np.asarray(state.params["norm"]) != np.asarray(same.params["norm"])
    assert moved.all()


# ---- the loop ----


def test_the_curve_has_every_step(finished: Finished) -> None:
    assert [each["step"] for each in finished.curve] == list(range(1, 201))
    assert finished.curve[-1]["samples"] == RECIPE.samples
    assert finished.curve[0]["rate"] == 0.0
    batch = english().batch(0, 8, 8)
    targets = int(np.sum((batch.segments[:, 1:] == batch.segments[:, :-1]) & (batch.segments[:, 1:] != 0)))
    assert finished.curve[0]["tokens"] == targets


def test_the_hook_sees_the_counts_that_are_reached(params: TREE, finished: Finished) -> None:
    assert list(finished.shown) == [0, 100, RECIPE.samples]
    assert_same_bits(finished.shown[0], params)
    assert_same_bits(finished.shown[RECIPE.samples], finished.state.params)


def test_the_latest_checkpoints_are_kept(finished: Finished) -> None:
    kept = sorted(int(path.name) for path in (finished.folder / "checkpoints" / "whole").iterdir())
    assert kept == [100, 150, 200]


def test_a_finished_training_is_not_done_again(trainer: train.Trainer, params: TREE, finished: Finished) -> None:
    seen: list[int] = []
    with opened(finished.folder) as work:
        state = train.fit(
            work,
            "whole",
            trainer,
            params,
            english(),
            hook=lambda count, _: seen.append(count),
            counts=(0, RECIPE.samples),
        )
        assert figures(train.curve(work, "whole")) == figures(finished.curve)
    assert_same_bits(state, finished.state)
    assert seen == [RECIPE.samples]


def test_a_checkpoint_is_of_its_step_though_the_next_step_takes_its_buffers(
    trainer: train.Trainer, params: TREE, tmp_path: Path
) -> None:
    shown: dict[int, TREE] = {}
    with pytest.raises(run.Interrupted), opened(tmp_path / "run") as work:
        train.fit(
            work,
            "x",
            trainer,
            params,
            Stopping(english(), 12),
            hook=lambda count, now: shown.update({count // 8: jax.tree.map(np.array, now)}),
            counts=[8 * step for step in range(1, 12)],
            keep=20,
        )
    with opened(tmp_path / "run") as work:
        for step, expected in shown.items():
            assert_same_bits(train.load(work, "x", trainer, step).params, expected)
    assert list(shown) == list(range(1, 12))


def test_an_evaluation_that_fails_costs_no_training(
    trainer: train.Trainer, params: TREE, finished: Finished, tmp_path: Path
) -> None:
    seen: list[TREE] = []

    def hook(count: int, now: TREE) -> None:
        seen.append(jax.tree.map(np.array, now))
        if len(seen) == 1:
            raise RuntimeError("an evaluation out of memory")

    with opened(tmp_path / "run") as work, pytest.raises(RuntimeError, match="out of memory"):
        train.fit(work, "x", trainer, params, english(), hook, counts=(100,))
    assert checkpoint.newest(tmp_path / "run" / "checkpoints" / "x") == 13
    with pytest.raises(run.Interrupted), opened(tmp_path / "run") as work:
        train.fit(work, "x", trainer, params, Stopping(english(), 15), hook, counts=(100,))
    assert len(seen) == 2
    assert_same_bits(*seen)
    assert_same_bits(seen[1], finished.shown[100])


# What orbax had under way when the disk refused is let go of noisily.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_is_told_and_the_checkpoint_before_it_stays(
    trainer: train.Trainer, params: TREE, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def hook(count: int, now: TREE) -> None:
        while checkpoint.newest(folder / "checkpoints" / "x") < 5:
            time.sleep(0.01)  # poll for the state, not for a time
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, hard))  # the kernel refuses as a full disk does

    try:
        with opened(folder) as work, pytest.raises(RunError, match="cannot write .*What was complete before is intact"):
            train.fit(work, "x", trainer, params, english(), hook, counts=(40,), save_steps=3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert checkpoint.newest(folder / "checkpoints" / "x") == 5
    with opened(folder) as work:
        train.load(work, "x", trainer)
    gc.collect()  # here, not in another test


def test_a_resume_is_exact_on_eight_devices_too(spread: train.Trainer, tmp_path: Path) -> None:
    begin, states = parameters(spread.mesh), []
    for name, stops in {"whole": (9,), "parts": (4, 9)}.items():
        for stop in stops:
            with pytest.raises(run.Interrupted), opened(tmp_path / name) as work:
                train.fit(work, "x", spread, begin, Stopping(english(), stop))
        with opened(tmp_path / name) as work:
            states.append(train.load(work, "x", spread))
    assert int(states[0].step) == 9
    assert_same_bits(*states)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"feed": english(8)}, "feed"),
        ({"facts": {"model": "another"}}, "facts"),
        ({"recipe": dataclasses.replace(RECIPE, spike=9.0)}, "recipe"),
    ],
)
def test_a_resume_with_another_training_is_refused(
    lone_mesh: jax.sharding.Mesh,
    trainer: train.Trainer,
    params: TREE,
    finished: Finished,
    changes: dict[str, Any],
    key: str,
) -> None:
    if "recipe" in changes:
        trainer = train.Trainer(CONFIG, COMPUTE, changes["recipe"], trainer.constraints, micro=4, mesh=lone_mesh)
    with opened(finished.folder) as work, pytest.raises(RunError, match=f"is of another training: {key} was"):
        train.fit(work, "whole", trainer, params, changes.get("feed", english()), facts=changes.get("facts"))


# ---- killed ----


@dataclasses.dataclass(frozen=True, eq=False)
class Stopping:
    """A feed during whose delivery of one step's samples a signal arrives."""

    feed: train.Feed
    step: int
    number: int = signal.SIGTERM
    delay: float = 0.0

    @property
    def fingerprint(self) -> str:
        return self.feed.fingerprint

    def batch(self, start: int, stop: int, size: int) -> Batch:
        if start == 8 * self.step:
            if self.delay:
                threading.Timer(self.delay, os.kill, (os.getpid(), self.number)).start()
            else:
                os.kill(os.getpid(), self.number)
        return self.feed.batch(start, stop, size)

    def describe(self, sample: int) -> str:
        return self.feed.describe(sample)


def go_on(folder: Path, feed: train.Feed, trainer: train.Trainer, params: TREE) -> train.State:
    """Resume the training that is killed again and again."""
    with opened(folder) as work:
        return train.fit(work, "killed", trainer, params, feed, save_steps=3)


def killed(folder: str, step: int, delay: float) -> None:
    """What the process that is killed runs."""
    mesh = meshes.build(devices=jax.devices()[:1])
    go_on(Path(folder), Stopping(english(), step, signal.SIGKILL, delay), make(mesh), parameters(mesh))


@pytest.mark.slow
def test_twenty_kills_change_no_bit(trainer: train.Trainer, params: TREE, finished: Finished, tmp_path: Path) -> None:
    generator = np.random.default_rng(11)
    stops = sorted(generator.choice(np.arange(3, 199), 20, replace=False).tolist())
    hard = set(stops[2::5])  # by SIGKILL; these pay for a process of their own
    command = "import sys, conftest, test_train as t; t.killed(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))"
    folder, tests = tmp_path / "run", Path(__file__).parent
    for step in stops:
        if step in hard:
            delay = float(generator.uniform(0.001, 0.04))  # into the next steps, and into the saves behind them
            words = [sys.executable, "-W", "ignore", "-c", command, str(folder), str(step), str(delay)]
            variables = {"PYTHONPATH": f"{tests}:{tests.parent}"}
            done = subprocess.run(words, check=False, timeout=300, env=os.environ | variables)
            assert done.returncode == -signal.SIGKILL
        else:
            with pytest.raises(run.Interrupted):
                go_on(folder, Stopping(english(), step), trainer, params)
            # The signal came while step `step` was under way: it is finished, saved, and the last.
            assert checkpoint.newest(folder / "checkpoints" / "killed") == step
    state = go_on(folder, english(), trainer, params)
    with opened(folder) as work:
        assert figures(train.curve(work, "killed")) == figures(finished.curve)
    assert_same_bits(state, finished.state)


def test_checkpoints_are_discarded(trainer: train.Trainer, params: TREE, tmp_path: Path) -> None:
    with pytest.raises(run.Interrupted), opened(tmp_path / "run") as work:
        train.fit(work, "x", trainer, params, Stopping(english(), 1))
    with opened(tmp_path / "run") as work:
        assert checkpoint.newest(tmp_path / "run" / "checkpoints" / "x") == 1
        train.discard(work, "x")
        with pytest.raises(RunError, match="nothing is saved"):
            train.load(work, "x", trainer)


# ---- divergence ----


@pytest.fixture
def letters(tmp_path: Path) -> train.Order:
    """Six documents of 16 letters, one a sample; the third has a Q."""
    (tmp_path / "texts").mkdir()
    lines = ["abcdefghijklmnop"] * 6
    lines[2] = "abcdefghQjklmnop"
    (tmp_path / "texts" / "en.txt").write_text("".join(f"{line}\n" for line in lines))
    corpus = corpora.open(str(tmp_path / "texts"), "en", Tokenizer.bytes(), length=16, bos="none", eos="none")
    assert len(corpus) == 6
    return train.Order(corpus, 0)


def test_a_loss_that_is_no_number_names_the_documents(
    trainer: train.Trainer, params: TREE, letters: train.Order, tmp_path: Path
) -> None:
    table = np.array(params["embed_tokens"])
    table[ord("Q")] = np.nan
    broken = trees.merge(params, {"embed_tokens": jax.device_put(table, params["embed_tokens"].sharding)})
    with opened(tmp_path / "run") as work, pytest.raises(train.Diverged, match="the loss is nan") as caught:
        train.fit(work, "x", trainer, broken, letters)
    lines = str(caught.value).splitlines()
    # Eight samples a step from six: the sample with the Q comes once or twice, and nothing else is named.
    assert lines[0].startswith("step 1 (samples 0 to 7)")
    assert 1 <= len(lines[1:]) <= 2
    assert all("(en, " in line and line.endswith("sample 2, document 2: nan nats per token") for line in lines[1:])
    assert not checkpoint.newest(tmp_path / "run" / "checkpoints" / "x")


def told(value: float, norm: float = 1.0) -> train.Metrics:
    samples = np.arange(8, dtype=np.float32)
    return train.Metrics(*(np.float32(each) for each in (value, norm, 0)), np.int32(1), samples)


def test_a_jump_of_the_loss_stops(trainer: train.Trainer, letters: train.Order) -> None:
    smoothed = None
    for step in range(loop._SETTLED):
        smoothed = loop._look(trainer, letters, step, told(3.0), smoothed)
    loop._look(trainer, letters, 10, told(4.9), smoothed)
    with pytest.raises(train.Diverged, match=r"jumped from 3.0000 \(smoothed\) to 5.1000") as caught:
        loop._look(trainer, letters, 10, told(5.1), smoothed)
    assert "7.0000 nats per token" in str(caught.value).splitlines()[1]  # the worst sample first
    # Before the loss has settled a jump means nothing.
    loop._look(trainer, letters, 1, told(9.0), loop._look(trainer, letters, 0, told(3.0), None))


def test_a_gradient_that_is_no_number_stops(trainer: train.Trainer, letters: train.Order) -> None:
    with pytest.raises(train.Diverged, match="norm of the gradient is inf"):
        loop._look(trainer, letters, 0, told(3.0, np.inf), None)
