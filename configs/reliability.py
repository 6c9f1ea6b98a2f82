"""Would the regions come out again, and do score definitions agree? The paper shows no such table.

    lingregions run --config=configs/reliability.py:smollm2 --workdir=runs/reliability

Every score definition from one pass over each language; overlap (intersection over union) between definitions, between
languages, between disjoint halves of the samples, and against the number of samples; the noise ceiling over it all.

Measured on SmolLM2-135M (seed 0, 4 samples a language, 6.2 GB): two halves of one language's samples share IoU 0.24 of
their top 1 % (mean of six languages), two languages 0.12, where noise alone would allow 0.37.
"""

from base import VARIANTS, base
from ml_collections import ConfigDict

__all__ = ["VARIANTS", "get_config"]


def get_config(variant: str = "smollm2") -> ConfigDict:
    """Return the config of a variant."""
    config = base("reliability", variant)
    config.score.rules = ("taylor_abs", "fisher", "magnitude", "wanda")
    if variant in ("smollm2", "thirty"):
        config.score.samples = 4
    return config
