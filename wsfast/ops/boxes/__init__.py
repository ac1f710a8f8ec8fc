"""From maps to boxes: Otsu's threshold, connected components, and boxes with scores, in batches."""

import torch
from torch import Tensor

from ..._check import (
    check_choice,
    check_connectivity,
    check_count,
    check_floating,
    check_free_of_nan,
    check_range,
    check_rank,
    check_same_device,
    check_tensor,
    type_error,
    value_error,
)
from ..._integers import is_integer, saturated_int32
from ..._scripting import scripted_as
from . import reference, registration  # noqa: F401
from .overlaps import suppress_overlaps
from .results import Boxes, ScoredBoxes

__all__ = [
    "Boxes",
    "ScoredBoxes",
    "cam_boxes",
    "cam_thresholds",
    "component_boxes",
    "connected_components",
    "label_boxes",
    "otsu_threshold",
    "suppress_overlaps",
]


def _check_images(where: str, argument: str, tensor: Tensor) -> None:
    check_tensor(where, argument, tensor)
    check_rank(where, argument, tensor, 3)
    if tensor.shape[1] == 0 or tensor.shape[2] == 0:
        value_error(where, argument, "images with H, W >= 1", f"shape {list(tensor.shape)}")


def _check_mask(where: str, mask: Tensor, connectivity: int) -> None:
    _check_images(where, "mask", mask)
    if mask.dtype != torch.bool and mask.dtype != torch.uint8:
        type_error(where, "mask", "bool or uint8", f"{mask.dtype}")
    check_connectivity(where, connectivity)


def _check_labels(where: str, labels: Tensor) -> None:
    _check_images(where, "labels", labels)
    if not is_integer(labels):
        type_error(where, "labels", "integers", f"{labels.dtype}")


def _check_box_limits(where: str, max_boxes: int, min_area: int) -> None:
    check_count(where, "max_boxes", max_boxes, 1)
    check_count(where, "min_area", min_area, 1)


def _otsu_threshold(cams: Tensor, repeat: int = 1) -> Tensor:
    _check_images("otsu_threshold", "cams", cams)
    check_floating("otsu_threshold", "cams", cams)
    check_count("otsu_threshold", "repeat", repeat, 1)
    levels, valid = torch.ops.wsfast.otsu_level(cams.detach(), repeat)
    check_free_of_nan("otsu_threshold", "cams", valid)
    return lowest_above(levels, _threshold_dtype(cams))


def lowest_above(levels: Tensor, dtype: torch.dtype) -> Tensor:
    """The lowest value whose level is above T, (T + 1) / 255 rounded to nearest.

    On CUDA torch divides by a number through its reciprocal, an ulp off, and compiled float32 code
    divides roughly: a map of exact levels would lose one. Doubles by a tensor are divided exactly.
    """
    above = (levels + 1).double()
    return (above / torch.full_like(above, 255.0)).to(dtype)


def _threshold_dtype(cams: Tensor) -> torch.dtype:
    return torch.float64 if cams.dtype == torch.float64 else torch.float32


def _connected_components(mask: Tensor, connectivity: int = 8) -> tuple[Tensor, Tensor]:
    _check_mask("connected_components", mask, connectivity)
    labels, counts = torch.ops.wsfast.connected_components(mask, connectivity)
    return labels, counts


def _component_boxes(
    mask: Tensor, max_boxes: int = 64, connectivity: int = 8, min_area: int = 1
) -> Boxes:
    _check_mask("component_boxes", mask, connectivity)
    _check_box_limits("component_boxes", max_boxes, min_area)
    boxes, areas, counts = torch.ops.wsfast.component_boxes(mask, max_boxes, connectivity, min_area)
    return Boxes(boxes, areas, counts)


def _thresholds(where: str, cams: Tensor, threshold: float | str | Tensor) -> Tensor:
    dtype = _threshold_dtype(cams)
    if isinstance(threshold, str):
        check_choice(where, "threshold", threshold, ["otsu", "otsu2"])
        return _otsu_threshold(cams, 2 if threshold == "otsu2" else 1)
    if isinstance(threshold, Tensor):
        check_tensor(where, "threshold", threshold)
        check_same_device(where, "cams", cams, "threshold", threshold)
        if threshold.dim() != 1 or threshold.shape[0] != cams.shape[0]:
            expected = f"of shape ({cams.shape[0]},)"
            value_error(where, "threshold", expected, f"shape {list(threshold.shape)}")
        return threshold.detach().to(dtype, copy=True)
    check_range(where, "threshold", threshold, -torch.inf, torch.inf)
    return torch.full([cams.shape[0]], float(threshold), dtype=dtype, device=cams.device)


def _cam_thresholds(cams: Tensor, threshold: float | str | Tensor) -> Tensor:
    _check_images("cam_thresholds", "cams", cams)
    check_floating("cam_thresholds", "cams", cams)
    return _thresholds("cam_thresholds", cams, threshold)


def _cam_boxes(
    cams: Tensor,
    threshold: float | str | Tensor = 0.5,
    max_boxes: int = 64,
    connectivity: int = 8,
    min_area: int = 1,
) -> ScoredBoxes:
    _check_images("cam_boxes", "cams", cams)
    check_floating("cam_boxes", "cams", cams)
    check_connectivity("cam_boxes", connectivity)
    _check_box_limits("cam_boxes", max_boxes, min_area)
    thresholds = _thresholds("cam_boxes", cams, threshold)
    boxes, scores, areas, counts, valid = torch.ops.wsfast.cam_boxes(
        cams.detach(), thresholds, max_boxes, connectivity, min_area
    )
    check_free_of_nan("cam_boxes", "cams", valid)
    return ScoredBoxes(boxes, scores, areas, counts)


@scripted_as(_otsu_threshold)
def otsu_threshold(cams: Tensor, *, repeat: int = 1) -> Tensor:
    r"""Otsu's threshold of every map.

    The level T that maximises the between-class variance of trunc(255 x), computed exactly in
    integers, the first of equals (Otsu 1979; equal to OpenCV's ``THRESH_OTSU``).

    Args:
        cams: maps in 0-1, (N, H, W), float32, float64, float16 or bfloat16, any strides. Values
            outside 0-1 are clamped.
        repeat: 2 splits the pixels above the first threshold again, and so on. For small defects
            plain Otsu often cuts inside the background.

    Returns:
        (N,) thresholds (T + 1) / 255, float64 for float64 maps, else float32, such that
        ``cams >= threshold`` is what lies above level T. A map of one level gives 1/255.

    Raises:
        ValueError: wrong rank, empty maps, repeat < 1; on the CPU also NaN in a map. Elsewhere NaN
            counts as 0.
        TypeError: not a floating-point tensor.

    Note:
        Not differentiable. O(N H W). Deterministic.

    Example:
        >>> otsu_threshold(torch.tensor([[[0.0, 0.1, 0.8, 0.9]]])) * 255
        tensor([26.])
    """
    return _otsu_threshold(cams, repeat)


def _label_boxes(labels: Tensor, max_labels: int = 64) -> Boxes:
    _check_labels("label_boxes", labels)
    check_count("label_boxes", "max_labels", max_labels, 1)
    boxes, areas, counts = torch.ops.wsfast.label_boxes(saturated_int32(labels), max_labels)
    return Boxes(boxes, areas, counts)


@scripted_as(_cam_thresholds)
def cam_thresholds(cams: Tensor, threshold: float | str | Tensor) -> Tensor:
    """One threshold per map from any of the forms that :func:`cam_boxes` takes.

    Args:
        cams: maps, (N, H, W), float32, float64, float16 or bfloat16, any strides; in 0-1 for Otsu.
        threshold: a number for all maps, one per map as an (N,) tensor, or ``"otsu"`` or
            ``"otsu2"`` (:func:`otsu_threshold` with ``repeat=2``).

    Returns:
        (N,) t of ``map >= t`` on the maps' device, float64 for float64 maps, else float32.

    Raises:
        ValueError: wrong rank, empty maps, unknown threshold, a number that is NaN, thresholds of
            another shape or device; on the CPU also NaN in a map whose threshold is Otsu's.
        TypeError: not a floating-point tensor, a threshold of another type.

    Note:
        Not differentiable. Deterministic.

    Example:
        >>> cam_thresholds(torch.rand(2, 4, 4), 0.25)
        tensor([0.2500, 0.2500])
    """
    return _cam_thresholds(cams, threshold)


@scripted_as(_connected_components)
def connected_components(mask: Tensor, *, connectivity: int = 8) -> tuple[Tensor, Tensor]:
    """Number the connected components of every mask.

    Args:
        mask: (N, H, W) bool or uint8, non-zero is foreground, any strides.
        connectivity: 4 or 8 neighbours.

    Returns:
        ``labels`` (N, H, W) int32, 0 for the background and 1, 2, ... in raster order of each
        component's first pixel; ``counts`` (N,) int32.

    Raises:
        ValueError: wrong rank, empty images, connectivity other than 4 or 8.
        TypeError: a mask that is neither bool nor uint8.

    Note:
        Not differentiable. Near-linear time for any shape, no recursion. Deterministic.

    Example:
        >>> mask = torch.tensor([[[1, 0, 1], [1, 0, 0], [0, 0, 1]]]) > 0
        >>> connected_components(mask)[0]
        tensor([[[1, 0, 2],
                 [1, 0, 0],
                 [0, 0, 3]]], dtype=torch.int32)
    """
    return _connected_components(mask, connectivity)


@scripted_as(_component_boxes)
def component_boxes(
    mask: Tensor, *, max_boxes: int = 64, connectivity: int = 8, min_area: int = 1
) -> Boxes:
    """Boxes and areas of the connected components of every mask.

    Args:
        mask: (N, H, W) bool or uint8, non-zero is foreground, any strides.
        max_boxes: K, how many components are returned per image.
        connectivity: 4 or 8 neighbours.
        min_area: smaller components are left out, in pixels.

    Returns:
        :class:`Boxes`: the K largest components, area descending, equals in raster order of their
        first pixels.

    Raises:
        ValueError: wrong rank, empty images, limits below 1, connectivity other than 4 or 8.
        TypeError: a mask that is neither bool nor uint8.

    Note:
        Not differentiable. Shapes depend on arguments only: it compiles and exports. Deterministic.

    Example:
        >>> mask = torch.zeros(1, 5, 6, dtype=torch.bool)
        >>> mask[0, 1:3, 2:5] = True
        >>> component_boxes(mask, max_boxes=2)
        Boxes(boxes=tensor([[[ 2,  1,  5,  3],
                 [-1, -1, -1, -1]]], dtype=torch.int32),
              areas=tensor([[ 6, -1]], dtype=torch.int32),
              counts=tensor([1], dtype=torch.int32))
    """
    return _component_boxes(mask, max_boxes, connectivity, min_area)


@scripted_as(_cam_boxes)
def cam_boxes(
    cams: Tensor,
    threshold: float | str | Tensor = 0.5,
    *,
    max_boxes: int = 64,
    connectivity: int = 8,
    min_area: int = 1,
) -> ScoredBoxes:
    """Threshold maps and box what is left, with scores.

    Args:
        cams: maps, (N, H, W), float32, float64, float16 or bfloat16, any strides.
        threshold: t of ``map >= t``: a number, one per map as an (N,) tensor, or ``"otsu"`` or
            ``"otsu2"`` (:func:`otsu_threshold` with ``repeat=2``).
        max_boxes: K, how many components are returned per image.
        connectivity: 4 or 8 neighbours.
        min_area: smaller components are left out, in pixels.

    Returns:
        :class:`ScoredBoxes`: the K largest components, area descending, equals in raster order of
        their first pixels; the score is the mean activation inside the component.

    Raises:
        ValueError: wrong rank, empty maps, unknown threshold (see :func:`cam_thresholds`), limits
            below 1, connectivity other than 4 or 8; on the CPU also NaN in a map. Elsewhere NaN is
            background.
        TypeError: not a floating-point tensor, a threshold of another type.

    Note:
        Not differentiable. Shapes depend on arguments only: it compiles and exports. Deterministic.

    Example:
        >>> cam = torch.tensor([[[0.0, 0.6, 1.0], [0.0, 0.1, 0.0]]])
        >>> found = cam_boxes(cam, 0.5, max_boxes=1)
        >>> found.boxes.tolist(), found.scores.item()
        ([[[1, 0, 3, 1]]], 0.800000011920929)
    """
    return _cam_boxes(cams, threshold, max_boxes, connectivity, min_area)


@scripted_as(_label_boxes)
def label_boxes(labels: Tensor, *, max_labels: int = 64) -> Boxes:
    """The tightest box around every label of label maps, as instance segmentations hold them.

    ``torchvision.ops.masks_to_boxes`` for label maps: no mask per label is made.

    Args:
        labels: (N, H, W), any integer type, any strides; 0 is the background, labels below 0 or
            above ``max_labels`` are left out.
        max_labels: K, boxes of the labels 1 to K are returned.

    Returns:
        :class:`Boxes` in the order of labels: slot k is that of label k + 1, ``-1`` where an image
        does not hold it; ``counts`` is the largest label of each image, at most 2^31 - 1, so
        ``counts > K`` says that labels were left out.

    Raises:
        ValueError: wrong rank, empty images, ``max_labels`` below 1.
        TypeError: labels that are not integers.

    Note:
        Not differentiable. O(N H W). Deterministic. On CUDA made of torch's own operators.

    Example:
        >>> label_boxes(torch.tensor([[[2, 2, 0], [0, 2, 1]]]), max_labels=2).boxes.tolist()
        [[[2, 1, 3, 2], [0, 0, 2, 2]]]
    """
    return _label_boxes(labels, max_labels)
