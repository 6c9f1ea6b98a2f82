import errno
import io
import json
import math
import os
import resource
import signal
import socket
import subprocess
import sys
import textwrap
import zlib
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import config_dict
from rich.console import Console

from lingregions import run as runs
from lingregions.run import files, progress
from lingregions.run.table import Table

COLUMNS = {"intervention": str, "language": str, "nll_nats": float, "tokens": int}
KEYS = ("intervention", "language")
HEADER = "intervention,language,nll_nats,tokens,row_crc32\n"
ROW = {"intervention": "base", "language": "ar", "nll_nats": 0.1, "tokens": 3}


def config(**changes):
    values = {"model": "preset:tiny", "scores": {"samples": 64, "languages": ("ar", "zh")}}
    values["machine"] = {"batch": 2, "progress": "none"}
    made = config_dict.ConfigDict(values)
    made.update_from_flattened_dict(changes)
    return made


def snapshot(folder):
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "run"


@pytest.fixture
def run(folder):
    with runs.Run.open(folder, config()) as opened:
        yield opened


class TestOpen:
    def test_config_json_is_the_resolved_config_sorted(self, folder):
        made = config()
        made.double = made.scores.get_ref("samples") * 2
        runs.Run.open(folder, made).close()
        assert (folder / "config.json").read_text() == textwrap.dedent("""\
            {
              "double": 128,
              "lingregions_format": 2,
              "machine": {
                "batch": 2,
                "progress": "none"
              },
              "model": "preset:tiny",
              "scores": {
                "languages": [
                  "ar",
                  "zh"
                ],
                "samples": 64
              }
            }
            """)

    def test_the_environment_names_versions_devices_and_precision_but_no_secret(self, folder, monkeypatch):
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=false")
        runs.Run.open(folder, config()).close()
        text = (folder / "environment.json").read_text()
        found = json.loads(text)
        assert "hf_secret" not in text
        assert found["variables"]["XLA_FLAGS"] == "--xla_cpu_enable_fast_math=false"
        assert found["versions"]["jax"] == jax.__version__
        assert (found["device_count"], found["process_count"], found["backend"]) == (8, 1, "cpu")
        assert found["precision"] == {
            "dtype": "float32",
            "parameters": "float32",
            "matmul": "float32",
            "x64": False,
            "dtype_promotion": "strict",
        }
        assert found["python"] == ".".join(map(str, sys.version_info[:3]))

    def test_the_same_config_resumes(self, folder):
        with runs.Run.open(folder, config()) as first:
            assert not first.resumed
        before = (folder / "config.json").read_bytes()
        with runs.Run.open(folder, config()) as second:
            assert second.resumed
            assert second.notes == []
        assert (folder / "config.json").read_bytes() == before

    def test_another_config_is_refused_with_the_difference_and_nothing_is_touched(self, folder):
        runs.Run.open(folder, config()).close()
        before = snapshot(folder)
        changed = config(**{"scores.samples": 128, "machine.batch": 8})
        del changed.model
        changed.seed = 1
        with pytest.raises(runs.RunError) as caught:
            runs.Run.open(folder, changed)
        assert str(caught.value) == (
            f"{folder} was begun with another config:\n"
            '  model: "preset:tiny" -> (not there)\n'
            "  scores.samples: 64 -> 128\n"
            "  seed: (not there) -> 1\n"
            "Give another --workdir, or --fresh to move this one aside and begin again"
        )
        assert snapshot(folder) == before

    def test_the_machine_may_change_on_resume_and_that_is_noted(self, folder):
        runs.Run.open(folder, config()).close()
        with runs.Run.open(folder, config(**{"machine.batch": 8})) as run:
            assert run.notes == ["the config changed, in what decides no figure: machine.batch: 2 -> 8"]
        assert json.loads((folder / "config.json").read_text())["machine"]["batch"] == 8

    def test_an_environment_that_changed_keeps_the_earlier_one(self, folder):
        runs.Run.open(folder, config()).close()
        earlier = json.loads((folder / "environment.json").read_text()) | {"python": "3.8.0"}
        (folder / "environment.json").write_text(json.dumps(earlier))
        with runs.Run.open(folder, config()) as run:
            assert run.notes == ["the environment changed (python); the earlier one is environment-1.json"]
        assert json.loads((folder / "environment-1.json").read_text()) == earlier
        assert json.loads((folder / "environment.json").read_text())["python"] != "3.8.0"

    def test_fresh_moves_the_old_one_aside_and_loses_nothing(self, folder):
        for number in (1, 2):
            with runs.Run.open(folder, config(**{"scores.samples": number}), fresh=True) as run:
                run.write("mark.txt", f"run {number}")
        with runs.Run.open(folder, config(), fresh=True) as run:
            assert not run.resumed
            assert run.notes == [f"the work directory that was here is now {folder}.old-2"]
        assert Path(f"{folder}.old-1/mark.txt").read_text() == "run 1"
        assert Path(f"{folder}.old-2/mark.txt").read_text() == "run 2"
        assert not (folder / "mark.txt").exists()

    @pytest.mark.parametrize("fresh", [False, True])
    @pytest.mark.parametrize("config_json", [None, '{"model_type": "llama"}', "[1]"])
    def test_a_foreign_folder_is_refused_fresh_or_not(self, folder, config_json, fresh):
        folder.mkdir()
        (folder / "thesis.tex").write_text("years of work")
        if config_json is not None:
            (folder / "config.json").write_text(config_json)
        before = snapshot(folder)
        with pytest.raises(runs.RunError, match="is not a work directory of lingregions"):
            runs.Run.open(folder, config(), fresh=fresh)
        assert snapshot(folder) == before
        assert list(folder.parent.iterdir()) == [folder]

    @pytest.mark.parametrize(
        ("keep", "message"),
        [(40, "is cut or no JSON"), (0, "is cut or no JSON")],
    )
    def test_a_cut_config_json_is_refused_untouched_and_fresh_helps(self, folder, keep, message):
        runs.Run.open(folder, config()).close()
        path = folder / "config.json"
        path.write_text(path.read_text()[:keep])
        before = snapshot(folder)
        with pytest.raises(runs.RunError, match=message):
            runs.Run.open(folder, config())
        assert snapshot(folder) == before
        runs.Run.open(folder, config(), fresh=True).close()
        assert snapshot(Path(f"{folder}.old-1"))["config.json"] == before["config.json"]

    @pytest.mark.parametrize("number", [1, 3])
    def test_another_format_is_refused_untouched(self, folder, number):
        runs.Run.open(folder, config()).close()
        path = folder / "config.json"
        path.write_text(path.read_text().replace('"lingregions_format": 2', f'"lingregions_format": {number}'))
        before = snapshot(folder)
        with pytest.raises(runs.RunError, match=f"has format {number}, this version reads and writes 2"):
            runs.Run.open(folder, config())
        assert snapshot(folder) == before

    def test_a_process_that_died_before_it_wrote_its_config_leaves_an_empty_folder(self, folder):
        folder.mkdir()
        (folder / ".lock").write_text("")
        (folder / "config.json.partial").write_text("{")
        with runs.Run.open(folder, config()) as run:
            assert not run.resumed
        assert not (folder / "config.json.partial").exists()

    def test_paths_that_are_no_folder(self, tmp_path):
        file = tmp_path / "file"
        file.write_text("x")
        with pytest.raises(runs.RunError, match="is a file, a folder is needed"):
            runs.Run.open(file, config())
        with pytest.raises(runs.RunError, match="a part of the path is a file"):
            runs.Run.open(file / "below", config())
        with pytest.raises(runs.RunError, match="mount it"):
            runs.Run.open("gs://bucket/run", config())
        assert file.read_text() == "x"

    @pytest.mark.parametrize("value", [math.nan, math.inf, object(), {1, 2}])
    def test_a_config_that_json_cannot_hold_is_refused(self, folder, value):
        with pytest.raises(runs.RunError, match=r"config\.scores\.x is .*, which config\.json cannot hold"):
            runs.Run.open(folder, {"scores": {"x": value}})
        assert not folder.exists()


class TestDisk:
    def test_a_full_disk_stops_the_run_before_it_starts(self, folder):
        folder.mkdir()
        (folder / ".probe.partial").symlink_to("/dev/full")
        with pytest.raises(runs.RunError, match="no space is left on the disk"):
            runs.Run.open(folder, config())
        assert list(folder.iterdir()) == []

    @pytest.mark.parametrize(
        ("number", "reason"),
        [(errno.EROFS, "read-only"), (errno.EACCES, "permission is denied"), (errno.EDQUOT, "quota")],
    )
    def test_other_refusals_of_the_disk_have_a_name(self, folder, monkeypatch, number, reason):
        def refuse(descriptor):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "fsync", refuse)
        with pytest.raises(runs.RunError, match=reason):
            runs.Run.open(folder, config())
        assert list(folder.iterdir()) == []

    @staticmethod
    def limited(size):
        """Let this process write no file beyond `size` bytes: the kernel then refuses as a full disk does."""
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    def test_a_file_is_replaced_whole_or_not_at_all(self, run, folder):
        run.write("a/b.txt", "before")
        lift = self.limited(100)
        try:
            with pytest.raises(runs.RunError, match="What was complete before is intact"):
                run.write("a/b.txt", bytes(1000))
        finally:
            lift()
        assert snapshot(folder / "a") == {"b.txt": b"before"}
        run.write("a/b.txt", b"after")
        assert snapshot(folder / "a") == {"b.txt": b"after"}

    def test_a_line_is_appended_whole_or_not_at_all(self, run, folder):
        path = folder / "metrics.jsonl"
        before = path.read_bytes()
        lift = self.limited(len(before) + 10)
        try:
            with pytest.raises(runs.RunError, match="cannot write"):
                run.log(loss=1.0)
        finally:
            lift()
        assert path.read_bytes() == before

    def test_an_error_in_the_block_leaves_the_old_file(self, tmp_path):
        path = tmp_path / "region.safetensors"
        path.write_text("before")

        def interrupted():
            with runs.replacing(path) as partial:
                partial.write_text("half")
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            interrupted()
        assert snapshot(tmp_path) == {"region.safetensors": b"before"}

    def test_half_written_artefacts_are_removed_and_reported(self, folder):
        runs.Run.open(folder, config()).close()
        (folder / "figures").mkdir()
        (folder / "figures" / "a.png.partial").write_bytes(b"half")
        (folder / "scores" / "ar" / "2.orbax-checkpoint-tmp-7" / "tree").mkdir(parents=True)
        (folder / "scores" / "ar" / "2.orbax-checkpoint-tmp-7" / "tree" / "d").write_bytes(b"half")
        with runs.Run.open(folder, config()) as run:
            assert run.notes == [
                "figures/a.png.partial was left half-written and is removed",
                "scores/ar/2.orbax-checkpoint-tmp-7 was left half-written and is removed",
            ]
        assert [name for name in snapshot(folder) if "half" in name or "tmp" in name] == []

    def test_a_path_stays_inside(self, run):
        for outside in ("../x", "a/../../x", "/etc/x"):
            with pytest.raises(ValueError, match="outside"):
                run.path(outside)


class TestLock:
    def test_a_second_run_on_the_folder_is_refused_and_told_who_holds_it(self, run, folder):
        before = snapshot(folder)
        for fresh in (False, True):
            with pytest.raises(runs.RunError) as caught:
                runs.Run.open(folder, config(), fresh=fresh)
            assert f"{folder} is in use by process {os.getpid()} on {socket.gethostname()}" in str(caught.value)
        assert snapshot(folder) == before

    def test_a_living_holder_is_respected_and_a_dead_one_is_not(self, folder):
        runs.Run.open(folder, config()).close()
        script = """
            import fcntl, json, sys
            file = open(sys.argv[1], "r+")
            fcntl.flock(file, fcntl.LOCK_EX)
            file.write(json.dumps({"pid": 4321, "host": "far", "since": "yesterday"}))
            file.flush()
            print("held", flush=True)
            sys.stdin.read()
        """
        words = [sys.executable, "-c", textwrap.dedent(script), str(folder / ".lock")]
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
            assert holder.stdout.readline() == "held\n"
            with pytest.raises(runs.RunError, match="in use by process 4321 on far since yesterday"):
                runs.Run.open(folder, config())
            holder.kill()
            holder.wait()
        with runs.Run.open(folder, config()) as run:
            assert run.notes == ["process 4321 on far since yesterday ended without closing this work directory"]

    def test_a_closed_run_frees_the_folder(self, folder):
        for _ in range(2):
            with runs.Run.open(folder, config()) as run:
                assert run.notes == []


class TestMetrics:
    def test_lines_are_strict_json(self, run, folder):
        run.log(
            loss=jnp.float32(2.5),
            counts=np.array([1, 2]),
            bad=math.nan,
            worse=[1.0, -math.inf],
            inner={"x": np.float32(np.inf), "y": None},
            where=Path("a/b"),
            ok=True,
        )
        line = (folder / "metrics.jsonl").read_text().splitlines()[-1]

        def refuse(word):
            raise AssertionError(word)

        found = json.loads(line, parse_constant=refuse)
        assert found.pop("time") > 1.7e9
        assert found == {
            "loss": 2.5,
            "counts": [1, 2],
            "bad": None,
            "bad_repr": "nan",
            "worse": [1.0, None],
            "worse_repr": "[1.0, -inf]",
            "inner": {"x": None, "x_repr": "inf", "y": None},
            "where": "a/b",
            "ok": True,
        }

    def test_what_is_no_value_is_refused(self, run, folder):
        before = (folder / "metrics.jsonl").read_bytes()
        with pytest.raises(TypeError, match="loss is of type object"):
            run.log(loss=object())
        assert (folder / "metrics.jsonl").read_bytes() == before

    def test_a_cut_last_line_is_removed_and_reported(self, folder):
        with runs.Run.open(folder, config()) as run:
            run.log(step=1)
        with open(folder / "metrics.jsonl", "ab") as file:
            file.write(b'{"step": 2, "lo')
        with runs.Run.open(folder, config()) as run:
            assert run.notes == ["""the last line of metrics.jsonl was cut and is removed: b'{"step": 2, "lo'"""]
            run.log(step=2)
        assert [line["step"] for line in metrics(folder) if "step" in line] == [1, 2]

    def test_text_of_every_script_stays_readable(self, run, folder):
        run.log(text="語 ം\n")
        assert "語 ം" in (folder / "metrics.jsonl").read_text(encoding="utf-8")
        assert metrics(folder)[-1]["text"] == "語 ം\n"


class TestTable:
    def test_finished_cells_are_found_again(self, folder):
        with runs.Run.open(folder, config()) as run:
            run.table("results", COLUMNS, KEYS)
            assert run.rows("results") == []
            run.add("results", ROW)
        assert (folder / "results.csv").read_text() == HEADER + "base,ar,0.1,3,f2ded1fc\n"
        with runs.Run.open(folder, config()) as run:
            run.table("results", COLUMNS, KEYS)
            assert run.rows("results") == [ROW]
            run.add("results", ROW)  # again: nothing
            run.add("results", ROW | {"language": "zh", "nll_nats": math.inf})
            with pytest.raises(runs.RunError, match="has a row for intervention base, language ar with other values"):
                run.add("results", ROW | {"nll_nats": 0.2})
        crc = f"{zlib.crc32(b'base,zh,inf,3' + chr(10).encode()):08x}"
        assert (folder / "results.csv").read_text() == HEADER + f"base,ar,0.1,3,f2ded1fc\nbase,zh,inf,3,{crc}\n"

    def test_a_cut_last_row_is_removed_and_reported(self, folder):
        with runs.Run.open(folder, config()) as run:
            run.table("results", COLUMNS, KEYS)
            run.add("results", ROW)
        with open(folder / "results.csv", "a") as file:
            file.write("base,zh,0.")
        with runs.Run.open(folder, config()) as run:
            run.table("results", COLUMNS, KEYS)
            assert run.notes == ["the last row of results.csv was cut and is removed: b'base,zh,0.'"]
            assert run.rows("results") == [ROW]

    def test_a_cut_header_is_an_empty_table(self, run, folder):
        (folder / "results.csv").write_text("intervention,lang")
        run.table("results", COLUMNS, KEYS)
        run.add("results", ROW)
        assert (folder / "results.csv").read_text() == HEADER + "base,ar,0.1,3,f2ded1fc\n"

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("intervention,language\nbase,ar\n", r"has columns \['intervention', 'language'\], this version writes"),
            ("intervention,language,nll_nats,tokens\nbase,ar,0.1,3\n", "this version writes .*'row_crc32'"),
            (HEADER + "base,ar,0.1,3,f2ded1fc\nbase,zh,0.1,3,f2ded1fc\n", "results.csv:3 was changed"),
            (HEADER + "base,ar,0.2,3,f2ded1fc\n", "results.csv:2 was changed since it was written"),
            (HEADER + "base,ar,0.1\n", "results.csv:2 was changed"),
            (HEADER + "base,ar,much,3,ed3e2c00\n", "results.csv:2: could not convert"),
        ],
    )
    def test_a_table_that_somebody_changed_is_refused(self, run, folder, text, message):
        (folder / "results.csv").write_text(text)
        with pytest.raises(runs.RunError, match=message):
            run.table("results", COLUMNS, KEYS)
        assert (folder / "results.csv").read_text() == text

    @pytest.mark.parametrize(
        ("row", "message"),
        [
            ({"intervention": "base"}, "a row of results.csv has columns"),
            (ROW | {"more": 1}, "a row of results.csv has columns"),
            (ROW | {"tokens": 1.5}, "tokens of results.csv is of type int, not 1.5"),
            (ROW | {"tokens": True}, "tokens of results.csv is of type int, not True"),
            (ROW | {"intervention": "a\nb"}, "must stay on one line"),
        ],
    )
    def test_a_row_that_does_not_fit_is_refused(self, run, folder, row, message):
        run.table("results", COLUMNS, KEYS)
        with pytest.raises(ValueError, match=message):
            run.add("results", row)
        assert not (folder / "results.csv").exists()

    def test_names_are_checked(self, run):
        with pytest.raises(ValueError, match="table results is not declared"):
            run.rows("results")
        with pytest.raises(ValueError, match="must be among its columns"):
            run.table("results", COLUMNS, ("intervention", "tongue"))

    def test_scalars_of_numpy_and_jax_are_values(self, run):
        run.table("results", COLUMNS, KEYS)
        run.add("results", ROW | {"nll_nats": jnp.float32(0.5), "tokens": np.int64(1 << 40)})
        assert run.rows("results") == [ROW | {"nll_nats": 0.5, "tokens": 1 << 40}]

    @given(
        st.lists(
            st.tuples(
                st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\r\n\0")),
                st.floats(),
                st.integers(),
                st.booleans(),
            ),
            unique_by=lambda row: row[0],
        )
    )
    def test_every_value_comes_back_bit_for_bit(self, tmp_path_factory, rows):
        columns = {"name": str, "number": float, "count": int, "flag": bool}
        path = tmp_path_factory.mktemp("table") / "t.csv"
        table = Table(path, columns, ("name",), writer=True)
        for row in rows:
            table.add(dict(zip(columns, row, strict=True)))
        again = Table(path, columns, ("name",), writer=True)
        assert repr(again.rows()) == repr(table.rows())


class TestStages:
    def test_a_finished_stage_hands_back_its_facts(self, folder):
        with runs.Run.open(folder, config()) as run:
            assert run.done("select") is None
            run.write("regions/core.bin", b"bits")
            run.finish("select", "regions/core.bin", name="core", share=math.nan)
        with runs.Run.open(folder, config()) as run:
            assert run.done("select") == {"name": "core", "share": None, "share_repr": "nan"}
        marker = json.loads((folder / "done" / "select.json").read_text())
        # printf bits | sha256sum
        bits = "e5e59d10f196504b6e08ac7785f84430a61e1558fd6246075a9566edaab2e814"
        assert marker["files"] == {"regions/core.bin": {"bytes": 4, "sha256": bits}}

    def test_an_artefact_that_is_gone_or_changed_undoes_the_stage(self, run, folder):
        run.write("a.bin", b"one")
        run.write("tree/x/y", b"two")
        run.finish("stage", "a.bin", "tree")
        assert run.done("stage") == {}
        (folder / "tree" / "x" / "y").rename(folder / "tree" / "x" / "z")
        assert run.done("stage") is None
        (folder / "tree" / "x" / "z").rename(folder / "tree" / "x" / "y")
        assert run.done("stage") == {}
        (folder / "a.bin").write_bytes(b"One")
        assert run.done("stage") is None
        (folder / "a.bin").unlink()
        assert run.done("stage") is None
        assert run.notes == [
            "tree is not what stage wrote; stage is done again",
            "a.bin is not what stage wrote; stage is done again",
            "a.bin is gone; stage is done again",
        ]

    def test_a_damaged_marker_is_no_marker(self, run, folder):
        run.finish("stage")
        (folder / "done" / "stage.json").write_text('{"files')
        assert run.done("stage") is None
        assert len(run.notes) == 1
        assert "is damaged: it holds no JSON object; stage is done again" in run.notes[0]

    def test_a_forged_marker_is_no_marker(self, run, folder):
        run.finish("stage", samples=64)
        path = folder / "done" / "stage.json"
        path.write_text(path.read_text().replace("64", "65"))
        assert run.done("stage") is None
        assert "does not match its checksum; stage is done again" in run.notes[0]


def tree(scale):
    return {
        "norm": jnp.full((4,), scale, jnp.float32),
        "layers": {
            "q_proj": scale * jnp.arange(64, dtype=jnp.float32).reshape(2, 4, 8),
            "mask": jnp.arange(16).reshape(2, 8) % 3 == 0,
        },
    }


class TestTrees:
    def test_a_tree_saved_on_eight_devices_is_read_on_one_and_back(self, run, mesh, lone_mesh):
        def spread(values, mesh, *axes):
            sharding = NamedSharding(mesh, PartitionSpec(*axes))
            return jax.tree.map(lambda leaf: jax.device_put(leaf, sharding) if leaf.ndim == 3 else leaf, values)

        saved = spread(tree(1.0), mesh, None, "fsdp", "tensor")
        run.save("scores/ar", saved, {"samples": 3, "loss": math.inf})
        assert run.header("scores/ar") == {"samples": 3, "loss": None, "loss_repr": "inf"}
        for target in (lone_mesh, mesh):
            like = jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding),
                spread(tree(0.0), target, None, "tensor", "fsdp"),
            )
            found = run.load("scores/ar", like)
            assert jax.tree.structure(found) == jax.tree.structure(saved)
            for got, want, asked in zip(*map(jax.tree.leaves, (found, saved, like)), strict=True):
                np.testing.assert_array_equal(got, want)
                assert got.dtype == want.dtype
                assert got.sharding == asked.sharding

    def test_the_newest_counts_and_the_older_goes(self, run, folder):
        for number in (1, 2, 3):
            run.save("scores/ar", tree(float(number)), {"samples": number})
        assert run.header("scores/ar") == {"samples": 3}
        np.testing.assert_array_equal(run.load("scores/ar", tree(0.0))["norm"], [3.0] * 4)
        assert [path.name for path in (folder / "scores" / "ar").iterdir()] == ["3"]

    def test_a_resume_point_that_has_served_is_discarded(self, run, folder):
        run.discard("draft/ar")
        run.save("draft/ar", tree(1.0), {})
        run.save("draft/zh", tree(2.0), {})
        run.discard("draft/ar")
        assert run.header("draft/ar") is None
        assert run.header("draft/zh") == {}
        assert [path.name for path in (folder / "draft").iterdir()] == ["zh"]
        run.save("draft/ar", tree(3.0), {"again": True})
        assert run.header("draft/ar") == {"again": True}

    def test_the_state_of_an_optimizer_is_a_tree_too(self, run):
        optimizer = optax.adam(0.1)
        state = jax.tree.map(lambda leaf: leaf + leaf.dtype.type(3), optimizer.init({"w": jnp.zeros((2, 4))}))
        run.save("train/state", state, {})
        found = run.load("train/state", jax.eval_shape(lambda: state))
        assert jax.tree.structure(found) == jax.tree.structure(state)
        jax.tree.map(np.testing.assert_array_equal, found, state)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda t: t["layers"].pop("mask"), "holds layers.mask, for which there is no place"),
            (lambda t: t.update(extra=t["norm"]), "holds no extra, which is asked for"),
            (lambda t: t.update(norm=jnp.zeros((5,))), r"norm is saved as float32\[4\], asked for as float32\[5\]"),
            (
                lambda t: t["layers"].update(mask=jnp.zeros((2, 8), jnp.int8)),
                r"layers.mask is saved as bool\[2,8\], asked for as int8\[2,8\]",
            ),
        ],
    )
    def test_another_tree_is_refused_by_its_first_path(self, run, change, message):
        run.save("scores/ar", tree(1.0), {})
        other = tree(1.0)
        change(other)
        with pytest.raises(runs.RunError, match=message):
            run.load("scores/ar", other)

    def test_nothing_saved_is_none_or_an_error(self, run):
        assert run.header("scores/ar") is None
        with pytest.raises(runs.RunError, match="nothing is saved in .*scores/ar"):
            run.load("scores/ar", tree(1.0))

    def test_a_damaged_file_is_named(self, run, folder):
        run.save("scores/ar", {"x": jnp.ones(8)}, {})
        for path in (folder / "scores" / "ar" / "1" / "tree").rglob("d/*"):
            path.write_bytes(b"")
        with pytest.raises(runs.RunError, match="scores/ar/1 is damaged and cannot be read"):
            run.load("scores/ar", {"x": jnp.ones(8)})

    @pytest.mark.parametrize(
        ("event", "part", "survivor"),
        [
            ("os.rename", "orbax-checkpoint-tmp", 1),  # everything is written, nothing has its name yet
            ("shutil.rmtree", "scores/ar/1", 2),  # the new one has its name, the old one is still there
        ],
    )
    def test_kill_9_in_the_middle_of_a_save_leaves_one_whole_tree(self, folder, event, part, survivor):
        script = f"""
            import os, signal, sys
            import jax.numpy as jnp
            from lingregions.run import Run

            def die(event, words):
                if event == {event!r} and {part!r} in str(words[0]) and armed:
                    os.kill(os.getpid(), signal.SIGKILL)

            armed = []
            sys.addaudithook(die)
            run = Run.open({str(folder)!r}, {config().to_dict()!r})
            run.save("scores/ar", {{"x": jnp.full((1000,), 1.0)}}, {{"samples": 1}})
            armed.append(True)
            run.save("scores/ar", {{"x": jnp.full((1000,), 2.0)}}, {{"samples": 2}})
        """
        done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True)
        assert done.returncode == -signal.SIGKILL, done.stderr
        with runs.Run.open(folder, config()) as run:
            assert any("ended without closing this work directory" in note for note in run.notes)
            assert any("was left half-written" in note for note in run.notes) == (survivor == 1)
            assert run.header("scores/ar") == {"samples": survivor}
            np.testing.assert_array_equal(run.load("scores/ar", {"x": jnp.zeros(1000)})["x"], survivor)
            run.save("scores/ar", {"x": jnp.full((1000,), 3.0)}, {"samples": 3})
            assert run.header("scores/ar") == {"samples": 3}


class TestInterrupt:
    @pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
    def test_a_signal_stops_at_the_next_safe_point(self, folder, capfd, number, code):
        before = signal.getsignal(number)
        finished = []

        def work():
            with runs.Run.open(folder, config()) as run:
                run.check()
                assert not run.stopping()
                signal.raise_signal(number)
                assert run.stopping()
                finished.append("what was under way")
                run.check()

        with pytest.raises(runs.Interrupted) as caught:
            work()
        assert finished == ["what was under way"]
        assert caught.value.code == code
        assert f"kept in {folder}, the same command goes on from there" in str(caught.value)
        assert metrics(folder)[-1]["signal"] == number.name
        assert signal.getsignal(number) == before
        assert capfd.readouterr().err == f"{number.name}: stopping at the next safe point\n"
        with runs.Run.open(folder, config()) as run:
            run.check()

    def test_a_second_signal_acts_at_once(self, folder):
        def work():
            with runs.Run.open(folder, config()):
                signal.raise_signal(signal.SIGTERM)
                signal.raise_signal(signal.SIGINT)
                raise AssertionError("not reached")

        # A process that was started in the background of a shell ignores SIGINT; here it must not.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            with pytest.raises(KeyboardInterrupt):
                work()
        finally:
            signal.signal(signal.SIGINT, before)


class TestProgress:
    @pytest.fixture
    def now(self, monkeypatch):
        now = [100.0]
        monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
        return now

    def test_a_line_says_how_far_how_fast_how_long(self, now):
        screen = Console(file=io.StringIO(), width=200)
        display = progress.Display("auto", screen)
        assert display.style == "lines"
        with display.bar("score ar", 1536, "tokens") as bar:
            assert str(bar) == "score ar: 0/1,536 tokens"
            now[0] += 4
            bar.advance(512)  # 4 s since the last line: none yet
            now[0] += 8
            bar.advance(256)
            now[0] += 12
            bar.advance(768)
        assert screen.file.getvalue().splitlines() == [
            "score ar: 768/1,536 tokens, 64 tokens/s, 0:12 left",
            "score ar: 1,536/1,536 tokens, 64 tokens/s",
        ]

    def test_a_whole_says_what_finished_and_when_all_will_be(self, now):
        screen = Console(file=io.StringIO(), width=200)
        display = progress.Display("lines", screen)
        with display.whole([300, 300, 0, 400], [1, 0, 0, 0]):
            for place, (name, seconds) in enumerate({"score ar": 0, "score zh": 30, "regions": 6}.items()):
                with display.step(place, name):
                    for _ in range(2 if seconds == 30 else 0):
                        with display.bar(name, 2, "samples") as bar:
                            now[0] += 15
                            bar.advance()
                    now[0] += seconds % 30
            with display.step(3, "evaluate"):
                now[0] += 64
        assert screen.file.getvalue().splitlines() == [
            "1 of 4 steps were finished before",
            # 150 of the 700 that are left took 15 s
            "score zh: 1/2 samples, 0.067 samples/s, 0:15 left; 1 of 4 steps, 45% of the work, about 0:55 left in all",
            "score zh: 1/2 samples, 0.067 samples/s, 0:15 left; 1 of 4 steps, 45% of the work, about 1:50 left in all",
            "score zh: done in 0:30; 2 of 4 steps, 60% of the work, about 0:40 left in all",
            "regions: done in 0:06; 3 of 4 steps, 60% of the work, about 0:48 left in all",
            "evaluate: done in 1:04; 4 of 4 steps",
        ]

    def test_the_first_twentieth_of_the_work_is_too_little_for_a_time_in_all(self, now):
        screen = Console(file=io.StringIO(), width=200)
        display = progress.Display("lines", screen)
        with display.whole([100], [0]), display.step(0, "score"), display.bar("zh", 100, "samples") as bar:
            for amount in (4, 6):  # the first samples compile
                now[0] += 15
                bar.advance(amount)
        assert screen.file.getvalue().splitlines()[:2] == [
            "zh: 4/100 samples, 0.27 samples/s, 6:00 left; 0 of 1 steps, 4% of the work",
            "zh: 10/100 samples, 0.33 samples/s, 4:30 left; 0 of 1 steps, 10% of the work, about 4:30 left in all",
        ]

    def test_a_notebook_folds_its_lines_below_the_last(self, now, monkeypatch):
        shown = []
        handle = SimpleNamespace(update=lambda page: shown.append(page.data))
        monkeypatch.setattr("IPython.display.display", lambda page, display_id: shown.append(page.data) or handle)
        display = progress.Display("auto", Console(file=io.StringIO(), force_jupyter=True))
        with display.whole([1, 1], [0, 0]):
            for place, name in enumerate(("score <ar>", "evaluate")):
                with display.step(place, name):
                    now[0] += 3
        first = "score &lt;ar&gt;: done in 0:03; 1 of 2 steps, 50% of the work, about 0:03 left in all"
        last = "evaluate: done in 0:03; 2 of 2 steps"
        assert shown == [
            f"<details><summary>{first}</summary><pre>{first}</pre></details>",
            f"<details><summary>{last}</summary><pre>{first}\n{last}</pre></details>",
        ]

    def test_lines_of_a_day_are_few(self, now):
        screen = Console(file=io.StringIO(), width=200)
        with progress.Display("lines", screen).bar("score ar", 86_400, "tokens") as bar:
            for _ in range(86_400):
                now[0] += 1
                bar.advance()
        lines = screen.file.getvalue().splitlines()
        assert len(set(lines)) == len(lines)
        assert 100 < len(lines) < 160

    def test_a_size_that_is_not_known_gives_no_time(self, now):
        screen = Console(file=io.StringIO(), width=200)
        display = progress.Display("lines", screen)
        with display.whole([0, 0], [0, 0]), display.step(0, "score ar"):
            now[0] += 9
        assert screen.file.getvalue() == "score ar: done in 0:09; 1 of 2 steps\n"

    def test_bars_on_a_terminal_may_be_nested(self):
        screen = Console(file=io.StringIO(), force_terminal=True, width=120)
        display = progress.Display("auto", screen)
        assert display.style == "bar"
        with display.bar("languages", 2, "languages") as outer:
            for language in ("ar", "zh"):
                with display.bar(f"score {language}", 512, "tokens") as inner:
                    inner.advance(512)
                outer.advance()
        assert "languages" in screen.file.getvalue()
        assert "2/2 languages" in screen.file.getvalue()

    def test_a_terminal_shows_the_whole_below_what_finished(self):
        screen = Console(file=io.StringIO(), force_terminal=True, width=160)
        display = progress.Display("bar", screen)
        with display.whole([3, 1], [0, 0]):
            with display.step(0, "score ar"), display.bar("score ar", 512, "tokens") as bar:
                bar.advance(512)
            with display.step(1, "evaluate"):
                pass
        said = screen.file.getvalue()
        assert "score ar: done in 0:00; 1 of 2 steps, 75% of the work" in said
        assert "in all" in said

    def test_none_is_silent_and_the_time_is_logged(self, run, folder, capfd):
        with run.progress("score ar", 10, "tokens") as bar:
            bar.advance(4)
            bar.advance(6)
        assert capfd.readouterr() == ("", "")
        line = metrics(folder)[-1]
        assert (line["event"], line["description"], line["amount"], line["unit"]) == ("timed", "score ar", 10, "tokens")

    def test_an_unknown_style_is_refused(self):
        with pytest.raises(ValueError, match="progress is one of auto, bar, lines, none, not 'loud'"):
            progress.Display("loud")


@pytest.mark.slow
def test_two_processes_write_once_agree_and_stop_together(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    script = f"""
        import os, signal, sys
        import jax, jax.numpy as jnp, numpy as np
        from jax.sharding import NamedSharding, PartitionSpec
        from lingregions.run import Interrupted, Run, RunError

        process = int(sys.argv[1])
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", 2)
        jax.distributed.initialize("localhost:{port}", 2, process)
        config = {config().to_dict()!r}

        try:
            Run.open({str(tmp_path / "other")!r}, {{**config, "seed": process}})
        except RunError as error:
            assert "process 1 ({socket.gethostname()}) was started with another config" in str(error), error
        else:
            raise AssertionError("another config was accepted")

        with open({str(tmp_path / "file")!r}, "w"):
            pass
        try:
            Run.open({str(tmp_path / "file")!r}, config)
        except RunError as error:
            assert "is a file" in str(error), error
        else:
            raise AssertionError("a file was accepted")

        sharding = NamedSharding(jax.make_mesh((4,), ("data",)), PartitionSpec("data"))
        with Run.open({str(tmp_path / "run")!r}, config) as run:
            run.table("results", {{"intervention": str, "share": float}}, ("intervention",))
            run.log(step=1)
            run.add("results", {{"intervention": "base", "share": 0.5}})
            assert run.rows("results") == [{{"intervention": "base", "share": 0.5}}]
            run.write("a.txt", "once")
            run.finish("stage", "a.txt", entries=3)
            assert run.done("stage") == {{"entries": 3}}
            assert run.agree(process) == 0
            assert run.header("scores") is None
            values = jax.make_array_from_callback((8,), sharding, lambda at: np.arange(8.0, dtype=np.float32)[at])
            for samples in (1, 2):
                run.save("scores", {{"x": values}}, {{"samples": samples}})
            assert run.header("scores") == {{"samples": 2}}
            found = run.load("scores", {{"x": jax.ShapeDtypeStruct((8,), jnp.float32, sharding=sharding)}})["x"]
            for shard in found.addressable_shards:
                np.testing.assert_array_equal(shard.data, np.arange(8.0)[shard.index])
            assert not run.stopping()
            run.check()
            if process == 1:
                signal.raise_signal(signal.SIGTERM)
            assert run.stopping()
            run.discard("scores")
            run.check()
    """
    words = [sys.executable, "-c", textwrap.dedent(script)]
    pair = [
        subprocess.Popen([*words, str(process)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for process in (0, 1)
    ]
    errors = [process.communicate(timeout=120)[1] for process in pair]
    assert [process.returncode for process in pair] == [143, 143], "\n".join(errors)
    assert [line.get("event", "step") for line in metrics(tmp_path / "run")] == ["opened", "step", "interrupted"]
    assert not (tmp_path / "run" / "scores").exists()
    assert (tmp_path / "run" / "results.csv").read_text() == "intervention,share,row_crc32\nbase,0.5,89493310\n"


def test_sweep_and_repair_leave_whole_files_alone(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    assert files.sweep(tmp_path) == []
    assert files.repair(tmp_path / "a.txt") == b""
    assert files.repair(tmp_path / "none.txt") == b""
    assert snapshot(tmp_path) == {"a.txt": b"one\ntwo\n"}
