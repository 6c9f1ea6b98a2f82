"""Prefix: what a model computes before the first layer that an intervention touches, computed once for many of them.

Changing weights of layer l leaves every hidden state before it as it was: an evaluation that begins there costs the
layers from l on, and the vocabulary. The hidden states of the untouched model are kept on the devices for the batches
of one series of evaluations; one compiled program serves every l. Costs one forward pass of the layers a series, and
the memory that it is given: where that holds only some layers, an evaluation begins at the last one before l.
"""

import functools
from collections.abc import Hashable, Iterable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from lingregions import evaluate, loss, models
from lingregions import mesh as meshes
from lingregions import tree as trees
from lingregions.corpus.batch import Batch
from lingregions.models.compute import DTYPES

ROOM = 1.0  # GB of hidden states, where nothing else is said
_LEAST = 0.1  # of the layers must be spared, or the whole pass is as well


class Stages:
    """The compiled halves of an evaluation, made once for a model: up to some layers, and from one of them on.

    Args:
      config: model config.
      compute: how to run it.
      mesh: device mesh; the losses come back on every device of it.
    """

    def __init__(self, config: Any, compute: models.Compute, mesh: Mesh | None = None) -> None:
        self.config, self.mesh = config, mesh
        self.bytes = config.embed * np.dtype(DTYPES[compute.dtype]).itemsize  # of one token's hidden state
        whole = None if mesh is None else meshes.replicated(mesh)
        self._before = jax.jit(functools.partial(loss.states, config, compute), static_argnums=0)
        self._after = jax.jit(functools.partial(loss.losses_from, config, compute), out_shardings=whole)

    def before(self, params: trees.Tree, batch: Batch, places: tuple[int, ...]) -> jax.Array:
        """Return what enters the layers at `places`, [places, B, T, D]."""
        with meshes.use(self.mesh):
            out: jax.Array = self._before(places, params, batch)
            return out

    def after(
        self, params: trees.Tree, batch: Batch, states: jax.Array, slot: int, place: int
    ) -> tuple[jax.Array, jax.Array]:
        """Return the losses (see `loss.losses`) from what enters the layer at `place`, which is `states[slot]`."""
        with meshes.use(self.mesh):
            out: tuple[jax.Array, jax.Array] = self._after(params, batch, states, np.int32(slot), np.int32(place))
            return out


class Prefix:
    """The hidden states of one series of evaluations, during which the model is untouched between interventions.

    Args:
      stages: of the model.
      tokens: of all texts of the series, padding included; with `room` they say at how many layers states are kept.
      room: GB of hidden states, on all devices together.
    """

    def __init__(self, stages: Stages, tokens: int, room: float = ROOM) -> None:
        self._stages = stages
        layers = stages.config.layers
        held = min(layers, int(room * 1e9 / max(1, tokens * stages.bytes)))
        # What enters layer 0 is not worth keeping; what leaves the last is, for the norm that follows.
        self.places = tuple(sorted({round(layers * (number + 1) / held) for number in range(held)}))
        self._key: Hashable = None
        self._states: list[jax.Array] = []

    def begin(self, first: int) -> int | None:
        """Return the layer at which an evaluation begins whose intervention first touches layer `first`.

        None: it is run from the start, since too little would be spared.
        """
        found = max((place for place in self.places if place <= first), default=0)
        return found if found >= max(1, _LEAST * self._stages.config.layers) else None

    def evaluator(
        self, first: int, params: trees.Tree, key: Hashable, batches: Iterable[Batch]
    ) -> evaluate.Evaluator | None:
        """Return what evaluates these batches in turn under an intervention; None: a whole pass is as well.

        Args:
          first: the first layer that it touches; the number of layers if it touches none.
          params: the untouched parameters.
          key: says whether these are the batches of the evaluation before, whose states are still there.
          batches: on the mesh.
        """
        place = self.begin(first)
        if place is None:
            return None
        if key != self._key:
            self._states = []
            self._states = [self._stages.before(params, batch, self.places) for batch in batches]
            self._key = key
        states, slot = iter(self._states), self.places.index(place)

        def run(params: trees.Tree, batch: Batch, bounds: trees.Tree | None = None) -> tuple[jax.Array, jax.Array]:
            return self._stages.after(params, batch, next(states), slot, place)

        return run
