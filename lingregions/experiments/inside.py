"""Inside: a training in which the entries of a region alone move, and everything else keeps its bits.

The complement of the region is frozen (`freeze.hard`), in the embedding and the norms too. Several regions take turns:
batch k is of language k mod n, and moves the region of that language alone. What is proved at the end: nothing outside
moved, to the bit.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from lingregions import freeze, models, train
from lingregions import tree as trees
from lingregions.experiments import learning, measurement, selection
from lingregions.experiments.context import Context
from lingregions.experiments.step import Step
from lingregions.intervention import Intervention
from lingregions.regions import Region, union


@dataclasses.dataclass(frozen=True)
class Training:
    """A training, and where it may move the model.

    Attributes:
      record: what it is in the tables, with its seed.
      languages: that it trains on, a batch each in turn.
      regions: names of the regions that move: one, or one for each language in its turn; (): everything moves.
      outside: whether it is everything but the (one) region that moves.
      removed: {what is measured at the end with a region removed: the region's name}.
    """

    record: Intervention
    languages: tuple[str, ...]
    regions: tuple[str, ...] = ()
    outside: bool = False
    removed: Mapping[Intervention, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class _Turn:
    """A schedule: the step size is 1 at every update number `place` modulo `number`, and 0 at all others."""

    place: int
    number: int

    def __call__(self, count: jax.Array) -> jax.Array:
        """Return the step size of update number `count` (from 0), float32."""
        return (count % self.number == self.place).astype(jnp.float32)


def check(settings: ConfigDict) -> None:
    """Refuse a training language that is not scored, and a schedule that does not fit.

    Raises:
      ValueError: says which.
    """
    languages = list(settings.train.languages)
    if len(set(languages)) < max(2, len(languages)):
        raise ValueError(f"train.languages needs two or more, each named once, not {', '.join(languages) or 'none'}")
    if lacking := [code for code in languages if code not in settings.score.languages]:
        raise ValueError(f"{lacking[0]} is trained but not in score.languages: add it there")
    if not settings.train.seeds:
        raise ValueError("train.seeds is empty: every training has one")
    learning.recipe(settings)


def step(settings: ConfigDict, config: Any, training: Training) -> Step:
    """Return the step of a training."""
    named, perform = " and ".join(training.languages), functools.partial(_learn, training=training)
    return learning.step(settings, config, training.record, named, perform, list(training.removed))


def _outside(params: trees.Tree, masks: trees.Tree) -> trees.Tree:
    """Return masks of all that a region does not hold, whatever its scope."""
    leaves = trees.flatten(masks)
    return trees.transform(
        lambda path, leaf: ~leaves[path] if path in leaves else jnp.ones_like(leaf, dtype=bool), params
    )


def _constraints(params: trees.Tree, found: Sequence[Region], others: bool = False) -> list[freeze.Constraint]:
    """Return what holds everything still but the regions, each in its turn.

    Args:
      params: the parameters, on their shards.
      found: the regions; none: nothing is held.
      others: whether everything moves but the regions instead.
    """
    if not found:
        return []
    held = freeze.hard(params, _held(params, found, others), name="held")
    number = len(found)
    turns = [freeze.hard(params, each.masks, _Turn(place, number), f"turn {place}") for place, each in enumerate(found)]
    return [held, *turns] if number > 1 else [held]


def _held(params: trees.Tree, found: Sequence[Region], others: bool) -> trees.Tree:
    """Return masks of what never moves."""
    masks = union(*found).masks
    return masks if others else _outside(params, masks)


def _learn(context: Context, training: Training) -> None:
    """Train, evaluate at the counts, prove that what was held did not move, and remove what is to be removed."""
    settings, start, seed = context.settings, context.model.params, training.record.seed or 0
    found = [selection.read(context, name) for name in training.regions]
    orders = tuple(train.Order(context.corpus(code, "train"), seed) for code in training.languages)
    params = learning.fit(
        context,
        training.record,
        lambda: learning.trainer(context, _constraints(start, found, training.outside)),
        lambda: train.Turns(orders, settings.train.batch),
        list(training.removed),
    )
    if params is None:
        return
    if found:
        freeze.verify(start, params, _held(start, found, training.outside))
    for each, name in training.removed.items():
        region = selection.read(context, name)
        with dataclasses.replace(each, region=region).apply(params, models.offsets(context.model.config)) as removed:
            measurement.observe(context, each, removed)
    learning.finish(context, training.record)
