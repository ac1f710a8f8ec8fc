"""The classes of one method each."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ... import cam as cam_methods
from ..._check import value_error
from ...cam import CAMMethod, ChannelCAM, GradientCAM
from ...cam.capture import Captured, LayerCapture
from ...cam.layers import Layers
from ...cam.targets import ScoreSeed
from .base import BaseCAM, Reshape
from .eigen import (
    ActivationCAM,
    Principal,
    PrincipalOfChannels,
    PrincipalOfPerturbation,
    WeightedCAM,
    principal_maps,
)


class _SmoothGradCAM(PrincipalOfChannels, cam_methods.GradCAM):
    pass


class GradCAM(BaseCAM):
    """:class:`wsfast.cam.GradCAM`."""

    method = cam_methods.GradCAM
    smooth_method = _SmoothGradCAM


class _PlusPlus(cam_methods.GradCAMPlusPlus):
    """Grad-CAM++ with pytorch-grad-cam's epsilon."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, alpha_eps=1e-6, **options)


class _SmoothPlusPlus(PrincipalOfChannels, _PlusPlus):
    pass


class GradCAMPlusPlus(BaseCAM):
    """:class:`wsfast.cam.GradCAMPlusPlus` with pytorch-grad-cam's epsilon."""

    method = _PlusPlus
    smooth_method = _SmoothPlusPlus


class _SmoothXGradCAM(PrincipalOfChannels, cam_methods.XGradCAM):
    pass


class XGradCAM(BaseCAM):
    """:class:`wsfast.cam.XGradCAM`."""

    method = cam_methods.XGradCAM
    smooth_method = _SmoothXGradCAM


class _SmoothHiResCAM(Principal):
    def weighted(self, activations: Tensor, grads: Tensor) -> Tensor:
        return grads * activations


class HiResCAM(BaseCAM):
    """:class:`wsfast.cam.HiResCAM`."""

    method = cam_methods.HiResCAM
    smooth_method = _SmoothHiResCAM


class _ElementWise(WeightedCAM):
    """``sum_k relu(g_k * A_k)``."""

    def weighted(self, activations: Tensor, grads: Tensor) -> Tensor:
        return (grads * activations).relu_()


class _SmoothElementWise(Principal, _ElementWise):
    pass


class GradCAMElementWise(BaseCAM):
    """``sum_k relu(g_k * A_k)``."""

    method = _ElementWise
    smooth_method = _SmoothElementWise


class _SmoothLayerCAM(Principal):
    def weighted(self, activations: Tensor, grads: Tensor) -> Tensor:
        return grads.relu() * activations


class LayerCAM(BaseCAM):
    """:class:`wsfast.cam.LayerCAM`."""

    method = cam_methods.LayerCAM
    smooth_method = _SmoothLayerCAM


class _Random(ChannelCAM):
    def channel_weights(self, activations: Tensor, grads: Tensor) -> Tensor:
        drawn = np.random.uniform(-1, 1, size=tuple(grads.shape[:2]))  # noqa: NPY002
        return torch.from_numpy(drawn).to(grads.device, torch.float32)


class _SmoothRandom(PrincipalOfChannels, _Random):
    pass


class RandomCAM(BaseCAM):
    """Weights drawn uniformly from -1 to 1, by NumPy's global generator: a baseline."""

    method = _Random
    smooth_method = _SmoothRandom


class _Shapley(WeightedCAM):
    """Weights ``mean(g - H A / 2)`` with H the Hessian of the score at the layer's output."""

    def _run(self, capture: LayerCapture, images: Tensor, *, create_graph: bool) -> Captured:
        return capture.run(images, graph="whole")

    def _maps(
        self, captured: Captured, seed: ScoreSeed, *, keep_graph: bool, create_graph: bool
    ) -> list[Tensor]:
        grads = captured.output_gradients(seed.scores, seed.weights, keep_graph=True)
        maps = []
        for name, output, grad in zip(captured.names, captured.outputs(), grads, strict=True):
            to_maps = captured.layouts[name].to_maps
            curved = grad.detach() - 0.5 * _hessian_product(grad, output)
            maps.append(self.layer_map(to_maps(output.detach()), to_maps(curved)))
        return maps

    def weighted(self, activations: Tensor, grads: Tensor) -> Tensor:
        return grads.mean(dim=(2, 3), keepdim=True) * activations


def _hessian_product(grads: Tensor, output: Tensor) -> Tensor:
    """``H A``; zero behind the layer where the model is linear between its ReLUs."""
    found = None
    if grads.requires_grad:
        (found,) = torch.autograd.grad(
            grads, output, output.detach(), retain_graph=True, allow_unused=True
        )
    return torch.zeros_like(grads) if found is None else found.detach()


class _SmoothShapley(Principal, _Shapley):
    pass


class ShapleyCAM(BaseCAM):
    """Grad-CAM with the curvature of the score: weights ``mean(g - H A / 2)`` (ShapleyCAM 2025).

    Two backward passes. Several layers are allowed. H A is that of the layer's whole output, a
    transformer's class token included. Attention runs unfused, as fused attention has no second
    derivative.

    Raises:
        RuntimeError: another operation behind the layer has no second derivative.
    """

    method = _Shapley
    smooth_method = _SmoothShapley


class _Sigma(ActivationCAM):
    def __init__(self, k: float, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.k = k

    def layer_map(self, activations: Tensor) -> Tensor:
        mean = activations.mean(dim=(2, 3), keepdim=True)
        limit = mean + self.k * activations.std(dim=(2, 3), keepdim=True, correction=0)
        weights = (activations > limit).float().mean(dim=(2, 3), keepdim=True)
        return (weights * activations).sum(dim=1)


class FEM(BaseCAM):
    """Channels weigh the share of their pixels above mean + k standard deviations (FEM 2020).

    Args:
        model: see :class:`BaseCAM`.
        target_layers: see :class:`BaseCAM`.
        reshape_transform: see :class:`BaseCAM`.
        k: of standard deviations.
    """

    method = _Sigma

    def __init__(
        self,
        model: nn.Module,
        target_layers: Sequence[nn.Module],
        reshape_transform: Reshape | None = None,
        k: float = 2,
    ) -> None:
        self.k = k
        super().__init__(model, target_layers, reshape_transform)

    def _build(self, method: Callable[..., CAMMethod]) -> CAMMethod:
        return method(self.k, self.model, self.target_layers, reshape=self.reshape_transform)

    def _smooth(self) -> CAMMethod:
        return self._cam  # as there, it changes nothing


class _PlainFullGrad(cam_methods.FullGrad):
    """FullGrad over torch's own layers with a ``bias``, not over classes derived from them."""

    def _find_layers(self, layers: Layers) -> dict[str, nn.Module]:
        return {
            name: module
            for name, module in super()._find_layers(layers).items()
            if type(module) in (nn.Conv2d, nn.BatchNorm2d) and module.bias is not None
        }


class FullGrad(BaseCAM):
    """:class:`wsfast.cam.FullGrad` over the biases that pytorch-grad-cam finds.

    These are torch's own Conv2d and BatchNorm2d, whatever ``target_layers`` are. timm's
    BatchNormAct2d (EfficientNet, DenseNet, RegNet) is left out; :class:`wsfast.cam.FullGrad` takes
    it, too.
    """

    method = _PlainFullGrad

    def __init__(
        self,
        model: nn.Module,
        target_layers: Sequence[nn.Module] = (),
        reshape_transform: Reshape | None = None,
    ) -> None:
        super().__init__(model, target_layers, reshape_transform)

    def _build(self, method: Callable[..., CAMMethod]) -> CAMMethod:
        return method(self.model)


class _AlignedScoreCAM(cam_methods.ScoreCAM):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, align_corners=True, **options)


class _SmoothScoreCAM(PrincipalOfPerturbation, _AlignedScoreCAM):
    pass


class ScoreCAM(BaseCAM):
    """:class:`wsfast.cam.ScoreCAM` with corners aligned."""

    method = _AlignedScoreCAM
    smooth_method = _SmoothScoreCAM


class _SignedAblationCAM(cam_methods.AblationCAM):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, signed=True, **options)


class _SmoothAblationCAM(PrincipalOfPerturbation, _SignedAblationCAM):
    pass


class AblationCAM(BaseCAM):
    """:class:`wsfast.cam.AblationCAM`, divided by the signed score.

    Args:
        model: see :class:`BaseCAM`.
        target_layers: see :class:`BaseCAM`.
        reshape_transform: see :class:`BaseCAM`.
        ablation_layer: taken and ignored.
        batch_size: taken and ignored: groups of channels follow the memory.
        ratio_channels_to_ablate: 1.0.
    """

    method = _SignedAblationCAM
    smooth_method = _SmoothAblationCAM

    def __init__(
        self,
        model: nn.Module,
        target_layers: Sequence[nn.Module],
        reshape_transform: Reshape | None = None,
        ablation_layer: nn.Module | None = None,
        batch_size: int = 32,
        ratio_channels_to_ablate: float = 1.0,
    ) -> None:
        super().__init__(model, target_layers, reshape_transform)
        self.batch_size = batch_size
        if ratio_channels_to_ablate != 1.0:
            actual = f"{ratio_channels_to_ablate}"
            value_error(self._where, "ratio_channels_to_ablate", "1.0", actual)


class _Eigen(ActivationCAM):
    def layer_map(self, activations: Tensor) -> Tensor:
        return principal_maps(activations)


class _EigenGrad(Principal):
    def weighted(self, activations: Tensor, grads: Tensor) -> Tensor:
        return grads * activations


class _SegEigen(GradientCAM):
    def layer_map(self, activations: Tensor, grads: Tensor) -> Tensor:
        maps = principal_maps(grads.float().abs() * activations.float())
        turned = -maps.amin(dim=(1, 2)) > maps.amax(dim=(1, 2))
        return torch.where(turned[:, None, None], -maps, maps).relu()


class _Eigenvalue(BaseCAM):
    """A class that smooths as it is, so that ``eigen_smooth`` changes nothing."""

    def _smooth(self) -> CAMMethod:
        return self._cam


class EigenCAM(_Eigenvalue):
    """The principal component of the activations; targets change nothing."""

    method = _Eigen


class EigenGradCAM(_Eigenvalue):
    """The principal component of ``g * A``."""

    method = _EigenGrad


class SegEigenCAM(_Eigenvalue):
    """The principal component of ``|g| * A``, turned so that its largest value is positive."""

    method = _SegEigen
