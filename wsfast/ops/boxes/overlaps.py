"""Non-maximum suppression, by torchvision."""

import torch
from torch import Tensor

from ... import native
from ..._check import check_range, type_error
from .results import ScoredBoxes


@torch.library.custom_op("wsfast::non_maximum_suppression", mutates_args=())
def _non_maximum_suppression(
    boxes: Tensor, scores: Tensor, taken: Tensor, iou_threshold: float
) -> Tensor:
    """(N, K) bool, the ``taken`` slots that are left; the numbers of boxes stay inside."""
    from torchvision.ops import batched_nms  # optional: only this function needs it

    n, k = scores.shape
    image = torch.arange(n, device=scores.device).repeat_interleave(k)
    places = taken.flatten().nonzero()[:, 0]
    # Doubles: a float32 IoU of 3 / 10 is above 0.3, and torchvision wants one dtype of both.
    kept = batched_nms(
        boxes.flatten(0, 1)[places].double(),
        scores.flatten()[places].double(),
        image[places],
        _float32_from(iou_threshold),
    )
    left = torch.zeros(n * k, dtype=torch.bool, device=scores.device)
    return left.index_fill(0, places[kept], True).view(n, k)


def _float32_from(threshold: float) -> float:
    """The lowest float32 from there on: to nearest, torchvision's CUDA kernel may round it down.

    Then an overlap of the threshold itself would be above it.
    """
    near, above = torch.tensor([threshold, torch.inf], dtype=torch.float32, device="cpu").unbind()
    return float(near) if float(near) >= threshold else float(near.nextafter(above))


@_non_maximum_suppression.register_fake
def _(boxes: Tensor, scores: Tensor, taken: Tensor, iou_threshold: float) -> Tensor:
    return torch.empty_like(taken)


native.keep_out_of_cuda_graphs("non_maximum_suppression")  # numbers of boxes are read back


def suppress_overlaps(found: ScoredBoxes, iou_threshold: float = 0.5) -> ScoredBoxes:
    """Greedy non-maximum suppression inside every image, by ``torchvision.ops.batched_nms``.

    Args:
        found: boxes of N images, as :func:`cam_boxes` gives them, or several of them joined along
            the slots (of classes, of scales).
        iou_threshold: a box that overlaps a better-scored one by more is dropped, 0-1.

    Returns:
        :class:`ScoredBoxes` of the same shapes: what is left, best score first, then ``-1``;
        ``counts`` is the number of boxes left.

    Raises:
        ValueError: an ``iou_threshold`` outside 0-1.
        TypeError: anything but :class:`ScoredBoxes`, such as :class:`Boxes`, which have no scores.
        ImportError: torchvision is not installed.

    Note:
        Not differentiable. Shapes depend on arguments only: it compiles and exports. Quadratic in
        the boxes of an image.

    Example:
        >>> boxes = torch.tensor([[[0, 0, 4, 4], [0, 0, 4, 3], [6, 6, 8, 8]]], dtype=torch.int32)
        >>> scores, areas = torch.tensor([[0.5, 0.9, 0.7]]), torch.tensor([[16, 12, 4]])
        >>> suppress_overlaps(ScoredBoxes(boxes, scores, areas, torch.tensor([3]))).areas.tolist()
        [[12, 4, -1]]
    """
    if not torch.jit.is_scripting() and not hasattr(found, "scores"):  # scripts make a like tuple
        type_error("suppress_overlaps", "found", "wsfast.ScoredBoxes", type(found).__name__)
    check_range("suppress_overlaps", "iou_threshold", iou_threshold, 0.0, 1.0)
    left = torch.ops.wsfast.non_maximum_suppression(
        found.boxes, found.scores, found.areas > 0, float(iou_threshold)
    )
    order = found.scores.argsort(dim=1, descending=True, stable=True)
    dropped = (~left.gather(1, order)).to(torch.uint8)
    order = order.gather(1, dropped.argsort(dim=1, stable=True))
    left = left.gather(1, order)
    box_order = order[:, :, None].expand(-1, -1, 4)
    return ScoredBoxes(
        torch.where(left[:, :, None], found.boxes.gather(1, box_order), -1),
        torch.where(left, found.scores.gather(1, order), -1.0),
        torch.where(left, found.areas.gather(1, order), -1),
        left.sum(dim=1, dtype=torch.int32),
    )
