"""Schema, fallback, fake kernel, autograd and autocast of the fusion op.

The backward formula is plain torch ops on the saved maps: the derivative of the reference, where
amin and amax share their gradient evenly among ties. It can be compiled and differentiated again.
"""

from typing import Any

import torch
from torch import Tensor

from ... import native
from ..._autocast import plain_matmul
from . import reference


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


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    cams, weights, height, width, layer_norm, reduce, norm, eps = inputs
    ctx.save_for_backward(*cams, weights, output[1])
    ctx.options = ((height, width), layer_norm, reduce, norm, eps)
    ctx.mark_non_differentiable(output[1])


def _normalize_backward(cams: Tensor, grad: Tensor, mode: str, eps: float) -> Tensor:
    """Gradient of :func:`reference.normalize` at ``cams``."""
    if mode == "none":
        return grad
    low, divisor, flat = reference.normalization(cams, mode, eps)
    by_divisor = grad / divisor
    grad_high = -(by_divisor * ((cams - low) / divisor)).sum(dim=(1, 2), keepdim=True)
    grad_cams = by_divisor + grad_high * _shares(cams == cams.amax(dim=(1, 2), keepdim=True), grad)
    if mode == "minmax":
        total = grad_cams.sum(dim=(1, 2), keepdim=True)
        grad_cams = grad_cams - total * _shares(cams == low, grad)
    return grad_cams.masked_fill(flat, 0)


def _shares(chosen: Tensor, like: Tensor) -> Tensor:
    """Equal shares of 1 among the chosen pixels of each image."""
    chosen = chosen.to(like.dtype)
    return chosen / chosen.sum(dim=(1, 2), keepdim=True)


def _interpolation(out_size: int, in_size: int, like: Tensor) -> Tensor:
    """(out, in) matrix of half-pixel bilinear interpolation along one axis."""
    position = torch.arange(out_size, device=like.device, dtype=like.dtype) + 0.5
    position = (position * (in_size / out_size) - 0.5).clamp(min=0)
    first = position.floor().long().clamp(max=in_size - 1)
    second = (first + 1).clamp(max=in_size - 1)
    weight = (position - first).unsqueeze(1)
    matrix = like.new_zeros(out_size, in_size)
    matrix = matrix.scatter_add(1, first.unsqueeze(1), 1 - weight)
    return matrix.scatter_add(1, second.unsqueeze(1), weight)


def _resize_backward(grad: Tensor, height: int, width: int) -> Tensor:
    """Adjoint of :func:`reference.resize`: two small matrix products, deterministic everywhere."""
    if grad.shape[1:] == (height, width):
        return grad
    rows = _interpolation(grad.shape[1], height, grad)
    columns = _interpolation(grad.shape[2], width, grad)
    # Autocast is on where backward is called inside it or a graph of both passes is compiled.
    return plain_matmul(plain_matmul(rows.T, grad), columns)


def _reduce_backward(stacked: Tensor, grad: Tensor, reduce: str) -> Tensor:
    """Gradient of :func:`reference.reduce_layers` at ``stacked`` (L, N, H, W)."""
    if reduce == "sum":
        return grad.expand_as(stacked)
    if reduce == "max":
        chosen = (stacked == stacked.amax(dim=0)).to(grad.dtype)
        return grad * chosen / chosen.sum(dim=0)
    others = [torch.cat([stacked[:i], stacked[i + 1 :]]).prod(dim=0) for i in range(len(stacked))]
    return grad * torch.stack(others)


def _fuse_backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
    *cams, weights, finite = ctx.saved_tensors
    size, layer_norm, reduce, norm, eps = ctx.options
    keep = finite[:, None, None]
    layers = [torch.where(keep, cam.to(weights.dtype), 0) for cam in cams]
    resized = torch.stack(
        [reference.resize(reference.normalize(x, layer_norm, eps), size) for x in layers]
    )
    scale = weights[:, None, None, None]
    fused = reference.reduce_layers(resized * scale, reduce)
    grad = _normalize_backward(fused, grad.to(weights.dtype), norm, eps)
    grad_layers = _reduce_backward(resized * scale, torch.where(keep, grad, 0), reduce)
    grad_weights = (grad_layers * resized).sum(dim=(1, 2, 3)) if ctx.needs_input_grad[1] else None
    grad_cams: list[Tensor | None] = []
    for i, layer in enumerate(layers):
        back = _resize_backward(grad_layers[i] * scale[i], layer.shape[1], layer.shape[2])
        back = _normalize_backward(layer, back, layer_norm, eps)
        grad_cams.append(torch.where(keep, back, 0).to(cams[i].dtype))
    return grad_cams, grad_weights, *[None] * 6


torch.library.register_autograd("wsfast::fuse_cams", _fuse_backward, setup_context=_save)
for _device in ("cpu", "cuda"):  # maps are small and feed thresholds: float32, as torch's losses
    torch.library.register_autocast("wsfast::fuse_cams", _device, torch.float32)
