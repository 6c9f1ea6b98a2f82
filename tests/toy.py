"""A second architecture, to hold the contracts against: no attention, no norms, no gate; each token reads the mean of
its document so far. Legend: B batch, T tokens, D embed, F mlp, V vocab, L layers.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lingregions import mesh as meshes
from lingregions import tree as trees
from lingregions.models import Architecture, Parameter, roles
from lingregions.models.compute import DTYPES, Compute


@dataclasses.dataclass(frozen=True)
class ToyConfig:
    """Sizes by the letter legend; heads are there for those who ask."""

    vocab: int = 40
    embed: int = 16
    mlp: int = 24
    layers: int = 3
    context: int = 64
    std: float = 0.4
    heads: int = 2
    kv_heads: int = 2
    head_dim: int = 8
    family: str = "toy"


def parameters(config: ToyConfig) -> dict[str, Parameter]:
    D, F, L, V = config.embed, config.mlp, config.layers, config.vocab
    declared = [
        Parameter("embedding", (V, D), ("vocab", "embed"), config.std),
        Parameter("up", (L, F, D), ("layers", "mlp", "embed"), config.std),
        Parameter("down", (L, D, F), ("layers", "embed", "mlp"), config.std),
    ]
    return {each.role: each for each in declared}


def declare(config: ToyConfig) -> trees.Tree:
    return trees.unflatten({each.path: each for each in parameters(config).values()})


class _Mlp(nn.Module):
    config: ToyConfig
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        up, down = (
            self.param(each.key, each.initialize, each.matrix).astype(self.dtype)
            for each in (parameters(self.config)["up"], parameters(self.config)["down"])
        )
        return jnp.einsum("btf,df->btd", nn.relu(jnp.einsum("btd,fd->btf", x, up)), down)


class _Layer(nn.Module):
    config: ToyConfig
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, seen: jax.Array) -> tuple[jax.Array, None]:
        mean = jnp.einsum("bts,bsd->btd", seen, x)
        out = x + _Mlp(self.config, self.dtype, name="mlp")(mean)
        return meshes.constrain(out, "batch", "tokens", "features"), None


def embed(table: jax.Array, tokens: jax.Array) -> jax.Array:
    return meshes.constrain(jnp.take(table, tokens, axis=0), "batch", "tokens", "features")


def seen(segments: jax.Array, dtype: Any) -> jax.Array:
    """The share of each token before a token, [B, T, T]."""
    T = segments.shape[1]
    same = segments[:, :, None] == segments[:, None, :]
    shares = (same & (jnp.arange(T)[:, None] >= jnp.arange(T)[None, :])[None]).astype(dtype)
    return shares / jnp.sum(shares, axis=-1, keepdims=True)


class Toy(nn.Module):
    """The toy's decoder."""

    config: ToyConfig
    compute: Compute

    @nn.compact
    def __call__(self, tokens: jax.Array, segments: jax.Array) -> jax.Array:
        dtype = DTYPES[self.compute.dtype]
        table = parameters(self.config)["embedding"]
        x = embed(self.param(table.key, table.initialize, table.matrix).astype(dtype), tokens)
        stack = nn.scan(
            _Layer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast,),
            length=self.config.layers,
        )
        out: jax.Array = stack(self.config, dtype, name=roles.LAYERS)(x, seen(segments, dtype))[0]
        return out


def layer(
    config: ToyConfig,
    compute: Compute,
    weights: Any,
    place: Any,
    x: Any,
    segments: Any,
    capture: bool = False,
    rows: Any = None,
):
    dtype = DTYPES[compute.dtype]
    if rows is None:
        return _Layer(config, dtype).apply({"params": weights}, x, seen(segments, dtype))[0], {}

    def own(x: Any, seen: Any, rows: Any) -> Any:
        mine = {path: weights["mlp"][path].at[at].set(row, mode="drop") for path, (at, row) in rows["mlp"].items()}
        return _Layer(config, dtype).apply({"params": {"mlp": mine}}, x[None], seen[None])[0][0]

    return jax.vmap(own)(x, seen(segments, dtype), rows), {}


ARCHITECTURE = Architecture(
    parse=lambda raw: ToyConfig(vocab=raw["vocab_size"]),
    dump=lambda config: {"model_type": "toy", "vocab_size": config.vocab},
    module=Toy,
    declare=declare,
    head=lambda params: params["embed_tokens"],
    enter=lambda config, compute, params, tokens: embed(params["embed_tokens"].astype(DTYPES[compute.dtype]), tokens),
    layer=layer,
    leave=lambda config, compute, params, x, segments: x,
)
