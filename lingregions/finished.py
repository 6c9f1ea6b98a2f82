"""Finished: the work directory of a run, read - its regions, scores and tables, as the nouns and as DataFrames.

    run = Run.open("runs/core_removal")
    run.region("top 1%"), run.scores("ar"), run.results(), run.effects(), run.report

Takes no lock and writes nothing, so a run may be looked at while it is at work.
"""

import dataclasses
import difflib
import functools
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lingregions import model as model_module
from lingregions import models
from lingregions import run as runs
from lingregions import tree as trees
from lingregions.corpus.languages import canonical
from lingregions.display import Shown
from lingregions.model import Model
from lingregions.models import roles
from lingregions.regions import file
from lingregions.regions.region import Region, declared
from lingregions.run import checkpoint, table
from lingregions.scores import Scores

if TYPE_CHECKING:
    import pandas

# Columns of results.csv and effects.csv that hold no numbers.
_WORDS = {
    *("experiment", "intervention", "control", "language", "family", "checksum", "kind", "fraction", "within"),
    *("definition", "region_language", "target", "part", "perturbation", "bounded"),
}


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Run(Shown):
    """A work directory. `open` it.

    Attributes:
      folder: the work directory.
      config: that it was begun with.
    """

    folder: Path
    config: dict[str, Any]

    @classmethod
    def open(cls, workdir: str | os.PathLike[str]) -> "Run":
        """Return the run of a work directory.

        Raises:
          RunError: it is none, is damaged, or of another format.
        """
        return cls(Path(workdir).expanduser().absolute(), runs.Run.stored(workdir).to_dict())

    @functools.cached_property
    def regions(self) -> dict[str, Path]:
        """The regions by name, and their files."""
        return {file.header(path).provenance.name: path for path in sorted(self.folder.glob("regions/*.safetensors"))}

    @functools.cached_property
    def languages(self) -> tuple[str, ...]:
        """The languages that were scored."""
        scored = {path.name for path in self.folder.glob("scores/*") if checkpoint.newest(path)}
        return tuple(code for code in self.config.get("score", {}).get("languages", ()) if code in scored)

    @property
    def report(self) -> Path:
        """The report, an HTML file.

        Raises:
          FileNotFoundError: none was written yet.
        """
        path = self.folder / "report.html"
        if not path.is_file():
            raise FileNotFoundError(f"{self.folder} holds no report yet: the run is not finished")
        return path

    def region(self, name: str, model: Model | None = None) -> Region:
        """Return a region by its name, "top 1%": on the shards of the model, or on the host until it meets one.

        Raises:
          ValueError: there is no such region, or it is of another model; the message says what there is.
        """
        return Region.load(self.regions[_known(name, self.regions, f"region in {self.folder}")], model)

    def scores(self, language: str, model: Model | None = None) -> Scores:
        """Return the scores of a language: on the shards of the model, or on the first device.

        Raises:
          ValueError: the language was not scored, or on another model.
          RunError: the scores are damaged.
        """
        folder = self.folder / "scores" / _known(canonical(language), self.languages, f"scores in {self.folder} of")
        version = checkpoint.newest(folder)
        header = checkpoint.header(folder, version) or {}
        scope = header["definition"]["scope"]
        if model is None:
            saved = checkpoint.shapes(folder, version)
            like = trees.unflatten({path: each.update(dtype=np.float32) for path, each in saved.items()})
            named = self._declared(scope)
        else:
            like, named = roles.restrict(model.shapes, scope), model.declared(scope)
            if model.fingerprint != header["model"]:
                raise ValueError(f"{folder} holds scores of another model, {header['model']}, not of {model.source}")
        return Scores.read(checkpoint.load(folder, version, like), header, named, model)

    def model(self) -> Model:
        """Load the model of the run, computed as the run did."""
        settings = self.config
        compute = models.Compute(**settings["compute"], **settings["machine"]["compute"])
        cache = settings["machine"]["cache"] or None
        return model_module.load(settings["model"]["source"], None, compute, settings["seed"], cache)

    def results(self) -> "pandas.DataFrame":
        """Return results.csv: the loss of every language under every intervention.

        Raises:
          FileNotFoundError: there is none yet.
          RunError: a row is damaged.
        """
        return self._table("results")

    def effects(self) -> "pandas.DataFrame":
        """Return effects.csv: every intervention against its controls, with intervals; raises as `results` does."""
        return self._table("effects")

    def _table(self, name: str) -> "pandas.DataFrame":
        import pandas

        path = self.folder / f"{name}.csv"
        if not path.is_file():
            raise FileNotFoundError(f"{self.folder} holds no {name}.csv: the run evaluated nothing yet")
        frame = pandas.DataFrame(table.read(path))
        numbers = [column for column in frame.columns if column not in _WORDS]
        return frame.assign(**{column: pandas.to_numeric(frame[column]) for column in numbers})

    def _declared(self, scope: str) -> dict[str, Any]:
        """Return what provenance says of the scored parameters, by the config of the model that the run has noted."""
        for line in (self.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
            event = json.loads(line)
            if event.get("event") == "model":
                return declared(roles.restrict(models.declare(models.parse(event["config"])), scope))
        return {}

    def _line(self) -> str:
        return f"{self.config['experiment']} in {self.folder}: {len(self.regions)} regions"

    def _facts(self) -> dict[str, Any]:
        return {
            "model": self.config["model"]["source"],
            "scored": " ".join(self.languages),
            "regions": ", ".join(self.regions),
            "tables": ", ".join(sorted(path.stem for path in self.folder.glob("tables/*.json"))),
        }


def _known(name: str, names: Iterable[str], what: str) -> str:
    """Return the name if it is there.

    Raises:
      ValueError: says what is there, and the nearest.
    """
    there = list(names)
    if name not in there:
        close = difflib.get_close_matches(name, there, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else "."
        raise ValueError(f"there is no {what} {name!r}{hint} There are: {', '.join(there) or 'none'}")
    return name
