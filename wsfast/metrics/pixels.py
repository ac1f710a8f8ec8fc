"""Pixel-level average precision of score maps."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import ops
from .._check import value_error
from ._counts import CountMetric
from ._curve import draw_curves
from ._protocol import check_maps, protocol_thresholds

Array = NDArray[Any]


def precision_recall(background: Array, foreground: Array) -> tuple[Array, Array]:
    """Precision and recall from histograms (bins,) of scores, from the highest bin down.

    Precision is 0 above the highest score, where nothing is predicted; the protocol leaves those
    bins out, and there recall does not grow.
    """
    hits, alarms = np.cumsum(foreground[::-1]), np.cumsum(background[::-1])
    seen = hits + alarms
    precision = np.divide(hits, seen, out=np.zeros(len(seen)), where=seen != 0)
    return precision, hits / hits[-1]


def average_precision(background: Array, foreground: Array) -> float:
    """The protocol's area: the sum of precision times the step of recall, from histograms.

    Where nothing is predicted it sums nothing. Zeros there would change the order of the sum, and
    its rounding.
    """
    precision, recall = precision_recall(background, foreground)
    predicted = np.cumsum((background + foreground)[::-1])[1:] > 0
    return float((precision[1:] * np.diff(recall))[predicted].sum())


class PxAP(CountMetric):
    r"""PxAP: area under the pixel precision-recall curve of the protocol (Choe et al., CVPR 2020).

    Scores are counted between the thresholds, unquantised, for background and foreground pixels;
    the area is the sum of precision times the step of recall, without interpolation. Equal to the
    protocol's code, which prints percent.

    Args:
        thresholds: (T,) in 0-1, ascending; None for the protocol's ``numpy.arange(0, 1, 0.001)``.
            0 is added where it is not the first: recall is of all foreground.
        **kwargs: passed to ``torchmetrics.Metric``.

    Raises:
        ValueError: thresholds out of range or order.

    Note:
        Counts are int64 and summed over processes; the last step is in float64 on the CPU.

    Example:
        >>> maps = torch.tensor([[[0.9, 0.8], [0.1, 0.2]]])
        >>> masks = torch.tensor([[[1, 1], [0, 255]]], dtype=torch.uint8)
        >>> metric = PxAP()
        >>> metric.update(maps, masks)
        >>> metric.compute()
        tensor(1., dtype=torch.float64)
    """

    higher_is_better = True

    histograms: Tensor

    def __init__(
        self, *, thresholds: Sequence[float] | Tensor | None = None, **kwargs: Any
    ) -> None:
        found = protocol_thresholds("PxAP", thresholds)
        falls = (found[1:] < found[:-1]).nonzero()
        if len(falls):
            high, low = found[int(falls[0]) :][:2].tolist()
            value_error("PxAP", "thresholds", "ascending", f"{low} after {high}")
        super().__init__(**kwargs)
        below = found.new_zeros(int(found[0] > 0))
        beyond = found.new_tensor([1.0, 2.0, 3.0])  # a score of 1 has its own bin
        self.edges = torch.cat([below, found, beyond])  # no buffer: casts would move scores
        self.tell_apart(found.tolist())
        self.add_counts("histograms", 2, len(self.edges) - 1)

    def update(self, maps: Tensor, masks: Tensor) -> None:
        """Count a batch.

        Args:
            maps: (N, H, W) floating-point scores in 0-1.
            masks: (N, H, W) uint8 or bool: 0 background, 1 foreground, 255 ignored.

        Raises:
            ValueError: wrong shapes or devices; on the CPU also NaN, scores outside 0-1 and other
                values in a mask.
            TypeError: wrong dtypes.
        """
        check_maps("PxAP.update", maps)
        counts = ops.score_histograms(maps, masks, self.edges.to(maps.device))
        self.histograms = self.histograms + counts

    def curve(self) -> tuple[Tensor, Tensor]:
        """Precision and recall of the scores at or above each threshold, of all processes.

        Each of them has to call.

        Returns:
            (T + 2,) float64 each, on the CPU, from the highest threshold down; the first two are of
            2, where nothing is predicted, and of 1. One more where 0 was added to the thresholds.

        Raises:
            RuntimeError: no foreground pixel was seen.
        """
        precision, recall = precision_recall(*self._summed())
        return torch.from_numpy(precision), torch.from_numpy(recall)

    def _summed(self) -> Array:
        (histograms,) = self.over_processes("histograms")
        if not histograms[1].any():
            raise RuntimeError("wsfast.PxAP.curve: masks must hold a foreground pixel, got none")
        return histograms.cpu().numpy()

    def compute(self) -> Tensor:
        """Return the area under the curve, float64 in 0-1; NaN where no foreground was seen.

        An error here would cost ``forward`` what it has counted, at the first batch without an
        object.
        """
        if not self.histograms[1].any():
            return torch.tensor(torch.nan, dtype=torch.float64)
        area = average_precision(*self.histograms.cpu().numpy())
        return torch.tensor(area, dtype=torch.float64)

    def plot(self, val: Any = None, ax: Any = None) -> tuple[Any, Any]:
        """Draw precision over recall; returns figure and axes.

        Args:
            val: results of ``compute`` or ``forward``, one or a list, to be drawn instead, as the
                metrics of torchmetrics do.
            ax: axes to draw in; by default new ones.

        Raises:
            ModuleNotFoundError: matplotlib is not installed.
            RuntimeError: no foreground pixel was seen.
        """
        if val is not None:
            return self._plot(val, ax)
        histograms = self._summed()
        seen = histograms.sum(axis=0)[::-1].cumsum() > 0  # above the highest score is no precision
        precision, recall = (torch.from_numpy(v[seen]) for v in precision_recall(*histograms))
        return draw_curves(recall, precision[None], ["PxAP"], ax, x="recall", y="precision")
