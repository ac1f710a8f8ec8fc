"""Every threshold of a map, one after the other, in pure PyTorch: readable, slow.

Level L stands for the mask {u8 > L} with u8 = trunc(255 x). What OpenCV calls a contour is, for an
outer one, a component of the mask with 8 neighbours and, for the one of a hole, a component of the
background with 4 neighbours that does not reach the outside of the image.
"""

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from ..boxes import reference as boxes_reference
from .protocol import inclusive_iou, protocol_corners

LEVELS = boxes_reference.LEVELS


def map_levels(maps: Tensor) -> Tensor:
    """The map as int64 levels 0-255; uint8 maps hold them already."""
    return maps.long() if maps.dtype == torch.uint8 else boxes_reference.levels(maps)


def _distinct_masks(image: Tensor) -> Iterator[tuple[int, int, Tensor]]:
    """Yield (L, next L, {image > L}) wherever the mask of an (H, W) image changes."""
    changes = sorted({0, LEVELS, *image.unique().tolist()})
    for level, following in pairwise(changes):
        yield level, following, image > level


def _outside(mask: Tensor) -> Tensor:
    """The background that reaches the image's outside through 4 neighbours; both (H, W) bool."""
    background = torch.nn.functional.pad(~mask, (1, 1, 1, 1), value=True)
    labels, _ = boxes_reference.connected_components(background[None], connectivity=4)
    return (labels[0] == labels[0, 0, 0])[1:-1, 1:-1]


def _component_boxes(mask: Tensor, connectivity: int) -> Tensor:
    """(K, 4) half-open boxes of every component of an (H, W) mask."""
    _, counts = boxes_reference.connected_components(mask[None], connectivity=connectivity)
    values = torch.zeros_like(mask[None], dtype=torch.float32)
    found = boxes_reference.scored_boxes(mask[None], values, int(counts), connectivity, 1)
    return found[0][0].long()


def _doubled_areas(labels: Tensor, count: int) -> Tensor:
    """Twice ``contourArea`` of each component 1..count of a labelled image without holes.

    The polygon through pixel centres holds a 2 x 2 quad with four members whole, one with three by
    half. Members of such a quad touch, so they carry one label.
    """
    quads = torch.stack([labels[:-1, :-1], labels[:-1, 1:], labels[1:, :-1], labels[1:, 1:]])
    members = (quads > 0).sum(dim=0)
    doubled = torch.where(members >= 3, members - 2, 0)
    total = doubled.new_zeros(count + 1)
    return total.scatter_add(0, quads.amax(dim=0).flatten().long(), doubled.flatten())[1:]


def _largest_contour(mask: Tensor) -> tuple[Tensor, int]:
    """Box (4,) and doubled area of the largest contour; of equals the last in raster order."""
    filled = ~_outside(mask)  # a contour inside a hole is smaller than the one around it
    labels, counts = boxes_reference.connected_components(filled[None], connectivity=8)
    areas = _doubled_areas(labels[0], int(counts))
    best = int((areas == areas.max()).nonzero().max())
    y, x = (labels[0] == best + 1).nonzero(as_tuple=True)
    return torch.stack([x.min(), y.min(), x.max() + 1, y.max() + 1]), int(areas[best])


def level_boxes(maps: Tensor) -> tuple[Tensor, Tensor]:
    """See :func:`wsfast.level_boxes`."""
    n = maps.shape[0]
    boxes = torch.full((n, LEVELS, 4), -1, dtype=torch.int32, device=maps.device)
    area2 = torch.full((n, LEVELS), -1, dtype=torch.int32, device=maps.device)
    for i, image in enumerate(map_levels(maps)):
        for level, following, mask in _distinct_masks(image):
            if mask.any():
                box, area = _largest_contour(mask)
                boxes[i, level:following] = box.int()
                area2[i, level:following] = area
    return boxes, area2


def _scored_corners(mask: Tensor, holes: bool) -> Tensor:
    """(K, 4) corners of all contours as the protocol scores them; [0, 0, 0, 0] without any."""
    height, width = mask.shape
    if not mask.any():
        return torch.zeros(1, 4, dtype=torch.int64, device=mask.device)
    found = _component_boxes(mask, 8)
    inner = ~mask & ~_outside(mask)
    if holes and inner.any():
        around = torch.tensor([-1, -1, 1, 1], device=mask.device)
        found = torch.cat([found, _component_boxes(inner, 4) + around])
    return protocol_corners(found, height, width)


def level_best_iou(
    maps: Tensor, gt_boxes: Tensor, gt_offsets: Tensor, *, holes: bool = True
) -> Tensor:
    """See :func:`wsfast.level_best_iou`."""
    best = torch.zeros(maps.shape[0], LEVELS, dtype=torch.float64, device=maps.device)
    offsets = gt_offsets.clamp(0, gt_boxes.shape[0]).tolist()
    for i, image in enumerate(map_levels(maps)):
        truth = gt_boxes[offsets[i] : offsets[i + 1]]
        if truth.shape[0] == 0:
            continue
        for level, following, mask in _distinct_masks(image):
            iou = inclusive_iou(_scored_corners(mask, holes)[:, None], truth)
            best[i, level:following] = iou.max()
    return best


def score_histograms(maps: Tensor, masks: Tensor, edges: Tensor) -> Tensor:
    """See :func:`wsfast.score_histograms`."""
    bins = edges.shape[0] - 1
    scores = maps.double()
    inside = (scores >= edges[0]) & (scores <= edges[bins])
    index = torch.searchsorted(edges[:-1].contiguous(), scores.contiguous(), right=True) - 1
    return torch.stack(
        [torch.bincount(index[inside & (masks == row)], minlength=bins) for row in (0, 1)]
    )
