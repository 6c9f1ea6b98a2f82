"""Models: one file an architecture, and the registry through which the rest of the package speaks to all of them.

A new architecture is one file with the six functions of `Architecture`, and one line in `ARCHITECTURES`.
"""

import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from lingregions import tree as trees
from lingregions.models import llama
from lingregions.models.compute import Compute
from lingregions.models.llama import LlamaConfig
from lingregions.models.parameter import Parameter

__all__ = [
    "ARCHITECTURES",
    "PRESETS",
    "Architecture",
    "Compute",
    "LlamaConfig",
    "Parameter",
    "architecture",
    "declare",
    "dump",
    "head",
    "hidden",
    "initialize",
    "parse",
    "shapes",
]


class Architecture(NamedTuple):
    """What the package needs to know of a family of models.

    Attributes:
      config: the class of its configs.
      module: Linen module, called with (config, compute) and then (tokens, segments) -> hidden [B, T, D].
      declare: config -> tree of `Parameter`.
      head: params -> [V, D].
      parse: Hugging Face config.json -> config.
      dump: config -> Hugging Face config.json.
    """

    config: type
    module: Callable[..., nn.Module]
    declare: Callable[[Any], trees.Tree]
    head: Callable[[Mapping[str, Any]], jax.Array]
    parse: Callable[[Mapping[str, Any]], Any]
    dump: Callable[[Any], dict[str, Any]]


# By the `model_type` of a Hugging Face config.json.
ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture(LlamaConfig, llama.Llama, llama.declare, llama.head, llama.parse, llama.dump),
}
PRESETS: dict[str, LlamaConfig] = dict(llama.PRESETS)


def architecture(config: Any) -> Architecture:
    """Return the architecture that a config belongs to.

    Raises:
      TypeError: it is the config of none.
    """
    for each in ARCHITECTURES.values():
        if isinstance(config, each.config):
            return each
    raise TypeError(f"{type(config).__name__} is no config of the architectures {', '.join(ARCHITECTURES)}")


def parse(raw: Mapping[str, Any]) -> Any:
    """Return the config described by a Hugging Face config.json.

    Raises:
      ValueError: the model type is not supported, or a key asks for other maths.
    """
    kind = raw.get("model_type")
    if kind not in ARCHITECTURES:
        raise ValueError(f"model_type {kind!r} is not supported; supported: {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[kind].parse(raw)


def dump(config: Any) -> dict[str, Any]:
    """Return the Hugging Face config.json of a config."""
    return architecture(config).dump(config)


def declare(config: Any) -> trees.Tree:
    """Return the tree of `Parameter` that every other tree is parallel to."""
    return architecture(config).declare(config)


def shapes(config: Any, shardings: trees.Tree | None = None) -> trees.Tree:
    """Return the float32 `ShapeDtypeStruct` of each parameter, with its sharding when given."""
    places = trees.flatten(shardings) if shardings else {}
    return trees.transform(
        lambda path, parameter: jax.ShapeDtypeStruct(parameter.shape, np.float32, sharding=places.get(path)),
        declare(config),
    )


def initialize(config: Any, key: jax.Array, shardings: trees.Tree | None = None) -> trees.Tree:
    """Return random float32 parameters, made on their shards; the same values on every mesh.

    Args:
      config: a model config.
      key: JAX random key; each parameter folds in the CRC of its path.
      shardings: from `mesh.shardings`; None leaves them on the default device.
    """

    def values(key: jax.Array) -> trees.Tree:
        return trees.transform(
            lambda path, parameter: parameter.initialize(jax.random.fold_in(key, zlib.crc32(path.encode()))),
            declare(config),
        )

    out: trees.Tree = jax.jit(values, out_shardings=shardings)(key)
    return out


def hidden(
    config: Any, compute: Compute, params: trees.Tree, tokens: Any, segments: Any, watch: bool = False
) -> tuple[jax.Array, trees.Tree]:
    """Run the decoder on int32 [B, T] tokens within documents `segments`.

    Returns:
      The last hidden state [B, T, D], and with `watch` the sums of squares of what enters each weight: a tree of
      float32 [L, in] by the paths of the parameters (empty otherwise).
    """
    module = architecture(config).module(config, compute)
    out: Any = module.apply({"params": params}, tokens, segments, mutable=["inputs"] if watch else False)
    return (out[0], out[1]["inputs"]) if watch else (out, {})


def head(config: Any, params: trees.Tree) -> jax.Array:
    """Return the [V, D] matrix from hidden state to logits."""
    return architecture(config).head(params)
