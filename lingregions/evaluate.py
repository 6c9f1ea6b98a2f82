"""What the model loses: negative log-likelihood, perplexity and bits per byte of a language.

Sums over all targets of a corpus, divided once at the end (docs/method.md 3); sums by segment beside them, which a
paired bootstrap draws from (`statistics`). Sums are float64 on the host. One compiled function serves every
intervention and language: the parameters are an argument. Cost: one forward pass a token, and 5 bytes a token back to
the host.
"""

import decimal
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from lingregions import loss, models
from lingregions import mesh as meshes
from lingregions import tree as trees
from lingregions.corpus.batch import Batch
from lingregions.corpus.corpus import Corpus

# (params, batch, bounds) -> nats of every target, float32 [B, T], and which positions have one, bool [B, T]
Evaluator = Callable[[trees.Tree, Batch, trees.Tree | None], tuple[jax.Array, jax.Array]]


class Segments(NamedTuple):
    """Sums over the targets of each segment - a document, or a stretch of one - in the order of their numbers.

    Attributes:
      number: int64 [n], which segment.
      nll: float64 [n], nats.
      tokens: int64 [n], targets.
      bytes: int64 [n], UTF-8 bytes that they stand for.
    """

    number: np.ndarray
    nll: np.ndarray
    tokens: np.ndarray
    bytes: np.ndarray


class Result(NamedTuple):
    """Sums over a corpus.

    Attributes:
      nll: negative log-likelihood of all targets, nats; NaN if the model gave NaN.
      tokens: targets.
      bytes: UTF-8 bytes that the targets stand for.
      segments: the same sums by segment.
    """

    nll: float
    tokens: int
    bytes: int
    segments: Segments

    @property
    def nats(self) -> float:
        """Mean negative log-likelihood in nats per token."""
        return self.nll / self.tokens

    @property
    def bits(self) -> float:
        """Bits per byte: the figure that compares tokenizers and languages; NaN where no target stands for a byte."""
        return self.nll / math.log(2) / self.bytes if self.bytes else math.nan


def doubt(result: Result, vocab: int) -> str:
    """Return why a result can't be that of a language model, or nothing.

    Not a number; or ln V in every segment alike: logits that are all equal, as weights that have overflowed or vanished
    give them. Their perplexity, V, looks like a figure.

    Args:
      result: sums over a corpus.
      vocab: V, entries of the vocabulary.
    """
    if not math.isfinite(result.nll):
        return f"the loss is {result.nll}"
    each = result.segments.nll / result.segments.tokens
    if float(np.max(np.abs(each - math.log(vocab)))) < 1e-4:  # float32 rounds ln V to 1e-6
        return f"every token costs ln V = {math.log(vocab):.4f} nats, whatever it is: the logits are all equal"
    return ""


def perplexity(nats: float) -> str:
    """Return exp(nats) as decimal text with 9 significant digits; never overflows ("1.97007111e+434").

    Args:
      nats: nats per token; NaN gives "nan", infinity "inf".
    """
    if not math.isfinite(nats):
        return str(nats)
    context = decimal.Context(prec=20, Emax=decimal.MAX_EMAX, Emin=decimal.MIN_EMIN)
    try:
        return f"{decimal.Decimal(nats).exp(context):.9g}"
    except decimal.Overflow:  # more than 10^18 digits: a float64 of nats does not say how they begin
        return f"1e+{int(decimal.Decimal(nats) / decimal.Decimal(10).ln())}"


def build(config: Any, compute: models.Compute, mesh: Mesh | None = None) -> Evaluator:
    """Return the compiled evaluation of a batch; one compilation a batch shape serves all interventions.

    With a mesh the losses come back on every device, so that every host can read them.
    """
    whole = None if mesh is None else meshes.replicated(mesh)
    compiled = jax.jit(functools.partial(loss.losses, config, compute), out_shardings=whole)

    def run(params: trees.Tree, batch: Batch, bounds: trees.Tree | None = None) -> tuple[jax.Array, jax.Array]:
        with meshes.use(mesh):
            out: tuple[jax.Array, jax.Array] = compiled(params, batch, bounds=bounds)
            return out

    return run


class Losses(NamedTuple):
    """The targets of one batch on the host, one entry a target, row by row.

    Attributes:
      rows: rows of the batch.
      row: int64 [n], the row of the target.
      position: int64 [n], the position of the target in its row.
      nll: float64 [n], nats.
      bytes: int64 [n], UTF-8 bytes that it stands for.
    """

    rows: int
    row: np.ndarray
    position: np.ndarray
    nll: np.ndarray
    bytes: np.ndarray

    def take(self, start: int, stop: int) -> "Losses":
        """Return the targets of the rows start .. stop, which become the rows from 0."""
        here = (self.row >= start) & (self.row < stop)
        return Losses(stop - start, self.row[here] - start, self.position[here], self.nll[here], self.bytes[here])


def stream(
    evaluator: Evaluator,
    params: trees.Tree,
    batches: Iterable[Batch],
    put: Callable[[Batch], Batch],
    bounds: trees.Tree | None = None,
) -> Iterator[Losses]:
    """Yield the losses of each batch, while the devices are at work on the next.

    Args:
      evaluator: from `build`.
      params: the parameters of the model, or what an intervention makes of them.
      batches: host batches of one shape; rows of padding have no target.
      put: places a batch on the mesh.
      bounds: bounds on what comes from some weights (see `models.bounded`); asking for them is another program.
    """
    if isinstance(batches, Corpus):
        raise TypeError("batches are needed, not a corpus: corpus.batch(positions) gives one")
    waiting: tuple[Batch, tuple[jax.Array, jax.Array]] | None = None
    for batch in batches:
        ahead = (batch, evaluator(params, put(batch), bounds))
        if waiting is not None:
            yield _losses(*waiting)
        waiting = ahead
    if waiting is not None:
        yield _losses(*waiting)


def _losses(batch: Batch, found: tuple[jax.Array, jax.Array]) -> Losses:
    nll, counts = (np.asarray(each) for each in found)
    row, before = np.nonzero(counts)
    sizes = np.asarray(batch.bytes)[row, before + 1].astype(np.int64)
    return Losses(len(counts), row, before + 1, nll[row, before].astype(np.float64), sizes)


def total(numbers: Sequence[np.ndarray], losses: Sequence[Losses]) -> Result:
    """Return the sums of the targets of some batches.

    Args:
      numbers: for each batch the segment of each of its targets, int64 [n].
      losses: the targets.

    Raises:
      ValueError: there is none.
    """
    number = np.concatenate([*numbers, np.zeros(0, np.int64)])
    if not number.size:
        raise ValueError("nothing to evaluate: the corpus has no sample with two tokens of one document")
    nll = np.concatenate([each.nll for each in losses])
    size = np.concatenate([each.bytes for each in losses])
    found, place = np.unique(number, return_inverse=True)
    counts = np.bincount(place, minlength=len(found))
    sizes = np.zeros(len(found), np.int64)
    np.add.at(sizes, place, size)
    segments = Segments(found, np.bincount(place, nll, len(found)), counts.astype(np.int64), sizes)
    return Result(float(nll.sum()), len(nll), int(size.sum()), segments)
