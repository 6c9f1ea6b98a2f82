"""Write the first cell of every notebook: what installs, from where.

    python colab/first_cell.py

`ADDRESS` is the one place that holds the project's address. There is none yet, so nothing pretends: notebooks install
from the checkout they lie in, or from a wheel beside them. Once it is set, they install from there where there is
neither, and carry the badge that opens them on Colab.
"""

import re
from pathlib import Path

import nbformat

ADDRESS = ""  # such as https://github.com/org/lingregions
HERE = Path(__file__).resolve().parent

CELL = """\
import glob
import importlib.util
import os

VARIANT = os.environ.get("LINGREGIONS_VARIANT", "{variant}")  # or tiny, llama2_7b, llama2_13b
EXTRAS = "report"  # "tpu,report" on a TPU, "cuda,report" on a GPU
if os.path.basename(os.getcwd()) == "colab":
    os.chdir("..")
if importlib.util.find_spec("lingregions") is None:
    # The checkout that this notebook lies in, or a wheel beside it{third}.
    place = (["."] if os.path.isfile("pyproject.toml") else sorted(glob.glob("lingregions-*.whl")){address})[0]
    %pip install --quiet "{{place}}[{{EXTRAS}}]\""""
BADGE = "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({place})\n\n"


def cell(variant: str) -> str:
    """Return the first cell of a notebook whose default variant is given."""
    third, address = (", or the project's address", f' + ["{ADDRESS}/archive/main.zip"]') if ADDRESS else ("", "")
    return CELL.format(variant=variant, third=third, address=address)


def badge(name: str) -> str:
    """Return the badge that opens a notebook on Colab; "" while there is no address."""
    colab = ADDRESS.replace("github.com", "colab.research.google.com/github")
    return BADGE.format(place=f"{colab}/blob/main/colab/{name}") if ADDRESS else ""


def renew(notebook: nbformat.NotebookNode, name: str) -> None:
    """Set badge and first cell of a notebook; what else its first cell says stays behind it."""
    head = notebook.cells[0]
    text = re.sub(r"\[!\[Open in Colab\].*\n\n", "", head.source)
    head.source = text.replace("\n\n", f"\n\n{badge(name)}", 1)
    first = next(each for each in notebook.cells if each.cell_type == "code")
    variant = re.search(r'"LINGREGIONS_VARIANT", "(\w+)"', first.source)
    own = [line for line in first.source.splitlines() if line.startswith("TEXTS = ")]
    first.source = "\n".join([cell(variant[1] if variant else "smollm2"), *own])


def main() -> None:
    """Renew all notebooks."""
    for path in sorted(HERE.glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        renew(notebook, path.name)
        nbformat.write(notebook, path)


if __name__ == "__main__":
    main()
