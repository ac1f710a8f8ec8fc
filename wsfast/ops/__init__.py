"""The fused ops, one room per op; every public function is importable from here."""

from .fusion import fuse_cams, normalize_cams
from .truncation import (
    positive_percentile,
    truncate_gradients,
    truncated_gradcam,
    truncated_layercam,
)

__all__ = [
    "fuse_cams",
    "normalize_cams",
    "positive_percentile",
    "truncate_gradients",
    "truncated_gradcam",
    "truncated_layercam",
]
