"""Tiny random models of every family and one text, for the comparisons with torch; the recipe of weights is exact.

Names and shapes of the tensors are those that transformers gave when the golden file was written, and stand in it.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np

FILE = Path(__file__).resolve().parent / "families.safetensors"
LENGTH, PROJECTIONS = 40, 3
EVERY = 3  # of the positions, whose logits are kept

_SIZES: dict[str, Any] = {
    "vocab_size": 36,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_HEADS = _SIZES | {"head_dim": 6}
_GEMMA = _HEADS | {"query_pre_attn_scalar": 9, "sliding_window": 7}
_LONG = {"type": "longrope", "short_factor": [1.0, 1.1], "long_factor": [2.0, 3.0]}

# What each has beyond the sizes; every window is shorter than the text.
CASES: dict[str, dict[str, Any]] = {
    "llama yarn": _HEADS
    | {"model_type": "llama"}
    | {
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 100.0,
            "factor": 4.0,
            "original_max_position_embeddings": 32,
        }
    },
    "llama dynamic": _HEADS
    | {"model_type": "llama", "max_position_embeddings": 32}
    | {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 4.0}},
    "mistral": _HEADS | {"model_type": "mistral", "sliding_window": 7},
    "qwen2": _SIZES | {"model_type": "qwen2"},
    "qwen2 window": _SIZES
    | {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    "qwen3": _HEADS | {"model_type": "qwen3"},
    "gemma2": _GEMMA | {"model_type": "gemma2", "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    "gemma3": _GEMMA | {"model_type": "gemma3_text", "num_hidden_layers": 7},
    "olmo2": _SIZES | {"model_type": "olmo2"},
    "phi3": _SIZES | {"model_type": "phi3", "sliding_window": 9},
    "phi3 long": _SIZES | {"model_type": "phi3", "original_max_position_embeddings": 32, "rope_scaling": _LONG},
    "smollm3": _SIZES | {"model_type": "smollm3", "num_hidden_layers": 5},
}


def weights(shapes: dict[str, list[int]], offset: float, seed: int) -> dict[str, np.ndarray]:
    """Return float32 tensors: gains in 0.5 .. 1.5 minus `offset`, biases in -0.5 .. 0.5, matrices of deviation ~ 1."""
    random, found = np.random.RandomState(seed), {}
    for name, shape in sorted(shapes.items()):
        values = random.randint(-4096, 4097, shape) / 4096.0
        if len(shape) == 1:
            found[name] = ((0.0 if name.endswith("bias") else 1.0 - offset) + 0.5 * values).astype(np.float32)
        else:
            found[name] = (math.sqrt(3.0) * 1.2 / math.sqrt(shape[1]) * values).astype(np.float32)
    return found


def offset(case: dict[str, Any]) -> float:
    """Return what the family adds to a gain."""
    return 1.0 if case["model_type"].startswith("gemma") else 0.0


def text(case: dict[str, Any], seed: int) -> np.ndarray:
    """Return int32 [1, LENGTH] tokens, none of them special."""
    return np.random.RandomState(seed + 1).randint(3, case["vocab_size"], (1, LENGTH)).astype(np.int32)


def projections(name: str, values: np.ndarray) -> list[float]:
    """Return the L2 norm of a tensor, and its products with random signs, each relative to what they would be."""
    signs = np.random.RandomState(sum(map(ord, name))).choice([-1.0, 1.0], (PROJECTIONS, values.size))
    flat = np.asarray(values, np.float64).reshape(-1)
    return [float(f"{each:.8g}") for each in (np.linalg.norm(flat), *(signs @ flat))]
