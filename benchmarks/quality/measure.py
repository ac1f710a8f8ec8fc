"""Trains one classifier and measures every method's masks of its held-out defects."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.quality.data import Splits
from wsfast.cam import METHODS, CAMMethod
from wsfast.metrics import DefectSegmentation
from wsfast.models import SmallVGG
from wsfast.ops import otsu_threshold, score_histograms
from wsfast.train import evaluate_classifier, train_classifier

DEFECT = 1
PERCENTILES = tuple(range(0, 100, 10))
CURVES = ("LTGradCAM", "LTLayerCAM", "RACAM")
THRESHOLDS = torch.arange(257) / 256  # exact in float32
MOST = 100  # images per class and split that are explained
_BATCH = 20

Numbers = dict[str, float]


class Explained(NamedTuple):
    """Maps of one method, and the seconds that the test defects took per image."""

    validation: Tensor
    test: Tensor
    good: Tensor
    seconds: float


class Images(NamedTuple):
    """Normalised images to explain and their masks."""

    validation: Tensor
    validation_masks: Tensor
    test: Tensor
    test_masks: Tensor
    good: Tensor


def entries() -> dict[str, tuple[type[CAMMethod], dict[str, Any]]]:
    """Every method with its own default layers, and two of them on the last layer alone."""
    found: dict[str, tuple[type[CAMMethod], dict[str, Any]]] = {
        method.__name__: (method, {}) for method in METHODS.values()
    }
    for name in ("GradCAM", "LayerCAM"):
        found[f"{name}, last layer"] = (METHODS[name.lower()], {"layers": "last"})
    return found


def measure(splits: Splits, seed: int, epochs: int) -> dict[str, Any]:
    """Everything about one classifier, ready for JSON."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        model = SmallVGG().to(memory_format=torch.channels_last)
    trained = train_classifier(splits.train, model=model, epochs=epochs, seed=seed)
    test, test_masks = splits.test.of_class(DEFECT, MOST)
    validation, validation_masks = splits.validation.of_class(DEFECT, MOST)
    good, _ = splits.test.of_class(1 - DEFECT, MOST)
    images = Images(
        trained.normalize(validation), validation_masks, trained.normalize(test), test_masks,
        trained.normalize(good),
    )  # fmt: skip
    methods = {}
    for name, (kind, options) in tqdm(entries().items(), desc="methods", unit="method"):
        methods[name] = scores_of(explain(kind(trained.model, **options), images), images)
    curves: dict[str, list[dict[str, Any]]] = {}
    for name in tqdm(CURVES, desc="percentiles", unit="method"):
        curves[name] = [
            scores_of(explain(build(trained.model), without_good(images)), images)
            for build in (with_percentile(name, q) for q in PERCENTILES)
        ]
    return {
        "seed": seed,
        "images": {split: len(getattr(splits, split)) for split in Splits._fields},
        "explained": {"defects": len(test), "validation": len(validation), "good": len(good)},
        "defect_share": test_masks.float().mean().item(),
        "classifier": evaluate_classifier(trained, splits.test),
        "methods": methods,
        "curves": curves,
    }


def with_percentile(name: str, percentile: int) -> Callable[[nn.Module], CAMMethod]:
    """From a model to a method of truncated gradients at one percentile."""
    method: Any = METHODS[name.lower()]
    return lambda model: method(model, percentile=float(percentile))


def without_good(images: Images) -> Images:
    """The same without the good images."""
    return images._replace(good=images.good[:0])


def explain(method: CAMMethod, images: Images) -> Explained:
    """Maps of the defect class for all images."""

    def maps(batch: Tensor) -> Tensor:
        if not len(batch):
            return torch.zeros(0, *images.test.shape[2:])
        return torch.cat([method(part, DEFECT).cams for part in batch.split(_BATCH)])

    validation, good = maps(images.validation), maps(images.good)
    start = time.perf_counter()
    test = maps(images.test)
    return Explained(validation, test, good, (time.perf_counter() - start) / len(test))


def scores_of(found: Explained, images: Images) -> dict[str, Any]:
    """Scores at Otsu's threshold, at the best one for validation, and at the best one for test.

    The last one has seen the test masks: it is a bound, not a result.
    """
    fixed, seen = best_threshold(found.validation, images.validation_masks)
    oracle, _ = best_threshold(found.test, images.test_masks)
    limits = {
        "otsu": (otsu_threshold(found.test), otsu_threshold(found.good)),
        "validation": (constant(found.test, fixed), constant(found.good, fixed)),
        "oracle": (constant(found.test, oracle), constant(found.good, oracle)),
    }
    result: dict[str, Any] = {"milliseconds": 1000 * found.seconds, "validation_iou": seen}
    for name, (on_defects, on_good) in limits.items():
        result[name] = mask_scores(found.test >= on_defects[:, None, None], images.test_masks)
        result[name]["threshold"] = on_defects.mean().item()
        if len(found.good):
            false = found.good >= on_good[:, None, None]
            result[name]["false_on_good"] = false.double().mean().item()
    return result


def constant(cams: Tensor, threshold: float) -> Tensor:
    """The same threshold for every map."""
    return torch.full((len(cams),), threshold)


def best_threshold(cams: Tensor, masks: Tensor) -> tuple[float, float]:
    """The threshold of highest pooled IoU among multiples of 1/256, and that IoU."""
    counts = score_histograms(cams, masks, THRESHOLDS.double())
    false_alarms, hits = counts.flip(1).cumsum(1).flip(1)  # at or above each threshold
    iou = hits / (masks.sum() + false_alarms)
    best = int(iou.argmax())
    return float(THRESHOLDS[best]), float(iou[best])


def mask_scores(masks: Tensor, truth: Tensor) -> Numbers:
    """Pooled pixel scores, and the mean IoU of single images."""
    pooled = pixel_scores(masks, truth)
    pairs = zip(masks.split(1), truth.split(1), strict=True)
    single = [pixel_scores(mask, true)["iou"] for mask, true in pairs]
    return {**pooled, "iou_per_image": sum(single) / len(single)}


def pixel_scores(masks: Tensor, truth: Tensor) -> Numbers:
    """IoU, precision, recall and F1 of all pixels together."""
    metric = DefectSegmentation(zero_division=0.0)
    metric.update(masks, truth)
    scores = metric.compute()
    return {name: float(scores[name]) for name in ("iou", "precision", "recall", "f1")}
