"""Other probes of the same question: language-specific neurons, what the residual stream says, texts that are changed.

Three readings beside the regions. *Neurons*: those that LAPE calls a language's own (`neurons`) are removed, as many
parameters as the MLPs' part of its monolingual region holds; so are that part, and as many neurons of the same layers
that are as often active; and how much of each language's part lies in each language's neurons, over chance. *A linear
probe* (ridge regression in closed form, fitted on every other segment of text) tells the language of a token from the
residual stream, in the untouched model, without the core, and without a random region matched to it. *Changed texts*:
the languages are scored again on shuffled words, on misspelt ones, in Latin letters (`anyascii`) and in letters of a
script that none of them has, and the regions are held against those of the text as it is, beside that text cut anew and
the overlap that two halves of the samples have. Costs six scoring passes more than `monolingual_regions`.
"""

import functools
import unicodedata
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from lingregions import mesh as meshes
from lingregions import regions, scores, statistics
from lingregions.effects import Effects
from lingregions.evaluate import Segments
from lingregions.experiments import claims, neurons, selection, step, study, tables
from lingregions.experiments.context import Context
from lingregions.intervention import UNTOUCHED, Intervention
from lingregions.regions import Region, reliability
from lingregions.statistics import Estimate

_HALVES = "two halves"
_MISSPELT = 0.1  # of the letters
# Letters of Georgian and of Yi, which none of the thirty languages is written in; few where few are needed.
_SCRIPTS = tuple("".join(map(chr, range(*ends))) for ends in ((0x10D0, 0x10F1), (0xA000, 0xA48D)))
_PENALTY = 1e-2  # of the ridge, for each token


def _shuffle(text: str, rng: np.random.Generator) -> str:
    """Return the words of a text in another order; the characters, where it is written without spaces."""
    words = text.split()
    parts, glue = (words, " ") if len(text) < 20 * len(words) else (list(text), "")
    return glue.join(parts[place] for place in rng.permutation(len(parts)))


def _misspell(text: str, rng: np.random.Generator) -> str:
    """Return a text in which letters, `_MISSPELT` of them, are others of the same text: the script stays."""
    letters = [each for each in text if each.isalpha()] or [" "]
    return "".join(
        letters[rng.integers(len(letters))] if each.isalpha() and rng.random() < _MISSPELT else each for each in text
    )


def _transliterate(text: str, rng: np.random.Generator) -> str:
    """Return a text in the letters of ASCII, by the sounds or names of its own."""
    from anyascii import anyascii  # tables of all scripts, for one change of texts

    return anyascii(text)


def _disguise(text: str, rng: np.random.Generator) -> str:
    """Return a text in another script: each letter is always the same letter of it, which says nothing of the sound."""
    plain = unicodedata.normalize("NFD", text.lower())
    own = sorted({each for each in plain if each.isalpha()})
    others = next((script for script in _SCRIPTS if len(script) >= len(own)), None)
    if others is None:
        raise ValueError(f"a text has {len(own)} different letters, and no other script has so many")
    return plain.translate(dict(zip(map(ord, own), rng.permutation(list(others)), strict=False)))


_CHANGES: dict[str, Callable[[str, np.random.Generator], str]] = {
    "as it is": lambda text, rng: text,  # what cutting the samples anew does by itself
    "shuffled words": _shuffle,
    "misspelt words": _misspell,
    "transliteration": _transliterate,
    "another script": _disguise,
}


def _check(settings: ConfigDict) -> None:
    """Refuse what cannot be compared.

    Raises:
      ValueError: says which.
    """
    if lacking := sorted(set(settings.score.languages) - set(settings.evaluate.languages)):
        raise ValueError(f"{', '.join(lacking)} is scored but not evaluated: add it to evaluate.languages")
    if len(settings.score.languages) < 2:
        raise ValueError("score.languages names one language: a neuron is specific to one of several")
    if settings.score.samples == 1:
        raise ValueError("score.samples is 1: halves need two or more")
    for kind in settings.probes.texts:
        if kind not in _CHANGES:
            raise ValueError(f"there is no change of texts {kind!r}; probes.texts may hold {', '.join(_CHANGES)}")


def _removal(kind: str, language: str) -> Intervention:
    """Return the removal of a language's neurons, of as much of its own region, or of as many neurons as active."""
    which, part = _REMOVED[kind]
    return Intervention(kind=which, region_language=language, part=part, perturbation="zero")


_REMOVED = {"neurons": ("lape", "neurons"), "region": ("monolingual", "mlp"), "twins": ("matched", "neurons")}


def _top(settings: ConfigDict) -> Intervention:
    return Intervention(kind="top", fraction=settings.select.fractions[0], perturbation="zero")


def _random(settings: ConfigDict) -> Intervention:
    return Intervention(kind="matched", fraction=settings.select.fractions[0], seed=settings.seed, perturbation="zero")


def _steps(settings: ConfigDict, config: Any) -> list[step.Step]:
    """Score, select, find the neurons, remove, fit, and score again."""
    languages, fraction = settings.score.languages, settings.select.fractions[0]
    core, control = _top(settings).name, _random(settings).name
    wanted = selection.monolingual(settings) | {
        core: selection.ranked(core, fraction),
        control: selection.matched(control, fraction, core, settings.seed),
    }
    for code in languages:
        wanted[_removal("region", code).name] = selection.Selection(
            fraction, functools.partial(_of_mlps, language=code)
        )
    removals = [_removal(kind, code) for code in languages for kind in _REMOVED]
    contrasts = [
        (_removal("neurons", code), _removal(kind, code)) for code in languages for kind in ("region", "twins")
    ]
    read = settings.score.samples * len(languages) or None
    cost = {"samples": read, "tokens": step.tokens(settings, read)}
    room = 2 * len(languages) * step.region_bytes(config, neurons.SCOPE, fraction)
    return [
        *step.score(settings, config),
        step.select(settings, config, wanted),
        step.once("neurons", "where each neuron is active", "neurons", _find, bytes=room, **cost),
        step.measure(settings, removals, contrasts, selection.named),
        step.once("probe", "the language of a token, from the residual stream", "probe", _probe),
        *(
            step.once(f"score {kind}", "the same again", _mark(kind), functools.partial(_change, kind=kind), **cost)
            for kind in (_HALVES, *settings.probes.texts)
        ),
    ]


def _mark(kind: str) -> str:
    """Return the mark of a change of texts."""
    return f"texts-{kind.replace(' ', '-')}"


def _of_mlps(context: Context, language: str) -> Region:
    """Return what a language's own region holds of the MLPs."""
    own = selection.read(context, f"monolingual {language}")
    return regions.restrict(own, neurons.SCOPE, name=_removal("region", language).name)


# --- neurons ----------------------------------------------------------------------------------------------------------


def _find(context: Context) -> step.Found:
    """Find the neurons of each language, as many as have the size of its region's part, and their twins."""
    languages = list(context.settings.score.languages)
    active, files = neurons.probabilities(context), list[str]()
    facts = dict[str, dict[str, float]]()
    chosen = []
    for place, code in enumerate(languages):
        size = regions.total(selection.read(context, _removal("region", code).name))
        chosen.append(neurons.specific(active, place, max(1, round(size / (3 * context.model.config.embed)))))
    for place, code in enumerate(languages):
        own, others = chosen[place], np.delete(active, place, 0).mean(0)
        twins = neurons.twins(active[place], own, np.any(chosen, axis=0))
        facts[code] = {"count": int(own.sum())}
        for kind, each in (("neurons", own), ("twins", twins)):
            name = _removal(kind, code).name
            what = f"all parameters of {each.sum()} {'neurons by LAPE' if kind == 'neurons' else 'others as active'}"
            files.append(selection.save(context, neurons.region(context, each, name, what)))
            facts[code] |= {kind: float(active[place][each].mean()), f"{kind} elsewhere": float(others[each].mean())}
    return files, {"found": facts}


def _density(region: np.ndarray, chosen: np.ndarray, seed: int) -> tables.Cell:
    """Return how much denser a region is in some neurons than in all, with the interval of a bootstrap over layers.

    Args:
      region: int64 [3, L, F], what it holds of each neuron (`neurons.held`).
      chosen: bool [L, F].
      seed: of the bootstrap.
    """
    inside = np.where(chosen, region.sum(0), 0).sum(1) * chosen.shape[1]
    return _rate(inside, region.sum((0, 2)) * chosen.sum(1), seed).cell


def _rate(amounts: np.ndarray, sizes: np.ndarray, seed: int) -> Estimate:
    """Return a sum of amounts over a sum of sizes, each [n], with the interval of a bootstrap over the n."""
    number, none = np.arange(len(sizes)), np.zeros(len(sizes))
    kept = sizes > 0
    sides = [
        {"": Segments(number[kept], each[kept].astype(float), sizes[kept], number[kept])} for each in (amounts, none)
    ]
    return statistics.estimate(statistics.compare(sides[:1], sides[1:], seed=seed)[""])


# --- the linear probe -------------------------------------------------------------------------------------------------


def _classify(train: np.ndarray, labels: np.ndarray, test: np.ndarray, classes: int) -> np.ndarray:
    """Return the classes that ridge regression on one-hot targets, fitted in closed form, gives: int64 [m].

    Args:
      train: float64 [n, D]; each feature is scaled to mean 0 and deviation 1 over it.
      labels: int64 [n], below `classes`.
      test: float64 [m, D].
      classes: number of them.
    """
    mean, scale = train.mean(0), train.std(0) + 1e-9
    known, asked = (train - mean) / scale, (test - mean) / scale
    wanted = np.eye(classes)[labels]
    weights = np.linalg.solve(
        known.T @ known + _PENALTY * len(known) * np.eye(known.shape[1]), known.T @ (wanted - wanted.mean(0))
    )
    return np.asarray((asked @ weights + wanted.mean(0)).argmax(1))


class _Tokens(NamedTuple):
    """Tokens of all languages: states [places, n, D], language and segment [n]."""

    states: np.ndarray
    language: np.ndarray
    segment: np.ndarray


def _read(context: Context, places: tuple[int, ...]) -> _Tokens:
    """Return the residual stream under the parameters as they are, at some layers."""
    settings, model = context.settings, context.model
    span, found = settings.evaluate.segment or settings.data.length, []
    for label, code in enumerate(settings.evaluate.languages):
        corpus, positions = context.samples(code, "evaluate")
        for place in np.sort(positions[: settings.probes.samples]):
            batch = corpus.batch([place], model.rows)
            here = np.flatnonzero(batch.segments[0])
            entering = model.stages.before(model.params, model.place(batch), places)
            whole = jax.device_put(entering, meshes.replicated(model.mesh))
            states = np.asarray(whole, np.float64)[:, 0, here]
            segment = place * (-(-corpus.length // span)) + here // span
            found.append(_Tokens(states, np.full(len(here), label), segment))
    return _Tokens(
        *(np.concatenate(each, axis=axis) for each, axis in zip(zip(*found, strict=True), (1, 0, 0), strict=True))
    )


def _errors(tokens: _Tokens, place: int, codes: list[str]) -> dict[str, Segments]:
    """Return the errors of a probe by language and segment: fitted on the even segments, asked of the odd ones."""
    odd = tokens.segment % 2 == 1
    states, (taught, asked) = tokens.states[place], (tokens.language[~odd], tokens.language[odd])
    wrong = _classify(states[~odd], taught, states[odd], len(codes)) != asked
    found = {}
    for label, code in enumerate(codes):
        number, inverse = np.unique(tokens.segment[odd][asked == label], return_inverse=True)
        sums = np.bincount(inverse, wrong[asked == label], len(number))
        found[code] = Segments(number, sums, np.bincount(inverse, minlength=len(number)), np.zeros_like(number))
    return found


def _probe(context: Context) -> step.Found:
    """Keep the accuracy of a probe at some layers, of the untouched model and of two without a region."""
    settings, layers = context.settings, context.model.config.layers
    places, codes = tuple(sorted({round(layers * part / 4) for part in range(5)})), list(settings.evaluate.languages)
    found: dict[str, list[dict[str, Segments]]] = {}
    for each in (UNTOUCHED, _top(settings), _random(settings)):
        with context.model.applied(selection.bound(context, each, selection.named)):
            tokens = _read(context, places)
        found[each.name] = [_errors(tokens, number, codes) for number in range(len(places))]
        context.run.check()
    none = [{code: each._replace(nll=np.zeros(len(each.nll))) for code, each in one.items()} for one in found["base"]]
    return (), {
        "layers": places,
        "accuracy": {
            name: [_share(one, zero, settings.seed) for one, zero in zip(each, none, strict=True)]
            for name, each in found.items()
        },
        "change": {
            name: [_share(one, base, settings.seed, 0) for one, base in zip(each, found["base"], strict=True)]
            for name, each in found.items()
        },
    }


def _share(errors: Mapping[str, Segments], others: Mapping[str, Segments], seed: int, whole: int = 1) -> tables.Cell:
    """Return `whole` minus how many more errors there are, the mean over languages, with its interval."""
    value, low, high = statistics.mean(statistics.compare([errors], [others], seed=seed)).cell
    return [None if each is None else whole - each for each in (value, high, low)]


# --- changed texts ----------------------------------------------------------------------------------------------------


def _texts(context: Context, language: str, kind: str) -> list[list[str]]:
    """Return the scored samples of a language as texts, changed; of two halves one list each."""
    corpus, positions = context.samples(language, "score")
    batch, special = corpus.batch(positions), [corpus.policy.bos_id, corpus.policy.eos_id]
    kept = (np.asarray(batch.segments) != 0) & ~np.isin(batch.tokens, [each for each in special if each is not None])
    texts = [context.model.tokenizer.decode(row[own]) for row, own in zip(np.asarray(batch.tokens), kept, strict=True)]
    if kind == _HALVES:
        return [texts[: len(texts) // 2], texts[len(texts) // 2 :]]
    rng = np.random.default_rng([context.settings.seed, zlib.crc32(language.encode())])
    return [[_CHANGES[kind](text, rng) for text in texts]]


def _change(context: Context, kind: str) -> step.Found:
    """Score all languages on changed texts; keep the overlap with the regions of the texts as they are."""
    settings, model = context.settings, context.model
    data, fraction, scope = settings.data, settings.select.fractions[0], settings.select.scope
    shared, totals = {}, dict[int, scores.Scores]()
    for code in settings.score.languages:
        found = []
        for side, texts in enumerate(_texts(context, code, kind)):
            corpus = model.corpus(texts, code, length=data.length, bos=data.bos or None, eos=data.eos or None)
            own = model.score(
                corpus,
                definition=context.definition,
                samples=min(len(corpus), len(texts)),
                seed=settings.seed,
                batch=settings.machine.score_batch,
            )
            found.append(own.select(fraction, scope=scope))
            totals[side] = scores.add(totals.get(side), own)
            context.run.check()
        shared[code] = _overlap(context, found, f"top {fraction} {code}")
    cores = [each.select(fraction, scope=scope) for each in totals.values()]
    return (), {"languages": shared, "core": _overlap(context, cores, _top(settings).name)}


def _overlap(context: Context, found: list[Region], name: str) -> float:
    """Return the IoU of two regions, or of one with the run's own of that name."""
    return reliability.agree(found[0], found[1] if len(found) > 1 else selection.read(context, name)).iou


# --- what is shown ----------------------------------------------------------------------------------------------------


def _show(context: Context) -> dict[str, Any]:
    """Return the tables of neurons, of their overlap with the regions, of the probe and of the changed texts."""
    settings, run, found = context.settings, context.run, context.effects()
    languages = list(settings.score.languages)
    facts, probe = (run.done("neurons") or {})["found"], run.done("probe") or {}
    specific = {
        kind: {code: statistics.estimate(found.specificity(_removal(kind, code), code)) for code in languages}
        for kind in _REMOVED
    }
    beyond = {
        code: statistics.estimate(found.specificity(_removal("neurons", code), code, _removal("twins", code)))
        for code in languages
    }
    masks = {
        kind: {code: neurons.held(selection.read(context, _removal(kind, code).name)) for code in languages}
        for kind in _REMOVED
    }
    density = {
        kind: {code: _density(masks["region"][code], masks[kind][code][0] > 0, settings.seed) for code in languages}
        for kind in ("neurons", "twins")
    }
    grid = {
        code: {
            other: _density(masks["region"][other], masks["neurons"][code][0] > 0, settings.seed)[0]
            for other in languages
        }
        for code in languages
    }
    texts = {kind: run.done(_mark(kind)) or {} for kind in (_HALVES, *settings.probes.texts)}
    shares = {kind: statistics.student(list(each["languages"].values())) for kind, each in texts.items()}
    removals = {f"{code}: {_WORDS[kind]}": _removal(kind, code) for code in languages for kind in _REMOVED}
    return {
        "neurons": _neurons(found, facts, specific),
        "effect_matrix": tables.by_language(found, removals, "Effect on each language", "removed"),
        "density": _meeting(facts, density),
        "density_by_language": tables.heatmap(
            "Own regions in the neurons of languages",
            "neurons of",
            grid,
            "times as dense as in all neurons",
            format="number",
        ),
        "probe": _accuracies(probe),
        "texts_changed": _changed(texts, shares),
        "verdict": claims.verdict(
            "probes",
            "Do other probes find the same?",
            found,
            removal=_removal,
            codes=languages,
            specific=specific,
            beyond=beyond,
            density=density,
            probe=probe,
            shares=shares,
            cores={kind: each["core"] for kind, each in texts.items()},
            halves=_HALVES,
        ),
    }


_WORDS = {"neurons": "LAPE neurons", "region": "own region in the MLPs", "twins": "neurons as active"}


def _neurons(
    found: Effects, facts: Mapping[str, Any], specific: Mapping[str, Mapping[str, Estimate]]
) -> dict[str, Any]:
    columns = {
        "language": "text",
        "removed": "text",
        "neurons": "count",
        "own perplexity": "factor",
        "own over others": "factor",
    }
    rows = [
        [
            code,
            _WORDS[kind],
            facts[code]["count"] if kind != "region" else None,
            found.cell(_removal(kind, code), language=code),
            specific[kind][code].cell,
        ]
        for code in facts
        for kind in _REMOVED
    ]
    note = (
        "Perplexity of the language as a multiple of the untouched model's, and that over the same of the other "
        "evaluated languages (geometric mean). All three removals of a language are of one size, to a neuron."
    )
    return tables.table("Neurons, regions and neurons as active, removed", columns, rows, note)


def _meeting(facts: Mapping[str, Any], density: Mapping[str, Mapping[str, tables.Cell]]) -> dict[str, Any]:
    columns = {"language": "text", "neurons": "text", "active": "share", "elsewhere": "share", "own region": "interval"}
    rows = [
        [code, _WORDS[kind], each[kind], each[f"{kind} elsewhere"], density[kind][code]]
        for code, each in facts.items()
        for kind in density
    ]
    note = (
        "How often they are active on the tokens of the language, and of the others; and how dense its own region is "
        "in them, over its density in all neurons of the same layers: 1 is chance. Bootstrap over layers."
    )
    return tables.table("Where neurons and regions meet", columns, rows, note)


def _accuracies(probe: Mapping[str, Any]) -> dict[str, Any]:
    series = {name: list(zip(probe["layers"], cells, strict=True)) for name, cells in probe["accuracy"].items()}
    note = (
        "Ridge regression on the residual stream entering a layer, fitted anew for each model on every other segment."
    )
    upwards = "tokens whose language is told, mean over languages"
    return tables.curve("A linear probe for the language", "layer", series, upwards, format="share", note=note)


def _changed(texts: Mapping[str, Any], shares: Mapping[str, tables.Cell]) -> dict[str, Any]:
    columns = {"texts": "text", "IoU of a language's top": "interval", "IoU of the core": "share"}
    rows = [[kind, shares[kind], each["core"]] for kind, each in texts.items()]
    note = (
        "With the regions of the texts as they are, from the same samples, which are cut anew in any case; two halves "
        "are of other text with each other, each of half the samples. Mean over languages, with its interval over them."
    )
    return tables.table("Regions found on changed texts", columns, rows, note)


STUDY = study.Study(_steps, _show, _check)
