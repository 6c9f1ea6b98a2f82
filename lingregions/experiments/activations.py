"""Activations: where those of a model are extreme on the scored text of a run.

Two published findings know nothing of languages, and any account of a core region has to be held against them: super
weights (arXiv 2411.07191) and the dimensions of massive activations (arXiv 2402.17762). Costs one forward pass over one
sample of each scored language.
"""

import functools

import numpy as np

from lingregions import mesh as meshes
from lingregions import models
from lingregions.experiments.context import Context
from lingregions.models import ActivationMaxima


def maxima(context: Context) -> ActivationMaxima:
    """Return the maxima over one sample of each scored language, its first; NumPy arrays."""
    model = context.model

    def one(language: str) -> ActivationMaxima:
        corpus, positions = context.samples(language, "score")
        batch = model.place(corpus.batch(positions[:1], meshes.rows(model.mesh)))
        with meshes.use(model.mesh):
            found = models.activation_maxima(model.config, model.compute, model.params, batch.tokens, batch.segments)
        return ActivationMaxima(*map(np.asarray, found))

    every = [one(language) for language in context.settings.score.languages]
    return ActivationMaxima(*(functools.reduce(np.maximum, side) for side in zip(*every, strict=True)))
