"""The short version of benchmarks/fuzz.py: damaged files of each kind, and what the fuzzer itself calls a failure."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

PROGRAM = Path(__file__).parents[1] / "benchmarks" / "fuzz.py"


@pytest.fixture(scope="module")
def fuzz():
    spec = importlib.util.spec_from_file_location("fuzz", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    sys.modules["fuzz"] = module
    spec.loader.exec_module(module)
    return module


def test_a_few_hundred_damaged_files_of_each_kind(fuzz):
    # In a process of its own, whose memory it bounds.
    done = subprocess.run(
        [sys.executable, PROGRAM, "--count", "100"], capture_output=True, text=True, check=False, timeout=400
    )
    assert done.returncode == 0, done.stderr[-3000:]
    # The tokenizers library has words of its own for the output.
    records = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    found = {record["format"]: record for record in records}
    assert found.keys() == fuzz.FORMATS.keys()
    for name, record in found.items():
        assert record["cases"] == record["refused"] + record["equal"] + record["other"] == 100, name
        assert record["refused"] > 30, name
        assert record["slowest_s"] < fuzz.SECONDS, name


def test_cases_are_functions_of_their_number(fuzz):
    content = bytes(range(256)) * 8
    cases = [fuzz.case("mask", content, 0, number) for number in range(50)]
    assert cases == [fuzz.case("mask", content, 0, number) for number in range(50)]
    assert len(set(cases)) > 45
    assert fuzz.case("mask", content, 1, 0) != cases[0]


@pytest.mark.parametrize(
    ("read", "checked", "expected"),
    [
        (lambda path: "original", True, "equal"),
        (lambda path: "changed", False, "other"),
        (lambda path: "changed", True, "another content than was written, accepted"),
        (lambda path: {}["a"], False, "KeyError: 'a'"),
        (lambda path: int("x"), False, "a message that names no file: ValueError"),
        (lambda path: np.ones(1 << 31), False, "MemoryError"),
    ],
)
def test_what_the_fuzzer_calls_a_failure(fuzz, tmp_path, read, checked, expected):
    form = fuzz.Format(lambda folder: folder, read, checked=checked)
    assert fuzz.outcome(form, tmp_path / "mask.pt", "original").startswith(expected)


def test_another_reader_is_asked_what_an_accepted_file_holds(fuzz, tmp_path):
    for answer, expected in (("changed", "other"), ("third", "another content than another reader finds")):
        form = fuzz.Format(lambda folder: folder, lambda path: "changed", lambda path, answer=answer: answer)
        assert fuzz.outcome(form, tmp_path / "mask.pt", "original") == expected


def test_a_case_that_takes_too_long_is_stopped(fuzz, tmp_path, monkeypatch):
    monkeypatch.setattr(fuzz, "SECONDS", 0.2)

    def forever(path):
        while True:
            pass

    assert fuzz.outcome(fuzz.Format(lambda folder: folder, forever), tmp_path / "mask.pt", "").startswith("TooSlow")
