"""Gradient CAM methods: each is one formula on the shared capture and the fused ops."""

from typing import Literal

import torch
from torch import Tensor, nn

from .. import ops
from .._check import (
    check_choice,
    check_floating,
    check_range,
    check_rank,
    check_tensor,
    type_error,
    value_error,
)
from . import capture
from .layers import Layers, resolve_layers, unwrap
from .result import CAMResult
from .targets import Target, resolve_target, target_scores

Norm = Literal["minmax", "max"] | None
Reduce = Literal["mean", "sum", "max", "prod"]


class GradientCAM:
    """Base of the gradient methods; a method defines :meth:`layer_map`.

    Args:
        model: a classifier giving (N, classes) logits. Its mode, ``requires_grad`` flags, ``.grad``
            and hooks are left as found; DataParallel, DDP and compiled wrappers are looked through.
        layers: ``"stages"`` (default: the last layer of each resolution), ``"last"``, a module
            name, a module, or a list of these.
        layer_norm: normalisation of each layer's map before fusion, ``"minmax"``, ``"max"`` or
            None.
        reduce: fusion over layers, ``"mean"``, ``"sum"``, ``"max"`` or ``"prod"``.
        norm: normalisation of the fused map, ``"minmax"``, ``"max"`` or None.

    The defaults fuse as pytorch-grad-cam does. ``layer_norm=None, reduce="sum", norm=None`` is the
    literal sum over layers of LTGrad-CAM eq. 8 and 10.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Layers = "stages",
        *,
        layer_norm: Norm = "minmax",
        reduce: Reduce = "mean",
        norm: Norm = "minmax",
    ) -> None:
        where = f"cam.{type(self).__name__}"
        if not isinstance(model, nn.Module):
            type_error(where, "model", "a torch.nn.Module", type(model).__name__)
        check_choice(where, "reduce", reduce, ["mean", "sum", "max", "prod"])
        for argument, value in (("layer_norm", layer_norm), ("norm", norm)):
            if value is not None:
                check_choice(where, argument, value, ["minmax", "max"])
        self.model = unwrap(model)
        self.layers = layers
        self.layer_norm: Norm = layer_norm
        self.reduce: Reduce = reduce
        self.norm: Norm = norm
        self._where = where

    def layer_map(self, activations: Tensor, grads: Tensor) -> Tensor:
        """Map (N, h, w), float32 and >= 0, of one layer from its (N, C, h, w) tensors."""
        raise NotImplementedError

    def __call__(self, images: Tensor, target: Target = None) -> CAMResult:
        """Explain one batch.

        Args:
            images: (N, 3, H, W) or whatever the model takes, floating point.
            target: None (the class of highest score), one class, (N,) classes, (N, K) classes, or
                a callable from logits to (N,) scores.

        Returns:
            A :class:`CAMResult`; ``cams`` is (N, H, W), or (N, K, H, W) for an (N, K) target.

        Raises:
            ValueError: unknown layer, a layer that does not run or that the scores do not depend
                on, a target of wrong shape or range, a model that is not a classifier.
            TypeError: images that are not floating point.

        Note:
            One forward pass and one backward pass per class, down to the shallowest layer only.
            Works under ``torch.no_grad``; not differentiable.
        """
        where = self._where
        check_tensor(where, "images", images)
        check_floating(where, "images", images)
        check_rank(where, "images", images, 4)
        if images.shape[0] == 0:
            value_error(where, "images", "a batch of at least one image", "an empty batch")
        layers = resolve_layers(where, self.model, self.layers, images)
        captured, logits = capture.run(where, self.model, layers, images)
        resolved = resolve_target(where, target, logits)
        maps = self._maps(captured, logits, target, resolved)
        with torch.no_grad():
            cams, valid = self._fuse(maps, logits, (images.shape[2], images.shape[3]))
        if resolved is None or resolved.dim() == 1:
            cams, maps = cams[:, 0], [layer[:, 0] for layer in maps]
        return CAMResult(cams, maps, logits.detach(), resolved, valid)

    def _maps(
        self,
        captured: capture.Capture,
        logits: Tensor,
        target: Target,
        resolved: Tensor | None,
    ) -> list[Tensor]:
        """(N, K, h, w) maps of every layer."""
        activations = [captured.activations[name].detach() for name in captured.layers]
        by_class: list[list[Tensor]] = []
        with torch.enable_grad():
            scores = target_scores(self._where, target, resolved, logits)
        for k, score in enumerate(scores):
            with torch.enable_grad():
                total = score.sum()
            grads = captured.gradients(total, keep_graph=k + 1 < len(scores))
            with torch.no_grad(), torch.autocast(logits.device.type, enabled=False):
                by_class.append(
                    [self.layer_map(a, g) for a, g in zip(activations, grads, strict=True)]
                )
        return [torch.stack(layer, dim=1) for layer in zip(*by_class, strict=True)]

    def _fuse(
        self, maps: list[Tensor], logits: Tensor, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        n, k = maps[0].shape[:2]
        valid = logits.isfinite().all(dim=1)
        for layer in maps:
            valid = valid & layer.isfinite().flatten(1).all(dim=1)
        keep = valid[:, None, None, None]
        flat = [torch.where(keep, layer, 0).flatten(0, 1) for layer in maps]
        cams = ops.fuse_cams(
            flat, size, layer_norm=self.layer_norm, reduce=self.reduce, norm=self.norm
        )
        return cams.reshape(n, k, *size), valid


class GradCAM(GradientCAM):
    """Grad-CAM: ``relu(sum_k mean(g_k) A_k)`` per layer (Selvaraju 2017, eq. 1-2).

    See :class:`GradientCAM` for the arguments.

    Example:
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1),
        ...     torch.nn.Flatten(), torch.nn.Linear(4, 2))
        >>> GradCAM(model)(torch.rand(2, 3, 16, 16)).cams.shape
        torch.Size([2, 16, 16])
    """

    def layer_map(self, activations: Tensor, grads: Tensor) -> Tensor:
        """``relu(sum_k mean(g_k) A_k)``."""
        weights = grads.float().mean(dim=(2, 3))
        maps = torch.bmm(weights[:, None], activations.float().flatten(2))
        return maps.relu_().reshape(-1, *activations.shape[2:])


class LayerCAM(GradientCAM):
    """LayerCAM: ``relu(sum_k relu(g_k) * A_k)`` per layer (Jiang 2021, eq. 5-7).

    See :class:`GradientCAM` for the arguments.
    """

    def layer_map(self, activations: Tensor, grads: Tensor) -> Tensor:
        """``relu(sum_k relu(g_k) * A_k)``: truncation at percentile 0 is the ReLU."""
        return ops.truncated_layercam(activations, grads, 0.0, dtype=torch.float32)


class TruncatedCAM(GradientCAM):
    """Base of the methods that truncate gradients.

    Args:
        model: see :class:`GradientCAM`.
        layers: see :class:`GradientCAM`.
        percentile: q in percent, 0 to 100: gradients below the q-th percentile of the positive
            ones are dropped.
        scope: ``"map"`` takes the percentile per feature map (the paper's), ``"sample"`` over all
            maps of a layer.
        layer_norm: see :class:`GradientCAM`.
        reduce: see :class:`GradientCAM`.
        norm: see :class:`GradientCAM`.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Layers = "stages",
        *,
        percentile: float = 50.0,
        scope: Literal["map", "sample"] = "map",
        layer_norm: Norm = "minmax",
        reduce: Reduce = "mean",
        norm: Norm = "minmax",
    ) -> None:
        super().__init__(model, layers, layer_norm=layer_norm, reduce=reduce, norm=norm)
        check_range(self._where, "percentile", percentile, 0.0, 100.0)
        check_choice(self._where, "scope", scope, ["map", "sample"])
        self.percentile = percentile
        self.scope: Literal["map", "sample"] = scope


class LTGradCAM(TruncatedCAM):
    """LTGrad-CAM: Grad-CAM with truncated gradients in every stage (LTGrad-CAM eq. 8-11).

    See :class:`TruncatedCAM` for the arguments.
    """

    def layer_map(self, activations: Tensor, grads: Tensor) -> Tensor:
        """``relu(sum_k mean(T(g_k)) A_k)``."""
        return ops.truncated_gradcam(
            activations, grads, self.percentile, scope=self.scope, dtype=torch.float32
        )


class LTLayerCAM(TruncatedCAM):
    """LT-LayerCAM: LayerCAM with truncated gradients in every stage (LTGrad-CAM section 3.3).

    See :class:`TruncatedCAM` for the arguments.
    """

    def layer_map(self, activations: Tensor, grads: Tensor) -> Tensor:
        """``relu(sum_k T(g_k) * A_k)``."""
        return ops.truncated_layercam(
            activations, grads, self.percentile, scope=self.scope, dtype=torch.float32
        )


METHODS: dict[str, type[GradientCAM]] = {
    method.__name__.lower(): method for method in (GradCAM, LayerCAM, LTGradCAM, LTLayerCAM)
}
