"""What a run's model is worth: its maps, called as a CAM method, and their scores on a split."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from wsfast import ops
from wsfast._check import value_error
from wsfast.cam import CAMMethod, CAMResult
from wsfast.data.sample import inclusive_corners
from wsfast.metrics import (
    DefectSegmentation,
    LocalizationErrors,
    MaxBoxAcc,
    MaxBoxAccV2,
    PxAP,
    TopKLocalization,
)
from wsfast.models import Checkpoint, FCAMModel, GAPClassifier
from wsfast.models.localizers import foreground_maps
from wsfast.ops.levels.protocol import inclusive_iou
from wsfast.train.classifier import build_cam
from wsfast.train.config import CONFIG, TrainConfig, as_saved, read_recipe
from wsfast.train.data import check_classes, open_split, same_images, told_seen
from wsfast.train.images import images_at_once, normalization
from wsfast.train.runs import CONFIGS, load_run
from wsfast.train.state import read_learnt
from wsfast.train.store import weights_digest
from wsfast.train.validation import ClassScores, explained_classes


class RunMaps:
    """The best model of a run as a CAM method: ``maps(images, target)`` gives a ``CAMResult``.

    A classifier's maps are those of the CAM method in its settings, divided by their maximum; a
    localizer's are its foreground probability, whatever the target. Class scores of DiPS and
    pseudo-label runs are those of the classifier they were trained with.

    Args:
        folder: of the run.
        device: where to compute.
        classifier: run or file of the classifier that DiPS and pseudo-label runs were trained with,
            where it has been moved since.

    Attributes:
        checkpoint: the model and how to feed it.
        model: that model, on the device.
        classifier: what gives the class scores where the model gives none; else None.
        config: settings of the run.
        threshold: the best one on masks or boxes of validation images; 0.5 where there were none.
        clean_class: the class without an object; -1 where there is none, or an older version of
            wsfast wrote the run.

    Raises:
        ValueError: no run, a classifier that is not where it was, or one that is given to a model
            with class scores of its own.
    """

    layer_names: tuple[str, ...] = ()

    def __init__(
        self, folder: Path, device: torch.device, *, classifier: Path | None = None
    ) -> None:
        if not (folder / CONFIG).is_file():
            value_error("train", "--run", "the folder of a run of `wsfast train`", f"{folder}")
        recipe, settings = read_recipe(folder / CONFIG)
        if recipe not in CONFIGS:
            value_error("train", "--run", "a run of this version", f"{folder}, of '{recipe}'")
        self.config: TrainConfig = CONFIGS[recipe].build(as_saved(settings))
        self.checkpoint: Checkpoint = load_run(folder)
        self.model = self.checkpoint.model.to(device)
        self.threshold = float(self.checkpoint.extra.get("threshold", 0.5))
        self.clean_class = int(self.checkpoint.extra.get("clean_class", -1))
        self.classifier: nn.Module | None = None
        if not isinstance(self.model, GAPClassifier | FCAMModel):
            self.classifier = self._trained_with(folder, classifier).to(device)
        elif classifier is not None:
            expected = "left out for a model with class scores of its own"
            value_error("train", "classifier", expected, f"{classifier}")
        self._explain = self._method()

    def _trained_with(self, folder: Path, classifier: Path | None) -> nn.Module:
        """The classifier of the run, where it was or where it is said to be now."""
        path = classifier or Path(self.config.classifier)  # type: ignore[attr-defined]
        if classifier is None and not path.exists():
            expected = (
                f"run where its classifier is found, {path} seen from the working directory, or "
                "given as classifier"
            )
            value_error("train", "--run", expected, f"{folder}")
        return classifier_of("train", self.checkpoint, path, None if classifier else folder)

    def _method(self) -> Callable[[Tensor, Any], CAMResult]:
        if isinstance(self.model, GAPClassifier):
            return build_cam(self.model, self.config)
        if isinstance(self.model, FCAMModel):
            return self._fcam
        return self._localizer

    def _fcam(self, images: Tensor, target: Any) -> CAMResult:
        logits, map_logits = self.model(images)
        return _result(map_logits, logits, target)

    def _localizer(self, images: Tensor, target: Any) -> CAMResult:
        assert self.classifier is not None
        return _result(self.model(images), self.classifier(images), target)

    @property
    def cam(self) -> CAMMethod | None:
        """The CAM method of a classifier's run."""
        return self._explain if isinstance(self._explain, CAMMethod) else None

    @property
    def of_classes(self) -> bool:
        """Whether the maps are those of a class, a CAM's, and not of the object."""
        return isinstance(self.model, GAPClassifier)

    @property
    def method_name(self) -> str:
        """The recipe, of a classifier with its CAM method."""
        if self.of_classes:
            return str(self.config.method)  # type: ignore[attr-defined]
        return self.config.recipe

    def __call__(self, images: Tensor, target: Tensor | int | None = None) -> CAMResult:
        """Maps (N, H, W) of 0-1 and class scores of normalised images (N, C, H, W)."""
        if self.of_classes:
            return self._explain(images, target)
        with torch.no_grad():
            return self._explain(images, target)


def classifier_of(where: str, saved: Checkpoint, path: Path, run: Path | None) -> nn.Module:
    """The classifier at a path, which must be the one that a localizer was trained with.

    ``run`` is the one whose settings name the path; None where it was given as ``classifier``.

    Raises:
        ValueError: another one, or none.
    """
    model = load_run(path).model
    digest = saved.extra.get("classifier_digest", "")  # of older files unknown
    if digest and weights_digest(model) != digest:
        if run is None:
            expected = "the one that the model was trained with"
            value_error(where, "classifier", expected, f"{path}, another one")
        expected = f"run where {path} is the classifier it was trained with"
        value_error(where, "--run", expected, f"{run}, of another one")
    return model


def _result(map_logits: Tensor, logits: Tensor, target: Any) -> CAMResult:
    maps = foreground_maps(map_logits)
    if target is None:
        target = logits.argmax(1)
    elif isinstance(target, int):
        target = torch.full((len(logits),), target, device=logits.device)
    valid = maps.isfinite().flatten(1).all(1)
    return CAMResult(maps.nan_to_num(0.0), [maps], logits, target, valid)


def evaluate_run(
    folder: Path,
    *,
    classifier: Path | None = None,
    data: str = "",
    format: str = "auto",
    metadata: str = "",
    masks: str = "",
    split: str = "test",
    device: torch.device | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Score a run's best model on a split.

    Args:
        folder: of the run.
        classifier: as for :class:`RunMaps`.
        data: a data set; empty for the run's own.
        format: of ``data``.
        metadata: folder of the metadata of ``data``, where it is not in it.
        masks: folder of the masks of ``data``, where they are not beside its images.
        split: ``"test"``, ``"val"`` or ``"train"``. Of ``data`` without splits ``"test"`` is all,
            unless it may be the run's own data, which has been moved since.
        device: where to compute; the CPU by default.
        progress: show a bar.

    Returns:
        ``recipe``, ``maps`` (the recipe, of a classifier its CAM method), ``split``, ``images``
        (their number), ``accuracy`` and ``balanced_accuracy``; with masks or boxes ``threshold``,
        the number chosen in training. With masks, pooled pixel scores of the images with an object
        at that threshold (``at_threshold``) and at Otsu's of each map (``at_otsu``), the mean of
        the IoU per image (``iou_per_image``), ``pxap`` and the share of false pixels on images
        without an object (``false_positives``); with boxes ``max_box_acc``, ``max_box_acc_v2``,
        ``top1_loc`` and, of more than five classes, ``top5_loc``, each at its best threshold,
        ``box_acc``, the share of images whose largest region at ``threshold`` has a box of
        IoU >= 0.5, and ``box_errors``, what becomes of these boxes as
        :class:`wsfast.metrics.LocalizationErrors` tells it. Maps are those of the true class.

    Raises:
        ValueError: no run, a classifier that :class:`RunMaps` refuses, data of other classes or
            with another order of them.
    """
    device = device or torch.device("cpu")
    maps = RunMaps(folder, device, classifier=classifier)
    dataset = open_split(
        maps.config,
        split,
        channels=len(maps.checkpoint.mean),
        size=maps.checkpoint.input_size,
        data=data,
        format=format,
        metadata=metadata,
        masks=masks,
    )
    check_classes(maps.checkpoint.class_names, dataset.class_names, dataset.normal_label)
    own = maps.config.data
    learnt = read_learnt(folder) if split != "train" and same_images(own, data or own) else ()
    seen = told_seen(dataset, data or own, learnt)
    if seen:
        told = f"the run has learnt from images of {split}: {seen}; some have come or gone since"
        warnings.warn(f"wsfast.train: {told}", stacklevel=2)
    clean = -1 if dataset.normal_label is None else dataset.normal_label
    scores = _Scores(maps.threshold, len(dataset.class_names))
    normalize = normalization(maps.checkpoint.mean, maps.checkpoint.std)
    with tqdm(total=len(dataset), unit="image", desc="evaluating", disable=not progress) as bar:
        count = images_at_once(maps.config)
        for first in range(0, len(dataset), count):
            last = min(first + count, len(dataset))
            samples = [dataset[index] for index in range(first, last)]
            labels = torch.tensor([int(sample.label) for sample in samples])
            images = normalize(torch.stack([sample.image for sample in samples]).to(device))
            found = maps(images, explained_classes(labels, clean).to(device))
            scores.update(samples, labels, found.logits.cpu(), found.cams.cpu())
            bar.update(len(samples))
    return {
        "recipe": maps.config.recipe,
        "maps": maps.method_name,
        "split": split,
        "images": len(dataset),
        **scores.compute(),
    }


class _Scores:
    """All metrics that the samples allow."""

    def __init__(self, threshold: float, classes: int) -> None:
        self.threshold = threshold
        self.classes = ClassScores(classes)
        self.fixed, self.otsu = DefectSegmentation(), DefectSegmentation()
        self.curve = PxAP()
        self.boxes = {"max_box_acc": MaxBoxAcc(), "max_box_acc_v2": MaxBoxAccV2()}
        self.top = {f"top{k}_loc": TopKLocalization(k=k) for k in (1, 5) if k == 1 or k < classes}
        self.errors = LocalizationErrors()
        self.box_hits: list[bool] = []
        self.per_image: list[Tensor] = []
        self.clean: list[Tensor] = []

    def update(self, samples: list[Any], labels: Tensor, logits: Tensor, maps: Tensor) -> None:
        self.classes.update(logits, labels)
        for number, sample in enumerate(samples):
            one = maps[number : number + 1].clamp(0, 1)
            if sample.mask is not None and bool((sample.mask == 1).any()):
                self._mask(one, sample.mask[None])
            elif sample.mask is not None:
                counted = one[0][sample.mask != 255]
                if len(counted):
                    self.clean.append((counted >= self.threshold).double().mean())
            elif len(sample.boxes):
                truth = inclusive_corners(sample.boxes)
                self._score_boxes(one, truth, logits[number][None], labels[number][None])

    def _mask(self, one: Tensor, mask: Tensor) -> None:
        self.curve.update(one, mask.to(torch.uint8))
        counted = mask != 255
        truth = (mask == 1)[counted][None, None]  # (1, 1, pixels)
        found = (one >= self.threshold)[counted][None, None]
        self.fixed.update(found, truth)
        limit = ops.otsu_threshold(one)[:, None, None]
        self.otsu.update((one >= limit)[counted][None, None], truth)
        self.per_image.append((found & truth).sum().double() / (found | truth).sum())

    def _score_boxes(self, one: Tensor, truth: Tensor, logits: Tensor, label: Tensor) -> None:
        for metric in self.boxes.values():
            metric.update(one, [truth])
        for joint in self.top.values():
            joint.update(one, [truth], logits, label)
        largest = ops.cam_boxes(one, self.threshold, max_boxes=1).boxes[0]
        found = inclusive_corners(largest).long().clamp_min(0)  # zeros where there is none
        self.errors.update(found, [truth.long()], logits.argmax(1), label)
        self.box_hits.append(bool((inclusive_iou(found, truth.long()) >= 0.5).any()))

    def compute(self) -> dict[str, Any]:
        figures: dict[str, Any] = dict(self.classes.compute())
        if self.per_image or self.box_hits:
            figures["threshold"] = self.threshold
        if self.per_image:
            for name, metric in (("at_threshold", self.fixed), ("at_otsu", self.otsu)):
                figures[name] = {k: float(v) for k, v in metric.compute().items()}
            figures["iou_per_image"] = float(torch.stack(self.per_image).mean())
            figures["pxap"] = float(self.curve.compute())
        if self.clean:
            figures["false_positives"] = float(torch.stack(self.clean).mean())
        if self.box_hits:
            figures["box_acc"] = sum(self.box_hits) / len(self.box_hits)
            figures.update({k: float(m.compute()) for k, m in {**self.boxes, **self.top}.items()})
            figures["box_errors"] = {k: float(v) for k, v in self.errors.compute().items()}
        return figures
