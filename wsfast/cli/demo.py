"""The main job end to end on data this command makes itself, in a few minutes on two cores.

Generates a defect data set in KolektorSDD2's format, trains a small VGG-style classifier from
scratch on the image labels alone, localises the held-out defects with Grad-CAM, LayerCAM,
LTGrad-CAM and LTGrad-CAM refined by a CRF, prints their scores and writes a contact sheet. The
pixel masks are used to score only.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from .. import ops
from .._check import check_range, value_error
from .._files import made_folder, write_atomically
from ..cam import CAMMethod, GradCAM, LayerCAM, LTGradCAM, crf_cams
from ..data import KSDD2, SyntheticDefects
from ..metrics import DefectSegmentation
from ..models import save_checkpoint
from ..train import TrainedClassifier, evaluate_classifier, train_classifier
from ..train.state import only_run_in
from .drawing import (
    Image,
    contact_sheet,
    draw_boxes,
    draw_outline,
    enlarge,
    heat_overlay,
    write_png,
)
from .outputs import check_folder

EXAMPLES = "example:\n  wsfast demo --out demo"

_REPORT = "report.json"
_MARK = ".wsfast-demo"  # in data that may be replaced
_DEFECT = 1  # the class that is explained
_BATCH = 50
_SHEET_ROWS = 6
_ZOOM = 2

Explain = Callable[[Tensor, Tensor], Tensor]  # uint8 images and the network's input, to maps


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder (default: demo)")
    parser.add_argument("--images", type=int, default=600, help="training images (default: 600)")
    parser.add_argument("--test-images", type=int, default=200, help="test images (default: 200)")
    parser.add_argument("--epochs", type=int, default=10, help="training epochs (default: 10)")
    parser.add_argument("--seed", type=int, default=0, help="of data and training (default: 0)")


def make_data(out: Path, train: int, test: int, seed: int) -> tuple[KSDD2, KSDD2]:
    """Write both splits in KolektorSDD2's format and open them as a user's data would be."""
    root = out / "data"
    if root.exists() and not any(mark.exists() for mark in (root / _MARK, out / _REPORT)):
        value_error("demo", "--out", "a folder without data/ but that of a demonstration", f"{out}")
    root.mkdir(parents=True, exist_ok=True)
    (root / _MARK).touch()  # before what another demonstration may replace
    for split, length in (("train", train), ("test", test)):
        SyntheticDefects(length, split=split, seed=seed).write_ksdd2(root, overwrite=True)
    return KSDD2(root, "train", channels=1), KSDD2(root, "test", channels=1)


def defective_samples(data: KSDD2) -> tuple[Tensor, Tensor, list[str]]:
    """Images, masks and names of the defective samples."""
    samples = [data[i] for i in torch.nonzero(data.labels == _DEFECT).flatten().tolist()]
    images = torch.stack([sample.image for sample in samples])
    masks = torch.stack([sample.mask for sample in samples if sample.mask is not None])
    return images, masks, [sample.name for sample in samples]


def methods(model: nn.Module) -> dict[str, Explain]:
    """What is compared, by its name in the table."""

    def maps_of(method: CAMMethod) -> Explain:
        return lambda _, inputs: method(inputs, _DEFECT).cams

    truncated = maps_of(LTGradCAM(model))
    return {
        "Grad-CAM": maps_of(GradCAM(model)),
        "LayerCAM": maps_of(LayerCAM(model)),
        "LTGrad-CAM": truncated,
        "LTGrad-CAM, CRF": lambda images, inputs: crf_cams(images, truncated(images, inputs)),
    }


def localize(explain: Explain, images: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor, float]:
    """Heat maps, Otsu masks and milliseconds per image."""
    explain(images[:1], inputs[:1])  # the first call allocates
    start = time.perf_counter()
    batches = zip(images.split(_BATCH), inputs.split(_BATCH), strict=True)
    cams = torch.cat([explain(*batch) for batch in batches])
    masks = cams >= ops.otsu_threshold(cams)[:, None, None]
    return cams, masks, (time.perf_counter() - start) * 1000 / len(inputs)


def score(masks: Tensor, truth: Tensor) -> dict[str, float]:
    """Pooled pixel scores of the masks."""
    metric = DefectSegmentation()
    metric.update(masks, truth)
    return {name: float(value) for name, value in metric.compute().items()}


def format_table(rows: dict[str, dict[str, float]]) -> str:
    """The scores of every method, one line each."""
    lines = [f"{'method':<16}{'IoU':>8}{'precision':>11}{'recall':>8}{'F1':>8}{'ms/image':>10}"]
    for name, row in rows.items():
        lines.append(
            f"{name:<16}{row['iou']:>8.3f}{row['precision']:>11.3f}{row['recall']:>8.3f}"
            f"{row['f1']:>8.3f}{row['milliseconds']:>10.2f}"
        )
    return "\n".join(lines)


def draw_sheet(
    images: Tensor, truth: Tensor, found: dict[str, tuple[Tensor, Tensor]], chosen: list[int]
) -> Image:
    """Image, true mask and every method's map, mask outline and boxes for the chosen images."""
    rows = []
    for i in chosen:
        picture = enlarge(np.repeat(images[i, 0].numpy()[:, :, None], 3, axis=2), _ZOOM)
        outlined = picture.copy()
        draw_outline(outlined, enlarge(truth[i].numpy(), _ZOOM))
        row = [picture, outlined]
        for cams, masks in found.values():
            overlay = heat_overlay(picture, enlarge(cams[i].numpy(), _ZOOM))
            draw_outline(overlay, enlarge(masks[i].numpy(), _ZOOM))
            boxes = ops.cam_boxes(cams[i : i + 1], "otsu", max_boxes=4, min_area=16)
            count = min(int(boxes.counts[0]), 4)
            corners = boxes.boxes[0, :count].numpy() * _ZOOM
            draw_boxes(overlay, corners, boxes.scores[0, :count].numpy())
            row.append(overlay)
        rows.append(row)
    return contact_sheet(rows, ["image", "true mask", *found])


def save_model(trained: TrainedClassifier, path: Path, size: tuple[int, int]) -> None:
    """Write the classifier so that ``wsfast localize --checkpoint`` can use it."""
    save_checkpoint(
        trained.model,
        path,
        class_names=("good", "defect"),
        mean=trained.mean,
        std=trained.std,
        input_size=size,
    )


def run(options: argparse.Namespace) -> int:
    """Run the demonstration."""
    check_range("demo", "--images", options.images, 16, 9999)
    check_range("demo", "--test-images", options.test_images, 4, 9999)
    check_range("demo", "--epochs", options.epochs, 1, 1000)
    check_range("demo", "--seed", options.seed, 0, 2**31)
    check_folder("demo", "--out", options.out)
    with made_folder(options.out), only_run_in(options.out, "demo"):
        return _demonstrate(options)


def _demonstrate(options: argparse.Namespace) -> int:
    out: Path = options.out
    print(f"making {options.images} + {options.test_images} images in {out / 'data'}")
    train, test = make_data(out, options.images, options.test_images, options.seed)
    trained = train_classifier(train, epochs=options.epochs, seed=options.seed)
    accuracy = evaluate_classifier(trained, test)["accuracy"]
    images, truth, names = defective_samples(test)
    save_model(trained, out / "classifier.safetensors", (images.shape[2], images.shape[3]))
    print(f"accuracy on {len(test)} held-out images: {accuracy:.3f}")

    inputs = trained.normalize(images)
    rows: dict[str, dict[str, float]] = {}
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for name, explain in methods(trained.model).items():
        cams, masks, milliseconds = localize(explain, images, inputs)
        found[name] = (cams, masks)
        rows[name] = {**score(masks, truth), "milliseconds": milliseconds}
    chosen = list(range(0, len(names), max(1, len(names) // _SHEET_ROWS)))[:_SHEET_ROWS]
    write_png(out / "contact_sheet.png", draw_sheet(images, truth, found, chosen))
    report = {"accuracy": accuracy, "defective_test_images": len(names), "methods": rows}
    write_atomically(out / _REPORT, json.dumps(report, indent=1).encode())

    print(f"\nOtsu masks of {len(names)} held-out defects, all stages fused, pooled pixels:")
    print(format_table(rows))
    print(f"\npictures: {out / 'contact_sheet.png'}   scores: {out / 'report.json'}")
    pattern = out / "data" / "test" / "*[0-9].png"  # not the masks beside them
    print(f"next: wsfast localize '{pattern}' --checkpoint {out / 'classifier.safetensors'} "
          f"--target 1 --refine crf --out {out / 'localized'}")  # fmt: skip
    return 0
