"""Convert: every tensor found exactly once, straight to its shard, and back to a folder bit for bit."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy
from jax.sharding import PartitionSpec

from lingregions import mesh as meshes
from lingregions import models
from lingregions import tree as trees
from lingregions.models import convert
from lingregions.models.tokenizer import Tokenizer

CONFIG = models.DecoderConfig(vocab=264, embed=32, mlp=64, layers=3, heads=4, kv_heads=2, head_dim=8, context=64)
TIED = models.DecoderConfig(**(vars(CONFIG) | {"tied": True}))


@pytest.fixture(scope="module")
def params():
    return models.initialize(CONFIG, jax.random.key(7))


def tensors(params, config=CONFIG):
    """Return {Hugging Face name: matrix}."""
    leaves = trees.flatten(params)
    return {
        name: np.asarray(leaves[path])[layer] if parameter.stacked else np.asarray(leaves[path])
        for path, parameter in trees.walk(models.declare(config))
        for layer, name in enumerate(parameter.names())
    }


def write(folder, named):
    folder.mkdir(exist_ok=True)
    safetensors.numpy.save_file(named, folder / "model.safetensors")
    return folder


def load(folder, mesh, config=CONFIG):
    return convert.load(folder, config, meshes.shardings(models.declare(config), mesh))


def assert_equal(params, others):
    trees.assert_parallel(params, others)
    for path, leaf in trees.walk(params):
        other = np.asarray(trees.flatten(others)[path])
        np.testing.assert_array_equal(other.view(np.uint32), np.asarray(leaf).view(np.uint32), err_msg=path)


def test_names_by_hand(params):
    named = tensors(params)
    assert len(named) == 3 + 9 * 3
    assert named["model.layers.2.mlp.down_proj.weight"].shape == (32, 64)
    assert named["model.layers.0.self_attn.k_proj.weight"].shape == (16, 32)


def test_a_folder_loads_the_same_on_one_device_and_on_eight(tmp_path, params, mesh, lone_mesh):
    folder = write(tmp_path / "m", tensors(params))
    assert_equal(params, load(folder, lone_mesh))
    sharded = load(folder, mesh)
    assert_equal(params, sharded)
    assert sharded["layers"]["mlp"]["gate_proj"].sharding.spec == PartitionSpec(None, "tensor", "fsdp")
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(sharded))


class Recorder:
    """Weights that write down what is asked of them."""

    def __init__(self, named):
        self.named, self.asked = named, []
        self.where = "recorder"
        self.shapes = {name: values.shape for name, values in named.items()}

    def read(self, name, index):
        values = self.named[name][index]
        self.asked.append((name, values.size))
        return values


def test_each_part_is_read_once_and_no_more_than_a_shard_of_it(params):
    # Two copies (data = 2) of four parts (fsdp = 2 x tensor = 2) of every projection.
    recorder = Recorder(tensors(params))
    mesh = meshes.build(data=2, fsdp=2, tensor=2)
    assert_equal(params, convert.load(recorder, CONFIG, meshes.shardings(models.declare(CONFIG), mesh)))
    asked = [size for name, size in recorder.asked if name == "model.layers.1.mlp.up_proj.weight"]
    assert asked == [64 * 32 // 4] * 4


def mixed(named):
    """Return the matrices as float16 and float32 in turn."""
    return {name: values.astype([np.float16, np.float32][n % 2]) for n, (name, values) in enumerate(named.items())}


def test_mixed_dtypes_become_float32(tmp_path, params, lone_mesh):
    named = mixed(tensors(params))
    loaded = load(write(tmp_path / "m", named), lone_mesh)
    for name, values in tensors(loaded).items():
        np.testing.assert_array_equal(values, named[name].astype(np.float32))


def replaced(named, changes):
    """Return `named` with some tensors replaced, or removed where the change is None."""
    return {name: values for name, values in (named | changes).items() if values is not None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.norm.weight": None}, r"1 missing: model.norm.weight"),
        ({"lm_head.weight": None}, r"1 missing: lm_head.weight\n.*tie_word_embeddings to true"),
        ({"model.norm.weight": np.zeros((1, 32), np.float32)}, r"model.norm.weight \[1, 32\] instead of \[32\]"),
        (
            {"model.embed_tokens.weight": np.zeros((265, 32), np.float32)},
            r"\[265, 32\] instead of \[264, 32\]\n.*resized",
        ),
        ({"other": np.zeros(1, np.float32)}, r"1 unexpected: other$"),
        (
            {"model.layers.3.input_layernorm.weight": np.zeros(32, np.float32)},
            r"1 unexpected: model.layers.3.input_layernorm",
        ),
        (
            {
                "model.layers.0.self_attn.q_proj.weight": None,
                "model.layers.0.self_attn.k_proj.weight": None,
                "model.layers.0.self_attn.v_proj.weight": None,
                "model.layers.0.self_attn.qkv_proj.weight": np.zeros((64, 32), np.float32),
            },
            r"3 missing: (?s:.*)1 unexpected: (?s:.*)advice: q, k and v are fused in one tensor: split",
        ),
        ({"model.layers.0.mlp.gate_up_proj.weight": np.zeros(1, np.float32)}, r"gate and up are fused"),
        ({"model.layers.0.self_attn.q_proj.bias": np.zeros(1, np.float32)}, r"the layers have biases"),
        ({"base_model.model.x.lora_A.weight": np.zeros(1, np.float32)}, r"adapter weights: merge"),
        ({"model.layers.0.mlp.up_proj.qweight": np.zeros(1, np.int32)}, r"quantised checkpoint"),
    ],
)
def test_tensors_that_are_not_those_of_the_config_are_listed_with_advice(tmp_path, params, lone_mesh, changes, message):
    folder = write(tmp_path / "m", replaced(tensors(params), changes))
    with pytest.raises(ValueError, match=rf"model.safetensors: the tensors are not those(?s:.*){message}"):
        load(folder, lone_mesh)


def test_a_base_model_without_prefix_gets_advice(tmp_path, params, lone_mesh):
    named = {name.removeprefix("model."): values for name, values in tensors(params).items()}
    with pytest.raises(ValueError, match=r"29 missing(?s:.*)29 unexpected(?s:.*)the names lack 'model.'"):
        load(write(tmp_path / "m", named), lone_mesh)


def test_long_lists_are_cut(tmp_path, lone_mesh, params):
    with pytest.raises(ValueError, match=r"29 missing: ([^,]+, ){5}\.\.\.$"):
        load(write(tmp_path / "m", {"model.norm.weight": np.asarray(params["norm"])}), lone_mesh)


def test_rotary_buffers_of_old_checkpoints_are_ignored(tmp_path, params, lone_mesh):
    buffers = {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": np.zeros(4, np.float32) for layer in range(3)}
    assert_equal(params, load(write(tmp_path / "m", tensors(params) | buffers), lone_mesh))


def test_a_tied_model_may_lack_the_head_or_repeat_the_embedding_but_not_have_another(tmp_path, params, lone_mesh):
    tied = {name: leaf for name, leaf in params.items() if name != "lm_head"}
    named = tensors(tied, TIED)
    assert_equal(tied, load(write(tmp_path / "a", named), lone_mesh, TIED))
    head = named["model.embed_tokens.weight"].copy()
    assert_equal(tied, load(write(tmp_path / "b", named | {"lm_head.weight": head}), lone_mesh, TIED))
    head[263, 31] += 1
    for other in (head, head[:-1]):
        folder = write(tmp_path / "c", named | {"lm_head.weight": np.ascontiguousarray(other)})
        with pytest.raises(ValueError, match=r"lm_head.weight has other values; set tie_word_embeddings to false"):
            load(folder, lone_mesh, TIED)


def test_nan_in_a_weight_is_refused_by_name(tmp_path, params, lone_mesh):
    named = tensors(params)
    broken = named["model.layers.1.mlp.up_proj.weight"].copy()
    broken[5, 6] = np.nan
    folder = write(tmp_path / "m", named | {"model.layers.1.mlp.up_proj.weight": broken})
    with pytest.raises(ValueError, match=r"model.layers.1.mlp.up_proj.weight holds 1 NaN or infinite"):
        load(folder, lone_mesh)


@pytest.mark.parametrize("limit", [10_000, 1_000_000_000])
def test_export_and_back_is_bit_exact(tmp_path, params, mesh, lone_mesh, limit):
    sharded = load(write(tmp_path / "m", tensors(params)), mesh)
    folder = tmp_path / "out"
    convert.export(sharded, CONFIG, folder, Tokenizer.bytes(), limit=limit)
    assert_equal(params, load(folder, lone_mesh))
    head = json.loads((folder / "config.json").read_text())
    assert models.parse(head) == CONFIG
    assert (head["architectures"], head["dtype"], head["eos_token_id"]) == (["LlamaForCausalLM"], "float32", 257)
    assert Tokenizer.from_folder(folder).fingerprint == Tokenizer.bytes().fingerprint
    assert (folder / "model.safetensors").exists() == (limit > 10_000)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_bfloat16_export_rounds_once(tmp_path, params, lone_mesh):
    convert.export(params, CONFIG, tmp_path / "a", dtype="bfloat16")
    narrow = load(tmp_path / "a", lone_mesh)
    np.testing.assert_array_equal(
        np.asarray(narrow["embed_tokens"]), np.asarray(params["embed_tokens"].astype("bfloat16").astype("float32"))
    )
    convert.export(narrow, CONFIG, tmp_path / "b", dtype="bfloat16")
    assert_equal(narrow, load(tmp_path / "b", lone_mesh))
    assert not (tmp_path / "a" / "tokenizer.json").exists()


def test_export_refuses_before_it_writes(tmp_path, params):
    folder = tmp_path / "out"
    with pytest.raises(ValueError, match=r"dtype 'float16' is not one of float32, bfloat16"):
        convert.export(params, CONFIG, folder, dtype="float16")
    with pytest.raises(ValueError, match=r"the parameters to export: 'lm_head'"):
        convert.export(params, TIED, folder)
    small = models.DecoderConfig(**(vars(CONFIG) | {"vocab": 200}))
    cut = params | {name: params[name][:200] for name in ("embed_tokens", "lm_head")}
    with pytest.raises(ValueError, match=r"tokenizer bytes does not belong to this model"):
        convert.export(cut, small, folder, Tokenizer.bytes())
    assert list(tmp_path.iterdir()) == []


def test_export_does_not_touch_a_folder_that_holds_something(tmp_path, params):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not empty"):
        convert.export(params, CONFIG, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    empty = tmp_path / "empty"
    empty.mkdir()
    convert.export(params, CONFIG, empty)
    assert (empty / "model.safetensors").exists()


def test_an_export_that_fails_midway_leaves_nothing(tmp_path, params):
    broken = trees.merge(params, {"norm": params["norm"] * np.float32(np.nan)})
    with pytest.raises(ValueError, match=r"model.norm.weight holds 32 NaN"):
        convert.export(broken, CONFIG, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


# A model of 300 MB is written and read by a process of its own, which watches its resident memory.
MEMORY = """
import sys
from pathlib import Path
import jax, numpy as np
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", int(sys.argv[2]))
from lingregions import mesh as meshes, models, tree as trees
from lingregions.models import convert, safetensors

config = models.DecoderConfig(
    vocab=8192, embed=512, mlp=2048, layers=16, heads=8, kv_heads=8, head_dim=64, context=64, tied=False
)
declaration = models.declare(config)
shapes = {name: each.matrix for _, each in trees.walk(declaration) for name in each.names()}
rng = np.random.default_rng(0)
folder = Path(sys.argv[1])
safetensors.save(folder, shapes, lambda name: rng.standard_normal(shapes[name], np.float32), "float32", 100_000_000)

def peak():  # of this program alone: `ru_maxrss` starts with the peak of the process that forked it
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024

mesh = meshes.build(fsdp=-1)
jax.block_until_ready(jax.device_put(np.zeros(8), meshes.replicated(mesh)))
before = peak()
params = convert.load(folder, config, meshes.shardings(declaration, mesh))
loaded = peak()
convert.export(params, config, folder / "out")
print(trees.count(params) * 4, loaded - before, peak() - loaded)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of resident memory from /proc")
@pytest.mark.parametrize("devices", [1, 8])
def test_the_model_is_never_twice_in_memory(tmp_path, devices):
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path), str(devices)], capture_output=True, text=True, check=True
    )
    size, loading, exporting = map(int, done.stdout.split())
    assert size > 300e6
    # The parameters, and a stacked leaf of 67 MB: on its way from the host, and as it arrives.
    assert size * 0.9 < loading < size + 2 * 67e6 + 32e6
    # Matrices of 4 MB (the embedding: 17 MB) and about 60 MB of compiler; far from a second model.
    assert exporting < size / 2


def transformers():
    return pytest.importorskip("torch"), pytest.importorskip("transformers")


@pytest.mark.parity
@pytest.mark.parametrize("config", [CONFIG, TIED], ids=["untied", "tied"])
def test_transformers_loads_an_export_bit_for_bit(tmp_path, config):
    torch, library = transformers()
    params = models.initialize(config, jax.random.key(1))
    convert.export(params, config, tmp_path / "m", Tokenizer.bytes(), limit=20_000)
    model, report = library.AutoModelForCausalLM.from_pretrained(
        tmp_path / "m", dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    state = model.state_dict()
    for name, values in tensors(params, config).items():
        np.testing.assert_array_equal(state[name].numpy(), values)
    model.save_pretrained(tmp_path / "back")
    mesh = meshes.build(devices=jax.devices()[:1])
    assert_equal(params, load(tmp_path / "back", mesh, config))
    assert models.parse(json.loads((tmp_path / "back" / "config.json").read_text())) == config


def test_the_same_export_again_changes_nothing_and_another_is_refused(tmp_path, params):
    folder = tmp_path / "out"
    convert.export(params, CONFIG, folder)
    before = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}
    convert.export(params, CONFIG, folder)
    other = jax.tree.map(lambda leaf: leaf + np.float32(1), params)
    with pytest.raises(FileExistsError, match="not empty"):
        convert.export(other, CONFIG, folder)
    assert {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()} == before
    assert list(tmp_path.iterdir()) == [folder]
