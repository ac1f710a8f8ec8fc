"""A VGG-style classifier small enough to train from scratch on a laptop."""

from collections.abc import Sequence

from torch import Tensor, nn

from wsfast._check import value_error


class SmallVGG(nn.Module):
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

    def __init__(
        self,
        in_chans: int = 1,
        num_classes: int = 2,
        channels: Sequence[int] = (16, 32, 64, 64),
    ) -> None:
        super().__init__()
        for name, count in (("in_chans", in_chans), ("num_classes", num_classes)):
            if count < 1:
                value_error("SmallVGG", name, "at least 1", f"{count}")
        if not channels or min(channels) < 1:
            value_error("SmallVGG", "channels", "positive widths, one per stage", f"{channels}")
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.channels = tuple(channels)
        self.num_features = self.channels[-1]
        widths = (in_chans, *self.channels)
        self.stages = nn.Sequential(
            *(_stage(widths[i], widths[i + 1], pool=i > 0) for i in range(len(self.channels)))
        )
        self.feature_info: list[dict[str, int | str]] = [
            {"num_chs": width, "reduction": 2**index, "module": f"stages.{index}"}
            for index, width in enumerate(self.channels)
        ]
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(self.num_features, num_classes)

    def forward_features(self, images: Tensor) -> Tensor:
        """Turn images (N, in_chans, H, W) into the last stage's (N, num_features, H/8, W/8)."""
        features: Tensor = self.stages(images)
        return features

    def forward(self, images: Tensor) -> Tensor:
        """Turn normalised images (N, in_chans, H, W) into logits (N, num_classes)."""
        logits: Tensor = self.fc(self.pool(self.forward_features(images)).flatten(1))
        return logits


def _stage(in_width: int, width: int, *, pool: bool) -> nn.Sequential:
    opening = [nn.MaxPool2d(2)] if pool else []
    return nn.Sequential(*opening, *_convolution(in_width, width), *_convolution(width, width))


def _convolution(in_width: int, width: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    convolution = nn.Conv2d(in_width, width, 3, padding=1, bias=False)
    return convolution, nn.BatchNorm2d(width), nn.ReLU()
