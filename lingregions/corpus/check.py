"""Is this text what it says it is? Figures and warnings about a language's documents, before an experiment uses them.

Scripts are known by Unicode blocks, letter by letter; the language itself by its most frequent character
trigrams: those of the UDHR, which the package has in all thirty (after W. B. Cavnar and J. M. Trenkle, "N-Gram-Based
Text Categorization", SDAIR 1994). Close relatives share many (Danish and Norwegian, Malay and Indonesian), so the
result is a warning, never an error. One pass over the text, about 10 MB a second; with a tokenizer, its speed.
"""

import functools
import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from lingregions.corpus.languages import LANGUAGES
from lingregions.corpus.source import UDHR, Source
from lingregions.corpus.text import Reading
from lingregions.models.tokenizer import Tokenizer

# Letters of the scripts of the thirty languages: (first, last) code points of their blocks.
_SCRIPTS: dict[str, tuple[tuple[int, int], ...]] = {
    "Latin": ((0x41, 0x5A), (0x61, 0x7A), (0xAA, 0xAA), (0xBA, 0xBA), (0xC0, 0xD6), (0xD8, 0xF6), (0xF8, 0x24F))
    + ((0x1E00, 0x1EFF), (0x2C60, 0x2C7F), (0xA720, 0xA7FF), (0xFB00, 0xFB06), (0xFF21, 0xFF3A), (0xFF41, 0xFF5A)),
    "Greek": ((0x370, 0x373), (0x376, 0x37D), (0x386, 0x3FF), (0x1F00, 0x1FFF)),
    "Cyrillic": ((0x400, 0x52F), (0x1C80, 0x1C8F), (0x2DE0, 0x2DFF), (0xA640, 0xA69F)),
    "Arabic": ((0x620, 0x65F), (0x66E, 0x6D3), (0x6D5, 0x6FF), (0x750, 0x77F), (0x8A0, 0x8FF), (0xFB50, 0xFDFF))
    + ((0xFE70, 0xFEFC),),
    "Tamil": ((0xB80, 0xBFF),),
    "Malayalam": ((0xD00, 0xD7F),),
    "Hiragana": ((0x3041, 0x309F),),
    "Katakana": ((0x30A0, 0x30FF), (0x31F0, 0x31FF), (0xFF66, 0xFF9D)),
    "Hangul": ((0x1100, 0x11FF), (0x3130, 0x318F), (0xA960, 0xA97F), (0xAC00, 0xD7FF)),
    "Han": ((0x3005, 0x3007), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x323AF)),
    # Scripts that none of the thirty is written in, so that they are seen when they turn up.
    "another": ((0x530, 0x61F), (0x700, 0x74F), (0x780, 0x89F), (0x900, 0xB7F), (0xC00, 0xCFF), (0xD80, 0x10FF))
    + ((0x1200, 0x1C7F), (0xA000, 0xA4CF)),
}

# Where a figure becomes a warning, as fractions: letters outside the language's scripts (names and code are Latin in
# any text), replacement characters, repeated documents, empty ones, tokens a byte (1 is spelling text out byte by
# byte).
_FOREIGN, _REPLACED, _REPEATED, _EMPTY, _SPELLED = 0.5, 1e-4, 0.1, 0.1, 0.5
_SAMPLE = 1 << 18  # characters from which the language is guessed
_PROFILE = 400  # trigrams a language is known by


@dataclass
class Inspection:
    """What one language's documents look like; shares are fractions of letters, characters, documents or texts.

    `warnings` need a look; `errors` are texts that strict reading would stop at, with file:line, at most twenty of
    `skipped`. `guess` is the language that the trigrams speak for; tokens a byte is None without a tokenizer.
    """

    language: str
    documents: int = 0
    empty: int = 0
    skipped: int = 0
    characters: int = 0
    bytes: int = 0
    tokens: int | None = None
    marks: int = 0
    foreign: float = 0.0
    replaced: float = 0.0
    repeated: float = 0.0
    guess: str | None = None
    warnings: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    @property
    def density(self) -> float | None:
        """Return tokens a byte."""
        return self.tokens / self.bytes if self.tokens is not None and self.bytes else None


def check(source: Source, language: str, split: str, tokenizer: Tokenizer | None = None) -> Inspection:
    """Return what the documents of one language and split look like; bad texts are counted, not raised.

    Raises ValueError or FileNotFoundError when the language or the split is not there at all.
    """
    reading = Reading(strict=False)
    inspection = Inspection(language, tokens=None if tokenizer is None else 0)
    scripts: Counter[str] = Counter()
    seen: set[bytes] = set()
    repeated = replaced = 0
    excerpt = Excerpt(language)
    for text in excerpt.note(source.documents(language, source.resolve(language, split)[0], reading)):
        raw = text.encode()
        digest = hashlib.blake2b(raw, digest_size=8).digest()
        repeated += digest in seen
        seen.add(digest)
        inspection.characters += len(text)
        inspection.bytes += len(raw)
        replaced += text.count("\ufffd")
        inspection.marks += text.count("\ufeff")
        scripts.update(_letters(text))
        if tokenizer is not None and inspection.tokens is not None:
            try:
                inspection.tokens += len(tokenizer.encode(text).ids)
            except ValueError as error:
                reading.refuse(tokenizer.name, str(error))
    inspection.documents, inspection.empty, inspection.skipped = reading.documents, reading.empty, reading.skipped
    inspection.errors = reading.messages
    inspection.foreign = _foreign(scripts, language)
    inspection.replaced = replaced / inspection.characters if inspection.characters else 0.0
    inspection.repeated = repeated / inspection.documents if inspection.documents else 0.0
    inspection.guess = _guess(excerpt._text)
    inspection.warnings = [*_warn(inspection, scripts), *source.left_out(language)]
    return inspection


def _warn(inspection: Inspection, scripts: Counter[str]) -> Iterator[str]:
    """Yield what a user should look at, each with its percentage."""
    entry = LANGUAGES[inspection.language]
    texts = inspection.documents + inspection.empty + inspection.skipped
    if not inspection.documents:
        yield "no documents"
        return
    if inspection.skipped:
        yield f"{inspection.skipped / texts:.2%} of the texts cannot be used (see errors)"
    yield from _another(inspection.language, scripts, inspection.guess)
    if inspection.marks:
        yield f"{inspection.marks:,} byte order marks (U+FEFF) inside the texts: were files with one joined?"
    if inspection.replaced > _REPLACED:
        share = f"{inspection.replaced:.2%} of the characters"
        yield f"{share} are U+FFFD: an earlier program read this in a wrong encoding"
    if inspection.repeated > _REPEATED:
        yield f"{inspection.repeated:.1%} of the documents repeat an earlier one"
    if inspection.empty > _EMPTY * texts:
        yield f"{inspection.empty / texts:.1%} of the texts are empty"
    if inspection.density is not None and inspection.density > _SPELLED:
        yield f"{inspection.density:.2f} tokens a byte: the tokenizer hardly knows the writing of {entry.name}"


def _foreign(scripts: Counter[str], language: str) -> float:
    """Return the fraction of the letters that is not in the scripts of a language."""
    own = sum(scripts[script] for script in LANGUAGES[language].scripts)
    return 1 - own / scripts.total() if scripts.total() else 0.0


def _another(language: str, scripts: Counter[str], guessed: str | None) -> Iterator[str]:
    """Yield a warning when the text is in another script, or looks more like another language."""
    entry, foreign = LANGUAGES[language], _foreign(scripts, language)
    if foreign > _FOREIGN:
        common = ", ".join(f"{script} {count / scripts.total():.1%}" for script, count in scripts.most_common(2))
        yield (
            f"{foreign:.1%} of the letters are not in the script of {entry.name} ({', '.join(entry.scripts)}): most "
            f"are {common}: is this the right file?"
        )
    elif guessed not in (None, language):
        yield f"the text looks more like {LANGUAGES[str(guessed)].name} than {entry.name}: is this the right file?"


class Excerpt:
    """The first `_SAMPLE` characters of texts that pass by: enough to see whether they are in their language."""

    def __init__(self, language: str) -> None:
        self.language = language
        self.pieces: list[str] = []
        self.room = _SAMPLE

    def note(self, texts: Iterable[str]) -> Iterator[str]:
        """Yield the texts, keeping what there is room for."""
        for text in texts:
            if self.room > 0:
                self.pieces.append(text[: self.room])
                self.room -= len(text)
            yield text

    @property
    def _text(self) -> str:
        """Return what was kept."""
        return " ".join(self.pieces)

    def warnings(self) -> list[str]:
        """Return what a user should look at, with percentages: another script, another language."""
        return list(_another(self.language, Counter(_letters(self._text)), _guess(self._text)))


def _letters(text: str) -> dict[str, int]:
    """Return the number of letters of each script in a text; digits, marks of punctuation and spaces count nowhere."""
    codes = np.frombuffer(text.encode("utf-32-le", "replace"), "<u4")
    places, which, names = _blocks()
    found = np.searchsorted(places, codes, "right")
    counts = np.bincount(which[found], minlength=len(names) + 1)
    return {name: int(count) for name, count in zip(names, counts[1:], strict=True) if count}


@functools.cache
def _blocks() -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return the sorted borders of all blocks, the script after each (number from 1, 0: none), and the scripts."""
    names = list(_SCRIPTS)
    spans = sorted((first, last + 1, number) for number, name in enumerate(names, 1) for first, last in _SCRIPTS[name])
    places, which = [0], [0, 0]
    for first, last, number in spans:
        places += [first, last]
        which += [number, 0]
    return np.array(places), np.array(which), names


def _guess(text: str) -> str | None:
    """Return the code of the language whose common trigrams the text's resemble most, None for a text of under 200.

    Only languages in the script of most of the letters are compared, and Latin names in other scripts are not looked
    at.
    """
    found = _letters(text)
    script = max(found, key=lambda name: found[name], default="")
    codes = [code for code, entry in LANGUAGES.items() if script in entry.scripts]
    counts = _trigrams(text if script == "Latin" else "".join(" " if letter.isascii() else letter for letter in text))
    if counts.total() < 200 or not codes:
        return None
    weights = {gram: math.sqrt(count) for gram, count in counts.most_common(4 * _PROFILE)}
    profiles = _profiles()
    scores = {code: sum(weights.get(gram, 0.0) * weight for gram, weight in profiles[code].items()) for code in codes}
    return max(scores, key=lambda code: scores[code])


@functools.cache
def _profiles() -> dict[str, dict[str, float]]:
    """Return for each language the weights of its commonest trigrams in the UDHR, as vectors of length one."""
    profiles = {}
    for code in LANGUAGES:
        (text,) = UDHR.documents(code, "all", Reading())
        weights = {gram: math.sqrt(count) for gram, count in _trigrams(text).most_common(_PROFILE)}
        norm = math.sqrt(sum(weight * weight for weight in weights.values()))
        profiles[code] = {gram: weight / norm for gram, weight in weights.items()}
    return profiles


def _trigrams(text: str) -> Counter[str]:
    """Return the counts of the character trigrams within and around words, in lower case and without digits."""
    words = "".join(letter if letter.isalpha() or not letter.isascii() else " " for letter in text.lower()).split()
    spaced = " ".join(words)
    return Counter(spaced[place : place + 3] for place in range(len(spaced) - 2))
