"""What a decoder computes: the sizes and the choices in which the families of `models` differ.

`DecoderConfig` is all that the shared decoder reads; `Config` is what the rest of the package may read of any
architecture, this decoder or another one.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, Protocol

_SIZES = ("vocab", "embed", "mlp", "layers", "heads", "kv_heads", "head_dim", "context")
_POSITIVE = ("rope_theta", "local_theta", "attention_scale", "attention_softcap", "logit_softcap")


def _check_positive(what: str, value: Any) -> None:
    """Refuse what is no number above zero: the forward pass would give NaN, or logits that are all equal."""
    if not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"config {what} is {value}: no model can be built of that")


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
    """Stretching of the rotary frequencies beyond the original context; `rotary.frequencies` says what each kind does.

    Attributes:
      kind: one of `_SCALINGS`.
      factor: how many times longer the context becomes.
      low_frequency_factor, high_frequency_factor: of "llama3".
      original_context: positions that were trained for before the stretching.
      attention_factor: cosines and sines are multiplied by it ("yarn", "longrope").
      fast, slow: rotations within the original context between which "yarn" blends.
      truncate: whether "yarn" blends between whole pairs.
      short, long: divisors of each pair's frequency up to the original context, and beyond it ("longrope").
    """

    kind: str
    factor: float
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_context: int = 8192
    attention_factor: float = 1.0
    fast: float = 32.0
    slow: float = 1.0
    truncate: bool = True
    short: tuple[float, ...] = ()
    long: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Refuse kinds that are not implemented, and numbers that leave no frequencies."""
        if self.kind not in _SCALINGS:
            raise ValueError(f"rope scaling {self.kind!r} is not implemented; there are {', '.join(_SCALINGS)}")
        for field in ("factor", "low_frequency_factor", "original_context", "attention_factor", "fast", "slow"):
            _check_positive(f"rope scaling {field}", getattr(self, field))
        for divisor in (*self.short, *self.long):
            _check_positive("rope scaling divisor", divisor)
        _check_positive(
            "rope scaling high_frequency_factor minus the low one",
            self.high_frequency_factor - self.low_frequency_factor,
        )

    @property
    def by_length(self) -> bool:
        """Whether the frequencies depend on the length of the text."""
        return self.kind in ("dynamic", "longrope")


_SCALINGS = ("linear", "dynamic", "llama3", "yarn", "longrope")


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
      activation: of the gate, "silu" or "gelu" (its approximation by tanh).
      biases: roles of the matrices that have one.
      norms: where they stand, of attention and of the MLP alike: "before", "after", or "around" (both).
      norm_offset: what is added to a gain before it is used: 1 in Gemma.
      qk_norm: norms of queries and keys: "" (none), "head" (each head by itself) or "whole" (all heads together).
      window: tokens that a query sees in the layers with local attention, itself included.
      local: which layers have it; empty for all of them, if there is a window.
      local_theta: base of the rotary frequencies of those layers, which then are not scaled.
      unrotated: which layers have no rotary positions; empty for none.
      attention_scale: what queries times keys are multiplied by; None for H^-1/2.
      attention_softcap: attention logits x become c tanh(x / c) with this c; None for none.
      logit_softcap: the same of the model's logits.
      scaled_embedding: whether embeddings are multiplied by D^1/2.
      fused: whether files hold q, k and v in one tensor, and gate and up in another.
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
    activation: Literal["silu", "gelu"] = "silu"
    biases: tuple[str, ...] = ()
    norms: Literal["before", "after", "around"] = "before"
    norm_offset: float = 0.0
    qk_norm: Literal["", "head", "whole"] = ""
    window: int | None = None
    local: tuple[bool, ...] = ()
    local_theta: float | None = None
    unrotated: tuple[bool, ...] = ()
    attention_scale: float | None = None
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    scaled_embedding: bool = False
    fused: bool = False

    def __post_init__(self) -> None:
        """Refuse sizes and numbers that no decoder has."""
        for field in _SIZES:
            if getattr(self, field) < 1:
                raise ValueError(f"config {field} is {getattr(self, field)}; it must be at least 1")
        if self.window is not None and self.window < 1:
            raise ValueError(f"config window is {self.window}; a token sees at least itself")
        for field in _POSITIVE:
            if getattr(self, field) is not None:
                _check_positive(field, getattr(self, field))
        if not 0 <= self.eps < math.inf:
            raise ValueError(f"config eps is {self.eps}: no model can be built of that")
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} heads cannot share {self.kv_heads} kv heads evenly")
        if self.head_dim % 2:
            raise ValueError(f"head_dim is {self.head_dim}; rotary positions need an even one")
        for field in ("local", "unrotated"):
            if len(getattr(self, field)) not in (0, self.layers):
                raise ValueError(f"config {field} speaks of {len(getattr(self, field))} layers, not of {self.layers}")

    def kind(self, layer: int) -> LayerKind:
        """Return the kind of a layer."""
        window = self.window if not self.local or self.local[layer] else None
        if self.unrotated and self.unrotated[layer]:
            return LayerKind(window, None, None)
        if window is not None and self.local_theta is not None:
            return LayerKind(window, self.local_theta, None)
        return LayerKind(window, self.rope_theta, self.rope_scaling)

    @property
    def kinds(self) -> tuple[LayerKind, ...]:
        """The kind of each layer."""
        return tuple(map(self.kind, range(self.layers)))


class Variant(NamedTuple):
    """A family of models as a variant of the shared decoder.

    Attributes:
      parse: Hugging Face config.json -> config, whose `family` is the key in `models.ARCHITECTURES`; refuses by a
        ValueError what would change the mathematics and is not handled.
      dump: config -> Hugging Face config.json.
      presets: configs of known models by name.
    """

    parse: Callable[[Mapping[str, Any]], DecoderConfig]
    dump: Callable[[DecoderConfig], dict[str, Any]]
    presets: Mapping[str, DecoderConfig]
