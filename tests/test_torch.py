"""Live comparisons with torch and transformers: `make parity`. The golden files hold the same without torch.

Tiny models of fresh seeds in every case, and folders that go from one library to the other and back; SmolLM2 is in
test_torch_smollm2.py. `golden.write` computes the reference.
"""

import dataclasses
import functools
import json
import runpy
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import safetensors.numpy
from golden import cases, families
from golden.compare import assert_near, batch, distance, gradient_of, logits_of, stack

from lingregions import generate, models, regions, scoring
from lingregions import mesh as meshes
from lingregions import tree as trees
from lingregions.corpus.batch import Batch
from lingregions.models import convert
from lingregions.models.compute import Compute
from lingregions.models.huggingface import complete_config

pytestmark = pytest.mark.parity

EXAMPLE = Path(__file__).parent.parent / "examples" / "zero_region.py"
LOGITS, GRADIENTS, SCORES = 1e-4, 1e-4, 1e-4
SEEDS = (7, 8)
COMPUTES = {"blocked": Compute(block=16, chunk=7), "reference": Compute(attention="reference")}


@pytest.mark.parametrize("name", list(cases.CASES))
def test_golden_files_are_what_torch_computes(write: Any, name: str) -> None:
    arrays, about = write.compute(name)
    stored = safetensors.numpy.load_file(cases.HERE / f"{name}.safetensors")
    assert arrays.keys() == stored.keys()
    for key, values in arrays.items():
        # Float64 sums in another order, rounded to float32.
        np.testing.assert_allclose(stored[key], values, rtol=1e-6, atol=1e-9, err_msg=key)
    with safetensors.safe_open(cases.HERE / f"{name}.safetensors", "np") as file:
        kept = json.loads(file.metadata()["case"])
    np.testing.assert_allclose(kept["nll"], about["nll"], rtol=1e-12)
    assert {key: kept[key] for key in ("config", "seed", "weights")} == {
        key: about[key] for key in ("config", "seed", "weights")
    }


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", list(cases.CASES))
def test_reference_is_transformers(write: Any, name: str, attention: str) -> None:
    """The float64 reference, whose norms are replaced, against transformers' float32 model as it comes."""
    config = cases.CASES[name]
    weights, document = cases.weights(config, 3), cases.groups(config, 3)[0][0][0]
    with write.torch.no_grad():
        plain = write.logits(write.build(config, weights, attention), document).numpy()
        wide = write.logits(write.widen(write.build(config, weights)), document).numpy()
    assert plain.dtype == np.float32
    assert wide.dtype == np.float64
    np.testing.assert_allclose(plain, wide, atol=3e-5, rtol=0)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", list(cases.CASES))
def test_tiny_models(write: Any, name: str, seed: int) -> None:
    """Logits, losses, gradients and the scores of every rule, on weights and documents of a fresh seed."""
    raw = cases.CASES[name]
    config, weights, groups = models.parse(raw), cases.weights(raw, seed), cases.groups(raw, seed)
    params, model = stack(weights, config), write.widen(write.build(raw, weights))
    document = groups[0][0][0]
    compute = COMPUTES["blocked" if seed % 2 else "reference"]
    with write.torch.no_grad():
        expected = write.logits(model, document).numpy()
        nll = [write.nll(model, sample).item() for group in groups for sample in group]
    everything = [sample for group in groups for sample in group]
    packed = batch(everything)
    found = logits_of(config, compute)(params, packed.tokens, packed.segments)
    np.testing.assert_allclose(found[0], expected, atol=LOGITS, rtol=0)
    slope, loss = gradient_of(config, compute)(params, packed)
    np.testing.assert_allclose(loss.nll, nll, rtol=1e-5)
    assert_near(slope, stack(write.gradient(model, everything), config), GRADIENTS)
    reference = write.scores(model, groups)
    for weighting in scoring._WEIGHTINGS:
        rules = [key.split(".")[0] for key in reference if key.endswith(f".{weighting}")]
        assert set(rules) == set(scoring.RULES) - ({"magnitude", "wanda"} if weighting == "batch_mean" else set())
        definition = scoring.Definition(weighting=weighting, group=2)
        scorer = scoring.Scorer(config, compute, definition, rules=rules, micro=1)
        sums, tokens = scorer.start(params), 0
        for group in groups:
            sums, count, _ = scorer.add(params, sums, batch(group))
            tokens += count
        assert tokens == sum(write.targets(group) for group in groups)
        for rule in rules:
            each = stack(reference[f"{rule}.{weighting}"], config, "decoder")
            assert_near(scorer.finish(params, sums, tokens, rule), each, SCORES)


@pytest.fixture(scope="module")
def write_families() -> Any:
    """As `write`, for the families."""
    from golden import write_families

    return write_families


@pytest.mark.parametrize("seed", [7, 8])
@pytest.mark.parametrize("name", list(families.CASES))
def test_families(
    write: Any, write_families: Any, name: str, seed: int, tmp_path: Path, lone_mesh: jax.sharding.Mesh
) -> None:
    """Import, logits, loss, gradients, export and greedy continuation of every family, on a fresh seed."""
    case = families.CASES[name]
    model, _ = write_families.build(case, seed)
    model.save_pretrained(tmp_path / "theirs")
    raw = json.loads((tmp_path / "theirs" / "config.json").read_text())
    config = models.parse(complete_config(tmp_path / "theirs", raw))
    places = meshes.shardings(models.declare(config), lone_mesh)
    params = convert.load(tmp_path / "theirs", config, places)
    tokens = families.text(case, seed)
    ones = np.ones_like(tokens)
    prompt = tokens[0, :9].tolist()
    if not (config.rope_scaling and config.rope_scaling.by_length):
        ours = generate.greedy(config, Compute(block=16), params, [prompt], 20)
        assert ours == [write.continued(model, prompt, 20)]
    convert.export(params, config, tmp_path / "ours")
    again = write_families.transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", dtype=write_families.torch.float32
    )
    for tensor, values in model.state_dict().items():
        np.testing.assert_array_equal(again.state_dict()[tensor].numpy(), values.numpy())
    model = model.double()
    with write_families.torch.no_grad():
        expected = write_families.logits(model, tokens).numpy()
    found = np.asarray(logits_of(config, Compute(block=16))(params, tokens, ones))[0]
    cap = models.logit_softcap(config)
    found = found if cap is None else cap * np.tanh(found / cap)
    np.testing.assert_allclose(found, expected, atol=LOGITS, rtol=0)
    nll, gradients = write_families.gradient(model, tokens)
    ours, losses = gradient_of(config, Compute(block=16))(params, Batch(tokens, ones, ones))
    np.testing.assert_allclose(float(losses.nll[0]), nll, rtol=1e-5)
    for path, each in trees.walk(models.declare(config)):
        leaf = np.asarray(trees.flatten(ours)[path])
        for layer, (tensor, first) in enumerate(each.files()):
            part = gradients[tensor][first : first + each.matrix[0]]
            assert distance(leaf[layer] if each.stacked else leaf, part) < GRADIENTS, tensor


@pytest.mark.parametrize("name", list(cases.CASES))
def test_peaks(write: Any, name: str) -> None:
    raw = cases.CASES[name]
    weights, document = cases.weights(raw, 7), cases.groups(raw, 7)[0][0][0]
    config = models.parse(raw)
    found = models.activation_maxima(config, Compute(block=16), stack(weights, config), *cases.pack([[document]]))
    for ours, theirs in zip(
        found, models.ActivationMaxima(**write.peaks(write.build(raw, weights), document)), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", list(cases.CASES))
def test_greedy_continuation(write: Any, name: str, seed: int) -> None:
    """Token by token, prompts of several lengths in one batch against each alone, with and without a stop."""
    raw, count = cases.CASES[name], 40
    config, weights = models.parse(raw), cases.weights(raw, seed)
    random = np.random.RandomState(seed)
    prompts = [random.randint(0, config.vocab, length).tolist() for length in (5, 1, 33, 18)]
    model = write.build(raw, weights)
    run = functools.partial(generate.greedy, config, Compute(block=16), stack(weights, config), prompts, count)
    found = run()
    assert found == [write.continued(model, prompt, count) for prompt in prompts]
    stop = found[0][2]
    ended = run(stop=[stop])
    assert ended == [write.continued(model, prompt, count, stop) for prompt in prompts]
    assert ended != found


@pytest.mark.parametrize("name", list(cases.CASES))
def test_export_is_loaded_by_transformers(write: Any, name: str, tmp_path: Path) -> None:
    raw = cases.CASES[name]
    config, weights = models.parse(raw), cases.weights(raw, 11)
    convert.export(stack(weights, config), config, tmp_path / "model", limit=10_000)
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 1
    model, about = write.transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", dtype=write.torch.float32, output_loading_info=True
    )
    assert not any(about[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), about
    assert model.config.rms_norm_eps == config.eps
    for tensor, values in model.state_dict().items():
        expected = (
            weights["model.embed_tokens.weight"] if config.tied and tensor == "lm_head.weight" else weights[tensor]
        )
        np.testing.assert_array_equal(values.numpy(), expected)
    document = cases.groups(raw, 11)[0][0][0]
    with write.torch.no_grad():
        expected = write.logits(model, document).numpy()
    tokens, segments = cases.pack([[document]])
    found = logits_of(config, Compute(block=16))(stack(weights, config), tokens, segments)
    np.testing.assert_allclose(found[0], expected, atol=LOGITS, rtol=0)


@pytest.mark.parametrize("name", list(cases.CASES))
def test_folder_of_transformers_is_loaded(write: Any, name: str, tmp_path: Path, lone_mesh: jax.sharding.Mesh) -> None:
    raw = cases.CASES[name]
    weights = cases.weights(raw, 12)
    write.build(raw, weights).save_pretrained(tmp_path)
    config = models.parse(json.loads((tmp_path / "config.json").read_text()))
    # What only initialises random weights is transformers' default, and no part of the cases.
    assert dataclasses.replace(config, std=0.02) == models.parse(raw)
    found = convert.load(tmp_path, config, meshes.shardings(models.declare(config), lone_mesh))
    jax.tree.map(np.testing.assert_array_equal, found, stack(weights, config))


def test_the_example_zeroes_tied_models_and_refuses_what_it_cannot_change(tmp_path: Path) -> None:
    import torch
    import torch.distributed.tensor as sharding
    from transformers import LlamaConfig, LlamaForCausalLM

    zero = runpy.run_path(str(EXAMPLE))["zero"]
    sizes = {"vocab_size": 16, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, tie_word_embeddings=True))
    table, matrices = np.zeros((16, 8), bool), np.zeros((2, 16, 8), bool)
    table[3, 5] = True  # one entry: an index
    matrices[:, :9] = True  # most of them: packed bits
    path = tmp_path / "region.safetensors"
    regions.save(
        regions.Region({"embed_tokens": table, "layers": {"mlp": {"up_proj": matrices}}}, regions.Provenance()), path
    )
    before = {name: values.detach().clone() for name, values in model.named_parameters()}

    def unchanged() -> bool:
        return all(torch.equal(values, before[name]) for name, values in model.named_parameters() if not values.is_meta)

    last = model.model.layers[1].mlp.up_proj
    kept = last.weight
    last.weight = torch.nn.Parameter(kept.detach().to("meta"))
    with pytest.raises(ValueError, match=r"layers.1.mlp.up_proj.weight is offloaded, split or"):
        zero(model, path)
    assert unchanged()
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        mesh = torch.distributed.init_device_mesh("cpu", (1,))
        split = sharding.distribute_tensor(kept.detach(), mesh, [sharding.Shard(0)])
        last.weight = torch.nn.Parameter(split)
        with pytest.raises(ValueError, match="is offloaded, split or"):
            zero(model, path)
    finally:
        torch.distributed.destroy_process_group()
    last.weight = kept
    assert unchanged()
    assert zero(model, path) == 1 + 2 * 9 * 8
    assert model.lm_head.weight[3, 5] == 0
    assert torch.count_nonzero(model.lm_head.weight == 0) == 1
    for layer in model.model.layers:
        assert torch.count_nonzero(layer.mlp.up_proj.weight == 0) == 9 * 8
    # A gain that is used as 1 + w is removed by w = -1, which the file says of each matrix.
    gains = regions.Provenance(removal=(("layers.mlp.up_proj", -1.0),))
    regions.save(regions.Region({"layers": {"mlp": {"up_proj": matrices}}}, gains), path)
    zero(model, path)
    for layer in model.model.layers:
        assert torch.count_nonzero(layer.mlp.up_proj.weight == -1) == 9 * 8
    with pytest.raises(KeyError, match="the model has no parameter"):
        zero(torch.nn.Linear(2, 2), path)
