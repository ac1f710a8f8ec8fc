"""Runs a model once and hands out the activations and gradients of chosen layers.

Hooks live only inside the call. The first layer that runs is cut off from what lies before it, so
the prefix builds no graph and no gradient flows into it; gradients are asked for by
``torch.autograd.grad`` at the layers alone, so no ``.grad`` is touched and frozen models work.

Nothing is copied: a layer's output goes on as it is. What an in-place op does to it afterwards
(``ReLU(inplace=True)``) cannot change the gradient, which is asked for at the point of the graph
where the layer ended, and shows in the tensor's version, whereupon the pass is run again with a
private copy of that layer's output. The copy is remembered for later calls.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from .._check import type_error, value_error


class _StartGraph(torch.autograd.Function):
    """Makes a tensor without history the start of a graph: no copy and no view.

    A leaf or a view of one would refuse the in-place op that may follow. Writing "in place" to the
    tensor, with a second input that requires grad, gives it a place in the graph instead.
    """

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, switch: Tensor) -> Tensor:
        ctx.mark_dirty(tensor)
        return tensor

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None]:
        return None, None


class LayerCapture:
    """Runs a model and keeps the outputs of some of its layers.

    Args:
        where: name of the calling function, for messages.
        model: the module to run, without wrappers.
        layers: modules of ``model`` by name.
    """

    def __init__(self, where: str, model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
        self.where = where
        self.model = model
        self.layers = dict(layers)
        self._overwritten: set[str] = set()

    def run(self, images: Tensor) -> "Captured":
        """One forward pass under the caller's autocast, in evaluation mode.

        Raises:
            ValueError: inference mode; a layer that does not run or whose last output is not an
                (N, C, h, w) floating-point tensor; a model whose output is not (N, classes).
        """
        if torch.is_inference_mode_enabled():
            value_error(
                self.where, "model", "called outside torch.inference_mode", "inference mode"
            )
        if images.is_inference():
            images = images.clone()  # autograd cannot keep inference tensors
        captured = self._forward(images)
        while overwritten := captured.overwritten():
            self._overwritten |= overwritten
            del captured  # its graph must not stay alive next to the second one
            captured = self._forward(images)
        return captured

    def _forward(self, images: Tensor) -> "Captured":
        captured = Captured(self.where, list(self.layers), self._overwritten)
        handles: list[torch.utils.hooks.RemovableHandle] = []
        try:
            for name, module in self.layers.items():
                handles.append(module.register_forward_hook(captured.hook(name)))
            with undisturbed(self.model, images.device):
                captured.logits = logits_of(self.where, self.model(images), images)
        finally:
            for handle in handles:
                handle.remove()
        captured.check(images.shape[0])
        return captured


class Captured:
    """The layers' outputs of one forward pass, still tied to the graph of the logits."""

    logits: Tensor

    def __init__(self, where: str, names: list[str], copied: set[str]) -> None:
        self.where = where
        self.names = names
        self._copied = copied
        self._outputs: dict[str, Any] = {}
        self._versions: dict[str, int] = {}
        self._edges: dict[str, GradientEdge] = {}
        self._thread = threading.get_ident()

    def hook(self, name: str) -> Callable[[nn.Module, Any, Any], Any]:
        """A forward hook that keeps the layer's output under ``name``; the last call wins."""

        def keep(module: nn.Module, inputs: Any, output: Any) -> Any:
            if threading.get_ident() != self._thread:
                return None  # somebody else's forward pass
            if not (isinstance(output, Tensor) and output.is_floating_point()):
                self._outputs[name] = output
                return None
            if not (output.requires_grad and torch.is_grad_enabled()):
                torch.set_grad_enabled(True)  # from here on; the caller's mode comes back later
                output = _StartGraph.apply(
                    output.detach(), torch.empty(0, device=output.device, requires_grad=True)
                )
            return self._keep(name, output)

        return keep

    def _keep(self, name: str, output: Tensor) -> Tensor:
        self._edges[name] = get_gradient_edge(output)
        if name in self._copied:
            self._outputs[name] = output.detach().clone()
            # Writing to a differentiable view reroutes the graph around the point kept above.
            output = output.clone() if output._is_view() else output
        else:
            self._outputs[name] = output
        self._versions[name] = self._outputs[name]._version
        return output

    def check(self, batch: int) -> None:
        """Raise unless every layer has run and ended with an (N, C, h, w) tensor."""
        missing = [name for name in self.names if name not in self._outputs]
        if missing:
            value_error(self.where, "layers", "layers that run in forward", f"{missing}")
        for name in self.names:
            output = self._outputs[name]
            if not isinstance(output, Tensor):
                actual = type(output).__name__
            elif output.dim() != 4 or output.shape[0] != batch or not output.is_floating_point():
                actual = f"shape {list(output.shape)} of {output.dtype}"
            else:
                continue
            expected = f"of floating-point (N, C, h, w) outputs with N = {batch}"
            value_error(self.where, "layers", expected, f"{actual} from '{name}'")

    def overwritten(self) -> set[str]:
        """The layers whose kept output a later in-place op has changed."""
        return {name for name in self.names if self._outputs[name]._version != self._versions[name]}

    def activations(self) -> list[Tensor]:
        """Outputs of the layers, (N, C, h, w) each, in layer order, without history."""
        return [self._outputs[name].detach() for name in self.names]

    def gradients(self, scores: Tensor, weights: Tensor, *, keep_graph: bool) -> list[Tensor]:
        """Gradient of ``(scores * weights).sum()`` at every layer's output, in layer order.

        Raises:
            ValueError: the scores do not depend on a layer.
        """
        grads: tuple[Tensor | None, ...] = (None,) * len(self.names)
        if scores.requires_grad:
            grads = torch.autograd.grad(
                scores,
                [self._edges[name] for name in self.names],
                weights,
                retain_graph=keep_graph,
                allow_unused=True,
            )
        unused = [name for name, grad in zip(self.names, grads, strict=True) if grad is None]
        if unused:
            value_error(self.where, "layers", "layers that the scores depend on", f"{unused}")
        return [grad for grad in grads if grad is not None]


@contextmanager
def undisturbed(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Evaluation mode without gradients; modes, grad mode and RNG state come back at the end.

    Evaluation mode keeps batch statistics and dropout out of the maps and the running statistics
    as they are. The flags are set directly: a model may override ``train`` (frozen batch norm).
    """
    training = [module for module in model.modules() if module.training]
    accelerators = [device] if device.type == "cuda" else []
    try:
        for module in training:
            module.training = False
        with torch.random.fork_rng(accelerators), torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


def logits_of(where: str, output: Any, images: Tensor) -> Tensor:
    """The (N, classes) logits in a model's output: itself, its ``logits``, or its first item.

    Raises:
        ValueError: no such tensor in the output.
        TypeError: logits that are not floating point.
    """
    if isinstance(output, Mapping):
        output = output.get("logits", next(iter(output.values()), None))
    elif hasattr(output, "logits"):
        output = output.logits
    elif isinstance(output, (tuple, list)) and output:
        output = output[0]
    batch = images.shape[0]
    if not isinstance(output, Tensor):
        type_error(where, "model", f"a classifier giving ({batch}, classes)", type(output).__name__)
    if output.dim() != 2 or output.shape[0] != batch or output.shape[1] == 0:
        shape = f"shape {list(output.shape)}"
        value_error(where, "model", f"a classifier giving ({batch}, classes)", shape)
    if not output.is_floating_point():
        type_error(where, "model", "a classifier giving floating-point logits", f"{output.dtype}")
    logits: Tensor = output
    return logits
