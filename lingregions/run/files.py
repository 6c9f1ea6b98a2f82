"""Files that are whole or absent, lines that are whole or repaired, and a folder that has one writer.

Costs an fsync of the file and of its folder for each replaced file; an append costs one write.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PARTIAL = ".partial"  # ends the name of a file that is being written
_ORBAX = ".orbax-checkpoint-tmp"  # is in the name of a tree that orbax is writing

_REASONS = {
    errno.ENOSPC: "no space is left on the disk",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file would be larger than this process may write",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission is denied",
    errno.EPERM: "the operation is not permitted",
    errno.EIO: "the disk reports an input/output error",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.EEXIST: "a file stands where a folder is needed",
}


class RunError(RuntimeError):
    """A work directory that cannot be used as asked; the message says why and what to do."""


class InUse(RunError):
    """A work directory that another living process works in."""


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals under it into a RunError that names the path and the reason."""
    try:
        yield
    except OSError as error:
        if error.errno not in _REASONS:
            raise
        raise RunError(f"cannot write {path}: {_REASONS[error.errno]}. What was complete before is intact") from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path to write; when the block ends well, the file there takes the name `path` in one step.

    When the block or the disk fails, a file that was at `path` before is untouched and the half-written one is removed.

    Raises:
      RunError: the disk is full, read-only or closed to us.
    """
    partial = path.with_name(path.name + PARTIAL)
    try:
        with explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield partial
            with open(partial, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(partial, path)
            _sync(path.parent)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def write(path: Path, content: bytes) -> None:
    """Put `content` at `path`, whole or not at all."""
    with replacing(path) as partial:
        partial.write_bytes(content)


def append(path: Path, line: bytes) -> None:
    """Add one line; when the disk refuses, the file is as long as before and a RunError says why."""
    with explained(path), open(path, "ab", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        try:
            written = file.write(line)
            if written != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            file.truncate(size)
            raise


def repair(path: Path) -> bytes:
    """Cut off a last line without its end, left by a process that died in the middle of it, and return it."""
    if not path.exists():
        return b""
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with explained(path):
            os.truncate(path, whole)
    return content[whole:]


def sweep(folder: Path) -> list[Path]:
    """Remove everything half-written that a dead process left under `folder`; return what it was."""
    found = {path for path in folder.rglob("*") if path.name.endswith(PARTIAL) or _ORBAX in path.name}
    outermost = sorted(path for path in found if not any(parent in found for parent in path.parents))
    for path in outermost:
        with explained(path):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return outermost


def probe(folder: Path) -> None:
    """Write 64 KiB into `folder` and remove them.

    Raises:
      RunError: the disk is full, read-only or closed to us.
    """
    path = folder / f".probe{PARTIAL}"
    try:
        with explained(folder), open(path, "wb") as file:
            file.write(bytes(1 << 16))
            file.flush()
            os.fsync(file.fileno())
    finally:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def digest(path: Path) -> dict[str, Any]:
    """Return {bytes, sha256} of a file, or of all files of a folder with their names. Reads everything."""
    members = sorted(member for member in path.rglob("*") if member.is_file()) if path.is_dir() else [path]
    total, every = 0, hashlib.sha256()
    for member in members:
        with open(member, "rb") as file:
            one = hashlib.file_digest(file, "sha256")
            total += file.tell()
        if path.is_dir():
            every.update(f"{member.relative_to(path).as_posix()} {one.hexdigest()}\n".encode())
        else:
            every = one
    return {"bytes": total, "sha256": every.hexdigest()}


class Lock:
    """One writer a folder: held by the kernel for this process, so that it ends with the process however that ends."""

    def __init__(self, folder: Path) -> None:
        """Take the lock of `folder`.

        Raises:
          InUse: another living process holds it; the message says which.
        """
        path = folder / ".lock"
        with explained(path):
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not path.exists() or os.fstat(self._file).st_ino != path.stat().st_ino:
                raise BlockingIOError  # moved aside between our open and our lock
        except BlockingIOError:
            holder = _holder(self._file)
            os.close(self._file)
            raise InUse(
                f"{folder} is in use by {_tell(holder)}. Wait for it, stop it, or give another --workdir"
            ) from None
        left = _holder(self._file)
        self.stale = _tell(left) if left else ""  # who died holding it, in words
        record = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        with explained(path):
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, json.dumps(record).encode(), 0)

    def release(self) -> None:
        """Give the folder free. The file stays: removing it would let two processes hold two files of one name."""
        os.ftruncate(self._file, 0)
        os.close(self._file)


def _holder(file: int) -> dict[str, Any]:
    try:
        record = json.loads(os.pread(file, 4096, 0))
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def _tell(record: dict[str, Any]) -> str:
    if not record:
        return "another process"
    return f"process {record.get('pid')} on {record.get('host')} since {record.get('since')}"


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
