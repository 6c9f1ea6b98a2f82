"""What the core holds: which tokens suffer without it, copying, agreement of subject and verb, does context heal?

    lingregions run --config=configs/core_contents.py:smollm2 --workdir=runs/core_contents

Removes the top 1 % of the combined scores, the largest weights and random regions matched to the top, and reads each
model by token: letters, punctuation, digits, space; frequent and rare tokens; positions in the window; random tokens
and the same tokens again; 240 pairs of sentences in five languages whose verb agrees with its subject or does not.

Cost: 4 interventions in ten languages of 1,024 tokens, twice; :thirty took 6 minutes on a machine with a dozen other
jobs.

Measured on the package's own model (:thirty, seed 0): without the core letters x6.48 (6.03 to 6.99), punctuation x1.92,
spaces x0.82; copying saves 0.08 nats a token of 3.65, without matched random regions 0.28; later positions lose no less
than early ones. Agreement is at chance with the core and without it. SmolLM2-135M: letters x2.3e7, punctuation x472;
copying -0.55 of 10.3, matched 0.51; agreement in English 0.79, without the core 0.50, matched 0.62: docs/findings.md
has it all.
"""

from base import VARIANTS, base, evaluated
from ml_collections import ConfigDict

__all__ = ["VARIANTS", "get_config"]


def get_config(variant: str = "smollm2") -> ConfigDict:
    """Return the config of a variant."""
    config = evaluated(base("core_contents", variant), variant)
    config.select.seeds = (0,)  # of the matched random regions
    config.contents = ConfigDict()
    config.contents.sequences = 8  # of random tokens, each then repeated, to copy
    config.contents.agreement = ("en", "es", "fr", "de", "ru")
    if variant in ("smollm2", "thirty"):
        config.evaluate.languages = ("en", "es", "fr", "de", "ru", "ar", "zh", "ko", "vi", "sw")
    elif variant.startswith("llama2"):
        config.select.seeds = (0, 1, 2)
    return config
