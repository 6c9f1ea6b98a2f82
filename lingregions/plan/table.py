"""The table of slices: recorded plans as Markdown, one row a model and slice, one column a job."""

import json
from pathlib import Path
from typing import Any

from lingregions.plan import hardware
from lingregions.plan.compiled import JOBS

_HEAD = """# Slices

What the XLA:TPU compiler says of one step of each job, compiled ahead of time: the peak of memory a chip, with the mesh
(data x fsdp x tensor) and the micro-batch that `lingregions plan` chose; then the least hours of the whole job, by a
roofline that no run reaches. bfloat16, layers recomputed in the backward pass. Nothing here ran on a TPU. "About" is an
estimate where nothing was compiled. Written by

    lingregions plan --model=... --topology=... --job=... --record=docs/slices.jsonl
    lingregions plan --table=docs/slices.jsonl > docs/slices.md
"""


def _read(path: Path) -> list[dict[str, Any]]:
    """Return the recorded plans; of two of the same job the later one counts.

    Raises:
      ValueError: the file holds something else.
    """
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            plan = json.loads(line)
            key = tuple(plan[name] for name in ("model", "topology", "job", "length"))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}, line {number}, is no plan: {error!r}") from None
        found[key] = plan
    return list(found.values())


def render(path: Path) -> str:
    """Return the recorded plans as Markdown."""
    plans = _read(path)
    places = sorted({_place(plan) for plan in plans})
    lines = [_HEAD]
    for samples in _jobs(plans):
        lines.append(samples)
    lines += ["", f"| model | slice | GiB a chip | {' | '.join(JOBS)} |", f"|---|---|---:|{'---|' * len(JOBS)}"]
    for place in places:
        here = {plan["job"]: plan for plan in plans if _place(plan) == place}
        first = next(iter(here.values()))
        memory = first["memory"] / hardware.GIB
        cells = [_cell(here[job]) if job in here else "" for job in JOBS]
        lines.append(f"| {first['model']} | {first['topology']} | {memory:.2f} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _place(plan: dict[str, Any]) -> tuple[Any, ...]:
    return plan["parameters"], plan["model"], plan["chips"] * plan["memory"], plan["topology"]


def _jobs(plans: list[dict[str, Any]]) -> list[str]:
    """Return a line on what the whole of each job is."""
    lines = []
    for job in JOBS:
        sizes = sorted({(plan["samples"], plan["length"]) for plan in plans if plan["job"] == job})
        if sizes and job == "select":
            lines.append("- select: one region, from the scores of one or more languages")
        elif sizes:
            texts = " or ".join(f"{samples:,} samples of {length} tokens" for samples, length in sizes)
            batches = sorted({plan["batch"] for plan in plans if plan["job"] == job})
            steps = f", {' or '.join(map(str, batches))} a step" if job == "train" else ""
            lines.append(f"- {job}: {texts}{steps}")
    return lines


def _cell(plan: dict[str, Any]) -> str:
    about = "about " if plan["compiled"] is None else ""
    peak = plan["peak"] / hardware.GIB
    if not plan["fits"]:
        other = f"; {plan['smallest']} does" if plan["smallest"] else ""
        return f"needs {about}{peak:.1f}: does not fit{other}"
    mesh = " x ".join(map(str, plan["mesh"]))
    if plan["job"] == "select":
        return f"{about}{peak:.2f} GiB, {mesh}"
    return f"{about}{peak:.2f} GiB, {mesh}, {plan['micro']}; {plan['hours']:.2g} h"
