"""``wsfast localize --compare``: every method's heat map of the same images, side by side."""

import argparse
import contextlib
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from .. import ops
from .._files import write_atomically
from ..cam import CAMMethod
from ..cam.capture import logits_of
from ..data import ImageFiles
from .classifier import Classifier
from .drawing import (
    Image,
    contact_sheet,
    draw_outline,
    heat_overlay,
    stacked,
    text_block,
    write_png,
)
from .messages import one_line
from .methods import CLASSLESS, build_method, method_settings, title_of
from .opening import try_model

MOST_IMAGES = 12
_SHEET, _REPORT = "compare.png", "compare.json"
_SIDE = 192  # longer side of a tile in pixels
_MOST_COLUMNS = 8  # of methods beside each other
_CLASSLESS = {title_of(name) for name in CLASSLESS}


@dataclass
class Column:
    """One method's maps of all images, or why it has none."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    milliseconds: float = 0.0
    cams: list[Tensor] = field(default_factory=list)
    masks: list[Tensor] = field(default_factory=list)
    reason: str | None = None

    @property
    def title(self) -> str:
        """Name, time per image and what is composed with the method, on a line each."""
        lines = [self.name.replace("PlusPlus", "++"), f"{self.milliseconds:.1f} ms"]
        if self.name in _CLASSLESS:
            lines.append("of no class")
        if "filtered_backprop" in self.settings:
            lines.append(f"filtered, {self.settings['filtered_backprop']:g} %")
        if "scales" in self.settings:
            lines.append("scales " + ", ".join(f"{s:g}" for s in self.settings["scales"]))
        return "\n".join(lines)

    def record(self) -> dict[str, Any]:
        """The method's entry of compare.json."""
        if self.reason:
            return {"not_applicable": self.reason}
        return {**self.settings, "milliseconds": round(self.milliseconds, 3)}


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
    column.settings = method_settings(method)
    del column.settings["method"]
    column.milliseconds = 1000 * seconds / len(inputs)


def explain_by_all_methods(
    classifier: Classifier, names: list[str], inputs: Tensor, options: argparse.Namespace
) -> list[Column]:
    """One column per method; a method that cannot explain this model says why."""
    columns = []
    with tqdm(total=len(names) * len(inputs), unit="map", desc="comparing") as bar:
        for name in names:
            column = Column(title_of(name))
            bar.set_postfix_str(column.name)
            try:
                method = build_method(name, options, classifier)
                explain_all(method, column, inputs, options, bar)
            except Exception as error:  # one method's error is not the others'
                column.reason = one_line(error)
                bar.update(len(inputs) - len(column.masks))
            columns.append(column)
    return columns


def run_model(model: nn.Module, inputs: Tensor, batch_size: int) -> Tensor:
    """Scores of all images, (N, classes); warms the model up, for the times that follow."""
    scores = []
    for batch in inputs.split(batch_size):
        images = batch.clone().requires_grad_()
        logits = logits_of("localize", model(images), images)
        if logits.requires_grad:
            with contextlib.suppress(RuntimeError):  # methods without gradients can do without
                torch.autograd.grad(logits.sum(), images, allow_unused=True)
        scores.append(logits.detach().float().cpu())
    return torch.cat(scores)


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


def draw_sheet(
    images: list[NDArray[np.uint8]], captions: list[str], columns: list[Column], legend: str
) -> Image:
    """A row per image: itself, then every method's map of it; below, the methods without maps."""
    pictures = [shrunk(image) for image in images]
    width = max(picture.shape[1] for picture in pictures)

    def framed(picture: Image) -> Image:
        frame = np.full((len(picture), width, 3), 255, np.uint8)
        frame[:, : picture.shape[1]] = picture
        return frame

    shown = [column for column in columns if column.reason is None]
    wide = math.ceil(len(shown) / math.ceil(len(shown) / _MOST_COLUMNS))
    grids = []
    for band in (shown[i : i + wide] for i in range(0, len(shown), wide)):
        rows = [
            [framed(p), *(framed(mapped(p, c.cams[i], c.masks[i])) for c in band)]
            for i, p in enumerate(pictures)
        ]
        grids.append(contact_sheet(rows, ["image", *(c.title for c in band)], captions))
    without = [f"No map of {c.name}: {c.reason}" for c in columns if c.reason]
    across = max(grid.shape[1] for grid in grids)
    return stacked([text_block([legend], across), *grids, text_block(without, across)])


def captions_of(
    names: list[str], scores: Tensor, target: int | None, class_names: Sequence[str] | None
) -> list[str]:
    """What is said of each image: its name, what the model takes it for, what is explained."""

    def called(number: int) -> str:
        return f"{number}, {class_names[number]}" if class_names else str(number)

    shares = scores.softmax(1).max(1)
    return [
        f"{name}: predicted class {called(predicted)} (probability {share:.2f}); explained: "
        + called(predicted if target is None else target)
        for name, share, predicted in zip(
            names, shares.values.tolist(), shares.indices.tolist(), strict=True
        )
    ]


def _at_size(values: Tensor, size: tuple[int, int]) -> NDArray[np.float32]:
    shape = (size[1], size[0])
    resized = F.interpolate(values[None, None], shape, mode="bilinear", align_corners=False)
    return np.asarray(resized[0, 0].numpy(), np.float32)


def written(out: Path) -> list[Path]:
    """The sheet that an earlier run has written to its folder."""
    return [out / _SHEET] if (out / _REPORT).is_file() else []


def compare(
    images: ImageFiles, classifier: Classifier, names: list[str], options: argparse.Namespace
) -> int:
    """Write compare.png and compare.json; the first images only, to keep the sheet readable."""
    try_model(classifier, None, options.target)
    found: list[tuple[str, NDArray[np.uint8]]] = []
    for item in images:
        found.append(item)
        if len(found) == MOST_IMAGES:
            break
    for file in images.skipped:
        print(f"wsfast localize: skipped {file.path} ({file.reason})", file=sys.stderr)
    if not found:
        raise ValueError("no image could be read")
    device = next(classifier.model.parameters()).device
    inputs = torch.stack([classifier.prepare(image) for _, image in found]).to(device)
    scores = run_model(classifier.model, inputs, options.batch_size)
    columns = explain_by_all_methods(classifier, names, inputs, options)
    print(table(columns))
    if all(column.reason for column in columns):
        raise ValueError("no method has a map; nothing written")
    captions = captions_of([n for n, _ in found], scores, options.target, classifier.class_names)
    sheet = draw_sheet([image for _, image in found], captions, columns, legend(options))
    write_png(options.out / _SHEET, sheet)
    report = {
        "settings": {
            "model": options.model or str(options.checkpoint),
            "threshold": options.threshold,
            "target": options.target,
            "input_size": list(classifier.size),
        },
        "images": [name for name, _ in found],
        "methods": {column.name: column.record() for column in columns},
    }
    write_atomically(options.out / _REPORT, json.dumps(report, indent=1).encode())
    print(f"{len(found)} images compared; sheet and times in {options.out}")
    return 0


def legend(options: argparse.Namespace) -> str:
    """How the sheet is to be read."""
    limit = options.threshold
    told = f"the threshold {limit}" if isinstance(limit, str) else f"{limit:g}"
    return (
        "Colours: each map over the image, from blue (0) to red (1). White lines: where the map "
        f"reaches {told}. ms: time of a map, without reading the image."
    )


def table(columns: list[Column]) -> str:
    """One line per method: milliseconds per image, or why there is no map."""
    width = max(len(column.name) for column in columns)
    return "\n".join(
        f"{c.name:<{width}}  " + (c.reason or f"{c.milliseconds:>9.1f} ms/image") for c in columns
    )
