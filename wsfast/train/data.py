"""From a configuration to training and validation images."""

from collections.abc import Sequence
from typing import Any

import torch

from wsfast._check import value_error
from wsfast.data import open_dataset
from wsfast.train.config import TrainConfig
from wsfast.train.images import ImageData


class OpenedData:
    """Images of a configuration, before it is known what they are normalised with.

    Args:
        config: of any recipe.

    Attributes:
        train: training images.
        validation: validation images at the size the model will see; None where none are held out.
        class_names: one per class.
        clean_class: the class without an object, -1 where there is none.

    Raises:
        ValueError: no such data, a class without training images, and as
            :func:`wsfast.data.open_dataset`.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        synthetic = config.data == "synthetic"
        self.train = self._open("train", config.images if synthetic else None, None)
        self.size = config.size
        if self.size is None and not synthetic:
            height, width = self.train[0].image.shape[1:]
            self.size = (height, width)
        held = round(config.images * config.holdout) if synthetic else None
        self.validation = None
        if config.holdout or not synthetic:
            self.validation = self._open("val", held, config.crop or self.size)
        self.class_names = tuple(self.train.class_names)
        normal = self.train.normal_label
        self.clean_class = -1 if normal is None else normal
        self._check()

    def _open(self, split: str, length: int | None, size: tuple[int, int] | None) -> Any:
        config = self.config
        return open_dataset(
            config.data,
            format=config.format,
            split=split,
            length=length,
            size=size,
            channels=config.channels,
            strict=config.strict or None,
            holdout=config.holdout,
            seed=config.seed,
        )

    def _check(self) -> None:
        counts = torch.bincount(self.train.labels, minlength=len(self.class_names))
        empty = [n for n, count in zip(self.class_names, counts, strict=False) if not count]
        if empty:
            shown = ", ".join(empty[:3]) + (" and more" if len(empty) > 3 else "")
            expected = "with training images of every class"
            value_error("train", "--data", expected, f"none of {shown}")

    def images(self, mean: Sequence[float], std: Sequence[float]) -> ImageData:
        """With the normalisation of a model."""
        config = self.config
        return ImageData(
            self.train, self.validation, mean, std, self.class_names, self.size, config.crop,
            config.flips, self.clean_class,
        )  # fmt: skip
