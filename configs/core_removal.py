"""Remove the core linguistic region (the paper's section 3), against the bottom and a random region of the same size.

    lingregions run --config=configs/core_removal.py:smollm2 --workdir=runs/core_removal
    lingregions run --config=configs/core_removal.py:smollm2_thirty --workdir=runs/core_removal_thirty

Scores every parameter of the decoder layers in six languages by |theta x gradient|, takes the top 1 % of each matrix by
the scores combined over the languages, sets it to zero, and measures the perplexity of eleven languages (thirty in the
paper, and in the second command); the bottom 1 %, a random 1 % and the largest weights are the controls, in the second
command also random regions that are matched to the top, with three seeds. The parts of the core one by one:
--config.select.modules=q,k,v,o,gate,up,down,norms,without_norms and --config.select.layers=all; other sizes:
--config.select.fractions=1%,3%,5%. The paper claims: the core's removal destroys the model in all languages,
the controls' does little.

Measured on SmolLM2-135M (seed 0, three minutes on two cores, 3.2 GB): geometric-mean perplexity over eleven languages
base 15.0, top 1 % removed 6.1e7, bottom 1 % 15.8, a random 1 % 27.5, the largest weights 1.4e7. In thirty languages
(two samples each, 3.2 GB, 42 minutes on a machine with eight other jobs), times the untouched model's 21.0: top 1 %
1.9e6 (1.6e6 to 2.1e6), the largest weights 5.2e5 (4.7e5 to 5.7e5), matched random 65.7 (54.8 to 78.7), random 1.80
(1.48 to 2.07), bottom 1.05 (1.05 to 1.06). The top does more harm than the largest weights in 13 of 30 languages only:
collapse alone says little.
Parts of the core by themselves (en, ru, ko, vi, sw, one sample each): q 105, k 999, v 862, o 1,080, gate 1.8e7, up
1.7e5, down 6.4e6, the 300 entries in norms 2.2e4, all but them 2.7e6; layers: 0 2,389, 29 36.6, 1 19.5, 11 7.4, every
other below 2.5.
"""

from base import THIRTY, base, evaluated
from base import VARIANTS as SIZES
from ml_collections import ConfigDict

__all__ = ["VARIANTS", "get_config"]

VARIANTS = SIZES | {
    "smollm2_thirty": "SmolLM2-135M in thirty languages, nine regions with three seeds where they are drawn: about a "
    "quarter of an hour on two cores"
}


def get_config(variant: str = "smollm2") -> ConfigDict:
    """Return the config of a variant."""
    size = variant.removesuffix("_thirty")
    config = evaluated(base("core_removal", size), size)
    # Also: matched, random but matched to the top in |theta|, rows and columns (40 s a region on two cores).
    config.select.selectors = ("top", "bottom", "random", "magnitude")
    config.select.seeds = (0,)  # of the random and matched regions
    config.select.modules = ()  # parts of the top, removed by themselves: q, k, v, o, gate, up, down, norms, ...
    config.select.layers = ()  # its parts in single layers: numbers, or all
    config.select.monolingual = True  # also find what each scored language has alone
    if variant == "thirty":
        config.evaluate.languages = THIRTY
        config.select.selectors = ("top", "bottom", "random", "matched", "magnitude")
    if variant != size or size.startswith("llama2"):
        config.evaluate.languages = THIRTY
        config.select.selectors = ("top", "bottom", "random", "matched", "magnitude")
        config.select.seeds = (0, 1, 2)
    if size.startswith("llama2"):
        config.select.fractions = ("1%", "3%", "5%")
    return config
