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
    value_error,
)
from .capture import Captured, LayerCapture
from .layers import Layers, dry_run_layers, resolve_layers, unwrap
from .result import CAMResult
from .targets import ScoreSeed, Target, in_range, resolve_target, score_seeds

Norm = Literal["minmax", "max"] | None
Reduce = Literal["mean", "sum", "max", "prod"]
Scope = Literal["map", "sample"]


class GradientCAM:
    """Base of the gradient methods; a method defines :meth:`layer_map`.

    Args:
        model: a classifier giving (N, classes) logits, alone or as ``logits`` or first item of its
            output. Its mode, ``requires_grad`` flags, ``.grad``, buffers and hooks are left as
            found; DataParallel, DDP and compiled wrappers are looked through.
        layers: ``"stages"`` (default: the last layer of each resolution), ``"last"``, a module
            name, a module, or a list of names and modules.
        layer_norm: normalisation of each layer's map before fusion, ``"minmax"``, ``"max"`` or
            None.
        reduce: fusion over layers, ``"mean"``, ``"sum"``, ``"max"`` or ``"prod"``.
        norm: normalisation of the fused map, ``"minmax"``, ``"max"`` or None.
        weights: one factor per layer, (L,) tensor or list; None weighs all alike.
        eps: absolute, added to the divisors of the normalisations.

    The defaults fuse as pytorch-grad-cam does. ``layer_norm=None, reduce="sum", norm=None`` is the
    literal sum over layers of LTGrad-CAM eq. 8 and 10.

    Raises:
        ValueError: unknown layers or options.
        TypeError: a model that is not an eager module.

    Note:
        timm models name their stages in ``feature_info``; for others ``"stages"`` and ``"last"``
        cost a dry run on one image, once, at the first call.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Layers = "stages",
        *,
        layer_norm: Norm = "minmax",
        reduce: Reduce = "mean",
        norm: Norm = "minmax",
        weights: Tensor | list[float] | None = None,
        eps: float = 1e-7,
    ) -> None:
        where = f"cam.{type(self).__name__}"
        check_choice(where, "reduce", reduce, ["mean", "sum", "max", "prod"])
        for argument, value in (("layer_norm", layer_norm), ("norm", norm)):
            if value is not None:
                check_choice(where, argument, value, ["minmax", "max"])
        check_range(where, "eps", eps, 0.0, 1.0)
        self.model = unwrap(where, model)
        self.layers = layers
        self.layer_norm: Norm = layer_norm
        self.reduce: Reduce = reduce
        self.norm: Norm = norm
        self.weights = weights
        self.eps = eps
        self._where = where
        found = resolve_layers(where, self.model, layers)
        self._capture = LayerCapture(where, self.model, found) if found else None

    @property
    def layer_names(self) -> tuple[str, ...] | None:
        """Names of the layers looked at; None before a first call that has to find them."""
        return tuple(self._capture.layers) if self._capture else None

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
            ValueError: a layer that does not run, that gives no (N, C, h, w) tensor or that the
                scores do not depend on; a target of wrong shape or range; a model that is not a
                classifier; ``torch.inference_mode``.
            TypeError: images that are not floating point, a target that is no class number.

        Note:
            One forward pass and one backward pass per class, down to the shallowest layer only.
            The model runs in evaluation mode whatever its mode. Works under ``torch.no_grad`` and
            with frozen models; under autocast gradients are reduced in float32. Not
            differentiable. No device sync.
        """
        where = self._where
        check_tensor(where, "images", images)
        check_floating(where, "images", images)
        check_rank(where, "images", images, 4)
        if 0 in images.shape:
            shape = f"shape {list(images.shape)}"
            value_error(where, "images", "a batch of at least one image and pixel", shape)
        if self._capture is None:
            layers = dry_run_layers(where, self.model, self.layers, images)
            self._capture = LayerCapture(where, self.model, layers)
        captured = self._capture.run(images)
        classes = resolve_target(where, target, captured.logits)
        seeds = score_seeds(where, target, classes, captured.logits)
        by_class = [
            self._maps(captured, seed, images, keep_graph=seed is not seeds[-1]) for seed in seeds
        ]
        maps = [torch.stack(layer, dim=1) for layer in zip(*by_class, strict=True)]
        logits = captured.logits.detach()
        cams, maps, valid = self._fuse(maps, _finite(logits) & in_range(classes, logits), images)
        if classes is None or classes.dim() == 1:
            cams, maps = cams[:, 0], [layer[:, 0] for layer in maps]
        return CAMResult(cams, maps, logits, classes, valid)

    def _maps(
        self, captured: Captured, seed: ScoreSeed, images: Tensor, *, keep_graph: bool
    ) -> list[Tensor]:
        """(N, h, w) maps of the layers for one class per image."""
        grads = captured.gradients(seed.scores, seed.weights, keep_graph=keep_graph)
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            return [
                self.layer_map(a, g).float().to(images.device)
                for a, g in zip(captured.activations(), grads, strict=True)
            ]

    def _fuse(
        self, maps: list[Tensor], valid: Tensor, images: Tensor
    ) -> tuple[Tensor, list[Tensor], Tensor]:
        """Fused and single maps, zero where an image is not valid, and which images are."""
        size = (images.shape[2], images.shape[3])
        valid = valid.to(images.device)
        for layer in maps:
            valid = valid & _finite(layer)
        maps = [layer.masked_fill(~valid[:, None, None, None], 0.0) for layer in maps]
        cams = ops.fuse_cams(
            [layer.flatten(0, 1) for layer in maps],
            size,
            layer_norm=self.layer_norm,
            reduce=self.reduce,
            norm=self.norm,
            weights=self.weights,
            eps=self.eps,
        )
        return cams.unflatten(0, maps[0].shape[:2]), maps, valid


def _finite(values: Tensor) -> Tensor:
    """(N,) bool: whether all of an image's values are finite."""
    return values.isfinite().flatten(1).all(dim=1)


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
        weights = grads.mean(dim=(2, 3), dtype=torch.float32)
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
        weights: see :class:`GradientCAM`.
        eps: see :class:`GradientCAM`.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Layers = "stages",
        *,
        percentile: float = 50.0,
        scope: Scope = "map",
        layer_norm: Norm = "minmax",
        reduce: Reduce = "mean",
        norm: Norm = "minmax",
        weights: Tensor | list[float] | None = None,
        eps: float = 1e-7,
    ) -> None:
        super().__init__(
            model,
            layers,
            layer_norm=layer_norm,
            reduce=reduce,
            norm=norm,
            weights=weights,
            eps=eps,
        )
        check_range(self._where, "percentile", percentile, 0.0, 100.0)
        check_choice(self._where, "scope", scope, ["map", "sample"])
        self.percentile = percentile
        self.scope: Scope = scope


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
