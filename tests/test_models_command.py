"""`lingregions models`: what it lists and shows, that a converted model lacks the region, and what verify compares."""

import dataclasses
import importlib.util
import io
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from rich.console import Console

from lingregions import mesh as meshes
from lingregions import models, models_command
from lingregions import tree as trees
from lingregions.main import main
from lingregions.model import Model, load
from lingregions.models import convert, huggingface
from lingregions.models.tokenizer import Tokenizer


def run(*words: str) -> str:
    stream = io.StringIO()
    assert models_command.main(words, Console(width=200, file=stream)) == 0
    return stream.getvalue()


def row(shown: str, first: str) -> list[str]:
    """The cells of the line of a table that begins with a word."""
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.splitlines() if "│" in line]
    return next(cells for cells in lines if cells[0] == first)


def test_list_names_every_family_and_preset():
    shown = run("list")
    assert row(shown, "qwen2") == ["qwen2", "Qwen2 and Qwen2.5", "preset:qwen2.5-0.5b", "494,032,768"]
    assert row(shown, "mistral")[2:] == ["preset:mistral-7b", "7,241,732,096"]
    assert all(row(shown, kind)[1] for kind in models.ARCHITECTURES)
    assert all(f"preset:{name} " in shown for name in models.PRESETS)


@pytest.mark.parametrize(
    ("preset", "role", "cells"),
    [
        ("tiny", "q", ["2x64x64", "8,192", "0"]),
        ("tiny", "k", ["2x32x64", "4,096", "0; a head counts once for its 2 of queries"]),
        ("tiny", "head", ["264x64", "16,896", "0; outside the scope decoder"]),
        ("tiny", "all", ["", "107,840", ""]),
        ("gemma2-2b", "input_norm", ["26x2304", "59,904", "-1: the gain is 1 + w"]),
        ("qwen2.5-0.5b", "q_bias", ["24x896", "21,504", "0; in the scope of q"]),
        ("phi3-mini-4k", "up", ["32x8192x3072", "805,306,368", "0; in gate_up_proj of files"]),
    ],
)
def test_show_says_what_removal_means(preset: str, role: str, cells: list[str]) -> None:
    assert row(run("show", f"preset:{preset}"), role)[1:] == cells


def test_show_says_what_is_tied_and_capped():
    shown = run("show", "preset:gemma2-2b")
    assert "The head is the embedding" in shown
    assert "with c = 30." in shown
    assert "The head" not in run("show", "preset:tiny")


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A tiny model whose gains are 1 + w, from a folder."""
    folder = tmp_path_factory.mktemp("gemma") / "model"
    sizes: dict[str, Any] = {"vocab": 264, "embed": 16, "mlp": 24, "layers": 2, "local": (True, False)}
    heads: dict[str, Any] = {"heads": 2, "kv_heads": 1, "head_dim": 8}
    config = dataclasses.replace(models.PRESETS["gemma2-2b"], **sizes, **heads)
    convert.export(models.initialize(config, jax.random.key(3)), config, folder, Tokenizer.bytes())
    return load(str(folder))


def test_convert_writes_the_model_bit_for_bit(gemma: Model, tmp_path: Path) -> None:
    assert "parameters in float32" in run("convert", gemma.source, str(tmp_path / "out"))
    again = load(str(tmp_path / "out"))
    assert again.fingerprint == gemma.fingerprint
    assert again.tokenizer.fingerprint == gemma.tokenizer.fingerprint


def test_convert_removes_a_region_and_nothing_else(gemma: Model, tmp_path: Path) -> None:
    region = gemma.magnitudes().select("10%")
    region.save(tmp_path / "top.safetensors")
    said = run("convert", gemma.source, str(tmp_path / "out"), "--remove", str(tmp_path / "top.safetensors"))
    assert "top.safetensors removed from it" in said
    masks, before, offsets = trees.flatten(region.masks), trees.flatten(gemma.params), models.offsets(gemma.config)
    for path, after in trees.walk(load(str(tmp_path / "out")).params):
        removed = np.asarray(masks.get(path, np.zeros(after.shape, bool)))
        expected = np.where(removed, np.float32(-offsets.get(path, 0.0)), np.asarray(before[path]))
        np.testing.assert_array_equal(np.asarray(after), expected, err_msg=path)
    assert sum(int(np.sum(mask)) for mask in masks.values()) > 0
    assert any(np.any(mask) for path, mask in masks.items() if path in offsets)


def test_convert_refuses_a_region_of_another_model_and_a_full_folder(gemma: Model, tmp_path: Path, capsys: Any) -> None:
    gemma.magnitudes().select("10%").save(tmp_path / "top.safetensors")
    words = ["models", "convert", "preset:tiny", str(tmp_path / "out")]
    assert main([*words, f"--remove={tmp_path / 'top.safetensors'}"]) == 2
    assert "region of another model" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    assert main(words) == 2
    assert "not empty" in capsys.readouterr().err
    assert [each.name for each in (tmp_path / "out").iterdir()] == ["mine"]


def test_verify_says_in_a_sentence_that_torch_is_missing(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["models", "verify", "preset:tiny"]) == 2
    assert "needs torch: pip install 'lingregions[parity]'" in capsys.readouterr().err


def test_verify_accepts_equal_logits_and_refuses_others(gemma: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """With our own logits in the place of transformers', whole and disturbed; `make parity` has the real ones."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    asked: list[Path] = []

    def logits(folder: Path, tokens: np.ndarray) -> Any:
        asked.append(folder)
        assert tokens.shape == (1, 64)
        return models_command._outputs(load(str(folder), meshes.build(devices=jax.devices()[:1])), tokens)[0]

    monkeypatch.setattr(huggingface, "logits", logits)
    assert "logits differ by 0 at most" in run("verify", gemma.source, "--length=64")
    assert asked[-1] == Path(gemma.source)
    monkeypatch.setattr(huggingface, "logits", lambda *given: 1.01 * logits(*given))
    with pytest.raises(ValueError, match="not the same model"):
        run("verify", gemma.source, "--length=64")


@pytest.mark.parity
@pytest.mark.parametrize("name", ["preset:tiny", "gemma"])
def test_verify_against_transformers(name: str, gemma: Model) -> None:
    said = run("verify", gemma.source if name == "gemma" else name)
    assert json.loads(said.partition("NLL ")[2].split()[0]) > 1
    assert "in transformers, nats per token" in said
