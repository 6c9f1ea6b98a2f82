"""Publish: the card of a region file (JSON and Markdown beside it), and region files on the Hugging Face hub.

A card says what the file's header says, for people and for programs that do not read safetensors; it is made from the
header alone. An address on the hub is `hf://org/name/core.safetensors`, with a revision `hf://org/name@v1/...`. What is
pushed is checked first, and what is pulled afterwards. Nothing here runs unless it is asked for.
"""

import collections
import functools
import html
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from lingregions.display import inert
from lingregions.regions import file
from lingregions.run import replacing

_SCHEME = "hf://"
_SCHEMA = 1
_LEADING = 5  # of the fullest matrices that a card names
_ADDRESS = re.compile(r"hf://([\w.-]+/[\w.-]+?)(?:@([\w.-]+))?/(.+\.safetensors)")


class _Address(NamedTuple):
    """Where a region file lies on the hub."""

    repository: str
    revision: str | None
    path: str


def _card(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return what the card of a region file says, as plain values."""
    header = file.header(path)
    own = header.provenance.describe()
    parts: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0])
    for name, matrix in header.matrices.items():
        for key in (_part(name), _layer(name)):
            parts[key][0] += matrix.count
            parts[key][1] += matrix.size
    fullest = sorted(
        header.matrices, key=lambda name: (-header.matrices[name].count / header.matrices[name].size, name)
    )
    density = {key: count / size for key, (count, size) in parts.items()}
    return {
        "schema": _SCHEMA,
        "file": Path(path).name,
        "digest": header.digest,
        "entries": header.count,
        "scope_entries": header.size,
        "matrices": len(header.matrices),
        **{key: value for key, value in own.items() if key not in ("axes", "parents") and value not in (None, "", ())},
        "parents": [parent.name for parent in header.provenance.parents],
        "density_by_part": {key: value for key, value in density.items() if not key.startswith("layer ")},
        "density_by_layer": [value for key, value in density.items() if key.startswith("layer ")],
        "fullest_matrices": {
            name: header.matrices[name].count / header.matrices[name].size for name in fullest[:_LEADING]
        },
    }


def _part(name: str) -> str:
    return re.sub(r"^model\.layers\.\d+\.|\.weight$", "", name)


def _layer(name: str) -> str:
    found = re.match(r"model\.layers\.(\d+)\.", name)
    return f"layer {found[1]}" if found else "outside the layers"


def write_card(path: str | os.PathLike[str]) -> tuple[Path, Path]:
    """Write the card of a region file beside it; returns the JSON and the Markdown file.

    Raises:
      ValueError: the file is damaged.
      RunError: the folder cannot be written.
    """
    said = _card(path)
    json_path, text_path = (Path(path).with_suffix(suffix) for suffix in (".json", ".md"))
    with replacing(json_path) as partial:
        partial.write_text(json.dumps(said, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    with replacing(text_path) as partial:
        partial.write_text(_render(said), encoding="utf-8")
    return json_path, text_path


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=False,  # Markdown
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"words": _words, "code": _code}
    return environment.get_template("card.j2")


def _render(said: dict[str, Any]) -> str:
    """Return a card as Markdown, with the front matter of the hub."""
    return _template().render(card=said)


def _words(value: Any) -> str:
    """Return a value of a header as words of Markdown, whatever is in it: no markup, no cell border, no second line."""
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", html.escape(_line(value), quote=False))


def _code(value: Any) -> str:
    """Return a value of a header as it may stand between backticks in a table."""
    return _line(value).replace("`", "'").replace("|", "/")


def _line(value: Any) -> str:
    return inert(" ".join(str(value).split()))


# --- the hub ----------------------------------------------------------------------------------------------------------


def parse(address: str) -> _Address:
    """Return the parts of hf://org/name/path.safetensors.

    Raises:
      ValueError: it is no such address.
    """
    found = _ADDRESS.fullmatch(address)
    if found is None:
        raise ValueError(f"{address!r} is no region on the hub: write hf://org/name/core.safetensors")
    return _Address(found[1], found[2], found[3])


def push(path: str | os.PathLike[str], repository: str, private: bool = False, api: Any = None) -> str:
    """Put a region file and its card into a repository of the hub, made if it is not there; returns the address.

    Args:
      path: the region file; checked first.
      repository: org/name.
      private: whether a repository that is made is private.
      api: a `huggingface_hub.HfApi`; by default that of the user's login.

    Raises:
      ValueError: the file is damaged, or the repository's name is none.
      ConnectionError: the hub cannot be reached, or refuses.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise ValueError(f"{repository!r} is no repository of the hub: write org/name")
    file.verify(path)
    source = Path(path)
    files = [source, *write_card(source)]
    if api is None:
        from huggingface_hub import HfApi  # half a second, for this verb alone

        api = HfApi()
    try:
        api.create_repo(repository, exist_ok=True, private=private)
        for each in files:
            api.upload_file(path_or_fileobj=str(each), path_in_repo=each.name, repo_id=repository)
        if not api.file_exists(repository, "README.md"):
            api.upload_file(path_or_fileobj=str(files[-1]), path_in_repo="README.md", repo_id=repository)
    except Exception as error:  # the hub's client raises its own, httpx's and the system's
        raise ConnectionError(
            f"{source.name} could not be pushed to {repository} ({type(error).__name__}); go online, and log in with "
            "`hf auth login`, with a token that may write there"
        ) from error
    return f"{_SCHEME}{repository}/{source.name}"


def locate(path: str | os.PathLike[str]) -> Path:
    """Return the local file of a region: of an address on the hub, fetched into the hub's cache; else the path itself.

    Raises:
      ValueError: it is no address.
      ConnectionError: it is not in the cache, and the hub cannot be reached or has no such file.
    """
    if not str(path).startswith(_SCHEME):
        return Path(path)
    address = parse(str(path))
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(address.repository, address.path, revision=address.revision))
    except Exception as error:
        raise ConnectionError(
            f"{path} cannot be fetched ({type(error).__name__}); is the name right? Otherwise go online, or copy the "
            "file here and give its path"
        ) from error


def pull(address: str, out: str | os.PathLike[str]) -> Path:
    """Copy a region file of the hub to a path, checked, with its card beside it.

    Raises:
      ValueError: it is no address, or the file is damaged.
      ConnectionError: see `locate`.
    """
    found, target = locate(parse(address) and address), Path(out)
    file.verify(found)
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as partial:
        shutil.copyfile(found, partial)
    write_card(target)
    return target
