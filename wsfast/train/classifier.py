"""Training a classifier on image labels."""

import inspect
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsfast._check import check_choice, check_range, value_error
from wsfast.cam import METHODS, CAMMethod
from wsfast.models import SmallVGG
from wsfast.train.config import TrainConfig
from wsfast.train.engine import fit
from wsfast.train.images import (
    ImageData,
    ImageRecipe,
    LabelledImages,
    TrainingSample,
    image_statistics,
    normalization,
)
from wsfast.train.recipe import Step
from wsfast.train.validation import (
    ClassScores,
    MapScores,
    explained_classes,
    score_regions,
    with_regions,
)

_LEARNT = 0.25  # of the way from chance to perfect, below which a classifier counts as poor


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig(TrainConfig):
    """Settings of the recipe ``classifier``.

    Attributes:
        model: ``small_vgg``, ``vgg16``, ``resnet50``, ``inception_v3`` or ``timm/NAME``.
        pretrained: start from ImageNet weights (downloaded on first use).
        checkpoint: file of weights to start from. Images are normalised as the weights have seen
            them: as the file says, else as timm does for the model, else as ImageNet's.
        fast_factor: what the learning rate of the head and of a network's new layers is multiplied
            with; 10 in F-CAM. None of ``small_vgg``, which is new as a whole.
        method: CAM whose maps are scored on validation images with masks or boxes.
        layers: of that method, ``"stages"`` or ``"last"``; empty for the method's own.
        percentile: of LT methods and RA-CAM.
    """

    recipe: ClassVar[str] = "classifier"

    model: str = "small_vgg"
    pretrained: bool = False
    checkpoint: str = ""
    fast_factor: float = 1.0
    method: str = "cam"
    layers: str = ""
    percentile: float = 50.0
    select_on: str = "classification"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("train", "method", self.method, list(METHODS))
        check_range("train", "percentile", self.percentile, 0, 100)
        check_range("train", "fast_factor", self.fast_factor, 0, 1e6)

    def idle(self) -> dict[str, str]:
        """Also of the network and the CAM method."""
        found = {**super().idle(), **idle_percentile(self.method)}
        if self.model == "small_vgg" and not self.checkpoint:
            found["fast_factor"] = "model small_vgg"
        return found


class ClassifierRecipe(ImageRecipe):
    """Cross-entropy on image labels; validated by accuracy and by the maps of a CAM method.

    Args:
        config: settings.
        model: from images to (N, classes) logits.
        device: where to train.
        data: images and labels; masks and boxes of validation images are scored, never trained on.
    """

    name = "classifier"
    config: ClassifierConfig

    def __init__(
        self,
        config: ClassifierConfig,
        model: nn.Module,
        device: torch.device,
        data: ImageData,
    ) -> None:
        super().__init__(config, model, device, data)
        self.classes = max(int(self.labels.max()) + 1, len(data.class_names))
        if data.validation is not None:
            self.selections = {"classification": "balanced_accuracy"}
        if self.has_regions():
            self.selections = {**self.selections, "localization": "localization"}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The network's parameters, and those that learn faster."""
        fast = {id(p) for p in getattr(self.model, "fast_parameters", list)()}
        groups: list[dict[str, Any]] = [{"params": []}, {"params": []}]
        groups[1]["lr"] = self.config.learning_rate * self.config.fast_factor
        for parameter in self.model.parameters():
            groups[id(parameter) in fast]["params"].append(parameter)
        return [group for group in groups if group["params"]]

    def step(self, batch: TrainingSample, epoch: int) -> Step:
        """Cross-entropy of the labels."""
        logits = self.model(self.normalize(batch.image)).float()
        labels = torch.as_tensor(batch.label, device=logits.device)
        right = (logits.argmax(1) == labels).float().mean()
        return Step({"class": F.cross_entropy(logits, labels)}, {"accuracy": right})

    def validate(self) -> dict[str, float]:
        """Accuracies, and the fit of the CAMs where validation images have masks or boxes."""
        if self.data.validation is None:
            return {}
        classes = ClassScores(self.classes)
        maps = MapScores(self.device, select_pxap=self.data.clean_class < 0)
        explain = build_cam(self.model, self.config)
        for samples in self.validation_batches():
            images, labels = self.stack(samples)
            with torch.inference_mode():
                classes.update(self.model(images), labels)
            chosen = with_regions(samples)
            if chosen:
                targets = explained_classes(labels[chosen], self.data.clean_class)
                cams = explain(images[chosen], targets).cams
                score_regions(maps, [samples[i] for i in chosen], cams)
        figures = {**classes.compute(), **maps.compute()}
        return {f"val_{n}" if n == "accuracy" else n: v for n, v in figures.items()}

    def warnings(self, figures: Mapping[str, float]) -> list[str]:
        """A classifier that has learnt little."""
        return poor_classifier(figures.get("balanced_accuracy"), self.classes)


def poor_classifier(accuracy: float | None, classes: int) -> list[str]:
    """A warning where the balanced accuracy of a classifier is hardly better than chance."""
    chance = 1 / classes
    if accuracy is None or accuracy >= chance + _LEARNT * (1 - chance):
        return []
    return [
        f"the classifier's balanced accuracy on validation images is {accuracy:.2f} (chance: "
        f"{chance:.2f}); maps of so poor a classifier mean little"
    ]


def takes_percentile(method: str) -> bool:
    """Whether a CAM method truncates at a percentile."""
    return "percentile" in inspect.signature(METHODS[method]).parameters


def idle_percentile(method: str) -> dict[str, str]:
    """The setting ``percentile`` where a CAM method takes none, with that method."""
    return {} if takes_percentile(method) else {"percentile": f"method {method}"}


def build_cam(model: nn.Module, config: Any) -> CAMMethod:
    """The CAM method that ``method``, ``layers`` and ``percentile`` of a configuration say."""
    method = METHODS[config.method]
    options: dict[str, Any] = {}
    if config.layers:
        options["layers"] = config.layers
    if takes_percentile(config.method):
        options["percentile"] = config.percentile
    if config.method == "cam":
        options["relu"] = False  # F-CAM's seeds are drawn from the map with its negative parts
    return method(model, **options)


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
    history: list[dict[str, Any]] = field(default_factory=list)

    def normalize(self, images: Tensor) -> Tensor:
        """Turn uint8 images (..., C, H, W) into the float32 input of the model."""
        return normalization(self.mean, self.std)(images)


def train_classifier(
    dataset: LabelledImages,
    *,
    model: nn.Module | None = None,
    epochs: int = 10,
    batch_size: int = 32,
    optimizer: str = "sgd",
    learning_rate: float = 0.1,
    weight_decay: float = 1e-4,
    seed: int = 0,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> TrainedClassifier:
    """Train a classifier on the labels of a data set; masks are never looked at.

    Cross-entropy, a one-cycle schedule, classes balanced, random horizontal and vertical flips. The
    last epoch's model is returned: nothing is selected.

    Args:
        dataset: samples of one size with ``labels``.
        model: trained in place; by default a new :class:`wsfast.models.SmallVGG`, drawn from
            ``seed``.
        epochs: passes over the data, at least 1.
        batch_size: images per step, at least 2 (batch normalisation needs them).
        optimizer: ``"sgd"`` with Nesterov momentum, or ``"adamw"``, as transformers need it, with a
            rate of about 1e-3.
        learning_rate: peak of the schedule.
        weight_decay: as for ``torch.optim.SGD`` or ``AdamW``.
        seed: of the default model, order and flips. The global random state is left as it was.
        device: where to train.
        progress: show a bar with images per second and the time left.

    Returns:
        The model on ``device``, its normalisation and history.

    Raises:
        ValueError: the data set has fewer than two images or a value is out of range.
        RuntimeError: the loss is no longer finite.

    Note:
        On the CPU the result depends only on the arguments and the number of threads. For runs that
        are saved and can be resumed use :func:`wsfast.train.run`.

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
    config = ClassifierConfig(
        epochs=epochs, batch_size=batch_size, optimizer=optimizer, learning_rate=learning_rate,
        flips="both", weight_decay=weight_decay, schedule="onecycle", select_on="last", seed=seed,
    )  # fmt: skip
    mean, std = image_statistics(dataset)
    classes = max(2, int(dataset.labels.max()) + 1)
    if model is None:
        with seeded_weights(seed):
            model = SmallVGG(len(mean), classes)
    data = ImageData(dataset, None, mean, std, flips="both")
    recipe = ClassifierRecipe(config, model, torch.device(device), data)
    history = fit(recipe, progress=progress)
    return TrainedClassifier(model.eval(), mean, std, history)


@contextmanager
def seeded_weights(seed: int) -> Iterator[None]:
    """New weights are drawn from ``seed`` inside the block."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


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
    scores = ClassScores(int(dataset.labels.max()) + 1)
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        for first in range(0, len(dataset), batch_size):
            chosen = range(first, min(first + batch_size, len(dataset)))
            images = torch.stack([dataset[index].image for index in chosen]).to(device)
            scores.update(model(classifier.normalize(images)), dataset.labels[list(chosen)])
    model.train(was_training)
    return scores.compute()
