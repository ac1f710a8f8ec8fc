"""Looks through wrappers around a model, and through compiled parts of it."""

import warnings
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from .._check import type_error


def unwrap(where: str, model: object) -> nn.Module:
    """The module that really runs: hooks on DataParallel, DDP or compiled wrappers do not fire.

    A warning says so: the caller may have counted on the compiled code or on all devices.

    Raises:
        TypeError: not a module, or a TorchScript module, which cannot be hooked.
    """
    if not isinstance(model, nn.Module):
        type_error(where, "model", "a torch.nn.Module", type(model).__name__)
    if isinstance(model, nn.DataParallel):
        _note(where, "DataParallel", "on one device")
        return unwrap(where, model.module)
    if isinstance(model, DistributedDataParallel):
        how = "and the wrapper only with create_graph=True, where gradients are reduced"
        _note(where, "DistributedDataParallel", how)
        return unwrap(where, model.module)
    if (inner := getattr(model, "_orig_mod", None)) is not None:
        _note(where, "torch.compile", "uncompiled")
        return unwrap(where, inner)
    if isinstance(model, torch.jit.ScriptModule):
        type_error(where, "model", "an eager module (not scripted or traced)", type(model).__name__)
    assert isinstance(model, nn.Module)
    return model


def reducer_of(model: nn.Module) -> DistributedDataParallel | None:
    """The wrapper whose forward pass a training step needs for gradients to be reduced."""
    inner = getattr(model, "_orig_mod", model)
    return inner if isinstance(inner, DistributedDataParallel) else None


def eagerly(model: nn.Module) -> AbstractContextManager[object]:
    """Run a model's compiled parts uncompiled: code compiled before ignores hooks made later."""
    for module in model.modules():
        if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
            stance: AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
            return stance
    return nullcontext()


def _note(where: str, wrapper: str, how: str) -> None:
    message = f"hooks do not fire behind {wrapper}: the module inside runs, {how}"
    warnings.warn(f"wsfast.{where}: {message}", stacklevel=4)
