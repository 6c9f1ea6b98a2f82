"""Further pre-training on one language with the core region frozen (the paper's section 4), and what competes with it.

    lingregions run --config=configs/frozen_pretraining.py:smollm2 --workdir=runs/frozen_pretraining \
        --config.data.source=texts/ --config.data.score_split=all --config.data.evaluate_split=all \
        --config.data.train_split=all --config.data.held=0.02

`texts/` is a folder with `hu.txt`, `en.txt` and so on, one document a line. Without it the UDHR is used, whose half is
a few samples: enough to see that everything runs, not to learn a language from.

Trains Hungarian (Chinese in the paper) with nothing frozen, with the core, a matched random region or the bottom
frozen, and with soft, column-wise and embedding freezing, L2-SP, EWC, replay and reversion of the core afterwards;
evaluates each on the way in the trained language and in the others. The paper claims: with the core frozen the model
learns the new language as well and keeps the others better.

Measured on SmolLM2-135M (three seeds, 64 samples of 512 tokens of Hungarian technical prose in batches of 2, evaluated
on other prose of that kind; 10 core-minutes a training): perplexity divided in Hungarian / multiplied in the mean
of en, es, fr, de and ru: full 6.82 / 2.27, core 1 % frozen 6.72 / 2.06, a matched random 1 % frozen 6.85 / 2.15, EWC
6.15 / 1.79, a quarter of replay 5.68 / 0.743, the core set back afterwards 6.61 / 1.93. Freezing the core keeps a
little more than freezing a random region (0.046 nats a token, 0.028 to 0.072) and learns a little less (0.019, 0.006 to
0.033); setting it back afterwards keeps more than freezing it (0.066, 0.045 to 0.086) and learns as much within the
interval. Replay keeps by far most: its text is of the kind that is evaluated. 33,000 tokens each: no last word. For
LLaMA-2-7B: `lingregions plan --job=train`.

`freeze.treatments` says which of them; each is one training a seed, of 16 bytes a parameter plus 4 where it keeps the
start.
"""

from base import THIRTY, VARIANTS, base, evaluated, trained
from ml_collections import ConfigDict

__all__ = ["VARIANTS", "get_config"]


def get_config(variant: str = "smollm2") -> ConfigDict:
    """Return the config of a variant."""
    config = trained(evaluated(base("frozen_pretraining", variant), variant))
    config.evaluate.languages = ("hu", "en", "es", "fr", "de", "ru")

    config.freeze = ConfigDict()
    config.freeze.scope = "decoder_without_norms"  # where a region is frozen, as in the paper
    config.freeze.fractions = ("1%",)
    config.freeze.treatments = ("full", "core", "random", "ewc", "replay", "reversion")
    config.freeze.soft = 1.0  # strength of soft freezing: step size 1 / (1 + strength x score / mean score)
    config.freeze.l2_sp = 0.1  # strength of the pull to the start
    config.freeze.ewc = 0.1  # the same, weighted with the Fisher information (mean 1)
    config.freeze.replay = 0.25  # share of the samples that are of other languages
    config.freeze.replayed = ()  # which; empty: the evaluated languages other than the trained one
    config.freeze.reversion = (1.0,)  # how far the core is set back to the start after training: a figure each
    config.freeze.thaw = (0.5, 1.0)  # parts of the steps between which a core that thaws is let go of

    config.train.language = "hu"
    config.train.counts = (48,)
    config.train.keep = True

    if variant == "tiny":
        config.evaluate.languages = ("hu", "en", "ru")
        config.train.samples = 8
        config.train.counts = (4,)
        config.train.warmup = 1
        config.train.rate = 1e-2
    elif variant.startswith("llama2"):
        # What the paper's release says; one epoch of 200,000 samples.
        config.train.language = "zh"
        config.evaluate.languages = THIRTY
        config.freeze.fractions = ("1%", "5%")
        config.freeze.treatments = ("full", "core", "random", "bottom", "ewc", "replay", "reversion")
        config.train.samples = 200_000
        config.train.batch = 256
        config.train.rate = 5e-5
        config.train.warmup = 100
        config.train.counts = (2_000, 5_000, 10_000, 20_000, 50_000)
    if "ewc" in config.freeze.treatments:
        config.score.rules = ("fisher",)
    return config
