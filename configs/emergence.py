"""When do regions come to be? Checkpoints of one training against the last of them.

    lingregions run pretraining:thirty --workdir=runs/pretraining --config.data.train_source=texts/ \
        --config.train.folders=bfloat16
    lingregions run emergence:thirty --workdir=runs/emergence --config.model.source=runs/pretraining/models/576000 \
        '--config.model.checkpoints=runs/pretraining/models/*'

`model.checkpoints` names models of one architecture, oldest first: folders (`models/*` stands for all that lie there,
by the number in their names), hub revisions (org/name@step1000,org/name@step2000), or the word untrained, random
weights of the same sizes, which is what stands beside the last model where nothing else is said. The number in a name
is how far the training was; the model of `model.source` is the last.

Each is scored twice (whole, and its halves), its core, the matched control and its monolingual regions are removed, and
its largest activations are looked at. Cost: 9 interventions a checkpoint and two scoring passes.

Measured on nine checkpoints of a training as `pretraining:thirty` does it (one H200, seven seconds a checkpoint after
the first): the core is worth more than its matched control from 32,768 of 576,000 samples on, x1.07 then and x5.23 in
the end; monolingual regions are specific from the first checkpoint, 0.03 nats a token at 1,024 samples, 1.04 in the
end; at 65,536 the core shares a fifth of what noise allows with the last one; no activation is massive.
docs/findings.md has the table.
"""

from base import SCORED, THIRTY, base, evaluated
from base import VARIANTS as SHARED
from ml_collections import ConfigDict

__all__ = ["VARIANTS", "get_config"]

VARIANTS = {name: SHARED[name] for name in ("tiny", "thirty", "smollm2")}


def get_config(variant: str = "thirty") -> ConfigDict:
    """Return the config of a variant."""
    if variant not in VARIANTS:
        raise ValueError(f"no variant {variant!r}; there are {', '.join(VARIANTS)}")
    config = evaluated(base("emergence", variant), variant)
    config.model.checkpoints = ("untrained",)  # of the same training, oldest first
    config.model.reached = 0  # samples or steps after which model.source was saved; 0: the number in its name
    config.select.seeds = (0,)  # of the matched regions
    config.select.family = "branch"  # who is a relative: branch (Slavic, Romance), family (Indo-European) or script
    if variant == "thirty":
        config.model.reached = 576_000
        config.evaluate.languages = THIRTY
    if variant == "tiny":
        config.model.reached = 1
        config.score.samples = 2
        config.evaluate.languages = (*SCORED, "en")
    return config
