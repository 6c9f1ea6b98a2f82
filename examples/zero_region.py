"""Zero a region in a transformers model: `zero(model, "core.safetensors")`. Needs torch, NumPy and safetensors alone.

Tied matrices are found under both names, and a model may lie on several devices. What cannot be changed in place -
offloaded (`meta`), split over processes, or quantised - raises before anything is changed.
"""

import json

import numpy
import torch
from safetensors import safe_open


def zero(model, path):
    """Set every entry of a region file to zero, in place; returns how many."""
    parameters = dict(model.named_parameters(remove_duplicate=False))  # a tied head has two names
    with safe_open(path, "numpy") as file:
        shapes = {name: each["shape"] for name, each in json.loads(file.metadata()["lingregions"])["matrices"].items()}
        for name, shape in shapes.items():
            held = parameters.get(name)
            if held is None:
                raise KeyError(f"the model has no parameter {name}: is it the model of this region?")
            if held.device.type == "meta" or hasattr(held, "to_local") or tuple(held.shape) != tuple(shape):
                raise ValueError(f"{name} is offloaded, split or of another shape: load the model whole, then zero it")
            if not held.is_floating_point() or not held.is_contiguous():
                raise ValueError(f"{name} is quantised or no plain array: zero the model before it is quantised")
        count = 0
        for name in shapes:
            flat, code = parameters[name].data.view(-1), file.get_tensor(name)
            if code.dtype == numpy.uint8:  # packed bits; otherwise sorted flat indices
                code = numpy.flatnonzero(numpy.unpackbits(code, count=flat.numel(), bitorder="little"))
            flat[torch.from_numpy(code.astype(numpy.int64)).to(flat.device)] = 0
            count += len(code)
    return count
