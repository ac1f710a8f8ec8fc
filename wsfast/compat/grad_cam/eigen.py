"""What makes maps principal components: Eigen-CAM and its kin, and ``eigen_smooth``.

The first principal component of a layer's weighted activations over its pixels (Muhammad 2020,
eq. 2-4), by LAPACK on the CPU as pytorch-grad-cam does it: its sign is LAPACK's choice, and the
same only from the same routine.
"""

import numpy as np
import torch
from torch import Tensor

from ...cam import CAMMethod, ChannelCAM, GradientCAM, PerturbationCAM
from ...cam.base import Explained
from ...cam.capture import LayerCapture
from ...cam.targets import Target, resolve_target


def principal_maps(weighted: Tensor) -> Tensor:
    """(N, C, h, w) to (N, h, w): the pixels' channels along their first principal component."""
    pixels = weighted.detach().nan_to_num(nan=0.0).cpu().flatten(2).mT.numpy()
    pixels = pixels - pixels.mean(axis=1, keepdims=True)
    components = np.linalg.svd(pixels, full_matrices=False)[2][:, 0, :, None]
    maps = torch.from_numpy(pixels @ components)[..., 0]
    return maps.unflatten(1, weighted.shape[2:]).to(weighted.device)


class WeightedCAM(GradientCAM):
    """Base of methods that weigh each pixel of each channel; one defines :meth:`weighted`."""

    def weighted(self, activations: Tensor, grads: Tensor) -> Tensor:
        """Weighted activations (N, C, h, w) of one layer, before the sum over channels."""
        raise NotImplementedError

    def layer_map(self, activations: Tensor, grads: Tensor) -> Tensor:
        """``relu`` of their sum."""
        return self.weighted(activations.float(), grads.float()).sum(dim=1).relu_()


class Principal(WeightedCAM):
    """Mixin before a :class:`WeightedCAM`: its principal component in place of the sum."""

    def layer_map(self, activations: Tensor, grads: Tensor) -> Tensor:
        """``relu`` of the component."""
        return principal_maps(self.weighted(activations.float(), grads.float())).relu_()


class PrincipalOfChannels(ChannelCAM):
    """Mixin before a :class:`wsfast.cam.ChannelCAM`: the component of ``w_k A_k``."""

    def layer_map(self, activations: Tensor, grads: Tensor) -> Tensor:
        """``relu`` of the component."""
        weights = self.channel_weights(activations, grads)
        return principal_maps(weights[:, :, None, None] * activations.float()).relu_()


class PrincipalOfPerturbation(PerturbationCAM):
    """Mixin before a :class:`wsfast.cam.PerturbationCAM`: the component of ``w_k A_k``."""

    def layer_maps(self, weights: Tensor, activations: Tensor) -> Tensor:
        """``relu`` of the component, per image and class."""
        weighted = weights[..., None, None] * activations.float()[:, None]
        return principal_maps(weighted.flatten(0, 1)).unflatten(0, weights.shape[:2]).relu_()


class ActivationCAM(CAMMethod):
    """Base of methods that look at activations alone; one defines :meth:`layer_map`."""

    differentiable = False

    def layer_map(self, activations: Tensor) -> Tensor:
        """Map (N, h, w), float32, of one layer."""
        raise NotImplementedError

    def explain(
        self, capture: LayerCapture, images: Tensor, target: Target, *, create_graph: bool
    ) -> Explained:
        """One forward pass."""
        captured = capture.run(images, graph="none")
        classes = resolve_target(self._where, target, captured.logits)
        with torch.no_grad():
            maps = [self.layer_map(a.float()).relu()[:, None] for a in captured.activations()]
        return Explained(maps, captured.logits, classes)
