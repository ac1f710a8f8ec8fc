"""Training a defect classifier from scratch on image labels."""

import math
import time
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision.transforms import v2
from tqdm import tqdm

from wsfast._check import check_range, value_error
from wsfast.data import DefectSample
from wsfast.models import SmallVGG
from wsfast.train.sampling import BalancedSampler

_STATISTICS_IMAGES = 256  # enough for a mean and a standard deviation


class LabelledImages(Protocol):
    """A data set that knows its labels without reading its images."""

    labels: Tensor

    def __len__(self) -> int:
        """Return the number of images."""

    def __getitem__(self, index: int, /) -> DefectSample:
        """Return one sample."""


@dataclass(frozen=True)
class TrainedClassifier:
    """A trained model and how to feed it.

    Attributes:
        model: the network in eval mode.
        mean: per channel, of training images in 0–1.
        std: per channel, of training images in 0–1.
        history: per epoch ``loss``, ``accuracy`` (on the augmented training images, as they were
            seen), ``learning_rate`` and ``seconds``.
    """

    model: nn.Module
    mean: list[float]
    std: list[float]
    history: list[dict[str, float]]

    def normalize(self, images: Tensor) -> Tensor:
        """Turn uint8 images (..., C, H, W) into the float32 input of the model."""
        return _normalization(self.mean, self.std)(images)


def train_classifier(
    dataset: LabelledImages,
    *,
    model: nn.Module | None = None,
    epochs: int = 10,
    batch_size: int = 32,
    learning_rate: float = 0.1,
    weight_decay: float = 1e-4,
    seed: int = 0,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> TrainedClassifier:
    """Train a classifier on the labels of a data set; masks are never looked at.

    Cross-entropy, SGD with Nesterov momentum on a one-cycle schedule, classes balanced, random
    horizontal and vertical flips. The last epoch's model is returned: nothing is selected.

    Args:
        dataset: samples of one size with ``labels``.
        model: trained in place; by default a new :class:`wsfast.models.SmallVGG`, drawn from
            ``seed``.
        epochs: passes over the data, at least 1.
        batch_size: images per step, at least 2 (batch normalisation needs them).
        learning_rate: peak of the schedule.
        weight_decay: as for ``torch.optim.SGD``.
        seed: of the default model, order and flips. The global random state is left as it was.
        device: where to train.
        progress: show a bar with images per second and the time left.

    Returns:
        The model on ``device``, its normalisation and history.

    Raises:
        ValueError: the data set has fewer than two images or a value is out of range.
        RuntimeError: the loss is no longer finite.

    Note:
        On the CPU the result depends only on the arguments and the number of threads.

    Example:
        >>> from wsfast.data import SyntheticDefects
        >>> data = SyntheticDefects(8, size=(32, 16))
        >>> trained = train_classifier(data, epochs=1, batch_size=4, progress=False)
        >>> trained.model(trained.normalize(data[0].image[None])).shape
        torch.Size([1, 2])
    """
    check_range("train_classifier", "epochs", epochs, 1, math.inf)
    check_range("train_classifier", "batch_size", batch_size, 2, math.inf)
    if len(dataset) < 2:
        value_error("train_classifier", "dataset", "at least 2 images", f"{len(dataset)}")
    device = torch.device(device)
    mean, std = _image_statistics(dataset)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        if model is None:
            model = SmallVGG(len(mean), max(2, int(dataset.labels.max()) + 1))
        trained = TrainedClassifier(model.to(device), mean, std, [])
        loader = _balanced_loader(dataset, batch_size)
        optimizer = torch.optim.SGD(
            model.parameters(), learning_rate, 0.9, weight_decay=weight_decay, nesterov=True
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, learning_rate, total_steps=epochs * len(loader)
        )
        images = epochs * len(loader) * (loader.batch_size or 1)
        with tqdm(total=images, unit="image", desc="training", disable=not progress) as bar:
            for epoch in range(1, epochs + 1):
                trained.history.append(_train_epoch(trained, loader, optimizer, schedule, bar))
                bar.set_postfix(
                    epoch=f"{epoch}/{epochs}", loss=f"{trained.history[-1]['loss']:.3f}"
                )
    model.eval()
    return trained


def evaluate_classifier(
    classifier: TrainedClassifier, dataset: LabelledImages, *, batch_size: int = 64
) -> dict[str, float]:
    """Score a classifier on a data set.

    Args:
        classifier: the model and its normalisation; evaluated on the model's device.
        dataset: samples of one size.
        batch_size: images per forward pass.

    Returns:
        ``accuracy`` and ``balanced_accuracy``, the mean over classes of the share that is right;
        the latter is the one to read when most images are good.

    Example:
        >>> from wsfast.data import SyntheticDefects
        >>> data = SyntheticDefects(8, size=(32, 16))
        >>> trained = train_classifier(data, epochs=1, batch_size=4, progress=False)
        >>> sorted(evaluate_classifier(trained, data))
        ['accuracy', 'balanced_accuracy']
    """
    model = classifier.model
    device = next(model.parameters()).device
    loader: Any = DataLoader(dataset, batch_size)  # type: ignore[arg-type]  # length and items suffice
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        predicted = [
            model(classifier.normalize(batch.image.to(device))).argmax(1).cpu() for batch in loader
        ]
    model.train(was_training)
    right = torch.cat(predicted) == dataset.labels
    recalls = [right[dataset.labels == label].float().mean() for label in dataset.labels.unique()]
    return {
        "accuracy": right.float().mean().item(),
        "balanced_accuracy": torch.stack(recalls).mean().item(),
    }


def _train_epoch(
    trained: TrainedClassifier,
    loader: DataLoader[DefectSample],
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    bar: Any,
) -> dict[str, float]:
    device = next(trained.model.parameters()).device
    start = time.perf_counter()
    total_loss, right, seen = 0.0, 0, 0
    trained.model.train()
    for batch in loader:
        labels = batch.label.to(device)
        logits = trained.model(trained.normalize(_random_flips(batch.image).to(device)))
        loss = F.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        total_loss += loss.item() * len(labels)
        if not math.isfinite(total_loss):
            raise RuntimeError(
                "wsfast.train_classifier: the loss is no longer finite; lower learning_rate"
            )
        right += int((logits.argmax(1) == labels).sum())
        seen += len(labels)
        bar.update(len(labels))
    return {
        "loss": total_loss / seen,
        "accuracy": right / seen,
        "learning_rate": float(schedule.get_last_lr()[0]),
        "seconds": time.perf_counter() - start,
    }


def _balanced_loader(dataset: LabelledImages, batch_size: int) -> DataLoader[DefectSample]:
    sampler = BalancedSampler(dataset.labels)
    return DataLoader(
        dataset,  # type: ignore[arg-type]  # length and items suffice
        min(batch_size, len(sampler)),
        sampler=sampler,
        drop_last=True,
    )


def _random_flips(images: Tensor) -> Tensor:
    """Mirror each image of a batch left-right and up-down, each with probability one half."""
    for dim in (3, 2):
        chosen = torch.rand(len(images), 1, 1, 1) < 0.5
        images = torch.where(chosen, images.flip(dim), images)
    return images


def _normalization(mean: list[float], std: list[float]) -> v2.Compose:
    return v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)])


def _image_statistics(dataset: LabelledImages) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel over images spread evenly over the data set."""
    step = max(1, len(dataset) // _STATISTICS_IMAGES)
    images = [dataset[index].image for index in range(0, len(dataset), step)]
    values = torch.cat([image.flatten(1) for image in images], dim=1).float() / 255
    return values.mean(1).tolist(), values.std(1).clamp_min(1e-3).tolist()
