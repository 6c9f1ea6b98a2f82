"""Write the golden files: what transformers computes for the tiny models of `cases`, in float64.

    python tests/golden/write.py

Needs torch and transformers (`make parity` installs them into .venv-parity). Every document runs alone, from position 0
and without padding, so the packing of samples is under test too. Values are stored in float32. The live comparisons
(`tests/test_torch.py`) call the same functions on fresh seeds.
"""

import contextlib
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch
import transformers
from transformers.models.llama import modeling_llama

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from golden import cases

Arrays = dict[str, np.ndarray]


class Norm(modeling_llama.LlamaRMSNorm):
    """RMSNorm in the dtype of its input: transformers' own goes through float32 even in a float64 model."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        return self.weight * (hidden_states * torch.rsqrt(variance + self.variance_epsilon))


def widen(model: torch.nn.Module) -> torch.nn.Module:
    """Return the model in float64 throughout, gradients included; only the rotary angles stay float32.

    The angles are float32 by definition, in transformers as here: they are part of the model.
    """
    model = model.double().eval()
    for module in model.modules():
        if isinstance(module, modeling_llama.LlamaRMSNorm):
            module.__class__ = Norm
    return model


def build(config: dict[str, Any], weights: cases.Weights, attention: str = "sdpa") -> torch.nn.Module:
    """Return transformers' float32 model with these weights; "eager" attention always has its softmax in float32."""
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config, attn_implementation=attention))
    model = model.float().eval()
    state = {name: torch.from_numpy(values) for name, values in weights.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    expected = ["lm_head.weight"] if config["tie_word_embeddings"] else []
    if missing != expected or unexpected:
        raise ValueError(f"the names of `cases.shapes` are not those of transformers: {missing}, {unexpected}")
    return model


def logits(model: torch.nn.Module, document: np.ndarray) -> torch.Tensor:
    """Return [T, V] of one document."""
    found: torch.Tensor = model(torch.from_numpy(document.astype(np.int64))[None], use_cache=False).logits[0]
    return found


def nll(model: torch.nn.Module, sample: Iterable[np.ndarray]) -> torch.Tensor:
    """Return the summed next-token loss of the documents of a sample, in nats."""
    total = torch.zeros((), dtype=model.dtype)
    for document in sample:
        following = torch.from_numpy(document[1:].astype(np.int64))
        total = total + torch.nn.functional.cross_entropy(logits(model, document)[:-1], following, reduction="sum")
    return total


def peaks(model: Any, document: np.ndarray) -> Arrays:
    """Return the largest magnitudes of one document as hooks see them: residual, down_in and down_out by layer."""
    sizes: dict[str, list[np.ndarray]] = {"residual": [], "down_in": [], "down_out": []}

    def note(name: str, values: Any) -> None:
        sizes[name].append(values[0].abs().amax(dim=0).numpy())

    hooks = []
    for layer in model.model.layers:
        hooks.append(layer.register_forward_pre_hook(lambda _, inputs: note("residual", inputs[0])))
        hooks.append(layer.mlp.down_proj.register_forward_pre_hook(lambda _, inputs: note("down_in", inputs[0])))
        hooks.append(layer.mlp.down_proj.register_forward_hook(lambda _, inputs, out: note("down_out", out)))
    hooks.append(model.model.norm.register_forward_pre_hook(lambda _, inputs: note("residual", inputs[0])))
    with torch.no_grad():
        logits(model, document)
    for hook in hooks:
        hook.remove()
    return {name: np.stack(each) for name, each in sizes.items()}


def continued(model: Any, prompt: list[int], count: int, stop: int | None = None) -> list[int]:
    """Return what transformers' greedy generation adds to one prompt."""
    model.generation_config.eos_token_id = stop
    ids = torch.tensor([prompt])
    with torch.no_grad():
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=count,
            pad_token_id=0,
        )
    found: list[int] = out[0, len(prompt) :].tolist()
    return found


def targets(group: Iterable[cases.Sample]) -> int:
    """Return the number of next tokens that count."""
    return sum(len(document) - 1 for sample in group for document in sample)


def gradient(model: torch.nn.Module, group: Iterable[cases.Sample]) -> Arrays:
    """Return the gradient of the summed loss of a group by tensor name, in the dtype of the model."""
    model.zero_grad(set_to_none=True)
    for sample in group:
        loss = nll(model, sample)
        if loss.requires_grad:  # a sample without targets has no graph
            loss.backward()
    return {name: value.grad.numpy().copy() for name, value in model.named_parameters() if value.grad is not None}


def scores(model: torch.nn.Module, groups: list[list[cases.Sample]]) -> dict[str, Arrays]:
    """Return {definition: scores of every tensor of the layers}, by a plain loop over the groups.

    A definition is "rule.weighting". For `taylor` the signed gradients of all groups are summed first, multiplied by
    theta once, and the absolute value is taken last. With `token` each gradient is that of the summed loss
    over the tokens of all groups; with `batch_mean` over those of its own group.
    """
    theta = {name: value.detach().numpy() for name, value in model.named_parameters() if ".layers." in name}
    each = [(gradient(model, group), targets(group)) for group in groups]
    tokens = sum(count for _, count in each)
    found: dict[str, Arrays] = {}
    for weighting in ("token", "batch_mean"):
        rules: dict[str, Arrays] = {"taylor": {}, "taylor_abs": {}, "fisher": {}}
        for name, values in theta.items():
            signed, absolute, squared = (np.zeros_like(values) for _ in range(3))
            for slopes, count in each:
                slope = slopes[name] / (tokens if weighting == "token" else count)
                signed += slope
                absolute += np.abs(values * slope)
                squared += slope**2
            rules["taylor"][name] = np.abs(values * signed)
            rules["taylor_abs"][name] = absolute
            rules["fisher"][name] = values**2 * squared
        found |= {f"{rule}.{weighting}": arrays for rule, arrays in rules.items()}
    found["magnitude.token"] = {name: np.abs(values) for name, values in theta.items()}
    norms = _input_norms(model, groups)
    found["wanda.token"] = {name: np.abs(values) * norms[name] for name, values in theta.items()}
    return found


def _input_norms(model: torch.nn.Module, groups: list[list[cases.Sample]]) -> Arrays:
    """Return the norm, over all tokens, of what each weight of the layers is multiplied with: [in] by tensor name."""
    squares: dict[str, torch.Tensor] = {}

    def watch(name: str) -> Any:
        def hook(module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            # What meets the gain of a norm is the normed input: the output without the gain.
            met = output / module.weight if isinstance(module, modeling_llama.LlamaRMSNorm) else inputs[0]
            squares[name] = squares.get(name, 0) + met.detach().pow(2).sum(dim=(0, 1))

        return hook

    watched = {name: watch(f"{name}.weight") for name, module in model.named_modules() if _weighs(name, module)}
    with torch.no_grad(), _hooked(model, watched):
        for group in groups:
            for sample in group:
                for document in sample:
                    logits(model, document)
    return {name: total.sqrt().numpy() for name, total in squares.items()}


def _weighs(name: str, module: torch.nn.Module) -> bool:
    return ".layers." in name and isinstance(module, torch.nn.Linear | modeling_llama.LlamaRMSNorm)


@contextlib.contextmanager
def _hooked(model: torch.nn.Module, hooks: dict[str, Any]) -> Iterator[None]:
    """Have forward hooks on modules, by name."""
    modules = dict(model.named_modules())
    handles = [modules[name].register_forward_hook(hook) for name, hook in hooks.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def blocks(model: torch.nn.Module, document: np.ndarray) -> Arrays:
    """Return what every block of the model puts out for one document, by its name ([T, ...], the batch axis taken off).

    Under `<layer>.query` and `<layer>.key` are the rotated heads, [T, N, H] and [T, K, H].
    """
    found: Arrays = {}

    def keep(name: str) -> Any:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            if name.endswith("rotary_emb"):
                found["cos"], found["sin"] = (each[0].numpy().copy() for each in output)
                return
            values = output[0] if isinstance(output, tuple) else output
            found[name] = values[0].numpy().copy()

        return hook

    names = [
        name
        for name, _ in model.named_modules()
        if name.startswith("model.") and not name.endswith(("act_fn", ".layers")) and name != "model"
    ]
    with torch.no_grad(), _hooked(model, {name: keep(name) for name in names}):
        found["logits"] = logits(model, document).numpy().copy()
    turn = [torch.from_numpy(found[each])[None] for each in ("cos", "sin")]
    for layer in range(model.config.num_hidden_layers):
        prefix = f"model.layers.{layer}.self_attn"
        heads = [
            torch.from_numpy(found[f"{prefix}.{each}"])
            .reshape(1, len(document), -1, model.config.head_dim)
            .transpose(1, 2)
            for each in ("q_proj", "k_proj")
        ]
        query, key = modeling_llama.apply_rotary_pos_emb(*heads, *turn)
        found[f"{prefix}.query"], found[f"{prefix}.key"] = (each[0].transpose(0, 1).numpy() for each in (query, key))
    return found


# The middle of one layer is enough: the outputs of all layers are stored.
STORED = ("cos", "sin", "logits", "model.embed_tokens", "model.norm")
STORED_OF_LAYER = {
    0: ("",),
    1: (
        "",
        ".input_layernorm",
        ".self_attn.query",
        ".self_attn.key",
        ".self_attn.v_proj",
        ".self_attn",
        ".post_attention_layernorm",
        ".mlp",
    ),
    2: ("",),
}


def compute(name: str) -> tuple[Arrays, dict[str, Any]]:
    """Return the arrays and the metadata of one golden file."""
    config, seed = cases.CASES[name], cases.seed(name)
    weights, groups = cases.weights(config, seed), cases.groups(config, seed)
    model = widen(build(config, weights))
    middle = blocks(model, groups[0][0][0])
    wanted = [*STORED] + [
        f"model.layers.{layer}{part}" for layer in range(config["num_hidden_layers"]) for part in STORED_OF_LAYER[layer]
    ]
    with torch.no_grad():
        sums = np.array([nll(model, sample).item() for group in groups for sample in group])
        bfloat = logits(build(config, weights).bfloat16(), groups[0][0][0]).float().numpy()
    found = {f"blocks/{each}": middle[each] for each in wanted}
    found |= {f"gradient/{tensor}": values for tensor, values in gradient(model, groups[0]).items()}
    definitions = ["taylor.token", "taylor.batch_mean"]
    if name == "llama3":
        definitions += ["taylor_abs.token", "fisher.batch_mean", "wanda.token"]
    everything = scores(model, groups)
    found |= {f"scores/{each}/{tensor}": values for each in definitions for tensor, values in everything[each].items()}
    metadata = {
        "config": config,
        "seed": seed,
        "weights": cases.digest(weights),
        "nll": sums.tolist(),
        # How far bfloat16 is from float64 in torch itself, relative L2 of the logits.
        "bfloat16": float(f"{np.linalg.norm(bfloat - middle['logits']) / np.linalg.norm(middle['logits']):.3g}"),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    return {key: np.ascontiguousarray(values, np.float32) for key, values in found.items()}, metadata


def paths() -> Iterator[tuple[str, Path]]:
    """Yield the name and the golden file of every case."""
    return ((name, cases.HERE / f"{name}.safetensors") for name in cases.CASES)


def main() -> None:
    torch.manual_seed(0)  # the weights are loaded over torch's own random ones
    for name, path in paths():
        arrays, metadata = compute(name)
        # One key: several would be written in an order that changes from run to run.
        safetensors.numpy.save_file(arrays, path, {"case": json.dumps(metadata, sort_keys=True)})
        print(f"{path.name}: {len(arrays)} arrays, {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
