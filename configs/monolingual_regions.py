"""Regions of one language (the paper's section 3): own language, family and others when they are removed.

    lingregions run --config=configs/monolingual_regions.py:smollm2 --workdir=runs/monolingual_regions

Each scored language's own region - its top 1 % of each matrix without the top of any other - is removed; the damage to
the own language, to its family and to all others is set against matched random regions, with a specificity index.

Cost: 13 interventions in fourteen languages of 512 tokens and seven continuations, 3.1 GB; measured: 21 minutes on a
machine with five other jobs. On a v5e slice of 8 chips, LLaMA-2-7B: hours, nearly all of it scoring (estimate).

Measured on SmolLM2-135M (seed 0, one sample a language, 3 to 8 segments): perplexity of the own language / of strangers
without the region, and by the matched control: ar 21.3 / 2.79 (1.77), es 20.1 / 2.27 (6.20), ru 8.24 / 2.52 (2.74), zh
5.28 / 1.98 (3.51), ko 6.89 / 1.92 (2.90), vi 23.7 / 2.41 (5.14). Specificity is above zero and above the control's in
six of six, interval included; relatives lose more than strangers, over the control, for both families that are
evaluated (Romance 0.83 nats a token, 0.72 to 0.94; Slavic 0.23, 0.03 to 0.42). Controls are drawn outside the top of
every scored language: drawn outside the region alone they held what all languages share, and broke the model.
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
    if variant in ("smollm2", "thirty"):
        config.evaluate.languages = ("ar", "fa", "es", "fr", "pt", "ru", "uk", "pl", "cs", "zh", "ko", "vi", "en", "sw")
        config.evaluate.samples = 1
    elif variant == "tiny":
        config.evaluate.languages = ("ar", "es", "pt", "ru", "uk", "zh", "ko", "vi", "en")
        config.continuation.languages = ("en", "ru")
        config.continuation.tokens = 8
    else:
        config.select.seeds = (0, 1, 2)
    return config
