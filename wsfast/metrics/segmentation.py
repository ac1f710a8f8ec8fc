"""Pixel scores of defect masks."""

from typing import Any

import torch
from torch import Tensor

from wsfast._check import (
    check_range,
    check_rank,
    check_same_device,
    check_tensor,
    type_error,
    value_error,
)
from wsfast.metrics._counts import CountMetric


class DefectSegmentation(CountMetric):
    r"""IoU, mIoU, precision, recall and F1 of defect pixels, pooled over all images.

    With TP, FP, FN and TN counted over every pixel of every image:
    IoU = TP/(TP+FP+FN), precision = TP/(TP+FP), recall = TP/(TP+FN), F1 = 2TP/(2TP+FP+FN), and
    mIoU is the mean of the IoU of defect and of background, TN/(TN+FP+FN).

    Args:
        zero_division: the value of a score that is 0/0, e.g. of precision when nothing is
            predicted, 0–1.
        **kwargs: passed to ``torchmetrics.Metric``.

    Raises:
        ValueError: ``zero_division`` is out of range.

    Note:
        Counts are int64, so sums are exact and independent of batching and of the order in which
        processes merge. Pooling lets large defects weigh more than small ones, and images without
        a defect add false positives only: state whether they were included.

    Example:
        >>> metric = DefectSegmentation()
        >>> predicted = torch.tensor([[[True, True, False, False]]])
        >>> target = torch.tensor([[[True, False, True, False]]])
        >>> metric.update(predicted, target)
        >>> {name: round(value.item(), 3) for name, value in metric.compute().items()}
        {'iou': 0.333, 'miou': 0.333, 'precision': 0.5, 'recall': 0.5, 'f1': 0.5}
    """

    higher_is_better = True

    true_positives: Tensor
    false_positives: Tensor
    false_negatives: Tensor
    true_negatives: Tensor

    def __init__(self, *, zero_division: float = 0.0, **kwargs: Any) -> None:
        check_range("DefectSegmentation", "zero_division", zero_division, 0, 1)
        super().__init__(**kwargs)
        self.zero_division = zero_division
        for name in ("true_positives", "false_positives", "false_negatives", "true_negatives"):
            self.add_counts(name)

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Count the pixels of a batch.

        Args:
            preds: predicted masks, bool (N, H, W).
            target: true masks, bool (N, H, W), on the same device.

        Raises:
            TypeError: a mask is not a bool tensor.
            ValueError: the masks are not (N, H, W) or differ in shape or device.
        """
        where = "DefectSegmentation.update"
        for name, mask in (("preds", preds), ("target", target)):
            check_tensor(where, name, mask)
            if mask.dtype != torch.bool:
                type_error(where, name, "a bool tensor", f"{mask.dtype}")
            check_rank(where, name, mask, 3)
        if preds.shape != target.shape:
            value_error(where, "preds", f"of shape {list(target.shape)}", f"{list(preds.shape)}")
        check_same_device(where, "preds", preds, "target", target)
        hits = (preds & target).sum()
        false_alarms = preds.sum() - hits
        misses = target.sum() - hits
        rejections = preds.numel() - hits - false_alarms - misses
        self.true_positives = self.true_positives + hits
        self.false_positives = self.false_positives + false_alarms
        self.false_negatives = self.false_negatives + misses
        self.true_negatives = self.true_negatives + rejections

    def compute(self) -> dict[str, Tensor]:
        """Return the scores as float64 scalars: ``iou, miou, precision, recall, f1``."""
        hits, false_alarms = self.true_positives, self.false_positives
        misses, rejections = self.false_negatives, self.true_negatives
        errors = false_alarms + misses
        iou = self._ratio(hits, hits + errors)
        return {
            "iou": iou,
            "miou": (iou + self._ratio(rejections, rejections + errors)) / 2,
            "precision": self._ratio(hits, hits + false_alarms),
            "recall": self._ratio(hits, hits + misses),
            "f1": self._ratio(2 * hits, 2 * hits + errors),
        }

    def _ratio(self, numerator: Tensor, denominator: Tensor) -> Tensor:
        ratio = numerator.double() / denominator
        return torch.where(denominator == 0, self.zero_division, ratio)
