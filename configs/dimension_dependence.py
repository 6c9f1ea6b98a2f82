"""Perturb single dimensions of the residual stream (the paper's section on dimensional dependence).

    lingregions run --config=configs/dimension_dependence.py:smollm2 --workdir=runs/dimension_dependence

Dimensions where the core is fullest, those of massive activations, and random ones; one, three, five and ten at once;
in every matrix, in what writes to the stream, in the norms, in the input norm of layer 1; zero, ten times, noise.
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
    config.dimensions.single_places = ("layer 1 norm",)  # where only one dimension is changed: an input norm
    config.dimensions.single_changes = ("scale 10", "noise")  # what is done only to one dimension
    if variant == "tiny":
        config.dimensions.counts = (1, 3)
        config.dimensions.seeds = (0,)
    elif variant == "smollm2":
        config.evaluate.languages = ("en", "ru", "ko")
        config.evaluate.samples = 1
    else:
        config.dimensions.changes = ("zero", "scale 10", "noise")
        config.dimensions.single_changes = ("scale 4",)
    return config
