"""Perturb single dimensions of the residual stream (the paper's section on dimensional dependence).

    lingregions run --config=configs/dimension_dependence.py:smollm2 --workdir=runs/dimension_dependence

Dimensions where the core is fullest, those of massive activations, and random ones; one, three, five and ten at once;
in every matrix, in what writes to the stream, in the norms, in the input norm of layer 1; zero, ten times, noise. The
paper claims that the core lies along a few dimensions, and that changing one scalar there can make the model useless.

Cost: 84 interventions in three languages of 512 tokens, 9 core minutes, so five minutes on two free cores, 3.0 GB; a
v5e slice of 8 chips for LLaMA-2-7B: hours, most of it scoring (estimate).

Measured on SmolLM2-135M (seed 0), times the untouched model's perplexity over en, ru and ko: dimension 507, of the
largest activation, to zero in every matrix 2.3e5 (1.6e5 to 3.2e5), dimension 247, where the core is fullest, 12.2 (10.1
to 14.8), a random one 1.03 (1.01 to 1.04). Ten at once: top 1.5e6, massive 1.6e6, random 1.40. The input norm of layer
1 times ten: dimension 507 2,818 (2,416 to 3,299), dimension 247 1.00, random 1.06 (0.983 to 1.17). Of the ten fullest
and the ten massive dimensions four are the same; the ten fullest, 1.7 % of all, hold 19.6 % of the core. Ten times one
dimension in every matrix, embedding and head included, tells nothing: a random one breaks the model as well.
"""

from base import VARIANTS, base, evaluated
from ml_collections import ConfigDict

__all__ = ["VARIANTS", "get_config"]


def get_config(variant: str = "smollm2") -> ConfigDict:
    """Return the config of a variant."""
    config = evaluated(base("dimension_dependence", variant), variant)
    config.dimensions = ConfigDict()
    config.dimensions.counts = (1, 3, 5, 10)  # at once
    config.dimensions.seeds = (0, 1)  # of the random ones
    config.dimensions.places = ("residual", "outputs", "norms")  # every matrix; o_proj and down_proj; all norms
    config.dimensions.changes = ("zero",)  # a perturbation and its amount, at every count
    config.dimensions.input_norms = (1,)  # layers whose input norm is a place where one dimension is changed
    config.dimensions.single_changes = ("scale 10", "noise")  # what is done only to one dimension
    if variant == "tiny":
        config.dimensions.counts = (1, 3)
        config.dimensions.seeds = (0,)
    elif variant in ("smollm2", "thirty"):
        config.evaluate.languages = ("en", "ru", "ko")
        config.evaluate.samples = 1
    else:
        config.dimensions.changes = ("zero", "scale 10", "noise")
        config.dimensions.single_changes = ("scale 4",)
    return config
