"""Samples: every token in exactly one, the same whatever the machine; special tokens; order; splits by document."""

import dataclasses
import itertools
import json
import lzma
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from lingregions.corpus import corpus as corpora
from lingregions.corpus import special, tfds
from lingregions.corpus.batch import Batch
from lingregions.corpus.corpus import Corpus
from lingregions.corpus.languages import LANGUAGES
from lingregions.corpus.source import UDHR
from lingregions.corpus.source_names import find_source
from lingregions.corpus.special import Policy
from lingregions.corpus.text import Reading
from lingregions.corpus.tokens import Tokens, encode, tokenize
from lingregions.models.tokenizer import Tokenizer

BYTES = Tokenizer.bytes()
BOS, EOS = 256, 257


def pack(texts: list[str], length: int, packing: str = "packed", bos: str = "none", eos: str = "none") -> Corpus:
    """Return a corpus of the texts, of which bytes are the tokens."""
    tokens = tokenize(texts, BYTES, Reading())
    chosen = np.arange(len(tokens))
    return Corpus("en", tokens, chosen, length, packing, special.policy(BYTES, bos, eos), "here", "all")


def rows(corpus: Corpus) -> list[tuple[list[int], list[int], list[int]]]:
    batch = corpus.batch(range(len(corpus)))
    return [tuple(array[row].tolist() for array in batch) for row in range(len(corpus))]


def in_turn(corpus: Corpus, size: int) -> Iterator[Batch]:
    """Every sample once, in order, the last batch filled with padding."""
    for start in range(0, len(corpus), size):
        yield corpus.batch(np.arange(start, min(start + size, len(corpus))), size)


# --- packing, by hand -------------------------------------------------------------------------------------------------

A, B, C, D, E = b"abcde"


def test_documents_are_packed_and_go_on_in_the_next_sample() -> None:
    assert rows(pack(["ab", "cdeab", "c"], 3)) == [
        ([A, B, C], [1, 1, 2], [1, 1, 1]),
        ([D, E, A], [1, 1, 1], [1, 1, 1]),
        ([B, C, 0], [1, 2, 0], [1, 1, 0]),
    ]


def test_special_tokens_of_documents_stand_for_no_bytes() -> None:
    assert rows(pack(["ab", "c"], 4, bos="document", eos="document")) == [
        ([BOS, A, B, EOS], [1, 1, 1, 1], [0, 1, 1, 0]),
        ([BOS, C, EOS, 0], [1, 1, 1, 0], [0, 1, 0, 0]),
    ]
    assert rows(pack(["abcd", "e"], 4, bos="document")) == [
        ([BOS, A, B, C], [1, 1, 1, 1], [0, 1, 1, 1]),
        ([D, BOS, E, 0], [1, 2, 2, 0], [1, 0, 1, 0]),
    ]


def test_a_sample_may_begin_with_bos_in_the_segment_of_its_first_document() -> None:
    assert rows(pack(["ab", "cd"], 4, bos="sample")) == [
        ([BOS, A, B, C], [1, 1, 1, 2], [0, 1, 1, 1]),
        ([BOS, D, 0, 0], [1, 1, 0, 0], [0, 1, 0, 0]),
    ]


def test_paper_packing_keeps_one_document_a_sample() -> None:
    corpus = pack(["ab", "cdeab", "c"], 3, packing="paper", bos="document", eos="document")
    assert rows(corpus) == [
        ([BOS, A, B], [1, 1, 1], [0, 1, 1]),
        ([BOS, C, D], [1, 1, 1], [0, 1, 1]),
        ([BOS, C, EOS], [1, 1, 1], [0, 1, 0]),
    ]
    assert dataclasses.asdict(corpus.counts) == {
        "documents": 3, "samples": 3, "tokens": 5, "special": 4, "padding": 0, "truncated": 3, "bytes": 5, "empty": 0,
        "skipped": 0,
    }  # fmt: skip
    assert rows(pack(["abcd", "e"], 3, packing="paper", bos="sample")) == [
        ([BOS, A, B], [1, 1, 1], [0, 1, 1]),
        ([BOS, E, 0], [1, 1, 0], [0, 1, 0]),
    ]


def test_the_document_of_every_token_is_known() -> None:
    corpus = pack(["ab", "cdeab", "c"], 4, bos="sample")
    assert corpus.documents(range(3), size=4).tolist() == [
        [0, 0, 0, 1],
        [1, 1, 1, 1],
        [1, 1, 2, -1],
        [-1, -1, -1, -1],
    ]


# --- every token once -------------------------------------------------------------------------------------------------

TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12), max_size=12)


def spelled(corpus: Corpus) -> list[list[int]]:
    """Return the tokens of each document, read back from the samples."""
    batch, numbers = corpus.batch(range(len(corpus))), corpus.documents(range(len(corpus)))
    return [batch.tokens[numbers == number].tolist() for number in range(len(corpus.chosen))]


@given(
    texts=TEXTS,
    length=st.integers(3, 9),
    packing=st.sampled_from(corpora._PACKINGS),
    bos=st.sampled_from(special._BOS),
    eos=st.sampled_from(special._EOS),
)
def test_samples_hold_the_documents_and_nothing_else(
    texts: list, length: int, packing: str, bos: str, eos: str
) -> None:
    kept = [text for text in texts if text]
    if not kept:
        with pytest.raises(ValueError, match="no documents in here"):
            pack(kept, length, packing, bos, eos)
        return
    corpus = pack(kept, length, packing, bos, eos)
    batch = corpus.batch(range(len(corpus)))
    expected = [
        [*([BOS] if bos == "document" else []), *text.encode(), *([EOS] if eos == "document" else [])] for text in kept
    ]
    if bos == "sample":
        assert (batch.tokens[:, 0] == BOS).all()
        assert (batch.bytes[:, 0] == 0).all()
        found = [
            [token for token, first in zip(tokens, heads, strict=True) if not first]
            for tokens, heads in zip(spelled(corpus), spelled_heads(corpus), strict=True)
        ]
    else:
        found = spelled(corpus)
    room = length - (bos == "sample")
    assert found == [tokens[:room] for tokens in expected] if packing == "paper" else found == expected
    # Padding is only at the end; segments count 1, 2, ... and padding has no token and no byte.
    inside = batch.segments > 0
    assert (np.diff(inside.astype(int), axis=1) <= 0).all()
    assert not batch.tokens[~inside].any()
    assert not batch.bytes[~inside].any()
    assert (batch.segments[:, 0] == 1).all()
    assert set(np.diff(batch.segments, axis=1)[inside[:, 1:]].tolist()) <= {0, 1}
    counts = corpus.counts
    assert counts.samples * length == counts.tokens + counts.special + counts.padding
    assert counts.padding == (~inside).sum()
    assert counts.bytes == batch.bytes.sum()
    assert counts.tokens == (batch.bytes > 0).sum()
    assert counts.tokens + counts.truncated == sum(len(text.encode()) for text in kept)
    if packing == "packed":
        assert inside[:-1].all()


def spelled_heads(corpus: Corpus) -> list[list[bool]]:
    """Return for each token of `spelled` whether it is the first position of a sample."""
    numbers = corpus.documents(range(len(corpus)))
    heads = np.zeros(numbers.shape, bool)
    heads[:, 0] = True
    return [heads[numbers == number].tolist() for number in range(len(corpus.chosen))]


@given(texts=TEXTS, data=st.data())
def test_any_sample_can_be_had_alone(texts: list, data: st.DataObject) -> None:
    corpus = pack([*texts, "x"], 5, bos="document") if "" not in texts else pack(["x", "yz"], 5)
    whole = corpus.batch(range(len(corpus)))
    position = data.draw(st.integers(0, len(corpus) - 1))
    for array, row in zip(whole, corpus[position], strict=True):
        assert (array[position] == row).all()
    with pytest.raises(IndexError):
        corpus[len(corpus)]


def test_long_and_short_documents_together() -> None:
    # 10^5 tokens, one token, and 10^6 tokens: one pass, no document lost.
    texts = ["x" * 100_000, "y", "zz" * 500_000]
    corpus = pack(texts, 512, bos="document")
    assert (corpus.counts.tokens, corpus.counts.special, len(corpus)) == (1_100_001, 3, 2149)
    total = sum(int((batch.bytes > 0).sum()) for batch in in_turn(corpus, 100))
    assert total == 1_100_001
    assert corpus.batch([0]).segments.max() == 1


def test_what_cannot_be_is_refused() -> None:
    corpus = pack(["abc", "de"], 2)
    for positions in ([3], [-1], [0, 7]):
        with pytest.raises(IndexError, match="of a corpus of 3 samples"):
            corpus.batch(positions)
    with pytest.raises(ValueError, match="2 samples do not fit in a batch of 1"):
        corpus.batch([0, 1], 1)
    with pytest.raises(ValueError, match="packing is one of packed, paper, not 'tight'"):
        pack(["a"], 4, packing="tight")
    with pytest.raises(ValueError, match="samples of 1 tokens hold no target"):
        pack(["a"], 1)
    with pytest.raises(ValueError, match="samples of 2 tokens hold no target"):
        pack(["a"], 2, bos="sample")


def test_nothing_to_read_is_an_error_that_counts(tmp_path: Path) -> None:
    (tmp_path / "ar.txt").write_bytes(b"\n \n\xff\n")
    with pytest.raises(ValueError, match=r"no documents in .* \(ar, split all\): 2 empty and 1 skipped texts"):
        corpora.open(str(tmp_path), "ar", BYTES, length=4, strict=False)
    (tmp_path / "ar.txt").write_bytes(b"a")
    corpus = corpora.open(str(tmp_path), "ar", BYTES, length=4)
    assert rows(corpus) == [([A, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0])]


# --- special tokens ---------------------------------------------------------------------------------------------------


def tokenizer(**options: int | bool | str | None) -> Tokenizer:
    return dataclasses.replace(BYTES, **options)


def test_the_default_policy_is_what_the_tokenizer_does() -> None:
    assert special.policy(tokenizer(adds_bos=False)) == Policy("none", "none", None, None)
    assert special.policy(tokenizer(adds_bos=True)) == Policy("document", "none", BOS, None)
    assert special.policy(tokenizer(adds_bos=True), bos="sample", eos="document") == Policy(
        "sample", "document", BOS, EOS
    )


def test_the_policy_is_said_in_words() -> None:
    assert str(Policy("none", "none", None, None)) == "no BOS, no EOS"
    assert str(Policy("document", "none", 1, None)) == "BOS (id 1) at the start of every document, no EOS"
    assert str(Policy("sample", "document", 1, 2)) == (
        "BOS (id 1) at the start of every sample, EOS (id 2) at the end of every document"
    )


@pytest.mark.parametrize(
    ("options", "bos", "eos", "message"),
    [
        (
            {"bos": None, "name": "gpt"},
            "document",
            None,
            "the tokenizer gpt has no BOS token: set bos='none' instead of 'document'",
        ),
        (
            {"eos": None, "name": "gpt"},
            None,
            "document",
            "the tokenizer gpt has no EOS token: set eos='none' instead of 'document'",
        ),
        (
            {"bos": EOS},
            "document",
            "document",
            r"are the same token \(id 257\), so two of it would stand between documents",
        ),
        ({}, "start", None, "bos is one of none, document, sample, not 'start'"),
        ({}, None, "sample", "eos is one of none, document, not 'sample'"),
    ],
)
def test_a_policy_that_the_tokenizer_cannot_keep_is_refused(options: dict, bos: str, eos: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        special.policy(tokenizer(**options), bos, eos)


def test_bos_that_is_eos_may_stand_once() -> None:
    assert special.policy(tokenizer(bos=EOS), eos="document") == Policy("none", "document", None, EOS)
    assert special.policy(tokenizer(bos=EOS), "sample", "document").bos_id == EOS


def test_a_second_bos_is_refused() -> None:
    ids = np.array([A, BOS, B, C], np.int32)
    tokens = Tokens(ids, np.ones(4, np.int32), np.array([0, 1, 4]), np.arange(2, dtype=np.uint64), "", "")
    chosen = np.arange(2)
    for bos in ("document", "sample"):
        with pytest.raises(
            ValueError, match=r"document 1 of mine \(en, split all\) already begins with BOS \(id 256\), and bos="
        ):
            Corpus("en", tokens, chosen, 3, "packed", special.policy(BYTES, bos), "mine", "all")
    assert len(Corpus("en", tokens, chosen, 3, "packed", special.policy(BYTES), "mine", "all")) == 2


# --- tokenizers that do not fit ---------------------------------------------------------------------------------------


class Wrong(Tokenizer):
    """A tokenizer whose answers are changed by `fault`."""

    def encode(self, text: str):
        encoding = super().encode(text)
        if self.name == "loses bytes":
            return encoding._replace(bytes=encoding.bytes * 0)
        return encoding._replace(ids=encoding.ids + 1000)


def test_ids_and_bytes_that_cannot_be_are_refused() -> None:
    with pytest.raises(
        ValueError, match="loses bytes accounts for 0 of the 2 UTF-8 bytes of 'ab', so bits per byte would"
    ):
        encode(["ab"], Wrong(BYTES.backend, "loses bytes", None, None))
    with pytest.raises(
        ValueError, match=r"token ids 1097..1098 lie outside the vocabulary of the tokenizer far, which has 258"
    ):
        encode(["ab"], Wrong(BYTES.backend, "far", None, None))


def test_the_tokenizer_of_another_model_is_refused() -> None:
    with pytest.raises(ValueError, match="tokenizer bytes does not belong to this model: the embedding has 200 rows"):
        corpora.open("udhr", "ar", BYTES, length=8, vocabulary=200)
    assert len(corpora.open("udhr", "ar", BYTES, length=8, vocabulary=258)) > 0


def vocabulary(size: int) -> Tokenizer:
    """Return a tokenizer of `size` entries: words "0" to str(size - 1), split at spaces, the spaces dropped."""
    model = tokenizers.models.WordLevel({str(number): number for number in range(size)}, unk_token="0")
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return Tokenizer(backend, f"{size} words", None, None)


@pytest.mark.parametrize("size", [151_936, 262_144])
def test_large_vocabularies_make_the_round_trip(size: int, tmp_path: Path) -> None:
    # Every id of the vocabulary, in two documents of 2**16 and the rest, through token files and back.
    ids = np.random.default_rng(0).permutation(size)
    texts = [" ".join(map(str, part)) for part in np.split(ids, [2**16])]
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/ko.txt").write_text("\n".join(texts))
    words = vocabulary(size)
    corpus = corpora.open(str(tmp_path / "texts"), "ko", words, length=512, cache=tmp_path / "cache", vocabulary=size)
    batches = list(in_turn(corpus, 64))
    read = np.concatenate([batch.tokens[batch.segments > 0] for batch in batches])
    assert read.dtype == np.int32
    assert (read == ids).all()
    assert sum(int(batch.bytes.sum()) for batch in batches) == sum(map(len, texts)) == corpus.counts.bytes
    assert words.decode(read[:1000]) == " ".join(map(str, ids[:1000]))


# --- order ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def udhr() -> Corpus:
    return corpora.open("udhr", "vi", BYTES, length=64)


def test_the_order_is_a_permutation_and_then_another(udhr: Corpus) -> None:
    n = len(udhr)
    order = udhr.order(3, 0, 2 * n)
    assert sorted(order[:n]) == sorted(order[n:]) == list(range(n))
    assert order[:n].tolist() != order[n:].tolist() != list(range(n))
    assert udhr.order(4).tolist() != order[:n].tolist()


@given(data=st.data(), seed=st.integers(0, 2**40))
def test_sample_k_does_not_depend_on_where_the_reading_began(udhr: Corpus, data: st.DataObject, seed: int) -> None:
    n = 3 * len(udhr)
    start = data.draw(st.integers(0, n))
    stop = data.draw(st.integers(start, n))
    assert udhr.order(seed, start, stop).tolist() == udhr.order(seed, 0, n)[start:stop].tolist()


def test_fewer_samples_than_asked_is_an_error_unless_allowed(udhr: Corpus) -> None:
    n = len(udhr)
    assert udhr.draw(5, 1).tolist() == udhr.order(1)[:5].tolist()
    message = rf"{n + 1} samples of 64 tokens asked for, but udhr \(vi, split all\) holds {n}: ask for fewer"
    with pytest.raises(ValueError, match=message):
        udhr.draw(n + 1, 1)
    assert len(udhr.draw(n + 1, 1, fewer=True)) == n
    with pytest.raises(ValueError, match="0 samples asked for"):
        udhr.draw(0, 1)
    with pytest.raises(ValueError, match="0 <= start <= stop"):
        udhr.order(1, 5, 4)


@pytest.mark.parametrize("size", [1, 7, 64, 1000])
def test_evaluation_covers_every_token_once_for_any_batch_size(udhr: Corpus, size: int) -> None:
    batches = list(in_turn(udhr, size))
    assert {batch.tokens.shape for batch in batches} == {(size, 64)}
    text = bytes(np.concatenate([batch.tokens[batch.segments > 0] for batch in batches]).astype(np.uint8))
    assert text.decode() == next(UDHR.documents("vi", "all", Reading()))
    assert not batches[-1].segments[len(udhr) - size * (len(batches) - 1) :].any()


# --- splits -----------------------------------------------------------------------------------------------------------


def numbers(count: int, folder: Path) -> str:
    """Write documents "0", "1", ... to a folder of texts."""
    folder.mkdir(exist_ok=True)
    (folder / "ms.txt").write_text("\n".join(map(str, range(count))))
    return str(folder)


def documents(corpus: Corpus) -> list[str]:
    return [bytes(tokens).decode() for tokens in spelled(corpus)]


def test_slices_are_by_document(tmp_path: Path) -> None:
    source = numbers(10, tmp_path)
    assert documents(corpora.open(source, "ms", BYTES, length=4, split="all[:30%]")) == ["0", "1", "2"]
    assert documents(corpora.open(source, "ms", BYTES, length=4, split="[-2:]")) == ["8", "9"]


@settings(max_examples=25)
@given(percent=st.integers(1, 99), held=st.floats(0.05, 0.95), seed=st.integers(0, 2**40))
def test_splits_are_disjoint_and_lose_no_token(tmp_path_factory, percent: int, held: float, seed: int) -> None:
    source = numbers(300, tmp_path_factory.getbasetemp() / "splits")
    whole = corpora.open(source, "ms", BYTES, length=4)
    for parts in (
        [{"split": f"all[:{percent}%]"}, {"split": f"all[{percent}%:]"}],
        [{"part": part, "held": held, "seed": seed} for part in ("score", "evaluation")],
    ):
        corpuses = [corpora.open(source, "ms", BYTES, length=4, **options) for options in parts]
        assert sorted(itertools.chain(*map(documents, corpuses)), key=int) == documents(whole)
        assert sum(corpus.counts.tokens for corpus in corpuses) == whole.counts.tokens
        assert sum(corpus.counts.bytes for corpus in corpuses) == whole.counts.bytes
    # The share is binomial: 5 standard deviations.
    assert abs(len(corpuses[1].chosen) / 300 - held) < 5 * (held * (1 - held) / 300) ** 0.5


def test_a_repeated_text_is_never_on_both_sides(tmp_path: Path) -> None:
    (tmp_path / "ms.txt").write_text("\n".join(str(number % 50) for number in range(500)))
    options = {"length": 4, "held": 0.5, "seed": 1}
    score = corpora.open(str(tmp_path), "ms", BYTES, part="score", **options)
    evaluation = corpora.open(str(tmp_path), "ms", BYTES, part="evaluation", **options)
    assert not set(documents(score)) & set(documents(evaluation))
    assert len(score.chosen) + len(evaluation.chosen) == 500


@pytest.mark.parametrize("options", [{"held": 0.1}, {"seed": 1}, {"held": 0.0, "seed": 1}, {"held": 1.0, "seed": 1}])
def test_parts_need_a_fraction_and_a_seed(options: dict, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="part='score' needs `held`, the fraction of documents"):
        corpora.open(numbers(3, tmp_path), "ms", BYTES, length=4, part="score", **options)
    with pytest.raises(ValueError, match="a part of a split is one of all, score, evaluation, not 'test'"):
        corpora.open(numbers(3, tmp_path), "ms", BYTES, length=4, part="test")


def test_the_fingerprint_covers_all_that_decides_the_samples(tmp_path: Path) -> None:
    options: dict = {"length": 8}
    source = numbers(100, tmp_path)
    same = {corpora.open(source, "ms", BYTES, length=8).fingerprint for _ in range(2)}
    assert len(same) == 1
    changed: list[dict] = [
        {"length": 9},
        {"packing": "paper"},
        {"bos": "document"},
        {"eos": "document"},
        {"split": "all[:99%]"},
        {"part": "score", "held": 0.5, "seed": 1},
        {"part": "score", "held": 0.5, "seed": 2},
        {"document": "file"},
    ]
    found = same | {corpora.open(source, "ms", BYTES, **{**options, **change}).fingerprint for change in changed}
    found.add(corpora.open(source, "ms", tokenizer(adds_bos=True), length=8, bos="none").fingerprint)
    (tmp_path / "ms.txt").write_text("\n".join(map(str, [*range(99), 98])))
    found.add(corpora.open(source, "ms", BYTES, length=8).fingerprint)
    assert len(found) == len(changed) + 3


def test_where_one_document_ends_is_part_of_the_fingerprint() -> None:
    assert pack(["ab", "c"], 8).fingerprint != pack(["a", "bc"], 8).fingerprint


# --- the same samples from every source -------------------------------------------------------------------------------

SENTENCES = [f"{number}. مرحبا {'س' * (number % 7)}" for number in range(1500)]


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The same texts as a folder of xz files, as JSONL, and as a TFDS data set that was built from the first."""
    root = tmp_path_factory.mktemp("three")
    for name in ("txt", "jsonl"):
        (root / name).mkdir()
    halfway = [SENTENCES[:700], SENTENCES[700:]]
    for number, part in enumerate(halfway, 9):  # 9 and 10: natural order
        (root / f"txt/ar-{number}.txt.xz").write_bytes(lzma.compress("\r\n".join(part).encode()))
    (root / "jsonl/ar.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in SENTENCES))
    builder = tfds.LingregionsText(
        config="ar", source=find_source(str(root / "txt")), file_format="array_record", data_dir=str(root / "tfds")
    )
    builder.download_and_prepare()
    return {"txt": str(root / "txt"), "jsonl": str(root / "jsonl"), "tfds": f"tfds:lingregions_text@{root}/tfds"}


def test_three_sources_give_byte_identical_samples(three: dict[str, str]) -> None:
    options: dict = {"length": 32, "bos": "document", "part": "score", "held": 0.1, "seed": 5}
    corpuses = {name: corpora.open(source, "ar", BYTES, **options) for name, source in three.items()}
    first, *others = corpuses.values()
    drawn = first.draw(len(first), 11)
    for corpus in others:
        assert corpus.fingerprint == first.fingerprint
        assert corpus.counts == first.counts
        for array, other in zip(first.batch(drawn), corpus.batch(corpus.draw(len(corpus), 11)), strict=True):
            assert array.tobytes() == other.tobytes()


def test_the_order_of_files_on_disk_does_not_matter(three: dict[str, str], tmp_path: Path) -> None:
    files = sorted(Path(three["txt"]).iterdir(), reverse=True)
    for path in files:  # created in the opposite order, as another file system would list them
        (tmp_path / path.name).write_bytes(path.read_bytes())
    again = corpora.open(str(tmp_path), "ar", BYTES, length=32)
    assert again.fingerprint == corpora.open(three["jsonl"], "ar", BYTES, length=32).fingerprint


def test_tfds_slices_and_splits(three: dict[str, str]) -> None:
    source = three["tfds"]
    part = corpora.open(source, "ar", BYTES, length=32, split="train[:10%]")
    assert documents(part) == SENTENCES[:150]
    with pytest.raises(ValueError, match="lingregions_text/ar has no split 'test'; splits there: train"):
        corpora.open(source, "ar", BYTES, length=32, split="test")
    with pytest.raises(FileNotFoundError, match="lingregions_text/fr is not prepared in .*: prepare it once with"):
        corpora.open(source, "fr", BYTES, length=32)
    with pytest.raises(ValueError, match=r"lingregions_text/ar train:0: no feature 'body'; features there: text"):
        corpora.open(source, "ar", BYTES, length=32, column="body")


def test_tfds_opens_what_our_builder_wrote(three: dict[str, str]) -> None:
    import tensorflow_datasets

    folder = three["tfds"].partition("@")[2]
    builder = tensorflow_datasets.builder_from_directory(f"{folder}/lingregions_text/ar/1.0.0")
    data = builder.as_data_source("train")
    assert len(data) == 1500
    assert data[1234]["text"].decode() == SENTENCES[1234]


def mocked(name: str, code: str) -> Iterator[str]:
    import tensorflow_datasets

    with tensorflow_datasets.testing.mock_data(num_examples=5):
        yield from tfds.find(name).documents(code, "train", Reading())


@pytest.mark.parametrize("code", sorted(LANGUAGES))
def test_mocked_wiki40b_and_wikipedia_go_all_the_way(code: str) -> None:
    import tensorflow_datasets

    for name in ("tfds:wiki40b", "tfds:wikipedia/20230601"):
        with tensorflow_datasets.testing.mock_data(num_examples=5):
            if code not in tfds.find(name).languages():
                with pytest.raises(
                    ValueError, match="wiki40b has no .* take tfds:wikipedia/20230601, which has all thirty"
                ):
                    corpora.open(name, code, BYTES, length=8)
                continue
            corpus = corpora.open(name, code, BYTES, length=8)
        assert documents(corpus) == list(mocked(name, code))
        assert corpus.counts.documents == 5
        assert corpus.split == "train"


def test_preparing_without_beam_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = tfds.importlib.util.find_spec
    monkeypatch.setattr(tfds.importlib.util, "find_spec", lambda name: None if name == "apache_beam" else find(name))
    source = tfds.find(f"tfds:wiki40b@{tmp_path}")
    with pytest.raises(
        ModuleNotFoundError, match=r"preparing wiki40b/zh-cn runs Apache Beam, .* `pip install apache_beam`"
    ):
        source.prepare("zh")
    with pytest.raises(FileNotFoundError, match="wiki40b/zh-cn is not prepared in"):
        corpora.open(source, "zh", BYTES, length=8)


def test_unknown_data_sets_are_refused() -> None:
    with pytest.raises(ValueError, match="TFDS knows no data set 'wiki41b'"):
        corpora.open("tfds:wiki41b/ar", "ar", BYTES, length=8)
    with pytest.raises(ValueError, match="TFDS cannot build 'wikipedia/19990101.ar'"):
        corpora.open("tfds:wikipedia/19990101", "ar", BYTES, length=8)
    with pytest.raises(ValueError, match="names no data set"):
        corpora.open("tfds:", "ar", BYTES, length=8)


def test_the_marks_of_wiki40b_are_taken_out() -> None:
    marked = "\n_START_ARTICLE_\nTitle\n_START_SECTION_\nPart\n_START_PARAGRAPH_\nOne._NEWLINE_Two."
    assert tfds._unmark(marked) == "Title\nPart\nOne.\nTwo."
