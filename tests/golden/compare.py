"""How results are set beside the reference: tensors by Hugging Face name into trees, distances matrix by matrix."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from golden import cases

from lingregions import loss, models
from lingregions import tree as trees
from lingregions.corpus.batch import Batch
from lingregions.models import roles
from lingregions.models.compute import Compute


def stack(tensors: dict[str, np.ndarray], config: models.DecoderConfig, scope: str = "everything") -> trees.Tree:
    """Return tensors by Hugging Face name as the parameter tree, or a scope of it; the layers are stacked."""
    declared = roles.restrict(models.declare(config), scope)
    names = [name for _, parameter in trees.walk(declared) for name in parameter.names()]
    assert sorted(names) == sorted(tensors)
    return trees.transform(
        lambda _, parameter: jnp.asarray(
            np.stack([tensors[name] for name in parameter.names()])
            if parameter.stacked
            else tensors[parameter.names()[0]]
        ),
        declared,
    )


def batch(samples: list[cases.Sample], length: int = cases.LENGTH) -> Batch:
    """Return packed samples; each token stands for 1 to 4 bytes."""
    tokens, segments = cases.pack(samples, length)
    return Batch(tokens, segments, np.where(segments > 0, tokens % 4 + 1, 0).astype(np.int32))


def distance(found: Any, expected: Any) -> float:
    """Return the relative L2 distance of a tensor from the expected one, computed in float64."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape
    size = float(np.linalg.norm(expected))
    assert size > 0, "nothing to compare with"
    return float(np.linalg.norm(found - expected)) / size


def distances(found: trees.Tree, expected: trees.Tree) -> dict[str, float]:
    """Return the `distance` of every matrix: the layers of a stacked leaf one by one."""
    trees.assert_parallel(expected, found)
    out = {}
    for path, leaf in trees.walk(expected):
        mine = trees.flatten(found)[path]
        if path.startswith("layers."):
            out |= {f"{path}[{layer}]": distance(mine[layer], leaf[layer]) for layer in range(leaf.shape[0])}
        else:
            out[path] = distance(mine, leaf)
    assert out
    return out


def assert_near(found: trees.Tree, expected: trees.Tree, tolerance: float) -> None:
    """Check that every matrix is within a relative L2 distance; NaN is not."""
    wrong = {name: value for name, value in distances(found, expected).items() if not value <= tolerance}
    assert not wrong, f"beyond {tolerance}: {wrong}"


def apart(found: trees.Tree, expected: trees.Tree) -> float:
    """Return the relative L2 distance of two trees, all their matrices together."""
    trees.assert_parallel(expected, found)
    ours, theirs = (np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]) for tree in (found, expected))
    return distance(ours, theirs)


@functools.cache
def logits_of(config: models.DecoderConfig, compute: Compute) -> Callable[..., jax.Array]:
    """Return (params, tokens, segments) -> float32 logits [B, T, V], compiled."""

    def logits(params: trees.Tree, tokens: Any, segments: Any) -> jax.Array:
        hidden, _ = models.hidden(config, compute, params, tokens, segments)
        table = models.head(config, params).astype(hidden.dtype)
        return jnp.einsum("btd,vd->btv", hidden, table, preferred_element_type=jnp.float32)

    return jax.jit(logits)


@functools.cache
def gradient_of(
    config: models.DecoderConfig, compute: Compute, scope: str = "everything"
) -> Callable[..., tuple[trees.Tree, loss.Loss]]:
    """Return (params, batch) -> (gradient of the summed loss in the parameters of the scope, loss), compiled."""

    def objective(part: trees.Tree, params: trees.Tree, batch: Batch) -> tuple[jax.Array, loss.Loss]:
        found = loss.nll(config, compute, trees.merge(params, part), batch)
        return jnp.sum(found.nll), found

    def gradient(params: trees.Tree, batch: Batch) -> tuple[trees.Tree, loss.Loss]:
        found: tuple[trees.Tree, loss.Loss] = jax.grad(objective, has_aux=True)(
            roles.restrict(params, scope), params, batch
        )
        return found

    return jax.jit(gradient)
