"""What the functions of the boxes room return."""

from typing import NamedTuple

from torch import Tensor

from ..._exports import kept_in_exports


@kept_in_exports
class Boxes(NamedTuple):
    """Boxes of components, largest first; ``-1`` pads up to K = ``max_boxes``.

    Attributes:
        boxes: (N, K, 4) int32 (x0, y0, x1, y1) in pixels, half-open.
        areas: (N, K) int32, pixels of the component.
        counts: (N,) int32, components in all, also where they exceed K.
    """

    boxes: Tensor
    areas: Tensor
    counts: Tensor


@kept_in_exports
class ScoredBoxes(NamedTuple):
    """Boxes of components with scores, largest first; ``-1`` pads up to K = ``max_boxes``.

    Attributes:
        boxes: (N, K, 4) int32 (x0, y0, x1, y1) in pixels, half-open.
        scores: (N, K) float32, mean activation inside the component.
        areas: (N, K) int32, pixels of the component.
        counts: (N,) int32, components in all, also where they exceed K.
    """

    boxes: Tensor
    scores: Tensor
    areas: Tensor
    counts: Tensor
