"""The fused ops, one room per op; every public function is importable from here."""

from .truncation import (
    positive_percentile,
    truncate_gradients,
    truncated_gradcam,
    truncated_layercam,
)

__all__ = [
    "positive_percentile",
    "truncate_gradients",
    "truncated_gradcam",
    "truncated_layercam",
]
