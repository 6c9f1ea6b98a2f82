"""Scores of a run: gathered in one pass over each language, saved under scores/, read back and combined.

A pass resumes inside a language: its resume point is the sums so far and one integer. Costs what `scoring` costs.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax

from lingregions import scoring
from lingregions import tree as trees
from lingregions.experiments.context import Context
from lingregions.models import roles
from lingregions.regions import Provenance
from lingregions.scores import Scores, combine


class Snapshot(NamedTuple):
    """What scoring has gathered after `position` samples of the order: sums over `tokens` targets of `nll` nats."""

    position: int
    sums: scoring.Sums
    tokens: int
    nll: float


def gather(context: Context, language: str, start: int, stop: int, stops: Sequence[int] = ()) -> Iterator[Snapshot]:
    """Sum up the samples start .. stop of a language's order, and yield at each of `stops` and at the end.

    The resume point is the sums and one integer, saved every `machine.save_seconds` and when a signal asks to stop;
    a resumed pass yields only the snapshots that are still ahead. Use the sums before asking for the next snapshot.
    """
    run, scorer, params, resume = context.run, context.scorer, context.model.params, _resume(language, start, stop)
    corpus, positions = context.samples(language, "score")
    header = run.header(resume)
    if header is None:
        at = Snapshot(start, scorer.start(params), 0, 0.0)
    else:
        at = Snapshot(header["position"], run.load(resume, scorer.shapes), header["tokens"], header["nll"])
        run.note(f"scoring {language} goes on from sample {at.position:,} of {stop:,}")
    begin, saved, group = at.position, time.monotonic(), scorer.group(at.sums)
    with run.progress(f"score {language}", (stop - at.position) * corpus.length, "tokens") as bar:
        for goal in sorted({*(each for each in stops if start < each < stop), stop}):
            while at.position < goal:
                # A group never reaches over a snapshot: the snapshot holds exactly its number of samples.
                end = min(at.position + group, goal)
                batch = corpus.batch(positions[at.position : end])
                try:
                    sums, tokens, nll = scorer.add(params, at.sums, batch, context.model.place)
                except FloatingPointError as error:
                    raise FloatingPointError(f"{language}, samples {at.position:,} to {end - 1:,}: {error}") from error
                bar.advance((end - at.position) * corpus.length)
                at = Snapshot(end, sums, at.tokens + tokens, at.nll + nll)
                due = run.agree(time.monotonic() - saved > context.settings.machine.save_seconds) or run.stopping()
                if at.position < goal and due:
                    run.save(resume, at.sums, {"position": at.position, "tokens": at.tokens, "nll": at.nll})
                    saved = time.monotonic()
                if at.position < goal:
                    run.check()
            if header is None or begin < goal:
                yield at


def discard(context: Context, language: str, start: int, stop: int) -> None:
    """Remove the resume point of a pass whose results are saved."""
    context.run.discard(_resume(language, start, stop))


def _resume(language: str, start: int, stop: int) -> str:
    return f"resume/{language}-{start}-{stop}"


def count(context: Context, language: str) -> int:
    """Return how many samples of a language are scored: as many as the config says, or as there are."""
    return len(context.samples(language, "score")[1])


def score(context: Context, language: str, beside: Sequence[str] = ()) -> None:
    """Score one language and save the scores as `scores/<language>`; resumes inside the language.

    Snapshots at the sample counts of `score.snapshots` are saved beside it, as `scores/<language>-<samples>`.

    Args:
      context: the model and its texts.
      language: whose text is read.
      beside: rules of the same pass whose scores are saved too, as `<rule>/<language>`.
    """
    run, mark = context.run, f"score-{language}"
    if run.done(mark) is None:
        stop, files = count(context, language), [f"scores/{language}"]
        for at in gather(context, language, 0, stop, context.settings.score.snapshots):
            own = finish(context, language, at)
            save(context, own, files[0] + ("" if at.position == stop else f"-{at.position}"))
        for rule in beside:
            files.append(f"{rule}/{language}")
            save(context, finish(context, language, at, rule), files[-1])
        run.finish(mark, *files, **own.header())
        discard(context, language, 0, stop)
    run.check()


def finish(context: Context, language: str, at: Snapshot, rule: str | None = None) -> Scores:
    """Return the scores of a snapshot by a rule, the definition's own by default."""
    definition = dataclasses.replace(context.definition, rule=rule or context.definition.rule)
    values = context.scorer.finish(context.model.params, at.sums, at.tokens, rule)
    counts = {"samples": [at.position], "seed": context.settings.seed, "tokens": at.tokens, "nll": at.nll}
    return context.model.scores(values, definition, context.corpus(language, "score"), **counts)


def save(context: Context, scores: Scores, name: str) -> None:
    """Save the scores of a language, in the dtype of their definition, with a header that says what they are."""
    values = jax.tree.map(lambda leaf: leaf.astype(scores.definition.dtype), scores.values)
    context.run.save(name, values, scores.header())


def read(context: Context, name: str) -> Scores:
    """Return saved scores by their name, on the shards of the parameters."""
    scope, header = context.definition.scope, context.run.header(name)
    values = context.run.load(name, roles.restrict(context.model.shapes, scope))
    assert header is not None  # `load` has seen to it
    return Scores.read(values, header, context.model.declared(scope), context.model)


def combined(context: Context, normalised: bool | None = None, folder: str = "scores") -> Scores:
    """Return the scores summed over the scored languages, one in memory at a time: see `scores.combine`.

    Args:
      context: after the languages were scored.
      normalised: whether each matrix of a language is scaled to the same sum; None: as the definition says.
      folder: of the scores; another rule's lie in the folder of its name.
    """
    return combine((read(context, f"{folder}/{code}") for code in context.settings.score.languages), normalised)


def _shapes(context: Context) -> Scores:
    """Return what random regions are drawn from: they need no values, and have read no text."""
    model, scope = context.model, context.definition.scope
    known = Provenance(score_scope=scope, model=model.fingerprint, tokenizer=model.tokenizer.fingerprint)
    return Scores(model.shapes, known.replace(**model.declared(scope)))


# Name of a ranking -> what regions are selected from, beside the languages by their codes.
_RANKINGS: dict[str, Callable[[Context], Scores]] = {
    "combined": combined,
    "nats": functools.partial(combined, normalised=False),
    "magnitude": lambda context: context.model.magnitudes(context.settings.select.scope),
    "shapes": _shapes,
}


def ranking(context: Context, name: str) -> Scores:
    """Return what regions are selected from; the last one is kept at hand.

    Args:
      context: after the languages were scored.
      name: a key of `_RANKINGS`, or a scored language.
    """
    if name not in context.rankings:
        context.rankings.clear()  # one at a time: each is as large as the model
        make = _RANKINGS.get(name) or functools.partial(read, name=f"scores/{name}")
        context.rankings[name] = make(context)
    return context.rankings[name]


def values(context: Context, name: str) -> trees.Tree:
    """Return the values of a ranking in the scope of selection."""
    return roles.restrict(ranking(context, name).values, context.settings.select.scope)
