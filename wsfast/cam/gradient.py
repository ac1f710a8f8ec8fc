"""Gradient methods: each is one formula on the shared capture and the fused ops."""

from collections.abc import Callable
from typing import Unpack

import torch
from torch import Tensor, nn

from .. import ops
from .._check import check_range
from .base import CAMMethod, Explained, Options, weighted_sum
from .capture import Captured, LayerCapture
from .layers import Layers
from .targets import ScoreSeed, Target, resolve_target, score_seeds

Formula = Callable[[Tensor, Tensor], Tensor]
_CACHED = 1 << 19  # values for which a CPU's cache holds a chain of operations


class GradientCAM(CAMMethod):
    """Base of the gradient methods; a method defines :meth:`layer_map`.

    See :class:`CAMMethod` for the arguments.
    """

    def layer_map(self, activations: Tensor, grads: Tensor) -> Tensor:
        """Map (N, h, w), float32 and >= 0, of one layer from its (N, C, h, w) tensors."""
        raise NotImplementedError

    def explain(
        self, capture: LayerCapture, images: Tensor, target: Target, *, create_graph: bool
    ) -> Explained:
        """One forward pass, one backward pass per class, one formula per layer."""
        captured = self._run(capture, images, create_graph=create_graph)
        classes = resolve_target(self._where, target, captured.logits)
        seeds = score_seeds(self._where, target, classes, captured.logits)
        by_class = [
            self._maps(captured, seed, keep_graph=seed is not seeds[-1], create_graph=create_graph)
            for seed in seeds
        ]
        maps = [torch.stack(layer, dim=1) for layer in zip(*by_class, strict=True)]
        return Explained(maps, captured.logits, classes)

    def _run(self, capture: LayerCapture, images: Tensor, *, create_graph: bool) -> Captured:
        return capture.run(images, graph="whole" if create_graph else "cut")

    def _maps(
        self, captured: Captured, seed: ScoreSeed, *, keep_graph: bool, create_graph: bool
    ) -> list[Tensor]:
        """(N, h, w) maps of the layers for one class per image."""
        grads = captured.gradients(seed.scores, seed.weights, keep_graph=keep_graph)
        device = captured.logits.device.type
        with torch.set_grad_enabled(create_graph), torch.autocast(device, enabled=False):
            return [
                self.layer_map(a, g).float()
                for a, g in zip(captured.activations(), grads, strict=True)
            ]


class ChannelCAM(GradientCAM):
    """Base of the methods that weigh whole channels; one defines :meth:`channel_weights`.

    See :class:`CAMMethod` for the arguments.
    """

    def channel_weights(self, activations: Tensor, grads: Tensor) -> Tensor:
        """Weights (N, C), float32, of one layer's channels from its (N, C, h, w) tensors."""
        raise NotImplementedError

    def layer_map(self, activations: Tensor, grads: Tensor) -> Tensor:
        """``relu(sum_k w_k A_k)``."""
        return weighted_sum(self.channel_weights(activations, grads), activations).relu_()


class GradCAM(ChannelCAM):
    """Grad-CAM: ``relu(sum_k mean(g_k) A_k)`` per layer (Selvaraju 2017, eq. 1-2).

    See :class:`CAMMethod` for the arguments.

    Example:
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1),
        ...     torch.nn.Flatten(), torch.nn.Linear(4, 2))
        >>> GradCAM(model)(torch.rand(2, 3, 16, 16)).cams.shape
        torch.Size([2, 16, 16])
    """

    def channel_weights(self, activations: Tensor, grads: Tensor) -> Tensor:
        """``mean(g_k)``."""
        return grads.mean(dim=(2, 3), dtype=torch.float32)


class GradCAMPlusPlus(ChannelCAM):
    r"""Grad-CAM++: positive gradients weighted pixel by pixel (Chattopadhay 2018, eq. 10, 19).

    .. math:: w_k = \sum_{ij} \alpha^k_{ij}\, \mathrm{relu}(g^k_{ij}), \qquad
              \alpha^k_{ij} = \frac{g^2}{2 g^2 + g^3 \sum_{ab} A^k_{ab}}
                            = \frac{1}{2 + g \sum_{ab} A^k_{ab}}

    Args:
        model: see :class:`CAMMethod`.
        layers: see :class:`CAMMethod`.
        alpha_eps: None takes the second, reduced form of alpha, which small gradients cannot
            upset, and counts a negative sum of activations as 0: the paper's are behind a ReLU, and
            elsewhere (Swin, ConvNeXt) the denominator would pass through 0. A number, 0 to 1, is
            added to the denominator of the first form, taken literally, as pytorch-grad-cam does
            with 1e-6: it rules the sum where gradients are below 1e-3.
        fusion: see :class:`CAMMethod`.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Layers = "stages",
        *,
        alpha_eps: float | None = None,
        **fusion: Unpack[Options],
    ) -> None:
        super().__init__(model, layers, **fusion)
        if alpha_eps is not None:
            check_range(self._where, "alpha_eps", alpha_eps, 0.0, 1.0)
        self.alpha_eps = alpha_eps

    def channel_weights(self, activations: Tensor, grads: Tensor) -> Tensor:
        """Sum over pixels of ``alpha * relu(g)``."""
        totals = activations.sum(dim=(2, 3), keepdim=True, dtype=torch.float32)
        if self.alpha_eps is None:
            totals = totals.relu()
        return _pixel_sums(self._weights, totals.expand_as(grads), grads)

    def _weights(self, totals: Tensor, grads: Tensor) -> Tensor:
        g = grads.float().relu()  # where g < 0 the weight is 0
        denominator = torch.addcmul(g.new_full((), 2.0), totals, g)
        if self.alpha_eps is None:  # at least 2
            return (g / denominator).sum(dim=(2, 3))
        if self.alpha_eps:  # 0 leaves what the second form reduces without rounding g * g to 0
            square = g * g
            denominator = torch.addcmul(g.new_full((), self.alpha_eps), square, denominator)
            g = square * g
        if denominator.requires_grad:  # g / 0 would have NaN for its gradient
            denominator = denominator.masked_fill(denominator == 0, torch.inf)
        # 0 where there is nothing to divide by; NaN stays, as the sign of a broken image
        return (g / denominator).nan_to_num(torch.nan, 0.0, 0.0).sum(dim=(2, 3))


def _pixel_sums(sums: Formula, first: Tensor, second: Tensor) -> Tensor:
    """``sums`` over the pixels of (N, C, h, w) tensors, (..., N, C), part by part.

    Parts are channels, or rows where a pixel's channels lie side by side: tokens, channels-last.
    """
    along = 2 if second.stride(1) < second.stride(3) else 1
    parts = [sums(*part) for part in _cached_parts(along, first, second)]
    if len(parts) == 1:
        return parts[0]
    return torch.cat(parts, dim=-1) if along == 1 else torch.stack(parts).sum(dim=0)


def _channel_sum(products: Formula, first: Tensor, second: Tensor) -> Tensor:
    """``products`` of (N, C, h, w) tensors summed over the channels, in parts of rows."""
    parts = [products(*part).sum(dim=1) for part in _cached_parts(2, first, second)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _cached_parts(along: int, first: Tensor, second: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Two (N, C, h, w) tensors in parts along a dimension, of which a CPU's cache holds one."""
    if not first.is_cpu or first.numel() <= _CACHED:
        return [(first, second)]
    length = max(1, _CACHED * first.shape[along] // first.numel())
    return list(zip(first.split(length, along), second.split(length, along), strict=True))


class XGradCAM(ChannelCAM):
    r"""XGrad-CAM: gradients averaged with the activations as weights (Fu 2020, eq. 8).

    .. math:: w_k = \frac{\sum_{ij} g^k_{ij} A^k_{ij}}{\sum_{ij} A^k_{ij} + 10^{-7}}

    See :class:`CAMMethod` for the arguments.
    """

    def channel_weights(self, activations: Tensor, grads: Tensor) -> Tensor:
        """``sum(g_k A_k) / sum(A_k)``."""
        weighted, total = _pixel_sums(self._sums, activations, grads)
        return weighted / (total + 1e-7)

    @staticmethod
    def _sums(activations: Tensor, grads: Tensor) -> Tensor:
        a, g = activations.float(), grads.float()
        return torch.stack([(g * a).sum(dim=(2, 3)), a.sum(dim=(2, 3))])


def _products(activations: Tensor, grads: Tensor) -> Tensor:
    return grads.float() * activations.float()


class HiResCAM(GradientCAM):
    """HiResCAM: ``relu(sum_k g_k * A_k)`` per layer (Draelos 2020, eq. 4).

    See :class:`CAMMethod` for the arguments.
    """

    def layer_map(self, activations: Tensor, grads: Tensor) -> Tensor:
        """``relu(sum_k g_k * A_k)``."""
        return _channel_sum(_products, activations, grads).relu_()


def _positive_products(activations: Tensor, grads: Tensor) -> Tensor:
    return grads.float().relu() * activations.float()


class LayerCAM(GradientCAM):
    """LayerCAM: ``relu(sum_k relu(g_k) * A_k)`` per layer (Jiang 2021, eq. 5-7).

    See :class:`CAMMethod` for the arguments.
    """

    def layer_map(self, activations: Tensor, grads: Tensor) -> Tensor:
        """``relu(sum_k relu(g_k) * A_k)``: truncation at percentile 0 is the ReLU."""
        if not (activations.is_contiguous() and grads.is_contiguous()):
            # Tokens and channels-last maps: the op would copy what plain sums read in order.
            return _channel_sum(_positive_products, activations, grads).relu_()
        return ops.truncated_layercam(activations, grads, 0.0, dtype=torch.float32)
