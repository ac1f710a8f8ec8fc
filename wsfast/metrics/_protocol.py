"""What the metrics of the localisation protocol (Choe et al., CVPR 2020) share."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .. import ops
from .._check import (
    check_floating,
    check_rank,
    check_same_device,
    check_tensor,
    type_error,
    value_error,
)
from .._integers import is_integer
from ..ops.levels.protocol import inclusive_iou, protocol_corners


def protocol_thresholds(where: str, thresholds: Sequence[float] | Tensor | None) -> Tensor:
    """(T,) float64 thresholds; by default the protocol's thousand, 0, 0.001, ..., 0.999."""
    if thresholds is None:
        return torch.from_numpy(np.arange(0, 1, 0.001))
    found = torch.as_tensor(thresholds, dtype=torch.float64).detach().cpu().clone()
    if found.dim() != 1 or found.numel() == 0:
        value_error(where, "thresholds", "a list of at least one", f"shape {list(found.shape)}")
    outside = found[~((found >= 0) & (found <= 1))]
    if len(outside):
        value_error(where, "thresholds", "between 0 and 1", f"{outside[0].item()}")
    return found


def check_maps(where: str, maps: Tensor, *, waits: bool = False) -> None:
    """Raise unless ``maps`` are floating-point (N, H, W) with values in 0-1.

    Off the CPU the values are looked at only where the caller ``waits`` for the device anyway.
    """
    check_tensor(where, "maps", maps)
    check_floating(where, "maps", maps)
    check_rank(where, "maps", maps, 3)
    if (waits or maps.device.type == "cpu") and maps.numel() > 0:
        low, high = (float(extreme) for extreme in maps.detach().aminmax())
        if not (low >= 0 and high <= 1):
            value_error(where, "maps", "free of NaN and within 0-1", f"values of {low} to {high}")


def check_labels(where: str, name: str, labels: Tensor, classes: int | None = None) -> None:
    """Raise unless ``labels`` are class numbers: not negative and below ``classes`` where given.

    The values are looked at on the CPU only, where that costs no device sync.
    """
    if labels.is_floating_point() or labels.is_complex():
        type_error(where, name, "integer class numbers", f"{labels.dtype}")
    if labels.device.type == "cpu" and labels.numel() > 0:
        low, high = (int(extreme) for extreme in labels.long().aminmax())
        if low < 0 or (classes is not None and high >= classes):
            expected = "class numbers of 0 or more"
            if classes is not None:
                expected = f"class numbers from 0 to {classes - 1}"
            value_error(where, name, expected, f"{low if low < 0 else high}")


def flatten_boxes(
    where: str, boxes: Sequence[Tensor] | Tensor, images: Tensor, name: str = "maps"
) -> tuple[Tensor, Tensor]:
    """All images' boxes (G, 4) int64 and where each image's begin, (N + 1,).

    ``images`` has N rows, on the device that the boxes must be on; ``name`` is its argument.
    """
    if isinstance(boxes, Tensor):
        stacked = boxes.unsqueeze(1) if boxes.dim() == 2 else boxes
        boxes = list(stacked) if stacked.dim() == 3 else [boxes]
    n, device = images.shape[0], images.device
    if len(boxes) != n:
        value_error(where, "boxes", f"one tensor per image ({n})", f"{len(boxes)}")
    for found in boxes:
        check_integers(where, "boxes", found)
        if found.dim() != 2 or found.shape[1] != 4 or found.shape[0] == 0:
            value_error(where, "boxes", "(G, 4) with G >= 1 each", f"shape {list(found.shape)}")
        check_same_device(where, name, images, "boxes", found)
    counts = torch.tensor([0, *(found.shape[0] for found in boxes)], device=device)
    empty = torch.zeros((0, 4), dtype=torch.int64, device=device)
    flat = torch.cat(list(boxes)).long() if boxes else empty
    check_convention(where, "boxes", flat)
    return flat, counts.cumsum(0)


def check_integers(where: str, name: str, boxes: Tensor) -> None:
    """Raise TypeError unless ``boxes`` are a tensor of integers."""
    check_tensor(where, name, boxes)
    if not is_integer(boxes):
        type_error(where, name, "integers", f"{boxes.dtype}")


def check_convention(where: str, name: str, boxes: Tensor) -> None:
    """Raise unless boxes (G, 4) begin at 0 or above and do not end before they begin.

    The values are looked at on the CPU only, where that costs no device sync.
    """
    if boxes.device.type != "cpu":
        return
    wrong = ((boxes[:, :2] < 0) | (boxes[:, 2:] < boxes[:, :2])).any(dim=1)
    if bool(wrong.any()):
        first = boxes[int(wrong.nonzero()[0])].tolist()
        value_error(where, name, "0 <= x0 <= x1 and 0 <= y0 <= y1", f"{first}")


def best_iou_of_largest(maps: Tensor, gt_boxes: Tensor, gt_offsets: Tensor) -> Tensor:
    """(N, 256) float64: IoU of each level's largest contour with the best true box."""
    boxes, _ = ops.level_boxes(maps)
    corners = protocol_corners(boxes, maps.shape[1], maps.shape[2])
    images = torch.arange(maps.shape[0], device=maps.device)
    image = images.repeat_interleave(gt_offsets.diff())
    iou = inclusive_iou(corners[image], gt_boxes[:, None])
    best = iou.new_zeros(boxes.shape[:2])
    return best.scatter_reduce(0, image[:, None].expand_as(iou), iou, "amax")


def best_iou_at_thresholds(
    where: str,
    maps: Tensor,
    boxes: Sequence[Tensor] | Tensor,
    thresholds: Tensor,
    *,
    every_contour: bool,
) -> Tensor:
    """(N, T) float64 best IoU at every threshold, over the largest or over every contour."""
    check_maps(where, maps, waits=True)  # they are boxed on the host
    gt_boxes, gt_offsets = flatten_boxes(where, boxes, maps)
    if every_contour:
        best = ops.level_best_iou(maps, gt_boxes, gt_offsets)
    else:
        best = best_iou_of_largest(maps, gt_boxes, gt_offsets)
    return best.gather(1, ops.threshold_levels(maps, thresholds.to(maps.device)))
