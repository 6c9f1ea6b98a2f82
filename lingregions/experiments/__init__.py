"""Experiments: a study each (see `study`), and the registry that the command line reads."""

import difflib
from collections.abc import Callable, Sequence
from typing import Any, cast

from ml_collections import ConfigDict

from lingregions.experiments import (
    core_removal,
    definitions,
    dimension_dependence,
    minimal_damage,
    monolingual_regions,
    single_parameter,
)
from lingregions.experiments.frozen_pretraining import frozen_pretraining
from lingregions.experiments.frozen_pretraining import stages as frozen_pretraining_stages
from lingregions.experiments.proxy_audit import proxy_audit
from lingregions.experiments.proxy_audit import stages as proxy_audit_stages
from lingregions.experiments.reliability import reliability
from lingregions.experiments.reliability import stages as reliability_stages
from lingregions.experiments.study import Study
from lingregions.run import Run
from lingregions.train import require

# The value of `config.experiment`, also the name of its config -> what it does.
STUDIES: dict[str, Study] = {
    "core_removal": core_removal.STUDY,
    "definitions": definitions.STUDY,
    "dimension_dependence": dimension_dependence.STUDY,
    "minimal_damage": minimal_damage.STUDY,
    "monolingual_regions": monolingual_regions.STUDY,
    "single_parameter": single_parameter.STUDY,
}


class _Unported:
    """A study of the old kind, until it is a declaration too."""

    def __init__(self, perform: Callable[[ConfigDict, Run], None], plan: Callable[[ConfigDict], Sequence[Any]]) -> None:
        self.perform, self.plan = perform, plan


STUDIES |= {
    name: cast(Any, _Unported(function, stages))
    for name, function, stages in (
        ("frozen_pretraining", frozen_pretraining, frozen_pretraining_stages),
        ("proxy_audit", proxy_audit, proxy_audit_stages),
        ("reliability", reliability, reliability_stages),
    )
}


def study(name: str) -> Study:
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
    study(settings.experiment).perform(settings, run)
    written = ("results.csv", "effects.csv", "damage.csv", "report.html")
    run.finish("run", *(name for name in written if run.path(name).exists()))
    return True
