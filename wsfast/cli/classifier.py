"""The classifier that a command explains: a timm model or a wsfast checkpoint, and its input."""

from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .._check import value_error
from ..data.sample import image_to_tensor
from ..deploy import prepare_images
from ..models import load_checkpoint, load_weights


@dataclass(frozen=True)
class Classifier:
    """A model in eval mode, how to feed it, and what its logits are called.

    Attributes:
        model: the network on its device.
        size: height and width that images are resized to.
        channels: 1 or 3.
        mean: per channel, of images in 0-1.
        std: per channel, of images in 0-1.
        class_names: one per logit, or None where the model does not say.
    """

    model: nn.Module
    size: tuple[int, int]
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...] | None

    def prepare(self, image: NDArray) -> Tensor:  # type: ignore[type-arg]
        """One RGB uint8 (H, W, 3) picture as a normalised (C, h, w) float32 input.

        The whole picture is resized: a crop would hide part of what is to be localised.
        """
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        picture = image_to_tensor(image, self.channels)
        return prepare_images(picture[None], self.size, mean, std)[0]


def open_classifier(
    name: str | None,
    *,
    pretrained: bool,
    checkpoint: Path | None,
    num_classes: int | None,
    size: tuple[int, int] | None,
    device: torch.device,
    where: str = "localize",
) -> Classifier:
    """Build a timm model by name, or the model that a wsfast checkpoint describes.

    ``where`` is the command that messages name.

    Raises:
        ValueError: unknown model, unreadable or unfitting weights, nothing to load from.
    """
    if name is None:
        if checkpoint is None:
            value_error(where, "--model", "given (or a wsfast --checkpoint)", "neither")
        assert checkpoint is not None
        saved = load_checkpoint(checkpoint)
        found = Classifier(
            saved.model, saved.input_size, len(saved.mean), saved.mean, saved.std,
            saved.class_names,
        )  # fmt: skip
    else:
        found = _timm_classifier(where, name, pretrained, checkpoint, num_classes)
    return Classifier(
        found.model.eval().to(device), size or found.size, found.channels, found.mean, found.std,
        found.class_names,
    )  # fmt: skip


def _timm_classifier(
    where: str, name: str, pretrained: bool, checkpoint: Path | None, num_classes: int | None
) -> Classifier:
    if not timm.is_model(name):
        close = timm.list_models(f"*{name.split('_')[0].split('.')[0]}*")[:3]
        hint = f" (try: {', '.join(close)})" if close else ""
        value_error(where, "--model", "a timm model name", f"'{name}'{hint}")
    extra = {} if num_classes is None else {"num_classes": num_classes}
    try:
        model = timm.create_model(name, pretrained=pretrained and checkpoint is None, **extra)
    except RuntimeError as error:  # timm's word for weights that cannot be had
        value_error(where, "--pretrained", "available", str(error).splitlines()[0])
    if checkpoint is not None:
        load_weights(model, checkpoint)
    data = timm.data.resolve_model_data_config(model)
    names = None
    if pretrained and model.num_classes == 1000:
        labels = timm.data.ImageNetInfo()
        names = tuple(labels.index_to_description(i) for i in range(1000))
    height, width = data["input_size"][1:]
    return Classifier(
        model, (height, width), data["input_size"][0], data["mean"], data["std"], names
    )
