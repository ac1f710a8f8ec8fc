"""``wsfast localize --compare``: every method's heat map of the same images, side by side."""

import argparse
import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from .. import ops
from .._files import write_atomically
from ..cam import METHODS, CAMMethod
from ..data import ImageFiles
from .classifier import Classifier
from .drawing import Image, contact_sheet, draw_outline, heat_overlay, write_png
from .methods import build_method, method_names

MOST_IMAGES = 12
_SIDE = 192  # longer side of a tile in pixels


@dataclass
class Column:
    """One method's maps of all images, or why it has none."""

    name: str
    layers: list[str] = field(default_factory=list)
    milliseconds: float = 0.0
    cams: list[Tensor] = field(default_factory=list)
    masks: list[Tensor] = field(default_factory=list)
    reason: str | None = None

    @property
    def title(self) -> str:
        """Name and time per image, on two lines."""
        name = self.name.replace("PlusPlus", "++").replace("Smooth", "Sm.")
        return f"{name}\n{self.milliseconds:.1f} ms"

    def record(self) -> dict[str, Any]:
        """The method's entry of compare.json."""
        if self.reason:
            return {"not_applicable": self.reason}
        return {"layers": self.layers, "milliseconds": round(self.milliseconds, 3)}


def explain_all(
    method: CAMMethod, column: Column, inputs: Tensor, options: argparse.Namespace, bar: Any
) -> None:
    """Fill a column: maps at input size, Otsu or fixed masks, time per image."""
    seconds = 0.0
    for batch in inputs.split(options.batch_size):
        start = time.perf_counter()
        cams = method(batch, options.target).cams.cpu()
        seconds += time.perf_counter() - start
        column.cams += list(cams)
        limits = ops.cam_thresholds(cams.clamp(0, 1), options.threshold)
        column.masks += list(cams >= limits[:, None, None])
        bar.update(len(batch))
    column.layers = list(method.layer_names or ())
    column.milliseconds = 1000 * seconds / len(inputs)


def explain_by_all_methods(
    classifier: Classifier, inputs: Tensor, options: argparse.Namespace
) -> list[Column]:
    """One column per method; a method that cannot explain this model says why."""
    names = method_names(options.method or "all")
    build_method("gradcam", options, classifier)(inputs[:1], options.target)  # warms the model up
    columns = []
    with tqdm(total=len(names) * len(inputs), unit="map", desc="comparing") as bar:
        for name in names:
            column = Column(METHODS[name].__name__)
            bar.set_postfix_str(column.name)
            try:
                method = build_method(name, options, classifier)
                explain_all(method, column, inputs, options, bar)
            except ValueError as error:
                column.reason = str(error)
            columns.append(column)
    return columns


def shrunk(image: NDArray[np.uint8]) -> Image:
    """The picture with a longer side of 192 pixels."""
    shrink = _SIDE / max(image.shape[:2])
    size = (max(1, round(image.shape[1] * shrink)), max(1, round(image.shape[0] * shrink)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)


def mapped(picture: Image, cam: Tensor, mask: Tensor) -> Image:
    """The picture under its map, with the outline of the mask."""
    size = (picture.shape[1], picture.shape[0])
    overlay = heat_overlay(picture, _at_size(cam, size))
    draw_outline(overlay, _at_size(mask.float(), size) >= 0.5)
    return overlay


def draw_sheet(images: list[NDArray[np.uint8]], columns: list[Column]) -> Image:
    """A row per image: itself, then every method's map of it."""
    pictures = [shrunk(image) for image in images]
    height = max(picture.shape[0] for picture in pictures)
    width = max(picture.shape[1] for picture in pictures)

    def framed(picture: Image) -> Image:
        frame = np.full((height, width, 3), 255, np.uint8)
        frame[: picture.shape[0], : picture.shape[1]] = picture
        return frame

    rows = [
        [framed(p), *(framed(mapped(p, c.cams[i], c.masks[i])) for c in columns)]
        for i, p in enumerate(pictures)
    ]
    return contact_sheet(rows, ["image", *(column.title for column in columns)])


def _at_size(values: Tensor, size: tuple[int, int]) -> NDArray[np.float32]:
    shape = (size[1], size[0])
    resized = F.interpolate(values[None, None], shape, mode="bilinear", align_corners=False)
    return np.asarray(resized[0, 0].numpy(), np.float32)


def compare(images: ImageFiles, classifier: Classifier, options: argparse.Namespace) -> int:
    """Write compare.png and compare.json; the first images only, to keep the sheet readable."""
    found: list[tuple[str, NDArray[np.uint8]]] = []
    for item in images:
        found.append(item)
        if len(found) == MOST_IMAGES:
            break
    for file in images.skipped:
        print(f"wsfast localize: skipped {file.path} ({file.reason})", file=sys.stderr)
    if not found:
        print("wsfast localize: no image could be read", file=sys.stderr)
        return 2
    device = next(classifier.model.parameters()).device
    inputs = torch.stack([classifier.prepare(image) for _, image in found]).to(device)
    columns = explain_by_all_methods(classifier, inputs, options)
    shown = [column for column in columns if column.reason is None]
    options.out.mkdir(parents=True, exist_ok=True)
    write_png(options.out / "compare.png", draw_sheet([image for _, image in found], shown))
    write_report(options.out / "compare.json", columns, [name for name, _ in found])
    print(table(columns))
    print(f"{len(found)} images compared; sheet and times in {options.out}")
    return 0 if shown else 2


def write_report(path: Path, columns: list[Column], images: list[str]) -> None:
    """Write the methods' layers and times."""
    report = {"images": images, "methods": {c.name: c.record() for c in columns}}
    write_atomically(path, json.dumps(report, indent=1).encode())


def table(columns: list[Column]) -> str:
    """One line per method: milliseconds per image, or why there is no map."""
    width = max(len(column.name) for column in columns)
    return "\n".join(
        f"{c.name:<{width}}  " + (c.reason or f"{c.milliseconds:>9.1f} ms/image") for c in columns
    )
