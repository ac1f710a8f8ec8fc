"""CUB, OpenImages and ILSVRC by the metadata of the localisation benchmark (Choe 2020)."""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np
from numpy.typing import NDArray

from wsfast._check import check_choice, value_error
from wsfast.data import wsol
from wsfast.data.images import read_image
from wsfast.data.masks import IGNORED, Mask, read_mask
from wsfast.data.records import Box, ImageDataset, Record
from wsfast.data.sample import SPLITS


class WSOLImages(ImageDataset):
    """A split of a data set in the benchmark's format.

    The metadata folder has ``train``, ``val`` and ``test``, each with ``image_ids.txt`` (a line is
    ``ID``), ``class_labels.txt`` (``ID,CLASS``) and, where they are known, ``localization.txt``
    (``ID,X0,Y0,X1,Y1`` with inclusive corners, or ``ID,MASK,IGNORE``) and ``image_sizes.txt``
    (``ID,WIDTH,HEIGHT``). Boxes are scaled as the benchmark scales them:
    :func:`wsfast.data.inclusive_corners` of ``Sample.boxes`` at 224 x 224 are its true boxes, and
    ``Sample.mask`` is its mask (uint8 of 1, 0 and 255), whatever size its files have. Images are
    not turned as their EXIF orientation says: the benchmark does not, and boxes, masks and sizes
    are of the pixels as they lie in the file.

    Args:
        root: folder that the image ids are relative to.
        split: ``"train"``, ``"val"`` or ``"test"``.
        metadata: the metadata folder; by default ``root/metadata``.
        masks: folder that mask files are relative to; by default ``root``.
        num_classes: by default the highest label of all splits, and one.
        size: see :class:`ImageDataset`.
        channels: see :class:`ImageDataset`.
        strict: see :class:`ImageDataset`.
        verify: see :class:`ImageDataset`.

    Raises:
        MetadataError: a file is missing or a line malformed; the message names file and line.
        ValueError: a class without training images, no readable image.
    """

    upright: ClassVar[bool] = False

    def __init__(
        self,
        root: str | PathLike[str],
        split: str,
        *,
        metadata: str | PathLike[str] | None = None,
        masks: str | PathLike[str] | None = None,
        num_classes: int | None = None,
        size: tuple[int, int] | None = None,
        channels: int = 3,
        strict: bool = False,
        verify: bool | None = None,
    ) -> None:
        check_choice("WSOLImages", "split", split, SPLITS)
        folder = Path(root) / "metadata" if metadata is None else Path(metadata)
        if num_classes is None:
            num_classes = _count_classes(folder, split)
        super().__init__(
            _records(folder / split, Path(masks or root), num_classes),
            root=Path(root),
            source=folder / split,
            class_names=[str(label) for label in range(num_classes)],
            complete=split == "train",
            mask_kind="nonzero",
            size=size,
            channels=channels,
            strict=strict,
            verify=verify,
        )
        if not self.names:
            value_error("WSOLImages", "metadata", f"a folder with images of {split}", f"{folder}")

    def _decode(self, record: Record) -> tuple[NDArray[np.uint8], Mask | None]:
        # OpenImages' masks are of other sizes than its images: each is resized on its own.
        image = read_image(self.root / record.image, upright=self.upright)
        self._check_boxes(record, image)
        if not record.masks:
            return image, None
        size = self.size or (image.shape[0], image.shape[1])
        found = self._union(record.masks, size)
        ignored = self._union([record.ignore] if record.ignore else [], size)
        return image, np.where(found, 1, np.where(ignored, IGNORED, 0)).astype(np.uint8)

    def _union(self, paths: Sequence[Path], size: tuple[int, int]) -> NDArray[np.bool_]:
        found = np.zeros(size, np.bool_)
        for path in paths:
            found |= self._resized_mask(read_mask([path], self.mask_kind), size)
        return found

    def _resized_mask(self, mask: Mask, size: tuple[int, int]) -> Mask:
        nearest = cv2.resize(mask.astype(np.uint8), size[::-1], interpolation=cv2.INTER_NEAREST)
        return nearest.astype(mask.dtype)

    def _resized(self, box: Box, size: tuple[int, int], new_size: tuple[int, int]) -> Box:
        x0, y0, x1, y1 = wsol.resize_box(box, size, new_size)
        return x0, y0, x1 + 1, y1 + 1


def _count_classes(folder: Path, split: str) -> int:
    files = [folder / part / "class_labels.txt" for part in SPLITS]
    known = [file for file in files if file.is_file() or file.parent.name == split]
    return 1 + max(max(wsol.read_class_labels(file).values(), default=0) for file in known)


def _records(metadata: Path, masks: Path, num_classes: int) -> list[Record]:
    ids = wsol.read_image_ids(metadata / "image_ids.txt")
    labels = wsol.read_class_labels(metadata / "class_labels.txt", num_classes=num_classes)
    wsol.require_all(ids, labels, metadata / "class_labels.txt")
    localization, size_file = metadata / "localization.txt", metadata / "image_sizes.txt"
    sizes = wsol.read_image_sizes(size_file) if size_file.is_file() else {}
    boxes: dict[str, list[Box]] = {}
    mask_files: dict[str, list[str]] = {}
    ignore: dict[str, str] = {}
    if localization.is_file():
        if wsol.holds_masks(localization):
            mask_files, ignore = wsol.read_mask_paths(localization)
        else:
            boxes = wsol.read_boxes(localization)
        if boxes or mask_files:  # the files of some training splits are empty
            wsol.require_all(ids, boxes or mask_files, localization)
    return [
        Record(
            name,
            name,
            labels[name],
            tuple(masks / file for file in mask_files.get(name, ())),
            masks / ignore[name] if ignore.get(name) else None,
            boxes=tuple(boxes.get(name, ())),
            size=sizes.get(name),
        )
        for name in ids
    ]
