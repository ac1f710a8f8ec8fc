"""Boxes and overlaps as the localisation protocol of Choe et al. (CVPR 2020) has them.

Boxes are integers (x0, y0, x1, y1) in pixels. The protocol takes the exclusive end of OpenCV's
``boundingRect``, clips it to the last pixel and then reads it as inclusive.
"""

import torch
from torch import Tensor


def protocol_corners(boxes: Tensor, height: int, width: int) -> Tensor:
    """Half-open boxes (..., 4) of any integer dtype as the int64 corners that the protocol scores.

    A box that is none (-1) gives [0, 0, 0, 0], as an empty level does there.
    """
    last = torch.tensor([width, height, width - 1, height - 1], device=boxes.device)
    corners = torch.minimum(boxes.long(), last)
    return torch.where(boxes[..., 2:3] < 0, 0, corners)


def inclusive_areas(boxes: Tensor) -> Tensor:
    """Pixels of boxes (..., 4) whose corners both belong to them."""
    return (boxes[..., 2] - boxes[..., 0] + 1) * (boxes[..., 3] - boxes[..., 1] + 1)


def shared_areas(boxes: Tensor, others: Tensor) -> Tensor:
    """Pixels that boxes (..., 4) share with others of the same or a broadcast shape."""
    ends = torch.minimum(boxes[..., 2:], others[..., 2:])
    sides = ends - torch.maximum(boxes[..., :2], others[..., :2]) + 1
    return sides.clamp(min=0).prod(dim=-1)


def inclusive_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Float64 IoU of int64 boxes, broadcast: exact integers up to the one division."""
    shared = shared_areas(boxes, others)
    united = inclusive_areas(boxes) + inclusive_areas(others) - shared
    return shared.double() / united.double()
