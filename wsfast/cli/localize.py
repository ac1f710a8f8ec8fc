"""Localise what a classifier sees: heat maps, masks and boxes for images, folders and videos.

Every image gets an overlay PNG (image, heat map, mask outline, boxes with scores) and a line in
results.jsonl with boxes, scores, the predicted class and the timing; results.json has them all at
the end. A file that cannot be read is reported, skipped and counted; the rest goes on. Ctrl-C and
SIGTERM finish the batch in progress, write results.json and end with exit code 130 or 143. In a
folder with results of an earlier run these are replaced, overlays of other images left and counted;
the folder of the images themselves is refused, and one that another run is writing to. What earlier
runs have drawn among the images is left out.

Of a video every frame is an image, NAME_000012; --live writes one video instead.

With --compare a contact sheet, compare.png, shows the maps of many methods side by side, and
compare.json has their layers and times; a method that cannot explain the model says why.

With --live a video, camera or stream is localized while its frames come in.
"""

import argparse
import io
import itertools
import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from .. import ops
from .._check import check_choice, value_error
from .._device import parse_device
from .._files import JSONLines, made_folder, write_atomically
from ..cam import METHODS, CAMMethod, crf_cams
from ..data import ImageFiles, SkippedFile
from ..data.sample import image_to_tensor
from ..deploy import resize_cams
from ..train.evaluation import RunMaps
from ..train.interrupt import stop_on_signals
from ..train.state import only_run_in
from . import compare, live
from .arguments import (
    BOX_DEFAULTS,
    MODEL_GROUP,
    add_box_arguments,
    add_classifier_argument,
    add_model_arguments,
    add_target_argument,
    check_left_out,
    fill_in,
    parse_size,
    parse_threshold,
)
from .classifier import Classifier
from .drawing import beside, localization_overlay, write_png
from .live_output import RESULTS
from .methods import build_method, default_layers, method_settings
from .opening import DEFAULT_METHOD, open_localizer, open_model, open_run, try_model
from .outputs import check_folder, check_images_kept, written_files
from .records import picture_record

NAME = "localize"
EXAMPLES = """examples:
  wsfast localize photos/ --model resnet50 --pretrained --out result
  wsfast localize 'parts/*.png' clip.mp4 --model vgg16 --checkpoint mine.safetensors \\
      --num-classes 2 --method ltgradcam --percentile 50 --threshold otsu --out result
  wsfast localize parts/ --model resnet18 --pretrained --compare --out compared
  wsfast localize parts/ --model resnet18 --pretrained --method layercam --scales 0.5,1 --out result
  wsfast localize parts/ --model deit_small_patch16_224 --checkpoint tscam.pt --num-classes 2 \\
      --method tscam --target 1 --out result
  wsfast localize parts/ --checkpoint demo/classifier.safetensors --target 1 --npy --out result
  wsfast localize birds/ --model resnet50 --pretrained --refine crf --out result
  wsfast localize 0 --live --run runs/fcam --out camera
  wsfast localize belt.mp4 --live --model resnet18 --checkpoint mine.safetensors --method cam \\
      --out belt
"""

_BATCH = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("images", nargs="+", help="image and video files, folders, glob patterns")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    model = parser.add_argument_group(MODEL_GROUP)
    add_model_arguments(model)
    add_classifier_argument(model)
    cam = parser.add_argument_group("heat map")
    cam.add_argument(
        "--method",
        metavar="NAME",
        help=", ".join(METHODS) + "; of vision transformers also attention (the class token's in "
        "the last block) and rollout (through all blocks), which explain no class, msca (MS-CA: "
        "Grad-CAM at several scales and attention) and tscam (TS-CAM on --model; the checkpoint "
        f"holds both) (default: {DEFAULT_METHOD})",
    )
    cam.add_argument(
        "--compare",
        action="store_true",
        help="instead of boxes, a contact sheet of the methods that --method names with commas "
        "(default: all but tscam) with their times, for up to 12 images",
    )
    cam.add_argument(
        "--layers",
        metavar="LAYERS",
        help="stages (the last layer of each resolution), last, or module names with commas "
        f"(default: {default_layers()})",
    )
    cam.add_argument(
        "--percentile",
        type=float,
        metavar="Q",
        help="of the positive gradients, below which LT methods and RA-CAM cut them to zero, 0-100 "
        "(default: 50)",
    )
    cam.add_argument(
        "--filtered-backprop",
        type=float,
        metavar="Q",
        help="at every ReLU let only gradients at or above this percentile pass, 0-100, for "
        "any gradient method (RA-CAM's filtering-guided backpropagation; default: no filter)",
    )
    cam.add_argument(
        "--scales",
        metavar="FACTORS",
        help="mean of the maps of the image at several sizes, as 0.25,0.5,1 (default: one map of "
        "the image as it is; for msca 0.25,0.5,1)",
    )
    cam.add_argument(
        "--attention-model",
        metavar="NAME[:FILE]",
        help="msca's vision transformer of timm, with weights from a file or timm's pretrained "
        "ones (default: the model itself, where it is one)",
    )
    cam.add_argument(
        "--refine",
        metavar="none|crf",
        default="none",
        help="none, or crf: the map's edges are moved to the image's by mean-field inference "
        "in a dense CRF (default: none)",
    )
    add_target_argument(cam)
    add_box_arguments(parser.add_argument_group("boxes"))
    run = parser.add_argument_group("run")
    run.add_argument(
        "--batch-size",
        type=int,
        help=f"images per batch (default: {_BATCH}; with --live 1 of a camera, the newest, and of "
        "methods of many passes)",
    )
    run.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ... (default: auto)")
    run.add_argument("--npy", action="store_true", help="also write heat maps as float32 .npy")
    live.add_arguments(parser)


@dataclass
class Localization:
    """What is known of one image; boxes without padding."""

    name: str
    image: NDArray[np.uint8]
    cam: Tensor
    threshold: float
    boxes: Tensor
    scores: Tensor
    areas: Tensor
    count: int
    logits: Tensor
    explained: int | None
    valid: bool
    milliseconds: float

    def record(self, class_names: Sequence[str] | None, source: Path) -> dict[str, Any]:
        """The image's entry of results.json; boxes are half-open pixels."""
        height, width = self.image.shape[:2]
        common = picture_record(
            (height, width), self.logits, self.boxes, self.scores, self.count, class_names
        )
        for box, area in zip(common["boxes"], self.areas.tolist(), strict=True):
            box["area"] = area
        return {
            "name": self.name,
            "file": str(source),
            **common,
            "explained_class": self.explained,
            "threshold": round(self.threshold, 6),
            "valid": self.valid,
            "milliseconds": round(self.milliseconds, 3),
        }


def localize_batch(
    batch: list[tuple[str, NDArray[np.uint8]]],
    classifier: Classifier,
    method: CAMMethod | RunMaps,
    *,
    target: int | None,
    threshold: float | str,
    max_boxes: int,
    min_area: int,
    refine: str,
) -> list[Localization]:
    """Explain a batch; maps, thresholds and boxes are in each image's own pixels."""
    device = next(classifier.model.parameters()).device
    start = time.perf_counter()
    inputs = torch.stack([classifier.prepare(image) for _, image in batch]).to(device)
    result = method(inputs, target)
    logits = result.logits.float().cpu()
    target_of = result.target if getattr(method, "of_classes", True) else None
    targets = [None] * len(batch) if target_of is None else target_of.tolist()
    found = []
    for i, (name, image) in enumerate(batch):
        cam = resize_cams(result.cams[i : i + 1], (image.shape[0], image.shape[1]))
        if refine == "crf":
            cam = crf_cams(image_to_tensor(image, image.shape[2])[None].to(cam.device), cam)
        limit = ops.cam_thresholds(cam, threshold)
        boxes, scores, areas, counts = (
            part[0].cpu()
            for part in ops.cam_boxes(cam, limit, max_boxes=max_boxes, min_area=min_area)
        )
        kept = min(int(counts), max_boxes)
        found.append(
            Localization(
                name, image, cam[0].cpu(), float(limit), boxes[:kept], scores[:kept], areas[:kept],
                int(counts), logits[i], targets[i], bool(result.valid[i]), 0.0,
            )
        )  # fmt: skip
    share = (time.perf_counter() - start) * 1000 / len(batch)
    for item in found:
        item.milliseconds = share
    return found


def batches(
    images: Iterable[tuple[str, NDArray[np.uint8]]], size: int
) -> Iterator[list[tuple[str, NDArray[np.uint8]]]]:
    """Lists of up to ``size`` images."""
    batch: list[tuple[str, NDArray[np.uint8]]] = []
    for item in images:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def write_localization(item: Localization, out: Path, *, npy: bool) -> None:
    """Write one image's overlay and, where asked for, its heat map."""
    cam = item.cam.numpy()
    mask = cam >= np.float32(item.threshold)
    overlay = localization_overlay(item.image, cam, mask, item.boxes.numpy(), item.scores.numpy())
    picture = beside(item.image, overlay)
    write_png(out / f"{item.name}.png", picture)
    if npy:
        buffer = io.BytesIO()
        np.save(buffer, cam)
        write_atomically(out / f"{item.name}.npy", buffer.getvalue())


def run(options: argparse.Namespace) -> int:
    """Run the command: options are checked before an image is read, all before one is written."""
    threshold = parse_threshold(options.threshold or "otsu", NAME)
    size = parse_size(options.size, NAME)
    check_choice("localize", "--refine", options.refine, ["none", "crf"])
    if options.compare:
        check_left_out(NAME, options, ("refine", "npy", "max_boxes", "min_area"), "--compare")
    fill_in(options, BOX_DEFAULTS)
    for argument in ("batch_size", "max_boxes", "min_area", "queue"):
        value = getattr(options, argument)
        if value is not None and value < 1:
            value_error("localize", "--" + argument.replace("_", "-"), "at least 1", f"{value}")
    check_folder("localize", "--out", options.out)
    if options.live:
        source = live.open_source(options)
        device = parse_device("localize", "--device", options.device)
        localizer = open_localizer(options, threshold, size, device)
        with made_folder(options.out), only_run_in(options.out, NAME):
            return live.run(source, localizer, options)
    check_left_out(NAME, options, live.OPTIONS, "files (no --live)")
    if not options.compare:
        live.keep_live_results(options.out)
    options.batch_size = options.batch_size or _BATCH
    images = ImageFiles(options.images)
    given = images.files
    images.files = without_drawn(given)
    for line in told_drawn(len(given) - len(images.files)):
        print(f"wsfast localize: {line}", file=sys.stderr)
    check_images_kept("localize", images.files, options.out)
    device = parse_device("localize", "--device", options.device)
    method: CAMMethod | RunMaps
    if options.folder is not None:
        method, classifier = open_run(options, size, device)
        threshold = method.threshold if options.threshold is None else threshold
    else:
        classifier, names = open_model(options, size, device)
        if options.compare:
            options.threshold = threshold
            with made_folder(options.out), only_run_in(options.out, NAME):
                return compare.compare(images, classifier, names, options)
        method = build_method(names[0], options, classifier)
    with made_folder(options.out), only_run_in(options.out, NAME):
        return localize_files(images, classifier, method, threshold, options)


def without_drawn(files: Sequence[Path]) -> list[Path]:
    """Images and videos without what earlier runs have drawn, unless there is nothing else."""
    drawn = set().union(*(_pictures_drawn(folder) for folder in {file.parent for file in files}))
    return [file for file in files if file not in drawn] or list(files)


def told_drawn(count: int) -> list[str]:
    """A line that says how many pictures :func:`without_drawn` has left out, if any."""
    return [f"{count} pictures that wsfast localize has drawn are left out"] if count else []


def _pictures_drawn(folder: Path) -> set[Path]:
    return {*written_files(folder, RESULTS), *compare.written(folder), *live.written(folder)}


def localize_files(
    images: ImageFiles,
    classifier: Classifier,
    method: CAMMethod | RunMaps,
    threshold: float | str,
    options: argparse.Namespace,
) -> int:
    """Localize images one batch after the other; what is done is on the disk."""
    try_model(classifier, method if isinstance(method, RunMaps) else None, options.target)
    results = options.out / "results.json"
    start = time.perf_counter()
    records = []
    batches_found = (
        localize_batch(
            batch, classifier, method, target=options.target, threshold=threshold,
            max_boxes=options.max_boxes, min_area=options.min_area, refine=options.refine,
        )
        for batch in batches(images, options.batch_size)
    )  # fmt: skip
    with (
        stop_on_signals() as request,
        tqdm(total=images.__length_hint__(), unit="image", desc="localizing") as bar,
    ):
        # A method that cannot explain the model says so here: results of an earlier run stay.
        first = list(itertools.islice(batches_found, 1))
        results.unlink(missing_ok=True)  # of an earlier run
        earlier = written_files(options.out, RESULTS)
        with JSONLines(options.out / RESULTS) as lines:
            for found in itertools.chain(first, batches_found):
                for item in found:
                    write_localization(item, options.out, npy=options.npy)
                    records.append(item.record(classifier.class_names, images.sources[item.name]))
                    lines.write(records[-1])
                bar.update(len(found))
                if request.number:
                    break
    summary = {
        "settings": _settings(classifier, method, threshold, options),
        "seconds": round(time.perf_counter() - start, 3),
        "complete": not request.number,
        "images": records,
        "skipped": [{"file": str(f.path), "reason": f.reason} for f in images.skipped],
    }
    write_atomically(results, json.dumps(summary, indent=1).encode())
    _report(records, images.skipped, earlier, options)
    if request.number:
        print("wsfast localize: stopped before the end", file=sys.stderr)
        return 128 + request.number
    return 0 if records else 2


def _settings(
    classifier: Classifier,
    method: CAMMethod | RunMaps,
    threshold: float | str,
    options: argparse.Namespace,
) -> dict[str, Any]:
    return {
        "model": options.model or str(options.folder or options.checkpoint),
        **method_settings(method),
        "threshold": threshold,
        "refine": options.refine,
        "input_size": list(classifier.size),
    }


def _report(
    records: list[dict[str, Any]],
    skipped: list[SkippedFile],
    earlier: set[Path],
    options: argparse.Namespace,
) -> None:
    """Say what was done, what was not, and what of ``earlier`` files no longer belongs to it."""
    for file in skipped:
        print(f"wsfast localize: skipped {file.path} ({file.reason})", file=sys.stderr)
    suffixes = (".png", ".npy") if options.npy else (".png",)
    left = earlier - {options.out / (item["name"] + end) for item in records for end in suffixes}
    if left:
        told = f"{len(left)} files of an earlier run are left in {options.out}"
        print(f"wsfast localize: {told}, not in results.json", file=sys.stderr)
    print(
        f"{len(records)} images localized, {len(skipped)} files skipped; "
        f"overlays and results.json in {options.out}"
    )
