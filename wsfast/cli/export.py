"""Export a localizer as one file: pictures in; class scores, heat maps, masks and boxes out.

  torchscript  runs in Python and in C++ without Python, on any machine that has torch and the
               library of wsfast's operators (`wsfast info --libs`)
  pt2          an AOTInductor package: compiled for this machine's processor, the fastest
  onnx         for other runtimes; ends at the heat map, as boxes have no standard operators

The maps need no gradients: CAM's closed form for classifiers that end in global average pooling
and one linear layer, the decoder's map for F-CAM, DiPS and pseudo-label runs. Every file is opened
again and compared with the model on random pictures before it is kept, ONNX where onnxruntime is
installed. It takes uint8 pictures (N, C, H, W) of one H and W and any N; what it is and takes is
written in its metadata.
"""

import argparse
import sys
import time
from pathlib import Path

from .._check import check_choice, value_error
from .._device import parse_device
from ..deploy import ExportError, Localizer, export_onnx, export_pt2, export_torchscript
from ..deploy.base import Boxing
from ..deploy.export import can_verify_onnx
from ..train.interrupt import exit_on_sigterm
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
from .classifier import open_classifier

NAME = "export"
EXAMPLES = """examples:
  wsfast export --run runs/fcam --format pt2 --out fcam.pt2
  wsfast export --run runs/classifier --format torchscript --image-size 480x640 --out parts.ts
  wsfast export --model resnet18 --pretrained --format torchscript --threshold 0.4 --out cam.ts
  wsfast export --checkpoint demo/classifier.safetensors --target 1 --format onnx --out maps.onnx
then, in Python:
  import wsfast.deploy
  found = wsfast.deploy.load("fcam.pt2")(pictures)   # uint8 (N, C, H, W)
  found.boxes, found.scores, found.counts
"""

_EXPORTERS = {"torchscript": export_torchscript, "pt2": export_pt2, "onnx": export_onnx}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--format", required=True, help="torchscript, pt2 or onnx")
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    model = parser.add_argument_group(MODEL_GROUP)
    add_model_arguments(model)
    add_target_argument(model)
    add_classifier_argument(model, " (needed with --checkpoint)")
    model.add_argument(
        "--method",
        help="cam: take CAM's closed form for a classifier run of a method that needs gradients; "
        "its threshold then is otsu by default",
    )
    boxes = parser.add_argument_group("pictures and boxes")
    boxes.add_argument(
        "--image-size", help="of the pictures, N or HxW (default: the network's input)"
    )
    add_box_arguments(boxes)
    parser.add_argument(
        "--device", default="auto", help="where it will run: auto, cpu, cuda ... (default: auto)"
    )


def _check_combination(options: argparse.Namespace) -> None:
    """Raise ValueError for options that would have no effect."""
    if options.folder is not None:
        source, idle = "--run", ["model", "checkpoint", "num_classes", "pretrained"]
    elif options.model is not None:
        source, idle = "--model", ["classifier"]
        if options.method not in (None, "cam"):
            value_error(NAME, "--method", "cam (others need gradients)", options.method)
    elif options.checkpoint is not None:
        source, idle = "a wsfast checkpoint", ["num_classes", "pretrained"]
    else:
        return  # open_classifier says what is missing
    check_left_out(NAME, options, idle, source)


def open_localizer(options: argparse.Namespace) -> Localizer:
    """The localizer that the options describe, on the CPU.

    Raises:
        ValueError: options that contradict each other, models that cannot be had or exported.
    """
    fill_in(options, BOX_DEFAULTS)
    boxing: Boxing = {"max_boxes": options.max_boxes, "min_area": options.min_area}
    if options.threshold is not None:
        boxing["threshold"] = parse_threshold(options.threshold, NAME)
    size = parse_size(options.size, NAME)
    _check_combination(options)
    if options.model is None and (path := options.folder or options.checkpoint) is not None:
        return Localizer.from_checkpoint(
            path, method=options.method, classifier=options.classifier, target=options.target,
            input_size=size, **boxing,
        )  # fmt: skip
    classifier = open_classifier(
        options.model, pretrained=options.pretrained, checkpoint=options.checkpoint,
        num_classes=options.num_classes, size=size, device=parse_device(NAME, "--device", "cpu"),
        where=NAME,
    )  # fmt: skip
    if not options.pretrained and options.checkpoint is None:
        print(
            "wsfast export: warning: random weights; give --pretrained or --checkpoint",
            file=sys.stderr,
        )
    return Localizer.from_model(
        classifier.model, target=options.target, mean=classifier.mean, std=classifier.std,
        input_size=classifier.size, class_names=classifier.class_names or (), **boxing,
    )  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """Run the command; 1 where torch cannot export the model, or what it exports differs."""
    check_choice(NAME, "--format", options.format, list(_EXPORTERS))
    image_size = parse_size(options.image_size, NAME, "--image-size")
    device = parse_device(NAME, "--device", options.device)
    localizer = open_localizer(options).to(device)
    if options.format == "pt2":
        print("compiling for this machine, which may take minutes", file=sys.stderr)
    start = time.perf_counter()
    try:
        with exit_on_sigterm():
            _EXPORTERS[options.format](localizer, options.out, image_size=image_size)
    except ExportError as error:
        print(f"wsfast export: error: {error}", file=sys.stderr)
        return 1
    height, width = image_size or localizer.input_size
    if options.format == "onnx" and not can_verify_onnx():
        told = "not verified, as onnxruntime is not installed; made"
    else:
        told = "verified against the model"
    print(
        f"{options.out}: {options.format}, {options.out.stat().st_size / 1e6:.1f} MB, for uint8 "
        f"pictures (N, {localizer.channels}, {height}, {width}) on {device}; {told} "
        f"in {time.perf_counter() - start:.1f} s"
    )
    return 0
