"""A synthetic defect data set in KolektorSDD2's shape: image labels and exact pixel masks."""

import shutil
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import SupportsIndex

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from wsfast._check import check_choice, check_range, value_error
from wsfast.data.ksdd2 import FIRST_NUMBER, is_ksdd2_file
from wsfast.data.sample import (
    SPLITS,
    Sample,
    check_channels,
    check_size,
    check_whole,
    image_to_tensor,
)
from wsfast.data.surfaces import render_surface

_STREAMS = {"train": 0, "test": 1, "val": 2}


class SyntheticDefects(Dataset[Sample]):
    """Textured surfaces with scratches, spots, pits and stains, drawn on demand.

    Both classes share grain, brushing, shading, faint stains and machining lines; only the defect
    tells them apart. Item ``i`` depends on ``(seed, split, i)`` alone, never on order or process.
    Labels are spread evenly over the indices, so the defect rate is met as nearly as possible.

    Args:
        length: number of images.
        split: ``"train"``, ``"val"`` or ``"test"``; they never share an image. The numbers begin at
            10000 and 20000 for ``train`` and ``test``, as KolektorSDD2's do, at 30000 for ``val``.
        size: height and width in pixels; the default is a quarter of KolektorSDD2's. Structure
            scales with the width.
        defect_rate: share of images with a defect, 0–1.
        channels: 1 for grey, 3 for grey repeated as RGB.
        seed: non-negative; another seed gives another data set.

    Attributes:
        labels: int64 (length,), known without drawing an image.
        names: the images' names.
        class_names: ``("good", "defect")``.
        normal_label: 0.

    Raises:
        ValueError: a value is out of its range.

    Note:
        About two milliseconds an image at the default size.

    Example:
        >>> data = SyntheticDefects(4, seed=7)
        >>> sample = data[1]
        >>> sample.image.shape, sample.mask.shape, sample.label, sample.name
        (torch.Size([1, 160, 64]), torch.Size([160, 64]), 1, '10001')
        >>> bool(sample.mask.any()), data.labels.tolist()
        (True, [0, 1, 0, 1])
    """

    class_names = ("good", "defect")
    normal_label = 0

    def __init__(
        self,
        length: int = 600,
        *,
        split: str = "train",
        size: tuple[int, int] = (160, 64),
        defect_rate: float = 0.5,
        channels: int = 1,
        seed: int = 0,
    ) -> None:
        where = "SyntheticDefects"
        check_whole(where, "length", length, 0, 9999)  # splits are numbered 10000 apart
        check_choice(where, "split", split, SPLITS)
        check_size(where, size, 16)
        check_range(where, "defect_rate", defect_rate, 0, 1)
        check_channels(where, channels)
        check_whole(where, "seed", seed, 0, 2**63 - 1)
        self.split = split
        self.size = size
        self.channels = channels
        self.seed = seed
        steps = np.floor(np.arange(length + 1) * defect_rate + 1e-9)
        self.labels: Tensor = torch.from_numpy(np.diff(steps).astype(np.int64))
        self.names = [str(FIRST_NUMBER[split] + index) for index in range(length)]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: SupportsIndex) -> Sample:
        """Draw one sample; indices outside the data set raise IndexError."""
        position = range(len(self))[index]
        rng = np.random.default_rng([self.seed, _STREAMS[self.split], position])
        label = int(self.labels[position])
        image, mask = render_surface(rng, self.size, defective=bool(label))
        return Sample(
            image_to_tensor(image, self.channels),
            torch.from_numpy(mask),
            label,
            self.names[position],
        )

    def write_ksdd2(self, root: str | PathLike[str], *, overwrite: bool = False) -> Path:
        """Write the split as KolektorSDD2 does: ``root/train/10000.png``, ``10000_GT.png``, ….

        The images are RGB, the masks grey with 0 and 255. The folder is written under a temporary
        name and renamed when complete, so there is never half a data set.

        Args:
            root: folder that receives the split's folder; made where missing.
            overwrite: replace an existing split.

        Returns:
            The split's folder.

        Raises:
            ValueError: the split's folder exists and ``overwrite`` is False, or it holds files that
                are not KolektorSDD2's, which are never deleted.
            OSError: the disk refuses a file.

        Example:
            >>> import tempfile
            >>> folder = SyntheticDefects(1, split="test").write_ksdd2(tempfile.mkdtemp())
            >>> sorted(file.name for file in folder.iterdir())
            ['20000.png', '20000_GT.png']
        """
        root = Path(root)
        target = root / self.split
        _check_replaceable(target, overwrite)
        root.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{self.split}-", dir=root) as temporary:
            complete = Path(temporary) / self.split
            complete.mkdir()
            for index in range(len(self)):
                self._write_sample(complete, index)
            if target.exists():
                shutil.rmtree(target)
            complete.rename(target)
        return target

    def _write_sample(self, folder: Path, index: int) -> None:
        sample = self[index]
        assert sample.mask is not None
        grey = sample.image[0].numpy()
        for name, picture in (
            (f"{sample.name}.png", cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR)),
            (f"{sample.name}_GT.png", sample.mask.numpy().astype(np.uint8) * 255),
        ):
            if not cv2.imwrite(str(folder / name), picture):
                raise OSError(f"wsfast.SyntheticDefects.write_ksdd2: cannot write {folder / name}")


def _check_replaceable(target: Path, overwrite: bool) -> None:
    where = "SyntheticDefects.write_ksdd2"
    if not target.exists():
        return
    if not overwrite:
        value_error(
            where,
            "root",
            "without this split (overwrite=True replaces it)",
            f"an existing {target}",
        )
    if not target.is_dir():
        value_error(where, "root", "a folder to replace", f"the file {target}")
    foreign = sorted(file.name for file in target.iterdir() if not is_ksdd2_file(file.name))
    if foreign:
        value_error(where, "root", "a split without other files", f"{target} with {foreign[0]}")
