"""Pages that mkdocs makes from docstrings: one of all configs, one of the package's modules.

A hook of mkdocs (mkdocs.yml): what it adds is generated at each build, so that pages and code cannot disagree.
"""

import ast
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent


def on_files(files: Files, config: Any) -> Files:
    """Add configs.md and reference.md."""
    files.append(File.generated(config, "configs.md", content=_configs()))
    files.append(File.generated(config, "reference.md", content=_reference()))
    return files


def _configs() -> str:
    parts = [
        "# Configs\n\nThe docstrings of `configs/`: what each measures, its command, its cost, what was measured.\n"
    ]
    for path in sorted((ROOT / "configs").rglob("*.py")):
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        parts.append(f"## {path.relative_to(ROOT / 'configs').with_suffix('')}\n\n{text}\n")
    return "\n".join(parts)


def _reference() -> str:
    modules = [path.stem for path in (ROOT / "lingregions").glob("*.py") if path.stem != "__init__"]
    modules += [path.parent.name for path in (ROOT / "lingregions").glob("*/__init__.py")]
    parts = ["# Reference\n\nEvery module of the package, from its docstring.\n", "## lingregions\n\n::: lingregions\n"]
    parts += [f"## {name}\n\n::: lingregions.{name}\n" for name in sorted(modules)]
    return "\n".join(parts)
