"""Recipe: how far and how fast training steps, and the optimizer that does so (docs/method.md 4)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lingregions import tree as trees


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The settings of AdamW and of its schedule; the defaults are the released ones.

    Attributes:
      samples: how many to train on; the last batch is filled up with padding.
      batch: samples a step.
      rate: learning rate at its highest.
      betas: decay of the two moments.
      epsilon: of AdamW.
      decay: weight decay, of matrices only: gains of norms are spared.
      clip: the gradient's norm is at most this; 0: no clipping.
      warmup: steps in which the rate rises evenly from 0.
      floor: part of `rate` at which the cosine ends.
      spike: nats per token above the smoothed loss at which training stops; 0: never.
    """

    samples: int
    batch: int = 256
    rate: float = 5e-5
    betas: tuple[float, float] = (0.9, 0.95)
    epsilon: float = 1e-8
    decay: float = 0.001
    clip: float = 1.0
    warmup: int = 100
    floor: float = 0.0
    spike: float = 2.0

    def __post_init__(self) -> None:
        """Refuse what cannot be trained."""
        if self.samples < 1 or self.batch < 1:
            raise ValueError(f"{self.samples} samples in batches of {self.batch}: both must be at least 1")
        if not 0 <= self.warmup < self.steps:
            raise ValueError(
                f"a warm-up of {self.warmup} steps in a training of {self.steps} steps ({self.samples} samples in "
                f"batches of {self.batch}): it must be shorter; lower warmup or batch, or raise samples"
            )
        lowest = {"rate": self.rate, "decay": self.decay, "clip": self.clip, "floor": self.floor, "spike": self.spike}
        for name, value in lowest.items():
            if not value >= 0:
                raise ValueError(f"{name} is {value}; it must be 0 or more")

    @property
    def steps(self) -> int:
        """Steps of the whole training."""
        return -(-self.samples // self.batch)

    def seen(self, step: int) -> int:
        """Return how many samples `step` steps train on."""
        return min(step * self.batch, self.samples)

    def schedule(self) -> optax.Schedule:
        """Return the learning rate as a function of the steps done: warm-up, then half a cosine to the floor."""
        schedule: optax.Schedule = optax.warmup_cosine_decay_schedule(
            0.0 if self.warmup else self.rate, self.rate, self.warmup, self.steps, self.rate * self.floor
        )
        return schedule


# Everything that the paper's release says of its training but the number of samples (a corpus each).
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "batch": 256,
        "rate": 5e-5,
        "betas": (0.9, 0.95),
        "decay": 0.001,
        "clip": 1.0,
        "warmup": 100,
        "floor": 0.0,
    },
}


def optimizer(recipe: Recipe) -> optax.GradientTransformation:
    """Return clipping and AdamW; its state has the norm of the gradient before clipping, as `gradient_norm`.

    optax mixes integer counts with floats: call its update under `jax.numpy_dtype_promotion("standard")`.
    """
    return optax.chain(
        optax.snapshot("gradient_norm", optax.tree.norm),
        _clip(recipe.clip) if recipe.clip else optax.identity(),
        optax.adamw(
            recipe.schedule(),
            b1=recipe.betas[0],
            b2=recipe.betas[1],
            eps=recipe.epsilon,
            weight_decay=recipe.decay,
            mask=_decayed,
        ),
    )


def _clip(most: float) -> optax.GradientTransformation:
    """Return clipping to a norm, as a factor of one number: optax's own divides in a pass over the gradient of its own.

    A gradient within the norm keeps its bits.
    """

    def clip(updates: trees.Tree, _: trees.Tree | None) -> trees.Tree:
        factor = jnp.minimum(jnp.float32(1), jnp.float32(most) / optax.tree.norm(updates))
        clipped: trees.Tree = jax.tree.map(lambda leaf: leaf * factor, updates)
        return clipped

    return optax.stateless(clip)


def _decayed(params: trees.Tree) -> Any:
    """Return which leaves decay: all but the gains of norms. Leaves that are masked out are no leaves here."""
    return jax.tree_util.tree_map_with_path(lambda path, _: "norm" not in path[-1].key, params)
