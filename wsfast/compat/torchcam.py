"""torchcam's extractors, answered by :mod:`wsfast.cam`'s formulas.

Change one line::

    from wsfast.compat.torchcam import GradCAM  # in place of: from torchcam.methods import GradCAM

Same class names, constructors and calls: an extractor hooks its layers when it is made, the caller
runs the model, ``extractor(class_idx, scores)`` gives one (N, h, w) tensor per layer. Or keep the
import and hand an existing object to :func:`accelerate`.

Results follow torchcam 0.5, with two of its own: ``GradCAMpp`` weighs by ``sum(relu(g)^3)``, as the
division of its alpha has no effect there (:class:`wsfast.cam.GradCAMPlusPlus` has the formula), and
``LayerCAM`` takes ``tanh`` before fusing. Hooks stay until ``remove_hooks`` or the end of ``with``,
as the interface asks for them; without that need use :mod:`wsfast.cam`.
"""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from .. import cam as methods
from .. import ops
from .._check import type_error, value_error
from ..cam import CAMMethod, GradientCAM
from ..cam.base import weighted_sum
from ..cam.capture import undisturbed

__all__ = ["CAM", "GradCAM", "GradCAMpp", "LayerCAM", "ScoreCAM", "XGradCAM", "accelerate"]

Layer = nn.Module | str
OutputTarget = Callable[[Tensor], Tensor]

_logger = logging.getLogger(__name__)


class _Extractor:
    """What the extractors share.

    Args:
        model: the model whose calls are watched.
        target_layer: layers by name or as modules; None takes the last one of several pixels.
        input_shape: of an image, for that choice.
        enable_hooks: watch from the start.
        reshape_transform: from a layer's output to (N, C, h, w).
    """

    uses_scores = True

    def __init__(
        self,
        model: nn.Module,
        target_layer: Layer | list[Layer] | None = None,
        input_shape: tuple[int, ...] = (3, 224, 224),
        enable_hooks: bool = True,
        reshape_transform: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self._where = f"compat.torchcam.{type(self).__name__}"
        self.submodule_dict = dict(model.named_modules())
        self.model = model
        self.target_names = self._names(target_layer, input_shape)
        self._reshape = reshape_transform
        self._hooks_enabled = enable_hooks
        self.reset_hooks()
        self.hook_handles = [
            self.submodule_dict[name].register_forward_hook(partial(self._keep, i))
            for i, name in enumerate(self.target_names)
        ]

    def _names(
        self, target_layer: Layer | list[Layer] | None, input_shape: tuple[int, ...]
    ) -> list[str]:
        if target_layer is None:
            name = _last_spatial_layer(self._where, self.model, input_shape)
            _logger.warning("no value was provided for `target_layer`, thus set to '%s'.", name)
            return [name]
        layers = target_layer if isinstance(target_layer, list) else [target_layer]
        return [self._name(layer) for layer in layers]

    def _name(self, layer: object) -> str:
        if isinstance(layer, str):
            if layer not in self.submodule_dict:
                value_error(self._where, "target_layer", "names of modules", f"'{layer}'")
            return layer
        if not isinstance(layer, nn.Module):
            type_error(self._where, "target_layer", "names or modules", type(layer).__name__)
        for name, module in self.submodule_dict.items():
            if module is layer:
                return name
        value_error(self._where, "target_layer", "modules of the model", "another one")
        raise AssertionError  # value_error always raises

    def _keep(self, index: int, module: nn.Module, inputs: Any, output: Tensor) -> None:
        if self._hooks_enabled:
            self._outputs[index] = output

    def enable_hooks(self) -> None:
        """Watch the model's calls."""
        self._hooks_enabled = True

    def disable_hooks(self) -> None:
        """Let the model's calls pass."""
        self._hooks_enabled = False

    def reset_hooks(self) -> None:
        """Forget what the last call has left."""
        self._outputs: list[Tensor | None] = [None] * len(self.target_names)

    def remove_hooks(self) -> None:
        """Take the hooks off the model."""
        for handle in self.hook_handles:
            handle.remove()
        self.hook_handles.clear()

    def __enter__(self) -> Self:
        """The extractor."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Take the hooks off the model."""
        self.remove_hooks()
        self.reset_hooks()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(target_layer={self.target_names})"

    def __call__(
        self,
        class_idx: int | list[int] | None = None,
        scores: Any = None,
        normalized: bool = True,
        *,
        targets: OutputTarget | list[OutputTarget] | None = None,
        retain_graph: bool = False,
    ) -> list[Tensor]:
        """Maps of the model's last call.

        Args:
            class_idx: one class, or one per image.
            scores: the model's output of that call.
            normalized: scale each map to 0-1 (at the layer's size).
            targets: in place of classes, callables from an image's scores to a scalar.
            retain_graph: keep the graph for another call on the same scores.

        Returns:
            (N, h, w) per layer.

        Raises:
            AssertionError: the model has not been called yet.
            ValueError: not exactly one of ``class_idx`` and ``targets``, another number of either
                than images, no scores where they are needed.
            RuntimeError: scores without a graph to the layers.
        """
        self._check(class_idx, scores, targets)
        maps = self._maps(class_idx, scores, targets, retain_graph)
        if not normalized:
            return maps
        return [ops.normalize_cams(layer.nan_to_num(), eps=1e-8) for layer in maps]

    def _check(self, class_idx: Any, scores: Any, targets: Any) -> None:
        if (class_idx is None) == (targets is None):
            value_error(self._where, "class_idx", "given, or targets, but not both", "otherwise")
        outputs = self._outputs
        if any(output is None for output in outputs):
            raise AssertionError(f"wsfast.{self._where}: the model has to be called first")
        batch = len(outputs[0])  # type: ignore[arg-type]
        for name, value in (("class_idx", class_idx), ("targets", targets)):
            if isinstance(value, list) and len(value) != batch:
                value_error(self._where, name, f"one per image ({batch})", f"{len(value)}")
        numbers = class_idx if isinstance(class_idx, list) else [class_idx]
        if targets is None and any(not isinstance(i, int) or i < 0 for i in numbers):
            value_error(self._where, "class_idx", "class numbers of 0 or more", f"{class_idx}")
        if self.uses_scores and scores is None:
            value_error(self._where, "scores", "the model's output", "None")

    def _activations(self) -> list[Tensor]:
        return [self._as_maps(output.detach()) for output in self._outputs if output is not None]

    def _as_maps(self, output: Tensor) -> Tensor:
        return output if self._reshape is None else self._reshape(output)

    def _maps(self, class_idx: Any, scores: Any, targets: Any, retain_graph: bool) -> list[Tensor]:
        """Maps of the layers, not normalised."""
        raise NotImplementedError

    @classmethod
    def fuse_cams(cls, cams: list[Tensor], target_shape: tuple[int, int] | None = None) -> Tensor:
        """The maximum over layers, resized to the largest of them or to ``target_shape``.

        Raises:
            TypeError: not a list of tensors.
            ValueError: an empty list.
        """
        where = f"compat.torchcam.{cls.__name__}.fuse_cams"
        if not isinstance(cams, list) or any(not isinstance(cam, Tensor) for cam in cams):
            type_error(where, "cams", "a list of tensors", type(cams).__name__)
        if not cams:
            value_error(where, "cams", "a list of at least one tensor", "an empty list")
        if len(cams) == 1:
            return cams[0]
        largest = (max(cam.shape[1] for cam in cams), max(cam.shape[2] for cam in cams))
        scaled = [cls._scale(cam) for cam in cams]
        return ops.fuse_cams(
            scaled, target_shape or largest, layer_norm=None, reduce="max", norm=None
        )

    @staticmethod
    def _scale(cam: Tensor) -> Tensor:
        return cam


def _last_spatial_layer(where: str, model: nn.Module, input_shape: tuple[int, ...]) -> str:
    """The layer that finishes last among those of more than one pixel."""
    found: list[str] = []

    def keep(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.dim() == len(input_shape) + 1:
            found.extend([name] if any(side != 1 for side in output.shape[2:]) else [])

    handles = [m.register_forward_hook(partial(keep, name)) for name, m in model.named_modules()]
    try:
        image = torch.zeros(1, *input_shape, device=next(model.parameters()).device)
        with undisturbed(model, image.device):
            model(image)
    finally:
        for handle in handles:
            handle.remove()
    if not found or not found[-1]:
        value_error(where, "target_layer", "given for this model", "None")
    return found[-1]


def _score(scores: Tensor, class_idx: Any, targets: Any) -> Tensor:
    """What to differentiate."""
    if targets is not None:
        chosen = targets if isinstance(targets, list) else [targets] * len(scores)
        return torch.stack(
            [target(row).reshape(()) for target, row in zip(chosen, scores, strict=True)]
        ).sum()
    if isinstance(class_idx, int):
        return scores[:, class_idx].sum()
    columns = torch.tensor(class_idx, device=scores.device)[:, None]
    return scores.gather(1, columns).sum()


class _GradientExtractor(_Extractor):
    """An extractor whose maps are a formula on activations and gradients."""

    formula: type[GradientCAM]

    def __init__(
        self,
        model: nn.Module,
        target_layer: Layer | list[Layer] | None = None,
        input_shape: tuple[int, ...] = (3, 224, 224),
        **kwargs: Any,
    ) -> None:
        super().__init__(model, target_layer, input_shape, **kwargs)
        self._formula = self.formula(model, list(self.target_names))

    def _maps(self, class_idx: Any, scores: Any, targets: Any, retain_graph: bool) -> list[Tensor]:
        outputs = [output for output in self._outputs if output is not None]
        score = _score(scores, class_idx, targets)
        try:
            grads = torch.autograd.grad(score, outputs, retain_graph=retain_graph)
        except RuntimeError as error:
            message = f"wsfast.{self._where}: the scores have no graph to every target layer"
            raise RuntimeError(message) from error
        with torch.no_grad():
            return [
                self._formula.layer_map(a, self._as_maps(g)).to(a.dtype)
                for a, g in zip(self._activations(), grads, strict=True)
            ]


class GradCAM(_GradientExtractor):
    """:class:`wsfast.cam.GradCAM`."""

    formula = methods.GradCAM


class _Cubed(GradientCAM):
    """``relu(sum_k w_k A_k)`` with ``w_k = sum(relu(g_k)^3)``."""

    def layer_map(self, activations: Tensor, grads: Tensor) -> Tensor:
        weights = grads.float().relu().pow_(3).sum(dim=(2, 3))
        return weighted_sum(weights, activations).relu_()


class GradCAMpp(_GradientExtractor):
    """Weights ``sum(relu(g)^3)``, see the top of this module."""

    formula = _Cubed


class XGradCAM(_GradientExtractor):
    """:class:`wsfast.cam.XGradCAM`."""

    formula = methods.XGradCAM


class LayerCAM(_GradientExtractor):
    """:class:`wsfast.cam.LayerCAM`; layers are fused after ``tanh(2 x)``."""

    formula = methods.LayerCAM

    @staticmethod
    def _scale(cam: Tensor) -> Tensor:
        return torch.tanh(2 * cam)


class CAM(_Extractor):
    """The classifier's own weights, negative parts kept.

    Args:
        model: see :class:`_Extractor`.
        target_layer: one layer.
        fc_layer: the linear layer (or 1 x 1 convolution); None takes the only one there is.
        input_shape: see :class:`_Extractor`.
        kwargs: see :class:`_Extractor`.
    """

    uses_scores = False

    def __init__(
        self,
        model: nn.Module,
        target_layer: Layer | list[Layer] | None = None,
        fc_layer: Layer | None = None,
        input_shape: tuple[int, ...] = (3, 224, 224),
        **kwargs: Any,
    ) -> None:
        super().__init__(model, target_layer, input_shape, **kwargs)
        if len(self.target_names) > 1:
            value_error(self._where, "target_layer", "one layer", f"{self.target_names}")
        self._head = self.submodule_dict[self._head_name(fc_layer)]

    def _head_name(self, fc_layer: Layer | None) -> str:
        if fc_layer is not None:
            return self._name(fc_layer)
        linear = [n for n, module in self.submodule_dict.items() if isinstance(module, nn.Linear)]
        if len(linear) != 1:
            expected = "given for a model without exactly one linear layer"
            value_error(self._where, "fc_layer", expected, f"None ({len(linear)} layers)")
        return linear[0]

    @torch.no_grad()
    def _maps(self, class_idx: Any, scores: Any, targets: Any, retain_graph: bool) -> list[Tensor]:
        if targets is not None:
            value_error(self._where, "targets", "None for this method", "callables")
        (activations,) = self._activations()
        weight: Tensor = self._head.weight
        rows = [class_idx] * len(activations) if isinstance(class_idx, int) else class_idx
        return [weighted_sum(weight.flatten(1)[rows].float(), activations).to(activations.dtype)]


class _NormalizedFirst(methods.ScoreCAM):
    """Score-CAM whose masks are normalised before they are resized."""

    def _masks(self, activations: Tensor, images: Tensor) -> Tensor:
        size = (images.shape[2], images.shape[3])
        return ops.fuse_cams(
            [activations.to(images.device)], size, reduce="sum", norm=None, eps=1e-8
        )


class ScoreCAM(_Extractor):
    """:class:`wsfast.cam.ScoreCAM` on masks that are normalised before they are resized.

    Args:
        model: see :class:`_Extractor`.
        target_layer: see :class:`_Extractor`.
        batch_size: taken and ignored: groups of channels follow the memory.
        input_shape: see :class:`_Extractor`.
        kwargs: see :class:`_Extractor`.
    """

    uses_scores = False

    def __init__(
        self,
        model: nn.Module,
        target_layer: Layer | list[Layer] | None = None,
        batch_size: int = 32,
        input_shape: tuple[int, ...] = (3, 224, 224),
        **kwargs: Any,
    ) -> None:
        super().__init__(model, target_layer, input_shape, **kwargs)
        self.bs = batch_size
        self._method: CAMMethod = _NormalizedFirst(
            model, list(self.target_names), reshape=self._reshape
        )
        self._input: Tensor | None = None
        self.hook_handles.append(model.register_forward_pre_hook(self._keep_input))

    def _keep_input(self, module: nn.Module, inputs: Sequence[Any]) -> None:
        if self._hooks_enabled:
            self._input = inputs[0].detach()

    def _maps(self, class_idx: Any, scores: Any, targets: Any, retain_graph: bool) -> list[Tensor]:
        assert self._input is not None
        target = class_idx
        if targets is not None:
            chosen = targets if isinstance(targets, list) else [targets] * len(self._input)

            def target(logits: Tensor) -> Tensor:
                pairs = zip(chosen, logits, strict=True)
                return torch.stack([function(row).reshape(()) for function, row in pairs])

        before = self._hooks_enabled
        self._hooks_enabled = False
        try:
            return self._method(self._input, target).per_layer
        finally:
            self._hooks_enabled = before


_CLASSES: dict[str, type[_Extractor]] = {
    kind.__name__: kind for kind in (CAM, GradCAM, GradCAMpp, XGradCAM, LayerCAM, ScoreCAM)
}


def accelerate(extractor: Any) -> Any:
    """An extractor of this module on the model and layers of one of torchcam's.

    Args:
        extractor: a torchcam extractor; its hooks on the model are removed. Call the model again
            before asking for maps.

    Raises:
        TypeError: a class that has no counterpart here.
    """
    kind = _CLASSES.get(type(extractor).__name__)
    if kind is None or not hasattr(extractor, "target_names"):
        expected = "a torchcam extractor of " + ", ".join(_CLASSES)
        type_error("compat.torchcam.accelerate", "extractor", expected, type(extractor).__name__)
    assert kind is not None
    options: dict[str, Any] = {
        "reshape_transform": getattr(extractor, "_reshape_transform", None),
        "enable_hooks": extractor._hooks_enabled,
    }
    if kind is CAM:
        weights = extractor._fc_weights
        heads = (
            module
            for module in extractor.model.modules()
            if isinstance(module, (nn.Linear, nn.Conv2d))
            and module.weight.data_ptr() == weights.data_ptr()
        )
        options["fc_layer"] = next(heads, None)
    extractor.remove_hooks()
    return kind(extractor.model, list(extractor.target_names), **options)
