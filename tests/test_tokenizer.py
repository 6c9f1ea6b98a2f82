"""Tokenizer: ids, byte counts that sum exactly, and text that never becomes a control token."""

import hashlib
import importlib.util
import json
import subprocess
import sys
from importlib import resources

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from lingregions.models.tokenizer import Tokenizer

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
SPECIALS = ["<unk>", "<s>", "</s>"]


def bpe(folder, vocab, merges, added=SPECIALS, config=None, parts=None, **model):
    """Write a Hugging Face folder with a BPE tokenizer; `parts` are attributes of it, such as a normalizer."""
    vocab = {token: index for index, token in enumerate(vocab)}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges, **model))
    for name, part in (parts or {}).items():
        setattr(backend, name, part)
    backend.add_special_tokens([tokenizers.AddedToken(token, normalized=False) for token in added])
    folder.mkdir(exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def sentencepiece(folder):
    """Write a tokenizer in the style of LLaMA-2: a space in front, as U+2581, other characters as bytes."""
    vocab = [*SPECIALS, *(f"<0x{byte:02X}>" for byte in range(256)), *"▁ab<>/s", "▁a", "ab", "</", "s>", "</s>"]
    # As conversions of sentencepiece models do, the merges lead up to a control token: "</" + "s>".
    merges = [("▁", "a"), ("a", "b"), ("<", "/"), ("s", ">"), ("</", "s>")]
    return bpe(
        folder,
        list(dict.fromkeys(vocab)),
        merges,
        config={"bos_token": "<s>", "eos_token": {"content": "</s>"}, "add_bos_token": True},
        parts={
            "normalizer": normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
            "decoder": decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]),
        },
        unk_token="<unk>",
        byte_fallback=True,
        fuse_unk=True,
    )


def gguf(**changes):
    """Return GGUF metadata of a byte-level BPE with two control tokens in front, one user-defined token at the end."""
    letters = list(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<|a|>", "<|b|>", *sorted(letters), "ĊĊ", "Ġ1", "<user>"]
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": ["Ċ Ċ", "Ġ 1"],
        "tokenizer.ggml.token_type": [3, 3, *[1] * (len(tokens) - 3), 4],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.add_bos_token": False,
    }
    return {key: value for key, value in (metadata | changes).items() if value is not None}


def pieces(tokenizer, text):
    return [tokenizer.backend.id_to_token(token) for token in tokenizer.encode(text).ids]


def test_bytes_are_bytes():
    tokenizer = Tokenizer.bytes()
    encoding = tokenizer.encode("aé\0\r\n")
    assert encoding.ids.tolist() == [0x61, 0xC3, 0xA9, 0, 13, 10]
    assert encoding.ids.dtype == encoding.bytes.dtype == np.int32
    assert encoding.bytes.tolist() == [1] * 6
    assert (tokenizer.bos, tokenizer.eos, tokenizer.adds_bos, tokenizer.vocab_size) == (256, 257, False, 258)
    assert tokenizer.decode([256, 0x61, 257]) == "<bos>a<eos>"


@given(TEXT)
def test_bytes_round_trip(text):
    tokenizer = Tokenizer.bytes()
    ids = tokenizer.encode(text).ids
    assert bytes(ids.tolist()) == text.encode()
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("text", ["<bos>", "a<eos>b", "<|a|>", "<eos> <eos>"])
def test_special_tokens_in_text_are_text(text):
    for tokenizer in (Tokenizer.bytes(), Tokenizer.from_gguf(gguf(), "g")):
        encoding = tokenizer.encode(text)
        assert not {tokenizer.bos, tokenizer.eos} & set(encoding.ids.tolist())
        assert tokenizer.decode(encoding.ids) == text
        assert encoding.bytes.sum() == len(text)


def test_merges_that_spell_a_control_token_do_not_reach_it(tmp_path):
    tokenizer = Tokenizer.from_folder(sentencepiece(tmp_path / "m"))
    assert pieces(tokenizer, "a</s>b") == ["▁a", "<", "/", "s", ">", "b"]
    assert tokenizer.encode("a</s>b").bytes.tolist() == [1, 1, 1, 1, 1, 1]


def test_bos_as_an_ordinary_added_token_is_still_not_reached_from_text(tmp_path):
    folder = bpe(tmp_path / "m", ["<", "s", ">"], [], added=[], config={"bos_token": "<s>"})
    content = json.loads((folder / "tokenizer.json").read_text())
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    content["added_tokens"] = [{"id": 3, "content": "<s>", **plain}]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.bos == 3
    assert tokenizer.encode("<s>").ids.tolist() == [0, 1, 2]


def test_byte_tokens_of_one_character_share_its_bytes(tmp_path):
    tokenizer = Tokenizer.from_folder(sentencepiece(tmp_path / "m"))
    encoding = tokenizer.encode("a€b")  # the prefix space stands for nothing; € is three byte tokens
    assert pieces(tokenizer, "a€b") == ["▁a", "<0xE2>", "<0x82>", "<0xAC>", "b"]
    assert encoding.bytes.tolist() == [1, 1, 1, 1, 1]
    assert tokenizer.encode("b").bytes.tolist() == [0, 1]  # "▁", "b"


def test_a_token_of_several_characters_counts_all_their_bytes(tmp_path):
    folder = bpe(tmp_path / "m", [*SPECIALS, "é", "€", "é€"], [("é", "€")], unk_token="<unk>")
    assert Tokenizer.from_folder(folder).encode("é€€").bytes.tolist() == [5, 3]


def test_the_unknown_token_stands_for_the_characters_it_replaces(tmp_path):
    folder = bpe(tmp_path / "m", [*SPECIALS, "a"], [], unk_token="<unk>", fuse_unk=True)
    encoding = Tokenizer.from_folder(folder).encode("a€€a")
    assert encoding.ids.tolist() == [3, 0, 3]
    assert encoding.bytes.tolist() == [1, 6, 1]


def test_a_control_token_that_cannot_be_spelled_is_refused(tmp_path):
    folder = bpe(tmp_path / "m", ["▁", "<", "▁<"], [("▁", "<")], added=["▁<"])
    assert Tokenizer.from_folder(folder).encode("▁<").ids.tolist() == [0, 1]
    whole = bpe(tmp_path / "n", ["ab"], [], added=["ab"], ignore_merges=True)
    with pytest.raises(ValueError, match="makes the control token 'ab' out of text and has no token 'a'"):
        Tokenizer.from_folder(whole).encode("ab")


def normalised(folder):
    """Write a tokenizer that lower-cases, composes accents, strips the ends and puts a space in front."""
    vocab = [*SPECIALS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    return bpe(
        folder,
        vocab,
        [],
        parts={
            "normalizer": normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase(), normalizers.Strip()]),
            "pre_tokenizer": pre_tokenizers.ByteLevel(add_prefix_space=True),
            "decoder": decoders.ByteLevel(),
        },
    )


@pytest.fixture(scope="module")
def odd_tokenizers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers")
    return [
        Tokenizer.from_folder(sentencepiece(folder / "sentencepiece")),
        Tokenizer.from_folder(normalised(folder / "normalised")),
        Tokenizer.from_gguf(gguf(), "gguf"),
        Tokenizer.from_gguf(gguf(**{"tokenizer.ggml.pre": "llama-bpe"}), "llama3"),
    ]


@settings(max_examples=200, deadline=None)
@given(TEXT)
def test_byte_counts_sum_exactly_whatever_the_tokenizer_does(odd_tokenizers, text):
    for tokenizer in odd_tokenizers:
        if tokenizer.name == "normalised" and not text.strip():
            continue  # nothing is left of it: the next test
        encoding = tokenizer.encode(text)
        assert encoding.bytes.sum() == len(text.encode())
        assert (encoding.bytes >= 0).all()
        assert len(encoding.bytes) == len(encoding.ids)


def test_a_text_of_which_nothing_is_kept_is_refused(odd_tokenizers):
    with pytest.raises(ValueError, match="normalised keeps nothing of the text ' '"):
        odd_tokenizers[1].encode(" ")
    assert len(odd_tokenizers[1].encode("").ids) == 0


def test_dropped_characters_count_to_their_neighbours(odd_tokenizers):
    assert odd_tokenizers[1].encode("  A ").bytes.tolist() == [2, 2]  # "Ġ" from the prefix, "a"


def test_a_lone_surrogate_is_refused_with_its_place():
    with pytest.raises(ValueError, match=r"lone surrogate U\+D800 at character 2"):
        Tokenizer.bytes().encode("ab\ud800c")


def test_a_million_bytes():
    encoding = Tokenizer.bytes().encode("ab é" * 200_000)
    assert len(encoding.ids) == encoding.bytes.sum() == 1_000_000


def test_gguf_digits_are_split_first_as_in_the_models_own_tokenizer():
    text = "\n\n1 1"
    assert pieces(Tokenizer.from_gguf(gguf(), "g"), text) == ["ĊĊ", "1", "Ġ", "1"]
    assert pieces(Tokenizer.from_gguf(gguf(**{"tokenizer.ggml.pre": "gpt-2"}), "g"), text) == ["Ċ", "Ċ", "1", "Ġ1"]


def test_gguf_control_tokens_are_special_and_user_defined_ones_are_matched_in_text():
    tokenizer = Tokenizer.from_gguf(gguf(), "g")
    assert pieces(tokenizer, "1<user>1") == ["1", "<user>", "1"]
    assert tokenizer.encode("1<user>1").bytes.tolist() == [1, 6, 1]
    assert (tokenizer.bos, tokenizer.eos, tokenizer.vocab_size) == (0, 1, 261)


def test_gemmas_merges_are_those_of_its_tokens_in_their_order():
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<0x0A>", "  ", "ab", "abc", "bc", "\n\n", *"abc\u2581"]
    types = [3, 3, 3, 3, 6, 4, 1, 1, 1, 4, 1, 1, 1, 1]
    metadata = {
        "general.architecture": "gemma3",
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.add_bos_token": True,
    }
    tokenizer = Tokenizer.from_gguf(metadata, "g")
    # "ab" comes before "bc"; two spaces are one token, and a line end alone is a byte.
    assert pieces(tokenizer, "abc  bc\n\n\na") == ["abc", "\u2581\u2581", "bc", "\n\n", "<0x0A>", "a"]
    assert tokenizer.encode("abc  bc\n\n\na").bytes.tolist() == [3, 2, 2, 2, 1, 1]
    assert (tokenizer.bos, tokenizer.eos, tokenizer.adds_bos) == (2, 1, True)
    assert not {1, 2} & set(tokenizer.encode("<bos><eos>").ids.tolist())
    with pytest.raises(ValueError, match="'llama' is not byte-level BPE"):
        Tokenizer.from_gguf(metadata | {"general.architecture": "llama"}, "g")


def test_gguf_may_lack_bos_and_eos_or_have_them_equal():
    missing = Tokenizer.from_gguf(
        gguf(**{"tokenizer.ggml.bos_token_id": None, "tokenizer.ggml.eos_token_id": None}), "g"
    )
    assert (missing.bos, missing.eos, missing.adds_bos) == (None, None, False)
    same = Tokenizer.from_gguf(gguf(**{"tokenizer.ggml.eos_token_id": 0, "tokenizer.ggml.add_bos_token": True}), "g")
    assert (same.bos, same.eos, same.adds_bos) == (0, 0, True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer.ggml.model": "llama"}, "'llama' is not byte-level BPE"),
        ({"tokenizer.ggml.model": None}, "None is not byte-level BPE"),
        ({"tokenizer.ggml.pre": "tekken"}, "'tekken' is not known"),
        ({"tokenizer.ggml.tokens": ["a", "a", "b"]}, "1 tokens of the GGUF vocabulary occur twice"),
        ({"tokenizer.ggml.merges": ["a b"]}, "the merges of the GGUF tokenizer are broken"),
        ({"tokenizer.ggml.merges": ["ab"]}, "the merges of the GGUF tokenizer are broken"),
        ({"tokenizer.ggml.merges": None}, "lacks its tokens or merges"),
        ({"tokenizer.ggml.tokens": None}, "lacks its tokens or merges"),
        ({"tokenizer.ggml.tokens": [1, 2]}, "lacks its tokens or merges"),
        ({"tokenizer.ggml.tokens": "ab"}, "lacks its tokens or merges"),
        ({"tokenizer.ggml.token_type": [1]}, "lacks a type for each token"),
        ({"tokenizer.ggml.pre": ["smollm"]}, r"\['smollm'\] is not known"),
        ({"tokenizer.ggml.eos_token_id": 999}, "the eos id 999 is not in its vocabulary"),
        ({"tokenizer.ggml.bos_token_id": -1}, "the bos id -1 is not in its vocabulary"),
        ({"tokenizer.ggml.bos_token_id": "0"}, "the bos id '0' is not in its vocabulary"),
    ],
)
def test_gguf_that_cannot_be_read_exactly_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Tokenizer.from_gguf(gguf(**changes), "g")


def test_special_ids_of_a_folder(tmp_path):
    def special(settings, **files):
        folder = bpe(tmp_path / "m", [*SPECIALS, "a"], [], config=settings)
        for name, content in files.items():
            (folder / f"{name}.json").write_text(json.dumps(content))
        tokenizer = Tokenizer.from_folder(folder)
        for name in files:
            (folder / f"{name}.json").unlink()
        return tokenizer.bos, tokenizer.eos

    assert special({"bos_token": "<s>", "eos_token": {"content": "</s>"}}) == (1, 2)
    assert special({}, special_tokens_map={"eos_token": "<s>"}) == (None, 1)
    assert special({}, generation_config={"bos_token_id": 1, "eos_token_id": [2, 0]}) == (1, 2)
    assert special({"bos_token": None}, config={"bos_token_id": 1}) == (None, None)
    with pytest.raises(ValueError, match=r"m: the bos token '<x>' is not in tokenizer.json"):
        special({"bos_token": "<x>"})
    with pytest.raises(ValueError, match="the bos id 44 is not in its vocabulary"):
        special({}, config={"bos_token_id": 44})


def test_an_id_beyond_all_vocabularies_is_refused(tmp_path):
    folder = bpe(tmp_path / "m", [*SPECIALS, "a"], [])
    text = (folder / "tokenizer.json").read_text()
    assert '"a": 3' in text
    (folder / "tokenizer.json").write_text(text.replace('"a": 3', '"a": 2147483647'))
    with pytest.raises(ValueError, match="tokenizer m: it has the id 2147483647, which no vocabulary needs"):
        Tokenizer.from_folder(folder)


def test_bos_policy_follows_the_config_or_else_the_post_processor(tmp_path):
    post = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    for config, expected in (({"bos_token": "<s>"}, True), ({"bos_token": "<s>", "add_bos_token": False}, False)):
        folder = bpe(tmp_path / "m", [*SPECIALS, "a"], [], config=config, parts={"post_processor": post})
        tokenizer = Tokenizer.from_folder(folder)
        assert tokenizer.adds_bos is expected
        assert tokenizer.encode("a").ids.tolist() == [3]


def test_a_folder_without_tokenizer_json_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="copy the tokenizer files"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer.json: not a tokenizer that transformers can read"):
        Tokenizer.from_folder(tmp_path)


@pytest.fixture
def trained(tmp_path):
    """A folder with a sentencepiece model alone, trained on a little text, as LLaMA's first release had it."""
    text = resources.files("lingregions.corpus").joinpath("data/udhr/en.txt").read_text(encoding="utf-8")
    (tmp_path / "text").write_text(text, encoding="utf-8")
    sentencepiece = pytest.importorskip("sentencepiece")
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text"),
        model_prefix=str(tmp_path / "tokenizer"),
        model_type="bpe",
        vocab_size=400,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        character_coverage=1.0,
        minloglevel=2,
    )
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "LlamaTokenizer", "add_bos_token": True})
    )
    return tmp_path, sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))


def test_a_sentencepiece_model_alone_gives_its_own_ids(trained):
    folder, theirs = trained
    tokenizer = Tokenizer.from_folder(folder)
    text = (folder / "text").read_text(encoding="utf-8")
    for part in [*text.splitlines(), "a€b", "zz  zz"]:
        assert tokenizer.encode(part).ids.tolist() == theirs.encode(part), part
    assert (tokenizer.bos, tokenizer.eos, tokenizer.adds_bos) == (1, 2, True)


def test_a_sentencepiece_model_without_the_package_says_how_to_get_it(trained, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "sentencepiece" else found(name))
    with pytest.raises(ValueError, match=r"sentencepiece, which is not installed: pip install 'lingregions"):
        Tokenizer.from_folder(trained[0])


def test_a_broken_sentencepiece_model_is_named(trained):
    (trained[0] / "tokenizer.model").write_bytes(b"\n\x0e")
    with pytest.raises(ValueError, match=r"tokenizer.model: not a tokenizer that transformers can read"):
        Tokenizer.from_folder(trained[0])


def test_a_token_that_is_empty_is_none(tmp_path):
    folder = bpe(tmp_path / "m", [*SPECIALS, "a"], [], config={"bos_token": "", "eos_token": "</s>"})
    (folder / "config.json").write_text(json.dumps({"bos_token_id": 0}))
    tokenizer = Tokenizer.from_folder(folder)
    assert (tokenizer.bos, tokenizer.eos, tokenizer.vocab_size) == (None, 2, 4)


def test_code_of_a_repository_is_not_run(tmp_path):
    auto = {"AutoTokenizer": ["code.Theirs", "code.Theirs"], "AutoConfig": "code.Config"}
    folder = bpe(tmp_path / "m", [*SPECIALS, "a"], [], config={"auto_map": auto, "tokenizer_class": "Theirs"})
    (folder / "config.json").write_text(json.dumps({"model_type": "theirs", "auto_map": auto}))
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(ValueError, match=r"not a tokenizer that transformers can read \(.*custom code"):
        Tokenizer.from_folder(folder)
    assert not (tmp_path / "ran").exists()


def test_a_broken_config_beside_it_is_named(tmp_path):
    folder = bpe(tmp_path / "m", [*SPECIALS, "a"], [])
    (folder / "tokenizer_config.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"tokenizer_config.json: expected a JSON object, found list"):
        Tokenizer.from_folder(folder)
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer_config.json: not valid JSON"):
        Tokenizer.from_folder(folder)


def test_a_tokenizer_larger_than_the_embedding_is_refused_with_its_ids():
    Tokenizer.bytes().check(258)
    Tokenizer.bytes().check(300)
    with pytest.raises(ValueError, match=r"tokenizer bytes .*256 rows \(ids 0 to 255\).* 256 \('<bos>'\), 257"):
        Tokenizer.bytes().check(256)
    with pytest.raises(ValueError, match=r"and 3 more"):
        Tokenizer.bytes().check(250)


def test_a_control_token_without_a_row_is_no_fault_where_nothing_reaches_it(tmp_path):
    folder = bpe(tmp_path / "m", [*SPECIALS, "a", "b"], [], added=[*SPECIALS, "[PAD]"], config={"bos_token": "<s>"})
    assert Tokenizer.from_folder(folder).check(5) == ["[PAD]"]
    assert Tokenizer.from_folder(folder).check(6) == []
    with pytest.raises(ValueError, match=r"does not belong to this model: .*4 \('b'\); use"):
        Tokenizer.from_folder(folder).check(4)


def test_saved_folder_gives_the_same_ids_here_and_in_transformers(tmp_path, odd_tokenizers):
    transformers = pytest.importorskip("transformers")
    text = "\n\n12 café a€b A"
    for number, tokenizer in enumerate([Tokenizer.bytes(), odd_tokenizers[0], odd_tokenizers[2]]):
        folder = tmp_path / str(number)
        folder.mkdir()
        tokenizer.save(folder)
        again = Tokenizer.from_folder(folder)
        assert (again.bos, again.eos, again.adds_bos) == (tokenizer.bos, tokenizer.eos, tokenizer.adds_bos)
        assert again.fingerprint == tokenizer.fingerprint
        theirs = transformers.AutoTokenizer.from_pretrained(folder)
        assert theirs(text, add_special_tokens=False)["input_ids"] == tokenizer.encode(text).ids.tolist()
        assert (theirs.bos_token_id, theirs.eos_token_id) == (tokenizer.bos, tokenizer.eos)


def test_fingerprint_is_the_same_in_another_process_and_differs_by_content(tmp_path):
    program = "from lingregions.models.tokenizer import Tokenizer; print(Tokenizer.bytes().fingerprint)"
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    fingerprint = Tokenizer.bytes().fingerprint
    assert other.stdout.strip() == fingerprint
    assert len(fingerprint) == 64
    assert Tokenizer.from_gguf(gguf(), "g").fingerprint != fingerprint
    without = Tokenizer(Tokenizer.bytes().backend, "bytes", bos=None, eos=257)
    assert without.fingerprint != fingerprint


def test_sha256_of_the_ids_is_over_little_endian_int32():
    # What the golden file of the real tokenizer (test_source) holds, on a text whose ids a hand can write.
    ids = Tokenizer.bytes().encode("ab").ids
    assert hashlib.sha256(ids.astype("<i4").tobytes()).hexdigest() == hashlib.sha256(b"a\0\0\0b\0\0\0").hexdigest()
