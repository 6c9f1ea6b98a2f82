"""Forecast: what a run will take on this machine - tokens, disk, memory, time - as the table that `--dry-run` prints.

Tokens and bytes come from the steps of the study, memory from the estimate of `plan` for one step on these devices,
time from the rates of the last run here with this model and sample length. Where there is none, one sample of a random
model of the same shape is scored and evaluated, once (a minute for a hundred million parameters); both are kept in
the cache folder. Models too large for that get no time.
"""

import contextlib
import datetime
import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from lingregions import evaluate, models, scoring
from lingregions import mesh as meshes
from lingregions.corpus.batch import Batch
from lingregions.experiments import context
from lingregions.experiments import step as planned
from lingregions.models import source as sources
from lingregions.plan import compiled, cost
from lingregions.run import replacing
from lingregions.settings import leaves

_GIGABYTE = 1e9
RUNTIME = 600_000_000  # bytes of Python, JAX and its compiler beside the arrays, on a CPU
_MEASURED = 500_000_000  # parameters of the largest model that is tried out for its rate
_RATES = "rates.json"


class _Rates(NamedTuple):
    """Tokens a second of scoring and of evaluation on this machine, and where they are from."""

    score: float
    evaluate: float
    origin: str


class _Memory(NamedTuple):
    """Bytes that a run needs at its peak, those that there are, and the job that needs most."""

    peak: int
    total: int
    job: str


def render(settings: ConfigDict, steps: Sequence[planned.Step], workdir: Path) -> str:
    """Return what a dry run prints: the steps with their cost, what the machine has, and the config as plain text."""
    rates = _rates(settings)
    begun = workdir if workdir.is_dir() else None
    rows = [["step", "samples", "tokens", "GB", "time", "done" if begun else "", "what"]]
    for each in steps:
        done = f"{each.finished(begun)} of {each.parts}" if begun and each.parts else ""
        rows.append([*_row(each, _seconds(each, rates)), done, each.what])
    total = planned.add(steps, "total", "")
    known = [_seconds(each, rates) for each in steps]
    rows.append([*_row(total, None if None in known else sum(filter(None, known))), "", ""])
    return "\n".join(
        [
            *_align(rows),
            "",
            f"time: {_origin(rates)}",
            f"memory: {_describe(settings)}",
            f"disk: {(total.bytes or 0) / _GIGABYTE:.2g} GB kept, {free(workdir) / _GIGABYTE:.1f} GB free at {workdir}",
            "",
            *(f"{path} = {_plain(value)}" for path, value in leaves(settings)),
        ]
    )


def _row(each: planned.Step, seconds: float | None) -> list[str]:
    size = "all" if each.bytes is None else f"{each.bytes / _GIGABYTE:.3f}"
    samples, tokens = ("all" if value is None else f"{value:,}" for value in (each.samples, each.tokens))
    return [each.name, samples, tokens, size, "?" if seconds is None else _clock(seconds)]


def _align(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[place]) for row in rows) for place in range(6)]
    lines = []
    for row in rows:
        numbers = [row[place].rjust(widths[place]) for place in range(1, 6) if widths[place]]
        lines.append("  ".join([row[0].ljust(widths[0]), *numbers, row[6]]).rstrip())
    return lines


def _plain(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _clock(seconds: float) -> str:
    if seconds >= 5400:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


# --- memory and disk --------------------------------------------------------------------------------------------------


def memory(settings: ConfigDict) -> _Memory:
    """Return the estimated peak of memory over the jobs of a config, on all local devices together, and what there is.

    Raises:
      ValueError: the size of the model is not known.
    """
    found, devices = steps(settings), len(jax.devices())
    peaks = {job: cost.memory(step).peak * devices for job, step in found.items()}
    if "evaluate" in peaks:
        peaks["evaluate"] += kept(settings, found["evaluate"].model)
    job = max(peaks, key=lambda each: peaks[each])
    host = meshes.platform() == "cpu"
    return _Memory(peaks[job] + host * RUNTIME, _host() if host else device() * devices, job)


def steps(settings: ConfigDict) -> dict[str, compiled.Step]:
    """Return the step of each job of a config, on the local devices.

    Raises:
      ValueError: the size of the model is not known.
    """
    config, mesh = planned.model_config(settings), meshes.build(**settings.machine.mesh.to_dict())
    shape = (mesh.shape["data"], mesh.shape["fsdp"], mesh.shape["tensor"])
    compute = models.Compute(**settings.compute.to_dict(), **settings.machine.compute.to_dict())
    found = {}
    for job in [job for job in ("score", "select", "evaluate", "train") if job in settings]:
        micro = settings.machine.get(f"{job}_batch", 1) * meshes.rows(mesh)
        batch = max(settings.train.batch, micro) // micro * micro if job == "train" else 0
        found[job] = compiled.Step(
            job, config, compute, shape, micro, settings.data.length, batch, preset=_preset(settings)
        )
    return found


def _preset(settings: ConfigDict) -> str:
    """Return the preset of scoring; of a study that scores nothing, the one that nothing depends on."""
    return str(settings.score.preset) if "score" in settings else "sound"


def kept(settings: ConfigDict, config: Any) -> int:
    """Return the bytes of hidden states that an evaluation keeps (see `prefix`), all devices together."""
    room: int = round(settings.machine.kept_states * _GIGABYTE)
    tokens = len(settings.evaluate.languages) * settings.evaluate.samples * settings.data.length
    width = np.dtype(settings.compute.dtype).itemsize
    return min(room, config.layers * config.embed * width * tokens) if tokens else room


def _describe(settings: ConfigDict) -> str:
    try:
        need = memory(settings)
    except ValueError as error:  # a mesh or dtype that cannot be: the door says so
        return f"not known: {error}"
    return f"about {need.peak / _GIGABYTE:.1f} GB at the most ({need.job}), {need.total / _GIGABYTE:.1f} GB there"


def _host() -> int:
    """Bytes of memory of this machine, or that its control group allows."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    said = limit.read_text().strip() if limit.is_file() else "max"
    return min(total, int(said)) if said.isdigit() else total


def device() -> int:
    """Return the bytes of memory of one device; 0 where it does not say."""
    return int((jax.devices()[0].memory_stats() or {}).get("bytes_limit", 0))


def free(folder: Path) -> int:
    """Return the bytes that are free where a folder is, or would be."""
    place = folder.expanduser().absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


# --- time -------------------------------------------------------------------------------------------------------------


def _seconds(each: planned.Step, rates: _Rates | None) -> float | None:
    if not each.tokens:
        return 0.0 if each.tokens == 0 else None
    if rates is None:
        return None
    return each.tokens / (rates.evaluate if each.name.startswith("evaluate") else rates.score)


def _origin(rates: _Rates | None) -> str:
    if rates is None:
        return "not known: no run of this model was finished here, and it is too large to be tried out"
    spoken = f"at {rates.score:,.0f} tokens a second scored (and trained on) and {rates.evaluate:,.0f} evaluated"
    return f"{spoken}, {rates.origin}"


def _rates(settings: ConfigDict) -> _Rates | None:
    """Return the rates of the last run here like this one, or else of a model of its shape that is tried out now."""
    known = recall(settings, _RATES).get(_key(settings))
    if known is not None:
        return _Rates(*known)
    if "score" not in settings:
        return None
    config = planned.model_config(settings)
    if planned.count(config, "everything") > _MEASURED:
        return None
    found = _measure(settings, config)
    keep(settings, _RATES, _key(settings), list(found))
    return found


def record(settings: ConfigDict, workdir: Path) -> None:
    """Keep the rates that a finished run has measured, for the dry runs after it."""
    amounts = {"score": [0.0, 0.0], "evaluate": [0.0, 0.0]}
    for line in (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        job = str(entry.get("description", "")).partition(" ")[0]
        if entry.get("event") == "timed" and entry.get("unit") == "tokens" and job in amounts:
            amounts[job][0] += entry["amount"]
            amounts[job][1] += entry["seconds"]
    if all(tokens and seconds for tokens, seconds in amounts.values()):
        score, evaluated = [tokens / seconds for tokens, seconds in amounts.values()]
        found = _Rates(score, evaluated, f"as the run in {workdir} measured on {_today()}")
        keep(settings, _RATES, _key(settings), list(found))


def _measure(settings: ConfigDict, config: Any) -> _Rates:
    mesh = meshes.build(**settings.machine.mesh.to_dict())
    params = models.initialize(config, jax.random.key(0), meshes.shardings(models.declare(config), mesh))
    compute = models.Compute(**settings.compute.to_dict(), **settings.machine.compute.to_dict())
    rows, length = settings.machine.score_batch * meshes.rows(mesh), settings.data.length
    tokens = np.ones((rows, length), np.int32)
    batch = Batch(tokens, np.ones_like(tokens), np.ones_like(tokens))
    scorer = scoring.Scorer(
        config, compute, context.define(settings), tuple(settings.score.rules), micro=rows, mesh=mesh
    )
    evaluator = evaluate.build(config, compute, mesh)
    sums = scorer.start(params)

    def score() -> None:
        nonlocal sums
        sums, *_ = scorer.add(params, sums, batch, lambda host: meshes.place(host, mesh))

    def evaluation() -> None:
        jax.block_until_ready(evaluator(params, meshes.place(batch, mesh), None))

    scored, evaluated = (rows * length / _time(each) for each in (score, evaluation))
    return _Rates(scored, evaluated, f"tried out on {_today()} on a random model of this shape")


def _today() -> str:
    return datetime.date.today().isoformat()


def _time(step: Callable[[], None]) -> float:
    """Seconds of a step that is compiled."""
    step()
    begin = time.monotonic()
    step()
    return max(time.monotonic() - begin, 1e-6)


def _key(settings: ConfigDict) -> str:
    device = jax.devices()[0]
    parts = (
        settings.model.source,
        settings.compute.dtype,
        settings.data.length,
        device.device_kind,
        jax.device_count(),
    )
    return " ".join(map(str, parts))


def recall(settings: ConfigDict, file: str) -> dict[str, Any]:
    """Return what a file of the cache folder keeps; what cannot be read is found out again."""
    try:
        found = json.loads((sources.folder(settings.machine.cache) / file).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def keep(settings: ConfigDict, file: str, key: str, value: Any) -> None:
    """Put a value into a file of the cache folder, where that can be written: a forecast is no reason to stop."""
    path = sources.folder(settings.machine.cache) / file
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            partial.write_text(json.dumps(recall(settings, file) | {key: value}, indent=1), encoding="utf-8")
