"""The mesh and the micro-batch for a job on a slice, by the estimates of `cost`: the least time of those that fit.

A small set is searched: every split of a slice in powers of two whose `tensor` keeps heads whole, and micro-batches of
1, 2, 4, ... samples a part of the batch axes. To choose, a third of all work but the longest kind is taken not to
overlap, so that a larger micro-batch, which gathers the weights less often, wins where it fits. Costs microseconds a
candidate; what is chosen is then compiled once.
"""

import dataclasses
from collections.abc import Iterator

from lingregions.plan import cost, hardware
from lingregions.plan.compiled import Step
from lingregions.plan.hardware import Topology

_MARGIN = 0.92  # part of the memory that an estimate may fill
_ROWS = 64  # largest micro-batch on one part of the batch axes


def _meshes(step: Step, topology: Topology) -> Iterator[tuple[int, int, int]]:
    """Yield the candidates (data, fsdp, tensor) of a topology; `data` is a multiple of the slices."""
    tensor = 1
    while tensor <= topology.chips:
        if step.model.kv_heads % tensor == 0 and topology.chips % tensor == 0:
            fsdp = topology.chips // tensor
            while fsdp >= 1:
                yield topology.devices // fsdp // tensor, fsdp, tensor
                fsdp //= 2
        tensor *= 2


def _candidates(step: Step, topology: Topology) -> Iterator[Step]:
    """Yield the step on every mesh and in every micro-batch; a mesh or micro-batch that it has (not -1, 0) is kept."""
    most = step.batch if step.job == "train" else step.group if step.job == "score" else 0
    own = step.mesh[0] > 0
    for mesh in [step.mesh] if own else _meshes(step, topology):
        parts = mesh[0] * mesh[1]
        if step.job == "select":
            yield dataclasses.replace(step, mesh=mesh, micro=parts)
            continue
        rows = 1
        while rows <= _ROWS:
            micro = step.micro or parts * rows
            whole = micro % parts == 0
            if whole and (not most or micro <= max(most, parts)):
                yield dataclasses.replace(step, mesh=mesh, micro=micro)
            if step.micro:
                break
            rows *= 2


def _filled(step: Step) -> Step:
    """Return a training step whose batch is a whole number of micro-batches."""
    if step.job != "train":
        return dataclasses.replace(step, batch=step.micro)
    return dataclasses.replace(step, batch=-(-max(step.batch, step.micro) // step.micro) * step.micro)


def _time(step: Step, topology: Topology) -> float:
    """Return seconds a sample (a selection: in all), a third of all work but the longest kind not overlapping."""
    seconds = cost.cost(step, topology).seconds(topology).values()
    total = max(seconds) + (sum(seconds) - max(seconds)) / 3
    return total / (step.batch if step.job != "select" else 1)


def ranked(step: Step, topology: Topology) -> list[Step]:
    """Return what fits by the estimate, best first: the least time a sample, within 2 % of it the least memory."""
    found = [_filled(each) for each in _candidates(step, topology)]
    found = [each for each in found if cost.memory(each).peak <= _MARGIN * topology.chip.memory]
    if not found:
        return []
    best = min(_time(each, topology) for each in found)

    def key(each: Step) -> tuple[float, int]:
        seconds = _time(each, topology)
        return (0.0 if seconds <= 1.02 * best else seconds), cost.memory(each).peak

    return sorted(found, key=key)


def refusal(chip: hardware.Chip, dtype: str) -> str | None:
    """Return why a card does not compute in a dtype; None: it does."""
    if dtype == "bfloat16" and not chip.flops:
        return f"a {chip.name} has no units for bfloat16: --dtype=float32"
    return None


def least(step: Step, topology: Topology) -> Step:
    """Return the candidate of the least memory, whether it fits or not."""
    found = [_filled(each) for each in _candidates(step, topology)]
    if not found:
        raise ValueError(
            f"no mesh of {topology.name} takes this {step.job} step: a micro-batch of {step.micro} samples does not "
            "divide over data x fsdp of any (or of the mesh given), or is larger than the batch of a training step"
        )
    return min(found, key=lambda each: cost.memory(each).peak)


def smallest(step: Step, chip: hardware.Chip) -> Topology | None:
    """Return the smallest slice of a chip, or the cheapest card, on which a step fits by the estimate; None: none."""
    free = dataclasses.replace(step, mesh=(-1, -1, -1), micro=0)
    dtype = step.compute.dtype
    cards = [Topology(each.at(dtype), 1) for each in hardware.CARDS.values() if refusal(each, dtype) is None]
    for topology in cards if chip.name in hardware.CARDS else hardware.sizes(chip):
        if ranked(dataclasses.replace(free, topology=topology.name), topology):
            return topology
    return None
