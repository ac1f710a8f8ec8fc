"""Data sets of image files: what is common to all formats."""

import dataclasses
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, SupportsIndex

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from wsfast._check import check_choice, value_error
from wsfast.data.images import SkippedFile, UnreadableImageError, read_image
from wsfast.data.masks import MASK_KINDS, Mask, object_pixels, read_mask, resized_mask
from wsfast.data.sample import NO_BOXES, Sample, check_channels, check_size, image_to_tensor
from wsfast.data.transforms import resized

_VERIFIED_BY_DEFAULT = 20_000  # images: a minute or two of decoding
_NAMED = 20  # skipped files in the warning; all are in ``skipped``

_HERE = Path()

Box = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)  # there may be a million
class Record:
    """What is known of an image before it is read.

    Attributes:
        name: of the image in its data set.
        image: the file, relative to the data set's ``root``.
        label: its class, or None where the mask tells: 1 with an object, else 0.
        masks: files whose union is the object; empty where no mask is known.
        ignore: a file of pixels that do not count.
        empty: there is no object, so the mask is empty though there is no file.
        boxes: of the objects, in the file's pixels; half-open unless a data set says otherwise.
        size: (width, height) that the boxes are in; None for the file's own.
    """

    name: str
    image: str | Path
    label: int | None = None
    masks: tuple[Path, ...] = ()
    ignore: Path | None = None
    empty: bool = False
    boxes: tuple[Box, ...] = ()
    size: tuple[int, int] | None = None


class ImageDataset(Dataset[Sample]):
    """Base of the data sets that read files.

    Unless there are very many, all files are decoded once at construction. An image that cannot be
    read, or has a mask of another size or a box that reaches more than a pixel beyond it, is named
    in one warning, listed in ``skipped`` and left out. Of an image that becomes unreadable later,
    the next readable one of its class takes the place, with a warning that names it, so that a long
    run survives.

    Args:
        records: the images.
        root: folder that the records' images are relative to.
        source: where they are from, for messages.
        class_names: one per label.
        normal_label: the class without an object, None where every image has one.
        complete: every class must have an image.
        mask_kind: see :class:`ImageFolder`.
        size: height and width to resize to, or None to keep each image as it is. Images as by
            :class:`JointTransform`; a pixel of a mask is the object's where any of it falls there.
        channels: 3 for RGB, 1 for grey.
        strict: raise for an unreadable file instead of leaving it out or replacing it.
        verify: decode all files at construction; None does so for up to 20 000.

    Attributes:
        labels: int64 (length,).
        names: one per image.
        class_names: one per label.
        normal_label: the class without an object, None where every image has one.
        skipped: the files left out, with the reason.

    Raises:
        ValueError: no readable image, a class without images, with ``strict`` an unreadable file.
    """

    upright: ClassVar[bool] = True  # whether images are turned as their EXIF orientation says

    def __init__(
        self,
        records: Sequence[Record],
        *,
        root: Path = _HERE,
        source: str | Path,
        class_names: Sequence[str],
        normal_label: int | None = None,
        complete: bool = True,
        mask_kind: str = "binary",
        size: tuple[int, int] | None = None,
        channels: int = 3,
        strict: bool = False,
        verify: bool | None = None,
    ) -> None:
        self._where = type(self).__name__
        check_channels(self._where, channels)
        check_choice(self._where, "mask_kind", mask_kind, MASK_KINDS)
        if size is not None:
            check_size(self._where, size, 1)
        self.root = root
        self.size = size
        self.channels = channels
        self.mask_kind = mask_kind
        self.strict = strict
        self.class_names = tuple(class_names)
        self.normal_label = normal_label
        self.skipped: list[SkippedFile] = []
        self._without_object: list[str] = []
        self._source = source
        if verify is None:
            verify = len(records) <= _VERIFIED_BY_DEFAULT
        if verify or any(record.label is None for record in records):
            records = self._verified(records)
        self.keep(records)
        if complete:
            self._check_classes()

    def keep(self, records: Iterable[Record]) -> None:
        """Make these, all labelled, the images of the data set."""
        self.records = list(records)
        self.names = [record.name for record in self.records]
        labels = [int(record.label or 0) for record in self.records]
        self.labels: Tensor = torch.tensor(labels, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: SupportsIndex) -> Sample:
        """Read one sample; indices outside the data set raise IndexError."""
        position = range(len(self))[index]
        try:
            return self._read(self.records[position])
        except UnreadableImageError as error:
            if self.strict:
                raise
            return self._replacement(position, error)

    def _read(self, record: Record) -> Sample:
        decoded, mask = self._decode(record)
        height, width = decoded.shape[:2]
        image = image_to_tensor(decoded, self.channels)
        if self.size is not None:
            image = resized(image, self.size)
            if mask is not None and mask.shape != self.size:
                mask = self._resized_mask(mask, self.size)
        new_size = (image.shape[2], image.shape[1])
        boxes = [self._resized(box, record.size or (width, height), new_size)
                 for box in record.boxes]  # fmt: skip
        return Sample(
            image,
            None if mask is None else torch.from_numpy(np.ascontiguousarray(mask)),
            int(record.label or 0),
            record.name,
            torch.tensor(boxes, dtype=torch.int32) if boxes else NO_BOXES,
        )

    def _decode(self, record: Record) -> tuple[NDArray[np.uint8], Mask | None]:
        path = self.root / record.image
        image = read_image(path, upright=self.upright)
        self._check_boxes(record, image)
        if record.masks:
            mask = read_mask(record.masks, self.mask_kind, record.ignore)
            if image.shape[:2] != mask.shape:
                raise UnreadableImageError(path, "its mask has another size")
            return image, mask
        if record.empty:
            kind = np.uint8 if self.mask_kind == "index" else np.bool_
            return image, np.zeros(image.shape[:2], kind)
        return image, None

    def _check_boxes(self, record: Record, image: NDArray[np.uint8]) -> None:
        height, width = image.shape[:2]
        beyond = any(x1 > width + 1 or y1 > height + 1 for _, _, x1, y1 in record.boxes)
        if record.size is None and beyond:  # by more than is rounded
            raise UnreadableImageError(self.root / record.image, "a box reaches beyond it")

    def _resized_mask(self, mask: Mask, size: tuple[int, int]) -> Mask:
        return resized_mask(mask, size)

    def _resized(self, box: Box, size: tuple[int, int], new_size: tuple[int, int]) -> Box:
        """A half-open box in an image of (width, height) resized to another: its pixels there."""
        (width, height), (new_width, new_height) = size, new_size
        x0, y0, x1, y1 = box
        return (
            x0 * new_width // width,
            y0 * new_height // height,
            min(-(-x1 * new_width // width), new_width),
            min(-(-y1 * new_height // height), new_height),
        )

    def _replacement(self, position: int, error: UnreadableImageError) -> Sample:
        alike = torch.nonzero(self.labels == self.labels[position])[:, 0].tolist()
        start = alike.index(position)
        for other in alike[start + 1 :] + alike[:start]:
            try:
                sample = self._read(self.records[other])
            except UnreadableImageError:
                continue
            warnings.warn(
                f"wsfast.{self._where}: {error.path} ({error.reason}) is replaced by {sample.name}",
                stacklevel=3,
            )
            return sample
        raise error

    def _verified(self, records: Sequence[Record]) -> list[Record]:
        """The records whose files can be read, labelled; the others go to ``skipped``."""
        kept = []
        with ThreadPoolExecutor() as pool:  # OpenCV decodes outside the interpreter lock
            probes = pool.map(self._probe, records)
            for result in tqdm(probes, "reading", len(records), unit="image", delay=1, leave=False):
                if isinstance(result, Record):
                    kept.append(result)
                elif self.strict:
                    raise result
                else:
                    self.skipped.append(SkippedFile(result.path, result.reason))
        if self.skipped:
            listed = "; ".join(f"{f.path.name} ({f.reason})" for f in self.skipped[:_NAMED])
            more = len(self.skipped) - _NAMED
            warnings.warn(
                f"wsfast.{self._where}: skipped {len(self.skipped)} of {len(records)} images in "
                f"{self._source}: {listed}" + (f"; and {more} more" if more > 0 else ""),
                stacklevel=4,
            )
        if self._without_object:
            listed = ", ".join(sorted(self._without_object)[:_NAMED])
            warnings.warn(
                f"wsfast.{self._where}: {len(self._without_object)} images of classes with an "
                f"object have masks without one, and count as images without ({listed}): see "
                "mask_kind for what is the object in a mask, and normal for a class without",
                stacklevel=4,
            )
        return kept

    def _probe(self, record: Record) -> Record | UnreadableImageError:
        try:
            _, mask = self._decode(record)
        except UnreadableImageError as error:
            return error
        if record.label is not None:
            with_object = record.masks and record.label != self.normal_label
            if with_object and mask is not None and not object_pixels(mask).any():
                self._without_object.append(record.name)
            return record
        found: Any = mask is not None and object_pixels(mask).any()
        return dataclasses.replace(record, label=int(found))

    def _check_classes(self) -> None:
        if not self.records:
            value_error(self._where, "root", "a data set with readable images", f"{self._source}")
        present = set(self.labels.tolist())
        missing = [name for label, name in enumerate(self.class_names) if label not in present]
        if missing:
            listed = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" * (len(missing) > 5))
            what = f"none of {listed} in {self._source}"
            value_error(self._where, "root", "a data set with images of every class", what)
