"""torchcam's extractors, answered by :mod:`wsfast.cam`'s formulas.

Change one line::

    from wsfast.compat.torchcam import GradCAM  # in place of: from torchcam.methods import GradCAM

Same class names, constructors and calls: an extractor hooks its layers when it is made, the caller
runs the model, ``extractor(class_idx, scores)`` gives one (N, h, w) tensor per layer. Or keep the
import and hand an existing object to :func:`accelerate`.

Results follow torchcam 0.5 with what is its own: ``GradCAMpp`` weighs by ``sum(relu(g)^3)``, as the
division of its alpha has no effect there (:class:`wsfast.cam.GradCAMPlusPlus` has the formula);
``SmoothGradCAMpp`` takes activations and the ReLU's gradient from the last noisy copy
(:class:`wsfast.cam.SmoothGradCAMPlusPlus` does not); ``LayerCAM`` takes ``tanh`` before fusing.
``SmoothGradCAMpp`` and ``SSCAM`` draw their noise from torch's global generator on the CPU, in
torchcam's order: the same maps after the same ``torch.manual_seed``. Hooks stay until
``remove_hooks`` or the end of ``with``, as the interface asks for them; without that need use
:mod:`wsfast.cam`.
"""

from typing import Any

from .._shared import OutputTarget, not_offered
from .accelerated import accelerate
from .activation import CAM, ISCAM, SSCAM, ScoreCAM
from .gradient import GradCAM, GradCAMpp, LayerCAM, SmoothGradCAMpp, XGradCAM
from .wrappers import FinerCAM, RefineCAM

__all__ = [
    "CAM",
    "ISCAM",
    "SSCAM",
    "FinerCAM",
    "GradCAM",
    "GradCAMpp",
    "LayerCAM",
    "OutputTarget",
    "RefineCAM",
    "ScoreCAM",
    "SmoothGradCAMpp",
    "XGradCAM",
    "accelerate",
]

_ALTERNATIVES = {"LeGrad": "wsfast.cam.attention_rollout and TSCAM explain transformers"}


def __getattr__(name: str) -> Any:
    not_offered(__name__, name, _ALTERNATIVES)
