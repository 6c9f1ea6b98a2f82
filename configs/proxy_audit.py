"""Is |theta x gradient| what exact removal would say? The paper takes it for granted: there is no such table in it.

    lingregions run --config=configs/proxy_audit.py:smollm2 --workdir=runs/proxy_audit

Scalars in strata of the score and groups of 10, 100 and 1,000 of neighbouring rank are removed exactly, in every kind
of matrix, on the tokens that the score was computed on; beside the score the second order (Gauss-Newton) and integrated
gradients. The noise floor of float32 is measured, and what lies below it is counted.

Cost: 1,194 windows of 96 tokens, 3.2 GB; measured: 25 minutes on a machine with five other jobs. On a v5e slice of 8
chips, LLaMA-2-7B: an hour or two (estimate).

Measured on SmolLM2-135M (seed 0; 131 scalars in each of three languages): the score ranks single scalars as exact
removal does (Spearman 0.99, 0.98 to 0.99; in the top 0.01 % alone 0.92, 0.85 to 0.96), and its size is right (median
ratio 1.00); integrated gradients with two nodes rank them a little worse (0.96). Of groups of 1,000 removed at once the
sum of the scores predicts twenty times too much (ratio 0.052), because signs cancel; the second order is right there
(0.99), and integrated gradients are exact in rank (1.00). 13 of 393 effects lie below the noise floor.
"""

from base import SCORED, VARIANTS, base
from ml_collections import ConfigDict

__all__ = ["VARIANTS", "get_config"]


def get_config(variant: str = "smollm2") -> ConfigDict:
    """Return the config of a variant."""
    config = base("proxy_audit", variant)
    config.compute.dtype = "float32"  # bfloat16 rounds away the effect of most scalars
    config.audit = ConfigDict()
    config.audit.languages = ("es", "ru", "zh")  # among the scored ones
    config.audit.samples = 1  # the first of those that were scored
    config.audit.strata = ("0.01%", "0.1%", "1%", "10%", "100%")  # upper edges, by rank in each kind of matrix
    config.audit.singles = 3  # scalars removed alone, in each stratum of each kind of matrix
    config.audit.groups = (10, 100, 1000)  # the first of the block from which the scalars are drawn
    config.audit.draws = 8  # of labels, for the second order
    config.audit.nodes = 2  # Gauss-Legendre, for integrated gradients
    config.audit.rounding = 18  # scalars moved by one unit in the last place, for the noise floor
    config.machine.kept_states = 1.0  # GB of hidden states before the scalars that are removed
    if variant in ("smollm2", "thirty"):
        config.data.length = 96
        config.score.samples = 1
    elif variant == "tiny":
        config.audit.languages = SCORED[:2]
        config.audit.groups = (10,)
        config.audit.draws = 2
        config.audit.nodes = 1
        config.audit.rounding = 3
    return config
