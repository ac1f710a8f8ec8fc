"""Pictures for people: heat maps, outlines, boxes with scores, labelled grids."""

import textwrap
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
_LETTERS, _LINE = 0.42, 17  # of contact sheets: size, and pixels from line to line


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
    text = _drawable(text)
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


def contact_sheet(
    rows: list[list[Image]], titles: list[str], captions: list[str] | None = None
) -> Image:
    """A grid of pictures, alike in a row and all of one width, under titles of one or more lines.

    Each row may have a caption above it.
    """
    margin = 6
    header = 9 + _LINE * max(title.count("\n") + 1 for title in titles)
    width = rows[0][0].shape[1]
    above = 0 if captions is None else _LINE
    tops = [header]
    for row in rows:
        tops.append(tops[-1] + above + row[0].shape[0] + margin)
    columns = [max([width, *map(_text_width, title.split("\n"))]) for title in titles]
    lefts = [margin + sum(columns[:c]) + c * margin for c in range(len(columns))]
    sheet = _white(tops[-1], lefts[-1] + columns[-1] + margin)
    for top, caption in zip(tops, captions or [], strict=False):
        _print(sheet, caption, (margin, top + _LINE - 5))
    for c, (left, title) in enumerate(zip(lefts, titles, strict=True)):
        for i, text in enumerate(title.split("\n"), start=1):
            _print(sheet, text, (left, i * _LINE))
        for top, row in zip(tops, rows, strict=False):
            start = top + above
            sheet[start : start + row[c].shape[0], left : left + width] = row[c]
    return sheet


def text_block(paragraphs: list[str], width: int) -> Image:
    """Black text on white, wrapped to a width in pixels."""
    lines = [
        line
        for text in paragraphs
        for line in textwrap.wrap(text, max(20, width // 8), subsequent_indent="    ")
    ]
    block = _white(9 + _LINE * len(lines), width)
    for i, line in enumerate(lines, start=1):
        _print(block, line, (6, i * _LINE))
    return block


def stacked(parts: list[Image]) -> Image:
    """Pictures below each other, the narrower ones filled up with white."""
    sheet = _white(sum(part.shape[0] for part in parts), max(part.shape[1] for part in parts))
    top = 0
    for part in parts:
        sheet[top : top + part.shape[0], : part.shape[1]] = part
        top += part.shape[0]
    return sheet


def _white(height: int, width: int) -> Image:
    return np.full((height, width, 3), 255, np.uint8)


def _drawable(text: str) -> str:
    """The text, with ? for what a file's name may hold and a line of text not, such as line breaks.

    Of what is not UTF-8, OpenCV may crash; a line break would put the rest under the pictures.
    """
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _text_width(text: str) -> int:
    return int(cv2.getTextSize(_drawable(text), cv2.FONT_HERSHEY_SIMPLEX, _LETTERS, 1)[0][0])


def _print(image: Image, text: str, at: tuple[int, int]) -> None:
    """Write black text in place; ``at`` is the left end of its base line."""
    cv2.putText(
        image, _drawable(text), at, cv2.FONT_HERSHEY_SIMPLEX, _LETTERS, (0, 0, 0), 1, cv2.LINE_AA
    )


def write_png(path: Path, image: Image) -> None:
    """Write an RGB picture, whole or not at all."""
    done, data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    if not done:
        raise OSError(f"cannot encode {path.name}")
    write_atomically(path, data.tobytes())
