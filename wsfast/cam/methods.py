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
