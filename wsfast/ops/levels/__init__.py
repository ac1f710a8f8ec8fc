"""Every threshold of a map in one pass: boxes, best IoU and score histograms, in batches.

The semantics are those of the evaluation protocol of Choe et al., "Evaluating Weakly Supervised
Object Localization Methods Right" (CVPR 2020), which thresholds the 8-bit map and calls OpenCV's
``findContours``, ``contourArea`` and ``boundingRect`` at every level.

Maps on CUDA are quantised there and copied to the host, a byte per pixel, where the CPU kernels
run: the call waits for the device.
"""

import torch
from torch import Tensor

from ..._check import (
    check_floating,
    check_rank,
    check_same_device,
    check_tensor,
    out_of_sight,
    type_error,
    value_error,
)
from ..._scripting import scripted_as
from . import reference, registration  # noqa: F401

__all__ = ["level_best_iou", "level_boxes", "score_histograms", "threshold_levels"]


def _check_maps(where: str, maps: Tensor) -> None:
    check_tensor(where, "maps", maps)
    check_rank(where, "maps", maps, 3)
    height, width = maps.shape[1], maps.shape[2]
    # Twice an area and an index into the map in its frame of one pixel must fit an int32.
    framed = (height + 2) * (width + 2)
    if height * width == 0 or height * width >= 1 << 30 or framed >= 1 << 31:
        value_error(
            where,
            "maps",
            "images with 1 <= H * W < 2^30 and (H + 2) * (W + 2) < 2^31",
            f"shape {list(maps.shape)}",
        )


def _check_level_maps(where: str, maps: Tensor) -> None:
    _check_maps(where, maps)
    if maps.dtype != torch.uint8:
        check_floating(where, "maps", maps)


def _check_whole(where: str, argument: str, tensor: Tensor) -> None:
    if tensor.dtype != torch.int32 and tensor.dtype != torch.int64:
        type_error(where, argument, "int32 or int64", f"{tensor.dtype}")


def _check_images(where: str, argument: str, fits: Tensor, expected: str, trouble: str) -> None:
    if torch.jit.is_scripting() or out_of_sight(fits) or bool(fits.all()):
        return
    value_error(where, argument, expected, f"{trouble} in image {int((~fits).nonzero()[0])}")


def _check_values(where: str, argument: str, values: Tensor, fits: Tensor, expected: str) -> None:
    if torch.jit.is_scripting() or out_of_sight(fits) or bool(fits.all()):
        return
    value_error(where, argument, expected, f"{values[int((~fits).nonzero()[0])].tolist()}")


def _check_gt(maps: Tensor, gt_boxes: Tensor, gt_offsets: Tensor) -> None:
    where = "level_best_iou"
    check_tensor(where, "gt_boxes", gt_boxes)
    check_tensor(where, "gt_offsets", gt_offsets)
    check_same_device(where, "maps", maps, "gt_boxes", gt_boxes)
    check_same_device(where, "maps", maps, "gt_offsets", gt_offsets)
    _check_whole(where, "gt_boxes", gt_boxes)
    _check_whole(where, "gt_offsets", gt_offsets)
    if gt_boxes.dim() != 2 or gt_boxes.shape[1] != 4:
        value_error(where, "gt_boxes", "of shape (G, 4)", f"shape {list(gt_boxes.shape)}")
    if gt_offsets.dim() != 1 or gt_offsets.shape[0] != maps.shape[0] + 1:
        value_error(
            where,
            "gt_offsets",
            f"of shape ({maps.shape[0] + 1},), one more than there are maps",
            f"shape {list(gt_offsets.shape)}",
        )
    low, high = gt_boxes[:, :2], gt_boxes[:, 2:]
    _check_values(
        where,
        "gt_boxes",
        gt_boxes,
        ((low >= 0) & (high >= low) & (high <= (1 << 31) - 1)).all(dim=1),
        "boxes with 0 <= x0 <= x1 < 2^31 and 0 <= y0 <= y1 < 2^31",
    )
    _check_offsets(gt_offsets, gt_boxes.shape[0])


def _check_offsets(gt_offsets: Tensor, count: int) -> None:
    if torch.jit.is_scripting() or out_of_sight(gt_offsets):
        return
    ends_meet = int(gt_offsets[0]) == 0 and int(gt_offsets[-1]) == count
    if not ends_meet or bool((gt_offsets[1:] < gt_offsets[:-1]).any()):
        value_error(
            "level_best_iou",
            "gt_offsets",
            f"non-decreasing from 0 to the number of gt_boxes ({count})",
            f"{gt_offsets.tolist()}",
        )


def _check_edges(maps: Tensor, edges: Tensor) -> None:
    where = "score_histograms"
    check_tensor(where, "edges", edges)
    check_same_device(where, "maps", maps, "edges", edges)
    check_floating(where, "edges", edges)
    if edges.dim() != 1 or edges.shape[0] < 2:
        value_error(where, "edges", "of shape (E,), E >= 2", f"shape {list(edges.shape)}")
    ordered = torch.cat([edges[:1] == edges[:1], edges[1:] >= edges[:-1]])
    _check_values(where, "edges", edges, ordered & edges.isfinite(), "finite and non-decreasing")


def _check_masks(maps: Tensor, masks: Tensor) -> None:
    where = "score_histograms"
    check_tensor(where, "masks", masks)
    check_same_device(where, "maps", maps, "masks", masks)
    if masks.dtype != torch.bool and masks.dtype != torch.uint8:
        type_error(where, "masks", "bool or uint8", f"{masks.dtype}")
    if masks.shape != maps.shape:
        value_error(
            where, "masks", f"of the maps' shape {list(maps.shape)}", f"shape {list(masks.shape)}"
        )


def _level_boxes(maps: Tensor) -> tuple[Tensor, Tensor]:
    _check_level_maps("level_boxes", maps)
    boxes, area2, valid = torch.ops.wsfast.level_boxes(maps.detach())
    _check_images("level_boxes", "maps", valid, "free of NaN", "NaN")
    return boxes, area2


def _level_best_iou(
    maps: Tensor, gt_boxes: Tensor, gt_offsets: Tensor, holes: bool = True
) -> Tensor:
    _check_level_maps("level_best_iou", maps)
    _check_gt(maps, gt_boxes, gt_offsets)
    best, valid = torch.ops.wsfast.level_best_iou(
        maps.detach(), gt_boxes.long(), gt_offsets.long(), holes
    )
    _check_images("level_best_iou", "maps", valid, "free of NaN", "NaN")
    return best


def _score_histograms(maps: Tensor, masks: Tensor, edges: Tensor) -> Tensor:
    where = "score_histograms"
    _check_maps(where, maps)
    check_floating(where, "maps", maps)
    _check_masks(maps, masks)
    _check_edges(maps, edges)
    counts, valid, known = torch.ops.wsfast.score_histograms(
        maps.detach(), masks.to(torch.uint8), edges.detach().double()
    )
    _check_images(where, "maps", valid, "free of NaN", "NaN")
    _check_images(where, "masks", known, "0, 1 or 255 everywhere", "other values")
    return counts


def _threshold_levels(maps: Tensor, thresholds: Tensor) -> Tensor:
    where = "threshold_levels"
    _check_level_maps(where, maps)
    check_tensor(where, "thresholds", thresholds)
    check_same_device(where, "maps", maps, "thresholds", thresholds)
    check_floating(where, "thresholds", thresholds)
    check_rank(where, "thresholds", thresholds, 1)
    fits = (thresholds >= 0) & (thresholds <= 1)
    _check_values(where, "thresholds", thresholds, fits, "between 0 and 1")
    highest = maps.detach().nan_to_num(nan=0.0).flatten(1).amax(dim=1)
    if highest.dtype == torch.float16 or highest.dtype == torch.bfloat16:
        highest = highest.float()
    if highest.dtype != torch.uint8:
        highest = (highest * 255).clamp(0, 255).trunc()
    return (thresholds.detach().double() * highest.double()[:, None]).long()


@scripted_as(_level_boxes)
def level_boxes(maps: Tensor) -> tuple[Tensor, Tensor]:
    r"""The box of the largest contour of {u8 > L} for every level L = 0, ..., 255.

    u8 = trunc(255 x). Equal, level by level, to ``max(contours, key=cv2.contourArea)`` over
    OpenCV's ``findContours(u8 > L, RETR_TREE, CHAIN_APPROX_SIMPLE)`` and to ``boundingRect`` of it:
    contourArea is the polygon through the centres of the border pixels with its holes filled, and
    of equal areas the contour whose first pixel comes last in raster order wins.

    Args:
        maps: (N, H, W) in 0-1, float32, float64, float16 or bfloat16, or uint8 levels; any
            strides, H * W < 2^30 and (H + 2) * (W + 2) < 2^31. Values outside 0-1 are clamped; half
            types count in float32.

    Returns:
        ``boxes`` (N, 256, 4) int32 (x0, y0, x1, y1), half-open, and ``area2`` (N, 256) int32,
        twice the contour's area (0 for lines and single pixels); both -1 where {u8 > L} is empty,
        level 255 always. On the device of ``maps``.

    Raises:
        ValueError: wrong rank, empty or too large maps; on the CPU also NaN in a map. Elsewhere
            NaN counts as 0.
        TypeError: neither floating-point nor uint8.

    Note:
        Not differentiable. Near-linear in N H W, whatever the number of levels. Deterministic. The
        protocol scores min(x1, W - 1) and min(y1, H - 1) as inclusive corners, and [0, 0, 0, 0]
        where a level is empty; :func:`threshold_levels` finds the level of each threshold.

    Example:
        >>> boxes, area2 = level_boxes(torch.tensor([[[0.2, 0.9, 0.9], [0.0, 0.9, 0.9]]]))
        >>> boxes[0, [0, 100, 255]].tolist(), area2[0, [0, 100, 255]].tolist()
        ([[0, 0, 3, 2], [1, 0, 3, 2], [-1, -1, -1, -1]], [3, 2, -1])
    """
    return _level_boxes(maps)


@scripted_as(_level_best_iou)
def level_best_iou(
    maps: Tensor, gt_boxes: Tensor, gt_offsets: Tensor, *, holes: bool = True
) -> Tensor:
    r"""The best IoU of any contour of {u8 > L} with any true box, for every level L = 0, ..., 255.

    u8 = trunc(255 x). As the protocol's MaxBoxAccV2 has it: every contour that OpenCV's
    ``findContours(u8 > L, RETR_TREE, CHAIN_APPROX_SIMPLE)`` returns gives a box, those of holes
    too; ends are clipped to min(x1, W - 1) and min(y1, H - 1); corners count as inclusive in
    areas, IoU = |A n B| / |A u B|; an empty level gives the box [0, 0, 0, 0].

    Args:
        maps: (N, H, W) in 0-1, float32, float64, float16 or bfloat16, or uint8 levels; any
            strides, H * W < 2^30 and (H + 2) * (W + 2) < 2^31. Values outside 0-1 are clamped; half
            types count in float32.
        gt_boxes: (G, 4) int32 or int64 (x0, y0, x1, y1) in pixels, both corners inclusive, as
            the protocol's files have them; those of all images, one after the other.
        gt_offsets: (N + 1,) int32 or int64; image n has rows gt_offsets[n] to gt_offsets[n + 1].
        holes: False leaves out the contours of holes.

    Returns:
        (N, 256) float64 on the device of ``maps``; 0 for an image without true boxes. Best IoU
        >= k / 100 holds exactly where the protocol counts a hit.

    Raises:
        ValueError: wrong shapes, mixed devices, empty or too large maps; on the CPU also NaN in a
            map, boxes with x1 < x0 or negative corners, offsets that do not run from 0 to G.
            Elsewhere NaN counts as 0.
        TypeError: maps neither floating-point nor uint8, boxes or offsets not whole numbers.

    Note:
        Not differentiable. Near-linear in N H W, whatever the number of levels or contours, times
        the true boxes per image where contours are many. Deterministic.

    Example:
        >>> maps = torch.zeros(1, 6, 6)
        >>> maps[0, 1:3, 1:4] = 0.5
        >>> best = level_best_iou(maps, torch.tensor([[1, 1, 4, 3]]), torch.tensor([0, 1]))
        >>> best[0, [0, 126, 127]].tolist()
        [1.0, 1.0, 0.0]
    """
    return _level_best_iou(maps, gt_boxes, gt_offsets, holes)


@scripted_as(_score_histograms)
def score_histograms(maps: Tensor, masks: Tensor, edges: Tensor) -> Tensor:
    r"""Count the scores of background and foreground pixels between edges, over a whole batch.

    Bin i is [e_i, e_i+1), the last one closed, as ``numpy.histogram`` with explicit edges has it;
    the counts behind the protocol's PxAP.

    Args:
        maps: (N, H, W) float32, float64, float16 or bfloat16, any strides; compared unquantised
            as float64.
        masks: (N, H, W) uint8 or bool: 0 background, 1 foreground, 255 ignored.
        edges: (E,) floating-point, finite, non-decreasing, E >= 2; used as float64.

    Returns:
        (2, E - 1) int64 on the device of ``maps``: row 0 background, row 1 foreground. Scores
        outside the edges count nowhere. Sums over batches.

    Raises:
        ValueError: wrong shapes, mixed devices, empty maps; on the CPU also NaN in a map, edges
            that decrease or are not finite, other values in a mask. Elsewhere NaN and such pixels
            count nowhere.
        TypeError: maps or edges not floating-point, masks neither bool nor uint8.

    Note:
        Not differentiable. O(N H W) where edges are spread evenly, with a factor log E at worst.
        Deterministic.

    Example:
        >>> maps = torch.tensor([[[0.0, 0.4, 0.5, 1.0]]])
        >>> masks = torch.tensor([[[0, 1, 255, 1]]], dtype=torch.uint8)
        >>> score_histograms(maps, masks, torch.tensor([0.0, 0.5, 1.0]))
        tensor([[1, 0],
                [1, 1]])
    """
    return _score_histograms(maps, masks, edges)


@scripted_as(_threshold_levels)
def threshold_levels(maps: Tensor, thresholds: Tensor) -> Tensor:
    r"""The level L = trunc(t max u8) of each threshold t for each map, as the protocol has it.

    u8 = trunc(255 x); the product and its truncation happen in float64, with the thresholds as
    they are given: 0.29 is not the nearest double to 29 / 100 times 1 everywhere.

    Args:
        maps: (N, H, W) as for :func:`level_boxes`; NaN counts as 0 on every device.
        thresholds: (T,) floating-point in 0-1; the protocol's are ``numpy.arange(0, 1, 0.001)``.

    Returns:
        (N, T) int64 levels on the device of ``maps``, to gather rows of :func:`level_boxes` and
        :func:`level_best_iou` with.

    Raises:
        ValueError: wrong shapes, mixed devices, empty maps; on the CPU also thresholds outside 0-1.
        TypeError: maps neither floating-point nor uint8, thresholds not floating-point.

    Note:
        Not differentiable. O(N (H W + T)). Deterministic.

    Example:
        >>> maps = torch.tensor([[[0.0, 0.5, 0.8]]])
        >>> threshold_levels(maps, torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64))
        tensor([[  0, 102, 204]])
    """
    return _threshold_levels(maps, thresholds)
