"""Seeded inputs that several bench files share."""

import torch
from torch import Tensor
from torch.nn import functional as F

from .records import Size

VGG16_CHANNELS = (64, 128, 256, 512, 512)
MAX_POOLED = "max-pooled"


def stage_sides(side: int) -> list[int]:
    """Side of each VGG16 stage for images of ``side`` pixels."""
    return [max(1, side >> stage) for stage in range(len(VGG16_CHANNELS))]


def gradients(batch: int, channels: int, side: int, generator: torch.Generator) -> Tensor:
    """Gaussian gradients (N, C, H, W)."""
    return torch.randn(batch, channels, side, side, generator=generator)


def max_pooled(grads: Tensor, generator: torch.Generator) -> Tensor:
    """Keep one gradient in four, as they arrive through a 2x2 max-pool."""
    return grads * (torch.rand(grads.shape, generator=generator) < 0.25)


def stages(size: Size, generator: torch.Generator) -> list[tuple[Tensor, Tensor]]:
    """Activations and gradients of VGG16's five stages, (N, C, H, W) each."""
    pairs = []
    for channels, side in zip(VGG16_CHANNELS, stage_sides(size.side), strict=True):
        grads = gradients(size.batch, channels, side, generator)
        if size.variant == MAX_POOLED:
            grads = max_pooled(grads, generator)
        pairs.append((gradients(size.batch, channels, side, generator).relu(), grads))
    return pairs


def blobs(batch: int, side: int, generator: torch.Generator, cells: int = 14) -> Tensor:
    """Smooth maps (N, H, W) in 0-1, like an upsampled CAM of ``cells`` x ``cells``."""
    coarse = torch.randn(batch, 1, cells, cells, generator=generator)
    maps = F.interpolate(coarse, (side, side), mode="bicubic", align_corners=False)[:, 0]
    low, high = maps.amin(dim=(1, 2), keepdim=True), maps.amax(dim=(1, 2), keepdim=True)
    return (maps - low) / (high - low).clamp(min=torch.finfo(maps.dtype).tiny)  # one pixel is flat


def scenes(batch: int, side: int, generator: torch.Generator) -> Tensor:
    """Images (N, 3, H, W) of 0-255: coloured regions with soft edges, shading and some noise.

    With sigmas of 15 and 100 their bilateral lattices have about 0.05 vertices per pixel at a side
    of 224, as photographs do.
    """
    regions = 9
    fields = [blobs(batch, side, generator, cells=6) for _ in range(regions)]
    region = torch.stack(fields, dim=1).argmax(dim=1)
    palette = 20 + 200 * torch.rand(batch, regions, 3, generator=generator)
    colour = palette[torch.arange(batch)[:, None, None], region].permute(0, 3, 1, 2)
    colour = F.avg_pool2d(colour, 3, stride=1, padding=1, count_include_pad=False)
    light = 0.6 + 0.5 * blobs(batch, side, generator, cells=3)[:, None]
    grain = 4 * torch.randn(batch, 1, side, side, generator=generator)
    return (colour * light + grain).clamp(0, 255).contiguous()
