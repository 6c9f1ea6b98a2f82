import textwrap

import pytest
from absl import flags

from lingregions import settings

CONFIG = """
from ml_collections import config_dict

VARIANTS = {"small": "seconds", "large": "hours"}
HELP = {"model": "a folder, a hub id or package:NAME"}


def get_config(variant="small"):
    config = config_dict.ConfigDict()
    config.model = config_dict.placeholder(str) if variant == "large" else "preset:tiny"
    config.languages = ("ar", "zh")
    config.scores = config_dict.ConfigDict({"samples": 64, "rule": "a", "abs": True, "fraction": 0.01, "sizes": (1, 2)})
    config.batch = config.scores.get_ref("samples") * 2
    return config
"""


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "core_removal.py"
    path.write_text(CONFIG)
    return str(path)


def test_defaults_come_from_the_file_and_are_locked(source):
    config = settings.load(source)
    assert config.scores.samples == 64
    assert config.model == "preset:tiny"
    with pytest.raises(AttributeError, match="locked"):
        config.new = 1


@pytest.mark.parametrize(
    ("words", "path", "value"),
    [
        (["--config.scores.samples=3"], "scores.samples", 3),
        (["--config.scores.samples", "3"], "scores.samples", 3),
        (["--config.scores.samples=3", "--config.scores.samples=4"], "scores.samples", 4),
        (["--config.scores.samples=3"], "batch", 6),  # a reference follows what it refers to
        (["--config.scores.fraction=1"], "scores.fraction", 1.0),
        (["--noconfig.scores.abs"], "scores.abs", False),
        (["--config.scores.abs=false"], "scores.abs", False),
        (["--config.scores.sizes=3,4"], "scores.sizes", (3, 4)),
        (["--config.languages=ko, ar"], "languages", ("ko", "ar")),
        (["--config.languages=('ko', 'ar')"], "languages", ("ko", "ar")),
        (["--config.languages=ko", "--config.languages=ar"], "languages", ("ko", "ar")),
        (["--config.languages=ko"], "languages", ("ko",)),
        (["--config.languages=ko,"], "languages", ("ko",)),
        (["--config.languages=1%,3%"], "languages", ("1%", "3%")),
        (["--config.languages=1%"], "languages", ("1%",)),
        (["--config.languages=pt-br, zh-hant"], "languages", ("pt-br", "zh-hant")),
        (["--config.languages=1e-8,0.01"], "languages", ("1e-8", "0.01")),  # words, as the default's are
        (["--config.languages=1e-8"], "languages", ("1e-8",)),
        (["--config.languages="], "languages", ()),  # nothing, as shells write it
        (["--config.languages=('1%', '3%')"], "languages", ("1%", "3%")),
    ],
)
def test_overrides(source, words, path, value):
    node = settings.load(source, words)
    for key in path.split("."):
        node = node[key]
    assert node == value
    assert type(node) is type(value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--config.scores.sampels=3"],
            'no key "scores.sampels"; did you mean "scores.samples"? Keys of "scores": abs, fraction, rule, samples,',
        ),
        (["--config.samples=3"], 'no key "samples"; did you mean "scores.samples"? Keys: batch, languages, model'),
        (["--config.zzz=3"], 'no key "zzz". Keys: batch, languages, model, scores'),
        (["--config.zzz.samples=3"], 'no key "zzz"; did you mean "scores.samples"?'),
        (["--config.scores=3"], '"scores" is a section; set its keys one by one: scores.abs, scores.fraction'),
        (["--config.scores.samples.x=3"], 'no key "scores.samples.x": scores.samples is a value'),
        (["--config.scores.samples=few"], "--config.scores.samples=few"),
        (["--config.scores.samples=few"], "takes a value of type int"),
        (["--config.scores.samples=1.5"], "takes a value of type int"),
        (["--config.scores.fraction=half"], "takes a value of type float"),
        (["--config.scores.abs=maybe"], "takes a value of type bool"),
        (["--config.scores.sizes=3,x"], "the elements of scores.sizes"),
        (["--config.scores.samples"], "Missing value for flag --config.scores.samples"),
        (["--config.scores..samples=3"], "this is no key"),
        (["--config.scores.samples=3", "stray"], "what is 'stray' for?"),
    ],
)
def test_mistakes_in_overrides_are_told_in_words(source, words, message):
    with pytest.raises(settings.SettingsError) as caught:
        settings.load(source, words)
    assert message in str(caught.value)


def test_an_unknown_variant_names_those_there_are(source):
    with pytest.raises(settings.SettingsError) as caught:
        settings.load(source + ":smal")
    assert 'no variant "smal"; did you mean "small"? Variants: small (seconds); large (hours)' in str(caught.value)


def test_a_variant_of_a_config_without_any_is_refused(tmp_path):
    path = tmp_path / "plain.py"
    path.write_text("def get_config():\n    raise AssertionError('never reached')\n")
    with pytest.raises(settings.SettingsError, match='has no variants, but ":tiny" asks for one'):
        settings.load(f"{path}:tiny")


def test_a_variant_that_is_needed_is_asked_for(tmp_path):
    path = tmp_path / "plain.py"
    path.write_text("VARIANTS = {'tiny': ''}\ndef get_config(variant):\n    raise AssertionError('never reached')\n")
    with pytest.raises(settings.SettingsError, match=r"needs a variant: .*:VARIANT Variants: tiny"):
        settings.load(str(path))


@pytest.mark.parametrize(
    ("text", "message"),
    [("x = 1\n", "defines no function get_config"), ("def get_config():\n    return {}\n", "returned dict")],
)
def test_a_file_that_is_no_config(tmp_path, text, message):
    path = tmp_path / "plain.py"
    path.write_text(text)
    with pytest.raises(settings.SettingsError, match=message):
        settings.load(str(path))


def test_what_the_config_leaves_to_the_user_must_be_given(source):
    with pytest.raises(settings.SettingsError) as caught:
        settings.load(source + ":large")
    assert "--config.model=...  a folder, a hub id or package:NAME" in str(caught.value)
    assert settings.load(source + ":large", ["--config.model=here"]).model == "here"


def test_a_missing_file_names_those_beside_it(source, tmp_path):
    with pytest.raises(settings.SettingsError) as caught:
        settings.load(str(tmp_path / "core_remval"))
    assert f'did you mean "{tmp_path}/core_removal.py"? Configs in {tmp_path}: core_removal.py' in str(caught.value)
    with pytest.raises(settings.SettingsError, match="is a folder, a config file is needed"):
        settings.load(str(tmp_path))
    with pytest.raises(settings.SettingsError, match="there is no folder"):
        settings.load(str(tmp_path / "nowhere" / "x.py"))


def test_parse_returns_all_that_the_line_asks_for(source):
    values = flags.FlagValues()
    flags.DEFINE_string("region", None, "a region file", flag_values=values)
    line = ["--workdir", "runs/a", f"--config={source}:small", "--config.scores.samples=3", "--fresh", "--region=core"]
    asked = settings.parse(line, values)
    assert (asked.config.scores.samples, str(asked.workdir)) == (3, "runs/a")
    assert (asked.fresh, asked.dry_run, asked.flags["region"].value) == (True, False, "core")
    assert asked.source == f"{source}:small"


def test_parse_leaves_no_state_behind(source):
    first = settings.parse([f"--config={source}", "--workdir=w", "--config.scores.samples=3"])
    second = settings.parse([f"--config={source}", "--workdir=w"])
    assert (first.config.scores.samples, second.config.scores.samples) == (3, 64)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--config={} --workdr=w", 'no flag --workdr; did you mean "--workdir"? Flags: --config, --workdir'),
        ("--workdir=w", "which config? Name a file of your own, or one of complements, core_contents"),
        ("{0} {0} --workdir=w", "what is"),
        ("--config={} --workdir", "Missing value for flag --workdir"),
        ("--config={} --workdir=w --fresh=perhaps", "--fresh=perhaps"),
        ("--config={} --workdir=w stray", "what is 'stray' for?"),
    ],
)
def test_mistakes_in_the_line_are_told_in_words(source, line, message):
    with pytest.raises(settings.SettingsError) as caught:
        settings.parse(line.format(source).split())
    assert message in str(caught.value)


def test_a_config_is_the_first_word_or_a_flag(source):
    for line in ([source], [f"--config={source}"], ["--config.scores.samples", "3", source, "--fresh"]):
        assert settings.parse(line).source == source
    assert settings.parse(["--config.scores.samples", "3", source]).config.scores.samples == 3


def test_without_a_workdir_the_config_names_it(source):
    assert str(settings.parse([f"{source}:small"]).workdir) == "runs/core_removal-small"
    assert str(settings.parse([source]).workdir) == "runs/core_removal"


@pytest.mark.parametrize("name", ["core_removal", "configs/core_removal.py", "definitions_seeds"])
def test_shipped_configs_are_found_by_name_from_anywhere(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = settings.locate(f"{name}:tiny")
    assert found.is_file()
    assert found.stem == name.removeprefix("configs/").removesuffix(".py")
    assert "tiny" in settings.variants(found)


def test_an_own_file_goes_before_a_shipped_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "core_removal.py").write_text(CONFIG)
    assert settings.load("configs/core_removal.py").batch == 128
    with pytest.raises(settings.SettingsError, match='no config core_remval; did you mean "core_removal"'):
        settings.load("core_remval:tiny")


def test_flags_are_written_with_dashes_or_underscores(source):
    for word in ("--dry-run", "--dry_run"):
        asked = settings.parse([f"--config={source}", word])
        assert asked.dry_run
    # Values and keys keep their dashes.
    asked = settings.parse([f"--config={source}", "--workdir=runs/dry-run", "--config.model=a-b"])
    assert (str(asked.workdir), asked.config.model) == ("runs/dry-run", "a-b")


def test_values_are_set_after_the_overrides(source):
    config = settings.load(source, ["--config.scores.samples=3"], {"scores.samples": 5, "scores.sizes": (7,)})
    assert (config.scores.samples, config.scores.sizes) == (5, (7,))
    assert config.is_locked


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"scores.sampels": 3}, 'no key "scores.sampels"; did you mean "scores.samples"?'),
        ({"scores.samples": "few"}, "scores.samples of"),
        ({"scores.samples": "few"}, "takes a value of type int, not 'few'"),
        ({"scores.sizes": ("x",)}, "the elements of scores.sizes"),
        ({"scores": 3}, '"scores" is a section'),
    ],
)
def test_mistakes_in_values_are_told_in_words(source, values, message):
    with pytest.raises(settings.SettingsError) as caught:
        settings.load(source, (), values)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("word", "key"),
    [("--config.a.b=3", "a.b"), ("--noconfig.a", "a"), ("--config=x.py", None), ("a.b=3", None), ("--fresh", None)],
)
def test_the_key_that_a_word_sets(word, key):
    assert settings.key(word) == key


def test_an_error_inside_a_config_keeps_its_own_traceback(tmp_path):
    path = tmp_path / "broken.py"
    path.write_text(
        textwrap.dedent("""
        def get_config():
            return 1 / 0
        """)
    )
    with pytest.raises(ZeroDivisionError):
        settings.load(str(path))
