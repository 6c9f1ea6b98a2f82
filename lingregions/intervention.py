"""Intervention: a region, and something done to it; every experiment is a list of these.

An intervention is data. Its fields are columns of results.csv and effects.csv, where report, sweep, notebooks and
pandas read them; `name` is derived from the fields here and is never parsed. Applying one costs what `perturb.applied`
costs: the parameters are changed in place and every bit is put back.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from lingregions import perturb
from lingregions import tree as trees
from lingregions.display import Shown

BASE = "base"  # the kind, and the name, of the model to which nothing is done
SCALAR = "scalar"  # the kind of one parameter by itself


class _Masked(Protocol):
    """What an intervention needs of a region (`regions.Region`, which makes interventions and so comes after them)."""

    @property
    def masks(self) -> trees.Tree:
        """Boolean masks parallel to the parameters of some scope."""


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Intervention(Shown):
    """What is done to a model: a region, and something done to it.

    Attributes:
      kind: which region: "base" (none), a selector ("top", "bottom", "random", "matched", "magnitude"), "monolingual",
        "core", "dimensions", "scalar", "super weights", ..., or a method of training.
      fraction: selected part, as it was asked for ("1%"): of each matrix, or of what `within` says.
      within: "scope" where the fraction is of the whole scope.
      definition: the score that selected it ("taylor paper"), where several are compared.
      region_language: the language whose scores selected it; "" where several were combined.
      count: number of dimensions or scalars.
      target: what is named one by one: dimensions of the axis `embed` ("507"), or a scalar ("layer 11 mlp.down_proj
        [507 1229]").
      part: of the region or of the places that carry the target ("down", "without norms", "residual").
      layer: the one layer of the part.
      perturbation: a key of `perturb.PERTURBATIONS`; "" where no region is changed, as by training.
      factor: amount of the perturbation, where it takes one.
      noise_seed: of a perturbation that draws; None: `seed`.
      bounded: whether activations are clipped to what the untouched model gives.
      samples: samples of training before the evaluation.
      seed: of a region that is drawn, or of a training: interventions that differ in it alone are repetitions.
      region: the region or what makes it, called only when something is evaluated; None changes nothing.
      bounds: bounds on activations while it lasts (see `models.bounded`).
      inside: the layer that the region lies in, where it is known to be a few scalars or rows of one: many such are
        evaluated at a time (see `prefix`).
    """

    kind: str = BASE
    fraction: str = ""
    within: str = ""
    definition: str = ""
    region_language: str = ""
    count: int | None = None
    target: str = ""
    part: str = ""
    layer: int | None = None
    perturbation: str = ""
    factor: float | None = None
    noise_seed: int | None = None
    bounded: bool = False
    samples: int | None = None
    seed: int | None = None
    region: _Masked | Callable[[], _Masked] | None = dataclasses.field(default=None, compare=False, repr=False)
    bounds: trees.Tree | None = dataclasses.field(default=None, compare=False, repr=False)
    inside: int | None = dataclasses.field(default=None, compare=False, repr=False)

    @property
    def name(self) -> str:
        """What it is called: "top 1%", "random 1% seed 2", "3 top dimensions norms", "matched to ru seed 0"."""
        many = "s" * (self.count is not None and self.count > 1)
        what = "" if self.definition or self.target else self.kind + many
        drawn_for = f"to {self.region_language}" if self.kind == "matched" else self.region_language
        words = [
            "" if self.count is None or self.target else str(self.count),
            self.definition or what or self.target,
            self.fraction,
            drawn_for if self.region_language else "",
            self.part,
            "" if self.layer is None else f"layer {self.layer}",
            self._change,
            "clipped" if self.bounded else "",
            "" if self.samples is None else f"after {self.samples}",
            "" if self.seed is None else f"seed {self.seed}",
        ]
        return " ".join(word for word in words if word)

    @property
    def _change(self) -> str:
        """What is done, as the name says it: removal, the rule, is not said of a region; a scalar is "x10" or "x0"."""
        factor = "" if self.factor is None else f"{self.factor:g}"
        if self.kind == SCALAR and self.perturbation in ("zero", "scale"):
            return f"x{factor or 0}"
        return f"{'' if self.perturbation == 'zero' else self.perturbation} {factor}".strip()

    @property
    def group(self) -> "Intervention":
        """The same without its seed: interventions that differ in a seed alone are repetitions, and pooled."""
        return dataclasses.replace(self, seed=None)

    def _line(self) -> str:
        change = " ".join(
            word for word in (self.perturbation, "" if self.factor is None else f"{self.factor:g}") if word
        )
        return f"{self.name}: {change or 'nothing is changed'}"

    def _facts(self) -> dict[str, Any]:
        return {name: value for name, value in self.columns().items() if value}

    def columns(self) -> dict[str, str]:
        """Return the fields that are data as cells of a table, "" for what does not apply: see `from_columns`."""
        values = {name: getattr(self, name) for name in COLUMNS}
        return {name: "" if value is None or value is False else str(value) for name, value in values.items()}

    @classmethod
    def from_columns(cls, row: Mapping[str, str]) -> "Intervention":
        """Return the intervention of a row of results.csv or effects.csv; other columns are left aside."""
        return cls(**{name: _READ[name](row[name]) for name in COLUMNS if row[name] != ""})

    def touched(self) -> trees.Tree | None:
        """Return the masks of the region, which is made if it is not there yet; None: nothing is changed."""
        region = self.region() if callable(self.region) else self.region
        return None if region is None else region.masks

    def apply(
        self, params: trees.Tree, offsets: Mapping[str, float] | None = None, masks: trees.Tree | None = None
    ) -> contextlib.AbstractContextManager[trees.Tree]:
        """Return the context in which `params` is what the intervention makes of it; every bit is back afterwards.

        Args:
          params: float32 parameters; changed in place while the context lasts (see `perturb.applied`).
          offsets: of the model (`models.offsets`): a gain 1 + w is removed by w = -1.
          masks: those of the region, where they are at hand.

        Raises:
          ValueError: the region belongs to another model, or there is no such perturbation.
        """
        masks = self.touched() if masks is None else masks
        if masks is None:
            return contextlib.nullcontext(params)
        if self.perturbation not in perturb.PERTURBATIONS:
            raise ValueError(
                f"{self.name}: perturbation {self.perturbation!r} is none of {', '.join(perturb.PERTURBATIONS)}"
            )
        draws = perturb.PERTURBATIONS[self.perturbation].draws
        seed = (self.seed if self.noise_seed is None else self.noise_seed) if draws else None
        return perturb.applied(params, masks, self.perturbation, self.factor, seed, offsets)


# Of the tables, in their order: the fields that compare.
COLUMNS: tuple[str, ...] = tuple(field.name for field in dataclasses.fields(Intervention) if field.compare)
_NUMBERS: dict[str, Callable[[str], Any]] = dict.fromkeys(("count", "layer", "noise_seed", "samples", "seed"), int)
_READ: dict[str, Callable[[str], Any]] = (
    dict.fromkeys(COLUMNS, str) | _NUMBERS | {"factor": float, "bounded": lambda word: word == "True"}
)
UNTOUCHED = Intervention()
