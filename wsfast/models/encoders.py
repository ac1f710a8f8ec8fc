"""Encoders by name, with the weights they are usually started from."""

from os import PathLike
from typing import Any

from torch import Tensor
from torchvision.models import get_weight

from wsfast._check import check_count, value_error
from wsfast.models.interface import Encoder
from wsfast.models.small_vgg import SmallVGGEncoder
from wsfast.models.timm_encoder import TimmEncoder
from wsfast.models.weights import load_encoder_state, read_state_dict
from wsfast.models.wsol_encoders import InceptionV3Encoder, ResNet50Encoder, VGG16Encoder

_WSOL = {
    "vgg16": (VGG16Encoder, "VGG16_Weights.IMAGENET1K_V1"),
    "resnet50": (ResNet50Encoder, "ResNet50_Weights.IMAGENET1K_V1"),
    "inception_v3": (InceptionV3Encoder, "Inception_V3_Weights.IMAGENET1K_V1"),
}
NOT_OF_TIMM = (*_WSOL, "small_vgg")
_TIMM = "timm/"


def create_encoder(
    name: str,
    *,
    in_chans: int = 3,
    pretrained: bool = False,
    checkpoint: str | PathLike[str] | None = None,
    **options: Any,
) -> Encoder:
    """Build an encoder.

    Args:
        name: ``"vgg16"``, ``"resnet50"`` or ``"inception_v3"`` for F-CAM's networks of stride 8,
            ``"small_vgg"`` for the stages of :class:`SmallVGG`, else a timm model; ``"timm/NAME"``
            is timm's also where the name is one of the former.
        in_chans: image channels.
        pretrained: start from ImageNet weights, torchvision's first ones for F-CAM's networks
            (the papers'), timm's for timm's; downloaded on first use. For one channel, the first
            convolution's weights are summed over the three.
        checkpoint: a file to start from instead: torchvision's, or of a classifier saved by
            :func:`wsfast.models.save_checkpoint`; the head in it is left aside.
        **options: ``channels`` for ``"small_vgg"``; timm's options for its models.

    Raises:
        TypeError: ``in_chans`` that is no whole number.
        ValueError: an unknown name, no channel, weights that cannot be had or do not fit.

    Example:
        >>> import torch
        >>> with torch.device("meta"):
        ...     encoder = create_encoder("resnet50")
        ...     features = encoder(torch.zeros(1, 3, 224, 224))
        >>> [tuple(x.shape[1:]) for x in features]
        [(64, 112, 112), (256, 56, 56), (512, 28, 28), (1024, 28, 28), (2048, 28, 28)]
    """
    check_count("create_encoder", "in_chans", in_chans, 1)
    from_imagenet = pretrained and checkpoint is None
    encoder: Encoder
    if name in _WSOL:
        _refuse_options(name, options)
        kind, weights = _WSOL[name]
        encoder = kind(in_chans)
        if from_imagenet:
            load_encoder_state("create_encoder", encoder, _imagenet_state(weights), weights)
    elif name == "small_vgg":
        if from_imagenet:
            value_error("create_encoder", "pretrained", "False for small_vgg", "True")
        encoder = SmallVGGEncoder(in_chans, **options)
    else:
        encoder = TimmEncoder(
            name.removeprefix(_TIMM), in_chans, pretrained=from_imagenet, **options
        )
    if checkpoint is not None:
        state = read_state_dict("create_encoder", "checkpoint", checkpoint)
        load_encoder_state("create_encoder", encoder, state, str(checkpoint))
    return encoder


def as_encoder(where: str, encoder: Encoder | str, options: dict[str, Any]) -> Encoder:
    """The encoder itself, or the one of that name.

    Args:
        where: name of the calling class, for messages.
        encoder: an encoder or a name.
        options: of :func:`create_encoder`, for a name only.
    """
    if isinstance(encoder, str):
        return create_encoder(encoder, **options)
    if options:
        value_error(where, "options", "none beside a built encoder", ", ".join(options))
    return encoder


def _refuse_options(name: str, options: dict[str, Any]) -> None:
    if options:
        value_error("create_encoder", "options", f"none for {name}", ", ".join(options))


def _imagenet_state(weights: str) -> dict[str, Tensor]:
    try:
        state: dict[str, Tensor] = get_weight(weights).get_state_dict(
            progress=True, check_hash=True, weights_only=True
        )
    except OSError as error:  # no network, no space, a proxy in between
        value_error("create_encoder", "pretrained", f"downloadable ({weights})", f"{error}")
    return state
