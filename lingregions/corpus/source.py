"""Where text comes from, behind one name in a config.

    udhr                      the Universal Declaration of Human Rights in the package; splits all, first, second (its
    halves) PATH/TO/FOLDER            `<code>.txt`, `<code>.jsonl`, `<code>.parquet`, more than one
    (`<code>-1.jsonl.gz`), or a
                              folder `<code>/`; split all
    PATH/TO/MANIFEST.json     per language: source, split, column, licence note tfds:NAME                 a TFDS data
    set (`tfds.py`): tfds:wiki40b, tfds:wikipedia/20230601, tfds:lingregions_text, ... tokens:PATH/TO/FOLDER     token
    files that `lingregions data build` wrote (`build.py`)

Any split may carry a slice by document, `all[:90%]` or `train[1000:2000]`.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

from lingregions.corpus import text
from lingregions.corpus.languages import ALIASES, LANGUAGES
from lingregions.corpus.text import Reading

UDHR_LICENCE = "Universal Declaration of Human Rights, translations of the United Nations; free of copyright"


class Source(Protocol):
    """A named place of documents in several languages."""

    @property
    def name(self) -> str:
        """Return the name in the config."""

    @property
    def split(self) -> str:
        """Return the split that is meant when none is named."""

    def languages(self) -> list[str]:
        """Return the ISO codes of the languages that are there, sorted."""

    def resolve(self, language: str, split: str) -> tuple[str, str]:
        """Return (split to read, split whose slice is to be taken by document from what was read)."""

    def documents(self, language: str, split: str, reading: Reading) -> Iterator[str]:
        """Yield the documents of one split in their fixed order; raises ValueError for a split that is not there."""

    def identity(self, language: str, split: str) -> str:
        """Return a sha256 of what `documents` would read, without tokenizing it: the key of token files."""

    def size(self, language: str, split: str) -> int:
        """Return the bytes (as `Reading.position` counts them) to read, 0 when unknown."""

    def licence(self, language: str) -> str:
        """Return the licence note, empty when none is known."""


@dataclass(frozen=True)
class Udhr:
    """The UDHR, one document a language, shipped with the package; see data/udhr/PROVENANCE.md."""

    name: str = "udhr"
    split: str = "all"

    def languages(self) -> list[str]:
        """Return all thirty codes."""
        return sorted(LANGUAGES)

    def resolve(self, language: str, split: str) -> tuple[str, str]:
        """Return the split's name, and the split itself for its slice."""
        return parse(split)[0], split

    def documents(self, language: str, split: str, reading: Reading) -> Iterator[str]:
        """Yield the whole document, or its first or second half."""
        if split not in ("all", "first", "second"):
            raise ValueError(f"the splits of udhr are all, first and second, not {split!r}")
        if language not in LANGUAGES:
            raise ValueError(f"udhr has no {language!r}; it has {' '.join(self.languages())}")
        whole = self._file(language).decode()
        chosen = whole.strip("\n") if split == "all" else halves(whole)[split == "second"]
        yield from reading.accept(chosen, f"udhr/{language}.txt")

    def identity(self, language: str, split: str) -> str:
        """Return the sha256 of the file and the split."""
        return hashlib.sha256(self._file(language) + split.encode()).hexdigest()

    def size(self, language: str, split: str) -> int:
        """Return 0: it is read at once."""
        return 0

    def licence(self, language: str) -> str:
        """Return the licence note."""
        return UDHR_LICENCE

    def _file(self, language: str) -> bytes:
        return resources.files("lingregions.corpus").joinpath(f"data/udhr/{language}.txt").read_bytes()


def halves(whole: str) -> tuple[str, str]:
    """Return the halves of a text, cut at the line boundary nearest to half of its UTF-8 bytes (the earlier of two).

    The line feed at the cut and those at the ends belong to neither half. Raises ValueError for a text of one line.
    """
    raw = whole.strip("\n").encode()
    boundaries = [match.start() for match in re.finditer(b"\n", raw)]
    if not boundaries:
        raise ValueError("a text of one line has no line boundary to cut it in halves at")
    cut = min(boundaries, key=lambda place: (abs(2 * place - (len(raw) - 1)), place))
    return raw[:cut].decode().strip("\n"), raw[cut:].decode().strip("\n")


@dataclass(frozen=True)
class Folder:
    """Text files of the user, found by language code; `document` and `column` as in `text.read`."""

    name: str
    root: Path
    column: str = "text"
    document: str = "line"
    split: str = "all"

    def languages(self) -> list[str]:
        """Return the registered codes that have a file."""
        return sorted(code for code in LANGUAGES if self.files(code, missing=True))

    def resolve(self, language: str, split: str) -> tuple[str, str]:
        """Return the split's name, and the split itself for its slice."""
        return parse(split)[0], split

    def documents(self, language: str, split: str, reading: Reading) -> Iterator[str]:
        """Yield the documents of the language's files, file after file in natural order of their names."""
        self._check(split)
        for path in self.files(language):
            yield from text.read(path, reading, column=self.column, document=self.document)

    def identity(self, language: str, split: str) -> str:
        """Return a sha256 of the reader's settings and the files' bytes, in order; the files' place does not matter."""
        self._check(split)
        sha = hashlib.sha256(f"{self.column} {self.document}".encode())
        for path in self.files(language):
            form, compression = text.kind(path)
            with path.open("rb") as file:
                sha.update(f"{form}{compression} {hashlib.file_digest(file, 'sha256').hexdigest()}".encode())
        return sha.hexdigest()

    def size(self, language: str, split: str) -> int:
        """Return the bytes of the files as they lie on disk."""
        return sum(path.stat().st_size for path in self.files(language))

    def licence(self, language: str) -> str:
        """Return nothing: a folder says nothing about it; a manifest can."""
        return ""

    def files(self, language: str, missing: bool = False) -> list[Path]:
        """Return the files of a language in natural order.

        Raises FileNotFoundError that says what was looked for, unless `missing` is accepted; ValueError when one text
        lies there twice under several endings.
        """
        codes = [language, *(alias for alias, code in ALIASES.items() if code == language)]
        names = re.compile(rf"({'|'.join(map(re.escape, codes))})([-_.]?\d+)?(\.\w+)(\.\w+)?", re.IGNORECASE)
        found = [
            path for path in self.root.iterdir() if path.is_file() and names.fullmatch(path.name) and _readable(path)
        ]
        for code in codes:
            folder = self.root / code
            if folder.is_dir():
                found += [path for path in folder.rglob("*") if path.is_file() and _readable(path)]
        found.sort(key=lambda path: text.natural(path.relative_to(self.root).as_posix()))
        stems: dict[str, Path] = {}
        for path in found:
            stem = path.relative_to(self.root).as_posix().split(".")[0]
            if stem in stems:
                raise ValueError(
                    f"{stems[stem]} and {path} would be read as one text after the other; keep one of them"
                )
            stems[stem] = path
        if not found and not missing:
            raise FileNotFoundError(
                f"no text in {LANGUAGES[language].name} in {self.root}: looked for {language}.txt, "
                f"{language}.jsonl (also .gz, .xz, .zst), {language}.parquet, {language}-1.jsonl, ... and a folder "
                f"{language}/; languages there: {' '.join(self.languages()) or 'none'}"
            )
        return found

    def _check(self, split: str) -> None:
        if split != "all":
            raise ValueError(f"a folder has the split all (with a slice, such as all[:90%]), not {split!r}")


def _readable(path: Path) -> bool:
    """Return whether a file name is one that `text.read` reads; hidden files are not."""
    try:
        text.kind(path)
    except ValueError:
        return False
    return not path.name.startswith(".")


@dataclass(frozen=True)
class Manifest:
    """Sources by language, from a JSON file `{"languages": {"ar": {"source": ...}, ...}}`.

    An entry may also have split, column, document and licence (a note). Relative folders are relative to the file.
    """

    name: str
    entries: dict[str, dict[str, Any]]
    sources: dict[str, Source]
    split: str = "all"

    def languages(self) -> list[str]:
        """Return the codes that the manifest lists."""
        return sorted(self.entries)

    def resolve(self, language: str, split: str) -> tuple[str, str]:
        """Return what the language's source makes of the split; `all` stands for the one in the manifest."""
        source = self._source(language)
        inner = self.entries[language].get("split", source.split) if split == "all" else split
        return source.resolve(language, inner)

    def documents(self, language: str, split: str, reading: Reading) -> Iterator[str]:
        """Yield the documents of a resolved split of the language's source."""
        yield from self._source(language).documents(language, split, reading)

    def identity(self, language: str, split: str) -> str:
        """Return the identity of the language's source."""
        return self._source(language).identity(language, split)

    def size(self, language: str, split: str) -> int:
        """Return the size of the language's source."""
        return self._source(language).size(language, split)

    def licence(self, language: str) -> str:
        """Return the manifest's note, or that of the language's source."""
        source = self._source(language)
        return self.entries[language].get("licence") or source.licence(language)

    def _source(self, language: str) -> Source:
        if language not in self.entries:
            raise ValueError(f"{self.name} does not list {language!r}; it lists {' '.join(self.languages())}")
        return self.sources[language]


ENTRY = {"source", "split", "column", "document", "licence"}


def manifest(path: Path) -> Manifest:
    """Read a manifest file; raises ValueError that names the file and the entry for anything wrong in it."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a JSON file ({error})") from None
    entries = content.get("languages") if isinstance(content, dict) else None
    if not isinstance(entries, dict) or not entries:
        raise ValueError(f'{path}: a manifest is {{"languages": {{"ar": {{"source": ...}}, ...}}}}')
    sources: dict[str, Source] = {}
    for code, entry in entries.items():
        if code not in LANGUAGES:
            raise ValueError(f"{path}: unknown language {code!r}; known: {' '.join(sorted(LANGUAGES))}")
        if not isinstance(entry, dict) or "source" not in entry or set(entry) - ENTRY:
            raise ValueError(f"{path}: the entry of {code!r} needs `source` and may have {sorted(ENTRY - {'source'})}")
        options = {key: entry[key] for key in ("column", "document") if key in entry}
        sources[code] = find(entry["source"], base=path.parent, **options)
    return Manifest(str(path), entries, sources)


def find(name: str, *, base: Path | None = None, column: str = "text", document: str = "line") -> Source:
    """Return the source of a name (see the head of this file); raises ValueError or FileNotFoundError."""
    if name == "udhr":
        return Udhr()
    if name.startswith("tfds:"):
        from lingregions.corpus import tfds  # a second and more of imports, only where it is used

        return tfds.find(name, column)
    path = (base or Path()) / name
    if path.is_dir():
        return Folder(name, path, column, document)
    if path.suffix == ".json" and path.is_file():
        return manifest(path)
    if path.is_file():
        raise ValueError(
            f"{name} is a file; name the folder that holds it (as <language code>.txt), or a manifest.json"
        )
    raise FileNotFoundError(
        f"no text source {name!r}: not a folder or manifest here, nor udhr, tfds:<data set>, tokens:<folder>"
    )


SLICE = re.compile(r"([^\[\]]*)(?:\[(-?\d+%?)?:(-?\d+%?)?\])?")


def parse(split: str) -> tuple[str, str, str]:
    """Return (name, start, stop) of a split such as "train[:90%]"; raises ValueError for anything else."""
    match = SLICE.fullmatch(split.strip())
    if not match:
        raise ValueError(
            "a split is a name with at most one slice by document, such as all[:90%] or train[1000:2000], not "
            f"{split!r}"
        )
    name, start, stop = match.groups()
    return name or "all", start or "", stop or ""


def bounds(start: str, stop: str, n: int) -> tuple[int, int]:
    """Return the slice of n documents that two bounds mean; percentages are rounded to the nearest document."""
    places = []
    for bound, default in ((start, 0), (stop, n)):
        if not bound:
            places.append(default)
            continue
        value = (int(bound[:-1]) * n + 50) // 100 if bound.endswith("%") else int(bound)
        places.append(min(max(value + n if bound.startswith("-") else value, 0), n))
    return places[0], max(places)
