"""What a run does with texts: each use has its source and split, and what is odd is said before the work."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from lingregions import settings
from lingregions.corpus import corpus as corpora
from lingregions.corpus.source import UDHR
from lingregions.corpus.text import Reading
from lingregions.experiments import perform
from lingregions.run import Run

pytestmark = pytest.mark.usefixtures("one_device")

CONFIGS = Path(__file__).parent.parent / "configs"
SMALL = ("score.samples=1", "evaluate.samples=1", "machine.progress=none", "machine.pictures=False")
DATA: dict[str, Any] = {
    "source": "here", "score_source": "", "score_split": "all", "evaluate_source": "", "evaluate_split": "all[:50%]",
    "held": 0.0, "bos": "", "eos": "", "length": 8, "packing": "packed", "column": "text", "document": "line",
    "strict": True,
}  # fmt: skip


def lines(code: str, first: int = 0, last: int = 40) -> str:
    """Lines of the UDHR."""
    (text,) = UDHR.documents(code, "all", Reading())
    return "\n".join(text.split("\n")[first:last]) + "\n"


def config(folder: Path, *words: str, name: str = "core_removal"):
    given = (*SMALL, "score.languages=en", "evaluate.languages=en,ar", f"machine.cache={folder / 'cache'}", *words)
    if name == "core_removal":
        given += ("select.selectors=top",)
    words = {word.partition("=")[0]: word for word in given}.values()  # the last one counts
    return settings.load(f"{CONFIGS / name}.py:tiny", [f"--config.{word}" for word in words])


def notes(folder: Path) -> list[str]:
    events = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [event["text"] for event in events if event["event"] == "note"]


@pytest.mark.parametrize(
    ("changes", "use", "source", "part"),
    [
        ({}, "score", "here", "all"),
        ({"held": 0.1}, "score", "here", "score"),
        ({"held": 0.1}, "evaluate", "here", "evaluation"),
        ({"held": 0.1, "train_split": "all"}, "train", "here", "score"),
        # Another corpus is evaluated on whole, and nothing of the scored one is kept back for it.
        ({"held": 0.1, "evaluate_source": "there"}, "evaluate", "there", "all"),
        ({"held": 0.1, "evaluate_source": "there"}, "score", "here", "all"),
        # What is trained on is evaluated on too, so it is parted; what is only scored is not.
        ({"held": 0.1, "score_source": "there", "train_split": "all"}, "score", "there", "all"),
        ({"held": 0.1, "score_source": "there", "train_split": "all"}, "train", "here", "score"),
        ({"held": 0.1, "score_source": "there", "train_split": "all"}, "evaluate", "here", "evaluation"),
    ],
)
def test_each_use_has_its_source_and_documents_are_parted_where_two_share_one(
    changes: dict[str, Any], use: str, source: str, part: str
) -> None:
    chosen = corpora.options({**DATA, **changes}, use, seed=3)
    assert (chosen["source"], chosen["part"], chosen["seed"]) == (source, part, 3)
    assert chosen["split"] == ("all[:50%]" if use == "evaluate" else "all")


def test_every_config_names_a_source_for_each_use() -> None:
    for path in CONFIGS.glob("*.py"):
        if path.stem != "base":
            data = settings.load(f"{path}:tiny").data
            uses = [use for use in ("score", "evaluate", "train") if f"{use}_split" in data]
            assert ("score" in uses) == (path.stem != "pretraining"), path  # which scores nothing
            assert all(data[f"{use}_source"] == "" for use in uses), path


def test_a_run_evaluates_on_another_corpus_than_it_scores(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for code in ("en", "ar"):
        (tmp_path / f"there/{code}.txt").write_text(lines(code), "utf-8")
    chosen = config(tmp_path, f"data.evaluate_source={tmp_path / 'there'}", "data.evaluate_split=all")
    with Run.open(tmp_path / "run", chosen) as run:
        perform(chosen, run)
    texts = json.loads((tmp_path / "run/tables/texts.json").read_text())["rows"]
    assert [row[:4] for row in texts] == [
        ["en", "score", "udhr", "first"],
        ["en", "evaluate", str(tmp_path / "there"), "all"],
        ["ar", "evaluate", str(tmp_path / "there"), "all"],
    ]
    with (tmp_path / "run/results.csv").open() as file:
        assert {row["language"] for row in csv.DictReader(file)} == {"en", "ar"}


def test_a_run_says_what_is_odd_about_its_texts(tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    (here / "en.txt").write_text(lines("en"), "utf-8")
    (here / "ar.txt").write_text(lines("ru"), "utf-8")
    (here / "en.csv").write_text("text\na\n")
    splits = (f"data.source={here}", "data.score_split=all", "data.evaluate_split=all")
    chosen = config(tmp_path, *splits)
    for workdir in ("first", "from the cache"):
        with Run.open(tmp_path / workdir, chosen) as run:
            perform(chosen, run)
        said = notes(tmp_path / workdir)
        assert any(
            note.startswith("ar: 100.0% of the letters are not in the script of Arabic (Arabic): most are Cyrillic")
            for note in said
        )
        assert (
            f"en: not read are en.csv in {here} (read are .txt and .jsonl (also .gz, .xz, .zst) and .parquet)" in said
        )
    (here / "ar.txt").write_text(lines("en"), "utf-8")
    chosen = config(tmp_path, *splits)
    with (
        Run.open(tmp_path / "twice", chosen) as run,
        pytest.raises(ValueError, match="en and ar have the same text to"),
    ):
        perform(chosen, run)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        (
            "evaluate.languages=zh-cn,ar,Chinese",
            r"evaluate\.languages names Chinese twice \(zh-cn, Chinese\): keep one",
        ),
        ("score.languages=no,nb_NO", r"score\.languages names Norwegian twice \(no, nb_NO\)"),
        ("score.languages=eng_Latn", r"unknown code 'eng_Latn'; did you mean en \(English\)\?"),
        ("score.languages=hi", "unknown language 'hi', none of the thirty; known: ar "),
    ],
)
def test_languages_of_a_config_are_refused_before_any_work(word: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(settings.SettingsError, match=message):
        config(tmp_path, word)


def test_languages_of_a_config_are_known_by_their_codes(tmp_path: Path) -> None:
    chosen = config(
        tmp_path, "evaluate.languages=zh_CN,Norwegian,pt-BR", "train.language=no", name="frozen_pretraining"
    )
    assert chosen.evaluate.languages == ("zh", "nb", "pt")
    assert chosen.train.language == "nb"
