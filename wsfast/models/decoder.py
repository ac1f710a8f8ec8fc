"""U-Net's decoder as F-CAM and DiPS use it: from an encoder's feature maps to a full-size map."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsfast._check import check_count, value_error
from wsfast.models.interface import Encoder, FeatureInfo, GAPClassifier


class UNetDecoder(nn.Module):
    """Blocks of upsampling, concatenation with a skip and two 3x3 convolutions; 2 logits per pixel.

    The coarsest feature map goes through one block per finer map and then, until the map has the
    image's size, through blocks without one, each of which doubles it. With F-CAM's encoders it has
    the parameters of the paper's table A.2: 23.1 M (VGG16), 5.7 M (InceptionV3) and 9.0 M
    (ResNet50).

    Args:
        channels: of the feature maps, fine to coarse.
        reductions: image size over map size, of each.
        widths: channels of the blocks, coarse to fine; the last is repeated where they run out.
        center: two more convolutions before the first block (F-CAM's VGG16).
        input_skip: use a feature map of the image's size too; the paper drops it.
        parity: resize as the published code does: doubled by nearest neighbour, then brought to the
            skip's size by bilinear interpolation with ``align_corners=True``. Without it sizes that
            are not a skip's double are reached in one step, and a map that has its skip's size
            already is left alone (there and back again gives the same values at more cost). So the
            two differ for InceptionV3, and for ResNet50 and VGG16 only where sizes are odd.
        num_classes: channels of the output; 0 is background, 1 foreground.

    Raises:
        ValueError: no feature map, as many reductions as channels missing, widths not positive.

    Example:
        >>> decoder = UNetDecoder((16, 32, 64), (1, 2, 4), widths=(24, 12))
        >>> maps = [torch.rand(1, 16, 32, 16), torch.rand(1, 32, 16, 8), torch.rand(1, 64, 8, 4)]
        >>> decoder(maps, (32, 16)).shape
        torch.Size([1, 2, 32, 16])
    """

    def __init__(
        self,
        channels: Sequence[int],
        reductions: Sequence[int],
        *,
        widths: Sequence[int] = Encoder.decoder_widths,
        center: bool = False,
        input_skip: bool = False,
        parity: bool = False,
        num_classes: int = 2,
    ) -> None:
        super().__init__()
        where = "UNetDecoder"
        if len(channels) != len(reductions) or not channels:
            value_error(where, "reductions", "one per channel count", f"{list(reductions)}")
        if not widths or min(widths) < 1:
            value_error(where, "widths", "positive", f"{list(widths)}")
        check_count(where, "num_classes", num_classes, 1)
        self.config: dict[str, Any] = {
            "widths": list(widths),
            "center": center,
            "input_skip": input_skip,
            "parity": parity,
            "num_classes": num_classes,
        }
        self.parity = parity
        finer = range(len(channels) - 2, -1, -1)
        self.skips = [index for index in finer if input_skip or reductions[index] > 1]
        skip_widths = [channels[index] for index in self.skips]
        finest = reductions[self.skips[-1]] if self.skips else reductions[-1]
        skip_widths += [0] * math.ceil(math.log2(finest))
        width = channels[-1]
        self.center = nn.Sequential()
        if center:
            self.center = nn.Sequential(_conv_bn_relu(width, width), _conv_bn_relu(width, width))
        self.blocks = nn.ModuleList()
        for position, skip_width in enumerate(skip_widths):
            block_width = widths[min(position, len(widths) - 1)]
            self.blocks.append(_Block(width + skip_width, block_width, parity=parity))
            width = block_width
        self.head = nn.Conv2d(width, num_classes, 3, padding=1)
        self._initialize()

    @classmethod
    def of(cls, source: Encoder | GAPClassifier, **options: Any) -> "UNetDecoder":
        """The decoder that fits an encoder or classifier.

        Args:
            source: gives channels and reductions and, unless told, widths and center.
            **options: of :class:`UNetDecoder`.
        """
        info: FeatureInfo = source.feature_info
        defaults = {"widths": source.decoder_widths, "center": source.decoder_center}
        return cls(
            [int(entry["num_chs"]) for entry in info],
            [int(entry["reduction"]) for entry in info],
            **{**defaults, **options},
        )

    def forward(self, features: list[Tensor], size: tuple[int, int]) -> Tensor:
        """Turn an encoder's feature maps into logits (N, num_classes, *size)."""
        x = self.center(features[-1])
        for position, block in enumerate(self.blocks):
            has_skip = position < len(self.skips)
            x = block(x, features[self.skips[position]] if has_skip else None)
        logits: Tensor = self.head(x)
        if logits.shape[2:] == size:
            return logits
        return F.interpolate(logits, size, mode="bilinear", align_corners=self.parity)

    def _initialize(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, mode="fan_in", nonlinearity="relu")
        nn.init.xavier_uniform_(self.head.weight)
        assert self.head.bias is not None
        nn.init.zeros_(self.head.bias)


class _Block(nn.Module):
    """Upsampling, concatenation and two convolutions."""

    def __init__(self, in_width: int, width: int, *, parity: bool) -> None:
        super().__init__()
        self.parity = parity
        self.convs = nn.Sequential(_conv_bn_relu(in_width, width), _conv_bn_relu(width, width))

    def forward(self, x: Tensor, skip: Tensor | None) -> Tensor:
        if skip is None:
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        else:
            resize = _resize_in_two_steps if self.parity else _resize
            x = torch.cat([resize(x, (skip.shape[2], skip.shape[3])), skip], 1)
        convolved: Tensor = self.convs(x)
        return convolved


def _resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    if x.shape[2:] == size:
        return x
    if (2 * x.shape[2], 2 * x.shape[3]) == size:
        return F.interpolate(x, size, mode="nearest")
    return F.interpolate(x, size, mode="bilinear", align_corners=False)


def _resize_in_two_steps(x: Tensor, size: tuple[int, int]) -> Tensor:
    doubled = F.interpolate(x, scale_factor=2.0, mode="nearest")
    if doubled.shape[2:] == size:
        return doubled
    return F.interpolate(doubled, size, mode="bilinear", align_corners=True)


def _conv_bn_relu(in_width: int, width: int) -> nn.Sequential:
    convolution = nn.Conv2d(in_width, width, 3, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU(inplace=True))
