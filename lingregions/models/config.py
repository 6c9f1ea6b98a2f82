"""What a decoder computes: the sizes and the choices in which the families of `models` differ.

`DecoderConfig` is all that the shared decoder reads; `Config` is what the rest of the package may read of any
architecture, this decoder or another one.
"""

import dataclasses
from typing import NamedTuple, Protocol

SIZES = ("vocab", "embed", "mlp", "layers", "heads", "kv_heads", "head_dim", "context")


class Config(Protocol):
    """What planning, loss, generation and experiments may read of the config of any architecture."""

    @property
    def family(self) -> str:
        """Its key in `models.ARCHITECTURES`."""

    @property
    def vocab(self) -> int:
        """V."""

    @property
    def embed(self) -> int:
        """D."""

    @property
    def mlp(self) -> int:
        """F."""

    @property
    def layers(self) -> int:
        """L."""

    @property
    def heads(self) -> int:
        """N."""

    @property
    def kv_heads(self) -> int:
        """K."""

    @property
    def head_dim(self) -> int:
        """H."""

    @property
    def context(self) -> int:
        """Positions that the model was trained for."""


@dataclasses.dataclass(frozen=True)
class RotaryScaling:
    """Stretching of the rotary frequencies beyond the original context, as Llama 3.1 does it ("llama3") or "linear"."""

    kind: str
    factor: float
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_context: int = 8192

    def __post_init__(self) -> None:
        """Refuse kinds that are not implemented."""
        if self.kind not in ("linear", "llama3"):
            raise ValueError(f"rope scaling {self.kind!r} is not implemented; there are linear and llama3")


class LayerKind(NamedTuple):
    """In what the layers of one model may differ.

    Attributes:
      window: tokens that a query sees, itself included; None for all before it.
      theta: base of the rotary frequencies; None for a layer without positions.
      scaling: of those frequencies.
    """

    window: int | None
    theta: float | None
    scaling: RotaryScaling | None


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """What a decoder computes; sizes by the letter legend.

    Attributes:
      vocab: V.
      embed: D.
      mlp: F.
      layers: L.
      heads: N.
      kv_heads: K.
      head_dim: H.
      context: positions that the model was trained for.
      eps: added to the mean square in RMSNorm.
      rope_theta: base of the rotary frequencies.
      rope_scaling: None for plain rotary positions.
      tied: whether the head is the embedding.
      std: standard deviation of random initial weights.
      family: key in `models.ARCHITECTURES`.
    """

    vocab: int
    embed: int
    mlp: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    context: int
    eps: float = 1e-5
    rope_theta: float = 10_000.0
    rope_scaling: RotaryScaling | None = None
    tied: bool = False
    std: float = 0.02
    family: str = "llama"

    def __post_init__(self) -> None:
        """Refuse sizes that no decoder has."""
        for field in SIZES:
            if getattr(self, field) < 1:
                raise ValueError(f"config {field} is {getattr(self, field)}; it must be at least 1")
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} heads cannot share {self.kv_heads} kv heads evenly")
        if self.head_dim % 2:
            raise ValueError(f"head_dim is {self.head_dim}; rotary positions need an even one")

    @property
    def kinds(self) -> tuple[LayerKind, ...]:
        """The kind of each layer."""
        return (LayerKind(None, self.rope_theta, self.rope_scaling),) * self.layers
