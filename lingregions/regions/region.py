"""Region: a set of scalar parameters of one model, with everything needed to know where it came from.

A region is a tree of boolean masks parallel to the parameters of its scope, in the index space of Hugging Face: the
leaf `layers.self_attn.q_proj` is [L, out, in], and one layer's slice of it is a *matrix* with the name
`model.layers.3.self_attn.q_proj.weight`. The masks lie on the devices as the parameters do, one byte an entry; nothing
in this package gathers them whole.
"""

import dataclasses
import fractions
import functools
import importlib.metadata
import json
import math
import os
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, Self, cast

import jax

from lingregions import tree as trees
from lingregions.display import Shown
from lingregions.intervention import Intervention
from lingregions.models.roles import locate as locate
from lingregions.models.roles import names as names
from lingregions.models.roles import stacked as stacked
from lingregions.tree import Tree

Within = Literal["matrix", "scope"]


def matrices(path: str, leaf: Any) -> list[str]:
    """Return the names of the matrices in `leaf`, by layer."""
    return names(path, leaf.shape[0] if stacked(path) else None)


def shape(path: str, leaf: Any) -> tuple[int, ...]:
    """Return the shape of one matrix of `leaf`."""
    return tuple(leaf.shape[1:] if stacked(path) else leaf.shape)


def versions() -> tuple[tuple[str, str], ...]:
    """Return the versions of the libraries that decide what a region holds."""
    return tuple((each, _version(each)) for each in ("jax", "jaxlib", "lingregions", "numpy"))


@functools.cache
def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


@dataclasses.dataclass(frozen=True)
class Selection:
    """What a selection met: exact counts, and the matrices where the result deserves a second look.

    Attributes:
      entries: parameters in the scope.
      selected: parameters selected.
      matrices: matrices in the scope.
      empty: names of the matrices too small for the fraction to select a single entry (k < 1).
      zero: names of the matrices whose scores are all zero: what is selected there, position alone decided.
      cut: (name, entries that tie at the threshold, those of them taken) where only some of the ties were taken,
        lowest flat index first.
    """

    entries: int
    selected: int
    matrices: int
    empty: tuple[str, ...] = ()
    zero: tuple[str, ...] = ()
    cut: tuple[tuple[str, int, int], ...] = ()

    def __str__(self) -> str:
        notes = [f"{self.selected:,} of {self.entries:,} entries in {self.matrices:,} matrices"]
        if self.empty:
            notes.append(f"{len(self.empty):,} matrices too small to select from (first: {self.empty[0]})")
        if self.zero:
            notes.append(f"{len(self.zero):,} matrices whose scores are all zero (first: {self.zero[0]})")
        if self.cut:
            tied, taken = sum(each[1] for each in self.cut), sum(each[2] for each in self.cut)
            notes.append(
                f"{len(self.cut):,} matrices with ties at the threshold ({taken:,} of {tied:,} tied entries taken)"
            )
        return "; ".join(notes)


@dataclasses.dataclass(frozen=True)
class Provenance:
    """Where a region comes from: hashable, written as it is into the header of a region file.

    Attributes:
      name: a short name, such as "core top 1%".
      definition: one sentence that says what the region is.
      selector: entry of `SELECTORS`; empty for regions that were not selected from scores.
      fraction: selected part, as decimal text ("0.01"): a float would not round-trip what was asked for.
      within: "matrix" (the fraction of every matrix) or "scope" (the fraction of all of them together).
      score: definition of the score.
      languages: languages whose scores went in.
      score_scope, select_scope: scopes (`roles.SCOPES`) that were scored and selected from.
      samples: samples of each language that were scored.
      data_seed: seed of the order in which they were taken.
      part, layer: part of another region that it is: a scope, one layer.
      seed: seed of a random region.
      model: `tree.fingerprint` of the parameters that were scored.
      tokenizer: fingerprint of the tokenizer.
      data: fingerprint of the text.
      axes: (path, axis names) of every leaf, as declared by the architecture.
      removal: (path, what removal sets it to) of the leaves where that is not 0: -1 for gains that are used as 1 + w.
      selection: what the selection met.
      versions: (library, version).
      parents: provenance of the operands, for results of the algebra.
    """

    name: str = ""
    definition: str = ""
    selector: str = ""
    fraction: str = ""
    within: str = ""
    score: str = ""
    languages: tuple[str, ...] = ()
    score_scope: str = ""
    select_scope: str = ""
    samples: tuple[int, ...] = ()
    data_seed: int | None = None
    part: str = ""
    layer: int | None = None
    seed: int | None = None
    model: str = ""
    tokenizer: str = ""
    data: str = ""
    axes: tuple[tuple[str, tuple[str, ...]], ...] = ()
    removal: tuple[tuple[str, float], ...] = ()
    selection: Selection | None = None
    versions: tuple[tuple[str, str], ...] = ()
    parents: tuple["Provenance", ...] = ()

    def replace(self, **changes: Any) -> "Provenance":
        """Return a copy with these fields changed."""
        return dataclasses.replace(self, **changes)

    def _columns(self) -> dict[str, Any]:
        """Return what an `Intervention` on the region says of it, kind, fraction, language, part, layer and seed."""
        rule = json.loads(self.score).get("rule") if self.score.startswith("{") else ""
        kind = "magnitude" if self.selector == "top" and rule == "magnitude" and not self.languages else self.selector
        if not kind:
            return {"kind": self.name or "region"}
        found: dict[str, Any] = {
            "kind": kind,
            "fraction": _percent(self.fraction) if self.fraction else "",
            "within": self.within if self.within == "scope" else "",
            "region_language": self.languages[0] if len(self.languages) == 1 else "",
            "part": self.part,
            "layer": self.layer,
            "seed": self.seed,
        }
        return found if self.name in ("", Intervention(**found).name) else found | {"kind": self.name}

    def named(self) -> "Provenance":
        """Return it with the name of an intervention on the region, "top 1%", where it has none."""
        return self if self.name else self.replace(name=Intervention(**self._columns()).name)

    def describe(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def parse(cls, fields: Mapping[str, Any]) -> Self:
        """Return the provenance that `describe` wrote.

        Raises:
          ValueError: a field that this version does not know, or one of another type.
        """
        values = {key: _frozen(value) for key, value in fields.items()}
        try:
            if values.get("selection") is not None:
                values["selection"] = Selection(**{key: _frozen(each) for key, each in fields["selection"].items()})
            values["parents"] = tuple(cls.parse(parent) for parent in fields.get("parents", ()))
            found = cls(**values)
        except (TypeError, AttributeError) as error:
            raise ValueError(f"the provenance has a field that this version does not know: {error}") from error
        for what, given in (("provenance", found), ("selection", found.selection)):
            for name, kind in typing.get_type_hints(type(given)).items():
                if given is not None and not _fits(getattr(given, name), kind):
                    raise ValueError(f"the {what} says {name} is {getattr(given, name)!r}, which cannot be")
        return found


UNKNOWN = Provenance()


def _fits(value: Any, kind: Any) -> bool:
    """Return whether a value is of an annotated type, down to the last entry of its tuples."""
    inner = typing.get_args(kind)
    if typing.get_origin(kind) is tuple:
        if type(value) is not tuple:
            return False
        kinds = inner[:1] * len(value) if inner[-1] is ... else inner
        return len(value) == len(kinds) and all(map(_fits, value, kinds))
    return any(_fits(value, each) for each in inner) if inner else type(value) is kind


def _frozen(value: Any) -> Any:
    """Return JSON lists as tuples, so that what is read back equals what was written."""
    return tuple(_frozen(each) for each in value) if isinstance(value, list) else value


class Bearer(Protocol):
    """What a region asks of the model that it meets (`lingregions.model.Model`)."""

    @property
    def source(self) -> str:
        """Name that it was loaded by."""

    @property
    def params(self) -> Tree:
        """Parameters."""

    @property
    def fingerprint(self) -> str:
        """Model hash."""


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["masks"], meta_fields=["provenance"], drop_fields=["model"]
)
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Region(Shown):
    """A set of parameters: boolean masks parallel to `roles.restrict(params, scope)`, and their provenance.

    Sets of one model combine: `a | b`, `a & b`, `a - b`, `~a`; `a == b` and `a <= b` compare them, `len(a)` counts, and
    `("model.layers.2.mlp.down_proj.weight", (5, 7)) in a` asks for one scalar. The verbs (`zero`, `scale`, ...) make an
    `Intervention` of it. Give `region.masks`, not the region, to a jitted function: the provenance is static.

    Attributes:
      masks: on the shards of the parameters, or on the host where it was loaded without a model.
      provenance: where it comes from.
      model: the model that it was found on, where that is at hand: what `matched` reads.
    """

    masks: Tree
    provenance: Provenance = UNKNOWN
    model: Bearer | None = None

    @property
    def name(self) -> str:
        """Short name, for tables."""
        return self.provenance.name

    def leaves(self) -> dict[str, jax.Array]:
        """Return {path: mask [L, out, in]}, sorted by path."""
        return trees.flatten(self.masks)

    def rename(self, name: str, definition: str = "") -> "Region":
        """Return the same set under another name (and definition, when given)."""
        changes = {"name": name} | ({"definition": definition} if definition else {})
        return dataclasses.replace(self, provenance=self.provenance.replace(**changes))

    # As a set

    def __or__(self, other: "Region") -> "Region":
        return self._merge("union", other)

    def __and__(self, other: "Region") -> "Region":
        return self._merge("intersect", other)

    def __sub__(self, other: "Region") -> "Region":
        return self._merge("subtract", other)

    def _merge(self, operation: str, other: object) -> "Region":
        from lingregions.regions import algebra

        if not isinstance(other, Region):
            return cast("Region", NotImplemented)  # what an operator answers where it does not know the other
        found: Region = getattr(algebra, operation)(self, other)
        return dataclasses.replace(found, model=self.model or other.model)

    def __invert__(self) -> "Region":
        from lingregions.regions import algebra

        return dataclasses.replace(algebra.complement(self), model=self.model)

    def __eq__(self, other: object) -> bool:
        from lingregions.regions import algebra

        if not isinstance(other, Region):
            return NotImplemented
        ours, theirs = self.leaves(), other.leaves()
        parallel = {path: each.shape for path, each in ours.items()} == {
            path: each.shape for path, each in theirs.items()
        }
        return parallel and algebra.equals(self, other)

    def __le__(self, other: "Region") -> bool:
        return len(self - other) == 0

    def __hash__(self) -> int:
        return hash(len(self))

    def __len__(self) -> int:
        return sum(map(sum, self._counts.values()))

    def __contains__(self, scalar: tuple[str, Sequence[int]]) -> bool:
        matrix, index = scalar
        path, layer = locate(matrix)
        if path not in self.leaves():
            return False
        return bool(self.leaves()[path][(*(() if layer is None else (layer,)), *index)])

    @property
    def size(self) -> int:
        """Number of parameters in the scope; those in the region are `len(region)`."""
        return trees.count(self.masks)

    @functools.cached_property
    def _counts(self) -> dict[str, list[int]]:
        from lingregions.regions import geometry

        return geometry.counts(self)

    def restrict(
        self,
        part: str | None = None,
        layers: int | Sequence[int] | None = None,
        axis: str | None = None,
        indices: Sequence[int] | None = None,
    ) -> "Region":
        """Return the part of it that lies in some parts or a scope, in some layers, or at indices of a named axis.

        Args:
          part: parts, scopes or path patterns: "down", "q,k", "norms", "layers.mlp.*".
          layers: one layer, or several.
          axis: a named axis, "embed" for dimensions of the residual stream.
          indices: of that axis.

        Raises:
          ValueError: nothing of that name, an axis without indices, a layer or index out of range.
        """
        from lingregions.regions import algebra

        chosen = [layers] if isinstance(layers, int) else layers
        return dataclasses.replace(algebra.restrict(self, part, chosen, axis, indices), model=self.model)

    def matched(self, seed: int, model: Bearer | None = None, outside: bool = True) -> "Region":
        """Return a random region like this one in count, |theta|, rows and columns of every matrix (see `matched`).

        Args:
          seed: of the draw.
          model: whose |theta| is matched; by default the one that the region was found on.
          outside: whether the draw is from the entries outside the region only.

        Raises:
          ValueError: no model is at hand, or there is no room outside the region.
        """
        from lingregions.regions.matched import match

        bearer = model or self.model
        if bearer is None:
            raise ValueError(f"region {self.name!r} came without its model: give it, region.matched(seed, model=model)")
        return dataclasses.replace(match(self.on(bearer), bearer.params, seed, outside=outside), model=bearer)

    # Files, and the model at use

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a region file (`regions.file`), whole or not at all.

        Raises:
          RunError: the disk refuses; a file that was there before is untouched.
        """
        from lingregions.regions import file

        file.save(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: Bearer | None = None) -> "Region":
        """Return the region of a file: on the shards of the model, or on the host until it meets one.

        The file may lie on the Hugging Face hub: hf://org/name/core.safetensors.

        Raises:
          ValueError: the file is damaged, or of another model.
          FileNotFoundError: there is no such file.
          ConnectionError: the file is on the hub, which cannot be reached.
        """
        from lingregions.regions import file, publish

        path = publish.locate(path)
        if model is not None:
            return dataclasses.replace(file.load(path, model.params, model.fingerprint), model=model)
        return file.load(path, jax.devices("cpu")[0])

    def on(self, model: Bearer) -> "Region":
        """Return it on the shards of a model's parameters.

        Raises:
          ValueError: it is a region of another model.
        """
        own = self.provenance.model
        if own and own != model.fingerprint:
            raise ValueError(
                f"region {self.name!r} belongs to another model: it was found on model hash {own}, "
                f"{model.source} has {model.fingerprint}"
            )
        like, leaves = trees.flatten(model.params), self.leaves()
        part = {path: like[path] for path in leaves if path in like}
        trees.assert_parallel(part, leaves, f"region {self.name!r} on {model.source}")
        if all(leaves[path].sharding.is_equivalent_to(each.sharding, each.ndim) for path, each in part.items()):
            return self
        return dataclasses.replace(
            self, masks=trees.transform(lambda path, mask: jax.device_put(mask, part[path].sharding), self.masks)
        )

    # Interventions

    def zero(self) -> Intervention:
        """Return its removal: every parameter becomes 0."""
        return self._do("zero")

    def set(self, value: float) -> Intervention:
        """Return the intervention that sets every parameter to a value."""
        return self._do("set", value)

    def scale(self, factor: float) -> Intervention:
        """Return the intervention that multiplies every parameter."""
        return self._do("scale", factor)

    def negate(self) -> Intervention:
        """Return the intervention that changes every sign."""
        return self._do("negate")

    def noise(self, factor: float = 1.0, *, seed: int) -> Intervention:
        """Return the intervention that adds Gaussian noise of `factor` times the region's L2 norm in each matrix."""
        return self._do("noise", factor, seed)

    def shuffle(self, *, seed: int) -> Intervention:
        """Return the intervention that shuffles the region's values within each matrix."""
        return self._do("shuffle", None, seed)

    def mean(self) -> Intervention:
        """Return the intervention that sets every parameter to the mean of its whole matrix."""
        return self._do("mean")

    def _do(self, perturbation: str, factor: float | None = None, seed: int | None = None) -> Intervention:
        if not len(self):
            raise ValueError(f"region {self.name!r} is empty: an intervention on it changes nothing")
        columns = self.provenance._columns()
        drawn = {} if seed is None else {"seed" if columns.get("seed") is None else "noise_seed": seed}
        return Intervention(**columns | drawn, perturbation=perturbation, factor=factor, region=self)

    # Display

    def _line(self) -> str:
        share = 100 * len(self) / self.size if self.size else 0.0
        return f"{self.name or 'unnamed'!s}: {len(self):,} of {self.size:,} parameters, {share:.3g} %"

    def _facts(self) -> dict[str, Any]:
        own, leaves = self.provenance, self.leaves()
        ranked = sorted(
            (
                (count / math.prod(shape(path, leaves[path])), count, name)
                for path, counts in self._counts.items()
                for name, count in zip(matrices(path, leaves[path]), counts, strict=True)
            ),
            reverse=True,
        )
        return {
            "definition": own.definition,
            "score": own.score,
            "languages": " ".join(own.languages),
            "samples": " ".join(map(str, own.samples)),
            "model": own.model,
            "tokenizer": own.tokenizer,
            "data": own.data,
            "densest matrices": {name: f"{count:,} ({100 * part:.3g} %)" for part, count, name in ranked[:5] if count},
        }


def _percent(fraction: str) -> str:
    """Return an exact part as percent, as interventions name it: "0.01" -> "1%"."""
    value = 100 * fractions.Fraction(fraction)
    text = f"{float(value):g}"
    return f"{text if fractions.Fraction(text) == value else value}%"


def declared(declaration: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `Provenance` says of the arrays of a tree of `Parameter`: `axes` and `removal`."""
    leaves = list(trees.walk(declaration))
    return {
        "axes": tuple((path, tuple(parameter.axes)) for path, parameter in leaves),
        "removal": tuple((path, -parameter.offset) for path, parameter in leaves if parameter.offset),
    }
