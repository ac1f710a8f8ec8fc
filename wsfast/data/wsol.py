"""Metadata and masks of the localisation benchmarks (CUB, ILSVRC, OpenImages).

A folder holds ``image_ids.txt``, ``class_labels.txt``, ``image_sizes.txt`` and
``localization.txt``, one comma-separated record per line:

- image_ids: ``<id>``
- class_labels: ``<id>,<class>``
- image_sizes: ``<id>,<width>,<height>``
- localization, boxes: ``<id>,<x0>,<y0>,<x1>,<y1>``, several lines per image
- localization, masks: ``<id>,<mask file>,<ignore file>``, several lines per image, of which the
  first names the ignore file, if there is one
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from wsfast.data.images import is_cut_short

SIDE = 224  # the protocol scores maps, boxes and masks at this size

Box = tuple[int, int, int, int]
_Record = TypeVar("_Record")


# A number above is an identifier rather than a class.
MOST_CLASSES = 1_000_000


class MetadataError(ValueError):
    """A metadata file that is not as it should be; the message names file and line."""


def _records(path: Path, fields: tuple[int, ...], parse: Callable[..., _Record]) -> list[_Record]:
    """Every line of a file, parsed from its fields; the last line may be empty.

    ``parse`` raises ValueError; its message says what the record must be.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise MetadataError(f"wsfast.data: {path}: {reason}") from None
    found = []
    for number, line in enumerate(lines, start=1):
        parts = line.split(",")
        try:
            if len(parts) not in fields or not parts[0]:
                wanted = " or ".join(str(count) for count in fields)
                raise ValueError(f"{wanted} comma-separated fields")
            found.append(parse(*parts))
        except ValueError as error:
            raise MetadataError(
                f"wsfast.data: {path}, line {number}: must be {error}, got {line[:80]!r}"
            ) from None
    return found


def _numbers(*texts: str) -> tuple[int, ...]:
    wanted = "an image id and whole numbers below 2^31"
    try:
        found = tuple(int(text) for text in texts)
    except ValueError:
        raise ValueError(wanted) from None
    if any(abs(number) >= 1 << 31 for number in found):
        raise ValueError(wanted)
    return found


def read_image_ids(path: str | PathLike[str]) -> list[str]:
    """Ids in file order.

    Raises:
        MetadataError: the file is missing or a line malformed.
    """
    return _records(Path(path), (1,), str)


def read_class_labels(
    path: str | PathLike[str], *, num_classes: int | None = None
) -> dict[str, int]:
    """Class by image id.

    Raises:
        MetadataError: the file is missing, a line malformed or a class not in 0..num_classes - 1
            (a million by default: a number above is no class).
    """
    classes = MOST_CLASSES if num_classes is None else num_classes

    def parse(name: str, text: str) -> tuple[str, int]:
        (label,) = _numbers(text)
        if not 0 <= label < classes:
            raise ValueError(f"an image id and a class from 0 to {classes - 1}")
        return name, label

    return dict(_records(Path(path), (2,), parse))


def read_image_sizes(path: str | PathLike[str]) -> dict[str, tuple[int, int]]:
    """(width, height) by image id.

    Raises:
        MetadataError: the file is missing or a line malformed.
    """

    def parse(name: str, *sides: str) -> tuple[str, tuple[int, int]]:
        width, height = _numbers(*sides)
        if width < 1 or height < 1:
            raise ValueError("a width and height of at least 1")
        return name, (width, height)

    return dict(_records(Path(path), (3,), parse))


def read_boxes(path: str | PathLike[str], *, check: bool = True) -> dict[str, list[Box]]:
    """Boxes (x0, y0, x1, y1), inclusive corners, by image id.

    Raises:
        MetadataError: the file is missing, a line malformed or, unless ``check`` is False, a box
            out of convention.
    """

    def parse(name: str, *corners: str) -> tuple[str, Box]:
        x0, y0, x1, y1 = _numbers(*corners)
        if check and not (0 <= x0 <= x1 and 0 <= y0 <= y1):
            raise ValueError("a box with 0 <= x0 <= x1 and 0 <= y0 <= y1")
        return name, (x0, y0, x1, y1)

    boxes: dict[str, list[Box]] = {}
    for name, box in _records(Path(path), (5,), parse):
        boxes.setdefault(name, []).append(box)
    return boxes


def read_mask_paths(path: str | PathLike[str]) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Mask files and the ignore file by image id, relative to the masks' folder.

    Raises:
        MetadataError: the file is missing, a line malformed or names another ignore file than the
            first of its image.
    """
    ignore: dict[str, str] = {}

    def parse(name: str, mask: str, ignored: str) -> tuple[str, str]:
        first = ignore.setdefault(name, ignored)
        if ignored not in ("", first):
            raise ValueError(f"without an ignore file or with that of the first line, {first!r}")
        return name, mask

    masks: dict[str, list[str]] = {}
    for name, mask in _records(Path(path), (3,), parse):
        masks.setdefault(name, []).append(mask)
    return masks, ignore


def holds_masks(path: str | PathLike[str]) -> bool:
    """Whether a localization file names masks; else it holds boxes.

    Raises:
        MetadataError: the file is missing or its first line neither.
    """
    first = _records(Path(path), (3, 5), lambda *parts: len(parts))[:1]
    return first == [3]


def resize_box(box: Iterable[float], size: Iterable[float], new_size: Iterable[float]) -> Box:
    """Scale a box between images of two (width, height): multiplied, divided, cut off."""
    corners = zip(box, [*size] * 2, [*new_size] * 2, strict=True)
    x0, y0, x1, y1 = (int(float(at) * float(new) / float(old)) for at, old, new in corners)
    return x0, y0, x1, y1


def read_protocol_mask(
    root: str | PathLike[str], masks: Sequence[str], ignore: str
) -> NDArray[np.uint8]:
    """(224, 224) mask of an image: 1 on any of its masks, 255 where ignored, else 0.

    An empty ``ignore`` ignores nothing.

    Raises:
        MetadataError: a file cannot be read.
    """
    foreground = np.stack([_read_binary(Path(root) / name) for name in masks]).any(axis=0)
    if not ignore:
        return np.asarray(foreground, np.uint8)
    ignored = _read_binary(Path(root) / ignore) & ~foreground
    return (foreground + 255 * ignored).astype(np.uint8)


def read_grey(path: str | PathLike[str], size: tuple[int, int]) -> NDArray[np.float32]:
    """A grey image resized to ``size`` (width, height) by its nearest pixels, 0-255.

    Raises:
        MetadataError: the file cannot be read.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise MetadataError(f"wsfast.data: {path}: {error.strerror}") from None
    if is_cut_short(data):
        raise MetadataError(f"wsfast.data: {path}: file is cut short")
    try:
        samples = np.frombuffer(data, np.uint8)
        image = cv2.imdecode(samples, cv2.IMREAD_GRAYSCALE) if data else None
    except cv2.error:  # such as a header with more pixels than OpenCV takes
        image = None
    if image is None:
        raise MetadataError(f"wsfast.data: {path}: not an image or damaged")
    resized = cv2.resize(image.astype(np.float32), size, interpolation=cv2.INTER_NEAREST)
    return np.asarray(resized, np.float32)


def _read_binary(path: Path) -> NDArray[np.bool_]:
    return np.asarray(read_grey(path, (SIDE, SIDE)) > 0.5)


@dataclass(frozen=True)
class WSOLMetadata:
    """What is known of the images of one split.

    Attributes:
        image_ids: in file order.
        boxes: true boxes at 224 x 224 by id; empty where the split has masks.
        masks: mask files by id; empty where the split has boxes.
        ignore: ignore file by id.
    """

    image_ids: list[str]
    boxes: dict[str, list[Box]]
    masks: dict[str, list[str]]
    ignore: dict[str, str]


def read_wsol_metadata(folder: str | PathLike[str]) -> WSOLMetadata:
    """Read ``image_ids.txt``, ``localization.txt`` and, for boxes, ``image_sizes.txt``.

    Classes count for nothing here, but ``class_labels.txt`` must be right where it is there.

    Raises:
        MetadataError: a file is missing or malformed (file and line are named), or an id lacks its
            boxes, masks, size or class.
    """
    root = Path(folder)
    ids = read_image_ids(root / "image_ids.txt")
    classes = root / "class_labels.txt"
    if classes.is_file():
        require_all(ids, read_class_labels(classes), classes)
    localization = root / "localization.txt"
    if holds_masks(localization):
        masks, ignore = read_mask_paths(localization)
        require_all(ids, masks, localization)
        return WSOLMetadata(ids, {}, masks, ignore)
    boxes, sizes = read_boxes(localization), read_image_sizes(root / "image_sizes.txt")
    require_all(ids, boxes, localization)
    require_all(ids, sizes, root / "image_sizes.txt")
    resized = {
        name: [resize_box(box, sizes[name], (SIDE, SIDE)) for box in boxes[name]] for name in ids
    }
    return WSOLMetadata(ids, resized, {}, {})


def require_all(ids: Sequence[str], known: Mapping[str, object], path: Path) -> None:
    """Raise MetadataError unless every image id is known from the file of that path."""
    missing = next((name for name in ids if name not in known), None)
    if missing is not None:
        raise MetadataError(
            f"wsfast.data: {path}: must have a line for every image id, got none for {missing}"
        )
