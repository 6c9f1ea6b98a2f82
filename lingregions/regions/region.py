"""Region: a set of scalar parameters of one model, with everything needed to know where it came from.

A region is a tree of boolean masks parallel to the parameters of its scope, in the index space of Hugging Face: the
leaf `layers.self_attn.q_proj` is [L, out, in], and one layer's slice of it is a *matrix* with the name
`model.layers.3.self_attn.q_proj.weight`. The masks lie on the devices as the parameters do, one byte an entry; nothing
in this package gathers them whole.
"""

import dataclasses
import functools
import importlib.metadata
from collections.abc import Mapping
from typing import Any, Literal, Self

import jax

from lingregions import tree as trees
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
      seed: seed of a random region.
      model: `tree.fingerprint` of the parameters that were scored.
      tokenizer: fingerprint of the tokenizer.
      data: fingerprint of the text.
      axes: (path, axis names) of every leaf, as declared by the architecture.
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
    seed: int | None = None
    model: str = ""
    tokenizer: str = ""
    data: str = ""
    axes: tuple[tuple[str, tuple[str, ...]], ...] = ()
    selection: Selection | None = None
    versions: tuple[tuple[str, str], ...] = ()
    parents: tuple["Provenance", ...] = ()

    def replace(self, **changes: Any) -> "Provenance":
        """Return a copy with these fields changed."""
        return dataclasses.replace(self, **changes)

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
        for field in dataclasses.fields(cls):
            value = getattr(found, field.name)
            kind = int if field.name == "seed" else Selection if field.name == "selection" else type(field.default)
            if type(value) is not kind and not (value is None and field.default is None):
                raise ValueError(f"the provenance says {field.name} is {value!r}, which cannot be")
        return found


UNKNOWN = Provenance()


def _frozen(value: Any) -> Any:
    """Return JSON lists as tuples, so that what is read back equals what was written."""
    return tuple(_frozen(each) for each in value) if isinstance(value, list) else value


@functools.partial(jax.tree_util.register_dataclass, data_fields=["masks"], meta_fields=["provenance"])
@dataclasses.dataclass(frozen=True, eq=False)
class Region:
    """A set of parameters: boolean masks parallel to `roles.restrict(params, scope)`, and their provenance.

    Give `region.masks`, not the region, to a jitted function: the provenance is static, another one compiles anew.
    """

    masks: Tree
    provenance: Provenance = UNKNOWN

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


def axes(declaration: Mapping[str, Any]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Return `Provenance.axes` for a tree of `Parameter` (anything with `.axes`)."""
    return tuple((path, tuple(parameter.axes)) for path, parameter in trees.walk(declaration))
