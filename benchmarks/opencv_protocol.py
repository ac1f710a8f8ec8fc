"""The localisation protocol in plain OpenCV and NumPy, threshold by threshold: the slow way.

Written from the protocol's description (Choe et al., CVPR 2020): 8-bit maps, ``THRESH_BINARY`` at
trunc(t max), ``findContours`` with ``RETR_TREE``, the largest ``contourArea`` or every contour,
``boundingRect`` with ends clipped to the last pixel, inclusive corners in the IoU.
"""

from collections.abc import Sequence
from itertools import chain

import cv2
import numpy as np

Array = np.ndarray


def levels_of(scoremap: Array, thresholds: Array) -> tuple[Array, list[int]]:
    """The 8-bit map and the level of every threshold."""
    image = (scoremap * 255).astype(np.uint8)
    highest = int(image.max())
    return image, [int(threshold * highest) for threshold in thresholds]


def boxes_at_level(image: Array, level: int, every_contour: bool) -> Array:
    """(K, 4) boxes of one mask, int64."""
    return boxes_of(contours_at_level(image, level, every_contour), image.shape)


def contours_at_level(image: Array, level: int, every_contour: bool) -> Sequence[Array]:
    _, mask = cv2.threshold(image, level, 255, cv2.THRESH_BINARY)
    contours, _ = cv2.findContours(mask, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
    if contours and not every_contour:
        contours = [max(contours, key=cv2.contourArea)]
    return contours


def boxes_of(contours: Sequence[Array], shape: tuple[int, ...]) -> Array:
    """(K, 4) boxes as the protocol scores them, int64; [[0, 0, 0, 0]] without a contour."""
    return corners_of(rectangles(contours), shape)


def rectangles(contours: Sequence[Array]) -> list[Sequence[int]]:
    return [cv2.boundingRect(contour) for contour in contours] or [(0, 0, 0, 0)]


def corners_of(found: Sequence[Sequence[int]], shape: tuple[int, ...]) -> Array:
    height, width = shape
    boxes = np.array(found, np.int64)
    boxes[:, 2] = np.minimum(boxes[:, 0] + boxes[:, 2], width - 1)
    boxes[:, 3] = np.minimum(boxes[:, 1] + boxes[:, 3], height - 1)
    return boxes


def inclusive_iou(boxes: Array, others: Array) -> Array:
    """(K, G) IoU of boxes whose corners both belong to them."""
    a, b = boxes[:, None], others[None]
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]) + 1
    shared = np.maximum(sides, 0).prod(axis=-1)
    areas = [(box[..., 2:] - box[..., :2] + 1).prod(axis=-1) for box in (a, b)]
    return shared / (areas[0] + areas[1] - shared)


def best_iou(
    scoremap: Array, truth: Array, thresholds: Array, *, every_contour: bool, collapse: bool = False
) -> Array:
    """(T,) best IoU at every threshold; ``collapse`` looks at each distinct level once.

    All boxes of a map are scored at once, as the protocol's code does it.
    """
    image, levels = levels_of(scoremap, thresholds)
    places = np.arange(len(levels))
    if collapse:
        distinct, places = np.unique(levels, return_inverse=True)
        levels = distinct.tolist()
    found = [rectangles(contours_at_level(image, level, every_contour)) for level in levels]
    firsts = np.cumsum([0, *map(len, found[:-1])])
    best = inclusive_iou(corners_of(list(chain(*found)), image.shape), truth).max(axis=1)
    return np.maximum.reduceat(best, firsts)[places]


def num_correct(
    scoremaps: Sequence[Array],
    truths: Sequence[Array],
    thresholds: Array,
    iou_levels: Sequence[int],
    *,
    every_contour: bool,
    collapse: bool = False,
) -> Array:
    """(K, T) images with a hit, per IoU level in percent and threshold."""
    counts = np.zeros((len(iou_levels), len(thresholds)), np.int64)
    for scoremap, truth in zip(scoremaps, truths, strict=True):
        best = best_iou(scoremap, truth, thresholds, every_contour=every_contour, collapse=collapse)
        counts += np.stack([best >= level / 100 for level in iou_levels])
    return counts


def pixel_average_precision(
    scores: Sequence[Array], masks: Sequence[Array], thresholds: Array
) -> float:
    """PxAP in 0-1 from NumPy's histograms with explicit edges."""
    edges = np.append(thresholds, [1.0, 2.0, 3.0])
    counts = np.zeros((2, len(edges) - 1), np.int64)
    for score, mask in zip(scores, masks, strict=True):
        for row in (0, 1):
            counts[row] += np.histogram(score[mask == row], edges)[0]
    alarms, hits = (np.cumsum(row[::-1]) for row in counts)
    seen = hits + alarms
    precision, recall = hits / np.maximum(seen, 1), hits / hits[-1]
    return float((precision[1:] * np.diff(recall))[seen[1:] != 0].sum())
