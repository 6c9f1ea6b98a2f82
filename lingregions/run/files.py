"""Files that are whole or absent, lines that are whole or repaired, and a folder that has one writer.

What a living process holds is never touched: a folder by its lock, a half-written file by the lock on the file itself.
Costs an fsync of the file and of its folder for each replaced file; an append costs one write.
"""

import concurrent.futures
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
    errno.ESTALE: "the network disk has lost the file",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.EEXIST: "a file stands where a folder is needed",
}
_MISPLACED = (errno.ENOTDIR, errno.EEXIST)  # what a user must change


_UNLOCKABLE = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # what disks without locks answer: 37, 38, 95
# Layers beneath us (tensorstore, orbax) pass a refusal on as words; permission is not among them: others say it too.
_WORDS = {os.strerror(number): number for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)}


class RunError(RuntimeError):
    """What cannot be done as asked; the message says why and what to do. `code` is that of the process."""

    code = 2


class Unavailable(RunError):
    """The disk, the network or another process is in the way: the same command goes on when it no longer is."""

    code = 1


class InUse(Unavailable):
    """A work directory that another living process works in."""


def reason(error: BaseException | None) -> str:
    """Return in words what the operating system refused, wherever in the chain of an error that stands; else ""."""
    return _REASONS.get(_refusal(error), "")


def _refusal(error: BaseException | None) -> int:
    """Return the number of that refusal; 0: there was none."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _REASONS:
            return error.errno
        for words, number in _WORDS.items():
            if words in str(error):
                return number
        error = error.__cause__ or error.__context__
    return 0


def exit_code(error: BaseException) -> int:
    """Return the exit code of an error: 2 where the user must change something, 1 where the same may work later."""
    if isinstance(error, RunError):
        return error.code
    if number := _refusal(error):
        return 2 if number in _MISPLACED else 1
    given = (ValueError, ImportError, FloatingPointError, FileNotFoundError, FileExistsError, NotADirectoryError)
    return 2 if isinstance(error, given) else 1


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals under it into a RunError that names the path and the reason.

    Raises:
      Unavailable: the same may work later.
    """
    try:
        yield
    except RunError:
        raise
    except Exception as error:
        number = _refusal(error)
        if not number:
            raise
        kind = RunError if number in _MISPLACED else Unavailable
        raise kind(f"cannot write {path}: {_REASONS[number]}. What was complete before is intact") from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path to write; when the block ends well, the file there takes the name `path` in one step.

    When the block or the disk fails, a file that was at `path` before is untouched and the half-written one is removed.

    Raises:
      Unavailable: the disk is full, read-only or closed to us, or another living process writes the same file.
    """
    partial = path.with_name(path.name + PARTIAL)
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        held = os.open(partial, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if not _alone(held):
            raise InUse(f"{path} is being written by another process: wait for it, or stop it")
        try:
            with explained(path):
                yield partial
                with open(partial, "rb+") as file:
                    os.fsync(file.fileno())
                os.replace(partial, path)
        except BaseException:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            raise
        with explained(path):
            _sync(path.parent)
    finally:
        os.close(held)


def _alone(file: int) -> bool:
    """Take the lock of an open file, until it is closed; False when another process has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _UNLOCKABLE:
            raise
    return True


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
    """Remove everything half-written that a dead process left under `folder`; return what it was.

    A work directory inside it is left to whoever opens it, and a file to the living process that writes it.
    """
    found: list[Path] = []
    for path in sorted(folder.iterdir()):
        folded = path.is_dir() and not path.is_symlink()
        if path.name.endswith(PARTIAL) or _ORBAX in path.name:
            with explained(path):
                if folded:
                    shutil.rmtree(path)
                elif not _abandoned(path):
                    continue
                else:
                    path.unlink()
            found.append(path)
        elif folded and not (path / LOCK).exists():
            found += sweep(path)
    return found


def _abandoned(path: Path) -> bool:
    file = os.open(path, os.O_RDWR)
    try:
        return _alone(file)
    finally:
        os.close(file)


def sweep_beside(target: Path) -> list[Path]:
    """Remove what dead processes of this host left as `.<name>.partial-<process>` beside a target; return it."""
    left = [
        path for path in target.parent.glob(f".{target.name}{PARTIAL}-*") if not _alive(path.name.rpartition("-")[2])
    ]
    for path in left:
        with explained(path):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return left


def probe(folder: Path) -> None:
    """Write 64 KiB into `folder` and remove them.

    Raises:
      Unavailable: the disk is full, read-only or closed to us.
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
    """Return {bytes, sha256} of a file, or of all files of a folder with their names. Reads everything, in threads."""
    if not path.is_dir():
        size, one = _digest(path)
        return {"bytes": size, "sha256": one}
    members = sorted(member for member in path.rglob("*") if member.is_file())
    with concurrent.futures.ThreadPoolExecutor() as pool:  # hashing lets go of the interpreter
        found = list(pool.map(_digest, members))
    named = zip(members, found, strict=True)
    lines = [f"{member.relative_to(path).as_posix()} {one}\n".encode() for member, (_, one) in named]
    return {"bytes": sum(size for size, _ in found), "sha256": hashlib.sha256(b"".join(lines)).hexdigest()}


def _digest(path: Path) -> tuple[int, str]:
    """Return how many bytes a file holds, and their sha256 in hex."""
    with open(path, "rb") as file:
        one = hashlib.file_digest(file, "sha256").hexdigest()
        return file.tell(), one


LOCK = ".lock"
CLAIM = ".lock-held"  # stands for the kernel's lock on a disk that has none


class Lock:
    """One writer a folder: held by the kernel for this process, so that it ends with the process however that ends.

    A network disk may know no locks (Lustre mounted without them, NFS without its lock service). There a file is the
    lock; one left by a process that died on this host is taken over, of one on another host nobody can tell.
    """

    def __init__(self, folder: Path) -> None:
        """Take the lock of `folder`.

        Raises:
          InUse: another living process holds it; the message says which.
        """
        path, self._claim = folder / LOCK, None
        with explained(path):
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in _UNLOCKABLE:
                    raise
                self._claim = _claim(folder)
            if not path.exists() or os.fstat(self._file).st_ino != path.stat().st_ino:
                raise BlockingIOError  # moved aside between our open and our lock
        except BlockingIOError:
            holder = _holder(self._file)
            os.close(self._file)
            raise InUse(
                f"{folder} is in use by {_tell(holder)}. Wait for it, stop it, or give another --workdir"
            ) from None
        except BaseException:
            os.close(self._file)
            raise
        left = _holder(self._file)
        self.stale = _tell(left) if left else ""  # who died holding it, in words
        with explained(path):
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, _record(), 0)

    def release(self) -> None:
        """Give the folder free. The file stays: removing it would let two processes hold two files of one name."""
        os.ftruncate(self._file, 0)
        if self._claim is not None:
            self._claim.unlink(missing_ok=True)
        os.close(self._file)


def _claim(folder: Path) -> Path:
    path, own, taken = folder / CLAIM, _record(), False
    while True:
        try:
            with open(path, "xb") as file:
                file.write(own)
            time.sleep(0.5 if taken else 0)  # another process may have taken the same dead one's place over after us
            if path.read_bytes() != own:
                raise BlockingIOError
            return path
        except FileExistsError:
            with contextlib.suppress(FileNotFoundError):
                holder = _parse(path.read_bytes())
                if holder.get("host") != socket.gethostname() or _alive(holder.get("pid"), holder.get("born")):
                    raise InUse(
                        f"{folder} is in use by {_tell(holder)}, and its disk knows no locks. Wait for it, stop it, or "
                        f"remove {path} if that process is no more"
                    ) from None
                path.unlink()
                taken = True


def _record() -> bytes:
    own = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    return json.dumps({**own, "born": _born(os.getpid())}).encode()


def _alive(process: Any, born: str | None = None) -> bool:
    """Whether a process of this host lives, and is the one that was born then: numbers are given out again."""
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, OverflowError, TypeError, ValueError):
        return False
    except PermissionError:
        pass  # of another user
    return born is None or _born(int(process)) in (born, None)


def _born(process: int) -> str | None:
    """When a process began, in ticks since the start of the machine; None on a system that does not say."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def _holder(file: int) -> dict[str, Any]:
    return _parse(os.pread(file, 4096, 0))


def _parse(content: bytes) -> dict[str, Any]:
    try:
        record = json.loads(content)
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
