"""The gradient of fusion in pure PyTorch: the derivative of the reference, differentiable again.

Minima and maxima share their gradient evenly among ties.
"""

from typing import Any

import torch
from torch import Tensor

from ..._autocast import plain_matmul
from . import reference


def fuse_backward(
    grad: Tensor,
    cams: list[Tensor],
    weights: Tensor,
    layer_norm: str,
    reduce: str,
    norm: str,
    eps: float,
) -> tuple[list[Tensor], Tensor]:
    """Gradients of :func:`reference.fuse_weighted` at ``cams`` and ``weights``."""
    size = grad.shape[1:]
    keep = reference.finite_images(cams)[:, None, None]
    layers = [torch.where(keep, cam.to(weights.dtype), 0) for cam in cams]
    resized = torch.stack(
        [reference.resize(reference.normalize(x, layer_norm, eps), size) for x in layers]
    )
    scale = weights[:, None, None, None]
    fused = reference.reduce_layers(resized * scale, reduce)
    grad = normalize_backward(fused, grad.to(weights.dtype), norm, eps)
    grad_layers = reduce_backward(resized * scale, torch.where(keep, grad, 0), reduce)
    grad_weights = (grad_layers * resized).sum(dim=(1, 2, 3))
    grad_cams = []
    for i, layer in enumerate(layers):
        back = resize_backward(grad_layers[i] * scale[i], layer.shape[1], layer.shape[2])
        back = normalize_backward(layer, back, layer_norm, eps)
        grad_cams.append(torch.where(keep, back, 0).to(cams[i].dtype))
    return grad_cams, grad_weights


def normalize_backward(cams: Tensor, grad: Tensor, mode: str, eps: float) -> Tensor:
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
    options: dict[str, Any] = {"device": like.device, "dtype": like.dtype}
    position = (torch.arange(out_size, **options) + 0.5) * (in_size / out_size) - 0.5
    distance = position.clamp(0, in_size - 1)[:, None] - torch.arange(in_size, **options)
    return (1 - distance.abs()).clamp(min=0)


def resize_backward(grad: Tensor, height: int, width: int) -> Tensor:
    """Adjoint of :func:`reference.resize`: two small matrix products, deterministic everywhere."""
    if grad.shape[1:] == (height, width):
        return grad
    rows = _interpolation(grad.shape[1], height, grad)
    columns = _interpolation(grad.shape[2], width, grad)
    # Autocast is on where backward is called inside it or a graph of both passes is compiled.
    return plain_matmul(plain_matmul(rows.T, grad), columns)


def reduce_backward(stacked: Tensor, grad: Tensor, reduce: str) -> Tensor:
    """Gradient of :func:`reference.reduce_layers` at ``stacked`` (L, N, H, W)."""
    if reduce == "sum":
        return grad.expand_as(stacked)
    if reduce == "max":
        chosen = (stacked == stacked.amax(dim=0)).to(grad.dtype)
        return grad * chosen / chosen.sum(dim=0)
    others = [torch.cat([stacked[:i], stacked[i + 1 :]]).prod(dim=0) for i in range(len(stacked))]
    return grad * torch.stack(others)
