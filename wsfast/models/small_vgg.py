"""A VGG-style classifier small enough to train from scratch on a laptop."""

import copy
from collections.abc import Sequence

from torch import Tensor, nn

from wsfast._check import check_count, value_error
from wsfast.models.interface import Encoder, FeatureInfo, GAPClassifier

_WIDTHS = (16, 32, 64, 64)
_DECODER_WIDTHS = (48, 32, 16)  # in proportion to the stages


class SmallVGGEncoder(Encoder):
    """The four stages of :class:`SmallVGG` without its head.

    Args:
        in_chans: image channels, 1 or 3.
        channels: width of each stage.

    Raises:
        ValueError: a count that is not positive.

    Example:
        >>> import torch
        >>> [tuple(x.shape) for x in SmallVGGEncoder(channels=(4, 8))(torch.zeros(2, 1, 16, 8))]
        [(2, 4, 16, 8), (2, 8, 8, 4)]
    """

    decoder_widths = _DECODER_WIDTHS

    def __init__(self, in_chans: int = 1, channels: Sequence[int] = _WIDTHS) -> None:
        _check_counts("SmallVGGEncoder", {"in_chans": in_chans}, channels)
        config = {"name": "small_vgg", "in_chans": in_chans, "channels": list(channels)}
        super().__init__(in_chans, _feature_info(channels), config)
        self.channels = tuple(channels)
        self.stages = _stages(in_chans, channels)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Turn images into the stages' outputs, fine to coarse."""
        return _outputs(self.stages, images)


class SmallVGG(GAPClassifier):
    """Four stages of two 3x3 convolutions, then global average pooling and a linear layer.

    Every convolution is followed by batch normalisation and a ReLU that is not in place. A pooling
    layer opens each stage but the first, so a stage ends with its ReLU at full detail and the last
    one has stride 8: fine enough for CAMs of small defects. ``feature_info`` names the stages as
    timm's models do.

    Args:
        in_chans: image channels, 1 or 3.
        num_classes: number of logits.
        channels: width of each stage.

    Attributes:
        feature_info: per stage ``num_chs``, ``reduction`` and ``module``.
        num_features: channels of the last stage.

    Raises:
        ValueError: a count that is not positive.

    Example:
        >>> import torch
        >>> model = SmallVGG(in_chans=1)
        >>> model(torch.zeros(2, 1, 160, 64)).shape
        torch.Size([2, 2])
        >>> [stage["module"] for stage in model.feature_info]
        ['stages.0', 'stages.1', 'stages.2', 'stages.3']
    """

    decoder_widths = _DECODER_WIDTHS
    decoder_center = False

    def __init__(
        self,
        in_chans: int = 1,
        num_classes: int = 2,
        channels: Sequence[int] = _WIDTHS,
    ) -> None:
        _check_counts("SmallVGG", {"in_chans": in_chans, "num_classes": num_classes}, channels)
        config = {
            "architecture": "SmallVGG",
            "in_chans": in_chans,
            "num_classes": num_classes,
            "channels": list(channels),
        }
        super().__init__(in_chans, num_classes, _feature_info(channels), config)
        self.channels = tuple(channels)
        self.stages = _stages(in_chans, channels)
        self.add_head()

    def forward_features(self, images: Tensor) -> list[Tensor]:
        """Turn images into the stages' outputs, fine to coarse."""
        return _outputs(self.stages, images)

    def copy_encoder(self) -> SmallVGGEncoder:
        """The stages alone, with a copy of their weights."""
        encoder = SmallVGGEncoder(self.in_chans, self.channels)
        encoder.stages = copy.deepcopy(self.stages).requires_grad_()
        return encoder

    def fast_parameters(self) -> list[nn.Parameter]:
        """None: the whole network is new."""
        return []


def _check_counts(where: str, counts: dict[str, int], channels: Sequence[int]) -> None:
    for name, count in counts.items():
        check_count(where, name, count, 1)
    if not channels or min(channels) < 1:
        value_error(where, "channels", "positive widths, one per stage", f"{channels}")


def _feature_info(channels: Sequence[int]) -> FeatureInfo:
    return [
        {"num_chs": width, "reduction": 2**index, "module": f"stages.{index}"}
        for index, width in enumerate(channels)
    ]


def _outputs(stages: nn.Sequential, images: Tensor) -> list[Tensor]:
    features = []
    for stage in stages:
        images = stage(images)
        features.append(images)
    return features


def _stages(in_chans: int, channels: Sequence[int]) -> nn.Sequential:
    widths = (in_chans, *channels)
    return nn.Sequential(
        *(_stage(widths[i], widths[i + 1], pool=i > 0) for i in range(len(channels)))
    )


def _stage(in_width: int, width: int, *, pool: bool) -> nn.Sequential:
    opening = [nn.MaxPool2d(2)] if pool else []
    return nn.Sequential(*opening, *_convolution(in_width, width), *_convolution(width, width))


def _convolution(in_width: int, width: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    convolution = nn.Conv2d(in_width, width, 3, padding=1, bias=False)
    return convolution, nn.BatchNorm2d(width), nn.ReLU()
