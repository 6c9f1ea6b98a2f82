"""Compiled programs that are kept: the same figures from them, and no harm where they cannot be kept or read."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from jax._src import compilation_cache

from lingregions.run import programs

SMALL = [
    "--config.score.languages=ar",
    "--config.evaluate.languages=sw",
    "--config.select.monolingual=False",
    "--config.machine.pictures=False",
]


@pytest.fixture
def unset(monkeypatch):
    """JAX as it is without JAX_COMPILATION_CACHE_DIR; the cache of the tests comes back."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.mark.parametrize("said", ["/somewhere", ""])
def test_what_the_user_says_goes_first(tmp_path, unset, said):
    jax.config.update("jax_compilation_cache_dir", said)
    assert programs.keep(str(tmp_path)) is None
    assert jax.config.jax_compilation_cache_dir == said
    assert list(tmp_path.iterdir()) == []


def test_another_machine_has_another_folder(tmp_path, unset, monkeypatch):
    found = set()
    text = "flags\t: fpu avx2\nmodel name\t: A\ncpu MHz\t: 2596.120\n"
    for old, new in (("", ""), ("avx2", "avx512f"), ("A\n", "B\n"), ("2596", "2600")):
        changed = text.replace(old, new) if old else text
        monkeypatch.setattr(Path, "read_text", lambda *_, said=changed, **__: said)
        jax.config.update("jax_compilation_cache_dir", None)
        folder = programs.keep(str(tmp_path))
        assert folder is not None
        assert jax.config.jax_compilation_cache_dir == str(folder)
        assert folder.stat().st_mode & 0o077 == 0
        found.add(folder)
    assert len(found) == 3  # a clock that has changed is the same machine


def test_a_folder_that_cannot_be_written_or_is_of_another_user_keeps_nothing(tmp_path, unset, monkeypatch):
    (tmp_path / "file").write_text("")
    assert programs.keep(str(tmp_path / "file")) is None
    assert programs.keep(str(tmp_path)) is not None
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert programs.keep(str(tmp_path)) is None
    assert jax.config.jax_compilation_cache_dir is None


def test_what_a_killed_process_cut_is_removed_and_the_folder_has_a_bound(tmp_path, unset, monkeypatch):
    def entries() -> list[str]:
        jax.config.update("jax_compilation_cache_dir", None)
        folder = programs.keep(str(tmp_path))
        return sorted(file.name for file in folder.glob("*-cache"))

    assert entries() == []
    (folder,) = tmp_path.glob("xla-*")
    whole = compilation_cache.compress_executable(os.urandom(1000))
    for number in range(5):
        (folder / f"{number}-cache").write_bytes(whole)
    (folder / "cut-cache").write_bytes(whole[:-1])
    (folder / "empty-cache").write_bytes(b"")
    assert entries() == [f"{number}-cache" for number in range(5)]
    for number, used in enumerate((2000, 1001, 1002, 1003, 1004)):  # the first was used last
        os.utime(folder / f"{number}-cache", (used, 1000 + number))
    monkeypatch.setattr(programs, "_ROOM", 3 * len(whole))
    assert entries() == ["0-cache", "3-cache", "4-cache"]


@pytest.mark.slow
def test_kept_and_damaged_programs_give_the_bits_of_new_ones(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    environment |= {"JAX_PLATFORMS": "cpu", "LINGREGIONS_CACHE": str(tmp_path / "cache")}
    environment["JAX_DEBUG_LOG_MODULES"] = "jax._src.compiler"

    def run(name: str) -> tuple[dict[str, bytes], list[Path], int]:
        """Return what a run in a process of its own writes, the programs that are kept then, and how many it loaded."""
        work = tmp_path / name
        command = [sys.executable, "-m", "lingregions.main", "run", "core_removal:tiny", f"--workdir={work}", *SMALL]
        done = subprocess.run(command, check=True, env=environment, timeout=300, stderr=subprocess.PIPE, text=True)
        files = [work / "results.csv", *work.glob("regions/*"), *work.glob("scores/*/*")]
        written = {str(file.relative_to(work)): file.read_bytes() for file in files if file.is_file()}
        loaded = done.stderr.count("Persistent compilation cache hit")
        return written, sorted(tmp_path.glob("cache/xla-*/*-cache")), loaded

    new, kept, _ = run("new")
    assert len(new) > 2
    assert len(kept) > 20
    again, after, loaded = run("kept")
    assert again == new
    assert after == kept
    assert loaded >= len(kept)
    for file in kept:  # a process was killed while it wrote
        file.write_bytes(file.read_bytes()[:-100])
    assert run("damaged")[0] == new
