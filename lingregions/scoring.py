"""Importance of every parameter for a language: one pass over its samples, any number of definitions.

A score rule is three functions of one array, as in optax: `init`, `update`, `finish`. The preset `paper` is what the
released code computes (docs/method.md 1): |theta x the signed gradient summed over all batches|, summed in bfloat16
over means of batches; `sound` weighs every token alike and sums in float32. Scores are trees parallel to the parameters
of the score scope, on the same shards. A score depends on (model, corpus, seed, number of samples, definition) alone.

Cost: two forward passes and one backward a token - each layer is run again when its gradient is due, which is then fed
to every rule: no tree of gradients exists - and one float32 array a rule beside the parameters in scope (`taylor_abs`
and `fisher`, and sums in bfloat16, need one more for the gradient of the group that is open).
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lingregions import loss, models
from lingregions import mesh as meshes
from lingregions import tree as trees
from lingregions.corpus.batch import Batch
from lingregions.models import roles

_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
_WEIGHTINGS = ("token", "batch_mean")


class Rule(NamedTuple):
    """One definition of importance, as functions of one array [L, out, in] or [L, D].

    Attributes:
      init: theta -> sums, zeros of the shape that the rule keeps.
      update: (sums, theta, slope) -> sums. `slope` is what the rule `reads`: the gradient, or the sums of squares of
        the inputs [L, in].
      finish: (sums, theta) -> scores, non-negative, shaped as theta.
      reads: "gradient", "inputs" or "nothing".
      additive: whether `update` is linear in `slope`, so that it may be fed in any pieces of a group.
      order: how often the gradient enters the scores as a factor: what a scale of the loss does to them.
    """

    init: Callable[[jax.Array], jax.Array]
    update: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
    finish: Callable[[jax.Array, jax.Array], jax.Array]
    reads: str
    additive: bool
    order: int


def _along_inputs(theta: jax.Array) -> jax.Array:
    """Zeros [L, in] for a weight [L, out, in] or a gain [L, in]."""
    return jnp.zeros((theta.shape[0], theta.shape[-1]), jnp.float32)


def _input_norm(sums: jax.Array, theta: jax.Array) -> jax.Array:
    """The norm of the inputs [L, in], shaped to be multiplied with theta."""
    return jnp.sqrt(sums).reshape(theta.shape[0], *([1] * (theta.ndim - 2)), theta.shape[-1])


# docs/method.md 1, the row "rule". g is the gradient of the loss of a batch (or of one group of samples).
RULES: dict[str, Rule] = {
    # |theta x sum of g|
    "taylor": Rule(
        init=jnp.zeros_like,
        update=lambda sums, theta, gradient: sums + gradient,
        finish=lambda sums, theta: jnp.abs(theta * sums),
        reads="gradient",
        additive=True,
        order=1,
    ),
    # sum of |theta x g|
    "taylor_abs": Rule(
        init=jnp.zeros_like,
        update=lambda sums, theta, gradient: sums + jnp.abs(theta * gradient),
        finish=lambda sums, theta: sums,
        reads="gradient",
        additive=False,
        order=1,
    ),
    # theta^2 x sum of g^2
    "fisher": Rule(
        init=jnp.zeros_like,
        update=lambda sums, theta, gradient: sums + gradient * gradient,
        finish=lambda sums, theta: theta * theta * sums,
        reads="gradient",
        additive=False,
        order=2,
    ),
    # |theta|
    "magnitude": Rule(
        init=lambda theta: jnp.zeros((0,), jnp.float32),
        update=lambda sums, theta, nothing: sums,
        finish=lambda sums, theta: jnp.abs(theta),
        reads="nothing",
        additive=True,
        order=0,
    ),
    # |theta| x norm of the inputs over all tokens
    "wanda": Rule(
        init=_along_inputs,
        update=lambda sums, theta, inputs: sums + inputs,
        finish=lambda sums, theta: jnp.abs(theta) * _input_norm(sums, theta),
        reads="inputs",
        additive=True,
        order=0,
    ),
}


@dataclasses.dataclass(frozen=True)
class Definition:
    """How scores are computed and put together over languages; recorded in every artefact.

    Attributes:
      rule: a key of `RULES`.
      weighting: "token" (gradient of the summed NLL over the number of all tokens) or "batch_mean" (the mean loss of
        each group counts once, as in the released code).
      accumulator: dtype of the sums of gradients, "float32" or "bfloat16"; other sums are float32.
      normalised: whether each language is scaled to unit L1 per matrix before languages are summed.
      group: samples whose gradient is one g: what `batch_mean` averages over, and `taylor_abs` and `fisher` take the
        absolute value or the square of. Part of the definition, not of the machine: micro-batches only split it.
      scope: the score scope (a key of `roles.SCOPES`, or patterns).
      dtype: what the finished scores of a language are rounded to, "float32" or "bfloat16" (8 bits of the mantissa, to
        nearest even). They are computed and summed over languages in float32, and saved in this.
    """

    rule: str = "taylor"
    weighting: str = "token"
    accumulator: str = "float32"
    normalised: bool = True
    group: int = 1
    scope: str = "decoder"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        """Refuse what does not exist."""
        kinds = {"rule": RULES, "weighting": _WEIGHTINGS, "accumulator": _DTYPES, "dtype": _DTYPES}
        for name, allowed in kinds.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"score {name} is {getattr(self, name)!r}; it must be one of {', '.join(allowed)}")
        if self.group < 1:
            raise ValueError(f"score group is {self.group} samples; it must be at least 1")


# docs/method.md 1, the table of named options.
PRESETS: dict[str, Definition] = {
    "sound": Definition(),
    "paper": Definition(weighting="batch_mean", accumulator="bfloat16", normalised=False, group=64),
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sums:
    """What one pass over a language has gathered so far: the resume point of scoring, with `position` beside it.

    Attributes:
      rules: {rule: tree of sums parallel to the scope}.
      open: float32 gradient of the group that is not closed yet, parallel to the scope: the rules that read the
        gradient are fed with it when the group closes. Empty where each micro-batch can be added at once: every rule
        that reads the gradient is additive and sums it in float32 (bfloat16 sums would depend on the number of
        additions).
    """

    rules: dict[str, trees.Tree]
    open: trees.Tree


_OPEN = "open"  # names the gradient of the open group beside the rules
_NONE: Mapping[str, float] = MappingProxyType({})


def _effective(part: trees.Tree, offsets: Mapping[str, float]) -> trees.Tree:
    """Return the values that a model uses, float32: those of some of its parameters plus their `offsets`."""

    def value(path: str, leaf: jax.Array) -> jax.Array:
        wide = leaf.astype(jnp.float32)
        return wide + np.float32(offsets[path]) if path in offsets else wide

    return trees.transform(value, part)


def _start(params: trees.Tree, rules: Iterable[str], accumulator: str = "float32", scope: str = "decoder") -> Sums:
    """Return empty sums for these rules.

    Raises:
      ValueError: a rule reads the inputs of weights, and the scope holds a parameter for which no inputs are gathered.
    """
    part, names = roles.restrict(params, scope), list(rules)
    readers = [name for name in names if RULES[name].reads == "inputs"]
    outside = [path for path in trees.flatten(part) if not roles.stacked(path)]
    if readers and outside:
        raise ValueError(
            f"the score {readers[0]!r} reads the inputs of weights, which are gathered in the decoder layers only, but "
            f"the scope {scope!r} holds {outside[0]!r}; use a scope inside the layers, such as 'decoder'"
        )

    def empty(init: Callable[[jax.Array], jax.Array], dtype: Any) -> trees.Tree:
        zeros: trees.Tree = jax.tree.map(lambda theta: init(theta).astype(dtype), part)
        return zeros

    differentiated = [name for name in names if RULES[name].reads == "gradient"]
    grouped = any(accumulator != "float32" or not RULES[name].additive for name in differentiated)
    dtypes = {name: _DTYPES[accumulator] if name in differentiated else jnp.float32 for name in names}
    sums = {name: empty(RULES[name].init, dtypes[name]) for name in names}
    return Sums(sums, empty(jnp.zeros_like, jnp.float32) if grouped else {})


def _shardings(config: Any, sums: Sums, scope: str, mesh: Mesh) -> Sums:
    """Return where sums lie: those shaped as their parameter on its shards, smaller ones on every device.

    Args:
      config: model config.
      sums: `Sums` of arrays or `ShapeDtypeStruct`.
      scope: score scope.
      mesh: device mesh.
    """
    declared = trees.flatten(roles.restrict(models.declare(config), scope))
    places = trees.flatten(meshes.shardings(trees.unflatten(declared), mesh))

    def place(tree: trees.Tree) -> trees.Tree:
        whole = meshes.replicated(mesh)
        return trees.transform(lambda path, leaf: places[path] if leaf.shape == declared[path].shape else whole, tree)

    return Sums({name: place(tree) for name, tree in sums.rules.items()}, place(sums.open))


def _weights(batch_tokens: int, weighting: str) -> float:
    """Return the factor of a group's summed NLL in the objective: 1 for "token", 1 / its tokens for "batch_mean".

    A group without targets counts nothing.
    """
    return 1.0 if weighting == "token" else 1.0 / max(batch_tokens, 1)


def _step(
    config: Any, compute: models.Compute, scope: str, params: trees.Tree, sums: Sums, batch: Batch, weight: jax.Array
) -> tuple[Sums, loss.Loss]:
    """Add one micro-batch to the sums: two forward passes and one backward. Jit it with `sums` donated.

    Args:
      config: model config.
      compute: how to run it.
      scope: score scope.
      params: float32 parameters.
      sums: from `_start` or the step before.
      batch: int32 arrays [B, T]; samples of padding add nothing.
      weight: float32 scalar, the factor of the summed NLL (`_weights`).

    Returns:
      The sums and the loss of the micro-batch.
    """
    part = roles.restrict(params, scope)
    rules = {name: RULES[name] for name in sums.rules}
    capture = any(rule.reads == "inputs" for rule in rules.values())

    offsets = models.offsets(config)

    def add(path: str, theta: jax.Array, gradient: jax.Array, totals: loss.Totals) -> loss.Totals:
        if sums.open:
            return {_OPEN: totals[_OPEN] + gradient.astype(jnp.float32)}
        used = theta + np.float32(offsets.get(path, 0.0))
        return {name: _updated(name, total, used, gradient) for name, total in totals.items()}

    read = {name: total for name, total in sums.rules.items() if rules[name].reads == "gradient"}
    fed = {_OPEN: sums.open} if sums.open else read
    if read:
        flat = {name: trees.flatten(total) for name, total in fed.items()}
        totals = {path: {name: total[path] for name, total in flat.items()} for path in trees.flatten(part)}
        totals, found, inputs = loss.accumulate(config, compute, params, totals, batch, weight, add, capture)
        fed = {name: trees.unflatten({path: total[name] for path, total in totals.items()}) for name in fed}
    else:
        found, inputs = loss.nll_and_inputs(config, compute, params, batch, capture)
    theta = _effective(part, offsets)
    added = {
        name: _update(name, total, theta, inputs if rules[name].reads == "inputs" else part)
        for name, total in sums.rules.items()
        if name not in read
    }
    opened = fed.pop(_OPEN, {})
    return Sums(sums.rules | fed | added, opened), found


def _updated(name: str, total: jax.Array, theta: jax.Array, slope: jax.Array) -> jax.Array:
    """Apply a rule's update to one array, in float32, and keep the dtype of the sum."""
    wide = total.astype(jnp.float32), theta, slope.astype(jnp.float32)
    return RULES[name].update(*wide).astype(total.dtype)


def _update(name: str, sums: trees.Tree, part: trees.Tree, slopes: trees.Tree) -> trees.Tree:
    """Apply a rule's update array by array; `slopes` is what the rule reads."""
    theirs = trees.flatten(slopes)
    return trees.transform(lambda path, total, theta: _updated(name, total, theta, theirs[path]), sums, part)


def _close(params: trees.Tree, sums: Sums, scope: str, offsets: Mapping[str, float] = _NONE) -> Sums:
    """End a group: feed its gradient to the rules that read it, and empty it. Jit it with `sums` donated."""
    part = _effective(roles.restrict(params, scope), offsets)
    closed = {
        name: _update(name, total, part, sums.open) if RULES[name].reads == "gradient" else total
        for name, total in sums.rules.items()
    }
    return Sums(closed, jax.tree.map(jnp.zeros_like, sums.open))


def _finish(
    params: trees.Tree,
    sums: trees.Tree,
    rule: str,
    scope: str,
    scale: jax.Array,
    offsets: Mapping[str, float] = _NONE,
    dtype: str = "float32",
) -> trees.Tree:
    """Return the scores, non-negative, parallel to the scope: float32, rounded to what `dtype` holds.

    Args:
      params: the parameters that the sums were gathered on.
      sums: `Sums.rules[rule]`.
      rule: a key of `RULES`.
      scope: score scope.
      scale: float32 factor of the gradient sums: 1 / tokens for "token" weighting, 1 otherwise (`_scales`).
      offsets: of the model (`models.offsets`): what it adds to these parameters before it uses them.
      dtype: "float32" or "bfloat16".
    """
    digits = jnp.finfo(_DTYPES[dtype])

    def finished(path: str, theta: jax.Array, total: jax.Array) -> jax.Array:
        values = RULES[rule].finish(total.astype(jnp.float32), theta) * scale
        # Not a cast there and back, which XLA may leave out.
        return values if dtype == "float32" else jax.lax.reduce_precision(values, digits.nexp, digits.nmant)

    return trees.transform(finished, _effective(roles.restrict(params, scope), offsets), sums)


def _scales(rule: str, weighting: str, tokens: int) -> float:
    """Return the factor that turns scores of the summed loss ("token" weighting) into those of the mean loss."""
    return 1.0 if weighting != "token" else 1.0 / max(tokens, 1) ** RULES[rule].order


def combine(total: trees.Tree | None, scores: trees.Tree, normalised: bool) -> trees.Tree:
    """Return the running sum over languages with one more language added (docs/method.md 1, the row "languages").

    Args:
      total: the sum so far, donated: do not use it afterwards; None for the first language.
      scores: of one language.
      normalised: scale the language to unit L1 in every matrix first; a matrix of zeros stays zeros.
    """
    part = _unit(scores) if normalised else scores
    if total is not None:
        together: trees.Tree = _add(total, part)
        return together
    # The next call donates what this one returns: never the caller's own scores.
    return part if normalised else jax.tree.map(jnp.copy, part)


@jax.jit
def _unit(scores: trees.Tree) -> trees.Tree:
    def scale(path: str, values: jax.Array) -> jax.Array:
        first = 1 if roles.stacked(path) else 0  # a matrix is one layer of a stacked array
        norm = jnp.sum(values, axis=tuple(range(first, values.ndim)), keepdims=True)
        return values / jnp.where(norm == 0, jnp.ones_like(norm), norm)

    return trees.transform(scale, scores)


@functools.partial(jax.jit, donate_argnums=0)
def _add(total: trees.Tree, part: trees.Tree) -> trees.Tree:
    added: trees.Tree = jax.tree.map(jnp.add, total, part)
    return added


class Scorer:
    """The compiled steps of one (model, mesh, definition): made once, used for every language.

    Args:
      config: model config.
      compute: how to run it.
      definition: what to compute; its rule is joined by `rules`.
      rules: further rules to gather in the same pass.
      micro: samples a step; a group whose size is no multiple of it is filled up with padding.
      mesh: device mesh; the sums stay on the shards of their parameters. None: one device.
    """

    def __init__(
        self,
        config: Any,
        compute: models.Compute,
        definition: Definition,
        rules: Iterable[str] = (),
        micro: int = 1,
        mesh: Mesh | None = None,
    ) -> None:
        self.definition, self.micro, self.mesh = definition, micro, mesh
        self.rules = tuple(dict.fromkeys((definition.rule, *rules)))
        unknown = [rule for rule in self.rules if rule not in RULES]
        if unknown:
            raise ValueError(f"score rule {unknown[0]!r} does not exist; rules are {', '.join(RULES)}")
        scope = definition.scope
        offsets = models.offsets(config)
        begin = functools.partial(_start, rules=self.rules, accumulator=definition.accumulator, scope=scope)
        self.shapes = jax.eval_shape(begin, models.shapes(config))
        places = whole = parts = None
        if mesh is not None:
            places, whole = _shardings(config, self.shapes, scope, mesh), meshes.replicated(mesh)
            parts = meshes.shardings(roles.restrict(models.declare(config), scope), mesh)
            self.shapes = jax.tree.map(
                lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), self.shapes, places
            )
        self._start = jax.jit(begin, out_shardings=places)
        self._step = jax.jit(
            functools.partial(_step, config, compute, scope), donate_argnums=1, out_shardings=(places, whole)
        )
        self._close = jax.jit(
            functools.partial(_close, scope=scope, offsets=offsets), donate_argnums=1, out_shardings=places
        )
        self._finish = jax.jit(
            functools.partial(_finish, scope=scope, offsets=offsets, dtype=definition.dtype),
            static_argnames="rule",
            out_shardings=parts,
        )

    def lower(self, params: trees.Tree, length: int) -> Any:
        """Return the step lowered for samples of `length` tokens, to compile ahead of time; `params` may be shapes."""
        places = (None, None) if self.mesh is None else (meshes.batched(self.mesh), meshes.replicated(self.mesh))
        like: Any = jax.ShapeDtypeStruct((self.micro, length), np.int32, sharding=places[0])
        weight = jax.ShapeDtypeStruct((), np.float32, sharding=places[1])
        with meshes.use(self.mesh):
            return self._step.lower(params, self.shapes, Batch(like, like, like), weight)

    def start(self, params: trees.Tree) -> Sums:
        """Return empty sums (`shapes` says which)."""
        out: Sums = self._start(params)
        return out

    def group(self, sums: Sums) -> int:
        """Return how many samples to `add` at a time."""
        # Where groups are only summed up, their borders decide nothing, and a step fills the whole mesh.
        borders = self.definition.weighting != "token" or bool(jax.tree.leaves(sums.open))
        return self.definition.group if borders else max(self.definition.group, self.micro)

    def add(
        self,
        params: trees.Tree,
        sums: Sums,
        group: Batch,
        put: Callable[[Batch], Batch] = lambda batch: batch,
    ) -> tuple[Sums, int, float]:
        """Add one group of samples (host arrays [group, T]); returns the sums, its targets and its summed NLL.

        Args:
          params: the parameters.
          sums: donated; do not use them afterwards.
          group: the samples of one group, as many as there are.
          put: places a micro-batch on the mesh.

        Raises:
          TypeError: the group is no batch.
          FloatingPointError: the loss is not finite; names the rows of the group.
        """
        if not isinstance(group, Batch):
            raise TypeError(f"a batch of samples is needed, not a {type(group).__name__}: corpus.batch(positions)")
        size = group.tokens.shape[0]
        tokens = int(np.sum((group.segments[:, 1:] == group.segments[:, :-1]) & (group.segments[:, 1:] != 0)))
        weight = np.float32(_weights(tokens, self.definition.weighting))
        nll = 0.0
        for begin in range(0, size, self.micro):
            micro = Batch(*(_fill(np.asarray(values)[begin : begin + self.micro], self.micro) for values in group))
            with meshes.use(self.mesh):
                sums, found = self._step(params, sums, put(micro), weight)
            each = np.asarray(found.nll, np.float64)
            if not np.isfinite(each).all():
                rows = [begin + int(row) for row in np.flatnonzero(~np.isfinite(each))]
                raise FloatingPointError(
                    f"the loss of sample(s) {rows} of this group of {size} is not finite "
                    f"({each[~np.isfinite(each)][0]}); "
                    "the sums are not usable: look at the samples with `lingregions data show`, or at the weights"
                )
            nll += float(each.sum())
        return (self._close(params, sums) if sums.open else sums), tokens, nll

    def finish(self, params: trees.Tree, sums: Sums, tokens: int, rule: str | None = None) -> trees.Tree:
        """Return the scores of one rule (the definition's by default), after `tokens` targets."""
        rule = rule or self.definition.rule
        scale = np.float32(_scales(rule, self.definition.weighting, tokens))
        out: trees.Tree = self._finish(params, sums.rules[rule], rule=rule, scale=scale)
        return out


def _fill(values: np.ndarray, size: int) -> np.ndarray:
    """Add rows of zeros (padding) up to `size`."""
    return values if len(values) == size else np.pad(values, ((0, size - len(values)), (0, 0)))
