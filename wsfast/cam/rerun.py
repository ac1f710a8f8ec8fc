"""Runs a model again from one of its layers on, for features put in that layer's place.

What ran before the layer is not run again: each of the outermost modules that had finished by then
returns a stand-in. That is a tensor of NaNs where nothing behind the layer looks at it, and the
output it gave for the same image where something does (a shortcut around the layer). Which of them
are looked at is found out by trying, once, against the model's own logits.
"""

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from .borrowing import Replacement, replaced_forwards
from .capture import logits_of, undisturbed

# Beside a module's input and output, what convolutions need to work.
_WORKSPACE = 2


class Rerun:
    """A model from one layer on, for one batch of images.

    Runs without the caller's autocast, unless the model has parameters below float32: in bfloat16 a
    step of the logits is larger than what one channel does to them.

    Args:
        where: name of the calling function, for messages.
        model: the module to run, without wrappers.
        layer: the layer whose output is replaced; where it runs several times, the last one's.
        images: (N, ...) batch.

    Attributes:
        features: the layer's output for it.
    """

    def __init__(self, where: str, model: nn.Module, layer: nn.Module, images: Tensor) -> None:
        self.where = where
        self.model = model
        self.layer = layer
        self._exact = all(parameter.element_size() >= 4 for parameter in model.parameters())
        dtype = torch.promote_types(images.dtype, torch.float32) if self._exact else images.dtype
        self.images = images.to(dtype)
        with self._precision():
            record = _record(where, model, layer, self.images)
        self.features = record.features
        self._logits = record.logits
        self._layer_calls = record.calls_of_layer
        self.bytes_per_image = _WORKSPACE * max(record.largest // len(images), 1)
        self._outputs: dict[nn.Module, list[Tensor]] = {}
        self._kept: set[nn.Module] = set()
        self._plan(record.finished_before)

    def _plan(self, finished: dict[nn.Module, list[Tensor]]) -> None:
        """Choose which modules are skipped, and which of these answer with what they gave."""
        if self._layer_calls != 1:
            return  # its earlier calls have to run
        shapes = {
            module: [output.new_full((), torch.nan).expand_as(output) for output in outputs]
            for module, outputs in finished.items()
        }
        self._outputs = shapes
        if self._agrees():
            return
        self._outputs, self._kept = dict(finished), set(finished)
        if not self._agrees():
            self._outputs, self._kept = {}, set()
            return
        for module in finished:
            self._outputs[module] = shapes[module]
            self._kept.discard(module)
            if not self._agrees():
                self._outputs[module] = finished[module]
                self._kept.add(module)

    def _precision(self) -> AbstractContextManager[Any]:
        device = self.images.device.type
        return torch.autocast(device, enabled=False) if self._exact else nullcontext()

    @property
    def skipped(self) -> int:
        """How many modules are not run again."""
        return len(self._outputs)

    def _agrees(self) -> bool:
        """Whether the layer's own features lead to the model's own logits."""
        # Of one image twice: only then do stand-ins share memory, which an in-place op refuses.
        copies = 2 if len(self.images) == 1 else 1
        features = self.features.repeat(copies, *(1,) * (self.features.dim() - 1))
        try:
            found = self.logits(features, copies)
        except (RuntimeError, ValueError, IndexError, TypeError):
            return False  # a stand-in met something that looks at it
        scale = self._logits.abs().amax().clamp_min(1e-6)
        return bool(((found - self._logits).abs().amax() <= 1e-3 * scale).item())

    def logits(self, features: Tensor, copies: int) -> Tensor:
        """Logits (copies * N, classes) for features (copies * N, ...), versions of the batch."""
        images = self.images[:1].clone().expand(len(features), *self.images.shape[1:])
        if not self._outputs:
            images = self.images.repeat(copies, *(1,) * (self.images.dim() - 1))
        with (
            self._replaced(features, copies),
            undisturbed(self.model, images.device),
            self._precision(),
        ):
            return logits_of(self.where, self.model(images), images)

    def _replaced(self, features: Tensor, copies: int) -> AbstractContextManager[None]:
        """The model with ``features`` as the layer's output and stand-ins before it."""
        if not self._outputs:
            return replaced_forwards([(self.layer, _last_output(self._layer_calls, features))])
        stand_ins = [
            (module, _answered(_stand_ins(outputs, copies, kept=module in self._kept)))
            for module, outputs in self._outputs.items()
        ]
        return replaced_forwards([(self.layer, _answered(lambda _: features)), *stand_ins])


def _stand_ins(outputs: list[Tensor], copies: int, *, kept: bool) -> Callable[[int], Tensor]:
    """From the number of a call to what a skipped module returns."""

    def stand_in(call: int) -> Tensor:
        output = outputs[call % len(outputs)]
        if kept:
            return output.repeat(copies, *(1,) * (output.dim() - 1))
        return output[:1].expand(copies * len(output), *output.shape[1:])

    return stand_in


def _answered(answer: Callable[[int], Tensor]) -> Replacement:
    """A forward whose n-th call returns ``answer(n)``."""
    calls = count()
    return lambda _: lambda *args, **kwargs: answer(next(calls))


def _last_output(last: int, features: Tensor) -> Replacement:
    """A forward whose call number ``last`` returns ``features``."""

    def replacement(own: Callable[..., Any]) -> Callable[..., Any]:
        calls = count(1)

        def forward(*args: Any, **kwargs: Any) -> Any:
            output = own(*args, **kwargs)
            return features if next(calls) == last else output

        return forward

    return replacement


class _Record:
    """What one forward pass shows about a layer and the modules before it."""

    features: Tensor
    logits: Tensor

    def __init__(self) -> None:
        self.calls_of_layer = 0
        self.largest = 0
        self.finished_before: dict[nn.Module, list[Tensor]] = {}


def _record(where: str, model: nn.Module, layer: nn.Module, images: Tensor) -> _Record:
    """Run the model once and note the outermost modules that finish before the layer begins.

    A module that also runs later, or whose output is no tensor, is not among them.
    """
    record = _Record()
    outputs: dict[nn.Module, list[Tensor]] = {}
    inside = set(layer.modules()) - {layer}
    thread = threading.get_ident()

    def enter(module: nn.Module, inputs: Any) -> None:
        if threading.get_ident() != thread:
            return  # somebody else's forward pass
        if module is layer:
            record.calls_of_layer += 1
            if record.calls_of_layer == 1:
                record.finished_before.update(outputs)
        record.finished_before.pop(module, None)

    def leave(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if threading.get_ident() != thread:
            return
        if module is layer:
            record.features = output.clone()  # an in-place op may follow
        if record.calls_of_layer:
            record.largest = max(record.largest, _bytes(inputs, output))
        for child in module.modules():
            if child is not module:
                outputs.pop(child, None)  # the module stands for what is inside it
        by_image = isinstance(output, Tensor) and output.shape[:1] == images.shape[:1]
        if by_image and record.calls_of_layer == 0:
            outputs.setdefault(module, []).append(output)

    handles = []
    try:
        for module in model.modules():
            if module not in inside:
                handles.append(module.register_forward_pre_hook(enter))
                handles.append(module.register_forward_hook(leave))
        with undisturbed(model, images.device):
            # A model may normalise its input in place.
            record.logits = logits_of(where, model(images.clone()), images)
    finally:
        for handle in handles:
            handle.remove()
    record.finished_before.pop(layer, None)
    return record


def bytes_per_image(model: nn.Module, images: Tensor) -> int:
    """Memory that a forward pass without gradients takes per image, roughly.

    The largest input and output of a module, with room for what convolutions need to work.
    """
    largest = [0]
    thread = threading.get_ident()

    def leave(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if threading.get_ident() != thread:
            return  # somebody else's forward pass
        largest[0] = max(largest[0], _bytes(inputs, output))

    handles = [module.register_forward_hook(leave) for module in model.modules()]
    try:
        with undisturbed(model, images.device):
            model(images[:1].clone())  # it may normalise its input in place
    finally:
        for handle in handles:
            handle.remove()
    return _WORKSPACE * max(largest[0], 1)


def _bytes(inputs: tuple[Any, ...], output: Any) -> int:
    return sum(value.nbytes for value in (*inputs, output) if isinstance(value, Tensor))
