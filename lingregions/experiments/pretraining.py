"""Pre-training from scratch on many languages: a small model of one's own, and what it knows of each language.

Texts are blended by temperature: a language's share is its number of samples to the power `train.temperature`, so that
small languages are read more often than they are long, and no order of languages can matter. The model is evaluated at
sample counts in every language, in bits per byte, beside a model of byte 5-grams that counted the same text: what a
network must beat to know more of a language than its spelling.
"""

import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from lingregions import train
from lingregions import tree as trees
from lingregions.corpus import languages as registry
from lingregions.corpus import ngram
from lingregions.experiments import claims, learning, measurement, step, study, tables
from lingregions.experiments.context import Context, prepare
from lingregions.intervention import UNTOUCHED, Intervention
from lingregions.models import source as sources
from lingregions.run import Run

_NAME = "pretraining"
_COUNTED = "ngram"  # the mark, and the file under done/, of the 5-grams


def _check(settings: ConfigDict) -> None:
    """Refuse a schedule that does not fit, and a temperature that is none.

    Raises:
      ValueError: says which.
    """
    if settings.train.folders not in ("", "float32", "bfloat16"):
        raise ValueError(f"train.folders is {settings.train.folders!r}; it is a dtype, float32 or bfloat16, or empty")
    if not 0 <= settings.train.temperature <= 1:
        raise ValueError(f"train.temperature is {settings.train.temperature}; it lies between 0 (equal shares) and 1")
    learning.recipe(settings)


def _training(settings: ConfigDict) -> Intervention:
    return Intervention(kind="pretrained", seed=settings.seed)


def _steps(settings: ConfigDict, config: Any) -> list[step.Step]:
    """Open the texts, count their 5-grams, evaluate the random model, train."""
    languages = settings.train.languages
    return [
        step.Step("texts", f"training text of {len(languages)} languages", _open),
        step.once(_COUNTED, f"{ngram.ORDER}-grams of the bytes of the same text", _COUNTED, _count),
        step.measure(settings, []),
        learning.step(settings, config, _training(settings), f"{len(languages)} languages", _learn),
    ]


def _open(context: Context) -> None:
    """Open what is trained on, before the first hour of work."""
    _feed(context)


def _feed(context: Context) -> train.Feed:
    """Return the blend of all texts, each in the order that the seed names."""
    settings = context.settings
    texts = [context.corpus(code, "train") for code in settings.train.languages]
    shares = tuple(float(len(each)) ** settings.train.temperature for each in texts)
    return train.Blend(tuple(train.Order(each, settings.seed) for each in texts), shares, settings.seed)


def _learn(context: Context) -> None:
    training = _training(context.settings)

    def keep(count: int, params: trees.Tree) -> None:
        """Write the model at a count as a folder, again where a run before its kill has written it."""
        if context.settings.train.folders:
            folder = context.run.path("models", str(count))
            shutil.rmtree(folder, ignore_errors=True)
            learning.export(context, params, folder, context.settings.train.folders)

    if (
        learning.fit(context, training, lambda: learning.trainer(context), lambda: _feed(context), keep=keep)
        is not None
    ):
        learning.finish(context, training)


def _count(context: Context) -> step.Found:
    """Return the bits per byte of each language by the 5-grams of its training text."""
    run, settings = context.run, context.settings
    bits = {}
    with run.progress("5-grams", len(settings.train.languages), "languages") as bar:
        for code in settings.train.languages:
            trained, read = (_bytes(context, code, use) for use in ("train", "evaluate"))
            bits[code] = ngram.bits_per_byte(trained, read)
            bar.advance(1)
            run.check()
    return (), {"bits": bits}


def _bytes(context: Context, code: str, use: str) -> list[bytes]:
    """Return the documents of a text as its tokens spell them: of a byte-level vocabulary the very bytes."""
    corpus, decode = context.corpus(code, use), context.model.tokenizer.decode
    places = ((corpus.tokens.offsets[number], corpus.tokens.offsets[number + 1]) for number in corpus.chosen.tolist())
    return [decode(corpus.tokens.ids[start:stop]).encode() for start, stop in places]


def _export(settings: ConfigDict, run: Run, training: str, folder: Path, dtype: str) -> None:
    """Write the newest checkpoint as a Hugging Face folder; arguments as of `study.Study.export`.

    Raises:
      ValueError: there is no such training.
      RunError: its checkpoint is not there.
    """
    own = _training(settings).name
    if training != own:
        raise ValueError(f"the run has no training {training!r}; it has {own}")
    context = prepare(settings, run)
    state = train.load(run, training, learning.trainer(context))
    learning.export(context, state.params, folder, dtype)


# --- what is shown ----------------------------------------------------------------------------------------------------


def _show(context: Context) -> dict[str, Any]:
    """Return the table of languages, their bits per byte on the way, and the verdict."""
    settings, training = context.settings, _training(context.settings)
    rows, counted = measurement.results(context), (context.run.done(_COUNTED) or {})["bits"]
    names = {count: learning.after(training, count).name for count in learning.reached(settings)}
    begin, bits = (
        {code: rows[name, code]["bits_per_byte"] for code in settings.evaluate.languages}
        for name in (UNTOUCHED.name, names[settings.train.samples])
    )
    named = {code: registry.LANGUAGES[code].name for code in {*bits, *counted}}
    better = [code for code, each in counted.items() if bits[code] < each]
    feed = _feed(context)
    assert isinstance(feed, train.Blend)
    which, _ = feed.locate(0, settings.train.samples)
    read = np.bincount(which, minlength=len(feed.feeds)).tolist()
    columns = {
        "language": "text",
        "samples there": "count",
        "samples read": "count",
        "bits per byte": "number",
        f"{ngram.ORDER}-grams": "number",
    }
    table = [
        [
            named[code],
            len(context.corpus(code, "train")),
            times,
            tables.finite(bits[code]),
            counted[code],
        ]
        for code, times in zip(settings.train.languages, read, strict=True)
    ]
    note = f"{settings.train.samples:,} samples of {settings.data.length} tokens; evaluated on other text."
    reached = {0: begin} | {
        count: {code: rows[name, code]["bits_per_byte"] for code in bits} for count, name in names.items()
    }
    means = {count: _mean([each[code] for code in counted]) for count, each in reached.items()}
    level = _mean(counted.values())
    grid = {named[code]: {f"{count:,}": each[code] for count, each in reached.items()} for code in bits}
    series = {
        "the model": [(count, [tables.finite(mean), None, None]) for count, mean in means.items()],
        f"{ngram.ORDER}-grams": [(count, [level, None, None]) for count in means],
    }
    upwards = "bits per byte, mean over languages"
    return {
        "languages": tables.table("What it knows of each language", columns, table, note),
        "learning": tables.curve(
            "Bits per byte while training", "samples trained on", series, upwards, note=note, format="number"
        ),
        "progress": tables.heatmap(
            "Bits per byte by language", "samples", grid, "bits per byte", note=note, format="number"
        ),
        "verdict": claims.verdict(
            _NAME,
            "Does it know the languages?",
            scratch=sources.is_random(settings.model.source),
            samples=settings.train.samples,
            length=settings.data.length,
            languages=len(counted),
            better=len(better),
            worse=[named[code] for code in counted if code not in better],
            mean=means[settings.train.samples],
            counted=level,
            order=ngram.ORDER,
        ),
    }


def _mean(values: Collection[float]) -> float:
    return sum(values) / len(values)


STUDY = study.Study(_steps, _show, _check, _export)
