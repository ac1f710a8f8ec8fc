"""What the engine asks of a recipe: data, model, losses and validation."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from wsfast._check import value_error
from wsfast.train.config import TrainConfig
from wsfast.train.random_state import seeded
from wsfast.train.sampling import BalancedSampler

_ORDER = 1  # keeps the random numbers of the order apart from others of the same epoch


class Draw(NamedTuple):
    """Which image is to be read, and for which place of the run.

    Attributes:
        epoch: from 0.
        position: place in the epoch, from 0.
        item: place of the image in the training data.
    """

    epoch: int
    position: int
    item: int


class Step(NamedTuple):
    """What a recipe makes of one batch.

    Attributes:
        losses: weighted terms by name; their sum is minimised. Averaged over processes they are the
            terms of the global batch.
        figures: other scalars for the log, averaged over steps and processes.
    """

    losses: dict[str, Tensor]
    figures: dict[str, Tensor]


class Recipe(ABC):
    """A training method.

    Attributes:
        name: of the recipe.
        selections: which figure of :meth:`validate` stands for each choice of ``select_on``.
        config: its settings.
        model: what is trained and saved; its parameters without ``requires_grad`` stay as they are.
        device: where the model is.
        classifier_digest: of the classifier's weights that a run starts from; empty without one.
        resumed_inside: whether the epoch that begins was begun before, by the run that is resumed.
        learnt_before: names of the images which that classifier has learnt from, where known.
    """

    name: ClassVar[str]
    selections: Mapping[str, str] = {}
    classifier_digest: str = ""
    resumed_inside: bool = False
    learnt_before: Collection[str] = ()

    def __init__(self, config: TrainConfig, model: nn.Module, device: torch.device) -> None:
        self.config = config
        self.model = model
        self.device = device

    @property
    @abstractmethod
    def labels(self) -> Tensor:
        """Class of every training image, int64 (length,)."""

    @property
    @abstractmethod
    def names(self) -> Sequence[str]:
        """Name of every training image."""

    @property
    def identities(self) -> Sequence[str]:
        """What tells every training image from those of other splits."""
        return self.names

    @abstractmethod
    def read(self, draw: Draw) -> Any:
        """One augmented sample; torch's generator is seeded for it. May run in another process."""

    @abstractmethod
    def step(self, batch: Any, epoch: int) -> Step:
        """Losses of a batch on the device, gradients attached."""

    def begin_epoch(self, epoch: int) -> None:  # noqa: B027  # most recipes need nothing
        """Make ready for an epoch, counted from 0; a resumed run calls it for its first one too."""

    def changes_data(self, epoch: int) -> bool:
        """Whether :meth:`read` gives other samples from this epoch on, so none is read ahead."""
        return False

    def validate(self) -> dict[str, float]:
        """Figures on the validation images, the same in all processes."""
        return {}

    def check_selection(self) -> None:
        """Raise ValueError where the data cannot choose the best model by ``select_on``."""
        wanted = self.config.select_on
        if wanted != "last" and wanted not in self.selections:
            choices = ", ".join([*self.selections, "last"])
            value_error("train", "select_on", f"{choices} for this data", wanted)

    def warnings(self, figures: Mapping[str, float]) -> list[str]:
        """What a user should know of an epoch's figures, in one line each."""
        return []

    @abstractmethod
    def save_model(self, path: Path, figures: Mapping[str, float]) -> None:
        """Write the model so that it can be used without this package's training."""

    def check_saving(self) -> None:  # noqa: B027  # most recipes need nothing
        """Raise ValueError where :meth:`save_model` would, before anything is trained."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups for the optimizer, each with ``params`` and perhaps its own ``lr``."""
        return [{"params": [p for p in self.model.parameters() if p.requires_grad]}]

    def epoch_order(self, epoch: int) -> list[int]:
        """Indices of an epoch in order, a function of seed and epoch."""
        with seeded(self.config.seed, _ORDER, epoch):
            if self.config.balanced:
                return list(BalancedSampler(self.labels))
            return torch.randperm(len(self.labels)).tolist()

    def fingerprint(self) -> str:
        """What tells whether the training images are the same: their number, names and labels."""
        digest = hashlib.sha256("\n".join(self.names).encode(errors="surrogateescape"))
        digest.update(self.labels.numpy().tobytes())
        return f"{len(self.labels)} images, {digest.hexdigest()[:12]}"
