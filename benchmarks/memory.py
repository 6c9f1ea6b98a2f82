"""Compare the memory of a training step of LLaMA-2-7B on a TPU slice with a plain implementation's; no TPU is needed.

Both are compiled ahead of time by the real XLA:TPU compiler for the same slice, mesh and batch: AdamW with clipping and
frozen entries, bfloat16 products, layers recomputed in the backward pass. The plain one is what a script does: the
compiler's own attention, the logits of all tokens at once, gradients in the dtype of the parameters, a mask of one byte
an entry, and weights cast with `astype`, which the compiler does for all layers at once. Prints one JSON line: GiB a
chip of both, and the ratio of the peaks.

    python benchmarks/memory.py [--topology v5e-16] [--model llama2-7b] [--batch 16] [--length 512]

Needs libtpu (`pip install 'lingregions[tpu]'`). A minute or two.
"""

import argparse
import dataclasses
import json
import os
from typing import Any
from unittest import mock

from lingregions.plan import compiled

os.environ.update(compiled._ENVIRONMENT)  # before JAX looks for devices

import jax
import jax.numpy as jnp
import optax

from lingregions import loss, models
from lingregions import mesh as meshes
from lingregions import tree as trees
from lingregions.corpus.batch import Batch
from lingregions.models import llama, roles
from lingregions.plan import hardware

GIB = 2**30
COMPUTE = models.Compute(dtype="bfloat16", remat="full")


def plain(config: Any, mesh: jax.sharding.Mesh, batch: int, length: int) -> Any:
    """Lower the step of a script, on the shards that ours lies on."""
    compute = dataclasses.replace(COMPUTE, attention="reference")
    places = meshes.shardings(models.declare(config), mesh)
    params = models.shapes(config, places)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-5))
    like: Any = jax.ShapeDtypeStruct((batch, length), jnp.int32, sharding=meshes.batched(mesh))
    masks = trees.transform(
        lambda _, leaf: jax.ShapeDtypeStruct(leaf.shape, bool, sharding=leaf.sharding),
        roles.restrict(params, compiled.SCOPE),
    )

    def objective(params: trees.Tree, batch: Batch) -> jax.Array:
        hidden, _ = models.hidden(config, compute, params, batch.tokens, batch.segments)
        logits = jnp.einsum("btd,vd->btv", hidden, models.head(config, params).astype(hidden.dtype))
        following, counts = loss.targets(batch)
        each = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), following)
        return jnp.sum(jnp.where(counts, each, jnp.float32(0))) / jnp.sum(counts).astype(jnp.float32)

    def step(params: trees.Tree, state: Any, masks: trees.Tree, batch: Batch) -> Any:
        gradient = jax.grad(objective)(params, batch)
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizer.update(gradient, state, params)
        frozen = trees.flatten(masks)
        updates = trees.transform(
            lambda path, each: jnp.where(frozen[path], jnp.zeros_like(each), each) if path in frozen else each, updates
        )
        return optax.apply_updates(params, updates), state

    with jax.numpy_dtype_promotion("standard"):
        state = jax.eval_shape(optimizer.init, params)
    known = trees.flatten(places)

    def place(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        name = ".".join(each.key for each in path if isinstance(each, jax.tree_util.DictKey))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=known.get(name, meshes.replicated(mesh)))

    state = jax.tree_util.tree_map_with_path(place, state)
    cast = mock.patch.object(llama, "narrow", lambda values, dtype: values.astype(dtype))
    with meshes.use(mesh), cast:
        outs = (places, jax.tree.map(lambda each: each.sharding, state))
        return jax.jit(step, donate_argnums=(0, 1), out_shardings=outs).lower(
            params, state, masks, Batch(like, like, like)
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--topology", default="v5e-16")
    parser.add_argument("--model", default="llama2-7b")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=512)
    flags = parser.parse_args()
    if not compiled.installed():
        raise SystemExit(compiled.ADVICE)
    config, topology = models.PRESETS[flags.model], hardware.parse(flags.topology)
    shape = (topology.slices, topology.devices // topology.slices, 1)
    step = compiled.Step("train", config, COMPUTE, shape, flags.batch, flags.length, flags.batch, flags.topology)
    mine = compiled._examine(step)

    from jax.experimental import topologies

    name, keywords = topology.description()
    devices = topologies.get_topology_desc(platform="tpu", topology_name=name, **keywords).devices
    stats = plain(config, meshes.build(*shape, devices=devices), flags.batch, flags.length).compile().memory_analysis()
    theirs = (stats.argument_size_in_bytes, stats.temp_size_in_bytes, stats.peak_memory_in_bytes)
    names = ("arguments", "temporaries", "peak")
    report = {
        "topology": flags.topology,
        "batch": flags.batch,
        "length": flags.length,
        "ours_gib": {key: round(getattr(mine, key) / GIB, 2) for key in names},
        "plain_gib": {key: round(each / GIB, 2) for key, each in zip(names, theirs, strict=True)},
        "peak_over_plain": round(mine.peak / theirs[2], 3),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
