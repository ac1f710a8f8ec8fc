"""From a configuration to training and validation images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wsfast._check import value_error
from wsfast.data import KSDD2, SyntheticDefects
from wsfast.train.config import TrainConfig
from wsfast.train.images import ImageData
from wsfast.train.seeding import seeded

_HOLDOUT = 4  # keeps these random numbers apart from those of order and augmentation


class Selected:
    """Some samples of a data set, in a given order."""

    def __init__(self, dataset: Any, indices: Sequence[int]) -> None:
        self.dataset = dataset
        self.indices = list(indices)
        self.labels: Tensor = dataset.labels[self.indices]
        self.names = [dataset.names[index] for index in self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Any:
        """One sample."""
        return self.dataset[self.indices[index]]


def hold_out(dataset: Any, share: float, seed: int) -> tuple[Selected, Selected | None]:
    """A data set in two, of each class the given share in the second; None where nothing is."""
    kept, held = [], []
    with seeded(seed, _HOLDOUT):
        for label in dataset.labels.unique():
            members = torch.nonzero(dataset.labels == label)[:, 0]
            members = members[torch.randperm(len(members))]
            count = round(share * len(members))
            held += members[:count].tolist()
            kept += members[count:].tolist()
    rest = Selected(dataset, sorted(held)) if held else None
    return Selected(dataset, sorted(kept)), rest


class OpenedData:
    """Images of a configuration, before it is known what they are normalised with.

    Attributes:
        train: training images, at their own size where ``size`` is None.
        validation: validation images at the size the model will see.
        class_names: one per class.
        clean_class: the class without an object, -1 where there is none.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        seen = config.crop or config.size
        if config.data == "synthetic":
            self.train, self.validation = self._synthetic()
        else:
            self.train, self.validation = self._folder(Path(config.data), seen)
        self.class_names = ("good", "defect")
        self.clean_class = 0
        self._check()

    def _synthetic(self) -> tuple[Any, Any]:
        config = self.config
        size = {} if config.size is None else {"size": config.size}
        held = round(config.images * config.holdout)
        images = SyntheticDefects(
            config.images + held, channels=config.channels, seed=config.seed, **size
        )
        last = range(config.images, config.images + held)
        return Selected(images, range(config.images)), Selected(images, last) if held else None

    def _folder(self, root: Path, seen: tuple[int, int] | None) -> tuple[Any, Any]:
        if not root.is_dir():
            value_error("train", "--data", "synthetic or a folder", f"{root}")
        config = self.config
        options = {"channels": config.channels, "strict": config.strict}
        whole = KSDD2(root, "train", size=config.size, **options)  # type: ignore[arg-type]
        small = KSDD2(root, "train", size=seen, **options)  # type: ignore[arg-type]
        train, held = hold_out(whole, config.holdout, config.seed)
        return train, None if held is None else Selected(small, held.indices)

    def _check(self) -> None:
        counts = torch.bincount(self.train.labels, minlength=len(self.class_names))
        empty = [name for name, count in zip(self.class_names, counts, strict=True) if not count]
        if empty:
            shown = ", ".join(empty[:3]) + (" and more" if len(empty) > 3 else "")
            value_error(
                "train", "--data", "with training images of every class", f"none of {shown}"
            )

    def images(self, mean: Sequence[float], std: Sequence[float]) -> ImageData:
        """With the normalisation of a model."""
        config = self.config
        return ImageData(
            self.train, self.validation, mean, std, self.class_names,
            None if config.data == "synthetic" else config.size,
            config.crop, config.flips, self.clean_class,
        )  # fmt: skip
