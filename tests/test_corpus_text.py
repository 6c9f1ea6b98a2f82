"""Reading text: what is a document, and every bad input with the message that a user would want."""

import functools
import gzip
import json
import lzma
import re
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lingregions.corpus import build as builds
from lingregions.corpus import check as checks
from lingregions.corpus import corpus as corpora
from lingregions.corpus import languages, text
from lingregions.corpus.folder import Folder, _natural
from lingregions.corpus.source import UDHR, _halves, in_memory
from lingregions.corpus.source_names import find_source, most_bytes
from lingregions.corpus.split import parse_split, slice_bounds
from lingregions.corpus.text import Reading, TextError
from lingregions.models.tokenizer import Tokenizer

zstandard = pytest.importorskip("zstandard")


def read(path: Path, reading: Reading | None = None, **options: str) -> list[str]:
    return list(text.read(path, reading or Reading(), **options))


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


# --- what a document is -----------------------------------------------------------------------------------------------


def test_documents_of_a_text_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"\xef\xbb\xbfone\r\ntwo \n\n \nthree\x0bstill three\n")
    assert read(path) == ["one", "two ", "three\x0bstill three"]
    assert read(path, document="paragraph") == ["one\ntwo ", "three\x0bstill three"]
    assert read(path, document="file") == ["one\ntwo \n\n \nthree\x0bstill three"]
    reading = Reading()
    read(path, reading)
    assert (reading.documents, reading.empty, reading.skipped) == (3, 2, 0)


def test_documents_of_jsonl_are_kept_as_they_are(tmp_path: Path) -> None:
    lines = [{"text": " a\r\nb\n"}, {"text": "\u2028x", "other": 1}, {"text": " \t"}]
    content = b"\xef\xbb\xbf" + b"\n\n".join(json.dumps(line).encode() for line in lines)
    reading = Reading()
    assert read(write(tmp_path / "a.jsonl", content), reading) == [" a\r\nb\n", "\u2028x"]
    assert reading.empty == 1


def test_every_compression_reads_alike(tmp_path: Path) -> None:
    content = "".join(f"line {number} \u0bb5\u0ba3\n" for number in range(5000)).encode()
    frames = zstandard.ZstdCompressor().compress(content[:1000]) + zstandard.ZstdCompressor().compress(content[1000:])
    files = {"": content, ".gz": gzip.compress(content), ".xz": lzma.compress(content), ".zst": frames}
    for ending, packed in files.items():
        reading = Reading()
        path = write(tmp_path / f"a.txt{ending}", packed)
        assert read(path, reading) == content.decode().splitlines(), ending
        assert reading.position == len(packed)


def test_parquet_reads_like_jsonl(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"body": ["a", "", "b\r\n"], "n": [1, 2, 3]}), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet", column="body") == ["a", "b\r\n"]
    with pytest.raises(TextError, match=r"a\.parquet: no column 'text'; columns there: body, n"):
        read(tmp_path / "a.parquet")
    parquet.write_table(pyarrow.table({"text": ["a", None]}), tmp_path / "b.parquet")
    with pytest.raises(TextError, match=r"b\.parquet:row 2: the field 'text' holds null, not a string"):
        read(tmp_path / "b.parquet")
    write(tmp_path / "c.parquet", (tmp_path / "a.parquet").read_bytes()[:-9])
    with pytest.raises(TextError, match=r"c\.parquet: not a Parquet file, or cut off"):
        read(tmp_path / "c.parquet")


def test_a_damaged_page_of_parquet_is_named_and_ends_the_file(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [f"row {number}" for number in range(3000)]
    parquet.write_table(pyarrow.table({"text": rows}), tmp_path / "a.parquet", row_group_size=1000, compression="gzip")
    whole = (tmp_path / "a.parquet").read_bytes()
    column = parquet.ParquetFile(tmp_path / "a.parquet").metadata.row_group(2).column(0)
    start = column.dictionary_page_offset
    path = write(tmp_path / "b.parquet", whole[:start] + bytes(64) + whole[start + 64 :])
    with pytest.raises(TextError, match=r"b\.parquet:row \d+: the file is damaged from here on \("):
        read(path)
    reading = Reading(strict=False)
    kept = read(path, reading)
    assert kept == rows[: len(kept)]
    assert reading.skipped == 1


@pytest.mark.parametrize(("ending", "package"), [(".txt.zst", "zstandard"), (".parquet", "pyarrow")])
def test_a_missing_package_is_one_sentence_before_any_reading(
    ending: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "ar.1.txt", b"good\n")
    write(tmp_path / f"ar.2{ending}", b"x")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        TextError, match=rf"ar\.2{ending}: reading [.](zst|parquet) needs {package}: pip install {package}$"
    ):
        find_source(str(tmp_path)).files("ar")
    with pytest.raises(TextError, match=f"pip install {package}$"):
        read(tmp_path / f"ar.2{ending}")


# --- bad texts --------------------------------------------------------------------------------------------------------

BAD = {
    "a.txt: invalid UTF-8": ("a.txt", b"good\nb\xffd\ngood",
                             "a.txt:2: invalid UTF-8 (byte 0xff at byte 2 of the line)"),
    "a.txt: UTF-16": ("a.txt", "good\n".encode("utf-16"), "a.txt:1: invalid UTF-8 (byte 0xff at byte 1 of the line)"
                      "; this looks like UTF-16, convert it: iconv -f UTF-16 -t UTF-8"),
    "a.txt: surrogate": ("a.txt", b"good\n\xed\xa0\x80\ngood", "a.txt:2: invalid UTF-8 (byte 0xed"),
    "a.txt: NUL": ("a.txt", b"good\nb\0d\ngood", "a.txt:2: a NUL character: is this a binary file, or UTF-16?"),
    "a.jsonl: broken": ("a.jsonl", b'{"text": "good"}\n{"text": \n{"text": "good"}',
                        "a.jsonl:2: not a JSON object (Expecting value at column 10)"),
    "a.jsonl: missing field": ("a.jsonl", b'{"text": "good"}\n{"txt": "x", "n": 1}\n{"text": "good"}',
                               "a.jsonl:2: no field 'text'; fields there: 'txt', 'n'"),
    "a.jsonl: wrong type": ("a.jsonl", b'{"text": "good"}\n{"text": 7}\n{"text": "good"}',
                            "a.jsonl:2: the field 'text' holds int, not a string"),
    "a.jsonl: null": ("a.jsonl", b'{"text": "good"}\n{"text": null}\n{"text": "good"}',
                      "a.jsonl:2: the field 'text' holds null, not a string"),
    "a.jsonl: a list": ("a.jsonl", b'{"text": "good"}\n["text"]\n{"text": "good"}',
                        "a.jsonl:2: a JSON list where an object with the field 'text' is needed"),
    "a.jsonl: nested deeply": ("a.jsonl", b'{"text": "good"}\n' + b"[" * 100_000 + b'\n{"text": "good"}',
                               "a.jsonl:2: not a JSON object (nested too deeply)"),
    "a.jsonl: a long number": ("a.jsonl", b'{"text": "good"}\n{"n": ' + b"9" * 5000 + b'}\n{"text": "good"}',
                               "a.jsonl:2: not a JSON object (Exceeds the limit"),
    "a.jsonl: surrogate": ("a.jsonl", b'{"text": "good"}\n{"text": "b\\ud800d"}\n{"text": "good"}',
                           "a.jsonl:2: a lone surrogate U+D800 cannot be written as UTF-8"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_text_is_named_by_file_and_line(case: str, tmp_path: Path) -> None:
    name, content, message = BAD[case]
    path = write(tmp_path / name, content)
    with pytest.raises(TextError, match=re.escape(str(tmp_path / message))):
        read(path)


@pytest.mark.parametrize("case", [case for case in BAD if "UTF-16" not in case])
def test_reading_on_leaves_bad_text_out_and_counts_it(case: str, tmp_path: Path) -> None:
    name, content, message = BAD[case]
    reading = Reading(strict=False)
    assert read(write(tmp_path / name, content), reading) == ["good", "good"]
    assert (reading.documents, reading.skipped) == (2, 1)
    assert reading.messages[0].startswith(str(tmp_path / message))


def test_messages_are_bounded_but_all_are_counted(tmp_path: Path) -> None:
    reading = Reading(strict=False)
    assert read(write(tmp_path / "a.txt", b"\xff\n" * 1000), reading) == []
    assert (reading.skipped, len(reading.messages)) == (1000, text._SHOWN)


@pytest.mark.parametrize("ending", [".gz", ".xz", ".zst"])
def test_a_cut_or_damaged_archive_says_how_far_it_goes(ending: str, tmp_path: Path) -> None:
    content = np.random.default_rng(0).bytes(300_000).hex().encode()
    lines = b"\n".join(content[start : start + 100] for start in range(0, len(content), 100))
    pack = {".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstandard.ZstdCompressor().compress}[ending]
    packed = pack(lines)
    path = write(tmp_path / f"a.txt{ending}", packed[: len(packed) // 2])
    with pytest.raises(TextError, match=rf"a\.txt{ending}:\d+: the archive is cut off or damaged here .* fetch"):
        read(path)
    reading = Reading(strict=False)
    kept = read(path, reading)
    assert reading.skipped == 1
    assert "\n".join(kept).encode() == lines[: len("\n".join(kept))]
    path = write(tmp_path / f"b.txt{ending}", b"not an archive at all")
    with pytest.raises(TextError, match=rf"b\.txt{ending}:1: the archive is cut off or damaged here"):
        read(path)


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_a_line_without_end_is_refused_before_memory_holds_it(
    ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "_LONGEST", 1 << 20)
    pack = {".gz": functools.partial(gzip.compress, compresslevel=1), ".zst": zstandard.ZstdCompressor(1).compress}
    path = write(tmp_path / f"a.txt{ending}", pack[ending](b"good\n" + bytes(1 << 28) + b"\ngood"))
    tracemalloc.start()
    with pytest.raises(TextError, match=rf"a\.txt{ending}:2: a line of 1 MiB and more: no text, or a bomb"):
        read(path)
    assert tracemalloc.get_traced_memory()[1] < 1 << 28
    tracemalloc.stop()
    reading = Reading(strict=False)
    assert (read(path, reading), reading.skipped) == (["good", "good"], 1)


def test_only_text_files_are_read(tmp_path: Path) -> None:
    for name in ("a.pdf", "a.txt.zip", "a.parquet.gz", "txt"):
        with pytest.raises(ValueError, match=r"not a text file that can be read; readable are \.txt and"):
            read(tmp_path / name)
    with pytest.raises(ValueError, match="a document of a text file is one of line, paragraph, file, not 'page'"):
        read(tmp_path / "a.txt", document="page")


# --- sources ----------------------------------------------------------------------------------------------------------


def test_names_sort_as_people_count() -> None:
    names = ["ar-10.txt", "ar-9.txt", "ar.txt", "b/10", "b/9", "ar-09b.txt"]
    assert sorted(names, key=_natural) == ["ar-9.txt", "ar-09b.txt", "ar-10.txt", "ar.txt", "b/9", "b/10"]


def test_files_of_a_language_are_found_in_natural_order(tmp_path: Path) -> None:
    for name in ("ar-10.txt", "ar-2.jsonl", "ar.pdf", "arz.txt", "nb.txt", ".ar-3.txt"):
        write(tmp_path / name, b"x")
    (tmp_path / "vi/deep").mkdir(parents=True)
    for name in ("vi/deep/9.txt.gz", "vi/10.txt", "vi/9.txt"):
        write(tmp_path / name, b"x")
    folder = find_source(str(tmp_path))
    assert isinstance(folder, Folder)
    assert [path.name for path in folder.files("ar")] == ["ar-2.jsonl", "ar-10.txt"]
    assert [path.relative_to(tmp_path).as_posix() for path in folder.files("vi")] == [
        "vi/9.txt",
        "vi/10.txt",
        "vi/deep/9.txt.gz",
    ]
    assert folder.languages() == ["ar", "nb", "vi"]


@pytest.mark.parametrize(
    ("name", "code"),
    [
        *[
            (name, "zh")
            for name in ("zh", "ZH", "zh-cn", "zh_CN", "zh-Hans", "zho_Hans", "zh-Hant-TW", "cmn", "Chinese")
        ],
        *[
            (name, "nb")
            for name in ("no", "nb", "nb_NO", "no-nb", "nob_Latn", "Norwegian", "norwegian bokmål", "Norsk")
        ],
        *[
            ("pt_BR", "pt"),
            ("pt-PT.UTF-8", "pt"),
            ("eng_Latn", "en"),
            ("arb_Arab", "ar"),
            ("es-419", "es"),
            ("中文", "zh"),
        ],
        *[("zsm_Latn", "ms"), ("pes_Arab", "fa"), ("swh_Latn", "sw"), ("kor_Hang", "ko"), ("jpn_Jpan", "ja")],
        *[
            ("es_AR", "es"),
            (" French ", "fr"),
            ("Bahasa Indonesia", "id"),
            ("bahasa_melayu", "ms"),
            ("Tiếng Việt", "vi"),
        ],
        # Nynorsk, Egyptian Arabic, Arabic in Latin letters, simple English, pairs of languages: other texts.
        *[
            (name, None)
            for name in ("nn", "nno_Latn", "arz_Arab", "arb_Latn", "en-simple", "en-fr", "de_it", "hi", "", "x")
        ],
    ],
)
def test_a_language_has_many_names_and_one_code(name: str, code: str | None) -> None:
    assert languages.understood(name) == code


def test_names_of_languages_are_no_language_twice() -> None:
    names = [
        name for entry in languages.LANGUAGES.values() for name in (entry.code, entry.name.lower(), *entry.aliases)
    ]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    "name",
    [
        "en.txt",
        "en.1.txt",
        "en-10.jsonl.gz",
        "EN.TXT",
        "en_US.txt.xz",
        "eng_Latn.parquet",
        "English.txt",
        "en-00000-of-00001.jsonl",
        "c4-en.tfrecord-00000-of-00001.jsonl.gz",
        "en_meta_part_1.jsonl.zst",
        "en/anything at all.txt",
        "20231101.en/train-00000-of-00001.parquet",
        "en_meta/part.1.of.3.txt",
        "en/a/b.c/d.txt",
    ],
)
def test_names_of_files_hold_dots_shards_and_folders(name: str, tmp_path: Path) -> None:
    write(tmp_path / name, b"")
    folder = find_source(str(tmp_path))
    assert folder.languages() == ["en"]
    assert folder.files("en") == [tmp_path / name]
    assert folder.left_out(None) == folder.left_out("en") == []


@pytest.mark.parametrize(
    "name",
    [
        "eng_Latn.devtest",
        "en.csv",
        "en/wiki_00",
        "c4-en.tfrecord-00000-of-01024.json.gz",
        "en.parquet.gz",
        "en/AA/x.json",
    ],
)
def test_what_lies_there_and_is_not_read_is_named(name: str, tmp_path: Path) -> None:
    write(tmp_path / name, b"x")
    write(tmp_path / "README.md", b"x")
    write(tmp_path / "notes.txt", b"x")
    folder = find_source(str(tmp_path))
    assert folder.languages() == []
    assert folder.left_out("en") == [f"not read are {name} in {tmp_path} (read are {text.READABLE})"]
    assert folder.left_out(None) == [f"not read are notes.txt in {tmp_path} (their names are of no language)"]
    with pytest.raises(FileNotFoundError, match=rf"no text in English in .*not read are {re.escape(name)} in "):
        folder.files("en")
    with pytest.raises(FileNotFoundError, match=r"no text in Arabic in .*not read are notes\.txt in "):
        folder.files("ar")


def test_all_shards_are_one_text_and_a_missing_one_is_named(tmp_path: Path) -> None:
    for number in (10, 2, 0):
        write(tmp_path / f"ar/train-{number:05}-of-00011.txt", b"%d" % number)
    assert list(find_source(str(tmp_path)).documents("ar", "all", Reading())) == ["0", "2", "10"]
    (sentence,) = find_source(str(tmp_path)).left_out("ar")
    assert sentence == f"3 of the 11 shards {tmp_path / 'ar/train-'}* are there"


@pytest.mark.parametrize(
    "names",
    [
        ("no.txt", "nb.txt"),
        ("20231101.no/a.txt", "20230601.no/a.txt"),
        ("nb.txt", "NB.txt"),
        ("no/a.txt", "nob_Latn/b.txt"),
    ],
)
def test_a_language_under_two_names_is_refused(names: tuple[str, str], tmp_path: Path) -> None:
    for name in names:
        write(tmp_path / name, b"x")
    with pytest.raises(ValueError, match=r"and .* are both Norwegian; keep one of them, or give both one name"):
        corpora.open(str(tmp_path), "nb", Tokenizer.bytes(), length=4)


def test_own_text_is_a_list_a_file_or_a_folder(tmp_path: Path) -> None:
    texts = ["uno dos", "tres", ""]
    write(tmp_path / "es.txt", "\n".join(texts).encode() + b"\n\n")
    write(tmp_path / "mine.txt", (tmp_path / "es.txt").read_bytes())
    tokenizer = Tokenizer.bytes()
    folder = corpora.open(str(tmp_path), "es", tokenizer, length=4)
    for source in (texts[:2], tuple(texts), tmp_path / "es.txt", str(tmp_path / "mine.txt"), tmp_path):
        corpus = corpora.open(source, "Spanish", tokenizer, length=4)
        assert corpus.fingerprint == folder.fingerprint
        assert (corpus.counts.documents, corpus.counts.bytes) == (2, 11)
    cached = corpora.open(texts, "es", tokenizer, length=4, cache=tmp_path / "cache")
    assert cached.fingerprint == folder.fingerprint
    assert in_memory(["ab", "c"]).identity("es", "all") != in_memory(["a", "bc"]).identity("es", "all")
    with pytest.raises(ValueError, match="a list of strings, one a document"):
        corpora.open(["a", 7], "es", tokenizer, length=4)
    with pytest.raises(TextError, match="text 1 in memory: a lone surrogate"):
        corpora.open(["a", "\ud800"], "es", tokenizer, length=4)
    with pytest.raises(ValueError, match="no documents in 1 texts in memory"):
        corpora.open([" "], "es", tokenizer, length=4)


def test_the_filter_that_left_nothing_is_named(tmp_path: Path) -> None:
    write(tmp_path / "ar.txt", b"a\nb\nc\n")
    write(tmp_path / "es.txt", b"\xff\n")
    tokenizer = Tokenizer.bytes()
    with pytest.raises(ValueError, match=r"are left: it holds 3, and split 'all\[3:\]' leaves none"):
        corpora.open(str(tmp_path), "ar", tokenizer, length=4, split="all[3:]")
    with pytest.raises(
        ValueError, match=r"it holds 3, and split 'all' and held=1e-09, which keeps the evaluation side,"
    ):
        corpora.open(str(tmp_path), "ar", tokenizer, length=4, part="evaluation", held=1e-9, seed=0)
    with pytest.raises(
        ValueError, match=r"no documents in .*: 0 empty and 1 skipped texts; .*es\.txt:1: invalid UTF-8"
    ):
        corpora.open(str(tmp_path), "es", tokenizer, length=4, strict=False)


def test_home_folders_are_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "texts/ar.txt", b"abc")
    assert corpora.open("~/texts", "ar", Tokenizer.bytes(), length=4).counts.bytes == 3
    with builds.Pool(Tokenizer.bytes(), 0) as pool:
        builds.build(tmp_path / "tokens", find_source("~/texts"), "ar", "all", pool)
    assert corpora.open("tokens:~/tokens", "ar", Tokenizer.bytes(), length=4).counts.bytes == 3


def test_norwegian_goes_by_both_codes(tmp_path: Path) -> None:
    write(tmp_path / "no.txt", b"hei")
    corpus = corpora.open(str(tmp_path), "no", Tokenizer.bytes(), length=4)
    assert (corpus.language, corpus.counts.bytes) == ("nb", 3)


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    write(tmp_path / "ar.txt", b"x")
    tokenizer = Tokenizer.bytes()
    with pytest.raises(
        FileNotFoundError, match=r"no text in Swahili in .*: looked for sw\.txt, .*languages there: ar$"
    ):
        corpora.open(str(tmp_path), "sw", tokenizer, length=4)
    with pytest.raises(
        FileNotFoundError, match="no text source 'nowhere': not a folder, text or manifest here, nor udhr, tfds"
    ):
        corpora.open("nowhere", "sw", tokenizer, length=4)
    with pytest.raises(ValueError, match=r"ar\.txt is Arabic by its name, not 'es'"):
        corpora.open(str(tmp_path / "ar.txt"), "es", tokenizer, length=4)
    write(tmp_path / "ar.pdf", b"x")
    with pytest.raises(ValueError, match=r"ar\.pdf is neither a text that can be read \(\.txt and .* nor a manifest"):
        corpora.open(str(tmp_path / "ar.pdf"), "ar", tokenizer, length=4)
    with pytest.raises(ValueError, match="unknown language 'swahilli', none of the thirty; did you mean swahili"):
        corpora.open("udhr", "swahilli", tokenizer, length=4)
    with pytest.raises(ValueError, match="a folder has the split all .* not 'train'"):
        corpora.open(str(tmp_path), "ar", tokenizer, length=4, split="train")
    with pytest.raises(ValueError, match="the splits of udhr are all, first and second, not 'test'"):
        corpora.open("udhr", "ar", tokenizer, length=4, split="test")
    write(tmp_path / "ar.txt.gz", gzip.compress(b"x"))
    with pytest.raises(ValueError, match=r"ar\.txt and .*ar\.txt\.gz would be read as one text after the other"):
        corpora.open(str(tmp_path), "ar", tokenizer, length=4)


def test_a_manifest_names_source_split_and_licence_by_language(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    write(tmp_path / "mine/ar.jsonl", b"".join(b'{"body": "%d"}\n' % number for number in range(10)))
    entries = {
        "ar": {"source": "mine", "split": "all[:80%]", "column": "body", "licence": "mine, do not share"},
        "vi": {"source": "udhr", "split": "first"},
    }
    path = write(tmp_path / "texts.json", json.dumps({"languages": entries}).encode())
    source = find_source(str(path))
    assert source.languages() == ["ar", "vi"]
    assert source.licence("ar") == "mine, do not share"
    assert "free of copyright" in source.licence("vi")
    tokenizer = Tokenizer.bytes()
    assert corpora.open(source, "ar", tokenizer, length=4).counts.documents == 8
    direct = corpora.open("udhr", "vi", tokenizer, length=64, split="first")
    assert corpora.open(str(path), "vi", tokenizer, length=64).fingerprint == direct.fingerprint
    with pytest.raises(ValueError, match=r"texts\.json does not list 'sw'; it lists ar vi"):
        corpora.open(str(path), "sw", tokenizer, length=4)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"m\.json: not a JSON file \("),
        ('{"ar": {}}', r"m\.json: a manifest is \{\"languages\""),
        (
            '{"languages": {"xx": {"source": "udhr"}}}',
            r"m\.json: unknown language 'xx', none of the thirty; known: ar ",
        ),
        (
            '{"languages": {"ar": {"sorce": "udhr"}}}',
            r"m\.json: the entry of 'ar' needs `source` and may have \['column',",
        ),
        ('{"languages": {"ar": {"source": 7}}}', r"m\.json: source of 'ar' is a string, not 7"),
        ('{"languages": {"ar": {"source": "m.json"}}}', r"m\.json: a manifest that names itself as a source"),
        ('{"languages": {"no": {"source": "udhr"}, "nb": {"source": "udhr"}}}', r"m\.json names Norwegian twice"),
        ('{"languages": {"no": {"source": "udhr"}, "no": {"source": "udhr"}}}', r"m\.json: .*'no' stands there twice"),
        ("[" * 100_000, r"m\.json: not a JSON file \("),
        ('{"languages": ' + "9" * 5000 + "}", r"m\.json: not a JSON file \("),
    ],
)
def test_a_wrong_manifest_is_refused(content: str, message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "m.json", content.encode())
    with pytest.raises(ValueError, match=message):
        find_source(str(path))


def test_splits_are_slices_by_document() -> None:
    assert parse_split("train") == ("train", "", "")
    assert parse_split("[:90%]") == ("all", "", "90%")
    assert parse_split("all[10:-5]") == ("all", "10", "-5")
    assert slice_bounds("", "90%", 10) == (0, 9)
    assert slice_bounds("90%", "", 10) == (9, 10)
    assert slice_bounds("10", "-5", 100) == (10, 95)
    assert slice_bounds("-30%", "", 10) == (7, 10)
    assert slice_bounds("50", "20", 100) == (50, 50)
    assert slice_bounds("0", "1000", 10) == (0, 10)
    for wrong in ("all[:90%", "all[1:2:3]", "all[a:]", "all[50%]"):
        with pytest.raises(ValueError, match="a split is a name with at most one slice by document"):
            parse_split(wrong)


@given(n=st.integers(0, 500), percent=st.integers(0, 100))
def test_two_slices_at_one_percentage_cover_everything_once(n: int, percent: int) -> None:
    first, second = slice_bounds("", f"{percent}%", n), slice_bounds(f"{percent}%", "", n)
    assert first[0] == 0
    assert first[1] == second[0]
    assert second[1] == n


# --- the UDHR and the registry ----------------------------------------------------------------------------------------


def test_halves_are_cut_at_the_nearest_line() -> None:
    assert _halves("aa\nbb\ncc\ndd\n") == ("aa\nbb", "cc\ndd")
    assert _halves("a\nbbb\nc") == ("a", "bbb\nc")  # both boundaries leave halves of 1 and 5 bytes: the earlier one
    assert _halves("aaaa\n\u0bb5\nc") == ("aaaa", "\u0bb5\nc")  # 4 and 5 bytes, against 8 and 1
    with pytest.raises(ValueError, match="a text of one line has no line boundary"):
        _halves("one line\n")


@pytest.mark.parametrize("code", languages.LANGUAGES)
def test_the_udhr_is_there_in_full_and_in_two_halves(code: str) -> None:
    source = UDHR
    (whole,), (first,), (second,) = (source.documents(code, split, Reading()) for split in ("all", "first", "second"))
    assert f"{first}\n{second}" == whole
    assert 0.9 < len(first.encode()) / len(second.encode()) < 1.1
    assert 7000 < len(whole.encode()) < 36_000
    assert 50 <= whole.count("\n") <= 61
    assert "\ufffd" not in whole
    counts = checks._letters(whole)
    assert sum(counts.get(script, 0) for script in languages.LANGUAGES[code].scripts) > 0.99 * sum(counts.values())
    assert checks._guess(first) == checks._guess(second) == code


def test_the_registry_holds_the_thirty_languages_of_the_paper() -> None:
    names = (
        "Arabic Chinese Czech Danish Dutch English Finnish French German Greek Hungarian Indonesian Italian Japanese "
        "Korean Malay Malayalam Norwegian Persian Polish Portuguese Romanian Russian Spanish Swahili Swedish Tamil "
        "Turkish Ukrainian Vietnamese"
    )
    assert " ".join(entry.name for entry in languages.LANGUAGES.values()) == names
    assert languages.SCORED == ("ar", "es", "ru", "zh", "ko", "vi")
    assert {code for code, entry in languages.LANGUAGES.items() if entry.wiki40b is None} == {"ml", "sw", "ta"}
    for group in ("family", "branch", "script"):
        grouped = [code for codes in languages.families(group).values() for code in codes]
        assert sorted(grouped) == sorted(languages.LANGUAGES)
    assert languages.families("branch")["Romance"] == ("fr", "it", "pt", "ro", "es")
    assert languages.canonical("Norwegian") == languages.canonical("NO") == "nb"
    with pytest.raises(ValueError, match="grouped by family, branch or script, not by 'colour'"):
        languages.families("colour")


# --- checks -----------------------------------------------------------------------------------------------------------


def udhr(code: str) -> str:
    return next(UDHR.documents(code, "all", Reading()))


def test_letters_are_counted_by_script() -> None:
    assert checks._letters("aé 12 — β Ж") == {"Latin": 2, "Greek": 1, "Cyrillic": 1}
    assert checks._letters("漢字かなカナ한글") == {"Han": 2, "Hiragana": 2, "Katakana": 2, "Hangul": 2}
    assert checks._letters("العربية தமிழ் മലയാളം") == {"Arabic": 7, "Tamil": 5, "Malayalam": 6}
    assert checks._letters("हिन्दी") == {"another": 6}
    assert checks._letters("... 123") == {}


def look(folder: Path, code: str, tokenizer: Tokenizer | None = None) -> checks.Inspection:
    return checks.check(find_source(str(folder)), code, "all", tokenizer)


def test_a_sound_text_gives_no_warning(tmp_path: Path) -> None:
    write(tmp_path / "de.txt", udhr("de").encode())
    inspection = look(tmp_path, "de")
    assert inspection.warnings == []
    assert inspection.bytes == len(udhr("de").replace("\n", "").encode())
    assert (inspection.guess, inspection.tokens, inspection.density) == ("de", None, None)


def test_wrong_text_is_warned_about_with_percentages(tmp_path: Path) -> None:
    write(tmp_path / "ru.txt", udhr("el").encode())
    assert look(tmp_path, "ru").warnings == [
        "100.0% of the letters are not in the script of Russian (Cyrillic): most are Greek 100.0%: "
        "is this the right file?"
    ]
    write(tmp_path / "pt.txt", udhr("es").encode())
    assert look(tmp_path, "pt").warnings == [
        "the text looks more like Spanish than Portuguese: is this the right file?"
    ]
    text = "abc def ghi\n" * 3 + "jkl \ufffd\n" + " \n" + "\n" * 5
    write(tmp_path / "en.txt", text.encode() + b"\xff\n")
    inspection = look(tmp_path, "en", Tokenizer.bytes())
    assert inspection.warnings == [
        "9.09% of the texts cannot be used (see errors)",
        "2.63% of the characters are U+FFFD: an earlier program read this in a wrong encoding",
        "50.0% of the documents repeat an earlier one",
        "54.5% of the texts are empty",
        "1.00 tokens a byte: the tokenizer hardly knows the writing of English",
    ]
    assert [error.split("/")[-1] for error in inspection.errors] == [
        "en.txt:11: invalid UTF-8 (byte 0xff at byte 1 of the line); is the file in another encoding, such as "
        "Windows-1256? Convert it: iconv -f ENCODING -t UTF-8"
    ]
    write(tmp_path / "vi.txt", b"\n\n")
    assert look(tmp_path, "vi").warnings == ["no documents"]


def test_the_size_of_a_text_is_bounded_by_plain_files_alone(tmp_path: Path) -> None:
    write(tmp_path / "ar.txt", b"x" * 100)
    write(tmp_path / "es.txt.gz", gzip.compress(b"x" * 100_000))
    write(tmp_path / "ru.jsonl", b'{"text": "\\u0436"}\n')
    write(tmp_path / "m.json", json.dumps({"languages": {"ar": {"source": "."}, "sw": {"source": "udhr"}}}).encode())
    folder, manifest = find_source(str(tmp_path)), find_source(str(tmp_path / "m.json"))
    assert [most_bytes(folder, code) for code in ("ar", "es", "ru")] == [100, None, 19]
    assert [most_bytes(manifest, code) for code in ("ar", "sw")] == [100, None]
