"""Seed sampling in pure PyTorch: readable, exact, slow.

Regions and draws are the same step: give every pixel an integer key, keep the n smallest. The
native kernels compute the same keys, so they choose the same pixels.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from ..boxes import reference as boxes_reference
from .keys import mix64

IGNORED = -255
EXCLUDED = 2**63 - 1
_WORD = 2**32 - 1
_ONE = 0x3F800000  # the bits of 1.0

# Purposes of random numbers: each has a stream of its own.
DRAW_FOREGROUND, DRAW_BACKGROUND, TIES_FOREGROUND, TIES_BACKGROUND = 1, 2, 3, 4


def _mix32(words: Tensor) -> Tensor:
    """MurmurHash3's finaliser, a bijection of 32-bit words."""
    words = ((words ^ (words >> 16)) * 0x85EBCA6B) & _WORD
    words = ((words ^ (words >> 13)) * 0xC2B2AE35) & _WORD
    return words ^ (words >> 16)


def pixel_hashes(keys: Tensor, purpose: int, pixels: int) -> Tensor:
    """(N, pixels) int64 in 0..2^32-1, different for every pixel of an image."""
    stream = mix64(keys + purpose)[:, None]
    index = torch.arange(pixels, device=keys.device)
    return _mix32(_mix32(index ^ (stream & _WORD)) ^ ((stream >> 32) & _WORD))


def exponentials(hashes: Tensor) -> Tensor:
    """-ln(1 - (h + 1/2) / 2^32) in float64: exponential variates, ascending in h.

    -ln m = 2 atanh(s) with s = (1 - m) / (1 + m), by a continued fraction. No sum has a product in
    it and no divisor is a plain number, so no compiler or backend rounds it differently.
    """
    mantissa, exponent = torch.frexp((2**33 - 1 - 2 * hashes).double())

    def number(value: float) -> Tensor:
        return torch.full_like(mantissa, value)

    s = (1 - mantissa) / (1 + mantissa)
    q = s * s
    fraction = 7 - 16 * q / number(9)
    fraction = 5 - 9 * q / fraction
    fraction = 3 - 4 * q / fraction
    fraction = 1 - q / fraction
    return (33 - exponent).double() / number(1.4426950408889634) + 2 * s / fraction


def _smallest(keys: Tensor, counts: Tensor) -> Tensor:
    """True where a key is one of the counts[n] smallest of its row and not EXCLUDED."""
    order = keys.argsort(dim=1)
    places = torch.arange(keys.shape[1], device=keys.device).expand_as(order)
    ranks = torch.empty_like(order).scatter_(1, order, places)
    return (ranks < counts[:, None]) & (keys != EXCLUDED)


def _share(mask: Tensor, share: float) -> Tensor:
    """int(share * pixels of the mask), per image."""
    return (mask.sum(dim=1).double() * share).long()


def roi_mask(roi: Tensor | None, like: Tensor) -> Tensor:
    """(N, H, W) bool from boxes, a mask or nothing."""
    if roi is None:
        return torch.ones_like(like, dtype=torch.bool)
    if roi.dim() == 3:
        return roi
    x0, y0, x1, y1 = roi[:, :, None, None].unbind(1)
    y = torch.arange(like.shape[1], device=like.device)[:, None]
    x = torch.arange(like.shape[2], device=like.device)
    return (x >= x0) & (x < x1) & (y >= y0) & (y < y1)


def _dilated(mask: Tensor, side: int) -> Tensor:
    """Grown by a square; mask (N, H, W) bool."""
    if side <= 1 or mask.numel() == 0:
        return mask
    return F.max_pool2d(mask[:, None].float(), side, 1, side // 2)[:, 0] > 0


def _eroded(mask: Tensor, side: int) -> Tensor:
    """Shrunk by a square that ends at the image border; unchanged where nothing would be left."""
    shrunk = ~_dilated(~mask, side)
    return torch.where(shrunk.any(dim=2).any(dim=1)[:, None, None], shrunk, mask)


def _foreground_region(
    values: Tensor, roi: Tensor, keys: Tensor, top: bool, share: float, erode: int
) -> Tensor:
    """TOP+ of F-CAM eq. 1 or the top share of DiPS eq. 3; values and roi (N, H, W)."""
    inside = roi.flatten(1)
    flat = values.flatten(1)
    if top:
        ties = pixel_hashes(keys, TIES_FOREGROUND, flat.shape[1])
        order = (_ONE - flat.view(torch.int32).long()) << 32 | ties
        region = _smallest(torch.where(inside, order, EXCLUDED), _share(inside, share))
    else:
        level = boxes_reference.otsu_level(values, 1).clamp(1, 254)
        region = inside & (boxes_reference.levels(flat) > level[:, None])
    return _eroded(region.view_as(roi), erode).flatten(1)


def _background_region(flat: Tensor, allowed: Tensor, keys: Tensor, share: float) -> Tensor:
    """TOP- of F-CAM eq. 1: the lowest share of the allowed pixels; all (N, H*W)."""
    ties = pixel_hashes(keys, TIES_BACKGROUND, flat.shape[1])
    order = flat.view(torch.int32).long() << 32 | ties
    return _smallest(torch.where(allowed, order, EXCLUDED), _share(allowed, share))


def _drawn(region: Tensor, hashes: Tensor, weights: Tensor | None, count: int) -> Tensor:
    """``count`` pixels of the region without replacement, by an exponential race (Efraimidis 2006).

    With equal weights the order of the clocks is the order of the hashes.
    """
    order = hashes
    if weights is not None:
        clocks = (exponentials(hashes) / weights.double()).float()
        index = torch.arange(hashes.shape[1], device=hashes.device)
        order = clocks.view(torch.int32).long() << 32 | index
        region = region & (weights > 0)
    counts = region.sum(dim=1).clamp(max=count)
    return _smallest(torch.where(region, order, EXCLUDED), counts)


def sample_seeds(
    cams: Tensor,
    keys: Tensor,
    roi: Tensor | None,
    background_only: Tensor | None,
    foreground: int,
    background: int,
    top: bool,
    foreground_share: float,
    background_share: float,
    weighted: bool,
    background_outside_roi: bool,
    erode: int,
    dilate: int,
) -> Tensor:
    """See :func:`wsfast.sample_seeds`; cams (N, H, W) float32, keys (N,) int64."""
    n, height, width = cams.shape
    pixels = height * width
    values = cams.nan_to_num(nan=0.0, posinf=1.0, neginf=0.0).clamp(0, 1) + 0.0  # no -0
    flat = values.flatten(1)
    levels = boxes_reference.levels(flat)
    varies = levels.amin(dim=1) < levels.amax(dim=1) if n else torch.ones_like(keys) > 0
    clean = torch.zeros_like(varies) if background_only is None else background_only
    inside = roi_mask(roi, cams)

    region = _foreground_region(values, inside, keys, top, foreground_share, erode)
    region &= (varies & ~clean)[:, None]
    outside_only = background_outside_roi and roi is not None
    allowed = ~inside.flatten(1) if outside_only else torch.ones_like(region)
    low = _background_region(flat, allowed, keys, background_share)
    low = torch.where(clean[:, None], True, low & varies[:, None])

    shape = (n, height, width)
    weights = flat if weighted else None
    hashes = pixel_hashes(keys, DRAW_FOREGROUND, pixels)
    front = _dilated(_drawn(region, hashes, weights, foreground).view(shape), dilate)
    hashes = pixel_hashes(keys, DRAW_BACKGROUND, pixels)
    back = _dilated(_drawn(low, hashes, None, background).view(shape), dilate)
    seeds = torch.full(shape, IGNORED, dtype=torch.int64, device=cams.device)
    return seeds.masked_fill(front & ~back, 1).masked_fill(back & ~front, 0)
