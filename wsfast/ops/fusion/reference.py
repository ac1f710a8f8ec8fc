"""Normalisation and fusion of class activation maps in pure PyTorch: readable, public, slow."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

FLAT_EPSILONS = 16  # of the largest value


def _accumulate(tensor: Tensor) -> Tensor:
    """Half types are computed in float32."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def normalization(cams: Tensor, mode: str, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """What ``minmax`` or ``max`` subtracts and divides by, and which maps are flat and become 0.

    Flat are values that differ by no more than sums of layers are rounded, which min-max would
    stretch to the whole range, and those divided by less than the smallest normal number, whose
    reciprocal may overflow.
    """
    high, number = cams.amax(dim=(1, 2), keepdim=True), torch.finfo(cams.dtype)
    if mode == "minmax":
        low = cams.amin(dim=(1, 2), keepdim=True)
        rounding = FLAT_EPSILONS * number.eps * torch.maximum(high.abs(), low.abs())
        flat = (high - low <= rounding) & rounding.isfinite()
    else:
        low, flat = torch.zeros_like(high), ~(high > 0)
    divisor = (high - low) + eps
    flat = flat | (divisor < number.tiny)
    return low, divisor.masked_fill(flat, 1), flat


def normalize(cams: Tensor, mode: str, eps: float) -> Tensor:
    """``minmax``, ``max`` or ``none`` of (N, H, W) maps, image by image."""
    if mode == "none":
        return cams
    low, divisor, flat = normalization(cams, mode, eps)
    return ((cams - low) / divisor).masked_fill(flat, 0)


def resize(cams: Tensor, size: Sequence[int]) -> Tensor:
    """Half-pixel bilinear resizing of (N, h, w) maps, no antialiasing."""
    if cams.shape[1:] == tuple(size):
        return cams
    return F.interpolate(cams[:, None], list(size), mode="bilinear", align_corners=False)[:, 0]


def reduce_layers(stacked: Tensor, reduce: str) -> Tensor:
    """(L, N, H, W) to (N, H, W)."""
    if reduce == "sum":
        return stacked.sum(dim=0)
    return stacked.amax(dim=0) if reduce == "max" else stacked.prod(dim=0)


def finite_images(cams: Sequence[Tensor]) -> Tensor:
    """(N,) True where every layer's map is finite."""
    return torch.stack([layer.isfinite().all(dim=2).all(dim=1) for layer in cams]).all(dim=0)


def fuse_weighted(
    cams: Sequence[Tensor],
    weights: Tensor,
    size: Sequence[int],
    layer_norm: str,
    reduce: str,
    norm: str,
    eps: float,
) -> Tensor:
    """The op itself: weight every normalised, resized layer, reduce, normalise."""
    keep = finite_images(cams)[:, None, None]
    layers = [torch.where(keep, _accumulate(layer), 0) for layer in cams]
    resized = [resize(normalize(layer, layer_norm, eps), size) for layer in layers]
    fused = reduce_layers(torch.stack(resized) * weights[:, None, None, None], reduce)
    return normalize(fused, norm, eps).to(cams[0].dtype)


def normalize_cams(cams: Tensor, *, mode: str = "minmax", eps: float = 1e-7) -> Tensor:
    """See :func:`wsfast.normalize_cams`."""
    return normalize(_accumulate(cams), mode, eps).to(cams.dtype)


def fuse_cams(
    cams: Sequence[Tensor],
    size: Sequence[int],
    *,
    layer_norm: str | None = "minmax",
    reduce: str = "mean",
    norm: str | None = "minmax",
    weights: Sequence[float] | Tensor | None = None,
    eps: float = 1e-7,
) -> Tensor:
    """See :func:`wsfast.fuse_cams`."""
    like = _accumulate(cams[0])
    given = torch.ones(len(cams)) if weights is None else weights
    scale = torch.as_tensor(given, dtype=like.dtype, device=like.device)
    if reduce == "mean":
        scale, reduce = scale / scale.sum(), "sum"
    return fuse_weighted(cams, scale, size, layer_norm or "none", reduce, norm or "none", eps)
