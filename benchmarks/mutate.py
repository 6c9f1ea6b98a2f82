"""Mutants: one operator, number or condition of a module changed at a time, after which one of its tests must fail.

    CI=1 python benchmarks/mutate.py [--count 250] [--seed 0] [--modules algebra,select,rank_host,perturb]
        [--only restrict:7,Region.on:3]

Mutants are drawn from the bodies of the functions of all modules together. One process runs them all: the code of the
function is replaced in place, whoever imported it, and everything that was traced or cached is forgotten. Tests marked
slow are left out. Prints one JSON line a mutant that lives, and one a module: mutants, how many were killed. CI=1 draws
the same examples each time. Costs some seconds a mutant; one that takes longer than ten minutes counts as killed.
"""

import argparse
import ast
import collections
import contextlib
import copy
import functools
import gc
import importlib
import json
import os
import random
import signal
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import pytest

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 600  # of the tests of one mutant, on a busy machine
MODULES = {
    "algebra": ("regions.algebra", ("test_regions.py",)),
    "select": ("regions.select", ("test_select.py",)),
    "found": ("regions.found", ("test_select.py",)),
    "rank_host": ("regions.rank_host", ("test_select.py",)),
    "rank_device": ("regions.rank_device", ("test_select.py",)),
    "region": ("regions.region", ("test_regions.py", "test_regions_file.py")),
    "scores": ("scores", ("test_api.py", "test_regions.py")),
    "packed": ("regions.packed", ("test_freeze.py",)),
    "freeze": ("freeze", ("test_freeze.py",)),
    "perturb": ("perturb", ("test_perturb.py",)),
}
OTHER: dict[type, type] = {
    **{ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq},
    **{ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.And: ast.Or, ast.Or: ast.And},
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult},
    **{ast.Mod: ast.FloorDiv, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.BitXor: ast.BitOr},
    **{ast.LShift: ast.RShift, ast.RShift: ast.LShift},
}


class Mutant(NamedTuple):
    """A function of a module, and which of the nodes of its body is another."""

    module: str
    function: str
    number: int


def functions(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef]]:
    """Yield the functions and methods of a module by their qualified names."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            yield node.name, node
        elif isinstance(node, ast.ClassDef):
            yield from ((f"{node.name}.{each.name}", each) for each in node.body if isinstance(each, ast.FunctionDef))


def sites(function: ast.FunctionDef) -> list[ast.AST]:
    """Return the nodes of a body that can be another: not those of messages."""
    spoken = {
        id(inner)
        for statement in function.body
        for node in ast.walk(statement)
        if isinstance(node, ast.Raise | ast.JoinedStr)
        for inner in ast.walk(node)
    }
    nodes = (node for statement in function.body for node in ast.walk(statement) if id(node) not in spoken)
    return [node for node in nodes if _other(copy.copy(node))]


def _other(node: ast.AST) -> bool:
    """Change a node in place; returns whether it could be."""
    match node:
        case ast.Compare(ops=[first, *rest]) if type(first) in OTHER:
            node.ops = [OTHER[type(first)](), *rest]
        case ast.BinOp(op=op) | ast.BoolOp(op=op) | ast.AugAssign(op=op) if type(op) in OTHER:
            node.op = OTHER[type(op)]()
        case ast.UnaryOp(op=ast.Not() | ast.Invert() | ast.USub()):
            node.op = ast.UAdd() if isinstance(node.op, ast.USub) else node.op
            node.operand = ast.UnaryOp(node.op, node.operand) if not isinstance(node.op, ast.UAdd) else node.operand
        case ast.Constant(value=bool(value)):
            node.value = not value
        case ast.Constant(value=int(value)):
            node.value = value + 1
        case ast.If() | ast.IfExp():
            node.test = ast.UnaryOp(ast.Not(), node.test)
        case _:
            return False
    return True


def code(tree: ast.Module, file: str, function: str) -> types.CodeType:
    """Return the compiled body of a function of a module."""
    inside: list[Any] = [compile(ast.fix_missing_locations(tree), file, "exec")]
    while inside:
        found = inside.pop()
        if found.co_qualname == function:
            return found
        inside += [each for each in found.co_consts if isinstance(each, types.CodeType)]
    raise LookupError(function)


def find(module: types.ModuleType, function: str) -> types.FunctionType:
    """Return the function itself, below what decorates it."""
    owner, _, name = function.rpartition(".")
    found = vars(vars(module)[owner] if owner else module)[name]
    while not isinstance(found, types.FunctionType) or hasattr(found, "__wrapped__"):
        names = ("__wrapped__", "__func__", "fget", "func")
        found = next(inner for each in names if (inner := getattr(found, each, None)) is not None)
    return found


def forget() -> None:
    """Forget what was traced or cached with the code of before."""
    jax.clear_caches()
    for each in gc.get_objects():
        if isinstance(each, functools._lru_cache_wrapper) and each.__module__.startswith("lingregions"):
            each.cache_clear()


def passes(files: tuple[str, ...]) -> bool:
    """Return whether the tests pass, within their time."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGALRM, stop)
    words = ["-x", "-q", "-p", "no:cacheprovider", "-m", "not slow and not parity"]
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        signal.alarm(SECONDS)
        try:
            return pytest.main([*words, *(str(ROOT / "tests" / file) for file in files)]) == 0
        finally:
            signal.alarm(0)


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=250, help="mutants of all modules together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--modules", default=",".join(MODULES))
    parser.add_argument("--seconds", type=float, default=3600, help="after which no further mutant is begun")
    parser.add_argument("--only", default="", help="these alone: FUNCTION:NUMBER by commas, as printed")
    flags = parser.parse_args()
    os.chdir(ROOT)
    until, everything, trees = time.monotonic() + flags.seconds, [], {}
    for name in flags.modules.split(","):
        path = ROOT / "lingregions" / (MODULES[name][0].replace(".", "/") + ".py")
        trees[name] = ast.parse(path.read_text())
        for function, node in functions(trees[name]):
            everything += [Mutant(name, function, number) for number in range(len(sites(node)))]
        if not passes(MODULES[name][1]):
            sys.exit(f"the tests of {name} fail before anything is changed")
    random.Random(flags.seed).shuffle(everything)
    if flags.only:
        everything = [each for each in everything if f"{each.function}:{each.number}" in flags.only.split(",")]
    counts: dict[str, collections.Counter[str]] = {name: collections.Counter() for name in trees}
    for mutant in everything[: flags.count]:
        if time.monotonic() > until:
            break
        module = importlib.import_module(f"lingregions.{MODULES[mutant.module][0]}")
        tree = copy.deepcopy(trees[mutant.module])
        node = sites(dict(functions(tree))[mutant.function])[mutant.number]
        line = getattr(node, "lineno", 0)
        _other(node)
        function = find(module, mutant.function)
        before, function.__code__ = function.__code__, code(tree, str(module.__file__), mutant.function)
        forget()
        alive = passes(MODULES[mutant.module][1])
        function.__code__ = before
        forget()
        counts[mutant.module]["lives" if alive else "killed"] += 1
        if alive:
            print(json.dumps({**mutant._asdict(), "line": line, "reads": ast.unparse(node)[:200]}), flush=True)
    for name, count in counts.items():
        if not passes(MODULES[name][1]):
            sys.exit(f"the tests of {name} fail with nothing changed, after {count.total()} mutants")
        print(json.dumps({"module": name, "mutants": count.total(), "killed": count["killed"]}), flush=True)
    return int(any(count["lives"] for count in counts.values()))


if __name__ == "__main__":
    sys.exit(main())
