"""Results and effects of a run, as data frames: the two tables that every part of the report reads.

`results` holds one row an (experiment, intervention, language): NLL summed over tokens, in nats. `effects` holds one
row an (experiment, intervention, control, language): a difference in NLL in nats per token with its interval. Nothing
is computed here that a study has not written; a work directory of before (damage.csv, columns arm and reference) is
read into the same columns.
"""

import csv
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lingregions.report import languages
from lingregions.run import RunError, table

if TYPE_CHECKING:  # a second of every start, which studies need after their last step
    import pandas

BASE = "base"  # the control that is the untouched model
MEAN = "all"  # in place of a language: the mean over all of them
RESULTS = ("experiment", "intervention", "language", "nll_nats", "tokens", "bytes")
EFFECTS = (
    *("experiment", "intervention", "control", "language", "seeds", "segments"),
    *("effect_nats", "low", "high", "p", "p_adjusted"),
)
# Columns of work directories of before, and what they are called now.
_BEFORE = {"arm": "intervention", "reference": "control", "passages": "segments", "damage_nats": "effect_nats"}


class ReportError(ValueError):
    """A work directory that can't be reported on: which file, which line, what is wrong with it."""


def _frame(
    path: Path, needed: Sequence[str], derived: Sequence[str], values: Callable[[dict[str, str]], dict[str, Any]]
) -> "pandas.DataFrame":
    """The rows of a CSV file under today's names.

    Args:
      path: of the file.
      needed: columns that have to be there.
      derived: further columns, which `values` gives.
      values: what replaces the texts of a row; a ValueError of it becomes a ReportError that names the line.
    """
    import pandas

    try:
        table.read(path)
    except RunError as error:
        raise ReportError(str(error)) from None
    rows = []
    with path.open(newline="", encoding="utf-8") as stream:
        reader = csv.DictReader(stream)
        columns = [_BEFORE.get(name, name) for name in reader.fieldnames or ()]
        reader.fieldnames = columns
        if lacking := [name for name in needed if name not in columns]:
            raise ReportError(f"{path}:1: columns {', '.join(lacking)} are missing; expected {', '.join(needed)}")
        for record in reader:
            where = f"{path}:{reader.line_num}"
            if any(record[name] is None for name in needed):
                raise ReportError(f"{where}: the line breaks off; expected {len(columns)} cells")
            try:
                rows.append(record | values(record))
            except ValueError as error:
                raise ReportError(f"{where}: {error}") from error
    return pandas.DataFrame(rows, columns=None if rows else [*needed, *derived])


def _float(word: str | None) -> float:
    """A number, NaN where the cell is empty or not finite."""
    value = float(word or "nan")
    return value if math.isfinite(value) else math.nan


def read_results(path: Path) -> "pandas.DataFrame":
    """The rows of a results.csv, with `nll` (nats per token) and `bits_per_byte` beside what was measured.

    Raises:
      ReportError: a column is missing, a cell is not a number, or `perplexity` contradicts exp(nll_nats / tokens),
        which means that `nll_nats` is not the sum that it has to be. The message names the line.
    """

    def values(record: dict[str, str]) -> dict[str, Any]:
        nll_nats, tokens, size = _float(record["nll_nats"]), int(record["tokens"]), int(record["bytes"])
        nll = nll_nats / tokens if tokens > 0 else math.nan
        _check_perplexity(nll, record.get("perplexity") or "")
        counts = {"tokens": tokens, "bytes": size, "segments": int(record.get("segments") or 0)}
        bits = nll_nats / math.log(2) / size if size > 0 else math.nan
        return {"nll_nats": nll_nats, **counts, "nll": nll, "bits_per_byte": bits}

    return _frame(path, RESULTS, ("segments", "nll", "bits_per_byte"), values)


def _check_perplexity(nll: float, perplexity: str) -> None:
    try:
        stated = math.log(float(perplexity))
    except ValueError:
        return
    if math.isfinite(nll) and math.isfinite(stated) and abs(stated - nll) > 1e-3:
        raise ValueError(
            f"perplexity {perplexity} is not exp(nll_nats / tokens) = exp({nll:.6g}); nll_nats has to be the sum over "
            "the tokens, in nats"
        )


def read_effects(path: Path) -> "pandas.DataFrame":
    """The rows of an effects.csv; a cell that is empty or not finite is NaN.

    Raises:
      ReportError: a column is missing, a cell is not a number, an interval is upside down, or a p-value is none. The
        message names the line.
    """

    def values(record: dict[str, str]) -> dict[str, Any]:
        found: dict[str, Any] = {name: _float(record[name]) for name in EFFECTS[6:]}
        if found["low"] > found["high"]:
            raise ValueError(f"the interval from {found['low']:.6g} to {found['high']:.6g} is upside down")
        for name in ("p", "p_adjusted"):
            if not math.isnan(found[name]) and not 0 <= found[name] <= 1:
                raise ValueError(f"{name} is {found[name]:.6g}, which is no probability")
        found |= {name: int(record[name]) for name in ("seeds", "segments")}
        return found | {"family": record.get("family") or languages.family(record["language"])}

    return _frame(path, EFFECTS, ("family",), values)


def at_random(effects: "pandas.DataFrame") -> "pandas.Series":
    """Whether the intervention of each row is a control that was drawn at random, by its kind or before by its name."""
    return effects.get("kind", effects["intervention"]).astype(str).str.contains("random|matched")


def sign(effects: "pandas.DataFrame") -> "pandas.Series":
    """1 where an interval lies above no effect, -1 where below, 0 where it holds it or there is none."""
    return (effects["low"] > 0).astype(int) - (effects["high"] < 0).astype(int)
