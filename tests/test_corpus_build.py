"""Token files: the same bytes whatever built them, however often it was interrupted; never those of another text."""

import dataclasses
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from lingregions.corpus import build as builds
from lingregions.corpus import command
from lingregions.corpus import corpus as corpora
from lingregions.corpus.folder import Folder
from lingregions.corpus.source import Source
from lingregions.corpus.source_names import find_source
from lingregions.corpus.text import TextError
from lingregions.corpus.tokens import Piece
from lingregions.models.tokenizer import Tokenizer

BYTES = Tokenizer.bytes()
TEXTS = [f"text {number} {'ж' * (number % 11)}" for number in range(400)]


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Source:
    """A folder of texts in Russian, and pieces of about ten texts."""
    monkeypatch.setattr(builds, "_PIECE", 150)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/ru.txt").write_text("\n".join(TEXTS) + "\n\n", "utf-8")
    return find_source(str(tmp_path / "texts"))


def build(root: Path, source: Source, tokenizer: Tokenizer = BYTES, workers: int = 0, strict: bool = True) -> Path:
    with builds.Pool(tokenizer, workers, strict) as pool:
        return builds.build(root, source, "ru", "all", pool)


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


class Stops(Exception):
    """What interrupts a build in these tests."""


def stopping(monkeypatch: pytest.MonkeyPatch, pieces: int) -> list[int]:
    """Let `pieces` pieces be tokenized, then raise; return the list of the sizes of all pieces that were."""
    done: list[int] = []
    real = builds.stores.encode

    def encode(texts: list[str], tokenizer: Tokenizer, strict: bool = True) -> Piece:
        if len(done) == pieces:
            raise Stops
        done.append(len(texts))
        return real(texts, tokenizer, strict)

    monkeypatch.setattr(builds.stores, "encode", encode)
    return done


def test_files_hold_what_memory_holds(source: Source, tmp_path: Path) -> None:
    folder = build(tmp_path / "cache", source)
    options = {"length": 16, "bos": "document"}
    held, mapped = (
        corpora.open(source, "ru", BYTES, **options, **cache) for cache in ({}, {"cache": tmp_path / "cache"})
    )
    assert isinstance(mapped.tokens.ids, np.memmap)
    assert mapped.fingerprint == held.fingerprint
    assert mapped.counts == held.counts
    assert mapped.counts.empty == 1
    for array, other in zip(held.batch(range(len(held))), mapped.batch(range(len(mapped))), strict=True):
        assert array.tobytes() == other.tobytes()
    meta = json.loads((folder / "meta.json").read_text())
    assert (meta["documents"], meta["tokens"], meta["vocabulary"]) == (400, sum(map(len, map(str.encode, TEXTS))), 258)


def test_worker_processes_write_the_same_files(source: Source, tmp_path: Path) -> None:
    folders = [build(tmp_path / str(workers), source, workers=workers) for workers in (0, 2)]
    assert folders[0].name == folders[1].name
    assert content_of(folders[0]) == content_of(folders[1])
    assert sorted(path.name for path in (tmp_path / "2").iterdir()) == [folders[0].name]


def test_a_finished_build_is_not_done_again(source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = build(tmp_path / "cache", source)
    stopping(monkeypatch, 0)
    assert build(tmp_path / "cache", source) == folder


@pytest.mark.parametrize("pieces", [0, 1, 2, 17, 30])
def test_an_interrupted_build_goes_on_where_it_was(
    pieces: int, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = build(tmp_path / "whole", source)
    with monkeypatch.context() as patch:
        done = stopping(patch, pieces)
        with pytest.raises(Stops):
            build(tmp_path / "cache", source)
    (partial,) = (path for path in (tmp_path / "cache").iterdir() if path.is_dir())
    assert partial.name.startswith(".ru-")
    # The write that the interruption fell into may have left anything behind the end that the journal knows.
    for name in builds._DTYPES:
        with (partial / f"{name}.bin").open("ab") as file:
            file.write(b"torn")
    with monkeypatch.context() as patch:
        rest = stopping(patch, 10**6)
        folder = build(tmp_path / "cache", source)
    assert content_of(folder) == content_of(whole)
    assert sum(done) + sum(rest) == 400
    assert not partial.exists()


KILLED = """
import os, signal, sys
from pathlib import Path
from lingregions.corpus import build, source_names
from lingregions.models.tokenizer import Tokenizer

build._PIECE = 150
save, count = build._save, 0

def dying(path, content):
    global count
    count += 1
    if count == int(sys.argv[3]):
        path.with_suffix(".new").write_text("{")
        os.kill(os.getpid(), signal.SIGKILL)
    save(path, content)

build._save = dying
with build.Pool(Tokenizer.bytes(), 0) as pool:
    build.build(Path(sys.argv[1]), source_names.find_source(sys.argv[2]), "ru", "all", pool)
"""


def test_a_killed_build_leaves_nothing_that_looks_finished(source: Source, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    arguments = [sys.executable, "-c", KILLED, str(cache), source.name, "9"]
    killed = subprocess.run(arguments, cwd=Path(__file__).parent.parent, check=False, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    with pytest.raises(
        FileNotFoundError, match="has no tokens in 'ru' for the tokenizer bytes .*; there: none. Build them"
    ):
        corpora.open(f"tokens:{cache}", "ru", BYTES, length=16)
    assert content_of(build(cache, source)) == content_of(build(tmp_path / "whole", source))


def test_a_second_process_waits_and_uses_what_the_first_one_built(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    final = builds._place(tmp_path / "cache", source, "ru", "all", BYTES, True)
    found: list[Path] = []
    built = build(tmp_path / "elsewhere", source)
    (tmp_path / "cache").mkdir()
    stopping(monkeypatch, 0)  # the second one must not tokenize anything
    with builds._lock(final.with_name(f".{final.name}.lock")):
        second = threading.Thread(target=lambda: found.append(build(tmp_path / "cache", source)))
        second.start()
        built.rename(final)
    second.join(60)
    assert found == [final]


def test_other_texts_or_another_tokenizer_get_files_of_their_own(source: Source, tmp_path: Path) -> None:
    assert isinstance(source, Folder)
    folders = {
        build(tmp_path / "cache", source),
        build(tmp_path / "cache", source, dataclasses.replace(BYTES, adds_bos=True)),
        build(tmp_path / "cache", dataclasses.replace(source, document="file")),
        build(tmp_path / "cache", source, strict=False),
    }
    (source.path / "ru.txt").write_text("other", "utf-8")
    folders.add(build(tmp_path / "cache", source))
    assert len(folders) == 5


def test_token_files_of_another_tokenizer_are_refused(source: Source, tmp_path: Path) -> None:
    folder = build(tmp_path / "cache", source)
    other = dataclasses.replace(BYTES, adds_bos=True, name="other")
    with pytest.raises(ValueError, match=r"was built with the tokenizer bytes \(\w{12}\), not with other"):
        builds.load(folder, other)
    with pytest.raises(
        FileNotFoundError, match=r"no tokens in 'ru' for the tokenizer other .*; there: ru-\w+: .*, split all, bytes"
    ):
        corpora.open(f"tokens:{tmp_path / 'cache'}", "ru", other, length=16)


def test_cut_or_foreign_folders_are_refused(source: Source, tmp_path: Path) -> None:
    folder = build(tmp_path / "cache", source)
    ids = (folder / "ids.bin").read_bytes()
    (folder / "ids.bin").write_bytes(ids[:-1])
    with pytest.raises(
        ValueError, match=rf"ids\.bin has {len(ids) - 1} bytes, not {len(ids) // 4} x 4: delete .*, build again"
    ):
        builds.load(folder, BYTES)
    builds._save(folder / "meta.json", {**builds._unsealed(folder / "meta.json"), "format": 99})
    with pytest.raises(
        ValueError, match="has token files of format 99, this version reads 2: delete them, build again"
    ):
        builds.load(folder, BYTES)
    (folder / "meta.json").write_text('{"format": 1}')  # those of format 1 had no checksum
    with pytest.raises(ValueError, match="has token files of format 1, this version reads 2: delete them, build again"):
        builds.load(folder, BYTES)
    (folder / "meta.json").unlink()
    with pytest.raises(ValueError, match="holds no token files of `lingregions data build`"):
        builds.load(folder, BYTES)


@pytest.mark.parametrize("name", [*builds._DTYPES, "meta"])
def test_a_changed_file_is_refused_by_name(name: str, source: Source, tmp_path: Path) -> None:
    folder = build(tmp_path / "cache", source)
    path = folder / (f"{name}.bin" if name in builds._DTYPES else "meta.json")
    content = path.read_bytes()
    for place in range(0, len(content), len(content) // 40):
        for bit in (0, 6):
            changed = bytearray(content)
            changed[place] ^= 1 << bit
            path.write_bytes(changed)
            with pytest.raises(ValueError, match=re.escape(str(path))):
                builds.load(folder, BYTES)
    path.unlink()
    with pytest.raises(ValueError, match="is missing: delete" if name in builds._DTYPES else r"\(no meta\.json\)"):
        builds.load(folder, BYTES)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1]", b"[" * 100_000, b"\xff", b'{"format": ' + b"9" * 5000 + b"}", b'{"format": 2}']
)
def test_a_header_of_anything_is_one_sentence(content: bytes, source: Source, tmp_path: Path) -> None:
    folder = build(tmp_path / "cache", source)
    (folder / "meta.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"meta\.json (is damaged|cannot be read) \(.*\): delete .*, build again"):
        builds.load(folder, BYTES)


@pytest.mark.parametrize("wrong", [-1, 258, 2**31 - 1])
def test_ids_outside_the_vocabulary_are_refused_even_with_a_right_checksum(
    wrong: int, source: Source, tmp_path: Path
) -> None:
    folder = build(tmp_path / "cache", source)
    ids = np.fromfile(folder / "ids.bin", "<i4")
    ids[7] = wrong
    ids.tofile(folder / "ids.bin")
    meta = builds._unsealed(folder / "meta.json")
    meta["checksums"]["ids"] = zlib.crc32(ids.tobytes())
    builds._save(folder / "meta.json", meta)
    with pytest.raises(ValueError, match=r"lie outside .*ids\.bin: the vocabulary of bytes, which has 258 entries"):
        builds.load(folder, BYTES)


def test_tokens_under_the_name_of_another_language_are_refused(source: Source, tmp_path: Path) -> None:
    folder = build(tmp_path / "cache", source)
    folder.rename(folder.with_name(folder.name.replace("ru-", "es-")))
    with pytest.raises(ValueError, match=r"es-\w+ holds tokens in 'ru', not in 'es': its name was changed"):
        corpora.open(f"tokens:{tmp_path / 'cache'}", "es", BYTES, length=16)


@pytest.mark.parametrize("name", builds._DTYPES)
def test_a_file_lost_or_changed_in_an_interrupted_build_is_an_error_not_zeros(
    name: str, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stopping(patch, 5)
        with pytest.raises(Stops):
            build(tmp_path / "cache", source)
    (path,) = (tmp_path / "cache").glob(f".ru-*/{name}.bin")
    content = path.read_bytes()
    path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    with pytest.raises(
        ValueError, match=rf"{name}\.bin does not hold what was written before the interruption: delete"
    ):
        build(tmp_path / "cache", source)
    path.unlink()
    with pytest.raises(
        ValueError, match=rf"{name}\.bin does not hold what was written before the interruption: delete"
    ):
        build(tmp_path / "cache", source)
    path.write_bytes(content)
    assert content_of(build(tmp_path / "cache", source)) == content_of(build(tmp_path / "whole", source))


def test_half_written_folders_go_when_their_texts_have_changed_and_nobody_holds_them(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(source, Folder)
    root = tmp_path / "cache"
    with monkeypatch.context() as patch:
        stopping(patch, 3)
        with pytest.raises(Stops):
            build(root, source)
    with monkeypatch.context() as patch:
        stopping(patch, 3)
        with pytest.raises(Stops):  # another tokenizer: nobody's to remove, its command may go on with it
            build(root, source, dataclasses.replace(BYTES, adds_bos=True))
    first, second = (path for path, _, about in builds.halves(root) if about)
    (source.path / "ru.txt").write_text("other", "utf-8")
    mine = next(
        path for path in (first, second) if builds._unsealed(path / "journal.json")["about"][3] == BYTES.fingerprint
    )
    said: list[str] = []
    with builds.Pool(BYTES, 0) as pool:
        with builds._lock(builds._lock_of(mine)):  # as a living process would
            builds.build(root, source, "ru", "all", pool, say=said.append)
        assert (said, mine.is_dir()) == ([], True)
        (source.path / "ru.txt").write_text("once more", "utf-8")
        builds.build(root, source, "ru", "all", pool, say=said.append)
    assert said == [f"{mine}, half-written from texts that have changed since, is removed"]
    assert [path for path, *_ in builds.halves(root)] == [path for path in (first, second) if path != mine]


WORKERS = """
import sys, time
from pathlib import Path
from lingregions.corpus import build
from lingregions.models.tokenizer import Tokenizer
if __name__ == "__main__":
    with build.Pool(Tokenizer.bytes(), 3) as pool:
        list(pool.encode([["text"]] * 20))
        print(*pool.executor._processes, flush=True)
        time.sleep(600)
"""


def test_workers_end_with_a_killed_build(tmp_path: Path) -> None:
    (tmp_path / "build.py").write_text(WORKERS)
    with subprocess.Popen([sys.executable, tmp_path / "build.py"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        workers = [int(word) for word in process.stdout.readline().split()]
        assert len(workers) == 3
        assert all(Path(f"/proc/{worker}").exists() for worker in workers)
        process.kill()
    deadline = time.monotonic() + 20
    while any(_runs(worker) for worker in workers):
        assert time.monotonic() < deadline, "workers of a killed build live on"
        time.sleep(0.05)


def _runs(number: int) -> bool:
    """Whether a process lives (one that has ended but whom nobody has waited for does not)."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_killed_worker_is_one_sentence(source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with builds.Pool(BYTES, 1) as pool:
        assert pool.executor is not None
        list(pool.encode([["text"]]))
        (worker,) = pool.executor._processes
        os.kill(worker, signal.SIGKILL)
        with pytest.raises(OSError, match="a process that tokenizes was killed .* try again, with fewer workers"):
            builds.build(tmp_path / "cache", source, "ru", "all", pool)


def test_a_folder_that_cannot_be_written_fails_before_the_work(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopping(monkeypatch, 0)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        build(tmp_path / "file", source)


def test_tokens_are_a_source_of_their_own(source: Source, tmp_path: Path) -> None:
    build(tmp_path / "cache", source)
    corpus = corpora.open(f"tokens:{tmp_path / 'cache'}", "ru", BYTES, length=16, split="all[:50%]")
    assert corpus.fingerprint == corpora.open(source, "ru", BYTES, length=16, split="all[:50%]").fingerprint
    (tmp_path / "texts/ru.txt").write_text("changed", "utf-8")
    build(tmp_path / "cache", source)
    with pytest.raises(ValueError, match=r"has 2 sets of tokens in 'ru' for bytes, keep one: ru-\w+: .*; ru-\w+: "):
        corpora.open(f"tokens:{tmp_path / 'cache'}", "ru", BYTES, length=16)


class Picky(Tokenizer):
    """A tokenizer that keeps nothing of texts with a 7."""

    def encode(self, text: str):
        if "7" in text:
            raise ValueError(f"tokenizer {self.name} keeps nothing of the text {text!r}; skip this document")
        return super().encode(text)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_text_that_the_tokenizer_refuses_stops_or_is_counted(workers: int, source: Source, tmp_path: Path) -> None:
    picky = Picky(BYTES.backend, "picky", None, None)
    with pytest.raises(ValueError, match="tokenizer picky keeps nothing of the text 'text 7"):
        build(tmp_path / "cache", source, picky, workers)
    meta = builds.read(build(tmp_path / "cache", source, picky, workers, strict=False))
    refused = sum("7" in text for text in TEXTS)
    assert (meta["documents"], meta["skipped"], len(meta["messages"])) == (400 - refused, refused, 20)


def test_a_bad_text_stops_with_its_line_and_what_was_built_is_kept(source: Source, tmp_path: Path) -> None:
    with (tmp_path / "texts/ru.txt").open("ab") as file:
        file.write(b"\xff\n")
    with pytest.raises(TextError, match=r"ru\.txt:402: invalid UTF-8"):
        build(tmp_path / "cache", source)
    meta = builds.read(build(tmp_path / "cache", source, strict=False))
    assert (meta["documents"], meta["skipped"], meta["empty"]) == (400, 1, 1)


# --- the commands -----------------------------------------------------------------------------------------------------


def console() -> Console:
    return Console(file=io.StringIO(), width=200, force_terminal=False)


def printed(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return " ".join(console.file.getvalue().split())


def test_data_build_does_all_it_can_and_says_what_it_could_not(source: Source, tmp_path: Path) -> None:
    (tmp_path / "texts/sw.txt").write_bytes(b"sawa\n\xff\n")
    output = console()
    built = command._build(source.name, BYTES, tmp_path / "cache", output, workers=0)
    assert [(row.language, row.documents, bool(row.problem)) for row in built] == [("ru", 400, False), ("sw", 0, True)]
    assert "sw.txt:2: invalid UTF-8" in printed(output)
    assert "source='tokens:" in printed(output)
    again = command._build(
        source.name, BYTES, tmp_path / "cache", console(), workers=0, strict=False, languages=["Swahili"]
    )
    assert [(row.language, row.documents, row.skipped) for row in again] == [("sw", 1, 1)]


def test_data_build_writes_a_tfds_data_set_too(tmp_path: Path) -> None:
    output = console()
    folders = command._dataset("udhr", tmp_path, output, languages=["sw", "Vietnamese"], split="first")
    assert folders == [tmp_path / f"lingregions_text/{code}/1.0.0" for code in ("sw", "vi")]
    assert f"source='tfds:lingregions_text@{tmp_path}'" in printed(output)
    corpus = corpora.open(f"tfds:lingregions_text@{tmp_path}", "vi", BYTES, length=64)
    assert corpus.fingerprint == corpora.open("udhr", "vi", BYTES, length=64, split="first").fingerprint


def test_data_check_names_what_is_missing_and_what_is_wrong(source: Source, tmp_path: Path) -> None:
    (tmp_path / "texts/sw.txt").write_bytes("слова\n".encode() + b"\xff\n")
    output = console()
    inspections = command._check(source.name, output, tokenizer=BYTES)
    assert [each.language for each in inspections] == ["ru", "sw"]
    text = printed(output)
    assert "sw: 100.0% of the letters are not in the script of Swahili (Latin): most are Cyrillic 100.0%" in text
    assert "sw.txt:2: invalid UTF-8" in text
    assert "not there of the thirty languages: Arabic (ar), Czech (cs)" in text


def test_data_show_prints_the_policy_the_tokens_and_the_text() -> None:
    output = console()
    command._show(corpora.open("udhr", "en", BYTES, length=40, bos="document"), BYTES, output, samples=1)
    text = printed(output)
    assert "English, udhr, split all: " in text
    assert "1 documents, 10,282 bytes, 10,282 tokens, 1 special ones; 258 samples of 40 (packed)" in text
    assert "special tokens: BOS (id 256) at the start of every document, no EOS" in text
    assert "sample 0, segment 1, 40 tokens: 256 85 110 105 118" in text
    assert "<bos>Universal Declaration of Human Rights" in text


def test_data_show_lets_no_text_give_orders_to_the_terminal() -> None:
    output = console()
    text = "one\x1b]0;title\x07 two\x9b31m\rthree \u202eruof\tfive"
    command._show(corpora.open([text], "en", BYTES, length=100), BYTES, output, samples=1)
    assert isinstance(output.file, io.StringIO)
    shown = output.file.getvalue()
    assert r"one\x1b]0;title\x07 two\x9b31m\x0dthree \u202eruof" in shown
    assert not set(shown) & set("\x1b\x07\x9b\r\u202e")


@pytest.mark.parametrize(
    ("files", "words", "code"),
    [
        ({"ru.txt": "слово"}, (), 0),
        ({"ru.txt": "слово", "notes.txt": "x", "README": "x"}, (), 0),  # warned about
        ({"ru.txt": "слово", "sw.csv": "x"}, (), 1),  # nothing of a language that lies there is read
        ({"ru.txt": "слово", "sw.csv": "x"}, ("--languages=ru",), 0),
        ({"ru.txt": "слово", "sw.txt": ""}, (), 1),
        ({"ru.txt": "слово", "sw.txt": "\udcff"}, (), 1),
    ],
)
def test_data_check_ends_with_1_where_a_language_cannot_be_used(
    files: dict[str, str], words: tuple[str, ...], code: int, tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    output = console()
    assert command.main(["check", str(tmp_path), *words], output) == code
    for name in files.keys() - {"README", "ru.txt", "sw.txt"} if not words else ():
        assert f"not read are {name} in " in printed(output)


def test_data_build_names_what_lies_half_written(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stopping(patch, 3)
        with pytest.raises(Stops):
            build(tmp_path / "cache", source, dataclasses.replace(BYTES, adds_bos=True))
    output = console()
    command._build(source.name, BYTES, tmp_path / "cache", output, workers=0)
    assert "half-written: the command that began it goes on from there" in printed(output)


def test_the_udhr_of_all_languages_builds_and_checks(tmp_path: Path) -> None:
    built = command._build("udhr", BYTES, tmp_path, console(), workers=0, split="first")
    assert len(built) == 30
    assert not any(row.problem for row in built)
    corpus = corpora.open(f"tokens:{tmp_path}", "zh", BYTES, length=64)
    assert corpus.fingerprint == corpora.open("udhr", "zh", BYTES, length=64, split="first").fingerprint
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]
