"""Evaluation: sums that are divided once, figures by hand, and nothing but the text and the model behind them."""

import decimal
import math
from collections.abc import Iterator

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lingregions import evaluate, loss, models
from lingregions import mesh as meshes
from lingregions import tree as trees
from lingregions.corpus.batch import Batch
from lingregions.evaluate import Result, perplexity

CONFIG = models.DecoderConfig(vocab=40, embed=8, mlp=12, layers=2, heads=4, kv_heads=2, head_dim=2, context=64, std=0.5)
S, T = 12, 9


def corpus() -> Batch:
    rng = np.random.default_rng(0)
    segments = np.ones((S, T), np.int32)
    segments[2, 3:] = 2
    segments[3, 5:] = 0
    segments[4, 1:] = 0  # one token: no target
    sizes = rng.integers(0, 5, (S, T))
    return Batch(rng.integers(0, 40, (S, T)).astype(np.int32), segments, sizes.astype(np.int32))


def batches(size: int, order: list[int] | range = range(S)) -> Iterator[Batch]:
    """The samples in batches of `size`, the last one filled up with padding."""
    for start in range(0, S, size):
        rows = list(order)[start : start + size]
        yield Batch(*(np.pad(each[rows], ((0, size - len(rows)), (0, 0))) for each in corpus()))


def stated(*rows: list[list[float | None]]) -> tuple[evaluate.Evaluator, list[Batch]]:
    """A model that gives these losses, batch by batch (None: no target there), and the batches to give it.

    The token at position t stands for t bytes.
    """
    given, batches = [], []
    for number, losses in enumerate(rows):
        nll = np.asarray([[0.0 if each is None else each for each in row] for row in losses], np.float32)
        counts = np.asarray([[each is not None for each in row] for row in losses])
        nll, counts = (np.pad(each, ((0, 0), (0, 1))) for each in (nll, counts))
        given.append((nll, counts))
        shape = nll.shape
        sizes = np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape)
        batches.append(Batch(np.full(shape, number, np.int32), np.ones(shape, np.int32), sizes))
    return lambda params, batch, bounds=None: given[batch.tokens[0, 0]], batches


def summed(evaluator, params, batches, put=lambda batch: batch, numbers=None) -> Result:
    """The sums over all batches; without numbers of segments every row is one."""
    found, where = list(evaluate.stream(evaluator, params, batches, put)), []
    for place, losses in enumerate(found):
        before = sum(each.rows for each in found[:place])
        where.append(losses.row + before if numbers is None else numbers[place][losses.row, losses.position])
    return evaluate.total(where, found)


# The figures.


def test_figures_by_hand():
    nothing = evaluate.Segments(*(np.zeros(0) for _ in range(4)))
    result = Result(nll=12 * math.log(2), tokens=4, bytes=6, segments=nothing)
    assert result.nats == pytest.approx(3 * math.log(2))
    assert result.bits == pytest.approx(2)
    assert perplexity(result.nats) == "8.00000000"


@pytest.mark.parametrize(
    ("nats", "text"),
    [
        (0.0, "1"),
        (1.0, "2.71828183"),
        (math.log(16), "16.0000000"),
        (1000.0, "1.97007111e+434"),
        (1e5, "2.80666336e+43429"),
        (1e19, "1e+4342944819032518276"),  # more digits than a decimal number of Python may have
        (math.nan, "nan"),
        (math.inf, "inf"),
    ],
)
def test_perplexity_by_hand(nats, text):
    assert perplexity(nats) == text


def test_what_no_language_model_gives_is_doubted():
    def result(*nats: float) -> Result:
        tokens = np.full(len(nats), 2)
        sums = evaluate.Segments(np.arange(len(nats)), 2 * np.asarray(nats), tokens, tokens)
        return Result(float(sums.nll.sum()), int(tokens.sum()), int(tokens.sum()), sums)

    level = math.log(40)
    assert evaluate.doubt(result(3.2, 2.9, 3.5), 40) == ""
    assert evaluate.doubt(result(level + 0.1, level - 0.1), 40) == ""  # ln V in the mean alone
    assert "ln V = 3.6889 nats" in evaluate.doubt(result(level, level + 1e-6), 40)
    assert evaluate.doubt(result(3.2, math.nan), 40) == "the loss is nan"
    assert evaluate.doubt(result(3.2, math.inf), 40) == "the loss is inf"


def test_a_model_whose_weights_vanished_is_doubted(evaluator, params):
    silent = jax.tree.map(np.zeros_like, params)
    assert "the logits are all equal" in evaluate.doubt(summed(evaluator, silent, batches(4)), CONFIG.vocab)
    assert evaluate.doubt(summed(evaluator, params, batches(4)), CONFIG.vocab) == ""


@given(st.floats(0, 700))
def test_perplexity_is_the_exponential(nats):
    assert float(perplexity(nats)) == pytest.approx(math.exp(nats), rel=1e-8)


@given(st.floats(700, 3e38))
def test_perplexity_never_overflows_and_gives_the_nats_back(nats):
    mantissa, exponent = perplexity(nats).split("e+")
    digits = float(exponent) + math.log10(float(mantissa))
    # Nine digits of the mantissa leave 4e-9 of its logarithm open.
    assert math.isclose(digits, nats / math.log(10), rel_tol=1e-12, abs_tol=4e-9)


@given(st.floats(0, 1e17), st.floats(0, 1e17))
def test_perplexity_keeps_the_order(one, other):
    small, large = sorted((one, other))
    assert decimal.Decimal(perplexity(small)) <= decimal.Decimal(perplexity(large))


# The sums.


def test_sums_over_batches_by_hand():
    evaluator, given = stated([[1.0, 0.5, None], [None, None, None]], [[2.25, None, None], [1.0, None, 3.0]])
    result = summed(evaluator, {}, given)
    assert (result.nll, result.tokens, result.bytes) == (7.75, 5, (1 + 2) + 1 + (1 + 3))
    # Without numbers every row is a segment; one without targets is none.
    assert [column.tolist() for column in result.segments] == [[0, 2, 3], [1.5, 2.25, 4.0], [2, 1, 2], [3, 1, 4]]
    assert result.segments.nll.dtype == np.float64
    assert (type(result.nll), type(result.tokens), type(result.bytes)) == (float, int, int)


def test_segments_that_lie_in_several_samples_by_hand():
    evaluator, given = stated([[1.0, 2.0, None], [4.0, None, 8.0]], [[16.0, 32.0, None]])
    # The number of a target's own position counts: [., 1, 1, .], [., 1, ., 5] and [., 5, 9, .].
    numbers = [np.array([[7, 1, 1, 7], [7, 1, 7, 5]]), np.array([[7, 5, 9, 7]])]
    result = summed(evaluator, {}, given, numbers=numbers)
    assert [column.tolist() for column in result.segments] == [
        [1, 5, 9],
        [7.0, 24.0, 32.0],
        [3, 2, 1],
        [4, 4, 2],
    ]


def test_sums_are_float64():
    # In float32 2^24 + 1 is 2^24.
    evaluator, given = stated([[2.0**24, 1.0]])
    assert summed(evaluator, {}, given).nll == 2.0**24 + 1


def test_a_sample_without_targets_counts_nothing_whatever_it_holds():
    nll, counts = np.array([[math.nan, 1.0]], np.float32), np.array([[False, True]])
    (batch,) = stated([[None]])[1]
    batch = batch._replace(bytes=np.zeros((1, 3), np.int32))
    result = summed(lambda params, batch, bounds: (nll, counts), {}, [batch])
    assert (result.nll, result.tokens) == (1.0, 1)


def test_a_model_that_gives_nan_says_so():
    evaluator, given = stated([[math.nan, 1.0], [1.0, None]])
    result = summed(evaluator, {}, given)
    assert math.isnan(result.nll)
    assert perplexity(result.nats) == "nan"
    assert result.tokens == 3
    assert result.segments.nll[1] == 1.0


@pytest.mark.parametrize("rows", [[], [[[None, None], [None, None]]]], ids=["no batch", "no target"])
def test_an_empty_corpus_is_refused(rows):
    evaluator, given = stated(*rows)
    with pytest.raises(ValueError, match="no sample with two tokens of one document"):
        summed(evaluator, {}, given)


def test_batches_are_sent_ahead_of_what_is_read():
    """The devices work on the next batch while the host adds up the last."""
    order: list[str] = []
    inner, given = stated([[1.0]], [[2.0]], [[4.0]])

    def evaluator(params: trees.Tree, batch: Batch, bounds: None) -> tuple[np.ndarray, np.ndarray]:
        order.append(f"send {batch.tokens[0, 0]}")
        return inner(params, batch)

    for number, losses in enumerate(evaluate.stream(evaluator, {}, given, lambda batch: batch)):
        order.append(f"read {number}")
        assert losses.nll.tolist() == [2.0**number]
    assert order == ["send 0", "send 1", "read 0", "send 2", "read 1", "read 2"]


# With a model: the figure is of the model and the text alone.


@pytest.fixture(scope="module")
def params() -> trees.Tree:
    return models.initialize(CONFIG, jax.random.key(0))


@pytest.fixture(scope="module")
def evaluator() -> evaluate.Evaluator:
    return evaluate.build(CONFIG, models.Compute())


@pytest.fixture(scope="module")
def result(evaluator, params) -> Result:
    return summed(evaluator, params, batches(4))


def test_the_result_is_the_sum_of_the_losses(params, result):
    found = jax.jit(loss.nll, static_argnums=(0, 1))(CONFIG, models.Compute(), params, corpus())
    assert result.tokens == 9 * 8 + (2 + 5) + 4 + 0
    assert result.bytes == int(np.asarray(found.bytes).sum())
    expected = np.delete(np.asarray(found.nll, np.float64), 4)
    np.testing.assert_allclose(result.segments.nll, expected, rtol=1e-6)
    assert result.segments.number.tolist() == [0, 1, 2, 3, *range(5, S)]
    assert result.nll == pytest.approx(expected.sum(), rel=1e-6)
    # A random model of this size is about as good as a guess among 40.
    assert 0.5 * math.log(40) < result.nats < 2 * math.log(40)


@pytest.mark.parametrize("size", [1, 5, S])
def test_the_batch_size_and_its_padding_do_not_matter(evaluator, params, result, size):
    found = summed(evaluator, params, batches(size))
    assert (found.tokens, found.bytes) == (result.tokens, result.bytes)
    np.testing.assert_allclose(found.segments.nll, result.segments.nll, rtol=1e-6)
    assert found.nll == pytest.approx(result.nll, rel=1e-6)


def test_the_order_does_not_matter(evaluator, params, result):
    order = np.random.default_rng(1).permutation(S).tolist()
    found = summed(evaluator, params, batches(4, order))
    assert (found.tokens, found.bytes) == (result.tokens, result.bytes)
    assert found.nll == pytest.approx(result.nll, rel=1e-9)
    np.testing.assert_allclose(np.sort(found.segments.nll), np.sort(result.segments.nll), rtol=1e-6)


def test_tokens_in_padding_do_not_matter(evaluator, params, result):
    filled = [each._replace(tokens=np.where(each.segments == 0, 7, each.tokens)) for each in batches(4)]
    np.testing.assert_array_equal(summed(evaluator, params, filled).segments.nll, result.segments.nll)


def test_longer_padding_does_not_matter(evaluator, params, result):
    longer = [Batch(*(np.pad(each, ((0, 0), (0, 3))) for each in batch)) for batch in batches(4)]
    np.testing.assert_allclose(summed(evaluator, params, longer).segments.nll, result.segments.nll, rtol=1e-6)


@pytest.mark.parametrize("devices", ["lone_mesh", "mesh"])
def test_devices_do_not_matter(params, result, devices, request):
    mesh = request.getfixturevalue(devices)
    placed = jax.device_put(params, meshes.shardings(models.declare(CONFIG), mesh))
    sharded = evaluate.build(CONFIG, models.Compute(), mesh)
    found = summed(sharded, placed, batches(4), lambda batch: meshes.place(batch, mesh))
    assert (found.tokens, found.bytes) == (result.tokens, result.bytes)
    np.testing.assert_allclose(found.segments.nll, result.segments.nll, rtol=1e-6)
    assert all(each.is_fully_replicated for each in sharded(placed, meshes.place(next(batches(4)), mesh)))


def test_another_arm_is_another_figure_without_another_program(params, result, monkeypatch):
    traced = []
    original = loss.losses
    monkeypatch.setattr(loss, "losses", lambda *given, **named: traced.append(1) or original(*given, **named))
    evaluator = evaluate.build(CONFIG, models.Compute())
    interventions = [summed(evaluator, jax.tree.map(lambda leaf, k=k: leaf * k, params), batches(4)) for k in (1, 2, 3)]
    assert len(traced) == 1
    assert len({intervention.nll for intervention in interventions}) == 3
    assert interventions[0].nll == result.nll
