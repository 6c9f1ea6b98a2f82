"""Tokenizer: text to token ids, and how many UTF-8 bytes of the text each token stands for.

A thin face over the `tokenizers` library, so that every source of a model (a Hugging Face folder through transformers,
GGUF metadata, bytes) speaks alike. Two promises hold whatever the tokenizer does inside: the byte counts sum to the
bytes of the text, which makes bits per byte exact on any window; and text is only ever text - a corpus that spells
`<|endoftext|>` gets the pieces of that spelling, never the control token. Encoding costs what `tokenizers` costs:
about 700,000 tokens a second.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from lingregions.models import gguf_tokenizer, huggingface

_MOST = 1 << 24  # ids; the largest vocabularies have 2^18


class _Encoding(NamedTuple):
    """What `Tokenizer.encode` returns.

    Attributes:
      ids: int32 [T].
      bytes: int32 [T], the UTF-8 bytes that each token stands for; they sum to the bytes of the text.
    """

    ids: np.ndarray
    bytes: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Tokenizer:
    """A tokenizer and the special tokens of its model.

    Attributes:
      backend: the `tokenizers` object; not to be changed after construction.
      name: what messages call it.
      bos: id of the begin-of-sequence token, or None.
      eos: id of the end-of-sequence token, or None; may equal `bos`.
      adds_bos: whether the model was trained with `bos` in front of each text.
    """

    backend: tokenizers.Tokenizer = dataclasses.field(repr=False)
    name: str
    bos: int | None
    eos: int | None
    adds_bos: bool = False

    def __post_init__(self) -> None:
        """Make the backend treat special tokens in text as text, and neither cut nor pad."""
        self.backend.encode_special_tokens = True
        self.backend.no_truncation()
        self.backend.no_padding()
        for kind, token in (("bos", self.bos), ("eos", self.eos)):
            if token is not None and not (0 <= token < 2**32 and self.backend.id_to_token(token) is not None):
                raise ValueError(f"tokenizer {self.name}: the {kind} id {token} is not in its vocabulary")
        if self.vocab_size > _MOST:
            raise ValueError(f"tokenizer {self.name}: it has the id {self.vocab_size - 1}, which no vocabulary needs")

    @classmethod
    def bytes(cls) -> "Tokenizer":
        """Return the tokenizer whose ids 0 .. 255 are the bytes themselves, 256 bos and 257 eos: for tiny models."""
        letters = _letters()
        backend = tokenizers.Tokenizer(
            models.BPE(vocab={letter: byte for byte, letter in enumerate(letters)}, merges=[])
        )
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.decoder = decoders.ByteLevel()
        backend.add_special_tokens([tokenizers.AddedToken(token, normalized=False) for token in ("<bos>", "<eos>")])
        return cls(backend, "bytes", bos=256, eos=257)

    @classmethod
    def from_folder(cls, folder: str | Path, name: str | None = None) -> "Tokenizer":
        """Return the tokenizer of a Hugging Face folder, as transformers' AutoTokenizer reads it.

        Raises:
          FileNotFoundError: no tokenizer.
          ValueError: a file that cannot be parsed, or a special token that the vocabulary lacks.
        """
        folder = Path(folder)
        backend, bos, eos, adds_bos = huggingface.read_tokenizer(folder)
        # A tokenizer.json may list bos and eos as ordinary added tokens; text must not reach them.
        backend.add_special_tokens(
            [
                tokenizers.AddedToken(text, normalized=False, special=True)
                for token in (bos, eos)
                if token is not None and (text := backend.id_to_token(token)) is not None
            ]
        )
        return cls(backend, name or folder.name, bos, eos, adds_bos)

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], name: str) -> "Tokenizer":
        """Return the tokenizer in the metadata of a GGUF file; see `gguf_tokenizer.build` for arguments and errors."""
        backend, bos, eos, adds_bos = gguf_tokenizer.build(metadata, name)
        return cls(backend, name, bos, eos, adds_bos)

    @functools.cached_property
    def vocab_size(self) -> int:
        """One more than the largest id, added tokens included."""
        return max(self.backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    @functools.cached_property
    def fingerprint(self) -> str:
        """The sha256, in hex, of all that decides the ids: part of the identity of encoded corpora and scores."""
        content = [json.loads(self.backend.to_str()), self.bos, self.eos, self.adds_bos]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @functools.cached_property
    def _specials(self) -> np.ndarray:
        """Bool [vocab_size]: which ids are control tokens; the unknown token, which stands for text, is none."""
        mask = np.zeros(self.vocab_size, bool)
        for index, token in self.backend.get_added_tokens_decoder().items():
            mask[index] = token.special
        model = json.loads(self.backend.to_str())["model"]
        unknown = model.get("unk_id") if "unk_id" in model else self.backend.token_to_id(model.get("unk_token") or "")
        if unknown is not None:
            mask[unknown] = False
        return mask

    @functools.cached_property
    def _widths(self) -> np.ndarray | None:
        """Bytes of each id, int32 [vocab_size], where a token is a string of bytes (byte-level BPE); None elsewhere."""
        if '"ByteLevel"' not in json.dumps(json.loads(self.backend.to_str())["pre_tokenizer"]):
            return None
        widths = np.zeros(self.vocab_size, np.int32)
        for token, index in self.backend.get_vocab(with_added_tokens=False).items():
            widths[index] = len(token)  # one letter a byte
        for index, added in self.backend.get_added_tokens_decoder().items():
            widths[index] = len(added.content.encode())
        return widths

    def encode(self, text: str) -> _Encoding:
        """Return the ids of a text without any special token, and the UTF-8 bytes that each stands for.

        Where several tokens share one character, its bytes are spread over them; characters that the tokenizer drops
        count to the next token (at the end, to the last). The empty text has no tokens.

        Raises:
          ValueError: a lone surrogate, which no UTF-8 text holds; or a text of which the tokenizer keeps nothing.
        """
        try:
            size = len(text.encode())
        except UnicodeEncodeError as error:
            raise ValueError(
                f"the text holds a lone surrogate U+{ord(text[error.start]):04X} at character {error.start}, so it is "
                "not Unicode; read the file as UTF-8 and repair or skip this document"
            ) from error
        if not size:
            return _Encoding(np.zeros(0, np.int32), np.zeros(0, np.int32))
        encoded = self.backend.encode(text, add_special_tokens=False)
        ids = np.asarray(encoded.ids, np.int32)
        if not len(ids):
            raise ValueError(f"tokenizer {self.name} keeps nothing of the text {text[:40]!r}; skip this document")
        if self._widths is not None and int(self._widths[ids].sum()) == size:
            counts = self._widths[ids]
        else:
            counts = _spread(text, size, np.asarray(encoded.offsets, np.int64).reshape(-1, 2))
        if self._specials[ids].any():
            return self._spell(ids, counts)
        return _Encoding(ids, counts)

    def _spell(self, ids: np.ndarray, counts: np.ndarray) -> _Encoding:
        """Replace control tokens that the merges of the vocabulary built from text by the letters they are made of."""
        letters = self.backend.get_vocab(with_added_tokens=False)
        spelled: list[tuple[int, int]] = []
        for token, count in zip(ids.tolist(), counts.tolist(), strict=True):
            if not self._specials[token]:
                spelled.append((token, count))
                continue
            content = str(self.backend.id_to_token(token))
            missing = [letter for letter in content if letter not in letters]
            if missing:
                raise ValueError(
                    f"tokenizer {self.name} makes the control token {content!r} out of text and has no token "
                    f"{missing[0]!r} to spell it with; skip this document"
                )
            base, rest = divmod(count, len(content))
            spelled += [
                (letters[letter], base + (place >= len(content) - rest)) for place, letter in enumerate(content)
            ]
        pairs = np.asarray(spelled, np.int32)
        return _Encoding(pairs[:, 0], pairs[:, 1])

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Return the text of ids, special tokens written out; a cut character becomes U+FFFD."""
        return str(self.backend.decode(np.asarray(ids).tolist(), skip_special_tokens=False))

    def check(self, vocab: int) -> list[str]:
        """Check that every id that a text or the policy of special tokens can reach has a row in an embedding.

        Args:
          vocab: rows of the embedding.

        Returns:
          The control tokens without a row, such as a [PAD] that a trainer added: no text reaches them.

        Raises:
          ValueError: names the tokenizer and the ids that have no row.
        """
        beyond = sorted(
            (index, token) for token, index in self.backend.get_vocab(with_added_tokens=True).items() if index >= vocab
        )
        reached = [
            (index, token) for index, token in beyond if not self._specials[index] or index in (self.bos, self.eos)
        ]
        if reached:
            shown = ", ".join(f"{index} ({token!r})" for index, token in reached[:5])
            more = f" and {len(reached) - 5} more" if len(reached) > 5 else ""
            raise ValueError(
                f"tokenizer {self.name} does not belong to this model: the embedding has {vocab} rows (ids 0 to "
                f"{vocab - 1}), the tokenizer has the ids {shown}{more}; use the tokenizer that came with the model"
            )
        return [token for _, token in beyond]

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json and tokenizer_config.json, from which transformers' AutoTokenizer gives equal ids."""
        folder = Path(folder)
        config: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "add_bos_token": self.adds_bos,
            "clean_up_tokenization_spaces": False,
        }
        for kind, token in (("bos_token", self.bos), ("eos_token", self.eos)):
            config[kind] = None if token is None else self.backend.id_to_token(token)
        (folder / "tokenizer.json").write_text(self.backend.to_str(pretty=True) + "\n", encoding="utf-8")
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _letters() -> list[str]:
    """Return the letter by which byte-level BPE writes each byte: itself if printable in Latin-1, else U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def _spread(text: str, size: int, offsets: np.ndarray) -> np.ndarray:
    """Return UTF-8 bytes a token, int32 [T], from character offsets [T, 2]; they sum to `size`.

    A run of tokens with one and the same span (the byte tokens of one character) shares its bytes evenly, the last ones
    taking the rest, for the first may be a prefix that the text lacks; a span counts from where those before it ended.
    """
    codes = np.frombuffer(text.encode("utf-32-le"), "<u4")
    ends = np.concatenate([[0], np.cumsum(1 + (codes > 0x7F) + (codes > 0x7FF) + (codes > 0xFFFF))]).astype(np.int64)
    first = np.flatnonzero(np.concatenate([[True], (offsets[1:] != offsets[:-1]).any(axis=1)]))
    reached = np.maximum.accumulate(ends[offsets[first, 1]])
    reached[-1] = size
    length = np.diff(np.append(first, len(offsets)))
    base, rest = np.divmod(np.diff(reached, prepend=0), length)
    place = np.arange(len(offsets)) - np.repeat(first, length)
    counts = np.repeat(base, length) + (place >= np.repeat(length - rest, length))
    return counts.astype(np.int32)
