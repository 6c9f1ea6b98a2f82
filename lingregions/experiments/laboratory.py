"""Laboratory: a model on its mesh, its tokenizer and its corpora, and the verbs that experiments are written in.

`score`, `find` and `measure` each do what is not done yet in the work directory and skip the rest, so a run that was
killed goes on where it stopped. Every number comes from the functional modules; here is only the order of things, and
what is written down.
"""

import collections
import contextlib
import csv
import dataclasses
import functools
import hashlib
import io
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from lingregions import evaluate, models, perturb, regions, report, scores, statistics
from lingregions import mesh as meshes
from lingregions import tree as trees
from lingregions.corpus import corpus as corpora
from lingregions.corpus.batch import Batch
from lingregions.corpus.corpus import Corpus
from lingregions.models import source as sources
from lingregions.models.tokenizer import Tokenizer
from lingregions.regions import Provenance, Region
from lingregions.regions.region import axes, versions
from lingregions.run import Run, cluster
from lingregions.run.progress import Bar

# results.csv: one row per (experiment, arm, language).
COLUMNS: dict[str, type] = {
    "experiment": str,
    "arm": str,
    "language": str,
    "nll_nats": float,
    "tokens": int,
    "bytes": int,
    "perplexity": str,
    "bits_per_byte": float,
    "passages": int,
    "checksum": str,
}
KEYS = ("experiment", "arm", "language")
BASE = "base"  # the arm to which nothing is done
EVERY = "all"  # in place of a language: the mean over all of them


@dataclasses.dataclass(frozen=True, eq=False)
class Laboratory:
    """What an experiment works with. Make one with `prepare`.

    Attributes:
      settings: the resolved config of the run.
      run: the work directory.
      mesh: device mesh.
      model: model config.
      params: float32 parameters on the mesh; never changed.
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
    def definition(self) -> scores.Definition:
        """How importance is defined: a preset with the changes that the config makes."""
        return define(self.settings)

    @functools.cached_property
    def scorer(self) -> scores.Scorer:
        """The compiled scoring steps, used for every language."""
        micro = self.settings.machine.score_batch * meshes.rows(self.mesh)
        return scores.Scorer(
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
            part = ("evaluation" if use == "evaluate" else "score") if data.held else "all"
            source = data.get(f"{use}_source") or data.source
            self.texts[language, use] = corpora.open(
                source,
                language,
                self.tokenizer,
                length=data.length,
                split=data[f"{use}_split"],
                part=part,
                held=data.held or None,
                seed=self.settings.seed,
                packing=data.packing,
                bos=data.bos or None,
                eos=data.eos or None,
                column=data.column,
                document=data.document,
                strict=data.strict,
                vocabulary=self.model.vocab,
                cache=None if source == "udhr" else sources.folder(machine.cache) / "tokens",
                workers=machine.workers,
            )
        return self.texts[language, use]


def define(settings: ConfigDict) -> scores.Definition:
    """Return how importance is defined: the preset of `score.preset` with the changes that the config makes.

    Raises:
      ValueError: there is no such preset.
    """
    chosen = settings.score.to_dict()
    if chosen["preset"] not in scores.PRESETS:
        raise ValueError(f"score.preset is {chosen['preset']!r}; it must be one of {', '.join(sorted(scores.PRESETS))}")
    preset = scores.PRESETS[chosen["preset"]]
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


# --- scores -----------------------------------------------------------------------------------------------------------


class Snapshot(NamedTuple):
    """What scoring has gathered after `position` samples of the order: sums over `tokens` targets of `nll` nats."""

    position: int
    sums: scores.Sums
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
    definition, saved = laboratory.definition, time.monotonic()
    # Where groups are only summed up, their borders decide nothing, and a step fills the whole mesh.
    borders = definition.weighting != "token" or bool(jax.tree.leaves(at.sums.open))
    group = definition.group if borders else max(definition.group, scorer.micro)
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
    like = trees.restrict(laboratory.shapes, laboratory.definition.scope)
    found: trees.Tree = laboratory.run.load(f"scores/{language}", like)
    return found


def combine(laboratory: Laboratory, languages: Sequence[str]) -> trees.Tree:
    """Return the scores summed over languages as the definition says, one language in memory at a time."""
    total: trees.Tree | None = None
    for language in languages:
        total = scores.combine(total, load(laboratory, language), laboratory.definition.normalised)
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
        axes=axes(trees.restrict(models.declare(laboratory.model), definition.scope)),
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


# --- what the model loses ---------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Arm:
    """One row of an experiment: a region, and what is done to it.

    Attributes:
      name: in results.csv.
      region: makes the region; called only when a cell of the arm is missing. None: nothing is done.
      perturbation: a key of `perturb.PERTURBATIONS`, with its `amount` and `seed` where it takes them.
      group: the name that arms share which differ only in a seed; "" stands for `name`.
      limits: bounds on activations while the arm is measured (see `models.bounded`).
    """

    name: str
    region: Callable[[], Region] | None = None
    perturbation: str = "zero"
    amount: float | None = None
    seed: int | None = None
    group: str = ""
    limits: trees.Tree | None = None

    @property
    def pooled(self) -> str:
        """The name of the group."""
        return self.group or self.name

    def apply(self, params: trees.Tree) -> contextlib.AbstractContextManager[trees.Tree]:
        """Return the context in which `params` is what the arm makes of it; every bit is back afterwards."""
        if self.region is None:
            return contextlib.nullcontext(params)
        return perturb.applied(params, self.region().masks, self.perturbation, self.amount, self.seed)


def measure(laboratory: Laboratory, experiment: str, arms: Sequence[Arm]) -> None:
    """Evaluate every language under every arm, the untouched model first.

    A finished cell is one row of results.csv and the sums of its passages in cells/, whose checksum is in the row: a
    run that was killed goes on at the cell where it stopped, and a damaged cell is measured again. One compiled program
    serves all cells; a batch may hold samples of several languages.

    Args:
      laboratory: the model and its texts; its parameters are the same bits afterwards.
      experiment: the name in the first column.
      arms: what is measured beside the untouched model; names are unique.

    Raises:
      ValueError: two arms have one name, or one has that of the untouched model.
    """
    everything = [Arm(BASE), *arms]
    names = [arm.name for arm in everything]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"two arms of {experiment} are called {twice[0]!r}")
    laboratory.arms[experiment] = everything
    missing = _missing(laboratory, experiment, names)
    with _progress(laboratory, [code for codes in missing.values() for code in codes]) as bar:
        for arm in everything:
            if missing[arm.name]:
                with arm.apply(laboratory.params) as params:
                    _measure(laboratory, experiment, arm, params, missing[arm.name], bar)


def observe(laboratory: Laboratory, experiment: str, arm: Arm, params: trees.Tree) -> None:
    """Evaluate every language under parameters that were made elsewhere (by training), as one more arm.

    Args:
      laboratory: the texts.
      experiment: the name in the first column.
      arm: its name and its group; a name that was measured before is read from results.csv.
      params: the parameters.
    """
    known = laboratory.arms.setdefault(experiment, [])
    if arm.name not in {each.name for each in known}:
        known.append(arm)
    missing = _missing(laboratory, experiment, [arm.name])[arm.name]
    if missing:
        with _progress(laboratory, missing) as bar:
            _measure(laboratory, experiment, arm, params, missing, bar)


def _missing(laboratory: Laboratory, experiment: str, names: Sequence[str]) -> dict[str, list[str]]:
    """Return the languages of each arm whose cells are not finished, or not sound any more."""
    laboratory.run.table("results", COLUMNS, KEYS)
    rows = laboratory.run.rows("results")
    known = {(row["arm"], row["language"]): row for row in rows if row["experiment"] == experiment}
    return {
        name: [
            code
            for code in laboratory.settings.evaluate.languages
            if (name, code) not in known or not _intact(laboratory, known[name, code])
        ]
        for name in names
    }


def _progress(laboratory: Laboratory, languages: Sequence[str]) -> contextlib.AbstractContextManager[Bar]:
    """Return the bar of an evaluation of so many texts."""
    length = laboratory.settings.data.length
    tokens = sum(len(draw(laboratory, code, "evaluate")[1]) * length for code in languages)
    return laboratory.run.progress("evaluate", tokens, "tokens")


def _measure(
    laboratory: Laboratory, experiment: str, arm: Arm, params: trees.Tree, languages: Sequence[str], bar: Bar
) -> None:
    """Measure the missing cells of one arm, and write each as soon as it is known."""
    run, texts = laboratory.run, {code: draw(laboratory, code, "evaluate") for code in languages}
    for code, found in _cells(laboratory, params, texts, arm.limits, bar):
        checksum = _store(laboratory, experiment, arm.name, code, found.passages)
        run.log(event="evaluated", experiment=experiment, arm=arm.name, language=code, nll_nats=found.nll)
        run.add("results", row(experiment, arm.name, code, found, checksum))
        run.check()


def _cells(
    laboratory: Laboratory,
    params: trees.Tree,
    texts: Mapping[str, tuple[Corpus, np.ndarray]],
    limits: trees.Tree | None,
    bar: Bar,
) -> Iterator[tuple[str, evaluate.Result]]:
    """Yield (language, sums) as soon as the last sample of the language is done."""
    size = laboratory.settings.machine.evaluate_batch * meshes.rows(laboratory.mesh)
    places = [(code, position) for code, (_, positions) in texts.items() for position in np.sort(positions)]
    queue: collections.deque[list[tuple[str, np.ndarray]]] = collections.deque()

    def batches() -> Iterator[Batch]:
        for begin in range(0, len(places), size):
            groups = [
                (code, np.asarray([position for _, position in group]))
                for code, group in itertools.groupby(places[begin : begin + size], key=lambda place: place[0])
            ]
            parts = [texts[code][0].batch(positions) for code, positions in groups]
            rows = sum(len(positions) for _, positions in groups)
            queue.append(groups)
            yield Batch(*(_fill(np.concatenate(each), size) for each in zip(*parts, strict=True)))
            bar.advance(rows * laboratory.settings.data.length)

    left = {code: len(positions) for code, (_, positions) in texts.items()}
    gathered: dict[str, list[tuple[np.ndarray, evaluate.Losses]]] = {code: [] for code in texts}
    for losses in evaluate.stream(laboratory.evaluator, params, batches(), laboratory.place, limits):
        first = 0
        for code, positions in queue.popleft():
            own = losses.take(first, first + len(positions))
            numbers = _numbers(texts[code][0], positions, laboratory.settings.evaluate.passage)[own.row, own.position]
            gathered[code].append((numbers, own))
            first, left[code] = first + len(positions), left[code] - len(positions)
            if not left[code]:
                yield code, evaluate.total(*zip(*gathered.pop(code), strict=True))


def _numbers(corpus: Corpus, positions: np.ndarray, passage: int) -> np.ndarray:
    """Return int64 [B, T]: which passage the token stands in: its document, or every `passage` tokens of a sample."""
    if not passage:
        return corpus.documents(positions)
    count = -(-corpus.length // passage)
    return positions.astype(np.int64)[:, None] * count + np.arange(corpus.length)[None] // passage


def _fill(rows: np.ndarray, size: int) -> np.ndarray:
    """Return the rows with padding (zeros) below, `size` in all."""
    return np.pad(rows, ((0, size - len(rows)), (0, 0)))


def _cell(experiment: str, arm: str, language: str) -> str:
    """Return the file of a cell: the sums of its passages."""
    return f"cells/{slug(experiment)}/{slug(arm)}/{language}.csv"


def _store(laboratory: Laboratory, experiment: str, arm: str, language: str, passages: evaluate.Passages) -> str:
    """Write the sums of a cell by passage; returns their checksum."""
    lines = [",".join(passages._fields)]
    lines += [",".join(map(repr, each)) for each in zip(*(column.tolist() for column in passages), strict=True)]
    content = "\n".join(lines) + "\n"
    laboratory.run.write(_cell(experiment, arm, language), content)
    return _checksum(content.encode())


def _checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _intact(laboratory: Laboratory, row: Mapping[str, Any]) -> bool:
    """Tell whether the passages of a finished cell are there and are what was measured; says so if not."""
    name = _cell(row["experiment"], row["arm"], row["language"])
    path = laboratory.run.path(name)
    sound = laboratory.run.agree(path.exists() and _checksum(path.read_bytes()) == row["checksum"])
    if not sound:
        laboratory.run.note(f"{name} is gone or changed; the cell is measured again")
    return bool(sound)


def passages(laboratory: Laboratory, experiment: str, arm: str, language: str) -> evaluate.Passages:
    """Return the sums by passage of a finished cell."""
    path = laboratory.run.path(_cell(experiment, arm, language))
    rows = list(csv.reader(path.read_text().splitlines()))[1:] if jax.process_index() == 0 else []
    number, nll, tokens, sizes = zip(*laboratory.run.agree(rows), strict=True)
    return evaluate.Passages(
        np.asarray(number, np.int64),
        np.asarray(nll, np.float64),
        np.asarray(tokens, np.int64),
        np.asarray(sizes, np.int64),
    )


def row(experiment: str, arm: str, language: str, found: evaluate.Result, checksum: str) -> dict[str, Any]:
    """Return one line of results.csv."""
    return {
        "experiment": experiment,
        "arm": arm,
        "language": language,
        "nll_nats": found.nll,
        "tokens": found.tokens,
        "bytes": found.bytes,
        "perplexity": evaluate.perplexity(found.nats),
        "bits_per_byte": found.bits if math.isfinite(found.nll) else math.nan,
        "passages": len(found.passages.number),
        "checksum": checksum,
    }


# --- how sure that is -------------------------------------------------------------------------------------------------


def differences(
    laboratory: Laboratory, experiment: str, group: str, reference: str = BASE, languages: Sequence[str] = ()
) -> dict[str, statistics.Draws]:
    """Return the paired bootstrap of one measured group of arms against another, by language.

    Args:
      laboratory: after `measure`.
      experiment: as given to `measure`.
      group: name of an arm, or of a group of arms that differ in their seed.
      reference: likewise.
      languages: the evaluated ones when empty.
    """
    chosen = languages or tuple(laboratory.settings.evaluate.languages)
    sides: list[list[dict[str, evaluate.Passages]]] = []
    for name in (group, reference):
        members = [arm.name for arm in laboratory.arms[experiment] if arm.pooled == name]
        if not members:
            raise ValueError(f"{experiment} has no arm {name!r}")
        sides.append([{code: passages(laboratory, experiment, arm, code) for code in chosen} for arm in members])
    return statistics.compare(sides[0], sides[1], seed=laboratory.settings.seed)


class Compared(NamedTuple):
    """One line of damage.csv: a group of arms against another in one language, or in `EVERY`."""

    arm: str
    reference: str
    language: str
    seeds: int
    estimate: statistics.Estimate
    adjusted: float  # the p-value, corrected over the languages


def damages(laboratory: Laboratory, experiment: str, contrasts: Sequence[tuple[str, str]] = ()) -> list[Compared]:
    """Return each group of arms against the untouched model, and each contrast, in every language and over all.

    Args:
      laboratory: after `measure`.
      experiment: as given to `measure`.
      contrasts: (group, reference) pairs beside those against the untouched model.
    """
    arms = laboratory.arms[experiment]
    groups = list(dict.fromkeys(arm.pooled for arm in arms))
    seeds = {group: sum(arm.pooled == group for arm in arms) for group in groups}
    found = []
    for group, reference in [*((group, BASE) for group in groups if group != BASE), *contrasts]:
        each = differences(laboratory, experiment, group, reference)
        overall = statistics.estimate(statistics.mean(each))
        found.append(Compared(group, reference, EVERY, seeds[group], overall, overall.p))
        estimates = {code: statistics.estimate(difference) for code, difference in each.items()}
        adjusted = statistics.holm({code: estimate.p for code, estimate in estimates.items()})
        found += [
            Compared(group, reference, code, seeds[group], estimate, adjusted[code])
            for code, estimate in estimates.items()
        ]
    return found


DAMAGE = (
    *("experiment", "arm", "reference", "language", "seeds", "passages"),
    *("damage_nats", "low", "high", "p", "p_adjusted"),
)


def assess(
    laboratory: Laboratory, contrasts: Mapping[str, Sequence[tuple[str, str]]] | None = None
) -> dict[str, list[Compared]]:
    """Write damage.csv: every measured arm and contrast with its interval; returns it by experiment."""
    found = {name: damages(laboratory, name, (contrasts or {}).get(name, ())) for name in laboratory.arms}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(DAMAGE)
    for name, lines in found.items():
        for line in lines:
            value, low, high, p, units = line.estimate
            known = [name, line.arm, line.reference, line.language, line.seeds, units]
            writer.writerow([*known, *map(float, (value, low, high, p, line.adjusted))])
    laboratory.run.write("damage.csv", text.getvalue())
    return found


def tabulate(laboratory: Laboratory, name: str, content: Mapping[str, Any]) -> None:
    """Write tables/<name>.json, which the report shows; see `report.kinds` for the kinds that there are."""
    laboratory.run.write(f"tables/{name}.json", json.dumps(content, ensure_ascii=False, indent=1) + "\n")


def publish(laboratory: Laboratory) -> None:
    """Write the report of the run; one process does it. `assess` comes first where something was measured."""
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
