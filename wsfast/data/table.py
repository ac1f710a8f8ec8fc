"""Images listed in a CSV file with labels and, where known, masks or boxes."""

import csv
import re
from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path

from wsfast._check import check_choice, value_error
from wsfast.data.classes import Classes, number_classes
from wsfast.data.records import Box, ImageDataset, Record
from wsfast.data.sample import SPLITS
from wsfast.data.splits import choose_split
from wsfast.data.wsol import MOST_CLASSES, MetadataError

_CORNERS = ("x0", "y0", "x1", "y1")
_COLUMNS = ("path", "label", "mask", *_CORNERS, "split", "group")


class ImageTable(ImageDataset):
    r"""The images of a CSV file with a header of column names.

    ``path`` and ``label`` are needed; ``mask``, ``x0,y0,x1,y1`` (half-open, in pixels of the image
    turned upright), ``split`` (train, val or test) and ``group`` (what must not be in two splits,
    such as the part that several images show) may be there, and empty where nothing is known. An
    image with several masks or boxes has several lines. Paths are relative to the file. Labels are
    names, or all of them whole numbers from 0.

    Args:
        path: the file.
        split: ``"train"``, ``"val"`` or ``"test"``.
        mask_kind: see :class:`ImageFolder`.
        normal: see :class:`ImageFolder`; with numbers as labels, ``"0"`` says that 0 is it.
        merge: see :class:`ImageFolder`.
        holdout: share of the training images that ``val`` takes where no line says so.
        test_share: share of all images that ``test`` takes without a column ``split``.
        seed: of both choices. All splits must be given the same.
        size: see :class:`ImageDataset`.
        channels: see :class:`ImageDataset`.
        strict: see :class:`ImageDataset`.
        verify: see :class:`ImageDataset`.

    Raises:
        MetadataError: a malformed line; the message names file and line.
        ValueError: no image in the split, a class without images.

    Example:
        >>> import cv2, numpy, tempfile
        >>> file = Path(tempfile.mkdtemp()) / "data.csv"
        >>> _ = cv2.imwrite(str(file.parent / "a.png"), numpy.zeros((8, 8), numpy.uint8))
        >>> lines = "path,label,x0,y0,x1,y1", "a.png,crack,1,2,5,6", "a.png,crack,0,0,8,1"
        >>> _ = file.write_text("\n".join(lines))
        >>> ImageTable(file, "train", test_share=0, holdout=0)[0].boxes.tolist()
        [[1, 2, 5, 6], [0, 0, 8, 1]]
    """

    def __init__(
        self,
        path: str | PathLike[str],
        split: str,
        *,
        mask_kind: str = "binary",
        normal: str | None = None,
        merge: bool = False,
        holdout: float = 0.2,
        test_share: float = 0.2,
        seed: int = 0,
        size: tuple[int, int] | None = None,
        channels: int = 3,
        strict: bool = False,
        verify: bool | None = None,
    ) -> None:
        where = "ImageTable"
        check_choice(where, "split", split, SPLITS)
        path = Path(path)
        rows = _read(path)
        own_names = sorted({row.label for row in rows})
        number = {name: place for place, name in enumerate(own_names)}
        classes = _classes(path, rows, normal, merge)
        has_splits = any(row.split for row in rows)
        parts: dict[str, list[_Row]] = {"train" if has_splits else "all": []}
        for row in rows:
            parts.setdefault(row.split or next(iter(parts)), []).append(row)
        chosen = choose_split(
            parts,
            split,
            lambda row: number[row.label],
            holdout=holdout,
            test_share=test_share,
            seed=seed,
            group_of=lambda row: row.group,
        )
        has_masks = any(row.masks for row in rows)
        super().__init__(
            [row.record(path.parent, classes, has_masks=has_masks) for row in chosen],
            source=path,
            class_names=classes.names,
            normal_label=classes.normal,
            complete=split == "train",
            mask_kind=mask_kind,
            size=size,
            channels=channels,
            strict=strict,
            verify=verify,
        )
        if not self.names:
            value_error(where, "path", f"a table with images for {split}", f"{path}")


class _Row:
    """The lines of one image."""

    def __init__(self, path: str, label: str, split: str, group: str, line: int) -> None:
        self.path, self.label, self.line = path, label, line
        self.split, self.group = split, group
        self.masks: list[str] = []
        self.boxes: list[Box] = []

    def record(self, folder: Path, classes: Classes, *, has_masks: bool) -> Record:
        label = classes.label_of[self.label]
        return Record(
            self.path,
            folder / self.path,
            label,
            tuple(folder / mask for mask in self.masks),
            empty=has_masks and label == classes.normal and not self.masks,
            boxes=tuple(self.boxes),
        )


def _read(path: Path) -> list[_Row]:
    """One row per image, in the file's order."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, strict=True)
            _check_header(path, reader.fieldnames or ())
            rows: dict[Path, _Row] = {}
            for cells in reader:
                _add(path, rows, cells, reader.line_num)
        _check_groups(path, rows.values())
    except csv.Error as error:
        raise MetadataError(
            f"wsfast.data: {path}, line {reader.reader.line_num}: {error}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise MetadataError(f"wsfast.data: {path}: {reason}") from None
    if not rows:
        raise MetadataError(f"wsfast.data: {path}: must list at least one image, got none")
    return list(rows.values())


def _check_header(path: Path, columns: Sequence[str]) -> None:
    boxes = [name for name in _CORNERS if name in columns]
    if not {"path", "label"} <= set(columns) or set(columns) - set(_COLUMNS) or len(boxes) % 4:
        wanted = "path,label and perhaps mask, x0,y0,x1,y1, split or group"
        raise MetadataError(
            f"wsfast.data: {path}, line 1: must be a header of {wanted}, got {','.join(columns)!r}"
        )


def _add(path: Path, rows: dict[Path, _Row], cells: dict[str, str], line: int) -> None:
    """Add a line to its image."""
    try:
        if None in cells or None in cells.values():
            raise ValueError("of as many cells as the header")
        cells = {name: value.strip() for name, value in cells.items()}
        if not cells["path"] or not cells["label"]:
            raise ValueError("of a path and a label")
        split = cells.get("split", "")
        if split and split not in SPLITS:
            raise ValueError(f"of a split in {', '.join(SPLITS)}")
        new = _Row(cells["path"], cells["label"], split, cells.get("group", ""), line)
        row = rows.setdefault(Path(new.path), new)  # a.png and ./a.png are one image
        if (row.label, row.split, row.group) != (new.label, new.split, new.group):
            raise ValueError(f"of the label, split and group that line {row.line} gives the image")
        if cells.get("mask"):
            row.masks.append(cells["mask"])
        if any(cells.get(name) for name in _CORNERS):
            row.boxes.append(_box([cells[name] for name in _CORNERS]))
    except ValueError as error:
        shown = ",".join(str(value) for value in cells.values())[:80]
        raise MetadataError(
            f"wsfast.data: {path}, line {line}: must be {error}, got {shown!r}"
        ) from None


def _check_groups(path: Path, rows: Iterable[_Row]) -> None:
    first: dict[str, _Row] = {}
    for row in rows:
        other = first.setdefault(row.group, row) if row.group else row
        if (row.split or "train") != (other.split or "train"):
            raise MetadataError(
                f"wsfast.data: {path}, line {row.line}: must be of the split that line "
                f"{other.line} gives the group {row.group!r}, got {row.split or 'train'!r}"
            )


def _box(corners: list[str]) -> Box:
    try:
        x0, y0, x1, y1 = (int(corner) for corner in corners)
    except ValueError:
        raise ValueError("of whole numbers x0,y0,x1,y1") from None
    if not (0 <= x0 < x1 and 0 <= y0 < y1):
        raise ValueError("of a box with 0 <= x0 < x1 and 0 <= y0 < y1")
    return x0, y0, x1, y1


def _classes(path: Path, rows: list[_Row], normal: str | None, merge: bool) -> Classes:
    if not all(re.fullmatch(r"-?\d+", row.label) for row in rows):
        return number_classes("ImageTable", (row.label for row in rows), normal, merge)
    numbers = {row.label: int(row.label) for row in rows}
    negative = next((row for row in rows if numbers[row.label] < 0), None)
    if negative is not None:
        raise MetadataError(
            f"wsfast.data: {path}, line {negative.line}: must be of a label from 0, "
            f"got {negative.label}"
        )
    large = next((row for row in rows if numbers[row.label] >= MOST_CLASSES), None)
    if large is not None:
        raise MetadataError(
            f"wsfast.data: {path}, line {large.line}: must be of a label below {MOST_CLASSES} "
            f"where all are numbers, got {large.label}"
        )
    names = tuple(str(number) for number in range(max(numbers.values()) + 1))
    chosen = None if not normal else numbers.get(normal, -1)
    if chosen not in (None, 0):
        value_error("ImageTable", "normal", "0 where labels are numbers", f"{normal}")
    if merge:
        if chosen is None:
            value_error("ImageTable", "normal", "given for merge", "no class without an object")
        return Classes(("0", "defect"), {name: min(n, 1) for name, n in numbers.items()}, 0)
    return Classes(names, numbers, chosen)
