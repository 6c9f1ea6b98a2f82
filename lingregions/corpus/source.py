"""Where text comes from, behind one name in a config.

    udhr                      the Universal Declaration of Human Rights in the package; splits all, first, second (its
                              halves)
    PATH/TO/FOLDER            files named by language (ar.txt, zh_CN-1.jsonl.gz, eng_Latn.parquet) or folders so named
                              (ar/, 20231101.ar/) with all their files, which are one text; split all
    PATH/TO/FILE.txt          one text, whichever language it is asked for as; split all
    PATH/TO/MANIFEST.json     per language: source, split, column, licence note
    tfds:NAME                 a TFDS data set (`tfds.py`): tfds:wiki40b, tfds:wikipedia/20230601, ...
    tokens:PATH/TO/FOLDER     token files that `lingregions data build` wrote (`build.py`)

Any split may carry a slice by document, `all[:90%]` or `train[1000:2000]`. From Python, a list of strings is a source
too (`_Texts`).
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

from lingregions.corpus import text
from lingregions.corpus.languages import LANGUAGES, canonical, of_name
from lingregions.corpus.text import Reading

_UDHR_LICENCE = "Universal Declaration of Human Rights, translations of the United Nations; free of copyright"


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

    def left_out(self, language: str | None) -> list[str]:
        """Return what lies there and is not read, a sentence each: of one language, or of none when None."""


class _Simple:
    """What the sources that are read by split `all`, or by name, have in common."""

    split: str = "all"

    def resolve(self, language: str, split: str) -> tuple[str, str]:
        """Return the split's name, and the split itself for its slice."""
        return parse(split)[0], split

    def size(self, language: str, split: str) -> int:
        """Return 0: it is read at once."""
        return 0

    def licence(self, language: str) -> str:
        """Return nothing: none is known; a manifest can say it."""
        return ""

    def left_out(self, language: str | None) -> list[str]:
        """Return nothing: all of it is read."""
        return []


@dataclass(frozen=True)
class _Udhr(_Simple):
    """The UDHR, one document a language, shipped with the package; see data/udhr/PROVENANCE.md."""

    name: str = "udhr"

    def languages(self) -> list[str]:
        """Return all thirty codes."""
        return sorted(LANGUAGES)

    def documents(self, language: str, split: str, reading: Reading) -> Iterator[str]:
        """Yield the whole document, or its first or second half."""
        if split not in ("all", "first", "second"):
            raise ValueError(f"the splits of udhr are all, first and second, not {split!r}")
        if language not in LANGUAGES:
            raise ValueError(f"udhr has no {language!r}; it has {' '.join(self.languages())}")
        whole = self._file(language).decode()
        chosen = whole.strip("\n") if split == "all" else _halves(whole)[split == "second"]
        yield from reading.accept(chosen, f"udhr/{language}.txt")

    def identity(self, language: str, split: str) -> str:
        """Return the sha256 of the file and the split."""
        return hashlib.sha256(self._file(language) + split.encode()).hexdigest()

    def licence(self, language: str) -> str:
        """Return the licence note."""
        return _UDHR_LICENCE

    def _file(self, language: str) -> bytes:
        return resources.files("lingregions.corpus").joinpath(f"data/udhr/{language}.txt").read_bytes()


UDHR = _Udhr()


def _halves(whole: str) -> tuple[str, str]:
    """Return the halves of a text, cut at the line boundary nearest to half of its UTF-8 bytes (the earlier of two).

    The line feed at the cut and those at the ends belong to neither half. Raises ValueError for a text of one line.
    """
    raw = whole.strip("\n").encode()
    boundaries = [match.start() for match in re.finditer(b"\n", raw)]
    if not boundaries:
        raise ValueError("a text of one line has no line boundary to cut it in halves at")
    cut = min(boundaries, key=lambda place: (abs(2 * place - (len(raw) - 1)), place))
    return raw[:cut].decode().strip("\n"), raw[cut:].decode().strip("\n")


def _natural(name: str) -> list[tuple[int, int | str]]:
    """Return the sort key in which `part-9` comes before `part-10`, on every file system."""
    return [(0, int(piece)) if piece.isdigit() else (1, piece) for piece in re.split(r"(\d+)", name) if piece]


@dataclass(frozen=True)
class _Texts(_Simple):
    """Documents in memory, of whichever language they are asked for as."""

    texts: tuple[str, ...]

    @property
    def name(self) -> str:
        """Return how many there are: they have no other name."""
        return f"{len(self.texts)} texts in memory"

    def languages(self) -> list[str]:
        """Return nothing: no language is named."""
        return []

    def documents(self, language: str, split: str, reading: Reading) -> Iterator[str]:
        """Yield the texts."""
        _only_all(split, "a list of texts")
        for number, document in enumerate(self.texts):
            yield from reading.accept(document, f"text {number} in memory")

    def identity(self, language: str, split: str) -> str:
        """Return a sha256 of the texts, each with its length."""
        sha = hashlib.sha256()
        for document in self.texts:
            raw = document.encode("utf-8", "surrogatepass")
            sha.update(len(raw).to_bytes(8, "little") + raw)
        return sha.hexdigest()


@dataclass(frozen=True)
class _File(_Simple):
    """One file of text, of whichever language it is asked for as; `document` and `column` as in `text.read`."""

    name: str
    path: Path
    column: str = "text"
    document: str = "line"

    def languages(self) -> list[str]:
        """Return the language that the file's name names, if it does."""
        named = of_name(text.stem(self.path))
        return [named[0]] if named else []

    def documents(self, language: str, split: str, reading: Reading) -> Iterator[str]:
        """Yield the documents of the file in order."""
        _only_all(split, f"a {type(self).__name__.removeprefix('_').lower()}")
        for path in self.files(language):
            yield from text.read(path, reading, column=self.column, document=self.document)

    def identity(self, language: str, split: str) -> str:
        """Return a sha256 of the reader's settings and the files' bytes, in order; the files' place does not matter."""
        _only_all(split, f"a {type(self).__name__.removeprefix('_').lower()}")
        sha = hashlib.sha256(f"{self.column} {self.document}".encode())
        for path in self.files(language):
            form, compression = text.kind(path)
            with path.open("rb") as file:
                sha.update(f"{form}{compression} {hashlib.file_digest(file, 'sha256').hexdigest()}".encode())
        return sha.hexdigest()

    def size(self, language: str, split: str) -> int:
        """Return the bytes of the files as they lie on disk."""
        return sum(path.stat().st_size for path in self.files(language))

    def files(self, language: str) -> list[Path]:
        """Return the file; raises ValueError where its own name is that of another language."""
        if self.languages() not in ([], [language]):
            raise ValueError(f"{self.path} is {LANGUAGES[self.languages()[0]].name} by its name, not {language!r}")
        text.require(self.path)
        return [self.path]


@dataclass(frozen=True)
class _Folder(_File):
    """Files and folders of the user that are named by language."""

    def languages(self) -> list[str]:
        """Return the codes of the languages that have a file that can be read, sorted."""
        return sorted(code for code in self._entries() if code and self._readable(code))

    def files(self, language: str) -> list[Path]:
        """Return the files of a language in natural order: one text.

        Raises FileNotFoundError that says what was looked for and what lies there unread; ValueError when one text lies
        there twice, under several endings or several names of its language.
        """
        found = self._readable(language)
        if not found:
            unread = self.left_out(language) or self.left_out(None)
            raise FileNotFoundError(
                f"no text in {LANGUAGES[language].name} in {self.path}: looked for {language}.txt, {language}.jsonl "
                f"(also .gz, .xz, .zst), {language}.parquet, {language}-1.jsonl, ... and a folder {language}/; "
                + "".join(f"{sentence}; " for sentence in unread)
                + f"languages there: {' '.join(self.languages()) or 'none'}"
            )
        spellings = {spelling: path for path, spelling in reversed(self._entries()[language]) if _files(path)}
        if len(spellings) > 1:
            listed = " and ".join(str(path) for path in reversed(spellings.values()))
            raise ValueError(f"{listed} are both {LANGUAGES[language].name}; keep one of them, or give both one name")
        stems: dict[Path, Path] = {}
        for path in found:
            stem = path.with_name(text.stem(path))
            if stem in stems:
                raise ValueError(
                    f"{stems[stem]} and {path} would be read as one text after the other; keep one of them"
                )
            stems[stem] = path
            text.require(path)
        return found

    def left_out(self, language: str | None) -> list[str]:
        """Return which files of a language have endings that are not read, and which shards of a set are missing."""
        sentences = []
        entries = [path for path, _ in self._entries().get(language, [])]
        unread = [each for path in entries for each in _files(path, readable=False) if not _about(each)]
        if language is None:
            unread += [each for path in entries for each in _files(path) if not _about(each)]
        if unread:
            names = [path.relative_to(self.path).as_posix() for path in unread]
            what = f"not read are {', '.join(names[:5])}" + (f" and {len(names) - 5} more" if len(names) > 5 else "")
            reason = "their names are of no language" if language is None else f"read are {text.READABLE}"
            sentences.append(f"{what} in {self.path} ({reason})")
        if language is not None:
            sentences += _missing_shards(self._readable(language))
        return sentences

    def _readable(self, language: str) -> list[Path]:
        found = [path for entry, _ in self._entries().get(language, []) for path in _files(entry)]
        return sorted(found, key=lambda path: _natural(path.relative_to(self.path).as_posix()))

    def _entries(self) -> dict[str | None, list[tuple[Path, str]]]:
        """Return {code: [(file or folder, the language as its name writes it)]} of what lies there, None: no language.

        A file with an unknown ending is its language's too: `en.csv` is English that is not read.
        """
        found: dict[str | None, list[tuple[Path, str]]] = {}
        for path in sorted(self.path.iterdir(), key=lambda path: _natural(path.name)):
            if path.name.startswith("."):
                continue
            stem = path.name if path.is_dir() else text.stem(path)
            named = of_name(stem) or (of_name(stem.split(".")[0]) if path.is_file() and stem == path.name else None)
            code, spelling = named or (None, "")
            found.setdefault(code, []).append((path, spelling))
        return found


def _files(path: Path, readable: bool = True) -> list[Path]:
    """Return the files that can be read (or cannot) at or below a path, but hidden ones."""
    below = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    visible = [each for each in below if not any(part.startswith(".") for part in each.relative_to(path).parts)]
    return [each for each in visible if (text.stem(each) != each.name) == readable]


def _about(path: Path) -> bool:
    """Return whether a file is about texts rather than one: README, LICENSE and the like."""
    return bool(re.match(r"(readme|licen[cs]e|provenance|notice|copying)\b|.*\.md$", path.name, re.IGNORECASE))


def _missing_shards(files: Sequence[Path]) -> list[str]:
    """Return for each set of shards that names its size (-00000-of-00007) and lacks some how many are there."""
    there: dict[tuple[Path, str, int], int] = {}
    for path in files:
        match = re.fullmatch(r"(.*?)\d+-of-(\d+)", text.stem(path))
        if match:
            key = (path.parent, match[1], int(match[2]))
            there[key] = there.get(key, 0) + 1
    return [
        f"{number} of the {size} shards {folder / name}* are there"
        for (folder, name, size), number in there.items()
        if number != size
    ]


def _only_all(split: str, what: str) -> None:
    """Refuse any split but `all`."""
    if split != "all":
        raise ValueError(
            f"{what} has the split all (with a slice, such as all[:90%]), not {split!r}: in a config, "
            "--config.data.score_split=all --config.data.evaluate_split=all --config.data.held=0.1 (a tenth of the "
            "documents is kept for evaluation)"
        )


@dataclass(frozen=True)
class _Manifest:
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

    def left_out(self, language: str | None) -> list[str]:
        """Return what the language's source leaves out."""
        return [] if language is None else self._source(language).left_out(language)

    def _source(self, language: str) -> Source:
        if language not in self.entries:
            raise ValueError(f"{self.name} does not list {language!r}; it lists {' '.join(self.languages())}")
        return self.sources[language]


_ENTRY = {"source", "split", "column", "document", "licence"}


def _manifest(path: Path, above: tuple[Path, ...]) -> _Manifest:
    """Read a manifest file; raises ValueError that names the file and the entry for anything wrong in it."""
    if path.resolve() in above:
        raise ValueError(f"{path}: a manifest that names itself as a source, or one that names it")
    try:
        content = json.loads(path.read_text("utf-8"), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a JSON file ({error})") from None
    listed = content.get("languages") if isinstance(content, dict) else None
    if not isinstance(listed, dict) or not listed:
        raise ValueError(f'{path}: a manifest is {{"languages": {{"ar": {{"source": ...}}, ...}}}}')
    entries: dict[str, dict[str, Any]] = {}
    sources: dict[str, Source] = {}
    for name, entry in listed.items():
        try:
            code = canonical(name)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        if code in entries:
            raise ValueError(f"{path} names {LANGUAGES[code].name} twice; keep one of them")
        if not isinstance(entry, dict) or "source" not in entry or set(entry) - _ENTRY:
            raise ValueError(f"{path}: the entry of {name!r} needs `source` and may have {sorted(_ENTRY - {'source'})}")
        wrong = [key for key, value in entry.items() if not isinstance(value, str)]
        if wrong:
            raise ValueError(f"{path}: {wrong[0]} of {name!r} is a string, not {entry[wrong[0]]!r}")
        options = {key: entry[key] for key in ("column", "document") if key in entry}
        entries[code] = entry
        try:
            parse(entry.get("split", "all"))
            sources[code] = find(entry["source"], base=path.parent, above=(*above, path.resolve()), **options)
        except (ValueError, OSError) as error:
            raise ValueError(f"{path}: the entry of {name!r}: {error}") from None
    return _Manifest(str(path), entries, sources)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object; raises ValueError for a key that stands there twice, of which JSON would keep the last."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"{next(key for key in keys if keys.count(key) > 1)!r} stands there twice")
    return found


def find(
    name: str | Path | Sequence[str],
    *,
    base: Path | None = None,
    column: str = "text",
    document: str = "line",
    above: tuple[Path, ...] = (),
) -> Source:
    """Return the source of a name (see the head of this file), or of texts; raises ValueError or FileNotFoundError.

    Relative paths are relative to `base`; `above` are the manifests that led here.
    """
    if not isinstance(name, str | Path):
        texts = tuple(name)
        if not all(isinstance(each, str) for each in texts):
            raise ValueError("texts in memory are a list of strings, one a document")
        return _Texts(texts)
    name = str(name)
    if name == "udhr":
        return UDHR
    if name.startswith("tfds:"):
        from lingregions.corpus import tfds  # a second and more of imports, only where it is used

        return tfds.find(name, column)
    path = (base or Path()) / os.path.expanduser(name)
    if path.is_dir():
        return _Folder(name, path, column, document)
    if path.is_file() and text.stem(path) != path.name:
        return _File(name, path, column, document)
    if path.suffix == ".json" and path.is_file():
        return _manifest(path, above)
    if path.is_file():
        raise ValueError(f"{name} is neither a text that can be read ({text.READABLE}) nor a manifest.json")
    raise FileNotFoundError(
        f"no text source {name!r}: not a folder, text or manifest here, nor udhr, tfds:<data set>, tokens:<folder>"
    )


def most_bytes(source: Source, language: str) -> int | None:
    """Return bytes that a language's text surely does not exceed, None where only reading it would tell.

    Files that are packed, Parquet among them, say nothing of the text's size: it may be any number of times theirs.
    """
    if isinstance(source, _Manifest):
        return most_bytes(source._source(language), language)
    if not isinstance(source, _File):
        return None
    files = source.files(language)
    packed = any(text.kind(path)[1] or text.kind(path)[0] == ".parquet" for path in files)
    return None if packed else sum(path.stat().st_size for path in files)


_SLICE = re.compile(r"([^\[\]]*)(?:\[(-?\d+%?)?:(-?\d+%?)?\])?")


def parse(split: str) -> tuple[str, str, str]:
    """Return (name, start, stop) of a split such as "train[:90%]"; raises ValueError for anything else."""
    match = _SLICE.fullmatch(split.strip())
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
