"""All methods by name."""

from .base import CAMMethod
from .fullgrad import FullGrad, LTFullGrad
from .gradient import GradCAM, GradCAMPlusPlus, HiResCAM, LayerCAM, XGradCAM
from .linear import CAM
from .perturbation import AblationCAM, ScoreCAM
from .smooth import SmoothGradCAMPlusPlus
from .truncated import RACAM, LTGradCAM, LTLayerCAM

METHODS: dict[str, type[CAMMethod]] = {
    method.__name__.lower(): method
    for method in (
        CAM,
        GradCAM,
        GradCAMPlusPlus,
        SmoothGradCAMPlusPlus,
        XGradCAM,
        HiResCAM,
        LayerCAM,
        FullGrad,
        ScoreCAM,
        AblationCAM,
        LTGradCAM,
        LTLayerCAM,
        LTFullGrad,
        RACAM,
    )
}
"""Every CAM method by the name that commands and settings have for it, its class's in lower case.

``cam``, ``gradcam``, ``gradcamplusplus``, ``smoothgradcamplusplus``, ``xgradcam``, ``hirescam``,
``layercam``, ``fullgrad``, ``scorecam``, ``ablationcam``, ``ltgradcam``, ``ltlayercam``,
``ltfullgrad``, ``racam``.
"""
