"""Can languages be kept apart in training: inside their own regions, outside them, or disjoint from the start?

    lingregions run --config=configs/disentangling.py:thirty --workdir=runs/disentangling

Two languages are trained for a few steps, each with everything free, inside its own monolingual region alone, inside
a matched random region and everywhere but its own region; then together, a batch each in turn, with everything free,
each in its own region alone, and each in a matched random region. Afterwards each own region is removed: does the own
language lose more, beyond the others, than before?

Measured on package:lingregions (:thirty, one seed, 11 trainings of 4 steps of 2 x 256 tokens, minutes): in turns, in
disjoint regions, gain 0.033 nats a token (0.022 to 0.045) and growth of specificity 0.030 (0.020 to 0.040), over
matched random regions 0.022 and 0.034; with everything free 0.18 (-0.08 to 0.46) and -0.40 (-0.53 to -0.28). On SmolLM2
(:smollm2, 13 minutes on two busy cores) 0.041 (0.034 to 0.051) and 0.035 (0.028 to 0.044), 0.029 and 0.037; free 0.18
(0.08 to 0.28) and -0.17 (-0.30 to -0.05).
"""

from base import VARIANTS, base, evaluated, trained_inside
from ml_collections import ConfigDict

__all__ = ["VARIANTS", "get_config"]


def get_config(variant: str = "smollm2") -> ConfigDict:
    """Return the config of a variant."""
    config = evaluated(base("disentangling", variant), variant)
    config = trained_inside(config, variant, ("es", "ru"), ("es", "ru"))
    config.evaluate.languages = config.score.languages = (*config.train.languages, "en", "fr")
    return config
