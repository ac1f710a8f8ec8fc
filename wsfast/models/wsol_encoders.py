"""The encoders of F-CAM and DiPS: torchvision's networks changed to end at stride 8.

Modules keep torchvision's names, so its ImageNet weights and files of them load as they are.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import resnet50
from torchvision.models.inception import BasicConv2d, InceptionA, InceptionB, InceptionC
from torchvision.models.vgg import cfgs, make_layers

from wsfast.models.interface import Encoder, FeatureInfo


class VGG16Encoder(Encoder):
    """VGG16 without its last two pools, and a 3x3 convolution to 1024 channels (F-CAM).

    Feature maps of a 224 x 224 image: 64 at 224, 128 at 112, 256 at 56, 1024 at 28.

    Args:
        in_chans: image channels.
    """

    without_weights = ("conv6",)
    fast_layers = ("conv6",)
    decoder_center = True

    _STAGE_ENDS = (3, 8, 15)  # in torchvision's numbering, the ReLU before each pool that is left
    _NO_POOLS = (23, 30)

    def __init__(self, in_chans: int = 3) -> None:
        info = _feature_info(
            (64, 1, "features.3"), (128, 2, "features.8"), (256, 4, "features.15"),
            (1024, 8, "conv6"),
        )  # fmt: skip
        super().__init__(in_chans, info, {"name": "vgg16", "in_chans": in_chans})
        self.features = make_layers(cfgs["D"])
        for index in self._NO_POOLS:
            self.features[index] = nn.Identity()
        self.conv6 = nn.Sequential(nn.Conv2d(512, 1024, 3, padding=1), nn.ReLU())
        self.features[0] = _with_input(self.features[0], in_chans)
        _initialize(self)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Turn images into four feature maps, fine to coarse."""
        found = []
        for index, layer in enumerate(self.features):
            images = layer(images)
            if index in self._STAGE_ENDS:
                found.append(images)
        return [*found, self.conv6(images)]


class ResNet50Encoder(Encoder):
    """ResNet50 (v1.5) whose third and fourth stage keep the resolution, without dilation (F-CAM).

    Feature maps of a 224 x 224 image: 64 at 112, 256 at 56, then 512, 1024 and 2048 at 28.

    Args:
        in_chans: image channels.
    """

    fast_layers = ("layer4",)

    def __init__(self, in_chans: int = 3) -> None:
        info = _feature_info(
            (64, 2, "relu"), (256, 4, "layer1"), (512, 8, "layer2"), (1024, 8, "layer3"),
            (2048, 8, "layer4"),
        )  # fmt: skip
        super().__init__(in_chans, info, {"name": "resnet50", "in_chans": in_chans})
        source = resnet50(weights=None)
        for stage in (source.layer3, source.layer4):
            stage[0].conv2.stride = (1, 1)
            stage[0].downsample[0].stride = (1, 1)
        self.conv1 = _with_input(source.conv1, in_chans)
        self.bn1, self.relu, self.maxpool = source.bn1, source.relu, source.maxpool
        self.layer1, self.layer2 = source.layer1, source.layer2
        self.layer3, self.layer4 = source.layer3, source.layer4
        _initialize(self)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Turn images into five feature maps, fine to coarse."""
        stem = self.relu(self.bn1(self.conv1(images)))
        found = [stem, self.layer1(self.maxpool(stem))]
        for stage in (self.layer2, self.layer3, self.layer4):
            found.append(stage(found[-1]))
        return found


class InceptionV3Encoder(Encoder):
    """InceptionV3 up to Mixed_6 without that stage's stride, and two 3x3 convolutions (SPG).

    Every 3x3 convolution and pool is padded by 1, so the maps of a 224 x 224 image are 64 at 112,
    80 at 57, then 288, 768 and 1024 at 29. Dropout stands before each of the new convolutions. The
    input is normalised as for the other networks; torchvision's change of it to -1..1 is left out,
    as in F-CAM.

    Args:
        in_chans: image channels.
    """

    without_weights = ("SPG_A3_1b", "SPG_A3_2b")
    fast_layers = ("SPG_A3_1b", "SPG_A3_2b")

    def __init__(self, in_chans: int = 3) -> None:
        info = _feature_info(
            (64, 2, "Conv2d_2b_3x3"), (80, 4, "Conv2d_3b_1x1"), (288, 8, "Mixed_5d"),
            (768, 8, "Mixed_6e"), (1024, 8, "SPG_A3_2b"),
        )  # fmt: skip
        super().__init__(in_chans, info, {"name": "inception_v3", "in_chans": in_chans})
        self.Conv2d_1a_3x3 = _PaddedConv(in_chans, 32, kernel_size=3, stride=2)
        self.Conv2d_2a_3x3 = _PaddedConv(32, 32, kernel_size=3)
        self.Conv2d_2b_3x3 = _PaddedConv(32, 64, kernel_size=3)
        self.maxpool1 = nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True)
        self.Conv2d_3b_1x1 = _PaddedConv(64, 80, kernel_size=1)
        self.Conv2d_4a_3x3 = _PaddedConv(80, 192, kernel_size=3)
        self.maxpool2 = nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True)
        for name, width, pool_features in (("5b", 192, 32), ("5c", 256, 64), ("5d", 288, 64)):
            self.add_module(f"Mixed_{name}", InceptionA(width, pool_features, _PaddedConv))
        self.Mixed_6a = _InceptionB(288, _PaddedConv)
        for name, width in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
            self.add_module(f"Mixed_{name}", InceptionC(768, width, _PaddedConv))
        self.SPG_A3_1b = _dropout_conv(768)
        self.SPG_A3_2b = _dropout_conv(1024)
        _initialize(self)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Turn images into five feature maps, fine to coarse."""
        wanted = {info["module"] for info in self.feature_info}
        found = []
        for name, module in self.named_children():  # in the order in which they were added
            images = module(images)
            if name in wanted:
                found.append(images)
        return found


class _PaddedConv(BasicConv2d):
    """torchvision's block with 3x3 convolutions padded and a ReLU that CAM methods can find."""

    def __init__(self, in_channels: int, out_channels: int, **kwargs: Any) -> None:
        if kwargs["kernel_size"] == 3:
            kwargs["padding"] = 1
        super().__init__(in_channels, out_channels, **kwargs)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        activated: Tensor = self.relu(self.bn(self.conv(x)))
        return activated


class _InceptionB(InceptionB):
    """torchvision's block without its stride."""

    def __init__(self, in_channels: int, conv_block: Any) -> None:
        super().__init__(in_channels, partial(_without_stride, conv_block))

    def forward(self, x: Tensor) -> Tensor:
        deep = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        pooled = F.max_pool2d(x, 3, stride=1, padding=1)
        return torch.cat([self.branch3x3(x), deep, pooled], 1)


def _without_stride(conv_block: Any, *channels: int, **kwargs: Any) -> nn.Module:
    block: nn.Module = conv_block(*channels, **{**kwargs, "stride": 1})
    return block


def _dropout_conv(in_width: int) -> nn.Sequential:
    return nn.Sequential(nn.Dropout(0.5), nn.Conv2d(in_width, 1024, 3, padding=1), nn.ReLU())


def _feature_info(*entries: tuple[int, int, str]) -> FeatureInfo:
    return [dict(zip(("num_chs", "reduction", "module"), entry, strict=True)) for entry in entries]


def _with_input(conv: nn.Conv2d, in_chans: int) -> nn.Conv2d:
    """The convolution for another number of image channels."""
    if in_chans == conv.in_channels:
        return conv
    return nn.Conv2d(
        in_chans,
        conv.out_channels,
        conv.kernel_size,  # type: ignore[arg-type]  # a pair of numbers
        conv.stride,  # type: ignore[arg-type]
        conv.padding,  # type: ignore[arg-type]
        bias=conv.bias is not None,
    )


def _initialize(encoder: nn.Module) -> None:
    """As torchvision starts VGG and ResNet, and no ReLU in place: CAM methods keep its input."""
    for module in encoder.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.ReLU):
            module.inplace = False
