"""Region proposals of DiPS: boxes from attention maps, and images with all but a box blurred."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..._autocast import plain_matmul
from ..._check import (
    check_connectivity,
    check_count,
    check_floating,
    check_free_of_nan,
    check_range,
    check_rank,
    check_reverse_mode,
    check_same_device,
    check_tensor,
    type_error,
    value_error,
)
from ..._exports import kept_in_exports
from ..._integers import is_integer, saturated_int32
from ..._scripting import scripted_as
from ..boxes import cam_boxes, lowest_above

__all__ = ["Proposals", "blur_outside_boxes", "propose_boxes"]


@kept_in_exports
class Proposals(NamedTuple):
    """Boxes of every image's maps, largest first; ``-1`` pads up to K = ``max_boxes``.

    Attributes:
        boxes: (N, K, 4) int32 (x0, y0, x1, y1) in pixels, half-open.
        maps: (N, K) int32, the map that each box comes from.
        counts: (N,) int32, boxes of the image.
    """

    boxes: Tensor
    maps: Tensor
    counts: Tensor


def _propose_boxes(
    maps: Tensor, min_area: float = 0.04, max_boxes: int = 16, connectivity: int = 8
) -> Proposals:
    where = "propose_boxes"
    check_tensor(where, "maps", maps)
    check_floating(where, "maps", maps)
    check_rank(where, "maps", maps, 4)
    n, m, height, width = maps.shape
    if m == 0 or height == 0 or width == 0:
        value_error(where, "maps", "maps with M, H, W >= 1", f"shape {list(maps.shape)}")
    check_range(where, "min_area", min_area, 0.0, 1.0)
    check_count(where, "max_boxes", max_boxes, 1)
    check_connectivity(where, connectivity)
    flat = maps.detach().flatten(0, 1)
    wide = torch.float64 if flat.dtype == torch.float64 else torch.float32
    levels, valid = torch.ops.wsfast.otsu_level(flat, 1)
    check_free_of_nan(where, "maps", valid.view(n, m).all(dim=1))
    # Otsu's level kept within 1-254, as for seeds; a map that is constant in 8 bits has no boxes,
    # for no value reaches NaN (+inf is reached by +inf).
    threshold = lowest_above(levels.clamp(1, 254), wide)
    lowest, highest = flat.amin(dim=(1, 2)).to(wide), flat.amax(dim=(1, 2)).to(wide)
    threshold = torch.where(_level(lowest) < _level(highest), threshold, torch.nan)
    boxes = cam_boxes(flat, threshold, max_boxes=max_boxes, connectivity=connectivity).boxes
    boxes = boxes.view(n, m * max_boxes, 4)
    x0, y0, x1, y1 = boxes.long().unbind(2)
    areas, order = ((x1 - x0) * (y1 - y0)).sort(dim=1, descending=True, stable=True)
    areas, order = areas[:, :max_boxes], order[:, :max_boxes]
    kept = areas > float(min_area) * (height * width)
    kept[:, :1] |= areas[:, :1] > 0  # the largest stays, however small
    boxes = boxes.gather(1, order[:, :, None].expand(-1, -1, 4))
    return Proposals(
        torch.where(kept[:, :, None], boxes, -1),
        torch.where(kept, order // max_boxes, -1).to(torch.int32),
        kept.sum(dim=1).to(torch.int32),
    )


def _level(values: Tensor) -> Tensor:
    return (values * 255).clamp(0, 255).to(torch.int32)


@scripted_as(_propose_boxes)
def propose_boxes(
    maps: Tensor, *, min_area: float = 0.04, max_boxes: int = 16, connectivity: int = 8
) -> Proposals:
    """Box what Otsu's threshold leaves of several maps per image (DiPS sec. 3.3).

    Each map is cut at its own Otsu level; every connected component gives its box. Boxes that cover
    more than ``min_area`` of the image are proposals; where none does, the largest box is.

    Args:
        maps: (N, M, H, W) in 0-1, such as M attention maps of a transformer, each divided by its
            maximum; float32, float64, float16 or bfloat16, any strides.
        min_area: share of the image that a box must exceed, 0-1. DiPS: 0.5-0.75 on ILSVRC, small
            for small objects.
        max_boxes: K. Also how many components of each map are looked at, largest first.
        connectivity: 4 or 8 neighbours.

    Returns:
        :class:`Proposals`: the K largest boxes of each image, box area descending, equals in the
        order of maps. ``counts`` is 0 only where every map is constant in 8 bits or nowhere above
        1/255.

    Raises:
        ValueError: wrong rank, no maps, numbers out of range; on the CPU also NaN in a map.
        TypeError: not a floating-point tensor.

    Note:
        Not differentiable. One batched call whose shapes depend on arguments only: it compiles and
        exports. Deterministic.

    Example:
        >>> maps = torch.zeros(1, 2, 4, 6)
        >>> maps[0, 0, 1:3, 1:4] = 1.0
        >>> maps[0, 1, 0, 5] = 1.0
        >>> found = propose_boxes(maps, max_boxes=2)
        >>> found.boxes.tolist(), found.maps.tolist(), found.counts.tolist()
        ([[[1, 1, 4, 3], [5, 0, 6, 1]]], [[0, 1]], [2])
    """
    return _propose_boxes(maps, min_area, max_boxes, connectivity)


def _blur_matrix(size: int, kernel: int, sigma: float, like: Tensor) -> Tensor:
    """(size, size): a row of pixels times it is the row blurred, mirrored at its ends."""
    reach = torch.arange(-(kernel // 2), kernel // 2 + 1, device=like.device)
    weights = torch.exp(-0.5 * (reach.to(like.dtype) / sigma) ** 2)
    source = torch.arange(size, device=like.device)[None, :] + reach[:, None]
    period = max(1, 2 * (size - 1))
    source = source.remainder(period)
    source = torch.minimum(source, period - source).clamp(min=0, max=size - 1)
    weights = (weights / weights.sum())[:, None].expand(-1, size)
    return torch.zeros(size, size, dtype=like.dtype, device=like.device).scatter_add(
        0, source, weights
    )


def _blur_outside_boxes(
    images: Tensor, boxes: Tensor, image_index: Tensor, kernel: int = 115, sigma: float = 100.5
) -> Tensor:
    where = "blur_outside_boxes"
    check_tensor(where, "images", images)
    check_floating(where, "images", images)
    check_reverse_mode(where, "images", images)
    check_rank(where, "images", images, 4)
    check_tensor(where, "boxes", boxes)
    check_tensor(where, "image_index", image_index)
    for name, tensor in (("boxes", boxes), ("image_index", image_index)):
        check_same_device(where, "images", images, name, tensor)
        if not is_integer(tensor):
            type_error(where, name, "integers", f"{tensor.dtype}")
    if boxes.dim() != 2 or boxes.shape[1] != 4:
        value_error(where, "boxes", "of shape (K, 4)", f"shape {list(boxes.shape)}")
    if image_index.dim() != 1 or image_index.shape[0] != boxes.shape[0]:
        value_error(
            where,
            "image_index",
            f"of shape ({boxes.shape[0]},)",
            f"shape {list(image_index.shape)}",
        )
    check_count(where, "kernel", kernel, 1)
    if kernel % 2 == 0:
        value_error(where, "kernel", "odd", f"{kernel}")
    check_range(where, "sigma", sigma, 1e-6, torch.inf)
    height, width = images.shape[2], images.shape[3]
    wide = images if images.dtype == torch.float64 else images.float()
    down = _blur_matrix(height, kernel, float(sigma), wide)
    across = _blur_matrix(width, kernel, float(sigma), wide)
    blurred = plain_matmul(plain_matmul(down.t(), wide), across).to(images.dtype)
    x0, y0, x1, y1 = saturated_int32(boxes)[:, :, None, None].unbind(1)
    y = torch.arange(height, device=images.device)[:, None]
    x = torch.arange(width, device=images.device)
    inside = (x >= x0) & (x < x1) & (y >= y0) & (y < y1)
    # Negative numbers would count from the end. index_select refuses them, but takes 20 times as
    # long on the CPU.
    index = saturated_int32(image_index).long()
    index = torch.where(index < 0, images.shape[0], index)
    return torch.where(inside[:, None], images[index], blurred[index])


@scripted_as(_blur_outside_boxes)
def blur_outside_boxes(
    images: Tensor,
    boxes: Tensor,
    image_index: Tensor,
    *,
    kernel: int = 115,
    sigma: float = 100.5,
) -> Tensor:
    r"""Hide all but a box of an image behind a Gaussian blur, for K boxes of N images.

    .. math:: x_b = x \cdot 1_b + blur(x) \cdot (1 - 1_b)

    DiPS sec. 3.3: a classifier's score of x_b tells how much of the object the box holds. Every
    image is blurred once, whatever the number of its boxes.

    Args:
        images: (N, C, H, W) float32, float64, float16 or bfloat16, raw or normalised.
        boxes: (K, 4) integers (x0, y0, x1, y1), half-open; an empty box leaves the image blurred.
        image_index: (K,) integers, the image of each box.
        kernel: taps of the blur along each axis, odd.
        sigma: of the Gaussian, in pixels; at least 1e-6.

    Returns:
        (K, C, H, W) in the images' dtype. Borders are mirrored without repeating the edge, also
        where the kernel is larger than the image.

    Raises:
        ValueError: wrong shapes, mixed devices, a kernel that is even or below 1, sigma below 1e-6.
        TypeError: images that are not floating-point, boxes or indices that are not integers.
        RuntimeError or IndexError: an index outside 0 to N-1, as torch reports it.

    Note:
        Differentiable with respect to the images. The blur is two matrix products per image,
        O(C H W (H + W)), in float32 (float64 for float64 images).

    Example:
        >>> image = torch.zeros(1, 1, 3, 4)
        >>> image[..., 1] = 1.0
        >>> boxes = torch.tensor([[0, 0, 2, 2]])
        >>> blur_outside_boxes(image, boxes, torch.tensor([0]), kernel=3, sigma=100.0)[0, 0].round(
        ...     decimals=2
        ... )
        tensor([[0.0000, 1.0000, 0.3300, 0.0000],
                [0.0000, 1.0000, 0.3300, 0.0000],
                [0.6700, 0.3300, 0.3300, 0.0000]])
    """
    return _blur_outside_boxes(images, boxes, image_index, kernel, sigma)
