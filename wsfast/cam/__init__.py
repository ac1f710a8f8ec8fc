"""CAM methods: ``Method(model, layers)(images, target)`` gives a :class:`CAMResult`."""

from .methods import METHODS, GradCAM, GradientCAM, LayerCAM, LTGradCAM, LTLayerCAM, TruncatedCAM
from .result import CAMResult

__all__ = [
    "METHODS",
    "CAMResult",
    "GradCAM",
    "GradientCAM",
    "LTGradCAM",
    "LTLayerCAM",
    "LayerCAM",
    "TruncatedCAM",
]
