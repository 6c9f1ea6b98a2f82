"""What a training is told: how far and how fast, and which sample comes when."""

import jax.numpy as jnp
import numpy as np
import pytest

from lingregions import train
from lingregions.corpus import corpus as corpora
from lingregions.corpus.batch import Batch
from lingregions.models.tokenizer import Tokenizer


def test_recipe_says_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="a warm-up of 100 steps in a training of 4 steps"):
        train.Recipe(samples=1000)
    with pytest.raises(ValueError, match="rate is -1"):
        train.Recipe(samples=1000, warmup=0, rate=-1)
    with pytest.raises(ValueError, match="0 samples"):
        train.Recipe(samples=0)


def test_recipe_schedule() -> None:
    recipe = train.Recipe(samples=40, batch=4, rate=1.0, warmup=2, floor=0.1)
    rates = [float(recipe.schedule()(jnp.float32(step))) for step in (0, 1, 2, 6, 10)]
    np.testing.assert_allclose(rates, [0, 0.5, 1, 0.55, 0.1], rtol=1e-6)
    assert [recipe.seen(step) for step in (0, 1, 10, 11)] == [0, 4, 40, 40]
    assert float(train.Recipe(samples=8, batch=4, rate=1.0, warmup=0).schedule()(jnp.float32(0))) == 1.0


def test_the_paper_preset_is_the_released_settings() -> None:
    recipe = train.Recipe(samples=200_000, **train.PRESETS["paper"])
    assert recipe == train.Recipe(samples=200_000)
    assert (recipe.rate, recipe.betas, recipe.decay, recipe.clip, recipe.warmup) == (5e-5, (0.9, 0.95), 0.001, 1.0, 100)


def test_the_order_says_where_a_sample_is_from() -> None:
    corpus = corpora.open("udhr", "en", Tokenizer.bytes(), length=16)
    feed = train.Order(corpus, 7)
    positions = feed.corpus.order(7, 0, 400)
    np.testing.assert_array_equal(feed.batch(5, 7, 3).tokens[:2], feed.corpus.batch(positions[5:7]).tokens)
    assert f"sample {positions[9]}, document" in feed.describe(9)
    assert feed.fingerprint != train.Order(corpus, 8).fingerprint


class Numbers:
    """A feed whose sample k holds the number 100 x name + k."""

    def __init__(self, name: int) -> None:
        self.name, self.fingerprint = name, str(name)

    def batch(self, start: int, stop: int, size: int) -> Batch:
        values = np.zeros((size, 2), np.int32)
        values[: stop - start] = (100 * self.name + np.arange(start, stop))[:, None]
        return Batch(values, np.ones_like(values), np.ones_like(values))

    def describe(self, sample: int) -> str:
        return f"{self.name}:{sample}"


def test_replay_by_hand() -> None:
    mix = train.Mix(Numbers(1), (Numbers(2), Numbers(3)), 0.4)
    # floor(0.4 k) for k = 0.. 10: 0 0 0 1 1 2 2 2 3 3 4; a step up is a replayed sample, of each other feed in turn.
    expected = [100, 101, 200, 102, 300, 103, 104, 201, 105, 301]
    assert mix.batch(0, 10, 10).tokens[:, 0].tolist() == expected
    assert [mix.describe(sample) for sample in (1, 4, 9)] == ["1:1", "3:0", "3:1"]
    padded = mix.batch(3, 6, 5)
    assert padded.tokens[:, 1].tolist() == [102, 300, 103, 0, 0]
    assert padded.segments[:, 0].tolist() == [1, 1, 1, 0, 0]


def test_replay_in_any_pieces_is_the_same_and_keeps_its_share() -> None:
    mix = train.Mix(Numbers(1), (Numbers(2), Numbers(3), Numbers(4)), 0.1)
    whole = mix.batch(0, 97, 97).tokens
    pieces = [mix.batch(start, min(start + 7, 97), min(7, 97 - start)).tokens for start in range(0, 97, 7)]
    np.testing.assert_array_equal(np.concatenate(pieces), whole)
    assert int((whole[:, 0] >= 200).sum()) == 9
    assert mix.fingerprint != train.Mix(Numbers(1), (Numbers(2),), 0.1).fingerprint
    with pytest.raises(ValueError, match="share of other texts in a mixture lies between 0 and 1, not at 1.0"):
        train.Mix(Numbers(1), (Numbers(2),), 1.0)


def test_turns_by_hand() -> None:
    turns = train.Turns((Numbers(1), Numbers(2), Numbers(3)), 2)
    batches = [turns.batch(start, start + 2, 2).tokens[:, 0].tolist() for start in range(0, 10, 2)]
    assert batches == [[100, 101], [200, 201], [300, 301], [102, 103], [202, 203]]
    assert turns.batch(3, 4, 2).tokens[:, 0].tolist() == [201, 0]
    assert turns.describe(7) == "1:3"
    assert turns.fingerprint != train.Turns((Numbers(1), Numbers(2), Numbers(3)), 4).fingerprint
    with pytest.raises(ValueError, match="samples 1 to 2 are of several turns of 2"):
        turns.batch(1, 3, 2)
