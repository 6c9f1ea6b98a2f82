"""What goes with freezing the core, and what does as well? Further pre-training with every treatment and three seeds.

    lingregions run --config=configs/complements.py:thirty --workdir=runs/complements
    lingregions sweep --config=configs/sweeps/complements.py:thirty --workdir=runs/complements

The second command trains a second language too. Beside the treatments of configs/frozen_pretraining.py, which says what
is measured: the bottom frozen, a core that thaws half-way, whole columns, soft freezing by score and by scores that
change places, L2-SP, replay together with the frozen core and with EWC, and the core set back afterwards by half or in
full. Fewer at a time:
`--config.freeze.treatments=full,core,random,replay,"core replay"`.

Measured on package:lingregions (8,192 tokens of technical prose in Hungarian and in Swahili, three seeds; 16 minutes a
language on a busy machine): perplexity divided in the trained language / multiplied in six others: full 1.19 / 1.07 and
1.45 / 1.12; the core frozen keeps 0.0028 (0.0022 to 0.0036) and 0.0059 nats a token (0.0045 to 0.0073) more than a
matched random region; soft freezing by score 1.19 / 1.02 and 1.47 / 1.03 (the same steps at random
places of each matrix do nine tenths of that), a quarter of replay 1.17 / 1.02 and
1.40 / 1.07. On SmolLM2 (2,048 tokens of Hungarian, one seed; 20 minutes) full 1.52 / 1.13, core 1.58 / 1.05, random
1.55 / 1.09, soft 1.72 / 0.906, replay 1.57 / 0.927. All of it: docs/findings.md.
"""

from base import VARIANTS
from frozen_pretraining import get_config as further
from ml_collections import ConfigDict

__all__ = ["VARIANTS", "get_config"]


def get_config(variant: str = "smollm2") -> ConfigDict:
    """Return the config of a variant."""
    config = further(variant)
    config.evaluate.languages = ("hu", "sw", *(code for code in config.evaluate.languages if code not in ("hu", "sw")))
    config.freeze.reversion = (0.5, 1.0)
    config.freeze.treatments = (
        *("full", "core", "random", "bottom", "thaw", "column", "soft", "soft random", "l2_sp", "ewc"),
        *("replay", "core replay", "ewc replay", "reversion"),
    )
    if variant != "tiny":
        config.train.seeds = (0, 1, 2)
        config.train.keep = False
    return config
