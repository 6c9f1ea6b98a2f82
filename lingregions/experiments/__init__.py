"""Experiments: one function each, a dozen lines of the verbs above, and the registries that the command line reads."""

from collections.abc import Callable

from ml_collections import ConfigDict

from lingregions.experiments.core_removal import core_removal
from lingregions.experiments.core_removal import stages as core_removal_stages
from lingregions.experiments.reliability import reliability
from lingregions.experiments.reliability import stages as reliability_stages
from lingregions.experiments.stage import Stage
from lingregions.run import Run

# The value of `config.experiment` -> (locked config, work directory) -> nothing: results are in the work directory.
EXPERIMENTS: dict[str, Callable[[ConfigDict, Run], None]] = {
    "core_removal": core_removal,
    "reliability": reliability,
}
# The same keys -> locked config -> what the experiment would do (`--dry-run`).
STAGES: dict[str, Callable[[ConfigDict], list[Stage]]] = {
    "core_removal": core_removal_stages,
    "reliability": reliability_stages,
}
