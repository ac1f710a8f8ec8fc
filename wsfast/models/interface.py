"""What every encoder and every classifier of this package offers to CAMs, decoders and files."""

from typing import Any

from torch import Tensor, nn

FeatureInfo = list[dict[str, Any]]


class Encoder(nn.Module):
    """A network whose forward returns feature maps, fine to coarse.

    Attributes:
        feature_info: per feature map ``num_chs``, ``reduction`` and, where a module's output is
            the map, ``module``, as in timm.
        in_chans: image channels.
        config: keyword arguments of :func:`wsfast.models.create_encoder` that build it again.
        without_weights: modules that ImageNet weights say nothing of.
        fast_layers: modules that F-CAM trains with ten times the learning rate.
        decoder_widths: channels of a decoder's blocks, coarse to fine; the last is repeated.
        decoder_center: whether F-CAM's decoder has two convolutions before its first block.
    """

    without_weights: tuple[str, ...] = ()
    fast_layers: tuple[str, ...] = ()
    decoder_widths: tuple[int, ...] = (256, 128, 64, 32, 16)
    decoder_center: bool = False

    def __init__(self, in_chans: int, feature_info: FeatureInfo, config: dict[str, Any]) -> None:
        super().__init__()
        self.in_chans = in_chans
        self.feature_info = feature_info
        self.config = config

    def forward(self, images: Tensor) -> list[Tensor]:
        """Turn images (N, in_chans, H, W) into feature maps (N, C_i, h_i, w_i), fine to coarse."""
        raise NotImplementedError


class GAPClassifier(nn.Module):
    """A classifier whose logits are a linear layer on the mean of the last feature map.

    So the CAM of class c is ``sum_k cam_weights[c, k] * features[-1][:, k]`` and one pass through
    the encoder serves logits, CAM and decoder. Subclasses define :meth:`forward_features` and
    :meth:`copy_encoder`.

    Attributes:
        feature_info: as :class:`Encoder`'s, with the modules' names in this model.
        in_chans: image channels.
        num_classes: number of logits.
        num_features: channels of the last feature map.
        config: what :func:`wsfast.models.build_model` builds it from.
        decoder_widths: see :class:`Encoder`.
        decoder_center: see :class:`Encoder`.
    """

    decoder_widths: tuple[int, ...]
    decoder_center: bool

    def __init__(
        self, in_chans: int, num_classes: int, feature_info: FeatureInfo, config: dict[str, Any]
    ) -> None:
        super().__init__()
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.feature_info = feature_info
        self.num_features = int(feature_info[-1]["num_chs"])
        self.config = config

    def add_head(self) -> None:
        """Add the layers behind the encoder; called by subclasses when that is in place."""
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(self.num_features, self.num_classes)

    @property
    def cam_weights(self) -> Tensor:
        """The linear layer's weight, (num_classes, num_features)."""
        return self.fc.weight

    def forward_features(self, images: Tensor) -> list[Tensor]:
        """Turn images (N, in_chans, H, W) into feature maps, fine to coarse."""
        raise NotImplementedError

    def logits_of(self, features: list[Tensor]) -> Tensor:
        """Turn what :meth:`forward_features` gave into logits (N, num_classes)."""
        logits: Tensor = self.fc(self.pool(features[-1]).flatten(1))
        return logits

    def forward(self, images: Tensor) -> Tensor:
        """Turn normalised images (N, in_chans, H, W) into logits (N, num_classes)."""
        return self.logits_of(self.forward_features(images))

    def copy_encoder(self) -> Encoder:
        """An independent, trainable copy of what is before the head, to start from."""
        raise NotImplementedError

    def fast_parameters(self) -> list[nn.Parameter]:
        """What F-CAM trains with ten times the learning rate: the head and its new layers."""
        return list(self.fc.parameters())
