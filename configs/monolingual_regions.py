"""Regions of one language (the paper's section 3): own language, family and others when they are removed.

    lingregions run --config=configs/monolingual_regions.py:smollm2 --workdir=runs/monolingual_regions

Each scored language's own region - its top 1 % of each matrix without the top of any other - is removed; the damage to
the own language, to its family and to all others is set against matched random regions, with a specificity index.
"""

from base import VARIANTS, base, evaluated
from ml_collections import ConfigDict

__all__ = ["VARIANTS", "get_config"]


def get_config(variant: str = "smollm2") -> ConfigDict:
    """Return the config of a variant."""
    config = evaluated(base("monolingual_regions", variant), variant)
    config.select.seeds = (0,)  # of the matched random regions; (): none
    config.select.family = "branch"  # who is a relative: branch (Slavic, Romance), family (Indo-European) or script
    config.continuation = ConfigDict()
    config.continuation.languages = (
        "ar",
        "es",
        "ru",
        "zh",
        "ko",
        "vi",
        "en",
    )  # their evaluated text begins the prompts
    config.continuation.prompt = 16  # tokens of it
    config.continuation.tokens = 32  # written
    if variant == "smollm2":
        config.evaluate.languages = ("ar", "fa", "es", "fr", "pt", "ru", "uk", "pl", "cs", "zh", "ko", "vi", "en", "sw")
        config.evaluate.samples = 1
    elif variant == "tiny":
        config.evaluate.languages = ("ar", "es", "pt", "ru", "uk", "zh", "ko", "vi", "en")
        config.continuation.languages = ("en", "ru")
        config.continuation.tokens = 8
    else:
        config.select.seeds = (0, 1, 2)
    return config
