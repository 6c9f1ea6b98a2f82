"""TensorFlow Datasets without TensorFlow: read any text data set, and build `lingregions_text` from text of your own.

Names in a config: `tfds:wiki40b`, `tfds:wikipedia/20230601` and `tfds:lingregions_text` take each language's own
config; in any other name `{language}` stands for the ISO code (`tfds:c4/multilingual` needs none: name the split).
`@FOLDER` at the end is the TFDS data folder (default: that of TFDS). Everything goes through `as_data_source`: random
access to array_record files.

Preparing wiki40b, wikipedia and c4 runs Apache Beam (`pip install apache_beam`), needs the network and, for wiki40b,
TensorFlow; once prepared, anywhere, the folder is all that is needed. Without any of that: bring text files, or build
`lingregions_text` from them, which needs neither Beam nor TensorFlow.
"""

import contextlib
import hashlib
import importlib
import importlib.util
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from lingregions.corpus.languages import LANGUAGES
from lingregions.corpus.text import Reading

_MARKERS = ("_START_ARTICLE_\n", "_START_SECTION_\n", "_START_PARAGRAPH_\n")  # of wiki40b; `_NEWLINE_` is a line feed
OWN = "lingregions_text"


class LingregionsText(tfds.core.GeneratorBasedBuilder):
    """Text of the thirty languages from local files, one config a language; split `train`, feature `text`.

    `LingregionsText(config="ar", source=..., file_format="array_record", data_dir=...).download_and_prepare()`
    writes it; `tfds.builder_from_directory` and `tfds:lingregions_text@FOLDER` open it.
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [  # noqa: RUF012 - the name and type that TFDS asks for
        tfds.core.BuilderConfig(name=code, description=entry.name) for code, entry in LANGUAGES.items()
    ]

    def __init__(self, *, source: Any = None, split: str = "all", strict: bool = True, **options: Any) -> None:
        """Take the source of the text (`source_names.find_source`), which only `download_and_prepare` needs."""
        self.texts, self.texts_split, self.strict = source, split, strict
        super().__init__(**options)

    def _info(self) -> tfds.core.DatasetInfo:
        """Return the feature, and the identity of the texts, by which token files know whether they are still right."""
        code = self.builder_config.name
        identity = self.texts.identity(code, self.texts_split) if self.texts else "unknown"
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"Text in {LANGUAGES[code].name}, texts {identity}",
            features=tfds.features.FeaturesDict({"text": tfds.features.Text()}),
            license=(self.texts.licence(code) if self.texts else "") or None,
            disable_shuffling=True,  # documents keep the order of the files
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager
        if self.texts is None:
            raise ValueError(
                f"{OWN} is built from text: give LingregionsText(source=...), see lingregions.corpus.source_names"
            )
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, str]]]:
        texts = self.texts.documents(self.builder_config.name, self.texts_split, Reading(self.strict))
        for number, text in enumerate(texts):
            yield number, {"text": text}


@dataclass(frozen=True)
class _Tfds:
    """A TFDS data set as a source; `column` is the feature that holds the text."""

    name: str
    template: str
    folder: str | None = None
    column: str = "text"
    split: str = "train"

    def languages(self) -> list[str]:
        """Return the codes that the data set can have; whether each is prepared shows when it is read."""
        if self.template == "wiki40b":
            return sorted(code for code, entry in LANGUAGES.items() if entry.wiki40b)
        return sorted(LANGUAGES)

    def dataset(self, language: str) -> str:
        """Return the TFDS name for a language, such as wiki40b/zh-cn; raises ValueError where there is none."""
        entry = LANGUAGES[language]
        if self.template == "wiki40b":
            if entry.wiki40b is None:
                raise ValueError(
                    f"wiki40b has no {entry.name} (it has 27 of the thirty languages): take tfds:wikipedia/20230601, "
                    "which has all thirty, or text files"
                )
            return f"wiki40b/{entry.wiki40b}"
        if self.template.startswith("wikipedia/"):
            return f"{self.template}.{entry.wikipedia}"
        if self.template == OWN:
            return f"{OWN}/{language}"
        return self.template.replace("{language}", language)

    def builder(self, language: str) -> Any:
        """Return the TFDS builder; raises ValueError for a name that TFDS does not know."""
        name = self.dataset(language)
        package = name.split("/")[0]
        with contextlib.suppress(ModuleNotFoundError):  # data sets of the older kind register when imported
            importlib.import_module(f"tensorflow_datasets.text.{package}")
        try:
            return tfds.builder(name, data_dir=self.folder, file_format="array_record")
        except tfds.core.DatasetNotFoundError:
            raise ValueError(
                f"TFDS knows no data set {package!r} ({self.name}); its catalogue of text is at "
                "www.tensorflow.org/datasets/catalog/overview#text"
            ) from None
        except ValueError as error:
            raise ValueError(f"TFDS cannot build {name!r}: {str(error).splitlines()[0]}") from None

    def resolve(self, language: str, split: str) -> tuple[str, str]:
        """Return the split as it is: TFDS takes slices itself, so only that much is read."""
        return split, "all"

    def documents(self, language: str, split: str, reading: Reading) -> Iterator[str]:
        """Yield the texts of a split in the order of the data set."""
        data = self._open(language, split)
        clean = self.template == "wiki40b"
        for number in range(
            len(data)
        ):  # reading several at once would save 50 microseconds an example, of a millisecond
            where = f"{self.dataset(language)} {split}:{number}"
            reading.finished = number + 1
            example = data[number]
            if self.column not in example:
                raise ValueError(f"{where}: no feature {self.column!r}; features there: {', '.join(sorted(example))}")
            value = example[self.column]
            try:
                text = value.decode("utf-8") if isinstance(value, bytes) else str(value)
            except UnicodeDecodeError as error:
                reading.refuse(where, f"invalid UTF-8 (byte 0x{value[error.start]:02x} at byte {error.start + 1})")
                continue
            yield from reading.accept(_unmark(text) if clean else text, where)

    def identity(self, language: str, split: str) -> str:
        """Return a sha256 of the data set's name with version, its own description of what was built, and the split."""
        builder = self.builder(language)
        sha = hashlib.sha256(f"{builder.info.full_name} {split} {self.column} {self.size(language, split)}".encode())
        built = Path(str(builder.data_path)) / "dataset_info.json"
        sha.update(built.read_bytes() if built.is_file() else b"")
        return sha.hexdigest()

    def size(self, language: str, split: str) -> int:
        """Return the number of examples, in which `Reading.position` counts here."""
        return len(self._open(language, split))

    def licence(self, language: str) -> str:
        """Return the licence that the data set states."""
        return " ".join(str(self.builder(language).info.redistribution_info.license).split())

    def left_out(self, language: str | None) -> list[str]:
        """Return nothing: a data set knows its own files."""
        return []

    def prepare(self, language: str) -> Path:
        """Download and prepare the language's data set, return its folder.

        Raises ModuleNotFoundError, before anything is downloaded, when the data set needs Apache Beam and it is
        missing.
        """
        builder = self.builder(language)
        self._need_beam(builder, language)
        builder.download_and_prepare()
        return Path(str(builder.data_path))

    def _need_beam(self, builder: Any, language: str) -> None:
        beam = isinstance(builder, tfds.core.BeamBasedBuilder)
        if beam and importlib.util.find_spec("apache_beam") is None:
            raise ModuleNotFoundError(
                f"preparing {self.dataset(language)} runs Apache Beam, which is not installed: `pip install "
                "apache_beam` (in an environment of its own if its pins clash), or prepare it on another machine and "
                f"name the folder as {self.name}@FOLDER, or use text files (source=FOLDER with {language}.txt or "
                f"{language}.jsonl)"
            )

    def _open(self, language: str, split: str) -> Any:
        """Return the random-access data source of a split; raises FileNotFoundError when it is not prepared."""
        builder = self.builder(language)
        try:
            return builder.as_data_source(split=split)
        except (KeyError, ValueError, AttributeError, FileNotFoundError) as error:
            if builder.info.splits:
                there = ", ".join(builder.info.splits)
                raise ValueError(f"{self.dataset(language)} has no split {split!r}; splits there: {there}") from error
            raise FileNotFoundError(
                f"{self.dataset(language)} is not prepared in {builder.data_path}: prepare it once with `lingregions "
                f"data build --download`, or name the folder where it is as {self.name}@FOLDER"
            ) from error


def _unmark(text: str) -> str:
    """Return a text of wiki40b without its structure markers: headings and paragraphs on lines of their own."""
    for marker in _MARKERS:
        text = text.replace(marker, "")
    return text.replace("_NEWLINE_", "\n").strip("\n")


def find(name: str, column: str = "text") -> _Tfds:
    """Return the source of a name `tfds:DATASET[@FOLDER]`."""
    template, _, folder = name.removeprefix("tfds:").partition("@")
    if not template:
        raise ValueError(f"{name!r} names no data set: tfds:wiki40b, tfds:wikipedia/20230601, tfds:NAME/CONFIG@FOLDER")
    return _Tfds(name.partition("@")[0], template, os.path.expanduser(folder) or None, column)
