"""Models: the declaration against the modules, Hugging Face's names and configs, and what a decoder may not do."""

import dataclasses
import json
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from hypothesis import given
from hypothesis import strategies as st

from lingregions import mesh as meshes
from lingregions import models
from lingregions import tree as trees
from lingregions.models import attention, decoder, roles, rotary
from lingregions.models.config import DecoderConfig, RotaryScaling
from lingregions.models.parameter import Parameter

PRESETS = sorted(models.PRESETS)


def shrink(config: DecoderConfig) -> DecoderConfig:
    """A model of the same family with everything that it has, small enough to run: windows shorter than the texts."""
    layers = 7 if config.local_theta else 4
    sizes: dict[str, Any] = {"vocab": 44, "embed": 24, "mlp": 32, "layers": layers, "heads": 4, "kv_heads": 2}
    sizes |= {"head_dim": 6, "context": 64, "std": 0.3, "window": config.window and 3}
    sizes |= {"local": config.local[:layers], "unrotated": config.unrotated[:layers]}
    return dataclasses.replace(config, **sizes)


# What tests can run: the tiny preset, one model a family, and another architecture than the shared decoder.
SMALL: dict[str, Any] = {"tiny": models.PRESETS["tiny"], "toy": toy.ToyConfig()} | {
    config.family: shrink(config) for config in models.PRESETS.values() if config.family != "llama"
}


@pytest.fixture(autouse=True, scope="module")
def architectures():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.ARCHITECTURES, "toy", toy.ARCHITECTURE)
        yield


LLAMA = [name for name in PRESETS if models.PRESETS[name].family == "llama"]


def small(**changes: Any) -> DecoderConfig:
    sizes = {"vocab": 11, "embed": 8, "mlp": 12, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 2, "context": 64}
    return DecoderConfig(**sizes | {"std": 0.5} | changes)


# The declaration.

COUNTED: set[str] = set()


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        # V D + L (D (N H) + 2 D (K H) + (N H) D + 3 D F + 2 D) + D, and V D more where the head is not tied.
        ("tiny", 264 * 64 + 2 * (64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 128 + 2 * 64) + 64 + 264 * 64),
        ("thirty", 15_406_400),
        ("smollm2-135m", 134_515_008),
        ("llama2-7b", 6_738_415_616),
        ("llama2-13b", 13_015_864_320),
        ("llama2-70b", 68_976_648_192),
        ("llama3.2-1b", 1_235_814_400),
        ("llama3.1-8b", 8_030_261_248),
        ("mistral-7b", 7_241_732_096),
        ("qwen2.5-0.5b", 494_032_768),
        ("qwen2.5-7b", 7_615_616_512),
        ("qwen3-0.6b", 596_049_920),
        ("gemma2-2b", 2_614_341_888),
        ("gemma3-270m", 268_098_176),
        ("gemma3-1b", 999_885_952),
        ("gemma3-4b", 3_880_263_168),
        ("olmo2-1b", 1_484_916_736),
        ("phi3-mini-4k", 3_821_079_552),
        ("smollm3-3b", 3_075_098_624),
    ],
)
def test_presets_have_the_published_number_of_parameters(preset, expected):
    config = models.PRESETS[preset]
    assert trees.count(models.declare(config)) == expected
    assert trees.count(jax.eval_shape(lambda key: models.initialize(config, key), jax.random.key(0))) == expected
    COUNTED.add(preset)


def test_every_preset_is_counted():
    assert sorted(COUNTED) == PRESETS


@pytest.mark.parametrize("preset", PRESETS)
def test_the_modules_make_the_declared_tree(preset):
    config = models.PRESETS[preset]
    module = models.architecture(config).module(config, models.Compute())
    ids = jax.ShapeDtypeStruct((1, 2), np.int32)
    made = jax.eval_shape(module.init, jax.random.key(0), ids, ids)
    trees.assert_parallel(models.declare(config), made["params"], "modules")
    assert {leaf.dtype for leaf in jax.tree.leaves(made["params"])} == {jnp.dtype("float32")}


@pytest.mark.parametrize("preset", LLAMA)
def test_every_tensor_of_hugging_face_is_named_once_with_its_shape(preset):
    config = models.PRESETS[preset]
    D, F, H = config.embed, config.mlp, config.head_dim
    layer = {
        "input_layernorm": (D,),
        "post_attention_layernorm": (D,),
        "self_attn.q_proj": (config.heads * H, D),
        "self_attn.k_proj": (config.kv_heads * H, D),
        "self_attn.v_proj": (config.kv_heads * H, D),
        "self_attn.o_proj": (D, config.heads * H),
        "mlp.gate_proj": (F, D),
        "mlp.up_proj": (F, D),
        "mlp.down_proj": (D, F),
    }
    expected = {f"model.layers.{i}.{name}.weight": size for i in range(config.layers) for name, size in layer.items()}
    expected |= {"model.embed_tokens.weight": (config.vocab, D), "model.norm.weight": (D,)}
    expected |= {} if config.tied else {"lm_head.weight": (config.vocab, D)}
    found = [(name, each.matrix) for _, each in trees.walk(models.declare(config)) for name in each.names()]
    assert len(found) == len(expected)
    assert dict(found) == expected


@pytest.mark.parametrize("preset", PRESETS)
def test_an_axis_of_a_name_has_one_length(preset):
    lengths: dict[str, set[int]] = {}
    for path, each in trees.walk(models.declare(models.PRESETS[preset])):
        assert each.stacked == path.startswith("layers.") == roles.ROLES[each.role].stacked
        assert each.path == path
        for axis, size in zip(each.axes, each.shape, strict=True):
            lengths.setdefault(axis, set()).add(size)
    assert {axis: len(sizes) for axis, sizes in lengths.items()} == dict.fromkeys(lengths, 1)
    assert lengths.keys() - {"features"} == {"layers", "embed", "heads", "kv_heads", "mlp", "vocab"}


def test_a_parameter_knows_its_matrices():
    stacked = Parameter("up", (2, 5, 3), ("layers", "mlp", "embed"), 0.1)
    assert (stacked.stacked, stacked.matrix) == (True, (5, 3))
    assert stacked.names() == ["model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"]
    plain = Parameter("final_norm", (3,), ("embed",), None)
    assert (plain.stacked, plain.matrix, plain.names()) == (False, (3,), ["model.norm.weight"])
    np.testing.assert_array_equal(np.asarray(plain.initialize(jax.random.key(0))), np.ones(3, np.float32))


# Initialisation.


@pytest.fixture(scope="module", params=SMALL)
def initialized(request, architectures):
    config = SMALL[request.param]
    return config, models.initialize(config, jax.random.key(3))


def test_each_architecture_is_run():
    assert {config.family for config in SMALL.values()} == set(models.ARCHITECTURES)


def test_the_same_values_on_every_mesh(initialized, mesh):
    config, params = initialized
    places = meshes.shardings(models.declare(config), mesh)
    sharded = models.initialize(config, jax.random.key(3), places)
    for path, leaf in trees.walk(sharded):
        assert leaf.sharding == trees.flatten(places)[path]
        np.testing.assert_array_equal(np.asarray(leaf), np.asarray(trees.flatten(params)[path]))
    assert trees.fingerprint(sharded) == trees.fingerprint(params)


def test_values_are_as_declared_and_each_array_has_its_own(initialized):
    config, params = initialized
    for path, declared in trees.walk(models.declare(config)):
        values = np.asarray(trees.flatten(params)[path])
        assert values.dtype == np.float32
        if declared.scale is None:
            np.testing.assert_array_equal(values, np.full(declared.shape, 1 - declared.offset, np.float32))
        else:
            # The standard deviation of n normal values is known to about 1 / sqrt(2 n).
            assert abs(values.std() / declared.scale - 1) < 5 / math.sqrt(2 * values.size), path
            assert abs(values.mean()) < 5 * declared.scale / math.sqrt(values.size), path
    assert trees.fingerprint(params) != trees.fingerprint(models.initialize(config, jax.random.key(4)))
    gate, up = params["layers"]["mlp"]["down_proj"].swapaxes(1, 2), params["layers"]["mlp"]["up_proj"]
    assert not np.array_equal(gate, up)
    assert not np.array_equal(gate[0], gate[1])


def test_shapes_carry_the_shardings(mesh):
    config = models.PRESETS["tiny"]
    places = meshes.shardings(models.declare(config), mesh)
    for path, each in trees.walk(models.shapes(config, places)):
        declared = trees.flatten(models.declare(config))[path]
        assert (each.shape, each.dtype, each.sharding) == (declared.shape, np.float32, trees.flatten(places)[path])
    assert {each.sharding for each in jax.tree.leaves(models.shapes(config))} == {None}


# Configs of Hugging Face.

LLAMA2_7B = {
    "_name_or_path": "meta-llama/Llama-2-7b-hf",
    "architectures": ["LlamaForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 11008,
    "max_position_embeddings": 4096,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "transformers_version": "4.31.0.dev0",
    "use_cache": True,
    "vocab_size": 32000,
}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
SMOLLM2 = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "hidden_size": 576,
    "initializer_range": 0.041666666666666664,
    "intermediate_size": 1536,
    "is_llama_config": True,
    "max_position_embeddings": 8192,
    "model_type": "llama",
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "rms_norm_eps": 1e-05,
    "rope_interleaved": False,
    "rope_scaling": None,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
    "vocab_size": 49152,
}


def test_published_configs_are_the_presets():
    assert models.parse(LLAMA2_7B) == models.PRESETS["llama2-7b"]
    assert models.parse(SMOLLM2) == models.PRESETS["smollm2-135m"]


def test_llama_3_1_is_read():
    changes = {
        "vocab_size": 128256,
        "intermediate_size": 14336,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "rope_theta": 500000.0,
        "rope_scaling": LLAMA3 | {"rope_type": "llama3"},
    }
    config = models.parse(LLAMA2_7B | changes)
    assert config.rope_scaling == RotaryScaling("llama3", 8.0, 1.0, 4.0, 8192)
    assert trees.count(models.declare(config)) == 8_030_261_248


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_survives_its_config_file(preset):
    written = json.loads(json.dumps(models.dump(models.PRESETS[preset])))
    assert written["model_type"] in models.ARCHITECTURES
    assert models.parse(written) == models.PRESETS[preset]


@st.composite
def configs(draw: st.DrawFn) -> DecoderConfig:
    size = st.integers(1, 2**20)
    kv_heads, context = draw(st.integers(1, 64)), draw(size)
    factor = st.floats(1.0, 64.0)
    scaling = draw(
        st.one_of(
            st.none(),
            st.builds(RotaryScaling, st.just("linear"), factor, original_context=st.just(context)),
            st.builds(RotaryScaling, st.just("llama3"), factor, st.floats(0.5, 2.0), st.floats(2.5, 8.0), size),
        )
    )
    return DecoderConfig(
        vocab=draw(size),
        embed=draw(size),
        mlp=draw(size),
        layers=draw(size),
        heads=kv_heads * draw(st.integers(1, 16)),
        kv_heads=kv_heads,
        head_dim=2 * draw(st.integers(1, 256)),
        context=context,
        eps=draw(st.floats(1e-12, 1e-2)),
        rope_theta=draw(st.floats(1.0, 1e8)),
        rope_scaling=scaling,
        tied=draw(st.booleans()),
        std=draw(st.floats(1e-6, 1.0)),
    )


@given(configs())
def test_every_config_survives_its_file(config):
    assert models.parse(json.loads(json.dumps(models.dump(config)))) == config


@given(configs())
def test_old_and_new_rope_keys_say_the_same(config):
    new = models.dump(config)
    rope = dict(new["rope_parameters"])
    old = {key: value for key, value in new.items() if key != "rope_parameters"} | {
        "rope_theta": rope.pop("rope_theta")
    }
    kind = rope.pop("rope_type")
    for key in ("rope_type", "type"):
        scaling = None if kind == "default" else rope | {key: kind}
        assert models.parse(old | {"rope_scaling": scaling}) == config


def test_absent_keys_have_the_defaults_of_hugging_face():
    needed = (
        "model_type",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "vocab_size",
    )
    config = models.parse({key: LLAMA2_7B[key] for key in needed})
    expected = {"kv_heads": 32, "head_dim": 128, "context": 2048, "eps": 1e-6, "rope_theta": 10_000.0, "tied": False}
    assert {key: getattr(config, key) for key in expected} == expected
    assert (config.rope_scaling, config.std) == (None, 0.02)
    for key in needed:
        with pytest.raises(ValueError, match=f"no '{key}'" if key != "model_type" else "model_type None"):
            models.parse({other: LLAMA2_7B[other] for other in needed if other != key})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2' is not supported; supported: llama"),
        ({"hidden_act": "gelu"}, r"maths that is not implemented: hidden_act = 'gelu' \(supported: 'silu'\)"),
        ({"attention_bias": True}, "attention_bias = True"),
        ({"mlp_bias": True}, "mlp_bias = True"),
        ({"attention_dropout": 0.1}, "attention_dropout = 0.1"),
        ({"sliding_window": 4096}, r"sliding_window = 4096 \(supported: None\)"),
        ({"rope_interleaved": True}, "rope_interleaved = True"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5"),
        ({"hidden_act": "relu", "mlp_bias": True}, "mlp_bias = True .*; hidden_act = 'relu'"),
        (
            {"logit_scale": 2.0, "qk_norm": True},
            "keys that are not known here and might change .*: logit_scale, qk_norm",
        ),
        (
            {"rope_scaling": {"rope_type": "su", "factor": 4.0}},
            "rope type 'su' is not implemented; supported: default",
        ),
        ({"rope_scaling": {"type": "yarn"}}, "rope type 'yarn'|'yarn' needs"),
        ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}}, "rope type 'longrope'"),
        ({"rope_scaling": {"type": "linear"}}, r"'linear' needs the keys \['factor'\], the config has \[\]"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "beta": 1}}, r"the config has \['beta', 'factor'\]"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "'llama3' needs the keys .*low_freq_factor"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"num_key_value_heads": 5}, "32 heads cannot share 5 kv heads"),
        ({"num_hidden_layers": 0}, "layers is 0; it must be at least 1"),
        ({"head_dim": 3}, "head_dim is 3; rotary positions need an even one"),
        ({"vocab_size": None}, "no 'vocab_size'"),
    ],
)
def test_what_would_change_the_maths_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        models.parse(LLAMA2_7B | changes)


@pytest.mark.parametrize("key", ["some_new_switch", "use_sliding_window"])
def test_an_unknown_key_without_a_value_changes_nothing(key):
    assert models.parse(LLAMA2_7B | {key: None}) == models.PRESETS["llama2-7b"]


def test_a_config_of_no_architecture_is_refused():
    with pytest.raises(TypeError, match="dict is no config of the architectures llama"):
        models.declare({"hidden_size": 8})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "float16"}, "compute.dtype is 'float16'; it must be one of float32, bfloat16"),
        ({"remat": "all"}, "compute.remat is 'all'"),
        ({"attention": "flash"}, "compute.attention is 'flash'; it must be one of auto, blocked, splash"),
        ({"block": 0}, "compute.block is 0; it must be at least 1"),
        ({"chunk": -1}, "compute.chunk is -1"),
        ({"unroll": 0}, "compute.unroll is 0"),
    ],
)
def test_compute_settings_that_do_not_exist_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        models.Compute(**changes)


# Rotary positions and norms, by hand.


def test_frequencies_by_hand():
    # theta 16, H 4: pairs turn by 16^0 = 1 and 16^(-1/2) = 1/4 a position.
    plain = small(head_dim=4, rope_theta=16.0)
    np.testing.assert_array_equal(rotary._frequencies(4, 16.0, plain.rope_scaling), np.float32([1, 0.25]))
    linear = dataclasses.replace(plain, rope_scaling=RotaryScaling("linear", 8.0))
    np.testing.assert_array_equal(rotary._frequencies(4, 16.0, linear.rope_scaling), np.float32([0.125, 0.03125]))
    # Wavelengths 2 pi and 8 pi = 25.13 in a context of 50: 50 / 25.13 = 1.989 lies between 1 and 3, so the second pair
    # is blended by (1.989 - 1) / (3 - 1) = 0.4947; the first, 50 / 6.28 = 7.96 > 3, is kept.
    blended = dataclasses.replace(plain, rope_scaling=RotaryScaling("llama3", 2.0, 1.0, 3.0, 50))
    blend = (50 / (8 * math.pi) - 1) / 2
    np.testing.assert_allclose(
        rotary._frequencies(4, 16.0, blended.rope_scaling), [1, (1 - blend) * 0.125 + blend * 0.25], rtol=1e-6
    )
    # In a context of 20 the second is longer than all of it: stretched.
    stretched = dataclasses.replace(plain, rope_scaling=RotaryScaling("llama3", 2.0, 1.0, 3.0, 20))
    np.testing.assert_allclose(rotary._frequencies(4, 16.0, stretched.rope_scaling), [1, 0.125], rtol=1e-6)


def test_rotate_turns_pairs_half_a_head_apart():
    turn = (jnp.float32([[[0.0, 1.0]]]), jnp.float32([[[1.0, 0.0]]]))  # 90 degrees for pair 0, none for pair 1
    found = rotary.rotate(jnp.float32([[[[1.0, 2.0, 3.0, 4.0]]]]), *turn)
    np.testing.assert_array_equal(np.asarray(found), np.float32([[[[-3.0, 2.0, 1.0, 4.0]]]]))


def test_position_zero_is_not_turned():
    cos, sin = rotary.angles(2, small().kinds[0], 3)
    assert cos.shape == sin.shape == (3, 1, 1)
    assert (float(cos[0, 0, 0]), float(sin[0, 0, 0])) == (1, 0)
    np.testing.assert_allclose(np.asarray(sin)[:, 0, 0], np.sin([0, 1, 2]), rtol=1e-6)


def test_the_norm_by_hand():
    # The mean square of (3, 4) is 12.5; with eps 3.5 the root is 4.
    found = decoder._normalize(jnp.float32([3.0, 4.0]), 3.5)
    np.testing.assert_allclose(np.asarray(found), [0.75, 1.0], rtol=1e-6)
    assert decoder._normalize(jnp.bfloat16([3.0, 4.0]), 3.5).dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(decoder._normalize(jnp.zeros(2), 1e-5)), np.zeros(2, np.float32))


# Attention: two implementations of one function.


def draw(seed: int, B: int, T: int, N: int, K: int, H: int) -> list[jax.Array]:
    keys = jax.random.split(jax.random.key(seed), 4)
    return [jax.random.normal(key, (B, T, heads, H)) for key, heads in zip(keys, (N, K, K, N), strict=True)]


SEGMENTS = np.int32([[1, 1, 1, 2, 2, 2, 2, 0, 0], [1, 1, 1, 1, 1, 1, 1, 1, 1]])


def by_hand(query, key, value, segments):
    """Attention of each query alone, in float64."""
    query, key, value = (np.asarray(each, np.float64) for each in (query, key, value))
    B, T, N, H = query.shape
    out = np.zeros(query.shape)
    for b, t, n in np.ndindex(B, T, N):
        k = n * key.shape[2] // N
        seen = [s for s in range(t + 1) if segments[b, s] == segments[b, t]]
        weights = np.exp([query[b, t, n] @ key[b, s, k] / math.sqrt(H) for s in seen])
        out[b, t, n] = (weights / weights.sum()) @ value[b, seen, k]
    return out


@pytest.fixture(scope="module")
def attended():
    query, key, value, cotangent = draw(0, 2, 9, 4, 2, 4)

    def run(implementation: str, block: int):
        def attend(query, key, value):
            return attention.attend(query, key, value, jnp.asarray(SEGMENTS), implementation, block)

        def both(query, key, value):
            out, pull = jax.vjp(attend, query, key, value)
            return out, *pull(cotangent)

        return jax.jit(both)(query, key, value)

    return run, run("reference", 1), by_hand(query, key, value, SEGMENTS)


@pytest.mark.parametrize("block", [2, 4, 128])
def test_blocks_of_any_size_give_the_values_and_gradients_of_one_einsum(attended, block):
    run, reference, expected = attended
    found = run("blocked", block)
    np.testing.assert_allclose(np.asarray(found[0]), expected, atol=2e-6)
    for ours, theirs in zip(found, reference, strict=True):
        np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), atol=5e-6)


@pytest.mark.parametrize("implementation", ["blocked", "reference", "splash"])
def test_huge_logits_stay_finite(implementation):
    query, key, value, _ = draw(1, 2, 9, 2, 2, 4)

    def total(query):
        return attention.attend(query, key, value, jnp.asarray(SEGMENTS), implementation, 8).sum()

    assert all(np.isfinite(each).all() for each in jax.jit(jax.value_and_grad(total))(query * 1e10))


# The decoder: what must hold for every architecture.


def run(config, params, tokens, segments, compute=None):
    compute = compute or models.Compute(block=4)
    step = jax.jit(models.hidden, static_argnums=(0, 1))
    return np.asarray(step(config, compute, params, jnp.asarray(tokens), jnp.asarray(segments))[0], np.float64)


@pytest.fixture(scope="module")
def sample(initialized):
    config, params = initialized
    tokens = np.random.default_rng(0).integers(0, config.vocab, SEGMENTS.shape).astype(np.int32)
    return config, params, tokens, run(config, params, tokens, SEGMENTS)


def test_hidden_is_finite_everywhere_even_in_padding(sample):
    config, params, _, hidden = sample
    assert hidden.shape == (*SEGMENTS.shape, config.embed)
    assert np.isfinite(hidden).all()
    assert models.head(config, params).shape == (config.vocab, config.embed)


def test_a_token_changes_nothing_before_it_nor_in_other_documents(sample):
    config, params, tokens, hidden = sample
    changed = tokens.copy()
    changed[0, 4] = (changed[0, 4] + 1) % config.vocab  # the second token of the second document
    found = run(config, params, changed, SEGMENTS)
    same = np.abs(found - hidden).max(-1) == 0
    assert same.tolist() == [[True, True, True, True, False, False, False, True, True], [True] * 9]


def test_a_document_is_the_same_wherever_it_stands(sample):
    # Rotary positions are relative: a document packed behind another one reads as it does alone.
    config, params, tokens, hidden = sample
    alone = np.zeros_like(tokens)
    alone[0, :4] = tokens[0, 3:7]
    found = run(config, params, alone, np.where(np.arange(9) < 4, 1, 0)[None] * np.int32([[1], [0]]))
    np.testing.assert_allclose(found[0, :4], hidden[0, 3:7], atol=2e-5)


@pytest.mark.parametrize(
    "compute",
    [
        models.Compute(attention="reference"),
        models.Compute(remat="full", block=3),
        models.Compute(remat="dots", unroll=2),
    ],
)
def test_how_it_is_run_changes_nothing_beyond_rounding(sample, compute):
    config, params, tokens, hidden = sample
    np.testing.assert_allclose(run(config, params, tokens, SEGMENTS, compute), hidden, atol=2e-5)


def test_bfloat16_is_close(sample):
    config, params, tokens, hidden = sample
    found = run(config, params, tokens, SEGMENTS, models.Compute(dtype="bfloat16", block=4))
    assert 1e-4 < np.linalg.norm(found - hidden) / np.linalg.norm(hidden) < 0.05


def test_eight_devices_give_what_one_gives(sample, mesh):
    config, params, tokens, hidden = sample
    placed = jax.device_put(params, meshes.shardings(models.declare(config), mesh))
    with jax.set_mesh(mesh):
        double = [meshes.place(np.concatenate([each, each]).astype(np.int32), mesh) for each in (tokens, SEGMENTS)]
        found = run(config, placed, *double)
    np.testing.assert_allclose(found, np.concatenate([hidden, hidden]), atol=2e-5)


@pytest.mark.parametrize("name", [name for name in SMALL if name != "toy"])
def test_captured_inputs_are_those_of_every_weight_in_the_layers(name):
    config = SMALL[name]
    params = models.initialize(config, jax.random.key(3))
    tokens = np.random.default_rng(0).integers(0, config.vocab, SEGMENTS.shape).astype(np.int32)
    step = jax.jit(models.hidden, static_argnums=(0, 1, 5))
    _, inputs = step(config, models.Compute(block=4), params, tokens, SEGMENTS, True)
    layers = trees.flatten(roles.restrict(models.declare(config), "decoder"))
    captured = trees.flatten(inputs)
    assert {path: captured[path].shape for path in layers} == {
        path: (each.shape[0], each.shape[-1]) for path, each in layers.items()
    }
    assert captured.keys() - layers.keys() == {"norm"}
    # q, k and v read the same; what the first layer reads first is the embedding, normed or not, padding left out.
    attended = inputs["layers"]["self_attn"]
    np.testing.assert_array_equal(np.asarray(attended["q_proj"]), np.asarray(attended["v_proj"]))
    entering = np.asarray(params["embed_tokens"], np.float64)[tokens] * (
        config.embed**0.5 if config.scaled_embedding else 1
    )
    found = attended["q_proj"]
    if config.norms != "after":
        entering = entering / np.sqrt((entering**2).mean(-1, keepdims=True) + config.eps)
        found = inputs["layers"]["input_layernorm"]
    expected = (entering**2 * (SEGMENTS != 0)[..., None]).sum((0, 1))
    np.testing.assert_allclose(np.asarray(found[0]), expected, rtol=1e-5)
    for path in set(layers) & {roles.path(f"{role}_bias") for role in "qkvo"}:
        np.testing.assert_array_equal(np.asarray(captured[path]), np.full(layers[path].shape, (SEGMENTS != 0).sum()))


def test_one_forward_pass_by_hand():
    # One layer whose projections are zero: the residual stream is the embedding, so the hidden state is its norm.
    config = small(layers=1, eps=0.0)
    params = jax.tree.map(lambda each: jnp.zeros(each.shape), models.shapes(config))
    gain = jnp.arange(1.0, 9.0)
    params |= {"norm": gain, "embed_tokens": jnp.eye(11, 8)}
    found = run(config, params, np.int32([[2, 5]]), np.int32([[1, 1]]))
    # A unit vector of 8 entries has the mean square 1/8, so its norm is sqrt(8) times itself.
    expected = np.zeros((1, 2, 8))
    expected[0, 0, 2], expected[0, 1, 5] = math.sqrt(8) * 3, math.sqrt(8) * 6
    np.testing.assert_allclose(found, expected, rtol=1e-6)
