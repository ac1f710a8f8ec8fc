"""Schemas, fallbacks and fake kernels of the boxes room. Nothing here is differentiable."""

from typing import Any

import torch
from torch import Tensor

from ... import native
from . import reference


def _connected_components(mask: Tensor, connectivity: int) -> tuple[Tensor, Tensor]:
    return reference.connected_components(mask, connectivity=connectivity)


def _component_boxes(
    mask: Tensor, max_boxes: int, connectivity: int, min_area: int
) -> tuple[Tensor, Tensor, Tensor]:
    boxes, _, areas, counts = reference.scored_boxes(
        mask, torch.zeros_like(mask, dtype=torch.float32), max_boxes, connectivity, min_area
    )
    return boxes, areas, counts


def _cam_boxes(
    cams: Tensor, thresholds: Tensor, max_boxes: int, connectivity: int, min_area: int
) -> tuple[Tensor, ...]:
    mask = cams.to(thresholds.dtype) >= thresholds[:, None, None]
    found = reference.scored_boxes(mask, cams, max_boxes, connectivity, min_area)
    return *found, _free_of_nan(cams)


def _label_boxes(labels: Tensor, max_labels: int) -> tuple[Tensor, Tensor, Tensor]:
    return reference.label_boxes(labels, max_labels)


def _otsu_level(cams: Tensor, repeat: int) -> tuple[Tensor, Tensor]:
    return reference.otsu_level(cams, repeat), _free_of_nan(cams)


def _free_of_nan(cams: Tensor) -> Tensor:
    return ~cams.isnan().any(dim=2).any(dim=1)


native.register_op(
    "connected_components(Tensor mask, int connectivity) -> (Tensor, Tensor)",
    _connected_components,
)
native.register_op(
    "component_boxes(Tensor mask, int max_boxes, int connectivity, int min_area)"
    " -> (Tensor, Tensor, Tensor)",
    _component_boxes,
)
native.register_op(
    "cam_boxes(Tensor cams, Tensor thresholds, int max_boxes, int connectivity, int min_area)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _cam_boxes,
)
native.register_op(
    "label_boxes(Tensor labels, int max_labels) -> (Tensor, Tensor, Tensor)", _label_boxes
)
native.register_cuda_way("label_boxes", "torch", _label_boxes)
native.register_op("otsu_level(Tensor cams, int repeat) -> (Tensor, Tensor)", _otsu_level)


def _empty(like: Tensor, *shape: Any, dtype: torch.dtype = torch.int32) -> Tensor:
    return like.new_empty(shape, dtype=dtype)


@torch.library.register_fake("wsfast::connected_components")
def _(mask: Tensor, connectivity: int) -> tuple[Tensor, Tensor]:
    return _empty(mask, *mask.shape), _empty(mask, mask.shape[0])


@torch.library.register_fake("wsfast::component_boxes")
def _(
    mask: Tensor, max_boxes: int, connectivity: int, min_area: int
) -> tuple[Tensor, Tensor, Tensor]:
    n = mask.shape[0]
    return _empty(mask, n, max_boxes, 4), _empty(mask, n, max_boxes), _empty(mask, n)


@torch.library.register_fake("wsfast::cam_boxes")
def _(
    cams: Tensor, thresholds: Tensor, max_boxes: int, connectivity: int, min_area: int
) -> tuple[Tensor, ...]:
    n = cams.shape[0]
    return (
        _empty(cams, n, max_boxes, 4),
        _empty(cams, n, max_boxes, dtype=torch.float32),
        _empty(cams, n, max_boxes),
        _empty(cams, n),
        _empty(cams, n, dtype=torch.bool),
    )


@torch.library.register_fake("wsfast::label_boxes")
def _(labels: Tensor, max_labels: int) -> tuple[Tensor, Tensor, Tensor]:
    n = labels.shape[0]
    return _empty(labels, n, max_labels, 4), _empty(labels, n, max_labels), _empty(labels, n)


@torch.library.register_fake("wsfast::otsu_level")
def _(cams: Tensor, repeat: int) -> tuple[Tensor, Tensor]:
    n = cams.shape[0]
    return _empty(cams, n), _empty(cams, n, dtype=torch.bool)
