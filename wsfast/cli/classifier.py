"""The classifier that a command explains: a timm model or a wsfast checkpoint, and its input."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import timm
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .._check import value_error
from ..cam import TSCAM
from ..cam.attention import check_model
from ..data.sample import image_to_tensor
from ..deploy import prepare_images
from ..models import DeepLabV3, FCAMModel, UNetLocalizer, load_checkpoint, load_weights
from ..models.weights import read_state_dict


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
        mean, std = (
            torch.tensor(values, dtype=torch.float32)[:, None, None]
            for values in (self.mean, self.std)
        )
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
    tscam: bool = False,
) -> Classifier:
    """Build a timm model by name, or the model that a wsfast checkpoint describes.

    ``where`` is the command that messages name; ``tscam`` makes TS-CAM of the named model.

    Raises:
        ValueError: unknown model, unreadable or unfitting weights, nothing to load from.
    """
    if name is None:
        if tscam:
            value_error(where, "--method tscam", "given with --model, a vision transformer", "none")
        if checkpoint is None:
            expected = "given, or --run, or a wsfast --checkpoint"
            value_error(where, "--model", expected, "none of them")
        assert checkpoint is not None
        saved = load_checkpoint(checkpoint)
        if isinstance(saved.model, (FCAMModel, UNetLocalizer, DeepLabV3)):
            expected = "of a classifier (what learnt its maps is given as --run FOLDER)"
            value_error(where, "--checkpoint", expected, f"{checkpoint}")
        found = Classifier(
            saved.model, saved.input_size, len(saved.mean), saved.mean, saved.std,
            saved.class_names,
        )  # fmt: skip
    else:
        network = _timm_model(
            where, "--model", name, pretrained and checkpoint is None,
            None if tscam else num_classes,
        )  # fmt: skip
        found = _fed_as_timm(network, pretrained=pretrained)
        if tscam:
            found = replace(found, model=_tscam(network, checkpoint, num_classes), class_names=None)
        if checkpoint is not None:
            load_weights(found.model, checkpoint)
    return replace(found, model=found.model.eval().to(device), size=size or found.size)


def open_transformer(
    text: str, classifier: Classifier
) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """The transformer of ``NAME[:CHECKPOINT]``, and its images from those of the classifier.

    Without a checkpoint it has timm's pretrained weights.

    Raises:
        ValueError: no vision transformer, unreadable or unfitting weights.
    """
    name, _, file = text.partition(":")
    model = _timm_model("localize", "--attention-model", name, not file, 0)
    check_model("localize --attention-model", model)
    if file:
        load_weights(model, file)
    device = next(classifier.model.parameters()).device
    other = _fed_as_timm(model.eval().to(device), pretrained=False)
    mean, std, other_mean, other_std = (
        torch.tensor(values, device=device)[:, None, None]
        for values in (classifier.mean, classifier.std, other.mean, other.std)
    )
    return model, lambda images: (images * std + mean - other_mean) / other_std


def _timm_model(
    where: str, argument: str, name: str, pretrained: bool, num_classes: int | None
) -> nn.Module:
    if not timm.is_model(name):
        close = timm.list_models(f"*{name.split('_')[0].split('.')[0]}*")[:3]
        hint = f" (try: {', '.join(close)})" if close else ""
        value_error(where, argument, "a timm model name", f"'{name}'{hint}")
    extra = {} if num_classes is None else {"num_classes": num_classes}
    try:
        model: nn.Module = timm.create_model(name, pretrained=pretrained, **extra)
    except RuntimeError as error:  # timm's word for weights that cannot be had
        expected = "a model whose pretrained weights are available"
        value_error(where, argument, expected, f"{name} ({str(error).splitlines()[0]})")
    return model


def _tscam(vit: nn.Module, checkpoint: Path | None, num_classes: int | None) -> TSCAM:
    """TS-CAM on a transformer, which keeps its own head only where the checkpoint has it, too."""
    classes = num_classes or int(vit.num_classes)  # type: ignore[arg-type]
    model = TSCAM(vit, classes)
    if checkpoint is not None:
        names = read_state_dict("localize", "--checkpoint", checkpoint)
        if not any("vit.head." in name for name in names):
            vit.reset_classifier(0)  # type: ignore[operator]
    return model


def _fed_as_timm(model: nn.Module, *, pretrained: bool) -> Classifier:
    """A timm model with its input, and ImageNet's names where it has its weights."""
    data = timm.data.resolve_model_data_config(model)
    names = None
    if pretrained and model.num_classes == 1000:
        labels = timm.data.ImageNetInfo()
        names = tuple(labels.index_to_description(i) for i in range(1000))
    height, width = data["input_size"][1:]
    return Classifier(
        model, (height, width), data["input_size"][0], data["mean"], data["std"], names
    )
