"""Plan: what is known of one job on one topology, as plain values to be recorded, and the sentences that say it.

Mesh and micro-batch are chosen by the estimates of `cost`: the least time of those that fit. A small set is searched:
every split of a slice in powers of two whose `tensor` keeps heads whole, and micro-batches of 1, 2, 4, ... samples a
part of the batch axes. To choose, a third of all work but the longest kind is taken not to overlap, so that a larger
micro-batch, which gathers the weights less often, wins where it fits. Costs microseconds a candidate; what is chosen
is then compiled once.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

from lingregions import models
from lingregions import tree as trees
from lingregions.plan import compiled, cost, hardware

# Samples of a whole job, where --samples does not say: the paper's scoring of six languages, the evaluation of one
# intervention in thirty, and its further pre-training.
_SAMPLES = {"score": 600_000, "evaluate": 30_000, "train": 100_000, "select": 1}
TRAIN_BATCH = 256
_MARGIN = 0.92  # part of the memory that an estimate may fill
_ROWS = 64  # largest micro-batch on one part of the batch axes


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What is known of one job on one topology, as a record of plain values.

    Attributes:
      model: name of the model.
      parameters: of it.
      topology: name of the slice.
      chips: devices in all.
      job: one of `JOBS`.
      mesh: data, fsdp, tensor.
      micro: samples of a micro-batch.
      batch: samples of a step.
      length: tokens a sample.
      dtype: of activations.
      remat: what the backward pass keeps.
      memory: bytes a chip has.
      compiled: what the compiler says; None if only estimated.
      estimate: (arguments, temporaries) bytes by `cost.memory`.
      cost: of a step.
      seconds: least seconds of each kind of work of a step.
      samples: of the whole job.
      smallest: name of the smallest slice of the chip that fits, by estimate; "" if none does.
    """

    model: str
    parameters: int
    topology: str
    chips: int
    job: str
    mesh: tuple[int, int, int]
    micro: int
    batch: int
    length: int
    dtype: str
    remat: str
    memory: int
    compiled: compiled.Compiled | None
    estimate: cost.Memory
    cost: cost.Cost
    seconds: dict[str, float]
    samples: int
    smallest: str
    utilisation: float = 1.0

    @property
    def peak(self) -> int:
        """Bytes a chip at the most: the compiler's figure, or the estimate."""
        if self.compiled is None:
            return self.estimate.peak
        return self.compiled.peak or self.compiled.needed

    @property
    def fits(self) -> bool:
        """Whether the step can run."""
        if self.compiled is None or not self.compiled.fits:
            return self.compiled is None and self.peak <= self.memory
        return self.peak <= self.memory

    @property
    def steps(self) -> int:
        """Steps of the whole job."""
        return 1 if self.job == "select" else -(-self.samples // self.batch)

    @property
    def hours(self) -> float:
        """Least hours of the whole job."""
        return self.steps * max(self.seconds.values()) / 3600


def make(
    name: str,
    topology: hardware.Topology,
    step: compiled.Step,
    samples: int = 0,
    compiling: bool = True,
    quick: bool = False,
    utilisation: float = 1.0,
) -> _Plan:
    """Return the plan of a job: the best mesh and micro-batch that fit, confirmed by the compiler.

    Args:
      name: of the model, for the record.
      topology: where it is to run.
      step: job, model and sizes; a mesh of -1s and a micro-batch of 0 are chosen.
      samples: of the whole job; 0: `_SAMPLES`.
      compiling: False: estimate only.
      quick: compile fast; the memory is then no more than a bound.
      utilisation: part of the least speed that is expected to be reached.

    Raises:
      ValueError: no mesh takes the step, or libtpu is missing.
    """
    options = _ranked(step, topology)
    # What the estimate lets through and the compiler does not is tried once more with the least memory.
    tries = list(dict.fromkeys([*options[:1], _least(step, topology)]))
    found: compiled.Compiled | None = None
    for chosen in tries:
        found = compiled.compile(chosen, quick) if compiling else None
        if found is None or (found.fits and found.peak <= topology.chip.memory):
            break
    wanted = dataclasses.replace(step, batch=step.batch if step.job == "train" else 0)
    named = topology.chip.name in hardware.CHIPS or topology.chip.name in hardware.CARDS
    smallest = _smallest(wanted, topology.chip) if named else None
    reached = cost.cost(chosen, topology)
    return _Plan(
        model=name,
        parameters=trees.count(models.declare(step.model)),
        topology=topology.name,
        chips=topology.devices,
        job=step.job,
        mesh=chosen.mesh,
        micro=chosen.micro,
        batch=chosen.batch,
        length=step.length,
        dtype=step.compute.dtype,
        remat=cost.remat(step),
        memory=topology.chip.memory,
        compiled=found,
        estimate=cost.memory(chosen),
        cost=reached,
        seconds=reached.seconds(topology),
        samples=samples or _SAMPLES[step.job],
        smallest="" if smallest is None else smallest.name,
        utilisation=utilisation,
    )


def record(plan: _Plan) -> dict[str, Any]:
    """Return a plan as JSON values: its fields and what follows from them."""
    fields = dataclasses.asdict(plan) | {"cost": plan.cost._asdict()}
    return fields | {"peak": plan.peak, "fits": plan.fits, "steps": plan.steps, "hours": plan.hours}


def describe(plan: _Plan) -> str:
    """Return a plan as lines of text."""
    size = f"{plan.parameters / 1e9:.2f} billion" if plan.parameters > 1e9 else f"{plan.parameters / 1e6:.1f} million"
    lines = [
        f"{plan.model} ({size} parameters), {plan.job} on {plan.topology}: {plan.chips} "
        f"{'chip' if plan.chips == 1 else 'chips'} of {_gibibytes(plan.memory)}"
    ]

    def add(label: str, text: str) -> None:
        lines.append(f"  {label:<12}{text}")

    data, fsdp, tensor = plan.mesh
    add("mesh", f"data {data} x fsdp {fsdp} x tensor {tensor}")
    if plan.job != "select":
        step = f" in a step of {plan.batch}" if plan.batch != plan.micro else ""
        add("micro-batch", f"{plan.micro} samples of {plan.length} tokens{step}")
        add("compute", f"{plan.dtype}, remat {plan.remat}")
    verdict = "fits" if plan.fits else "DOES NOT FIT"
    if plan.compiled is None:
        parts = [_gibibytes(each) for each in plan.estimate]
        how = "by estimate"
    else:
        parts = [_gibibytes(each) for each in (plan.compiled.arguments, plan.compiled.temporaries)]
        how = f"compiled in {plan.compiled.seconds:.0f} s"
    if plan.compiled is not None and not plan.compiled.fits:
        add("memory", f"needs {_gibibytes(plan.peak)} a chip: {verdict} ({how})")
    else:
        add("memory", f"arguments {parts[0]}, temporaries {parts[1]}, peak {_gibibytes(plan.peak)} a chip")
        add("", f"{verdict} ({how})")
    if plan.compiled is not None and plan.compiled.fits and plan.job in ("score", "select"):
        wide = plan.compiled.gathered(plan.micro)
        add("gathers", f"GATHERED {', '.join(wide)}" if wide else "no score and no mask is gathered")
    lines += _times(plan)
    card = plan.topology in hardware.CARDS
    if plan.smallest and not (plan.fits and plan.smallest == plan.topology):
        add("cheapest" if card else "smallest", f"{plan.smallest} fits, by estimate")
    elif not plan.smallest and not plan.fits:
        add("smallest", f"no {'card' if card else 'slice of this chip'} fits, by estimate")
    return "\n".join(lines)


def _times(plan: _Plan) -> list[str]:
    """Return what is counted and how long it takes at best; what the chip does a second is known of some only."""
    counted = (
        f"{plan.cost.flops / 1e12:,.1f} TFLOP a step; a chip moves {plan.cost.traffic / 1e9:,.1f} GB to and from its "
        f"memory and receives {(plan.cost.link + plan.cost.between) / 1e9:,.1f} GB"
    )
    lines = [f"  {'counted':<12}{counted}"]
    longest = max(plan.seconds, key=lambda each: plan.seconds[each])
    if not plan.seconds[longest]:
        return [*lines, f"  {'time':<12}not known for this device"]
    each = ", ".join(f"{name} {seconds:.3g}" for name, seconds in plan.seconds.items() if seconds)
    lines.append(f"  {'roofline':<12}{plan.seconds[longest]:.3g} s a step at best, bound by {longest} ({each})")
    what = "one selection" if plan.job == "select" else f"{plan.samples:,} samples, {plan.steps:,} steps"
    lines.append(f"  {'whole job':<12}{what}: {plan.hours:.3g} hours, {plan.hours * plan.chips:.3g} chip-hours at best")
    if plan.utilisation < 1:
        hours = plan.hours / plan.utilisation
        lines.append(f"  {'':<12}{hours:.3g} hours at {plan.utilisation:.0%} of that speed (--utilisation)")
    return lines


def _gibibytes(size: float) -> str:
    return f"{size / hardware.GIB:.2f} GiB"


# --- mesh and micro-batch ---------------------------------------------------------------------------------------------


def _meshes(step: compiled.Step, topology: hardware.Topology) -> Iterator[tuple[int, int, int]]:
    """Yield the candidates (data, fsdp, tensor) of a topology; `data` is a multiple of the slices."""
    tensor = 1
    while tensor <= topology.chips:
        if step.model.kv_heads % tensor == 0 and topology.chips % tensor == 0:
            fsdp = topology.chips // tensor
            while fsdp >= 1:
                yield topology.devices // fsdp // tensor, fsdp, tensor
                fsdp //= 2
        tensor *= 2


def _candidates(step: compiled.Step, topology: hardware.Topology) -> Iterator[compiled.Step]:
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


def _filled(step: compiled.Step) -> compiled.Step:
    """Return a training step whose batch is a whole number of micro-batches."""
    if step.job != "train":
        return dataclasses.replace(step, batch=step.micro)
    return dataclasses.replace(step, batch=-(-max(step.batch, step.micro) // step.micro) * step.micro)


def _time(step: compiled.Step, topology: hardware.Topology) -> float:
    """Return seconds a sample (a selection: in all), a third of all work but the longest kind not overlapping."""
    seconds = cost.cost(step, topology).seconds(topology).values()
    total = max(seconds) + (sum(seconds) - max(seconds)) / 3
    return total / (step.batch if step.job != "select" else 1)


def _ranked(step: compiled.Step, topology: hardware.Topology) -> list[compiled.Step]:
    """Return what fits by the estimate, best first: the least time a sample, within 2 % of it the least memory."""
    found = [_filled(each) for each in _candidates(step, topology)]
    found = [each for each in found if cost.memory(each).peak <= _MARGIN * topology.chip.memory]
    if not found:
        return []
    best = min(_time(each, topology) for each in found)

    def key(each: compiled.Step) -> tuple[float, int]:
        seconds = _time(each, topology)
        return (0.0 if seconds <= 1.02 * best else seconds), cost.memory(each).peak

    return sorted(found, key=key)


def refusal(chip: hardware.Chip, dtype: str) -> str | None:
    """Return why a card does not compute in a dtype; None: it does."""
    if dtype == "bfloat16" and not chip.flops:
        return f"a {chip.name} has no units for bfloat16: --dtype=float32"
    return None


def _least(step: compiled.Step, topology: hardware.Topology) -> compiled.Step:
    """Return the candidate of the least memory, whether it fits or not."""
    found = [_filled(each) for each in _candidates(step, topology)]
    if not found:
        raise ValueError(
            f"no mesh of {topology.name} takes this {step.job} step: a micro-batch of {step.micro} samples does not "
            "divide over data x fsdp of any (or of the mesh given), or is larger than the batch of a training step"
        )
    return min(found, key=lambda each: cost.memory(each).peak)


def _smallest(step: compiled.Step, chip: hardware.Chip) -> hardware.Topology | None:
    """Return the smallest slice of a chip, or the cheapest card, on which a step fits by the estimate; None: none."""
    free = dataclasses.replace(step, mesh=(-1, -1, -1), micro=0)
    dtype = step.compute.dtype
    cards = [hardware.Topology(each.at(dtype), 1) for each in hardware.CARDS.values() if refusal(each, dtype) is None]
    for topology in cards if chip.name in hardware.CARDS else hardware.sizes(chip):
        if _ranked(dataclasses.replace(free, topology=topology.name), topology):
            return topology
    return None
