"""The loop: step, look, evaluate, save; and go on from the last checkpoint as if nothing had happened.

After any kill the same call gives the same losses and parameters, bit for bit on the same mesh. What a resume needs is
the state on the devices and a few numbers beside it, since sample k of the feed is a pure function of k.
"""

import contextlib
import dataclasses
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import jax
import numpy as np

from lingregions import tree as trees
from lingregions.corpus.batch import Batch
from lingregions.run import Run, RunError, checkpoint
from lingregions.train.feed import Feed
from lingregions.train.recipe import Recipe
from lingregions.train.tracker import Tracker
from lingregions.train.trainer import Metrics, State, Trainer

_SMOOTH = 0.9  # weight of the past in the smoothed loss
_SETTLED = 10  # steps until the smoothed loss is a measure of anything

_Hook = Callable[[int, trees.Tree], None]


class Diverged(FloatingPointError):
    """The loss is not a number, or has jumped; the message names the documents of the batch."""


def fit(
    run: Run,
    name: str,
    trainer: Trainer,
    params: trees.Tree,
    feed: Feed,
    hook: _Hook | None = None,
    counts: Sequence[int] = (),
    keep: int = 2,
    save_steps: int = 0,
    save_seconds: float = 600.0,
    tracker: Tracker | None = None,
    facts: Mapping[str, Any] | None = None,
) -> State:
    """Train to the end of the recipe, from the newest checkpoint if there is one; a finished training returns at once.

    Args:
      run: the work directory: metrics.jsonl gets a line a step, checkpoints lie in `checkpoints/<name>`.
      name: of the training, a file name.
      trainer: the compiled step.
      params: the starting point; not donated.
      feed: the text.
      hook: called as hook(count, params) when `count` samples have been trained on, for each of `counts` that the
        training reaches: at the first step that gets there, and after its checkpoint. After a kill, and for a training
        that is finished, it is called again for the newest checkpoint, with the same parameters to the bit. They are
        donated to the next step: do not keep them.
      counts: of samples; 0 is before the first step.
      keep: how many checkpoints.
      save_steps: steps between two checkpoints; 0: by time alone.
      save_seconds: seconds between two checkpoints.
      tracker: gets the figures of every step too.
      facts: what else decides the training (JSON): a resume with others is refused.

    Raises:
      Diverged: the loss or the gradient is not finite, or the loss has jumped (`Recipe.spike`).
      RunError: the checkpoints are of another training; the message says in what.
      Interrupted: a signal asked to stop; a checkpoint is saved.
    """
    recipe, agreed = trainer.recipe, _agreement(trainer, feed, facts or {})
    folder = run.path("checkpoints", name)
    newest = run.agree(checkpoint.newest(folder))
    if newest:
        header = checkpoint.header(folder, newest) or {}
        _compare(folder, header["agreed"], agreed)
        state, step, smoothed = checkpoint.load(folder, newest, trainer.shapes), header["step"], header["smoothed"]
        if step < recipe.steps:
            run.note(f"{name} goes on from step {step:,} of {recipe.steps:,}")
    else:
        state, step, smoothed = trainer.start(params), 0, None
    saved = time.monotonic()
    with (
        checkpoint.Checkpointer(folder, keep) as checkpointer,
        _progress(run, name, recipe.samples - recipe.seen(step)) as bar,
    ):
        _measure(hook, counts, recipe, step, state.params)
        batch = _batch(trainer, feed, step)
        while batch is not None:
            begin = time.monotonic()
            state, told = trainer.step(state, batch)
            # The devices are at work: the next batch costs nothing.
            batch = _batch(trainer, feed, step + 1)
            smoothed = _look(trainer, feed, step, jax.device_get(told), smoothed)
            step += 1
            figures = {
                "loss": float(told.loss),
                "gradient_norm": float(told.gradient_norm),
                "rate": float(told.rate),
                "tokens": int(told.tokens),
                "seconds": round(time.monotonic() - begin, 4),
            }
            run.log(event="step", training=name, step=step, samples=recipe.seen(step), **figures)
            if tracker is not None:
                tracker.log(step, **figures)
            bar.advance(recipe.seen(step) - recipe.seen(step - 1))
            regular = step == recipe.steps or bool(save_steps and step % save_steps == 0)
            timely = run.agree(time.monotonic() - saved > save_seconds)
            if regular or timely or run.stopping() or _reached(counts, recipe, step):
                # Before the evaluation: a kill in the middle of a long one costs no training.
                checkpointer.save(step, state, {"step": step, "smoothed": smoothed, "agreed": agreed})
                saved = time.monotonic()
            if run.stopping():
                checkpointer.wait()
                run.check()
            _measure(hook, counts, recipe, step, state.params)
    return cast(State, state)


def _progress(run: Run, name: str, samples: int) -> contextlib.AbstractContextManager[Any]:
    """Return the bar of a training, and none when there is nothing left to do."""
    return run.progress(f"train {name}", samples, "samples") if samples else contextlib.nullcontext()


def _reached(counts: Sequence[int], recipe: Recipe, step: int) -> list[int]:
    """Return the counts that a step is the first to reach."""
    before = recipe.seen(step - 1) if step else -1
    return sorted(count for count in counts if before < count <= recipe.seen(step))


def _measure(hook: _Hook | None, counts: Sequence[int], recipe: Recipe, step: int, params: trees.Tree) -> None:
    for count in _reached(counts, recipe, step):
        if hook is not None:
            hook(count, params)


def load(run: Run, name: str, trainer: Trainer, step: int | None = None) -> State:
    """Return a checkpoint of a training on the trainer's mesh, whatever mesh it was saved on; the newest by default.

    Raises:
      RunError: it is not there, or is of another model or optimizer.
    """
    folder = run.path("checkpoints", name)
    state: State = checkpoint.load(folder, step or run.agree(checkpoint.newest(folder)), trainer.shapes)
    return state


def discard(run: Run, name: str) -> None:
    """Remove the checkpoints of a training whose results are kept elsewhere: 12 bytes a parameter."""
    if jax.process_index() == 0:
        checkpoint.discard(run.path("checkpoints", name))


def curve(run: Run, name: str) -> list[dict[str, Any]]:
    """Return the figures of every step of a training, in order; of a step done again after a kill, the last ones."""
    path, found = run.path("metrics.jsonl"), {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        fields = json.loads(line)
        if fields.get("event") == "step" and fields.get("training") == name:
            found[fields["step"]] = fields
    return [found[step] for step in sorted(found)]


def _batch(trainer: Trainer, feed: Feed, step: int) -> Batch | None:
    """Return the samples of a step (from 0); None after the last."""
    recipe = trainer.recipe
    return feed.batch(recipe.seen(step), recipe.seen(step + 1), trainer.rows) if step < recipe.steps else None


def _look(trainer: Trainer, feed: Feed, step: int, told: Metrics, smoothed: list[float] | None) -> list[float]:
    """Return [smoothed loss, steps in it] with this step's loss added.

    Raises:
      Diverged: see `fit`.
    """
    loss, start = float(told.loss), trainer.recipe.seen(step)
    past, number = smoothed or (loss, 0)
    problem = ""
    if not math.isfinite(loss):
        problem = f"the loss is {loss}"
    elif not math.isfinite(float(told.gradient_norm)):
        problem = f"the norm of the gradient is {float(told.gradient_norm)} (the loss is {loss:.4f})"
    elif trainer.recipe.spike and number >= _SETTLED and loss > past + trainer.recipe.spike:
        problem = f"the loss jumped from {past:.4f} (smoothed) to {loss:.4f} nats per token"
    if problem:
        each = np.asarray(told.samples)[: trainer.recipe.seen(step + 1) - start]
        # Those that are not finite, else the worst first: a few are enough to look at.
        broken = np.flatnonzero(~np.isfinite(each))
        worst = broken if len(broken) else np.argsort(-each, kind="stable")
        named = [f"  {feed.describe(start + int(row))}: {float(each[row]):.4f} nats per token" for row in worst[:5]]
        raise Diverged(
            "\n".join(
                [
                    f"step {step + 1:,} (samples {start:,} to {trainer.recipe.seen(step + 1) - 1:,}): {problem}. "
                    "The checkpoint before it is kept. The samples to look at first:",
                    *named,
                ]
            )
        )
    return [_SMOOTH * past + (1 - _SMOOTH) * loss if number else loss, number + 1]


def _agreement(trainer: Trainer, feed: Feed, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return what two processes must have in common to be one training, as JSON values."""
    plain: dict[str, Any] = json.loads(
        json.dumps(
            {
                "recipe": dataclasses.asdict(trainer.recipe),
                "compute": {"dtype": trainer.compute.dtype, "precision": trainer.compute.precision},
                "constraints": [each.identity for each in trainer.constraints],
                "feed": feed.fingerprint,
                "facts": dict(facts),
            }
        )
    )
    return plain


def _compare(folder: Any, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    for key in sorted({*before, *after}):
        if before.get(key) != after.get(key):
            raise RunError(
                f"{folder} is of another training: {key} was {before.get(key)!r} and is {after.get(key)!r}; "
                "give another name or work directory, or remove it"
            )
