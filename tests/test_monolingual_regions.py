"""Monolingual regions: who is family, the indices by hand from results.csv, the controls, what the verdict says."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from lingregions import regions, settings
from lingregions.effects import ALL, Effect, Effects
from lingregions.experiments import STUDIES
from lingregions.experiments.monolingual_regions import _control, _Figures, _Index, _neighbours, _own, _verdict
from lingregions.intervention import BASE, UNTOUCHED
from lingregions.run import Run
from lingregions.statistics import Estimate

pytestmark = pytest.mark.usefixtures("one_device")

CONFIG = Path(__file__).parent.parent / "configs" / "monolingual_regions.py"
STUDY = STUDIES["monolingual_regions"]
EVALUATED = ("es", "pt", "ru", "uk", "pl", "en")


def chosen(**values):
    small = {
        "score.languages": ("es", "ru"),
        "score.samples": 1,
        "evaluate.languages": EVALUATED,
        "select.seeds": (0, 1),
        "machine.progress": "none",
        "machine.pictures": False,
    }
    return settings.load(f"{CONFIG}:tiny", values=small | values)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("monolingual") / "run"
    wanted = chosen()
    with Run.open(folder, wanted) as run:
        STUDY.perform(wanted, run)
    return folder


def table(folder: Path, name: str) -> dict:
    return json.loads((folder / "tables" / f"{name}.json").read_text())


def effects_of(folder: Path) -> dict[tuple[str, str], float]:
    """Nats per token above the untouched model, from results.csv."""
    rows = list(csv.DictReader((folder / "results.csv").read_text().splitlines()))
    means = {(row["intervention"], row["language"]): float(row["nll_nats"]) / int(row["tokens"]) for row in rows}
    return {(name, code): value - means[BASE, code] for (name, code), value in means.items()}


def test_neighbours_by_hand():
    found = _neighbours(chosen(), "ru")
    assert (found.family, found.relatives, found.strangers) == ("Slavic", ("uk", "pl"), ("es", "pt", "en"))
    assert found.specificity == {"ru": 1, "es": -1 / 3, "pt": -1 / 3, "en": -1 / 3}
    assert found.relatedness == {"uk": 1 / 2, "pl": 1 / 2, "es": -1 / 3, "pt": -1 / 3, "en": -1 / 3}
    script = _neighbours(chosen(**{"select.family": "script"}), "ru")
    assert (script.family, script.relatives) == ("Cyrillic", ("uk",))
    assert _neighbours(chosen(**{"evaluate.languages": ("ru", "en")}), "ru").relatedness == {}


def test_what_cannot_be_compared_is_refused_by_the_plan():
    with pytest.raises(ValueError, match="ru is scored but not evaluated"):
        STUDY.plan(chosen(**{"evaluate.languages": ("es", "en")}))
    with pytest.raises(ValueError, match="every evaluated language is of the branch Slavic, as ru"):
        STUDY.plan(chosen(**{"score.languages": ("ru",), "evaluate.languages": ("ru", "uk")}))


def test_controls_are_as_large_as_the_regions_and_lie_outside(whole):
    for code in ("es", "ru"):
        mine, *drawn = (
            regions.load(whole / "regions" / f"{name}.safetensors")
            for name in (f"monolingual-{code}", f"matched-to-{code}-seed-0", f"matched-to-{code}-seed-1")
        )
        for each in drawn:
            assert regions.counts(each) == regions.counts(mine)
            assert regions.total(regions.intersect(each, mine)) == 0
        assert not regions.equals(*drawn)


def test_the_matrix_is_that_of_the_results(whole):
    lost, matrix, controls = effects_of(whole), table(whole, "effect_matrix"), table(whole, "control_matrix")
    assert (matrix["rows"], matrix["columns"]) == (["es", "ru"], list(EVALUATED))
    expected = [[lost[f"monolingual {row}", code] for code in EVALUATED] for row in ("es", "ru")]
    np.testing.assert_allclose(matrix["values"], expected, atol=1e-12)
    expected = [
        [np.mean([lost[f"matched to {row} seed {seed}", code] for seed in (0, 1)]) for code in EVALUATED]
        for row in ("es", "ru")
    ]
    np.testing.assert_allclose(controls["values"], expected, atol=1e-12)


def test_the_indices_by_hand(whole):
    lost, rows = effects_of(whole), {row[0]: row[1:] for row in table(whole, "specificity")["rows"]}

    def mean(removal: str, codes: tuple[str, ...]) -> float:
        return float(np.mean([lost[removal, code] for code in codes]))

    near, far = ("uk", "pl"), ("es", "pt", "en")
    size, mine, family, others, drawn, *figures = rows["ru"]
    swapped = figures.pop(2)
    np.testing.assert_allclose(swapped[0], lost["monolingual ru", "ru"] - lost["monolingual es", "ru"], atol=1e-12)
    assert size == regions.total(regions.load(whole / "regions" / "monolingual-ru.safetensors"))
    removal, controls = "monolingual ru", [f"matched to ru seed {seed}" for seed in (0, 1)]
    np.testing.assert_allclose(
        [mine[0], family[0], others[0], drawn[0]],
        [
            lost[removal, "ru"],
            mean(removal, near),
            mean(removal, far),
            np.mean([lost[each, "ru"] for each in controls]),
        ],
        atol=1e-12,
    )
    specific, kin = lost[removal, "ru"] - mean(removal, far), mean(removal, near) - mean(removal, far)
    base = np.mean([lost[each, "ru"] - mean(each, far) for each in controls])
    relatives = np.mean([mean(each, near) - mean(each, far) for each in controls])
    np.testing.assert_allclose(
        [figure[0] for figure in figures], [specific, specific - base, kin, kin - relatives], atol=1e-12
    )
    for value, low, high in (*figures, swapped):
        assert low < value < high


def test_relatives_texts_and_plan(whole):
    assert [row[:3] for row in table(whole, "relatives")["rows"]] == [
        ["es", "Romance", "es"],
        ["es", "Romance", "pt"],
        *(["ru", "Slavic", code] for code in ("ru", "uk", "pl")),
    ]
    texts = table(whole, "continuations")
    assert texts["columns"] == ["model", "times the perplexity", "en", "ru"]
    assert [row[0] for row in texts["rows"]] == ["(the prompt)", "base", "monolingual es", "monolingual ru"]
    steps = STUDY.plan(chosen())
    assert min(step.parts for step in steps) > 0
    assert [step.finished(whole) for step in steps] == [step.parts for step in steps]
    assert "specificity" in " ".join(table(whole, "verdict")["paragraphs"])


def estimate(value: float) -> Estimate:
    return Estimate(value, value - 0.2, value + 0.2, 0.01, 9)


def effects(codes: tuple[str, ...], controlled: bool = True) -> Effects:
    """Effects by hand: Russian loses 2 nats by every region, any other language a half."""
    rows = [
        Effect(_own(row), reference, code, "", value, value - 0.2, value + 0.2, 0.01, 0.01, 1, 9)
        for row in codes
        for reference in (UNTOUCHED, *([_control(row)] if controlled else []))
        for code in (ALL, *EVALUATED)
        for value in [2.0 if code == "ru" else 0.5]
    ]
    return Effects(tuple(rows), {UNTOUCHED: dict.fromkeys(EVALUATED)})


@pytest.mark.parametrize(
    ("over", "headline", "said"),
    [
        ({"es": 1.0, "ru": 1.0}, "Every monolingual region", "every monolingual region harms its own language more"),
        ({"es": 0.1, "ru": 1.0}, "1 of 2 monolingual regions", "some cannot be told from that"),
        ({"es": 0.1, "ru": -1.0}, "No monolingual region", "no monolingual region can be told"),
    ],
)
def test_the_verdict_follows_the_intervals(over, headline, said):
    wanted = chosen()
    near = {code: _neighbours(wanted, code) for code in ("es", "ru")}
    swapped = {"es": estimate(0.1), "ru": estimate(0.3)}
    figures = {
        code: _Figures(_Index(estimate(1.5), estimate(value)), None, swapped[code]) for code, value in over.items()
    }
    found = _verdict(near, effects(("es", "ru")), figures)
    assert found["headline"].startswith(headline)
    assert len(found["headline"].split()) <= 25
    words = found["paragraphs"]
    assert "most harmed in 1 of 2 rows" in words[0]  # Russian loses most in both
    assert "for ru (1 of 2)" in words[1]
    assert "for es and ru (2 of 2)" in words[2]
    assert said in words[-1]


def test_without_controls_the_verdict_says_so():
    wanted = chosen(**{"select.seeds": (), "score.languages": ("ru",)})
    near = {"ru": _neighbours(wanted, "ru")}
    found = _verdict(near, effects(("ru",), controlled=False), {"ru": _Figures(None, None, None)})
    assert "without a matched control" in found["headline"]
    assert "no matched control" in found["paragraphs"][-1]
    *_, selecting, _, _ = STUDY.plan(wanted)
    assert selecting.marks == ("region-top-1pct-ru", "region-monolingual-ru")
