"""Cards of region files, and the hub: a fake that keeps what it is given, and answers with it."""

import io
import json
import re
import shutil
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from rich.console import Console

from lingregions import regions
from lingregions.regions import Provenance, Region, command, publish


class Hub:
    """What `huggingface_hub` does, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.calls = folder, []

    def create_repo(self, repository: str, exist_ok: bool, private: bool) -> None:
        self.calls.append((repository, private))
        (self.folder / repository).mkdir(parents=True, exist_ok=exist_ok)

    def file_exists(self, repository: str, name: str) -> bool:
        return (self.folder / repository / name).exists()

    def upload_file(self, path_or_fileobj: str, path_in_repo: str, repo_id: str) -> None:
        shutil.copyfile(path_or_fileobj, self.folder / repo_id / path_in_repo)

    def download(self, repository: str, name: str, revision: str | None) -> str:
        self.calls.append((repository, name, revision))
        path = self.folder / repository / name
        if not path.exists():
            raise huggingface_hub.errors.EntryNotFoundError(name)
        return str(path)


@pytest.fixture
def path(tmp_path) -> Path:
    """A region of two layers: of each norm 1 of 4, of each matrix 3 of 8."""
    norms, matrices = np.zeros((2, 4), bool), np.zeros((2, 4, 2), bool)
    norms[:, 1] = True
    matrices[:, :3, 0] = True
    tree = {"layers": {"input_layernorm": norms, "mlp": {"up_proj": matrices}}}
    known = Provenance(name="core top 30%", languages=("ar", "sw"), seed=3, model="a" * 32, versions=(("jax", "1"),))
    place = tmp_path / "core.safetensors"
    regions.save(Region(tree, known), place)
    return place


@pytest.fixture
def hub(tmp_path, monkeypatch):
    made = Hub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: made)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", made.download)
    return made


def test_every_saved_region_has_a_card(path):
    said = json.loads(path.with_suffix(".json").read_text())
    assert (said["entries"], said["scope_entries"], said["matrices"]) == (8, 24, 4)
    assert said["density_by_part"] == {"input_layernorm": 0.25, "mlp.up_proj": 0.375}
    assert said["density_by_layer"] == [4 / 12, 4 / 12]
    assert next(iter(said["fullest_matrices"].items())) == ("model.layers.0.mlp.up_proj.weight", 0.375)
    assert (said["languages"], said["seed"], said["model"]) == (["ar", "sw"], 3, "a" * 32)
    text = path.with_suffix(".md").read_text()
    assert text.startswith("---\nlibrary_name: lingregions\n")
    assert "# core top 30%\n" in text
    assert "| entries | 8 of 24 (33.3 %), in 4 matrices |" in text
    assert "| languages | ar, sw |" in text
    assert "| versions | jax 1 |" in text
    assert re.search(r"^\| `model.layers.0.mlp.up_proj.weight` \| 37.5 \|$", text, re.MULTILINE)


def test_whoever_names_a_region_orders_neither_terminal_nor_page(path, tmp_path):
    found, evil = Region.load(path), tmp_path / "evil.safetensors"
    name, definition = "ev\x1b[2Jil [red]x[/red]", "a`|b` <script>alert(1)</script>\n\n# head"
    known = found.provenance.replace(name=name, definition=definition, tokenizer="`t` | <b>")
    regions.save(Region(found.masks, known), evil)
    text = evil.with_suffix(".md").read_text()
    assert not any(part in text for part in ("\x1b", "<script>", "\n# head"))
    assert "# ev\\\\x1b\\[2Jil \\[red\\]x\\[/red\\]\n" in text
    assert "a\\`\\|b\\` &lt;script&gt;alert(1)&lt;/script&gt; # head\n" in text
    assert "| tokenizer | `'t' / <b>` |" in text
    out = io.StringIO()
    command.main(["show", str(evil)], Console(file=out, width=200))
    assert "\x1b" not in out.getvalue()
    assert "ev\\x1b[2Jil [red]x[/red]" in out.getvalue()


def test_pushed_and_pulled_it_is_the_same(path, hub, tmp_path):
    address = publish.push(path, "org/regions", private=True)
    assert address == "hf://org/regions/core.safetensors"
    assert hub.calls == [("org/regions", True)]
    there = sorted(each.name for each in (hub.folder / "org" / "regions").iterdir())
    assert there == ["README.md", "core.json", "core.md", "core.safetensors"]
    found = publish.pull(address, tmp_path / "elsewhere" / "mine.safetensors")
    assert found.read_bytes() == path.read_bytes()
    assert json.loads(found.with_suffix(".json").read_text())["file"] == "mine.safetensors"
    assert Region.load(address) == Region.load(path)
    assert hub.calls[-1] == ("org/regions", "core.safetensors", None)
    publish.locate("hf://org/regions@v1/core.safetensors")
    assert hub.calls[-1] == ("org/regions", "core.safetensors", "v1")


def test_a_readme_that_is_there_is_kept(path, hub):
    publish.push(path, "org/regions")
    readme = hub.folder / "org" / "regions" / "README.md"
    readme.write_text("mine")
    publish.push(path, "org/regions")
    assert readme.read_text() == "mine"


def test_the_verbs_of_the_command_line(path, hub, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path.with_suffix(".md").unlink()
    assert command.main(["card", str(path)], Console(width=200)) == 0
    assert path.with_suffix(".md").is_file()
    assert command.main(["push", str(path), "org/regions"], Console(width=200)) == 0
    assert (
        command.main(["pull", "hf://org/regions/core.safetensors", "--out=mine.safetensors"], Console(width=200)) == 0
    )
    assert "8 entries in 4 matrices" in capsys.readouterr().out
    assert (tmp_path / "mine.safetensors").is_file()


def test_nothing_damaged_is_pushed_or_kept(path, hub, tmp_path):
    publish.push(path, "org/regions")
    stored = hub.folder / "org" / "regions" / "core.safetensors"
    stored.write_bytes(stored.read_bytes()[:-1] + b"\xff")
    with pytest.raises(ValueError, match="core.safetensors"):
        publish.pull("hf://org/regions/core.safetensors", tmp_path / "mine.safetensors")
    assert not (tmp_path / "mine.safetensors").exists()
    path.write_bytes(stored.read_bytes())
    with pytest.raises(ValueError, match="core.safetensors"):
        publish.push(path, "org/regions")


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda path: publish.locate("hf://org/core.safetensors"), ValueError, "write hf://org/name/core.safetensors"),
        (lambda path: publish.push(path, "name"), ValueError, "write org/name"),
        (lambda path: publish.locate("hf://org/none/core.safetensors"), ConnectionError, "EntryNotFoundError"),
    ],
)
def test_what_is_wrong_is_told_in_a_sentence(path, hub, call, error, said):
    with pytest.raises(error, match=said):
        call(path)


def test_a_hub_that_is_down_is_told(path, hub, monkeypatch):
    def refuse(*words, **named):
        raise OSError("no route to host")

    monkeypatch.setattr(hub, "create_repo", refuse)
    with pytest.raises(ConnectionError, match="core.safetensors could not be pushed to org/regions"):
        publish.push(path, "org/regions")
