"""Region files: what is written is read, damage and mismatch are told, nothing half-written stays; and `.pt` masks."""

import io
import json
import pickle
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jax.sharding import NamedSharding, PartitionSpec
from rich.console import Console
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from lingregions import mesh as meshes
from lingregions import regions
from lingregions import tree as trees
from lingregions.regions import Provenance, Region, command, equals, file, released, stack
from lingregions.run import RunError
from lingregions.run.record import checksum

GOLDEN = Path(__file__).parent / "golden" / "released_mask.pt"
NAME = "model.layers.1.mlp.up_proj.weight"


def build(**known: object) -> Region:
    """A region of two layers, sparse and dense matrices, and one that is empty."""
    generator = np.random.default_rng(0)
    scores = {
        "embed_tokens": generator.random((16, 16), np.float32),
        "layers": {
            "input_layernorm": generator.random((2, 16), np.float32),
            "mlp": {"up_proj": generator.random((2, 24, 16), np.float32)},
        },
    }
    axes = (("embed_tokens", ("vocab", "embed")), ("layers.input_layernorm", ("layers", "embed")))
    axes += (("layers.mlp.up_proj", ("layers", "mlp", "embed")),)
    known = {"model": "a" * 32, "tokenizer": "t1", "axes": axes, "languages": ("vi", "ru")} | known
    part = regions.select(scores, 0.02, provenance=Provenance(**known))
    return regions.union(part, regions.select({**scores}, 0.01, "bottom", provenance=Provenance(**known)), name="ends")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The file of that region."""
    place = tmp_path / "ends.safetensors"
    regions.save(build(), place)
    return place


def rewrite(path: Path, change: object) -> Path:
    """The file with its JSON header changed by hand, everything else as it was."""
    with safe_open(path, framework="np") as opened:
        own = json.loads(opened.metadata()[file._KEY])
    change(own)
    own["crc32"] = checksum({key: value for key, value in own.items() if key != "crc32"})
    other = path.with_name("changed.safetensors")
    save_file(load_file(path), other, {file._KEY: json.dumps(own)})
    return other


# ---- the region file ----


@given(masks=st.tuples(hnp.arrays(bool, (2, 5, 13)), hnp.arrays(bool, (2, 7)), st.sampled_from([0, 1, 3, 7])))
@settings(max_examples=60)
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, masks: tuple[np.ndarray, np.ndarray, int]) -> None:
    wide = np.zeros((2, 40, 40), bool)
    wide[1].reshape(-1)[: masks[2]] = True  # index-coded, the other two are packed
    tree = {"layers": {"a": jnp.asarray(masks[0]), "b": jnp.asarray(masks[1]), "c": jnp.asarray(wide)}}
    what = Region(tree, Provenance(name="drawn", seed=3, parents=(Provenance(name="parent", languages=("vi",)),)))
    place = tmp_path_factory.mktemp("file") / "a.safetensors"
    regions.save(what, place)
    found = regions.load(place)
    assert equals(found, what)
    assert found.provenance == what.provenance
    assert file.verify(place).count == regions.total(what)
    read = file._read(place)
    for layer in range(2):
        np.testing.assert_array_equal(read[f"model.layers.{layer}.a.weight"], masks[0][layer])
        np.testing.assert_array_equal(read[f"model.layers.{layer}.b.weight"], masks[1][layer])


def test_the_smaller_coding_is_chosen_and_said(path: Path) -> None:
    header, stored = file.header(path), load_file(path)
    assert header.matrices[NAME] == file._Matrix((24, 16), 7 + 3, "uint32", "57a66f15")
    assert stored[NAME].dtype == np.uint32
    assert header.matrices["model.embed_tokens.weight"].coding == "uint32"
    assert stored["model.layers.0.input_layernorm.weight"].tolist() == []
    assert sum(each.nbytes for each in stored.values()) == 4 * header.count
    np.testing.assert_array_equal(np.flatnonzero(file._read(path)[NAME]), stored[NAME])
    assert dict(file.entries(path))[NAME].tolist() == stored[NAME].tolist()
    regions.save(regions.complement(regions.load(path)), path)
    assert {each.dtype for each in load_file(path).values()} == {np.dtype(np.uint8)}
    assert file.header(path).count == header.size - header.count


def test_the_header_is_json_that_others_can_read(path: Path) -> None:
    with safe_open(path, framework="np") as opened:
        own = json.loads(opened.metadata()["lingregions"])
    assert own["format"] == 2
    assert "[out, in]" in own["layout"]
    assert own["entries"] == sum(each["count"] for each in own["matrices"].values())
    assert own["provenance"]["name"] == "ends"
    assert own["provenance"]["model"] == "a" * 32
    assert own["provenance"]["parents"][0]["selector"] == "top"
    assert own["provenance"]["axes"][2] == ["layers.mlp.up_proj", ["layers", "mlp", "embed"]]
    assert path.read_bytes()[8:9] == b"{"
    assert int.from_bytes(path.read_bytes()[:8], "little") % 8 == 0


def test_shards_write_the_same_bytes_and_load_on_shards(path: Path, tmp_path: Path) -> None:
    what, mesh = build(), meshes.build(fsdp=2, tensor=4)
    specs = {
        "embed_tokens": PartitionSpec("tensor", "fsdp"),
        "layers.input_layernorm": PartitionSpec(None, "fsdp"),
        "layers.mlp.up_proj": PartitionSpec(None, "tensor", "fsdp"),
    }
    spread = {place: jax.device_put(mask, NamedSharding(mesh, specs[place])) for place, mask in what.leaves().items()}
    other = tmp_path / "shards.safetensors"
    regions.save(Region(trees.unflatten(spread), what.provenance), other)
    assert other.read_bytes() == path.read_bytes()
    found = regions.load(path, like=trees.unflatten(spread))
    assert equals(found, what)
    assert all(mask.sharding == spread[place].sharding for place, mask in found.leaves().items())


def test_a_region_of_another_model_says_which(path: Path) -> None:
    own = build()
    assert equals(regions.load(path, own.masks, "a" * 32, "t1"), own)
    with pytest.raises(
        ValueError, match=f"another model: its model hash is {'a' * 32}, that of the model in use is bbb"
    ):
        regions.load(path, model="bbb")
    with pytest.raises(ValueError, match="another tokenizer"):
        file.verify(path, tokenizer="t2")
    wide = trees.merge(own.masks, {"layers": {"mlp": {"up_proj": jnp.zeros((2, 24, 17), bool)}}})
    for check in (regions.load, file.verify):
        with pytest.raises(ValueError, match=r"'layers.mlp.up_proj' has shape \(2, 24, 1"):
            check(path, wide)
        with pytest.raises(ValueError, match="'embed_tokens'"):
            check(path, {"layers": own.masks["layers"]})
    regions.save(build(model=""), path)
    with pytest.raises(ValueError, match="its model hash is not recorded"):
        regions.load(path, model="bbb")


def test_damage_is_told(path: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no region file"):
        regions.load(tmp_path / "none.safetensors")
    content = path.read_bytes()
    for length in (0, 4, 100, len(content) - 1):
        cut = tmp_path / "cut.safetensors"
        cut.write_bytes(content[:length])
        with pytest.raises(ValueError, match="it may be cut short"):
            regions.load(cut)
    plain = tmp_path / "plain.safetensors"
    save_file({"a": np.zeros(3, np.float32)}, plain)
    with pytest.raises(ValueError, match="not a region file"):
        regions.load(plain)
    moved = bytearray(content)  # a byte of the last tensor: the first index of a matrix moves
    moved[-4] ^= 1
    (tmp_path / "moved.safetensors").write_bytes(moved)
    with pytest.raises(ValueError, match="does not match its checksum"):
        file.verify(tmp_path / "moved.safetensors")
    far = bytearray(content)
    far[-1] = 0xFF
    (tmp_path / "far.safetensors").write_bytes(far)
    for read in (regions.load, file._read, lambda path: list(file.entries(path)), file.verify):
        with pytest.raises(ValueError, match="does not match its checksum; the file was damaged or changed"):
            read(tmp_path / "far.safetensors")


def test_a_header_that_lies_is_refused(path: Path) -> None:
    def vast(own: dict) -> None:
        for layer in (0, 1):
            own["matrices"][f"model.layers.{layer}.mlp.up_proj.weight"]["shape"] = [1 << 40, 1 << 40]

    def forge(words: str, change: object) -> None:
        with pytest.raises(ValueError, match=words):
            file.verify(rewrite(path, change))

    forge("region format 3, this version reads 2", lambda own: own.update(format=3))
    forge("entries, the header says 9", lambda own: own["matrices"][NAME].update(count=9))
    forge("is in the file only", lambda own: own["matrices"].pop(NAME))
    forge("is in the header only", lambda own: own["matrices"].update(x={"shape": [1], "count": 0, "coding": "uint8"}))
    forge("field that this version does not know", lambda own: own["provenance"].update(colour="red"))
    forge("stored as uint32, the header says uint8", lambda own: own["matrices"][NAME].update(coding="uint8"))
    forge("does not hold one matrix of one shape", lambda own: own["matrices"][NAME].update(shape=[16, 24]))
    forge("do not match the digest", lambda own: own.update(digest="0" * 64))
    forge("region format True, this version reads 2", lambda own: own.update(format=True))
    for name, value in {"model": 7, "languages": [["vi"]], "samples": ["64"], "axes": [["a"]], "seed": True}.items():
        said = f"the provenance says {name} is .*, which cannot be"
        forge(said, lambda own, name=name, value=value: own["provenance"].update({name: value}))
    forge("says languages is 'vi', which cannot be", lambda own: own["provenance"].update(languages="vi"))
    counts = {"entries": 1, "selected": "1", "matrices": 1}
    forge("the selection says selected is '1', which", lambda own: own["provenance"].update(selection=counts))
    forge("NoneType", lambda own: own["provenance"].update(parents=None))
    forge("says what cannot be of", lambda own: own["matrices"][NAME].update(shape=[24.0, 16]))
    forge("says what cannot be of", lambda own: own["matrices"][NAME].update(shape=[-24, -16]))
    forge("another form than a region file", lambda own: own.update(matrices=7))
    forge("another form than a region file", lambda own: own["matrices"].update({NAME: []}))
    forge("take .* GB, but there are .* GB", vast)


def test_any_flipped_bit_is_found(path: Path, tmp_path: Path) -> None:
    content, own = path.read_bytes(), build()
    random, bad, refused = np.random.default_rng(0), tmp_path / "bad.safetensors", []
    for place in [*range(64), *random.integers(0, len(content), 600)]:
        changed = bytearray(content)
        changed[place] ^= 1 << int(random.integers(8))
        bad.write_bytes(changed)
        try:
            found = regions.load(bad)
        except ValueError as error:
            refused.append(str(error))
        else:
            assert found.provenance == own.provenance
            assert equals(found, own)
    assert len(refused) > 600
    assert [each for each in refused if str(bad) not in each] == []


def test_an_old_file_is_read_and_its_masks_are_checked(path: Path, tmp_path: Path) -> None:
    def old(own: dict) -> None:
        own["format"] = 1
        for each in own["matrices"].values():
            del each["crc32"]

    other = rewrite(path, old)
    assert equals(regions.load(other), build())
    content = bytearray(other.read_bytes())
    content[-4] ^= 1
    other.write_bytes(content)
    for read in (regions.load, file._read, lambda path: list(file.entries(path)), file.verify):
        with pytest.raises(ValueError, match=r"do not match the digest|holds \d+ entries"):
            read(other)


def test_nothing_half_written_stays(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, what = path.read_bytes(), build()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(stack, "read", full)
    with pytest.raises(RunError, match="no space is left"):
        regions.save(what, path)
    assert path.read_bytes() == before
    assert {each.name for each in path.parent.iterdir()} == {path.name, "ends.json", "ends.md"}  # with its card


# ---- the masks of the released code ----


def test_a_file_written_by_torch_is_read() -> None:
    # Written by torch 2.13: a boolean 3 x 5 tensor, true at the flat places 0, 6, 7, 14.
    drawn = [[1, 0, 0, 0, 0], [0, 1, 1, 0, 0], [0, 0, 0, 0, 1]]
    np.testing.assert_array_equal(released._read(GOLDEN), np.array(drawn, bool))


def test_a_folder_of_masks_round_trips(tmp_path: Path) -> None:
    what = build()
    released.save(what, tmp_path / "top0.01")
    files = sorted(each.name for each in (tmp_path / "top0.01").iterdir())
    assert files[-1] == f"{NAME}.pt"
    assert len(files) == 1 + 2 + 2
    for like in (None, what.masks):
        found = released.load(tmp_path / "top0.01", like, Provenance(model="m"))
        assert equals(found, what)
        assert (found.name, found.provenance.model) == ("top0.01", "m")
    with pytest.raises(ValueError, match="holds .pt files already"):
        released.save(what, tmp_path / "top0.01")
    with zipfile.ZipFile(tmp_path / "top0.01" / f"{NAME}.pt") as archive:
        assert archive.read("archive/version") == b"3\n"
        assert archive.testzip() is None
        entry = archive.getinfo("archive/data/0")
        name_and_extra = (tmp_path / "top0.01" / f"{NAME}.pt").read_bytes()[entry.header_offset + 26 :][:4]
        lengths = [int.from_bytes(name_and_extra[at : at + 2], "little") for at in (0, 2)]
        assert (entry.header_offset + 30 + sum(lengths)) % 64 == 0  # torch maps storages at such places


def test_a_folder_has_every_matrix_exactly_once(tmp_path: Path) -> None:
    what, folder = build(), tmp_path / "masks"
    released.save(what, folder)
    file_ = folder / f"{NAME}.pt"
    content = file_.read_bytes()
    file_.unlink()
    with pytest.raises(ValueError, match=f"lacks {NAME}.pt"):
        released.load(folder, what.masks)
    with pytest.raises(ValueError, match=f"lacks {NAME}.pt"):
        released.load(folder)
    (folder / f"module.{NAME}.pt").write_bytes(content)
    assert equals(released.load(folder, what.masks), what)
    file_.write_bytes(content)
    with pytest.raises(ValueError, match=f"{NAME} is twice"):
        released.load(folder, what.masks)
    (folder / f"module.{NAME}.pt").unlink()
    (folder / "model.norm.weight.pt").write_bytes(content)
    with pytest.raises(ValueError, match="unexpected model.norm.weight.pt"):
        released.load(folder, what.masks)
    (folder / "model.norm.weight.pt").unlink()
    released._write(file_, np.zeros((16, 24), bool))
    with pytest.raises(ValueError, match=r"has shape \(16, 24\), expected \(24, 16\)"):
        released.load(folder, what.masks)
    with pytest.raises(FileNotFoundError, match="no folder"):
        released.load(tmp_path / "none")


class Bomb:
    """Runs a command when it is unpickled by a trusting reader."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("a stranger's code ran",)


def test_only_a_boolean_tensor_is_unpickled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "bad.pt"

    def refuse(words: str, content: bytes, data: bytes = b"\1") -> None:
        with zipfile.ZipFile(place, "w") as archive:
            archive.writestr("archive/data.pkl", content)
            archive.writestr("archive/data/0", data)
        with pytest.raises(ValueError, match=words):
            released._read(place)

    refuse("holds builtins.print", pickle.dumps(Bomb(), protocol=2).replace(b"__builtin__", b"builtins"))
    refuse("holds __builtin__.print", pickle.dumps(Bomb(), protocol=2))
    refuse("holds builtins.print", pickle.dumps(Bomb(), protocol=4))
    refuse("holds the pickle instruction EMPTY_LIST", pickle.dumps([1]))
    refuse("holds a int, not a tensor", pickle.dumps(1))
    good = released._pickle((1, 3))
    refuse("1 bytes of storage do not hold a tensor of shape", good)
    refuse("neither 0 nor 1", good, b"\0\1\2")
    # A place in the memo of 2^28, for which the library's unpickler takes 2 GB.
    refuse("holds a int", pickle.PROTO + b"\2" + pickle.BININT1 + b"\1" + pickle.LONG_BINPUT + b"\0\0\0\x10" + b".")
    refuse("holds torch.FloatStorage", good.replace(b"BoolStorage", b"FloatStorage"), b"\0\0\0")
    refuse("is not a mask", good[:20], b"\0\0\0")
    with zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", good + bytes(10_000_000))
    with pytest.raises(ValueError, match=r"bad.pt is not a mask .*'archive/data.pkl' is compressed"):
        released._read(place)
    place.write_bytes(b"not a zip file")
    with pytest.raises(ValueError, match="before version 1.6"):
        released._read(place)
    assert capsys.readouterr().out == ""


# ---- the command line ----


def run(*words: str) -> str:
    stream = io.StringIO()
    assert command.main(words, Console(width=200, file=stream)) == 0
    return stream.getvalue()


def test_commands_on_files(path: Path, tmp_path: Path) -> None:
    shown = run("show", str(path))
    header = file.header(path)
    assert f"{header.count:,} of {header.size:,} in 5 matrices" in shown
    assert "axis embed: Gini" in shown
    assert "input_layernorm" in shown
    other, both = tmp_path / "other.safetensors", tmp_path / "both.safetensors"
    run("combine", "complement", str(path), "--out", str(other))
    assert "0.0000" in run("diff", str(path), str(other))
    assert f"{header.size:,} entries" in run(
        "combine", "union", str(path), str(other), "--out", str(both), "--name", "all"
    )
    assert file.header(both).provenance.name == "all"
    assert "content, model as recorded" in run("verify", str(path), "--model", "a" * 32)
    with pytest.raises(ValueError, match="another model"):
        run("verify", str(path), "--model", "b" * 32)
    run("export", str(path), str(tmp_path / "masks"))
    run("import", str(tmp_path / "masks"), str(other), "--model", "m", "--name", "again")
    assert equals(regions.load(other), regions.load(path))
    assert file.header(other).provenance.name == "again"
    assert file.header(other).digest == header.digest
    with pytest.raises(ValueError, match="a complement is of one region"):
        run("combine", "complement", str(path), str(path), "--out", str(other))
    with pytest.raises(SystemExit):
        run("combine", "sum", str(path), "--out", str(other))


def test_verify_hashes_a_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="random model: give the key"):
        command._verify(tmp_path / "x", Console(), model="preset:tiny")
