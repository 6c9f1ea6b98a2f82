"""The loader: the same samples for any number of devices and processes, and after an interruption anywhere."""

import hashlib
import itertools
import json
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from lingregions import mesh as meshes
from lingregions.corpus import corpus as corpora
from lingregions.corpus.batch import Batch
from lingregions.corpus.corpus import Corpus
from lingregions.corpus.loader import load
from lingregions.models.tokenizer import Tokenizer

BYTES = Tokenizer.bytes()


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    """Nineteen samples of 512 tokens."""
    return corpora.open("udhr", "sw", BYTES, length=512, bos="sample")


def flat(batches: Sequence[Batch]) -> list[np.ndarray]:
    """Return the tokens, segments and bytes of all batches, rows of padding left out."""
    arrays = [np.concatenate([np.asarray(array) for array in field]) for field in zip(*batches, strict=True)]
    inside = (arrays[1] > 0).any(1)
    return [array[inside] for array in arrays]


def same(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> bool:
    return all(one.tobytes() == other.tobytes() for one, other in zip(first, second, strict=True))


def test_the_corpus_is_as_long_as_these_tests_say(corpus: Corpus) -> None:
    assert len(corpus) == 19


@pytest.mark.parametrize("size", [1, 4, 16, 40])
def test_batch_size_does_not_matter(corpus: Corpus, size: int) -> None:
    batches = list(load(corpus, size, seed=5))
    assert same(flat(batches), list(corpus.batch(corpus.order(5))))
    assert {batch.tokens.shape for batch in batches} == {(size, 512)}


@pytest.mark.parametrize(
    ("devices", "data", "fsdp", "tensor"), [(1, 1, 1, 1), (2, 2, 1, 1), (8, 2, 4, 1), (8, 2, 2, 2)]
)
def test_the_number_of_devices_does_not_matter(corpus: Corpus, devices: int, data: int, fsdp: int, tensor: int) -> None:
    sharding = meshes.batched(meshes.build(data, fsdp, tensor, jax.devices()[:devices]))
    batches = list(load(corpus, 8, seed=5, sharding=sharding))
    assert all(array.sharding == sharding and array.dtype == np.int32 for batch in batches for array in batch)
    assert same(flat(batches), list(corpus.batch(corpus.order(5))))


def test_tokens_may_be_split_too(corpus: Corpus) -> None:
    sharding = NamedSharding(meshes.build(2, 2, 2), PartitionSpec("data", ("fsdp", "tensor")))
    assert same(flat(list(load(corpus, 4, seed=5, sharding=sharding))), list(corpus.batch(corpus.order(5))))


@settings(max_examples=30)
@given(data=st.data(), size=st.integers(1, 8))
def test_an_interruption_at_any_sample_changes_nothing(corpus: Corpus, data: st.DataObject, size: int) -> None:
    n = 2 * len(corpus) + 5  # into the third pass
    place = data.draw(st.integers(0, n))
    first = list(load(corpus, size, seed=9, stop=place))
    second = list(load(corpus, data.draw(st.integers(1, 8)), seed=9, start=place, stop=n))
    together = [np.concatenate(arrays) for arrays in zip(*map(flat, filter(None, (first, second))), strict=True)]
    assert same(together, list(corpus.batch(corpus.order(9, 0, n))))


def test_without_a_seed_the_corpus_goes_by_in_order(corpus: Corpus) -> None:
    assert same(flat(list(load(corpus, 5, seed=None))), list(corpus.batch(range(len(corpus)))))
    with pytest.raises(ValueError, match=r"samples 0\.\.20 in batches of 5: .* stop is at most 19"):
        next(load(corpus, 5, seed=None, stop=20))
    with pytest.raises(ValueError, match=r"samples 0\.\.19 in batches of 0: size is 1 or more"):
        next(load(corpus, 0, seed=1))


class Broken(Corpus):
    """A corpus whose disk fails at the third batch."""

    def batch(self, positions: Sequence[int] | np.ndarray, size: int | None = None) -> Batch:
        if 15 in positions:
            raise OSError("the disk is gone")
        return super().batch(positions, size)


def test_a_failing_read_is_raised_where_its_batch_is_due(corpus: Corpus) -> None:
    fields = {name: getattr(corpus, name) for name in Broken.__dataclass_fields__}
    batches = load(Broken(**fields), 5, seed=None)
    assert len(list(itertools.islice(batches, 3))) == 3
    with pytest.raises(OSError, match="the disk is gone"):
        next(batches)


def test_a_loader_may_be_left_in_the_middle(corpus: Corpus) -> None:
    batches = load(corpus, 1, seed=1, stop=10**9)
    next(batches)
    batches.close()
    with pytest.raises(StopIteration):
        next(batches)


def test_a_corpus_is_a_random_access_source(corpus: Corpus) -> None:
    whole = corpus.batch(range(len(corpus)))
    for place in (0, len(corpus) - 1):
        for array, rows in zip(corpus[place], whole, strict=True):
            assert array.tobytes() == rows[place].tobytes()
    with pytest.raises(IndexError):
        corpus[len(corpus)]


PROCESS = """
import hashlib, json, sys
import jax
import numpy as np

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(f"localhost:{sys.argv[1]}", 2, int(sys.argv[2]))

from lingregions import mesh
from lingregions.corpus import corpus as corpora
from lingregions.corpus.loader import load
from lingregions.models.tokenizer import Tokenizer

corpus = corpora.open("udhr", "sw", Tokenizer.bytes(), length=512, bos="sample")
sharding = mesh.batched(mesh.build(data=4))
read = []
real = type(corpus).batch
type(corpus).batch = lambda self, positions, size=None: read.extend(map(int, positions)) or real(self, positions, size)
batches = list(load(corpus, 8, seed=5, sharding=sharding))
total = jax.jit(lambda tokens: tokens.sum())
sums = [int(total(batch.tokens)) for batch in batches]
rows = {}
for number, batch in enumerate(batches):
    for shard in batch.tokens.addressable_shards:
        for row, values in enumerate(np.asarray(shard.data), shard.index[0].start or 0):
            rows[8 * number + row] = hashlib.sha256(values.tobytes()).hexdigest()
print(json.dumps({"rows": rows, "read": read, "sums": sums}))
"""


@pytest.mark.slow
def test_two_processes_read_each_their_own_half_of_the_same_batches(corpus: Corpus) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    root = Path(__file__).parent.parent
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(port), str(number)],
            cwd=root,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for number in range(2)
    ]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    first, second = (json.loads(output.strip().splitlines()[-1]) for output, _ in outputs)
    # Rows 0..3 of each batch of 8 lie on process 0, rows 4..7 on process 1; nobody reads a row of the other.
    batches = list(load(corpus, 8, seed=5))
    expected = {
        str(8 * number + row): hashlib.sha256(values.tobytes()).hexdigest()
        for number, batch in enumerate(batches)
        for row, values in enumerate(np.asarray(batch.tokens))
    }
    assert {**first["rows"], **second["rows"]} == expected
    assert all(int(row) % 8 < 4 for row in first["rows"])
    assert all(int(row) % 8 >= 4 for row in second["rows"])
    order = corpus.order(5).tolist()
    assert first["read"] == [order[k] for k in range(19) if k % 8 < 4]
    assert second["read"] == [order[k] for k in range(19) if k % 8 >= 4]
    assert first["sums"] == second["sums"] == [int(batch.tokens.sum()) for batch in batches]
