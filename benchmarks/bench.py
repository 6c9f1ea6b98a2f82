"""Run the benchmarks one after the other, and put their ratios into one table.

Each row is a script of this folder, in a process of its own, against its peer in the same run: the median of paired
rounds and their quartiles, the peak of memory beside the peer's, and how much of what a large matrix product reaches
here is done of operations that are needed. Writes bench.json and bench.md. What was there before is compared with (of
small sizes, where nothing was, benchmarks/quick.json: ratios on record of those rows that CI measures): a ratio that
has fallen by more than 30 % ends with exit code 1, and so does a script that fails. A row from a busy machine has no
ratio, and fails nothing.

    make bench                              full sizes, on a machine that does nothing else
    make bench QUICK=1                      small sizes; ratios are rough
    make bench QUICK=1 ONLY='rules growth'  some scripts alone

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

from peer import BUSY

HERE = Path(__file__).parent
_LOSS = 0.7  # of the ratio of before, below which a row has failed


class Row(NamedTuple):
    """A line of the table.

    Attributes:
      title: what is done.
      peer: what it is compared with.
      script: that measures it.
      key: of the row in what its last line says; a ratio above 1 is to our favour.
      full: words of the script.
      quick: words where a rough ratio will do.
    """

    title: str
    peer: str
    script: str
    key: str
    full: tuple[str, ...] = ()
    quick: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What the ratio is kept under."""
        return f"{self.title}, {self.peer}"


_OURS = '--compute={"unroll": 3, "chunk": 128}'
_SCORE = ("--rounds=3", "--steps=3", "--attention=sdpa", _OURS)
_DOTS = '--compute={"unroll": 3, "remat": "dots", "chunk": 128}'
_TRAIN = ("--batch=2", "--micro=2", "--rounds=3", "--steps=4", "--attention=sdpa", _DOTS)
_SHORT = ("--batch=1", "--length=256", "--steps=2", "--rounds=1", "--attention=sdpa", _OURS)
_KEPT, _FEW = ("--windows=1", "--rounds=2"), ("--scalars=30", "--windows=1", "--rounds=1")
_TORCH = {"as it comes": "torch, as it comes", "malloc tuned": "torch, malloc tuned"}
ROWS = (
    *(Row("score step", peer, "score_step", key, _SCORE, _SHORT) for key, peer in _TORCH.items()),
    *(
        Row("evaluation", peer, "score_step", key, ("--job=evaluate", *_SCORE), ("--job=evaluate", *_SHORT))
        for key, peer in _TORCH.items()
    ),
    *(
        Row(
            *("training step", f"{peer}, fused AdamW", "train_step", key),
            full=_TRAIN,
            quick=("--micro=1", *_SHORT),
        )
        for key, peer in _TORCH.items()
    ),
    Row(
        *("training step, hard-frozen", "the same step, nothing frozen", "train_step", "frozen"),
        full=_TRAIN,
        quick=("--micro=1", *_SHORT),
    ),
    Row("five rules in one pass", "a pass each", "rules", "five", quick=("--length=256", "--rounds=2")),
    Row(
        *("removal in thirty languages", "a loop that loads transformers' model", "removals", "warm"),
        quick=("--removals=2", "--languages=2", "--windows=1"),
    ),
    Row("single scalars by layer", "a whole pass each", "by_layer", "scalars", _KEPT, _FEW),
    Row("removal by layer", "a whole pass each", "by_layer", "layers", _KEPT, _FEW),
    Row("selection, 210 matrices", "the released loop", "selection", "all", quick=("--repeats=2",)),
    Row("disk, scores in float32", "the released files", "disk", "float32", quick=("--length=64",)),
    Row("disk, scores in bfloat16", "the released files", "disk", "bfloat16", quick=("--length=64",)),
    Row("growth of cost", "proportional growth, the steepest axis", "growth", "steepest", quick=("--quick",)),
)


def run(script: str, words: tuple[str, ...]) -> dict[str, Any]:
    """Run one script and return what its last line says; an error of it is what it says then."""
    command = [sys.executable, str(HERE / f"{script}.py"), *words]
    print(f"--> {' '.join(command[1:])}", file=sys.stderr, flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, cwd=HERE.parent)
    lines = done.stdout.splitlines()
    found: dict[str, Any] = json.loads(lines[-1]) if not done.returncode and lines else {"exit": done.returncode}
    return found


def pick(found: Mapping[str, Any], row: Row) -> dict[str, Any]:
    """Return what a script says of a row; nothing where the machine was too busy for a ratio, or the script failed."""
    rows: Mapping[str, dict[str, Any]] = found.get("rows", {})
    return rows.get(row.key, {})


def table(found: Mapping[str, Mapping[str, Any]], before: Mapping[str, float | None], peak: float | None) -> str:
    """Return the rows as Markdown.

    Args:
      found: {name: what `pick` gave}.
      before: {name: ratio} of the run before.
      peak: operations a second of a large matrix product, in 1e9.
    """
    lines = [
        "| work | peer | times as good | quartiles | memory, of the peer's | of a product's speed | before |",
        "|---|---|---:|---|---:|---:|---:|",
    ]
    for row in (row for row in ROWS if row.name in found):
        one = found[row.name]
        quartiles = " to ".join(f"{each:.2f}" for each in one.get("quartiles", ()))
        share = f"{one['gflops'] / peak:.0%}" if peak and "gflops" in one else ""
        cells = (_two(one.get("ratio")), quartiles, _two(one.get("memory"), ""), share, _two(before.get(row.name)))
        lines.append(f"| {row.title} | {row.peer} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _two(value: float | None, none: str = "–") -> str:
    return none if value is None else f"{value:.2f}"


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


def _processor() -> str:
    """Return the name of the processor, as Linux tells it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()


def main() -> int:
    """Run what is asked for; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes")
    parser.add_argument("--folder", type=Path, default=Path("."), help="where bench.json and bench.md lie")
    parser.add_argument("--only", nargs="+", choices=sorted({row.script for row in ROWS}), help="scripts to run")
    asked = parser.parse_args()
    path = asked.folder / "bench.json"
    old = json.loads((path if path.is_file() else HERE / "quick.json").read_text(encoding="utf-8"))
    before: dict[str, float | None] = old.get("ratios", {}) if old.get("quick") == asked.quick else {}
    limits = run("limits", ())
    known: dict[tuple[str, tuple[str, ...]], dict[str, Any]] = {}
    rows: dict[str, dict[str, Any]] = {}
    wanted = [row for row in ROWS if not asked.only or row.script in asked.only]
    for row in wanted:
        words = row.quick if asked.quick else row.full
        if (row.script, words) not in known:
            known[row.script, words] = run(row.script, words)
        rows[row.name] = pick(known[row.script, words], row)
    ratios = {name: each.get("ratio") for name, each in rows.items()}
    report = {
        "quick": asked.quick,
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{_processor()}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}",
        "limits": limits,
        "ratios": ratios,
        "runs": {" ".join([script, *words]): found for (script, words), found in known.items()},
    }
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    grown = next((found for (script, _), found in known.items() if script == "growth"), {})
    peak, speed = limits.get("products_gflops"), limits.get("memory_gbytes_a_second")
    about = f"{report['machine']}; a large float32 product {peak} GFLOP/s, memory {speed} GB/s\n\n"
    text = about + table(rows, before, peak) + growth(grown)
    (asked.folder / "bench.md").write_text(text, encoding="utf-8")
    print(text, end="")
    failed = [script for (script, _), each in known.items() if each.get("exit") not in (None, BUSY)]
    for script in failed:
        print(f"{script}.py failed", file=sys.stderr)
    fallen = [name for name, now in ratios.items() if now is not None and now < _LOSS * (before.get(name) or 0)]
    for name in fallen:
        print(f"{name}: {ratios[name]:.2f}, and it was {before[name]:.2f}", file=sys.stderr)
    return 1 if fallen or failed else 0


if __name__ == "__main__":
    sys.exit(main())
