"""Names of sources: where text comes from, behind one name in a config.

    udhr                      the Universal Declaration of Human Rights in the package; splits all, first, second (its
                              halves)
    PATH/TO/FOLDER            files named by language (ar.txt, zh_CN-1.jsonl.gz, eng_Latn.parquet) or folders so named
                              (ar/, 20231101.ar/) with all their files, which are one text; split all
    PATH/TO/FILE.txt          one text, whichever language it is asked for as; split all
    PATH/TO/MANIFEST.json     per language: source, split, column, licence note
    tfds:NAME                 a TFDS data set (`tfds.py`): tfds:wiki40b, tfds:wikipedia/20230601, ...
    tokens:PATH/TO/FOLDER     token files that `lingregions data build` wrote (`build.py`)

Any split may carry a slice by document, `all[:90%]` or `train[1000:2000]`. From Python, a list of strings is a source
too (`source.in_memory`).
"""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lingregions.corpus import text
from lingregions.corpus.folder import File, Folder
from lingregions.corpus.languages import LANGUAGES, canonical
from lingregions.corpus.source import UDHR, Source, in_memory
from lingregions.corpus.split import parse_split
from lingregions.corpus.text import Reading


def find_source(
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
        return in_memory(name)
    name = str(name)
    if name == "udhr":
        return UDHR
    if name.startswith("tfds:"):
        from lingregions.corpus import tfds  # a second and more of imports, only where it is used

        return tfds.find(name, column)
    path = (base or Path()) / os.path.expanduser(name)
    if path.is_dir():
        return Folder(name, path, column, document)
    if path.is_file() and text.stem(path) != path.name:
        return File(name, path, column, document)
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
    if not isinstance(source, File):
        return None
    files = source.files(language)
    packed = any(text.kind(path)[1] or text.kind(path)[0] == ".parquet" for path in files)
    return None if packed else sum(path.stat().st_size for path in files)


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
            parse_split(entry.get("split", "all"))
            sources[code] = find_source(entry["source"], base=path.parent, above=(*above, path.resolve()), **options)
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
