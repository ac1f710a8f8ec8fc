"""From torchcam's extractors to this package's."""

from functools import partial
from typing import Any

from torch import nn

from ..._check import type_error
from .._shared import class_name
from . import activation, gradient
from .extractor import Extractor
from .wrappers import FinerCAM, RefineCAM

_CLASSES: dict[str, type[Extractor]] = {
    kind.__name__: kind
    for kind in (
        activation.CAM,
        gradient.GradCAM,
        gradient.GradCAMpp,
        gradient.SmoothGradCAMpp,
        gradient.XGradCAM,
        gradient.LayerCAM,
        activation.ScoreCAM,
        activation.SSCAM,
        activation.ISCAM,
    )
}
_OPTIONS = ("num_samples", "std")


def accelerate(extractor: Any) -> Any:
    """An extractor of this package on the model and layers of one of torchcam's.

    Args:
        extractor: a torchcam extractor; its hooks on the model are removed. Call the model again
            before asking for maps.

    Raises:
        TypeError: a class that has no counterpart here, as one derived from torchcam's.
    """
    name = class_name("torchcam", extractor)
    if name in ("RefineCAM", "FinerCAM"):
        base: Any = extractor.base_cam
        kind, options = _described(base)
        wrapper: Any = RefineCAM
        if name == "FinerCAM":
            finer = {"gamma": extractor.gamma, "num_references": extractor.num_references}
            wrapper = partial(FinerCAM, **finer)
        ours = wrapper(base.model, list(base.target_names), base_method=kind, **options)
    else:
        base = extractor
        kind, options = _described(base)
        ours = kind(base.model, list(base.target_names), **options)
    base.remove_hooks()  # only now: an error leaves the extractor as it was
    return ours


def _described(extractor: Any) -> tuple[type[Extractor], dict[str, Any]]:
    """The class that answers for an extractor, and its options."""
    name = class_name("torchcam", extractor)
    if name not in _CLASSES:
        expected = "a torchcam extractor of " + ", ".join(_CLASSES)
        actual = f"{type(extractor).__module__}.{type(extractor).__qualname__}"
        type_error("compat.torchcam.accelerate", "extractor", expected, actual)
    kind = _CLASSES[name]
    options: dict[str, Any] = {
        "reshape_transform": getattr(extractor, "_reshape_transform", None),
        "enable_hooks": extractor._hooks_enabled,
    }
    options |= {name: getattr(extractor, name) for name in _OPTIONS if hasattr(extractor, name)}
    if kind is activation.CAM:
        weights = extractor._fc_weights
        heads = (
            module
            for module in extractor.model.modules()
            if isinstance(module, (nn.Linear, nn.Conv2d))
            and module.weight.data_ptr() == weights.data_ptr()
        )
        options["fc_layer"] = next(heads, None)
    return kind, options
