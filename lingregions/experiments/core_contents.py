"""What the core holds: where it lies, which tokens suffer without it, copying, agreement, and whether context heals.

The core is the top of the scores combined over the scored languages, in every matrix; it is removed beside the largest
weights and beside random regions that are matched to it. Read of each model: the loss of every evaluated token, by what
the token is (letters, a piece of a character, digits, punctuation, space), by how frequent it is in its language's
text, and by where it stands in the window - if the context made good what is lost, the effect would fall along it;
the loss of random tokens and of the same tokens once more (copying: induction, Olsson et al. 2022, arXiv 2209.11895);
and whether sentences whose verb agrees with its subject are likelier than those where it does not (`agreement`). Where
the scores lie is read off the top of the whole scope: of each matrix the core takes the same part. Costs two forward
passes of the evaluated text for each model.
"""

import functools
import math
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from lingregions import evaluate, regions, statistics
from lingregions.corpus.batch import Batch
from lingregions.evaluate import Losses, Segments
from lingregions.experiments import agreement, claims, selection, step, study, tables
from lingregions.experiments.context import Context, slug
from lingregions.intervention import UNTOUCHED, Intervention
from lingregions.models import roles
from lingregions.regions import geometry

_KINDS = ("letters", "piece of a character", "digits", "punctuation", "space")
_FREQUENCIES = ("frequent", "between", "once")
_EDGES = (1, 2, 8, 32, 64, 128, 256, 512)  # positions in the window at which a stretch of it begins
_Sums = dict[str, list[list[float]]]  # category -> number, nats and tokens of its segments


def _check(settings: ConfigDict) -> None:
    """Refuse languages without agreement, and no sequences.

    Raises:
      ValueError: says which.
    """
    if unknown := sorted(set(settings.contents.agreement) - set(agreement.WORDS)):
        raise ValueError(f"contents.agreement may hold {', '.join(agreement.WORDS)}, not {', '.join(unknown)}")
    if settings.contents.sequences < 2:
        raise ValueError("contents.sequences is below 2: an interval needs two or more")
    if not settings.select.seeds:
        raise ValueError("select.seeds is empty: matched regions need one")


def _removals(settings: ConfigDict) -> list[Intervention]:
    """Return the removal of the core, of the largest weights, and of the regions matched to the core."""
    fraction = settings.select.fractions[0]
    columns = {"fraction": fraction, "perturbation": "zero"}
    drawn = [Intervention(kind="matched", seed=seed, **columns) for seed in settings.select.seeds]
    return [Intervention(kind="top", **columns), Intervention(kind="magnitude", **columns), *drawn]


def _steps(settings: ConfigDict, config: Any) -> list[step.Step]:
    """Score, select, remove, and read each model by token."""
    core, largest, *drawn = _removals(settings)
    fraction = core.fraction
    wanted = {
        core.name: selection.ranked(core.name, fraction),
        # In nats: scaled by matrix, the smallest would have the most.
        _WHOLE: selection.ranked(_WHOLE, fraction, "nats", within="scope"),
        largest.name: selection.ranked(largest.name, fraction, "magnitude"),
    } | {each.name: selection.matched(each.name, fraction, core.name, each.seed or 0) for each in drawn}
    removals = [core, largest, *drawn]
    samples = settings.evaluate.samples * len(settings.evaluate.languages) or None
    read = [
        step.once(
            f"evaluate tokens {each.name}",
            "losses by token, of repeated tokens, of agreement",
            _mark(each),
            functools.partial(_read, each=each),
            samples=samples,
            tokens=step.tokens(settings, samples),
        )
        for each in (UNTOUCHED, *removals)
    ]
    contrasts = [(core, largest), (core, drawn[0])]
    return [
        *step.score(settings, config),
        step.select(settings, config, wanted),
        step.measure(settings, removals, contrasts),
        *read,
    ]


_WHOLE = "top of the whole scope"  # the name of a region


def _mark(each: Intervention) -> str:
    return f"tokens-{slug(each.name)}"


# --- what is read of one model ----------------------------------------------------------------------------------------


def _kind(text: str) -> str:
    """Return what a token is, by its text: the first of letters, a piece of a character, digits, punctuation, space."""
    if any(unicodedata.category(each)[0] in "LM" for each in text):
        return _KINDS[0]
    if "�" in text:
        return _KINDS[1]
    if any(unicodedata.category(each)[0] == "N" for each in text):
        return _KINDS[2]
    return _KINDS[3] if text.strip() else _KINDS[4]


def _frequencies(ids: np.ndarray) -> dict[int, str]:
    """Return how frequent each id of a text is: the fewest that make up half of it, once, or between."""
    found, counts = np.unique(ids, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    before = np.cumsum(counts[order]) - counts[order]
    names = np.where(counts[order] == 1, 2, np.where(2 * before < len(ids), 0, 1))
    return {int(each): _FREQUENCIES[name] for each, name in zip(found[order], names, strict=True)}


def _stretch(position: int) -> str:
    """Return the stretch of the window in which a position lies, by its first position; the first target has 1."""
    return str(_EDGES[int(np.searchsorted(_EDGES, position, side="right")) - 1])


def _read(context: Context, each: Intervention) -> step.Found:
    """Return what one model loses by token."""
    with context.model.applied(selection.bound(context, each)):
        return (), {
            "tokens": {code: _categories(context, code) for code in context.settings.evaluate.languages},
            "copies": _copies(context),
            "agreement": {code: _agreements(context, code) for code in context.settings.contents.agreement},
        }


def _losses(context: Context, rows: Sequence[Batch]) -> Iterator[tuple[Batch, Losses]]:
    model = context.model
    return zip(rows, evaluate.stream(model.evaluator, model.params, rows, model.place), strict=True)


def _categories(context: Context, code: str) -> dict[str, _Sums]:
    """Return the sums of each category of tokens by segment: by kind, frequency, and place in the window."""
    corpus, positions = context.samples(code, "evaluate")
    span, size = context.settings.evaluate.segment or corpus.length, context.model.rows
    common, decode = (
        _frequencies(corpus.tokens.ids),
        functools.cache(lambda token: _kind(context.model.tokenizer.decode([token]))),
    )
    divided: dict[str, Callable[[int, int], str]] = {
        "kind": lambda token, place: decode(token),
        "frequency": lambda token, place: common.get(token, _FREQUENCIES[2]),
        "position": lambda token, place: _stretch(place),
    }
    places, numbers, nats, tokens = [], [], [], []
    ordered = np.sort(positions)
    batches = [corpus.batch(ordered[start : start + size], size) for start in range(0, len(ordered), size)]
    for number, (batch, losses) in enumerate(_losses(context, batches)):
        places += losses.position.tolist()
        numbers += ((number * size + losses.row) * -(-corpus.length // span) + losses.position // span).tolist()
        nats += losses.nll.tolist()
        tokens += np.asarray(batch.tokens)[losses.row, losses.position].tolist()
    found = {}
    for name, category in divided.items():
        which = np.array([category(token, place) for token, place in zip(tokens, places, strict=True)])
        found[name] = {
            each: _sums(np.array(numbers)[which == each], np.array(nats)[which == each])
            for each in dict.fromkeys(which.tolist())
        }
    return found


def _sums(numbers: np.ndarray, nats: np.ndarray) -> list[list[float]]:
    found, place = np.unique(numbers, return_inverse=True)
    return [found.tolist(), np.bincount(place, nats).tolist(), np.bincount(place).tolist()]


def _batches(context: Context, sequences: Sequence[Sequence[int]], width: int, size: int) -> list[Batch]:
    """Return sequences of ids as rows of `width`, `size` a batch, each a document behind the BOS that there is."""
    bos, found = _bos(context), []
    for start in range(0, len(sequences), size):
        tokens, segments = (np.zeros((size, width), np.int32) for _ in range(2))
        for row, each in enumerate(sequences[start : start + size]):
            tokens[row, : len(bos) + len(each)], segments[row, : len(bos) + len(each)] = [*bos, *each], 1
        found.append(Batch(tokens, segments, segments))
    return found


def _copies(context: Context) -> dict[str, list[float]]:
    """Return the mean loss, nats, of random tokens and of the same once more, of each sequence.

    The tokens are drawn from those of the evaluated texts; the first of the second half, which nothing announces,
    counts in neither.
    """
    settings, bos = context.settings, len(_bos(context))
    ids = np.unique(
        np.concatenate([context.corpus(code, "evaluate").tokens.ids for code in settings.evaluate.languages])
    )
    half = (settings.data.length - bos) // 2
    drawn = np.random.default_rng(settings.seed).choice(ids, (settings.contents.sequences, half))
    rows = _batches(context, np.tile(drawn, 2).tolist(), settings.data.length, context.model.rows)
    found: dict[str, list[float]] = {"first": [], "second": []}
    for batch, losses in _losses(context, rows):
        for row in np.flatnonzero(np.asarray(batch.segments)[:, 0]):
            at, nats = losses.position[losses.row == row] - bos, losses.nll[losses.row == row]
            found["first"].append(float(nats[at < half].mean()))
            found["second"].append(float(nats[at > half].mean()))
    return found


def _bos(context: Context) -> list[int]:
    """Return the id that begins a document, if the config or the tokenizer has one."""
    found = context.corpus(context.settings.evaluate.languages[0], "evaluate").policy.bos_id
    return [] if found is None else [found]


def _agreements(context: Context, code: str) -> list[bool]:
    """Return of each pair of a language whether the right sentence is likelier than the wrong one."""
    model, size = context.model, 16 * context.model.rows
    asked = {
        each: [words for pair in agreement.pairs(each) for words in pair]
        for each in context.settings.contents.agreement
    }
    encoded = {each: [model.tokenizer.encode(words).ids.tolist() for words in given] for each, given in asked.items()}
    width = 1 + max(len(ids) for rows in encoded.values() for ids in rows)
    sums = [
        np.bincount(each.row, each.nll, size)
        for _, each in _losses(context, _batches(context, encoded[code], width, size))
    ]
    nats = np.concatenate(sums)[: len(encoded[code])].reshape(-1, 2)
    right: list[bool] = (nats[:, 0] < nats[:, 1]).tolist()
    return right


# --- what is shown ----------------------------------------------------------------------------------------------------


class _Read:
    """What was read of each model: facts by the name of its intervention."""

    def __init__(self, context: Context) -> None:
        self.settings = context.settings
        core, largest, *drawn = _removals(context.settings)
        self.models = {
            "untouched": [UNTOUCHED],
            "the core": [core],
            "the largest weights": [largest],
            "matched random": drawn,
        }
        self._facts = {each: context.run.done(_mark(each)) or {} for side in self.models.values() for each in side}

    def facts(self, model: str) -> list[Any]:
        """Return the facts of a model, one for each seed."""
        return [self._facts[each] for each in self.models[model]]

    def sums(self, model: str, split: str, category: str) -> list[dict[str, Segments]]:
        """Return the sums by segment of a category of tokens in the languages that have it, one for each seed."""
        return [
            {
                code: _segments(each[split][category])
                for code, each in facts["tokens"].items()
                if category in each[split]
            }
            for facts in self.facts(model)
        ]

    def change(self, model: str, split: str, category: str, control: str = "untouched") -> statistics.Draws:
        """Return what a category of tokens loses, the mean over languages."""
        ours, theirs = (self.sums(each, split, category) for each in (model, control))
        return statistics.mean(statistics.compare(ours, theirs, seed=self.settings.seed))

    def categories(self, split: str) -> list[str]:
        """Return the categories of a split that any language has, in their order."""
        order = {"kind": _KINDS, "frequency": _FREQUENCIES, "position": tuple(map(str, _EDGES))}[split]
        (facts,) = self.facts("untouched")
        return [each for each in order if any(each in found[split] for found in facts["tokens"].values())]

    def agreed(self, model: str, code: str) -> tables.Cell:
        """Return the part of pairs of a language that a model has right, with a binomial interval (Wilson's)."""
        from scipy import stats  # a second of every start, for one table

        right = [each for facts in self.facts(model) for each in facts["agreement"][code]]
        found = stats.binomtest(sum(right), len(right)).proportion_ci(method="wilson")
        return [sum(right) / len(right), float(found.low), float(found.high)]

    def copying(self, model: str) -> tables.Cell:
        """Return how many nats less a repeated token costs than a random one, with its interval over sequences."""
        gains = np.mean(
            [np.subtract(facts["copies"]["first"], facts["copies"]["second"]) for facts in self.facts(model)], axis=0
        )
        return statistics.student(gains)


def _segments(sums: list[list[float]]) -> Segments:
    number, nats, tokens = sums
    return Segments(np.array(number, np.int64), np.array(nats), np.array(tokens, np.int64), np.array(number, np.int64))


def _show(context: Context) -> dict[str, Any]:
    """Return the tables of places, categories, context, copying and agreement."""
    read, settings = _Read(context), context.settings
    removed = [each for each in read.models if each != "untouched"]
    stretches = read.categories("position")
    series = {
        each: [(int(place), read.change(each, "position", place).cell) for place in stretches] for each in removed
    }
    early, late = "8" if "8" in stretches else stretches[0], stretches[-1]
    healed = {
        each: statistics.combine(
            {place: read.change(each, "position", place) for place in (early, late)}, {early: 1, late: -1}
        ).cell
        for each in removed
    }
    agreed = {each: {code: read.agreed(each, code) for code in settings.contents.agreement} for each in read.models}
    copying = {each: read.copying(each) for each in read.models}
    kinds = {each: read.change("the core", "kind", each, "matched random").cell for each in read.categories("kind")}
    return {
        "places": _places(context),
        "categories": _rows(read, removed),
        "context": tables.curve(
            "Does context heal?",
            "position in the window, from",
            series,
            logarithmic=True,
            note="Mean over languages of the effect on the tokens of a stretch of the window, which begins there.",
        ),
        "copying": _copied(read, copying),
        "agreement": _agreed(settings, agreed),
        "verdict": claims.verdict(
            "core_contents",
            "What does the core hold?",
            context.effects(),
            core=_removals(settings)[0],
            kinds=kinds,
            healed=healed,
            early=early,
            late=late,
            agreed=agreed,
            copying=copying,
        ),
    }


def _rows(read: _Read, removed: Sequence[str]) -> dict[str, Any]:
    columns = {"by": "text", "tokens": "text", "share": "share", "nats a token": "number"} | dict.fromkeys(
        removed, "factor"
    )
    rows = []
    for split in ("kind", "frequency", "position"):
        sizes = {
            each: sum(int(part.tokens.sum()) for part in read.sums("untouched", split, each)[0].values())
            for each in read.categories(split)
        }
        for each, size in sizes.items():
            own = [part.nll.sum() / part.tokens.sum() for part in read.sums("untouched", split, each)[0].values()]
            cells = [read.change(model, split, each).cell for model in removed]
            cells.append(read.change("the core", split, each, "matched random").cell)
            rows.append([split, each, size / sum(sizes.values()), float(np.mean(own)), *cells])
    note = (
        "Nats a token of the untouched model, and its perplexity on these tokens times so much without each region; "
        "mean over the languages that have them. Frequent: the fewest that make up half of a text; position: from."
    )
    return tables.table("Which tokens suffer", columns | {"core over matched": "factor"}, rows, note)


def _copied(read: _Read, copying: Mapping[str, tables.Cell]) -> dict[str, Any]:
    columns = {"without": "text", "random tokens": "number", "the same again": "number", "saved": "interval"}
    rows = []
    for model, cell in copying.items():
        sides = [float(np.mean([facts["copies"][side] for facts in read.facts(model)])) for side in ("first", "second")]
        rows.append(["nothing" if model == "untouched" else model, *sides, cell])
    note = "Nats a token of random tokens, of the same once more, and what repetition saves. Intervals over sequences."
    return tables.table("Copying", columns, rows, note)


def _agreed(settings: ConfigDict, agreed: Mapping[str, Mapping[str, tables.Cell]]) -> dict[str, Any]:
    columns = {"language": "text"} | dict.fromkeys(agreed, "interval")
    rows = [[code, *(each[code] for each in agreed.values())] for code in settings.contents.agreement]
    note = (
        "Part of the pairs in which the sentence whose verb agrees is the likelier; 0.5 is chance. Binomial intervals "
        "(Wilson); pairs share their words, so that the doubt is larger than they say."
    )
    return tables.table("Agreement of subject and verb", columns, rows, note)


def _places(context: Context) -> dict[str, Any]:
    """Return how dense the top of the whole scope is in each kind of matrix of each layer, over all."""
    found = selection.read(context, _WHOLE)
    dense = regions.total(found) / found.size
    values = {
        roles.label(path): {
            f"{layer}": held / math.prod(found.leaves()[path].shape[1:]) / dense for layer, held in enumerate(counts)
        }
        for path, counts in geometry.counts(found).items()
    }
    title = "Where the highest scores of the whole scope lie"
    return tables.heatmap(title, "layer", values, "times as dense as in all", format="number")


STUDY = study.Study(_steps, _show, _check)
