"""Box accuracies of the localisation protocol (Choe et al., CVPR 2020), bit for bit."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._check import check_count, check_same_device, check_tensor, type_error, value_error
from ._counts import CountMetric
from ._curve import draw_curves
from ._protocol import best_iou_at_thresholds, check_labels, protocol_thresholds


class BoxAccuracy(CountMetric):
    """Base of the box accuracies: hits per IoU level and threshold, and the images seen."""

    higher_is_better = True
    every_contour = False
    iou_levels: tuple[int, ...] = (50,)

    num_correct: Tensor
    total: Tensor

    def __init__(
        self, *, thresholds: Sequence[float] | Tensor | None = None, **kwargs: Any
    ) -> None:
        found = protocol_thresholds(type(self).__name__, thresholds)
        super().__init__(**kwargs)
        self.thresholds = found  # no buffer: casts would spoil the protocol's float64 products
        self.tell_apart(found.tolist())
        self.add_counts("num_correct", len(self.iou_levels), len(found))
        self.add_counts("total")

    def count(
        self, maps: Tensor, boxes: Sequence[Tensor] | Tensor, counted: Tensor | None = None
    ) -> None:
        """Count the hits of a batch; those of images where ``counted`` (N,) is False do not."""
        where, every_contour = f"{type(self).__name__}.update", self.every_contour
        iou = best_iou_at_thresholds(
            where, maps, boxes, self.thresholds, every_contour=every_contour
        )
        hits = torch.stack([iou >= level / 100 for level in self.iou_levels])
        if counted is not None:
            hits &= counted[:, None]
        self.num_correct = self.num_correct + hits.sum(dim=1)
        self.total = self.total + maps.shape[0]

    def curve(self) -> tuple[Tensor, Tensor]:
        """Accuracies at every threshold, of all processes: each of them has to call.

        Returns:
            The thresholds (T,) and the accuracies (K, T) in 0-1, one row per IoU level; float64.
        """
        num_correct, total = self.over_processes("num_correct", "total")
        return self.thresholds.to(total.device, copy=True), num_correct.double() / total

    def best_thresholds(self) -> Tensor:
        """Return the threshold of highest accuracy for each IoU level, (K,); ties: the lowest.

        Of all processes: each of them has to call.
        """
        (num_correct,) = self.over_processes("num_correct")
        best = num_correct == num_correct.amax(dim=1, keepdim=True)
        thresholds = self.thresholds.to(num_correct.device)
        return torch.where(best, thresholds, torch.inf).amin(dim=1)

    def compute(self) -> Tensor:
        """Return the mean over the IoU levels of the best accuracy of each, float64 in 0-1."""
        return (self.num_correct.amax(dim=1).double() / self.total).mean()

    def plot(self, val: Any = None, ax: Any = None) -> tuple[Any, Any]:
        """Draw accuracy over threshold, one line per IoU level; returns figure and axes.

        Args:
            val: results of ``compute`` or ``forward``, one or a list, to be drawn instead, as the
                metrics of torchmetrics do.
            ax: axes to draw in; by default new ones.

        Raises:
            ModuleNotFoundError: matplotlib is not installed.
        """
        if val is not None:
            return self._plot(val, ax)
        thresholds, accuracies = self.curve()
        labels = [f"IoU {level} %" for level in self.iou_levels]
        return draw_curves(thresholds, accuracies, labels, ax, x="threshold", y=type(self).__name__)


class MaxBoxAcc(BoxAccuracy):
    r"""MaxBoxAcc: share of images whose largest box has IoU >= 0.5, at the best threshold.

    At each threshold t the map's 8-bit levels above trunc(t max) are a mask; its largest contour
    (OpenCV's ``contourArea``) gives the box. Counts equal those of the protocol's code with
    ``multi_contour_eval=False``, bit for bit, for float64 and float32 maps, on any device.

    Args:
        thresholds: (T,) in 0-1; None for the protocol's ``numpy.arange(0, 1, 0.001)``.
        **kwargs: passed to ``torchmetrics.Metric``.

    Raises:
        ValueError: thresholds out of range.

    Note:
        ``compute`` gives a float64 scalar in 0-1, where the protocol prints percent; ``curve``,
        ``best_thresholds`` and ``plot`` show more. Counts are int64 and summed over processes.

    Example:
        >>> maps = torch.zeros(1, 8, 8)
        >>> maps[0, 2:5, 2:6] = 1.0
        >>> metric = MaxBoxAcc()
        >>> metric.update(maps, [torch.tensor([[2, 2, 6, 5]])])
        >>> metric.compute()
        tensor(1., dtype=torch.float64)
    """

    def update(self, maps: Tensor, boxes: Sequence[Tensor] | Tensor) -> None:
        """Count a batch.

        Args:
            maps: (N, H, W) floating-point score maps in 0-1 at the size of the boxes.
            boxes: one (G, 4) integer tensor per image, G >= 1: x0, y0, x1, y1 in pixels, both
                corners inclusive; or (N, G, 4); or (N, 4), one box per image.

        Raises:
            ValueError: wrong shapes or devices, maps with NaN or values outside 0-1; on the CPU
                also boxes out of convention (negative, x1 < x0).
            TypeError: maps not floating-point, boxes not integers.
        """
        self.count(maps, boxes)


class MaxBoxAccV2(MaxBoxAcc):
    r"""MaxBoxAccV2: as :class:`MaxBoxAcc`, of every contour, averaged over IoU 0.3, 0.5 and 0.7.

    Every contour of the mask gives a box, those of holes too; the best IoU counts, and each IoU
    level has its own best threshold. Counts equal those of the protocol's code with
    ``multi_contour_eval=True``.

    Example:
        >>> maps = torch.zeros(1, 8, 8)
        >>> maps[0, 2:5, 2:6] = 1.0
        >>> metric = MaxBoxAccV2()
        >>> metric.update(maps, [torch.tensor([[2, 2, 6, 7]])])
        >>> round(metric.compute().item(), 3)
        0.667
    """

    every_contour = True
    iou_levels = (30, 50, 70)


class TopKLocalization(BoxAccuracy):
    r"""Top-k localisation: the class is among the first k predicted and the box has IoU >= 0.5.

    Boxes as for :class:`MaxBoxAcc`; the best threshold is that of the joint accuracy.

    Args:
        k: how many predicted classes count, usually 1 or 5.
        thresholds: as for :class:`MaxBoxAcc`.
        **kwargs: passed to ``torchmetrics.Metric``.

    Raises:
        ValueError: k below 1, thresholds out of range.
        TypeError: k is not a whole number.

    Example:
        >>> maps = torch.ones(1, 4, 4)
        >>> metric = TopKLocalization(k=1)
        >>> logits = torch.tensor([[0.2, 0.8]])
        >>> metric.update(maps, [torch.tensor([[0, 0, 3, 3]])], logits, torch.tensor([0]))
        >>> metric.compute()
        tensor(0., dtype=torch.float64)
    """

    def __init__(
        self, *, k: int = 1, thresholds: Sequence[float] | Tensor | None = None, **kwargs: Any
    ) -> None:
        check_count("TopKLocalization", "k", k, 1)
        super().__init__(thresholds=thresholds, **kwargs)
        self.k = k
        self.tell_apart(k, self.thresholds.tolist())

    def update(
        self, maps: Tensor, boxes: Sequence[Tensor] | Tensor, logits: Tensor, target: Tensor
    ) -> None:
        """Count a batch.

        Args:
            maps: as for :meth:`MaxBoxAcc.update`.
            boxes: as for :meth:`MaxBoxAcc.update`.
            logits: (N, classes) scores of the classifier; of equal ones the first class comes
                first.
            target: (N,) int64 true classes.

        Raises:
            ValueError: wrong shapes or devices, and as :meth:`MaxBoxAcc.update`; on the CPU also
                classes that the logits do not have.
            TypeError: wrong dtypes.
        """
        where = "TopKLocalization.update"
        for name, value in (("maps", maps), ("logits", logits), ("target", target)):
            check_tensor(where, name, value)
            check_same_device(where, "maps", maps, name, value)
        n = maps.shape[0]
        if logits.dim() != 2 or logits.shape[0] != n:
            value_error(where, "logits", f"of shape ({n}, classes)", f"shape {list(logits.shape)}")
        if target.shape != (n,):
            value_error(where, "target", f"of shape ({n},)", f"shape {list(target.shape)}")
        if target.dtype != torch.int64:
            type_error(where, "target", "int64", f"{target.dtype}")
        check_labels(where, "target", target, logits.shape[1])
        first = logits.sort(dim=1, descending=True, stable=True).indices[:, : self.k]
        self.count(maps, boxes, (first == target[:, None]).any(dim=1))
