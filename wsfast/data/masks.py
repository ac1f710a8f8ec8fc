"""Masks from files: binary, index and noisy ones."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F

from wsfast.data.images import UnreadableImageError, read_samples, to_8_bit

IGNORED = 255
MASK_KINDS = ["binary", "nonzero", "index"]

Mask = NDArray[Any]  # bool, or uint8 with IGNORED


def read_mask(paths: Sequence[Path], kind: str, ignore: Path | None = None) -> Mask:
    """The object's pixels: of any of the files.

    Args:
        paths: at least one file, of one size. 16-bit files are scaled to 255 where a sample is
            above 255.
        kind: ``"nonzero"`` takes every pixel that is not 0. ``"binary"`` takes what reaches half of
            255, or is 1 in a file of 0 and 1: the noise of a mask that has been through JPEG stays
            out. ``"index"`` takes every class number but 0, of grey or palette files; 255 is
            ignored.
        ignore: a file whose non-zero pixels do not count, unless they are the object's.

    Returns:
        (H, W) bool; uint8 of 0, 1 and 255 where pixels can be ignored.

    Raises:
        UnreadableImageError: a file cannot be read or has another size than the first.
    """
    if kind == "index":
        return _read_indices(paths)
    found = _union(paths, kind)
    if ignore is None:
        return found
    ignored = _pixels(ignore, "nonzero")
    if ignored.shape != found.shape:
        raise UnreadableImageError(ignore, "the masks of one image differ in size")
    return np.where(found, 1, np.where(ignored, IGNORED, 0)).astype(np.uint8)


def object_pixels(mask: Mask) -> NDArray[np.bool_]:
    """Where a mask has the object."""
    return np.asarray(mask == 1)


def resized_mask(mask: Mask, size: tuple[int, int]) -> Mask:
    """A mask at another (height, width).

    A pixel is the object's where any of the object falls into it, so that none is lost, however
    thin; other pixels are as their nearest one.
    """
    nearest = cv2.resize(mask.astype(np.uint8), size[::-1], interpolation=cv2.INTER_NEAREST)
    smaller = (min(size[0], mask.shape[0]), min(size[1], mask.shape[1]))
    found = torch.from_numpy(object_pixels(mask).astype(np.float32))[None]
    pooled = F.adaptive_max_pool2d(found, smaller)[0].numpy()
    found_nearest = cv2.resize(pooled, size[::-1], interpolation=cv2.INTER_NEAREST)
    return np.where(found_nearest > 0, 1, nearest).astype(mask.dtype)


def _union(paths: Sequence[Path], kind: str) -> NDArray[np.bool_]:
    found = _pixels(paths[0], kind)
    for path in paths[1:]:
        more = _pixels(path, kind)
        if more.shape != found.shape:
            raise UnreadableImageError(path, "the masks of one image differ in size")
        found |= more
    return found


def _pixels(path: Path, kind: str) -> NDArray[np.bool_]:
    values: NDArray[Any] = read_samples(path)
    if values.ndim == 3:
        blue, green, red = np.moveaxis(values, 2, 0)
        values = np.maximum(np.maximum(red, green), blue)  # a maximum over the last axis takes 10x
    whole = values.dtype in (np.uint8, np.uint16)  # not scaled: 16 bits may hold small numbers
    if kind == "nonzero" and whole:
        return np.asarray(values > 0)
    if not whole or values.max() > 255:
        values = to_8_bit(path, values)
    high = 1 if kind == "nonzero" or values.max() <= 1 else 128
    return np.asarray(values >= high)


def _read_indices(paths: Sequence[Path]) -> NDArray[np.uint8]:
    found = ignored = np.zeros((0, 0), np.bool_)
    for path in paths:
        numbers = _indices(path)
        if not found.size:
            found = ignored = np.zeros(numbers.shape, np.bool_)
        if numbers.shape != found.shape:
            raise UnreadableImageError(path, "the masks of one image differ in size")
        found = found | ((numbers > 0) & (numbers != IGNORED))
        ignored = ignored | (numbers == IGNORED)
    return np.where(found, 1, np.where(ignored, IGNORED, 0)).astype(np.uint8)


def _indices(path: Path) -> NDArray[np.uint8]:
    # OpenCV turns a palette's numbers into colours.
    try:
        with Image.open(path) as image:
            if image.mode not in ("L", "P", "1"):
                raise UnreadableImageError(path, f"no index mask: its mode is {image.mode}")
            return np.array(image, np.uint8)
    except Image.DecompressionBombError:
        raise UnreadableImageError(path, "more pixels than Pillow takes") from None
    except (OSError, SyntaxError) as error:  # the latter of chunks that are damaged
        reason = getattr(error, "strerror", None)
        raise UnreadableImageError(path, reason or "not an image or damaged") from None
