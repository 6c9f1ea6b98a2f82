"""Tests marked `users`: two programs give the same bits, with the kernels that users have; see conftest.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

_KERNELS = "--xla_cpu_use_fusion_emitters="


@pytest.mark.slow
@pytest.mark.skipif(f"{_KERNELS}false" not in os.environ["XLA_FLAGS"], reason="these tests are not left out here")
def test_programs_of_users_give_the_bits_that_are_promised() -> None:
    variables = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    variables["XLA_FLAGS"] = variables["XLA_FLAGS"].replace(f"{_KERNELS}false", f"{_KERNELS}true")
    files = [path for path in Path(__file__).parent.glob("test_*.py") if "@pytest.mark.users" in path.read_text()]
    words = [sys.executable, "-m", "pytest", "-q", "-m", "users", "-p", "no:cacheprovider", *map(str, files)]
    done = subprocess.run(words, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr  # where none is found it is 5
