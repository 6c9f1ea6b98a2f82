"""Models: a shared decoder, one file a family, and the registry through which the package speaks to all of them.

A new family is one file that declares its `VARIANT`, and one line in `_VARIANTS`; one that is no variant of the
decoder is an `Architecture` of its own in `ARCHITECTURES`.
"""

import functools
import math
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lingregions import mesh as meshes
from lingregions import tree as trees
from lingregions.models import gemma2, gemma3, llama, mistral, olmo2, phi3, qwen2, qwen3, roles, smollm3
from lingregions.models.compute import Compute
from lingregions.models.config import Config, DecoderConfig, RotaryScaling
from lingregions.models.decoder import Architecture
from lingregions.models.maxima import ActivationMaxima, massive_dimensions, super_weights
from lingregions.models.parameter import Parameter

__all__ = [
    "ARCHITECTURES",
    "PRESETS",
    "ActivationMaxima",
    "Architecture",
    "Compute",
    "Config",
    "DecoderConfig",
    "Parameter",
    "RotaryScaling",
    "activation_counts",
    "activation_maxima",
    "architecture",
    "declare",
    "dump",
    "head",
    "hidden",
    "initialize",
    "logit_softcap",
    "massive_dimensions",
    "offsets",
    "parse",
    "roles",
    "shapes",
    "super_weights",
]


_VARIANTS = {  # of the shared decoder, by the `model_type` of a Hugging Face config.json
    "llama": llama.VARIANT,
    "mistral": mistral.VARIANT,
    "qwen2": qwen2.VARIANT,
    "qwen3": qwen3.VARIANT,
    "gemma2": gemma2.VARIANT,
    "gemma3_text": gemma3.VARIANT,
    "olmo2": olmo2.VARIANT,
    "phi3": phi3.VARIANT,
    "smollm3": smollm3.VARIANT,
}
ARCHITECTURES: dict[str, Architecture] = {
    family: Architecture(each.parse, each.dump) for family, each in _VARIANTS.items()
}
PRESETS: dict[str, DecoderConfig] = {
    name: config for each in _VARIANTS.values() for name, config in each.presets.items()
}


def architecture(config: Config) -> Architecture:
    """Return the architecture that a config belongs to.

    Raises:
      TypeError: it is the config of none.
    """
    found = ARCHITECTURES.get(getattr(config, "family", ""))
    if found is None:
        raise TypeError(f"{type(config).__name__} is no config of the architectures {', '.join(ARCHITECTURES)}")
    return found


def parse(raw: Mapping[str, Any]) -> Any:
    """Return the config described by a Hugging Face config.json.

    Raises:
      ValueError: the model type is not supported, or a key asks for other maths.
    """
    kind = raw.get("model_type")
    if kind not in ARCHITECTURES:
        raise ValueError(f"model_type {kind!r} is not supported; supported: {', '.join(ARCHITECTURES)}")
    for key, value in raw.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{key} is {value}: no model can be built of that")
    return ARCHITECTURES[kind].parse(raw)


def dump(config: Any) -> dict[str, Any]:
    """Return the Hugging Face config.json of a config."""
    return architecture(config).dump(config)


def declare(config: Any) -> trees.Tree:
    """Return the tree of `Parameter` that every other tree is parallel to."""
    return architecture(config).declare(config)


def shapes(config: Any, shardings: trees.Tree | None = None, dtype: Any = np.float32) -> trees.Tree:
    """Return the `ShapeDtypeStruct` of each parameter, with its sharding when given."""
    places = trees.flatten(shardings) if shardings else {}
    return trees.transform(
        lambda path, parameter: jax.ShapeDtypeStruct(parameter.shape, dtype, sharding=places.get(path)),
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
    config: Any,
    compute: Compute,
    params: trees.Tree,
    tokens: Any,
    segments: Any,
    capture: bool = False,
    bounds: trees.Tree | None = None,
    buffers: trees.Tree | None = None,
) -> tuple[jax.Array, trees.Tree]:
    """Run the decoder on int32 [B, T] tokens within documents `segments`.

    Args:
      config: model config.
      compute: how to run it.
      params: float32 parameters.
      tokens: int32 [B, T].
      segments: int32 [B, T], the document of each token; 0 is padding.
      capture: whether to gather what enters each weight.
      bounds: bounds on what comes from some weights, see `bounded`; None is the program without them.
      buffers: arrays in the compute dtype at the paths of some stacked weights: the gradient goes to these, in their
        dtype, and not to the weights. Their values are not read.

    Returns:
      The last hidden state [B, T, D], and with `capture` the sums of squares of what enters each weight: a tree of
      float32 [L, in] by the paths of the parameters (empty otherwise).
    """
    module = architecture(config).module(config, compute)
    variables = bounded(config, params, bounds) | ({"gradient_buffers": buffers} if buffers else {})
    out: Any = module.apply(variables, tokens, segments, mutable=["inputs"] if capture else False)
    return (out[0], out[1]["inputs"]) if capture else (out, {})


def bounded(config: Any, params: trees.Tree, bounds: trees.Tree | None) -> dict[str, trees.Tree]:
    """Return the collections that a module is applied to: the parameters, and the bounds if there are any.

    Args:
      config: model config.
      params: float32 parameters.
      bounds: tree of float32 bounds at the paths of some weights, [L] in the layers (one a layer) and [] outside:
        what a projection or a norm gives is clipped to [-bound, bound], and infinity is no bound. An example is
        {"layers": {"mlp": {"down_proj": f32[L]}}}.

    Raises:
      ValueError: a bound at a path that is no projection or norm, or of another shape.
    """
    if bounds is None:
        return {"params": params}
    declared = trees.flatten(declare(config))
    for path, bound in trees.walk(bounds):
        if path not in declared or "vocab" in declared[path].axes:
            raise ValueError(
                f"bounds: {path!r} is no projection or norm of the model; an example is 'layers.mlp.down_proj'"
            )
        expected = declared[path].shape[:1] if declared[path].stacked else ()
        if np.shape(bound) != expected:
            raise ValueError(f"bounds: the bound of {path!r} has shape {np.shape(bound)}, expected {expected}")
    return {"params": params, "bounds": jax.tree.map(jnp.asarray, bounds)}


def activation_maxima(
    config: Any,
    compute: Compute,
    params: trees.Tree,
    tokens: Any,
    segments: Any,
    bounds: trees.Tree | None = None,
) -> ActivationMaxima:
    """Return the largest magnitude of every channel over all tokens that are not padding, from one forward pass.

    Compiled for each shape of tokens. On a mesh (`mesh.use`) every device gets the whole answer. Maxima of several
    batches are joined by the maximum of each array.

    Args:
      config: model config.
      compute: how to run it.
      params: float32 parameters.
      tokens: int32 [B, T].
      segments: int32 [B, T], the document of each token; 0 is padding.
      bounds: as in `hidden`.
    """
    found: ActivationMaxima = _maxima(config, compute, params, tokens, segments, bounds)
    return found


@functools.partial(jax.jit, static_argnums=(0, 1))
def _maxima(
    config: Any, compute: Compute, params: trees.Tree, tokens: Any, segments: Any, bounds: trees.Tree | None
) -> ActivationMaxima:
    module = architecture(config).module(config, compute)
    with jax.default_matmul_precision(compute.precision):
        _, state = module.apply(bounded(config, params, bounds), tokens, segments, mutable=["maxima"])
    layers, last = state["maxima"]["layers"], state["maxima"]["residual"]
    maxima = ActivationMaxima(
        residual=jnp.concatenate([layers["residual"], last[None]]),
        down_in=layers["mlp"]["down_in"],
        down_out=layers["mlp"]["down_out"],
    )
    placed: ActivationMaxima = jax.tree.map(lambda each: meshes.constrain(each, "layers", "features"), maxima)
    return placed


@functools.partial(jax.jit, static_argnums=(0, 1))
def activation_counts(config: Any, compute: Compute, params: trees.Tree, tokens: Any, segments: Any) -> jax.Array:
    """Return how many tokens activate each neuron of the MLPs - its gate's activation is above zero -, int32 [L, F].

    Args:
      config: model config.
      compute: how to run it.
      params: parameters.
      tokens: int32 [B, T].
      segments: int32 [B, T], the document of each token; 0 is padding, which does not count.
    """
    module = architecture(config).module(config, compute)
    with jax.default_matmul_precision(compute.precision):
        _, state = module.apply({"params": params}, tokens, segments, mutable=["active"])
    return meshes.constrain(state["active"]["layers"]["mlp"]["gate"], "layers", "features")


def head(config: Any, params: trees.Tree) -> jax.Array:
    """Return the [V, D] matrix from hidden state to logits."""
    return architecture(config).head(params)


def logit_softcap(config: Any) -> float | None:
    """Return c where the logits x become c tanh(x / c), None where they stay."""
    found: float | None = getattr(config, "logit_softcap", None)
    return found


def offsets(config: Any) -> dict[str, float]:
    """Return {path: what the model adds to the values there before it uses them}: 1 for the gains of Gemma.

    Removal sets what is used to zero, the values themselves to minus this; and a score multiplies what is used.
    """
    declared = trees.flatten(declare(config))
    return {path: each.offset for path, each in declared.items() if each.offset}
