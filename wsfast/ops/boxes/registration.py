"""Schemas, fallbacks, fake kernels and autograd of the boxes ops, none of them differentiable."""

from typing import Any

import torch
from torch import Tensor

from ... import native
from . import reference

# --- pure-PyTorch fallbacks, with the ops' own results ---------------------------------------


def _otsu_threshold(cams: Tensor, repeat: int) -> Tensor:
    return reference.otsu_threshold(cams, repeat=repeat)


def _connected_components(mask: Tensor, connectivity: int) -> tuple[Tensor, Tensor]:
    return reference.connected_components(mask, connectivity=connectivity)


def _component_boxes(
    mask: Tensor, max_boxes: int, connectivity: int, min_area: int
) -> tuple[Tensor, Tensor, Tensor]:
    return reference.component_boxes(
        mask, max_boxes=max_boxes, connectivity=connectivity, min_area=min_area
    )


def _cam_boxes(
    cams: Tensor, thresholds: Tensor, max_boxes: int, connectivity: int, min_area: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return reference.cam_boxes(
        cams, thresholds, max_boxes=max_boxes, connectivity=connectivity, min_area=min_area
    )


native.register_op("otsu_threshold(Tensor cams, int repeat) -> Tensor", _otsu_threshold)
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
    " -> (Tensor, Tensor, Tensor, Tensor)",
    _cam_boxes,
)


# --- fake kernels ----------------------------------------------------------------------------


def _fake_boxes(maps: Tensor, max_boxes: int) -> tuple[Tensor, Tensor, Tensor]:
    n = maps.shape[0]
    return (
        maps.new_empty((n, max_boxes, 4), dtype=torch.int32),
        maps.new_empty((n, max_boxes), dtype=torch.int32),
        maps.new_empty((n,), dtype=torch.int32),
    )


@torch.library.register_fake("wsfast::otsu_threshold")
def _(cams: Tensor, repeat: int) -> Tensor:
    half = cams.dtype in (torch.float16, torch.bfloat16)
    return cams.new_empty(cams.shape[:1], dtype=torch.float32 if half else cams.dtype)


@torch.library.register_fake("wsfast::connected_components")
def _(mask: Tensor, connectivity: int) -> tuple[Tensor, Tensor]:
    labels = mask.new_empty(mask.shape, dtype=torch.int32)
    return labels, mask.new_empty(mask.shape[:1], dtype=torch.int32)


@torch.library.register_fake("wsfast::component_boxes")
def _(
    mask: Tensor, max_boxes: int, connectivity: int, min_area: int
) -> tuple[Tensor, Tensor, Tensor]:
    return _fake_boxes(mask, max_boxes)


@torch.library.register_fake("wsfast::cam_boxes")
def _(
    cams: Tensor, thresholds: Tensor, max_boxes: int, connectivity: int, min_area: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    boxes, areas, counts = _fake_boxes(cams, max_boxes)
    return boxes, cams.new_empty(areas.shape, dtype=torch.float32), areas, counts


# --- autograd: floating results of floating inputs are constants -----------------------------


def _mark_constant(ctx: Any, inputs: tuple[Any, ...], output: Tensor | tuple[Tensor, ...]) -> None:
    ctx.inputs = len(inputs)
    ctx.mark_non_differentiable(*((output,) if isinstance(output, Tensor) else output))


def _no_backward(ctx: Any, *_: Any) -> tuple[None, ...]:
    return (None,) * ctx.inputs


for _name in ("otsu_threshold", "cam_boxes"):
    torch.library.register_autograd(
        f"wsfast::{_name}", _no_backward, setup_context=_mark_constant
    )
