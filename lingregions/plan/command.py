"""`lingregions plan`: does a job fit on a slice, how long does it take at best, and which slice is the smallest?

lingregions plan --model=llama2-7b --topology=v5e-16 --job=score
lingregions plan --model=llama3.2-1b --topology=l4 --job=score --parameters=bfloat16
lingregions plan --model=llama2-13b --topology=v4-32 --job=train --batch=256 --record=plans.jsonl
lingregions plan --table=plans.jsonl > slices.md
"""

import dataclasses
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lingregions import models, verbs
from lingregions.plan import compiled, hardware, plan, table


def _local() -> hardware.Topology:
    """Return the local devices as a topology; what an unknown device does a second is taken as without limit."""
    import jax

    devices = jax.devices()
    kind = str(devices[0].device_kind)
    known = next((chip for text, chip in hardware.LOCAL.items() if text in kind), None)
    stats = devices[0].memory_stats() or {}
    memory = stats.get("bytes_limit") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // len(devices)
    unlimited = float("inf")
    chip = known or hardware.Chip(kind, memory, unlimited, unlimited, unlimited, 1, 1)
    slices = len({getattr(device, "slice_index", None) for device in devices if device.platform == "tpu"}) or 1
    return hardware.Topology(dataclasses.replace(chip, memory=memory), len(devices) // slices, slices)


def _model(name: str) -> Any:
    """Return the config of a preset, or of a folder with a Hugging Face config.json.

    Raises:
      ValueError: neither.
    """
    preset, folder = name.removeprefix("preset:"), Path(name)
    if preset in models.PRESETS:
        return models.PRESETS[preset]
    path = folder if folder.suffix == ".json" else folder / "config.json"
    if path.is_file():
        return models.parse(json.loads(path.read_text(encoding="utf-8")))
    raise ValueError(
        f"no model {name!r}: there are {', '.join(models.PRESETS)}, or give a folder that holds a config.json"
    )


def main(words: Sequence[str]) -> int:
    """Run `lingregions plan`; returns the exit code: 0, also where the job does not fit.

    Raises:
      ValueError: what was asked for does not exist, or libtpu is missing.
    """
    asked = verbs.plan().parse_args(words)
    if asked.table:
        print(table.render(asked.table), end="")
        return 0
    if not asked.model:
        raise ValueError(f"--model is missing: {', '.join(models.PRESETS)}, or a folder with a config.json")
    for name in ("micro", "batch", "samples"):
        if getattr(asked, name) < 0:
            raise ValueError(f"--{name} is {getattr(asked, name)}; it must be at least 1")
    if asked.length < 2:
        raise ValueError(f"--length is {asked.length}; a sample needs at least 2 tokens")
    config = _model(asked.model)
    topology = hardware.parse(asked.topology) if asked.topology else _local()
    if not 0 < asked.utilisation <= 1:
        raise ValueError(f"--utilisation is {asked.utilisation:g}; it is a part of the peak: above 0, at most 1")
    card = topology.chip.name in hardware.CARDS
    if card and (refused := plan.refusal(topology.chip, asked.dtype)):
        raise ValueError(refused)
    topology = dataclasses.replace(topology, chip=topology.chip.at(asked.dtype))
    if asked.topology and not card and not asked.estimate and not compiled.installed():
        raise ValueError(f"{compiled.ADVICE}; or add --estimate, which compiles nothing")
    if asked.mesh[0] > 0 and math.prod(asked.mesh) != topology.devices:
        raise ValueError(f"--mesh={asked.mesh} does not multiply to the {topology.devices} chips of {topology.name}")
    train = asked.job == "train"
    step = compiled.Step(
        job=asked.job,
        model=config,
        compute=models.Compute(
            dtype=asked.dtype,
            parameters=asked.parameters,
            precision=asked.precision,
            remat=asked.remat,
            attention=asked.attention,
        ),
        mesh=asked.mesh,
        micro=asked.micro or (0 if train else asked.batch),
        length=asked.length,
        batch=(asked.batch or plan.TRAIN_BATCH) if train else 0,
        topology=asked.topology,
        preset=asked.preset,
    )
    compiling = not (asked.estimate or card)  # no compiler for a card that is not here
    made = plan.make(asked.model, topology, step, asked.samples, compiling, asked.quick, asked.utilisation)
    print(plan.describe(made))
    if asked.record:
        asked.record.parent.mkdir(parents=True, exist_ok=True)
        with asked.record.open("a", encoding="utf-8") as file:
            file.write(json.dumps(plan.record(made)) + "\n")
    return 0
