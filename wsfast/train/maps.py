"""Maps of all training images, made once by a CAM method and kept in one file."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from wsfast.cam import CAMMethod
from wsfast.train.store import Array, ArrayStore, weights_digest


def quantized(maps: Tensor) -> Tensor:
    """Maps of 0-1 as uint8: ``trunc(255 x)``, the levels at which Otsu's threshold is sought."""
    return (maps.clamp(0, 1) * 255).to(torch.uint8)


def dequantized(levels: Tensor) -> Tensor:
    """Maps of 0-1 in the middle of their levels, so that :func:`quantized` gives these back."""
    return ((levels.float() + 0.5) / 255).clamp_max(1)


def cached_cams(
    folder: Path,
    explain: CAMMethod,
    read: Callable[[list[int]], Tensor],
    targets: Tensor,
    size: tuple[int, int],
    *,
    key: Mapping[str, Any],
    batch_size: int = 32,
    progress: bool = True,
) -> Array:
    """Maps of every training image for its target class, (N, H, W) uint8, memory-mapped.

    The file is found again by weights, method, size and ``key``.

    Args:
        folder: of the cache.
        explain: the method.
        read: from image numbers to normalised images (n, C, h, w) on the model's device.
        targets: class per image.
        size: height and width of the maps that are kept.
        key: what else the maps depend on: images, targets, settings of the method.
        batch_size: images at a time.
        progress: show a bar.
    """
    name = type(explain).__name__
    full_key = {"weights": weights_digest(explain.model), "method": name, **key}

    def compute(rows: list[int]) -> Array:
        images = read(rows)
        cams = explain(images, targets[rows].to(images.device)).cams
        if cams.shape[1:] != size:
            cams = F.interpolate(cams[:, None], size, mode="bilinear", align_corners=False)[:, 0]
        return quantized(cams).cpu().numpy()

    store = ArrayStore(folder, name.lower(), full_key, (len(targets), *size))
    return store.fill(compute, batch_size=batch_size, progress=progress)
