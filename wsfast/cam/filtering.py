"""Filtering-guided backpropagation (RA-CAM section III-A): ReLUs that pass only high gradients."""

import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from .. import ops
from .._check import check_choice, check_truncation
from .wrappers import eagerly, unwrap

FILTERED = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU)

# What torch calls the history of ReLUs, and the attribute that has to be 0 for it to be one. A node
# that no module of FILTERED answers for is a functional ReLU.
_NODES = {
    "ReluBackward0": None,
    "LeakyReluBackward0": None,
    "PreluKernelBackward0": None,
    "RreluWithNoiseBackward0": None,
    "RreluWithNoiseBackward1": None,  # in place
    "HardtanhBackward0": "_saved_min_val",
    "ThresholdBackward0": "_saved_threshold",
    "ClampMinBackward0": "_saved_min",
    "ClampBackward1": "_saved_min",
}

Filter = Callable[[Tensor], Tensor]

# Outputs of filtered ReLUs that ran without gradients. Where such a tensor turns out to be the end
# of a captured layer, its graph starts there and the filter has to follow.
_WAITING: "WeakIdKeyDictionary" = WeakIdKeyDictionary()


def pass_on_filter(output: Tensor, started: Tensor) -> Tensor:
    """Put the filter that waits on ``output`` to ``started``, its stand-in with a graph."""
    waiting = _WAITING.get(output)
    if waiting is not None:
        started.register_hook(waiting)
    return started


class _Filters:
    """The filters of one model and the options they follow."""

    def __init__(
        self, percentile: float, scope: str, fc: str, *, strict: bool, hard_mask: bool
    ) -> None:
        self.percentile = percentile
        self.scope = scope
        self.fc = fc
        self.strict = strict
        self.hard_mask = hard_mask
        self.nodes: set[Any] = set()
        self.checked = False
        self._thread = threading.get_ident()

    def filter_maps(self, grads: Tensor) -> Tensor:
        if not self.strict:
            return ops.truncate_gradients(grads, self.percentile, scope=self.scope)
        delta = ops.positive_percentile(grads.detach(), self.percentile, scope=self.scope)
        return grads * (grads > delta.reshape(len(grads), -1, 1, 1))

    def before(self, module: nn.Module, inputs: tuple[Any, ...]) -> Any:
        """Under ``hard_mask``: an input through which no gradient of values <= 0 flows back."""
        x = inputs[0]
        if threading.get_ident() != self._thread or not (torch.is_grad_enabled() and _is_graph(x)):
            return None
        positive = x > 0
        x = x.clone()  # the input's other readers keep their gradients
        x.register_hook(lambda grads: grads * positive)
        return (x, *inputs[1:])

    def after(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """Filter the gradient that comes to a ReLU's output."""
        if threading.get_ident() != self._thread or not isinstance(output, Tensor):
            return
        if output.dim() != 4 and self.fc == "plain":
            return
        apply: Filter = self.filter_maps if output.dim() == 4 else torch.relu
        if output.requires_grad and torch.is_grad_enabled():
            output.register_hook(apply)
            if output.grad_fn is not None and not self.checked:
                self.nodes.add(output.grad_fn)
        else:
            _WAITING[output] = apply

    def finish(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """After the first forward pass with a graph: warn of ReLUs that are no modules."""
        if threading.get_ident() != self._thread or self.checked:
            return
        ends = [value.grad_fn for value in _tensors(output) if value.grad_fn is not None]
        functional = _count_relus(ends, self.nodes, maps_only=self.fc == "plain")
        self.checked = bool(ends)
        self.nodes.clear()  # they keep the graph alive
        if functional:
            _warn(
                f"{functional} ReLUs are calls of F.relu, clamp or the like and pass gradients "
                "unfiltered; replace them by torch.nn.ReLU modules"
            )


def _is_graph(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def _tensors(output: Any) -> list[Tensor]:
    """The tensors in a model's output, at most one level deep."""
    if isinstance(output, Mapping):
        output = list(output.values())
    elif not isinstance(output, (Tensor, list, tuple)):
        output = list(getattr(output, "__dict__", {}).values())
    values = [output] if isinstance(output, Tensor) else output
    return [value for value in values if isinstance(value, Tensor)]


def _count_relus(ends: list[Any], known: set[Any], *, maps_only: bool) -> int:
    """ReLU nodes in the history of a model's output that are not among ``known``."""
    waiting, seen = list(ends), set(ends)
    found = 0
    while waiting:
        node = waiting.pop()
        found += node not in known and _is_relu(node, maps_only=maps_only)
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                waiting.append(following)
    return found


def _is_relu(node: Any, *, maps_only: bool) -> bool:
    """Whether a node is a ReLU's that should have been filtered; a clamp's only on feature maps."""
    name = node.name()
    if name not in _NODES:
        return False
    zero = _NODES[name]
    if zero is not None and getattr(node, zero) != 0:
        return False
    if name == "ClampBackward1" and node._saved_max is not None:
        return False
    maps_only = maps_only or name.startswith("Clamp")
    return not maps_only or len(node._input_metadata[0].shape) == 4


def _warn(message: str) -> None:
    warnings.warn(f"wsfast.cam.filtered_backprop: {message}", stacklevel=2)


@contextmanager
def filtered_backprop(
    model: nn.Module,
    percentile: float = 50.0,
    *,
    scope: Literal["map", "sample"] = "map",
    fc: Literal["plain", "guided"] = "plain",
    strict: bool = False,
    hard_mask: bool = False,
) -> Iterator[None]:
    r"""Filtering-guided backpropagation for every graph built inside (RA-CAM eq. 3-5).

    .. math:: R^{l}_i = [A_i > 0]\,[R^{l+1}_i \ge \delta]\,[R^{l+1}_i > 0]\,R^{l+1}_i

    at every ReLU, with :math:`\delta` the q-th percentile of the positive gradients that come to
    each of its feature maps. Any gradient method called inside uses such gradients.

    Args:
        model: the module whose ``ReLU``, ``ReLU6``, ``LeakyReLU``, ``PReLU`` and ``RReLU`` modules
            filter.
        percentile: q in percent, 0 to 100; 0 is guided backpropagation (eq. 4).
        scope: ``"map"`` takes the percentile per feature map, ``"sample"`` over all maps of a
            sample at that ReLU.
        fc: what ReLUs outside (N, C, h, w) do: ``"plain"`` or ``"guided"``
            backpropagation (the paper defines the filter for feature maps only).
        strict: keep gradients above :math:`\delta` only, as eq. 5 prints it; eq. 6 has ``>=``.
            Where all positive gradients of a map are equal (global average pooling) that keeps
            none.
        hard_mask: drop gradients where :math:`A_i \le 0`, as eq. 5 prints it, for ReLUs with
            another derivative there (leaky ones) too. By default a module keeps its own.

    Raises:
        TypeError: not a module.
        ValueError: percentile outside 0-100, unknown option.

    Note:
        A filter applies once per ReLU, to what has arrived there: the gradient captured at a ReLU's
        output is a filtered one already. In-place ReLUs may stay. Function calls such as
        ``F.relu``, ``clamp(min=0)`` and ``F.threshold(x, 0, 0)`` cannot be reached: a warning
        counts them (``torch.maximum`` and ``torch.where`` it does not see). No hook stays behind; a
        graph built inside keeps its filters. The mask counts as a constant in second derivatives.
        Forward passes in other threads are left alone.

    Example:
        >>> from wsfast.cam import LayerCAM
        >>> model = nn.Sequential(
        ...     nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        ...     nn.Linear(4, 2))
        >>> with filtered_backprop(model, 50):
        ...     result = LayerCAM(model)(torch.rand(2, 3, 16, 16))
    """
    where = "cam.filtered_backprop"
    model = unwrap(where, model)
    check_truncation(where, percentile, scope)
    check_choice(where, "fc", fc, ["plain", "guided"])
    filters = _Filters(percentile, scope, fc, strict=strict, hard_mask=hard_mask)
    handles = []
    try:
        for module in model.modules():
            if isinstance(module, FILTERED):
                handles.append(module.register_forward_hook(filters.after))
                if hard_mask:
                    handles.append(module.register_forward_pre_hook(filters.before))
        if not handles:
            _warn("the model has no ReLU modules, so nothing is filtered")
        handles.append(model.register_forward_hook(filters.finish))
        with eagerly(model):
            yield
    finally:
        for handle in handles:
            handle.remove()
