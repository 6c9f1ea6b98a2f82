"""How little is enough to break the model, and what carries the core? The paper removes 1 %, 3 % and 5 %.

    lingregions run --config=configs/minimal_damage.py:smollm2 --workdir=runs/minimal_damage

The highest scores of the whole scope from 1e-8 of it to a twentieth, against as many of the largest |theta| and random
ones; the smallest set that multiplies a language's perplexity by ten; the core without its first scalars, those alone,
the super weights alone, and the core without its outlier dimensions and norms.

Cost: 37 interventions in five languages of 512 tokens, five minutes on two free cores, 3.2 GB; a v5e slice of 8 chips
for LLaMA-2-7B: hours, nearly all of it scoring (estimate).

Measured on SmolLM2-135M (seed 0): between one and two scalars, the highest scores of the whole scope, multiply
perplexity by ten in each of five languages (1.36, 1.31 to 1.43, over all; interpolated), the largest |theta| take 4.66.
The core multiplies it by 4.5e6 (3.5e6 to 5.6e6); its first ten scalars alone by 141, its first thousand alone by 1.7e6
and all the rest without them by 1.7e6; three super weights alone by 16; the core without its outlier dimensions and
norms by 3.3e6 (2.3e6 to 4.7e6).
"""

from base import VARIANTS, base, evaluated
from ml_collections import ConfigDict

__all__ = ["VARIANTS", "get_config"]


def get_config(variant: str = "smollm2") -> ConfigDict:
    """Return the config of a variant."""
    config = evaluated(base("minimal_damage", variant), variant)
    # Of the whole scope, not of each matrix: 1e-8 of SmolLM2's decoder is one scalar.
    config.select.fractions = (
        *("1e-8", "2e-8", "4e-8", "1e-7", "3e-7", "1e-6", "1e-5", "1e-4", "1e-3", "1e-2", "5e-2"),
    )
    config.select.random = ("1e-3", "1e-2", "5e-2")  # fractions of each matrix, at which random regions are removed
    config.select.seeds = (0,)  # of these
    config.select.core = "1%"  # of each matrix, as in core_removal
    config.select.counts = (10, 100, 1000)  # of the core's first scalars
    config.select.outliers = 10  # dimensions where the core is fullest, and as many of the largest activations
    config.select.spike = 100.0  # of a super weight's activations, over the median of all maxima
    if variant == "tiny":
        config.select.fractions = ("1e-4", "1e-3", "1e-2", "5e-2")
        config.select.random = ("1e-2",)
        config.select.counts = (10, 100)
        config.select.spike = 1.0
    elif variant in ("smollm2", "thirty"):
        config.evaluate.languages = ("en", "ru", "ko", "vi", "sw")
        config.evaluate.samples = 1
    if variant == "thirty":
        config.select.fractions = config.select.fractions[3:]  # 1e-7 of its decoder is one scalar
    return config
