"""KolektorSDD2 as it lies on disk: ``train/10000.png`` beside its mask ``train/10000_GT.png``."""

import re
import warnings
from concurrent.futures import ThreadPoolExecutor
from os import PathLike
from pathlib import Path
from typing import Any, SupportsIndex

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from wsfast._check import check_choice, value_error
from wsfast.data.images import SkippedFile, UnreadableImageError, read_image
from wsfast.data.sample import SPLITS, DefectSample, check_channels, check_size, image_to_tensor

FIRST_NUMBER = {"train": 10000, "test": 20000}
_IMAGE_NAME = re.compile(r"\d+\.png")
_FILE_NAME = re.compile(r"\d+(_GT)?\.png")


def is_ksdd2_file(name: str) -> bool:
    """Whether a file name is that of a KolektorSDD2 image or mask."""
    return _FILE_NAME.fullmatch(name) is not None


class KSDD2(Dataset[DefectSample]):
    """A split of KolektorSDD2, or of a data set in its format.

    The label is 1 where the mask has any pixel. Every file is decoded once at construction: an
    image that cannot be read, or has no mask of its size, is named in one warning, listed in
    ``skipped`` and left out. Files whose names are not a plain number are ignored: the published
    archive holds ``10301 (copy).png`` and ``10301_GT (copy).png``, and the latter is a mask that a
    search for images would take for one.

    Args:
        root: folder that holds ``train`` and ``test``.
        split: ``"train"`` or ``"test"``.
        size: height and width to resize to (areas averaged, masks by nearest pixel), or None to
            keep each image as it is; KolektorSDD2's differ by a few pixels, so batches need a size.
        channels: 3 for RGB, 1 for grey.
        strict: raise for an unreadable file instead of leaving it out.

    Attributes:
        labels: int64 (length,).
        names: the images' file stems.
        skipped: the files left out, with the reason.

    Raises:
        ValueError: no readable image of the split, or with ``strict`` an unreadable one.

    Example:
        >>> import tempfile
        >>> from wsfast.data import SyntheticDefects
        >>> root = SyntheticDefects(2).write_ksdd2(tempfile.mkdtemp()).parent
        >>> data = KSDD2(root, "train")
        >>> data[0].image.shape, data.names, data.labels.tolist()
        (torch.Size([3, 160, 64]), ['10000', '10001'], [0, 1])
    """

    def __init__(
        self,
        root: str | PathLike[str],
        split: str,
        *,
        size: tuple[int, int] | None = None,
        channels: int = 3,
        strict: bool = False,
    ) -> None:
        check_choice("KSDD2", "split", split, SPLITS)
        check_channels("KSDD2", channels)
        if size is not None:
            check_size("KSDD2", size, 1)
        self.folder = Path(root) / split
        self.size = size
        self.channels = channels
        self.names: list[str] = []
        self.skipped: list[SkippedFile] = []
        self.labels: Tensor = torch.tensor(self._scan(strict), dtype=torch.int64)
        if self.skipped:
            listed = "; ".join(f"{file.path.name} ({file.reason})" for file in self.skipped)
            warnings.warn(
                f"wsfast.KSDD2: skipped {len(self.skipped)} of "
                f"{len(self.skipped) + len(self)} images in {self.folder}: {listed}",
                stacklevel=2,
            )
        if not self.names:
            value_error("KSDD2", "root", f"a folder with images in {split}/", f"{root}")

    def _scan(self, strict: bool) -> list[int]:
        """Decode every image once; fill ``names`` and ``skipped`` and return the labels."""
        files = self.folder.iterdir() if self.folder.is_dir() else ()
        paths = sorted(
            (path for path in files if _IMAGE_NAME.fullmatch(path.name)),
            key=lambda path: int(path.stem),
        )
        labels = []
        with ThreadPoolExecutor() as pool:  # OpenCV decodes outside the interpreter lock
            probes = pool.map(_probe, paths)
            for result in tqdm(probes, "reading", len(paths), unit="image", delay=1, leave=False):
                if isinstance(result, UnreadableImageError):
                    if strict:
                        raise result
                    self.skipped.append(SkippedFile(result.path, result.reason))
                else:
                    name, label = result
                    self.names.append(name)
                    labels.append(label)
        return labels

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: SupportsIndex) -> DefectSample:
        """Read one sample; indices outside the data set raise IndexError."""
        position = range(len(self))[index]
        name = self.names[position]
        image, mask = _read_pair(self.folder / f"{name}.png")
        if self.size is not None:
            width_first = self.size[::-1]
            image = cv2.resize(image, width_first, interpolation=cv2.INTER_AREA).astype(np.uint8)
            grown = cv2.resize(mask.astype(np.uint8), width_first, interpolation=cv2.INTER_NEAREST)
            mask = grown.astype(np.bool_)
        return DefectSample(
            image_to_tensor(image, self.channels),
            torch.from_numpy(mask),
            int(self.labels[position]),
            name,
        )


def _read_pair(path: Path) -> tuple[NDArray[np.uint8], Any]:
    """Read an image and its mask.

    Raises:
        UnreadableImageError: either cannot be read, or their sizes differ.
    """
    image = read_image(path)
    mask = read_image(path.with_name(f"{path.stem}_GT.png")).any(axis=2)
    if image.shape[:2] != mask.shape:
        raise UnreadableImageError(path, "its mask has another size")
    return image, mask


def _probe(path: Path) -> tuple[str, int] | UnreadableImageError:
    try:
        return path.stem, int(_read_pair(path)[1].any())
    except UnreadableImageError as error:
        return error
