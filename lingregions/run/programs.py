"""Programs that were compiled once are kept in the cache folder: the same command starts sooner the next time.

XLA compiles for one processor and its number of cores, so each kind of machine has a folder of its own, and nothing is
loaded that was compiled elsewhere; what else a program depends on (versions, flags, devices) is in JAX's own key. What
is kept is run as it is, so the folder must belong to the user. Costs a MB or two a model, and a GB at most. JAX
writes an entry under its name at once: what a killed process left half-written is removed by the next, or it would be
compiled again, and warned of, forever.
"""

import contextlib
import hashlib
import os
import platform
from pathlib import Path

import jax
from jax._src import compilation_cache  # how entries are packed has no public face

from lingregions.models import source
from lingregions.run import cluster

_FOLDER = "jax_compilation_cache_dir"
_KINDS = ("vendor_id", "cpu family", "model", "flags", "CPU ", "Features")  # lines of /proc/cpuinfo

_ROOM = 10**9  # bytes of all entries
_RECENT = 16  # entries, the newest, among which a process that was killed left its half


def keep(cache: str = "") -> Path | None:
    """Have JAX keep compiled programs in the cache folder; returns where, None where it does not.

    What the user says by JAX_COMPILATION_CACHE_DIR goes first, an empty one too, which keeps nothing. Nothing is kept
    where the folder cannot be written, nor in a run of several processes.

    Args:
      cache: the cache folder; "" is the default one.
    """
    if getattr(jax.config, _FOLDER) is not None or not cluster.alone():
        return None
    folder = source.folder(cache).absolute() / f"xla-{_machine()}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder.stat().st_uid != os.getuid() or not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            return None
        _tidy(folder)
    except OSError:  # a cache is no reason to stop
        return None
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # many small ones take seconds too
    jax.config.update(_FOLDER, str(folder))
    return folder


def _tidy(folder: Path) -> None:
    """Remove what is half-written, and of the rest what was used longest ago where the room does not suffice.

    What another process is writing meanwhile, or reads, is compiled again by the next.
    """
    entries = []
    for entry in folder.glob("*-cache"):
        with contextlib.suppress(FileNotFoundError):  # another process tidies too
            entries.append((entry.stat(), entry))
    entries.sort(key=lambda each: each[0].st_mtime, reverse=True)
    cut = {entry for _, entry in entries[:_RECENT] if not _whole(entry)}
    total = 0
    for stat, entry in sorted(entries, key=lambda each: max(each[0].st_atime, each[0].st_mtime), reverse=True):
        total += stat.st_size
        if entry in cut or total > _ROOM:
            entry.unlink(missing_ok=True)


def _whole(entry: Path) -> bool:
    """Return whether an entry can be unpacked."""
    try:
        compilation_cache.decompress_executable(entry.read_bytes())
    except Exception:  # zlib or zstandard, each with errors of its own
        return False
    return True


def _machine() -> str:
    """Return a name for the processor, its cores that this process may use, and the user."""
    file = Path("/proc/cpuinfo")
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    # Where nothing names the processor, the machine stands for it.
    lines = {line for line in text.splitlines() if line.startswith(_KINDS)} or {platform.node()}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parts = (platform.machine(), sorted(lines), cores, os.environ.get("NPROC"), os.getuid())
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]
