"""Tiny random LLaMA models and packed documents for the comparisons with torch.

Made from integers and a few exact divisions, so that every machine makes the same bits: the golden files need hold no
weights. Names and shapes are spelled out here as Hugging Face has them, not taken from the package that is under test.
Legend: V vocab, D embed, F mlp, L layers, N heads, K kv heads, H head_dim.
"""

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
LENGTH = 40  # tokens of a sample
CONTEXT = 32  # the original context of the llama3 case: the longest documents go beyond it

# Groups of samples; a sample is the lengths of the documents packed into it. Group 0 has the longest document and
# two that fill a sample together; the others have padding and, last, a document too short to have a target.
GROUPS: tuple[tuple[tuple[int, ...], ...], ...] = (((40,), (17, 23)), ((36,), (11, 22)), ((29,), (1, 9, 25)))

Weights = dict[str, np.ndarray]
Document = np.ndarray
Sample = list[Document]


def _config(
    V: int, D: int, F: int, L: int, N: int, K: int, H: int, tied: bool, eps: float, **rope: Any
) -> dict[str, Any]:
    """Return the config.json of a model."""
    return {
        "model_type": "llama",
        "vocab_size": V,
        "hidden_size": D,
        "intermediate_size": F,
        "num_hidden_layers": L,
        "num_attention_heads": N,
        "num_key_value_heads": K,
        "head_dim": H,
        "max_position_embeddings": 4 * CONTEXT,
        "rms_norm_eps": eps,
        "tie_word_embeddings": tied,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0} | rope,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
    }


# The eps are large enough to be seen. Only `mha` has N x H = D.
CASES: dict[str, dict[str, Any]] = {
    "mha": _config(44, 24, 32, 2, 4, 4, 6, tied=False, eps=0.05),
    "gqa": _config(40, 24, 36, 3, 6, 2, 6, tied=True, eps=0.01),
    # Wavelengths 6.3, 20, 63 and 199 tokens: with a context of 32, one is kept, one blended, two are stretched.
    "llama3": _config(
        40,
        24,
        32,
        2,
        4,
        2,
        8,
        tied=False,
        eps=1e-5,
        rope_type="llama3",
        rope_theta=100.0,
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=CONTEXT,
    ),
    "linear": _config(36, 16, 24, 2, 2, 1, 10, tied=True, eps=1e-6, rope_type="linear", rope_theta=500.0, factor=4.0),
}


def shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the Hugging Face name and shape of every tensor, in one fixed order."""
    D, F, V = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    queries = config["num_attention_heads"] * config["head_dim"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (V, D)}
    for layer in range(config["num_hidden_layers"]):
        found |= {
            f"model.layers.{layer}.{name}.weight": shape
            for name, shape in {
                "input_layernorm": (D,),
                "self_attn.q_proj": (queries, D),
                "self_attn.k_proj": (keys, D),
                "self_attn.v_proj": (keys, D),
                "self_attn.o_proj": (D, queries),
                "post_attention_layernorm": (D,),
                "mlp.gate_proj": (F, D),
                "mlp.up_proj": (F, D),
                "mlp.down_proj": (D, F),
            }.items()
        }
    found["model.norm.weight"] = (D,)
    return found if config["tie_word_embeddings"] else found | {"lm_head.weight": (V, D)}


def weights(config: dict[str, Any], seed: int) -> Weights:
    """Return float32 tensors by Hugging Face name: gains in 0.5 .. 1.5, matrices of standard deviation 1.2 / sqrt(in).

    Uniform multiples of 2^-12: a generator of normal numbers calls the C library, whose last bit differs by machine.
    """
    random = np.random.RandomState(seed)
    found = {}
    for name, shape in shapes(config).items():
        values = random.randint(-4096, 4097, shape) / 4096.0
        middle, width = (1.0, 0.5) if len(shape) == 1 else (0.0, math.sqrt(3.0) * 1.2 / math.sqrt(shape[1]))
        found[name] = (middle + width * values).astype(np.float32)
    return found


def digest(tensors: Weights) -> str:
    """Return the SHA-256 of all values, which tells a changed recipe from a changed result."""
    total = hashlib.sha256()
    for name, values in tensors.items():
        total.update(name.encode() + values.astype("<f4").tobytes())
    return total.hexdigest()


def groups(config: dict[str, Any], seed: int) -> list[list[Sample]]:
    """Return random documents, as groups of samples of documents."""
    random = np.random.RandomState(seed + 1_000_003)
    return [[[random.randint(0, config["vocab_size"], n) for n in sample] for sample in group] for group in GROUPS]


def pack(samples: Sequence[Sample], length: int = LENGTH) -> tuple[np.ndarray, np.ndarray]:
    """Return (tokens, segments), int32 [B, length]: documents one after the other, numbered from 1, then padding."""
    tokens, segments = (np.zeros((len(samples), length), np.int32) for _ in range(2))
    for row, sample in enumerate(samples):
        start = 0
        for number, document in enumerate(sample, start=1):
            tokens[row, start : start + len(document)] = document
            segments[row, start : start + len(document)] = number
            start += len(document)
    return tokens, segments


def seed(name: str) -> int:
    """Return the seed of a golden case."""
    return 100 + list(CASES).index(name)
