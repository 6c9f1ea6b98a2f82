"""Learning: one training of a study - its schedule from the config, evaluated on the way, exact after a kill.

A training is an intervention with a seed. What it leaves: rows of results.csv at the sample counts of the config, a
checkpoint, and a mark when it is finished. A finished one whose measurements are gone is done again, to the same bits.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from lingregions import freeze, train
from lingregions import tree as trees
from lingregions.experiments import measurement
from lingregions.experiments import step as steps
from lingregions.experiments.context import Context, slug
from lingregions.intervention import Intervention
from lingregions.models import convert
from lingregions.run import files


def recipe(settings: ConfigDict) -> train.Recipe:
    """Return how the config trains.

    Raises:
      ValueError: a value that does not fit; the message says which.
    """
    names = {field.name for field in dataclasses.fields(train.Recipe)}
    chosen: dict[str, Any] = {name: value for name, value in settings.train.to_dict().items() if name in names}
    chosen["betas"] = tuple(chosen["betas"])  # a list in a config that was stored
    return train.Recipe(**chosen)


def reached(settings: ConfigDict) -> list[int]:
    """Return the sample counts at which a training is evaluated, the end among them."""
    samples = settings.train.samples
    return sorted({*(count for count in settings.train.counts if 0 < count < samples), samples})


def _mark(training: Intervention) -> str:
    """Return the mark of a finished training."""
    return f"train-{slug(training.name)}"


def after(training: Intervention, count: int) -> Intervention:
    """Return what is measured after so many samples of a training."""
    return dataclasses.replace(training, samples=count)


def step(
    settings: ConfigDict,
    config: Any,
    training: Intervention,
    language: str,
    perform: Callable[[Context], None],
    beside: Sequence[Intervention] = (),
) -> steps.Step:
    """Return the step of a training.

    Args:
      settings: the config.
      config: of the model.
      training: with its seed.
      language: what is trained on, as the dry run says it.
      perform: trains and evaluates.
      beside: what is measured at the end beside the training itself.
    """
    evaluated = steps.evaluation(settings, len(reached(settings)) + len(beside))
    samples = None if evaluated["samples"] is None else evaluated["samples"] + settings.train.samples
    return steps.Step(
        f"train {training.name}",
        f"{settings.train.samples:,} samples of {language}, and {evaluated['what']}",
        perform,
        samples,
        steps.tokens(settings, samples),
        12 * steps.count(config, "everything") if settings.train.keep else 0,
        (_mark(training),),
        evaluated["rows"],
    )


def trainer(context: Context, constraints: Sequence[freeze.Constraint] = ()) -> train.Trainer:
    """Return the compiled step of the config, held to constraints."""
    model, micro = context.model, context.settings.machine.train_batch * context.model.rows
    return train.Trainer(model.config, model.compute, recipe(context.settings), constraints, micro, model.mesh)


def fit(
    context: Context,
    training: Intervention,
    trainer: Callable[[], train.Trainer],
    feed: Callable[[], train.Feed],
    beside: Sequence[Intervention] = (),
    keep: Callable[[int, trees.Tree], None] = lambda count, params: None,
) -> trees.Tree | None:
    """Train and evaluate at the counts; None where it is finished and everything measured is there.

    Args:
      context: the model and its texts; its parameters are where the training begins.
      training: with its seed.
      trainer: makes the compiled step.
      feed: makes the order of the text.
      beside: what the caller measures with the parameters that are returned, before it calls `finish`.
      keep: (sample count, parameters): what else is done at each of the counts, and at 0.

    Returns:
      The parameters at the end.
    """
    run, settings, name = context.run, context.settings, training.name
    observed = [*(after(training, count) for count in reached(settings)), *beside]
    # All of them, now: a training that goes on at a checkpoint does not meet the counts before it again.
    lost = [each.name for each in observed if measurement.remember(context, each)]
    if run.done(_mark(training)) is not None:
        if not lost:
            return None
        # The parameters at that count are gone. The training is exact, so doing it again gives the same figures.
        run.note(f"measurements of {lost[0]} are gone or changed: {name} is trained again")
        train.discard(run, name)
    else:
        keep(0, context.model.params)

    def reach(count: int, params: trees.Tree) -> None:
        keep(count, params)
        measurement.observe(context, after(training, count), params)

    tracker = train.track(settings.machine.tracker, run.path("tracker"), name, settings.to_dict())
    try:
        state = train.fit(
            run,
            name,
            trainer(),
            context.model.params,
            feed(),
            hook=reach,
            counts=reached(settings),
            keep=settings.machine.keep,
            save_steps=settings.machine.save_steps,
            save_seconds=settings.machine.save_seconds,
            tracker=tracker,
            facts={"model": context.model.fingerprint, "seed": training.seed},
        )
    finally:
        tracker.close()
    return state.params


def export(context: Context, params: trees.Tree, folder: Path, dtype: str) -> None:
    """Write parameters as a Hugging Face folder: see `convert.export`."""
    with files.explained(folder):
        convert.export(params, context.model.config, folder, context.model.tokenizer, dtype)


def finish(context: Context, training: Intervention) -> None:
    """Mark a training as finished, and let go of its checkpoints where the config does not keep them."""
    context.run.finish(_mark(training), training=training.name, seed=training.seed)
    if not context.settings.train.keep:
        train.discard(context.run, training.name)
