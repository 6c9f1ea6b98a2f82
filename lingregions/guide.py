"""Guide: the help of `run` and `sweep` - the configs that there are, their variants, the fields that people change.

Everything is read from the configs themselves (docstring, `VARIANTS`, the comments of configs/base.py), so that help
and configs cannot disagree. Costs milliseconds: a config imports ml_collections and nothing else.
"""

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from lingregions import settings

_FIELDS = (
    *("seed", "model.source", "compute.dtype", "data.source", "data.score_split", "data.evaluate_split", "data.held"),
    *("data.column", "data.document", "data.length", "data.fewer", "score.preset", "score.rule", "score.languages"),
    *("score.samples", "select.fractions", "evaluate.languages", "evaluate.samples", "machine.mesh"),
    *("machine.score_batch", "machine.progress"),
)
_ASSIGNMENT = re.compile(r"^ {4}config\.([\w.]+) = (.+?)(?:  # (.+))?$", re.MULTILINE)

_RUN = """\
usage: lingregions run CONFIG[:VARIANT] [--workdir=FOLDER] [--config.KEY=VALUE ...]

Runs an experiment in a work directory; the same command again goes on where it stopped.

  lingregions run core_removal:smollm2 --workdir=runs/core
  lingregions run core_removal:smollm2 --dry-run
  lingregions run mine.py --workdir=runs/mine --config.model.source=path/or/hub-id --config.data.source=texts/

experiments (CONFIG is one of these names, or a file of your own):
{experiments}

variants (VARIANT; each config has its default):
{variants}

flags:
{flags}

fields that people change (--config.KEY=VALUE; {file} lists all, --dry-run shows those of your command):
{fields}"""

_SWEEP = """\
usage: lingregions sweep CONFIG[:VARIANT] --workdir=FOLDER [--shard=i/n] [--config.KEY=VALUE ...]

Runs every cell of a grid over the fields of an experiment's config; the same command again goes on where it stopped.

  lingregions sweep definitions_seeds:smollm2 --workdir=runs/sweep
  lingregions sweep models:tiny --workdir=runs/models --shard=1/2

sweeps (CONFIG is one of these names, or a file of your own):
{experiments}

flags:
{flags}
  --shard=VALUE       the cells of one of several processes: 2/4 is the second of four"""


def run() -> str:
    """Return the help of `lingregions run`."""
    return _RUN.format(
        experiments=_listing(_summaries(settings.CONFIGS)),
        variants=_listing(_variants(settings.CONFIGS)),
        flags=_listing(settings.FLAGS, 20),
        file=_shown(settings.CONFIGS / "base.py"),
        fields=_listing(_fields(), 22),
    )


def sweep() -> str:
    """Return the help of `lingregions sweep`."""
    return _SWEEP.format(
        experiments=_listing(_summaries(settings.CONFIGS / "sweeps")), flags=_listing(settings.FLAGS, 20)
    )


def _summaries(folder: Path) -> dict[str, str]:
    """Return {name of a config: first sentence of its docstring} of a folder; nothing is executed."""
    found = {}
    for path in sorted(folder.glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if any(isinstance(node, ast.FunctionDef) and node.name == "get_config" for node in tree.body):
            found[path.stem] = (ast.get_docstring(tree) or "").partition("\n")[0]
    return found


def _fields() -> dict[str, str]:
    """Return {dotted key: its default and the comment beside it} of the fields that people change."""
    text = (settings.CONFIGS / "base.py").read_text(encoding="utf-8")
    known: dict[str, str] = {}
    for key, value, comment in _ASSIGNMENT.findall(text):
        if value != "ConfigDict()":
            default = "" if value.startswith("ConfigDict") else f"default: {value}"
            known.setdefault(key, f"{comment} ({default})" if comment and default else comment or default)
    return {key: known[key] for key in _FIELDS}


def _variants(folder: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in _summaries(folder):
        for variant, said in settings.variants(folder / f"{name}.py").items():
            found.setdefault(variant, said)
    return found


def _listing(entries: Mapping[str, str], width: int = 0) -> str:
    width = width or max(map(len, entries)) + 2
    return "\n".join(_rows(entries, width))


def _rows(entries: Mapping[str, str], width: int) -> Iterator[str]:
    for name, said in entries.items():
        yield f"  {name:<{width}}{said}" if len(name) < width else f"  {name}  {said}"


def _shown(path: Path) -> str:
    """Return a path below the folder we are in as a relative one."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
