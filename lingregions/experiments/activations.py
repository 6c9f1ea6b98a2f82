"""Activations: where those of a model are extreme on the scored text of a run.

Two published findings know nothing of languages, and any account of a core region has to be held against them: super
weights (arXiv 2411.07191) and the dimensions of massive activations (arXiv 2402.17762). Costs one forward pass over one
sample of each scored language.
"""

import functools

import numpy as np

from lingregions import models
from lingregions.experiments.context import Context
from lingregions.models import ActivationMaxima


def maxima(context: Context) -> ActivationMaxima:
    """Return the maxima over one sample of each scored language, its first; NumPy arrays."""
    model = context.model

    def one(language: str) -> ActivationMaxima:
        corpus, positions = context.samples(language, "score")
        batch = model.place(corpus.batch(positions[:1], model.rows))
        return ActivationMaxima(*map(np.asarray, model.run(models.activation_maxima, batch.tokens, batch.segments)))

    every = [one(language) for language in context.settings.score.languages]
    return ActivationMaxima(*(functools.reduce(np.maximum, side) for side in zip(*every, strict=True)))
