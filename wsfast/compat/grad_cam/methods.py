"""The classes that weigh activations."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ... import cam as cam_methods
from ..._check import value_error
from ...cam import CAMMethod, ChannelCAM
from ...cam.capture import Captured, LayerCapture
from ...cam.targets import ScoreSeed
from .base import BaseCAM, Reshape
from .eigen import (
    ActivationCAM,
    Principal,
    PrincipalOfChannels,
    PrincipalOfPerturbation,
    WeightedCAM,
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


class _Shapley(ChannelCAM):
    """Weights ``mean(g - H A / 2)`` with H the Hessian of the score at the layer."""

    def _run(self, capture: LayerCapture, images: Tensor, *, create_graph: bool) -> Captured:
        return capture.run(images, graph="whole")

    def _maps(
        self, captured: Captured, seed: ScoreSeed, *, keep_graph: bool, create_graph: bool
    ) -> list[Tensor]:
        grads = captured.gradients(seed.scores, seed.weights, keep_graph=True)
        maps = []
        for activations, grad in zip(captured.activations(), grads, strict=True):
            curved = _hessian_product(grad, activations)
            maps.append(self.layer_map(activations.detach(), grad.detach() - 0.5 * curved))
        return maps

    def channel_weights(self, activations: Tensor, grads: Tensor) -> Tensor:
        return grads.mean(dim=(2, 3), dtype=torch.float32)


def _hessian_product(grads: Tensor, activations: Tensor) -> Tensor:
    """``H A``; zero behind the layer where the model is linear between its ReLUs."""
    found = None
    if grads.requires_grad:
        (found,) = torch.autograd.grad(
            grads, activations, activations.detach(), retain_graph=True, allow_unused=True
        )
    return torch.zeros_like(grads) if found is None else found.detach()


class _SmoothShapley(PrincipalOfChannels, _Shapley):
    pass


class ShapleyCAM(BaseCAM):
    """Grad-CAM with the curvature of the score: weights ``mean(g - H A / 2)`` (ShapleyCAM 2025).

    Two backward passes. Several layers are allowed. Of transformers the patch tokens alone count.
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


class FullGrad(BaseCAM):
    """:class:`wsfast.cam.FullGrad` over all biases, whatever ``target_layers`` are."""

    method = cam_methods.FullGrad

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
