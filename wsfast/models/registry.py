"""Models from their description, a dictionary that JSON can hold."""

from collections.abc import Mapping
from typing import Any

import timm
from torch import nn

from wsfast._check import check_choice, value_error
from wsfast.models.classifier import WSOLClassifier
from wsfast.models.decoder import UNetDecoder
from wsfast.models.deeplab import DeepLabV3
from wsfast.models.encoders import create_encoder
from wsfast.models.interface import Encoder
from wsfast.models.localizers import FCAMModel, UNetLocalizer
from wsfast.models.small_vgg import SmallVGG


def build_model(config: Mapping[str, Any]) -> nn.Module:
    """Build a model, with new weights, from its description.

    Args:
        config: ``architecture`` and what this one needs, as every model of this package has it in
            its ``config``. ``{"architecture": "timm", "name": ..., ...}`` is any classifier of
            ``timm.create_model``.

    Raises:
        ValueError: an unknown architecture, settings that are missing or unknown.

    Example:
        >>> from wsfast.models import SmallVGG
        >>> model = build_model({"architecture": "FCAMModel", "classifier": SmallVGG().config})
        >>> build_model(model.config).config == model.config
        True
    """
    settings = dict(config)
    architecture = settings.pop("architecture", None)
    check_choice("build_model", "config's architecture", str(architecture), list(_BUILDERS))
    try:
        return _BUILDERS[str(architecture)](**settings)
    except (TypeError, AttributeError) as error:
        reason = str(error).removeprefix("_").split("\n")[0]
        value_error("build_model", "config", f"settings of {architecture}", reason)
        raise AssertionError from None  # value_error always raises


def config_differences(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Say where two nested descriptions differ, one line each, in the order of ``wanted``.

    Example:
        >>> config_differences({"a": 1, "b": {"c": 2}}, {"a": 1, "b": {"c": 3}, "d": 4})
        ['b.c is 2, not 3', 'd is missing, not 4']
    """
    ours, theirs = _flattened(wanted), _flattened(saved)
    return [
        f"{name} is {theirs.get(name, 'missing')}, not {ours.get(name, 'missing')}"
        for name in dict.fromkeys([*ours, *theirs])
        if name not in ours or name not in theirs or ours[name] != theirs[name]
    ]


def _flattened(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat.update(_flattened(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = list(value) if isinstance(value, tuple) else value
    return flat


def _build_encoder(config: Mapping[str, Any]) -> Encoder:
    return create_encoder(**config)


def _build_wsol_classifier(encoder: Mapping[str, Any], num_classes: int) -> nn.Module:
    return WSOLClassifier(_build_encoder(encoder), num_classes)


def _build_fcam(
    classifier: Mapping[str, Any], decoder: Mapping[str, Any] | None = None
) -> nn.Module:
    built: Any = build_model(classifier)
    return FCAMModel(built, UNetDecoder.of(built, **(decoder or {})))


def _build_unet(encoder: Mapping[str, Any], decoder: Mapping[str, Any] | None = None) -> nn.Module:
    return UNetLocalizer(_build_encoder(encoder), dict(decoder or {}))


def _build_timm(name: str, **options: Any) -> nn.Module:
    if not timm.is_model(name):
        value_error("build_model", "config's name", "a timm model", f"'{name}'")
    model: nn.Module = timm.create_model(name, pretrained=False, **options)
    return model


_BUILDERS: dict[str, Any] = {
    "SmallVGG": SmallVGG,
    "WSOLClassifier": _build_wsol_classifier,
    "FCAMModel": _build_fcam,
    "UNetLocalizer": _build_unet,
    "DeepLabV3": DeepLabV3,
    "timm": _build_timm,
}
