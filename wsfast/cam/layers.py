"""Which modules of a model a CAM looks at."""

import difflib
from collections.abc import Sequence

from torch import Tensor, nn

from .._check import type_error, value_error
from .stages import stage_names, timm_stages

Layers = str | nn.Module | Sequence[str | nn.Module]


def resolve_layers(where: str, model: nn.Module, layers: Layers) -> dict[str, nn.Module] | None:
    """Names and modules of the wanted layers in the order asked for; None if a dry run must tell.

    Args:
        where: name of the calling function, for messages.
        model: the unwrapped model.
        layers: ``"stages"`` (one layer per resolution), ``"last"`` (the last of them), a module
            name, a module, or a list of names and modules. In a list, ``"stages"`` and ``"last"``
            are module names like any other.

    Raises:
        ValueError: unknown names, modules outside the model, a layer named twice, no layer.
        TypeError: neither names nor modules.
    """
    if layers == "stages" or layers == "last":
        names = timm_stages(model)
        return _chosen_stages(model, layers, names) if names else None
    single = isinstance(layers, str) or not isinstance(layers, Sequence)
    wanted: list[object] = [layers] if single else list(layers)  # type: ignore[arg-type]
    if not wanted:
        value_error(where, "layers", "at least one layer", "an empty list")
    modules = dict(model.named_modules())
    found: dict[str, nn.Module] = {}
    for layer in wanted:
        name = _name_of(where, modules, layer)
        if name in found:
            value_error(where, "layers", "distinct", f"'{name}' twice")
        found[name] = modules[name]
    return found


def dry_run_layers(
    where: str, model: nn.Module, layers: Layers, images: Tensor
) -> dict[str, nn.Module]:
    """What :func:`resolve_layers` leaves open, found by running the model on the first image."""
    return _chosen_stages(model, layers, stage_names(where, model, images))


def _chosen_stages(model: nn.Module, layers: Layers, names: list[str]) -> dict[str, nn.Module]:
    chosen = names[-1:] if layers == "last" else names
    return {name: model.get_submodule(name) for name in chosen}


def _name_of(where: str, modules: dict[str, nn.Module], layer: object) -> str:
    if isinstance(layer, str):
        if not layer or layer not in modules:
            close = difflib.get_close_matches(layer, [name for name in modules if name], n=3)
            hint = f" (close matches: {', '.join(close)})" if close else ""
            value_error(where, "layers", "names of modules of the model", f"'{layer}'{hint}")
        return layer
    if not isinstance(layer, nn.Module):
        type_error(where, "layers", "module names or modules", type(layer).__name__)
    for name, module in modules.items():
        if module is layer and name:
            return name
    value_error(where, "layers", "modules of the model", f"a {type(layer).__name__} outside it")
    raise AssertionError  # value_error always raises
