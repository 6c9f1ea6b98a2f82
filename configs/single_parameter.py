"""One scalar (the paper's section 3): how much hangs on a single parameter, what does the model then write?

    lingregions run --config=configs/single_parameter.py:smollm2 --workdir=runs/single_parameter

The highest scores, the super weights (from one forward pass over a fixed prompt), and the gains of layer 1's input norm
at the dimensions of massive activations, with controls, times 0, -1, 0.5, 2, 4 and 10; greedy continuations before and
after; rescue by putting the scalar back and by clipping. The paper claims that one scalar on a special dimension is
enough to break a model; for LLaMA-2-13B its repository shows the gain of layer 1, dimension 2100, times 4: Chinese
perplexity 257.7 and gibberish, dimension 4200 times 4: 5.858 and fluent.

Cost: 67 interventions of 2,048 tokens, about 7 minutes on two free cores (500 tokens a second; measured: 31 minutes on
a machine with ten jobs), 3.0 GB. One v5e slice of 8 chips, LLaMA-2-7B: hours, nearly all of it scoring (estimate).

Measured on SmolLM2-135M (seed 0), perplexity over en, ru, zh and vi as a multiple of the untouched model's: layer 11
mlp.down_proj [507 1229], the super weight, times 0: 15.2 (11.6 to 20.2; English 42), its twin of the same matrix and
magnitude 1.00; the gain of layer 1's input norm at dimension 507 times 10: 2,109 (1,844 to 2,401), at dimension 100:
1.06 (1.04 to 1.07); the highest score of all, a gain of layer 29 at dimension 17, times 10: 3.0e9. Three of the five
special scalars break the model, none of four controls. Put back, all is as it was to the last bit; clipping rescues
none.
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
    if variant in ("smollm2", "thirty"):
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
