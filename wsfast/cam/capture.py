"""Runs a model once and hands out the activations and gradients of chosen layers.

Hooks live only inside the call. The first layer that runs is cut off from what lies before it (its
output becomes a leaf), so the prefix builds no graph and no gradient flows into it; gradients are
asked for by ``torch.autograd.grad``, so no ``.grad`` is touched and frozen models work.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .._check import value_error


class Capture:
    """Activations of the chosen layers from one forward pass, still tied to the graph."""

    def __init__(self, where: str, layers: dict[str, nn.Module], *, clone: bool) -> None:
        self.where = where
        self.layers = layers
        self.clone = clone
        self.activations: dict[str, Tensor] = {}
        self._versions: dict[str, int] = {}

    def hook(self, name: str) -> Callable[[nn.Module, Any, Any], Tensor]:
        """A forward hook that keeps the layer's output under ``name``; the last call wins."""

        def keep(module: nn.Module, inputs: Any, output: Any) -> Tensor:
            if not isinstance(output, Tensor) or output.dim() != 4:
                shape = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
                value_error(
                    self.where, "layers", f"of (N, C, h, w) outputs; '{name}' is not", f"{shape}"
                )
            if not output.requires_grad:
                torch.set_grad_enabled(True)  # from here on; the caller's mode comes back later
                kept = output.detach().requires_grad_()
                passed_on = kept.clone()  # an in-place op must not reach a leaf
            else:
                kept = output
                passed_on = output.clone() if self.clone else output
            self.activations[name] = kept
            self._versions[name] = kept._version
            return passed_on

        return keep

    def changed_in_place(self) -> bool:
        """Whether a later in-place op overwrote a kept activation."""
        return any(
            self.activations[name]._version != version for name, version in self._versions.items()
        )

    def gradients(self, score: Tensor, *, keep_graph: bool) -> list[Tensor]:
        """Gradient of ``score`` with respect to every layer's activation, in layer order."""
        names = list(self.layers)
        outputs = [self.activations[name] for name in names]
        if not score.requires_grad:
            value_error(self.where, "layers", "layers that the scores depend on", f"{names}")
        grads = torch.autograd.grad(score, outputs, retain_graph=keep_graph, allow_unused=True)
        unused = [name for name, grad in zip(names, grads, strict=True) if grad is None]
        if unused:
            value_error(self.where, "layers", "layers that the scores depend on", f"{unused}")
        return [grad for grad in grads if grad is not None]


@contextmanager
def _hooked(capture: Capture) -> Iterator[None]:
    handles = [
        module.register_forward_hook(capture.hook(name)) for name, module in capture.layers.items()
    ]
    try:
        with torch.no_grad():  # restores the caller's grad mode, whatever the hooks set
            yield
    finally:
        for handle in handles:
            handle.remove()


def run(
    where: str, model: nn.Module, layers: dict[str, nn.Module], images: Tensor
) -> tuple[Capture, Tensor]:
    """One forward pass; activations kept under the layers' names, and the logits.

    A layer whose output is overwritten in place later (``ReLU(inplace=True)``) is protected by a
    copy: at once where the model has such modules, else by a second pass once it is noticed.
    """
    if torch.is_inference_mode_enabled():
        value_error(where, "model", "called outside torch.inference_mode", "inference mode")
    clone = any(getattr(module, "inplace", False) for module in model.modules())
    for attempt in (clone, True):
        capture = Capture(where, layers, clone=attempt)
        with _hooked(capture):
            logits = logits_of(where, model(images), images)
        missing = [name for name in layers if name not in capture.activations]
        if missing:
            value_error(where, "layers", "layers that run in forward", f"{missing}")
        if not capture.changed_in_place():
            break
    return capture, logits


def logits_of(where: str, output: Any, images: Tensor) -> Tensor:
    """The (N, classes) logits in a model's output: itself, its ``logits``, or its first item."""
    if isinstance(output, dict):
        output = output.get("logits", next(iter(output.values()), None))
    elif hasattr(output, "logits"):
        output = output.logits
    elif isinstance(output, (tuple, list)) and output:
        output = output[0]
    if not isinstance(output, Tensor) or output.dim() != 2 or output.shape[0] != images.shape[0]:
        shape = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
        value_error(where, "model", f"a classifier giving ({images.shape[0]}, classes)", f"{shape}")
    assert isinstance(output, Tensor)
    return output
