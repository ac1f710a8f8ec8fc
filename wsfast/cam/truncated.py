"""Methods on truncated and filtered gradients (LTGrad-CAM, RA-CAM)."""

from typing import Literal, Unpack

import torch
from torch import Tensor, nn

from .. import ops
from .._check import check_choice, check_truncation
from .base import Options, Scope, weighted_sum
from .capture import Captured, LayerCapture
from .filtering import filtered_backprop
from .gradient import GradientCAM
from .layers import Layers


class TruncatedCAM(GradientCAM):
    """Base of the gradient methods with a percentile.

    Args:
        model: see :class:`CAMMethod`.
        layers: see :class:`CAMMethod`.
        percentile: q in percent, 0 to 100: gradients below the q-th percentile of the positive
            ones are dropped.
        scope: ``"map"`` takes the percentile per feature map (the paper's), ``"sample"`` over all
            maps of a layer.
        fusion: see :class:`CAMMethod`.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Layers = "stages",
        *,
        percentile: float = 50.0,
        scope: Scope = "map",
        **fusion: Unpack[Options],
    ) -> None:
        super().__init__(model, layers, **fusion)
        check_truncation(self._where, percentile, scope)
        self.percentile = percentile
        self.scope: Scope = scope


class LTGradCAM(TruncatedCAM):
    r"""LTGrad-CAM: Grad-CAM with truncated gradients in every stage (LTGrad-CAM eq. 8-11).

    .. math:: M_l = \mathrm{relu}\Big(\sum_k \Big(\frac{1}{Z} \sum_{ij} T(g^k)_{ij}\Big) A^k\Big)

    Args:
        model: see :class:`CAMMethod`.
        layers: see :class:`CAMMethod`.
        percentile: see :class:`TruncatedCAM`.
        scope: see :class:`TruncatedCAM`.
        variant: ``"mean"`` puts the truncation inside the mean, as eq. 9 with eq. 2 says.
            ``"literal11"`` is eq. 11 as its brackets stand: the plain mean times the mask, a
            weight per pixel, :math:`\sum_k \bar g^k [g^k_{ij} \ge \delta_k] A^k_{ij}`.
        fusion: see :class:`CAMMethod`; ``layer_norm=None, reduce="sum"`` is eq. 8's plain sum.

    Note:
        Behind global average pooling all positive gradients of a map are equal, so truncation
        drops the negative ones only: its effect comes from the shallower stages.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Layers = "stages",
        *,
        percentile: float = 50.0,
        scope: Scope = "map",
        variant: Literal["mean", "literal11"] = "mean",
        **fusion: Unpack[Options],
    ) -> None:
        super().__init__(model, layers, percentile=percentile, scope=scope, **fusion)
        check_choice(self._where, "variant", variant, ["mean", "literal11"])
        self.variant = variant

    def layer_map(self, activations: Tensor, grads: Tensor) -> Tensor:
        """``relu(sum_k mean(T(g_k)) A_k)``, or eq. 11's bracket."""
        if self.variant == "mean":
            return ops.truncated_gradcam(
                activations, grads, self.percentile, scope=self.scope, dtype=torch.float32
            )
        kept = ops.truncate_gradients(grads, self.percentile, scope=self.scope) > 0
        mean = grads.mean(dim=(2, 3), dtype=torch.float32)
        return weighted_sum(mean, activations * kept).relu_()


class LTLayerCAM(TruncatedCAM):
    """LT-LayerCAM: LayerCAM with truncated gradients in every stage (LTGrad-CAM section 4.2).

    See :class:`TruncatedCAM` for the arguments.
    """

    def layer_map(self, activations: Tensor, grads: Tensor) -> Tensor:
        """``relu(sum_k T(g_k) * A_k)``."""
        return ops.truncated_layercam(
            activations, grads, self.percentile, scope=self.scope, dtype=torch.float32
        )


class RACAM(TruncatedCAM):
    r"""RA-CAM: Grad-CAM on gradients of filtering-guided backpropagation (RA-CAM eq. 5-7).

    .. math:: M_l = \mathrm{relu}\Big(\sum_k \Big(\frac{1}{Z} \sum_{ij} R^k_{ij}\Big) A^k\Big)

    with R from :func:`filtered_backprop`. Filtered once: at a ReLU's output eq. 6 is the filter of
    eq. 5.

    Args:
        model: see :class:`CAMMethod`; its ReLUs have to be modules.
        layers: see :class:`CAMMethod`.
        percentile: q in percent, 0 to 100, at every ReLU; 0 is guided backpropagation.
        scope: see :func:`filtered_backprop`.
        region_mean: average over the pixels with a positive gradient instead of all Z.
        hadamard: eq. 7 with R per pixel, :math:`\sum_k R^k_{ij} A^k_{ij}` (LayerCAM on R).
        fc: see :func:`filtered_backprop`.
        strict: see :func:`filtered_backprop` (eq. 5 as printed).
        hard_mask: see :func:`filtered_backprop` (eq. 5 as printed).
        fusion: see :class:`CAMMethod`.

    Note:
        The filter applies at each of a network's ReLUs, so gradients grow sparse towards shallow
        stages.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Layers = "stages",
        *,
        percentile: float = 50.0,
        scope: Scope = "map",
        region_mean: bool = False,
        hadamard: bool = False,
        fc: Literal["plain", "guided"] = "plain",
        strict: bool = False,
        hard_mask: bool = False,
        **fusion: Unpack[Options],
    ) -> None:
        super().__init__(model, layers, percentile=percentile, scope=scope, **fusion)
        check_choice(self._where, "fc", fc, ["plain", "guided"])
        self.region_mean = region_mean
        self.hadamard = hadamard
        self.fc = fc
        self.strict = strict
        self.hard_mask = hard_mask

    def _run(self, capture: LayerCapture, images: Tensor, *, create_graph: bool) -> Captured:
        with filtered_backprop(
            self.model,
            self.percentile,
            scope=self.scope,
            fc=self.fc,
            strict=self.strict,
            hard_mask=self.hard_mask,
        ):
            return super()._run(capture, images, create_graph=create_graph)

    def layer_map(self, activations: Tensor, grads: Tensor) -> Tensor:
        """``relu(sum_k mean(R_k) A_k)``; at an unfiltered layer R may be negative."""
        if self.hadamard:
            return ops.truncated_layercam(activations, grads, 0.0, dtype=torch.float32)
        if self.region_mean:
            counts = (grads > 0).sum(dim=(2, 3)).clamp_min(1)
            weights = grads.relu().sum(dim=(2, 3), dtype=torch.float32) / counts
        else:
            weights = grads.mean(dim=(2, 3), dtype=torch.float32)
        return weighted_sum(weights, activations).relu_()
