"""What every data set returns, and the checks they share."""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsfast._check import check_range, type_error, value_error

SPLITS = ["train", "val", "test"]

_LARGEST = torch.finfo(torch.float32).max
NO_BOXES = torch.zeros((0, 4), dtype=torch.int32)


class Sample(NamedTuple):
    """One image with its label and what is known of where the object is.

    The default collate function stacks these into one such tuple where all have a mask of one size
    and no boxes.

    Attributes:
        image: uint8 (C, H, W).
        mask: bool (H, W), True on the object; uint8 with 255 for pixels that do not count, in data
            sets that have such; None where no mask is known.
        label: class of the image; of defect data 1 where there is a defect, else 0.
        name: of the image in its data set, e.g. ``"10000"`` or ``"train/01226z/3cc.jpg"``.
        boxes: int32 (G, 4), half-open in pixels of ``image``; no row where none is known.
    """

    image: Tensor
    mask: Tensor | None
    label: int
    name: str
    boxes: Tensor = NO_BOXES


DefectSample = Sample
"""The same, by its name while there were only defect data."""


def inclusive_corners(boxes: Tensor) -> Tensor:
    """Half-open boxes as the last pixels included, as the localisation protocol has them.

    Example:
        >>> inclusive_corners(torch.tensor([[0, 0, 4, 2]]))
        tensor([[0, 0, 3, 1]])
    """
    return boxes - boxes.new_tensor([0, 0, 1, 1])


def image_to_tensor(image: NDArray[np.uint8], channels: int) -> Tensor:
    """Turn a grey (H, W) or RGB (H, W, 3) array into a uint8 (channels, H, W) tensor."""
    if channels == 1 and image.ndim == 3:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.uint8, copy=False)
    if image.ndim == 2:
        return torch.from_numpy(image).expand(channels, *image.shape).contiguous()
    return torch.from_numpy(image).permute(2, 0, 1).contiguous()


def check_channels(where: str, channels: int) -> None:
    """Raise ValueError unless ``channels`` is 1 (grey) or 3 (RGB)."""
    if channels not in (1, 3):
        value_error(where, "channels", "1 or 3", f"{channels}")


def check_size(where: str, size: tuple[int, int], minimum: int, argument: str = "size") -> None:
    """Raise unless ``size`` is a (height, width) of whole numbers of at least ``minimum``."""
    whole = isinstance(size, tuple | list) and all(isinstance(side, int) for side in size)
    if not whole:
        type_error(where, argument, "a (height, width) of two integers", f"{size}")
    if len(size) != 2 or min(size) < minimum:
        value_error(where, argument, f"(height, width) of at least {minimum} each", f"{size}")


def check_normalization(where: str, mean: Sequence[float], std: Sequence[float]) -> None:
    """Raise unless there are a finite mean and a positive standard deviation per channel."""
    for value in mean:
        check_range(where, "mean", value, -_LARGEST, _LARGEST)
    if len(mean) < 1 or len(std) != len(mean) or not all(0 < v <= _LARGEST for v in std):
        expected = "as many positive numbers as mean, one per channel"
        value_error(where, "std", expected, f"{list(std)} for mean {list(mean)}")


def check_whole(where: str, argument: str, value: int, low: int, high: int) -> None:
    """Raise unless ``value`` is a whole number with ``low <= value <= high``."""
    if not isinstance(value, int):
        type_error(where, argument, "an integer", type(value).__name__)
    check_range(where, argument, value, low, high)
