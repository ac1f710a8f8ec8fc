"""Masks that are hard on connected components."""

import cv2
import numpy as np
import torch

FAMILIES = ("noise", "sparse", "dense", "smooth", "rings", "lines", "checker", "empty", "full")


def make_mask(family: str, height: int, width: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    noise = rng.random((height, width))
    masks = {
        "noise": noise < 0.5,
        "sparse": noise < 0.05,
        "dense": noise < 0.9,
        "smooth": cv2.GaussianBlur(noise, (0, 0), 2) > 0.5,
        "rings": (np.hypot(y - height / 2, x - width / 2) // 2) % 2 == 0,
        "lines": (y + x * rng.integers(0, 3)) % 3 == 0,
        "checker": (y + x) % 2 == 0,
        "empty": np.zeros_like(noise, bool),
        "full": np.ones_like(noise, bool),
    }
    return masks[family].astype(np.uint8)


def snake(height: int, width: int) -> torch.Tensor:
    """One path through the whole image, row by row."""
    mask = torch.zeros(1, height, width, dtype=torch.bool)
    mask[:, ::2] = True
    mask[:, 1::4, -1] = True
    mask[:, 3::4, 0] = True
    return mask


def spiral(size: int) -> torch.Tensor:
    """One path from a corner to the centre: walls of a 4-connected corridor."""
    mask = torch.zeros(size, size, dtype=torch.bool)
    top, bottom = 0, size - 1
    while top <= bottom:
        mask[top, max(0, top - 1) : bottom + 1] = True
        mask[top : bottom + 1, bottom] = True
        mask[bottom, top : bottom + 1] = True
        mask[top + 2 : bottom + 1, top] = True
        top, bottom = top + 2, bottom - 2
    return mask[None]


def checkerboard(height: int, width: int) -> torch.Tensor:
    return ((torch.arange(height)[:, None] + torch.arange(width)) % 2 == 0)[None]
