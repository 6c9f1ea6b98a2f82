"""Other probes: LAPE neurons on a table by hand, their twins, their parameters, the linear probe, changed texts."""

import json
import math
import unicodedata
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lingregions import models, regions, settings
from lingregions import tree as trees
from lingregions.experiments import STUDIES, neurons, probes
from lingregions.models import Compute, DecoderConfig
from lingregions.run import Run

pytestmark = pytest.mark.usefixtures("one_device")

CONFIG = Path(__file__).parent.parent / "configs" / "probes.py"
STUDY = STUDIES["probes"]

# Probabilities in two languages of five neurons in each of two layers: the first neuron of each layer is a language's.
ACTIVE = np.array([[[0.9, 0.9, 0.5, 0.1, 0.0], [0.0, 0.8, 0.6, 0.7, 0.0]], [[0.0, 0.9, 0.5, 0.3, 0.0], [0.8] * 5]])


def chosen(**values):
    small = {
        "score.languages": ("es", "ru"),
        "score.samples": 2,
        "evaluate.languages": ("es", "ru", "en"),
        "probes.texts": ("as it is", "shuffled words"),
        "machine.progress": "none",
        "machine.pictures": False,
    }
    return settings.load(f"{CONFIG}:tiny", values=small | values)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder, wanted = tmp_path_factory.mktemp("probes") / "run", chosen()
    with Run.open(folder, wanted) as run:
        STUDY.perform(wanted, run)
    return folder


def test_entropies_by_hand():
    found = neurons._entropies(ACTIVE)
    # Alone in one language 0; alike in both ln 2, and so is what is never active; 1 to 3 shares of a quarter.
    third = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    np.testing.assert_allclose(found[0], [0, math.log(2), math.log(2), third, math.log(2)], rtol=1e-12)
    np.testing.assert_allclose(found[1, :2], [0, math.log(2)], rtol=1e-12)


def test_a_language_has_the_low_entropies_among_what_is_often_active(monkeypatch):
    monkeypatch.setattr(neurons, "_OFTEN", 0.5)  # above 0.55 in the first language: five of its ten neurons
    first = neurons.specific(ACTIVE, 0, 1)
    assert np.argwhere(first).tolist() == [[0, 0]]
    # The other of entropy zero is never active in it; the next ones are 0.6, 0.7 and 0.8 against 0.8.
    assert np.argwhere(neurons.specific(ACTIVE, 0, 2)).tolist() == [[0, 0], [1, 2]]
    assert neurons.specific(ACTIVE, 0, 100).sum() == 5
    # In the second language half are at 0.8: the lowest entropies are those that the first never or seldom shares.
    assert np.argwhere(neurons.specific(ACTIVE, 1, 2)).tolist() == [[1, 0], [1, 4]]


def test_twins_are_as_active_and_of_the_same_layer():
    own = np.zeros((2, 5), bool)
    own[0, 0] = own[1, 2] = True
    closed = np.zeros((2, 5), bool)
    closed[1, 3] = True  # 0.7, which would be nearest to 0.6 but for 0.8
    assert np.argwhere(neurons.twins(ACTIVE[0], own, closed)).tolist() == [[0, 1], [1, 1]]


def test_activations_are_counted_where_gates_open():
    """One layer whose gate reads the sign of the token's first feature; no attention, no context."""
    config = DecoderConfig(vocab=4, embed=4, mlp=3, layers=2, heads=2, kv_heads=2, head_dim=2, context=8)
    params = models.initialize(config, jax.random.key(0))
    leaves = {path: jnp.zeros_like(leaf) for path, leaf in trees.flatten(params).items()}
    for path in ("layers.input_layernorm", "layers.post_attention_layernorm", "norm"):
        leaves[path] = jnp.ones_like(leaves[path])
    leaves["embed_tokens"] = leaves["embed_tokens"].at[:, 0].set(jnp.float32([1, -1, 2, 0]))
    gate = jnp.float32([1, -1, 0])  # open for tokens 0 and 2; for token 1; never
    leaves["layers.mlp.gate_proj"] = leaves["layers.mlp.gate_proj"].at[:, :, 0].set(gate[None])
    tokens, segments = np.int32([[0, 1, 2, 0, 3, 1]]), np.int32([[1, 1, 1, 2, 2, 0]])
    found = models.activation_counts(config, Compute(block=4), trees.unflatten(leaves), tokens, segments)
    np.testing.assert_array_equal(found, [[3, 1, 0], [3, 1, 0]])


def test_the_density_of_a_region_by_hand():
    region, own = np.zeros((3, 2, 4), np.int64), np.zeros((2, 4), bool)
    own[0, 0] = own[1, :2] = True
    region[:, 0] = [2, 1, 1, 0]  # 12 of the layer, a quarter of them by chance; 6 are there
    region[0, 1] = [0, 2, 2, 0]  # 4 of the layer, half by chance; 2 are there
    assert probes._density(region, own, 0)[0] == pytest.approx((6 + 2) / (3 + 2))


def test_a_probe_tells_what_can_be_told():
    rng = np.random.default_rng(0)
    labels = np.arange(300) % 3
    states = rng.normal(size=(300, 5))
    states[:, :3] += 20 * np.eye(3)[labels]
    assert (probes._classify(states[:150], labels[:150], states[150:], 3) == labels[150:]).all()
    noise = rng.normal(size=(300, 5))
    assert 0.15 < (probes._classify(noise[:150], labels[:150], noise[150:], 3) == labels[150:]).mean() < 0.55


def test_changed_texts():
    text = "the quick brown fox jumps over the lazy dog"
    rng = np.random.default_rng(0)
    shuffled = probes._shuffle(text, rng)
    assert shuffled != text
    assert sorted(shuffled.split()) == sorted(text.split())
    assert sorted(probes._shuffle("人人生而自由在尊严和权利上一律平等", rng)) == sorted(
        "人人生而自由在尊严和权利上一律平等"
    )
    long = text * 100
    misspelt = probes._misspell(long, rng)
    assert [each.isalpha() for each in misspelt] == [each.isalpha() for each in long]
    # A tenth of the letters is drawn, and one in about twenty of these comes out as it was.
    changed = sum(a != b for a, b in zip(misspelt, long, strict=True)) / sum(each.isalpha() for each in long)
    assert 0.08 < changed < 0.11


@pytest.mark.parametrize(
    ("text", "latin"),
    [
        ("Все люди", "Vse lyudi"),
        ("모든 인간", "MoDeun InGan"),
        ("人人", "RenRen"),
        ("Tất cả", "Tat ca"),
        ("all", "all"),
    ],
)
def test_other_letters_for_the_same_text(text, latin):
    rng = np.random.default_rng(0)
    assert probes._CHANGES["transliteration"](text, rng) == latin
    disguised = probes._CHANGES["another script"](text, rng)
    plain = unicodedata.normalize("NFD", text.lower())
    assert [each.isalpha() for each in disguised] == [each.isalpha() for each in plain]
    pairs = {(a, b) for a, b in zip(plain, disguised, strict=True) if a.isalpha()}
    assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})  # one for one
    assert all("\u10d0" <= b <= "\u10f0" for _, b in pairs)


def test_many_letters_become_those_of_a_script_that_has_many():
    text = "".join(map(chr, range(0x4E00, 0x4E00 + 200)))
    disguised = probes._disguise(text, np.random.default_rng(0))
    assert len(set(disguised)) == 200
    assert all("\ua000" <= each <= "\ua48c" for each in disguised)
    with pytest.raises(ValueError, match="2000 different letters"):
        probes._disguise("".join(map(chr, range(0x4E00, 0x4E00 + 2000))), np.random.default_rng(0))


def test_removals_are_of_one_size_and_neurons_are_whole(whole):
    facts = json.loads((whole / "done" / "neurons.json").read_text())["facts"]["found"]
    for code in ("es", "ru"):
        lape, own, twins = (
            regions.load(whole / "regions" / f"{name}.safetensors")
            for name in (f"lape-{code}-neurons", f"monolingual-{code}-mlp", f"matched-to-{code}-neurons")
        )
        width = 3 * 64  # of the tiny model: a row of gate, a row of up, a column of down
        assert len(lape) == len(twins) == width * facts[code]["count"]
        assert abs(len(own) - len(lape)) <= width / 2
        assert len(lape & twins) == 0
        held = neurons.held(lape)
        assert set(np.unique(held)) == {0, 64}
        assert (held[0] == held[1]).all()
        assert (held[0] == held[2]).all()
        layers = (np.count_nonzero(neurons.held(each)[0], axis=1).tolist() for each in (lape, twins))
        assert next(layers) == next(layers)


def test_the_table_of_changed_texts_and_the_probe(whole):
    rows = json.loads((whole / "tables" / "texts_changed.json").read_text())["rows"]
    assert [row[0] for row in rows] == ["two halves", "as it is", "shuffled words"]
    assert all(0 < row[1][0] <= 1 and 0 < row[2] <= 1 for row in rows)
    assert rows[1][1][0] > rows[2][1][0]
    assert rows[1][2] > rows[2][2]
    series = json.loads((whole / "tables" / "probe.json").read_text())["series"]
    assert set(series) == {"base", "top 1%", "matched 1% seed 0"}
    first = {name: each["points"][0] for name, each in series.items()}
    assert set(map(tuple, first.values())) == {tuple(first["base"])}  # what enters layer 0 is the embedding
    assert [point[0] for point in series["base"]["points"]] == [0, 1, 2]
    assert all(1 / 3 < point[1] <= 1 for point in series["base"]["points"])


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"evaluate.languages": ("es", "en")}, "ru is scored but not evaluated"),
        ({"score.languages": ("es",)}, "score.languages names one language"),
        ({"score.samples": 1}, "score.samples is 1"),
        ({"probes.texts": ("upside down",)}, "there is no change of texts 'upside down'"),
    ],
)
def test_what_cannot_be_compared_is_refused(values, said):
    with pytest.raises(ValueError, match=said):
        STUDY.plan(chosen(**values))
