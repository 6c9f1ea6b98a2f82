"""Survey: where the regions of a run lie, and how far they overlap, read from their files in one pass.

One matrix of every file is on the host at a time, and no device is needed, so that the report of a 7B model can be
written on a laptop. Costs one pass over the masks: a second for ten regions of SmolLM2.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lingregions.models import roles
from lingregions.regions import file
from lingregions.regions.file import Header
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
    """Where a region lies: entries selected per (layer, role), and per index of one named axis.

    `counts` and `sizes` are [layers][matrices], None where a layer has no such matrix; `carried[d]` counts the selected
    entries at index d of `axis` and `capacity[d]` all entries there, over every matrix of the scope that carries the
    axis; `profiles` say how they lie inside each matrix.
    """

    name: str
    layers: tuple[str, ...]
    matrices: tuple[str, ...]
    counts: tuple[tuple[int | None, ...], ...]
    sizes: tuple[tuple[int | None, ...], ...]
    axis: str = "embed"
    carried: tuple[int, ...] = ()
    capacity: tuple[int, ...] = ()
    definition: str = ""
    notes: tuple[str, ...] = ()
    profiles: tuple[Profile, ...] = ()

    @property
    def roles(self) -> tuple[str, ...]:
        """Labels of the columns."""
        return tuple(map(roles.label, self.matrices))

    @property
    def selected(self) -> int:
        """Entries in the region."""
        return sum(count or 0 for row in self.counts for count in row)

    @property
    def size(self) -> int:
        """Entries in the scope."""
        return sum(size or 0 for row in self.sizes for size in row)

    @property
    def even(self) -> bool:
        """Whether one fraction explains the count of every matrix: k = floor(fraction x size)."""
        pairs = [
            (count, size)
            for counts, sizes in zip(self.counts, self.sizes, strict=True)
            for count, size in zip(counts, sizes, strict=True)
            if size and count is not None
        ]
        low = max((count / size for count, size in pairs), default=1.0)
        high = min(((count + 1) / size for count, size in pairs), default=0.0)
        return low < high and self.selected > 0


@dataclass(frozen=True)
class Overlap:
    """Intersection over union between regions, [regions][regions]; None between two empty ones."""

    names: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]
    chance: float | None = None  # what two independent regions of these sizes share at most
    cells: tuple[tuple[str, str, np.ndarray], ...] = ()  # (layer, role, the same in one matrix; NaN for None)


def read(paths: Sequence[str | os.PathLike[str]], axis: str = "embed") -> tuple[tuple[Survey, ...], Overlap | None]:
    """The surveys of region files, and their overlap where all are parallel.

    Raises:
      ValueError: a file is damaged or is no region file; says which.
    """
    headers = [file.header(path) for path in paths]
    names = distinct([head.provenance.name or Path(path).stem for head, path in zip(headers, paths, strict=True)])
    parallel = 1 < len(paths) <= _MOST and all(_shapes(head) == _shapes(headers[0]) for head in headers[1:])
    carried = [np.zeros(_length(head, axis), np.int64) for head in headers]
    profiles: list[list[Profile]] = [[] for _ in paths]
    shared: dict[str, np.ndarray] = {}
    if parallel:
        labels = np.min_scalar_type(2 ** len(paths) - 1)
        for rows in zip(*(file.entries(path) for path in paths), strict=True):
            matrix = rows[0][0]
            label = np.zeros(headers[0].matrices[matrix].size, labels)
            for place, (_, indices) in enumerate(rows):
                label[indices] |= labels.type(1 << place)
                _add(carried[place], headers[place], matrix, indices, axis)
                profiles[place] += _profiles(headers[place], matrix, indices)
            shared[matrix] = _common(label, len(paths))
    else:
        for place, path in enumerate(paths):
            for matrix, indices in file.entries(path):
                _add(carried[place], headers[place], matrix, indices, axis)
                profiles[place] += _profiles(headers[place], matrix, indices)
    surveys = tuple(map(_survey, names, headers, [axis] * len(paths), carried, profiles))
    return surveys, _overlap(names, shared, surveys) if parallel else None


def _shapes(header: Header) -> list[tuple[str, tuple[int, ...]]]:
    return [(name, matrix.shape) for name, matrix in header.matrices.items()]


def _place(header: Header, name: str, axis: str) -> int | None:
    """Which axis of the matrix [out, in] has this name; None if it has none of that name."""
    path, layer = roles.locate(name)
    axes = dict(header.provenance.axes).get(path, ())
    axes = axes[1:] if layer is not None else axes
    return axes.index(axis) if axis in axes else None


def _length(header: Header, axis: str) -> int:
    lengths = {
        matrix.shape[place]
        for name, matrix in header.matrices.items()
        if (place := _place(header, name, axis)) is not None
    }
    return lengths.pop() if len(lengths) == 1 else 0


def _add(carried: np.ndarray, header: Header, name: str, indices: np.ndarray, axis: str) -> None:
    place = _place(header, name, axis)
    if place is not None and carried.size:
        shape = header.matrices[name].shape
        carried += np.bincount(np.unravel_index(indices, shape)[place], minlength=carried.size)


def _common(label: np.ndarray, regions: int) -> np.ndarray:
    """Entries that each pair of regions has in common, from one label an entry whose bits say which regions hold it."""
    kinds, amounts = np.unique(label[label != 0], return_counts=True)
    bits = (kinds[:, None].astype(np.uint64) >> np.arange(regions, dtype=np.uint64)) & np.uint64(1)
    held = bits.astype(np.int64)
    return held.T @ (held * amounts[:, None])


def _profiles(header: Header, name: str, indices: np.ndarray) -> list[Profile]:
    """The profiles of a matrix along its axes; none where the region has no entry in it, or the matrix no two axes."""
    shape = header.matrices[name].shape
    if len(shape) != 2 or not indices.size:
        return []
    layer, role = _cell(name)
    path, stacked = roles.locate(name)
    axes = dict(header.provenance.axes).get(path, ())[0 if stacked is None else 1 :] or ("out", "in")
    found = []
    for side, axis, length, at in zip(("out", "in"), axes, shape, np.unravel_index(indices, shape), strict=True):
        counts = np.bincount(at, minlength=length)
        across = header.matrices[name].size // length
        edges = np.linspace(0, length, min(_BINS, length) + 1).astype(int)
        order = np.argsort(-counts, kind="stable")
        found.append(
            Profile(
                *(layer, role, side, axis, length, across),
                bins=tuple((np.add.reduceat(counts, edges[:-1]) / np.diff(edges) / across).tolist()),
                fullest=tuple((int(index), float(counts[index] / across)) for index in order[:_FULLEST]),
                held=float(counts[order[: max(1, length // 100)]].sum() / indices.size),
            )
        )
    return found


def _cell(name: str) -> tuple[str, str]:
    """The layer and the role of a matrix, in words."""
    path, layer = roles.locate(name)
    return str(layer) if layer is not None else "outside", roles.label(roles.in_layer(path))


def _iou(shared: np.ndarray) -> np.ndarray:
    """Intersection over union of every pair, from the entries that they share; NaN between two empty ones."""
    own = np.diagonal(shared)
    union = own[:, None] + own[None, :] - shared
    shares: np.ndarray = np.divide(shared, union, out=np.full(shared.shape, np.nan), where=union > 0)
    return shares


def _overlap(names: Sequence[str], shared: dict[str, np.ndarray], surveys: Sequence[Survey]) -> Overlap:
    together = _iou(np.sum(list(shared.values()), axis=0))
    values = tuple(tuple(None if math.isnan(cell) else cell for cell in row) for row in together.tolist())
    shares = sorted(survey.selected / survey.size for survey in surveys)[-2:]
    both = math.prod(shares)
    chance = both / (sum(shares) - both) if sum(shares) > both else None
    columns = roles.ordered({roles.locate(name)[0] for name in shared})
    order = sorted(shared, key=lambda name: (roles.locate(name)[1] or 0, columns.index(roles.locate(name)[0])))
    return Overlap(tuple(names), values, chance, tuple((*_cell(name), _iou(shared[name])) for name in order))


def _survey(name: str, header: Header, axis: str, carried: np.ndarray, profiles: Sequence[Profile]) -> Survey:
    cells: dict[tuple[str, str], tuple[int, int]] = {}
    capacity = 0
    for matrix, entry in header.matrices.items():
        path, layer = roles.locate(matrix)
        row = str(layer) if layer is not None else "outside"
        cells[row, roles.in_layer(path)] = (entry.count, entry.size)
        if carried.size and _place(header, matrix, axis) is not None:
            capacity += entry.size // carried.size
    layers = sorted({row for row, _ in cells}, key=lambda row: float(row) if row.isdigit() else math.inf)
    found = {column for _, column in cells}
    matrices = roles.ordered(found)

    def table(part: int) -> tuple[tuple[int | None, ...], ...]:
        return tuple(
            tuple(cells[row, column][part] if (row, column) in cells else None for column in matrices) for row in layers
        )

    return Survey(
        name,
        tuple(layers),
        tuple(matrices),
        table(0),
        table(1),
        axis,
        tuple(carried.tolist()),
        (capacity,) * carried.size,
        header.provenance.definition,
        _notes(header),
        tuple(profiles),
    )


def _notes(header: Header) -> tuple[str, ...]:
    selection = header.provenance.selection
    if selection is None:
        return ()
    notes = []
    if selection.empty:
        amount = numerals.plural(len(selection.empty), "matrix", "matrices")
        verb = "is" if len(selection.empty) == 1 else "are"
        notes.append(f"{amount} {verb} too small for the fraction to select one entry (k < 1).")
    if selection.zero:
        amount = numerals.plural(len(selection.zero), "matrix", "matrices")
        notes.append(f"In {amount} every score is zero: position alone decided what was selected there.")
    if selection.cut:
        tied, taken = sum(cut[1] for cut in selection.cut), sum(cut[2] for cut in selection.cut)
        amount = numerals.plural(len(selection.cut), "matrix", "matrices")
        notes.append(
            f"In {amount} entries tie at the threshold: {numerals.count(taken)} of {numerals.count(tied)} tied entries "
            "were taken, lowest index first."
        )
    return tuple(notes)
