"""`lingregions models VERB`: which models there are, what removal means in one, whether it computes what it should.

`list` and `show` read no weight. `verify` costs one forward pass here and one in transformers, `convert` one reading
and one writing of the weights.
"""

import contextlib
import importlib.util
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lingregions import loss, models, regions, verbs
from lingregions import mesh as meshes
from lingregions import tree as trees
from lingregions.corpus.batch import Batch
from lingregions.model import Model, load
from lingregions.models import convert as converter
from lingregions.models import huggingface, roles
from lingregions.models import source as sources
from lingregions.run import files

# Two float32 programs that sum in another order: of the largest logit, and in nats per token. tests/test_torch.py holds
# SmolLM2 to less; a wrong rotary base or norm is off by far more.
_LOGITS, _NLL = 1e-3, 1e-4


def _list(console: Console) -> None:
    """Print the families, their presets with the number of parameters, and the packages that hold weights."""
    table = Table(title="families, by the model_type of config.json")
    for column in ("model_type", "family", "preset"):
        table.add_column(column)
    table.add_column("parameters", justify="right")
    for kind, family in models.ARCHITECTURES.items():
        title = (sys.modules[family.parse.__module__].__doc__ or "").partition(":")[0]
        presets = {name: config for name, config in models.PRESETS.items() if config.family == kind}
        sizes = [(f"preset:{name}", f"{trees.count(models.declare(config)):,}") for name, config in presets.items()]
        for place, (name, size) in enumerate(sizes or [("", "")]):
            table.add_row(*((kind, title) if place == 0 else ("", "")), name, size)
    console.print(table)
    console.print("package:lingregions: Apache-2.0, in this package", soft_wrap=True)
    for name, package in sources.PACKAGES.items():
        console.print(f"package:{name} {package.version}: {escape(package.licence)}", soft_wrap=True)


def _show(model: str, console: Console) -> None:
    """Print the parameters of a model by role, and what the removal of each means.

    Raises:
      FileNotFoundError, ConnectionError, ValueError: as `models.source.resolve` does.
    """
    config = sources.resolve(model).config
    declared = trees.flatten(models.declare(config))
    table = Table(title=f"{escape(model)}: {config.family}, {config.layers} layers")
    table.add_column("role")
    table.add_column("shape")
    table.add_column("parameters", justify="right")
    table.add_column("removal sets it to")
    for path in roles.ordered(declared):
        parameter = declared[path]
        shape = "x".join(map(str, parameter.shape))
        table.add_row(parameter.role, shape, f"{trees.count({'': parameter}):,}", _removal(parameter, config))
    table.add_section()
    table.add_row("all", "", f"{trees.count(declared):,}", "")
    console.print(table)
    if roles.ROLES["head"].path not in declared:
        console.print("The head is the embedding: there is one matrix, and removal in it changes both ends.")
    if cap := models.logit_softcap(config):
        console.print(f"Logits x are capped: c tanh(x / c) with c = {cap:g}.")


def _removal(parameter: models.Parameter, config: models.Config) -> str:
    """Return the value that removal sets a parameter to, and what else it means."""
    role, sharing = roles.ROLES[parameter.role], config.heads // config.kv_heads
    notes = [f"{-parameter.offset:g}: the gain is 1 + w" if parameter.offset else "0"]
    if role.kind == "bias":
        notes.append(f"in the scope of {role.name.removesuffix('_bias')}")
    elif "kv_heads" in parameter.axes and sharing > 1:
        notes.append(f"a head counts once for its {sharing} of queries")
    if parameter.fused:
        notes.append(f"in {parameter.fused[0].rpartition('.')[2]} of files")
    if not role.stacked:
        notes.append("outside the scope decoder")
    return "; ".join(notes)


def _verify(model: str, console: Console, *, language: str = "en", length: int = 256) -> None:
    """Compare logits and NLL with those of transformers, in float32, on one sample of the Declaration of Human Rights.

    Transformers reads the model's own folder; what comes otherwise (preset, package, GGUF) is written as one first.

    Args:
      model: source of the model.
      console: where to print.
      language: of the sample.
      length: tokens of the sample.

    Raises:
      ValueError: torch is missing, or the models differ: says by how much.
    """
    if importlib.util.find_spec("torch") is None:
        raise ValueError("verify compares with transformers, which needs torch: pip install 'lingregions[parity]'")
    found = load(model, meshes.build(devices=jax.devices()[:1]))
    corpus = found.corpus("udhr", language, length=length)
    sample = corpus.batch(np.arange(1))
    tokens = np.asarray(sample.tokens)[:, np.asarray(sample.segments)[0] > 0]
    ours, nll = _outputs(found, tokens)
    source = sources.resolve(model)
    if source.kind in ("folder", "hub"):
        theirs = huggingface.logits(source.files[0].parent, tokens)
    else:
        with tempfile.TemporaryDirectory() as folder:
            converter.export(found.params, found.config, Path(folder) / "model")
            theirs = huggingface.logits(Path(folder) / "model", tokens)
    reference = _nll(theirs, tokens[0])
    apart, largest = float(np.abs(ours - theirs).max()), float(np.abs(theirs).max())
    said = (
        f"{model}, {tokens.size} tokens: logits differ by {apart:.2g} at most (the largest is {largest:.3g}); "
        f"NLL {nll:.6f} here, {reference:.6f} in transformers, nats per token"
    )
    if not (apart <= _LOGITS * largest and abs(nll - reference) <= _NLL):
        raise ValueError(f"{said}: that is not the same model")
    console.print(escape(said), soft_wrap=True)


def _outputs(model: Model, tokens: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the logits [T, V] of one document of tokens [1, T], and its loss in nats per token."""
    batch = Batch(*map(jnp.asarray, (tokens, np.ones_like(tokens), np.ones_like(tokens))))
    config, compute = model.config, model.compute

    @jax.jit
    def run(params: trees.Tree) -> tuple[jax.Array, loss.Loss]:
        with jax.default_matmul_precision(compute.precision):
            hidden, _ = models.hidden(config, compute, params, batch.tokens, batch.segments)
            logits = jnp.einsum("btd,vd->btv", hidden, models.head(config, params))[0]
        return logits, loss.nll(config, compute, params, batch)

    logits, found = jax.device_get(run(model.params))
    cap = models.logit_softcap(config)
    return logits if cap is None else cap * np.tanh(logits / cap), float(found.nll[0] / found.tokens[0])


def _nll(logits: np.ndarray, tokens: np.ndarray) -> float:
    wide = logits[:-1].astype(np.float64)
    most = wide.max(axis=-1)
    total = most + np.log(np.exp(wide - most[:, None]).sum(axis=-1))
    return float(np.mean(total - wide[np.arange(len(wide)), tokens[1:]]))


def _convert(
    model: str, folder: Path, console: Console, *, remove: Path | None = None, dtype: str = "float32", seed: int = 0
) -> None:
    """Write a model as a Hugging Face folder with its tokenizer, with a region removed if one is given.

    Args:
      model: source of the model.
      folder: to be made, or empty.
      console: where to print.
      remove: region file; its region must be of this model.
      dtype: "float32" (bit for bit) or "bfloat16" (rounded to nearest even).
      seed: of the values of a preset.

    Raises:
      FileExistsError: the folder holds something already.
      ValueError: the region is of another model, or what `models.convert.export` refuses.
    """
    for left in files.sweep_beside(folder.expanduser()):
        sources.tell(f"{left} was left half-written by a process that is no more, and is removed")
    found = load(model, seed=seed)
    said = f"{folder}: {trees.count(found.params):,} parameters in {dtype}"
    region = None if remove is None else regions.Region.load(remove, found)
    if region is not None:
        said += f", {remove} removed from it"
    with files.explained(folder), found.applied(region.zero()) if region else contextlib.nullcontext(found) as written:
        converter.export(written.params, written.config, folder.expanduser(), written.tokenizer, dtype)
    console.print(escape(said), soft_wrap=True)


def main(words: Sequence[str], console: Console | None = None) -> int:
    """List, show, verify or convert models; returns the exit code."""
    flags = vars(verbs.models().parse_args(list(words)))
    functions: dict[str, Callable[..., None]] = {"list": _list, "show": _show, "verify": _verify, "convert": _convert}
    functions[flags.pop("verb")](**flags, console=console or Console())
    return 0
