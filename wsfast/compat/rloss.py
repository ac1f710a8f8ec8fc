"""``DenseCRFLoss`` with the constructor and call of rloss, F-CAM and DiPS; no SWIG, any device.

    # in place of: from DenseCRFLoss import DenseCRFLoss
    from wsfast.compat.rloss import DenseCRFLoss

Same value. The gradient is the exact one of that value, 1-2 per cent from the known one on images;
``symmetric=False`` gives the known one.
"""

from torch import Tensor

from .. import nn


class DenseCRFLoss(nn.DenseCRFLoss):
    """The dense-CRF loss of rloss (Tang et al. 2018) on any device.

    Args:
        weight: factor of the loss; 2e-9 there.
        sigma_rgb: > 0, for images of 0-255; 15 there.
        sigma_xy: > 0, in pixels before scaling; 100 there.
        scale_factor: > 0, of the resolution at which the loss is computed; 0.5 in rloss, 1 in F-CAM
            and DiPS.
        symmetric: False for the gradient of the known implementation.

    Example:
        >>> import torch
        >>> layer = DenseCRFLoss(2e-9, 15.0, 100.0, 0.5)
        >>> layer(torch.rand(2, 3, 16, 16) * 255, torch.rand(2, 2, 16, 16).softmax(dim=1)).shape
        torch.Size([1])
    """

    def __init__(
        self,
        weight: float,
        sigma_rgb: float,
        sigma_xy: float,
        scale_factor: float,
        *,
        symmetric: bool = True,
    ) -> None:
        super().__init__(
            weight,
            sigma_rgb=sigma_rgb,
            sigma_xy=sigma_xy,
            scale_factor=scale_factor,
            symmetric=symmetric,
        )

    def forward(self, images: Tensor, segmentations: Tensor, ROIs: Tensor | None = None) -> Tensor:
        """The loss as one element, on the device of ``segmentations``.

        Args:
            images: (B, C, H, W) of 0-255, uint8 or float, on any device.
            segmentations: (B, K, H, W) softmax.
            ROIs: (B, H, W) or (B, 1, H, W), left as they are; None for whole images.
        """
        device = segmentations.device
        towards_it = device.type != "cpu"  # nothing would wait for a copy back to the host
        loss = super().forward(
            images.detach().to(device, non_blocking=towards_it),
            segmentations,
            None if ROIs is None else ROIs.to(device, non_blocking=towards_it),
        )
        return loss.reshape(1)

    def extra_repr(self) -> str:
        """The options, as the known module prints them."""
        return (
            f"sigma_rgb={self.sigma_rgb}, sigma_xy={self.sigma_xy}, weight={self.weight}, "
            f"scale_factor={self.scale_factor}"
        )
