"""The same removal with each definition of importance; the paper uses one, |theta x summed gradient|.

    lingregions run --config=configs/definitions.py:smollm2 --workdir=runs/definitions

One pass over each language gathers the rules of a preset, a second one those of the released code; the top of each
definition is removed at three fractions, and set against the first definition's. No such table is in the paper.

Cost: 37,000 tokens scored (three minutes on two free cores, 6 GB) and 58,000 evaluated; a v5e slice of 8 chips for
LLaMA-2-7B: hours, nearly all of it scoring (estimate).

Measured on SmolLM2-135M (seed 0, one sample a language and 1 % only: --config.score.samples=1
--config.select.fractions=1%), top 1 % removed, times the untouched model's perplexity, and its overlap (IoU) with the
first: taylor 5.8e6 (4.2e6 to 7.8e6), taylor paper 6.0e6 (0.81), taylor_abs the same as taylor (one sample has one
gradient), fisher 3.9e6 (0.73), wanda 1.9e6 (0.30), magnitude 3.7e5 (0.10).
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
