"""Further pre-training, held to constraints: one compiled step, a loop that can be killed at any moment, its feed.

    trainer = train.Trainer(config, compute, recipe, [freeze.hard(params, masks)], micro=4, mesh=mesh)
    state = train.fit(run, "core frozen", trainer, params, train.Order(corpus, seed), hook=measure, counts=(0, 2_000))

Master weights and moments are float32 whatever the compute dtype, and so are gradients that add up over micro-batches;
those of one micro-batch have the compute dtype in the layers. 16 bytes a parameter in float32, on the shards of the
parameters, and a second copy of the weights where a constraint keeps the starting point.
"""

from lingregions.train.feed import Blend, Feed, Mix, Order, Turns
from lingregions.train.loop import Diverged, curve, discard, fit, load
from lingregions.train.recipe import PRESETS, Recipe, optimizer
from lingregions.train.tracker import TRACKERS, Tracker, require, track
from lingregions.train.trainer import Metrics, State, Trainer

__all__ = [
    "PRESETS",
    "TRACKERS",
    "Blend",
    "Diverged",
    "Feed",
    "Metrics",
    "Mix",
    "Order",
    "Recipe",
    "State",
    "Tracker",
    "Trainer",
    "Turns",
    "curve",
    "discard",
    "fit",
    "load",
    "optimizer",
    "require",
    "track",
]
