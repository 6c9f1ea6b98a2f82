"""Cell: one arm in one language - what is done, what the model then loses, and the proof that it was measured.

A finished cell is a row of results.csv and a file of sums by segment, whose checksum is in the row: a run that was
killed goes on at the cell where it stopped, and a damaged cell is measured again. Costs one forward pass a token; the
parameters are changed in place and put back.
"""

import collections
import contextlib
import csv
import dataclasses
import hashlib
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from lingregions import evaluate, perturb
from lingregions import mesh as meshes
from lingregions import tree as trees
from lingregions.corpus.batch import Batch
from lingregions.corpus.corpus import Corpus
from lingregions.experiments.laboratory import Laboratory, draw, slug
from lingregions.regions import Region
from lingregions.run.progress import Bar

# results.csv: one row per (experiment, arm, language).
COLUMNS: dict[str, type] = {
    "experiment": str,
    "arm": str,
    "language": str,
    "nll_nats": float,
    "tokens": int,
    "bytes": int,
    "perplexity": str,
    "bits_per_byte": float,
    "segments": int,
    "checksum": str,
}
KEYS = ("experiment", "arm", "language")
BASE = "base"  # the arm to which nothing is done


@dataclasses.dataclass(frozen=True)
class Arm:
    """One row of an experiment: a region, and what is done to it.

    Attributes:
      name: in results.csv.
      region: makes the region; called only when a cell of the arm is missing. None: nothing is done.
      perturbation: a key of `perturb.PERTURBATIONS`, with its `amount` and `seed` where it takes them.
      group: the name that arms share which differ only in a seed; "" stands for `name`.
      limits: bounds on activations while the arm is measured (see `models.bounded`).
    """

    name: str
    region: Callable[[], Region] | None = None
    perturbation: str = "zero"
    amount: float | None = None
    seed: int | None = None
    group: str = ""
    limits: trees.Tree | None = None

    @property
    def pooled(self) -> str:
        """The name of the group."""
        return self.group or self.name

    def apply(self, params: trees.Tree) -> contextlib.AbstractContextManager[trees.Tree]:
        """Return the context in which `params` is what the arm makes of it; every bit is back afterwards."""
        if self.region is None:
            return contextlib.nullcontext(params)
        return perturb.applied(params, self.region().masks, self.perturbation, self.amount, self.seed)


def measure(laboratory: Laboratory, experiment: str, arms: Sequence[Arm]) -> None:
    """Evaluate every language under every arm, the untouched model first.

    A finished cell is one row of results.csv and the sums of its segments in cells/, whose checksum is in the row: a
    run that was killed goes on at the cell where it stopped, and a damaged cell is measured again. One compiled program
    serves all cells; a batch may hold samples of several languages.

    Args:
      laboratory: the model and its texts; its parameters are the same bits afterwards.
      experiment: the name in the first column.
      arms: what is measured beside the untouched model; names are unique.

    Raises:
      ValueError: two arms have one name, or one has that of the untouched model.
    """
    everything = [Arm(BASE), *arms]
    names = [arm.name for arm in everything]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"two arms of {experiment} are called {twice[0]!r}")
    laboratory.arms[experiment] = everything
    missing = _missing(laboratory, experiment, names)
    with _progress(laboratory, [code for codes in missing.values() for code in codes]) as bar:
        for arm in everything:
            if missing[arm.name]:
                with arm.apply(laboratory.params) as params:
                    _measure(laboratory, experiment, arm, params, missing[arm.name], bar)


def observe(laboratory: Laboratory, experiment: str, arm: Arm, params: trees.Tree) -> None:
    """Evaluate every language under parameters that were made elsewhere (by training), as one more arm.

    Args:
      laboratory: the texts.
      experiment: the name in the first column.
      arm: its name and its group; its finished cells are not measured again.
      params: the parameters.
    """
    missing = remember(laboratory, experiment, arm)
    if missing:
        with _progress(laboratory, missing) as bar:
            _measure(laboratory, experiment, arm, params, missing, bar)


def remember(laboratory: Laboratory, experiment: str, arm: Arm) -> list[str]:
    """Count an arm of `observe` among the measured ones; returns the languages whose cells are missing or not sound."""
    known = laboratory.arms.setdefault(experiment, [])
    if arm.name not in {each.name for each in known}:
        known.append(arm)
    return _missing(laboratory, experiment, [arm.name])[arm.name]


def _missing(laboratory: Laboratory, experiment: str, names: Sequence[str]) -> dict[str, list[str]]:
    """Return the languages of each arm whose cells are not finished, or not sound any more."""
    laboratory.run.table("results", COLUMNS, KEYS)
    rows = laboratory.run.rows("results")
    known = {(row["arm"], row["language"]): row for row in rows if row["experiment"] == experiment}
    return {
        name: [
            code
            for code in laboratory.settings.evaluate.languages
            if (name, code) not in known or not _intact(laboratory, known[name, code])
        ]
        for name in names
    }


def _progress(laboratory: Laboratory, languages: Sequence[str]) -> contextlib.AbstractContextManager[Bar]:
    """Return the bar of an evaluation of so many texts."""
    length = laboratory.settings.data.length
    tokens = sum(len(draw(laboratory, code, "evaluate")[1]) * length for code in languages)
    return laboratory.run.progress("evaluate", tokens, "tokens")


def _measure(
    laboratory: Laboratory, experiment: str, arm: Arm, params: trees.Tree, languages: Sequence[str], bar: Bar
) -> None:
    """Measure the missing cells of one arm, and write each as soon as it is known."""
    run, texts = laboratory.run, {code: draw(laboratory, code, "evaluate") for code in languages}
    for code, found in _cells(laboratory, params, texts, arm.limits, bar):
        checksum = _store(laboratory, experiment, arm.name, code, found.segments)
        run.log(event="evaluated", experiment=experiment, arm=arm.name, language=code, nll_nats=found.nll)
        run.add("results", row(experiment, arm.name, code, found, checksum))
        run.check()


def _cells(
    laboratory: Laboratory,
    params: trees.Tree,
    texts: Mapping[str, tuple[Corpus, np.ndarray]],
    limits: trees.Tree | None,
    bar: Bar,
) -> Iterator[tuple[str, evaluate.Result]]:
    """Yield (language, sums) as soon as the last sample of the language is done."""
    size = laboratory.settings.machine.evaluate_batch * meshes.rows(laboratory.mesh)
    places = [(code, position) for code, (_, positions) in texts.items() for position in np.sort(positions)]
    queue: collections.deque[list[tuple[str, np.ndarray]]] = collections.deque()

    def batches() -> Iterator[Batch]:
        for begin in range(0, len(places), size):
            groups = [
                (code, np.asarray([position for _, position in group]))
                for code, group in itertools.groupby(places[begin : begin + size], key=lambda place: place[0])
            ]
            parts = [texts[code][0].batch(positions) for code, positions in groups]
            rows = sum(len(positions) for _, positions in groups)
            queue.append(groups)
            yield Batch(*(_fill(np.concatenate(each), size) for each in zip(*parts, strict=True)))
            bar.advance(rows * laboratory.settings.data.length)

    left = {code: len(positions) for code, (_, positions) in texts.items()}
    gathered: dict[str, list[tuple[np.ndarray, evaluate.Losses]]] = {code: [] for code in texts}
    for losses in evaluate.stream(laboratory.evaluator, params, batches(), laboratory.place, limits):
        first = 0
        for code, positions in queue.popleft():
            own = losses.take(first, first + len(positions))
            numbers = _numbers(texts[code][0], positions, laboratory.settings.evaluate.segment)[own.row, own.position]
            gathered[code].append((numbers, own))
            first, left[code] = first + len(positions), left[code] - len(positions)
            if not left[code]:
                yield code, evaluate.total(*zip(*gathered.pop(code), strict=True))


def _numbers(corpus: Corpus, positions: np.ndarray, segment: int) -> np.ndarray:
    """Return int64 [B, T]: which segment the token stands in: its document, or every `segment` tokens of a sample."""
    if not segment:
        return corpus.documents(positions)
    count = -(-corpus.length // segment)
    return positions.astype(np.int64)[:, None] * count + np.arange(corpus.length)[None] // segment


def _fill(rows: np.ndarray, size: int) -> np.ndarray:
    """Return the rows with padding (zeros) below, `size` in all."""
    return np.pad(rows, ((0, size - len(rows)), (0, 0)))


def _cell(experiment: str, arm: str, language: str) -> str:
    """Return the file of a cell: the sums of its segments."""
    return f"cells/{slug(experiment)}/{slug(arm)}/{language}.csv"


def _store(laboratory: Laboratory, experiment: str, arm: str, language: str, segments: evaluate.Segments) -> str:
    """Write the sums of a cell by segment; returns their checksum."""
    lines = [",".join(segments._fields)]
    lines += [",".join(map(repr, each)) for each in zip(*(column.tolist() for column in segments), strict=True)]
    content = "\n".join(lines) + "\n"
    laboratory.run.write(_cell(experiment, arm, language), content)
    return _checksum(content.encode())


def _checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _intact(laboratory: Laboratory, row: Mapping[str, Any]) -> bool:
    """Tell whether the segments of a finished cell are there and are what was measured; says so if not."""
    name = _cell(row["experiment"], row["arm"], row["language"])
    path = laboratory.run.path(name)
    sound = laboratory.run.agree(path.exists() and _checksum(path.read_bytes()) == row["checksum"])
    if not sound:
        laboratory.run.note(f"{name} is gone or changed; the cell is measured again")
    return bool(sound)


def segments(laboratory: Laboratory, experiment: str, arm: str, language: str) -> evaluate.Segments:
    """Return the sums by segment of a finished cell."""
    path = laboratory.run.path(_cell(experiment, arm, language))
    rows = list(csv.reader(path.read_text().splitlines()))[1:] if jax.process_index() == 0 else []
    number, nll, tokens, sizes = zip(*laboratory.run.agree(rows), strict=True)
    return evaluate.Segments(
        np.asarray(number, np.int64),
        np.asarray(nll, np.float64),
        np.asarray(tokens, np.int64),
        np.asarray(sizes, np.int64),
    )


def row(experiment: str, arm: str, language: str, found: evaluate.Result, checksum: str) -> dict[str, Any]:
    """Return one line of results.csv."""
    return {
        "experiment": experiment,
        "arm": arm,
        "language": language,
        "nll_nats": found.nll,
        "tokens": found.tokens,
        "bytes": found.bytes,
        "perplexity": evaluate.perplexity(found.nats),
        "bits_per_byte": found.bits if math.isfinite(found.nll) else math.nan,
        "segments": len(found.segments.number),
        "checksum": checksum,
    }
