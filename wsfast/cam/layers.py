"""Which modules of a model a CAM looks at."""

import difflib
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .._check import type_error, value_error

_POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)

Layers = str | nn.Module | Sequence[str | nn.Module]


def unwrap(model: nn.Module) -> nn.Module:
    """The module that really runs: hooks on DataParallel, DDP or compiled wrappers do not fire."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(
            model, (nn.DataParallel, nn.parallel.DistributedDataParallel)
        ):
            inner = model.module
        if inner is None:
            return model
        model = inner


def resolve_layers(
    where: str, model: nn.Module, layers: Layers, images: Tensor
) -> dict[str, nn.Module]:
    """Names and modules of the wanted layers, in the order asked for.

    Args:
        where: name of the calling function, for messages.
        model: the unwrapped model.
        layers: ``"stages"`` (one layer per resolution), ``"last"`` (the last of them), a module
            name, a module, or a list of names and modules.
        images: a batch for the dry run that finds the stages of models without timm's
            ``feature_info``.
    """
    if isinstance(layers, str) and layers in ("stages", "last"):
        stages = _timm_stages(model) or _dry_run_stages(where, model, images)
        chosen = stages if layers == "stages" else stages[-1:]
        return {name: model.get_submodule(name) for name in chosen}
    wanted = [layers] if isinstance(layers, (str, nn.Module)) else list(layers)
    if not wanted:
        value_error(where, "layers", "at least one layer", "an empty list")
    found: dict[str, nn.Module] = {}
    for layer in wanted:
        name, module = _find(where, model, layer)
        found[name] = module
    return found


def _find(where: str, model: nn.Module, layer: str | nn.Module) -> tuple[str, nn.Module]:
    modules = dict(model.named_modules())
    if isinstance(layer, str):
        if layer and layer in modules:
            return layer, modules[layer]
        close = difflib.get_close_matches(layer, [name for name in modules if name], n=3)
        hint = f" (close matches: {', '.join(close)})" if close else ""
        value_error(where, "layers", "names of modules of the model", f"'{layer}'{hint}")
    if not isinstance(layer, nn.Module):
        type_error(where, "layers", "module names or modules", type(layer).__name__)
    assert isinstance(layer, nn.Module)
    for name, module in modules.items():
        if module is layer:
            return name, layer
    value_error(where, "layers", "modules of the model", f"a {type(layer).__name__} outside it")
    raise AssertionError  # value_error always raises


def _timm_stages(model: nn.Module) -> list[str]:
    """Timm's ``feature_info`` less a trailing pool: VGG's last ReLU before each pool."""
    info = getattr(model, "feature_info", None)
    if not info:
        return []
    names = [entry["module"] for entry in info]
    modules = dict(model.named_modules())
    if any(name not in modules for name in names):
        return []
    if len(names) > 1 and isinstance(modules[names[-1]], _POOLS):
        names = names[:-1]
    return names


def _dry_run_stages(where: str, model: nn.Module, images: Tensor) -> list[str]:
    """The last layer of each resolution, found by running the model once.

    Pools, and containers that only pass a pool's output on, are not layers of their own. Where a
    block returns the tensor of its last child, the block gives the name.
    """
    last_at: dict[tuple[int, int], str] = {}
    pooled: list[Tensor] = []

    def remember(name: str, module: nn.Module, output: object) -> None:
        if not isinstance(output, Tensor) or output.dim() != 4 or min(output.shape[2:]) < 2:
            return
        if isinstance(module, _POOLS):
            pooled.append(output)
        elif not any(output is other for other in pooled):
            size = (output.shape[2], output.shape[3])
            last_at.pop(size, None)  # stages come in the order of their last layers
            last_at[size] = name

    handles = [
        module.register_forward_hook(lambda m, _, output, name=name: remember(name, m, output))
        for name, module in model.named_modules()
        if name and not isinstance(module, nn.Dropout)
    ]
    try:
        with torch.no_grad():
            model(images[:1])
    finally:
        for handle in handles:
            handle.remove()
    if not last_at:
        value_error(where, "layers", "given by name for this model", "no (N, C, h, w) feature maps")
    return list(last_at.values())
