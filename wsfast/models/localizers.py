"""F-CAM's and DiPS' networks: an encoder and a decoder to a map of the image's size."""

from typing import Any, NamedTuple

from torch import Tensor, nn

from wsfast._check import type_error
from wsfast._exports import kept_in_exports
from wsfast.models.decoder import UNetDecoder
from wsfast.models.encoders import as_encoder
from wsfast.models.interface import Encoder, GAPClassifier


@kept_in_exports
class LocalizationOutput(NamedTuple):
    """What an F-CAM network says of a batch.

    Attributes:
        logits: (N, classes), the classifier's.
        map_logits: (N, 2, H, W), background and foreground; softmax gives the map.
    """

    logits: Tensor
    map_logits: Tensor


def foreground_maps(map_logits: Tensor) -> Tensor:
    """Foreground probability (N, H, W), float32, of map logits (N, 2, H, W)."""
    return map_logits.float().softmax(1)[:, 1]


class FCAMModel(nn.Module):
    """A frozen classifier and a trainable decoder on its feature maps (F-CAM, Belharbi 2022).

    The classifier has no gradients, stays in eval mode whatever :meth:`train` says (its batch
    statistics and dropout are those of inference) and hands its features on detached.

    Args:
        classifier: trained; frozen in place.
        decoder: by default the one that :meth:`UNetDecoder.of` gives for the classifier.

    Raises:
        TypeError: a classifier without the interface of :class:`GAPClassifier`.

    Note:
        A training step needs the encoder once: ``features = model.forward_features(images)``, then
        ``model.classifier.logits_of(features)``, CAMs from ``features[-1]`` and
        ``model.classifier.cam_weights``, and ``model.decoder(features, size)``.

    Example:
        >>> import torch
        >>> from wsfast.models import SmallVGG
        >>> model = FCAMModel(SmallVGG(in_chans=1)).train()
        >>> output = model(torch.rand(2, 1, 32, 16))
        >>> output.logits.shape, output.map_logits.shape, model.classifier.training
        (torch.Size([2, 2]), torch.Size([2, 2, 32, 16]), False)
    """

    def __init__(self, classifier: GAPClassifier, decoder: UNetDecoder | None = None) -> None:
        super().__init__()
        if not isinstance(classifier, GAPClassifier):
            type_error(
                "FCAMModel", "classifier", "a SmallVGG or WSOLClassifier", type(classifier).__name__
            )
        self.classifier = classifier.requires_grad_(False).eval()
        self.decoder = UNetDecoder.of(classifier) if decoder is None else decoder
        self.in_chans = classifier.in_chans
        self.num_classes = classifier.num_classes
        self.config: dict[str, Any] = {
            "architecture": "FCAMModel",
            "classifier": classifier.config,
            "decoder": self.decoder.config,
        }

    def train(self, mode: bool = True) -> "FCAMModel":
        """Set the decoder's mode; the classifier stays in eval mode."""
        super().train(mode)
        self.classifier.eval()
        return self

    def forward_features(self, images: Tensor) -> list[Tensor]:
        """The classifier's feature maps, detached."""
        return [features.detach() for features in self.classifier.forward_features(images)]

    def forward(self, images: Tensor) -> LocalizationOutput:
        """Turn normalised images (N, in_chans, H, W) into class logits and map logits."""
        features = self.forward_features(images)
        logits = self.classifier.logits_of(features)
        return LocalizationOutput(
            logits, self.decoder(features, (images.shape[2], images.shape[3]))
        )


class UNetLocalizer(nn.Module):
    """An encoder and F-CAM's decoder, all of it trainable: DiPS' localizer, or a plain U-Net.

    Args:
        encoder: an encoder, or the name of one for :func:`create_encoder`. ``"small_vgg"`` with
            ``decoder={"input_skip": True}`` is a small U-Net.
        decoder: options of :class:`UNetDecoder`, for what :meth:`UNetDecoder.of` gives.
        **options: of :func:`create_encoder` where ``encoder`` is a name.

    Example:
        >>> import torch
        >>> model = UNetLocalizer("small_vgg", {"input_skip": True}, in_chans=1)
        >>> model(torch.rand(2, 1, 32, 16)).shape
        torch.Size([2, 2, 32, 16])
    """

    def __init__(
        self,
        encoder: Encoder | str,
        decoder: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.encoder = as_encoder("UNetLocalizer", encoder, options)
        self.decoder = UNetDecoder.of(self.encoder, **(decoder or {}))
        self.in_chans = self.encoder.in_chans
        self.config: dict[str, Any] = {
            "architecture": "UNetLocalizer",
            "encoder": self.encoder.config,
            "decoder": self.decoder.config,
        }

    def forward(self, images: Tensor) -> Tensor:
        """Turn normalised images (N, in_chans, H, W) into map logits (N, 2, H, W)."""
        map_logits: Tensor = self.decoder(self.encoder(images), (images.shape[2], images.shape[3]))
        return map_logits
