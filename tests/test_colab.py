"""The notebooks: what they are made of, what is kept in them, and each from a clean kernel at `:tiny`."""

import ast
import base64
import getpass
import io
import re
import runpy

import nbformat
import notebooks
import numpy as np
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from notebooks import ROOT, code, showing
from PIL import Image

from lingregions.experiments import STUDIES

NOTEBOOKS = sorted((ROOT / "colab").glob("*.ipynb"))
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def test_one_a_number_and_one_an_experiment():
    names = [path.stem for path in NOTEBOOKS]
    assert [name[:3] for name in names] == [f"{number:02d}_" for number in range(len(names))]
    assert names[0] == "00_quickstart"
    assert {name[3:] for name in names[1:]} == set(STUDIES)


@each
def test_the_library_does_the_work(path):
    for cell in code(path):
        tree = ast.parse(TransformerManager().transform_cell(cell.source))
        own = [
            node
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda)
        ]
        assert not own, f"{path.name} defines {ast.unparse(own[0])}"


@each
def test_the_form(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert path.read_text() == nbformat.writes(notebook) + "\n"
    assert set(notebook.metadata) == {"colab", "kernelspec", "language_info"}
    assert [cell.id for cell in notebook.cells] == [f"cell-{index:02d}" for index in range(len(notebook.cells))]
    assert all(cell.metadata == {} for cell in notebook.cells)
    first_cell = runpy.run_path(str(ROOT / "colab" / "first_cell.py"))
    before = nbformat.writes(notebook)
    first_cell["renew"](notebook, path.name)
    assert nbformat.writes(notebook) == before, "renew it with: python colab/first_cell.py"
    assert ("colab.research.google.com" in before) == bool(first_cell["ADDRESS"])
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert "Collapse alone proves nothing linguistic" in prose
    assert "## On a TPU or GPU" in prose
    if path.stem != "00_quickstart":
        assert f'"configs/{path.stem[3:]}.py:{{VARIANT}}"' in "\n".join(cell.source for cell in code(path))
    else:
        assert len(code(path)) == 5
    assert re.search(r"\*\*Needs\*\* [\d.]+ GB of memory[^.]*, (about )?[\d.]+ GB of disk", prose.replace("\n", " "))
    assert "A T4 has no bfloat16" in prose.replace("\n", " ")


def test_a_large_picture_is_kept_in_fewer_shades():
    keep = runpy.run_path(str(ROOT / "colab" / "execute.py"))["plain"]
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 200, 3), np.uint8))
    for picture in (noise, noise.resize((30, 20))):
        out = io.BytesIO()
        picture.save(out, "png")
        written = base64.b64encode(out.getvalue()).decode()
        found = keep(nbformat.v4.new_output("display_data", {"image/png": written})).data["image/png"]
        shown = Image.open(io.BytesIO(base64.b64decode(found)))
        assert shown.size == picture.size
        assert (found == written) == (len(out.getvalue()) <= 140_000)
        assert len(found) <= len(written)


@each
def test_what_is_kept_is_of_a_real_run(path):
    """Filled by `python colab/execute.py NAME`."""
    for number, cell in enumerate(showing(code(path)), 2):
        assert cell.execution_count in (None, number)
        assert cell.outputs, f"{path.name}: code cell {number} is without its output"
        for output in cell.outputs:
            assert output.output_type != "error", f"{path.name}: code cell {number} failed"
            assert output.get("name") != "stderr", f"{path.name}: code cell {number} keeps notes or progress"
            text = output.get("text", "") + "".join(v for k, v in output.get("data", {}).items() if k != "image/png")
            assert not re.search(r"/(home|root|work|tmp|Users)/", text), f"{path.name}: a path of one machine: {text}"
            assert getpass.getuser() == "root" or getpass.getuser() not in text
            assert "tiny" not in text, f"{path.name}: what is kept is of a tiny model"
            picture = output.get("data", {}).get("image/png", "")
            assert len(base64.b64decode(picture)) < 150_000, (
                f"{path.name}: a picture of code cell {number} is too large"
            )


@pytest.mark.slow
def test_the_quickstart_from_a_clean_kernel(tmp_path):
    """Those of the experiments run where their work directories are: `test_studies.py`."""
    notebooks.run(NOTEBOOKS[0], tmp_path)
