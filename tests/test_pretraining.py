"""Pre-training from scratch: vocabulary, 5-grams, blend, the study, and the model that the package brings."""

import collections
import json
import math

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lingregions import models, settings, train
from lingregions.corpus import corpus as corpora
from lingregions.corpus import ngram, vocabulary
from lingregions.corpus.source import UDHR
from lingregions.corpus.text import Reading
from lingregions.experiments import STUDIES, claims
from lingregions.main import main
from lingregions.models import source
from lingregions.models.tokenizer import Tokenizer

CODES = ("ar", "en", "ta", "zh")


def udhr(code: str, part: str = "all") -> str:
    (text,) = UDHR.documents(code, part, Reading())
    return text


def corpus(code: str, length: int = 16):
    return corpora.open("udhr", code, Tokenizer.bytes(), length=length)


# --- 5-grams ----------------------------------------------------------------------------------------------------------


def slow(trained: list[bytes], read: list[bytes], order: int) -> float:
    """Witten and Bell's interpolation, as it is written down."""
    follow: dict[bytes, collections.Counter[int]] = collections.defaultdict(collections.Counter)
    for text in trained:
        for place, byte in enumerate(text):
            for before in range(min(order - 1, place) + 1):
                follow[text[place - before : place]][byte] += 1

    def chance(context: bytes, byte: int) -> float:
        lower = chance(context[1:], byte) if context else 1 / 256
        seen = follow.get(context)
        if not seen:
            return lower
        return (seen[byte] + len(seen) * lower) / (seen.total() + len(seen))

    each = [
        -math.log2(chance(text[max(0, place - order + 1) : place], byte))
        for text in read
        for place, byte in enumerate(text)
    ]
    return sum(each) / len(each)


@given(
    st.lists(st.binary(max_size=12).map(lambda text: bytes(byte % 3 for byte in text)), max_size=4),
    st.lists(st.binary(min_size=1, max_size=12).map(lambda text: bytes(byte % 3 for byte in text)), min_size=1),
    st.integers(1, 7),
)
def test_ngrams_are_those_of_the_formula(trained, read, order):
    np.testing.assert_allclose(ngram.bits_per_byte(trained, read, order), slow(trained, read, order), rtol=1e-12)


def test_ngrams_of_a_language_know_it_and_what_cannot_be_is_refused():
    first, second = (udhr("en", part).encode() for part in ("first", "second"))
    assert 2 < ngram.bits_per_byte([first], [second]) < 4 < ngram.bits_per_byte([udhr("ar").encode()], [second])
    with pytest.raises(ValueError, match="no byte to predict"):
        ngram.bits_per_byte([first], [b""])
    with pytest.raises(ValueError, match="between 1 and 7"):
        ngram.bits_per_byte([first], [second], 8)


# --- vocabulary -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vocabulary") / "untrained"
    assert main(["data", "tokenizer", "udhr", f"--out={folder}", "--preset=tiny", "--languages=ar,en,ta,zh"]) == 0
    return folder


def test_a_vocabulary_is_balanced_and_gives_every_text_back():
    whole = {code: udhr(code) for code in CODES}
    told: list[str] = []
    tokenizer, fertility = vocabulary.train(whole, whole, 1000, "four", told.append)
    assert tokenizer.vocab_size == 1000
    counts = {code: len(tokenizer.encode(text).ids) for code, text in whole.items()}
    assert fertility == {code: count / min(counts.values()) for code, count in counts.items()}
    assert len(told) == vocabulary._ROUNDS
    said = [float(line.split(" needs ")[1].split()[0]) for line in told]
    assert max(fertility.values()) == pytest.approx(min(said), abs=0.005)
    assert min(said) < said[0]  # the first round reads as much of each
    for text in whole.values():
        encoded = tokenizer.encode(text)
        assert tokenizer.decode(encoded.ids) == text
        assert encoded.bytes.sum() == len(text.encode())
    again, _ = vocabulary.train(whole, whole, 1000, "four", told.append)
    assert again.fingerprint == tokenizer.fingerprint


def test_what_gives_no_vocabulary_is_refused():
    with pytest.raises(ValueError, match="257 ids does not hold 256 bytes"):
        vocabulary.train({"en": "a"}, {"en": "a"}, 257, "small")
    with pytest.raises(ValueError, match="no text in sw"):
        vocabulary.train({"en": "a", "sw": " "}, {"en": "a", "sw": "b"}, 300, "empty")


def test_the_folder_is_a_random_model_that_can_be_trained(untrained, capsys):
    found = source.resolve(f"random:{untrained}")
    assert (found.kind, found.weights, found.config) == ("random", None, models.PRESETS["tiny"])
    assert found.tokenizer.vocab_size == found.config.vocab
    place = {"": jax.sharding.SingleDeviceSharding(jax.devices()[0])}
    with pytest.raises(ValueError, match="give the key"):
        found.load(place)
    assert main(["data", "tokenizer", "udhr", f"--out={untrained}"]) == 2
    assert "there already" in capsys.readouterr().err
    assert main(["data", "tokenizer", "udhr", f"--out={untrained}2", "--preset=tyni"]) == 2
    assert "there is no preset 'tyni'" in capsys.readouterr().err
    with pytest.raises(FileNotFoundError, match="says what is to be trained"):
        source.resolve(f"random:{untrained.parent}")


# --- blend ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("begun", "how"), [("random:untrained", "from scratch"), ("runs/models/512", "further")])
@pytest.mark.parametrize("better", [0, 1, 2])
def test_the_headline_says_what_it_began_with(begun, how, better):
    facts = {"samples": 8, "length": 64, "languages": 2, "worse": [], "mean": 2.0, "counted": 3.0, "order": 5}
    told = claims.verdict("pretraining", "", scratch=source.is_random(begun), better=better, **facts)
    assert told["headline"].startswith(f"Trained {how}, the model predicts ")


@pytest.fixture(scope="module")
def feed():
    orders = tuple(train.Order(corpus(code), 0) for code in CODES)
    return train.Blend(orders, (1.0, 2.0, 4.0, 1.0), 3)


def test_a_blend_keeps_shares_and_reads_every_text_in_its_own_order(feed):
    turn = train.feed._TURN
    which, places = feed.locate(0, 2 * turn)
    assert np.bincount(which).tolist() == [turn // 4, turn // 2, turn, turn // 4]
    for number in range(4):
        assert places[which == number].tolist() == list(range(int((which == number).sum())))
    first = np.bincount(which[:800]) / 800  # no language before the others
    np.testing.assert_allclose(first, [0.125, 0.25, 0.5, 0.125], atol=0.04)


@given(st.integers(0, 30_000), st.integers(1, 40), st.integers(0, 8))
def test_a_batch_of_a_blend_is_its_samples_one_by_one(feed, start, count, room):
    found = feed.batch(start, start + count, count + room)
    assert found.tokens.shape == (count + room, 16)
    assert not found.segments[count:].any()
    which, places = feed.locate(start, start + count)
    for row, (number, place) in enumerate(zip(which.tolist(), places.tolist(), strict=True)):
        alone = feed.feeds[number].batch(place, place + 1, 1)
        assert all((whole[row] == each[0]).all() for whole, each in zip(found, alone, strict=True))
    assert feed.describe(start) == feed.feeds[which[0]].describe(int(places[0]))


def test_a_blend_has_a_name_of_its_own_and_shares_above_zero(feed):
    names = {
        train.Blend(feeds, shares, seed).fingerprint
        for feeds, shares, seed in [
            (feed.feeds, feed.shares, 3),
            (feed.feeds, feed.shares, 4),
            (feed.feeds, feed.shares[::-1], 3),
            (feed.feeds[::-1], feed.shares, 3),
        ]
    }
    assert len(names) == 4
    for feeds, shares in [(feed.feeds, (1.0,)), ((), ()), (feed.feeds, (1.0, 1.0, 1.0, 0.0))]:
        with pytest.raises(ValueError, match="as many shares above zero"):
            train.Blend(feeds, shares, 0)


# --- the study --------------------------------------------------------------------------------------------------------


def plan(*words: str):
    chosen = settings.load("configs/pretraining.py:tiny", [f"--config.{word}" for word in words])
    return STUDIES["pretraining"].plan(chosen)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("train.languages=ar,ko", "ko is trained but not evaluated"),
        ("train.temperature=1.5", "between 0 .equal shares. and 1"),
        ("train.warmup=99", "a warm-up of 99 steps"),
    ],
)
def test_what_cannot_be_trained_is_refused(word, said):
    with pytest.raises(ValueError, match=said):
        plan(word)


def test_a_model_learns_what_its_5_grams_are_counted_on_and_is_written(tmp_path, one_device, capsys):
    words = [f"--config.train.{word}" for word in ("samples=64", "batch=8", "counts=32")]
    words += ["--config.machine.progress=none", "--config.machine.pictures=False", "--config.evaluate.samples=1"]
    folder = tmp_path / "run"
    assert main(["run", "pretraining:tiny", f"--workdir={folder}", *words]) == 0
    learned = json.loads((folder / "tables" / "learning.json").read_text())["series"]
    curve = [value for _, value in learned["the model"]["points"]]
    assert curve[0] > 8  # bits: a random model of 264 ids
    assert curve[0] > curve[1] > curve[2]
    rows = json.loads((folder / "tables" / "languages.json").read_text())["rows"]
    counted = {
        code: ngram.bits_per_byte([udhr(code, "first").encode()], [udhr(code, "second").encode()])
        for code in ("ar", "zh", "en", "sw")
    }
    assert [row[4] for row in rows] == pytest.approx(list(counted.values()), rel=1e-12)
    assert sum(row[2] for row in rows) == 64
    out = tmp_path / "model"
    assert main(["export", f"--workdir={folder}", "--training=pretrained", f"--out={out}"]) == 2
    assert "it has pretrained seed 0" in capsys.readouterr().err
    assert main(["export", f"--workdir={folder}", "--training=pretrained seed 0", f"--out={out}"]) == 0
    written = source.resolve(str(out))
    assert written.weights is not None
    assert written.config == models.PRESETS["tiny"]


def test_a_run_that_trained_nothing_exports_nothing(tmp_path, one_device, capsys):
    words = ["--config.score.samples=2", "--config.machine.progress=none", "--config.machine.pictures=False"]
    assert main(["run", "reliability:tiny", f"--workdir={tmp_path / 'run'}", *words]) == 0
    assert main(["export", f"--workdir={tmp_path / 'run'}", "--training=x", f"--out={tmp_path / 'out'}"]) == 2
    assert "holds a run of reliability: nothing was trained there" in capsys.readouterr().err


# --- package:lingregions ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_our_own_model_is_the_one_of_its_card_and_knows_its_languages(lone_mesh):
    from lingregions import model as nouns

    card = (source.OWN / "README.md").read_text()
    assert source._sha256(source.OWN / "model.safetensors") in card
    assert sum(path.stat().st_size for path in source.OWN.iterdir()) < 35_000_000
    model = nouns.load("package:lingregions", lone_mesh)
    assert model.config == models.PRESETS["thirty"]
    assert f"{sum(leaf.size for leaf in jax.tree.leaves(model.params)):,} parameters" in card
    parallel = {code: len(model.tokenizer.encode(udhr(code)).ids) for code in UDHR.languages()}
    assert max(parallel.values()) < 1.6 * min(parallel.values())
    whole = {code: model.corpus("udhr", code, split="all") for code in ("ru", "sw", "zh")}
    found = model.losses({code: (each, np.arange(len(each))) for code, each in whole.items()}, batch=2)
    cells = {row[0].strip(): row for row in (line.strip("| ").split("|")[:4] for line in card.splitlines())}
    cells |= {row[0].strip(): row for row in (line.strip("| ").split("|")[4:] for line in card.splitlines()) if row}
    for code, result in found:
        ours, grams = (float(cell) for cell in cells[code][1:3])
        assert result.bits == pytest.approx(ours, abs=0.006)
        assert result.bits < grams
