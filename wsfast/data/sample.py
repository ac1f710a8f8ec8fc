"""What every defect data set returns, and the checks they share."""

from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsfast._check import check_range, type_error, value_error

SPLITS = ["train", "test"]


class DefectSample(NamedTuple):
    """One image with its defect; the default collate function stacks these into one such tuple.

    Attributes:
        image: uint8 (C, H, W).
        mask: bool (H, W), True on the defect.
        label: 1 where the image has a defect, else 0.
        name: file stem, e.g. ``"10000"``.
    """

    image: Tensor
    mask: Tensor
    label: int
    name: str


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


def check_size(where: str, size: tuple[int, int], minimum: int) -> None:
    """Raise unless ``size`` is a (height, width) of whole numbers of at least ``minimum``."""
    whole = isinstance(size, tuple | list) and all(isinstance(side, int) for side in size)
    if not whole:
        type_error(where, "size", "a (height, width) of two integers", f"{size}")
    if len(size) != 2 or min(size) < minimum:
        value_error(where, "size", f"(height, width) of at least {minimum} each", f"{size}")


def check_whole(where: str, argument: str, value: int, low: int, high: int) -> None:
    """Raise unless ``value`` is a whole number with ``low <= value <= high``."""
    if not isinstance(value, int):
        type_error(where, argument, "an integer", type(value).__name__)
    check_range(where, argument, value, low, high)
