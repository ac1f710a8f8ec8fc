"""Trains the classifiers of one seed and measures every method's masks of held-out defects."""

import time
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.quality.data import Splits
from benchmarks.quality.methods import DEFECT, Explain, all_methods, explained_by, image_size
from benchmarks.quality.models import train_models
from wsfast.metrics import DefectSegmentation
from wsfast.ops import otsu_threshold, score_histograms
from wsfast.train import TrainedClassifier, evaluate_classifier

PERCENTILES = tuple(range(0, 100, 10))
CURVES = ("LTGradCAM", "LTFullGrad", "LTLayerCAM", "RACAM")
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
    """uint8 images to explain and their masks."""

    validation: Tensor
    validation_masks: Tensor
    test: Tensor
    test_masks: Tensor
    good: Tensor


def measure(splits: Splits, seed: int, epochs: int) -> dict[str, Any]:
    """Everything about one seed's classifiers, ready for JSON."""
    models = train_models(splits.train, seed, epochs)
    images = Images(
        *splits.validation.of_class(DEFECT, MOST),
        *splits.test.of_class(DEFECT, MOST),
        splits.test.of_class(1 - DEFECT, MOST)[0],
    )
    methods = {
        name: scores_of(explanations(explain, images), images)
        for name, explain in tqdm(all_methods(models).items(), desc="methods", unit="method")
    }
    learnt = splits.train.of_class(DEFECT, MOST)
    curves = {
        name: curve(models.classifier, name, images, *learnt)
        for name in tqdm(CURVES, desc="percentiles", unit="method")
    }
    return {
        "seed": seed,
        "epochs": epochs,
        "images": {split: len(getattr(splits, split)) for split in Splits._fields},
        "explained": {
            "defects": len(images.test),
            "validation": len(images.validation),
            "good": len(images.good),
        },
        "defect_share": images.test_masks.float().mean().item(),
        **{
            name: evaluate_classifier(trained, splits.test)
            for name, trained in models._asdict().items()
        },
        "methods": methods,
        "curves": curves,
    }


def curve(
    trained: TrainedClassifier, name: str, images: Images, learnt: Tensor, masks: Tensor
) -> list[dict[str, Any]]:
    """A method's scores by percentile, and those at Otsu of images that it has learnt from."""
    points = []
    for percentile in PERCENTILES:
        explain = explained_by(trained, name.lower(), percentile=float(percentile))
        point = scores_of(explanations(explain, without_good(images)), images)
        cams = maps_of(explain, learnt)
        point["training"] = mask_scores(cams >= otsu_threshold(cams)[:, None, None], masks)
        points.append(point)
    return points


def without_good(images: Images) -> Images:
    """The same without the good images."""
    return images._replace(good=images.good[:0])


def explanations(explain: Explain, images: Images) -> Explained:
    """Maps of the defect class for all images."""
    validation, good = maps_of(explain, images.validation), maps_of(explain, images.good)
    start = time.perf_counter()
    test = maps_of(explain, images.test)
    return Explained(validation, test, good, (time.perf_counter() - start) / len(test))


def maps_of(explain: Explain, images: Tensor) -> Tensor:
    """Maps of some images, by batches."""
    if not len(images):
        return torch.zeros(0, *image_size(images))
    return torch.cat([explain(batch) for batch in images.split(_BATCH)])


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
