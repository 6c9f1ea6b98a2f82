"""Does what two languages' regions share say how much one gains when the other is trained?

    lingregions run --config=configs/transfer.py:thirty --workdir=runs/transfer

Each language is scored, and trained for a few steps with everything free, inside its own top 1 % alone, and inside a
random region matched to that; the first one also inside what its top shares with each other's, and inside regions
matched to that. Every language is evaluated after each. Overlap beyond chance and gain are correlated over the ordered
pairs, with permutations of the languages, beside being of one branch.

Measured on package:lingregions (:thirty, one seed; 23 trainings of 4 steps of 2 x 256 tokens, about 4 core-minutes):
another language gains 0.019 nats a token (0.006 to 0.033) inside the top, over a matched region 0.011 (0.004 to 0.018);
rank correlation with overlap 0.41 and 0.37 (p 0.06 and 0.07), with the branch taken out -0.15 and -0.23. On SmolLM2
(:smollm2, 21 minutes on a busy machine) 0.053 (0.002 to 0.105) and 0.034 (-0.0004 to 0.069); 0.93 and 0.91 (p 0.008),
with the branch taken out 0.86 and 0.82 (p 0.008).
"""

from base import VARIANTS, base, evaluated, trained_inside
from ml_collections import ConfigDict

__all__ = ["VARIANTS", "get_config"]


def get_config(variant: str = "smollm2") -> ConfigDict:
    """Return the config of a variant."""
    config = evaluated(base("transfer", variant), variant)
    config = trained_inside(config, variant, ("es", "pt", "ru", "uk", "vi"), ("es", "pt", "ru"))
    config.evaluate.languages = config.train.languages
    config.select.family = "branch"  # what is one group: branch (Slavic, Romance), family (Indo-European) or script
    return config
