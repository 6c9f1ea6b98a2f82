"""What the model writes: greedy continuation of prompts, with the keys and values of earlier tokens kept.

One compiled program a shape: the prompts go through the decoder once (the same modules as everywhere; attention puts
its keys and values into the collection "cache"), then a loop on the device takes one token a step, until every sample
has stopped. Prompts stand at the left of a rectangle, so a token has the position that it has alone, and the slots of
the padding are overwritten before any token sees them. Cost: 2 x parameters FLOPs a token, one read of all parameters
a step, and L x 2 x B x (prompt + count) x K x H values of memory. Legend: B batch, T tokens of the longest prompt, K kv
heads, H head_dim, L layers.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lingregions import mesh as meshes
from lingregions import models
from lingregions import tree as trees

# Prompts are filled up to a multiple of this, so that prompts of about one length share a compiled program.
_ROUND = 32


def greedy(
    config: Any,
    compute: models.Compute,
    params: trees.Tree,
    prompts: Sequence[Sequence[int]],
    count: int,
    mesh: Mesh | None = None,
    stop: Sequence[int] = (),
    bounds: trees.Tree | None = None,
) -> list[list[int]]:
    """Return the most likely next token, `count` times over, after each prompt: transformers' `do_sample=False`.

    A prompt's continuation does not depend on the other prompts, beyond the rounding of matrix products of another
    size. Of several tokens with the same logit the lowest id is taken; NaN counts as the largest logit.

    Args:
      config: model config.
      compute: how to run it.
      params: float32 parameters, on `mesh` if there is one.
      prompts: token ids of each, the bos token included if the model wants one; lengths may differ.
      count: tokens to write at most.
      mesh: device mesh.
      stop: a sample ends with the first of these tokens, which is its last.
      bounds: bounds on what comes from some weights (see `models.bounded`).

    Returns:
      The new token ids of each prompt, 1 to `count` of them.

    Raises:
      ValueError: no prompts, an empty prompt, an id outside the vocabulary, `count` below 1, or a text that would be
        longer than the model's context.
    """
    lengths = np.asarray([len(prompt) for prompt in prompts], np.int32)
    _check(config, prompts, lengths, count)
    T = -(-int(lengths.max()) // _ROUND) * _ROUND
    tokens = np.zeros((len(prompts), T), np.int32)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt)] = prompt
    # A table, not a list: one program for any stops.
    last = np.isin(np.arange(config.vocab), np.asarray(stop, np.int64))
    with meshes.use(mesh):
        written, ends = _write(config, compute, count, params, tokens, lengths, last, bounds)
    return [row[:end].tolist() for row, end in zip(np.asarray(written), np.asarray(ends), strict=True)]


def _check(config: Any, prompts: Sequence[Sequence[int]], lengths: np.ndarray, count: int) -> None:
    if not len(prompts) or not lengths.min():
        raise ValueError("generation continues prompts of at least one token each; there is none to continue")
    if count < 1:
        raise ValueError(f"count is {count} tokens; it must be at least 1")
    scaling = getattr(config, "rope_scaling", None)
    # What was written before it would have to be turned anew by the frequencies of the longer text.
    room = max(lengths.max() + count, -(-lengths.max() // _ROUND) * _ROUND)
    if scaling is not None and scaling.by_length and room > scaling.original_context:
        raise ValueError(
            f"a prompt of {lengths.max()} tokens and {count} more exceed {scaling.original_context} tokens, beyond "
            f"which the rotary frequencies of this model change ({scaling.kind}): not implemented while writing"
        )
    if lengths.max() + count > config.context:
        raise ValueError(
            f"a prompt of {lengths.max()} tokens and {count} more exceed the model's context of {config.context}"
        )
    for number, prompt in enumerate(prompts):
        wrong = [token for token in prompt if not 0 <= token < config.vocab]
        if wrong:
            raise ValueError(f"prompt {number} holds the token {wrong[0]}, and the vocabulary has {config.vocab}")


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _write(
    config: Any,
    compute: models.Compute,
    count: int,
    params: trees.Tree,
    tokens: jax.Array,
    lengths: jax.Array,
    last: jax.Array,
    bounds: trees.Tree | None,
) -> tuple[jax.Array, jax.Array]:
    """Return the tokens written after each prompt, int32 [B, count], and how many of them count, int32 [B].

    `tokens` int32 [B, T], `lengths` int32 [B], `last` bool [V]: whether a token ends a sample.
    """
    module = models.architecture(config).module(config, compute)
    variables = models.bounded(config, params, bounds)
    table = models.head(config, params).astype(compute.activations)
    B, T = tokens.shape

    def choose(hidden: jax.Array) -> jax.Array:
        logits = jnp.einsum("bd,vd->bv", hidden, table, preferred_element_type=jnp.float32)
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)

    def going(state: Any) -> jax.Array:
        step, ended = state[0], state[1]
        goes_on: jax.Array = (step < count) & ~jnp.all(ended)
        return goes_on

    def advance(state: Any) -> Any:
        step, ended, ends, token, written, cache = state
        hidden, kept = module.apply(
            variables | {"cache": cache}, token[:, None], ones, lengths + step - 1, mutable=["cache"]
        )
        token = choose(hidden[:, 0])
        written = jax.lax.dynamic_update_slice(written, token[:, None], (0, step))
        return step + 1, ended | last[token], jnp.where(ended, ends, step + 1), token, written, kept["cache"]

    with jax.default_matmul_precision(compute.precision):
        ones = jnp.ones((B, 1), jnp.int32)
        segments = (jnp.arange(T)[None, :] < lengths[:, None]).astype(jnp.int32)
        hidden, kept = module.apply(variables, tokens, segments, mutable=["cache"])
        token = choose(jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)[:, 0])
        # Room for the tokens to come; the last one is never read.
        room = ((0, 0), (0, 0), (0, count - 1), (0, 0), (0, 0))
        cache = jax.tree.map(lambda values: jnp.pad(values, room), kept["cache"])
        written = jnp.zeros((B, count), jnp.int32).at[:, 0].set(token)
        state = (jnp.int32(1), last[token], jnp.ones(B, jnp.int32), token, written, cache)
        _, _, ends, _, written, _ = jax.lax.while_loop(going, advance, state)
    return meshes.constrain(written, "tokens", "tokens"), meshes.constrain(ends, "tokens")
