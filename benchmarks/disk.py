"""Weigh what a run keeps of six languages, scores and regions, against the files of the released code.

A real run of `core_removal:smollm2`, with little text, under both dtypes of scores; the released code writes, for each
language, a bfloat16 tensor of scores and a boolean one of the region a matrix (`torch.save`). Prints one JSON line.

    python benchmarks/disk.py [--length 128]

Needs torch beside the package.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import peer

DTYPES = ("float32", "bfloat16")


def ours(folder: Path, dtype: str, length: int) -> int:
    """Return the bytes of scores and regions of a run."""
    words = [f"--config.score.dtype={dtype}", f"--config.data.length={length}", "--config.score.samples=1"]
    words += ["--config.evaluate.samples=1", "--config.evaluate.languages=en,", "--config.machine.progress=none"]
    command = [sys.executable, "-m", "lingregions.main", "run", "core_removal:smollm2", f"--workdir={folder}"]
    subprocess.run([*command, *words], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    files = [path for name in ("scores", "regions") for path in (folder / name).rglob("*") if path.is_file()]
    return sum(path.stat().st_size for path in files)


def released(folder: Path) -> tuple[int, int]:
    """Return the bytes that the released code writes for a language, and how many languages a run scores."""
    import torch

    from lingregions import Run
    from lingregions import tree as trees

    run, total = Run.open(folder), 0
    scores = run.scores(run.languages[0]).values
    for kind in (torch.bfloat16, torch.bool):
        tensors = {
            f"{path}.{layer}": torch.zeros(leaf.shape[1:], dtype=kind)
            for path, leaf in trees.walk(scores)
            for layer in range(leaf.shape[0])
        }
        torch.save(tensors, folder / "released.pt")
        total += (folder / "released.pt").stat().st_size
    return total, len(run.languages)


def main() -> None:
    """Weigh both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=128, help="tokens of the sample of each language")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        found = {dtype: ours(Path(name) / dtype, dtype, asked.length) for dtype in DTYPES}
        theirs, languages = released(Path(name) / DTYPES[0])
    rows = {dtype: peer.row([languages * theirs / own], 0.0) for dtype, own in found.items()}
    print(json.dumps({"benchmark": "disk", "bytes": found, "released_bytes": languages * theirs, "rows": rows}))


if __name__ == "__main__":
    main()
