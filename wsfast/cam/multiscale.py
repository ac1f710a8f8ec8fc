"""One method's maps of the same images at several sizes, fused (MS-CA eq. 4)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import ops
from .._check import check_number, value_error
from .base import CAMMethod, Norm, Reduce, check_images
from .result import CAMResult
from .targets import Target


def multiscale(
    method: CAMMethod,
    images: Tensor,
    target: Target = None,
    *,
    scales: Sequence[float] = (0.25, 0.5, 1.0),
    scale_norm: Norm = "minmax",
    reduce: Reduce = "mean",
    norm: Norm = "minmax",
    antialias: bool = True,
) -> CAMResult:
    r"""Maps at several image scales, fused at the images' own size.

    .. math:: A = \mathrm{norm}\Big(\frac{1}{n} \sum_s \mathrm{up}(\mathrm{scale\_norm}(L_s))\Big)

    (MS-CA eq. 4). Grad-CAM's weights shrink with the number of pixels, so that a mean of raw maps
    would count the coarsest scale most: each scale is normalised first. ``scale_norm=None`` with a
    method of ``norm=None, layer_norm=None`` is the equation as it stands.

    Args:
        method: any method of :mod:`wsfast.cam`; its model has to take images of any size.
        images: (N, C, H, W), as the method takes them.
        target: see :meth:`CAMMethod.__call__`; None explains the class of highest score at the
            largest scale, the same one at every scale.
        scales: factors on the images' size.
        scale_norm: normalisation of each scale's map before fusion.
        reduce: fusion over scales.
        norm: normalisation of the fused map.
        antialias: smooth images before making them smaller.

    Returns:
        A :class:`CAMResult`: ``cams`` at the images' size, ``per_layer`` the maps of the scales in
        their order, ``logits`` and ``target`` of the largest scale, ``valid`` where all scales are.

    Raises:
        ValueError: no scale, or one that is not positive and finite or makes a size that the model
            refuses as timm and torchvision do, by an assertion; what the method raises.
        TypeError: see :meth:`CAMMethod.__call__`.
        RuntimeError: torch's, for a size that is too small for one of the model's layers.

    Example:
        >>> from wsfast.cam import GradCAM
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1),
        ...     torch.nn.Flatten(), torch.nn.Linear(4, 2))
        >>> multiscale(GradCAM(model, "last"), torch.rand(2, 3, 64, 48)).cams.shape
        torch.Size([2, 64, 48])
    """
    check_images("cam.multiscale", images)
    check_scales("cam.multiscale", scales)
    size = (images.shape[2], images.shape[3])
    found: dict[int, CAMResult] = {}
    for i in sorted(range(len(scales)), key=lambda i: -scales[i]):
        found[i] = _at_scale(method, images, target, scales[i], antialias=antialias)
        if target is None:
            target = found[i].target
    results = [found[i] for i in range(len(scales))]
    largest = max(found, key=lambda i: scales[i])
    maps = [result.cams for result in results]
    fused = ops.fuse_cams(
        [m.reshape(-1, *m.shape[-2:]) for m in maps],
        size,
        layer_norm=scale_norm,
        reduce=reduce,
        norm=norm,
    )
    return CAMResult(
        fused.reshape(*maps[0].shape[:-2], *size),
        maps,
        results[largest].logits,
        results[largest].target,
        torch.stack([result.valid for result in results]).all(dim=0),
    )


def check_scales(where: str, scales: Sequence[float]) -> None:
    """Raise unless there are scales, all of them positive and finite."""
    for scale in scales:
        check_number(where, "scales", scale)
    if not scales or not all(0 < scale < math.inf for scale in scales):
        value_error(where, "scales", "positive factors", f"{list(scales)}")


def _at_scale(
    method: CAMMethod, images: Tensor, target: Target, scale: float, *, antialias: bool
) -> CAMResult:
    smaller = resized(images, scale, antialias=antialias)
    try:
        return method(smaller, target)
    except AssertionError as error:  # how timm and torchvision refuse a size
        expected = (
            "factors to sizes that the model takes (vision transformers of timm take others than "
            "their own with dynamic_img_size=True, parts of patches with dynamic_img_pad=True)"
        )
        actual = f"{scale}, which makes {list(smaller.shape[2:])}: {error}"
        value_error("cam.multiscale", "scales", expected, actual)
        raise  # value_error always raises


def resized(images: Tensor, scale: float, *, antialias: bool = True) -> Tensor:
    """Images by a factor larger, at least one pixel a side."""
    if scale == 1:
        return images
    size = [max(1, round(side * scale)) for side in images.shape[2:]]
    return F.interpolate(
        images, size, mode="bilinear", align_corners=False, antialias=antialias and scale < 1
    )
