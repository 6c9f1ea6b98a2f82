"""What the model loses: negative log-likelihood, perplexity and bits per byte of a language.

Sums over all targets of a corpus, divided once at the end (docs/method.md 3). Sums over samples are float64 on the
host. One compiled function serves every arm and language: the parameters are an argument. Cost: one forward pass a
token.
"""

import decimal
import functools
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from lingregions import loss, models
from lingregions import mesh as meshes
from lingregions import tree as trees
from lingregions.corpus.batch import Batch

Evaluator = Callable[[trees.Tree, Batch], loss.Loss]


class Result(NamedTuple):
    """Sums over a corpus.

    Attributes:
      nll: negative log-likelihood of all targets, nats; NaN if the model gave NaN.
      tokens: targets.
      bytes: UTF-8 bytes that the targets stand for.
      samples: float64 [samples], nats of each sample, in order: what a paired bootstrap draws from.
    """

    nll: float
    tokens: int
    bytes: int
    samples: np.ndarray

    @property
    def nats(self) -> float:
        """Mean negative log-likelihood in nats per token."""
        return self.nll / self.tokens

    @property
    def bits(self) -> float:
        """Bits per byte: the figure that compares tokenizers and languages; NaN where no target stands for a byte."""
        return self.nll / math.log(2) / self.bytes if self.bytes else math.nan


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
    """Return the compiled (params, batch) -> `Loss`; one compilation a batch shape serves all arms.

    With a mesh the sums come back on every device, so that every host can read them.
    """
    whole = None if mesh is None else meshes.replicated(mesh)
    compiled = jax.jit(functools.partial(loss.nll, config, compute), out_shardings=whole)

    def run(params: trees.Tree, batch: Batch) -> loss.Loss:
        with meshes.use(mesh):
            out: loss.Loss = compiled(params, batch)
            return out

    return run


def evaluate(
    evaluator: Evaluator,
    params: trees.Tree,
    batches: Iterable[Batch],
    put: Callable[[Batch], Batch] = lambda batch: batch,
    advance: Callable[[int], None] = lambda tokens: None,
) -> Result:
    """Return the sums over all batches.

    Args:
      evaluator: from `build`.
      params: the parameters of this arm.
      batches: host batches of one shape; rows of padding count nothing.
      put: places a batch on the mesh.
      advance: told the tokens of each batch when it is done (progress).

    Raises:
      ValueError: there is no target in the batches.
    """
    nats, tokens, size = [], 0, 0
    for batch in batches:
        found = evaluator(params, put(batch))
        count = np.asarray(found.tokens, np.int64)
        nats.append(np.asarray(found.nll, np.float64)[count > 0])
        tokens += int(count.sum())
        size += int(np.asarray(found.bytes, np.int64).sum())
        advance(int(count.sum()))
    if not tokens:
        raise ValueError("nothing to evaluate: the corpus has no sample with two tokens of one document")
    samples = np.concatenate(nats)
    return Result(float(samples.sum()), tokens, size, samples)
