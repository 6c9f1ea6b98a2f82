"""Micro: the most samples a step that memory holds, for `machine.micro = "auto"`.

The estimate of `plan.cost` names a size, and the compiler of this machine confirms it, or a smaller one: at most three
compilations a job, usually one, and that is the program that the run then takes from the cache of programs. What the
compiler said is kept in the cache folder. No figure depends on the size but for rounding (scores not even by that).
"""

import dataclasses
import hashlib
import json
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from lingregions import VERSION, forecast, models
from lingregions import mesh as meshes
from lingregions import tree as trees
from lingregions.models import roles
from lingregions.plan import compiled, cost

_PEAKS = "micro.json"  # in the cache folder: what the compiler said
_MOST = 64  # samples a step on each part of the batch axes: more is no faster anywhere
_TRIES = 3
_SHARE = {"cpu": 0.7}  # of the memory that is free, for what the compiler does not count; elsewhere 0.9


def choose(settings: ConfigDict) -> dict[str, int]:
    """Set the batches of `settings.machine` to the most samples that fit, if it asks for that, and return them.

    All processes of a run come to the same answer, such as {"score_batch": 8}.
    """
    found: dict[str, int] = {}
    if settings.machine.get("micro", "given") != "auto":
        return found
    for job, step in forecast.steps(settings).items():
        if f"{job}_batch" in settings.machine:
            found[f"{job}_batch"] = settings.machine[f"{job}_batch"] = _largest(settings, step)
    return found


def _largest(settings: ConfigDict, step: compiled.Step) -> int:
    """Return the most samples, on each part of the batch axes, whose step fits; 1 where none does."""
    parts, room = step.mesh[0] * step.mesh[1], _room(settings, step)
    sizes = _sizes(settings, step, parts)
    said, tries = 1.0, 0
    for rows in reversed(sizes):
        micro = rows * parts
        whole = max(settings.train.batch, micro) // micro * micro if step.job == "train" else 0
        tried = dataclasses.replace(step, micro=micro, batch=whole)
        estimate = cost.memory(tried).peak
        if estimate * said > room:
            continue
        peak = _peak(settings, tried)
        if peak <= room or (tries := tries + 1) == _TRIES:
            return rows if peak <= room else 1
        said = peak / estimate
    return 1


def _sizes(settings: ConfigDict, step: compiled.Step, parts: int) -> list[int]:
    """Return the samples a step to choose from, ascending: no step of padding alone, no micro-batch that is cut."""
    powers = [1 << power for power in range(_MOST.bit_length())]
    if step.job == "train":
        return [rows for rows in powers if settings.train.batch % (rows * parts) == 0] or [1]
    whole = settings[step.job].samples * (len(settings.evaluate.languages) if step.job == "evaluate" else 1)
    if not whole:  # all that there are
        return powers
    # As many steps, evenly filled.
    return sorted({-(-whole // (parts * -(-whole // (parts * rows)))) for rows in powers})


def _room(settings: ConfigDict, step: compiled.Step) -> float:
    """Return the bytes of one device, of the devices' smallest part, that a step may take."""
    platform, devices = meshes.platform(), len(jax.devices())
    room = _available() - forecast.RUNTIME if platform == "cpu" else forecast.device() * devices
    room *= _SHARE.get(platform, 0.9)
    if step.job == "evaluate":
        room -= forecast.kept(settings, step.model)
    elif step.job == "score":  # the sums of the rules beside the preset's, and of finished snapshots
        declared = roles.restrict(models.declare(step.model), "decoder")
        size = sum(int(np.prod(each.shape)) for each in trees.flatten(declared).values())
        room -= 4 * size * len(settings.score.rules)
    if jax.process_count() > 1:
        room = float(multihost_utils.broadcast_one_to_all(np.float64(room)))
    return room / devices


def _available() -> float:
    """Return the bytes of this host's memory that are free, or that its control group leaves."""
    lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    (free,) = (int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    limit, used = (Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))
    said = limit.read_text(encoding="utf-8").strip() if limit.is_file() else "max"
    return min(free, int(said) - int(used.read_text(encoding="utf-8"))) if said.isdigit() else free


def _peak(settings: ConfigDict, step: compiled.Step) -> int:
    """Return the bytes a device that the compiler says a step needs, from the cache folder where it has been asked."""
    device = jax.devices()[0]
    fields = dataclasses.asdict(step) | {"model": models.dump(step.model)}
    text = json.dumps([fields, VERSION, jax.__version__, device.platform, device.device_kind], sort_keys=True)
    key = hashlib.sha256(text.encode()).hexdigest()[:16]
    known = forecast.recall(settings, _PEAKS).get(key)
    if isinstance(known, int):
        return known
    said = compiled.compile(step)
    peak = said.peak if said.fits else said.needed
    forecast.keep(settings, _PEAKS, key, peak)
    return peak
