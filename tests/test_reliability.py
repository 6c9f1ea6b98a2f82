"""The table of faults: every fault of the field has a row, and every test that it names is there."""

import re
from pathlib import Path

TESTS = Path(__file__).parent
TABLE = (TESTS.parent / "docs" / "reliability.md").read_text().partition("|---|---|---|---|\n")[2]
ROWS = TABLE.splitlines()


def test_every_fault_has_a_row() -> None:
    assert {int(found[1]) for row in ROWS if (found := re.match(r"\| (\d+)", row))} == set(range(1, 26))


def test_every_test_that_a_row_names_is_there() -> None:
    named = [re.findall(r"`(test_\w+\.py)::(test_\w+)`", row) for row in ROWS]
    assert all(named)
    missing = [
        f"{file}::{test}"
        for file, test in sorted({pair for pairs in named for pair in pairs})
        if f"def {test}(" not in (TESTS / file).read_text()
    ]
    assert missing == []
