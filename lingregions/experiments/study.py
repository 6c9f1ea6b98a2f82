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
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from lingregions import regions, report, scoring
from lingregions.corpus.corpus import Corpus
from lingregions.experiments.context import Context, define, prepare
from lingregions.experiments.step import Step, model_config
from lingregions.run import Run, cluster


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
        _open_texts(context)
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
        for name, content in {**self.show(context), "texts": _texts(context)}.items():
            _tabulate(context, name, content)
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
    for use in ("score", "evaluate", "train"):
        languages = list(settings[use].languages) if use in settings and "languages" in settings[use] else ["any"]
        if not languages or len(set(languages)) < len(languages):
            raise ValueError(
                f"{use}.languages needs one or more, each named once, not {', '.join(languages) or 'none'}"
            )
    if lacking := sorted(set(_trained(settings)) - set(settings.evaluate.languages)) if "train" in settings else []:
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


# --- texts and tables -------------------------------------------------------------------------------------------------


def _open_texts(context: Context) -> None:
    """Open every text of the config, so that what is missing is said before the first hour of work, not after it.

    Raises:
      ValueError: a text is missing, unusable or shorter than asked; the message says which.
    """
    with cluster.ready("the opening of the texts", cluster.WORK):
        for use in _uses(context.settings):
            for language in context.settings[use].languages:
                _open(context, language, use)
        if "train" in context.settings:
            for language in _trained(context.settings):
                context.corpus(language, "train")
        for remark in _remarks(context.corpora):
            context.run.note(remark)


def _remarks(opened: Mapping[tuple[str, str], Corpus]) -> list[str]:
    """Return what a run should note about its corpora, which are given by (language, use).

    Raises:
      ValueError: two languages have one text for the same use: it would count twice in every mean.
    """
    texts: dict[tuple[str, str], str] = {}
    for (language, use), corpus in opened.items():
        other = texts.setdefault((use, corpus.tokens.digest), language)
        if other != language:
            raise ValueError(f"{other} and {language} have the same text to {use}: it would count twice")
    lines = [f"{language}: {warning}" for (language, _), corpus in opened.items() for warning in corpus.warnings]
    return list(dict.fromkeys(lines))


def _open(context: Context, language: str, use: str) -> None:
    corpus, positions = context.samples(language, use)
    asked = context.settings[use].samples
    if len(positions) < asked:
        context.run.note(f"{language}, {corpus.split}: {len(positions)} samples, {asked} were asked for")
    if corpus.counts.skipped:
        context.run.note(f"{language}: {corpus.counts.skipped} texts could not be read and were skipped")


def _trained(settings: ConfigDict) -> list[str]:
    """Return the languages that a config trains on."""
    return list(settings.train.get("languages") or [settings.train.language])


def _uses(settings: ConfigDict) -> list[str]:
    """Return what texts are used for in an experiment: "score", and "evaluate" where it evaluates."""
    return [use for use in ("score", "evaluate") if use in settings]


def _tabulate(context: Context, name: str, content: Mapping[str, Any]) -> None:
    """Write tables/<name>.json, which the report shows; see `report.kinds` for the kinds that there are."""
    context.run.write(f"tables/{name}.json", json.dumps(content, ensure_ascii=False, indent=1) + "\n")


def _texts(context: Context) -> dict[str, Any]:
    """Return the table of texts: what was scored and evaluated, and how each text begins as tokens."""
    settings, rows = context.settings, []
    for use in _uses(settings):
        for language in settings[use].languages:
            corpus, positions = context.samples(language, use)
            first = " ".join(map(str, corpus.batch([0]).tokens[0, :8].tolist()))
            used = [use, corpus.source, corpus.split, len(positions), len(corpus)]
            rows.append([language, *used, first, corpus.fingerprint[:16]])
    use = _uses(settings)[0]
    example, tokenizer = context.corpus(settings[use].languages[0], use), context.model.tokenizer
    names = ("language", "use", "source", "split", "samples used", "samples there", "first token ids", "fingerprint")
    return {
        "title": "Texts",
        "note": f"Samples of {settings.data.length} tokens, {settings.data.packing}; special tokens: {example.policy}; "
        f"tokenizer {tokenizer.name} ({tokenizer.fingerprint[:16]}); model hash {context.model.fingerprint}.",
        "columns": [{"name": name, "kind": "count" if "samples" in name else "text"} for name in names],
        "rows": rows,
    }
