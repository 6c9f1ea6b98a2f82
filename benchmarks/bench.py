"""Run the benchmarks one after the other, and put their ratios into one table.

Each row is a script of this folder, in a process of its own, against its peer in the same run. Writes bench.json and
bench.md. What was there before is compared with: a ratio that has fallen by more than 30 % ends with exit code 1. A row
from a busy machine has no ratio, and fails nothing.

    make bench              full sizes, on a machine that does nothing else
    make bench QUICK=1      small sizes; ratios are rough

Needs torch beside the package (`make parity` installs both into .venv-parity).
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
_LOSS = 0.7  # of the ratio of before, below which a row has failed


class Row(NamedTuple):
    """A line of the table.

    Attributes:
      title: what is done.
      peer: what it is compared with.
      script: that measures it.
      keys: where its last line has the ratio; above 1 ours is faster.
      full: words of the script.
      quick: words where a rough ratio will do.
    """

    title: str
    peer: str
    script: str
    keys: tuple[str, ...]
    full: tuple[str, ...] = ()
    quick: tuple[str, ...] = ()


_SHORT = ("--batch=1", "--length=256", "--steps=2", "--rounds=1", "--attention=sdpa")
ROWS = (
    Row("score step", "torch, as it comes", "score_step", ("ratio_default_malloc",), quick=_SHORT),
    Row("score step", "torch, malloc tuned", "score_step", ("ratio_tuned_malloc",), quick=_SHORT),
    Row(
        *("evaluation", "torch under no_grad, malloc tuned", "score_step", ("ratio_tuned_malloc",)),
        full=("--job=evaluate",),
        quick=("--job=evaluate", *_SHORT),
    ),
    Row(
        *("training step", "torch's fused AdamW, as it comes", "train_step", ("ratio_default_malloc",)),
        full=("--batch=2", "--micro=2", "--steps=4"),
        quick=("--batch=1", "--micro=1", "--length=256", "--steps=2", "--rounds=1", "--attention=sdpa"),
    ),
    Row(
        *("removal in thirty languages", "a loop that loads transformers' model", "removals", ("ratio",)),
        quick=("--removals=2", "--languages=2", "--windows=1"),
    ),
    Row(
        *("single scalars by layer", "a whole pass each", "by_layer", ("scalars", "ratio")),
        quick=("--scalars=30", "--windows=1", "--rounds=1"),
    ),
    Row(
        *("removal by layer", "a whole pass each", "by_layer", ("layers", "ratio")),
        quick=("--scalars=30", "--windows=1", "--rounds=1"),
    ),
    Row("selection, 210 matrices", "the released loop", "selection", ("ratio",), quick=("--repeats=2",)),
    Row("growth of cost", "proportional growth, the steepest axis", "growth", ("ratio",), quick=("--quick",)),
)


def run(script: str, words: tuple[str, ...]) -> dict[str, Any]:
    """Run one script and return what its last line says; an error of it is what it says then."""
    command = [sys.executable, str(HERE / f"{script}.py"), *words]
    print(f"--> {' '.join(command[1:])}", file=sys.stderr, flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, cwd=HERE.parent)
    lines = done.stdout.splitlines()
    found: dict[str, Any] = json.loads(lines[-1]) if not done.returncode and lines else {"exit": done.returncode}
    return found


def pick(found: Mapping[str, Any], keys: tuple[str, ...]) -> float | None:
    """Return the ratio of a row, if the machine was quiet enough for one."""
    value: Any = found
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return None if value is None else float(value)


def table(ratios: Mapping[str, float | None], before: Mapping[str, float | None]) -> str:
    """Return the ratios as Markdown."""
    lines = ["| work | peer | times as fast | before |", "|---|---|---:|---:|"]
    for row in ROWS:
        name = f"{row.title}, {row.peer}"
        cells = ("–" if value is None else f"{value:.2f}" for value in (ratios[name], before.get(name)))
        lines.append(f"| {row.title} | {row.peer} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def growth(found: Mapping[str, Any]) -> str:
    """Return how cost grows along each axis as Markdown; nothing if that was not measured."""
    if "axes" not in found:
        return ""
    lines = ["", "| cost grows with | sizes | cost of each | exponent |", "|---|---|---|---:|"]
    for name, axis in found["axes"].items():
        (unit,) = axis.keys() - {"sizes", "exponent"}
        sizes, costs = (", ".join(f"{each:,.4g}" for each in axis[key]) for key in ("sizes", unit))
        lines.append(f"| {name} | {sizes} | {costs} {unit} | {axis['exponent']:.2f} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run what is asked for; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes")
    parser.add_argument("--folder", type=Path, default=Path("."), help="where bench.json and bench.md lie")
    asked = parser.parse_args()
    path = asked.folder / "bench.json"
    old = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    before: dict[str, float | None] = old.get("ratios", {}) if old.get("quick") == asked.quick else {}
    known: dict[tuple[str, tuple[str, ...]], dict[str, Any]] = {}
    ratios: dict[str, float | None] = {}
    for row in ROWS:
        words = row.quick if asked.quick else row.full
        if (row.script, words) not in known:
            known[row.script, words] = run(row.script, words)
        ratios[f"{row.title}, {row.peer}"] = pick(known[row.script, words], row.keys)
    report = {
        "quick": asked.quick,
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}",
        "ratios": ratios,
        "runs": {" ".join([script, *words]): found for (script, words), found in known.items()},
    }
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    grown = next(found for (script, _), found in known.items() if script == "growth")
    text = table(ratios, before) + growth(grown)
    (asked.folder / "bench.md").write_text(text, encoding="utf-8")
    print(text, end="")
    fallen = [name for name, now in ratios.items() if now is not None and now < _LOSS * (before.get(name) or 0)]
    for name in fallen:
        print(f"{name}: {ratios[name]:.2f}, and it was {before[name]:.2f}", file=sys.stderr)
    return 1 if fallen else 0


if __name__ == "__main__":
    sys.exit(main())
