"""Write families.safetensors: what transformers computes in float64 for the tiny models of `families`.

    python tests/golden/write_families.py

Needs torch and transformers, as `write.py` does. Of each gradient its norm and a few products with random signs are
kept. The live comparisons (`tests/test_torch.py`) call the same functions on fresh seeds.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from golden import families


def build(case: dict[str, Any], seed: int) -> tuple[torch.nn.Module, dict[str, list[int]]]:
    """Return transformers' float32 model with the weights of the recipe, and the shapes of its tensors."""
    fields = {key: value for key, value in case.items() if key != "model_type"}
    config = transformers.CONFIG_MAPPING[case["model_type"]](**fields)
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    shapes = {name: list(each.shape) for name, each in model.named_parameters()}
    tensors = families.weights(shapes, families.offset(case), seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(tensors[name]))
    return model, shapes


def logits(model: torch.nn.Module, tokens: np.ndarray) -> torch.Tensor:
    """Return [T, V]."""
    found: torch.Tensor = model(torch.from_numpy(tokens.astype(np.int64)), use_cache=False).logits[0]
    return found


def gradient(model: torch.nn.Module, tokens: np.ndarray) -> tuple[float, dict[str, np.ndarray]]:
    """Return the summed next-token loss of a text in nats, and its gradient by tensor."""
    model.zero_grad(set_to_none=True)
    following = torch.from_numpy(tokens[0, 1:].astype(np.int64))
    loss = torch.nn.functional.cross_entropy(logits(model, tokens)[:-1], following, reduction="sum")
    loss.backward()
    return loss.item(), {name: each.grad.double().numpy() for name, each in model.named_parameters()}


def main() -> None:
    arrays, about = {}, {}
    for seed, (name, case) in enumerate(families.CASES.items()):
        model, shapes = build(case, seed)
        model, tokens = model.double(), families.text(case, seed)
        with torch.no_grad():
            arrays[name] = logits(model, tokens)[:: families.EVERY].float().numpy().copy()
        nll, found = gradient(model, tokens)
        tensors = {tensor: [shapes[tensor], families.projections(tensor, values)] for tensor, values in found.items()}
        about[name] = {"seed": seed, "nll": nll, "tensors": tensors}
    header = {"torch": torch.__version__, "transformers": transformers.__version__, "cases": about}
    safetensors.numpy.save_file(
        arrays, families.FILE, {"about": json.dumps(header, sort_keys=True, separators=(",", ":"))}
    )
    print(f"{families.FILE.name}: {len(arrays)} models, {families.FILE.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
