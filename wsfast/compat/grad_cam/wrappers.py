"""Classes around others: Finer-CAM, RefineCAM, guided backpropagation."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ... import ops
from ..._check import type_error
from ...cam import filtered_backprop
from ...cam.capture import logits_of, undisturbed
from ...cam.perturbation import PerturbationCAM
from .._shared import Managed, OutputTarget
from .base import BaseCAM, Maps, Reshape, to_numpy
from .methods import FullGrad, GradCAM, GradCAMPlusPlus
from .targets import finer_score


def _checked(where: str, base_method: object) -> type[BaseCAM]:
    """A class of this package whose layers have maps of their own."""
    known = isinstance(base_method, type) and issubclass(base_method, BaseCAM)
    if not known or base_method is FullGrad:
        actual = getattr(base_method, "__name__", f"{base_method}")
        type_error(where, "base_method", "a class of wsfast.compat.grad_cam with layers", actual)
    return base_method  # type: ignore[return-value]


class FinerCAM(Managed):
    """The class of highest score against the ones that come close to it (Finer-CAM 2025).

    Args:
        model: see :class:`BaseCAM`.
        target_layers: see :class:`BaseCAM`.
        reshape_transform: see :class:`BaseCAM`.
        base_method: a class of this package.

    Raises:
        TypeError: another ``base_method``.
    """

    def __init__(
        self,
        model: nn.Module,
        target_layers: Sequence[nn.Module],
        reshape_transform: Reshape | None = None,
        base_method: type[BaseCAM] = GradCAM,
    ) -> None:
        kind = _checked("compat.grad_cam.FinerCAM", base_method)
        self.base_cam = kind(model, target_layers, reshape_transform)

    def __call__(self, *args: Any, **options: Any) -> Maps:
        """See :meth:`forward`."""
        return self.forward(*args, **options)

    def forward(
        self,
        input_tensor: Tensor,
        targets: Sequence[OutputTarget] | None = None,
        eigen_smooth: bool = False,
        alpha: float = 1,
        comparison_categories: Sequence[int] | None = None,
        target_idx: int | None = None,
    ) -> Maps:
        """Explain one batch.

        Args:
            input_tensor: (N, C, H, W).
            targets: in place of the comparison, see :meth:`BaseCAM.__call__`.
            eigen_smooth: see :meth:`BaseCAM.__call__`.
            alpha: strength of the comparison.
            comparison_categories: ranks of the compared classes by their scores' distance to the
                explained one's (rank 0); None takes 1, 2 and 3.
            target_idx: the explained class; None takes that of highest score.

        Returns:
            (N, H, W) float32, each map in 0-1.
        """
        fixed = self._unperturbed(input_tensor) if targets is None else None

        def objective(logits: Tensor) -> Tensor:
            ranks = (1, 2, 3) if comparison_categories is None else comparison_categories
            scores = (logits if fixed is None else fixed).detach()
            score = scores.amax(dim=1) if target_idx is None else scores[:, target_idx]
            order = (scores - score[:, None]).abs().argsort(dim=1, stable=True)
            others = [rank for rank in ranks if rank < scores.shape[1]]
            return finer_score(logits, order[:, :1], order[:, others], alpha)

        chosen = objective if targets is None else targets
        return to_numpy(self.base_cam.explain(input_tensor, chosen, eigen_smooth).cams)

    def _unperturbed(self, input_tensor: Tensor) -> Tensor | None:
        """Logits of the images as they are, for methods that ask for scores of changed ones."""
        if not issubclass(type(self.base_cam).method or object, PerturbationCAM):
            return None
        model, images = self.base_cam.model, input_tensor.to(self.base_cam.device)
        with undisturbed(model, images.device):
            return logits_of("compat.grad_cam.FinerCAM", model(images.clone()), images)


class RefineCAM(Managed):
    """The product of the layers' maps (RefineCAM 2026).

    Args:
        model: see :class:`BaseCAM`.
        target_layers: see :class:`BaseCAM`.
        reshape_transform: see :class:`BaseCAM`.
        base_method: a class of this package.
        kwargs: for ``base_method``.

    Raises:
        TypeError: another ``base_method``.
    """

    def __init__(
        self,
        model: nn.Module,
        target_layers: Sequence[nn.Module],
        reshape_transform: Reshape | None = None,
        base_method: type[BaseCAM] = GradCAMPlusPlus,
        **kwargs: Any,
    ) -> None:
        kind = _checked("compat.grad_cam.RefineCAM", base_method)
        self.base_cam = kind(model, target_layers, reshape_transform, **kwargs)

    def __call__(self, *args: Any, **options: Any) -> Maps:
        """See :meth:`forward`."""
        return self.forward(*args, **options)

    def forward(
        self,
        input_tensor: Tensor,
        targets: Sequence[OutputTarget] | None = None,
        eigen_smooth: bool = False,
    ) -> Maps:
        """Explain one batch in one pass for all layers, see :meth:`BaseCAM.__call__`."""
        result = self.base_cam.explain(input_tensor, targets, eigen_smooth)
        size = (input_tensor.shape[2], input_tensor.shape[3])
        product = torch.ones_like(result.cams)
        for layer in result.per_layer:
            product *= ops.fuse_cams([layer], size)
        return to_numpy(ops.normalize_cams(product))


class GuidedBackpropReLUModel:
    """Guided backpropagation to the image (:func:`wsfast.cam.filtered_backprop` at 0).

    Args:
        model: put into evaluation mode; its ReLUs have to be modules and are left in place.
        device: to move the model to.
    """

    def __init__(self, model: nn.Module, device: str | torch.device | None = None) -> None:
        self.model = model.eval()
        self.device = next(model.parameters()).device if device is None else torch.device(device)
        self.model = self.model.to(self.device)

    def forward(self, input_img: Tensor) -> Tensor:
        """The model's output."""
        output: Tensor = self.model(input_img)
        return output

    def __call__(
        self, input_img: Tensor, target_category: int | None = None
    ) -> NDArray[np.float32]:
        """The gradient (H, W, C) of a score of the first image; None takes the highest score."""
        images = input_img[:1].detach().to(self.device).clone().requires_grad_()
        with filtered_backprop(self.model, 0.0, fc="guided"), torch.enable_grad():
            logits = self.forward(images)
            category = int(logits.argmax()) if target_category is None else target_category
            (grads,) = torch.autograd.grad(logits[0, category], images)
        found: NDArray[np.float32] = grads[0].permute(1, 2, 0).cpu().numpy()
        return found
