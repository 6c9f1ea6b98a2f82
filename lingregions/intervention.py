"""Intervention: a region, and something done to it; every experiment is a list of these.

An intervention is data. Its fields are columns of results.csv and effects.csv, where report, sweep, notebooks and
pandas read them; `name` is derived from the fields here and is never parsed. Applying one costs what `perturb.applied`
costs: the parameters are changed in place and every bit is put back.
"""

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

from lingregions import perturb
from lingregions import tree as trees
from lingregions.regions import Region

BASE = "base"  # the kind, and the name, of the model to which nothing is done


@dataclasses.dataclass(frozen=True, kw_only=True)
class Intervention:
    """What is done to a model: a region, and something done to it.

    Attributes:
      kind: which region: "base" (none), a selector ("top", "bottom", "random", "matched", "magnitude"), "monolingual",
        "core", "dimensions", "scalar", "super weights", ..., or a method of training.
      fraction: selected part of each matrix, as it was asked for ("1%").
      definition: the score that selected it ("taylor paper"), where several are compared.
      region_language: the language whose scores selected it; "" where several were combined.
      count: number of dimensions or scalars.
      target: what is named one by one: dimensions of the axis `embed` ("507"), or a scalar ("layer 11 mlp.down_proj
        [507 1229]").
      part: of the region or of the places that carry the target ("down", "without norms", "residual").
      layer: the one layer of the part.
      perturbation: a key of `perturb.PERTURBATIONS`.
      factor: amount of the perturbation, where it takes one.
      bounded: whether activations are clipped to what the untouched model gives.
      samples: samples of training before the evaluation.
      seed: of a region that is drawn, of noise, or of a training.
      region: the region or what makes it, called only when something is evaluated; None changes nothing.
      bounds: bounds on activations while it lasts (see `models.bounded`).
    """

    kind: str = BASE
    fraction: str = ""
    definition: str = ""
    region_language: str = ""
    count: int | None = None
    target: str = ""
    part: str = ""
    layer: int | None = None
    perturbation: str = "zero"
    factor: float | None = None
    bounded: bool = False
    samples: int | None = None
    seed: int | None = None
    region: Region | Callable[[], Region] | None = dataclasses.field(default=None, compare=False, repr=False)
    bounds: trees.Tree | None = dataclasses.field(default=None, compare=False, repr=False)

    @property
    def name(self) -> str:
        """What it is called: "top 1%", "random 1% seed 2", "top 1% layer 3", "monolingual ru"."""
        change = "" if self.perturbation == "zero" else self.perturbation
        factor = "" if self.factor is None else f"{self.factor:g}"
        words = [
            "" if self.target else str(self.count or ""),
            self.definition,
            self.target or ("" if self.definition else self.kind),
            self.fraction,
            f"to {self.region_language}" if self.kind == "matched" and self.region_language else self.region_language,
            self.part,
            "" if self.layer is None else f"layer {self.layer}",
            " ".join(each for each in (change, factor) if each),
            "clipped" if self.bounded else "",
            "" if self.samples is None else f"after {self.samples}",
            "" if self.seed is None else f"seed {self.seed}",
        ]
        return " ".join(each for each in words if each)

    @property
    def group(self) -> "Intervention":
        """The same without its seed: interventions that differ in a seed alone are repetitions, and pooled."""
        return dataclasses.replace(self, seed=None)

    def columns(self) -> dict[str, Any]:
        """Return the fields that are data, as the columns of a table: None where one does not apply."""
        return {name: getattr(self, name) for name in COLUMNS}

    def apply(self, params: trees.Tree) -> contextlib.AbstractContextManager[trees.Tree]:
        """Return the context in which `params` is what the intervention makes of it; every bit is back afterwards.

        Args:
          params: float32 parameters; changed in place while the context lasts (see `perturb.applied`).

        Raises:
          ValueError: the region belongs to another model.
        """
        if self.region is None:
            return contextlib.nullcontext(params)
        region = self.region if isinstance(self.region, Region) else self.region()
        seed = self.seed if perturb.PERTURBATIONS[self.perturbation].draws else None
        return perturb.applied(params, region.masks, self.perturbation, self.factor, seed)


# Of the tables, in their order: the fields that compare.
COLUMNS: tuple[str, ...] = tuple(field.name for field in dataclasses.fields(Intervention) if field.compare)
