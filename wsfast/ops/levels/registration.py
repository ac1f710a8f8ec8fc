"""Schemas, fallbacks, fake kernels and the way over the host of the levels room.

Nothing here is differentiable. On CUDA tensors levels are searched on the host: a byte per pixel
goes there, 256 results per map come back. Histograms stay on the device.
"""

from typing import Any

import torch
from torch import Tensor

from ... import native
from . import reference


def _free_of_nan(maps: Tensor) -> Tensor:
    return ~maps.isnan().any(dim=2).any(dim=1)


def _level_boxes(maps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return *reference.level_boxes(maps), _free_of_nan(maps)


def _level_best_iou(
    maps: Tensor, gt_boxes: Tensor, gt_offsets: Tensor, holes: bool
) -> tuple[Tensor, Tensor]:
    best = reference.level_best_iou(maps, gt_boxes, gt_offsets, holes=holes)
    return best, _free_of_nan(maps)


def _score_histograms(maps: Tensor, masks: Tensor, edges: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    known = ((masks <= 1) | (masks == 255)).all(dim=2).all(dim=1)
    return reference.score_histograms(maps, masks, edges), _free_of_nan(maps), known


native.register_op("level_boxes(Tensor maps) -> (Tensor, Tensor, Tensor)", _level_boxes)
native.register_op(
    "level_best_iou(Tensor maps, Tensor gt_boxes, Tensor gt_offsets, bool holes)"
    " -> (Tensor, Tensor)",
    _level_best_iou,
)
native.register_op(
    "score_histograms(Tensor maps, Tensor masks, Tensor edges) -> (Tensor, Tensor, Tensor)",
    _score_histograms,
)


def _host_levels(maps: Tensor) -> Tensor:
    """The map as uint8 levels on the host, computed where the map is."""
    return reference.map_levels(maps).to(torch.uint8).cpu()


def _level_boxes_over_host(maps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    boxes, area2, _ = torch.ops.wsfast.level_boxes(_host_levels(maps))
    return boxes.to(maps.device), area2.to(maps.device), _free_of_nan(maps)


def _level_best_iou_over_host(
    maps: Tensor, gt_boxes: Tensor, gt_offsets: Tensor, holes: bool
) -> tuple[Tensor, Tensor]:
    best, _ = torch.ops.wsfast.level_best_iou(
        _host_levels(maps), gt_boxes.cpu(), gt_offsets.cpu(), holes
    )
    return best.to(maps.device), _free_of_nan(maps)


native.register_cuda_way("level_boxes", "host", _level_boxes_over_host)
native.register_cuda_way("level_best_iou", "host", _level_best_iou_over_host)
native.register_cuda_way("score_histograms", "torch", _score_histograms)


def _empty(like: Tensor, *shape: Any, dtype: torch.dtype) -> Tensor:
    return like.new_empty(shape, dtype=dtype)


@torch.library.register_fake("wsfast::level_boxes")
def _(maps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    n = maps.shape[0]
    return (
        _empty(maps, n, reference.LEVELS, 4, dtype=torch.int32),
        _empty(maps, n, reference.LEVELS, dtype=torch.int32),
        _empty(maps, n, dtype=torch.bool),
    )


@torch.library.register_fake("wsfast::level_best_iou")
def _(maps: Tensor, gt_boxes: Tensor, gt_offsets: Tensor, holes: bool) -> tuple[Tensor, Tensor]:
    n = maps.shape[0]
    return (
        _empty(maps, n, reference.LEVELS, dtype=torch.float64),
        _empty(maps, n, dtype=torch.bool),
    )


@torch.library.register_fake("wsfast::score_histograms")
def _(maps: Tensor, masks: Tensor, edges: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    n = maps.shape[0]
    return (
        _empty(maps, 2, edges.shape[0] - 1, dtype=torch.int64),
        _empty(maps, n, dtype=torch.bool),
        _empty(maps, n, dtype=torch.bool),
    )
