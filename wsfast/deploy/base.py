"""What stands around a network, whatever its maps come from."""

from collections.abc import Sequence
from typing import Any, Self, TypedDict

import timm
import torch
from torch import Tensor, nn

from wsfast._check import (
    check_choice,
    check_connectivity,
    check_count,
    check_range,
    value_error,
)
from wsfast.data.sample import check_normalization, check_size
from wsfast.deploy.steps import (
    LocalizerOutput,
    check_images,
    find_boxes,
    prepare_images,
    resize_cams,
    warn_of_other_scales,
)

_SPACE_TO_DEPTH = 16  # channels that TResNet's stem makes of one before its first convolution


class Boxing(TypedDict, total=False):
    """The keyword arguments that every localizer takes; :class:`Localizer` has their defaults."""

    threshold: float | str
    max_boxes: int
    connectivity: int
    min_area: int
    output_size: tuple[int, int] | None


class LocalizerBase(nn.Module):
    """Preparation of the images before a network, boxes behind it, and how both are set."""

    def __init__(
        self,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        input_size: tuple[int, int],
        class_names: Sequence[str] = (),
        threshold: float | str = "otsu",
        max_boxes: int = 16,
        connectivity: int = 8,
        min_area: int = 1,
        output_size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        where = f"deploy.{type(self).__name__}"
        for name, size in (("input_size", input_size), ("output_size", output_size)):
            if size is not None:
                check_size(where, size, 1, name)
        check_normalization(where, mean, std)
        if isinstance(threshold, str):
            check_choice(where, "threshold", threshold, ["otsu", "otsu2"])
        else:
            check_range(where, "threshold", threshold, 0.0, 1.0)
            threshold = float(threshold)
        check_count(where, "max_boxes", max_boxes, 1)
        check_count(where, "min_area", min_area, 1)
        check_connectivity(where, connectivity)
        self.where = where
        self.input_size = (int(input_size[0]), int(input_size[1]))
        self.output_size = None if output_size is None else (output_size[0], output_size[1])
        self.channels = len(mean)
        self.class_names = tuple(class_names)
        self.threshold = threshold
        self.max_boxes = max_boxes
        self.connectivity = connectivity
        self.min_area = min_area
        self.mean: Tensor
        self.std: Tensor
        for name, values in (("mean", mean), ("std", std)):
            per_channel = torch.tensor([float(value) for value in values])  # whole numbers, too
            self.register_buffer(name, per_channel.reshape(-1, 1, 1))

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode: a localizer is not trained."""
        return super().train(False)

    def _prepare_for(self, model: nn.Module) -> None:
        """Make inputs on the model's device and of its dtype."""
        weight = next((p for p in model.parameters() if p.is_floating_point()), None)
        if weight is not None:
            self.mean, self.std = self.mean.to(weight), self.std.to(weight)

    def prepare(self, images: Tensor) -> Tensor:
        """Turn pictures into the network's input, see :func:`prepare_images`."""
        check_images(self.where, images, self.channels)
        if not torch.jit.is_scripting():
            warn_of_other_scales(self.where, images)
        return prepare_images(images, self.input_size, self.mean, self.std)

    def finish(self, images: Tensor, logits: Tensor, cams: Tensor) -> LocalizerOutput:
        """Bring maps to the pictures' size and box what lies above the threshold."""
        if not torch.jit.is_scripting():
            self._check_names(logits)
        wanted = self.output_size
        size = (images.shape[2], images.shape[3]) if wanted is None else wanted
        return find_boxes(
            logits,
            resize_cams(cams, size),
            self.threshold,
            self.max_boxes,
            self.connectivity,
            self.min_area,
        )

    @torch.jit.unused
    def _check_names(self, logits: Tensor) -> None:
        check_class_names(self.where, self.class_names, logits.shape[1])

    def extra_repr(self) -> str:
        """The settings."""
        return (
            f"input_size={self.input_size}, channels={self.channels}, "
            f"threshold={self.threshold}, max_boxes={self.max_boxes}"
        )


def check_class_names(where: str, class_names: Sequence[str], classes: int) -> None:
    """Raise ValueError unless there is one name per class, or none at all."""
    if len(class_names) not in (0, classes):
        value_error(where, "class_names", f"one per class ({classes})", f"{len(class_names)}")


def input_settings(
    where: str,
    model: nn.Module,
    *,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    input_size: tuple[int, int] | None,
) -> dict[str, Any]:
    """How a model is fed: what was given, else what timm knows of it."""
    if input_size is not None:
        check_size(where, input_size, 1, "input_size")
    given = {"mean": mean, "std": std, "input_size": input_size}
    known: dict[str, Any] = {}
    if hasattr(model, "pretrained_cfg"):
        data = timm.data.resolve_model_data_config(model)
        known = {"input_size": data["input_size"][1:]}
        channels = len(data["mean"])
        if _input_channels(model) in (None, channels, channels * _SPACE_TO_DEPTH):
            known |= {"mean": data["mean"], "std": data["std"]}
    for name, value in given.items():
        if value is None and name not in known:
            value_error(where, name, f"given for this {type(model).__name__}", "None")
    return {name: known[name] if value is None else value for name, value in given.items()}


def _input_channels(model: Any) -> int | None:
    """What timm's first convolution takes: its settings have three whatever ``in_chans`` was."""
    first = model.pretrained_cfg.get("first_conv")
    name = first[0] if isinstance(first, (tuple, list)) and first else first
    try:
        return getattr(model.get_submodule(name), "in_channels", None)
    except (AttributeError, TypeError):  # no such module, or none named
        return None
