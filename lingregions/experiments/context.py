"""Context: what the steps of a study work with - settings, work directory, model, texts - and what they have measured.

Every number comes from the functional modules; here is only what belongs to one run.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from lingregions import effects, models, scoring
from lingregions import mesh as meshes
from lingregions import model as model_module
from lingregions import tree as trees
from lingregions.corpus.corpus import Corpus
from lingregions.corpus.corpus import open as open_corpus
from lingregions.corpus.corpus import options as options_of
from lingregions.evaluate import Segments
from lingregions.intervention import Intervention
from lingregions.model import Model
from lingregions.models import source as sources
from lingregions.run import Run, cluster
from lingregions.scores import Scores


@dataclasses.dataclass(frozen=True, eq=False)
class Context:
    """What the steps of a study work with. Make one with `prepare`.

    Attributes:
      settings: the resolved config of the run.
      run: the work directory.
      model: on its mesh; its parameters change only while an intervention lasts.
      corpora: that were opened, by (language, use).
      measured: {intervention: what gives its sums by segment}, the untouched model first.
      contrasts: (intervention, control) to be compared beside those against the untouched model.
      rankings: {name: scores that several regions are selected from}, while regions are made.
      compared: {(interventions, contrasts): their effects}, of those asked for last.
    """

    settings: ConfigDict
    run: Run
    model: Model
    corpora: dict[tuple[str, str], Corpus] = dataclasses.field(default_factory=dict)
    measured: dict[Intervention, Callable[[str], Segments]] = dataclasses.field(default_factory=dict)
    contrasts: dict[tuple[Intervention, Intervention], None] = dataclasses.field(default_factory=dict)
    rankings: dict[str, Scores] = dataclasses.field(default_factory=dict)
    compared: dict[Any, effects.Effects] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def definition(self) -> scoring.Definition:
        """How importance is defined: a preset with the changes that the config makes."""
        return define(self.settings)

    @functools.cached_property
    def scorer(self) -> scoring.Scorer:
        """The compiled scoring steps, used for every language."""
        micro = self.settings.machine.score_batch * self.model.rows
        return scoring.Scorer(
            self.model.config,
            self.model.compute,
            self.definition,
            self.settings.score.rules,
            micro=micro,
            mesh=self.model.mesh,
        )

    def corpus(self, language: str, use: str) -> Corpus:
        """Return the samples of a language for one use, "score", "evaluate" or "train"; opened once."""
        if (language, use) not in self.corpora:
            data, machine = self.settings.data, self.settings.machine
            options = options_of(data, use, self.settings.seed)
            opened = open_corpus(
                language=language,
                tokenizer=self.model.tokenizer,
                vocabulary=self.model.config.vocab,
                cache=None if options["source"] == "udhr" else sources.folder(machine.cache) / "tokens",
                workers=machine.workers,
                **options,
            )
            self.run.identify(f"data/{language}/{use}", opened.fingerprint, options["source"])
            self.corpora[language, use] = opened
        return self.corpora[language, use]

    def samples(self, language: str, use: str) -> tuple[Corpus, np.ndarray]:
        """Return the corpus of a language for a use, and the positions of the samples that the config asks for.

        Raises:
          ValueError: there are fewer than asked, and the config does not allow it (`data.fewer`).
        """
        corpus = self.corpus(language, use)
        wanted = self.settings[use].samples or len(corpus)
        return corpus, corpus.draw(wanted, self.settings.seed, fewer=self.settings.data.fewer)

    def effects(self) -> effects.Effects:
        """Return the effect of everything measured so far, and of every contrast; read from the work directory."""
        wanted = tuple(self.measured), tuple(self.contrasts)
        if wanted not in self.compared:
            languages = self.settings.evaluate.languages
            sums = {each: {code: read(code) for code in languages} for each, read in self.measured.items()}
            self.compared.clear()
            self.compared[wanted] = effects.compare(sums, self.contrasts, self.settings.seed)
        return self.compared[wanted]


def define(settings: ConfigDict) -> scoring.Definition:
    """Return how importance is defined: the preset of `score.preset` with the changes that the config makes.

    Raises:
      ValueError: there is no such preset.
    """
    chosen = settings.score.to_dict()
    if chosen["preset"] not in scoring.PRESETS:
        presets = ", ".join(sorted(scoring.PRESETS))
        raise ValueError(f"score.preset is {chosen['preset']!r}; it must be one of {presets}")
    preset = scoring.PRESETS[chosen["preset"]]
    names = {field.name for field in dataclasses.fields(preset)}
    changes = {name: value for name, value in chosen.items() if name in names and value not in (None, "")}
    return dataclasses.replace(preset, **changes)


def prepare(settings: ConfigDict, run: Run) -> Context:
    """Load the model of a config onto its mesh.

    Raises:
      ValueError: the model, its tokenizer or the mesh do not fit the config or each other.
    """
    begin, machine = time.monotonic(), settings.machine
    mesh = meshes.build(**machine.mesh.to_dict())
    compute = models.Compute(**settings.compute.to_dict(), **machine.compute.to_dict())
    with cluster.ready("the loading of the model", cluster.WORK):
        model = model_module.load(settings.model.source, mesh, compute, settings.seed, machine.cache or None)
    run.identify("model", model.fingerprint, model.source)
    run.identify("tokenizer", model.tokenizer.fingerprint, model.source)
    run.log(
        event="model",
        source=model.source,
        config=models.dump(model.config),
        parameters=trees.count(model.params),
        model_hash=model.fingerprint,
        tokenizer=model.tokenizer.name,
        tokenizer_hash=model.tokenizer.fingerprint,
        seconds=round(time.monotonic() - begin, 3),
    )
    return Context(settings, run, model)


def slug(name: str) -> str:
    """Return a name as a file name: "random 1% seed 2" -> "random-1pct-seed-2"."""
    return name.replace("%", "pct").replace(" ", "-")
