"""Experiments: a study each (see `study`), and the registry that the command line reads."""

import difflib

from ml_collections import ConfigDict

from lingregions.experiments import (
    core_contents,
    core_removal,
    definitions,
    dimension_dependence,
    disentangling,
    emergence,
    frozen_pretraining,
    minimal_damage,
    monolingual_regions,
    pretraining,
    probes,
    proxy_audit,
    reliability,
    single_parameter,
    transfer,
)
from lingregions.experiments.study import Study
from lingregions.run import Run
from lingregions.train import require

# The value of `config.experiment`, also the name of its config -> what it does.
STUDIES: dict[str, Study] = {
    "core_contents": core_contents.STUDY,
    "core_removal": core_removal.STUDY,
    "definitions": definitions.STUDY,
    "dimension_dependence": dimension_dependence.STUDY,
    "disentangling": disentangling.STUDY,
    "emergence": emergence.STUDY,
    "frozen_pretraining": frozen_pretraining.STUDY,
    "minimal_damage": minimal_damage.STUDY,
    "monolingual_regions": monolingual_regions.STUDY,
    "pretraining": pretraining.STUDY,
    "probes": probes.STUDY,
    "proxy_audit": proxy_audit.STUDY,
    "reliability": reliability.STUDY,
    "single_parameter": single_parameter.STUDY,
    "transfer": transfer.STUDY,
}


def find(name: str) -> Study:
    """Return the study of a name.

    Raises:
      ValueError: there is none of that name.
    """
    if name not in STUDIES:
        near = difflib.get_close_matches(name, STUDIES, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"there is no experiment {name!r}; {hint}there are {', '.join(sorted(STUDIES))}")
    return STUDIES[name]


def perform(settings: ConfigDict, run: Run) -> bool:
    """Carry out the experiment of a config in its work directory; returns False if it was finished before.

    Raises:
      ValueError: there is no such experiment; and what the experiment raises.
    """
    require(settings.machine.get("tracker", "none"))
    if run.done("run") is not None and not run.moved:  # what lies at another place is identified before it is trusted
        return False
    find(settings.experiment).perform(settings, run)
    written = ("results.csv", "effects.csv", "report.html")
    run.finish("run", *(name for name in written if run.path(name).exists()))
    return True
