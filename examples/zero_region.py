"""Remove a region from a transformers model: `zero(model, "core.safetensors")`. Needs torch, NumPy, safetensors alone.

A gain that the model uses as 1 + w is removed by w = -1, as the file says; everything else becomes zero.
Tied matrices are found under both names, and a model may lie on several devices. What cannot be changed in place -
offloaded (`meta`), split over processes, or quantised - raises before anything is changed.
"""

import json

import numpy
import torch
from safetensors import safe_open


def zero(model, path):
    """Remove every entry of a region file, in place; returns how many."""
    parameters = dict(model.named_parameters(remove_duplicate=False))  # a tied head has two names
    with safe_open(path, "numpy") as file:
        matrices = json.loads(file.metadata()["lingregions"])["matrices"]
        for name, matrix in matrices.items():
            held, shape = parameters.get(name), matrix["shape"]
            if held is None:
                raise KeyError(f"the model has no parameter {name}: is it the model of this region?")
            if held.device.type == "meta" or hasattr(held, "to_local") or tuple(held.shape) != tuple(shape):
                raise ValueError(f"{name} is offloaded, split or of another shape: load the model whole, then zero it")
            if not held.is_floating_point() or not held.is_contiguous():
                raise ValueError(f"{name} is quantised or no plain array: zero the model before it is quantised")
        count = 0
        for name, matrix in matrices.items():
            flat, code = parameters[name].data.view(-1), file.get_tensor(name)
            if code.dtype == numpy.uint8:  # packed bits; otherwise sorted flat indices
                code = numpy.flatnonzero(numpy.unpackbits(code, count=flat.numel(), bitorder="little"))
            flat[torch.from_numpy(code.astype(numpy.int64)).to(flat.device)] = matrix.get("removal", 0.0)
            count += len(code)
    return count
