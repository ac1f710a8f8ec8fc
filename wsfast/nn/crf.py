"""The dense-CRF loss as a module."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import ops
from .._check import check_range


class DenseCRFLoss(torch.nn.Module):
    """:func:`wsfast.dense_crf_loss` with its options kept and a weight.

    Args:
        weight: factor of the loss; people use 2e-9 with the rloss form.
        sigma_rgb: > 0, in the image's units; a number or one per channel.
        sigma_xy: > 0, in pixels before scaling.
        scale_factor: > 0, of the resolution at which the loss is computed.
        form: ``"rloss"`` or ``"paper"``.
        normalize: None, ``"pixels"`` or ``"affinity"``.
        method: ``"lattice"``, ``"dense"`` or ``"exact"``.
        symmetric: False for the gradient of the known implementations.
        reduction: ``"batchmean"``, ``"sum"`` or ``"none"``.

    Raises:
        TypeError: a ``weight`` that is no number.
        ValueError: a ``weight`` of NaN. The other options are checked by the first call.

    Example:
        >>> loss = DenseCRFLoss(2e-9)
        >>> prob = torch.rand(1, 2, 8, 8).softmax(dim=1)
        >>> loss(torch.rand(1, 3, 8, 8) * 255, prob).shape
        torch.Size([])
    """

    def __init__(
        self,
        weight: float = 1.0,
        *,
        sigma_rgb: float | Sequence[float] = 15.0,
        sigma_xy: float = 100.0,
        scale_factor: float = 1.0,
        form: str = "rloss",
        normalize: str | None = None,
        method: str = "lattice",
        symmetric: bool = True,
        reduction: str = "batchmean",
    ) -> None:
        super().__init__()
        check_range("nn.DenseCRFLoss", "weight", weight, -math.inf, math.inf)
        self.weight = float(weight)
        self.sigma_rgb = sigma_rgb
        self.sigma_xy = sigma_xy
        self.scale_factor = scale_factor
        self.form = form
        self.normalize = normalize
        self.method = method
        self.symmetric = symmetric
        self.reduction = reduction

    def forward(self, image: Tensor, prob: Tensor, roi: Tensor | None = None) -> Tensor:
        """The weighted loss of (B, C, H, W) images and (B, K, H, W) maps; see the function."""
        loss = ops.dense_crf_loss(
            image,
            prob,
            sigma_rgb=self.sigma_rgb,
            sigma_xy=self.sigma_xy,
            scale_factor=self.scale_factor,
            roi=roi,
            form=self.form,
            normalize=self.normalize,
            method=self.method,
            symmetric=self.symmetric,
            reduction=self.reduction,
        )
        return self.weight * loss

    def extra_repr(self) -> str:
        """The options, as ``print(module)`` shows them."""
        return (
            f"weight={self.weight}, sigma_rgb={self.sigma_rgb}, sigma_xy={self.sigma_xy}, "
            f"scale_factor={self.scale_factor}, form={self.form!r}"
        )
