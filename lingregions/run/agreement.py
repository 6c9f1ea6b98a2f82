"""Agreement: what all processes of a run must have in common - an answer, the config, the work directory."""

import contextlib
import hashlib
import json
import time
import uuid
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from lingregions.run import cluster, files
from lingregions.run.files import RunError
from lingregions.run.stored_config import difference

_SIGHT = 60.0  # seconds until a file that one host wrote is seen by the others, on a slow shared disk


def agree(value: Any) -> Any:
    """Return process 0's value (JSON) in every process."""
    if jax.process_count() == 1:
        return value
    content = np.frombuffer(json.dumps(value).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(content.size)))
    if jax.process_index() != 0:
        content = np.zeros(size, np.uint8)
    return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(content)).tobytes())


def require_same_config(config: dict[str, Any], wait: float) -> None:
    """Refuse to start when the processes were given different configs."""
    if cluster.alone() and jax.process_count() > 1:  # the runtime of a TPU pod joins its hosts without asking
        raise RunError(
            f"this is one of {jax.process_count()} processes, and they have not met: "
            "set --config.machine.distributed=True"
        )
    text = json.dumps(config, sort_keys=True)
    said = cluster.exchange("the comparison of configs", hashlib.sha256(text.encode()).hexdigest(), wait)
    others = [number for number, (_, digest) in enumerate(said) if digest != said[0][1]]
    if not others:
        return
    every = [json.loads(value) for _, value in cluster.exchange("the difference of configs", text, wait)]
    lines = [
        f"process {number} ({said[number][0]}) was started with another config than process 0 ({said[0][0]}): {line}"
        for number in others
        for line in difference(every[0], every[number])
    ]
    raise RunError("\n".join([*lines[:20], "Give all processes the same command"]))


def require_same_folder(folder: Path, wait: float) -> None:
    """Check that every process has the work directory of process 0, not a folder of that name on its own disk."""
    if cluster.alone():
        return
    path, mark = folder / f".shared{files.PARTIAL}", agree(uuid.uuid4().hex)
    if jax.process_index() == 0:
        path.write_text(mark)
    seen, end = False, time.monotonic() + min(wait, _SIGHT)
    cluster.exchange("the opening of the work directory", timeout=wait)
    while not seen and time.monotonic() < end:
        with contextlib.suppress(OSError):
            seen = path.read_text() == mark
        if not seen:
            time.sleep(0.5)
    said = cluster.exchange("the sight of the work directory", "" if seen else "no", wait + _SIGHT)
    if jax.process_index() == 0:
        path.unlink(missing_ok=True)
    blind = [f"process {number} ({host})" for number, (host, answer) in enumerate(said) if answer]
    if blind:
        raise RunError(
            f"{', '.join(blind)} cannot see what process 0 ({said[0][0]}) writes into {folder}: give as --workdir a "
            "folder that all hosts share (a mounted network disk or bucket)"
        )
