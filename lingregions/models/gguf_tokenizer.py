r"""The tokenizer in the metadata of a GGUF file, built for the `tokenizers` library: byte-level BPE, or Gemma's.

transformers has a builder too, but not all pre-tokenizers: it splits "\n\n1" otherwise than SmolLM2's own tokenizer.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_ADVICE = "use the model's Hugging Face folder, which has a tokenizer.json"


def _gpt2() -> list[Any]:
    return [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]


def _digits() -> list[Any]:
    return [pre_tokenizers.Digits(individual_digits=True), *_gpt2()]


def _llama3() -> list[Any]:
    split = pre_tokenizers.Split(tokenizers.Regex(_LLAMA3_SPLIT), behavior="isolated")
    return [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]


# `tokenizer.ggml.pre` of a GGUF file -> the pre-tokenizer of the Hugging Face tokenizer that it was converted from.
_PRETOKENIZERS: dict[str, Callable[[], list[Any]]] = {"gpt-2": _gpt2, "smollm": _digits, "llama-bpe": _llama3}

# `tokenizer.ggml.token_type` of GGUF.
_CONTROL, _USER_DEFINED = 3, 4


def build(metadata: Mapping[str, Any], name: str) -> tuple[tokenizers.Tokenizer, int | None, int | None, bool]:
    """Return the backend of a tokenizer, the ids of bos and eos, and whether texts begin with bos.

    Args:
      metadata: GGUF keys and values (`tokenizer.ggml.*`).
      name: what messages call it.

    Raises:
      ValueError: no tokenizer, another kind than byte-level BPE or Gemma's, a pre-tokenizer that is not in
        `_PRETOKENIZERS`, or metadata of wrong types.
    """

    def refuse(what: str) -> ValueError:
        return ValueError(f"{name}: the GGUF {what}; {_ADVICE}")

    kind = metadata.get("tokenizer.ggml.model")
    gemma = kind == "llama" and metadata.get("general.architecture") == "gemma3"
    if kind != "gpt2" and not gemma:
        raise refuse(f"tokenizer model {kind!r} is not byte-level BPE ('gpt2')")
    pre = metadata.get("tokenizer.ggml.pre")
    if not gemma and (not isinstance(pre, str) or pre not in _PRETOKENIZERS):
        raise refuse(f"pre-tokenizer {pre!r} is not known (known: {', '.join(_PRETOKENIZERS)})")
    tokens: Any = metadata.get("tokenizer.ggml.tokens")
    merges: Any = metadata.get("tokenizer.ggml.merges")
    types: Any = metadata.get("tokenizer.ggml.token_type") or [0] * len(tokens or ())
    if not (_are(tokens, str) and (gemma or _are(merges, str))):
        raise refuse("vocabulary lacks its tokens or merges")
    if len(set(tokens)) != len(tokens):
        raise ValueError(
            f"{name}: {len(tokens) - len(set(tokens))} tokens of the GGUF vocabulary occur twice; {_ADVICE}"
        )
    if not (_are(types, int) and len(types) == len(tokens)):
        raise refuse("vocabulary lacks a type for each token")
    bos, eos = (metadata.get(f"tokenizer.ggml.{each}_token_id") for each in ("bos", "eos"))
    adds_bos = bool(metadata.get("tokenizer.ggml.add_bos_token", pre == "llama-bpe")) and bos is not None
    for each, token in (("bos", bos), ("eos", eos)):
        if token is not None and not (isinstance(token, int) and 0 <= token < len(tokens)):
            raise ValueError(f"tokenizer {name}: the {each} id {token!r} is not in its vocabulary")
    try:
        if gemma:
            backend = _gemma(tokens)
        else:
            backend = _byte_level(tokens, merges, _PRETOKENIZERS[str(pre)](), whole=pre == "llama-bpe")
        _add(backend, tokens, types)
        if adds_bos:
            backend.post_processor = processors.TemplateProcessing(
                single=f"{tokens[bos]} $A", special_tokens=[(tokens[bos], bos)]
            )
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"{name}: the merges of the GGUF tokenizer are broken ({error}); {_ADVICE}") from error
    return backend, bos, eos, adds_bos


def _are(values: Any, kind: type) -> bool:
    return isinstance(values, list) and bool(values) and all(type(value) is kind for value in values)


def _byte_level(tokens: Sequence[str], merges: Sequence[str], split: list[Any], whole: bool) -> tokenizers.Tokenizer:
    """Return a byte-level BPE; `whole`: a word that is a token needs no merges."""
    vocab = {token: index for index, token in enumerate(tokens)}
    pairs = [(left, right) for left, right in (merge.split(" ", 1) for merge in merges)]
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=pairs, ignore_merges=whole))
    backend.pre_tokenizer = pre_tokenizers.Sequence(split)
    backend.decoder = decoders.ByteLevel()
    return backend


def _gemma(tokens: Sequence[str]) -> tokenizers.Tokenizer:
    """Return Gemma's BPE with byte fallback, which spells the runs of spaces among its tokens as runs of U+2581.

    The file has no merges. Tokens stand in the order in which they were merged, so each one is the merge of every two
    that make it, the longest first part first (as transformers' GGUF reader has it).
    """
    spelled = [token.replace(" ", "\u2581") if not token.strip(" ") else token for token in tokens]
    vocab = {token: index for index, token in enumerate(spelled)}
    pairs = [
        (token[:place], token[place:])
        for token in spelled
        for place in range(len(token) - 1, 0, -1)
        if token[:place] in vocab and token[place:] in vocab
    ]
    model = models.BPE(vocab=vocab, merges=pairs, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = normalizers.Replace(" ", "\u2581")
    backend.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    backend.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    return backend


def _add(backend: tokenizers.Tokenizer, tokens: Sequence[str], types: Sequence[int]) -> None:
    """Declare the tokens that are found in text as a whole, and those that control the model, which no text reaches."""
    added: dict[bool, list[tokenizers.AddedToken]] = {True: [], False: []}
    for token, kind in zip(tokens, types, strict=True):
        if kind in (_CONTROL, _USER_DEFINED) and backend.token_to_id(token) is not None:
            special = kind == _CONTROL
            added[special].append(tokenizers.AddedToken(token, normalized=False, special=special))
    backend.add_special_tokens(added[True])
    backend.add_tokens(added[False])
