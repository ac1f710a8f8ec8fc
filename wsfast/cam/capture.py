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
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn.attention import SDPBackend, sdpa_kernel

from .._check import type_error, value_error
from .borrowing import changed_attributes
from .filtering import FILTERED, pass_on_filter
from .tokens import (
    Layout,
    Reshape,
    channel_dimension,
    enclosing,
    find_layout,
    warn_of_unread_patches,
)
from .wrappers import eagerly

Graph = Literal["none", "cut", "whole"]


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


def start_graph(tensor: Tensor) -> Tensor:
    """The values of a tensor as the start of a graph."""
    switch = torch.empty(0, device=tensor.device, requires_grad=True)
    started: Tensor = _StartGraph.apply(tensor.detach(), switch)
    return started


class LayerCapture:
    """Runs a model and keeps the outputs of some of its layers.

    Args:
        where: name of the calling function, for messages.
        model: the module to run, without wrappers.
        layers: modules of ``model`` by name.
        reshape: from a layer's output to (N, C, h, w); None finds it for models that are known.
        reducer: the wrapper of ``model`` that runs where the whole graph is asked for, if any.
    """

    def __init__(
        self,
        where: str,
        model: nn.Module,
        layers: Mapping[str, nn.Module],
        reshape: Reshape | None = None,
        reducer: nn.Module | None = None,
    ) -> None:
        self.where = where
        self.model = model
        self._trained = reducer or model
        self.layers = dict(layers)
        self.reshape = reshape
        self._overwritten: set[str] = set()
        self._warned = False
        self._layouts: dict[str, Layout] = {}  # of outputs of 4 dimensions, for any size

    def run(self, images: Tensor, *, graph: Graph = "cut") -> "Captured":
        """One forward pass under the caller's autocast.

        Args:
            images: a batch the model takes.
            graph: what gradients can flow through: ``"none"``, ``"cut"`` (from the first layer
                on) or ``"whole"`` (down to images and parameters, in the model's own mode instead
                of evaluation mode, and as a training step touches buffers and RNG).

        Raises:
            ValueError: inference mode; a layer that does not run or whose last output is not an
                (N, C, h, w) floating-point tensor; a model whose output is not (N, classes).
        """
        images = usable_images(self.where, images)
        captured = self._forward(images, graph)
        while overwritten := captured.overwritten():
            self._overwritten |= overwritten
            del captured  # its graph must not stay alive next to the second one
            captured = self._forward(images, graph)
        return captured

    def _forward(self, images: Tensor, graph: Graph) -> "Captured":
        names, copied = list(self.layers), self._overwritten
        captured = Captured(self.where, self.model, names, copied, graph)
        handles: list[torch.utils.hooks.RemovableHandle] = []
        try:
            if graph != "none" and not self._warned:
                self._warned = True
                handles += warn_of_unread_patches(self.where, self.model, self.layers)
            for name, module in self.layers.items():
                handles.append(module.register_forward_hook(captured.hook(name)))
            model, around = self.model, undisturbed
            if graph == "whole":
                model, around = self._trained, _as_trained
            with around(model, images.device):
                output = model(images.clone())  # a model may normalise its input in place
                captured.logits = logits_of(self.where, output, images)
        finally:
            for handle in handles:
                handle.remove()
        for name in self.layers:
            captured.set_layout(name, self._layout(captured, name, images), images)
        return captured

    def _layout(self, captured: "Captured", name: str, images: Tensor) -> Layout:
        """How a layer's output holds its maps, found out once where that may cost a pass."""
        if self.reshape is not None:
            return Layout(self.reshape, None)
        if name in self._layouts:
            return self._layouts[name]
        output = captured.tensor(name, images)
        layout = find_layout(
            self.where,
            enclosing(self.model, name),
            output,
            images,
            lambda: self._at_twice_the_height(name, images),
        )
        if output.dim() == 4:
            self._layouts[name] = layout
        return layout

    def _at_twice_the_height(self, name: str, images: Tensor) -> Tensor | None:
        """A layer's output for an image twice as high; None from models that take no such."""
        captured = Captured(self.where, self.model, [name], set(), "none")
        handle = self.layers[name].register_forward_hook(captured.hook(name))
        try:
            with undisturbed(self.model, images.device):
                self.model(images[:1].repeat(1, 1, 2, 1))
        except Exception:  # whatever a model raises that takes one size only
            return None
        finally:
            handle.remove()
        return captured.tensor(name, images)


class Captured:
    """The layers' outputs of one forward pass, still tied to the graph of the logits."""

    logits: Tensor

    def __init__(
        self, where: str, model: nn.Module, names: list[str], copied: set[str], graph: Graph
    ) -> None:
        self.where = where
        self.model = model
        self.names = names
        self.layouts: dict[str, Layout] = {}
        self._copied = copied
        self._graph = graph
        self._outputs: dict[str, Any] = {}
        self._versions: dict[str, int] = {}
        self._edges: dict[str, GradientEdge] = {}
        self._grads: dict[str, list[Tensor]] = {}
        self._thread = threading.get_ident()

    def hook(self, name: str) -> Callable[[nn.Module, Any, Any], Any]:
        """A forward hook that keeps the layer's output under ``name``; the last call wins."""

        def keep(module: nn.Module, inputs: Any, output: Any) -> Any:
            if threading.get_ident() != self._thread:
                return None  # somebody else's forward pass
            if not (isinstance(output, Tensor) and output.is_floating_point()):
                self._outputs[name] = output
                return None
            if self._graph == "none":
                return self._keep(name, output)
            # With a graph it keeps, a layer that is written to must keep another tensor: one that
            # passes its input on with a gradient of its own, others behind a filter of theirs.
            copies = self._graph == "whole" and name in self._copied
            passes = copies and _passes_on(module, inputs, output)
            apart = output.clone() if passes else output
            if not (output.requires_grad and torch.is_grad_enabled()):
                torch.set_grad_enabled(True)  # from here on; the caller's mode comes back later
                apart = start_graph(apart)
            if apart is not output:
                output = pass_on_filter(output, apart)
            self._edges[name] = get_gradient_edge(output)
            arrived: list[Tensor] = []
            self._grads[name] = arrived
            output.register_hook(lambda grad: _put(arrived, grad))
            if copies and not passes:
                output = output.clone()
            return self._keep(name, output)

        return keep

    def _keep(self, name: str, output: Tensor) -> Tensor:
        if self._graph == "whole":
            # With a history of its own, what is kept must not be written to at all.
            self._outputs[name] = output
            output = output.clone()
        elif name in self._copied:
            self._outputs[name] = output.detach().clone()
            # Writing to a differentiable view reroutes the graph around the point kept above.
            output = output.clone() if output._is_view() else output
        else:
            self._outputs[name] = output
        self._versions[name] = self._outputs[name]._version
        return output

    def tensor(self, name: str, images: Tensor) -> Tensor:
        """A layer's output; raises unless the layer has run and ended with a tensor."""
        missing = [name for name in self.names if name not in self._outputs]
        if missing:
            value_error(self.where, "layers", "layers that run in forward", f"{missing}")
        output = self._outputs[name]
        if not isinstance(output, Tensor):
            self._refuse(name, images, type(output).__name__)
        return self.output(name)

    def set_layout(self, name: str, layout: Layout, images: Tensor) -> None:
        """Raise unless a layer's output holds (N, C, h, w) maps in this layout."""
        output = self.tensor(name, images)
        maps = layout.to_maps(output)
        if maps.dim() != 4 or len(maps) != len(images) or not maps.is_floating_point():
            self._refuse(name, images, f"shape {list(output.shape)} of {output.dtype}")
        self.layouts[name] = layout

    def _refuse(self, name: str, images: Tensor, actual: str) -> None:
        expected = (
            f"of floating-point (N, C, h, w) outputs with N = {len(images)} "
            "(reshape= makes such of others)"
        )
        value_error(self.where, "layers", expected, f"{actual} from '{name}'")

    def overwritten(self) -> set[str]:
        """The layers whose kept output a later in-place op has changed."""
        return {name for name in self.names if self._outputs[name]._version != self._versions[name]}

    def output(self, name: str) -> Tensor:
        """A layer's output as the layer gave it, without history."""
        output: Tensor = self._outputs[name].detach()
        return output

    def outputs(self) -> list[Tensor]:
        """The layers' outputs, in layer order; their history with ``"whole"``."""
        outputs = [self._outputs[name] for name in self.names]
        return outputs if self._graph == "whole" else [output.detach() for output in outputs]

    def activations(self) -> list[Tensor]:
        """Maps of the layers, (N, C, h, w) each, in layer order; their history with ``"whole"``."""
        return self._as_maps(self.outputs())

    def channel_dimension(self, name: str) -> int:
        """The dimension of channels of a layer's output.

        Raises:
            ValueError: a ``reshape=`` whose channels are not those of one dimension.
        """
        layout = self.layouts[name]
        if layout.channels is not None:
            return layout.channels
        found = channel_dimension(layout.to_maps, self.output(name))
        if found is None:
            expected = "a rearrangement that keeps a dimension of channels, for this method"
            value_error(self.where, "reshape", expected, f"another for '{name}'")
        assert found is not None
        return found

    def _as_maps(self, values: Iterable[Tensor]) -> list[Tensor]:
        """Outputs or their gradients as (N, C, h, w)."""
        return [self.layouts[n].to_maps(v) for n, v in zip(self.names, values, strict=True)]

    def gradients(self, scores: Tensor, weights: Tensor, *, keep_graph: bool) -> list[Tensor]:
        """Gradient of ``(scores * weights).sum()`` at every layer's maps, in layer order.

        Raises:
            ValueError: the scores do not depend on a layer.
        """
        return self._as_maps(self.output_gradients(scores, weights, keep_graph=keep_graph))

    def output_gradients(
        self, scores: Tensor, weights: Tensor, *, keep_graph: bool
    ) -> list[Tensor]:
        """:meth:`gradients` at the layers' outputs as they are."""
        # A checkpointed part of the model runs again in the backward pass.
        around = _as_trained if self._graph == "whole" else undisturbed
        if scores.requires_grad:
            with around(self.model, scores.device), backward_precision(scores):
                torch.autograd.grad(
                    scores,
                    [self._edges[name] for name in self.names],
                    weights,
                    retain_graph=keep_graph or self._graph == "whole",
                    create_graph=self._graph == "whole",
                    allow_unused=True,
                )
        unused = [name for name in self.names if not self._grads[name]]
        if unused:
            expected = (
                "layers that the scores depend on, and not through quantised ones or "
                "checkpoint(use_reentrant=True)"
            )
            value_error(self.where, "layers", expected, f"{unused}")
        return [self._grads[name].pop() for name in self.names]


def _passes_on(module: nn.Module, inputs: Any, output: Tensor) -> bool:
    """Whether a layer returns its input as it is; from an in-place ReLU it has a new gradient."""
    return not isinstance(module, FILTERED) and any(output is value for value in inputs)


def backward_precision(scores: Tensor) -> AbstractContextManager[None]:
    """Each operation's backward in the precision its forward had: autocast would lower others'."""
    return torch.autocast(scores.device.type, enabled=False)


def _put(arrived: list[Tensor], grad: Tensor | None) -> None:
    """Note a gradient as the hooks before this one have left it; None behind a quantised layer.

    What ``autograd.grad`` returns has passed a tensor's hooks only where no other gradient is asked
    for below it.
    """
    arrived[:] = [] if grad is None else [grad]


def usable_images(where: str, images: Tensor) -> Tensor:
    """Images that autograd can keep.

    Raises:
        ValueError: inference mode.
    """
    if torch.is_inference_mode_enabled():
        value_error(where, "model", "called outside torch.inference_mode", "inference mode")
    return images.clone() if images.is_inference() else images


@contextmanager
def undisturbed(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Evaluation mode without gradients; modes, grad mode and RNG state come back at the end.

    Evaluation mode keeps batch statistics and dropout out of the maps and the running statistics
    as they are. The flags are set directly: a model may override ``train`` (frozen batch norm).
    Calls in several threads share the evaluation mode; the last one to leave ends it.
    """
    accelerators = [device] if device.type == "cuda" else []
    evaluation = changed_attributes(_switched_off(model, training=True))
    with evaluation, eagerly(model), torch.random.fork_rng(accelerators), torch.no_grad():
        yield


@contextmanager
def _as_trained(model: nn.Module, device: torch.device) -> Iterator[None]:
    """The model in its own mode, with gradients that have derivatives: fused attention's do not."""
    every_stage_runs = changed_attributes(_switched_off(model, training=False))
    with every_stage_runs, eagerly(model), sdpa_kernel(SDPBackend.MATH), torch.enable_grad():
        yield


def _switched_off(model: nn.Module, *, training: bool) -> Iterator[tuple[nn.Module, str, bool]]:
    """Training mode, if asked, and timm's checkpointing, which passes over stages with hooks."""
    for module in model.modules():
        if training:
            yield module, "training", False
        if "grad_checkpointing" in vars(module):
            yield module, "grad_checkpointing", False


def logits_of(where: str, output: Any, images: Tensor) -> Tensor:
    """The (N, classes) logits in a model's output: itself, its ``logits``, or the first in it.

    Raises:
        ValueError: no such tensor in the output, or several with other numbers of classes.
        TypeError: logits that are not floating point.
    """
    batch = images.shape[0]
    if isinstance(output, Mapping) and "logits" in output:
        output = output["logits"]
    elif hasattr(output, "logits"):
        output = output.logits
    elif isinstance(output, Mapping):
        output = _first_logits(where, output, output.items(), batch)
    elif isinstance(output, (tuple, list)):
        output = _first_logits(where, output, enumerate(output), batch)
    if not isinstance(output, Tensor):
        type_error(where, "model", f"a classifier giving ({batch}, classes)", type(output).__name__)
    if output.dim() != 2 or output.shape[0] != batch or output.shape[1] == 0:
        shape = f"shape {list(output.shape)}"
        value_error(where, "model", f"a classifier giving ({batch}, classes)", shape)
    if not output.is_floating_point():
        type_error(where, "model", "a classifier giving floating-point logits", f"{output.dtype}")
    logits: Tensor = output
    return logits


def _first_logits(where: str, output: Any, items: Iterable[tuple[Any, Any]], batch: int) -> Any:
    """The first (N, C) tensor in an output; without one, what the message is to name."""
    named = {key: value for key, value in items if value is not None}
    found = {
        key: value
        for key, value in named.items()
        if isinstance(value, Tensor) and value.is_floating_point()
        if value.dim() == 2 and len(value) == batch
    }
    if len({value.shape[1] for value in found.values()}) > 1:
        expected = "a classifier that returns its logits, alone or as 'logits'"
        shapes = ", ".join(f"{key!r} of {list(value.shape)}" for key, value in found.items())
        value_error(where, "model", expected, shapes)
    return next(iter((found or named).values()), output)
