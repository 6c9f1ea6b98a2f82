"""`lingregions regions VERB`: look at region files, make new ones, check and publish them.

They print to the console they are given; `combine`, `export` and `import` write one file or folder.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
from rich.console import Console
from rich.table import Table

from lingregions import mesh as meshes
from lingregions import models, verbs
from lingregions import tree as trees
from lingregions.display import plain
from lingregions.models import source as sources
from lingregions.regions import algebra, file, geometry, publish, region, released, reliability
from lingregions.regions.region import Provenance, Region

_OPERATIONS: dict[str, Callable[..., Region]] = {
    "union": algebra.union,
    "intersect": algebra.intersect,
    "subtract": algebra.subtract,
    "complement": algebra.complement,
}


def _show(path: Path, console: Console, *, axis: str = "embed", leading: int = 8) -> None:
    """Print what a region file says of itself, its density in every matrix, and the indices that carry it."""
    header = file.header(path)
    what = file.load(path)
    _facts(path, header, console)
    density, leaves = geometry.density(what), what.leaves()
    stacks = [place for place in density if region.stacked(place)]
    table = Table(title="density, percent of each matrix")
    table.add_column("layer", justify="right")
    for place in stacks:
        table.add_column(place.split(".")[-1], justify="right")
    for layer in range(max((len(density[place]) for place in stacks), default=0)):
        table.add_row(str(layer), *(_percent(density[place][layer]) for place in stacks))
    if stacks:
        console.print(table)
    for place in density.keys() - set(stacks):
        console.print(f"{place} {list(leaves[place].shape)}: {_percent(density[place][0])} percent")
    if any(axis in axes for _, axes in header.provenance.axes):
        found = geometry.profile(what, axis)
        best = ", ".join(f"{index} ({count:,})" for index, count in found.leading(leading))
        console.print(
            f"axis {axis}: Gini {found.gini:.3f}; the fullest 1 percent of its indices hold {100 * found.fullest:.1f} "
            f"percent of the region; most at {best or 'none'}"
        )


def _facts(path: Path, header: file.Header, console: Console) -> None:
    own = header.provenance
    table = Table(title=plain(str(path)), show_header=False)
    rows = {
        "name": own.name,
        "definition": own.definition,
        "entries": f"{header.count:,} of {header.size:,} in {len(header.matrices):,} matrices",
        "selection": "" if own.selection is None else str(own.selection),
        "score": own.score,
        "languages": ", ".join(own.languages),
        "scored in": own.score_scope,
        "selected in": own.select_scope,
        "seed": "" if own.seed is None else str(own.seed),
        "model hash": own.model,
        "tokenizer hash": own.tokenizer,
        "data": own.data,
        "made with": ", ".join(f"{name} {version}" for name, version in own.versions),
        "parents": ", ".join(parent.name for parent in own.parents),
        "digest": header.digest,
    }
    for label, value in rows.items():
        if value:
            table.add_row(label, plain(value))
    console.print(table)


def _percent(part: float) -> str:
    return f"{100 * part:.3g}"


def _diff(first: Path, second: Path, console: Console) -> None:
    """Print what two region files share, overall, per kind of matrix and per layer, and where their headers differ.

    Raises:
      ValueError: the regions are not parallel, or of different models.
    """
    regions = [file.load(path) for path in (first, second)]
    algebra.combine("difference", [each.provenance for each in regions])  # of one model, or an error
    overlap = geometry.overlap(regions)
    table = Table(title=f"{plain(first.name)} against {plain(second.name)}")
    table.add_column("where")
    for label in ("first", "second", "both", "IoU", "first in second", "second in first"):
        table.add_column(label, justify="right")

    def add(where: str, path: str | None, layer: int | None) -> None:
        shared, iou = overlap.table(path, layer), overlap.iou(path, layer)
        inside = overlap.containment(path, layer)
        counts = (f"{int(each):,}" for each in (shared[0, 0], shared[1, 1], shared[0, 1]))
        table.add_row(where, *counts, *(f"{each:.4f}" for each in (iou[0, 1], inside[0, 1], inside[1, 0])))

    add("everything", None, None)
    for place in overlap.shared:
        add(place, place, None)
    for layer in range(overlap.layers):
        add(f"layer {layer}", None, layer)
    console.print(table)
    fraction = math.sqrt(math.prod(geometry.total(each) / trees.count(each.masks) for each in regions))
    if 0 < fraction < 1:
        beyond = reliability.kappa(float(overlap.iou()[0, 1]), fraction)
        console.print(f"agreement beyond chance (kappa, for regions of one size): {beyond:.4f}")
    ours, theirs = (each.provenance.describe() for each in regions)
    for field in ours:
        if ours[field] != theirs[field] and field not in ("selection", "parents"):
            console.print(f"{field}: {plain(str(ours[field]))} | {plain(str(theirs[field]))}")


def _combine(operation: str, paths: Sequence[Path], out: Path, console: Console, *, name: str = "") -> None:
    """Write the union, intersection, difference or complement of region files.

    Raises:
      ValueError: an unknown operation, or regions that are not parallel or of different models.
    """
    if operation not in _OPERATIONS:
        raise ValueError(f"there is no operation {operation!r}; there are {', '.join(_OPERATIONS)}")
    if operation == "complement" and len(paths) != 1:
        raise ValueError(f"a complement is of one region, not of {len(paths)}")
    result = _OPERATIONS[operation](*(file.load(path) for path in paths), name=name)
    file.save(result, out)
    console.print(f"{plain(str(out))}: {geometry.total(result):,} entries, {out.stat().st_size:,} bytes")


def _verify(path: Path, console: Console, *, model: str = "", tokenizer: str = "") -> None:
    """Read every mask of a file and check its digest; with a model, also that it is a region of that model.

    Args:
      path: the region file.
      console: where to print.
      model: a model hash, or a model source (folder, hub id, `package:`, `preset:`), which is loaded and hashed.
      tokenizer: fingerprint of a tokenizer; that of the model source when there is one.

    Raises:
      ValueError: says what does not hold.
    """
    params, wanted = None, model
    if model and not _is_hash(model):
        source = sources.resolve(model)
        params = source.load(meshes.build(devices=jax.devices()[:1]))
        wanted = _identity(params, source.config)
        tokenizer = tokenizer or source.tokenizer.fingerprint
    header = file.verify(path, params, wanted or None, tokenizer or None)
    checked = ["content"] + ["model"] * bool(wanted) + ["tokenizer"] * bool(tokenizer)
    console.print(
        f"{plain(str(path))}: {header.count:,} entries in {len(header.matrices):,} matrices; "
        f"{', '.join(checked)} as recorded"
    )


def _identity(params: trees.Tree, config: object) -> str:
    """Return the model hash of parameters and their config, as runs record it."""
    return trees.fingerprint(params, json.dumps(models.dump(config), sort_keys=True))


def _is_hash(text: str) -> bool:
    return len(text) >= 16 and all(letter in "0123456789abcdef" for letter in text)


def _export(path: Path, folder: Path, console: Console) -> None:
    """Write a region file as a folder of boolean `.pt` files, as the paper's released code reads it."""
    what = file.load(path)
    released.save(what, folder)
    console.print(
        f"{plain(str(folder))}: {len(list(folder.glob('*.pt'))):,} files, {trees.count(what.masks):,} entries"
    )


def _import(folder: Path, out: Path, console: Console, *, provenance: Provenance) -> None:
    """Write the region file of a folder of boolean `.pt` files, as the paper's released code writes it."""
    what = released.load(folder, None, provenance)
    file.save(what, out)
    console.print(f"{plain(str(out))}: {geometry.total(what):,} entries, {out.stat().st_size:,} bytes")


def _card(path: Path, console: Console) -> None:
    """Write the card of a region file beside it, as JSON and Markdown."""
    for written in publish.write_card(path):
        console.print(plain(str(written)))


def _push(path: Path, repository: str, console: Console, *, private: bool = False) -> None:
    """Put a region file and its card into a repository of the Hugging Face hub."""
    console.print(plain(publish.push(path, repository, private)))


def _pull(address: str, console: Console, *, out: Path | None = None) -> None:
    """Copy a region file from the Hugging Face hub, and check it."""
    target = publish.pull(address, out or Path(publish.parse(address).path).name)
    header = file.header(target)
    console.print(f"{plain(str(target))}: {header.count:,} entries in {len(header.matrices):,} matrices, as recorded")


def main(words: Sequence[str], console: Console | None = None) -> int:
    """Look at region files, make, check or publish them; returns the exit code."""
    flags = vars(verbs.regions().parse_args(list(words)))
    verb = flags.pop("verb")
    if verb == "import":
        known = {field.name for field in dataclasses.fields(Provenance)} & flags.keys()
        flags["provenance"] = Provenance(**{field: flags.pop(field) for field in known})
    functions: dict[str, Callable[..., None]] = {
        "show": _show,
        "diff": _diff,
        "combine": _combine,
        "verify": _verify,
        "export": _export,
        "import": _import,
        "card": _card,
        "push": _push,
        "pull": _pull,
    }
    functions[verb](**flags, console=console or Console())
    return 0
