"""Parameter: one weight array, declared once - its role, shape, named axes, initial scale and what removal means.

The initialisation, the shardings, the import and the export all read this declaration and nothing else.
"""

import dataclasses

import jax
import jax.numpy as jnp

from lingregions.models.roles import ROLES, names


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One array of the parameter tree, in the index space of Hugging Face: [out, in], layers stacked in front.

    Attributes:
      role: a key of `roles.ROLES`; path, Hugging Face name and kind follow from it.
      shape: shape of the array, the layer axis included.
      axes: one name an axis: "layers", "embed", "heads" (N*H), "kv_heads" (K*H), "features" (H), "mlp", "vocab".
        Sharding rules and the science ("dimension d" is index d of the axis "embed") use the same names.
      scale: standard deviation of the random initial values; None for gains, which start at the gain 1.
      head_dim: entries of one head along "heads" and "kv_heads".
      offset: what the model adds to the values before it uses them: 1 for the gains of Gemma, which multiplies by
        1 + w. What has no effect, removal, is then -offset.
      fused: where files have it inside a larger tensor: that one's stem, and the first of its rows here.
    """

    role: str
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    scale: float | None
    head_dim: int = 1
    offset: float = 0.0
    fused: tuple[str, int] | None = None

    @property
    def path(self) -> str:
        """Path in the parameter tree."""
        return ROLES[self.role].path

    @property
    def key(self) -> str:
        """Last part of the path, by which the module that uses the array calls it."""
        return self.path.rsplit(".", 1)[-1]

    @property
    def stacked(self) -> bool:
        """Whether the first axis counts layers."""
        return self.axes[0] == "layers"

    @property
    def matrix(self) -> tuple[int, ...]:
        """Shape of one layer's tensor, as Hugging Face stores it."""
        return self.shape[1:] if self.stacked else self.shape

    @property
    def units(self) -> tuple[int, ...]:
        """The shape in what must stay together on one device: whole heads along "heads" and "kv_heads"."""
        fused = ("heads", "kv_heads")
        return tuple(
            size // self.head_dim if axis in fused else size for size, axis in zip(self.shape, self.axes, strict=True)
        )

    def names(self) -> list[str]:
        """Return the Hugging Face name of every matrix in the array, by layer."""
        return names(self.path, self.shape[0] if self.stacked else None)

    def files(self) -> list[tuple[str, int]]:
        """Return, by layer, the name of the tensor that files have the matrix in, and its first row there."""
        if self.fused is None:
            return [(name, 0) for name in self.names()]
        stem, first = self.fused
        return [(f"model.layers.{layer}.{stem}.weight", first) for layer in range(self.shape[0])]

    def initialize(self, key: jax.Array, shape: tuple[int, ...] | None = None) -> jax.Array:
        """Return random float32 values of `shape` (the whole array's by default)."""
        shape = self.shape if shape is None else shape
        if self.scale is None:
            return jnp.full(shape, 1 - self.offset, jnp.float32)
        return self.scale * jax.random.normal(key, shape)
