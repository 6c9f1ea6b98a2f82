"""`lingregions data`: prepare a corpus, look whether it is sound, see what a model sees, make a vocabulary of it.

These print to the console they are given and write only below the folder they are given.
"""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from lingregions import models as architectures
from lingregions import verbs
from lingregions.corpus import build as builder
from lingregions.corpus import check as checker
from lingregions.corpus import corpus as corpora
from lingregions.corpus import vocabulary
from lingregions.corpus.corpus import Corpus
from lingregions.corpus.languages import LANGUAGES, listed
from lingregions.corpus.source import UDHR, Source
from lingregions.corpus.source_names import find_source
from lingregions.corpus.text import Reading
from lingregions.display import inert, plain
from lingregions.models import source as models
from lingregions.models.tokenizer import Tokenizer


@dataclass(frozen=True)
class _Built:
    """Token files of one language: their folder, or why there are none."""

    language: str
    folder: Path | None
    documents: int = 0
    tokens: int = 0
    skipped: int = 0
    problem: str = ""


def _build(
    name: str,
    tokenizer: Tokenizer,
    folder: Path,
    console: Console,
    *,
    languages: Sequence[str] = (),
    split: str | None = None,
    column: str = "text",
    document: str = "line",
    strict: bool = True,
    workers: int = 1,
    download: bool = False,
) -> list[_Built]:
    """Build the token files of all (or the named) languages of a source below `folder`, and print a table of them.

    Finished languages are not built again, an interrupted one goes on where it was. A language that cannot be built
    does not stop the others: its row says why, and the caller exits with an error when any row has a `problem`.
    `download` prepares TFDS data sets first.
    """
    source = find_source(name, column=column, document=document)
    codes = _codes(source, languages)
    folder.mkdir(parents=True, exist_ok=True)
    built: list[_Built] = []

    def say(sentence: str) -> None:
        console.print(f"[yellow]{plain(sentence)}[/yellow]", soft_wrap=True)

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}% {task.fields[done]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with builder.Pool(tokenizer, workers, strict) as pool, Progress(*columns, console=console) as progress:
        for code in codes:
            task = progress.add_task(LANGUAGES[code].name, total=None, done="")

            def notice(position: int, tokens: int, task: TaskID = task) -> None:
                progress.update(task, completed=position, done=f"{tokens:,} tokens")

            try:
                if download and hasattr(source, "prepare"):
                    source.prepare(code)
                whole = source.resolve(code, split or source.split)[0]
                progress.update(task, total=source.size(code, whole) or None)
                place = builder.build(folder, source, code, whole, pool, notice, say)
                meta = builder.read(place)
                built.append(_Built(code, place, meta["documents"], meta["tokens"], meta["skipped"]))
                for warning in (*source.left_out(code), *meta["warnings"]):
                    say(f"{code}: {warning}")
                progress.update(task, total=1, completed=1, done=f"{meta['tokens']:,} tokens")
            except (ValueError, OSError, ModuleNotFoundError) as error:
                built.append(_Built(code, None, problem=str(error)))
                progress.update(task, done="failed")
    table = Table("language", "documents", "tokens", "skipped", "folder")
    for row in built:
        last = str(row.folder) if row.folder else "failed"
        table.add_row(row.language, f"{row.documents:,}", f"{row.tokens:,}", f"{row.skipped:,}", last)
    console.print(table)
    for row in built:
        if row.problem:  # on a line of its own, unbroken: file:line is there to be clicked or copied
            console.print(f"[red]{row.language}: {plain(row.problem)}[/red]", soft_wrap=True)
    for half, held, _ in builder.halves(folder):
        state = (
            "another process is building it" if held else "half-written: the command that began it goes on from there"
        )
        say(f"{half}: {state}")
    console.print(f"Use them as source='tokens:{folder}', or as cache='{folder}' beside source='{name}'.")
    return built


def _dataset(
    name: str,
    folder: Path,
    console: Console,
    *,
    languages: Sequence[str] = (),
    split: str | None = None,
    column: str = "text",
    document: str = "line",
    strict: bool = True,
) -> list[Path]:
    """Write all (or the named) languages of a source as the TFDS data set `lingregions_text` below `folder`.

    Returns the folders that `tfds.builder_from_directory` opens; a language that is there already is not written again.
    Raises what reading the source raises.
    """
    from lingregions.corpus import tfds  # a second and more of imports, only where it is used

    source = find_source(name, column=column, document=document)
    written = []
    for code in _codes(source, languages):
        whole = source.resolve(code, split or source.split)[0]
        builder = tfds.LingregionsText(
            config=code, source=source, split=whole, strict=strict, file_format="array_record", data_dir=str(folder)
        )
        builder.download_and_prepare()
        written.append(Path(str(builder.data_path)))
        console.print(f"{LANGUAGES[code].name}: {written[-1]}", markup=False, soft_wrap=True)
    console.print(f"Use them as source='tfds:{tfds.OWN}@{folder}'.", markup=False, soft_wrap=True)
    return written


def _check(
    name: str,
    console: Console,
    *,
    tokenizer: Tokenizer | None = None,
    languages: Sequence[str] = (),
    split: str | None = None,
    column: str = "text",
    document: str = "line",
) -> list[checker.Inspection]:
    """Look at all (or the named) languages of a source, print figures, warnings and errors, return them.

    Without `languages`, those of the thirty that the source lacks are named in a warning, what lies there in no
    language too, and a language of which nothing can be read is an error.
    """
    source = find_source(name, column=column, document=document)
    codes = _codes(source, languages)
    inspections = [checker.check(source, code, split or source.split, tokenizer) for code in codes]
    if not languages:
        unread = {code: source.left_out(code) for code in sorted(set(LANGUAGES) - set(codes))}
        inspections += [checker.Inspection(code, errors=sentences) for code, sentences in unread.items() if sentences]
    table = Table(
        "language", "documents", "empty", "bytes", "other script", "repeated", "U+FFFD", "tokens a byte", "looks like"
    )
    for inspection in inspections:
        table.add_row(
            inspection.language,
            f"{inspection.documents:,}",
            f"{inspection.empty:,}",
            f"{inspection.bytes:,}",
            f"{inspection.foreign:.1%}",
            f"{inspection.repeated:.1%}",
            f"{inspection.replaced:.3%}",
            "" if inspection.density is None else f"{inspection.density:.3f}",
            inspection.guess or "?",
        )
    console.print(table)
    for inspection in inspections:
        for warning in inspection.warnings:
            console.print(f"[yellow]{inspection.language}: {plain(warning)}[/yellow]", soft_wrap=True)
        for error in inspection.errors:
            console.print(f"[red]{plain(error)}[/red]", soft_wrap=True)
        if inspection.skipped > len(inspection.errors):
            console.print(f"[red]{inspection.language}: and {inspection.skipped - len(inspection.errors):,} more[/red]")
    if not languages:
        for sentence in source.left_out(None):
            console.print(f"[yellow]{plain(sentence)}[/yellow]", soft_wrap=True)
    missing = sorted(set(LANGUAGES) - {inspection.language for inspection in inspections})
    if missing and not languages:
        names = ", ".join(f"{LANGUAGES[code].name} ({code})" for code in missing)
        console.print(f"[yellow]not there of the thirty languages: {names}[/yellow]", soft_wrap=True)
    return inspections


def _show(corpus: Corpus, tokenizer: Tokenizer, console: Console, *, samples: int = 2) -> None:
    """Print what a corpus holds, its special-token policy, and its first samples as token ids and text, by document."""
    counts = corpus.counts
    console.print(
        f"{LANGUAGES[corpus.language].name}, {corpus.source}, split {corpus.split}: {corpus.fingerprint[:16]}",
        markup=False,
    )
    console.print(
        f"{counts.documents:,} documents, {counts.bytes:,} bytes, {counts.tokens:,} tokens, {counts.special:,} "
        f"special ones; {counts.samples:,} samples of {corpus.length} ({corpus.packing}), {counts.padding:,} padding, "
        f"{counts.truncated:,} tokens cut off, {counts.empty:,} empty and {counts.skipped:,} skipped texts",
        markup=False,
    )
    console.print(f"special tokens: {corpus.policy}", markup=False)
    for position in range(min(samples, len(corpus))):
        sample = corpus[position]
        for segment in range(1, int(np.max(sample.segments)) + 1):
            ids = np.asarray(sample.tokens)[np.asarray(sample.segments) == segment]
            listed = " ".join(map(str, ids[:12].tolist())) + (" ..." if len(ids) > 12 else "")
            console.print(f"sample {position}, segment {segment}, {len(ids)} tokens: {listed}", markup=False)
            console.print(inert(tokenizer.decode(ids)), markup=False, highlight=False)


def _tokenizer(
    name: str,
    folder: Path,
    console: Console,
    *,
    preset: str,
    languages: Sequence[str] = (),
    split: str | None = None,
    column: str = "text",
    document: str = "line",
) -> None:
    """Train a tokenizer on all (or the named) languages of a source, and write it as a folder beside a config.json.

    Its fertility - the tokens of each language's UDHR over those of the best - is printed. The folder is what the model
    source `random:FOLDER` takes. Raises FileExistsError where it is there, and what reading the source raises.
    """
    if preset not in architectures.PRESETS:
        raise ValueError(f"there is no preset {preset!r}; there are {', '.join(architectures.PRESETS)}")
    if folder.exists():
        raise FileExistsError(f"{folder}: there already; choose another folder, or remove this one")
    source = find_source(name, column=column, document=document)
    config, reading = architectures.PRESETS[preset], Reading()
    texts = {}
    for code in _codes(source, languages):
        whole = source.resolve(code, split or source.split)[0]
        texts[code] = "\n".join(source.documents(code, whole, reading))
    parallel = {code: "\n".join(UDHR.documents(code, "all", reading)) for code in texts}
    tokenizer, fertility = vocabulary.train(texts, parallel, config.vocab, folder.name, console.print)
    head = architectures.dump(config) | {"bos_token_id": tokenizer.bos, "eos_token_id": tokenizer.eos}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as held:
        partial = Path(held) / folder.name
        partial.mkdir()
        tokenizer.save(partial)
        (partial / "config.json").write_text(json.dumps(head, indent=2) + "\n", encoding="utf-8")
        partial.rename(folder)
    table = Table("language", "tokens over the best")
    for code, times in sorted(fertility.items(), key=lambda each: each[1]):
        table.add_row(LANGUAGES[code].name, f"{times:.2f}")
    console.print(table)
    console.print(f"Train it as the model random:{folder}", markup=False, soft_wrap=True)


def _codes(source: Source, languages: Sequence[str]) -> list[str]:
    """Return the codes that are meant: the named languages, or all that the source has.

    Raises FileNotFoundError when it has none, saying what lies there instead.
    """
    codes = [*listed(languages, "--languages")] or source.languages()
    if not codes:
        unread = [*source.left_out(None), *(sentence for code in LANGUAGES for sentence in source.left_out(code))]
        reason = "; ".join(unread) or "give one with --languages, or name files by language, such as ar.txt"
        raise FileNotFoundError(f"no text in any of the thirty languages in {source.name}: {reason}")
    return codes


def main(words: Sequence[str], console: Console | None = None) -> int:
    """Build, check, show or write corpora; return the exit code: 1 where a language has errors."""
    flags = verbs.data().parse_args(list(words))
    out = console or Console()
    common = {"split": flags.split, "column": flags.column, "document": flags.document}
    languages = [code for code in flags.languages.split(",") if code]
    tokenizer = models.resolve(flags.model).tokenizer if getattr(flags, "model", None) else None
    if flags.verb == "build":
        assert tokenizer is not None
        folder = flags.out.expanduser() if flags.out else models.folder() / "tokens"
        options = {"strict": not flags.skip, "workers": flags.workers, "download": flags.download}
        built = _build(flags.source, tokenizer, folder, out, languages=languages, **common, **options)
        return int(any(each.problem for each in built))
    if flags.verb == "check":
        found = _check(flags.source, out, tokenizer=tokenizer, languages=languages, **common)
        return int(any(each.errors or not each.documents for each in found))
    if flags.verb == "dataset":
        _dataset(flags.source, flags.out.expanduser(), out, languages=languages, **common)
        return 0
    if flags.verb == "tokenizer":
        _tokenizer(flags.source, flags.out.expanduser(), out, preset=flags.preset, languages=languages, **common)
        return 0
    assert tokenizer is not None
    there = () if flags.source.startswith("tokens:") and languages else _codes(find_source(flags.source), languages)
    for code in listed(languages, "--languages") or there:
        corpus = corpora.open(flags.source, code, tokenizer, length=flags.length, **common)
        _show(corpus, tokenizer, out, samples=flags.samples)
    return 0
