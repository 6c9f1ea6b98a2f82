"""Notebooks in tests: their code cells, what those show, and a run from a clean kernel at `:tiny`."""

import runpy
from pathlib import Path

import jax
import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent


def code(path: Path) -> list[nbformat.NotebookNode]:
    """Return the code cells."""
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def showing(cells: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """Return the cells that show something: all but the first, which installs."""
    return cells[1:]


def kinds(cell: nbformat.NotebookNode) -> list[str]:
    """Return the richest type of each output of a cell, in order."""
    found = []
    for output in cell.outputs:
        types = output.get("data", {})
        rich = [name for name in ("image/png", "text/markdown", "text/html", "text/plain") if name in types]
        found.append(rich[0] if rich else output.output_type)
    return found


def run(path: Path, folder: Path) -> None:
    """Run a notebook in a folder at `:tiny`: each cell shows what is kept of it in the checkout."""
    kept = [kinds(cell) for cell in showing(code(path))]
    notebook = nbformat.read(path, as_version=4)
    execute = runpy.run_path(str(ROOT / "colab" / "execute.py"))["execute"]
    variables = {
        "PYTHONPATH": str(ROOT),
        "LINGREGIONS_VARIANT": "tiny",
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
            patch.setenv(name, str(folder / ".jupyter"))
        found = execute(notebook, folder, variables)
    cells = showing([cell for cell in found.cells if cell.cell_type == "code"])
    assert len(cells) > 2
    assert all(cell.outputs for cell in cells)
    pictures = ["image/png" in kinds(cell) for cell in cells]
    assert any(pictures)
    if any(kept):
        assert pictures == ["image/png" in each for each in kept]
    assert {entry.name for entry in folder.iterdir()} <= {"configs", "runs", ".jupyter"}
    assert [work.name.removesuffix("_tiny") for work in (folder / "runs").iterdir()] == [path.stem[3:]]
    assert not (ROOT / "colab" / ".ipynb_checkpoints").exists()
