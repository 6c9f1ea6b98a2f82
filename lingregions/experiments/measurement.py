"""Measurements: one intervention in one language - what the model then loses, and the proof that it was measured.

A finished measurement is a row of results.csv and a file of sums by segment, whose checksum is in the row: a run that
was killed goes on where it stopped, and what was damaged is measured again. Costs at most one forward pass a token; the
parameters are changed in place and put back.
"""

import contextlib
import csv
import functools
import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from lingregions import evaluate
from lingregions import tree as trees
from lingregions.experiments.context import Context, slug
from lingregions.intervention import COLUMNS, UNTOUCHED, Intervention
from lingregions.run.progress import Bar

# results.csv: one row per (intervention, language).
_KEYS = ("experiment", "intervention", "language")
_RESULTS: dict[str, type] = {
    **dict.fromkeys(_KEYS, str),
    "nll_nats": float,
    "tokens": int,
    "bytes": int,
    "perplexity": str,
    "bits_per_byte": float,
    "segments": int,
    "checksum": str,
    **dict.fromkeys(COLUMNS, str),
}


def measure(context: Context, interventions: Sequence[Intervention], base: Intervention = UNTOUCHED) -> None:
    """Evaluate every language under every intervention, the untouched model first.

    One compiled program serves all; a batch may hold samples of several languages.

    Args:
      context: the model and its texts; its parameters are the same bits afterwards.
      interventions: what is measured beside the untouched model; none twice.
      base: what the untouched model is called, where it is a checkpoint.

    Raises:
      ValueError: two interventions are the same, or have one name.
    """
    everything = [base, *interventions]
    names = [each.name for each in everything]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"two interventions are called {twice[0]!r}")
    missing, settings = {each: remember(context, each) for each in everything}, context.settings
    known = context.model.series(_tokens(context, settings.evaluate.languages), settings.machine.kept_states)
    batch = settings.machine.evaluate_batch
    beside = context.model.together(everything, known, settings.data.length, batch)
    with _progress(context, [code for codes in missing.values() for code in codes]) as bar:
        for each, languages in missing.items():
            texts = {code: context.samples(code, "evaluate") for code in languages}
            if languages:
                with context.model.under(each, texts, known, settings.evaluate.segment, batch, beside[each]) as found:
                    _write(context, each, found, texts, bar)


def observe(context: Context, intervention: Intervention, params: trees.Tree) -> None:
    """Evaluate every language under parameters that were made elsewhere, by training; what is finished is skipped."""
    if missing := remember(context, intervention):
        settings, texts = context.settings, {code: context.samples(code, "evaluate") for code in missing}
        with _progress(context, missing) as bar:
            found = context.model.losses(
                texts, settings.evaluate.segment, settings.machine.evaluate_batch, intervention.bounds, params
            )
            _write(context, intervention, found, texts, bar)


def remember(context: Context, intervention: Intervention) -> list[str]:
    """Count an intervention among the measured ones; returns the languages that are missing or not sound."""
    context.measured[intervention] = functools.partial(_segments, context, intervention.name)
    rows = results(context)
    return [
        code
        for code in context.settings.evaluate.languages
        if (intervention.name, code) not in rows or not _intact(context, rows[intervention.name, code])
    ]


def results(context: Context) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the rows of results.csv by (name of the intervention, language)."""
    context.run.table("results", _RESULTS, _KEYS)
    return {(row["intervention"], row["language"]): row for row in context.run.rows("results")}


def _progress(context: Context, languages: Sequence[str]) -> contextlib.AbstractContextManager[Bar]:
    """Return the bar of an evaluation of so many texts."""
    return context.run.progress("evaluate", _tokens(context, languages), "tokens")


def _tokens(context: Context, languages: Sequence[str]) -> int:
    """Return the tokens of the texts to evaluate, padding included."""
    return sum(len(context.samples(code, "evaluate")[1]) for code in languages) * int(context.settings.data.length)


def _write(
    context: Context,
    intervention: Intervention,
    found: Iterable[tuple[str, evaluate.Result]],
    texts: Mapping[str, tuple[Any, np.ndarray]],
    bar: Bar,
) -> None:
    """Write the loss of each language under one intervention as soon as it is known."""
    run, name = context.run, intervention.name
    for code, result in found:
        if why := evaluate.doubt(result, context.model.config.vocab):
            run.note(f"{name}, {code}: {why}; no figure of it says what language a region carries")
        checksum = _store(context, name, code, result.segments)
        run.log(event="evaluated", intervention=name, language=code, nll_nats=result.nll)
        run.add("results", _row(context.settings.experiment, intervention, code, result, checksum))
        bar.advance(len(texts[code][1]) * context.settings.data.length)
        run.check()


def _file(intervention: str, language: str) -> str:
    """Return the file of a measurement: the sums of its segments."""
    return f"segments/{slug(intervention)}/{language}.csv"


def _store(context: Context, name: str, language: str, sums: evaluate.Segments) -> str:
    """Write the sums of a measurement by segment; returns their checksum."""
    lines = [",".join(sums._fields)]
    lines += [",".join(map(repr, each)) for each in zip(*(column.tolist() for column in sums), strict=True)]
    content = "\n".join(lines) + "\n"
    context.run.write(_file(name, language), content)
    return _checksum(content.encode())


def _checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _intact(context: Context, row: Mapping[str, Any]) -> bool:
    """Return whether the segments of a finished measurement are there and are what was measured; notes it if not."""
    name = _file(row["intervention"], row["language"])
    path = context.run.path(name)
    sound = context.run.agree(path.exists() and _checksum(path.read_bytes()) == row["checksum"])
    if not sound:
        context.run.note(f"{name} is gone or changed; it is measured again")
    return bool(sound)


def _segments(context: Context, intervention: str, language: str) -> evaluate.Segments:
    """Return the sums by segment of a finished measurement."""
    path = context.run.path(_file(intervention, language))
    rows = list(csv.reader(path.read_text().splitlines()))[1:] if jax.process_index() == 0 else []
    number, nll, tokens, sizes = zip(*context.run.agree(rows), strict=True)
    return evaluate.Segments(
        np.asarray(number, np.int64),
        np.asarray(nll, np.float64),
        np.asarray(tokens, np.int64),
        np.asarray(sizes, np.int64),
    )


def _row(
    experiment: str, intervention: Intervention, language: str, found: evaluate.Result, checksum: str
) -> dict[str, Any]:
    """Return one line of results.csv."""
    return {
        "experiment": experiment,
        "intervention": intervention.name,
        "language": language,
        "nll_nats": found.nll,
        "tokens": found.tokens,
        "bytes": found.bytes,
        "perplexity": evaluate.perplexity(found.nats),
        "bits_per_byte": found.bits if math.isfinite(found.nll) else math.nan,
        "segments": len(found.segments.number),
        "checksum": checksum,
        **intervention.columns(),
    }
