"""Train, validation and test images: generated surfaces, and a folder of image and mask pairs."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from wsfast.data import DefectSample, SyntheticDefects

SIDE = 112  # images of a folder are resized to squares
SHARES = (0.6, 0.2)  # of a folder, for training and validation; the rest is for testing


class Samples:
    """Samples in memory, as :func:`wsfast.train.train_classifier` takes them."""

    def __init__(self, samples: Iterable[DefectSample]) -> None:
        self.samples = list(samples)
        self.labels = torch.tensor([sample.label for sample in self.samples])

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> DefectSample:
        return self.samples[index]

    def of_class(self, label: int, most: int) -> tuple[Tensor, Tensor]:
        """Images (N, 1, H, W) and masks (N, H, W) of up to ``most`` samples of one class."""
        chosen = [sample for sample in self.samples if sample.label == label][:most]
        return torch.stack([s.image for s in chosen]), torch.stack([s.mask for s in chosen])


class Splits(NamedTuple):
    """Three sets without a common image."""

    train: Samples
    validation: Samples
    test: Samples


def synthetic_splits(seed: int, images: int) -> Splits:
    """Generated surfaces, ``images`` for training and a third of that for each other split.

    Every split of every seed is a data set of its own.
    """
    lengths = (images, images // 3, images // 3)
    return Splits(
        *(
            Samples(map(SyntheticDefects(length, seed=3 * seed + i).__getitem__, range(length)))
            for i, length in enumerate(lengths)
        )
    )


def read_pairs(root: Path) -> list[DefectSample]:
    """Every ``NAME.jpg`` under ``root`` with its mask ``NAME.png``; an empty mask means good."""
    samples = []
    for path in sorted(root.rglob("*.jpg")):
        image, mask = (
            cv2.imread(str(file), cv2.IMREAD_GRAYSCALE) for file in (path, path.with_suffix(".png"))
        )
        if image is None or mask is None:
            raise ValueError(f"{path} or its mask {path.stem}.png cannot be read")
        small = cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
        defect = cv2.resize(mask, (SIDE, SIDE), interpolation=cv2.INTER_NEAREST) > 127
        label = int((mask > 127).any())
        samples.append(
            DefectSample(torch.from_numpy(small)[None], torch.from_numpy(defect), label, path.stem)
        )
    if len({sample.label for sample in samples}) < 2:
        raise ValueError(f"{root} holds no pairs of NAME.jpg and NAME.png of both classes")
    return samples


def folder_splits(samples: list[DefectSample], seed: int) -> Splits:
    """Each class shuffled and cut into training, validation and test images."""
    rng = np.random.default_rng(seed)
    parts: tuple[list[DefectSample], ...] = ([], [], [])
    for label in (0, 1):
        members = [sample for sample in samples if sample.label == label]
        order = [members[i] for i in rng.permutation(len(members))]
        first = round(SHARES[0] * len(order))
        second = first + round(SHARES[1] * len(order))
        for part, cut in zip(
            parts, (order[:first], order[first:second], order[second:]), strict=True
        ):
            part.extend(cut)
    return Splits(*map(Samples, parts))
