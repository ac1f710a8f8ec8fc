"""Textured surfaces with scratches, spots and stains, drawn from one random generator.

Every length is a multiple of ``unit``, the image width over 64, so that a surface looks the same
at any size. The clean surface is drawn first and consumes the same random numbers whether or not
a defect follows: the two classes share one background, and outside its mask a defective image
equals the clean one pixel for pixel.
"""

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

FloatImage = NDArray[np.float32]
Mask = NDArray[np.bool_]

_REFERENCE_WIDTH = 64
_MIN_DEFECT_AREA = 12  # unit² pixels: smaller marks drown in the noise and only add label noise
_CONTRAST = (0.12, 0.30)


def render_surface(
    rng: np.random.Generator, size: tuple[int, int], *, defective: bool
) -> tuple[NDArray[np.uint8], Mask]:
    """Draw one grey surface and the exact mask of its defect.

    Args:
        rng: source of every random number.
        size: height and width in pixels.
        defective: whether to add a defect.

    Returns:
        The image, uint8 (H, W), and the mask, bool (H, W), empty on a clean surface.
    """
    height, width = size
    unit = width / _REFERENCE_WIDTH
    image = _clean_surface(rng, height, width, unit)
    mask = np.zeros(size, dtype=np.bool_)
    if defective:
        mask = _defect_mask(rng, height, width, unit)
        image += _defect_shading(rng, mask, unit)
    return (np.clip(image, 0, 1) * 255).astype(np.uint8), mask


def _smooth_noise(
    rng: np.random.Generator, height: int, width: int, sigma_x: float, sigma_y: float
) -> FloatImage:
    """Gaussian-filtered white noise of unit standard deviation."""
    white = rng.standard_normal((height, width), dtype=np.float32)
    smooth: FloatImage = cv2.GaussianBlur(white, (0, 0), sigmaX=sigma_x, sigmaY=sigma_y)
    return smooth / (smooth.std() + np.float32(1e-6))


def _clean_surface(rng: np.random.Generator, height: int, width: int, unit: float) -> FloatImage:
    image = np.full((height, width), rng.uniform(0.35, 0.55), dtype=np.float32)
    image += 0.02 * _smooth_noise(rng, height, width, 0.6 * unit, 0.6 * unit)  # grain
    image += 0.025 * _smooth_noise(rng, height, width, 6 * unit, 0.8 * unit)  # brushing
    image += 0.035 * _smooth_noise(rng, height, width, 20 * unit, 20 * unit)  # shading
    _add_faint_stains(rng, image, unit)
    _add_machining_line(rng, image, unit)
    image += rng.normal(0, 0.015, (height, width)).astype(np.float32)  # sensor noise
    return image


def _add_faint_stains(rng: np.random.Generator, image: FloatImage, unit: float) -> None:
    """Up to two soft round stains, harmless and found in both classes."""
    height, width = image.shape
    rows, columns = np.ogrid[:height, :width]
    for _ in range(rng.integers(0, 3)):
        y, x = rng.uniform(0, height), rng.uniform(0, width)
        radius = rng.uniform(10, 25) * unit
        bell = np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / (2 * radius**2))
        image += (rng.uniform(-0.06, 0.06) * bell).astype(np.float32)


def _add_machining_line(rng: np.random.Generator, image: FloatImage, unit: float) -> None:
    """A faint line across half of the surfaces, harmless and found in both classes."""
    if rng.random() < 0.5:
        row = int(rng.integers(0, image.shape[0]))
        image[row : row + max(1, round(unit))] += rng.uniform(-0.05, 0.05)


def _defect_mask(rng: np.random.Generator, height: int, width: int, unit: float) -> Mask:
    """Draw defects of random kind until their area is worth a label."""
    kinds: tuple[Callable[[np.random.Generator, int, int, float], Mask], ...]
    kinds = (_scratch, _spot, _pits, _stain)
    mask = np.zeros((height, width), dtype=np.bool_)
    while mask.sum() < _MIN_DEFECT_AREA * unit**2:
        mask |= kinds[rng.integers(len(kinds))](rng, height, width, unit)
    return mask


def _defect_shading(rng: np.random.Generator, mask: Mask, unit: float) -> FloatImage:
    """Brightness a defect adds: dark or bright, textured, softer at its edge, 0 outside."""
    contrast = rng.choice((-1, 1)) * rng.uniform(*_CONTRAST)
    texture = 0.8 + 0.12 * _smooth_noise(rng, mask.shape[0], mask.shape[1], 2 * unit, 2 * unit)
    soft = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 0.7 * unit)
    shading: FloatImage = np.where(mask, contrast * texture * soft, 0).astype(np.float32)
    return shading


def _random_centre(rng: np.random.Generator, height: int, width: int) -> tuple[float, float]:
    return rng.uniform(0.1, 0.9) * width, rng.uniform(0.1, 0.9) * height


def _scratch(rng: np.random.Generator, height: int, width: int, unit: float) -> Mask:
    """A wandering polyline."""
    x, y = _random_centre(rng, height, width)
    angle = rng.uniform(0, np.pi)
    points = [(x, y)]
    for _ in range(rng.integers(2, 5)):
        angle += rng.normal(0, 0.3)
        step = rng.uniform(10, 24) * unit
        x, y = x + step * np.cos(angle), y + step * np.sin(angle)
        points.append((x, y))
    canvas = np.zeros((height, width), dtype=np.uint8)
    thickness = max(1, round(rng.uniform(1.5, 4.5) * unit))
    cv2.polylines(canvas, [np.array(points).astype(np.int32)], False, 1, thickness)
    return canvas.astype(np.bool_)


def _spot(rng: np.random.Generator, height: int, width: int, unit: float) -> Mask:
    """A rotated ellipse with a slightly uneven outline."""
    return _uneven_ellipse(rng, height, width, unit, axes=(4, 12), roughness=0.15)


def _stain(rng: np.random.Generator, height: int, width: int, unit: float) -> Mask:
    """A wider patch with a ragged outline."""
    return _uneven_ellipse(rng, height, width, unit, axes=(7, 15), roughness=0.45)


def _uneven_ellipse(
    rng: np.random.Generator,
    height: int,
    width: int,
    unit: float,
    *,
    axes: tuple[float, float],
    roughness: float,
) -> Mask:
    x, y = _random_centre(rng, height, width)
    angle = rng.uniform(0, np.pi)
    first, second = rng.uniform(*axes, size=2) * unit
    rows, columns = np.ogrid[:height, :width]
    along = (columns - x) * np.cos(angle) + (rows - y) * np.sin(angle)
    across = (rows - y) * np.cos(angle) - (columns - x) * np.sin(angle)
    distance = np.hypot(along / first, across / second)
    inside: Mask = distance + roughness * _smooth_noise(rng, height, width, 3 * unit, 3 * unit) < 1
    return inside & (distance < 1.5)  # no islands far from the centre


def _pits(rng: np.random.Generator, height: int, width: int, unit: float) -> Mask:
    """A cluster of small discs."""
    x, y = _random_centre(rng, height, width)
    canvas = np.zeros((height, width), dtype=np.uint8)
    for _ in range(rng.integers(5, 12)):
        pit_x, pit_y = rng.normal((x, y), 6 * unit)
        radius = max(1, round(rng.uniform(1.5, 3.5) * unit))
        cv2.circle(canvas, (round(pit_x), round(pit_y)), radius, 1, -1)
    return canvas.astype(np.bool_)
