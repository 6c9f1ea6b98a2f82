"""Splash attention: JAX's Pallas kernels for the TPU, on a mesh, with padding to the shapes that they take.

The kernels want sequences in multiples of 128 tokens; head sizes are free (a head of 64 fills half a register). Each
device attends over its own samples and whole heads, inside `shard_map`, because the compiler cannot split a kernel. A
mesh whose `tensor` does not divide the kv heads repeats them; one that does not divide the heads keeps them whole.
Costs no memory beyond the outputs and one float32 a query and head; blocks above the diagonal are skipped.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask
from jax.sharding import PartitionSpec

from lingregions import mesh as meshes

_LANES = 128  # of a TPU register
_BLOCKS = (512, 384, 256, _LANES)  # tokens a block of the kernels: the first that divides the sequence


class _Mask(NamedTuple):
    """What the kernels are made of, beside shapes."""

    window: int | None
    softcap: float | None
    interpret: bool


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segments: jax.Array,
    scale: float,
    softcap: float | None = None,
    windows: tuple[int | None, ...] = (None,),
    kind: jax.Array | None = None,
) -> jax.Array:
    """Return what `attention.attend` does; off a TPU the kernels are interpreted, right and very slow.

    Args:
      query: [B, T, N, H].
      key: [B, T, K, H].
      value: [B, T, K, H].
      segments: int32 [B, T].
      scale: of the logits.
      softcap: of the logits.
      windows: as in `attention.attend`; a mask is part of a kernel, so each window has its own.
      kind: int32 [], the place in `windows`.

    Returns:
      [B, T, N, H].
    """
    T = query.shape[1]
    short = -T % _LANES
    # The kernels do not scale. Padding behind the last token is seen by no real query.
    query = _turn(query * jnp.asarray(scale, query.dtype), short)
    key, value = _turn(key, short), _turn(value, short)
    segments = jnp.pad(segments, ((0, 0), (0, short)))
    masks = [_Mask(window, softcap, meshes.platform() != "tpu") for window in windows]
    if kind is None or len(set(masks)) == 1:
        out = _on_mesh(masks[0], query, key, value, segments)
    else:
        branches = [functools.partial(_on_mesh, mask) for mask in masks]
        out = jax.lax.switch(kind, branches, query, key, value, segments)
    return out[:, :, :T].transpose(0, 2, 1, 3)


def _on_mesh(mask: _Mask, query: jax.Array, key: jax.Array, value: jax.Array, segments: jax.Array) -> jax.Array:
    """Attend with query [B, N, T, H], key and value [B, K, T, H], each device over its own samples and heads."""
    kernels = functools.partial(_local, mask=mask)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return kernels(query, key, value, segments)
    where = meshes.spec(("batch", "heads", "tokens", "features"), query.shape, mesh)
    times = _times(query.shape[1], key.shape[1], mesh.shape[where[1]] if where[1] else 1)
    if times > 1:
        key, value = jnp.repeat(key, times, axis=1), jnp.repeat(value, times, axis=1)
    out: jax.Array = jax.shard_map(
        kernels,
        in_specs=(where, where, where, PartitionSpec(where[0], None)),
        out_specs=where,
        check_vma=False,  # the kernels do not declare over which axes their outputs vary
    )(query, key, value, segments)
    return out


def _turn(values: jax.Array, short: int) -> jax.Array:
    """[B, T, N, H] to [B, N, T + short, H], filled up with zeros."""
    return jnp.pad(values.transpose(0, 2, 1, 3), ((0, 0), (0, 0), (0, short), (0, 0)))


def _times(heads: int, kv_heads: int, parts: int) -> int:
    """Return how often to repeat the kv heads so that they divide in `parts`, each with the heads that it serves."""
    return next(
        times
        for times in range(1, heads // kv_heads + 1)
        if kv_heads * times % parts == 0 and heads % (kv_heads * times) == 0
    )


def _local(query: jax.Array, key: jax.Array, value: jax.Array, segments: jax.Array, mask: _Mask) -> jax.Array:
    """Attend on one device: query [B, N, T, H], key and value [B, K, T, H], T a multiple of `_LANES`."""
    asked = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    # In bfloat16 the kernels know one precision; in float32 two.
    exact = query.dtype == jnp.float32 and asked not in (None, "default", "bfloat16")
    out: jax.Array = _precise(query, key, value, segments, mask, "highest" if exact else "default")
    return out


# A pass of its own: the backward kernels would be traced after the context of the forward ones is left.
@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _precise(
    query: jax.Array, key: jax.Array, value: jax.Array, segments: jax.Array, mask: _Mask, precision: str
) -> jax.Array:
    with jax.default_matmul_precision(precision):
        return _kernel(query, key, value, segments, mask)


def _forward(
    query: jax.Array, key: jax.Array, value: jax.Array, segments: jax.Array, mask: _Mask, precision: str
) -> Any:
    with jax.default_matmul_precision(precision):
        return jax.vjp(lambda query, key, value: _kernel(query, key, value, segments, mask), query, key, value)


def _backward(mask: _Mask, precision: str, pull: Any, gradient: jax.Array) -> Any:
    with jax.default_matmul_precision(precision):
        return *pull(gradient), None


_precise.defvjp(_forward, _backward)


def _kernel(query: jax.Array, key: jax.Array, value: jax.Array, segments: jax.Array, mask: _Mask) -> jax.Array:
    N, T = query.shape[1:3]
    size = next(block for block in _BLOCKS if T % block == 0)
    sizes = splash_attention_kernel.BlockSizes(
        block_q=size, block_kv=size, block_q_dkv=size, block_kv_dkv=size, block_q_dq=size, block_kv_dq=size
    )
    shape = (T, T)
    causal = splash_attention_mask.CausalMask(shape)
    seen = causal if mask.window is None else splash_attention_mask.LocalMask(shape, (mask.window - 1, 0), 0)
    kernel = splash_attention_kernel.make_splash_mha(
        mask=splash_attention_mask.MultiHeadMask([seen] * N),
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=1,
        attn_logits_soft_cap=mask.softcap,
        interpret=mask.interpret,
    )

    def one(query: jax.Array, key: jax.Array, value: jax.Array, segments: jax.Array) -> jax.Array:
        out: jax.Array = kernel(query, key, value, splash_attention_kernel.SegmentIds(segments, segments))
        return out

    return jax.vmap(one)(query, key, value, segments)
