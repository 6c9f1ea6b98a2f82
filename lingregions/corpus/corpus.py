"""Corpus: documents packed into samples of a fixed length, any of which can be had alone, by number.

Packing: the chosen documents, each with its special tokens, stand one after the other in one stream that is cut every T
tokens. So every token is in exactly one sample, nothing is dropped, and only the last sample is padded. A document that
reaches into the next sample goes on there with a segment number of its own; its first token there has no context and is
no target. The option packing="paper" keeps one document a sample, cut at T tokens and padded, as the released code
counts samples (it threw longer documents away whole; here they are cut, and the tokens lost are counted).

Sample k of a run is sample `order(seed, k, k + 1)` of the corpus: a pure function of (seed, k), so a resume point holds
one integer, and neither the batch size nor the number of hosts can matter. A batch costs one gather from the token
arrays, about 0.1 microseconds a token.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lingregions.corpus import build, special
from lingregions.corpus.batch import Batch
from lingregions.corpus.check import Excerpt
from lingregions.corpus.languages import LANGUAGES, canonical
from lingregions.corpus.source import UDHR, Source
from lingregions.corpus.source_names import find_source
from lingregions.corpus.split import parse_split, slice_bounds
from lingregions.corpus.text import Reading
from lingregions.corpus.tokens import Tokens, tokenize
from lingregions.display import Shown
from lingregions.models.tokenizer import Tokenizer
from lingregions.permutation import derive, permute

_PACKINGS = ("packed", "paper")
_PARTS = ("all", "score", "evaluation")


@dataclasses.dataclass(frozen=True)
class _Counts:
    """What a corpus holds: samples x length = tokens + special + padding.

    `tokens` are those of the texts, `special` BOS and EOS, `truncated` the tokens that packing="paper" cut off; `bytes`
    are the UTF-8 bytes of `tokens`; `empty` and `skipped` are texts of the source that gave no document.
    """

    documents: int
    samples: int
    tokens: int
    special: int
    padding: int
    truncated: int
    bytes: int
    empty: int
    skipped: int


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Corpus(Shown):
    """The samples of one language: `chosen` documents of `tokens`, packed to `length` (T)."""

    language: str
    tokens: Tokens
    chosen: np.ndarray  # int64 [documents], increasing
    length: int
    packing: str
    policy: special.Policy
    source: str
    split: str
    warnings: tuple[str, ...] = ()  # what a user should look at: texts left out, another language than they should be

    def __post_init__(self) -> None:
        """Refuse settings that cannot give samples."""
        where = f"{self.source} ({self.language}, split {self.split})"
        if self.packing not in _PACKINGS:
            raise ValueError(f"packing is one of {', '.join(_PACKINGS)}, not {self.packing!r}")
        if self.length < 2 + (self.policy.bos == "sample"):
            raise ValueError(
                f"samples of {self.length} tokens hold no target; length is 2 or more (3 with bos='sample')"
            )
        if not len(self.chosen):
            reasons = "".join(f"; {message}" for message in self.tokens.messages[:1])
            raise ValueError(
                f"no documents in {where}: {self.tokens.empty} empty and {self.tokens.skipped} skipped texts{reasons}"
            )
        first = self.tokens.ids[self.tokens.offsets[self.chosen]]
        if self.policy.bos_id is not None and (first == self.policy.bos_id).any():
            number = int(np.argmax(first == self.policy.bos_id))
            raise ValueError(
                f"document {number} of {where} already begins with BOS (id {self.policy.bos_id}), and "
                f"bos={self.policy.bos!r} would put a second one before it: set bos='none', or use texts without it"
            )

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.chosen) if self.packing == "paper" else -(-int(self._starts[-1]) // self._room)

    @cached_property
    def _room(self) -> int:
        """Return the positions of a sample that hold the stream: all, but for a BOS of the sample."""
        return self.length - int(self.policy.bos == "sample")

    @cached_property
    def _starts(self) -> np.ndarray:
        """Return int64 [documents + 1]: where each chosen document begins in the stream, special tokens included."""
        lengths = np.diff(self.tokens.offsets)[self.chosen] + self.policy.before + self.policy.after
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])

    def batch(self, positions: Sequence[int] | np.ndarray, size: int | None = None) -> Batch:
        """Return the samples at `positions` as int32 [B, T] arrays, B = `size` or the number of positions.

        Rows beyond the positions are padding (segments 0). Raises IndexError for a position that is not a sample,
        ValueError for more positions than `size`.
        """
        place, number, inside = self._locate(positions)
        offsets = self.tokens.offsets[self.chosen[number]]
        within = place - self._starts[number] - self.policy.before
        length = self._starts[number + 1] - self._starts[number] - self.policy.before - self.policy.after
        text = inside & (within >= 0) & (within < length)
        where = np.where(text, offsets + within, 0)
        tokens = np.where(text, self.tokens.ids[where], 0)
        sizes = np.where(text, self.tokens.bytes[where], 0)
        if self.policy.bos_id is not None and self.policy.before:
            tokens = np.where(inside & (within < 0), self.policy.bos_id, tokens)
        if self.policy.eos_id is not None:
            tokens = np.where(inside & (within == length), self.policy.eos_id, tokens)
        segments = np.where(inside, number - number[:, :1] + 1, 0)
        if self._room < self.length:
            first = np.full((len(tokens), 1), self.policy.bos_id)
            tokens = np.concatenate([first, tokens], 1)
            sizes = np.concatenate([np.zeros_like(first), sizes], 1)
            segments = np.concatenate([np.ones_like(first), segments], 1)
        rows = len(tokens) if size is None else size
        if len(tokens) > rows:
            raise ValueError(f"{len(tokens)} samples do not fit in a batch of {rows}")
        return Batch(*(_rows(array, rows) for array in (tokens, segments, sizes)))

    def documents(self, positions: Sequence[int] | np.ndarray, size: int | None = None) -> np.ndarray:
        """Return int64 [B, T]: which document (number within this corpus) the token stands in, -1 for padding.

        Per-document sums, such as those of a bootstrap over documents, come from this and the per-token losses.
        """
        _, number, inside = self._locate(positions)
        numbers = np.where(inside, number, -1)
        if self._room < self.length:
            numbers = np.concatenate([numbers[:, :1], numbers], 1)
        padded = np.full((len(numbers) if size is None else size, self.length), -1, np.int64)
        padded[: len(numbers)] = numbers
        return padded

    def __getitem__(self, position: int) -> Batch:
        """Return one sample as int32 [T] arrays: a Corpus is a random-access source, for loaders of any kind."""
        return Batch(*(array[0] for array in self.batch([position])))

    def order(self, seed: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return int64 [stop - start]: the positions of samples start..stop of the endless order named by `seed`.

        The first len(self) are a permutation of all samples, the next again another one. `stop` is one pass when None.
        """
        stop = len(self) if stop is None else stop
        if not 0 <= start <= stop:
            raise ValueError(f"samples {start}..{stop} of an order: 0 <= start <= stop is needed")
        turn, index = np.divmod(np.arange(start, stop, dtype=np.int64), len(self))
        places = np.empty_like(index)
        for number in np.unique(turn):
            places[turn == number] = permute(index[turn == number], len(self), derive(seed, int(number)))
        return places

    def draw(self, samples: int, seed: int, fewer: bool = False) -> np.ndarray:
        """Return the positions of the first `samples` samples of the order, none twice.

        Raises ValueError when the corpus holds fewer, unless `fewer` is accepted; the length of the result is what to
        record.
        """
        if samples < 1:
            raise ValueError(f"{samples} samples asked for: one or more are needed")
        if samples > len(self) and not fewer:
            raise ValueError(
                f"{samples} samples of {self.length} tokens asked for, but {self.source} ({self.language}, "
                f"split {self.split}) holds {len(self)}: ask for fewer, use shorter samples or more text, or allow "
                "fewer (in a config score.samples or evaluate.samples, data.length, data.fewer)"
            )
        return self.order(seed, 0, min(samples, len(self)))

    @cached_property
    def counts(self) -> _Counts:
        """Return what the corpus holds, counted in integers."""
        lengths = np.diff(self.tokens.offsets)[self.chosen]
        specials = len(self.chosen) * (self.policy.before + self.policy.after)
        if self.packing == "packed":
            kept = lengths
        else:
            kept = np.minimum(lengths, self._room - self.policy.before)
            ended = lengths + self.policy.before + self.policy.after <= self._room
            specials = len(self.chosen) * self.policy.before + int(ended.sum()) * self.policy.after
        specials += len(self) * int(self.policy.bos == "sample")
        tokens = int(kept.sum())
        if self.packing == "packed":
            total = int(np.add.reduceat(self.tokens.bytes, self.tokens.offsets[:-1], dtype=np.int64)[self.chosen].sum())
        else:
            starts = self.tokens.offsets[self.chosen].tolist()
            total = sum(
                int(np.sum(self.tokens.bytes[start : start + count], dtype=np.int64))
                for start, count in zip(starts, kept.tolist(), strict=True)
            )
        return _Counts(
            documents=len(self.chosen),
            samples=len(self),
            tokens=tokens,
            special=specials,
            padding=len(self) * self.length - tokens - specials,
            truncated=int((lengths - kept).sum()),
            bytes=total,
            empty=self.tokens.empty,
            skipped=self.tokens.skipped,
        )

    @cached_property
    def fingerprint(self) -> str:
        """Return a sha256 of all that decides the samples: texts, choice, tokenizer, length, packing, policy."""
        content = {
            "language": self.language,
            "texts": self.tokens.digest,
            "chosen": hashlib.sha256(self.chosen.astype("<i8").tobytes()).hexdigest(),
            "tokenizer": self.tokens.tokenizer,
            "length": self.length,
            "packing": self.packing,
            "policy": dataclasses.astuple(self.policy),
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def _line(self) -> str:
        documents = f"{len(self.chosen):,} document{'s' * (len(self.chosen) != 1)}"
        name = LANGUAGES[self.language].name
        return f"{name}, {self.source}, {self.split}: {documents}, {len(self):,} samples of {self.length} tokens"

    def _facts(self) -> dict[str, Any]:
        counts = {name: f"{value:,}" for name, value in dataclasses.asdict(self.counts).items()}
        return counts | {"special tokens": str(self.policy), "fingerprint": self.fingerprint}

    def _locate(self, positions: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return, for each position in samples, int64 [B, room] place in the stream, document, and bool: no padding."""
        wanted = np.asarray(positions, np.int64).reshape(-1)
        if wanted.size and not 0 <= int(wanted.min()) <= int(wanted.max()) < len(self):
            raise IndexError(f"samples {int(wanted.min())}..{int(wanted.max())} of a corpus of {len(self)} samples")
        steps = np.arange(self._room)
        if self.packing == "paper":
            place = self._starts[wanted][:, None] + steps
            number = np.broadcast_to(wanted[:, None], place.shape)
            inside = place < self._starts[wanted + 1][:, None]
        else:
            place = wanted[:, None] * self._room + steps
            inside = place < self._starts[-1]
            number = np.searchsorted(self._starts[1:-1], place, "right")
        return np.where(inside, place, self._starts[number]), number, inside


def _rows(array: np.ndarray, rows: int) -> np.ndarray:
    """Return the array as int32 with zero rows added up to `rows`."""
    padded = np.zeros((rows, array.shape[1]), np.int32)
    padded[: len(array)] = array
    return padded


def _choose(tokens: Tokens, split: str, part: str, held: float | None, seed: int | None) -> np.ndarray:
    """Return int64 document numbers, increasing: the slice of `split`, then the `part` of it.

    The parts "score" and "evaluation" are disjoint by text: a hash of the text and `seed` sends about `held` (a
    fraction) of the documents to "evaluation", wherever and however often they stand, so no duplicate is on both sides.
    """
    _, start, stop = parse_split(split)
    first, last = slice_bounds(start, stop, len(tokens))
    chosen = np.arange(first, last, dtype=np.int64)
    if part not in _PARTS:
        raise ValueError(f"a part of a split is one of {', '.join(_PARTS)}, not {part!r}")
    if part == "all":
        return chosen
    if held is None or seed is None or not 0 < held < 1:
        raise ValueError(
            f"part={part!r} needs `held`, the fraction of documents for evaluation (between 0 and 1), and `seed`"
        )
    # The permutation of range(2**62) mixes hash and seed; its images below held x 2**62 are a fraction `held` of all.
    places = permute((tokens.hashes[chosen] >> np.uint64(2)).astype(np.int64), 2**62, derive(seed, "part"))
    kept: np.ndarray = chosen[(places < int(held * 2**62)) == (part == "evaluation")]
    return kept


def source_of(data: Mapping[str, Any], use: str) -> str:
    """Return the source of the texts for one use, by the section `data` of a config."""
    return str(data.get(f"{use}_source") or data["source"])


def options(data: Mapping[str, Any], use: str, seed: int) -> dict[str, Any]:
    """Return what `open` takes from the section `data` of a config for one use: "score", "evaluate" or "train".

    Each use has a source (`<use>_source`, empty: `source`) and a split (`<use>_split`). Where one source serves both
    evaluation and another use, `held` parts its documents; a source of evaluation alone is evaluated on whole.
    """
    uses = [each for each in ("score", "evaluate", "train") if f"{each}_split" in data]
    named = {each: source_of(data, each) for each in uses}
    across = [named[each] for each in uses if (each == "evaluate") != (use == "evaluate")]
    parted = data["held"] and (not across or named[use] in across)
    return {
        "source": named[use],
        "split": data[f"{use}_split"],
        "part": ("evaluation" if use == "evaluate" else "score") if parted else "all",
        "held": data["held"] or None,
        "seed": seed,
        "bos": data["bos"] or None,
        "eos": data["eos"] or None,
        **{key: data[key] for key in ("length", "packing", "column", "document", "strict")},
    }


def open(
    source: str | Path | Sequence[str] | Source,
    language: str,
    tokenizer: Tokenizer,
    *,
    length: int,
    split: str | None = None,
    part: str = "all",
    held: float | None = None,
    seed: int | None = None,
    packing: str = "packed",
    bos: str | None = None,
    eos: str | None = None,
    column: str = "text",
    document: str = "line",
    strict: bool = True,
    vocabulary: int | None = None,
    cache: str | Path | None = None,
    workers: int = 0,
) -> Corpus:
    """Return the corpus of a language: samples of `length` tokens.

    `source` is a name of `source_names`, a path, or the texts themselves, one a document; `language` any name of one;
    `split` its split with an optional slice by document (None: the source's own default), `part`, `held` and `seed` as
    in `_choose`; `packing` "packed" or "paper"; `bos` and `eos` as in `special.policy`; `column`, `document` and
    `strict` as in `text.read`. `vocabulary` is the number of rows of the model's embedding; a tokenizer with ids beyond
    it is refused. With `cache`, a folder, the tokens are read from files there, built first by `workers` processes if
    need be; without, they are held in memory, 8 bytes a token. Raises ValueError (TextError for bad texts, with
    file:line) or FileNotFoundError, each saying what to do.
    """
    code = canonical(language)
    if vocabulary is not None:
        tokenizer.check(vocabulary)
    if isinstance(source, str) and source.startswith("tokens:"):
        name, split = source, split or "all"
        root = Path(source.removeprefix("tokens:")).expanduser()
        sliced, warnings = split, list[str]()
        tokens = build.load(build.pick(root, code, parse_split(split)[0], tokenizer), tokenizer)
    else:
        place = source
        if isinstance(place, str | Path | Sequence):
            place = find_source(place, column=column, document=document)
        name, split = place.name, split or place.split
        whole, sliced = place.resolve(code, split)
        warnings = place.left_out(code)
        if cache is None:
            tokens = _held(place, code, whole, tokenizer, strict)
        else:
            with build.Pool(tokenizer, workers, strict) as pool:
                folder = build.build(Path(cache), place, code, whole, pool, say=warnings.append)
            tokens = build.load(folder, tokenizer)
    chosen = _choose(tokens, sliced, part, held, seed)
    if len(tokens) and not len(chosen):
        filters = f"split {sliced!r}" + ("" if part == "all" else f" and held={held}, which keeps the {part} side,")
        raise ValueError(
            f"no documents of {name} ({code}) are left: it holds {len(tokens)}, and {filters} leaves none of them; "
            "bring more documents (document='line' or 'paragraph' makes more of a text), or change the filter"
        )
    label = split if part == "all" else f"{split}, {part}"
    policy = special.policy(tokenizer, bos, eos)
    return Corpus(code, tokens, chosen, length, packing, policy, name, label, (*warnings, *tokens.warnings))


def _held(source: Source, language: str, split: str, tokenizer: Tokenizer, strict: bool) -> Tokens:
    """Return the tokens of a source in memory, with warnings where its texts look wrong."""
    reading, excerpt = Reading(strict), Excerpt(language)
    tokens = tokenize(excerpt.note(source.documents(language, split, reading)), tokenizer, reading)
    warnings = () if source is UDHR else tuple(excerpt.warnings())
    return dataclasses.replace(tokens, warnings=warnings)
