"""One scalar (the paper's section 3): how much hangs on a single parameter, what does the model then write?

    lingregions run --config=configs/single_parameter.py:smollm2 --workdir=runs/single_parameter

The highest scores, the super weights (from one forward pass over a fixed prompt), and the gains of layer 1's input norm
at the dimensions of massive activations, with controls, times 0, -1, 0.5, 2, 4 and 10; greedy continuations before and
after; rescue by putting the scalar back and by clipping.
"""

from base import VARIANTS, base, evaluated
from ml_collections import ConfigDict

__all__ = ["VARIANTS", "get_config"]


def get_config(variant: str = "smollm2") -> ConfigDict:
    """Return the config of a variant."""
    config = evaluated(base("single_parameter", variant), variant)
    config.scalars = ConfigDict()
    config.scalars.factors = (0.0, -1.0, 0.5, 2.0, 4.0, 10.0)
    config.scalars.leading = 3  # of the highest scores in nats, over the whole scope
    config.scalars.supers = 2  # super weights at most
    config.scalars.spike = 100.0  # what counts as one: see models.supers
    config.scalars.massive = 2  # dimensions of the largest activations, whose gains are changed
    config.scalars.ordinary = (100, 300)  # dimensions whose gains are controls
    config.scalars.layer = 1  # whose input norm
    config.scalars.prompt = "The quick brown fox jumps over the lazy dog."
    config.rescue = ConfigDict()
    config.rescue.factors = (0.0, 10.0)
    config.rescue.slack = 1.0  # times the largest output of the untouched model
    config.continuation = ConfigDict()
    config.continuation.languages = ("en", "ru", "zh")  # whose evaluated text begins the prompts
    config.continuation.prompt = 16  # tokens of it
    config.continuation.tokens = 32  # written
    if variant == "smollm2":
        config.data.length = 256
        config.evaluate.languages = ("en", "ru", "zh", "vi")
    elif variant == "tiny":
        config.scalars.leading = 2
        config.scalars.supers = 1
        config.scalars.spike = 0.0
        config.scalars.massive = 1
        config.scalars.ordinary = (10,)
        config.continuation.languages = ("en", "zh")
        config.continuation.tokens = 8
    return config
