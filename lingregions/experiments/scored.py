"""Scores of a run: gathered in one pass over each language, saved under scores/, read back and combined.

A pass resumes inside a language: its resume point is the sums so far and one integer. Costs what `scoring` costs.
"""

import dataclasses
import functools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from lingregions import scoring
from lingregions import tree as trees
from lingregions.experiments.context import Context
from lingregions.models import roles
from lingregions.regions import Provenance


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


def facts(context: Context, language: str, at: Snapshot) -> dict[str, Any]:
    """Return all that decides the scores of a snapshot, for headers."""
    counts = {"samples": at.position, "seed": context.settings.seed, "tokens": at.tokens, "nll": at.nll}
    return context.model.header(context.definition, context.corpus(language, "score"), **counts)


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
            save(context, files[0] + ("" if at.position == stop else f"-{at.position}"), language, at)
        for rule in beside:
            files.append(f"{rule}/{language}")
            found = context.scorer.finish(context.model.params, at.sums, at.tokens, rule)
            run.save(files[-1], found, facts(context, language, at))
        run.finish(mark, *files, **facts(context, language, at))
        discard(context, language, 0, stop)
    run.check()


def save(context: Context, name: str, language: str, at: Snapshot) -> None:
    """Save the scores of a snapshot under a name, with a header that says what they are."""
    values = context.scorer.finish(context.model.params, at.sums, at.tokens)
    context.run.save(name, values, facts(context, language, at))


def _load(context: Context, language: str, folder: str = "scores") -> trees.Tree:
    """Return the saved scores of a language, on the shards of the parameters."""
    like = roles.restrict(context.model.shapes, context.definition.scope)
    found: trees.Tree = context.run.load(f"{folder}/{language}", like)
    return found


def combine(context: Context, normalised: bool | None = None, folder: str = "scores") -> trees.Tree:
    """Return the scores summed over the scored languages, one in memory at a time.

    Args:
      context: after the languages were scored.
      normalised: whether each matrix of a language is scaled to the same sum; None: as the definition says. Sums in
        nats, which compare between matrices, are not.
      folder: of the scores; another rule's lie in the folder of its name.
    """
    total: trees.Tree | None = None
    scaled = context.definition.normalised if normalised is None else normalised
    for language in context.settings.score.languages:
        total = scoring.combine(total, _load(context, language, folder), scaled)
    assert total is not None  # `study.check` has seen to it
    return total


def magnitudes(context: Context) -> trees.Tree:
    """Return |theta| in the scope of selection."""
    part = roles.restrict(context.model.params, context.settings.select.scope)
    return trees.transform(lambda _, theta: jnp.abs(theta), part)


# Name of a ranking -> what regions are selected from, beside the languages by their codes.
_RANKINGS: dict[str, Callable[[Context], trees.Tree]] = {
    "combined": combine,
    "nats": functools.partial(combine, normalised=False),
    "magnitude": magnitudes,
    "shapes": lambda context: context.model.shapes,
}


def ranking(context: Context, name: str, scope: str = "") -> trees.Tree:
    """Return what regions are selected from, in the scope of selection (or another); the last one is kept at hand.

    Args:
      context: after the languages were scored.
      name: a key of `_RANKINGS`, or a scored language.
      scope: in place of `select.scope`.
    """
    if name not in context.rankings:
        context.rankings.clear()  # one at a time: each is as large as the model
        context.rankings[name] = _RANKINGS[name](context) if name in _RANKINGS else _load(context, name)
    return roles.restrict(context.rankings[name], scope or context.settings.select.scope)


def provenance(context: Context, languages: Sequence[str], rule: str | None = None, scope: str = "") -> Provenance:
    """Return what is known of a region before it is selected: model, tokenizer, text and score (another `rule`'s)."""
    definition = dataclasses.replace(context.definition, rule=rule or context.definition.rule)
    return Provenance(
        score=json.dumps(dataclasses.asdict(definition), sort_keys=True),
        languages=tuple(languages),
        score_scope=definition.scope,
        select_scope=scope or context.settings.select.scope,
        samples=tuple(count(context, language) for language in languages),
        data_seed=context.settings.seed if languages else None,
        model=context.model.fingerprint,
        tokenizer=context.model.tokenizer.fingerprint,
        data=" ".join(context.corpus(language, "score").fingerprint for language in languages),
        axes=context.model.axes(definition.scope),
    )
