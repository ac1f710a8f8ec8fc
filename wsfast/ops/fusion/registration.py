"""Schemas, fallbacks, fake kernels, autograd and autocast of the fusion ops."""

from typing import Any

import torch
from torch import Tensor

from ... import native
from . import gradient, reference


def fuse_cams_in_torch(
    cams: list[Tensor],
    weights: Tensor,
    height: int,
    width: int,
    layer_norm: str,
    reduce: str,
    norm: str,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """The op made of torch's own operators, for backends and formats without a kernel of it."""
    fused = reference.fuse_weighted(cams, weights, (height, width), layer_norm, reduce, norm, eps)
    return fused, reference.finite_images(cams)


native.register_op(
    "fuse_cams(Tensor[] cams, Tensor weights, SymInt height, SymInt width, str layer_norm,"
    " str reduce, str norm, float eps) -> (Tensor, Tensor)",
    fuse_cams_in_torch,
)


@torch.library.register_fake("wsfast::fuse_cams")
def _(
    cams: list[Tensor],
    weights: Tensor,
    height: int,
    width: int,
    layer_norm: str,
    reduce: str,
    norm: str,
    eps: float,
) -> tuple[Tensor, Tensor]:
    n = cams[0].shape[0]
    return cams[0].new_empty((n, height, width)), cams[0].new_empty((n,), dtype=torch.bool)


def fuse_cams_backward_in_torch(
    grad: Tensor, cams: list[Tensor], weights: Tensor, layer_norm: str, norm: str, eps: float
) -> tuple[list[Tensor], Tensor]:
    """The gradient of a sum of layers, made of torch's own operators."""
    return gradient.fuse_backward(grad, cams, weights, layer_norm, "sum", norm, eps)


native.register_op(
    "fuse_cams_backward(Tensor grad, Tensor[] cams, Tensor weights, str layer_norm, str norm,"
    " float eps) -> (Tensor[], Tensor)",
    fuse_cams_backward_in_torch,
)


@torch.library.register_fake("wsfast::fuse_cams_backward")
def _(
    grad: Tensor, cams: list[Tensor], weights: Tensor, layer_norm: str, norm: str, eps: float
) -> tuple[list[Tensor], Tensor]:
    return [layer.new_empty(layer.shape) for layer in cams], weights.new_empty(weights.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    cams, weights, _, _, layer_norm, reduce, norm, eps = inputs
    ctx.save_for_backward(*cams, weights)
    ctx.options = (layer_norm, reduce, norm, eps)
    ctx.mark_non_differentiable(output[1])


def _fuse_backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
    *cams, weights = ctx.saved_tensors
    layer_norm, reduce, norm, eps = ctx.options
    if reduce == "sum" and not torch.is_grad_enabled():
        grads = torch.ops.wsfast.fuse_cams_backward(grad, cams, weights, layer_norm, norm, eps)
    else:  # rare reductions, and gradients that are differentiated again
        grads = gradient.fuse_backward(grad, cams, weights, layer_norm, reduce, norm, eps)
    return *grads, *[None] * 6


torch.library.register_autograd("wsfast::fuse_cams", _fuse_backward, setup_context=_save)
for _device in ("cpu", "cuda"):  # maps are small and feed thresholds: float32, as torch's losses
    torch.library.register_autocast("wsfast::fuse_cams", _device, torch.float32)
