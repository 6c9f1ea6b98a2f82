"""What a step costs, counted from the declaration of the model: operations, bytes moved, memory, and the least time.

XLA's own `cost_analysis` counts the body of a scan over layers once, whatever the number of layers, so it is not asked.
A product of [m, k] and [k, n] is 2 m k n operations. Counted are the products of the matrices, of attention (each query
with the keys that it sees: T (T + 1) / 2 pairs a sample; five products backward for two forward) and of the vocabulary;
elementwise work is not. Time is a roofline: the longest of computing, moving between chip and memory, and moving
between chips, each at its best rate as if it overlapped with the others. Real steps take longer.

Memory here is an estimate for choosing what to compile (within about 10 %); what fits is the compiler's word.
"""

import dataclasses
import math
from typing import Any, NamedTuple

from jax.sharding import AbstractMesh

from lingregions import mesh as meshes
from lingregions import models
from lingregions import tree as trees
from lingregions.models import roles
from lingregions.plan.compiled import SCOPE, Step
from lingregions.plan.hardware import BETWEEN_SLICES, Topology

_WIDTHS = {"float32": 4, "bfloat16": 2}
# Passes of the exact selection over the scores: 32 counts for the threshold, ties, better ones, the mask, the survey.
_SELECT_PASSES = 36


class Memory(NamedTuple):
    """Bytes a device: what a step is given, and the most that it needs beside that."""

    arguments: int
    temporaries: int

    @property
    def peak(self) -> int:
        """Both."""
        return self.arguments + self.temporaries


class Cost(NamedTuple):
    """What one step does.

    Attributes:
      flops: floating-point operations, on all devices together.
      traffic: bytes between one chip and its memory.
      link: bytes into one chip from the others of its slice.
      between: bytes into one chip from other slices.
    """

    flops: float
    traffic: float
    link: float
    between: float

    def seconds(self, topology: Topology) -> dict[str, float]:
        """Return the least seconds of each kind of work on a topology."""
        chip = topology.chip
        return {
            "compute": self.flops / topology.devices / chip.flops,
            "memory": self.traffic / chip.bandwidth,
            "links": self.link / chip.link,
            "slices": self.between / BETWEEN_SLICES,
        }


@dataclasses.dataclass(frozen=True)
class _Sizes:
    """Numbers of a step that several counts share: parameters whole, and a device's part of them."""

    step: Step
    declared: dict[str, models.Parameter]
    mesh: AbstractMesh

    @property
    def samples(self) -> int:
        return self.step.batch if self.step.job == "train" else self.step.micro

    @property
    def rows(self) -> int:
        """Samples of a micro-batch on one device."""
        parts = self.step.mesh[0] * self.step.mesh[1]
        return self.step.micro // parts if self.step.micro % parts == 0 else self.step.micro

    @property
    def width(self) -> int:
        return _WIDTHS[self.step.compute.dtype]

    def part(self, paths: Any, split: tuple[str, ...] = meshes.MESH_AXES) -> int:
        """Parameters of one device when only these mesh axes split them: without "fsdp" they are gathered."""
        total = 0
        for path in paths:
            each = self.declared[path]
            found = meshes.spec(each.axes, each.units, self.mesh)
            ways = math.prod(self.mesh.shape[name] for name in found if name is not None and name in split)
            total += math.prod(each.shape) // ways
        return total

    @property
    def layers(self) -> list[str]:
        return [path for path, each in self.declared.items() if each.stacked]

    @property
    def tables(self) -> list[str]:
        return [path for path, each in self.declared.items() if "vocab" in each.axes]

    @property
    def scored(self) -> list[str]:
        """What gradients are kept of."""
        return self.layers if self.step.job == "score" else list(self.declared)

    @property
    def gradients(self) -> int:
        """Bytes of the gradients of one micro-batch: of the layers' weights in the compute dtype."""
        outer = [path for path in self.scored if not self.declared[path].stacked]
        return self.width * self.part(set(self.scored) - set(outer)) + 4 * self.part(outer)

    def products(self) -> list[models.Parameter]:
        return [self.declared[path] for path in self.layers if len(self.declared[path].matrix) == 2]


def _sizes(step: Step) -> _Sizes:
    declared = trees.flatten(models.declare(step.model))
    return _Sizes(step, declared, AbstractMesh(step.mesh, meshes.MESH_AXES))


def remat(step: Step) -> str:
    """Return what the backward pass keeps, as a key of `REMAT`; scoring at the most the products of each layer."""
    if step.job not in ("score", "train"):
        return "none"
    return "full" if step.job == "score" and step.compute.remat == "none" else step.compute.remat


def _flops(step: Step) -> float:
    """Return the operations of a step on all devices."""
    if step.job == "select":
        return 0.0
    sizes, model = _sizes(step), step.model
    T = step.length
    matrices = 2.0 * T * sum(math.prod(each.shape) for each in sizes.products())
    attention = 2.0 * model.heads * model.head_dim * T * (T + 1) / 2 * model.layers  # one product
    vocabulary = 2.0 * T * model.vocab * model.embed
    forward = matrices + 2 * attention
    if step.job == "evaluate":
        return float(sizes.samples * (forward + vocabulary))
    again = forward if remat(step) == "full" else 0.0
    # Logits and their slope; with the head's own gradient the logits once more, and that gradient.
    table = vocabulary * (2 if step.job == "score" else 4)
    flops: float = sizes.samples * (forward + again + 2 * matrices + 5 * attention + table)
    return flops


def cost(step: Step, topology: Topology | None = None) -> Cost:
    """Return what a step does; `topology` says how many slices `data` runs over (None: one)."""
    sizes = _sizes(step)
    data, fsdp, tensor = step.mesh
    slices = 1 if topology is None else topology.slices
    if step.job == "select":
        return Cost(0.0, sizes.part(sizes.layers) * (4.0 * _SELECT_PASSES + 1), 0.0, 0.0)
    passes = {"evaluate": 1, "score": 2, "train": 2}[step.job]
    if step.job != "evaluate" and remat(step) == "full":
        passes += 1
    turns = sizes.samples // step.micro
    tokens = sizes.rows * step.length
    width, kept = sizes.width, sizes.part(sizes.layers)
    gathered = sizes.part(sizes.layers, ("tensor",)) * width
    head = sizes.part(sizes.tables[-1:], ("tensor",)) * width
    # Weights: read as float32 shards, gathered (written and read) in the compute dtype.
    weights = passes * (4 * kept + (2 if fsdp > 1 else 1) * gathered) + 2 * head
    # What enters and leaves each matrix product, once forward, once again, twice backward.
    edges = sum(each.shape[0] * sum(_parts(each, sizes.mesh)) for each in sizes.products())
    activations = tokens * width * edges * (passes if passes == 1 else passes + 1)
    gradients, low = 4 * sizes.part(sizes.scored), sizes.gradients
    traffic = turns * (weights + activations)
    if step.job == "score":
        traffic += 2 * gradients  # added to the sums, layer by layer as it is found
    elif step.job == "train":
        summed = 2 * low + 2 * gradients if turns > 1 else low
        traffic += turns * summed + (gradients if turns > 1 else low)
        traffic += 6 * gradients  # parameters and moments, read and written
    hidden = tokens * step.model.embed * width  # changes from parts of the embed axis to parts of the batch
    link = turns * (passes * gathered + head + (2 if step.job == "train" else 1) * hidden) * (fsdp - 1) / fsdp
    link += turns * passes * 4 * (tensor - 1) / tensor * tokens * step.model.embed * width * step.model.layers
    between = 0.0
    if step.job != "evaluate":
        reduced = [path for path in sizes.scored if path not in sizes.tables[:-1]]
        link += turns * sizes.part(reduced, ("tensor",)) * width * (fsdp - 1) / fsdp  # gradients to their shards
        inside = data // slices
        link += turns * 2 * gradients * (inside - 1) / inside
        between = turns * 2 * gradients * (slices - 1) / slices
    return Cost(_flops(step), traffic, link, between)


def _parts(parameter: models.Parameter, mesh: AbstractMesh) -> tuple[float, ...]:
    """Return a device's part of the two sides of a matrix that lie along activations: `embed` is whole there."""
    sides = []
    for size, axis in zip(parameter.matrix, parameter.axes[1:], strict=True):
        whole = axis == "embed" or size % mesh.shape["tensor"]
        sides.append(size if whole else size / mesh.shape["tensor"])
    return tuple(sides)


def memory(step: Step) -> Memory:
    """Return the estimated bytes a device of a step."""
    sizes, model = _sizes(step), step.model
    everything, layers = list(sizes.declared), sizes.layers
    if step.job == "select":
        largest = max(layers, key=lambda path: math.prod(sizes.declared[path].shape))
        part = sizes.part([largest])
        # Scores and masks, but for the mask that comes out; one layer's integers at a time.
        return Memory(5 * sizes.part(layers) - part, part + part // model.layers * 8)
    T, width, rows = step.length, sizes.width, sizes.rows
    tensor, tokens = sizes.mesh.shape["tensor"], rows * step.length
    batches = step.batch // step.micro if step.job == "train" else 1
    # Tokens and segments, and where bytes are counted, those.
    arguments = (
        _WIDTHS[step.compute.parameters] * sizes.part(everything)
        + batches * (12 if step.job == "score" else 8) * tokens
    )
    # At work on a layer: three of its largest matrices, gathered or as gradients that are not on their shards yet, and
    # its activations. At work on the loss: the head and one chunk of logits. Never both.
    split = step.mesh[1] > 1
    matrix = max(sizes.part([path], ("tensor",)) for path in layers) * width // model.layers if split else 0
    head = sizes.part(sizes.tables[-1:], ("tensor",)) * width if split else 0
    logits = rows * min(step.compute.chunk, T) * -(-model.vocab // tensor) * 4
    if step.job == "evaluate":
        layer = tokens * width * (4 * model.embed + (2 * model.mlp + 3 * model.heads * model.head_dim) // tensor)
        return Memory(arguments, max(3 * matrix + layer, head + 2 * logits))
    layer = tokens * width * (6 * model.embed + (3 * model.mlp + 4 * model.heads * model.head_dim) // tensor)
    temporaries = max(6 * matrix + layer, head + 3 * logits)
    edges = sum(_parts(each, sizes.mesh)[0] for each in sizes.products())
    saved = {
        "full": model.embed,
        "dots": model.embed + edges + model.heads * model.head_dim / tensor,
        "none": 4 * model.embed + 2 * edges + model.mlp / tensor,
    }[remat(step)]
    temporaries += round(model.layers * tokens * saved * width)
    gradients = 4 * sizes.part(sizes.scored)
    if step.job == "score":
        # Sums in float32; or in bfloat16, with the gradient of the open group beside them.
        sums = gradients * 3 // 2 if step.group else gradients
        return Memory(arguments + sums, temporaries + sizes.gradients // model.layers)  # of one layer at a time
    frozen = sizes.part(trees.flatten(roles.restrict(trees.unflatten(sizes.declared), SCOPE)))
    moments = 8 * sizes.part(everything) + frozen // 8
    sums = gradients if batches > 1 else 0
    return Memory(arguments + moments, temporaries + sums + sizes.gradients)
