"""What core removal adds to a run: parts of the core, groups of seeds, controls that are weighed with intervals."""

import csv
import dataclasses
import functools
import json
import math
from pathlib import Path

import jax
import pytest

from lingregions import mesh as meshes
from lingregions import regions, settings
from lingregions.effects import Effect, Effects
from lingregions.experiments import STUDIES, claims, tables
from lingregions.experiments.core_removal import _check, _contrasts, _pieces, _whole
from lingregions.intervention import UNTOUCHED, Intervention
from lingregions.run import Run

CONFIG = Path(__file__).parent.parent / "configs" / "core_removal.py"
WORDS = (
    "--config.score.languages=ar,zh",
    "--config.score.samples=1",
    "--config.evaluate.languages=ar,sw",
    "--config.evaluate.samples=1",
    "--config.select.monolingual=False",
    "--config.machine.progress=none",
    "--config.machine.pictures=False",
)
PARTS = ("--config.select.modules=q,down,without_norms", "--config.select.layers=all")


def chosen(*words: str, variant: str = "tiny"):
    return settings.load(f"{CONFIG}:{variant}", [*(WORDS if variant == "tiny" else ()), *words])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    config = chosen("--config.select.selectors=top,random,magnitude", "--config.select.seeds=0,1", *PARTS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(meshes, "build", functools.partial(meshes.build, devices=jax.devices()[:1]))
        with Run.open(tmp_path_factory.mktemp("core") / "run", config) as run:
            STUDIES["core_removal"].perform(config, run)
    planned = STUDIES["core_removal"].plan(config)
    assert [step.finished(run.folder) for step in planned] == [step.parts for step in planned]
    assert sum(step.parts for step in planned) > 10
    return run.folder


def table(folder: Path, name: str):
    return json.loads((folder / "tables" / f"{name}.json").read_text())


def test_the_plan_names_every_removal():
    config = chosen("--config.select.selectors=top,matched", "--config.select.seeds=0,1", *PARTS)
    assert [each.name for each in _whole(config)] == ["top 1%", "matched 1% seed 0", "matched 1% seed 1"]
    assert [each.name for each in _pieces(config, layers=2)] == [
        *("top 1% q", "top 1% down", "top 1% without norms", "top 1% layer 0", "top 1% layer 1"),
    ]
    assert [(top.name, control.name) for top, control in _contrasts(config)] == [("top 1%", "matched 1%")]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--config.select.modules=q,w", "there is no part 'w'"),
        ("--config.select.selectors=top,largest", "there is no selector 'largest'"),
        ("--config.select.selectors=matched", "add top to select.selectors"),
        ("--config.select.seeds=()", "select.seeds is empty"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(words, message):
    with pytest.raises(ValueError, match=message):
        _check(chosen(words))


@pytest.mark.parametrize(
    ("p", "said"),
    [(0.04, "parameters, in 1 of 1 language by itself."), (0.06, "though in none beyond doubt by itself.")],
)
def test_the_headline_counts_languages_only_where_there_are_any(p, said):
    control = dataclasses.replace(TOP, kind="random")
    values = [(TOP, UNTOUCHED, 3.0), (control, UNTOUCHED, 0.1), (TOP, control, 2.9)]
    rows = [row(*pair, "all", nats, nats - 0.1, nats + 0.1) for *pair, nats in values]
    rows.append(row(TOP, control, "ar", 2.9, 2.8, 3.0, p=p))
    found = Effects(tuple(rows), {UNTOUCHED: dict.fromkeys(("ar",))})
    told = claims.verdict("core_removal", "", found, top=TOP, controls={"random": control}, parts=[])
    assert told["headline"].endswith(said)
    assert len(told["headline"].split()) <= 25


def test_a_layer_that_does_not_exist():
    with pytest.raises(ValueError, match="there is no layer 2"):
        _pieces(chosen("--config.select.layers=0,2"), layers=2)


def test_parts_need_their_top():
    with pytest.raises(ValueError, match="add top to"):
        _check(chosen('--config.select.selectors=("random",)', *PARTS))


def test_the_thirty_languages_are_one_command():
    config = chosen(variant="smollm2_thirty")
    assert len(set(config.evaluate.languages)) == 30
    assert config.model.source == chosen(variant="smollm2").model.source
    groups = [each.group.name for each in _whole(config)]
    assert groups == ["top 1%", "bottom 1%", *["random 1%"] * 3, *["matched 1%"] * 3, "magnitude 1%"]


def test_a_part_is_the_top_in_that_part(folder):
    # floor(1 %) of each matrix of the tiny preset: q, o 40; k, v 20; gate, up, down 81; norms 0; two layers.
    sizes = {row[0]: row[1] for row in table(folder, "parts")["rows"]}
    layer = 2 * 40 + 2 * 20 + 3 * 81
    assert sizes == {
        "q": 2 * 40,
        "down": 2 * 81,
        "without norms": 2 * layer,
        "layer 0": layer,
        "layer 1": layer,
    }


def test_the_whole_top_without_its_empty_norms_is_the_top(folder):
    nats = {
        (row["intervention"], row["language"]): row["nll_nats"]
        for row in csv.DictReader((folder / "results.csv").read_text().splitlines())
    }
    for code in ("ar", "sw"):
        assert nats["top 1% without norms", code] == nats["top 1%", code]
        assert len({nats[name, code] for name in ("base", "top 1%", "top 1% q", "top 1% down", "top 1% layer 0")}) == 5


def test_the_magnitude_takes_the_largest_weights(folder):
    found = regions.load(folder / "regions" / "magnitude-1pct.safetensors")
    assert found.provenance.languages == ()
    assert regions.total(found) == regions.total(regions.load(folder / "regions" / "top-1pct.safetensors"))


def test_contrasts_are_differences_of_groups(folder):
    found = {
        (row["intervention"], row["control"]): row
        for row in csv.DictReader((folder / "effects.csv").read_text().splitlines())
        if row["language"] == "all"
    }
    assert found["random 1%", "base"]["seeds"] == "2"
    rows = {row[1]: row for row in table(folder, "contrasts")["rows"]}
    assert set(rows) == {"random 1%", "magnitude 1%"}
    for control, (_, _, own, other, difference, _) in rows.items():
        assert own[0] == pytest.approx(float(found["top 1%", "base"]["effect_nats"]))
        assert other[0] == pytest.approx(float(found[control, "base"]["effect_nats"]))
        assert difference[0] == pytest.approx(own[0] - other[0])
    assert table(folder, "parts_by_language")["columns"] == ["ar", "sw"]
    assert "top 1%" in table(folder, "verdict")["paragraphs"][0]


# The words of a verdict, from effects drawn by hand.

TOP, MAGNITUDE, QUERIES = (
    Intervention(kind=kind, fraction="1%", part=part, perturbation="zero")
    for kind, part in (("top", ""), ("magnitude", ""), ("top", "q"))
)


def row(
    one: Intervention, control: Intervention, language: str, value: float, low: float, high: float, p: float = 0.01
):
    return Effect(one, control, language, "", value, low, high, p, p, 1, 10)


def drawn(top: float, magnitude: float) -> Effects:
    """The top and the largest weights multiply perplexity by these; intervals from a half to twice that."""
    values = {"all": 1.0, "ar": 1.0, "sw": 1.0}
    rows = [
        row(one, control, code, *(math.log(times * part) for part in (1, 0.5, 2)), p=0.06 if code == "sw" else 0.04)
        for one, control, times in (
            *((TOP, UNTOUCHED, top), (MAGNITUDE, UNTOUCHED, magnitude)),
            *((TOP, MAGNITUDE, top / magnitude), (QUERIES, UNTOUCHED, 3.0)),
        )
        for code in values
    ]
    return Effects(tuple(rows), {UNTOUCHED: dict.fromkeys(("ar", "sw"))})


def verdict(found: Effects):
    facts = {"controls": {"magnitude": MAGNITUDE}, "parts": [QUERIES], "label": lambda part: part.part}
    return claims.verdict("core_removal", "Is the core linguistic?", found, top=TOP, **facts)


def test_words_and_cells_of_a_difference():
    found = drawn(1000, 20)
    assert tables.times(found, TOP) == "×1,000 (500 to 2,000)"
    assert tables.harmed(found, TOP, MAGNITUDE) == "1 of 2 languages"
    assert [found.sign(TOP), found.sign(QUERIES)] == [1, 1]


def test_a_collapse_that_magnitude_shares_is_not_called_linguistic():
    said = verdict(drawn(1000, 20))
    assert said["headline"].endswith("no evidence yet of a linguistic region.")
    first, second, third = said["paragraphs"]
    assert first.startswith("Removing top 1% multiplies perplexity by 1,000 (500 to 2,000) over all languages")
    assert "it does more harm than magnitude 1%: ×50.0 (25.0 to 100) its perplexity" in first
    assert "not that they are linguistic" in second
    assert "most harmful is q (×3.00" in third


@pytest.mark.parametrize(
    ("top", "headline"),
    [
        (3.0, "not beyond doubt more than without as many other parameters"),
        (1.0, "cannot be told from no change at all"),
        (0.25, "loses nothing"),
    ],
)
def test_the_headline_follows_the_sign_of_the_effect(top, headline):
    assert headline in verdict(drawn(top, 1.0))["headline"]
