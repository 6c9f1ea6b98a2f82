"""Files and folders of the user as sources: text that is named by language, in any form that `text.read` reads."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lingregions.corpus import text
from lingregions.corpus.languages import LANGUAGES, of_name
from lingregions.corpus.source import Simple
from lingregions.corpus.text import Reading


@dataclass(frozen=True)
class File(Simple):
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
        self._only_all(split, f"a {type(self).__name__.lower()}")
        for path in self.files(language):
            yield from text.read(path, reading, column=self.column, document=self.document)

    def identity(self, language: str, split: str) -> str:
        """Return a sha256 of the reader's settings and the files' bytes, in order; the files' place does not matter."""
        self._only_all(split, f"a {type(self).__name__.lower()}")
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
class Folder(File):
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


def _natural(name: str) -> list[tuple[int, int | str]]:
    """Return the sort key in which `part-9` comes before `part-10`, on every file system."""
    return [(0, int(piece)) if piece.isdigit() else (1, piece) for piece in re.split(r"(\d+)", name) if piece]
