"""The same removal with each definition of importance; the paper uses one, |theta x summed gradient|.

    lingregions run --config=configs/definitions.py:smollm2 --workdir=runs/definitions

One pass over each language gathers the rules of a preset, a second one those of the released code; the top of each
definition is removed at three fractions, and set against the first definition's.
"""

from base import VARIANTS, base, evaluated
from ml_collections import ConfigDict

__all__ = ["VARIANTS", "get_config"]


def get_config(variant: str = "smollm2") -> ConfigDict:
    """Return the config of a variant."""
    config = evaluated(base("definitions", variant), variant)
    # A rule, and its preset where it is not score.preset; all others are compared with the first.
    config.score.definitions = ("taylor", "taylor paper", "taylor_abs", "fisher", "magnitude", "wanda")
    config.select.fractions = ("0.01%", "0.1%", "1%")
    if variant == "tiny":
        config.select.fractions = ("0.1%", "1%")
    elif variant == "smollm2":
        config.evaluate.languages = ("en", "ru", "ko", "vi", "fr", "sw")
        config.evaluate.samples = 1
    return config
