"""Train a model of one's own from scratch on many languages, and measure what it knows of each.

    lingregions data tokenizer texts/ --out=untrained --preset=thirty
    lingregions run --config=configs/pretraining.py:thirty --workdir=runs/pretraining --config.data.train_source=texts/
    lingregions export --workdir=runs/pretraining --training="pretrained seed 0" --out=model --dtype=bfloat16

`texts/` is a folder with `ar.txt`, `zh.txt.xz` and so on. The first command makes a byte-level BPE in which no language
needs many more tokens than another for the same content, and an untrained model of a preset's sizes beside it; the
second trains it and evaluates it on the UDHR at sample counts that grow evenly in logarithm; the third writes what
transformers loads.

Measured (`package:lingregions`, whose model card is lingregions/models/thirty/README.md): of 114 MB of technical prose
295 million tokens read, in four and a half minutes on one H200 with --config.machine.train_batch=128. On the UDHR 1.93
bits per byte in the mean of thirty languages, where 5-grams of bytes need 2.40, and better than these in every one. At
262,144 samples it was 1.91: the smallest languages, read up to nineteen times, are learned by heart in the end.
"""

from base import THIRTY, base, evaluated
from ml_collections import ConfigDict

__all__ = ["VARIANTS", "get_config"]

VARIANTS = {
    "tiny": "a random model of two layers, samples of 64 bytes of the UDHR: seconds, no download; it learns nothing",
    "thirty": "15 million parameters on thirty languages: minutes on a large GPU, a day on two cores",
}


def get_config(variant: str = "thirty") -> ConfigDict:
    """Return the config of a variant."""
    if variant not in VARIANTS:
        raise ValueError(f"no variant {variant!r}; there are {', '.join(VARIANTS)}")
    config = evaluated(base("pretraining", "tiny"), "tiny")
    for section in ("score", "select"):  # nothing is scored or selected here
        del config[section]
    for key in ("score_source", "score_split"):
        del config.data[key]
    config.data.train_source = ""  # of the text that is trained on; "": data.source
    config.data.train_split = "first"
    config.data.eos = "document"

    config.train = ConfigDict()
    config.train.languages = config.evaluate.languages
    config.train.temperature = 0.5  # a language's share is its samples to this power: 1 as they are, 0 all alike
    config.train.samples = 32
    config.train.batch = 8  # samples a step
    config.train.rate = 1e-2
    config.train.betas = (0.9, 0.95)
    config.train.epsilon = 1e-8
    config.train.decay = 0.1
    config.train.clip = 1.0
    config.train.warmup = 1  # steps
    config.train.floor = 0.1  # of the cosine, as a part of the rate
    config.train.spike = 2.0  # nats above the smoothed loss at which training stops; 0: never
    config.train.counts = (8, 16)  # samples after which it is evaluated too, beside the end
    # float32 or bfloat16: the model at 0 and at each count is written as a folder, models/COUNT, for `emergence`
    config.train.folders = ""
    config.train.keep = True  # keep the last checkpoint, for `lingregions export`

    config.machine.train_batch = 4  # samples of a micro-batch, on each part of the batch axes
    config.machine.keep = 1  # checkpoints
    config.machine.save_steps = 0  # steps between checkpoints; 0: by machine.save_seconds alone
    config.machine.tracker = "none"  # or tensorboard, wandb: the figures of every step beside metrics.jsonl

    if variant == "thirty":
        config.model.source = "random:untrained"
        config.data.length = 512
        config.data.document = "file"  # a text goes on from line to line
        config.data.train_split = "all"
        config.data.evaluate_split = "all"
        config.evaluate.languages = THIRTY
        config.evaluate.samples = 0
        config.evaluate.segment = 64
        config.train.languages = THIRTY
        config.train.samples = 576_000
        config.train.batch = 128
        config.train.rate = 2e-3
        config.train.warmup = 200
        config.train.spike = 0.0
        config.train.counts = (1_024, 2_048, 4_096, 8_192, 16_384, 32_768, 65_536, 131_072, 262_144)
        config.compute.dtype = "bfloat16"
        config.machine.train_batch = 32
        config.machine.evaluate_batch = 32
    return config
