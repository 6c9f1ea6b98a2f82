"""Trainer: the compiled step of one (model, recipe, constraints, mesh), and the state that goes through it.

A step's loss is the summed NLL of its batch over the number of its targets, however the batch is cut into
micro-batches; their gradients add up in float32 inside the one compiled step. The state is donated: a step needs no
second copy of parameters and moments.
"""

import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lingregions import freeze, loss, models
from lingregions import mesh as meshes
from lingregions import tree as trees
from lingregions.corpus.batch import Batch
from lingregions.freeze import Constraint
from lingregions.train import recipe as recipes
from lingregions.train.recipe import Recipe


class State(NamedTuple):
    """All that a training carries from step to step on the devices.

    Attributes:
      params: float32 parameters.
      optimizer: of optax.
      step: int32, steps done.
    """

    params: trees.Tree
    optimizer: Any
    step: jax.Array


class Metrics(NamedTuple):
    """What a step tells.

    Attributes:
      loss: float32, nats per token of the batch, before the update.
      gradient_norm: float32, of what may move, before clipping.
      rate: float32, learning rate of the step.
      tokens: int32, targets of the batch.
      samples: float32 [rows], nats per token of each sample; rows of padding give 0.
    """

    loss: jax.Array
    gradient_norm: jax.Array
    rate: jax.Array
    tokens: jax.Array
    samples: jax.Array


class Trainer:
    """See the module docstring.

    Args:
      config: model config.
      compute: how to run it; the compute dtype may be bfloat16, what is stored is float32.
      recipe: how to step.
      constraints: see `freeze`.
      micro: samples of a micro-batch over all devices: a multiple of `mesh.rows(mesh)`. A batch is filled up with
        padding to whole micro-batches.
      mesh: device mesh; the moments lie on the shards of their parameters. None: one device.

    Raises:
      ValueError: parameters in bfloat16, `micro` does not divide over the mesh, or two constraints have one name.
    """

    def __init__(
        self,
        config: Any,
        compute: models.Compute,
        recipe: Recipe,
        constraints: Iterable[Constraint] = (),
        micro: int = 1,
        mesh: Mesh | None = None,
    ) -> None:
        if compute.parameters != "float32":
            raise ValueError(
                "parameters are held in bfloat16, in which most steps round to nothing: load them in float32"
            )
        self.compute, self.recipe, self.mesh = compute, recipe, mesh
        self.constraints = list(constraints)
        self.micro = min(micro, recipe.batch) if mesh is None else micro
        if micro < 1 or (mesh is not None and micro % meshes.rows(mesh)):
            parts = 1 if mesh is None else meshes.rows(mesh)
            raise ValueError(f"micro-batches of {micro} samples do not split over {parts} parts of the batch axes")
        self.rows = -(-recipe.batch // self.micro) * self.micro
        self.arrays = freeze.arrays(self.constraints)
        self._program = _program(config, compute, recipe, tuple(map(freeze.bare, self.constraints)), mesh)
        self.shapes = self._program.shapes

    def start(self, params: trees.Tree) -> State:
        """Return the state before the first step; the parameters are copied, not donated."""
        out: State = self._program.start(params)
        return out

    def step(self, state: State, batch: Batch) -> tuple[State, Metrics]:
        """Return the state after one step, and what it tells.

        Args:
          state: donated; do not use it afterwards.
          batch: host arrays [n, T], n up to `rows` (the rest is padding).
        """
        with meshes.use(self.mesh):
            out: tuple[State, Metrics] = self._program.step(state, self.arrays, self.place(batch))
            return out

    def lower(self, T: int) -> Any:
        """Return the lowered step for samples of T tokens, to compile ahead of time or to ask for its memory."""
        shape = (self.rows // self.micro, self.micro, T)
        where = None if self.mesh is None else _micro(self.mesh)
        like: Any = jax.ShapeDtypeStruct(shape, np.int32, sharding=where)
        batch = Batch(like, like, like)
        with meshes.use(self.mesh):
            return self._program.step.lower(self.shapes, self.arrays, batch)

    def place(self, batch: Batch) -> Batch:
        """Put host arrays [n, T] on the mesh as micro-batches [rows / micro, micro, T], each split over the mesh."""

        def put(values: np.ndarray) -> jax.Array:
            filled = np.pad(values, ((0, self.rows - len(values)), (0, 0))).reshape(-1, self.micro, values.shape[1])
            if self.mesh is None:
                return jnp.asarray(filled)
            return jax.make_array_from_callback(filled.shape, _micro(self.mesh), lambda index: filled[index])

        return Batch(*(put(np.asarray(each)) for each in batch))


class _Program:
    """What is compiled of a training: all but the arrays of its constraints."""

    def __init__(
        self, config: Any, compute: models.Compute, recipe: Recipe, constraints: list[Constraint], mesh: Mesh | None
    ) -> None:
        self.config, self.compute, self.recipe, self.mesh = config, compute, recipe, mesh
        self.constraints = constraints
        places = None if mesh is None else meshes.shardings(models.declare(config), mesh)
        shapes = models.shapes(config, places)
        self.optimizer = freeze.wrap(recipes.optimizer(recipe), constraints, shapes)
        self.shapes = jax.eval_shape(self._begin, shapes)
        where = whole = None
        if mesh is not None and places is not None:
            where, whole = _shardings(self.shapes, places, mesh), meshes.replicated(mesh)
            self.shapes = jax.tree.map(
                lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), self.shapes, where
            )
        self.start = jax.jit(self._begin, out_shardings=where)
        self.step = jax.jit(self._advance, donate_argnums=0, out_shardings=None if mesh is None else (where, whole))

    def _begin(self, params: trees.Tree) -> State:
        with jax.numpy_dtype_promotion("standard"):
            return State(jax.tree.map(jnp.copy, params), self.optimizer.init(params), jnp.zeros((), jnp.int32))

    def _advance(self, state: State, arrays: dict[str, Any], batch: Batch) -> tuple[State, Metrics]:
        """One step on micro-batches [A, B, T]; compiled."""
        frozen = freeze.whole(self.constraints)
        leaves = trees.flatten(state.params)
        moving = {path: leaf for path, leaf in leaves.items() if path not in frozen}
        counts = jax.vmap(loss.targets)(batch)[1]
        tokens = jnp.sum(counts, dtype=jnp.int32)
        each = jnp.sum(counts, axis=-1, dtype=jnp.int32)
        total = jnp.maximum(tokens, 1).astype(jnp.float32)

        def slope(micro: Batch) -> tuple[dict[str, jax.Array], jax.Array]:
            part = trees.unflatten(moving)
            found, told = loss.differentiate(self.config, self.compute, state.params, part, micro, 1 / total)
            return trees.flatten(found), told.nll

        def add(gradient: dict[str, jax.Array], micro: Batch) -> tuple[dict[str, jax.Array], jax.Array]:
            more, nll = slope(micro)
            return jax.tree.map(lambda sums, more: sums + more.astype(sums.dtype), gradient, self._pin(more)), nll

        if batch.tokens.shape[0] == 1:
            gradient, nll = slope(jax.tree.map(lambda each: each[0], batch))
            nll = nll[None]
        else:
            gradient, nll = jax.lax.scan(add, self._pin(jax.tree.map(jnp.zeros_like, moving)), batch)
        # Wide where it is read: the compiler writes no float32 copy.
        gradient = {path: leaf.astype(jnp.float32) for path, leaf in gradient.items()}
        # Leaves that never move: nobody reads these zeros, the compiler drops them.
        whole = {path: jnp.zeros_like(leaves[path]) for path in frozen}
        with jax.numpy_dtype_promotion("standard"):
            updates, optimizer = self.optimizer.update(
                trees.unflatten(gradient | whole), state.optimizer, state.params, constraints=arrays
            )
            rate = jnp.asarray(self.recipe.schedule()(state.step), jnp.float32)
        told = Metrics(
            loss=jnp.sum(nll) / total,
            gradient_norm=optax.tree.get(optimizer, "gradient_norm"),
            rate=rate,
            tokens=tokens,
            samples=(nll / jnp.maximum(each, 1).astype(jnp.float32)).reshape(-1),
        )
        return State(freeze.apply(state.params, updates), optimizer, state.step + 1), told

    def _pin(self, part: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Keep gradients that add up on the shards of their parameters."""
        if self.mesh is None:
            return part
        places = trees.flatten(meshes.shardings(models.declare(self.config), self.mesh))
        return {path: jax.lax.with_sharding_constraint(leaf, places[path]) for path, leaf in part.items()}


@functools.lru_cache(maxsize=16)
def _program(
    config: Any, compute: models.Compute, recipe: Recipe, constraints: tuple[Constraint, ...], mesh: Mesh | None
) -> _Program:
    """Return the program of a kind of training: those that differ in seed, text and regions share one."""
    return _Program(config, compute, recipe, list(constraints), mesh)


def _micro(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec(None, *meshes.batched(mesh).spec))


def _shardings(shapes: State, places: trees.Tree, mesh: Mesh) -> State:
    """Return where a state lies: what ends in the path of a parameter and has its shape, on its shards.

    jit replicates what optax makes of zeros, and optax says only of some states which leaves belong to a parameter.
    """
    known = trees.flatten(places)
    leaves = trees.flatten(shapes.params)

    def place(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        keys = [each.key for each in path if isinstance(each, jax.tree_util.DictKey)]
        for first in range(len(keys)):
            name = ".".join(map(str, keys[first:]))
            if name in known and leaves[name].shape == leaf.shape:
                found: NamedSharding = known[name]
                return found
        return meshes.replicated(mesh)

    placed: State = jax.tree_util.tree_map_with_path(place, shapes)
    return placed
