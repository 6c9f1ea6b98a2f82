"""Roles: one vocabulary of paths, tensors, scopes and labels, and nobody outside models/ who spells a part itself."""

import ast
import re
from pathlib import Path

import pytest

from lingregions import models
from lingregions import tree as trees
from lingregions.models import roles

PACKAGE = Path(roles.__file__).resolve().parent.parent
# Parts of a decoder as Hugging Face or the parameter tree spell them.
PART = re.compile(r"self_attn|[a-z]_proj\b|layernorm|embed_tokens|lm_head|layers\.\w")


@pytest.mark.parametrize(
    ("role", "path", "tensor", "label"),
    [
        ("q", "layers.self_attn.q_proj", "model.layers.3.self_attn.q_proj.weight", "q"),
        ("v_bias", "layers.self_attn.v_bias", "model.layers.3.self_attn.v_proj.bias", "v bias"),
        ("k_norm", "layers.self_attn.k_norm", "model.layers.3.self_attn.k_norm.weight", "k norm"),
        ("input_norm", "layers.input_layernorm", "model.layers.3.input_layernorm.weight", "norm 1"),
        ("down", "layers.mlp.down_proj", "model.layers.3.mlp.down_proj.weight", "down"),
    ],
)
def test_a_role_of_the_layers_by_hand(role, path, tensor, label):
    assert roles.path(role) == path
    assert roles.matrix_name(role, 3) == tensor
    assert roles.names(path, 5)[3] == tensor
    assert roles.locate(tensor) == (path, 3)
    assert (roles.label(path), roles.label(path.removeprefix("layers."))) == (label, label)
    assert roles.stacked(path)


@pytest.mark.parametrize(
    ("role", "path", "tensor"),
    [
        ("embedding", "embed_tokens", "model.embed_tokens.weight"),
        ("final_norm", "norm", "model.norm.weight"),
        ("head", "lm_head", "lm_head.weight"),
    ],
)
def test_a_role_outside_the_layers_by_hand(role, path, tensor):
    assert (roles.path(role), roles.matrix_name(role), roles.names(path, None)) == (path, tensor, [tensor])
    assert roles.locate(tensor) == (path, None)
    assert not roles.stacked(path)


def test_no_two_roles_share_a_path_a_tensor_or_a_label():
    for field in ("name", "path", "tensor", "label"):
        assert len({getattr(role, field) for role in roles.ROLES.values()}) == len(roles.ROLES) == 20, field


def test_a_name_of_no_weight_is_refused():
    with pytest.raises(ValueError, match=r"'model.norm' is not the name of a weight; .*layers.0.mlp.up_proj.weight"):
        roles.locate("model.norm")


@pytest.mark.parametrize(
    ("scope", "paths"),
    [
        ("q", ["layers.self_attn.q_bias", "layers.self_attn.q_proj"]),
        ("o", ["layers.self_attn.o_proj"]),
        ("down, final_norm", ["layers.mlp.down_proj", "norm"]),
        ("outputs", ["layers.mlp.down_proj", "layers.self_attn.o_proj"]),
        ("norms", ["layers.input_layernorm", "layers.self_attn.q_norm"]),
        ("all_norms", ["layers.input_layernorm", "layers.self_attn.q_norm", "norm"]),
        (
            "decoder_without_norms",
            ["layers.mlp.down_proj", "layers.self_attn.o_proj", "layers.self_attn.q_bias", "layers.self_attn.q_proj"],
        ),
    ],
)
def test_a_scope_of_roles_holds_a_matrix_with_its_bias_and_every_norm(scope, paths):
    held = ("q", "q_bias", "q_norm", "o", "down", "input_norm", "final_norm", "embedding")
    drawn = trees.unflatten({roles.path(role): role for role in held})
    assert list(trees.flatten(roles.restrict(drawn, scope))) == paths


def test_parts_are_scopes_that_hold_something():
    declared = models.declare(models.PRESETS["tiny"])
    assert list(roles.PARTS) == ["q", "k", "v", "o", "gate", "up", "down", "norms", "without_norms"]
    sizes = {part: trees.count(roles.restrict(declared, scope)) for part, scope in roles.PARTS.items()}
    assert sizes["q"] == 2 * 64 * 64
    assert sizes["norms"] == 2 * 2 * 64
    assert sum(sizes[part] for part in list(roles.PARTS)[:7]) == sizes["without_norms"]


def test_columns_come_in_the_order_of_the_roles():
    assert roles.ordered(["zz", "mlp.up_proj", "input_layernorm", "self_attn.q_proj", "aa"]) == [
        "self_attn.q_proj",
        "mlp.up_proj",
        "input_layernorm",
        "aa",
        "zz",
    ]


def spelled(path: Path) -> list[str]:
    """The string literals of a file that spell a part of a decoder; docstrings are prose."""
    module = ast.parse(path.read_text(encoding="utf-8"))
    prose = {
        id(node.value)
        for node in ast.walk(module)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    return [
        f"{path.name}: {node.value}"
        for node in ast.walk(module)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose
        if PART.search(node.value) and node.value not in roles.ROLES
    ]


def test_nobody_outside_the_models_spells_a_part_of_a_decoder():
    files = [path for path in sorted(PACKAGE.rglob("*.py")) if path.relative_to(PACKAGE).parts[0] != "models"]
    assert len(files) > 50
    assert [found for path in files for found in spelled(path)] == []


def test_the_search_for_parts_sees_them(tmp_path):
    (tmp_path / "a.py").write_text(
        '"""layers.mlp is prose."""\nx = ["mlp.down_proj", f"layers.{3}", "layers.*", "q"]\n'
    )
    assert spelled(tmp_path / "a.py") == ["a.py: mlp.down_proj"]
