"""What further pre-training may not change, or not freely: optax transformations that compose in one chain.

A `Constraint` is a pair of transformations around an optimizer. One acts on the gradients before they are clipped, so
that what does not move does not count in the norm; the other acts on the updates last of all, after weight decay. A
frozen entry's update is -0.0, the one number that leaves every float as it is, -0.0 included. (The released code lets
AdamW step and overwrites the weights afterwards: docs/method.md 4.) `optimizer.wrap` puts the pairs around AdamW.

`hard` freezes the entries of a region, `column` whole rows or columns, `leaves` whole parameters, which then have no
gradient and no moments; `soft` slows entries by their score; `l2_sp` and `ewc` pull towards the weights at the start.

Cost: what a constraint needs is an argument of the compiled step, never a constant in it, and lies on the shards of the
parameters: one bit a parameter for masks, one byte for `soft`, the starting weights for `l2_sp`, and the Fisher
information besides for `ewc`. In time, a few operations in the update's own pass over the parameters.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lingregions import regions
from lingregions import tree as trees
from lingregions.models import roles
from lingregions.regions import region
from lingregions.regions.packed import Packed, pack_mask

_Schedule = Callable[[jax.Array], jax.Array]


# ---- constraints ----


@dataclasses.dataclass(frozen=True)
class Constraint:
    """Something that training is held to; make one with an entry of `METHODS`. Equal are those that are one program.

    Attributes:
      name: distinct among the constraints of one training: it tells their arrays apart.
      before: transformation of the gradients, before clipping.
      after: transformation of the updates, last.
      arrays: what both read, a pytree: give `{name: arrays}` to the optimizer's update as `constraints=`.
      whole: paths of the leaves that never move; no gradient is computed for them, and no moments are kept.
      identity: names the constraint and all that it was made from, whatever the mesh: a resume compares it.
    """

    name: str
    before: optax.GradientTransformationExtraArgs
    after: optax.GradientTransformationExtraArgs
    arrays: Any = dataclasses.field(default_factory=dict, compare=False)
    whole: frozenset[str] = frozenset()
    identity: str = dataclasses.field(default="", compare=False)


def bare(constraint: Constraint) -> Constraint:
    """Return a constraint without what is particular to one training: all that the compiled step depends on."""
    return dataclasses.replace(constraint, arrays={}, identity="")


class _Count(NamedTuple):
    """State of a transformation with a schedule: updates so far."""

    done: jax.Array


# (leaf of arrays, update or gradient, parameter, step size of the region) -> update or gradient
_Change = Callable[[Any, jax.Array, jax.Array, jax.Array], jax.Array]


@functools.lru_cache(maxsize=64)
def _transformation(
    name: str, change: _Change | None, thaw: _Schedule | None = None, whole: frozenset[str] = frozenset()
) -> optax.GradientTransformationExtraArgs:
    """Return the transformation that changes the leaves for which there are arrays, and holds those in `whole`.

    The same one for the same arguments: trainings that differ in their arrays alone are one program.
    """

    def init(params: trees.Tree) -> Any:
        return optax.EmptyState() if thaw is None else _Count(jnp.zeros((), jnp.int32))

    def update(
        updates: trees.Tree, state: Any, params: trees.Tree | None = None, *, constraints: Mapping[str, Any], **_: Any
    ) -> tuple[trees.Tree, Any]:
        size = jnp.float32(0) if thaw is None else jnp.asarray(thaw(state.done), jnp.float32)
        arrays, thetas = constraints[name], trees.flatten(params or updates)

        def one(path: str, leaf: jax.Array) -> jax.Array:
            if path in whole:
                return jnp.full_like(leaf, -0.0)
            return leaf if change is None or path not in arrays else change(arrays[path], leaf, thetas[path], size)

        return trees.transform(one, updates), state if thaw is None else _Count(state.done + 1)

    return optax.GradientTransformationExtraArgs(init, update)


def _covered(params: trees.Tree, part: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Return {path: leaf of `part`} on the shards of the parameters.

    Raises:
      ValueError: `part` has a path or a shape that the parameters lack.
    """
    leaves, theirs = trees.flatten(params), trees.flatten(part)
    trees.assert_parallel({path: leaves[path] for path in theirs if path in leaves}, theirs, what)
    return {
        path: jax.device_put(leaf, leaves[path].sharding) if isinstance(leaves[path], jax.Array) else jnp.asarray(leaf)
        for path, leaf in theirs.items()
    }


def _identity(name: str, part: Mapping[str, Any], **options: Any) -> str:
    return f"{name} {trees.fingerprint(part, json.dumps(options, sort_keys=True, default=repr))}"


@dataclasses.dataclass(frozen=True)
class _Thaw:
    """A schedule: the step size inside a region is 0 for `begin` updates, and rises evenly to 1 at update `end`."""

    begin: int
    end: int

    def __call__(self, count: jax.Array) -> jax.Array:
        """Return the step size of update number `count` (from 0), float32."""
        done = jnp.asarray(count, jnp.float32) - jnp.float32(self.begin)
        return jnp.clip(done / jnp.float32(max(self.end - self.begin, 1)), jnp.float32(0), jnp.float32(1))


def thaw(steps: int, begin: float, end: float | None = None) -> _Thaw:
    """Return the schedule that thaws a region between two fractions of `steps` updates (at once, when `end` is None).

    Raises:
      ValueError: not 0 <= begin <= end.
    """
    end = begin if end is None else end
    if not 0 <= begin <= end:
        raise ValueError(
            f"a region thaws between fractions {begin} and {end} of the steps: 0 <= begin <= end is needed"
        )
    # At once: the last frozen update is number begin * steps - 1, so the ramp is one update long and ends on it.
    first, last = round(begin * steps), round(end * steps)
    return _Thaw(first - 1, first) if first == last else _Thaw(first, last)


def hard(params: trees.Tree, masks: trees.Tree, thaw: _Schedule | None = None, name: str = "hard") -> Constraint:
    """Freeze the entries of a region.

    Args:
      params: the parameters, on their shards.
      masks: bool tree parallel to the parameters of some scope; kept at one bit an entry. A leaf that lies in the
        region entirely is frozen as a whole.
      thaw: the step size inside the region at each update, 0 while it is frozen; None: frozen for good.
      name: of the constraint.

    Raises:
      ValueError: the region belongs to another model, or `masks` are not bool.
    """
    covered = _covered(params, masks, "region")
    wrong = [path for path, mask in covered.items() if mask.dtype != bool]
    if wrong:
        raise ValueError(f"region: {wrong[0]!r} is {covered[wrong[0]].dtype}, a mask is bool")
    full = {path for path, mask in covered.items() if thaw is None and bool(jnp.all(mask))}
    some = {path: mask for path, mask in covered.items() if path not in full and bool(jnp.any(mask))}
    whole = frozenset(full)
    return Constraint(
        name=name,
        before=_transformation(name, _unmasked, thaw),
        after=_transformation(name, _held, thaw, whole),
        arrays={path: pack_mask(mask) for path, mask in some.items()},
        whole=whole,
        identity=_identity(name, covered, thaw=thaw),
    )


def _unmasked(mask: Packed, gradient: jax.Array, theta: jax.Array, size: jax.Array) -> jax.Array:
    return jnp.where(mask.unpack() & (size == 0), jnp.zeros_like(gradient), gradient)


def _held(mask: Packed, update: jax.Array, theta: jax.Array, size: jax.Array) -> jax.Array:
    return jnp.where(mask.unpack(), jnp.where(size == 0, jnp.full_like(update, -0.0), update * size), update)


def _leaves(params: trees.Tree, given: None = None, *, scope: str, name: str = "leaves") -> Constraint:
    """Freeze every parameter of a scope as a whole.

    Args:
      params: the parameters.
      given: nothing.
      scope: a key of `roles.SCOPES`, or patterns.
      name: of the constraint.
    """
    whole = frozenset(trees.flatten(roles.restrict(params, scope)))
    return Constraint(
        name=name,
        before=_transformation(name, None),
        after=_transformation(name, None, whole=whole),
        whole=whole,
        identity=f"{name} {' '.join(sorted(whole))}",
    )


def _column(
    params: trees.Tree,
    scores: trees.Tree,
    *,
    fraction: float | str,
    axis: str = "in",
    names: Mapping[str, tuple[str, ...]] | None = None,
    thaw: _Schedule | None = None,
    name: str = "column",
) -> Constraint:
    """Freeze whole rows or columns of each matrix, those of the largest summed score; arguments as in `_columns`."""
    return hard(params, _columns(scores, fraction, axis, names), thaw, name)


def _columns(
    scores: trees.Tree, fraction: float | str, axis: str = "in", names: Mapping[str, tuple[str, ...]] | None = None
) -> trees.Tree:
    """Return masks of the indices along one axis of each matrix whose summed score is largest.

    As source-shielded updates choose columns (arXiv 2512.04844), with any score. Matrices are [out, in], so axis "in"
    takes columns and "out" rows; gains, which have neither, are left out.

    Args:
      scores: non-negative tree parallel to the parameters of some scope.
      fraction: of the indices, floor(fraction x length) in each matrix.
      axis: "in", "out", or a named axis ("embed": the same dimensions in every matrix that carries it).
      names: {path: axis names}, needed for a named axis.

    Returns:
      Bool masks, parallel to the leaves that have the axis, on their shards.

    Raises:
      ValueError: no leaf has the axis.
    """
    places = {}
    for path, leaf in trees.walk(scores):
        if axis in ("in", "out"):
            if len(region.shape(path, leaf)) == 2:
                places[path] = leaf.ndim - (1 if axis == "in" else 2)
        elif axis in (names or {}).get(path, ()):
            places[path] = (names or {})[path].index(axis)
    if not places:
        raise ValueError(f"no matrix has the axis {axis!r}: it is 'in', 'out', or a name for which `names` are given")
    values = {path: leaf for path, leaf in trees.walk(scores) if path in places}

    def others(path: str) -> tuple[int, ...]:
        first = 1 if region.stacked(path) else 0
        return tuple(place for place in range(first, values[path].ndim) if place != places[path])

    sums = {path: jnp.sum(leaf, axis=others(path)) for path, leaf in values.items()}
    chosen = regions.select(trees.unflatten(sums), fraction).leaves()

    def spread(path: str) -> jax.Array:
        mask, shape = jnp.expand_dims(chosen[path], others(path)), values[path].shape
        sharding = values[path].sharding
        whole: jax.Array = jax.jit(jnp.broadcast_to, static_argnums=1, out_shardings=sharding)(mask, shape)
        return whole

    return trees.unflatten({path: spread(path) for path in values})


_STEPS = 255  # step sizes that `soft` tells apart above zero


def _soft(params: trees.Tree, scores: trees.Tree, *, strength: float = 1.0, name: str = "soft") -> Constraint:
    """Slow every entry by its score: the step size is 1 / (1 + strength x score / mean score of its matrix).

    Sizes are rounded to k/255 and kept in one byte: an entry of more than 509 / strength times the mean does not move
    at all, and is as frozen as under `hard`.

    Args:
      params: the parameters, on their shards.
      scores: non-negative tree parallel to the parameters of some scope.
      strength: 0 slows nothing.
      name: of the constraint.

    Raises:
      ValueError: scores of another model, negative or not finite.
    """
    covered = _covered(params, scores, "scores")

    @functools.partial(jax.jit, static_argnums=1)
    def sizes(values: jax.Array, first: int) -> jax.Array:
        mean = jnp.mean(values, axis=tuple(range(first, values.ndim)), keepdims=True)
        relative = values / jnp.where(mean == 0, jnp.ones_like(mean), mean)
        return jnp.round(jnp.float32(_STEPS) / (1 + jnp.float32(strength) * relative)).astype(jnp.uint8)

    for path, values in covered.items():
        if not bool(jnp.all(jnp.isfinite(values) & (values >= 0))):
            raise ValueError(f"scores: {path!r} holds a negative or not finite score")

    return Constraint(
        name=name,
        before=_transformation(name, _unstopped),
        after=_transformation(name, _slowed),
        arrays={path: sizes(values, 1 if region.stacked(path) else 0) for path, values in covered.items()},
        identity=_identity(name, covered, strength=strength),
    )


def _unstopped(size: jax.Array, gradient: jax.Array, theta: jax.Array, _: jax.Array) -> jax.Array:
    return jnp.where(size == 0, jnp.zeros_like(gradient), gradient)


def _slowed(size: jax.Array, update: jax.Array, theta: jax.Array, _: jax.Array) -> jax.Array:
    slowed = update * (size.astype(update.dtype) / _STEPS)
    return jnp.where(size == 0, jnp.full_like(update, -0.0), slowed)


def _l2_sp(params: trees.Tree, given: None = None, *, strength: float, name: str = "l2_sp") -> Constraint:
    """Pull every parameter to where it starts: strength / 2 x |theta - start|^2 is added to the loss (L2-SP).

    Args:
      params: the starting point, kept: do not donate them.
      given: nothing.
      strength: per squared distance, in nats per token.
      name: of the constraint.

    Source: arXiv 1802.01483. As the paper has it, the penalty's gradient goes through the optimizer.
    """
    return Constraint(
        name=name,
        before=_transformation(name, _Pull(strength)),
        after=_transformation(name, None),
        arrays=trees.flatten(params),
        identity=_identity(name, params, strength=strength),
    )


def _ewc(params: trees.Tree, fisher: trees.Tree, *, strength: float, name: str = "ewc") -> Constraint:
    """Pull each parameter to where it starts, as strongly as the Fisher information says (EWC).

    strength / 2 x sum of F (theta - start)^2 is added to the loss, with F scaled to a mean of 1 over all its entries:
    so the strength has the unit of `l2_sp`'s, and does not depend on how many samples F was summed over.

    Args:
      params: the starting point, kept: do not donate them.
      fisher: non-negative tree parallel to the parameters of some scope (`fisher`); elsewhere there is no pull.
      strength: per squared distance, in nats per token.
      name: of the constraint.

    Raises:
      ValueError: the information is of another model, all zero, negative or not finite.

    Source: arXiv 1612.00796.
    """
    covered = _covered(params, fisher, "fisher")
    wrong = [path for path, values in covered.items() if not bool(jnp.all(jnp.isfinite(values) & (values >= 0)))]
    mean = sum(float(jnp.mean(values)) * values.size for values in covered.values()) / trees.count(covered)
    if wrong or mean == 0:
        raise ValueError(f"fisher: {wrong[0]!r} holds a negative or not finite value" if wrong else "fisher: all zero")
    starts = trees.flatten(params)
    scale = jax.jit(lambda values: values * jnp.float32(1 / mean))
    return Constraint(
        name=name,
        before=_transformation(name, _Pull(strength)),
        after=_transformation(name, None),
        arrays={path: (starts[path], scale(values)) for path, values in covered.items()},
        identity=f"{_identity(name, params, strength=strength)} {trees.fingerprint(covered)}",
    )


@dataclasses.dataclass(frozen=True)
class _Pull:
    """The gradient of strength / 2 x (theta - start)^2, or of F times that, is added."""

    strength: float

    def __call__(self, start: Any, gradient: jax.Array, theta: jax.Array, _: jax.Array) -> jax.Array:
        """Return the gradient; with information, `start` is (start, F)."""
        strength = jnp.float32(self.strength)
        if isinstance(start, tuple):
            start, information = start
            strength = strength * information
        pulled: jax.Array = gradient + strength * (theta - start)
        return pulled


@jax.jit
def fisher(params: trees.Tree, scores: trees.Tree) -> trees.Tree:
    """Return the (empirical, diagonal) Fisher information that scores of the rule "fisher" hold, up to a factor.

    The scores are theta^2 x sum of g^2; where theta^2 is zero in float32, nothing is known and the result is 0.

    Args:
      params: the parameters that were scored.
      scores: parallel to the parameters of some scope.
    """
    thetas = trees.flatten(params)

    def one(path: str, score: jax.Array) -> jax.Array:
        square = thetas[path] * thetas[path]
        return jnp.where(
            square == 0, jnp.zeros_like(score), score / jnp.where(square == 0, jnp.ones_like(square), square)
        )

    return trees.transform(one, scores)


class _Method(NamedTuple):
    """A way to protect what a model knows.

    Attributes:
      make: (params, what is `given`, **options) -> `Constraint`.
      given: the tree it needs: "masks" of a region, "scores", "fisher" information, or "nothing" (None).
      option: the one option that it cannot do without, or whose value matters most; "" where there is none.
    """

    make: Callable[..., Constraint]
    given: str
    option: str = ""


METHODS: dict[str, _Method] = {
    "hard": _Method(hard, "masks"),
    "column": _Method(_column, "scores", "fraction"),
    "leaves": _Method(_leaves, "nothing", "scope"),
    "soft": _Method(_soft, "scores", "strength"),
    "l2_sp": _Method(_l2_sp, "nothing", "strength"),
    "ewc": _Method(_ewc, "fisher", "strength"),
}


# ---- around an optimizer ----


def wrap(
    optimizer: optax.GradientTransformation, constraints: list[Constraint], params: trees.Tree
) -> optax.GradientTransformationExtraArgs:
    """Return the optimizer inside its constraints, as one chain; its update takes `constraints=arrays(constraints)`.

    Leaves that never move are kept from the optimizer by `optax.selective_transform`: it has no state for them.

    Args:
      optimizer: clipping, AdamW and all.
      constraints: in the order in which they change the gradients; the updates they change in the opposite order.
      params: arrays or shapes: says what leaves there are.

    Raises:
      ValueError: two constraints have one name.
    """
    names = [each.name for each in constraints]
    if len(set(names)) < len(names):
        raise ValueError(f"constraints need distinct names, not {', '.join(names)}: give `name=`")
    frozen = whole(constraints)
    inner = optax.selective_transform(optimizer, freeze_mask=trees.transform(lambda path, _: path in frozen, params))
    chain: optax.GradientTransformationExtraArgs = optax.chain(
        *(each.before for each in constraints), inner, *(each.after for each in reversed(constraints))
    )
    return chain


def whole(constraints: list[Constraint]) -> frozenset[str]:
    """Return the paths of the leaves that never move."""
    return frozenset().union(*(each.whole for each in constraints))


def arrays(constraints: list[Constraint]) -> dict[str, Any]:
    """Return what the constraints read, by name: an argument of the compiled step."""
    return {each.name: each.arrays for each in constraints}


def apply(params: trees.Tree, updates: trees.Tree) -> trees.Tree:
    """Return params + updates, where an update of zero leaves all bits alone: subnormal weights too, on any device."""
    moved: trees.Tree = jax.tree.map(
        lambda theta, update: jnp.where(update == 0, theta, theta + update), params, updates
    )
    return moved


# ---- proof ----


@jax.jit
def _differing(base: jax.Array, theta: jax.Array, mask: jax.Array) -> jax.Array:
    """Return int32 counts of the masked entries whose bits differ, one a matrix (or one for the leaf, see `verify`)."""
    bits = [jax.lax.bitcast_convert_type(each, jnp.uint32) for each in (base, theta)]
    return jnp.sum((bits[0] != bits[1]) & mask, axis=tuple(range(1, mask.ndim)), dtype=jnp.int32)


def verify(base: trees.Tree, params: trees.Tree, masks: trees.Tree) -> None:
    """Check that two models are the same inside a region, bit for bit.

    Args:
      base: float32 parameters before training.
      params: float32 parameters after.
      masks: bool tree parallel to the parameters of some scope.

    Raises:
      ValueError: names the first matrix that differs, and how many of its frozen entries do.
    """
    before, after = trees.flatten(base), trees.flatten(params)
    for path, mask in _covered(params, masks, "region").items():
        layers = slice(None) if region.stacked(path) else None
        counts = _differing(before[path][layers], after[path][layers], mask[layers])
        for name, count in zip(region.matrices(path, mask), counts.tolist(), strict=True):
            if count:
                raise ValueError(f"{name}: {count:,} frozen entries differ from the base model")
