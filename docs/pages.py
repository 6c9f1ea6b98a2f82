"""Pages that mkdocs makes from the code: all configs, the package's modules, the tables of docs/families.md.

A hook of mkdocs (mkdocs.yml): what it adds is generated at each build, so that pages and code cannot disagree.
"""

import ast
import importlib
import inspect
import math
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from lingregions import models
from lingregions import tree as trees

ROOT = Path(__file__).resolve().parent.parent


def on_files(files: Files, config: Any) -> Files:
    """Add configs.md and reference.md."""
    files.append(File.generated(config, "configs.md", content=_configs()))
    files.append(File.generated(config, "reference.md", content=_reference()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Fill in the families of models."""
    return markdown.replace("<!-- families -->", _families()) if page.file.src_uri == "families.md" else markdown


def _families() -> str:
    parts = []
    for family in models.ARCHITECTURES:
        module = importlib.import_module(f"lingregions.models.{family.removesuffix('_text')}")
        parts.append(f"## {family}\n\n{inspect.getdoc(module)}\n\n{_presets(module.VARIANT.presets)}")
    return "\n".join(parts)


def _presets(presets: dict[str, Any]) -> str:
    """Return a table of presets: parameters by counting the declaration, and what removal sets a gain to."""
    rows = [
        "| preset | parameters | L | D | N | K | H | F | V | head | biases | a gain is removed by |",
        "|---" * 12 + "|",
    ]
    for name, config in presets.items():
        count = sum(math.prod(each.shape) for each in trees.flatten(models.declare(config)).values())
        sizes = (config.layers, config.embed, config.heads, config.kv_heads, config.head_dim, config.mlp, config.vocab)
        removed = f"w = {-max(models.offsets(config).values(), default=0.0) or 0.0:g}"
        how = ("tied" if config.tied else "its own", ", ".join(config.biases) or "none", removed)
        cells = (f"`{name}`", *(f"{each:,}" for each in (count, *sizes)), *how)
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


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
