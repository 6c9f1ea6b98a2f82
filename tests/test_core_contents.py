"""What the core holds: categories of tokens by hand, pairs of sentences, what is read of each model, the verdict."""

import csv
import itertools
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from lingregions import models, settings
from lingregions.experiments import STUDIES, agreement, claims, core_contents
from lingregions.experiments.context import prepare
from lingregions.run import Run

pytestmark = pytest.mark.usefixtures("one_device")

CONFIG = Path(__file__).parent.parent / "configs" / "core_contents.py"
STUDY = STUDIES["core_contents"]
MODELS = ("base", "top-1pct", "magnitude-1pct", "matched-1pct-seed-0")


def chosen(**values):
    small = {
        "score.languages": ("es", "ru"),
        "score.samples": 1,
        "evaluate.languages": ("es", "zh"),
        "contents.agreement": ("en", "ru"),
        "contents.sequences": 3,
        "machine.progress": "none",
        "machine.pictures": False,
    }
    return settings.load(f"{CONFIG}:tiny", values=small | values)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder, wanted = tmp_path_factory.mktemp("contents") / "run", chosen()
    with Run.open(folder, wanted) as run:
        STUDY.perform(wanted, run)
    return folder


def facts(folder: Path, model: str) -> dict:
    return json.loads((folder / "done" / f"tokens-{model}.json").read_text())["facts"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (" the", "letters"),
        ("и", "letters"),
        ("ा", "letters"),  # a vowel sign, which is a mark
        ("’s", "letters"),
        ("\ufffd", "piece of a character"),
        (" 19", "digits"),
        ("٣", "digits"),
        (").", "punctuation"),
        ("。", "punctuation"),
        ("\n ", "space"),
    ],
)
def test_kinds_of_tokens_by_hand(text, said):
    assert core_contents._kind(text) == said


def test_frequencies_of_a_text_by_hand():
    # 7 four times and 5 three times make up half of twelve; 3 twice; 1, 2 and 9 once.
    found = core_contents._frequencies(np.array([7, 7, 7, 7, 5, 5, 5, 3, 3, 1, 2, 9]))
    assert found == {7: "frequent", 5: "frequent", 3: "between", 1: "once", 2: "once", 9: "once"}


def test_stretches_of_the_window():
    assert [core_contents._stretch(place) for place in (1, 2, 7, 8, 31, 32, 511, 512, 4000)] == [
        *("1", "2", "2", "8", "8", "32", "256", "512", "512")
    ]


@pytest.mark.parametrize("code", agreement.WORDS)
def test_pairs_differ_in_the_verb_and_are_balanced(code):
    found = agreement.pairs(code)
    assert len(set(found)) == len(found) == 48
    differing = []
    for right, wrong in found:
        assert right[-1] == wrong[-1] == "."
        *subject, verb = right[:-1].split(" ")
        assert wrong[:-1].split(" ")[:-1] == subject
        differing.append((verb, wrong[:-1].split(" ")[-1]))
    assert all(one != other for one, other in differing)
    # Each form is right as often as it is wrong: who prefers one is right in half.
    assert sorted(one for one, _ in differing) == sorted(other for _, other in differing)
    assert (
        found[:2]
        == {
            "en": [("The teacher works.", "The teacher work."), ("The teachers work.", "The teachers works.")],
            "es": [
                ("El profesor trabaja.", "El profesor trabajan."),
                ("Los profesores trabajan.", "Los profesores trabaja."),
            ],
            "fr": [
                ("Le professeur travaille.", "Le professeur travaillent."),
                ("Les professeurs travaillent.", "Les professeurs travaille."),
            ],
            "de": [("Der Arzt arbeitet.", "Der Arzt arbeiten."), ("Die Ärzte arbeiten.", "Die Ärzte arbeitet.")],
            "ru": [("Учитель работает.", "Учитель работают."), ("Учителя работают.", "Учителя работает.")],
        }[code]
    )


def test_the_parts_of_a_text_make_up_the_whole(whole):
    """Whatever tokens are divided by, nats and tokens of a language are those of results.csv, for every model."""
    rows = list(csv.DictReader((whole / "results.csv").read_text().splitlines()))
    assert len(rows) == 8
    for row in rows:
        name = row["intervention"].replace("%", "pct").replace(" ", "-")
        for split in ("kind", "frequency", "position"):
            parts = facts(whole, name)["tokens"][row["language"]][split].values()
            nats, tokens = (sum(itertools.chain(*(part[place] for part in parts))) for place in (1, 2))
            assert tokens == int(row["tokens"])
            np.testing.assert_allclose(nats, float(row["nll_nats"]), rtol=1e-6)


def test_segments_of_categories_are_those_of_every_model(whole):
    numbers = {model: facts(whole, model)["tokens"]["zh"]["kind"]["piece of a character"][0] for model in MODELS}
    assert len(numbers["base"]) > 4
    assert all(each == numbers["base"] for each in numbers.values())


def test_copies_and_agreement_against_single_passes(whole):
    """Means of both halves from the logits of one sequence, and the likelier sentence, each by itself."""
    wanted, found = chosen(), facts(whole, "base")
    with Run.open(whole, wanted) as run:
        context = prepare(wanted, run)
        model = context.model
        assert core_contents._bos(context) == []

        def nats(ids: list[int]) -> np.ndarray:
            logits = logits_of(model, jnp.asarray([ids], jnp.int32))[:-1]
            logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
            return -logs[np.arange(len(ids) - 1), ids[1:]]

        for code in ("en", "ru"):
            each = [
                sum(nats(model.tokenizer.encode(right).ids.tolist()))
                < sum(nats(model.tokenizer.encode(wrong).ids.tolist()))
                for right, wrong in agreement.pairs(code)[:6]
            ]
            assert found["agreement"][code][:6] == each
        ids = np.unique(np.concatenate([context.corpus(code, "evaluate").tokens.ids for code in ("es", "zh")]))
        half = 32  # of the 64 tokens of a sample; the first has no target
        (first, *_) = np.random.default_rng(0).choice(ids, (3, half)).tolist()
        losses = nats(first + first)
        np.testing.assert_allclose(found["copies"]["first"][0], losses[: half - 1].mean(), rtol=1e-5)
        np.testing.assert_allclose(found["copies"]["second"][0], losses[half:].mean(), rtol=1e-5)
        assert len(found["copies"]["first"]) == 3


def logits_of(model, tokens):
    """Logits of one sequence, float64 [T, V]."""
    hidden, _ = models.hidden(model.config, model.compute, model.params, tokens, jnp.ones_like(tokens))
    return np.asarray(hidden[0], np.float64) @ np.asarray(models.head(model.config, model.params), np.float64).T


def test_the_tables(whole):
    rows = json.loads((whole / "tables" / "categories.json").read_text())["rows"]
    by = {split: [row for row in rows if row[0] == split] for split in ("kind", "frequency", "position")}
    for each in by.values():
        assert sum(row[2] for row in each) == pytest.approx(1)
    assert [row[1] for row in by["position"]] == ["1", "2", "8", "32"]
    assert [row[1] for row in by["frequency"]] == ["frequent", "between"]  # no byte stands once
    places = json.loads((whole / "tables" / "places.json").read_text())
    # Times as dense as in all: the mean over matrices, weighted with their sizes, is one.
    sizes = {"q": 4096, "k": 2048, "v": 2048, "o": 4096, "gate": 8192, "up": 8192, "down": 8192}
    weights = [sizes.get(label, 64) for label in places["rows"]]
    assert np.average(np.mean(places["values"], axis=1), weights=weights) == pytest.approx(1)


def test_the_verdict_says_what_is_lost():
    cell = {True: [0.9, 0.8, 0.97], False: [0.5, 0.4, 0.6]}

    def headline(copies, agrees):
        states = dict(
            zip(
                ("untouched", "the core", "the largest weights", "matched random"),
                (True, False, False, True),
                strict=True,
            )
        )
        lost = copies if isinstance(copies, list) else [0.0, -1, 1]
        given = {
            "agreed": {name: {"en": cell[agrees and kept], "ru": cell[agrees]} for name, kept in states.items()},
            "copying": {name: [1.0, 0.5, 1.5] if copies and kept else lost for name, kept in states.items()},
            **{"kinds": {}, "healed": {"the core": [0.0, -1, 1]}, "early": "8", "late": "32", "core": None},
            "times": lambda *words: "×2",
        }
        return claims.verdict("core_contents", "", **given)["headline"]

    said = headline(True, True)
    assert said.startswith("Without its core the model no longer copies repeated tokens; agreement is lost in 1 of 2 ")
    said = headline([0.2, 0.1, 0.24], True)
    assert said.startswith("Without its core the model saves less than half as much by copying repeated tokens; ")
    assert headline([0.4, 0.3, 0.5], True).startswith("Without its core the model still copies repeated tokens; ")
    said = headline(False, False)
    assert said.startswith("Even with its core the model does not copy repeated tokens; agreement of subject and verb")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"contents.agreement": ("en", "zh")}, "contents.agreement may hold en, es, fr, de, ru, not zh"),
        ({"contents.sequences": 1}, "contents.sequences is below 2"),
        ({"select.seeds": ()}, "select.seeds is empty"),
    ],
)
def test_what_cannot_be_read_is_refused(values, said):
    with pytest.raises(ValueError, match=said):
        STUDY.plan(chosen(**values))
