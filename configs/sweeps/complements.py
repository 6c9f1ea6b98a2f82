"""What goes with freezing, in two languages: configs/complements.py for Hungarian and for Swahili, in one table.

    lingregions sweep --config=configs/sweeps/complements.py:thirty --workdir=runs/complements

The cells are the trained languages; each trains with fourteen treatments and three seeds.
"""

from ml_collections import ConfigDict

VARIANTS = {
    "tiny": "two languages of the tiny model: a minute or two; its numbers mean nothing",
    "thirty": "the model that the package brings, on the UDHR: hours on two cores, by the cost of one training",
    "smollm2": "SmolLM2-135M: a night on two cores, by the cost of one training; give it texts of your own",
    "llama2_7b": "LLaMA-2-7B with the paper's settings; share them: --shard=i/n",
}


def get_config(variant: str = "smollm2") -> ConfigDict:
    """Return the config of a variant."""
    config = ConfigDict()
    config.base = f"../complements.py:{variant}"
    config.grid = ConfigDict({"train": {"language": ("hu", "sw")}})
    return config
