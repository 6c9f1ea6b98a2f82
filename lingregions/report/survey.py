"""Survey: where the regions of a run lie, and how far they overlap, read from their files in one pass.

One matrix of every file is on the host at a time, and no device is needed, so that the report of a 7B model can be
written on a laptop. Costs one pass over the masks: a second for ten regions of SmolLM2.
"""

import itertools
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lingregions.models import roles
from lingregions.regions import file
from lingregions.report import numerals
from lingregions.report.tables import distinct

_MOST = 64  # regions that one pass can compare: one bit each
_BINS = 48  # of a profile along one axis of one matrix
_FULLEST = 3  # indices of an axis that a profile names one by one


@dataclass(frozen=True)
class Profile:
    """How the entries of a region in one matrix lie along one of its axes.

    `side` is "out" or "in", `axis` the name of the axis, `length` its indices, `across` the entries of the matrix at
    one index; `bins` are mean densities over equal runs of indices, `fullest` pairs of (index, density), `held` the
    share of the region's entries at the fullest 1 % of the indices (at least one).
    """

    layer: str
    role: str
    side: str
    axis: str
    length: int
    across: int
    bins: tuple[float, ...]
    fullest: tuple[tuple[int, float], ...]
    held: float


@dataclass(frozen=True)
class Survey:
    """Where a region lies: entries selected per matrix, and per index of one named axis.

    `cells` are (layer, role, entries selected, all entries) of every matrix, layer by layer; `carried[d]` counts the
    selected entries at index d of `axis` and `capacity` all entries at one index, over every matrix of the scope that
    carries the axis; `profiles` say how they lie inside each matrix, `facts` where the region comes from.
    """

    name: str
    cells: tuple[tuple[str, str, int, int], ...]
    axis: str = "embed"
    carried: tuple[int, ...] = ()
    capacity: int = 0
    notes: tuple[str, ...] = ()
    profiles: tuple[Profile, ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict)

    @property
    def selected(self) -> int:
        """Entries in the region."""
        return sum(count for *_, count, _ in self.cells)

    @property
    def size(self) -> int:
        """Entries in the scope."""
        return sum(size for *_, size in self.cells)

    @property
    def even(self) -> bool:
        """Whether one fraction explains the count of every matrix: k = floor(fraction x size)."""
        low = max((count / size for *_, count, size in self.cells), default=1.0)
        high = min(((count + 1) / size for *_, count, size in self.cells), default=0.0)
        return low < high and self.selected > 0


@dataclass(frozen=True)
class Overlap:
    """Intersection over union between regions, [regions][regions]; None between two empty ones."""

    names: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]
    chance: float | None = None  # what two independent regions of these sizes share at most
    cells: tuple[tuple[str, str, np.ndarray], ...] = ()  # (layer, role, the same in one matrix; NaN for None)


def read(
    paths: Sequence[str | os.PathLike[str]], interventions: Sequence[str] = (), axis: str = "embed"
) -> tuple[tuple[Survey, ...], Overlap | None]:
    """The surveys of region files, and their overlap where all are parallel.

    Args:
      paths: of the files.
      interventions: names; regions that are called like one come first, in their order.
      axis: that `carried` counts along.

    Raises:
      ValueError: a file is damaged or is no region file; says which.
    """
    order = {name: place for place, name in reversed(list(enumerate(interventions)))}
    found = [(file.header(path), Path(path)) for path in paths]
    found.sort(key=lambda pair: order.get(pair[0].provenance.name, len(interventions)))
    headers = [head for head, _ in found]
    names = distinct([head.provenance.name or path.stem for head, path in found])
    parallel = 1 < len(found) <= _MOST and all(_shapes(head) == _shapes(headers[0]) for head in headers[1:])
    carried = [np.zeros(_length(head, axis), np.int64) for head in headers]
    profiles: list[list[Profile]] = [[] for _ in found]
    shared: dict[str, np.ndarray] = {}
    labels = np.min_scalar_type(2 ** min(len(found), _MOST) - 1)
    files = [zip(itertools.repeat(place), file.entries(path)) for place, (_, path) in enumerate(found)]
    # A matrix of all files at a time where they are parallel, otherwise one file after the other.
    for rows in zip(*files, strict=True) if parallel else zip(itertools.chain(*files), strict=True):
        matrix = rows[0][1][0]
        label = np.zeros(headers[0].matrices[matrix].size if parallel else 0, labels)
        for place, (_, indices) in rows:
            along = _along(headers[place], matrix, indices)
            if carried[place].size:
                carried[place] += sum(counts for name, counts in along if name == axis)
            profiles[place] += _profiles(matrix, along, headers[place].matrices[matrix].size)
            if parallel:
                label[indices] |= labels.type(1 << place)
        if parallel:
            shared[matrix] = _common(label, len(found))
    surveys = tuple(map(_survey, names, headers, [axis] * len(found), carried, profiles))
    return surveys, _overlap(names, shared, surveys) if parallel else None


def _shapes(header: file.Header) -> list[tuple[str, tuple[int, ...]]]:
    return [(name, matrix.shape) for name, matrix in header.matrices.items()]


def _axes(header: file.Header, name: str) -> tuple[str, ...]:
    """What the axes of a matrix [out, in] are called."""
    path, layer = roles.locate(name)
    return dict(header.provenance.axes).get(path, ())[0 if layer is None else 1 :] or ("out", "in")


def _length(header: file.Header, axis: str) -> int:
    """Indices of the axis; 0 where no matrix has it, or where two differ."""
    lengths = {
        length
        for name, matrix in header.matrices.items()
        for called, length in zip(_axes(header, name), matrix.shape, strict=False)
        if called == axis
    }
    return lengths.pop() if len(lengths) == 1 else 0


def _along(header: file.Header, name: str, indices: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Of each axis of a matrix its name, and the entries of the region at each of its indices."""
    shape = header.matrices[name].shape
    places = zip(_axes(header, name), shape, np.unravel_index(indices, shape), strict=False)
    return [(axis, np.bincount(at, minlength=length)) for axis, length, at in places]


def _common(label: np.ndarray, regions: int) -> np.ndarray:
    """Entries that each pair of regions has in common, from one label an entry whose bits say which regions hold it."""
    kinds, amounts = np.unique(label[label != 0], return_counts=True)
    bits = (kinds[:, None].astype(np.uint64) >> np.arange(regions, dtype=np.uint64)) & np.uint64(1)
    held = bits.astype(np.int64)
    return held.T @ (held * amounts[:, None])


def _profiles(name: str, along: Sequence[tuple[str, np.ndarray]], size: int) -> list[Profile]:
    """The profiles of a matrix along its axes; none where the region has no entry in it, or the matrix no two axes."""
    if len(along) != 2 or not along[0][1].any():
        return []
    found = []
    for side, (axis, counts) in zip(("out", "in"), along, strict=True):
        length = len(counts)
        across = size // length
        edges = np.linspace(0, length, min(_BINS, length) + 1).astype(int)
        order = np.argsort(-counts, kind="stable")
        found.append(
            Profile(
                *(*_cell(name), side, axis, length, across),
                bins=tuple((np.add.reduceat(counts, edges[:-1]) / np.diff(edges) / across).tolist()),
                fullest=tuple((int(index), float(counts[index] / across)) for index in order[:_FULLEST]),
                held=float(counts[order[: max(1, length // 100)]].sum() / counts.sum()),
            )
        )
    return found


def _cell(name: str) -> tuple[str, str]:
    """The layer and the role of a matrix, in words."""
    path, layer = roles.locate(name)
    return str(layer) if layer is not None else "outside", roles.label(path)


def _ordered(names: Iterable[str]) -> list[str]:
    """Names of matrices layer by layer, each in the order of roles; those outside the layers last."""
    places = {name: roles.locate(name) for name in names}
    columns = roles.ordered({path for path, _ in places.values()})

    def place(name: str) -> tuple[float, int]:
        path, layer = places[name]
        return math.inf if layer is None else layer, columns.index(path)

    return sorted(places, key=place)


def _iou(shared: np.ndarray) -> np.ndarray:
    """Intersection over union of every pair, from the entries that they share; NaN between two empty ones."""
    own = np.diagonal(shared)
    union = own[:, None] + own[None, :] - shared
    shares: np.ndarray = np.divide(shared, union, out=np.full(shared.shape, np.nan), where=union > 0)
    return shares


def _overlap(names: Sequence[str], shared: Mapping[str, np.ndarray], surveys: Sequence[Survey]) -> Overlap:
    together = _iou(np.sum(list(shared.values()), axis=0))
    values = tuple(tuple(None if math.isnan(cell) else cell for cell in row) for row in together.tolist())
    shares = sorted(survey.selected / survey.size for survey in surveys)[-2:]
    both = math.prod(shares)
    chance = both / (sum(shares) - both) if sum(shares) > both else None
    return Overlap(tuple(names), values, chance, tuple((*_cell(name), _iou(shared[name])) for name in _ordered(shared)))


def _survey(name: str, header: file.Header, axis: str, carried: np.ndarray, profiles: Sequence[Profile]) -> Survey:
    matrices, origin = header.matrices, header.provenance
    return Survey(
        name,
        cells=tuple((*_cell(each), matrices[each].count, matrices[each].size) for each in _ordered(matrices)),
        axis=axis,
        carried=tuple(carried.tolist()),
        capacity=sum(matrices[each].size // carried.size for each in matrices if axis in _axes(header, each))
        if carried.size
        else 0,
        notes=_notes(header),
        profiles=tuple(profiles),
        facts={
            "definition": origin.definition,
            "model hash": origin.model,
            "tokenizer hash": origin.tokenizer,
            "data fingerprint": origin.data,
            "content hash": header.digest,
        },
    )


def _notes(header: file.Header) -> tuple[str, ...]:
    selection = header.provenance.selection
    if selection is None:
        return ()
    empty, zero, cut = (
        numerals.plural(len(which), "matrix", "matrices") for which in (selection.empty, selection.zero, selection.cut)
    )
    notes = []
    if selection.empty:
        verb = "is" if len(selection.empty) == 1 else "are"
        notes.append(f"{empty} {verb} too small for the fraction to select one entry (k < 1).")
    if selection.zero:
        notes.append(f"In {zero} every score is zero: position alone decided what was selected there.")
    if selection.cut:
        tied, taken = (numerals.count(sum(amounts)) for amounts in list(zip(*selection.cut, strict=True))[1:])
        notes.append(
            f"In {cut} entries tie at the threshold: {taken} of {tied} tied entries were taken, lowest index first."
        )
    return tuple(notes)
