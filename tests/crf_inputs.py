"""Images and maps for the tests of the dense CRF."""

import torch
from torch.nn import functional as F


def smooth_image(n: int, height: int, width: int, channels: int = 3) -> torch.Tensor:
    """Float 0-255 images with soft edges and some noise."""
    coarse = torch.rand(n, channels, 4, 4, dtype=torch.float64) * 255
    fine = F.interpolate(coarse, (height, width), mode="bilinear", align_corners=False)
    return (fine + 3 * torch.randn_like(fine)).clamp(0, 255).float()


def soft(n: int, classes: int, height: int, width: int, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(n, classes, height, width).softmax(dim=1).to(dtype)


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Norm of the difference over that of what was wanted."""
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())
