"""Prefix: what a model computes before the first layer that an intervention touches, computed once for many of them.

Changing weights of layer l leaves every hidden state before it as it was: an evaluation that begins there costs the
layers from l on, and the vocabulary. The hidden states of the untouched model are kept on the devices for the batches
of one series of evaluations; one compiled program serves every l. Costs one forward pass of the layers a series, and
the memory that it is given: where that holds only some layers, an evaluation begins at the last one before l.

Changes of a few rows of one layer (`rows`) are evaluated many at a time, as one batch, by one program for all layers
and arrays: the losses are those of one by one but for rounding, and so is how many are taken at a time.
"""

import functools
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from lingregions import evaluate, loss, models, rows
from lingregions import mesh as meshes
from lingregions import tree as trees
from lingregions.corpus.batch import Batch
from lingregions.rows import Rows

ROOM = 1.0  # GB of hidden states, where nothing else is said
_LEAST = 0.1  # of the layers must be spared, or the whole pass is as well
_TOKENS = 4096  # of one batch of changes: more is no faster on a CPU, and little more on an accelerator
_MOST = 16  # changes at a time, however few tokens there are


class Stages:
    """The compiled halves of an evaluation, made once for a model: up to some layers, and from one of them on.

    Args:
      config: model config.
      compute: how to run it.
      mesh: device mesh; the losses come back on every device of it.
    """

    def __init__(self, config: Any, compute: models.Compute, mesh: Mesh | None = None) -> None:
        self.config, self.mesh = config, mesh
        self.bytes = config.embed * np.dtype(compute.activations).itemsize  # of one token's hidden state
        whole = None if mesh is None else meshes.replicated(mesh)
        self._before = jax.jit(functools.partial(loss.states, config, compute), static_argnums=0)
        self._after = jax.jit(functools.partial(loss.losses_from, config, compute), out_shardings=whole)
        self._of_rows = jax.jit(functools.partial(loss.losses_of_rows, config, compute), out_shardings=whole)

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

    def of_rows(
        self, params: trees.Tree, batch: Batch, states: jax.Array, slot: int, begin: int, changes: Sequence[Rows]
    ) -> tuple[jax.Array, jax.Array]:
        """Return the losses under each change of one layer (see `loss.losses_of_rows`), begun as `after` does."""
        where = np.int32(slot), np.int32(begin), np.int32(changes[0].layer)
        with meshes.use(self.mesh):
            out: tuple[jax.Array, jax.Array] = self._of_rows(
                params, batch, states, *where, rows.together(self.config, changes)
            )
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
        self.evaluated: dict[Hashable, evaluate.Evaluator | None] = {}  # what is done and not asked for yet

    def _begin(self, first: int) -> int | None:
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
        place = self._begin(first)
        if place is None:
            return None
        states, slot = iter(self._known(params, key, batches)), self.places.index(place)

        def run(params: trees.Tree, batch: Batch, bounds: trees.Tree | None = None) -> tuple[jax.Array, jax.Array]:
            return self._stages.after(params, batch, next(states), slot, place)

        return run

    def _known(self, params: trees.Tree, key: Hashable, batches: Iterable[Batch]) -> list[jax.Array]:
        """Return the states of the batches, which are computed where they are not those of `key`."""
        if key != self._key:
            self._states = []
            self._states = [self._stages.before(params, batch, self.places) for batch in batches]
            self._key = key
        return self._states

    def groups(self, layers: Sequence[int | None], tokens: int) -> list[list[int]]:
        """Return which changes are evaluated together with each: those of one layer, as many as a batch holds.

        Args:
          layers: of each change; None: it is evaluated by itself.
          tokens: of a batch of texts.
        """
        found: list[list[int]] = [[number] for number in range(len(layers))]
        most = max(1, min(_MOST, _TOKENS // tokens))
        for layer in {each for each in layers if each is not None and self._begin(each) is not None}:
            same = [number for number, each in enumerate(layers) if each == layer]
            for part in np.array_split(same, -(-len(same) // most)):
                for number in part.tolist():
                    found[number] = part.tolist()
        return found

    def evaluators(
        self, changes: Sequence[Rows], params: trees.Tree, key: Hashable, batches: Iterable[Batch]
    ) -> list[evaluate.Evaluator]:
        """Return what evaluates the batches in turn under each of some changes of one layer, which is done now.

        Args:
          changes: as `groups` puts them together.
          params: the untouched parameters.
          key: as in `evaluator`.
          batches: on the mesh.
        """
        place, texts = self._begin(changes[0].layer), list(batches)
        assert place is not None, "groups asks before"
        slot, found = self.places.index(place), []
        for batch, states in zip(texts, self._known(params, key, texts), strict=True):
            found.append(self._stages.of_rows(params, batch, states, slot, place, changes))
        host = [tuple(map(np.asarray, each)) for each in found]
        return [_replay(iter([(nll[number], counts) for nll, counts in host])) for number in range(len(changes))]


def _replay(found: Iterator[Any]) -> evaluate.Evaluator:
    """Return the evaluator that gives these losses, in turn."""

    def run(params: trees.Tree, batch: Batch, bounds: trees.Tree | None = None) -> tuple[jax.Array, jax.Array]:
        nll, counts = next(found)
        return nll, counts

    return run
