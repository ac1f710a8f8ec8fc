"""What the extractors share: hooks, checks, normalisation and fusion."""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ... import ops
from ..._check import type_error, value_error
from ...cam.capture import undisturbed
from .._shared import Managed, OutputTarget, per_image_scores

Layer = nn.Module | str

_logger = logging.getLogger(__name__)


class Extractor(Managed):
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

    @property
    def _layers(self) -> list[nn.Module]:
        """The target layers themselves: wsfast.cam looks into a wrapper, where names differ."""
        return [self.submodule_dict[name] for name in self.target_names]

    def _names(
        self, target_layer: Layer | list[Layer] | None, input_shape: tuple[int, ...]
    ) -> list[str]:
        if target_layer is None:
            name = last_spatial_layer(self._where, self.model, input_shape)
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

    @contextmanager
    def _hooks(self, *, enabled: bool) -> Iterator[None]:
        before = self._hooks_enabled
        self._hooks_enabled = enabled
        try:
            yield
        finally:
            self._hooks_enabled = before

    def _hooks_off(self) -> AbstractContextManager[None]:
        """Let the model's calls pass for a while; torchcam.metrics asks for it by this name."""
        return self._hooks(enabled=False)

    def reset_hooks(self) -> None:
        """Forget what the last call has left."""
        self._outputs: list[Tensor | None] = [None] * len(self.target_names)

    def remove_hooks(self) -> None:
        """Take the hooks off the model."""
        for handle in self.hook_handles:
            handle.remove()
        self.hook_handles.clear()

    def _leave(self) -> None:
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
            scores: the model's output of that call, (N, classes).
            normalized: scale each map to 0-1 (at the layer's size).
            targets: in place of classes, callables from an image's scores to a scalar.
            retain_graph: keep the graph for another call on the same scores.

        Returns:
            (N, h, w) per layer.

        Raises:
            AssertionError: the model has not been called yet.
            ValueError: not exactly one of ``class_idx`` and ``targets``, another number of either
                than images, no scores where they are needed, layers without (N, C, h, w) outputs.
            ClassIndexError: a class that the model does not have.
            TypeError: scores that are no tensor, nor a list of the images' with ``targets``.
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
        for name, output in zip(self.target_names, outputs, strict=True):
            self._check_output(name, output)
        batch = len(outputs[0])  # type: ignore[arg-type]
        for name, value in (("class_idx", class_idx), ("targets", targets)):
            if isinstance(value, list) and len(value) != batch:
                value_error(self._where, name, f"one per image ({batch})", f"{len(value)}")
        numbers = class_idx if isinstance(class_idx, list) else [class_idx]
        if targets is None and any(not isinstance(i, int) or i < 0 for i in numbers):
            expected = "class numbers of 0 or more, an int or a list of them"
            value_error(self._where, "class_idx", expected, f"{class_idx!r}")
        if self.uses_scores and scores is None:
            value_error(self._where, "scores", "the model's output", "None")
        if self.uses_scores and not isinstance(
            scores, Tensor if targets is None else (Tensor, list)
        ):
            expected = "a tensor" + ("" if targets is None else " or a list with an item per image")
            type_error(self._where, "scores", expected, type(scores).__name__)

    def _check_output(self, name: str, output: object) -> None:
        maps = self._as_maps(output) if isinstance(output, Tensor) else None
        if maps is None or maps.dim() != 4:
            expected = "of (N, C, h, w) outputs (reshape_transform= makes such of others)"
            actual = type(output).__name__ if maps is None else f"shape {list(maps.shape)}"
            value_error(self._where, "target_layer", expected, f"{actual} from '{name}'")

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


class InputExtractor(Extractor):
    """An extractor that runs the model again on the images of its last call."""

    uses_scores = False

    def __init__(
        self,
        model: nn.Module,
        target_layer: Layer | list[Layer] | None = None,
        input_shape: tuple[int, ...] = (3, 224, 224),
        **kwargs: Any,
    ) -> None:
        super().__init__(model, target_layer, input_shape, **kwargs)
        self._input: Tensor | None = None
        self.hook_handles.append(model.register_forward_pre_hook(self._keep_input))

    def _keep_input(self, module: nn.Module, inputs: Sequence[Any]) -> None:
        if self._hooks_enabled:
            self._input = inputs[0].detach().clone()  # the model or the caller may write to it

    @contextmanager
    def watching_nothing(self) -> Iterator[Tensor]:
        """The images, while the model's calls pass unwatched."""
        assert self._input is not None
        with self._hooks_off():
            yield self._input


class ClassIndexError(IndexError, RuntimeError):
    """A class that the model does not have: torchcam raises one of the two, by the index's kind."""


def check_classes(where: str, class_idx: int | list[int], classes: int) -> None:
    """Raise ClassIndexError for a class that the model does not have."""
    numbers = class_idx if isinstance(class_idx, list) else [class_idx]
    if any(number >= classes for number in numbers):
        expected = f"class numbers from 0 to {classes - 1}"
        raise ClassIndexError(f"wsfast.{where}: class_idx must be {expected}, got {class_idx}")


def image_scores(where: str, scores: Tensor, class_idx: Any, targets: Any) -> Tensor:
    """(N,) scores to explain, from the model's output and what was asked for.

    Raises:
        ClassIndexError: a class that there is not.
    """
    if targets is not None:
        return per_image_scores(where, as_list(targets, len(scores)), scores)
    check_classes(where, class_idx, scores.shape[1])
    if isinstance(class_idx, int):
        return scores[:, class_idx]
    return scores.gather(1, torch.tensor(class_idx, device=scores.device)[:, None])[:, 0]


def as_list(targets: Any, batch: int) -> list[OutputTarget]:
    """One callable per image."""
    return targets if isinstance(targets, list) else [targets] * batch


def last_spatial_layer(where: str, model: nn.Module, input_shape: tuple[int, ...]) -> str:
    """The layer that finishes last among those of more than one pixel."""
    found: list[str] = []
    thread = threading.get_ident()  # not somebody else's forward pass

    def keep(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if threading.get_ident() != thread:
            return
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
