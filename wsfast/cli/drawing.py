"""Pictures for people: heat maps, outlines, boxes with scores, labelled grids."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from .._files import write_atomically

Image = NDArray[np.uint8]

_OUTLINE = (255, 255, 255)
_BOX = (0, 255, 90)
_TEXT_SHADOW = (0, 0, 0)


def _scale_of(image: Image) -> float:
    """Lines and letters grow with the picture."""
    return max(1.0, min(image.shape[:2]) / 320)


def heat_overlay(image: Image, cam: NDArray[np.float32], *, strength: float = 0.45) -> Image:
    """The image under a colour-coded map; image (H, W, 3) RGB, map (H, W) in 0-1."""
    levels = (np.clip(cam, 0, 1) * 255).astype(np.uint8)
    colours = cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_TURBO), cv2.COLOR_BGR2RGB)
    return np.asarray(cv2.addWeighted(colours, strength, image, 1 - strength, 0), np.uint8)


def draw_outline(image: Image, mask: NDArray[np.bool_]) -> None:
    """Trace the outline of a mask in place."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    thickness = round(_scale_of(image))
    cv2.drawContours(image, contours, -1, _OUTLINE, thickness)


def draw_boxes(
    image: Image, boxes: NDArray[np.int32], scores: NDArray[np.float32] | None = None
) -> None:
    """Draw half-open pixel boxes (x0, y0, x1, y1) in place, with their scores if given."""
    scale = _scale_of(image)
    thickness = round(scale)
    for x0, y0, x1, y1 in boxes.tolist():
        cv2.rectangle(image, (x0, y0), (x1 - 1, y1 - 1), _BOX, thickness)
    if scores is not None:
        for (x0, y0, _, _), score in zip(boxes.tolist(), scores.tolist(), strict=True):
            write_text(image, f"{score:.2f}", (x0 + 2, max(int(12 * scale), y0 - 3)), _BOX)


def write_text(image: Image, text: str, at: tuple[int, int], colour: tuple[int, int, int]) -> None:
    """Write shadowed text in place; ``at`` is the left end of its base line."""
    scale = _scale_of(image)
    for ink, width in ((_TEXT_SHADOW, 2), (colour, 1)):
        cv2.putText(
            image, text, at, cv2.FONT_HERSHEY_SIMPLEX, 0.4 * scale, ink, round(width * scale),
            cv2.LINE_AA,
        )  # fmt: skip


def localization_overlay(
    image: Image,
    cam: NDArray[np.float32],
    mask: NDArray[np.bool_],
    boxes: NDArray[np.int32],
    scores: NDArray[np.float32],
) -> Image:
    """Image under its heat map, with mask outline and boxes."""
    overlay = heat_overlay(image, cam)
    draw_outline(overlay, mask)
    draw_boxes(overlay, boxes, scores)
    return overlay


def beside(image: Image, other: Image) -> Image:
    """Two pictures of one height with a gap between them."""
    gap = np.full((image.shape[0], max(2, image.shape[1] // 100), 3), 255, np.uint8)
    return np.concatenate([image, gap, other], axis=1)


def enlarge(image: NDArray[Any], zoom: int) -> NDArray[Any]:
    """Every pixel as a zoom x zoom square."""
    return image.repeat(zoom, axis=0).repeat(zoom, axis=1)


def contact_sheet(rows: list[list[Image]], titles: list[str]) -> Image:
    """A grid of equally large pictures under column titles of one or more lines."""
    margin, line = 6, 17
    header = 9 + line * max(title.count("\n") + 1 for title in titles)
    height, width = rows[0][0].shape[:2]
    column = max(width, 92)
    sheet = np.full(
        (header + len(rows) * (height + margin), margin + len(titles) * (column + margin), 3),
        255,
        np.uint8,
    )
    for c, title in enumerate(titles):
        left = margin + c * (column + margin)
        for i, text in enumerate(title.split("\n"), start=1):
            at = (left, i * line)
            cv2.putText(sheet, text, at, cv2.FONT_HERSHEY_SIMPLEX, 0.42, 0, 1, cv2.LINE_AA)
        for r, row in enumerate(rows):
            top = header + r * (height + margin)
            sheet[top : top + height, left : left + width] = row[c]
    return sheet


def write_png(path: Path, image: Image) -> None:
    """Write an RGB picture, whole or not at all."""
    done, data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    if not done:
        raise OSError(f"cannot encode {path.name}")
    write_atomically(path, data.tobytes())
