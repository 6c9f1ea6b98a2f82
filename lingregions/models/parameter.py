"""Parameter: one weight array, declared once - its Hugging Face name, shape, named axes and initial scale.

The initialisation, the shardings, the import and the export all read this declaration and nothing else.
"""

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One array of the parameter tree, in the index space of Hugging Face: [out, in], layers stacked in front.

    Attributes:
      name: Hugging Face tensor name; holds `{layer}` where the layers are stacked.
      shape: shape of the array, the layer axis included.
      axes: one name an axis: "layers", "embed", "heads" (N*H), "kv_heads" (K*H), "mlp", "vocab". Sharding rules and
        the science ("dimension d" is index d of the axis "embed") use the same names.
      scale: standard deviation of the random initial values; None for ones (norm gains).
      head_dim: entries of one head along "heads" and "kv_heads".
    """

    name: str
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    scale: float | None
    head_dim: int = 1

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
        return [self.name.format(layer=layer) for layer in range(self.shape[0])] if self.stacked else [self.name]

    def initialize(self, key: jax.Array, shape: tuple[int, ...] | None = None) -> jax.Array:
        """Return random float32 values of `shape` (the whole array's by default)."""
        shape = self.shape if shape is None else shape
        return jnp.ones(shape, jnp.float32) if self.scale is None else self.scale * jax.random.normal(key, shape)
