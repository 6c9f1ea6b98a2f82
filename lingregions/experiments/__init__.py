"""Experiments: one function each, a dozen lines of the verbs above, and the registries that the command line reads."""

import difflib
from collections.abc import Callable

from ml_collections import ConfigDict

from lingregions.experiments.core_removal import core_removal
from lingregions.experiments.core_removal import stages as core_removal_stages
from lingregions.experiments.definitions import definitions
from lingregions.experiments.definitions import stages as definitions_stages
from lingregions.experiments.dimension_dependence import dimension_dependence
from lingregions.experiments.dimension_dependence import stages as dimension_dependence_stages
from lingregions.experiments.frozen_pretraining import frozen_pretraining
from lingregions.experiments.frozen_pretraining import stages as frozen_pretraining_stages
from lingregions.experiments.minimal_damage import minimal_damage
from lingregions.experiments.minimal_damage import stages as minimal_damage_stages
from lingregions.experiments.monolingual_regions import monolingual_regions
from lingregions.experiments.monolingual_regions import stages as monolingual_regions_stages
from lingregions.experiments.proxy_audit import proxy_audit
from lingregions.experiments.proxy_audit import stages as proxy_audit_stages
from lingregions.experiments.reliability import reliability
from lingregions.experiments.reliability import stages as reliability_stages
from lingregions.experiments.single_parameter import single_parameter
from lingregions.experiments.single_parameter import stages as single_parameter_stages
from lingregions.experiments.stage import Stage
from lingregions.run import Run
from lingregions.train import require

# The value of `config.experiment` -> (locked config, work directory) -> nothing: results are in the work directory.
EXPERIMENTS: dict[str, Callable[[ConfigDict, Run], None]] = {
    "core_removal": core_removal,
    "definitions": definitions,
    "dimension_dependence": dimension_dependence,
    "frozen_pretraining": frozen_pretraining,
    "minimal_damage": minimal_damage,
    "monolingual_regions": monolingual_regions,
    "proxy_audit": proxy_audit,
    "reliability": reliability,
    "single_parameter": single_parameter,
}
# The same keys -> locked config -> what the experiment would do (`--dry-run`).
STAGES: dict[str, Callable[[ConfigDict], list[Stage]]] = {
    "core_removal": core_removal_stages,
    "definitions": definitions_stages,
    "dimension_dependence": dimension_dependence_stages,
    "frozen_pretraining": frozen_pretraining_stages,
    "minimal_damage": minimal_damage_stages,
    "monolingual_regions": monolingual_regions_stages,
    "proxy_audit": proxy_audit_stages,
    "reliability": reliability_stages,
    "single_parameter": single_parameter_stages,
}


def known(name: str) -> str:
    """Return the name of an experiment as it is.

    Raises:
      ValueError: there is none of that name.
    """
    if name not in EXPERIMENTS:
        near = difflib.get_close_matches(name, EXPERIMENTS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"there is no experiment {name!r}; {hint}there are {', '.join(sorted(EXPERIMENTS))}")
    return name


def perform(settings: ConfigDict, run: Run) -> bool:
    """Carry out the experiment of a config in its work directory; returns False if it was finished before.

    Raises:
      ValueError: there is no such experiment; and what the experiment raises.
    """
    require(settings.machine.get("tracker", "none"))
    if run.done("run") is not None and not run.moved:  # what lies at another place is identified before it is trusted
        return False
    EXPERIMENTS[known(settings.experiment)](settings, run)
    run.finish(
        "run",
        *(name for name in ("results.csv", "damage.csv", "effects.csv", "report.html") if run.path(name).exists()),
    )
    return True
