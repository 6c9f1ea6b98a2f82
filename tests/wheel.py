"""Build a wheel, install it in an empty environment, and use it where no checkout is: `make wheel-test`.

Not collected by pytest: it needs the index (or pip's cache) for the dependencies. What is run is the tiny variant of
the demo, by name and by the path that documents use, and the first cells of every notebook.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def call(*words: str | Path, folder: Path, **variables: str) -> str:
    """Run a command in a folder and return what it prints; what it prints when it fails is shown."""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        list(map(str, words)), cwd=folder, env=clean | variables, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{' '.join(map(str, words))}\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def warnings(said: str) -> list[str]:
    """Return the lines of a build that warn."""
    return [line for line in said.splitlines() if "warning" in line.lower()]


def locked(extra: str) -> str:
    """Return what requirements.lock holds for an extra."""
    blocks = (ROOT / "requirements.lock").read_text(encoding="utf-8").split("# for")[1:]
    return "".join(block.partition("\n")[2] for block in blocks if extra in block.partition("\n")[0].split())


def first_cells(path: Path) -> str:
    """Return the first code cell of a notebook: what installs, and what says where it is."""
    cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    lines = "".join(cells[0]["source"]).splitlines()
    # A wheel is installed here: a line of IPython, which installs, must not be reached.
    return "\n".join(
        line.replace("%pip", "raise SystemExit  # %pip").replace("!", "raise SystemExit  # ") for line in lines
    )


def main() -> None:
    """Build, install, run."""
    with tempfile.TemporaryDirectory(prefix="lingregions-wheel-") as name:
        place = Path(name)
        shutil.rmtree(ROOT / "build", ignore_errors=True)  # setuptools would pack what lies there from before
        said = call(sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", place, ROOT, folder=place)
        if found := warnings(said):
            sys.exit("building warns:\n" + "\n".join(found))
        (wheel,) = place.glob("*.whl")
        names = zipfile.ZipFile(wheel).namelist()
        for wanted in ("configs/base.py", "configs/sweeps/models.py", "corpus/data/udhr/en.txt"):
            if f"lingregions/{wanted}" not in names:
                sys.exit(f"{wheel.name} lacks {wanted}")
        call(sys.executable, "-m", "venv", place / "venv", folder=place)
        python, program = place / "venv" / "bin" / "python", place / "venv" / "bin" / "lingregions"
        lock = place / "report.lock"
        lock.write_text(locked("report"))
        call(python, "-m", "pip", "install", "--quiet", "--require-hashes", "-r", lock, folder=place)
        call(python, "-m", "pip", "install", "--quiet", "--no-index", f"{wheel}[report]", folder=place)
        elsewhere = place / "elsewhere"
        elsewhere.mkdir()
        print(call(program, "--version", folder=elsewhere), end="")
        call(program, "run", "core_removal:tiny", "--dry-run", folder=elsewhere)
        call(program, "run", "configs/core_removal.py:tiny", "--workdir=demo", folder=elsewhere)
        size = (elsewhere / "demo" / "report.html").stat().st_size
        print(f"the demo ran from {wheel.name} ({wheel.stat().st_size / 1e6:.1f} MB); its report has {size:,} bytes")
        notebooks = sorted((ROOT / "colab").glob("*.ipynb"))
        cells = "\n".join(map(first_cells, notebooks))
        call(python, "-c", cells, folder=elsewhere, LINGREGIONS_VARIANT="tiny")
        print(f"the first cells of {len(notebooks)} notebooks ran without the checkout")


if __name__ == "__main__":
    main()
