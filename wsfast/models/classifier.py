"""A classifier from any encoder, with the head that CAM's closed form needs."""

import copy
from typing import Any

from torch import Tensor, nn

from wsfast._check import check_count
from wsfast.models.encoders import as_encoder
from wsfast.models.interface import Encoder, GAPClassifier


class WSOLClassifier(GAPClassifier):
    """Global average pooling and a linear layer on an encoder's last feature map.

    The head F-CAM uses throughout: weight Xavier-uniform, bias zero.

    Args:
        encoder: an encoder, or the name of one for :func:`create_encoder`.
        num_classes: number of logits.
        **options: of :func:`create_encoder` where ``encoder`` is a name: ``in_chans``,
            ``pretrained``, ``checkpoint``, ….

    Raises:
        ValueError: no class; see :func:`create_encoder`.

    Example:
        >>> import torch
        >>> model = WSOLClassifier("small_vgg", 5, in_chans=1).eval()
        >>> features = model.forward_features(torch.rand(2, 1, 32, 16))
        >>> model.logits_of(features).shape, features[-1].shape, model.cam_weights.shape
        (torch.Size([2, 5]), torch.Size([2, 64, 4, 2]), torch.Size([5, 64]))
    """

    def __init__(self, encoder: Encoder | str, num_classes: int, **options: Any) -> None:
        check_count("WSOLClassifier", "num_classes", num_classes, 1)
        encoder = as_encoder("WSOLClassifier", encoder, options)
        info = [
            entry | ({"module": f"encoder.{entry['module']}"} if "module" in entry else {})
            for entry in encoder.feature_info
        ]
        config = {
            "architecture": "WSOLClassifier",
            "encoder": encoder.config,
            "num_classes": num_classes,
        }
        super().__init__(encoder.in_chans, num_classes, info, config)
        self.encoder = encoder
        self.decoder_widths = encoder.decoder_widths
        self.decoder_center = encoder.decoder_center
        self.add_head()
        nn.init.xavier_uniform_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)

    def forward_features(self, images: Tensor) -> list[Tensor]:
        """Turn images into the encoder's feature maps, fine to coarse."""
        features: list[Tensor] = self.encoder(images)
        return features

    def copy_encoder(self) -> Encoder:
        """An independent copy of the encoder, to train another model from."""
        return copy.deepcopy(self.encoder).requires_grad_()

    def fast_parameters(self) -> list[nn.Parameter]:
        """What F-CAM trains with ten times the learning rate.

        The head and VGG16's conv6, ResNet50's layer4 or InceptionV3's new convolutions.
        """
        layers = [self.encoder.get_submodule(name) for name in self.encoder.fast_layers]
        return [parameter for layer in [*layers, self.fc] for parameter in layer.parameters()]
