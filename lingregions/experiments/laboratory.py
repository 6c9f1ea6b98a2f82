"""Laboratory: a model on its mesh, its tokenizer and its corpora, and the verbs that experiments are written in.

`score` and `find` each do what is not done yet in the work directory and skip the rest, as `cell.measure` does, so a
run that was killed goes on where it stopped. Every number comes from the functional modules; here is only the order of
things, and what is written down.
"""

import dataclasses
import functools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from lingregions import evaluate, models, regions, report, scoring
from lingregions import mesh as meshes
from lingregions import tree as trees
from lingregions.corpus import corpus as corpora
from lingregions.corpus.batch import Batch
from lingregions.corpus.corpus import Corpus
from lingregions.models import roles
from lingregions.models import source as sources
from lingregions.models.tokenizer import Tokenizer
from lingregions.regions import Provenance, Region
from lingregions.regions.algebra import combine as _combine
from lingregions.regions.region import axes, versions
from lingregions.run import Run, cluster

if TYPE_CHECKING:
    from lingregions.experiments.cell import Arm


@dataclasses.dataclass(frozen=True, eq=False)
class Laboratory:
    """What an experiment works with. Make one with `prepare`.

    Attributes:
      settings: the resolved config of the run.
      run: the work directory.
      mesh: device mesh.
      model: model config.
      params: float32 parameters on the mesh; changed only while an arm is measured (`cell.Arm.apply`).
      identity: `tree.fingerprint` of parameters and model config: the model hash of every artefact.
      tokenizer: of the model.
      texts: corpora that were opened, by (language, use).
      arms: what was measured, by experiment.
    """

    settings: ConfigDict
    run: Run
    mesh: Mesh
    model: Any
    params: trees.Tree
    identity: str
    tokenizer: Tokenizer
    texts: dict[tuple[str, str], Corpus] = dataclasses.field(default_factory=dict)
    arms: dict[str, list["Arm"]] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def compute(self) -> models.Compute:
        """How the model is run."""
        return models.Compute(**self.settings.compute.to_dict(), **self.settings.machine.compute.to_dict())

    @functools.cached_property
    def definition(self) -> scoring.Definition:
        """How importance is defined: a preset with the changes that the config makes."""
        return define(self.settings)

    @functools.cached_property
    def scorer(self) -> scoring.Scorer:
        """The compiled scoring steps, used for every language."""
        micro = self.settings.machine.score_batch * meshes.rows(self.mesh)
        return scoring.Scorer(
            self.model, self.compute, self.definition, self.settings.score.rules, micro=micro, mesh=self.mesh
        )

    @functools.cached_property
    def evaluator(self) -> evaluate.Evaluator:
        """The compiled evaluation, used for every arm and language."""
        return evaluate.build(self.model, self.compute, self.mesh)

    @functools.cached_property
    def shapes(self) -> trees.Tree:
        """Shapes and shards of the parameters, without their values."""
        return models.shapes(self.model, meshes.shardings(models.declare(self.model), self.mesh))

    def place(self, batch: Batch) -> Batch:
        """Put a host batch on the mesh."""
        placed: Batch = meshes.place(batch, self.mesh)
        return placed

    def corpus(self, language: str, use: str) -> Corpus:
        """Return the samples of a language for one use, "score", "evaluate" or "train"; opened once."""
        if (language, use) not in self.texts:
            data, machine = self.settings.data, self.settings.machine
            options = corpora.options(data, use, self.settings.seed)
            opened = corpora.open(
                language=language,
                tokenizer=self.tokenizer,
                vocabulary=self.model.vocab,
                cache=None if options["source"] == "udhr" else sources.folder(machine.cache) / "tokens",
                workers=machine.workers,
                **options,
            )
            self.run.identify(f"data/{language}/{use}", opened.fingerprint, options["source"])
            self.texts[language, use] = opened
        return self.texts[language, use]


def define(settings: ConfigDict) -> scoring.Definition:
    """Return how importance is defined: the preset of `score.preset` with the changes that the config makes.

    Raises:
      ValueError: there is no such preset.
    """
    chosen = settings.score.to_dict()
    if chosen["preset"] not in scoring.PRESETS:
        raise ValueError(
            f"score.preset is {chosen['preset']!r}; it must be one of {', '.join(sorted(scoring.PRESETS))}"
        )
    preset = scoring.PRESETS[chosen["preset"]]
    names = {field.name for field in dataclasses.fields(preset)}
    changes = {name: value for name, value in chosen.items() if name in names and value not in (None, "")}
    return dataclasses.replace(preset, **changes)


def prepare(settings: ConfigDict, run: Run) -> Laboratory:
    """Load the model of a config onto its mesh.

    Raises:
      ValueError: the model, its tokenizer or the mesh do not fit the config or each other.
    """
    mesh = meshes.build(**settings.machine.mesh.to_dict())
    begin = time.monotonic()
    with cluster.ready("the loading of the model", cluster.WORK):
        source = sources.resolve(settings.model.source, settings.machine.cache or None)
        params = source.load(mesh, jax.random.key(settings.seed))
    config = source.config
    identity = trees.fingerprint(params, json.dumps(models.dump(config), sort_keys=True))
    run.identify("model", identity, settings.model.source)
    run.identify("tokenizer", source.tokenizer.fingerprint, settings.model.source)
    run.log(
        event="model",
        source=settings.model.source,
        config=models.dump(config),
        parameters=trees.count(params),
        model_hash=identity,
        tokenizer=source.tokenizer.name,
        tokenizer_hash=source.tokenizer.fingerprint,
        seconds=round(time.monotonic() - begin, 3),
    )
    return Laboratory(settings, run, mesh, config, params, identity, source.tokenizer)


def draw(laboratory: Laboratory, language: str, use: str) -> tuple[Corpus, np.ndarray]:
    """Return the corpus of a language for a use, and the positions of the samples that the config asks for, in order.

    Raises:
      ValueError: there are fewer than asked, and the config does not allow it (`data.fewer`).
    """
    settings, corpus = laboratory.settings, laboratory.corpus(language, use)
    wanted = settings[use].samples or len(corpus)
    return corpus, corpus.draw(wanted, settings.seed, fewer=settings.data.fewer)


def uses(settings: ConfigDict) -> list[str]:
    """Return what texts are used for in an experiment: "score", and "evaluate" where it evaluates."""
    return [use for use in ("score", "evaluate") if use in settings]


def check(laboratory: Laboratory) -> None:
    """Open every text of the config, so that what is missing is told before the first hour of work, not after it.

    Raises:
      ValueError: a text is missing, unusable or shorter than asked; the message says which.
    """
    with cluster.ready("the opening of the texts", cluster.WORK):
        for use in uses(laboratory.settings):
            chosen = laboratory.settings[use]
            for language in chosen.languages:
                corpus, positions = draw(laboratory, language, use)
                if len(positions) < chosen.samples:
                    laboratory.run.note(
                        f"{language}, {corpus.split}: {len(positions)} samples, {chosen.samples} were asked for"
                    )
                if corpus.counts.skipped:
                    laboratory.run.note(f"{language}: {corpus.counts.skipped} texts could not be read and were skipped")
        if "train" in laboratory.settings:
            laboratory.corpus(laboratory.settings.train.language, "train")
        for remark in corpora.remarks(laboratory.texts):
            laboratory.run.note(remark)


# --- scores -----------------------------------------------------------------------------------------------------------


class Snapshot(NamedTuple):
    """What scoring has gathered after `position` samples of the order: sums over `tokens` targets of `nll` nats."""

    position: int
    sums: scoring.Sums
    tokens: int
    nll: float


def gather(
    laboratory: Laboratory, language: str, start: int, stop: int, stops: Sequence[int] = ()
) -> Iterator[Snapshot]:
    """Sum up the samples start .. stop of a language's order, and yield at each of `stops` and at the end.

    The resume point is the sums and one integer, saved every `machine.save_seconds` and when a signal asks to stop;
    a resumed pass yields only the snapshots that are still ahead. Use the sums before asking for the next snapshot.
    """
    run, scorer, settings = laboratory.run, laboratory.scorer, laboratory.settings
    draft = _draft(language, start, stop)
    corpus, positions = draw(laboratory, language, "score")
    found = run.header(draft)
    if found is None:
        at = Snapshot(start, scorer.start(laboratory.params), 0, 0.0)
    else:
        at = Snapshot(found["position"], run.load(draft, scorer.shapes), found["tokens"], found["nll"])
        run.note(f"scoring {language} goes on from sample {at.position:,} of {stop:,}")
    goals = sorted({*(each for each in stops if start < each < stop), stop})
    saved = time.monotonic()
    group = scorer.group(at.sums)
    with run.progress(f"score {language}", (stop - at.position) * corpus.length, "tokens") as bar:
        for goal in goals:
            while at.position < goal:
                # A group never reaches over a snapshot: the snapshot holds exactly its number of samples.
                end = min(at.position + group, goal)
                batch = corpus.batch(positions[at.position : end])
                try:
                    sums, tokens, nll = scorer.add(laboratory.params, at.sums, batch, laboratory.place)
                except FloatingPointError as error:
                    raise FloatingPointError(f"{language}, samples {at.position:,} to {end - 1:,}: {error}") from error
                bar.advance((end - at.position) * corpus.length)
                at = Snapshot(end, sums, at.tokens + tokens, at.nll + nll)
                due = run.agree(time.monotonic() - saved > settings.machine.save_seconds) or run.stopping()
                if at.position < goal and due:
                    run.save(draft, at.sums, {"position": at.position, "tokens": at.tokens, "nll": at.nll})
                    saved = time.monotonic()
                if at.position < goal:
                    run.check()
            if found is None or found["position"] < goal:
                yield at


def forget(laboratory: Laboratory, language: str, start: int, stop: int) -> None:
    """Remove the resume point of a pass whose results are saved."""
    laboratory.run.discard(_draft(language, start, stop))


def _draft(language: str, start: int, stop: int) -> str:
    return f"resume/{language}-{start}-{stop}"


def facts(laboratory: Laboratory, language: str, at: Snapshot) -> dict[str, Any]:
    """Return all that decides the scores of a snapshot, for headers."""
    settings = laboratory.settings
    return {
        "language": language,
        "definition": dataclasses.asdict(laboratory.definition),
        "samples": at.position,
        "tokens": at.tokens,
        "nll": at.nll,
        "seed": settings.seed,
        "model": laboratory.identity,
        "tokenizer": laboratory.tokenizer.fingerprint,
        "data": laboratory.corpus(language, "score").fingerprint,
    }


def samples(laboratory: Laboratory, language: str) -> int:
    """Return how many samples of a language are scored: as many as the config says, or as there are."""
    return len(draw(laboratory, language, "score")[1])


def score(laboratory: Laboratory, language: str) -> None:
    """Score one language and save the scores as `scores/<language>`; resumes inside the language.

    Snapshots at the sample counts of `score.snapshots` are saved beside it, as `scores/<language>-<samples>`.
    """
    run, stage = laboratory.run, f"score-{language}"
    if run.done(stage) is None:
        stop = samples(laboratory, language)
        for at in gather(laboratory, language, 0, stop, laboratory.settings.score.snapshots):
            name = f"scores/{language}" + ("" if at.position == stop else f"-{at.position}")
            store(laboratory, name, language, at)
        run.finish(stage, f"scores/{language}", **facts(laboratory, language, at))
        forget(laboratory, language, 0, stop)
    run.check()


def store(laboratory: Laboratory, name: str, language: str, at: Snapshot) -> None:
    """Save the scores of a snapshot under a name, with a header that says what they are."""
    header = facts(laboratory, language, at) | {"versions": dict(versions())}
    laboratory.run.save(name, laboratory.scorer.finish(laboratory.params, at.sums, at.tokens), header)


def load(laboratory: Laboratory, language: str) -> trees.Tree:
    """Return the saved scores of a language, on the shards of the parameters."""
    like = roles.restrict(laboratory.shapes, laboratory.definition.scope)
    found: trees.Tree = laboratory.run.load(f"scores/{language}", like)
    return found


def combine(laboratory: Laboratory, languages: Sequence[str]) -> trees.Tree:
    """Return the scores summed over languages as the definition says, one language in memory at a time."""
    total: trees.Tree | None = None
    for language in languages:
        total = scoring.combine(total, load(laboratory, language), laboratory.definition.normalised)
    if total is None:
        raise ValueError("no language to combine: score.languages is empty")
    return total


def provenance(laboratory: Laboratory, languages: Sequence[str], rule: str | None = None) -> Provenance:
    """Return what is known of a region before it is selected: model, tokenizer, text and score (another `rule`'s)."""
    definition = dataclasses.replace(laboratory.definition, rule=rule or laboratory.definition.rule)
    return Provenance(
        score=json.dumps(dataclasses.asdict(definition), sort_keys=True),
        languages=tuple(languages),
        score_scope=definition.scope,
        select_scope=laboratory.settings.select.scope,
        model=laboratory.identity,
        tokenizer=laboratory.tokenizer.fingerprint,
        data=" ".join(laboratory.corpus(language, "score").fingerprint for language in languages),
        axes=axes(roles.restrict(models.declare(laboratory.model), definition.scope)),
    )


# --- regions ----------------------------------------------------------------------------------------------------------


def find(laboratory: Laboratory, wanted: Mapping[str, Callable[[], Region]]) -> dict[str, str]:
    """Make every region that has no file yet, and save it; returns {name: file in the work directory}."""
    files = {name: f"regions/{slug(name)}.safetensors" for name in wanted}
    for name, make in wanted.items():
        stage = f"region-{slug(name)}"
        if laboratory.run.done(stage) is None:
            keep(laboratory, make(), files[name])
            laboratory.run.finish(stage, files[name], region=name)
        laboratory.run.check()
    return files


def keep(laboratory: Laboratory, region: Region, file: str) -> None:
    """Save a region, and note what its selection met."""
    found = region.provenance.selection
    if found is not None and not found.selected:  # its removal would be a figure of 1.00 that says nothing
        raise ValueError(f"region {region.name} is empty: {found}; take a larger fraction")
    if found is not None and (found.empty or found.zero or found.cut):
        laboratory.run.note(f"region {region.name}: {found}")
    path = laboratory.run.path(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    regions.save(region, path)


def slug(name: str) -> str:
    """Return a name as a file name: "random 1% seed 2" -> "random-1pct-seed-2"."""
    return name.replace("%", "pct").replace(" ", "-")


def read(laboratory: Laboratory, file: str) -> Region:
    """Return a region of this run, on the shards of the parameters."""
    return regions.load(
        laboratory.run.path(file), laboratory.shapes, laboratory.identity, laboratory.tokenizer.fingerprint
    )


# --- what is shown ---------------------------------------------------------------------------------------------------


def tabulate(laboratory: Laboratory, name: str, content: Mapping[str, Any]) -> None:
    """Write tables/<name>.json, which the report shows; see `report.kinds` for the kinds that there are."""
    laboratory.run.write(f"tables/{name}.json", json.dumps(content, ensure_ascii=False, indent=1) + "\n")


def publish(laboratory: Laboratory) -> None:
    """Write the report of the run; one process does it. Where arms were measured, `comparison.assess` comes first."""
    describe(laboratory)
    if jax.process_index() == 0:
        report.write(laboratory.run.folder, laboratory.settings.machine.pictures)


def describe(laboratory: Laboratory) -> None:
    """Write the table of texts for the report: what was scored and evaluated, and how each text begins as tokens."""
    settings, rows = laboratory.settings, []
    for use in uses(settings):
        for language in settings[use].languages:
            corpus, positions = draw(laboratory, language, use)
            first = " ".join(map(str, corpus.batch([0]).tokens[0, :8].tolist()))
            used = [use, corpus.source, corpus.split, len(positions), len(corpus)]
            rows.append([language, *used, first, corpus.fingerprint[:16]])
    example = laboratory.corpus(settings.score.languages[0], "score")
    content = {
        "title": "Texts",
        "note": f"Samples of {settings.data.length} tokens, {settings.data.packing}; special tokens: {example.policy}; "
        f"tokenizer {laboratory.tokenizer.name} ({laboratory.tokenizer.fingerprint[:16]}); "
        f"model hash {laboratory.identity}.",
        "columns": [
            {"name": "language"},
            {"name": "use"},
            {"name": "source"},
            {"name": "split"},
            {"name": "samples used", "kind": "count"},
            {"name": "samples there", "kind": "count"},
            {"name": "first token ids"},
            {"name": "fingerprint"},
        ],
        "rows": rows,
    }
    tabulate(laboratory, "texts", content)


def magnitudes(laboratory: Laboratory) -> trees.Tree:
    """Return |theta| in the select scope."""
    part = roles.restrict(laboratory.params, laboratory.settings.select.scope)
    return trees.transform(lambda _, theta: jnp.abs(theta), part)


def alone(laboratory: Laboratory) -> dict[str, str]:
    """Make the top of each scored language, and what of it no other has; returns {name: file}."""
    settings = laboratory.settings
    languages, fraction = settings.score.languages, settings.select.fractions[0]
    tops = {language: f"top {fraction} {language}" for language in languages}

    def top(language: str) -> Region:
        named = provenance(laboratory, (language,)).replace(name=tops[language])
        part = roles.restrict(load(laboratory, language), settings.select.scope)
        return regions.select(part, fraction, "top", provenance=named)

    files = find(laboratory, {tops[language]: functools.partial(top, language) for language in languages})

    def own(language: str) -> Region:
        found = read(laboratory, files[tops[language]])
        origins = [found.provenance]
        for other in languages:
            if other != language:  # one at a time: the masks of all languages would be the peak of the run's memory
                each = read(laboratory, files[tops[other]])
                origins.append(each.provenance)
                found = regions.subtract(found, each)
        name = f"monolingual {language}"
        definition = f"the top {fraction} of {language} without the top {fraction} of any other scored language"
        known = _combine("difference", origins, name).replace(definition=definition)
        return dataclasses.replace(found, provenance=known)

    return files | find(laboratory, {f"monolingual {each}": functools.partial(own, each) for each in languages})
