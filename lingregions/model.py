"""Model: a language model on its mesh, with its tokenizer - what scores, regions and interventions are made of.

`load` takes any source (`models.source`) and costs one reading of the weights, straight onto their shards, and one
more for the fingerprint that every artefact carries.
"""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from lingregions import mesh as meshes
from lingregions import models
from lingregions import tree as trees
from lingregions.corpus.batch import Batch
from lingregions.models import source as sources
from lingregions.models.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A model that is ready to run.

    Attributes:
      source: the name that it was loaded by.
      config: sizes and maths of the architecture.
      params: float32 parameters on the mesh; changed only while an intervention lasts.
      mesh: device mesh.
      tokenizer: of the model.
      compute: how it is run.
    """

    source: str
    config: Any
    params: trees.Tree
    mesh: Mesh
    tokenizer: Tokenizer
    compute: models.Compute

    @functools.cached_property
    def fingerprint(self) -> str:
        """The model hash of every artefact: of parameters and config, whatever the mesh and the path."""
        return trees.fingerprint(self.params, json.dumps(models.dump(self.config), sort_keys=True))

    @functools.cached_property
    def shapes(self) -> trees.Tree:
        """Shapes and shards of the parameters, without their values."""
        return models.shapes(self.config, meshes.shardings(models.declare(self.config), self.mesh))

    def place(self, batch: Batch) -> Batch:
        """Put a host batch on the mesh."""
        placed: Batch = meshes.place(batch, self.mesh)
        return placed


def load(
    source: str,
    mesh: Mesh | None = None,
    compute: models.Compute | None = None,
    seed: int = 0,
    cache: str | Path | None = None,
) -> Model:
    """Load a model onto a mesh.

    Args:
      source: a folder, a hub id, package:NAME, preset:NAME (see `models.source`).
      mesh: device mesh; by default all devices, parameters split over them (fsdp).
      compute: how it is run; float32 by default.
      seed: of the values of a preset, which are random.
      cache: folder for downloads; default $LINGREGIONS_CACHE or ~/.cache/lingregions.

    Raises:
      FileNotFoundError, ConnectionError, ValueError: as `models.source.resolve` and `Source.load` do.
    """
    mesh = meshes.build(fsdp=-1) if mesh is None else mesh
    found = sources.resolve(source, cache)
    params = found.load(mesh, jax.random.key(seed))
    return Model(source, found.config, params, mesh, found.tokenizer, compute or models.Compute())
