"""Remove the core linguistic region (the paper's section 3), against the bottom and a random region of the same size.

    lingregions run --config=configs/core_removal.py:smollm2 --workdir=runs/core_removal

Scores every parameter of the decoder layers in six languages by |theta x gradient|, takes the top 1 % of each matrix by
the scores combined over the languages, sets it to zero, and measures the perplexity of eleven languages (thirty in the
paper); the bottom 1 % and a random 1 % are the controls. The paper claims: the core's removal destroys the model in all
languages, the controls' does little.

Measured on SmolLM2-135M (seed 0, three minutes on two cores, 3.2 GB): geometric-mean perplexity over eleven languages
base 15.0, top 1 % removed 6.1e7, bottom 1 % 15.8, a random 1 % 27.5.
"""

from base import VARIANTS, base, evaluated
from ml_collections import ConfigDict

__all__ = ["VARIANTS", "get_config"]


def get_config(variant: str = "smollm2") -> ConfigDict:
    """Return the config of a variant."""
    config = evaluated(base("core_removal", variant), variant)
    config.select.selectors = (
        "top",
        "bottom",
        "random",
    )  # and "matched": random, matched to the top (40 s on two cores)
    config.select.seeds = (0,)  # of the random and matched regions
    config.select.monolingual = True  # also find what each scored language has alone
    return config
