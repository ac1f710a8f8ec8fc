"""Batches of heat maps and boxes of all kinds, small."""

import cv2
import numpy as np
import torch
from torch import Tensor

FAMILIES = ("smooth", "noisy", "few", "binary", "zero", "dim", "rings")
HEIGHT, WIDTH = 33, 41


def make_map(family: str, rng: np.random.Generator) -> np.ndarray:
    coarse = rng.random((5, 6))
    smooth = cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    smooth = (smooth - smooth.min()) / (smooth.max() - smooth.min())
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    maps = {
        "smooth": smooth,
        "noisy": np.clip(0.7 * smooth + 0.3 * rng.random(smooth.shape), 0, 1),
        "few": np.round(smooth * 4) / 4,
        "binary": (smooth > 0.5).astype(np.float64),
        "zero": np.zeros_like(smooth),
        "dim": 0.37 * smooth,
        "rings": 0.5 + 0.5 * np.sin(np.hypot(y - 16, x - 20)),
    }
    return maps[family]


def make_boxes(rng: np.random.Generator) -> np.ndarray:
    corners = rng.integers(0, [WIDTH, HEIGHT], size=(rng.integers(1, 4), 2, 2))
    return np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)


def make_batch(n: int, seed: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    rng = np.random.default_rng(seed)
    maps = [make_map(FAMILIES[i % len(FAMILIES)], rng) for i in range(n)]
    return maps, [make_boxes(rng) for _ in range(n)]


def as_tensors(maps, boxes, dtype=torch.float64) -> tuple[Tensor, list[Tensor]]:
    return torch.from_numpy(np.stack(maps)).to(dtype), [torch.from_numpy(b) for b in boxes]
