"""Compute: how a model is run, as against what it computes. No setting here changes a number beyond rounding.

That of `parameters` is the coarsest: it rounds weights, where they are not bfloat16 already.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

PRODUCT = "product"  # the name of what the projections and attention give
# What the backward pass keeps of each layer: everything, nothing but the layer's input, or that and what has the name.
REMAT: dict[str, Any] = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.save_only_these_names(PRODUCT),
}
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
_ATTENTIONS = ("auto", "blocked", "splash", "cudnn", "reference")
# Of float32 matrix products. A TPU multiplies in bfloat16 at "default", in three or six such passes at the others.
_PRECISIONS = ("highest", "high", "default")


@dataclasses.dataclass(frozen=True)
class Compute:
    """Settings of the forward and backward pass.

    Attributes:
      dtype: of activations and matrix products, "float32" or "bfloat16"; softmax and loss stay float32.
      parameters: what parameters are held in. "bfloat16" takes half the memory, and changes nothing where the weights
        are bfloat16 in their files, as most are; training needs float32.
      precision: of float32 matrix products, one of `_PRECISIONS`; no difference on a CPU, a factor in both time and
        error on a TPU.
      remat: what the backward pass keeps, a key of `REMAT`; the less, the more is computed again: under "full" about a
        fifth more time. Scoring keeps what enters each layer, and only under "dots" the products too: a fifth fewer
        operations, ten times as much kept of a layer of SmolLM2.
      attention: one of `_ATTENTIONS`, which `models.attention` describes; "auto" takes what suits the platform.
      block: queries a block of "blocked".
      chunk: tokens a step of the vocabulary-wide loss, so that no [B, T, V] array exists.
      unroll: layers a step of the scan; more compiles longer and copies less.
    """

    dtype: str = "float32"
    parameters: str = "float32"
    precision: str = "highest"
    remat: str = "none"
    attention: str = "auto"
    block: int = 128
    chunk: int = 256
    unroll: int = 1

    @property
    def activations(self) -> Any:
        """The dtype of activations and matrix products, as JAX knows it."""
        return DTYPES[self.dtype]

    def __post_init__(self) -> None:
        """Refuse settings that do not exist."""
        choices = {
            "dtype": DTYPES,
            "parameters": DTYPES,
            "precision": _PRECISIONS,
            "remat": REMAT,
            "attention": _ATTENTIONS,
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                why = "; in float16 gradients below 6e-8 are zero" if getattr(self, name) == "float16" else ""
                said = f"compute.{name} is {getattr(self, name)!r}; it must be one of {', '.join(allowed)}"
                raise ValueError(said + why)
        for name in ("block", "chunk", "unroll"):
            if getattr(self, name) < 1:
                raise ValueError(f"compute.{name} is {getattr(self, name)}; it must be at least 1")
