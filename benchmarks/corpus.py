"""How fast `lingregions data build` and reading are, and how much memory they take, on a folder of your texts.

    python benchmarks/corpus.py TEXTS [--vocabulary 32000] [--workers 2] [--length 512]

Trains a byte-level BPE tokenizer on a sample of the texts (not timed), builds the token files of every language in a
folder that is deleted at the end, and reads all samples in the order of a seed. Peak memory is the resident
set as the system counts it, mapped token files included.
"""

import argparse
import itertools
import json
import multiprocessing
import resource
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import tokenizers
from rich.console import Console

from lingregions.corpus import build as builds
from lingregions.corpus import command
from lingregions.corpus import corpus as corpora
from lingregions.corpus.source_names import find_source
from lingregions.corpus.text import Reading
from lingregions.models.tokenizer import Tokenizer

SAMPLE = 3000  # documents a language that the tokenizer is trained on


def train(texts: str, size: int, path: str) -> None:
    """Write a byte-level BPE tokenizer of `size` entries, in a process of its own so that its memory counts nowhere."""
    source = find_source(texts)
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    documents = (itertools.islice(source.documents(code, "all", Reading()), SAMPLE) for code in source.languages())
    backend.train_from_iterator(itertools.chain.from_iterable(documents), trainer)
    backend.save(path)


def peak() -> int:
    """Return the peak resident memory of this process in megabytes."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


class Measured(builds.Pool):
    """A pool that notes the peak resident memory of its largest worker."""

    largest = 0

    def __exit__(self, *problem: object) -> None:
        """Ask the system before the workers end."""
        for worker in self.executor._processes if self.executor else ():
            status = Path(f"/proc/{worker}/status").read_text()
            high = next(line for line in status.splitlines() if line.startswith("VmHWM"))
            Measured.largest = max(Measured.largest, round(int(high.split()[1]) / 1024))
        super().__exit__(*problem)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("texts")
    parser.add_argument("--vocabulary", type=int, default=32_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--length", type=int, default=512)
    options = parser.parse_args()
    console = Console(width=150)
    figures: dict[str, object] = {"workers": options.workers, "length": options.length}
    folder = Path(tempfile.mkdtemp())
    try:
        arguments = (options.texts, options.vocabulary, str(folder / "tokenizer.json"))
        training = multiprocessing.get_context("spawn").Process(target=train, args=arguments)
        training.start()
        training.join()
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        trained = usage.ru_utime + usage.ru_stime
        backend = tokenizers.Tokenizer.from_file(arguments[2])
        tokenizer = Tokenizer(backend, f"bpe-{options.vocabulary}", bos=0, eos=1)
        figures["vocabulary"] = tokenizer.vocab_size
        figures["memory_before_mb"] = peak()
        builds.Pool = Measured  # type: ignore[misc]
        begin = time.perf_counter()
        built = command._build(options.texts, tokenizer, folder / "tokens", console, workers=options.workers)
        seconds = time.perf_counter() - begin
        tokens = sum(row.tokens for row in built)
        figures.update(build_seconds=round(seconds, 1), tokens=tokens, build_tokens_per_second=round(tokens / seconds))
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        figures["build_worker_cpu_seconds"] = round(usage.ru_utime + usage.ru_stime - trained, 1)
        figures["build_memory_mb"] = peak()
        figures["build_worker_memory_mb"] = Measured.largest
        begin = time.perf_counter()
        command._build(options.texts, tokenizer, folder / "tokens", Console(quiet=True), workers=0)
        figures["build_again_seconds"] = round(time.perf_counter() - begin, 1)
        opened = [
            corpora.open(f"tokens:{folder}/tokens", row.language, tokenizer, length=options.length) for row in built
        ]
        figures["bytes"] = sum(corpus.counts.bytes for corpus in opened)
        begin, read = time.perf_counter(), 0
        for corpus in opened:
            order = corpus.order(1)
            for start in range(0, len(order), 64):
                read += int(np.count_nonzero(corpus.batch(order[start : start + 64]).segments))
        figures["read_tokens_per_second"] = round(read / (time.perf_counter() - begin))
        assert read == tokens
        begin = time.perf_counter()
        for corpus in opened:
            for position in range(min(len(corpus), 1000)):
                corpus[position]
        figures["single_samples_per_second"] = round(1000 * len(opened) / (time.perf_counter() - begin))
    finally:
        shutil.rmtree(folder)
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
