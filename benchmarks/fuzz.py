"""Damaged files: each is read as the format says, or refused in one sentence that names it; bounded in time and memory.

    python benchmarks/fuzz.py [--count 20000] [--seed 0] [--formats safetensors,gguf,...] [--keep DIR]

Sound files are damaged at random, in one place or two: bits, bytes, integers at their extremes, parts that are cut,
doubled, moved or lost, numbers and values of JSON. Each case is a function of (seed, format, number), so that
`--only FORMAT:NUMBER` repeats one. What is accepted must have its old content where the format has a checksum, and
what another reader of the format finds where there is one. A case has 5 seconds, and 1 GB beside what the process had.

Prints one JSON line a format - cases, refused, equal, other (accepted, and the content is another), the slowest case in
seconds - and every failure on the error stream; exit code 1 when there is one.
"""

import argparse
import contextlib
import functools
import gzip
import hashlib
import json
import lzma
import resource
import signal
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import jax
import numpy as np
import pyarrow
import safetensors
import zstandard
from pyarrow import parquet

from lingregions import models, regions
from lingregions.corpus import build as builds
from lingregions.corpus import text
from lingregions.corpus.source import UDHR
from lingregions.corpus.source_names import find_source
from lingregions.corpus.text import Reading
from lingregions.models import convert, source
from lingregions.models.tokenizer import Tokenizer
from lingregions.regions import file, released
from lingregions.run import Run, RunError, checkpoint, table, verify

SECONDS, MEMORY = 5, 1 << 30
HEAD = 4096  # most damage is done to the first bytes, where files say what they hold
EXTREMES = (0, 1, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
WORDS = (b"null", b"[]", b"{}", b'""', b"-1", b"1e999", b"NaN", b"0.5", b"true", b"9" * 5000, b"[" * 100_000)
CONFIG = models.DecoderConfig(vocab=264, embed=32, mlp=32, layers=2, heads=2, kv_heads=1, head_dim=16, context=64)


class Format(NamedTuple):
    """A kind of file.

    Attributes:
      make: writes a sound sample into a folder and returns the file to damage.
      read: reads all of a file, and returns a digest of it.
      other: the digest that another reader gives, "" where it refuses; None where there is no other reader.
      checked: whether the file has a checksum, so that what is accepted is what was written.
    """

    make: Callable[[Path], Path]
    read: Callable[[Path], str]
    other: Callable[[Path], str] | None = None
    checked: bool = False


def digest(arrays: dict[str, np.ndarray]) -> str:
    """Return a hash of named arrays as float32."""
    found = hashlib.sha256()
    for name, values in sorted(arrays.items()):
        found.update(f"{name} {values.shape}".encode())
        found.update(np.ascontiguousarray(values, np.float32).tobytes())
    return found.hexdigest()


def whole(weights: convert.Weights) -> str:
    """Return the digest of all tensors of a model."""
    return digest(
        {name: weights.read(name, tuple(slice(None) for _ in shape)) for name, shape in weights.shapes.items()}
    )


def make_folder(folder: Path, limit: int = 10**9) -> Path:
    """Write a tiny model as a Hugging Face folder, and return it."""
    place = folder / "model"
    convert.export(models.initialize(CONFIG, jax.random.key(0)), CONFIG, place, Tokenizer.bytes(), limit=limit)
    return place


def read_folder(path: Path) -> str:
    """Read the model in whose folder the file lies."""
    found = source.resolve(str(path.parent), say=lambda _: None)
    return f"{whole(found.weights)} {found.config} {found.tokenizer.fingerprint}"


def read_library(path: Path) -> str:
    """Read a safetensors file by its library."""
    with safetensors.safe_open(path, "numpy") as file:
        return digest({name: file.get_tensor(name) for name in list(file.keys())})


def make_gguf(folder: Path) -> Path:
    """Write a tiny model as GGUF, with the bytes as tokens and one quantised tensor."""
    path = folder / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    numbers = {"block_count": 1, "context_length": 32, "embedding_length": 32, "feed_forward_length": 32}
    numbers |= {"attention.head_count": 2, "attention.head_count_kv": 1, "rope.dimension_count": 16}
    for key, value in numbers.items():
        writer.add_uint32(f"llama.{key}", value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_string("tokenizer.ggml.model", "gpt2")
    writer.add_string("tokenizer.ggml.pre", "gpt-2")
    letters = Tokenizer.bytes().backend.get_vocab(with_added_tokens=False)
    writer.add_array("tokenizer.ggml.tokens", [*letters, "ab", "<bos>", "<eos>"])
    writer.add_array("tokenizer.ggml.merges", ["a b"])
    writer.add_array("tokenizer.ggml.token_type", [1] * 257 + [3, 3])
    writer.add_uint32("tokenizer.ggml.bos_token_id", 257)
    writer.add_uint32("tokenizer.ggml.eos_token_id", 258)
    draw = np.random.default_rng(0)
    names = {"token_embd": (259, 32), "output_norm": (32,)}
    names |= {"blk.0.attn_norm": (32,), "blk.0.ffn_norm": (32,), "blk.0.attn_q": (32, 32), "blk.0.attn_k": (16, 32)}
    names |= {f"blk.0.{name}": (32, 32) for name in ("attn_output", "ffn_gate", "ffn_up", "ffn_down")}
    names |= {"blk.0.attn_v": (16, 32)}
    for name, shape in names.items():
        values = draw.standard_normal(shape, np.float32)
        kind = gguf.GGMLQuantizationType.Q8_0 if name == "blk.0.ffn_up" else None
        writer.add_tensor(f"{name}.weight", gguf.quantize(values, kind) if kind else values, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def read_gguf(path: Path) -> str:
    """Read a GGUF file as a model."""
    found = source.resolve(str(path), say=lambda _: None)
    return f"{whole(found.weights)} {found.config} {found.tokenizer.fingerprint}"


def make_mask(folder: Path) -> Path:
    """Write a mask as the paper's released code does."""
    path = folder / "mask.pt"
    released._write(path, np.random.default_rng(0).random((24, 40)) < 0.1)
    return path


def lines(code: str) -> list[str]:
    """Return the UDHR in a language, by lines."""
    (text,) = UDHR.documents(code, "all", Reading())
    return text.split("\n")


def make_tokens(folder: Path, name: str) -> Path:
    """Build the token files of a text, and return one of them."""
    place = find_source(lines("ru"))
    with builds.Pool(Tokenizer.bytes(), 0) as pool:
        return builds.build(folder, place, "ru", "all", pool) / name


def read_tokens(path: Path) -> str:
    """Read the token files beside one of them."""
    found = builds.load(path.parent, Tokenizer.bytes())
    arrays = (found.ids, found.bytes, found.offsets, found.hashes)
    return hashlib.sha256(b"".join(map(bytes, arrays))).hexdigest() + f" {found.digest} {found.empty} {found.skipped}"


def make_text(folder: Path, name: str) -> Path:
    """Write a text as `name`."""
    path = folder / name
    if path.suffix == ".parquet":
        parquet.write_table(pyarrow.table({"text": lines("ar")}), path, row_group_size=20)
        return path
    plain = "".join(json.dumps({"text": line}) + "\n" for line in lines("ar")).encode()
    pack = {".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstandard.compress}.get(path.suffix, bytes)
    path.write_bytes(pack(plain))
    return path


def read_text(path: Path) -> str:
    """Read a text, strictly."""
    return hashlib.sha256("\0".join(text.read(path, Reading())).encode()).hexdigest()


def make_manifest(folder: Path) -> Path:
    """Write a manifest of two sources."""
    entries = {"ar": {"source": make_text(folder, "ar.jsonl").name, "split": "all[:90%]"}, "sw": {"source": "udhr"}}
    path = folder / "texts.json"
    path.write_text(json.dumps({"languages": entries}))
    return path


def make_region(folder: Path) -> Path:
    """Write a region of two layers."""
    draw = np.random.default_rng(0)
    scores = {"layers": {"mlp": {"up_proj": draw.random((2, 24, 16), np.float32)}}}
    region = regions.select(scores, 0.02, provenance=regions.Provenance(model="a" * 32, languages=("vi", "ru")))
    regions.save(region, folder / "region.safetensors")
    return folder / "region.safetensors"


def read_region(path: Path) -> str:
    """Read a region file, its header too."""
    return f"{digest(file._read(path))} {file.header(path).provenance}"


COLUMNS: dict[str, type] = {"intervention": str, "language": str, "nll_nats": float, "tokens": int}


def make_results(folder: Path) -> Path:
    """Write a table of a work directory."""
    found = table.Table(folder / "results.csv", COLUMNS, ("intervention", "language"), writer=True)
    for number in range(24):
        row = {"intervention": f"top {number}%", "language": "ar", "nll_nats": number / 7, "tokens": number}
        found.add(row)
    return folder / "results.csv"


def read_results(path: Path) -> str:
    """Read a table; a row that is gone will be measured again, so what counts is that the others are as they were."""
    rows = table.Table(path, COLUMNS, ("intervention", "language"), writer=True).rows()
    for row in rows:
        number = row["tokens"]
        if row["intervention"] != f"top {number}%" or row["nll_nats"] != number / 7 or row["language"] != "ar":
            return str(row)
    return "as measured"


def make_mark(folder: Path) -> Path:
    """Write the mark of a finished stage, and the identities of a work directory beside it."""
    with Run.open(folder / "run", {"machine": {"progress": "none"}}) as run:
        run.identify("model", "1" * 64, "weights")
        run.finish("score", samples=64)
    return folder / "run" / "done" / "score.json"


def read_mark(path: Path) -> str:
    """Read the mark of a finished stage."""
    facts, problem = verify(path.parent.parent, "score")
    if problem:
        raise RunError(problem)
    return str(facts)


def make_checkpoint(folder: Path) -> Path:
    """Write a tree of arrays, and return the file that holds them."""
    checkpoint.save(folder / "tree", 1, LEAVES, {"position": 64})
    parts = (folder / "tree" / "1" / "tree" / "d").iterdir()
    return max(parts, key=lambda path: path.stat().st_size)


def make_record(folder: Path) -> Path:
    """Write a tree of arrays, and return the record beside them."""
    checkpoint.save(folder / "tree", 1, LEAVES, {"position": 64})
    return folder / "tree" / "1" / "header" / "metadata"


LEAVES = {"a": np.random.default_rng(0).standard_normal((3, 5, 7)).astype(np.float32)}


def read_checkpoint(path: Path) -> str:
    """Read a tree of arrays and its header."""
    folder = next(each for each in path.parents if each.name == "tree" and (each / "1").is_dir())
    return f"{checkpoint.header(folder, 1)} {digest(checkpoint.load(folder, 1, LEAVES))}"


FORMATS: dict[str, Format] = {
    "safetensors": Format(lambda folder: make_folder(folder) / "model.safetensors", read_folder, read_library),
    "index": Format(lambda folder: make_folder(folder, 20_000) / "model.safetensors.index.json", read_folder),
    "config": Format(lambda folder: make_folder(folder) / "config.json", read_folder),
    "tokenizer": Format(lambda folder: make_folder(folder) / "tokenizer.json", read_folder),
    "tokenizer_config": Format(lambda folder: make_folder(folder) / "tokenizer_config.json", read_folder),
    "gguf": Format(make_gguf, read_gguf),
    "region": Format(make_region, read_region, checked=True),
    "results": Format(make_results, read_results, checked=True),
    "mark": Format(make_mark, read_mark, checked=True),
    "checkpoint": Format(make_checkpoint, read_checkpoint, checked=True),
    "record": Format(make_record, read_checkpoint, checked=True),
    "mask": Format(make_mask, lambda path: digest({"": released._read(path)}), checked=True),
    **{
        f"tokens {name}": Format(functools.partial(make_tokens, name=name), read_tokens, checked=True)
        for name in ("ids.bin", "bytes.bin", "offsets.bin", "hashes.bin", "meta.json")
    },
    **{
        name: Format(functools.partial(make_text, name=name), read_text)
        for name in ("ar.jsonl", "ar.jsonl.gz", "ar.jsonl.xz", "ar.jsonl.zst", "ar.parquet")
    },
    "manifest": Format(make_manifest, lambda path: str(find_source(str(path)))),
}


def damage(content: bytes, draw: np.random.Generator) -> bytes:
    """Return a file with one or two things wrong with it."""
    for _ in range(draw.integers(1, 3)):
        content = _damage(bytearray(content), draw) if content else content
    return content


def _damage(content: bytearray, draw: np.random.Generator) -> bytes:
    reach = len(content) if draw.random() < 0.2 else min(HEAD, len(content))
    place = int(draw.integers(reach))
    other, size = int(draw.integers(len(content))), int(draw.integers(1, 65))
    match draw.integers(12):
        case 0:
            content[place] ^= 1 << int(draw.integers(8))
        case 1:
            content[place : place + size] = bytes([int(draw.choice([0, 32, 255]))]) * size
        case 2:
            width = int(draw.choice([4, 8]))
            number = int(draw.choice(np.array(EXTREMES, object))) % 2 ** (8 * width)
            content[place : place + width] = number.to_bytes(width, "little")
        case 3:
            del content[place:]
        case 4:
            content += bytes(size) if draw.random() < 0.5 else content[:size]
        case 5:
            del content[place : place + size]
        case 6:
            content[place:place] = content[other : other + size]
        case 7:
            one, two = content[place : place + size], content[other : other + size]
            content[place : place + size], content[other : other + size] = two, one
        case _:
            _reword(content, place, draw)
    return bytes(content)


def _reword(content: bytearray, place: int, draw: np.random.Generator) -> None:
    """Put another JSON value in the place of the word at `place`."""
    ends = b' ,:[]{}"\n'
    start = max((content.rfind(bytes([end]), 0, place) for end in ends), default=-1) + 1
    stop = min((found for end in ends if (found := content.find(bytes([end]), place)) >= 0), default=len(content))
    words = [*WORDS, *(str(number).encode() for number in EXTREMES)]
    content[start : max(start, stop)] = words[int(draw.integers(len(words)))]


class TooSlow(BaseException):
    """A case has had its seconds; no handler of the program under test may take it for a damaged file."""


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Give a block its seconds and its memory; beyond them, TooSlow and MemoryError."""

    def stop(*_: object) -> None:
        raise TooSlow(f"more than {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def outcome(form: Format, path: Path, original: str) -> str:
    """Return "refused", "equal" or "other", or what is wrong with how a file was read."""
    try:
        with bounded():
            found = form.read(path)
    except (ValueError, FileNotFoundError, RunError) as error:
        # A tree of arrays is named by its folder: orbax says which of its files it is.
        named = path.name in str(error) or any(str(each) in str(error) for each in path.parents[:3])
        return "refused" if named else f"a message that names no file: {type(error).__name__}: {str(error)[:300]}"
    except BaseException as error:  # whatever else it is, it is what this program is for
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"{type(error).__name__}: {str(error)[:300]}"
    if found == original:
        return "equal"
    if form.checked:
        return "another content than was written, accepted"
    if form.other is not None and form.other(path) != found.split()[0]:
        return "another content than another reader finds"
    return "other"


def case(name: str, content: bytes, seed: int, number: int) -> bytes:
    """Return the file of one case."""
    return damage(content, np.random.default_rng([seed, zlib.crc32(name.encode()), number]))


def run(name: str, numbers: range, seed: int, keep: Path | None) -> dict[str, Any]:
    """Try the cases of one format, and return what came of them."""
    form, counts, slowest, failures = FORMATS[name], {"refused": 0, "equal": 0, "other": 0}, 0.0, 0
    with tempfile.TemporaryDirectory() as folder:
        path = form.make(Path(folder))
        content = path.read_bytes()
        original = form.read(path)
        for number in numbers:
            damaged = case(name, content, seed, number)
            path.write_bytes(damaged)
            begin = time.perf_counter()
            found = outcome(form, path, original)
            slowest = max(slowest, time.perf_counter() - begin)
            if found in counts:
                counts[found] += 1
                continue
            failures += 1
            print(f"{name}:{number} (seed {seed}): {found}", file=sys.stderr, flush=True)
            if keep is not None:
                (keep / f"{name}-{seed}-{number}").write_bytes(damaged)
    return {"format": name, "cases": len(numbers), **counts, "failures": failures, "slowest_s": round(slowest, 3)}


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20_000, help="cases a format")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--formats", default=",".join(FORMATS), help=f"of {', '.join(FORMATS)}")
    parser.add_argument("--only", help="FORMAT:NUMBER, one case again")
    parser.add_argument("--keep", type=Path, help="folder for the files that failed")
    flags = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    if flags.keep:
        flags.keep.mkdir(parents=True, exist_ok=True)
    asked = [(name, range(flags.count)) for name in flags.formats.split(",")]
    if flags.only:
        name, _, number = flags.only.partition(":")
        asked = [(name, range(int(number), int(number) + 1))]
    failures = 0
    for name, numbers in asked:
        found = run(name, numbers, flags.seed, flags.keep)
        failures += found["failures"]
        print(json.dumps(found), flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
