"""pytorch-grad-cam's classes, answered by :mod:`wsfast.cam`.

Change one line::

    from wsfast.compat.grad_cam import GradCAM  # in place of: from pytorch_grad_cam import GradCAM

Same class names, constructors and calls; ``cam(input_tensor, targets)`` gives a float32 NumPy array
(N, H, W). Or keep the import and hand an existing object to :func:`accelerate`.

A class that defines ``get_cam_weights`` works as it does there, see :class:`BaseCAM`.

What differs: no ``.grad`` is touched and no hook stays on the model; in-place ReLUs do not change
what is captured; fewer targets than images are an error instead of empty maps; ``AblationCAM``
writes zeros, which is pytorch-grad-cam's result behind a ReLU; ``RefineCAM`` smooths where
``eigen_smooth`` says so. ``detach=False`` is not offered (for differentiable maps see
:class:`wsfast.cam.CAMMethod`), nor are volumes and models that are no classifiers.
"""

from typing import Any

from .._shared import not_offered
from .accelerated import accelerate
from .base import BaseCAM
from .methods import (
    FEM,
    AblationCAM,
    EigenCAM,
    EigenGradCAM,
    FullGrad,
    GradCAM,
    GradCAMElementWise,
    GradCAMPlusPlus,
    HiResCAM,
    LayerCAM,
    RandomCAM,
    ScoreCAM,
    SegEigenCAM,
    ShapleyCAM,
    XGradCAM,
)
from .targets import (
    BinaryClassifierOutputTarget,
    ClassifierOutputReST,
    ClassifierOutputSoftmaxTarget,
    ClassifierOutputTarget,
)
from .wrappers import FinerCAM, GuidedBackpropReLUModel, RefineCAM

__all__ = [
    "FEM",
    "AblationCAM",
    "BaseCAM",
    "BinaryClassifierOutputTarget",
    "ClassifierOutputReST",
    "ClassifierOutputSoftmaxTarget",
    "ClassifierOutputTarget",
    "EigenCAM",
    "EigenGradCAM",
    "FinerCAM",
    "FullGrad",
    "GradCAM",
    "GradCAMElementWise",
    "GradCAMPlusPlus",
    "GuidedBackpropReLUModel",
    "HiResCAM",
    "LayerCAM",
    "RandomCAM",
    "RefineCAM",
    "ScoreCAM",
    "SegEigenCAM",
    "ShapleyCAM",
    "XGradCAM",
    "accelerate",
]

_CLASSIFIERS = "wsfast explains classifiers"
_TOKENS = "wsfast.cam.AblationCAM finds the tokens of timm's and torchvision's transformers"
_ALTERNATIVES = {
    "AblationLayer": "wsfast's AblationCAM needs none",
    "AblationLayerVit": _TOKENS,
    "AblationLayerFasterRCNN": _CLASSIFIERS,
    "FasterRCNNBoxScoreTarget": _CLASSIFIERS,
    "SemanticSegmentationTarget": _CLASSIFIERS,
    "ActivationsAndGradients": "wsfast.cam.GradientCAM is the base to derive methods from",
    "DeepFeatureFactorization": "it is no CAM of a class; keep pytorch_grad_cam's",
    "run_dff_on_image": "it is no CAM of a class; keep pytorch_grad_cam's",
    "KPCA_CAM": "EigenCAM is the linear one; keep pytorch_grad_cam's for kernels",
    "SESS": "wsfast.cam.multiscale fuses maps of several image scales",
}


def __getattr__(name: str) -> Any:
    not_offered(__name__, name, _ALTERNATIVES)
