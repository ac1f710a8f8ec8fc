"""What comes before and after every network: from pictures to its input, from its maps to boxes.

The command line prepares pictures and resizes maps by the same functions, so that a deployed
localizer finds what it finds.
"""

import warnings
from typing import NamedTuple

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.nn import functional as F

from wsfast import ops
from wsfast._check import check_rank, check_tensor, out_of_sight, type_error, value_error
from wsfast._exports import kept_in_exports

_BRIGHTEST = 2.0  # of floating-point pictures of 0-1: no resizing overshoots so far


@kept_in_exports
class LocalizerOutput(NamedTuple):
    """What a localizer says of a batch; N images, K classes, at most B boxes each.

    Attributes:
        logits: (N, K) float32, the classifier's.
        cams: (N, H, W) float32 of 0-1.
        masks: (N, H, W) bool, what lies at or above the threshold.
        boxes: (N, B, 4) int32 (x0, y0, x1, y1) in pixels of ``cams``, half-open, largest component
            first; -1 where there are fewer.
        scores: (N, B) float32, mean of the map inside the component, -1 where there is none.
        counts: (N,) int32, components in all, also where they exceed B.
    """

    logits: Tensor
    cams: Tensor
    masks: Tensor
    boxes: Tensor
    scores: Tensor
    counts: Tensor


def check_images(where: str, images: Tensor, channels: int) -> None:
    """Raise unless these are pictures for a network of so many channels."""
    check_tensor(where, "images", images)
    if images.dtype != torch.uint8 and not images.is_floating_point():
        type_error(where, "images", "uint8 (0-255) or floating point (0-1)", f"{images.dtype}")
    check_rank(where, "images", images, 4)
    if images.shape[1] != channels or images.shape[2] == 0 or images.shape[3] == 0:
        expected = f"of shape (N, {channels}, H, W)"
        value_error(where, "images", expected, f"shape {list(images.shape)}")


@torch.jit.unused
def warn_of_other_scales(where: str, images: Tensor) -> None:
    """Warn of floating-point pictures far above 1, where looking costs no device sync.

    To be called from what a module's ``forward`` calls: the warning names the caller's line.
    """
    if out_of_sight(images) or not images.is_floating_point() or images.numel() == 0:
        return
    highest = float(images.detach().amax())
    if highest > _BRIGHTEST:
        warnings.warn(
            f"wsfast.{where}: images must be of 0-1 where they are floating point, got values up "
            f"to {highest:.4g} (pictures of 0-255 are taken as uint8)",
            stacklevel=6,
        )


def _is_of_size(x: Tensor, height: int, width: int) -> bool:
    """Whether there is nothing to resize; of sizes that a program leaves open, it is no."""
    if torch.jit.is_scripting() or torch.jit.is_tracing():  # a traced size is a tensor
        return x.shape[-2] == height and x.shape[-1] == width
    return statically_known_true(x.shape[-2] == height) and statically_known_true(
        x.shape[-1] == width
    )


def prepare_images(images: Tensor, size: tuple[int, int], mean: Tensor, std: Tensor) -> Tensor:
    """Scale, resize and normalise pictures.

    Args:
        images: (N, C, H, W), uint8 of 0-255 or floating point of 0-1.
        size: height and width of the network's input. The whole picture is resized, bilinearly with
            antialiasing: a crop would hide part of what is to be localised.
        mean: (C, 1, 1), of images in 0-1.
        std: (C, 1, 1), of images in 0-1.

    Returns:
        (N, C, *size) in the dtype of ``mean``.

    Note:
        Nothing is rounded to levels after resizing, so that a program compiled in another way meets
        the same input but for float32's rounding.

    Example:
        >>> grey = torch.full((1, 1, 8, 8), 51, dtype=torch.uint8)
        >>> half = torch.full((1, 1, 1), 0.5)
        >>> prepare_images(grey, (2, 2), half, half).flatten().tolist()
        [-0.6000..., -0.6000..., -0.6000..., -0.6000...]
    """
    x = images.to(torch.float32)
    if images.dtype == torch.uint8:
        x = x / 255
    height, width = size
    if not _is_of_size(x, height, width):
        x = F.interpolate(x, [height, width], mode="bilinear", align_corners=False, antialias=True)
    return ((x - mean.to(torch.float32)) / std.to(torch.float32)).to(mean.dtype)


def resize_cams(cams: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps (N, h, w) at another size, half-pixel bilinear, within 0-1.

    Example:
        >>> resize_cams(torch.tensor([[[0.0, 1.0]]]), (1, 4))
        tensor([[[0.0000, 0.2500, 0.7500, 1.0000]]])
    """
    height, width = size
    if not _is_of_size(cams, height, width):
        cams = ops.fuse_cams([cams], (height, width), layer_norm=None, reduce="sum", norm=None)
    return cams.clamp(0, 1)


def find_boxes(
    logits: Tensor,
    cams: Tensor,
    threshold: float | str,
    max_boxes: int,
    connectivity: int,
    min_area: int,
) -> LocalizerOutput:
    """Cut maps of 0-1 at a threshold and box what is left.

    Args:
        logits: (N, K), handed on.
        cams: (N, H, W) float32.
        threshold: see :func:`wsfast.cam_boxes`.
        max_boxes: see :func:`wsfast.cam_boxes`.
        connectivity: see :func:`wsfast.cam_boxes`.
        min_area: smaller components get no box; the mask keeps them.
    """
    limits = ops.cam_thresholds(cams, threshold)
    found = ops.cam_boxes(
        cams, limits, max_boxes=max_boxes, connectivity=connectivity, min_area=min_area
    )
    return LocalizerOutput(
        logits.to(torch.float32),
        cams,
        cams >= limits[:, None, None],
        found.boxes,
        found.scores,
        found.counts,
    )
