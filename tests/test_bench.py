"""The table of the benchmarks: what it compares with, and when it fails."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

FILE = Path(__file__).parent.parent / "benchmarks" / "bench.py"
SPEED = {"ratio_default_malloc": 1.1, "ratio_tuned_malloc": 0.9}
FOUND: dict[str, dict[str, Any]] = {
    "score_step": SPEED,
    "train_step": {"tokens_per_second": {}},  # of a busy machine: no ratio
    "removals": {"ratio": 1.3},
    "by_layer": {"scalars": {"ratio": 1.6}, "layers": {"ratio": 1.5}},
    "selection": {"ratio": 7.0},
    "growth": {"ratio": 0.9, "axes": {"devices": {"sizes": [1, 8], "operations": [8e9, 1e9], "exponent": -1.0}}},
}


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
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
    assert {row.script for row in bench.ROWS} == FOUND.keys()
    for row in bench.ROWS:
        assert (FILE.parent / f"{row.script}.py").is_file()


def test_a_script_runs_once_and_a_busy_machine_gives_no_ratio(bench: Any, tmp_path: Path, monkeypatch: Any) -> None:
    assert once(bench, tmp_path, monkeypatch) == 0
    assert sorted(bench.asked) == sorted([*FOUND, "score_step"])  # scoring, and evaluation
    lines = (tmp_path / "bench.md").read_text().splitlines()
    assert "| score step | torch, malloc tuned | 0.90 | – |" in lines
    assert lines[-1] == "| devices | 1, 8 | 8e+09, 1e+09 operations | -1.00 |"
    assert "| training step | torch's fused AdamW, as it comes | – | – |" in lines


def test_a_ratio_that_fell_fails_and_is_named(bench: Any, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    once(bench, tmp_path, monkeypatch, "--quick")
    monkeypatch.setitem(FOUND, "selection", {"ratio": 5.0})
    assert once(bench, tmp_path, monkeypatch, "--quick") == 0  # by less than 30 %
    monkeypatch.setitem(FOUND, "selection", {"ratio": 3.4})
    assert once(bench, tmp_path, monkeypatch, "--quick") == 1
    assert "selection, 210 matrices, the released loop: 3.40, and it was 5.00" in capsys.readouterr().err
    assert once(bench, tmp_path, monkeypatch) == 0  # other sizes are no comparison
    assert (
        json.loads((tmp_path / "bench.json").read_text())["ratios"]["selection, 210 matrices, the released loop"] == 3.4
    )
