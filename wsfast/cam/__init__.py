"""CAM methods: ``Method(model, layers)(images, target)`` gives a :class:`CAMResult`."""

from .attention import attention_map, attention_rollout, cls_attention, load_attention_model
from .base import CAMMethod
from .filtering import filtered_backprop
from .fullgrad import FullGrad, LTFullGrad
from .gradient import (
    ChannelCAM,
    GradCAM,
    GradCAMPlusPlus,
    GradientCAM,
    HiResCAM,
    LayerCAM,
    XGradCAM,
)
from .linear import CAM
from .methods import METHODS
from .msca import MSCA, MSCAResult
from .multiscale import multiscale
from .perturbation import AblationCAM, PerturbationCAM, ScoreCAM
from .refinement import crf_cams, selective_search_boxes, slic_cams, watershed_masks
from .result import CAMResult
from .smooth import SmoothGradCAMPlusPlus
from .truncated import RACAM, LTGradCAM, LTLayerCAM, TruncatedCAM
from .tscam import TSCAM

__all__ = [
    "CAM",
    "METHODS",
    "MSCA",
    "RACAM",
    "TSCAM",
    "AblationCAM",
    "CAMMethod",
    "CAMResult",
    "ChannelCAM",
    "FullGrad",
    "GradCAM",
    "GradCAMPlusPlus",
    "GradientCAM",
    "HiResCAM",
    "LTFullGrad",
    "LTGradCAM",
    "LTLayerCAM",
    "LayerCAM",
    "MSCAResult",
    "PerturbationCAM",
    "ScoreCAM",
    "SmoothGradCAMPlusPlus",
    "TruncatedCAM",
    "XGradCAM",
    "attention_map",
    "attention_rollout",
    "cls_attention",
    "crf_cams",
    "filtered_backprop",
    "load_attention_model",
    "multiscale",
    "selective_search_boxes",
    "slic_cams",
    "watershed_masks",
]
