"""The fused ops, one room per op; every public function is importable from here."""

from .boxes import (
    Boxes,
    ScoredBoxes,
    cam_boxes,
    cam_thresholds,
    component_boxes,
    connected_components,
    label_boxes,
    otsu_threshold,
    suppress_overlaps,
)
from .crf import Lattice, bilateral_lattice, dense_crf_loss, lattice_filter, mean_field
from .fusion import fuse_cams, normalize_cams
from .levels import level_best_iou, level_boxes, score_histograms, threshold_levels
from .seeds import Proposals, blur_outside_boxes, propose_boxes, sample_seeds
from .truncation import (
    positive_percentile,
    truncate_gradients,
    truncated_gradcam,
    truncated_layercam,
)

__all__ = [
    "Boxes",
    "Lattice",
    "Proposals",
    "ScoredBoxes",
    "bilateral_lattice",
    "blur_outside_boxes",
    "cam_boxes",
    "cam_thresholds",
    "component_boxes",
    "connected_components",
    "dense_crf_loss",
    "fuse_cams",
    "label_boxes",
    "lattice_filter",
    "level_best_iou",
    "level_boxes",
    "mean_field",
    "normalize_cams",
    "otsu_threshold",
    "positive_percentile",
    "propose_boxes",
    "sample_seeds",
    "score_histograms",
    "suppress_overlaps",
    "threshold_levels",
    "truncate_gradients",
    "truncated_gradcam",
    "truncated_layercam",
]
