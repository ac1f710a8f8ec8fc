"""What goes wrong where a box is wrong."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._check import check_same_device, check_tensor, value_error
from ..ops.levels.protocol import inclusive_areas, inclusive_iou, shared_areas
from ._counts import CountMetric
from ._protocol import check_convention, check_integers, check_labels, flatten_boxes

KINDS = ("correct", "class", "multi_instance", "part", "more", "other")


class LocalizationErrors(CountMetric):
    r"""Shares of the six outcomes of a predicted box (Gao et al., TS-CAM, ICCV 2021).

    In this order, the first that holds: ``class``: the predicted class is wrong; ``correct``:
    IoU > 0.5 with a true box; ``multi_instance``: more than one true box is covered by more than
    0.3 of its area; ``part`` (LPE): more than half of the predicted box lies in the true box of
    highest IoU; ``more`` (LME): at least 0.7 of that true box is covered; ``other``.

    Args:
        **kwargs: passed to ``torchmetrics.Metric``.

    Note:
        Corners are inclusive. Counts are int64 and summed over processes.

    Example:
        >>> metric = LocalizationErrors()
        >>> box, truth = torch.tensor([[0, 0, 9, 9]]), [torch.tensor([[0, 0, 19, 19]])]
        >>> metric.update(box, truth, torch.tensor([3]), torch.tensor([3]))
        >>> metric.compute()["part"].item()
        1.0
    """

    higher_is_better = None

    counts: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_counts("counts", len(KINDS))

    def update(
        self,
        preds: Tensor,
        boxes: Sequence[Tensor] | Tensor,
        classes: Tensor,
        target: Tensor,
    ) -> None:
        """Count a batch.

        Args:
            preds: (N, 4) integer predicted boxes, x0, y0, x1, y1 in pixels, inclusive; zeros where
                nothing was found, as in the protocol.
            boxes: true boxes, one (G, 4) integer tensor per image, G >= 1; or (N, G, 4); or
                (N, 4), one box per image.
            classes: (N,) integer predicted classes.
            target: (N,) integer true classes.

        Raises:
            ValueError: wrong shapes or devices; on the CPU also negative classes and boxes out of
                convention (negative, x1 < x0).
            TypeError: boxes or classes that are not integers.
        """
        where = "LocalizationErrors.update"
        check_integers(where, "preds", preds)
        if preds.dim() != 2 or preds.shape[1] != 4:
            value_error(where, "preds", "of shape (N, 4)", f"shape {list(preds.shape)}")
        check_convention(where, "preds", preds)
        n = preds.shape[0]
        for name, labels in (("classes", classes), ("target", target)):
            check_tensor(where, name, labels)
            check_same_device(where, "preds", preds, name, labels)
            if labels.shape != (n,):
                value_error(where, name, f"of shape ({n},)", f"shape {list(labels.shape)}")
            check_labels(where, name, labels)
        truth, offsets = flatten_boxes(where, boxes, preds, "preds")
        kinds = self._kinds(preds.long(), truth, offsets, classes == target)
        self.counts = self.counts + torch.bincount(kinds, minlength=len(KINDS))

    def _kinds(self, preds: Tensor, truth: Tensor, offsets: Tensor, right_class: Tensor) -> Tensor:
        """(N,) indices into KINDS."""
        n = preds.shape[0]
        image = torch.arange(n, device=preds.device).repeat_interleave(offsets.diff())
        pairs = preds[image]
        shared = shared_areas(pairs, truth).double()
        of_box, of_truth = shared / inclusive_areas(pairs), shared / inclusive_areas(truth)
        iou = inclusive_iou(pairs, truth)
        best = iou.new_zeros(n).scatter_reduce(0, image, iou, "amax")
        # The first true box of highest IoU: the smallest position among those.
        position = torch.arange(len(iou), device=iou.device)
        candidates = torch.where(iou == best[image], position, len(iou))
        first = position.new_full((n,), len(iou)).scatter_reduce(0, image, candidates, "amin")
        covered = torch.zeros_like(first).scatter_add(0, image, (of_truth > 0.3).long())
        outcomes = [~right_class, best > 0.5, covered > 1, of_box[first] > 0.5,
                    of_truth[first] >= 0.7]  # fmt: skip
        names = ["class", "correct", "multi_instance", "part", "more"]
        kinds = torch.full_like(first, KINDS.index("other"))
        for holds, name in reversed(list(zip(outcomes, names, strict=True))):
            kinds = torch.where(holds, KINDS.index(name), kinds)
        return kinds

    def compute(self) -> dict[str, Tensor]:
        """Return the share of each outcome, float64 in 0-1."""
        shares = self.counts.double() / self.counts.sum()
        return dict(zip(KINDS, shares, strict=True))
