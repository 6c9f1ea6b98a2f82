"""Safetensors: exact values by byte range, and every way in which files can be wrong."""

import json
import math
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from lingregions.models import safetensors as ours

WHOLE = (slice(None), slice(None))


def raw(path, tensors, tail=b"", metadata=None):
    """Write a file by hand: {name: (dtype code, shape, bytes)}."""
    content, start = {} if metadata is None else {"__metadata__": metadata}, 0
    for name, (code, shape, data) in tensors.items():
        content[name] = {"dtype": code, "shape": list(shape), "data_offsets": [start, start + len(data)]}
        start += len(data)
    text = json.dumps(content).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(data for _, _, data in tensors.values()) + tail)


def test_values_of_every_dtype_are_widened_exactly(tmp_path):
    values = np.array([[1.5, -0.0, 2.0**-20], [1.0, 65504.0, -3.140625]])
    bits = {"BF16": "<u2", "F16": "<u2", "F32": "<u4", "F64": "<u8"}
    stored = {code: values.astype(ours._DTYPES[code]) for code in bits}
    raw(
        tmp_path / "model.safetensors",
        {code: (code, (2, 3), each.view(bits[code]).tobytes()) for code, each in stored.items()},
    )
    opened = ours.load(tmp_path)
    assert opened.shapes == dict.fromkeys(bits, (2, 3))
    for code, each in stored.items():
        read = opened.read(code, WHOLE)
        assert read.dtype == np.float32
        np.testing.assert_array_equal(read.view(np.uint32), each.astype(np.float32).view(np.uint32))
    # By hand: bfloat16 is the upper half of a float32.
    raw(tmp_path / "model.safetensors", {"x": ("BF16", (1, 2), bytes.fromhex("c03f 0080"))})
    assert ours.load(tmp_path).read("x", WHOLE).tolist() == [[1.5, -0.0]]


@pytest.mark.parametrize(
    "index",
    [(slice(2, 5), slice(None)), (slice(None), slice(1, 3)), (slice(3, 7), slice(0, 2)), (slice(4, 4), slice(None))],
)
@pytest.mark.parametrize("block", [1, 40, 1 << 20])
def test_a_part_is_that_part(tmp_path, monkeypatch, index, block):
    monkeypatch.setattr(ours, "BLOCK", block)
    values = np.arange(28, dtype=np.float32).reshape(7, 4)
    safetensors.numpy.save_file({"before": values + 100, "x": values}, tmp_path / "model.safetensors")
    np.testing.assert_array_equal(ours.load(tmp_path).read("x", index), values[index])


@pytest.mark.parametrize("limit", [1, 60, 1000])
def test_written_files_are_read_by_the_library_and_by_us(tmp_path, limit):
    tensors = {name: np.arange(size, dtype=np.float32) / 3 for name, size in (("a", 5), ("b", 7), ("c", 12))}
    asked = []

    def values(name):
        asked.append(name)
        return tensors[name]

    ours.save(tmp_path, {name: each.shape for name, each in tensors.items()}, values, "float32", limit)
    assert asked == ["a", "b", "c"]
    files = {1: 3, 60: 2, 1000: 1}[limit]
    assert len(list(tmp_path.glob("*.safetensors"))) == files
    assert (tmp_path / "model.safetensors.index.json").exists() == (files > 1)
    theirs = {}
    for path in tmp_path.glob("*.safetensors"):
        theirs |= safetensors.numpy.load_file(path)
    opened = ours.load(tmp_path)
    for name, each in tensors.items():
        np.testing.assert_array_equal(theirs[name], each)
        np.testing.assert_array_equal(opened.read(name, (slice(None),)), each)


def test_bfloat16_rounds_to_nearest_even(tmp_path):
    # 1 + 2^-8 lies between 1 and 1 + 2^-7, and goes to the even one; 1 + 3 x 2^-8 goes up.
    values = np.array([1 + 2.0**-8, 1 + 3 * 2.0**-8, -2.5], np.float32)
    ours.save(tmp_path, {"x": (3,)}, lambda name: values, "bfloat16", 1000)
    expected = [1.0, 1 + 2.0**-6, -2.5]
    assert ours.load(tmp_path).read("x", (slice(None),)).tolist() == expected
    assert ours._read_header(tmp_path / "model.safetensors")["x"].dtype == "BF16"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3.4e38])
def test_what_is_not_finite_is_not_written(tmp_path, value):
    values = np.array([1.0, value], np.float32)
    with pytest.raises(ValueError, match=r"^x holds 1 NaN or infinite"):
        ours.save(tmp_path, {"x": (2,)}, lambda name: values, "bfloat16", 1000)


@pytest.mark.parametrize("value", [0x7C00, 0xFC00, 0x7E00])  # +inf, -inf, NaN
def test_float16_that_overflowed_is_refused_by_name(tmp_path, value):
    data = np.array([[0, value], [0, 0]], "<u2").tobytes()
    raw(tmp_path / "model.safetensors", {"model.norm.weight": ("F16", (2, 2), data)})
    opened = ours.load(tmp_path)
    with pytest.raises(ValueError, match=r"model.norm.weight holds 1 NaN or infinite.*float16 overflows"):
        opened.read("model.norm.weight", WHOLE)
    assert opened.read("model.norm.weight", (slice(1, 2), slice(None))).tolist() == [[0, 0]]


def test_quantised_tensors_are_refused(tmp_path):
    raw(tmp_path / "model.safetensors", {"x": ("I8", (1, 2), b"ab")})
    with pytest.raises(ValueError, match=r"x is stored as I8.*before quantisation"):
        ours.load(tmp_path).read("x", WHOLE)


def shards(folder, files, mapping=None):
    """Write shards {file: {name: value}} and their index, or the index `mapping`."""
    for file, tensors in files.items():
        safetensors.numpy.save_file(
            {name: np.full(2, each, np.float32) for name, each in tensors.items()}, folder / file
        )
    mapping = mapping or {name: file for file, tensors in files.items() for name in tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": mapping}))


def test_shards_are_found_through_the_index(tmp_path):
    shards(tmp_path, {"one.safetensors": {"a": 1}, "two.safetensors": {"b": 2, "c": 3}})
    opened = ours.load(tmp_path)
    assert [opened.read(name, (slice(None),)).tolist() for name in "abc"] == [[1, 1], [2, 2], [3, 3]]


def test_a_missing_shard_is_named(tmp_path):
    shards(tmp_path, {"one.safetensors": {"a": 1}, "two.safetensors": {"b": 2}})
    (tmp_path / "two.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of the 2 shards .* missing: two.safetensors; download"):
        ours.load(tmp_path)


@pytest.mark.parametrize(
    ("one", "two", "mapping", "message"),
    [
        ({"a": 1, "b": 2}, {"b": 2}, {"a": "one", "b": "one", "c": "two"}, r"b is both in one.safetensors and in two"),
        ({"a": 1}, {"b": 2}, {"a": "one", "b": "two", "c": "two"}, r"two.safetensors lacks c, which"),
        ({"a": 1, "b": 2}, {"c": 3}, {"a": "one", "c": "two"}, r"one.safetensors holds b, which .* is in no file"),
        (
            {"a": 1, "c": 2},
            {"b": 3},
            {"a": "one", "c": "two"},
            r"one.safetensors holds c, which .* is in two.safetensors",
        ),
    ],
)
def test_an_index_that_does_not_tell_the_truth_is_refused(tmp_path, one, two, mapping, message):
    mapping = {name: f"{file}.safetensors" for name, file in mapping.items()}
    shards(tmp_path, {"one.safetensors": one, "two.safetensors": two}, mapping)
    with pytest.raises(ValueError, match=message):
        ours.load(tmp_path)


@pytest.mark.parametrize("file", ["../x.safetensors", "/etc/passwd", "sub/x.safetensors", "..", ".", "", 3, None])
def test_an_index_that_leaves_the_folder_is_refused(tmp_path, file):
    folder = tmp_path / "model"
    folder.mkdir()
    safetensors.numpy.save_file({"a": np.zeros(2, np.float32)}, tmp_path / "x.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": file}}))
    with pytest.raises(ValueError, match="not a file name in this folder; refused"):
        ours.load(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "expected a JSON object, found list"),
        ("{}", r"not a safetensors index \(no weight_map\)"),
        ('{"weight_map": 3}', r"not a safetensors index \(no weight_map\)"),
        ('{"weight_map": {"a": "x", "a": "y"}}', r"not valid JSON \(a occurs twice"),
        ('{"weight_map": ' + "[" * 100_000, "not valid JSON .*recursion"),
        ('{"weight_map": ' + "1" * 5_000 + "}", "not valid JSON .*digits"),
    ],
)
def test_a_broken_index_is_named(tmp_path, content, message):
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ValueError, match=rf"index.json: {message}"):
        ours.load(tmp_path)


def test_links_within_the_folder_are_followed_as_the_hub_cache_needs(tmp_path):
    blob, folder = tmp_path / "blob", tmp_path / "snapshot"
    folder.mkdir()
    safetensors.numpy.save_file({"a": np.ones(2, np.float32)}, blob)
    (folder / "model.safetensors").symlink_to(blob)
    assert ours.load(folder).read("a", (slice(None),)).tolist() == [1, 1]


def test_pickles_are_not_opened(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(FileNotFoundError, match=r"pickles \(pytorch_model.bin\).*save_pretrained"):
        ours.load(tmp_path)


def test_a_folder_without_weights(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"neither model.safetensors nor model.safetensors.index.json$"):
        ours.load(tmp_path)
    (tmp_path / "weights.safetensors").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"weights.safetensors would have to be named model.safetensors"):
        ours.load(tmp_path)


def test_a_cut_file_is_refused_wherever_it_is_cut(tmp_path):
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file({"a": np.ones(8, np.float32)}, path)
    whole = path.read_bytes()
    for size in (0, 7, 8, 20, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"download it again"):
            ours.load(tmp_path)


TENSOR = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def headed(path, head, tail=8):
    """Write a file with this header (JSON or bytes) and a number of zero bytes behind it."""
    head = head if isinstance(head, bytes) else json.dumps(head).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head + bytes(tail))
    return path


def test_the_header_that_the_broken_ones_are_made_from_is_sound(tmp_path):
    (entry,) = ours._read_header(headed(tmp_path / "m.safetensors", {"a": TENSOR, "__metadata__": {"x": "y"}})).values()
    assert (entry.shape, entry.dtype) == ((2,), "F32")
    assert (tmp_path / "m.safetensors").stat().st_size == entry.start + 8


@pytest.mark.parametrize(
    ("head", "tail"),
    [
        (b"not json", 8),
        (b"[1, 2]", 8),
        ({"a": {"dtype": "F32", "shape": [2]}}, 8),
        ({"a": TENSOR | {"shape": [3]}}, 8),
        ({"a": TENSOR | {"shape": [-2]}}, 8),
        ({"a": TENSOR | {"shape": [2**40, 2**40]}}, 8),
        ({"a": TENSOR | {"data_offsets": [0.0, 8.0]}}, 8),
        ({"a": TENSOR | {"data_offsets": [-8, 0]}}, 8),
        ({"a": TENSOR | {"data_offsets": [4, 12]}}, 12),  # a gap in front
        ({"a": TENSOR, "b": TENSOR}, 8),  # an overlap
        ({"a": TENSOR, "b": TENSOR | {"data_offsets": [12, 20]}}, 20),  # a gap between
        ({"a": TENSOR}, 9),  # a byte behind
        ({"a": TENSOR}, 7),
        ({"a": TENSOR | {"dtype": "F31"}}, 8),
        (b'{"a":' * 100_000, 8),
        (b'{"a": {"dtype": "I8", "shape": [8], "data_offsets": [0, 8]}, "a": 1}', 8),  # twice
    ],
)
def test_what_the_format_forbids_is_refused(tmp_path, head, tail):
    headed(tmp_path / "model.safetensors", head, tail)
    with pytest.raises(ValueError, match=r"model.safetensors: the safetensors header is broken"):
        ours.load(tmp_path)


def test_a_tensor_that_occurs_twice_is_refused(tmp_path):
    text = json.dumps(TENSOR).encode()
    headed(tmp_path / "model.safetensors", b'{"a": ' + text + b', "a": ' + text + b"}")
    with pytest.raises(ValueError, match=r"model.safetensors: .*a occurs twice"):
        ours.load(tmp_path)


def test_a_header_of_two_gigabytes_is_not_read(tmp_path):
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write((2**31).to_bytes(8, "little"))
        file.truncate(2**31 + 100)  # sparse: it takes no room on the disk
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"model.safetensors: .*header too large"):
        ours.load(tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()


def test_a_git_lfs_pointer_is_recognised(tmp_path):
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(ValueError, match="a Git LFS pointer, not the weights"):
        ours.load(tmp_path)


def test_every_dtype_that_is_written_is_among_those_read():
    assert set(ours.CODES.values()) <= set(ours._DTYPES)
    assert ours._DTYPES["BF16"] == ml_dtypes.bfloat16
    assert math.log2(ours.BLOCK).is_integer()
