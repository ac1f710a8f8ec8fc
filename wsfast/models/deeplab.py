"""torchvision's DeepLabV3 behind the interface of the other localizers."""

from typing import Any

from torch import Tensor, nn
from torchvision.models.segmentation import (
    deeplabv3_mobilenet_v3_large,
    deeplabv3_resnet50,
    deeplabv3_resnet101,
)

from wsfast._check import check_choice, check_count, value_error

_BACKBONES = {
    "resnet50": deeplabv3_resnet50,
    "resnet101": deeplabv3_resnet101,
    "mobilenet_v3_large": deeplabv3_mobilenet_v3_large,
}


class DeepLabV3(nn.Module):
    """DeepLabV3 (Chen 2017), which RA-CAM trains on pseudo-labels.

    Args:
        num_classes: channels of the output; 0 is background, 1 foreground.
        backbone: ``"resnet50"``, ``"resnet101"`` or ``"mobilenet_v3_large"``.
        in_chans: image channels; one channel is repeated for the three of the backbone.
        pretrained: start the backbone from torchvision's first ImageNet weights (downloaded on
            first use); the head is always new.

    Raises:
        ValueError: an unknown backbone, a count that is not positive, weights that cannot be had.

    Note:
        In train mode a batch needs at least two images: the head normalises over images' means.

    Example:
        >>> import torch
        >>> with torch.device("meta"):
        ...     DeepLabV3().eval()(torch.zeros(1, 3, 64, 96)).shape
        torch.Size([1, 2, 64, 96])
    """

    def __init__(
        self,
        num_classes: int = 2,
        *,
        backbone: str = "resnet50",
        in_chans: int = 3,
        pretrained: bool = False,
    ) -> None:
        super().__init__()
        check_count("DeepLabV3", "num_classes", num_classes, 1)
        check_choice("DeepLabV3", "backbone", backbone, list(_BACKBONES))
        if in_chans not in (1, 3):
            value_error("DeepLabV3", "in_chans", "1 or 3", f"{in_chans}")
        weights = "IMAGENET1K_V1" if pretrained else None
        try:
            self.net = _BACKBONES[backbone](
                weights=None, weights_backbone=weights, num_classes=num_classes, aux_loss=False
            )
        except OSError as error:  # no network, no space, a proxy in between
            value_error("DeepLabV3", "pretrained", f"downloadable ({backbone})", f"{error}")
        self.in_chans = in_chans
        self.config: dict[str, Any] = {
            "architecture": "DeepLabV3",
            "num_classes": num_classes,
            "backbone": backbone,
            "in_chans": in_chans,
        }

    def forward(self, images: Tensor) -> Tensor:
        """Turn normalised images (N, in_chans, H, W) into map logits (N, num_classes, H, W)."""
        map_logits: Tensor = self.net(images.expand(-1, 3, -1, -1))["out"]
        return map_logits
