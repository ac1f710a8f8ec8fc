"""Refinements: dense CRF, and those that MS-CA is compared with.

Superpixels (MS-CS) and watershed (MS-CW) need scikit-image (``pip install wsfast[refine]``),
selective search (MS-CSS) an OpenCV with its contrib modules. These run on the CPU, image by image.
"""

import importlib.util
from typing import Any, Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import ops
from .._check import (
    check_choice,
    check_count,
    check_range,
    check_rank,
    check_tensor,
    value_error,
)

_CONFIDENCE = 1e-3  # of a heat map as a probability: keeps its logits finite
# Weights of the CRF, chosen on generated defects of the training split. mean_field's own, meant for
# objects of half an image, smooth such small regions away.
_BILATERAL_WEIGHT, _SIGMA_RGB = 2.0, 25.0
_REACH = 0.3  # sigma of position in shares of the longer side


def crf_cams(images: Tensor, cams: Tensor) -> Tensor:
    """Move the edges of maps to those of the images: marginals of a dense CRF by mean field.

    Args:
        images: (N, 3 or 1, H, W) uint8, or floating point in 0-255.
        cams: (N, H, W) in 0-1, taken as the probability of foreground.

    Returns:
        (N, H, W) float32 in 0-1.

    Raises:
        ValueError: shapes that do not fit; on the CPU also NaN.
        TypeError: images neither uint8 nor floating point.

    Example:
        >>> image = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
        >>> image[..., 4:] = 200
        >>> crf_cams(image, torch.full((1, 8, 8), 0.5)).shape
        torch.Size([1, 8, 8])
    """
    _check("cam.crf_cams", images, cams)
    foreground = cams.float().clamp(_CONFIDENCE, 1 - _CONFIDENCE)
    logits = torch.stack([1 - foreground, foreground], dim=1).log()
    refined = ops.mean_field(
        logits,
        images,
        bilateral_weight=_BILATERAL_WEIGHT,
        sigma_rgb=_SIGMA_RGB,
        sigma_xy=_REACH * max(images.shape[2:]),
        spatial_weight=0.0,
    )
    return refined[:, 1]


def slic_cams(
    images: Tensor, cams: Tensor, *, segments: int = 400, compactness: float = 10.0
) -> Tensor:
    """Average maps over SLIC superpixels, so that edges follow the image's (MS-CS).

    Args:
        images: (N, 3 or 1, H, W) in 0-1.
        cams: (N, H, W).
        segments: superpixels per image, about (the paper tries 100 to 800).
        compactness: SLIC's weight of distance against colour, 1e-6 to 1e6.

    Returns:
        (N, H, W) float32 on the device of ``cams``: in each superpixel the mean of the map.

    Raises:
        ValueError: shapes that do not fit, ``segments`` below 1, ``compactness`` out of range.
        ImportError: scikit-image is not installed.
    """
    where = "cam.slic_cams"
    _check(where, images, cams)
    check_count(where, "segments", segments, 1)
    check_range(where, "compactness", compactness, 1e-6, 1e6)
    _check_extra(where)
    from skimage.segmentation import slic

    averaged = []
    for picture, cam in zip(_pictures(images), cams.detach().float().cpu().numpy(), strict=True):
        labels = slic(
            picture, n_segments=segments, compactness=compactness, start_label=0, channel_axis=2
        ).ravel()
        sums = np.bincount(labels, cam.ravel().astype(np.float64))
        means = sums / np.maximum(np.bincount(labels), 1)
        averaged.append(means[labels].reshape(cam.shape).astype(np.float32))
    return torch.from_numpy(np.stack(averaged)).to(cams.device)


def watershed_masks(
    images: Tensor, cams: Tensor, *, foreground: float = 0.8, background: float = 0.4
) -> Tensor:
    """Grow masks from sure to unsure pixels up to the image's edges (MS-CW).

    Args:
        images: (N, 3 or 1, H, W) in 0-1.
        cams: (N, H, W) in 0-1.
        foreground: at or above, a pixel is sure to belong to the mask.
        background: below, a pixel is sure not to.

    Returns:
        (N, H, W) bool on the device of ``cams``: the watershed of the image's gradient between
        the two. Without a sure pixel a mask is empty.

    Raises:
        ValueError: shapes that do not fit, thresholds outside 0-1, ``background`` above
            ``foreground``.
        ImportError: scikit-image is not installed.
    """
    where = "cam.watershed_masks"
    _check(where, images, cams)
    check_range(where, "foreground", foreground, 0.0, 1.0)
    check_range(where, "background", background, 0.0, foreground)
    _check_extra(where)
    from skimage.color import rgb2gray
    from skimage.filters import sobel
    from skimage.segmentation import watershed

    masks = []
    for picture, cam in zip(_pictures(images), cams.detach().float().cpu().numpy(), strict=True):
        markers = np.where(cam >= foreground, 2, np.where(cam < background, 1, 0))
        if (markers == 2).any():
            masks.append(watershed(sobel(rgb2gray(picture)), markers) == 2)
        else:
            masks.append(np.zeros(cam.shape, bool))
    return torch.from_numpy(np.stack(masks)).to(cams.device)


def selective_search_boxes(
    images: Tensor,
    cams: Tensor,
    *,
    threshold: float = 0.5,
    mode: Literal["fast", "quality"] = "fast",
    nms: float = 0.5,
    max_boxes: int = 64,
) -> ops.ScoredBoxes:
    """Selective search's proposals that the map fills (MS-CSS).

    The paper does not say how it joins the two. Here a proposal's score is the map's mean inside
    it; proposals of a score of ``threshold`` or more stay, less those that non-maximum suppression
    drops.

    Args:
        images: (N, 3 or 1, H, W) in 0-1.
        cams: (N, H, W).
        threshold: lowest score.
        mode: of the search: colour spaces and similarities few or many.
        nms: a box that overlaps a better-scored one by a larger IoU is dropped.
        max_boxes: proposals per image that go into the suppression, best score first.

    Returns:
        :class:`wsfast.ops.ScoredBoxes` on the device of ``cams``, best score first; ``areas`` are
        the boxes' own.

    Raises:
        ValueError: shapes that do not fit, values out of range.
        ImportError: OpenCV without its contrib modules.

    Note:
        Seconds per image. The proposals come from OpenCV; the order is by score, then by corner.
    """
    where = "cam.selective_search_boxes"
    _check(where, images, cams)
    check_range(where, "threshold", threshold, 0.0, 1.0)
    check_choice(where, "mode", mode, ["fast", "quality"])
    check_range(where, "nms", nms, 0.0, 1.0)
    check_count(where, "max_boxes", max_boxes, 1)
    contrib: Any = getattr(cv2, "ximgproc", None)
    if contrib is None:
        raise ImportError(
            f"wsfast.{where}: needs OpenCV's contrib modules; install "
            "opencv-contrib-python-headless in the place of opencv-python-headless"
        )
    n = len(cams)
    boxes = np.full((n, max_boxes, 4), -1, np.int32)
    scores = np.full((n, max_boxes), -1.0, np.float32)
    counts = np.zeros(n, np.int32)
    maps = cams.detach().float().cpu().numpy()
    for i, (picture, cam) in enumerate(zip(_pictures(images), maps, strict=True)):
        found = _proposals(contrib, np.rint(255 * picture.clip(0, 1)).astype(np.uint8), mode)
        means = _box_means(cam, found)
        order = np.lexsort((*found.T[::-1], -means))
        order = order[means[order] >= threshold][:max_boxes]
        counts[i] = len(order)
        boxes[i, : len(order)] = found[order]
        scores[i, : len(order)] = means[order]
    sides = boxes[..., 2:] - boxes[..., :2]
    areas = np.where(boxes[..., 0] < 0, -1, sides.prod(axis=-1)).astype(np.int32)
    tensors = (torch.from_numpy(a).to(cams.device) for a in (boxes, scores, areas, counts))
    return ops.suppress_overlaps(ops.ScoredBoxes(*tensors), nms)


def _proposals(contrib: Any, picture: NDArray[np.uint8], mode: str) -> NDArray[np.int32]:
    """Distinct boxes (P, 4) of a picture (H, W, 3), half-open."""
    search = contrib.segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(np.ascontiguousarray(picture[..., ::-1]))
    if mode == "fast":
        search.switchToSelectiveSearchFast()
    else:
        search.switchToSelectiveSearchQuality()
    found = np.asarray(search.process(), np.int32).reshape(-1, 4)
    return np.unique(np.concatenate([found[:, :2], found[:, :2] + found[:, 2:]], 1), axis=0)


def _box_means(cam: NDArray[np.float32], boxes: NDArray[np.int32]) -> NDArray[np.float64]:
    """Mean of a map inside each box, from sums over the corner's rectangles."""
    sums = np.zeros((cam.shape[0] + 1, cam.shape[1] + 1))
    sums[1:, 1:] = cam.astype(np.float64).cumsum(0).cumsum(1)
    x0, y0, x1, y1 = boxes.T
    inside = sums[y1, x1] - sums[y0, x1] - sums[y1, x0] + sums[y0, x0]
    means: NDArray[np.float64] = inside / ((x1 - x0) * (y1 - y0))
    return means


def _check_extra(where: str) -> None:
    if importlib.util.find_spec("skimage") is None:
        raise ImportError(f'wsfast.{where}: needs scikit-image; pip install "wsfast[refine]"')


def _check(where: str, images: Tensor, cams: Tensor) -> None:
    for name, tensor, rank in (("images", images, 4), ("cams", cams, 3)):
        check_tensor(where, name, tensor)
        check_rank(where, name, tensor, rank)
    if images.shape[1] not in (1, 3):
        value_error(where, "images", "of 1 or 3 channels", f"{images.shape[1]}")
    if 0 in images.shape:
        shape = f"shape {list(images.shape)}"
        value_error(where, "images", "a batch of at least one image and pixel", shape)
    if (images.shape[0], *images.shape[2:]) != tuple(cams.shape):
        expected = f"of shape {[images.shape[0], *images.shape[2:]]}"
        value_error(where, "cams", expected, f"shape {list(cams.shape)}")


def _pictures(images: Tensor) -> NDArray[Any]:
    """(N, H, W, 3) float32."""
    pictures = images.detach().float().cpu().permute(0, 2, 3, 1).expand(-1, -1, -1, 3)
    return np.ascontiguousarray(pictures.numpy())
