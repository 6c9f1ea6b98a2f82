"""Ahead-of-time compilation of one step for a slice that is not there, or for the devices that are.

The real compiler says what the step needs; nothing is run. For a TPU it comes with libtpu, which installs signal
handlers and takes over its process, so it runs in one of its own: `compile` starts this module with the step as JSON
and reads the answer. Costs 10 to 120 s of CPU time for a model of billions of parameters, and hundreds of megabytes of
the host's memory: there are shapes, no values.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lingregions import freeze, loss, models, scoring, train
from lingregions import mesh as meshes
from lingregions import tree as trees
from lingregions.corpus.batch import Batch
from lingregions.models import roles
from lingregions.plan import hardware
from lingregions.regions.packed import Packed
from lingregions.regions.rank_device import rank

JOBS = ("score", "evaluate", "select", "train")
ADVICE = "compiling for a TPU needs libtpu, which is not installed: pip install 'lingregions[tpu]'"
# Silence, no questions to a metadata server that is not there, and room for other processes that load libtpu.
_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_LOG_DIR": "disabled",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
# Fast and careless: says that a step compiles, and not how much memory it needs.
_QUICK = {"jax_optimization_level": "O0", "jax_memory_fitting_level": "O0"}
SCOPE = "decoder_without_norms"  # what training freezes a region of


@dataclasses.dataclass(frozen=True)
class Step:
    """One step of a job, as it is compiled.

    Attributes:
      job: one of `JOBS`.
      model: model config.
      compute: how it is run.
      mesh: data, fsdp, tensor.
      micro: samples of a micro-batch, over all devices.
      length: tokens a sample.
      batch: samples of a training step; `micro` divides it.
      topology: name of the slice; "" for the local devices.
      preset: a key of `scoring.PRESETS`, how scores are defined.
    """

    job: str
    model: Any
    compute: models.Compute
    mesh: tuple[int, int, int]
    micro: int
    length: int
    batch: int = 0
    topology: str = ""
    preset: str = "sound"

    @property
    def group(self) -> int:
        """Samples whose gradients are added up beside the sums before they count; 0: they are added to the sums."""
        definition = scoring.PRESETS[self.preset]
        return definition.group if definition.accumulator != "float32" else 0


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler says of a step; bytes a device.

    Attributes:
      arguments: parameters, sums, optimizer state and batch.
      temporaries: what the step needs beside them.
      peak: the most that is in use at one time.
      gathers: how many arrays of each dtype and size are gathered, as "bf16[4096,4096]": 2.
      seconds: that compiling took.
      memory: bytes that the compiler said there are, where the step did not fit; else 0.
      needed: bytes that it then said the step needs; else 0.
      reused: arguments that are overwritten in place, such as the sums of a score.
    """

    arguments: int = 0
    temporaries: int = 0
    peak: int = 0
    gathers: dict[str, int] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0
    memory: int = 0
    needed: int = 0
    reused: int = 0

    @property
    def fits(self) -> bool:
        """Whether the compiler accepted the step."""
        return not self.needed

    def gathered(self, samples: int) -> list[str]:
        """Return what is gathered of the types that scores (float32) and masks (one or eight bits) have.

        Arrays of no more entries than there are samples in a micro-batch are left out: the loss of each sample is one.
        """
        found = {shape: re.match(r"(?:f32|pred|u8|s8|u32)\[([\d,]+)\]", shape) for shape in self.gathers}
        return [shape for shape, match in found.items() if match and math.prod(map(int, match[1].split(","))) > samples]


def installed() -> bool:
    """Whether libtpu is there."""
    return importlib.util.find_spec("libtpu") is not None


def compile(step: Step, quick: bool = False, timeout: float = 3600) -> Compiled:
    """Compile a step, for a topology in a process of its own.

    Args:
      step: what to compile.
      quick: say only whether it compiles, in a third of the time.
      timeout: seconds.

    Raises:
      ValueError: libtpu is missing, or the step cannot be built (the message of its last line).
    """
    if not step.topology:
        return _examine(step, quick)
    if not installed():
        raise ValueError(ADVICE)
    fields = dataclasses.asdict(step) | {"model": models.dump(step.model), "quick": quick}
    done = subprocess.run(
        [sys.executable, "-m", "lingregions.plan.compiled", json.dumps(fields)],
        env=os.environ | _ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    if done.returncode:
        lines = re.findall(r"^(?:\w+\.)*\w+(?:Error|Exception): .*", done.stderr, re.MULTILINE)
        why = lines[0] if lines else f"exit code {done.returncode}\n{done.stderr[-1000:]}"
        raise ValueError(f"the {step.job} step does not compile for {step.topology}: {why}")
    return Compiled(**json.loads(done.stdout.splitlines()[-1]))


def _read(text: str) -> Step:
    """Return the step that `compile` wrote as JSON."""
    fields = json.loads(text)
    fields.pop("quick", None)
    fields["model"], fields["compute"] = models.parse(fields["model"]), models.Compute(**fields["compute"])
    return Step(**fields | {"mesh": tuple(fields["mesh"])})


def _lower(step: Step) -> Any:
    """Return the step lowered for its devices, from shapes alone."""
    devices: Any = None
    if step.topology:
        from jax.experimental import topologies

        name, keywords = hardware.parse(step.topology).description()
        devices = topologies.get_topology_desc(platform="tpu", topology_name=name, **keywords).devices
    mesh = meshes.build(*step.mesh, devices=devices)
    dtype = jnp.dtype(step.compute.parameters)
    params = models.shapes(step.model, meshes.shardings(models.declare(step.model), mesh), dtype)
    if step.job == "train":
        return _train(step, params, mesh)
    if step.job == "select":
        return _select(params, mesh)
    if step.job == "score":
        scorer = scoring.Scorer(step.model, step.compute, scoring.PRESETS[step.preset], micro=step.micro, mesh=mesh)
        return scorer.lower(params, step.length)
    like: Any = jax.ShapeDtypeStruct((step.micro, step.length), jnp.int32, sharding=meshes.batched(mesh))
    evaluation = jax.jit(
        functools.partial(loss.losses, step.model, step.compute), out_shardings=meshes.replicated(mesh)
    )
    with meshes.use(mesh):
        return evaluation.lower(params, Batch(like, like, like))


def _train(step: Step, params: trees.Tree, mesh: jax.sharding.Mesh) -> Any:
    """Lower a training step that keeps a region frozen: AdamW and one bit a parameter."""
    made = freeze.hard({"x": jnp.ones((8, 2))}, {"x": jnp.eye(8, 2, dtype=bool)})
    masks = {path: _bits(leaf) for path, leaf in trees.walk(roles.restrict(params, SCOPE))}
    recipe = train.Recipe(samples=1_000 * step.batch, batch=step.batch)
    constraint = dataclasses.replace(made, arrays=masks)
    trainer = train.Trainer(step.model, step.compute, recipe, [constraint], micro=step.micro, mesh=mesh)
    return trainer.lower(step.length)


def _bits(leaf: Any) -> Packed:
    """Return the shape of the packed mask of a leaf, on its shards; its last axis but one is packed."""
    axis = leaf.ndim - 2
    shape = (*leaf.shape[:axis], -(-leaf.shape[axis] // 8), *leaf.shape[axis + 1 :])
    bits: Any = jax.ShapeDtypeStruct(shape, np.uint8, sharding=leaf.sharding)
    return Packed(bits, axis, leaf.shape[axis])


def _select(params: trees.Tree, mesh: jax.sharding.Mesh) -> Any:
    """Lower the selection from the largest leaf of the decoder, with all the other scores and masks in memory."""
    leaves = trees.flatten(roles.restrict(params, "decoder"))
    path = max(leaves, key=lambda each: leaves[each].size)
    masks = {each: jax.ShapeDtypeStruct(leaf.shape, bool, sharding=leaf.sharding) for each, leaf in leaves.items()}
    count = jax.ShapeDtypeStruct((), jnp.uint32, sharding=meshes.replicated(mesh))

    def one(scores: dict[str, jax.Array], masks: dict[str, jax.Array], count: jax.Array) -> Any:
        return rank(scores[path], count, largest=True)

    where = (leaves[path].sharding, meshes.replicated(mesh))
    del masks[path]
    return jax.jit(one, out_shardings=where, keep_unused=True).lower(leaves, masks, count)


def _examine(step: Step, quick: bool = False) -> Compiled:
    """Lower and compile a step in this process, and return what the compiler says of it."""
    lowered = _lower(step)
    begin = time.monotonic()
    try:
        with _options(_QUICK if quick else {}):
            compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        found = re.search(r"([\d.]+)G\) exceeds available HBM \(([\d.]+)G\)", str(error))
        if found is None:
            raise
        needed, memory = (round(float(each) * hardware.GIB) for each in found.groups())
        return Compiled(needed=needed, memory=memory, seconds=time.monotonic() - begin)
    stats = compiled.memory_analysis()
    peak = stats.argument_size_in_bytes + stats.temp_size_in_bytes + stats.output_size_in_bytes
    peak -= stats.alias_size_in_bytes
    if step.topology or jax.default_backend() != "cpu":  # on a CPU it leaves the temporaries out
        peak = stats.peak_memory_in_bytes or peak
    return Compiled(
        arguments=stats.argument_size_in_bytes,
        temporaries=stats.temp_size_in_bytes,
        peak=peak,
        reused=stats.alias_size_in_bytes,
        gathers=_gathers(compiled.as_text()),
        seconds=time.monotonic() - begin,
    )


@contextlib.contextmanager
def _options(values: Mapping[str, str]) -> Iterator[None]:
    """Set options of JAX for a while."""
    before = {name: getattr(jax.config, name) for name in values}
    for name, value in values.items():
        jax.config.update(name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


def _gathers(text: str) -> dict[str, int]:
    """Return how often each shape comes out of an all-gather in the text of a compiled program."""
    found: dict[str, int] = {}
    for line in text.splitlines():
        head, gather, _ = line.partition(" all-gather(")
        if not gather:
            head, gather, _ = line.partition(" all-gather-start(")
        if gather and " = " in head:
            # Of a started gather the shape is (what goes in, what comes out).
            shape = re.findall(r"\w+\[[\d,]*\]", head.partition(" = ")[2])[-1]
            found[shape] = found.get(shape, 0) + 1
    return found


if __name__ == "__main__":
    asked = sys.argv[1]
    print(json.dumps(dataclasses.asdict(_examine(_read(asked), json.loads(asked)["quick"]))))
