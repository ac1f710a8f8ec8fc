"""Arguments that several commands take, and how their texts are read."""

import argparse
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .._check import value_error

MODEL_GROUP = "model (a run, a timm classifier or a checkpoint)"
BOX_DEFAULTS = {"max_boxes": 16, "min_area": 1}


def add_model_arguments(group: Any) -> None:
    """Add what names a timm classifier or a checkpoint, and the size of its input."""
    group.add_argument(
        "--run", type=Path, dest="folder", metavar="FOLDER", help="what `wsfast train --out` wrote"
    )
    group.add_argument("--model", metavar="NAME", help="any timm classifier, as resnet50")
    group.add_argument(
        "--pretrained", action="store_true", help="timm's pretrained weights of --model"
    )
    group.add_argument(
        "--checkpoint",
        type=Path,
        metavar="FILE",
        help="weights of --model (.safetensors, .pt, .pth); without --model a checkpoint of "
        "wsfast, which says what its model is",
    )
    group.add_argument(
        "--num-classes", type=int, metavar="N", help="classes of --model (default: timm's)"
    )
    group.add_argument(
        "--size",
        metavar="N|HxW",
        help="pixels of the network's input, to which whole images are resized (default: the "
        "model's own)",
    )


def add_classifier_argument(group: Any, more: str = "") -> None:
    """Add where a run's classifier is now."""
    group.add_argument(
        "--classifier",
        type=Path,
        metavar="PATH",
        help="what gives the class scores of a DiPS or pseudo-label model: the run or checkpoint "
        f"of the classifier it was trained with, where that has been moved{more}",
    )


def add_target_argument(group: Any) -> None:
    """Add the class to explain."""
    group.add_argument(
        "--target",
        type=int,
        metavar="CLASS",
        help="number of the class to explain, from 0 (default: the predicted one; maps that a run "
        "learnt have none)",
    )


def add_box_arguments(group: Any) -> None:
    """Add how boxes are made of a map."""
    group.add_argument(
        "--threshold",
        metavar="T",
        help="a pixel is foreground where the map is at least this: otsu, otsu2 or 0..1 (default: "
        "otsu; with --run the one that validation chose on masks or boxes, 0.5 without any)",
    )
    group.add_argument(
        "--max-boxes", type=int, metavar="N", help="largest boxes kept (default: 16)"
    )
    group.add_argument(
        "--min-area",
        type=int,
        metavar="N",
        help="smallest area of foreground in pixels (default: 1)",
    )


def fill_in(options: argparse.Namespace, defaults: Mapping[str, Any]) -> None:
    """Give options that were left out their defaults, once it is known that none is in vain."""
    for name, value in defaults.items():
        if getattr(options, name) is None:
            setattr(options, name, value)


def check_left_out(
    where: str, options: argparse.Namespace, names: Iterable[str], beside: str
) -> None:
    """Raise ValueError for options that would have no effect beside another."""
    for name in names:
        value = getattr(options, name)
        if not (value is None or value is False or value == "none"):
            actual = "given" if value is True else f"{value}"
            value_error(where, "--" + name.replace("_", "-"), f"left out with {beside}", actual)


def parse_threshold(text: str, where: str) -> float | str:
    """``otsu``, ``otsu2`` or a number of 0-1; ``where`` is the command that messages name.

    >>> parse_threshold("0.3", "localize")
    0.3
    """
    if text in ("otsu", "otsu2"):
        return text
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 <= value <= 1:
        value_error(where, "--threshold", "otsu, otsu2 or a number of 0 to 1", text)
    return value


def read_size(text: str) -> tuple[int, int] | None:
    """Height and width of ``N`` or ``HxW``, None where the text is neither.

    >>> read_size("512x1408"), read_size("64"), read_size("0x5")
    ((512, 1408), (64, 64), None)
    """
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdigit() and int(part) for part in parts):
        return None
    return int(parts[0]), int(parts[-1])


def parse_size(text: str | None, where: str, argument: str = "--size") -> tuple[int, int] | None:
    """The same of an argument that may be left out."""
    if text is None:
        return None
    size = read_size(text)
    if size is None:
        value_error(where, argument, "N or HxW in pixels", text)
    return size
