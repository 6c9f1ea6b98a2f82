"""GGUF: names, permuted rows, dequantisation, and what the head of a file may say."""

import dataclasses
import struct

import gguf as library
import jax
import numpy as np
import pytest

from lingregions import mesh as meshes
from lingregions import models
from lingregions import tree as trees
from lingregions.models import convert, gguf, roles

CONFIG = models.DecoderConfig(
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
    path = write(tmp_path / "m.gguf", params, {}, architecture="falcon")
    with pytest.raises(ValueError, match="architecture 'falcon' is not supported"):
        _ = gguf.load(path).config


def test_gemma_has_its_own_names_unturned_rows_and_gains_with_one_added(tmp_path, lone_mesh):
    config = dataclasses.replace(
        models.PRESETS["gemma3-270m"], vocab=96, embed=32, mlp=64, layers=2, head_dim=8, context=128, window=16,
        local=(True, True),
    )  # fmt: skip
    params = models.initialize(config, jax.random.key(5))
    metadata = {
        "gemma3.block_count": 2,
        "gemma3.context_length": 128,
        "gemma3.embedding_length": 32,
        "gemma3.feed_forward_length": 64,
        "gemma3.attention.head_count": 4,
        "gemma3.attention.head_count_kv": 1,
        "gemma3.attention.key_length": 8,
        "gemma3.attention.value_length": 8,
        "gemma3.attention.sliding_window": 16,
        "gemma3.attention.layer_norm_rms_epsilon": 1e-6,
        "gemma3.rope.freq_base": 1e6,
    }
    writer = library.GGUFWriter(tmp_path / "m.gguf", "gemma3")
    for name, value in metadata.items():
        (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(name, value)
    names = {role.path: role.gguf for role in roles.ROLES.values()}
    names[roles.path("post_attention_norm")] = "post_attention_norm"
    for path, leaf in trees.walk(params):
        for layer, matrix in enumerate(np.asarray(leaf) if roles.stacked(path) else [np.asarray(leaf)]):
            name = f"blk.{layer}.{names[path]}.weight" if roles.stacked(path) else f"{names[path]}.weight"
            writer.add_tensor(name, matrix + np.float32(1) if matrix.ndim == 1 else matrix)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert gguf.load(tmp_path / "m.gguf").config == config
    loaded = trees.flatten(load(tmp_path / "m.gguf", lone_mesh))
    assert loaded.keys() == trees.flatten(params).keys()
    for path, leaf in trees.walk(params):
        expected = np.asarray(leaf)
        if "norm" in path:
            expected = (expected + np.float32(1)) - np.float32(1)
        np.testing.assert_array_equal(np.asarray(loaded[path]), expected, err_msg=path)


def test_an_adapter_is_no_model(tmp_path, params):
    path = write(tmp_path / "m.gguf", params, METADATA | {"general.type": "adapter"})
    with pytest.raises(ValueError, match=r"m.gguf: 'adapter' by its own word .*merged into its model first"):
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


def key(name, kind, value):
    """Return a file of one key."""
    return b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, len(name)) + name.encode() + struct.pack("<I", kind) + value


def tensor(axes, kind=0, offset=0):
    """Return a file of one tensor "t", with 64 bytes for it."""
    head = b"GGUF" + struct.pack("<IQQQ", 3, 1, 0, 1) + b"t" + struct.pack("<I", len(axes))
    head += struct.pack(f"<{len(axes)}QIQ", *axes, kind, offset)
    return head + bytes(-len(head) % 32 + 64)


def test_the_head_that_the_broken_ones_are_made_from_is_sound(tmp_path):
    (tmp_path / "m.gguf").write_bytes(tensor((4, 2)))
    assert gguf.load(tmp_path / "m.gguf").shapes == {"t": (2, 4)}
    (tmp_path / "n.gguf").write_bytes(key("general.alignment", 4, struct.pack("<I", 64)))
    assert gguf.load(tmp_path / "n.gguf").metadata == {"general.alignment": 64}


def test_tensors_that_share_bytes_are_refused(tmp_path, params):
    path = write(tmp_path / "m.gguf", params)
    content = bytearray(path.read_bytes())
    place = content.index(b"output_norm.weight") + len("output_norm.weight") + 4 + 8 + 4
    content[place : place + 8] = struct.pack("<Q", 32)  # within the embedding
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"the bytes of model.norm.weight are those of another tensor too"):
        gguf.load(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"llama.block_count": 2**31}, "the config has 2147483648 layers, and the weights have 2"),
        ({"llama.block_count": "2"}, "llama.block_count = '2'"),
        ({"llama.block_count": 2.5}, "llama.block_count = 2.5"),
        ({"llama.attention.head_count": 0, "llama.attention.head_count_kv": 0}, "m.gguf: .*sizes that no model has"),
        ({"llama.attention.head_count_kv": 0}, "kv_heads is 0"),
        ({"llama.rope.freq_base": float("inf")}, "llama.rope.freq_base = inf"),
        ({"llama.attention.layer_norm_rms_epsilon": float("nan")}, "rms_epsilon = nan"),
        ({"llama.embedding_length": 2**31}, r"instead of \[96, 2147483648\]"),
    ],
)
def test_sizes_that_no_model_has_are_refused_at_once(tmp_path, params, changes, message):
    opened = gguf.load(write(tmp_path / "m.gguf", params, METADATA | changes))
    with pytest.raises(ValueError, match=message):
        convert.check(opened, opened.config)


@pytest.fixture
def split(tmp_path, params):
    """The two parts of a model, the last four tensors in the second."""
    whole = gguf.load(write(tmp_path / "whole.gguf", params))
    named = {"model.norm.weight": "output_norm.weight", "lm_head.weight": "output.weight"}
    late = {name: params[leaf] for name, leaf in (("model.norm.weight", "norm"), ("lm_head.weight", "lm_head"))}
    early = {name: leaf for name, leaf in params.items() if name not in ("norm", "lm_head")}
    paths = [tmp_path / "split" / f"m-0000{part}-of-00002.gguf" for part in (1, 2)]
    paths[0].parent.mkdir()
    counts = {"split.count": 2, "split.tensors.count": len(whole.tensors)}
    write(paths[0], early, METADATA | counts | {"split.no": 0})
    extra = [(named[name], np.asarray(values)) for name, values in late.items()]
    write(paths[1], {}, counts | {"split.no": 1}, extra=extra)
    return paths


def test_a_model_in_parts_is_one_model(split, params, lone_mesh):
    for path in split:
        loaded = load(path, lone_mesh)
        for name, leaf in trees.walk(params):
            np.testing.assert_array_equal(np.asarray(trees.flatten(loaded)[name]), np.asarray(leaf), err_msg=name)
    assert gguf.load(split[1]).files == tuple(split)


def test_parts_that_are_not_those_of_one_model_are_named(split):
    split[1].write_bytes(split[0].read_bytes())
    with pytest.raises(ValueError, match=r"m-00002-of-00002.gguf: part 0 by its head, 1 by its name"):
        gguf.load(split[0])
    split[1].unlink()
    with pytest.raises(
        FileNotFoundError, match=r"2 parts of a model, and 1 of them are missing: m-00002-of-00002.gguf"
    ):
        gguf.load(split[0])
    none = split[0].rename(split[0].with_name("m-00001-of-00000.gguf"))
    with pytest.raises(ValueError, match=r"m-00001-of-00000.gguf: one of 2 parts of a model"):
        gguf.load(none)
    none.rename(split[0].with_name("m.gguf"))
    with pytest.raises(ValueError, match=r"m.gguf: one of 2 parts of a model; give them back their names"):
        gguf.load(split[0].with_name("m.gguf"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"GGML" + bytes(40), "not a GGUF file"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0) + bytes(40), "version 1; 2 and 3 are known"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 2**60) + bytes(40), "a text of"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"a" + struct.pack("<IIQ", 9, 4, 2**60), "an array of"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + 2 * (struct.pack("<Q", 1) + b"a" + bytes(5)), "a occurs twice"),
        (key("a", 9, struct.pack("<IQ", 9, 1) * 5_000), "an array of arrays"),
        (key("a", 13, bytes(8)), "13"),
        (key("general.alignment", 4, struct.pack("<I", 0)), "general.alignment is 0, not a power of two"),
        (key("general.alignment", 4, struct.pack("<I", 48)), "general.alignment is 48, not a power of two"),
        (key("general.alignment", 8, struct.pack("<Q", 2) + b"32"), "general.alignment is '32'"),
        (key("general.alignment", 7, b"\1"), "general.alignment is True"),
        (tensor(()), "t has 0 axes"),
        (tensor((1,) * 5), "t has 5 axes"),
        (tensor((0, 2)), r"t has the shape \[2, 0\] and starts at 0"),
        (tensor((2,), offset=3), r"t has the shape \[2\] and starts at 3"),
        (tensor((2**62, 2**62)), "t ends at"),
        (tensor((33,), kind=8), "33"),
        (tensor((32,), kind=99), "99"),
    ],
)
def test_heads_that_make_no_sense_are_refused(tmp_path, content, message):
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        gguf.load(path)
