r"""The tokenizer in the metadata of a GGUF file, built for the `tokenizers` library: byte-level BPE.

transformers has a builder too, but not all pre-tokenizers: it splits "\n\n1" otherwise than SmolLM2's own tokenizer.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

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
PRETOKENIZERS: dict[str, Callable[[], list[Any]]] = {"gpt-2": _gpt2, "smollm": _digits, "llama-bpe": _llama3}

# `tokenizer.ggml.token_type` of GGUF.
_CONTROL, _USER_DEFINED = 3, 4


def build(metadata: Mapping[str, Any], name: str) -> tuple[tokenizers.Tokenizer, int | None, int | None, bool]:
    """Return the backend of a tokenizer, the ids of bos and eos, and whether texts begin with bos.

    Args:
      metadata: GGUF keys and values (`tokenizer.ggml.*`).
      name: what messages call it.

    Raises:
      ValueError: no tokenizer, another kind than byte-level BPE, a pre-tokenizer that is not in `PRETOKENIZERS`, or
        metadata of wrong types.
    """

    def refuse(what: str) -> ValueError:
        return ValueError(f"{name}: the GGUF {what}; {_ADVICE}")

    kind = metadata.get("tokenizer.ggml.model")
    if kind != "gpt2":
        raise refuse(f"tokenizer model {kind!r} is not byte-level BPE ('gpt2')")
    pre = metadata.get("tokenizer.ggml.pre")
    if not isinstance(pre, str) or pre not in PRETOKENIZERS:
        raise refuse(f"pre-tokenizer {pre!r} is not known (known: {', '.join(PRETOKENIZERS)})")
    tokens: Any = metadata.get("tokenizer.ggml.tokens")
    merges: Any = metadata.get("tokenizer.ggml.merges")
    types: Any = metadata.get("tokenizer.ggml.token_type") or [0] * len(tokens or ())
    if not (_are(tokens, str) and _are(merges, str)):
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
        backend = _byte_level(tokens, merges, types, PRETOKENIZERS[pre](), whole=pre == "llama-bpe")
        if adds_bos:
            backend.post_processor = processors.TemplateProcessing(
                single=f"{tokens[bos]} $A", special_tokens=[(tokens[bos], bos)]
            )
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"{name}: the merges of the GGUF tokenizer are broken ({error}); {_ADVICE}") from error
    return backend, bos, eos, adds_bos


def _are(values: Any, kind: type) -> bool:
    return isinstance(values, list) and bool(values) and all(type(value) is kind for value in values)


def _byte_level(
    tokens: Sequence[str], merges: Sequence[str], types: Sequence[int], split: list[Any], whole: bool
) -> tokenizers.Tokenizer:
    """Return a byte-level BPE; `whole`: a word that is a token needs no merges."""
    vocab = {token: index for index, token in enumerate(tokens)}
    pairs = [(left, right) for left, right in (merge.split(" ", 1) for merge in merges)]
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=pairs, ignore_merges=whole))
    backend.pre_tokenizer = pre_tokenizers.Sequence(split)
    backend.decoder = decoders.ByteLevel()
    for token, kind in zip(tokens, types, strict=True):
        if kind in (_CONTROL, _USER_DEFINED):
            added = tokenizers.AddedToken(token, normalized=False, special=kind == _CONTROL)
            (backend.add_special_tokens if kind == _CONTROL else backend.add_tokens)([added])
    return backend
