"""Figures of the validation images, summed over processes."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from wsfast import ops
from wsfast.data.sample import inclusive_corners
from wsfast.metrics import PxAP
from wsfast.metrics._protocol import best_iou_of_largest, flatten_boxes
from wsfast.metrics.pixels import average_precision
from wsfast.train import distributed

_LEVELS = 256  # of 8-bit maps


class ClassScores:
    """Accuracy, and the mean over classes of the share that is right."""

    def __init__(self, classes: int) -> None:
        self._right = torch.zeros(classes, dtype=torch.int64)
        self._seen = torch.zeros(classes, dtype=torch.int64)

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Count a batch of (N, classes) logits."""
        labels = labels.cpu()
        right = (logits.argmax(1).cpu() == labels).long()
        self._right.index_add_(0, labels, right)
        self._seen.index_add_(0, labels, torch.ones_like(right))

    def compute(self) -> dict[str, float]:
        """``accuracy`` and ``balanced_accuracy``, the one to read where defects are rare."""
        counts = sum(distributed.gather_objects(torch.stack([self._right, self._seen])))
        right, seen = counts.double()
        met = seen > 0
        return {
            "accuracy": float(right.sum() / seen.sum()),
            "balanced_accuracy": float((right[met] / seen[met]).mean()),
        }


class MapScores:
    """How well maps of 0-1 fit the masks or boxes of the images.

    Of images with a mask: IoU of all their pixels together at the best common threshold, that
    threshold, and PxAP; the share of pixels above it on images without an object; and the share of
    pixels above 0.5 on those with one, which tells a collapsed map. Of images with boxes:
    MaxBoxAcc, whose thresholds are shares of each map's own maximum, and the best common threshold
    of the maps as they are, with the share of images whose largest region it boxes at IoU >= 0.5.
    ``localization`` is the one that selects the best model.

    Args:
        device: of the maps.
        select_pxap: of masks, PxAP selects, as the localisation benchmark does; else IoU.
    """

    def __init__(self, device: torch.device, *, select_pxap: bool = False) -> None:
        self._select_pxap = select_pxap
        self._thresholds = torch.arange(0, 1, 0.01, dtype=torch.float64, device=device)
        self._objects = PxAP(thresholds=self._thresholds).to(device)
        self._clean, self._share_hits, self._level_hits = (
            torch.zeros(size, dtype=torch.int64, device=device)
            for size in (len(self._thresholds) + 2, len(self._thresholds), _LEVELS)
        )
        self._boxed = 0
        self._edges = self._objects.edges

    def update_masks(self, maps: Tensor, masks: Tensor) -> None:
        """Count a batch of (N, H, W) maps with masks of 0, 1 and 255 (ignored)."""
        masks = masks.to(torch.uint8)
        with_object = (masks == 1).flatten(1).any(dim=1)
        if bool(with_object.any()):
            self._objects.update(maps[with_object], masks[with_object])
        if not bool(with_object.all()):
            clean, edges = ~with_object, self._edges.to(maps.device)
            self._clean += ops.score_histograms(maps[clean], masks[clean], edges)[0]

    def update_boxes(self, maps: Tensor, boxes: Sequence[Tensor]) -> None:
        """Count a batch of maps with inclusive boxes, one (G, 4) tensor per image."""
        boxes = [b.to(maps.device) for b in boxes]
        hits = best_iou_of_largest(maps, *flatten_boxes("train", boxes, maps)) >= 0.5
        self._level_hits += hits.sum(dim=0)
        levels = ops.threshold_levels(maps, self._thresholds)  # of shares, as MaxBoxAcc has them
        self._share_hits += hits.gather(1, levels).sum(dim=0)
        self._boxed += len(maps)

    def compute(self) -> dict[str, float]:
        """The figures of what was counted; empty where nothing has a region."""
        histograms = self._objects.histograms.cpu()
        counts = [histograms, self._clean.cpu(), self._share_hits.cpu(), self._level_hits.cpu()]
        parts = distributed.gather_objects([*counts, self._boxed])
        histograms, clean, shares, hits, counted = (sum(part) for part in zip(*parts, strict=True))
        if counted:
            value, best = int(shares.max()) / counted, int(hits.argmax())
            return {
                "localization": value,
                "max_box_acc": value,
                "box_acc": int(hits[best]) / counted,
                "threshold": (best + 1) / (_LEVELS - 1),  # x >= (L + 1) / 255 is u8 > L
            }
        if not int(histograms[1].sum()):
            return {}
        return self._mask_figures(histograms, clean)

    def _mask_figures(self, histograms: Tensor, clean: Tensor) -> dict[str, float]:
        alarms, hits = histograms.double().flip(1).cumsum(1).flip(1)
        objects = histograms[1].sum()
        iou = hits / (objects + alarms)
        best = int(iou.argmax())
        above = clean.double().flip(0).cumsum(0).flip(0)
        half = int((self._edges <= 0.5).sum()) - 1
        pxap = average_precision(*histograms.double().numpy())
        figures = {
            "localization": pxap if self._select_pxap else float(iou[best]),
            "iou": float(iou[best]),
            "pxap": pxap,
            "threshold": float(self._edges[best]),
            "precision": float(hits[best] / (hits[best] + alarms[best]).clamp_min(1)),
            "recall": float(hits[best] / objects),
            "covered": float((hits[half] + alarms[half]) / histograms.sum()),
        }
        if int(clean.sum()):
            figures["false_positives"] = float(above[best] / clean.sum())
        return figures


def explained_classes(labels: Tensor, clean_class: int) -> Tensor:
    """The class to explain in each image: its own, in images without an object the object's.

    Args:
        labels: int64 (N,).
        clean_class: the class without an object; -1 where there is none.
    """
    return torch.where(labels == clean_class, int(clean_class == 0), labels)


def with_regions(samples: Sequence[Any]) -> list[int]:
    """Positions of the samples that have a mask or boxes, so that others need no map."""
    return [i for i, sample in enumerate(samples) if _has_mask(sample) or _has_boxes(sample)]


def score_regions(scores: MapScores, samples: Sequence[Any], maps: Tensor) -> None:
    """Score the maps of samples of which each has a mask or boxes."""
    masked = [i for i, sample in enumerate(samples) if _has_mask(sample)]
    boxed = [i for i, sample in enumerate(samples) if not _has_mask(sample)]
    if masked:
        masks = torch.stack([samples[i].mask for i in masked])
        scores.update_masks(maps[masked], masks.to(maps.device))
    if boxed:
        scores.update_boxes(maps[boxed], [inclusive_corners(samples[i].boxes) for i in boxed])


def _has_mask(sample: Any) -> bool:
    return getattr(sample, "mask", None) is not None


def _has_boxes(sample: Any) -> bool:
    boxes = getattr(sample, "boxes", None)
    return boxes is not None and len(boxes) > 0
