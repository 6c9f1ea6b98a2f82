"""Tracker: the figures of a training in TensorBoard or Weights & Biases, beside metrics.jsonl, which has them anyway.

Neither package is needed, and neither can stop a training: what a tracker raises is told once, and it is left alone.
"""

import importlib
import logging
import re
import sys
from collections.abc import Callable, Mapping
from importlib import util
from pathlib import Path
from typing import Any

import jax

from lingregions.run.environment import masked

_logger = logging.getLogger("lingregions")

_Note = Callable[[str], None]
_Write = Callable[[int, Mapping[str, float]], None]


class Tracker:
    """Where scalars go; make one with `track`."""

    def __init__(self, kind: str, write: _Write | None, close: Callable[[], None], note: _Note) -> None:
        """Keep how to write a step's scalars and how to end; `note` is told once when that fails."""
        self.kind, self._write, self._close, self._note = kind, write, close, note

    def log(self, step: int, **scalars: float) -> None:
        """Write the scalars of a step."""
        if self._write is not None:
            self._try(lambda: self._write and self._write(step, scalars))

    def close(self) -> None:
        """Write what is still in memory."""
        if self._write is not None:
            self._try(self._close)
            self._write = None

    def _try(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except Exception as error:  # the tracker is down: whatever it raises, the training is worth more
            self._write = None
            self._note(f"{self.kind} is left alone from here on ({_say(error)}); see metrics.jsonl")


def _say(error: Exception) -> str:
    """Return an error in words, without the key that a server's answer may repeat."""
    return re.sub(r"[A-Za-z0-9_-]{32,}", "***", f"{type(error).__name__}: {masked(str(error))}")


def _tensorboard(folder: Path, name: str, config: Mapping[str, Any]) -> tuple[_Write, Callable[[], None]]:
    writer = importlib.import_module("tensorboard.summary").Writer(str(folder / "tensorboard" / name))

    def write(step: int, scalars: Mapping[str, float]) -> None:
        for key, value in scalars.items():
            writer.add_scalar(key, value, step)
        writer.flush()

    return write, writer.close


def _wandb(folder: Path, name: str, config: Mapping[str, Any]) -> tuple[_Write, Callable[[], None]]:
    library = importlib.import_module("wandb")
    # The same id after a kill: the page goes on. It may not hold blanks or signs such as %.
    identity = re.sub(r"[^A-Za-z0-9_.-]+", "-", name)
    folder.mkdir(parents=True, exist_ok=True)
    run = library.init(
        project="lingregions", name=name, id=identity, resume="allow", dir=str(folder), config=dict(config)
    )
    return lambda step, scalars: run.log(dict(scalars), step=step), run.finish


TRACKERS: dict[str, Callable[[Path, str, Mapping[str, Any]], tuple[_Write, Callable[[], None]]] | None] = {
    "none": None,
    "tensorboard": _tensorboard,
    "wandb": _wandb,
}


def require(kind: str) -> None:
    """Check that a tracker can be had, before the first hour of work.

    Raises:
      ValueError: no such kind.
      ModuleNotFoundError: the package is not installed; says how to get it.
    """
    if kind not in TRACKERS:
        raise ValueError(f"tracker is {kind!r}; it must be one of {', '.join(TRACKERS)}")
    found = sys.modules[kind] if kind in sys.modules else util.find_spec(kind)
    if TRACKERS[kind] is not None and found is None:
        raise ModuleNotFoundError(
            f"the tracker {kind!r} needs a package that is not installed: pip install {kind}, or choose 'none'; "
            "metrics.jsonl has every figure either way"
        )


def track(kind: str, folder: Path, name: str, config: Mapping[str, Any], note: _Note = _logger.warning) -> Tracker:
    """Return the tracker of one training; of several processes the first one tracks.

    Args:
      kind: a key of `TRACKERS`.
      folder: where it keeps its files, made if it is not there.
      name: of the training.
      config: for the tracker's own page.
      note: told when the tracker fails.

    Raises:
      ValueError: no such kind.
      ModuleNotFoundError: the package is not installed; says how to get it.
    """
    require(kind)
    make, done = TRACKERS[kind], Tracker(kind, None, lambda: None, note)
    if make is None or jax.process_index() != 0:
        return done
    try:
        return Tracker(kind, *make(folder, name, config), note)
    except Exception as error:  # its server cannot be reached, say
        note(f"{kind} does not start ({_say(error)}); metrics.jsonl has every figure")
        return done
