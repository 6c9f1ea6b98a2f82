"""The table of the benchmarks: what it compares with, and when it fails."""

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import pytest

FILE = Path(__file__).parent.parent / "benchmarks" / "bench.py"
CI = (FILE.parent.parent / ".ci" / "run").read_text().partition("ONLY='")[2].partition("'")[0].split()
SPEED = {
    "as it comes": {"ratio": 1.1, "memory": 0.4},
    "malloc tuned": {"ratio": 0.9, "quartiles": [0.85, 1.0], "memory": 0.35, "gflops": 300.0},
}
AXES = {"devices": {"sizes": [1, 8], "operations": [8e9, 1e9], "exponent": -1.0}}
FOUND: dict[str, dict[str, Any]] = {
    "limits": {"products_gflops": 400.0, "memory_gbytes_a_second": 20.0},
    "score_step": {"rows": SPEED},
    "train_step": {"rows": {"as it comes": {}, "malloc tuned": {}}},  # of a busy machine: no ratio
    "rules": {"exit": os.EX_TEMPFAIL},
    "removals": {"rows": {"warm": {"ratio": 1.3}}},
    "by_layer": {"rows": {"scalars": {"ratio": 1.6}, "layers": {"ratio": 1.5}}},
    "selection": {"rows": {"all": {"ratio": 7.0}}},
    "disk": {"rows": {"float32": {"ratio": 0.8}, "bfloat16": {"ratio": 1.9}}},
    "growth": {"rows": {"steepest": {"ratio": 0.9}}, "axes": AXES},
}


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(FILE.parent)
    spec = importlib.util.spec_from_file_location("bench", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.asked = []
    monkeypatch.setattr(module, "run", lambda script, words: module.asked.append(script) or FOUND[script])
    return module


def once(bench: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr("sys.argv", ["bench.py", f"--folder={folder}", *words])
    return int(bench.main())


def test_every_row_has_a_script(bench: Any) -> None:
    assert {row.script for row in bench.ROWS} | {"limits"} == FOUND.keys()
    assert len(CI) > 1
    assert len({row.name for row in bench.ROWS}) == len(bench.ROWS)
    for script in FOUND:
        assert (FILE.parent / f"{script}.py").is_file()


def test_a_script_runs_once_and_a_busy_machine_gives_no_ratio(bench: Any, tmp_path: Path, monkeypatch: Any) -> None:
    assert once(bench, tmp_path, monkeypatch) == 0
    assert sorted(bench.asked) == sorted([*FOUND, "score_step"])  # scoring, and evaluation
    lines = (tmp_path / "bench.md").read_text().splitlines()
    assert lines[0].endswith("a large float32 product 400.0 GFLOP/s, memory 20.0 GB/s")
    assert "| score step | torch, malloc tuned | 0.90 | 0.85 to 1.00 | 0.35 | 75% | – |" in lines
    assert "| score step | torch, as it comes | 1.10 |  | 0.40 |  | – |" in lines
    assert "| five rules in one pass | a pass each | – |  |  |  | – |" in lines
    assert lines[-1] == "| devices | 1, 8 | 8e+09, 1e+09 operations | -1.00 |"
    assert "| training step | torch, as it comes, fused AdamW | – |  |  |  | – |" in lines


def test_some_scripts_alone_are_held_against_the_ratios_on_record(
    bench: Any, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    record = json.loads((FILE.parent / "quick.json").read_text())
    names = {row.name: row.script for row in bench.ROWS}
    assert record["quick"]
    assert set(record["ratios"]) == {name for name, script in names.items() if script in CI}
    name = "selection, 210 matrices, the released loop"
    low = {"rows": {"all": {"ratio": 0.69 * record["ratios"][name]}}}
    monkeypatch.setitem(FOUND, "selection", low)
    assert once(bench, tmp_path, monkeypatch, "--only", "selection") == 0  # full sizes have no record
    (tmp_path / "bench.json").unlink()
    assert once(bench, tmp_path, monkeypatch, "--quick", "--only", "selection") == 1
    assert f"{name}: {low['rows']['all']['ratio']:.2f}, and it was" in capsys.readouterr().err
    assert bench.asked == ["limits", "selection"] * 2
    assert len((tmp_path / "bench.md").read_text().splitlines()) == 5


def test_a_script_that_fails_is_no_quiet_machine(bench: Any, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setitem(FOUND, "rules", {"exit": 1})
    assert once(bench, tmp_path, monkeypatch, "--only", "rules", "growth") == 1
    assert "rules.py failed" in capsys.readouterr().err


def test_a_ratio_that_fell_fails_and_is_named(bench: Any, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    once(bench, tmp_path, monkeypatch, "--quick")
    monkeypatch.setitem(FOUND, "selection", {"rows": {"all": {"ratio": 5.0}}})
    assert once(bench, tmp_path, monkeypatch, "--quick") == 0  # by less than 30 %
    monkeypatch.setitem(FOUND, "selection", {"rows": {"all": {"ratio": 3.4}}})
    assert once(bench, tmp_path, monkeypatch, "--quick") == 1
    assert "selection, 210 matrices, the released loop: 3.40, and it was 5.00" in capsys.readouterr().err
    assert once(bench, tmp_path, monkeypatch) == 0  # other sizes are no comparison
    assert (
        json.loads((tmp_path / "bench.json").read_text())["ratios"]["selection, 210 matrices, the released loop"] == 3.4
    )
