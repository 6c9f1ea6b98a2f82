"""What is done to a region: (params, masks) -> params, everything outside bit-identical.

Removal is `zero` (docs/method.md 3). A perturbation returns new arrays for the leaves that the region has and shares
the others; `restore` puts the original values back, bit for bit.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from lingregions import tree as trees


@jax.jit
def _zero(part: trees.Tree, masks: trees.Tree) -> trees.Tree:
    return jax.tree.map(lambda theta, mask: jnp.where(mask, jnp.zeros_like(theta), theta), part, masks)


@jax.jit
def _swap(part: trees.Tree, other: trees.Tree, masks: trees.Tree) -> trees.Tree:
    return jax.tree.map(lambda theta, value, mask: jnp.where(mask, value, theta), part, other, masks)


def _covered(params: trees.Tree, masks: trees.Tree) -> trees.Tree:
    """Return the leaves of `params` that `masks` has.

    Raises:
      ValueError: a mask has a path or a shape that the parameters lack.
    """
    leaves = trees.flatten(params)
    part = trees.unflatten({path: leaves[path] for path in trees.flatten(masks) if path in leaves})
    trees.assert_parallel(part, masks, "region")
    return part


def zero(params: trees.Tree, masks: trees.Tree) -> trees.Tree:
    """Return `params` with every parameter inside the region set to +0.0.

    Args:
      params: the parameter tree.
      masks: bool tree parallel to the parameters of some scope.

    Raises:
      ValueError: the region belongs to another model.
    """
    return trees.merge(params, _zero(_covered(params, masks), masks))


def restore(params: trees.Tree, original: trees.Tree, masks: trees.Tree) -> trees.Tree:
    """Return `params` with the values of `original` inside the region: undoes any perturbation of it exactly.

    Raises:
      ValueError: the region belongs to another model.
    """
    return trees.merge(params, _swap(_covered(params, masks), _covered(original, masks), masks))


# name -> (params, masks) -> params
PERTURBATIONS: dict[str, Callable[[trees.Tree, trees.Tree], trees.Tree]] = {"zero": zero}
