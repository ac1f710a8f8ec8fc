"""Pixel-level average precision of score maps."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

from .. import ops
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


def average_precision(precision: Array, recall: Array) -> float:
    """The protocol's area: the sum of precision times the step of recall."""
    return float((precision[1:] * np.diff(recall)).sum())


class PxAP(Metric):
    r"""PxAP: area under the pixel precision-recall curve of the protocol (Choe et al., CVPR 2020).

    Scores are counted between the thresholds, unquantised, for background and foreground pixels;
    the area is the sum of precision times the step of recall, without interpolation. Equal to the
    protocol's code, which prints percent.

    Args:
        thresholds: (T,) in 0-1, ascending; None for the protocol's ``numpy.arange(0, 1, 0.001)``.
        **kwargs: passed to ``torchmetrics.Metric``.

    Raises:
        ValueError: thresholds out of range.

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

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    histograms: Tensor

    def __init__(
        self, *, thresholds: Sequence[float] | Tensor | None = None, **kwargs: Any
    ) -> None:
        found = protocol_thresholds("PxAP", thresholds)
        super().__init__(**kwargs)
        beyond = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)  # a score of 1 has its own bin
        self.register_buffer("edges", torch.cat([found, beyond]), persistent=False)
        counts = torch.zeros(2, len(found) + 2, dtype=torch.int64)
        self.add_state("histograms", counts, dist_reduce_fx="sum")

    def set_dtype(self, dst_type: str | torch.dtype) -> "PxAP":
        """Do nothing: edges stay float64."""
        return self

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
        self.histograms += ops.score_histograms(maps, masks, self.edges.to(maps.device))

    def curve(self) -> tuple[Tensor, Tensor]:
        """Precision and recall, (T + 2,) float64 each, from the highest threshold down.

        Raises:
            RuntimeError: no foreground pixel was seen.
        """
        background, foreground = self.histograms.cpu().numpy()
        if not foreground.any():
            raise RuntimeError("wsfast.PxAP.curve: masks must hold a foreground pixel, got none")
        precision, recall = precision_recall(background, foreground)
        return torch.from_numpy(precision), torch.from_numpy(recall)

    def compute(self) -> Tensor:
        """Return the area under the curve, float64 in 0-1; NaN where no foreground was seen.

        An error here would cost ``forward`` what it has counted, at the first batch without an
        object.
        """
        if not self.histograms[1].any():
            return torch.tensor(torch.nan, dtype=torch.float64)
        precision, recall = (values.numpy() for values in self.curve())
        return torch.tensor(average_precision(precision, recall), dtype=torch.float64)

    def plot(self, ax: Any = None) -> tuple[Any, Any]:
        """Draw precision over recall; returns figure and axes.

        Raises:
            ModuleNotFoundError: matplotlib is not installed.
        """
        precision, recall = self.curve()
        return draw_curves(recall, precision[None], ["PxAP"], ax, x="recall", y="precision")
