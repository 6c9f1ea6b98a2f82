"""Named trees of arrays on disk, through orbax: each process writes its shards, any mesh reads them back.

A name is a folder of numbered versions. A save makes the next version, which gets its number only when it is complete,
and then the older ones go: whenever the process dies, one complete version is there. Nothing is gathered on one device.
The record beside the arrays has a checksum, and holds one of the bits of every leaf (`tree.checksum`, the same on any
mesh), which a load checks: one pass over the devices' memory.
"""

import contextlib
import ctypes
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lingregions import tree as trees
from lingregions.run import files
from lingregions.run.record import seal, unseal

_SCHEMA = 2  # of the record

# Orbax writes the tracebacks of its threads to the log; it raises the same errors to us, who tell them.
logging.getLogger("absl").addFilter(lambda record: not (record.exc_info and "orbax" in record.pathname))


def _orbax() -> Any:
    """Return orbax.checkpoint, whose import takes a part of a second that a start without it need not wait for."""
    from orbax import checkpoint

    return checkpoint


def _checkpointer() -> Any:
    return _orbax().Checkpointer(_orbax().CompositeCheckpointHandler())


def _saved(leaves: dict[str, Any], record: dict[str, Any]) -> Any:
    args = _orbax().args
    return args.Composite(tree=args.StandardSave(leaves), header=args.JsonSave(record))


def newest(folder: Path) -> int:
    """Return the number of the newest complete version under `folder`; 0 when there is none."""
    return max(_versions(folder), default=0)


def save(folder: Path, version: int, tree: Any, header: dict[str, Any]) -> None:
    """Save a pytree of arrays and a JSON header as a version under `folder`, on disk on return; older ones are removed.

    Raises:
      RunError: the disk refuses; the version before stays.
    """
    leaves = dict(_walk(tree))
    record, target = _record(leaves, header), folder / str(version)
    with files.explained(target), _checkpointer() as checkpointer:
        folder.mkdir(parents=True, exist_ok=True)
        checkpointer.save(target, args=_saved(leaves, record))
        if jax.process_index() == 0:
            for older in _versions(folder):
                if older < version:
                    shutil.rmtree(folder / str(older))
    _trim()


def _trim() -> None:
    """Give the buffers of a save back to the system; glibc keeps them otherwise, 150 MB more at each 425 MB tree."""
    with contextlib.suppress(OSError, AttributeError):  # another libc has no such call, and no such habit
        ctypes.CDLL(None).malloc_trim(0)


def load(folder: Path, version: int, like: Any) -> Any:
    """Return a version under `folder` with the structure, shapes, dtypes and shardings of `like`.

    Args:
      folder: what `save` was given.
      version: what `newest` returned.
      like: a pytree of arrays or of `jax.ShapeDtypeStruct`; a leaf without sharding goes to the first local device. A
        leaf that is saved in bfloat16 and asked for in float32 is widened, which changes no value.

    Raises:
      RunError: nothing is saved there, it is not like `like` (the first path that differs is named), or it is damaged.
    """
    if not version:
        raise files.RunError(f"nothing is saved in {folder}")
    record = _read(folder, version)
    stored, wanted = _leaves(record), dict(_walk(like))
    for path in sorted({*stored, *wanted}):
        if path not in stored:
            raise files.RunError(f"{folder} holds no {path}, which is asked for; it was saved from another tree")
        if path not in wanted:
            raise files.RunError(f"{folder} holds {path}, for which there is no place; it was saved from another tree")
        held, asked = _shape(stored[path]), _shape(wanted[path])
        if asked not in (held, held.replace("bfloat16", "float32")):
            raise files.RunError(f"{folder}: {path} is saved as {held}, asked for as {asked}")
    home = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    targets = {
        path: stored[path].update(sharding=getattr(leaf, "sharding", None) or home) for path, leaf in wanted.items()
    }
    leaves = _restore(folder, version, tree=_orbax().args.StandardRestore(targets)).tree
    sums = _sums(leaves)
    for path in wanted:
        if sums[path] != record["sums"][path]:
            raise files.RunError(
                f"{folder / str(version)} is damaged: {path} does not match its checksum; remove it to make it again"
            )
    values = [leaves.pop(path).astype(leaf.dtype) for path, leaf in wanted.items()]
    return jax.tree.unflatten(jax.tree.structure(like), values)


def header(folder: Path, version: int) -> dict[str, Any] | None:
    """Return the header of a version under `folder`; None for version 0.

    Raises:
      RunError: it is damaged.
    """
    if not version:
        return None
    found: dict[str, Any] = _read(folder, version)["header"]
    return found


def shapes(folder: Path, version: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Return {path: shape and dtype} of what a version under `folder` holds: what `load` needs where no model is.

    Raises:
      RunError: nothing is saved there, or it is damaged.
    """
    if not version:
        raise files.RunError(f"nothing is saved in {folder}")
    return _leaves(_read(folder, version))


def _leaves(record: dict[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
    found = {}
    for path, words in record["leaves"].items():
        dtype, _, sizes = words.removesuffix("]").partition("[")
        found[path] = jax.ShapeDtypeStruct(tuple(map(int, filter(None, sizes.split(",")))), np.dtype(dtype))
    return found


def _record(leaves: dict[str, Any], header: dict[str, Any]) -> dict[str, Any]:
    shapes = {path: _shape(leaf) for path, leaf in leaves.items()}
    return seal({"schema": _SCHEMA, "header": header, "leaves": shapes, "sums": _sums(leaves)})


def _read(folder: Path, version: int) -> dict[str, Any]:
    found = _restore(folder, version, header=_orbax().args.JsonRestore()).header
    return unseal(folder / str(version), found, _SCHEMA)


def _sums(leaves: dict[str, Any]) -> dict[str, str]:
    """Return the checksum of every leaf, in hex: the same on any mesh.

    Each ends before the next begins, and the step that made the leaves before the first: where many devices share a few
    threads, as virtual ones do, programs with collectives that are under way together can wait for each other for ever.
    """
    jax.block_until_ready(leaves)
    parts = {path: jax.device_get(jax.block_until_ready(_sum(leaf))) for path, leaf in leaves.items()}
    return {path: "".join(f"{int(part):08x}" for part in found) for path, found in parts.items()}


@jax.jit
def _sum(leaf: jax.Array) -> jax.Array:
    return trees.checksum(_bits(leaf))


def _bits(leaf: jax.Array) -> jax.Array:
    """Return the bits of an array as uint32; entries of eight bytes become two."""
    values = jnp.asarray(leaf)
    if values.dtype == np.bool_:
        return values.astype(np.uint32)
    if values.dtype.itemsize == 8:
        return jax.lax.bitcast_convert_type(values, np.uint32)
    kind = np.dtype(f"uint{8 * values.dtype.itemsize}")
    return jax.lax.bitcast_convert_type(values, kind).astype(np.uint32)


def discard(folder: Path) -> None:
    """Remove all that is saved under `folder`; a process that dies meanwhile leaves what the next open sweeps away."""
    if folder.exists():
        going = folder.with_name(folder.name + files.PARTIAL)
        with files.explained(folder):
            folder.rename(going)
            shutil.rmtree(going)


class Checkpointer:
    """The latest checkpoints of one training, written in the background.

    They lie at `<folder>/<step>`, where `load` and `header` read them. A step is there only when it is complete, and
    only then do older ones go. Leaving the block waits for the last.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        """Take over what is in `folder`.

        Args:
          folder: made if it is not there.
          keep: how many steps stay.
        """
        self.folder = folder
        orbax = _orbax()
        options = orbax.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
        with files.explained(folder):
            self._manager = orbax.CheckpointManager(folder, options=options)

    def save(self, step: int, tree: Any, header: dict[str, Any]) -> None:
        """Begin to save a pytree of arrays and a JSON header; on return the arrays may be donated.

        Raises:
          RunError: the disk refuses, this save or the one before.
        """
        leaves = dict(_walk(tree))
        record = _record(leaves, header)
        with self._told():
            self._manager.save(step, args=_saved(leaves, record), force=True)

    def wait(self) -> None:
        """Return when everything is on disk.

        Raises:
          RunError: the disk refuses.
        """
        with self._told():
            self._manager.wait_until_finished()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Turn what a background thread raised into a RunError."""
        with files.explained(self.folder):
            try:
                yield
            except Exception as error:
                if files.reason(error) or isinstance(error, files.RunError):
                    raise
                said = (str(error).splitlines() or [type(error).__name__])[0]
                raise files.Unavailable(
                    f"cannot write {self.folder} ({said}). What was complete before is intact"
                ) from error

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.wait()
        except files.RunError:
            if error is None:  # never instead of what went wrong first
                raise
        finally:
            self._manager.close()
            _trim()


def _restore(folder: Path, version: int, **items: Any) -> Any:
    source = folder / str(version)
    try:
        with _checkpointer() as checkpointer:
            return checkpointer.restore(source, args=_orbax().args.Composite(**items))
    except Exception as error:
        # Orbax and tensorstore raise what their layers raise; for the caller it is one thing.
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise files.RunError(f"{source} is damaged and cannot be read ({said}); remove it to make it again") from error


def _versions(folder: Path) -> list[int]:
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())


def _walk(tree: Any) -> Iterator[tuple[str, Any]]:
    """Yield (path, leaf) in the order of `jax.tree.leaves`; works for any container, optimizer states included."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield jax.tree_util.keystr(path, simple=True, separator="."), leaf


def _shape(leaf: Any) -> str:
    return f"{np.dtype(leaf.dtype).name}[{','.join(map(str, leaf.shape))}]"
