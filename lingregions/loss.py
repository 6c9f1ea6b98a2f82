"""The one loss: next-token negative log-likelihood, as sums - nats, tokens, bytes - that are divided once, at the end.

Scoring, evaluation and training all call `nll`. Softmax and sums are float32 whatever the compute dtype. The vocabulary
is met in chunks of tokens, so no [B, T, V] array exists: forward costs 2 B T D V FLOPs and [B, chunk, V] floats of
memory; with gradients the slope of the hidden state is found in the same pass, and the head's own gradient (training
only) costs the logits once more.
"""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from lingregions import mesh as meshes
from lingregions import models
from lingregions import tree as trees
from lingregions.corpus.batch import Batch
from lingregions.models import roles
from lingregions.models.compute import REMAT

_PIECES = 16  # of the vocabulary, that the gradient of the head is added up in over devices


class Loss(NamedTuple):
    """Sums over the targets of each sample.

    Attributes:
      nll: float32 [B], negative log-likelihood in nats.
      tokens: int32 [B], number of targets.
      bytes: int32 [B], UTF-8 bytes that the targets stand for.
    """

    nll: jax.Array
    tokens: jax.Array
    bytes: jax.Array


Totals = dict[str, jax.Array]  # what is gathered at one parameter, under any names
_Add = Callable[[str, jax.Array, jax.Array, Totals], Totals]


def targets(batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Return (the token after each, whether it counts): int32 and bool [B, T].

    The token at t + 1 is a target of position t where both lie in one document and neither is padding.
    """
    following = jnp.roll(batch.tokens, -1, axis=1)
    same = (batch.segments[:, 1:] == batch.segments[:, :-1]) & (batch.segments[:, :-1] != 0)
    return following, jnp.pad(same, ((0, 0), (0, 1)))


def nll(
    config: Any, compute: models.Compute, params: trees.Tree, batch: Batch, bounds: trees.Tree | None = None
) -> Loss:
    """Return the summed next-token loss of every sample of a batch; differentiable in `params`.

    Args:
      config: model config.
      compute: how to run it.
      params: float32 parameters.
      batch: int32 arrays [B, T].
      bounds: bounds on what comes from some weights (see `models.bounded`).

    Returns:
      `Loss` with sums a sample; a sample of padding alone gives 0 nats, 0 tokens, 0 bytes.
    """
    return nll_and_inputs(config, compute, params, batch, capture=False, bounds=bounds)[0]


def nll_and_inputs(
    config: Any,
    compute: models.Compute,
    params: trees.Tree,
    batch: Batch,
    capture: bool = True,
    bounds: trees.Tree | None = None,
    buffers: trees.Tree | None = None,
) -> tuple[Loss, trees.Tree]:
    """Return `nll` and the sums of squares of what enters each weight (see `models.hidden`), from one pass."""
    each, counts, inputs = _each(config, compute, params, batch, capture, bounds, buffers)
    return _sums(each, counts, batch), inputs


def _sums(each: jax.Array, counts: jax.Array, batch: Batch) -> Loss:
    return Loss(
        nll=jnp.sum(jnp.where(counts, each, jnp.float32(0)), axis=1),
        tokens=jnp.sum(counts, axis=1, dtype=jnp.int32),
        bytes=jnp.sum(jnp.where(counts, jnp.roll(batch.bytes, -1, axis=1), 0), axis=1, dtype=jnp.int32),
    )


def differentiate(
    config: Any,
    compute: models.Compute,
    params: trees.Tree,
    part: trees.Tree,
    batch: Batch,
    weight: jax.Array,
) -> tuple[trees.Tree, Loss]:
    """Return the gradient of weight x the summed NLL of a batch, with the losses.

    Args:
      config: model config.
      compute: how to run it.
      params: float32 parameters.
      part: those that the gradient is taken of, a tree of some of their leaves.
      batch: int32 arrays [B, T].
      weight: float32 scalar.

    Returns:
      The gradient, parallel to `part`, and the losses as from `nll`. The layers' weights have theirs in the compute
      dtype: under bfloat16 no digit more was ever found, and they have half the bytes.
    """
    dtype, declared, leaves = compute.activations, trees.flatten(models.declare(config)), trees.flatten(part)
    low = {path: leaf for path, leaf in leaves.items() if declared[path].stacked and leaf.dtype != dtype}
    rest = {path: leaf for path, leaf in leaves.items() if path not in low}

    def objective(rest: dict[str, jax.Array], buffers: dict[str, jax.Array]) -> tuple[jax.Array, Any]:
        whole = trees.merge(params, trees.unflatten(low | rest))
        found, _ = nll_and_inputs(config, compute, whole, batch, False, buffers=trees.unflatten(buffers))
        return jnp.sum(found.nll) * weight, found

    # Again around the gradient: the hand-written backward passes are traced after the loss.
    with jax.default_matmul_precision(compute.precision):
        buffers = {path: jnp.zeros(leaf.shape, dtype) for path, leaf in low.items()}
        (above, below), found = jax.grad(objective, argnums=(0, 1), has_aux=True)(rest, buffers)
    return trees.unflatten(above | below), found


def accumulate(
    config: Any,
    compute: models.Compute,
    params: trees.Tree,
    totals: Mapping[str, Totals],
    batch: Batch,
    weight: jax.Array,
    add: _Add,
    capture: bool = False,
) -> tuple[dict[str, Totals], Loss, trees.Tree]:
    """Feed the gradient that `differentiate` returns to `add` a layer at a time: no tree of gradients ever exists.

    Forward keeps what enters each layer, [L, B, T, D], and under remat "dots" what its products gave. Backward runs the
    rest of each layer again, takes its gradient, and puts what `add` makes of it into the layer's slice of the totals,
    which are updated in place where they are donated.

    Args:
      config: model config.
      compute: how to run it; "none" and "full" in `remat` are the same here.
      params: parameters.
      totals: {path: arrays}, for the parameters that the gradient is taken of; those of the layers have the axis of
        layers in front.
      batch: int32 arrays [B, T].
      weight: float32 scalar.
      add: (path, parameter, gradient, totals there) -> totals there; in the layers of one layer, [1, ...] each.
      capture: whether to gather what enters the weights of the layers.

    Returns:
      The totals; losses and inputs as from `nll_and_inputs`, those of the layers alone.
    """
    family, stack = models.architecture(config), params[roles.LAYERS]
    # Wide, whatever they are held in: a gradient has the dtype of what it is taken of.
    outer = {
        path: leaf.astype(jnp.float32)
        for path, leaf in trees.walk(params)
        if path in totals and not roles.stacked(path)
    }
    places = jnp.arange(config.layers, dtype=jnp.int32)

    def enter(outer: trees.Tree) -> jax.Array:
        return family.enter(config, compute, trees.merge(params, trees.unflatten(outer)), batch.tokens)

    def run(weights: trees.Tree, place: jax.Array, x: jax.Array) -> tuple[jax.Array, trees.Tree]:
        return family.layer(config, compute, weights, place, x, batch.segments, capture)

    def leave(outer: trees.Tree, x: jax.Array) -> tuple[jax.Array, Loss]:
        whole = trees.merge(params, trees.unflatten(outer))
        hidden = family.leave(config, compute, whole, x, batch.segments)
        found = _sums(*_of_hidden(config, compute, whole, hidden, batch), batch)
        return jnp.sum(found.nll) * weight, found

    inside = {path: total for path, total in totals.items() if path not in outer}
    layer = _Layer(run, inside, REMAT["dots"] if compute.remat == "dots" else None)
    with jax.default_matmul_precision(compute.precision):
        x, d_enter = jax.vjp(enter, outer)
        x, (kept, inputs) = jax.lax.scan(layer.forward, x, (stack, places), unroll=compute.unroll)
        _, d_leave, found = jax.vjp(leave, outer, x, has_aux=True)
        above, d_x = d_leave(jnp.ones((), jnp.float32))
        d_x, summed = _backward_layers(layer, stack, kept, places, d_x, inside, add)
        (below,) = d_enter(d_x)
    for path, leaf in outer.items():
        summed[path] = add(path, leaf, above[path] + below[path], totals[path])
    return summed, found, {roles.LAYERS: inputs} if capture else {}


class _Layer:
    """A layer and its slopes, of which the forward scan keeps arrays for the backward one.

    Args:
      run: (weights, place, x) -> (x, anything).
      paths: of the weights whose slopes are asked for.
      policy: what is kept beside what enters the layer, of `jax.checkpoint_policies`; None: nothing.
    """

    def __init__(
        self, run: Callable[..., tuple[jax.Array, trees.Tree]], paths: Iterable[str], policy: Any = None
    ) -> None:
        self.run, self.paths, self.policy = run, list(paths), policy
        self._structure: Any = None  # of what the slopes need: the same in every layer
        self._weights: list[str | None] = []  # path of each array that they need, None for what is kept

    def _split(
        self, weights: trees.Tree, place: jax.Array
    ) -> tuple[dict[str, jax.Array], dict[str, jax.Array], Callable[..., Any]]:
        """Return the weights at the paths, wide; all, with these among them; the layer as a function of these and x."""
        leaves = trees.flatten({roles.LAYERS: weights})
        mine = {path: leaves[path].astype(jnp.float32) for path in self.paths}

        def run(mine: dict[str, jax.Array], x: jax.Array) -> tuple[jax.Array, trees.Tree]:
            return self.run(trees.unflatten(leaves | mine)[roles.LAYERS], place, x)

        return mine, leaves | mine, run

    def forward(self, x: jax.Array, each: tuple[trees.Tree, jax.Array]) -> tuple[jax.Array, tuple[Any, trees.Tree]]:
        """Return what leaves a layer, (what is kept, anything); a step of a scan over (weights, place)."""
        weights, place = each
        if self.policy is None:
            out, rest = self.run(weights, place, x)
            return out, ([x], rest)
        mine, leaves, run = self._split(weights, place)
        out, slopes, rest = jax.vjp(jax.checkpoint(run, policy=self.policy, prevent_cse=False), mine, x, has_aux=True)
        needed, self._structure = jax.tree.flatten(slopes)
        # The weights lie in their stack already.
        paths = {id(leaf): path for path, leaf in leaves.items()}
        self._weights = [paths.get(id(array)) for array in needed]
        kept = [array for array, path in zip(needed, self._weights, strict=True) if path is None]
        return out, (kept, rest)

    def backward(
        self, weights: trees.Tree, place: jax.Array, kept: list[jax.Array], d_x: jax.Array
    ) -> tuple[dict[str, jax.Array], dict[str, jax.Array], jax.Array]:
        """Return the weights at the paths, their slopes, and the slope of what enters, from that of what leaves."""
        mine, leaves, run = self._split(weights, place)
        if self.policy is None:
            slopes = jax.vjp(lambda mine, x: run(mine, x)[0], mine, kept[0])[1]
        else:
            arrays = iter(kept)
            needed = [next(arrays) if path is None else leaves[path] for path in self._weights]
            slopes = jax.tree.unflatten(self._structure, needed)
        return mine, *slopes(d_x)


def _backward_layers(
    layer: _Layer,
    stack: trees.Tree,
    kept: list[jax.Array],
    places: jax.Array,
    d_x: jax.Array,
    totals: dict[str, Totals],
    add: _Add,
) -> tuple[jax.Array, dict[str, Totals]]:
    """Return the slope of what enters the first layer and the totals, from the slope of what leaves the last.

    Args:
      layer: whose forward pass was scanned.
      stack: weights of all layers.
      kept: what that kept, [L, ...] each.
      places: 0 to L - 1.
      d_x: slope of what left the last layer.
      totals: by path, of the layers alone.
      add: as in `accumulate`.
    """

    def backward(carry: Any, each: tuple[list[jax.Array], trees.Tree, jax.Array]) -> tuple[Any, None]:
        (d_x, totals), (kept, weights, place) = carry, each
        mine, gradient, d_x = layer.backward(weights, place, kept, d_x)
        for path, theta in mine.items():
            here = jax.tree.map(lambda total: jax.lax.dynamic_slice_in_dim(total, place, 1), totals[path])
            here = add(path, theta[None], gradient[path][None], here)
            put = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=place, axis=0)
            totals = totals | {path: jax.tree.map(put, totals[path], here)}
        return (d_x, totals), None

    (d_x, totals), _ = jax.lax.scan(backward, (d_x, totals), (kept, stack, places), reverse=True)
    return d_x, totals


def losses(
    config: Any, compute: models.Compute, params: trees.Tree, batch: Batch, bounds: trees.Tree | None = None
) -> tuple[jax.Array, jax.Array]:
    """Return the loss of every target: float32 [B, T] nats at the position *before* the target, and bool [B, T].

    A position that has no target gives 0 and False. `nll` are the sums of these over T.
    """
    each, counts, _ = _each(config, compute, params, batch, capture=False, bounds=bounds)
    return jnp.where(counts, each, jnp.float32(0)), counts


def states(
    config: Any, compute: models.Compute, places: tuple[int, ...], params: trees.Tree, batch: Batch
) -> jax.Array:
    """Return what enters the layers at `places`, [places, B, T, D]; the number of layers means what leaves the last."""
    family, stack = models.architecture(config), params[roles.LAYERS]
    slots = jnp.asarray([places.index(at) if at in places else len(places) for at in range(config.layers)], jnp.int32)

    def forward(carry: tuple[jax.Array, jax.Array], each: Any) -> tuple[tuple[jax.Array, jax.Array], None]:
        (x, kept), (weights, place, slot) = carry, each
        kept = kept.at[slot].set(x, mode="drop")  # a slot beyond the last is none
        return (family.layer(config, compute, weights, place, x, batch.segments)[0], kept), None

    with jax.default_matmul_precision(compute.precision):
        x = family.enter(config, compute, params, batch.tokens)
        kept = jnp.zeros((len(places), *x.shape), x.dtype)
        over = stack, jnp.arange(config.layers, dtype=jnp.int32), slots
        (x, kept), _ = jax.lax.scan(forward, (x, kept), over)
    return kept.at[places.index(config.layers)].set(x) if config.layers in places else kept


def losses_from(
    config: Any,
    compute: models.Compute,
    params: trees.Tree,
    batch: Batch,
    states: jax.Array,
    slot: jax.Array,
    place: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Return `losses` from what enters the layer at `place`, int32 [], which is `states[slot]` (see `states`)."""
    family, stack = models.architecture(config), params[roles.LAYERS]

    def forward(place: jax.Array, x: jax.Array) -> jax.Array:
        weights = jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, place, keepdims=False), stack)
        out: jax.Array = family.layer(config, compute, weights, place, x, batch.segments)[0]
        return out

    with jax.default_matmul_precision(compute.precision):
        x = jax.lax.dynamic_index_in_dim(states, slot, keepdims=False)
        x = jax.lax.fori_loop(place, jnp.int32(config.layers), forward, x)
        hidden = family.leave(config, compute, params, x, batch.segments)
        each, counts = _of_hidden(config, compute, params, hidden, batch)
    return jnp.where(counts, each, jnp.float32(0)), counts


def losses_of_rows(
    config: Any,
    compute: models.Compute,
    params: trees.Tree,
    batch: Batch,
    states: jax.Array,
    slot: jax.Array,
    begin: jax.Array,
    place: jax.Array,
    rows: trees.Tree,
) -> tuple[jax.Array, jax.Array]:
    """Return the losses under each of K changes of a few rows of one layer: float32 [K, B, T] nats, and bool [B, T].

    The layers before it run once; it and those above run on B x K samples as one batch, in which no matrix is copied.

    Args:
      config: model config.
      compute: how to run it.
      params: parameters, untouched.
      batch: int32 arrays [B, T].
      states: see `states`.
      slot: int32 [], the state to begin with.
      begin: int32 [], the layer that it enters.
      place: int32 [], the layer that is changed, not before `begin`.
      rows: at the paths of some weights of the layer (where, what), int32 [K, r] and float32 [K, r, in], or [K, r] of a
        vector; one beyond the last is none.
    """
    family, stack = models.architecture(config), params[roles.LAYERS]
    B, K = len(batch.tokens), len(jax.tree.leaves(rows)[0])
    # The changes of a sample lie together, so that the samples stay on their devices.
    documents = jnp.asarray(batch.segments)
    segments = jnp.repeat(documents, K, axis=0)

    def forward(segments: jax.Array, rows: trees.Tree | None, place: jax.Array, x: jax.Array) -> jax.Array:
        weights = jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, place, keepdims=False), stack)
        out: jax.Array = family.layer(config, compute, weights, place, x, segments, False, rows)[0]
        return out

    def losses(x: jax.Array) -> jax.Array:
        return _of_hidden(config, compute, params, x, batch)[0]

    with jax.default_matmul_precision(compute.precision):
        x = jax.lax.dynamic_index_in_dim(states, slot, keepdims=False)
        x = jax.lax.fori_loop(begin, place, functools.partial(forward, documents, None), x)
        own = jax.tree.map(lambda leaf: jnp.tile(leaf, (B, *(1,) * (leaf.ndim - 1))), rows)
        x = forward(segments, own, place, jnp.repeat(x, K, axis=0))
        x = jax.lax.fori_loop(place + 1, jnp.int32(config.layers), functools.partial(forward, segments, None), x)
        x = family.leave(config, compute, params, x, segments)
        each = jax.lax.map(losses, jnp.moveaxis(x.reshape(B, K, *x.shape[1:]), 1, 0))
    counts = targets(batch)[1]
    return jnp.where(counts, each, jnp.float32(0)), counts


def _each(
    config: Any,
    compute: models.Compute,
    params: trees.Tree,
    batch: Batch,
    capture: bool,
    bounds: trees.Tree | None,
    buffers: trees.Tree | None = None,
) -> tuple[jax.Array, jax.Array, trees.Tree]:
    """Return the loss [B, T] of the token after each position, whether it counts, and what `models.hidden` captured."""
    with jax.default_matmul_precision(compute.precision):
        hidden, inputs = models.hidden(config, compute, params, batch.tokens, batch.segments, capture, bounds, buffers)
        return *_of_hidden(config, compute, params, hidden, batch), inputs


def _of_hidden(
    config: Any, compute: models.Compute, params: trees.Tree, hidden: jax.Array, batch: Batch
) -> tuple[jax.Array, jax.Array]:
    """Return the loss [B, T] of the token after each position, and whether it counts, from the last hidden state."""
    table = models.head(config, params).astype(compute.activations)
    following, counts = targets(batch)
    chunk = min(compute.chunk, hidden.shape[1])
    return cross_entropy(hidden, table, following, chunk, models.logit_softcap(config)), counts


def cross_entropy(
    hidden: jax.Array, table: jax.Array, following: jax.Array, chunk: int, softcap: float | None = None
) -> jax.Array:
    """Return -log softmax(hidden table^T)[following], float32 [B, T], `chunk` tokens at a time.

    Args:
      hidden: [B, T, D].
      table: [V, D].
      following: int32 [B, T].
      chunk: tokens of each sample a step; the last step is filled up with zeros.
      softcap: logits x become c tanh(x / c) with this c; None for none.
    """
    T = hidden.shape[1]
    short = -T % chunk
    if short:
        hidden = jnp.pad(hidden, ((0, 0), (0, short), (0, 0)))
        following = jnp.pad(following, ((0, 0), (0, short)))
    each = _cross_entropy(softcap, _split(hidden, chunk), table, _split(following, chunk))
    return _join(each)[:, :T]


def _split(values: jax.Array, chunk: int) -> jax.Array:
    """[B, T, ...] to [T / chunk, B, chunk, ...]."""
    B, T = values.shape[:2]
    return jnp.moveaxis(values.reshape(B, T // chunk, chunk, *values.shape[2:]), 1, 0)


def _join(values: jax.Array) -> jax.Array:
    """[T / chunk, B, chunk, ...] to [B, T, ...]."""
    values = jnp.moveaxis(values, 0, 1)
    return values.reshape(values.shape[0], -1, *values.shape[3:])


class _Chunk(NamedTuple):
    """What is known of one chunk: the loss [B, t]; exp(logits - top) [B, t, V] and its sum; the slope of the cap."""

    nats: jax.Array
    weights: jax.Array
    total: jax.Array
    slope: jax.Array | None


def _chunk(hidden: jax.Array, table: jax.Array, following: jax.Array, softcap: float | None) -> _Chunk:
    logits, slope = jnp.einsum("btd,vd->btv", hidden, table, preferred_element_type=jnp.float32), None
    if softcap is not None:
        tanh = jnp.tanh(logits / np.float32(softcap))
        logits, slope = np.float32(softcap) * tanh, 1 - tanh * tanh
    # A comparison, not a gather: it keeps a vocabulary that is split over devices where it lies.
    picked = jnp.sum(jnp.where(_hot(logits, following), logits, jnp.float32(0)), axis=-1)
    top = jnp.max(logits, axis=-1, keepdims=True)
    weights = jnp.exp(logits - top)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    # top - picked first: it is exact where they are close, so a large logit costs a small loss no digits.
    return _Chunk(jnp.log(total)[..., 0] + (top[..., 0] - picked), weights, total, slope)


def _hot(logits: jax.Array, following: jax.Array) -> jax.Array:
    return jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1) == following[..., None]


def _d_logits(chunk: _Chunk, following: jax.Array) -> jax.Array:
    """Return d loss / d logits = softmax - one-hot, times the slope of the cap."""
    found = chunk.weights / chunk.total - _hot(chunk.weights, following).astype(chunk.weights.dtype)
    return found if chunk.slope is None else found * chunk.slope


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _cross_entropy(softcap: float | None, hidden: jax.Array, table: jax.Array, following: jax.Array) -> jax.Array:
    nats: jax.Array = jax.lax.map(lambda each: _chunk(each[0], table, each[1], softcap).nats, (hidden, following))
    return nats


def _forward(softcap: float | None, hidden: Any, table: Any, following: Any) -> tuple[jax.Array, Any]:
    def one(each: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        chunk = _chunk(each[0], table.value, each[1], softcap)
        d_logits = _d_logits(chunk, each[1]).astype(table.value.dtype)
        return chunk.nats, jnp.einsum("btv,vd->btd", d_logits, table.value)

    nats, d_hidden = jax.lax.map(one, (hidden.value, following.value))
    # Scoring does not ask for the head's gradient: then nothing but the gradient need be kept.
    kept = (hidden.value, table.value, following.value) if table.perturbed else None
    return nats, (d_hidden, kept)


def _backward(softcap: float | None, kept: Any, gradient: jax.Array) -> tuple[jax.Array, jax.Array | None, None]:
    d_hidden, inputs = kept
    d_hidden = d_hidden * gradient[..., None].astype(d_hidden.dtype)
    if inputs is None:
        return d_hidden, None, None
    hidden, table, following = inputs

    def add(total: jax.Array, each: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        values, ids, cotangent = each
        d_logits = _d_logits(_chunk(values, table, ids, softcap), ids) * cotangent[..., None]
        return total + _outer(d_logits.astype(table.dtype), values), None

    d_table, _ = jax.lax.scan(add, jnp.zeros(table.shape, jnp.float32), (hidden, following, gradient))
    # The barrier: the compiler would keep the float32 sums until they are read.
    return d_hidden, jax.lax.optimization_barrier(d_table.astype(table.dtype)), None


def _outer(d_logits: jax.Array, hidden: jax.Array) -> jax.Array:
    """Return the sum over tokens of [B, t, V] x [B, t, D], float32 [V, D], on the shards of the head.

    Each device has its own samples' part of the sum for every place. The compiler would add up whole matrices on every
    device before it takes a shard of them; here a piece of the vocabulary at a time goes straight to its shards.
    """
    mesh = jax.sharding.get_abstract_mesh()
    product = functools.partial(jnp.einsum, "btv,btd->vd", preferred_element_type=jnp.float32)
    if mesh.empty:
        return product(d_logits, hidden)
    logits = meshes.spec(("batch", "tokens", "vocab"), d_logits.shape, mesh)
    vocab, embed = meshes.spec(("vocab", "embed"), (d_logits.shape[2], hidden.shape[2]), mesh)
    if embed is None or mesh.shape[embed] == 1 or logits[0] is None:
        return product(d_logits, hidden)

    def add(d_logits: jax.Array, hidden: jax.Array) -> jax.Array:
        V = d_logits.shape[2]
        size = V // max(number for number in range(1, _PIECES + 1) if V % number == 0)

        def piece(start: jax.Array) -> jax.Array:
            more = product(jax.lax.dynamic_slice_in_dim(d_logits, start, size, axis=2), hidden)
            scattered: jax.Array = jax.lax.psum_scatter(more, embed, scatter_dimension=1, tiled=True)
            return scattered

        parts = jax.lax.map(piece, jnp.arange(0, V, size))
        summed: jax.Array = jax.lax.psum(parts.reshape(V, -1), tuple(name for name in logits[0] if name != embed))
        return summed

    return jax.shard_map(
        add,
        in_specs=(logits, PartitionSpec(logits[0])),
        out_specs=PartitionSpec(vocab, embed),
        check_vma=False,  # a sum over an axis of one device is none
    )(d_logits, hidden)


_cross_entropy.defvjp(_forward, _backward, symbolic_zeros=True)
