"""Checks and preparation that the crf room's functions share."""

import math
import warnings
from collections.abc import Sequence
from numbers import Real

import torch
from torch import Tensor
from torch.nn import functional as F

from ..._check import (
    check_floating,
    check_number,
    check_rank,
    check_reverse_mode,
    check_same_device,
    check_tensor,
    type_error,
    value_error,
)
from . import reference


def check_positive(where: str, argument: str, value: float) -> None:
    """Raise unless ``value`` is a finite number above 0."""
    check_number(where, argument, value)
    if not (value > 0 and value < math.inf):
        value_error(where, argument, "finite and above 0", f"{value}")


def check_points(where: str, argument: str, tensor: Tensor, points: int, corners: int) -> None:
    """Raise ValueError unless there are points, and few enough for 32-bit vertex numbers."""
    if points < 1 or points * corners >= 1 << 31:
        value_error(
            where,
            argument,
            f"of 1 <= pixels < 2^31 / {corners}",
            f"shape {list(tensor.shape)}",
        )


def check_image(where: str, image: Tensor) -> None:
    """Raise unless ``image`` is (B, C, H, W) with one to six channels and carries no gradient."""
    check_tensor(where, "image", image)
    check_rank(where, "image", image, 4)
    if image.dtype != torch.uint8:
        check_floating(where, "image", image)
    channels = image.shape[1]
    if channels < 1 or channels > 6:
        value_error(where, "image", "of 1 to 6 channels", f"{channels} channels")
    check_points(where, "image", image, image.shape[2] * image.shape[3], channels + 3)
    if image.requires_grad:
        value_error(where, "image", "without gradient (detach it)", "requires_grad=True")


def check_sigmas(where: str, image: Tensor, sigma_rgb: list[float], sigma_xy: float) -> None:
    """Raise ValueError unless there is a positive sigma per channel and for positions."""
    if len(sigma_rgb) != image.shape[1]:
        value_error(
            where,
            "sigma_rgb",
            f"a number or one per channel ({image.shape[1]})",
            f"{len(sigma_rgb)} numbers",
        )
    for sigma in sigma_rgb:
        check_positive(where, "sigma_rgb", sigma)
    check_positive(where, "sigma_xy", sigma_xy)


def check_maps(where: str, argument: str, maps: Tensor, image: Tensor) -> None:
    """Raise unless ``maps`` are floating-point (B, K, H, W) of the image's B, H, W and device."""
    check_tensor(where, argument, maps)
    check_floating(where, argument, maps)
    check_reverse_mode(where, argument, maps)
    check_rank(where, argument, maps, 4)
    check_same_device(where, "image", image, argument, maps)
    if maps.shape[0] != image.shape[0] or maps.shape[2:] != image.shape[2:]:
        value_error(
            where,
            argument,
            f"of the image's batch and size (shape {list(image.shape)})",
            f"shape {list(maps.shape)}",
        )
    if maps.shape[1] == 0:
        value_error(where, argument, "of at least one channel", f"shape {list(maps.shape)}")


def sigma_list(where: str, channels: int, sigma_rgb: float | Sequence[float]) -> list[float]:
    """One sigma per channel from a number or a sequence."""
    if isinstance(sigma_rgb, Sequence) and not isinstance(sigma_rgb, str):
        for sigma in sigma_rgb:
            check_number(where, "sigma_rgb", sigma)
        return [float(sigma) for sigma in sigma_rgb]
    if isinstance(sigma_rgb, bool) or not isinstance(sigma_rgb, Real):
        type_error(where, "sigma_rgb", "a number or a list of numbers", type(sigma_rgb).__name__)
    return [float(sigma_rgb)] * channels


@torch.jit.unused
def warn_of_scaled_image(where: str, image: Tensor, sigma_rgb: list[float]) -> None:
    """Warn where an image seems to hold 0-1 but the sigma is one for 0-255."""
    if image.dtype == torch.uint8 or image.numel() == 0 or min(sigma_rgb) < 5:
        return
    highest = float(image[0].amax())
    if 0 < highest <= 1:
        warnings.warn(
            f"wsfast.{where}: the image's values end at {highest:.3g}, but sigma_rgb is "
            f"{min(sigma_rgb):g}: colours hardly count; scale the image to 0-255",
            stacklevel=5,
        )


def explain_points(
    where: str, argument: str, wanted: str, points: Tensor, scale: Sequence[float], given: str
) -> None:
    """Raise the ValueError of (P, d) finite points whose lattice could not be built."""
    key, quotient = reference.key_bits(reference.feature_bounds(points), scale)
    limit, dtype = reference.QUOTIENT_BITS[points.dtype], points.dtype
    if key > reference.KEY_BITS:
        expected = f"{wanted} for vertex keys of {reference.KEY_BITS} bits in {dtype}"
        value_error(where, argument, expected, given.format(f"{key:.1f}"))
    if quotient > limit:
        coordinates = f"lattice coordinates of {limit} bits in {dtype}"
        expected = f"{wanted} for {coordinates} (values nearer to 0 need fewer)"
        value_error(where, argument, expected, given.format(f"{quotient:.1f}"))


@torch.jit.unused
def explain_failure(
    where: str,
    image: Tensor,
    sigma_rgb: list[float],
    sigma_xy: float,
    dtype: torch.dtype,
    method: str = "lattice",
) -> None:
    """Raise the ValueError of the first image whose lattice could not be built."""
    raw = reference.raw_bilateral_features(image, dtype)
    coefficients = reference.bilateral_coefficients(sigma_rgb, sigma_xy)
    elevation = reference.elevation_scales(raw.shape[2])
    refinement = reference.DENSE_REFINEMENT if method == "dense" else 1.0
    scale = [c * s * refinement for c, s in zip(coefficients, elevation, strict=True)]
    for n, points in enumerate(raw):
        if not bool(points.isfinite().all()):
            value_error(where, "image", "finite", f"NaN or inf in image {n}")
        given = f"{sigma_rgb} and {sigma_xy}, which need {{}} bits in image {n}"
        explain_points(where, "sigma_rgb and sigma_xy", "large enough", points, scale, given)


def rescale(maps: Tensor, scale_factor: float, mode: str) -> Tensor:
    """(B, K, H, W) by ``nearest`` or half-pixel ``bilinear``, as the CRF losses do it."""
    if mode == "nearest":
        return F.interpolate(maps, scale_factor=scale_factor, mode="nearest")
    # One channel: torch rounds those of three in another way where there is one thread.
    flat = maps.flatten(0, 1).unsqueeze(1)
    flat = F.interpolate(flat, scale_factor=scale_factor, mode="bilinear", align_corners=False)
    return flat.view(maps.shape[0], maps.shape[1], flat.shape[2], flat.shape[3])
