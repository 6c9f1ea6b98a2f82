"""Comparison: what two models agree on, from work directories that a hand has drawn."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

from lingregions import effects
from lingregions.evaluate import Segments
from lingregions.experiments import comparison
from lingregions.intervention import UNTOUCHED, Intervention
from lingregions.main import main
from lingregions.regions import Provenance, Region, save
from lingregions.run import Run

TOP = Intervention(kind="top", fraction="1%", perturbation="zero")
LARGEST = Intervention(kind="magnitude", fraction="1%", perturbation="zero")
OWN = Intervention(kind="monolingual", region_language="es", perturbation="zero")
SCALAR = Intervention(kind="scalar", target="layer 1 mlp.down_proj [2 3]", perturbation="scale", factor=10.0)
CLIPPED = dataclasses.replace(SCALAR, bounded=True)
PATH = "layers.mlp.down_proj"


def run(folder, source: str, nats: dict[Intervention, float], layers: list[list[int]] | None = None):
    """A run in which an intervention costs so many nats a token, the same in every segment, twice that in Spanish."""
    with Run.open(folder, {"experiment": "core_removal", "model": {"source": source}}) as opened:

        def sums(cost: float) -> Segments:
            count = np.full(20, 10)
            return Segments(np.arange(20), 10 * (3.0 + cost) + np.zeros(20), count, 3 * count)

        measured = {each: {"en": sums(cost), "es": sums(2 * cost)} for each, cost in ({UNTOUCHED: 0.0} | nats).items()}
        found = effects.compare(measured, [(TOP, LARGEST)] if LARGEST in nats else [])
        opened.write("effects.csv", found.csv("core_removal"))
        if layers:
            (folder / "regions").mkdir()
            masks = {"layers": {"mlp": {"down_proj": jnp.asarray(layers, bool)[:, None, :]}}}
            known = Provenance(name="monolingual es", axes=((PATH, ("layers", "embed", "mlp")),))
            save(Region(masks, known), folder / "regions" / "monolingual-es.safetensors")
    return folder


@pytest.fixture
def two(tmp_path):
    first = {TOP: 4.0, LARGEST: 1.0, OWN: 0.5, SCALAR: 3.0, CLIPPED: 9.0}
    second = {TOP: 2.0, LARGEST: 5.0, OWN: 0.25}
    # Four layers of eight entries: all in the first layer; the same in each.
    early, even = [[1] * 8] + [[0] * 8] * 3, [[1, 1] + [0] * 6] * 4
    return (
        run(tmp_path / "one", "package:first", first, early),
        run(tmp_path / "two", "org/second", second, even),
    )


def tables(folder) -> dict[str, dict]:
    return {path.stem: json.loads(path.read_text()) for path in (folder / "tables").glob("*.json")}


def test_effects_stand_in_columns_and_the_verdict_says_where_signs_part(two, tmp_path, capsys):
    out = tmp_path / "side"
    assert main(["report", *map(str, two), f"--out={out}", "--no-pictures"]) == 0
    assert str(out / "report.html") in capsys.readouterr().out
    shown = tables(out)
    effect = shown["effects_core_removal"]
    assert [column["name"] for column in effect["columns"]][3:] == ["first", "second"]
    # The mean over both is one and a half times the English cost; a monolingual region stands in its own language.
    drawn = {
        ("top 1%", "base", "all"): (6.0, 3.0),
        ("magnitude 1%", "base", "all"): (1.5, 7.5),
        ("monolingual es", "base", "es"): (1.0, 0.5),
        ("top 1%", "magnitude 1%", "all"): (4.5, -4.5),
    }
    rows = {tuple(row[:3]): tuple(cell[0] for cell in row[3:]) for row in effect["rows"]}
    assert rows.keys() == drawn.keys()
    for key, values in drawn.items():
        assert rows[key] == pytest.approx(values), key
    verdict = shown["verdict"]
    assert verdict["headline"] == "Of 4 contrasts that 2 models share, 3 have the same sign in each, interval included."
    (parted,) = [text for text in verdict["paragraphs"] if text.startswith("Not the same")]
    assert parted.startswith("Not the same: top 1% against magnitude 1% (first ×")
    (same,) = [text for text in verdict["paragraphs"] if text.startswith("The same")]
    assert same.endswith("tables: top 1%; magnitude 1%; monolingual es in es.")
    scalars = shown["scalars"]["rows"]
    assert [row[:3] for row in scalars] == [["first", "layer 1 mlp.down_proj [2 3]", "scale 10.0"]]
    assert scalars[0][3][0] == pytest.approx(4.5)
    assert verdict["headline"] in (out / "report.html").read_text()


def test_depth_is_told_in_tenths_of_the_layers_over_an_even_spread(two, tmp_path):
    comparison.write(two, tmp_path / "side", pictures=False)
    shown = tables(tmp_path / "side")
    assert shown["depth"]["columns"] == ["0 to 10 %", "20 to 30 %", "50 to 60 %", "70 to 80 %"]
    assert dict(zip(shown["depth"]["rows"], shown["depth"]["values"], strict=True)) == {
        "first": [4.0, 0.0, 0.0, 0.0],
        "second": [1.0, 1.0, 1.0, 1.0],
    }


def test_one_model_a_run_without_effects_and_a_folder_of_something_else_are_refused(two, tmp_path, capsys):
    with pytest.raises(ValueError, match="all of them are runs of first"):
        comparison.write([two[0], two[0]], tmp_path / "side")
    assert main(["report", *map(str, two)]) == 2
    assert "name it with --out" in capsys.readouterr().err
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").touch()
    with pytest.raises(ValueError, match="full holds something else already"):
        comparison.write(two, tmp_path / "full")
    assert not (tmp_path / "side").exists()
    comparison.write(two, tmp_path / "side", pictures=False)
    comparison.write(two, tmp_path / "side", pictures=False)  # its own report is written again


def test_models_are_called_by_the_last_part_of_their_source_unless_two_would_be_alike():
    assert comparison._labels(["org/a", "package:b", "org/a"]) == ["a", "b", "a"]
    assert comparison._labels(["x/a", "y/a", "z/c"]) == ["x/a", "y/a", "c"]
