"""GGUF: names, permuted rows, dequantisation, and what the head of a file may say."""

import struct

import gguf as library
import jax
import numpy as np
import pytest

from lingregions import mesh as meshes
from lingregions import models
from lingregions import tree as trees
from lingregions.models import convert, gguf

CONFIG = models.LlamaConfig(
    vocab=96, embed=32, mlp=64, layers=2, heads=4, kv_heads=2, head_dim=8, context=128, rope_theta=5e5
)
QUANTISED = library.GGMLQuantizationType.Q8_0
METADATA = {
    "llama.block_count": 2,
    "llama.context_length": 128,
    "llama.embedding_length": 32,
    "llama.feed_forward_length": 64,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.rope.freq_base": 5e5,
    "llama.rope.dimension_count": 8,
    "llama.vocab_size": 96,
}
NAMES = {
    "embed_tokens": "token_embd",
    "norm": "output_norm",
    "lm_head": "output",
    "layers.input_layernorm": "blk.{}.attn_norm",
    "layers.self_attn.q_proj": "blk.{}.attn_q",
    "layers.self_attn.k_proj": "blk.{}.attn_k",
    "layers.self_attn.v_proj": "blk.{}.attn_v",
    "layers.self_attn.o_proj": "blk.{}.attn_output",
    "layers.post_attention_layernorm": "blk.{}.ffn_norm",
    "layers.mlp.gate_proj": "blk.{}.ffn_gate",
    "layers.mlp.up_proj": "blk.{}.ffn_up",
    "layers.mlp.down_proj": "blk.{}.ffn_down",
}


def permute(rows, heads):
    """Order rows as llama.cpp's converter does: within a head, h and h + H / 2 become neighbours."""
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def write(path, params, metadata=METADATA, architecture="llama", quantise=(), extra=()):
    """Write a GGUF file with the writer of the `gguf` package."""
    writer = library.GGUFWriter(path, architecture)
    for key, value in metadata.items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        else:
            (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(key, value)
    for leaf_path, leaf in trees.flatten(params).items():
        stacked = leaf_path.startswith("layers.")
        for layer, matrix in enumerate(np.asarray(leaf) if stacked else [np.asarray(leaf)]):
            if leaf_path.endswith(("q_proj", "k_proj")):
                matrix = permute(matrix, 4 if "q_proj" in leaf_path else 2)
            kind = QUANTISED if leaf_path in quantise else None
            values = library.quantize(matrix, kind) if kind else matrix
            writer.add_tensor(NAMES[leaf_path].format(layer) + ".weight", values, raw_dtype=kind)
    for name, values in extra:
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def params():
    return models.initialize(CONFIG, jax.random.key(3))


def load(path, mesh):
    opened = gguf.load(path)
    return convert.load(opened, opened.config, meshes.shardings(models.declare(opened.config), mesh))


def test_permutation_by_hand():
    # One head of four rows: llama.cpp writes 0, 2, 1, 3 for 0, 1, 2, 3.
    assert permute(np.arange(4)[:, None], 1)[:, 0].tolist() == [0, 2, 1, 3]


def test_values_come_back_exactly_on_one_device_and_on_eight(tmp_path, params, mesh, lone_mesh):
    path = write(tmp_path / "m.gguf", params)
    assert gguf.load(path).config == CONFIG
    for each in (mesh, lone_mesh):
        loaded = load(path, each)
        trees.assert_parallel(params, loaded)
        for name, leaf in trees.walk(params):
            np.testing.assert_array_equal(np.asarray(trees.flatten(loaded)[name]), np.asarray(leaf), err_msg=name)


def test_quantised_values_are_those_of_the_package(tmp_path, params, mesh):
    quantise = ("embed_tokens", "layers.self_attn.q_proj", "layers.mlp.down_proj")
    loaded = trees.flatten(load(write(tmp_path / "m.gguf", params, quantise=quantise), mesh))
    for name in quantise:
        values = np.asarray(trees.flatten(params)[name])
        expected = library.dequantize(library.quantize(values, QUANTISED), QUANTISED)
        np.testing.assert_array_equal(np.asarray(loaded[name]), expected.reshape(values.shape))
        assert np.abs(expected.reshape(values.shape) - values).max() > 0  # or nothing was quantised


def test_a_file_without_a_head_is_tied(tmp_path, params, lone_mesh):
    tied = {name: leaf for name, leaf in params.items() if name != "lm_head"}
    path = write(tmp_path / "m.gguf", tied)
    assert gguf.load(path).config.tied
    assert set(load(path, lone_mesh)) == {"embed_tokens", "layers", "norm"}


def test_a_missing_tensor_is_named_as_hugging_face_does(tmp_path, params, lone_mesh):
    path = write(tmp_path / "m.gguf", {name: leaf for name, leaf in params.items() if name != "norm"})
    with pytest.raises(ValueError, match=r"1 missing: model.norm.weight"):
        load(path, lone_mesh)


def test_an_unknown_tensor_is_named(tmp_path, params, lone_mesh):
    path = write(tmp_path / "m.gguf", params, extra=[("blk.0.attn_q.bias", np.zeros(32, np.float32))])
    with pytest.raises(ValueError, match=r"1 unexpected: blk.0.attn_q.bias\n.*biases"):
        load(path, lone_mesh)


def test_infinite_values_are_refused_by_name(tmp_path, params, lone_mesh):
    broken = trees.merge(params, {"norm": np.asarray(params["norm"]) * np.float32(np.inf)})
    with pytest.raises(ValueError, match=r"model.norm.weight holds 32 NaN or infinite"):
        load(write(tmp_path / "m.gguf", broken), lone_mesh)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"llama.rope.scaling.type": "yarn"}, "llama.rope.scaling.type = 'yarn'"),
        ({"llama.expert_count": 8}, "llama.expert_count = 8"),
        ({"llama.attention.sliding_window": 4096}, "llama.attention.sliding_window = 4096"),
        ({"llama.attention.head_count": [4, 2]}, r"llama.attention.head_count = \[4, 2\]"),
        ({"llama.attention.key_length": 8, "llama.attention.value_length": 16}, "attention.value_length = 16"),
        ({"llama.attention.key_length": 16}, "where the head has"),
    ],
)
def test_metadata_that_changes_the_maths_is_refused(tmp_path, params, changes, message):
    path = write(tmp_path / "m.gguf", params, METADATA | changes)
    with pytest.raises(ValueError, match=rf"not read from GGUF: .*{message}.*Hugging Face folder"):
        _ = gguf.load(path).config


def test_scaled_rotary_frequencies_are_refused(tmp_path, params):
    path = write(tmp_path / "m.gguf", params, extra=[("rope_freqs.weight", np.ones(4, np.float32))])
    with pytest.raises(ValueError, match="rope_freqs"):
        _ = gguf.load(path).config


def test_harmless_metadata_is_accepted(tmp_path, params):
    changes = {
        "llama.rope.scaling.type": "none",
        "llama.attention.key_length": 8,
        "llama.attention.value_length": 8,
        "general.name": "Tiny",
    }
    assert gguf.load(write(tmp_path / "m.gguf", params, METADATA | changes)).config == CONFIG
    without = {key: value for key, value in METADATA.items() if key != "llama.vocab_size"}
    assert gguf.load(write(tmp_path / "n.gguf", params, without)).config == CONFIG


def test_another_architecture_is_refused(tmp_path, params):
    path = write(tmp_path / "m.gguf", params, {}, architecture="gemma3")
    with pytest.raises(ValueError, match="architecture 'gemma3' is not supported"):
        _ = gguf.load(path).config


def test_the_head_reads_as_the_package_reads_it(tmp_path, params):
    metadata = METADATA | {"a.text": "ü€", "a.list": ["x", "", "ÿ"], "a.numbers": [1, -2], "a.float": 0.25}
    path = write(tmp_path / "m.gguf", params, metadata)
    reader = library.GGUFReader(path)
    theirs = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    opened = gguf.load(path)
    assert opened.metadata == theirs
    starts = {int(each.data_offset) for each in reader.tensors}
    assert {entry.start for entry in opened.tensors.values()} == starts


def test_files_that_are_cut_anywhere_are_refused(tmp_path, params):
    whole = write(tmp_path / "m.gguf", params, METADATA | {"a.list": ["x", "y"]}).read_bytes()
    path = tmp_path / "cut.gguf"
    for size in (0, 3, 4, 20, 30, 100, 700, len(whole) // 2, len(whole) - 64):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"cut.gguf: (not a GGUF file|.*cut.*download it again)"):
            gguf.load(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"GGML" + bytes(40), "not a GGUF file"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0) + bytes(40), "version 1; 2 and 3 are known"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 2**60) + bytes(40), "a text of"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"a" + struct.pack("<IIQ", 9, 4, 2**60), "an array of"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + 2 * (struct.pack("<Q", 1) + b"a" + bytes(5)), "a occurs twice"),
    ],
)
def test_heads_that_make_no_sense_are_refused(tmp_path, content, message):
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        gguf.load(path)
