"""Does the core's removal depend on how importance is defined, and on which samples were drawn? Core removal over both.

    lingregions sweep --config=configs/sweeps/definitions_seeds.py:smollm2 --workdir=runs/definitions_seeds

The cells are (score.preset, score.rule, seed): the paper's own definition, ours, and ours with other rules, each with
two draws of samples. Every cell is a whole run of configs/core_removal.py in one mode: it scores, selects and evaluates
anew (definitions alone are cheaper in one run, from one pass over the texts: configs/definitions.py). The paper uses
one definition, and does not say how many draws of samples.
"""

from ml_collections import ConfigDict

VARIANTS = {
    "tiny": "four cells of the tiny model: seconds; its numbers mean nothing",
    "smollm2": "eight cells of SmolLM2-135M: about half an hour on two cores, by the cost of one cell",
    "llama2_7b": "eight cells of LLaMA-2-7B with the paper's settings; share them: --shard=i/n",
}


def get_config(variant: str = "smollm2") -> ConfigDict:
    """Return the config of a variant."""
    config = ConfigDict()
    config.base = f"../core_removal.py:{variant}"
    config.grid = ConfigDict({"score": {"preset": ("sound", "paper")}, "seed": (0, 1)})
    if variant != "tiny":
        # Beside the product, whose rule is the presets' |theta x gradient|: two other rules.
        rules = ("fisher", "wanda")
        config.cells = tuple(
            {"score.preset": "sound", "score.rule": rule, "seed": seed} for rule in rules for seed in (0, 1)
        )
    return config
