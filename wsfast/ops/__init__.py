"""The fused ops, one room per op; every public function is importable from here."""

from .boxes import (
    Boxes,
    ScoredBoxes,
    cam_boxes,
    component_boxes,
    connected_components,
    label_boxes,
    otsu_threshold,
    suppress_overlaps,
)
from . import crf
from .fusion import fuse_cams, normalize_cams
from .levels import level_best_iou, level_boxes, score_histograms, threshold_levels
from .truncation import (
    positive_percentile,
    truncate_gradients,
    truncated_gradcam,
    truncated_layercam,
)

__all__ = [
    "Boxes",
    "ScoredBoxes",
    "cam_boxes",
    "component_boxes",
    "connected_components",
    "fuse_cams",
    "label_boxes",
    "level_best_iou",
    "level_boxes",
    "normalize_cams",
    "otsu_threshold",
    "positive_percentile",
    "score_histograms",
    "suppress_overlaps",
    "threshold_levels",
    "truncate_gradients",
    "truncated_gradcam",
    "truncated_layercam",
]
