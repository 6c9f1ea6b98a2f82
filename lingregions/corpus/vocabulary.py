"""Vocabulary: a byte-level BPE in which no language pays much more than another for saying the same.

Trained with `tokenizers` on texts of several languages. How much of each is read is balanced in rounds: a language that
needs more tokens than others for a parallel text gets more room in the next one. Costs a few seconds a round.
"""

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

from lingregions.models.tokenizer import Tokenizer

# Letters with their marks (in Tamil and Malayalam vowels are marks), numbers by three digits, signs, space.
_PIECES = r" ?[\p{L}\p{M}]+| ?\p{N}{1,3}| ?[^\s\p{L}\p{M}\p{N}]+|\s+(?!\S)|\s+"
_BOS, _EOS = "<bos>", "<eos>"
_EACH = 300_000  # bytes of each language in the first round
_ROUNDS, _POWER = 6, 1.5  # of balancing: a share grows with this power of the tokens over the median


def train(
    texts: Mapping[str, str], parallel: Mapping[str, str], size: int, name: str, say: Callable[[str], None] = print
) -> tuple[Tokenizer, dict[str, float]]:
    """Return a tokenizer, and the tokens that each language needs for its parallel text over those of the best.

    Args:
      texts: what it is trained on, by language.
      parallel: the same content in each of these languages; what is balanced.
      size: ids, the two special tokens and 256 bytes among them.
      name: of the tokenizer.
      say: told of each round.

    Raises:
      ValueError: fewer ids than bytes, or a language without text.
    """
    if size < 258:
        raise ValueError(f"a vocabulary of {size} ids does not hold 256 bytes and two special tokens")
    if empty := [code for code in texts if not texts[code].strip()]:
        raise ValueError(f"there is no text in {', '.join(empty)}: no vocabulary can be made for it")
    content = {code: text.encode() for code, text in texts.items()}
    shares = dict.fromkeys(texts, 1.0)
    found: tuple[float, tokenizers.Tokenizer, dict[str, float]] | None = None
    for round in range(_ROUNDS):
        total = sum(shares.values())
        sizes = {code: int(_EACH * len(shares) * share / total) for code, share in shares.items()}
        backend = _fit(content, sizes, size)
        counts = {code: len(backend.encode(parallel[code], add_special_tokens=False).ids) for code in texts}
        least, middle = min(counts.values()), float(np.median(list(counts.values())))
        fertility = {code: count / least for code, count in counts.items()}
        worst = max(fertility, key=fertility.__getitem__)
        say(f"round {round + 1} of {_ROUNDS}: {worst} needs {fertility[worst]:.2f} times the tokens of the best")
        if found is None or fertility[worst] < found[0]:
            found = fertility[worst], backend, fertility
        shares = {code: share * (counts[code] / middle) ** _POWER for code, share in shares.items()}
    assert found is not None
    _, backend, fertility = found
    return Tokenizer(backend, name, backend.token_to_id(_BOS), backend.token_to_id(_EOS)), fertility


def _fit(content: Mapping[str, bytes], sizes: Mapping[str, int], size: int) -> tokenizers.Tokenizer:
    """Return the BPE of the first bytes of each text, which is read again where it is shorter."""
    backend = tokenizers.Tokenizer(models.BPE())
    cut = pre_tokenizers.Split(Regex(_PIECES), "isolated")
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([cut, letters])
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[_BOS, _EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_lines(content, sizes), trainer)
    return backend


def _lines(content: Mapping[str, bytes], sizes: Mapping[str, int]) -> Iterator[str]:
    for code, text in content.items():
        left = sizes[code]
        while left > 0:
            yield from text[:left].decode("utf-8", "ignore").splitlines()
            left -= len(text)
