"""The plan of a job: slices by name, counts by hand, what fits, what is said, and where every array lies.

What the TPU compiler itself says is test_tpu.py's; here its answers are given.
"""

import dataclasses
import json
import math
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, NamedSharding

from lingregions import freeze, main, models, scoring, train
from lingregions import mesh as meshes
from lingregions import tree as trees
from lingregions.plan import command, compiled, cost, hardware, plan, table
from lingregions.plan.compiled import Compiled, Step
from lingregions.plan.hardware import GIB, Topology

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = Path(__file__).parent / "golden"
TINY, SEVEN = models.PRESETS["tiny"], models.PRESETS["llama2-7b"]
BFLOAT16 = models.Compute(dtype="bfloat16", remat="full")


def step(job: str = "score", model=TINY, compute=None, mesh=(1, 1, 1), micro=4, length=8, batch=4, topology="v5e-1"):
    return Step(job, model, compute or models.Compute(), mesh, micro, length, batch, topology)


# Slices by name.


@pytest.mark.parametrize(
    ("name", "chip", "chips", "slices", "shape"),
    [
        ("v5e-16", "v5e", 16, 1, (4, 4)),
        ("v5litepod-16", "v5e", 16, 1, (4, 4)),
        ("V6E-8", "v6e", 8, 1, (2, 4)),
        ("v4-16", "v4", 8, 1, (2, 2, 2)),  # TensorCores, two a chip
        ("v4-32", "v4", 16, 1, (2, 2, 4)),
        ("v5p-64", "v5p", 32, 1, (2, 4, 4)),
        ("2xv5e-16", "v5e", 16, 2, (4, 4)),
    ],
)
def test_a_topology_is_read_from_its_name(name, chip, chips, slices, shape):
    found = hardware.parse(name)
    assert (found.chip.name, found.chips, found.slices, found.shape) == (chip, chips, slices, shape)
    assert found.devices == chips * slices
    assert hardware.parse(found.name) == found


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v9-16", "no topology 'v9-16': a topology reads like v5e-16, .* the chips are v4, v5e, v5p, v6e"),
        ("v5-16", r"did you mean v5.-16\?"),
        ("sixteen", "a topology reads like v5e-16"),
        ("v5e-17", "there is no slice 'v5e-17'; there are v5e-1, v5e-4, v5e-8, v5e-16"),
        ("v4-7", r"there are v4-8, v4-16, .* \(v4 counts TensorCores, 2 a chip\)"),
        ("0xv5e-16", "there is no slice '0xv5e-16'"),
    ],
)
def test_a_topology_that_does_not_exist_is_refused_with_those_that_do(name, message):
    with pytest.raises(ValueError, match=message):
        hardware.parse(name)


def test_what_the_compiler_is_asked_for():
    assert hardware.parse("v5e-16").description() == ("v5e:4x4", {})
    assert hardware.parse("v4-16").description() == ("v4:2x2x2", {"chip_config_name": "megacore"})
    assert hardware.parse("2xv5e-16").description() == ("v5e:4x4", {"num_slices": 2})
    assert hardware.parse("v5e-1").description() == ("v5e:1x1", {"chips_per_host_bounds": (1, 1, 1)})


@pytest.mark.parametrize("chip", hardware.CHIPS.values(), ids=lambda chip: chip.name)
def test_the_shapes_of_slices_multiply_to_their_chips(chip):
    sizes = hardware.sizes(chip)
    assert [each.chips for each in sizes] == sorted(math.prod(each.shape) for each in sizes)
    assert all(len(each.shape) == chip.dimensions for each in sizes)


# Operations by hand. A tiny layer holds q 64 x 64, k and v 32 x 64 each, o 64 x 64, and three of 128 x 64; two layers.
LAYERS = 2 * (64 * 64 + 2 * 32 * 64 + 64 * 64 + 3 * 128 * 64)
MATRICES = 2 * 8 * LAYERS  # a sample of 8 tokens
PRODUCT = 2 * (8 * 9 // 2) * 64 * 2  # one product of attention: 36 pairs, 4 heads of 16, two layers
VOCABULARY = 2 * 8 * 264 * 64
FORWARD = MATRICES + 2 * PRODUCT


@pytest.mark.parametrize(
    ("job", "remat", "each"),
    [
        ("evaluate", "full", FORWARD + VOCABULARY),
        ("score", "none", 2 * FORWARD + 2 * MATRICES + 5 * PRODUCT + 2 * VOCABULARY),  # as under "full"
        ("score", "dots", FORWARD + 2 * MATRICES + 5 * PRODUCT + 2 * VOCABULARY),
        ("score", "full", 2 * FORWARD + 2 * MATRICES + 5 * PRODUCT + 2 * VOCABULARY),
        ("train", "none", FORWARD + 2 * MATRICES + 5 * PRODUCT + 4 * VOCABULARY),
        ("train", "dots", FORWARD + 2 * MATRICES + 5 * PRODUCT + 4 * VOCABULARY),
        ("train", "full", 2 * FORWARD + 2 * MATRICES + 5 * PRODUCT + 4 * VOCABULARY),
        ("select", "full", 0),
    ],
)
def test_operations_are_counted_by_hand(job, remat, each):
    assert (LAYERS, FORWARD) == (73_728, 1_198_080)
    assert cost._flops(step(job, compute=models.Compute(remat=remat))) == 4 * each


def test_a_training_step_counts_all_its_micro_batches():
    one, eight = (step("train", micro=4, batch=batch) for batch in (4, 32))
    assert cost._flops(eight) == 8 * cost._flops(one)
    assert cost.memory(eight).temporaries == cost.memory(one).temporaries + 4 * 107_840  # sums of gradients


def test_the_seven_billion_are_counted_as_everybody_counts_them():
    # 6 N operations a token, N without the embedding, plus attention's: within 2 % at 512 tokens.
    asked = step("train", SEVEN, models.Compute(), micro=1, length=512, batch=1)
    plain = 6 * 512 * (6_738_415_616 - 32_000 * 4096)
    assert 1.0 < cost._flops(asked) / plain < 1.04


# Memory by hand. All 107,840 parameters of tiny: 73,728 in matrices, five norms of 64, two tables of 264 x 64.


def test_arguments_on_one_device():
    tokens = 12 * 4 * 8
    assert cost.memory(step("evaluate")).arguments == 4 * 107_840 + 8 * 4 * 8
    assert cost.memory(step("score")).arguments == 4 * 107_840 + 4 * (73_728 + 4 * 64) + tokens
    assert cost.memory(step("train")).arguments == 12 * 107_840 + 73_728 // 8 + 8 * 4 * 8
    # The mask of the largest leaf comes out instead of going in.
    assert cost.memory(step("select")).arguments == 5 * (73_728 + 4 * 64) - 2 * 128 * 64


def test_the_paper_sums_in_bfloat16_beside_the_open_group():
    sound, paper = (dataclasses.replace(step("score"), preset=preset) for preset in ("sound", "paper"))
    assert cost.memory(paper).arguments - cost.memory(sound).arguments == 2 * (73_728 + 4 * 64)
    topology = hardware.parse("v5e-16")
    asked = dataclasses.replace(paper, model=SEVEN, compute=BFLOAT16, mesh=(-1, -1, -1), micro=0, length=512)
    assert max(each.micro for each in plan._ranked(asked, topology)) == 64  # the samples of a group


def test_arguments_on_a_mesh_follow_the_shardings():
    # fsdp 2 x tensor 4: two kv heads do not go on four devices, so k and v are split by fsdp alone, like the norms.
    expected = (73_728 - 2 * 2 * 32 * 64 + 2 * 264 * 64) // 8 + (2 * 2 * 32 * 64 + 5 * 64) // 2
    asked = step("evaluate", mesh=(1, 2, 4), topology="v5e-8")
    assert cost.memory(asked).arguments == 4 * expected + 8 * 2 * 8


@pytest.mark.parametrize(
    ("job", "mesh", "micro", "arguments", "peak"),
    # What the TPU compiler said, GiB a chip, v5e-16 or v5e-8, 512 tokens.
    [
        ("score", (1, 16, 1), 16, 3.08, 3.47),
        ("score", (1, 16, 1), 128, 3.08, 5.07),
        ("score", (1, 8, 1), 64, 6.15, 8.21),
        ("train", (1, 16, 1), 16, 4.75, 5.91),
    ],
)
def test_the_estimate_is_near_what_the_compiler_said(job, mesh, micro, arguments, peak):
    found = cost.memory(step(job, SEVEN, BFLOAT16, mesh, micro, 512, micro, f"v5e-{mesh[1]}"))
    assert found.arguments / GIB == pytest.approx(arguments, abs=0.02)
    assert found.peak / GIB == pytest.approx(peak, rel=0.1)


def test_bytes_between_chips_by_hand():
    # Evaluation gathers each parameter of the layers and the head once in bfloat16: a chip receives 15 of 16 parts. Of
    # the embedding it receives what its 512 tokens look up.
    asked = step("evaluate", SEVEN, BFLOAT16, (1, 16, 1), 16, 512, 16, "v5e-16")
    received = 2 * (6_738_415_616 - 4096 - 32_000 * 4096 + 512 * 4096) * 15 / 16
    found = cost.cost(asked, hardware.parse("v5e-16"))
    assert found.link == pytest.approx(received, rel=1e-9)
    assert found.between == 0
    seconds = found.seconds(hardware.parse("v5e-16"))
    assert seconds["links"] == pytest.approx(received / 200e9)
    assert seconds["compute"] == pytest.approx(found.flops / 16 / 197e12)
    # Two slices: the gradients of a score cross between them, twice half of the float32 shards.
    two = cost.cost(step("score", SEVEN, BFLOAT16, (2, 16, 1), 32, 512, 32, "2xv5e-16"), hardware.parse("2xv5e-16"))
    assert two.between == 4 * (6_738_415_616 - 2 * 32_000 * 4096 - 4096) // 16


# Choosing.


def test_candidates_keep_heads_whole_and_data_on_the_slices():
    # tiny has two kv heads: tensor is 1 or 2. Two slices of 4: data is 2 at least.
    found = list(plan._meshes(step(mesh=(-1, -1, -1)), Topology(hardware.CHIPS["v5e"], 4, 2)))
    assert found == [(2, 4, 1), (4, 2, 1), (8, 1, 1), (2, 2, 2), (4, 1, 2)]


def test_the_choice_fits_and_is_the_largest_micro_batch_worth_having():
    topology = hardware.parse("v5e-16")
    asked = step("train", SEVEN, BFLOAT16, (-1, -1, -1), 0, 512, 256, "v5e-16")
    best = plan._ranked(asked, topology)[0]
    assert math.prod(best.mesh) == 16
    assert best.batch == 256
    assert best.batch % best.micro == 0
    assert cost.memory(best).peak <= plan._MARGIN * topology.chip.memory
    smaller = dataclasses.replace(best, micro=best.mesh[0] * best.mesh[1])
    assert plan._time(best, topology) <= plan._time(smaller, topology)


def test_mesh_and_micro_batch_can_be_given():
    asked = step("score", SEVEN, BFLOAT16, (1, 8, 2), 24, 512, 0, "v5e-16")
    (found,) = plan._ranked(asked, hardware.parse("v5e-16"))
    assert (found.mesh, found.micro) == ((1, 8, 2), 24)


def test_a_batch_that_no_mesh_takes_is_refused():
    asked = step("score", SEVEN, BFLOAT16, (1, 16, 1), 3, 512, 0, "v5e-16")
    with pytest.raises(ValueError, match="micro-batch of 3 samples does not divide over data x fsdp"):
        plan._least(asked, hardware.parse("v5e-16"))


def test_the_smallest_slice_is_the_first_that_fits():
    asked = step("train", SEVEN, BFLOAT16, (-1, -1, -1), 0, 512, 256)
    found = plan._smallest(asked, hardware.CHIPS["v5e"])
    assert found is not None
    assert found.name == "v5e-8"
    assert plan._ranked(asked, hardware.parse("v5e-4")) == []
    endless = dataclasses.replace(SEVEN, layers=100_000)
    assert plan._smallest(dataclasses.replace(asked, model=endless), hardware.CHIPS["v5e"]) is None


# The verdict, with the compiler's answer given.


def planned(monkeypatch, answer, job="score", topology="v5e-16"):
    asked: list[Step] = []

    def compile(chosen, quick):
        asked.append(chosen)
        return answer

    monkeypatch.setattr(compiled, "compile", compile)
    chosen = step(job, SEVEN, BFLOAT16, (-1, -1, -1), 0, 512, 256, topology)
    return plan.make("llama2-7b", hardware.parse(topology), chosen), asked


def test_what_the_compiler_accepts_fits(monkeypatch):
    found, asked = planned(monkeypatch, Compiled(3 * GIB, 4 * GIB, 6 * GIB, {}, 30.0))
    assert found.fits
    assert found.peak == 6 * GIB
    assert len(asked) == 1
    said = plan.describe(found)
    assert "llama2-7b (6.74 billion parameters), score on v5e-16: 16 chips of 15.75 GiB" in said
    assert "arguments 3.00 GiB, temporaries 4.00 GiB, peak 6.00 GiB a chip" in said
    assert "fits (compiled in 30 s)" in said
    assert "no score and no mask is gathered" in said
    assert "smallest    v5e-4 fits, by estimate" in said
    # 600,000 samples, each of 27.1 TFLOP, at 16 x 197 TFLOP/s.
    assert found.hours == pytest.approx(600_000 * cost._flops(asked[0]) / asked[0].micro / 16 / 197e12 / 3600, rel=0.01)


def test_what_the_compiler_refuses_does_not_fit_and_is_tried_twice(monkeypatch):
    found, asked = planned(monkeypatch, Compiled(needed=29 * GIB, memory=round(15.75 * GIB), seconds=9.0), "train")
    assert not found.fits
    assert len(asked) == 2
    assert cost.memory(asked[1]).peak <= cost.memory(asked[0]).peak
    assert "needs 29.00 GiB a chip: DOES NOT FIT (compiled in 9 s)" in plan.describe(found)


def test_a_slice_too_small_is_told_the_one_that_fits(monkeypatch):
    found, _ = planned(monkeypatch, Compiled(needed=30 * GIB, memory=round(15.75 * GIB)), "train", "v5e-4")
    assert "smallest    v5e-8 fits, by estimate" in plan.describe(found)


def test_gathered_scores_are_named(monkeypatch):
    answer = Compiled(1, 1, 2, {"f32[32,4096,4096]": 2, "bf16[4096,4096]": 9, "f32[16]": 1, "pred[32,8,8]": 1}, 1.0)
    assert "GATHERED f32[32,4096,4096], pred[32,8,8]" in plan.describe(planned(monkeypatch, answer)[0])


def test_gathers_are_read_from_the_program():
    text = """
      %a = bf16[1,4096]{1,0:T(8,128)} all-gather(%x), replica_groups={}
      %b = (f32[2,4]{1,0}, f32[32,4]{1,0}) all-gather-start(f32[2,4] %y), dimensions={0}
      %c = f32[32,4]{1,0} all-gather-done(%b)
      %d = bf16[1,4096]{1,0} all-gather(%z)
      %e = f32[7] all-reduce(%w)
    """
    assert compiled._gathers(text) == {"bf16[1,4096]": 2, "f32[32,4]": 1}


def test_a_step_goes_through_json_unchanged():
    asked = step("train", models.PRESETS["llama2-70b"], BFLOAT16, (2, 8, 2), 16, 512, 256, "2xv5e-16")
    fields = dataclasses.asdict(asked) | {"model": models.dump(asked.model), "quick": True}
    assert compiled._read(json.dumps(fields)) == asked


# The command.


def said(capsys, *words):
    code = main.main(["plan", *words])
    out = capsys.readouterr()
    return code, out.out, out.err


@pytest.mark.parametrize(
    ("job", "phrases"),
    [
        ("score", ["score on v5e-16", "micro-batch", "600,000 samples", "bound by compute", "chip-hours at best"]),
        ("evaluate", ["evaluate on v5e-16", "remat none", "30,000 samples"]),
        ("select", ["select on v5e-16", "one selection", "bound by memory"]),
        ("train", ["train on v5e-16", "100,000 samples, 391 steps"]),
    ],
)
def test_each_job_is_told_in_words(capsys, job, phrases):
    code, out, _ = said(capsys, "--model=llama2-7b", "--topology=v5e-16", f"--job={job}", "--estimate")
    assert code == 0
    assert "fits (by estimate)" in out
    for phrase in phrases:
        assert phrase in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--topology=v5e-16"], "--model is missing: llama2-13b"),
        (["--model=llama3", "--topology=v5e-16"], "no model 'llama3': there are tiny, thirty, smollm2-135m, llama2-7b"),
        (["--model=tiny", "--topology=v5e-3", "--estimate"], "there is no slice 'v5e-3'"),
        (["--model=tiny", "--topology=v5e-4", "--estimate", "--mesh=1,2,1"], "does not multiply to the 4 chips"),
        (["--model=tiny", "--topology=v5e-4", "--estimate", "--micro=-1"], "--micro is -1"),
        (["--model=tiny", "--topology=v5e-4", "--estimate", "--length=1"], "--length is 1"),
    ],
)
def test_mistakes_are_told_in_one_sentence(capsys, words, message):
    code, _, error = said(capsys, *words)
    assert code == 2
    assert message.replace("llama2-13b", "") in error


def test_without_libtpu_the_advice_says_how_to_install_it(capsys, monkeypatch):
    monkeypatch.setattr(compiled, "installed", lambda: False)
    code, _, error = said(capsys, "--model=llama2-7b", "--topology=v5e-16", "--job=score")
    assert code == 2
    assert "pip install 'lingregions[tpu]'" in error
    assert "--estimate" in error


def test_a_folder_with_a_config_is_a_model(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(models.dump(SEVEN)))
    assert command._model(str(tmp_path)) == command._model("preset:llama2-7b") == SEVEN


def test_without_a_topology_the_local_devices_are_compiled_for(capsys, tmp_path):
    file = tmp_path / "plans.jsonl"
    words = ("--model=tiny", "--job=evaluate", "--length=32", "--micro=8", "--mesh=2,2,2", f"--record={file}")
    code, out, _ = said(capsys, *words)
    assert code == 0
    assert "evaluate on cpu-8: 8 chips" in out
    assert "time        not known for this device" in out
    (made,) = table._read(file)
    assert made["fits"]
    assert made["compiled"]["arguments"] == made["estimate"][0]


# The table of slices.


def recorded(monkeypatch, job, answer, topology="v5e-16") -> str:
    return json.dumps(plan.record(planned(monkeypatch, answer, job, topology)[0]))


def test_recorded_plans_become_a_table(monkeypatch, tmp_path):
    small = Compiled(needed=30 * GIB, memory=round(15.75 * GIB))
    lines = [
        recorded(monkeypatch, "score", small),  # replaced by the later one
        recorded(monkeypatch, "score", Compiled(3 * GIB, 4 * GIB, 6 * GIB, {}, 30.0)),
        recorded(monkeypatch, "select", Compiled(GIB, GIB, 2 * GIB, {}, 3.0)),
        recorded(monkeypatch, "train", small, "v5e-4"),
    ]
    (tmp_path / "plans.jsonl").write_text("\n".join(lines) + "\n")
    text = table.render(tmp_path / "plans.jsonl")
    assert "- score: 600,000 samples of 512 tokens\n" in text
    assert "- train: 100,000 samples of 512 tokens, 256 a step\n" in text
    micro = json.loads(lines[1])["micro"]
    rows = [line for line in text.splitlines() if line.startswith("| llama2-7b")]
    assert rows == [
        "| llama2-7b | v5e-4 | 15.75 |  |  |  | needs 30.0: does not fit; v5e-8 does |",
        f"| llama2-7b | v5e-16 | 15.75 | 6.00 GiB, 1 x 16 x 1, {micro}; 1.4 h |  | 2.00 GiB, 1 x 16 x 1 |  |",
    ]


def test_a_file_that_holds_no_plans_is_refused(capsys, tmp_path):
    (tmp_path / "x.jsonl").write_text("{}\n")
    code, _, error = said(capsys, f"--table={tmp_path / 'x.jsonl'}")
    assert code == 2
    assert "x.jsonl, line 1, is no plan" in error


def test_the_table_in_the_docs_is_that_of_its_record():
    assert (ROOT / "docs" / "slices.md").read_text() == table.render(ROOT / "docs" / "slices.jsonl")


# Cards.


@pytest.mark.parametrize(
    ("model", "dtype", "cheapest"),
    # 36.7 GiB of parameters and sums of the 7B are too close to 40 GB.
    [("llama3.2-1b", "float32", "t4"), ("llama3.2-1b", "bfloat16", "l4"), ("llama2-7b", "bfloat16", "a100-80g")],
)
def test_the_cheapest_card_is_the_first_that_fits(capsys, model, dtype, cheapest):
    words = ["--model", model, "--job=score", "--dtype", dtype, "--parameters=bfloat16"]
    found = plan._smallest(
        step("score", models.PRESETS[model], models.Compute(dtype=dtype, parameters="bfloat16"), (-1, -1, -1), 0, 512),
        hardware.CARDS["h100"],
    )
    assert found is not None
    assert found.name == cheapest
    code, text, _ = said(capsys, *words, "--topology=h100")
    assert code == 0
    assert f"  cheapest    {cheapest} fits, by estimate" in text
    assert "fits (by estimate)" in text
    assert " hours at 40% of that speed (--utilisation)" in text


def test_a_card_computes_in_what_it_has(capsys):
    words = ["--model=llama3.2-1b", "--topology=t4", "--job=evaluate"]
    assert "a t4 has no units for bfloat16: --dtype=float32" in said(capsys, *words)[2]
    code, text, _ = said(capsys, *words, "--dtype=float32", "--utilisation=1")
    assert (code, "--utilisation" in text) == (0, False)
    l4 = hardware.parse("L4").chip
    assert (l4.at("bfloat16").flops, l4.at("float32").flops) == (121e12, 30.3e12)
    assert hardware.CHIPS["v5e"].at("float32") is hardware.CHIPS["v5e"]
    assert "above 0, at most 1" in said(capsys, *words, "--utilisation=0")[2]


@pytest.mark.parametrize("job", ["score", "evaluate"])
def test_the_estimate_is_near_what_the_compiler_of_the_cpu_says(job, monkeypatch):
    """In float32: of bfloat16 products a CPU makes float32 copies that a card does not."""
    (one, *_) = jax.devices()
    monkeypatch.setattr(jax, "devices", lambda *_: [one])
    model = models.PRESETS["smollm2-135m"]
    asked = step(job, model, micro=1, length=512, batch=0, topology="")
    found = compiled._lower(asked).compile().memory_analysis()
    real = found.argument_size_in_bytes + found.temp_size_in_bytes + found.output_size_in_bytes
    assert cost.memory(asked).peak == pytest.approx(real - found.alias_size_in_bytes, rel=0.1)


# Every job is lowered from shapes alone; what is counted as arguments is what the program takes.


@pytest.mark.parametrize(("job", "beside"), [("score", 4), ("evaluate", 0), ("select", 4), ("train", 12)])
def test_every_job_lowers_with_the_arguments_that_were_counted(job, beside):
    asked = step(job, mesh=(2, 2, 2), micro=8, length=16, batch=16, topology="")
    taken = compiled._lower(asked)._lowering.compile_args
    leaves = jax.tree.leaves(compiled._lower(asked).args_info)
    kept = [leaves[place] for place in sorted(taken["kept_var_idx"])]
    total = 0
    for leaf, where in zip(kept, taken["in_shardings"], strict=True):
        total += math.prod(where.shard_shape(leaf.shape)) * np.dtype(leaf.dtype).itemsize
    # Beside what is counted: the weight of a group, the count of a selection, three counts of steps.
    assert total - cost.memory(asked).arguments == beside


# Where every array lies: parameters, sums, optimizer state, batch.
MESHES = {
    "tiny": ("2x4", (1, 2, 4)),
    "llama2-7b": ("v5e-16", (1, 16, 1)),
    "llama2-13b": ("v5e-32", (1, 32, 1)),
    "llama2-70b": ("v5p-64", (1, 16, 2)),
}


@pytest.mark.parametrize("name", MESHES)
def test_shardings_are_the_golden_ones(name):
    place, sizes = MESHES[name]
    mesh = AbstractMesh(sizes, meshes.MESH_AXES)
    found = {}
    for path, parameter in trees.walk(models.declare(models.PRESETS[name])):
        spec = meshes.spec(parameter.axes, parameter.units, mesh)
        part = NamedSharding(mesh, spec).shard_shape(parameter.shape)
        found[path] = {"shape": list(parameter.shape), "spec": list(spec), "part": list(part)}
    golden = json.loads((GOLDEN / f"shardings_{name}_{place}.json").read_text())
    assert golden["mesh"] == dict(zip(meshes.MESH_AXES, sizes, strict=True))
    assert found == golden["parameters"]


DOWN = "layers.mlp.down_proj"


def test_everything_else_lies_as_the_parameters_do():
    mesh = meshes.build(1, 2, 4)
    places = trees.flatten(meshes.shardings(models.declare(TINY), mesh))
    scorer = scoring.Scorer(TINY, models.Compute(), scoring.Definition(), rules=("fisher",), micro=2, mesh=mesh)
    sums = [scorer.shapes.rules["taylor"], scorer.shapes.rules["fisher"], scorer.shapes.open]
    for tree in sums:
        assert {path: leaf.sharding for path, leaf in trees.walk(tree)} == {
            path: places[path] for path in trees.flatten(tree)
        }
    shape = (2, 64, 128)
    params = {"layers": {"mlp": {"down_proj": jax.device_put(np.ones(shape, np.float32), places[DOWN])}}}
    masks = jax.tree.map(lambda leaf: np.arange(leaf.size).reshape(leaf.shape) % 3 == 0, params)
    frozen = freeze.hard(params, masks)
    trainer = train.Trainer(TINY, models.Compute(), train.Recipe(1_000, 4), [frozen], micro=2, mesh=mesh)
    kept = [leaf for leaf in jax.tree.leaves(trainer.shapes.optimizer) if leaf.ndim]
    assert len(kept) == 2 * len(places)  # the two moments
    assert [leaf.sharding for leaf in kept] == 2 * list(places.values())
    # A byte holds eight neighbours: an axis that is split in whole bytes stays split.
    assert frozen.arrays[DOWN].bits.sharding.spec == places[DOWN].spec
