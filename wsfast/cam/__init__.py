"""CAM methods: ``Method(model, layers)(images, target)`` gives a :class:`CAMResult`."""

from .base import CAMMethod
from .filtering import filtered_backprop
from .fullgrad import FullGrad, LTFullGrad
from .gradient import GradCAM, GradCAMPlusPlus, GradientCAM, HiResCAM, LayerCAM, XGradCAM
from .linear import CAM
from .methods import METHODS
from .perturbation import AblationCAM, PerturbationCAM, ScoreCAM
from .result import CAMResult
from .smooth import SmoothGradCAMPlusPlus
from .truncated import RACAM, LTGradCAM, LTLayerCAM, TruncatedCAM

__all__ = [
    "CAM",
    "METHODS",
    "RACAM",
    "AblationCAM",
    "CAMMethod",
    "CAMResult",
    "FullGrad",
    "GradCAM",
    "GradCAMPlusPlus",
    "GradientCAM",
    "HiResCAM",
    "LTFullGrad",
    "LTGradCAM",
    "LTLayerCAM",
    "LayerCAM",
    "PerturbationCAM",
    "ScoreCAM",
    "SmoothGradCAMPlusPlus",
    "TruncatedCAM",
    "XGradCAM",
    "filtered_backprop",
]
