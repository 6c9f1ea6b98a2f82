"""Other probes: language-specific neurons (LAPE), a linear probe, changed texts; do they find what the regions do?

    lingregions run --config=configs/probes.py:smollm2 --workdir=runs/probes

Removes each language's neurons of lowest activation probability entropy (Tang et al. 2024, "Language-Specific
Neurons"), as many parameters as the MLPs hold of its monolingual region, that part of the region, and neurons of the
same layers that are as often active; tells the language of tokens from the residual stream with and without the core;
scores the languages again on shuffled and on misspelt words, in Latin letters and in those of a script of no language.

Cost: 19 interventions in eight languages of 1,024 tokens, and seven scoring passes; :thirty took 17 minutes on a
machine with a dozen other jobs.

Measured on the package's own model (:thirty, seed 0): LAPE neurons cost their language x1.07 to x1.43, in 5 of 6 more
than others; as much of the own region x1.41 to x2.67, in 6 of 6; that is 6.6 to 8 times as dense in the neurons as in
all. The probe tells 96 % of tokens and more from layer 2 on, with the core and without. Tops of shuffled words share
0.24 (IoU) with those of the text, of the text cut anew 0.79, of two halves 0.12. On SmolLM2 (:smollm2, 20 minutes on a
busy machine) neurons cost x1.47 to x6.83, regions x2.13 to x8.57. All of it: docs/findings.md.
"""

from base import VARIANTS, base, evaluated
from ml_collections import ConfigDict

__all__ = ["VARIANTS", "get_config"]


def get_config(variant: str = "smollm2") -> ConfigDict:
    """Return the config of a variant."""
    config = evaluated(base("probes", variant), variant)
    if not variant.startswith("llama2"):
        config.evaluate.languages = ("ar", "es", "ru", "zh", "ko", "vi", "en", "sw")
    config.probes = ConfigDict()
    config.probes.samples = 2  # of each evaluated language, whose tokens the linear probe learns and is asked
    # What is scored again.
    config.probes.texts = ("as it is", "shuffled words", "misspelt words", "transliteration", "another script")
    return config
