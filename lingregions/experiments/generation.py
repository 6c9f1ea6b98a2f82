"""Generation: what a model writes after the first tokens of a text, before and after something was done to it.

A loss says how surprised the model is; what it then writes shows how it is broken: silence, one token for ever, another
language. Greedy, so that nothing but the model decides. Costs a pass over the prompts, and one read of the parameters a
token.
"""

import json
from collections.abc import Sequence
from typing import Any

from lingregions import generate
from lingregions.experiments import tables
from lingregions.experiments.context import Context, slug
from lingregions.intervention import UNTOUCHED, Intervention


def write(context: Context, intervention: Intervention) -> None:
    """Write what the model says after each prompt, generations/<intervention>.json, unless it is there."""
    run, model, file = context.run, context.model, _file(intervention)
    mark = f"generation-{slug(intervention.name)}"
    if run.done(mark) is None:
        texts = _prompts(context)
        with model.applied(intervention):
            found = generate.greedy(
                model.config,
                model.compute,
                model.params,
                # Every part of the batch axes gets as many: the first prompt stands in for what lacks.
                [*texts, *texts[:1] * (-len(texts) % model.rows)],
                context.settings.continuation.tokens,
                model.mesh,
                bounds=intervention.bounds,
            )
        said = [model.tokenizer.decode(ids) for ids in found[: len(texts)]]
        run.write(file, json.dumps(said, ensure_ascii=False) + "\n")
        run.finish(mark, file)
    run.check()


def table(context: Context, interventions: Sequence[Intervention]) -> dict[str, Any]:
    """Return the table of texts: the prompts, what the untouched model writes, and what interventions make of it.

    Beside what an intervention writes stands its effect over all languages.
    """
    chosen, found = context.settings.continuation, context.effects()
    rows = [["(the prompt)", "", *(context.model.tokenizer.decode(ids) for ids in _prompts(context))]]
    for each in (UNTOUCHED, *interventions):
        texts = context.run.agree(json.loads(context.run.path(_file(each)).read_text()))
        rows.append([each.name, "" if each is UNTOUCHED else tables.times(found, each), *texts])
    return {
        "kind": "texts",
        "title": "What the model writes",
        "note": f"Greedy continuation of the first {chosen.prompt} tokens of the evaluated text by {chosen.tokens}.",
        "columns": ["model", "times the perplexity", *chosen.languages],
        "rows": rows,
    }


def _prompts(context: Context) -> list[list[int]]:
    """Return the first tokens of the evaluated text of each language of `continuation.languages`."""
    chosen = context.settings.continuation
    texts = [context.corpus(language, "evaluate").batch([0]) for language in chosen.languages]
    return [text.tokens[0, : chosen.prompt].tolist() for text in texts]


def _file(intervention: Intervention) -> str:
    return f"generations/{slug(intervention.name)}.json"
