"""Continuation: what a model writes after the first tokens of a text, before and after something was done to it.

A loss says how surprised the model is; what it then writes shows how it is broken: silence, one token for ever, another
language. Greedy, so that nothing but the model decides. Costs a pass over the prompts, and one read of the parameters a
token.
"""

import json
from collections.abc import Sequence
from typing import Any

from lingregions import generate
from lingregions import mesh as meshes
from lingregions.experiments import laboratory as lab
from lingregions.experiments.cell import BASE, Arm
from lingregions.experiments.laboratory import Laboratory
from lingregions.experiments.stage import Stage


def write(laboratory: Laboratory, arm: Arm) -> None:
    """Write what an arm's model says after each prompt, continuations/<arm>.json, unless it is there."""
    run, mark = laboratory.run, f"continuation-{lab.slug(arm.name)}"
    if run.done(mark) is None:
        chosen = laboratory.settings.continuation
        texts = prompts(laboratory)
        with arm.apply(laboratory.params) as params:
            found = generate.greedy(
                laboratory.model,
                laboratory.compute,
                params,
                # Every part of the batch axes gets as many: the first prompt stands in for what lacks.
                [*texts, *texts[:1] * (-len(texts) % meshes.rows(laboratory.mesh))],
                chosen.tokens,
                laboratory.mesh,
                bounds=arm.limits,
            )
        said = [laboratory.tokenizer.decode(ids) for ids in found[: len(texts)]]
        run.write(_file(arm.name), json.dumps(said, ensure_ascii=False) + "\n")
        run.finish(mark, _file(arm.name))
    run.check()


def prompts(laboratory: Laboratory) -> list[list[int]]:
    """Return the first tokens of the evaluated text of each language of `continuation.languages`."""
    chosen = laboratory.settings.continuation
    texts = [laboratory.corpus(language, "evaluate").batch([0]) for language in chosen.languages]
    return [text.tokens[0, : chosen.prompt].tolist() for text in texts]


def read(laboratory: Laboratory, arm: str) -> list[str]:
    """Return what `write` wrote for an arm, by prompt."""
    found: list[str] = laboratory.run.agree(json.loads(laboratory.run.path(_file(arm)).read_text()))
    return found


def tabulate(laboratory: Laboratory, name: str, arms: Sequence[str]) -> None:
    """Write tables/<name>.json: the prompts, what the untouched model writes, and the arms below it."""
    chosen = laboratory.settings.continuation
    said = [laboratory.tokenizer.decode(ids) for ids in prompts(laboratory)]
    content: dict[str, Any] = {
        "kind": "texts",
        "title": "What the model writes",
        "note": f"Greedy continuation of the first {chosen.prompt} tokens of the evaluated text by {chosen.tokens}.",
        "columns": ["model", *chosen.languages],
        "rows": [["(the prompt)", *said], *([arm, *read(laboratory, arm)] for arm in (BASE, *arms))],
    }
    lab.tabulate(laboratory, name, content)


def stage(arms: Sequence[str] | int) -> Stage:
    """Return the stage that writes the continuations of arms and of the untouched model."""
    names = [] if isinstance(arms, int) else [BASE, *arms]
    number = 1 + arms if isinstance(arms, int) else len(names)
    marks = tuple(f"continuation-{lab.slug(name)}" for name in names)
    return Stage("continue", f"greedy continuations of {number} models", marks=marks)


def _file(arm: str) -> str:
    return f"continuations/{lab.slug(arm)}.json"
