"""CAM itself: the classifier's own weights on the last feature maps, without a gradient."""

import math
import threading
import warnings
from typing import Unpack

import torch
from torch import Tensor, nn

from .._check import type_error, value_error
from .base import CAMMethod, Explained, Options, weighted_sum
from .capture import LayerCapture, logits_of, undisturbed
from .layers import Layers
from .targets import Target, resolve_target
from .tokens import CHANNELS_LAST, MAPS, Layout

Head = nn.Linear | nn.Conv2d

# Differences from the logits in shares of the largest: rounding in float32, and in bfloat16.
_EXACT, _APPROXIMATE = 1e-3, 0.05


class CAM(CAMMethod):
    """CAM: ``sum_k w_kc A_k`` with the weights of the linear layer (Zhou 2016, eq. 2).

    Args:
        model: global average pooling and one linear layer (or 1 x 1 convolution) behind the
            captured layer.
        layers: see :class:`CAMMethod`. ``"last"`` is the layer that is pooled: where the last stage
            is not (EfficientNet, Swin), the last layer on whose mean the head gives the logits.
        head: the linear layer or its name; None takes the last one that fits.
        relu: drop the negative parts, as Grad-CAM does; the paper's map keeps them.
        fusion: see :class:`CAMMethod`.

    Raises:
        ValueError: also a model without such a head, a callable target.

    Note:
        One forward pass; the first call takes one or two more on a single image. Where the logits
        are not the head on the layer's mean (another pooling, an activation in between), the maps
        are an approximation: a warning says so at the first call.

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
        if isinstance(head, str) and head not in dict(self.model.named_modules()):
            value_error(self._where, "head", "the name of a module of the model", repr(head))
        self.head = head
        self.relu = relu
        self._settled: LayerCapture | None = None

    def explain(
        self, capture: LayerCapture, images: Tensor, target: Target, *, create_graph: bool
    ) -> Explained:
        """One forward pass; the maps are linear in the activations."""
        if capture is not self._settled:
            self._capture = self._settled = capture = self._settle(capture, images)
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
            heads = self._heads(captured.logits)
            for name, activations in zip(captured.names, captured.activations(), strict=True):
                if activations.shape[1] not in heads:
                    self._refuse(heads, captured.logits, activations, name)
                weight = heads[activations.shape[1]].weight.flatten(1).float()
                layer = weighted_sum(weight[columns], activations)
                maps.append(layer.relu() if self.relu else layer)
        return Explained(maps, captured.logits, classes)

    def _heads(self, logits: Tensor) -> dict[int, Head]:
        """By channels, the last linear layer to the classes; of the head that was named alone."""
        named = self.model.get_submodule(self.head) if isinstance(self.head, str) else self.head
        if named is not None and not isinstance(named, Head):
            type_error(self._where, "head", "a Linear or Conv2d layer", type(named).__name__)
        modules = self.model.modules() if named is None else [named]
        heads = [module for module in modules if isinstance(module, Head)]
        return {head.weight.shape[1]: head for head in heads if _gives(head, logits.shape[1])}

    def _refuse(
        self, heads: dict[int, Head], logits: Tensor, activations: Tensor, layer: str
    ) -> None:
        """Raise with the heads, of which none fits the layer."""
        names = {module: name for name, module in self.model.named_modules()}
        found = [f"'{names.get(head)}' from {channels}" for channels, head in heads.items()]
        argument = "model" if self.head is None else "head"
        expected = (
            f"one with a linear layer from {activations.shape[1]} channels to {logits.shape[1]} "
            f"classes on the mean of '{layer}' (layers= names another; GradCAM takes any head)"
        )
        value_error(self._where, argument, expected, ", ".join(found) or "none")

    @torch.no_grad()
    def _settle(self, capture: LayerCapture, images: Tensor) -> LayerCapture:
        """What to capture: the layer that is pooled, unless another one was asked for.

        Found with an image of noise: the caller's may be black or broken. Warns where the logits
        are not the head on the layer's mean.
        """
        generator = torch.Generator().manual_seed(0)
        image = torch.rand(images[:1].shape, generator=generator).to(images)
        captured = capture.run(image, graph="none")
        means = [activations.float().mean(dim=(2, 3)) for activations in captured.activations()]
        heads = self._heads(captured.logits)
        off = max(_off(heads, mean, captured.logits) for mean in means)
        if off > _EXACT and self.layers == "last" and self.reshape is None:
            found = self._pooled_layer(image)
            if found is not None:
                name, layout = found
                module = self.model.get_submodule(name)
                return LayerCapture(
                    self._where, self.model, {name: module}, layout.to_maps, self._reducer
                )
        if _APPROXIMATE < off < math.inf:
            warnings.warn(
                f"wsfast.{self._where}: the logits are not the linear layer on the mean of the "
                f"captured layer (off by {off:.0%}): the maps are an approximation",
                stacklevel=5,
            )
        return capture

    def _pooled_layer(self, image: Tensor) -> tuple[str, Layout] | None:
        """The layer on whose mean the head gives the logits of one image.

        Of several that are as close, the last and so the outermost.
        """
        means: dict[tuple[str, Layout], Tensor] = {}
        thread = threading.get_ident()

        def keep(name: str, output: object) -> None:
            if threading.get_ident() != thread:
                return  # somebody else's forward pass
            for layout in (MAPS, CHANNELS_LAST):
                means.pop((name, layout), None)  # an earlier call cannot be captured
                if isinstance(output, Tensor) and output.dim() == 4 and len(output) == 1:
                    maps = layout.to_maps(output)
                    if maps.shape[2] * maps.shape[3] > 1:
                        means[name, layout] = maps.float().mean(dim=(2, 3))

        handles = [
            module.register_forward_hook(lambda _m, _i, output, name=name: keep(name, output))
            for name, module in self.model.named_modules()
            if name
        ]
        try:
            with undisturbed(self.model, image.device):
                logits = logits_of(self._where, self.model(image), image)
        finally:
            for handle in handles:
                handle.remove()
        heads = self._heads(logits)
        close = {
            layer: off
            for layer, mean in reversed(means.items())
            if (off := _off(heads, mean, logits)) <= _APPROXIMATE
        }
        return min(close, key=close.__getitem__, default=None)


def _gives(head: Head, classes: int) -> bool:
    shape = head.weight.shape
    return shape[0] == classes and all(side == 1 for side in shape[2:])


def _off(heads: dict[int, Head], mean: Tensor, logits: Tensor) -> float:
    """How far the head on a layer's mean (N, C) is from the logits, in shares of the largest one.

    Infinite where no head fits.
    """
    head = heads.get(mean.shape[1])
    if head is None:
        return math.inf
    with torch.autocast(mean.device.type, enabled=False):
        expected = mean @ head.weight.flatten(1).float().T
    if head.bias is not None:
        expected = expected + head.bias.float()
    logits = logits.float()
    return float((expected - logits).abs().amax() / (logits.abs().amax() + 1e-6))
