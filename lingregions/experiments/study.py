"""Study: an experiment as a declaration - what it asks for, its steps, and what it shows.

How a study is written (one file, one config of the same name, one line in `experiments.STUDIES`, one notebook):

1. `check(settings)` refuses, in one sentence and before any work, a config that asks for what cannot be: a part that
   does not exist, a trained language that is not evaluated. What all studies ask for is checked here.
2. `steps(settings, config)` lists the steps, from the builders in `step`: `score`, `select` (regions, each a
   `selection.Selection`: ranking, fraction, selector), `measure` (a list of `Intervention` records and of contrasts),
   `once` (what is found out and kept), `generate`; or a `Step` of its own. A step performs what is not done yet, and
   says what it costs: `--dry-run` prints the same list. Interventions are data: write a function
   `interventions(settings)` that both `steps` and `show` call, and look effects up by record, never by name.
3. `show(context)` returns {name: content} of tables/: from `context.effects()` with the builders in `tables`, and under
   "verdict" what `claims.verdict` renders from <study>.j2: a headline of at most 25 words, then paragraphs. A sentence
   is chosen by the sign of an interval.

Everything else - order, resuming, results.csv, effects.csv, the report - is done by `perform`.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from lingregions import regions, report, scoring
from lingregions.experiments.context import Context, define, open_texts, prepare, tabulate, texts, trained
from lingregions.experiments.step import Step, model_config
from lingregions.run import Run


def _nothing(settings: ConfigDict) -> None:
    """Ask for nothing beyond what all studies ask for."""


@dataclasses.dataclass(frozen=True)
class Study:
    """An experiment as a declaration.

    Attributes:
      steps: (settings, config of the model) -> what is done, in order.
      show: (context after the steps) -> {name: content} of tables/.
      check: refuses a config by a ValueError.
      export: (settings, work directory, training, folder, dtype): writes a training as a Hugging Face folder; None:
        nothing is trained.
    """

    steps: Callable[[ConfigDict, Any], Sequence[Step]]
    show: Callable[[Context], Mapping[str, Mapping[str, Any]]]
    check: Callable[[ConfigDict], None] = _nothing
    export: Callable[[ConfigDict, Run, str, Path, str], None] | None = None

    def plan(self, settings: ConfigDict) -> Sequence[Step]:
        """Return the steps, from the config alone: nothing is read, opened or computed.

        Raises:
          ValueError: the config asks for what cannot be.
        """
        _check(settings)
        self.check(settings)
        return self.steps(settings, model_config(settings))

    def perform(self, settings: ConfigDict, run: Run) -> None:
        """Do every step that is not done yet, and write tables and report.

        Raises:
          ValueError: the config asks for what cannot be, or model and texts do not fit it.
        """
        _check(settings)
        self.check(settings)
        context = prepare(settings, run)
        open_texts(context)
        steps = self.steps(settings, context.model.config)
        with run.whole([_work(each) for each in steps], [_part(each, run) for each in steps]):
            for place, step in enumerate(steps):
                with run.step(place, step.name):
                    step.perform(context)
        self.publish(context)

    def publish(self, context: Context) -> None:
        """Write effects.csv, the tables and the report."""
        if context.measured:
            context.run.write("effects.csv", context.effects().csv(context.settings.experiment))
        for name, content in {**self.show(context), "texts": texts(context)}.items():
            tabulate(context, name, content)
        if jax.process_index() == 0:
            report.write(context.run.folder, context.settings.machine.pictures)


def _work(step: Step) -> float:
    """Return the work of a step in forward passes of a token: a pass back costs two; 0 where only the text knows."""
    return (step.tokens or 0) * (1 if step.name == "evaluate" else 3)


def _part(step: Step, run: Run) -> float:
    """Return how much of a step was done before."""
    return step.finished(run.folder) / step.parts if step.parts else 0.0


def _check(settings: ConfigDict) -> None:
    """Refuse what no study can do.

    Raises:
      ValueError: no language, one twice, one trained but not evaluated, a rule, preset or fraction that does not exist.
    """
    for use in ("score", "evaluate"):
        languages = list(settings[use].languages) if use in settings else ["any"]
        if not languages or len(set(languages)) < len(languages):
            raise ValueError(
                f"{use}.languages needs one or more, each named once, not {', '.join(languages) or 'none'}"
            )
    if lacking := sorted(set(trained(settings)) - set(settings.evaluate.languages)) if "train" in settings else []:
        raise ValueError(f"{', '.join(lacking)} is trained but not evaluated: add it to evaluate.languages")
    if "score" in settings:
        define(settings)
        for rule in (*settings.score.rules, *filter(None, [settings.score.rule])):
            if rule not in scoring.RULES:
                raise ValueError(f"there is no score rule {rule!r}; there are {', '.join(scoring.RULES)}")
    if "select" in settings:
        if not settings.select.fractions:
            raise ValueError("select.fractions is empty: no region can be selected")
        for fraction in settings.select.fractions:
            regions.parse(fraction)
