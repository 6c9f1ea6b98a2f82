"""Roles: what every array of a decoder is for, and all that is named after it - paths, tensors, scopes, parts, labels.

A role has one place in the parameter tree, whatever the family: a family declares which roles it has and their shapes
(`Parameter`). Whether a path is stacked, a norm, inside a scope, or how tables call it is asked here, by path alone, so
that it can be asked of scores and regions too. A new role is one line of `ROLES`.
"""

import dataclasses
import fnmatch
import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from lingregions import tree as trees

LAYERS = "layers"  # the subtree whose leaves stack the layers on their first axis

_Kind = Literal["matrix", "norm", "bias", "table"]


@dataclasses.dataclass(frozen=True)
class _Role:
    """One kind of array in a decoder.

    Attributes:
      name: how scopes, configs and tables of interventions call it.
      stem: Hugging Face name without "model.", the layer and ".weight".
      label: head of a narrow column in a report.
      gguf: name in llama.cpp's files, without "blk.N." and ".weight".
      kind: "matrix", "norm" (a gain), "bias" (of the matrix whose stem it shares) or "table" (embedding and head).
      stacked: whether every layer has one.
    """

    name: str
    stem: str
    label: str
    gguf: str
    kind: _Kind = "matrix"
    stacked: bool = True

    @property
    def path(self) -> str:
        """Path of the array in the parameter tree."""
        inner = f"{self.stem.removesuffix('_proj')}_bias" if self.kind == "bias" else self.stem
        return f"{LAYERS}.{inner}" if self.stacked else inner

    @property
    def tensor(self) -> str:
        """Hugging Face name, with `{layer}` where every layer has one."""
        return _tensor(self.path)


# In the order of columns in reports.
ROLES: dict[str, _Role] = {
    role.name: role
    for role in (
        _Role("q", "self_attn.q_proj", "q", "attn_q"),
        _Role("k", "self_attn.k_proj", "k", "attn_k"),
        _Role("v", "self_attn.v_proj", "v", "attn_v"),
        _Role("o", "self_attn.o_proj", "o", "attn_output"),
        _Role("gate", "mlp.gate_proj", "gate", "ffn_gate"),
        _Role("up", "mlp.up_proj", "up", "ffn_up"),
        _Role("down", "mlp.down_proj", "down", "ffn_down"),
        _Role("input_norm", "input_layernorm", "norm 1", "attn_norm", "norm"),
        # LLaMA's stands before the MLP, Gemma's and OLMo 2's behind attention: named after the tensor.
        _Role("post_attention_norm", "post_attention_layernorm", "norm 2", "ffn_norm", "norm"),
        _Role("pre_mlp_norm", "pre_feedforward_layernorm", "norm 3", "ffn_norm", "norm"),
        _Role("post_mlp_norm", "post_feedforward_layernorm", "norm 4", "post_ffw_norm", "norm"),
        _Role("q_norm", "self_attn.q_norm", "q norm", "attn_q_norm", "norm"),
        _Role("k_norm", "self_attn.k_norm", "k norm", "attn_k_norm", "norm"),
        _Role("q_bias", "self_attn.q_proj", "q bias", "attn_q", "bias"),
        _Role("k_bias", "self_attn.k_proj", "k bias", "attn_k", "bias"),
        _Role("v_bias", "self_attn.v_proj", "v bias", "attn_v", "bias"),
        _Role("o_bias", "self_attn.o_proj", "o bias", "attn_output", "bias"),
        _Role("embedding", "embed_tokens", "embedding", "token_embd", "table", stacked=False),
        _Role("final_norm", "norm", "last norm", "output_norm", "norm", stacked=False),
        _Role("head", "lm_head", "head", "output", "table", stacked=False),
    )
}
_BY_PATH = {role.path: role for role in ROLES.values()}
_LAYER_TENSOR = re.compile(r"^model\.layers\.(\d+)\.(.+)$")


def path(role: str) -> str:
    """Return the path of a role in the parameter tree.

    Raises:
      KeyError: there is no such role.
    """
    return ROLES[role].path


def _role_at(path: str) -> _Role | None:
    """Return the role of the array at a path, None where the path is that of none."""
    return _BY_PATH.get(path)


def tree(arrays: Mapping[str, Any]) -> trees.Tree:
    """Return arrays by role as the nested dict that lies parallel to the parameters: {"down": x} for bounds."""
    return trees.unflatten({path(role): each for role, each in arrays.items()})


def stacked(path: str) -> bool:
    """Whether the leaf at `path` stacks the layers on its first axis."""
    return path.startswith(f"{LAYERS}.")


def in_layer(path: str) -> str:
    """Return the path inside a layer: "self_attn.q_proj"."""
    return path.removeprefix(f"{LAYERS}.")


def display_name(path: str) -> str:
    """Return what names of interventions call the array: the path without the layers and without attention's block."""
    return in_layer(path).removeprefix("self_attn.")


def label(path: str) -> str:
    """Return the head of a narrow column for a path, inside a layer or whole: "q" for "self_attn.q_proj"."""
    role = _role_at(path) or _role_at(f"{LAYERS}.{path}")
    return path if role is None else role.label


def ordered(paths: Iterable[str]) -> list[str]:
    """Return paths, inside a layer or whole, in the order of `ROLES`; those of no role follow, by name."""
    places = {role.path: place for place, role in enumerate(ROLES.values())}
    return sorted(paths, key=lambda each: (places.get(each, places.get(f"{LAYERS}.{each}", len(places))), each))


# Tensors of Hugging Face.


def _tensor(path: str) -> str:
    stem = in_layer(path)
    ending = "bias" if stem.endswith("_bias") else "weight"
    stem = f"{stem.removesuffix('_bias')}_proj" if ending == "bias" else stem
    if stacked(path):
        return f"model.layers.{{layer}}.{stem}.{ending}"
    return f"{stem}.{ending}" if path == ROLES["head"].path else f"model.{stem}.{ending}"


def names(path: str, layers: int | None) -> list[str]:
    """Return the Hugging Face name of every matrix in the leaf at `path`; `layers` is None where nothing is stacked."""
    if layers is None:
        return [_tensor(path)]
    return [_tensor(path).format(layer=layer) for layer in range(layers)]


def matrix_name(role: str, layer: int | None = None) -> str:
    """Return the Hugging Face name of one matrix of a role: "model.layers.3.mlp.down_proj.weight"."""
    return ROLES[role].tensor.format(layer=layer)


def locate(name: str) -> tuple[str, int | None]:
    """Return (path, layer) of a Hugging Face name, the inverse of `names`; the layer is None where nothing is stacked.

    Raises:
      ValueError: the name is not one of a weight.
    """
    found = _LAYER_TENSOR.match(name)
    stem = found[2] if found else name.removeprefix("model.")
    if stem.endswith("_proj.bias"):
        stem = f"{stem.removesuffix('_proj.bias')}_bias"
    elif stem.endswith(".weight"):
        stem = stem.removesuffix(".weight")
    else:
        raise ValueError(f"{name!r} is not the name of a weight; expected one such as {matrix_name('up', 0)!r}")
    return (f"{LAYERS}.{stem}", int(found[1])) if found else (stem, None)


# Scopes.


def _paths(kinds: Iterable[str]) -> tuple[str, ...]:
    return tuple(role.path for role in ROLES.values() if role.stacked and role.kind in set(kinds))


# A scope names the part of the parameters that is scored, selected from, or acted on (docs/method.md 2: the paper
# scores and selects in every tensor of the decoder layers, its norms included, and freezes in the same ones without
# norms). Biases belong to the scope of their matrix.
SCOPES: dict[str, tuple[str, ...]] = {
    "decoder": (f"{LAYERS}.*",),
    "decoder_without_norms": _paths(("matrix", "bias")),
    "norms": _paths(("norm",)),
    "outputs": (ROLES["o"].path, ROLES["down"].path, ROLES["o_bias"].path),  # what writes to the residual stream
    "all_norms": (*_paths(("norm",)), ROLES["final_norm"].path),
    "everything": ("*",),
}
# Parts of a region that an experiment removes by themselves -> scope.
PARTS: dict[str, str] = {role.name: role.name for role in ROLES.values() if role.stacked and role.kind == "matrix"} | {
    "norms": "norms",
    "without_norms": "decoder_without_norms",
}


def _patterns(scope: str) -> tuple[str, ...]:
    """Return the path patterns of a scope: scopes, roles (a matrix with its bias) and `fnmatch` patterns, by commas."""
    found: list[str] = []
    for word in filter(None, map(str.strip, scope.split(","))):
        biased = (f"{word}_bias",) if f"{word}_bias" in ROLES else ()
        found += SCOPES.get(word) or ([path(each) for each in (word, *biased)] if word in ROLES else [word])
    return tuple(found)


def restrict(tree: Mapping[str, Any], scope: str) -> trees.Tree:
    """Return the nested dict with only the leaves of `scope`.

    Raises:
      ValueError: no path lies in the scope.
    """
    wanted = _patterns(scope)
    leaves = {path: leaf for path, leaf in trees.walk(tree) if any(fnmatch.fnmatchcase(path, each) for each in wanted)}
    if not leaves:
        raise ValueError(
            f"scope {scope!r} holds no parameter; named scopes are {', '.join(SCOPES)}, roles are "
            f"{', '.join(ROLES)}, and a pattern is matched against paths such as "
            f"{next(iter(trees.flatten(tree)), '(an empty tree)')!r}"
        )
    return trees.unflatten(leaves)
