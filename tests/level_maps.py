"""8-bit maps of many kinds, true boxes, and shapes that are hard on careless algorithms."""

import cv2
import numpy as np
import torch

FAMILIES = (
    "noise", "few", "binary", "rings", "lines", "circles", "sparse", "smooth", "coarse", "faint",
    "empty", "full",
)  # fmt: skip


def draw(rng: np.random.Generator, height: int, width: int, circles: bool) -> np.ndarray:
    image = np.zeros((height, width), np.uint8)
    for _ in range(5):
        x, y, x1, y1 = (int(rng.integers(size)) for size in (width, height) * 2)
        colour = int(rng.integers(1, 256))
        if circles:
            cv2.circle(image, (x, y), int(rng.integers(1, max(height, width) + 1)), colour, 1)
        else:
            cv2.line(image, (x, y), (x1, y1), colour, 1)
    return image


def stretch(image: np.ndarray, top: float = 255.0) -> np.ndarray:
    return (image - image.min()) / (np.ptp(image) + 1e-9) * top


def make_map(family: str, height: int, width: int, seed: int) -> np.ndarray:
    """An 8-bit map."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    noise = rng.random((height, width))
    centre_y, centre_x = rng.random() * height, rng.random() * width
    coarse = cv2.resize(rng.random((5, 5)), (width, height), interpolation=cv2.INTER_CUBIC)
    image = {
        "noise": noise * 255.999,
        "few": np.floor(noise * 5) * 50,
        "binary": (noise < rng.random()) * 255,
        "rings": np.cos(np.hypot(y - centre_y, x - centre_x) * rng.uniform(0.3, 2)) * 127 + 127,
        "lines": draw(rng, height, width, circles=False),
        "circles": draw(rng, height, width, circles=True),
        "sparse": (noise < 0.08) * rng.integers(1, 256, (height, width)),
        "smooth": stretch(cv2.GaussianBlur(noise, (0, 0), 2)),
        "coarse": stretch(coarse),
        "faint": stretch(coarse + 0.05 * noise, rng.integers(1, 120)),
        "empty": np.zeros((height, width)),
        "full": np.full((height, width), 255),
    }[family]
    return np.asarray(image).astype(np.uint8)


def make_truth(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    count = rng.integers(1, 4)
    x = np.sort(rng.integers(0, width, (count, 2)), axis=1)
    y = np.sort(rng.integers(0, height, (count, 2)), axis=1)
    return np.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], axis=1)


def large_maps(side: int) -> dict[str, torch.Tensor]:
    """Shapes that overflow stacks and make careless searches quadratic."""
    y, x = np.mgrid[:side, :side]
    snake = np.zeros((side, side), np.uint8)
    snake[::2] = 200
    snake[1::4, -1] = snake[3::4, 0] = 200
    ramp = np.arange(side * side).reshape(side, side)
    ramp[1::2] = ramp[1::2, ::-1]
    angle = np.arctan2(y - side / 2, x - side / 2)
    radius = np.hypot(y - side / 2, x - side / 2)
    spiral = ((radius / 4 + angle / (2 * np.pi)) % 1 < 0.5) * 255
    climbing = (snake > 0) * (1 + ramp * 255 // (side * side))
    images = {
        "snake": snake,
        "climbing snake": climbing,
        "checkerboard": (x + y) % 2 * 255,
        "spiral": spiral,
        "falling spiral": (spiral > 0) * np.clip(255 - radius * 255 / side, 1, 255),
    }
    return {
        name: torch.from_numpy(np.asarray(image).astype(np.uint8))[None]
        for name, image in images.items()
    }
