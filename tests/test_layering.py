"""The order of the house: a module imports only from modules above it, and each module has a place."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "lingregions"

# Top to bottom; a folder is one entry, and its files may import each other.
ORDER = (
    "verbs",
    "display",
    "tree",
    "permutation",
    "mesh",
    "models",
    "corpus",
    "loss",
    "settings",
    "guide",
    "run",
    "scoring",
    "perturb",
    "intervention",
    "regions",
    "scores",
    "evaluate",
    "rows",
    "prefix",
    "generate",
    "statistics",
    "effects",
    "freeze",
    "train",
    "plan",
    "model",
    "models_command",
    "finished",
    "report",
    "experiments",
    "forecast",
    "micro",
    "door",
    "sweep",
    "main",
)
FOREIGN = {"torch", "tensorflow"}  # needed by nobody who scores, removes or trains


def imports(path: Path, root: Path = ROOT) -> set[str]:
    """Full dotted names that a file imports, wherever in the file; `from a import b` counts as both a and a.b."""
    here = path.relative_to(root).with_suffix("").parts
    found = set()
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    if path.name == "__init__.py" and path.parent.parent == root:
        # What the front door names for type checkers alone is not imported.
        tree.body = [
            node for node in tree.body if not isinstance(node, ast.If) or "TYPE_CHECKING" not in ast.dump(node.test)
        ]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = here[:-1] if node.level else ()
            base = [*package[: len(package) - max(node.level - 1, 0)], *([node.module] if node.module else [])]
            found.add(".".join(base))
            found.update(".".join([*base, alias.name]) for alias in node.names)
    return found


def entry(path: Path, package: Path = PACKAGE) -> str:
    """The place in ORDER that a file of the package belongs to."""
    return path.relative_to(package).parts[0].removesuffix(".py")


def violations(package: Path, order: tuple[str, ...]) -> list[str]:
    """Every import that points down the order, and every module that has no place in it."""
    found = []
    for path in sorted(package.rglob("*.py")):
        name = entry(path, package)
        where = path.relative_to(package.parent)
        if name == "__init__":
            below = {target for target in imports(path, package.parent) if target.startswith(package.name)}
            found += [f"{where} imports {target}" for target in sorted(below)]
            continue
        if name not in order:
            found.append(f"{where} has no place in the order")
            continue
        for target in sorted(imports(path, package.parent)):
            parts = target.split(".")
            if parts[0] != package.name or len(parts) < 2 or parts[1] not in {*order, *modules(package)}:
                continue
            if parts[1] not in order or order.index(parts[1]) > order.index(name):
                found.append(f"{where} imports {'.'.join(parts[:2])}, which comes after it")
    return sorted(set(found))


def modules(package: Path) -> set[str]:
    return {entry(path, package) for path in package.rglob("*.py")} - {"__init__"}


def test_a_module_imports_only_from_modules_above_it():
    assert violations(PACKAGE, ORDER) == []


def test_nothing_that_the_package_runs_needs_torch_or_tensorflow():
    found = [
        f"{path.relative_to(ROOT)} imports {target}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for target in sorted(imports(path))
        if target.split(".")[0] in FOREIGN
    ]
    assert found == []


def test_configs_are_data():
    found = [
        f"{path.relative_to(ROOT)} imports {target}"
        for path in sorted((ROOT / "configs").rglob("*.py"))
        for target in sorted(imports(path))
        if target.split(".")[0] == "lingregions"
    ]
    assert found == []


def test_helpers_live_with_their_noun():
    names = {"utils", "util", "helpers", "common", "misc"}
    assert [str(path.relative_to(ROOT)) for path in PACKAGE.rglob("*.py") if path.stem in names] == []


# The checker itself, on a package that a hand drew.


@pytest.fixture
def package(tmp_path):
    root = tmp_path / "house"
    (root / "low").mkdir(parents=True)
    (root / "__init__.py").write_text("VERSION = '1'\n")
    (root / "high.py").write_text("import house\n")
    (root / "low" / "__init__.py").write_text("from house import high\nfrom house.low import part\n")
    (root / "low" / "part.py").write_text("import os\n")
    return root


def test_the_checker_accepts_imports_upwards(package):
    assert violations(package, ("high", "low")) == []


@pytest.mark.parametrize(
    "line",
    [
        "import house.low",
        "from house import low",
        "from house.low import part",
        "from . import low",
        "from .low import part",
        "from .low.part import os",
        "def late():\n    from house import low",
    ],
)
def test_the_checker_sees_every_way_to_import_downwards(package, line):
    (package / "high.py").write_text(line + "\n")
    assert violations(package, ("high", "low")) == ["house/high.py imports house.low, which comes after it"]


def test_the_checker_resolves_relative_imports_inside_a_folder(package):
    (package / "low" / "part.py").write_text("from .. import last\nfrom . import other\n")
    (package / "last.py").write_text("")
    assert violations(package, ("high", "low", "last")) == [
        "house/low/part.py imports house.last, which comes after it"
    ]


def test_the_checker_asks_a_place_for_every_module(package):
    (package / "new.py").write_text("")
    assert violations(package, ("high", "low")) == ["house/new.py has no place in the order"]


def test_the_front_door_stays_light(package):
    typed = "if TYPE_CHECKING:\n    from house import low\n"
    (package / "__init__.py").write_text(f"from house import high\n{typed}")
    assert violations(package, ("high", "low")) == [
        "house/__init__.py imports house",
        "house/__init__.py imports house.high",
    ]
