"""From pytorch-grad-cam's objects to this package's."""

from typing import Any

from ..._check import type_error
from . import eigen, methods
from .base import BaseCAM
from .wrappers import FinerCAM, GuidedBackpropReLUModel, RefineCAM

_CLASSES: dict[str, type[BaseCAM]] = {
    kind.__name__: kind
    for kind in (
        methods.GradCAM,
        methods.HiResCAM,
        methods.GradCAMElementWise,
        methods.GradCAMPlusPlus,
        methods.XGradCAM,
        methods.LayerCAM,
        methods.FullGrad,
        methods.ScoreCAM,
        methods.AblationCAM,
        methods.RandomCAM,
        methods.ShapleyCAM,
        methods.FEM,
        eigen.EigenCAM,
        eigen.EigenGradCAM,
        eigen.SegEigenCAM,
    )
}


def accelerate(cam: Any) -> Any:
    """An object of this package with the model and layers of one of pytorch-grad-cam's.

    Args:
        cam: a pytorch-grad-cam object; its hooks on the model are released.

    Raises:
        TypeError: a class that has no counterpart here.
    """
    name = type(cam).__name__
    if name == "GuidedBackpropReLUModel" and hasattr(cam, "recursive_replace_relu_with_guidedrelu"):
        return GuidedBackpropReLUModel(cam.model, cam.device)
    if name == "FinerCAM" and hasattr(cam, "base_cam"):
        kind, base = _released(cam.base_cam)
        return FinerCAM(base.model, base.target_layers, base.reshape_transform, kind)
    if name == "RefineCAM" and hasattr(cam, "base_cam_per_layer"):
        kinds, bases = zip(*map(_released, cam.base_cam_per_layer), strict=True)
        layers = [layer for base in bases for layer in base.target_layers]
        return RefineCAM(bases[0].model, layers, bases[0].reshape_transform, kinds[0])
    kind, _ = _released(cam)
    options = {"k": cam.k} if kind is methods.FEM else {}
    fast = kind(cam.model, cam.target_layers, cam.reshape_transform, **options)
    fast.tta_transforms = cam.tta_transforms
    return fast


def _released(cam: Any) -> tuple[type[BaseCAM], Any]:
    """The class that answers for an object, and the object without its hooks."""
    kind = _CLASSES.get(type(cam).__name__)
    if kind is None or not hasattr(cam, "activations_and_grads"):
        expected = "a pytorch-grad-cam object of " + ", ".join(_CLASSES)
        type_error("compat.grad_cam.accelerate", "cam", expected, type(cam).__name__)
    assert kind is not None
    cam.activations_and_grads.release()
    return kind, cam
