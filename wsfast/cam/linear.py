"""CAM itself: the classifier's own weights on the last feature maps, without a gradient."""

import warnings
from typing import Unpack

import torch
from torch import Tensor, nn

from .._check import type_error, value_error
from .base import CAMMethod, Explained, Options, weighted_sum
from .capture import LayerCapture
from .layers import Layers
from .targets import Target, resolve_target


class CAM(CAMMethod):
    """CAM: ``sum_k w_kc A_k`` with the weights of the linear layer (Zhou 2016, eq. 2).

    Args:
        model: global average pooling and one linear layer (or 1 x 1 convolution) behind the
            captured layer.
        layers: see :class:`CAMMethod`; the layer that is pooled.
        head: the linear layer or its name; None takes the last one that fits.
        relu: drop the negative parts, as Grad-CAM does; the paper's map keeps them.
        fusion: see :class:`CAMMethod`.

    Raises:
        ValueError: also a model without such a head, a callable target.

    Note:
        One forward pass. Where the logits are not the head on the layer's mean (another pooling, an
        activation in between), the maps are an approximation: a warning says so at the first call.

    Example:
        >>> model = nn.Sequential(
        ...     nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        ...     nn.Linear(4, 2))
        >>> CAM(model)(torch.rand(2, 3, 16, 16), 1).cams.shape
        torch.Size([2, 16, 16])
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Layers = "last",
        *,
        head: nn.Module | str | None = None,
        relu: bool = True,
        **fusion: Unpack[Options],
    ) -> None:
        super().__init__(model, layers, **fusion)
        self.head = head
        self.relu = relu
        self._checked = False

    def explain(
        self, capture: LayerCapture, images: Tensor, target: Target, *, create_graph: bool
    ) -> Explained:
        """One forward pass; the maps are linear in the activations."""
        captured = capture.run(images, graph="whole" if create_graph else "none")
        classes = resolve_target(self._where, target, captured.logits)
        if classes is None:
            value_error(self._where, "target", "class numbers for this method", "a callable")
        assert classes is not None
        columns = classes.reshape(len(images), -1).clamp(0, captured.logits.shape[1] - 1)
        maps = []
        with (
            torch.set_grad_enabled(create_graph),
            torch.autocast(images.device.type, enabled=False),
        ):
            for activations in captured.activations():
                head = self._find_head(captured.logits.shape[1], activations.shape[1])
                weight = head.weight.flatten(1).float()
                if not create_graph:
                    weight = weight.detach()
                    self._check_pooling(head, weight, activations, captured.logits)
                layer = weighted_sum(weight[columns], activations)
                maps.append(layer.relu() if self.relu else layer)
        return Explained(maps, captured.logits, classes)

    def _find_head(self, classes: int, channels: int) -> nn.Linear | nn.Conv2d:
        """The head that was named, or the last (classes, channels) one in the model."""
        named = self.model.get_submodule(self.head) if isinstance(self.head, str) else self.head
        if named is not None and not isinstance(named, (nn.Linear, nn.Conv2d)):
            type_error(self._where, "head", "a Linear or Conv2d layer", type(named).__name__)
        candidates = [named] if named is not None else reversed(list(self.model.modules()))
        for module in candidates:
            if isinstance(module, (nn.Linear, nn.Conv2d)) and _fits(module, classes, channels):
                return module
        expected = f"one with a linear layer from {channels} channels to {classes} classes"
        value_error(self._where, "model" if named is None else "head", expected, "none")
        raise AssertionError  # value_error always raises

    def _check_pooling(
        self, head: nn.Linear | nn.Conv2d, weight: Tensor, activations: Tensor, logits: Tensor
    ) -> None:
        """Warn, once, where the logits are not the head on the layer's mean."""
        if self._checked:
            return
        self._checked = True
        expected = activations.float().mean(dim=(2, 3)) @ weight.T
        if head.bias is not None:
            expected = expected + head.bias.detach().float()
        scale = float(logits.abs().amax()) + 1e-6
        off = float((expected - logits.float()).abs().amax()) / scale
        if off > 0.05:  # false also for logits that are not finite
            warnings.warn(
                f"wsfast.{self._where}: the logits are not the linear layer on the mean of the "
                f"captured layer (off by {off:.0%}): the maps are an approximation",
                stacklevel=5,
            )


def _fits(module: nn.Linear | nn.Conv2d, classes: int, channels: int) -> bool:
    shape = module.weight.shape
    return shape[:2] == (classes, channels) and all(side == 1 for side in shape[2:])
