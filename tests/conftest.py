"""How every test runs: eight virtual CPU devices, nothing implicit, compiled programs kept between runs."""

import functools
import hashlib
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import jax
import pytest

from lingregions import mesh as meshes

ROOT = Path(__file__).resolve().parent.parent

# Tests compile without most optimisations, which takes less time, and so do the programs that they start: results of
# both are held against each other to the bit. `make parity` compiles as users do. By a variable of JAX: it is part of
# what compiled programs are kept under, in every process.
_plain = os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1") == "1"
jax.config.update("jax_disable_most_optimizations", _plain)
jax.config.update("jax_platforms", "cpu")
# Devices that wait for each other longer than a minute abort the process: eight share two cores, which may stand still.
_patience = "--xla_cpu_collective_call_terminate_timeout_seconds=900"
# A small program is written in one piece: to split it costs more than threads save.
_whole = "--xla_cpu_parallel_codegen_split_count=1"
# Half of the compilation of small programs goes into kernels that XLA writes in MLIR: here it writes them as it did
# before, where it can; a flag that is not known ends the process. `make parity` and `make newest` have the kernels that
# users have, and so have the tests marked `users`, whose bits hang on them: test_users.py starts these.
_kernels = "--xla_cpu_use_fusion_emitters="
_quick = ""
if _plain and jax.__version_info__ < (0, 11) and f"{_kernels}true" not in os.environ.get("XLA_FLAGS", ""):
    _quick = f"{_kernels}false"
for _flag in filter(None, (_patience, _whole, _quick)):
    if _flag not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_flag}".strip()
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "float32")

# XLA compiles for one processor: a folder for each, so that a checkout that moves never loads foreign instructions.
_cpuinfo = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
_flags = [line for line in _cpuinfo.splitlines() if line.startswith(("flags", "Features"))][:1]
_processor = hashlib.sha256(repr((platform.machine(), platform.processor(), _flags)).encode()).hexdigest()[:12]
_programs = str(ROOT / ".cache" / f"xla-{_processor}")
jax.config.update("jax_compilation_cache_dir", _programs)
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", _programs)  # programs that tests start leave the user's cache alone
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")  # they begin with none, each of them
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)

# The first example of a property compiles; a deadline would call that a failure. Each CI run sees the same examples.
hypothesis.settings.register_profile("tests", deadline=None, derandomize=bool(os.environ.get("CI")))
hypothesis.settings.load_profile("tests")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that no worker is left with one at the end; `users` run elsewhere."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
    elsewhere = [item for item in items if _quick and item.get_closest_marker("users")]
    config.hook.pytest_deselected(items=elsewhere)
    items[:] = [item for item in items if item not in elsewhere]


@pytest.fixture(scope="session")
def write() -> Any:
    """The module that computes what torch says. Without torch this is an error, not a skip."""
    from golden import write

    return write


@pytest.fixture(scope="session")
def mesh() -> jax.sharding.Mesh:
    """All eight devices: 2 x 2 x 2 over data, fsdp and tensor."""
    return meshes.build(data=2, fsdp=2, tensor=2)


@pytest.fixture(scope="session")
def lone_mesh() -> jax.sharding.Mesh:
    """One device, the same axes."""
    return meshes.build(devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def one_device() -> Iterator[None]:
    """Whole runs take one device unless a test says otherwise: the programs are smaller."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(meshes, "build", functools.partial(meshes.build, devices=jax.devices()[:1]))
        yield
