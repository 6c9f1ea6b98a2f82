"""Extremes: where the activations of a model are extreme on the text of a run, and what regions this makes.

Two published findings know nothing of languages, and any account of a core region has to be held against them: super
weights (arXiv 2411.07191) and the dimensions of massive activations (arXiv 2402.17762). Costs one forward pass over one
sample of each scored language.
"""

import functools

import numpy as np

from lingregions import mesh as meshes
from lingregions import models
from lingregions.experiments import laboratory as lab
from lingregions.experiments.laboratory import Laboratory
from lingregions.models import ActivationMaxima


def watch(laboratory: Laboratory) -> ActivationMaxima:
    """Return the peaks over one sample of each scored language: its first."""
    size = meshes.rows(laboratory.mesh)

    def one(language: str) -> ActivationMaxima:
        corpus, positions = lab.draw(laboratory, language, "score")
        batch = laboratory.place(corpus.batch(positions[:1], size))
        with meshes.use(laboratory.mesh):
            found = models.activation_maxima(
                laboratory.model, laboratory.compute, laboratory.params, batch.tokens, batch.segments
            )
        return ActivationMaxima(*map(np.asarray, found))

    every = [one(language) for language in laboratory.settings.score.languages]
    return ActivationMaxima(*(functools.reduce(np.maximum, side) for side in zip(*every, strict=True)))
