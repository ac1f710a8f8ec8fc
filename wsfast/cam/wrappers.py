"""Looks through wrappers around a model."""

import torch
from torch import nn

from .._check import type_error


def unwrap(where: str, model: object) -> nn.Module:
    """The module that really runs: hooks on DataParallel, DDP or compiled wrappers do not fire.

    Raises:
        TypeError: not a module, or a TorchScript module, which cannot be hooked.
    """
    if not isinstance(model, nn.Module):
        type_error(where, "model", "a torch.nn.Module", type(model).__name__)
    parallel = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    inner = model.module if isinstance(model, parallel) else getattr(model, "_orig_mod", None)
    if inner is not None:
        return unwrap(where, inner)
    if isinstance(model, torch.jit.ScriptModule):
        type_error(where, "model", "an eager module (not scripted or traced)", type(model).__name__)
    assert isinstance(model, nn.Module)
    return model
