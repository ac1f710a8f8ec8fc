"""From pytorch-grad-cam's objects to this package's."""

from typing import Any

from ..._check import type_error
from .._shared import class_name
from . import methods
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
        methods.EigenCAM,
        methods.EigenGradCAM,
        methods.SegEigenCAM,
    )
}


_OPTIONS = {"FEM": ("k",), "AblationCAM": ("ratio_channels_to_ablate",)}


def accelerate(cam: Any) -> Any:
    """An object of this package with the model and layers of one of pytorch-grad-cam's.

    Args:
        cam: a pytorch-grad-cam object; its hooks on the model are released.

    Raises:
        TypeError: a class that has no counterpart here, as one derived from pytorch-grad-cam's.
        ValueError: an option that is not offered here.
    """
    name = class_name("pytorch_grad_cam", cam)
    if name == "GuidedBackpropReLUModel":
        return GuidedBackpropReLUModel(cam.model, cam.device)
    if name == "FinerCAM":
        base = accelerate(cam.base_cam)
        fast = FinerCAM(base.model, base.target_layers, base.reshape_transform, type(base))
        fast.base_cam = base
        return fast
    if name == "RefineCAM":
        first = cam.base_cam_per_layer[0]
        layers = [layer for base in cam.base_cam_per_layer for layer in base.target_layers]
        kind, options = _described(first)
        refined = RefineCAM(first.model, layers, first.reshape_transform, kind, **options)
        for base in cam.base_cam_per_layer:
            base.activations_and_grads.release()
        return refined
    kind, options = _described(cam)
    found = kind(cam.model, cam.target_layers, cam.reshape_transform, **options)
    found.tta_transforms = cam.tta_transforms
    cam.activations_and_grads.release()
    return found


def _described(cam: Any) -> tuple[type[BaseCAM], dict[str, Any]]:
    """The class that answers for an object, and its options."""
    name = class_name("pytorch_grad_cam", cam)
    if name not in _CLASSES:
        expected = "a pytorch-grad-cam object of " + ", ".join(_CLASSES)
        actual = f"{type(cam).__module__}.{type(cam).__qualname__}"
        type_error("compat.grad_cam.accelerate", "cam", expected, actual)
    return _CLASSES[name], {option: getattr(cam, option) for option in _OPTIONS.get(name, ())}
