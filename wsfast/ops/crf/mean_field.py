"""Mean-field inference in a fully connected CRF."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..._autocast import plain_matmul
from ..._check import (
    check_choice,
    check_count,
    check_number,
    check_range,
    check_reverse_mode,
    check_same_device,
    check_tensor,
    out_of_sight,
    value_error,
)
from ..._scripting import scripted_as
from ._inputs import (
    check_image,
    check_maps,
    check_positive,
    check_sigmas,
    explain_failure,
    sigma_list,
    warn_of_scaled_image,
)
from .reference import accumulate_dtype


def _spatial_matrix(size: int, sigma: float, like: Tensor, normalize: str) -> Tensor:
    """(size, size) Gaussian along one axis; that of the plane is the product of two, exactly.

    0 below the rounding of sums with its peak of 1: denormal entries make products far slower.
    """
    sigma = max(sigma, 1e-3)  # the identity already; far below, 1 / sigma overflows
    position = torch.arange(size, device=like.device, dtype=like.dtype) / sigma
    exponent = -0.5 * (position.unsqueeze(0) - position.unsqueeze(1)).square()
    lowest = -72.0 if like.dtype == torch.float64 else -32.0  # about 2 log(eps)
    matrix = torch.exp(exponent.masked_fill(exponent < lowest, -math.inf))
    degree = matrix.sum(dim=1, keepdim=True)
    if normalize == "after":
        return matrix / degree
    if normalize == "symmetric":
        return matrix / torch.sqrt(degree * degree.transpose(0, 1))
    return matrix


def _bilateral_message(
    q: Tensor,
    vertices: Tensor,
    weights: Tensor,
    neighbours: Tensor,
    offsets: Tensor,
    degree: Tensor,
    normalize: str,
) -> Tensor:
    """(B, K, P) marginals through the normalised lattice."""
    share = degree.rsqrt() if normalize == "symmetric" else degree
    if normalize == "symmetric":
        q = q * share
    filtered = torch.ops.wsfast.lattice_filter(
        q, vertices, weights, neighbours, offsets, "symmetric"
    )
    if normalize == "symmetric":
        return filtered * share
    return filtered / share if normalize == "after" else filtered


def _check_compatibility(logits: Tensor, compatibility: Tensor) -> None:
    check_tensor("mean_field", "compatibility", compatibility)
    check_reverse_mode("mean_field", "compatibility", compatibility)
    check_same_device("mean_field", "logits", logits, "compatibility", compatibility)
    classes = logits.shape[1]
    if list(compatibility.shape) != [classes, classes]:
        value_error(
            "mean_field",
            "compatibility",
            f"of shape ({classes}, {classes})",
            f"shape {list(compatibility.shape)}",
        )


def _infer(
    logits: Tensor,
    image: Tensor,
    iterations: int,
    bilateral_weight: float,
    sigma_rgb: list[float],
    sigma_xy: float,
    spatial_weight: float,
    spatial_sigma: float,
    compatibility: Tensor | None,
    normalize: str,
) -> Tensor:
    check_image("mean_field", image)
    check_sigmas("mean_field", image, sigma_rgb, sigma_xy)
    check_maps("mean_field", "logits", logits, image)
    check_count("mean_field", "iterations", iterations, 0)
    check_range("mean_field", "bilateral_weight", bilateral_weight, 0.0, 1e6)
    check_range("mean_field", "spatial_weight", spatial_weight, 0.0, 1e6)
    check_positive("mean_field", "spatial_sigma", spatial_sigma)
    check_choice("mean_field", "normalize", normalize, ["none", "after", "symmetric"])
    if compatibility is not None:
        _check_compatibility(logits, compatibility)
    b, k, height, width = logits.shape
    unary = logits.to(accumulate_dtype(logits.dtype))
    q = unary.softmax(dim=1)
    vertices, weights, neighbours, offsets = torch.ops.wsfast.build_bilateral_lattice(
        image, sigma_rgb, sigma_xy, unary.dtype == torch.float64
    )
    ones = torch.ones([b, 1, height * width], dtype=unary.dtype, device=unary.device)
    degree = torch.ops.wsfast.lattice_filter(
        ones, vertices, weights, neighbours, offsets, "symmetric"
    )
    if not torch.jit.is_scripting() and not out_of_sight(degree):
        warn_of_scaled_image("mean_field", image, sigma_rgb)
        if not bool(degree.isfinite().all()):
            explain_failure("mean_field", image, sigma_rgb, sigma_xy, unary.dtype)
        if not bool(logits.isfinite().all()):
            value_error("mean_field", "logits", "finite", "NaN or inf")
        if compatibility is not None and not bool(compatibility.isfinite().all()):
            value_error("mean_field", "compatibility", "finite", "NaN or inf")
    rows = _spatial_matrix(height, spatial_sigma, unary, normalize)
    columns = _spatial_matrix(width, spatial_sigma, unary, normalize)
    for _ in range(iterations):
        bilateral = _bilateral_message(
            q.flatten(2), vertices, weights, neighbours, offsets, degree, normalize
        )
        message = bilateral_weight * bilateral.view(b, k, height, width)
        spatial = plain_matmul(plain_matmul(rows, q), columns.transpose(0, 1))
        message = message + spatial_weight * spatial
        if compatibility is not None:  # Potts: all classes but one's own cost 1; a constant is left
            matrix = compatibility.to(unary.dtype)
            message = -plain_matmul(matrix, message.flatten(2)).view(b, k, height, width)
        q = (unary + message).softmax(dim=1)
    return q.to(logits.dtype)


def _mean_field(
    logits: Tensor,
    image: Tensor,
    iterations: int = 5,
    bilateral_weight: float = 10.0,
    sigma_rgb: float = 13.0,
    sigma_xy: float = 80.0,
    spatial_weight: float = 3.0,
    spatial_sigma: float = 3.0,
    compatibility: Tensor | None = None,
    normalize: str = "symmetric",
) -> Tensor:
    check_image("mean_field", image)
    return _infer(
        logits,
        image,
        iterations,
        bilateral_weight,
        [sigma_rgb] * image.shape[1],
        sigma_xy,
        spatial_weight,
        spatial_sigma,
        compatibility,
        normalize,
    )


@scripted_as(_mean_field)
def mean_field(
    logits: Tensor,
    image: Tensor,
    *,
    iterations: int = 5,
    bilateral_weight: float = 10.0,
    sigma_rgb: float | Sequence[float] = 13.0,
    sigma_xy: float = 80.0,
    spatial_weight: float = 3.0,
    spatial_sigma: float = 3.0,
    compatibility: Tensor | None = None,
    normalize: str = "symmetric",
) -> Tensor:
    r"""Marginals of a fully connected CRF with Gaussian edges (Kraehenbuehl and Koltun 2011).

    .. math:: Q \leftarrow \mathrm{softmax}\big(u - \mu\, (w_b K_b + w_s K_s)\, Q\big)

    with :math:`K_b` the bilateral kernel of :func:`wsfast.bilateral_lattice` and :math:`K_s` the
    exact Gaussian of position, :math:`\mu` the classes' compatibility.

    Args:
        logits: u, (B, K, H, W), float32, float64, float16 or bfloat16: log-probabilities up to a
            constant per pixel.
        image: (B, C, H, W), one to six channels, uint8 or floating-point, in the units of
            ``sigma_rgb``. Without gradient.
        iterations: at least 0; 0 gives the softmax of the logits.
        bilateral_weight: 0 to 1e6.
        sigma_rgb: > 0; a number or one per channel.
        sigma_xy: > 0, in pixels.
        spatial_weight: 0 to 1e6.
        spatial_sigma: > 0, in pixels.
        compatibility: (K, K), row k the cost of the other classes for k; None for Potts (1 between
            different classes).
        normalize: of both kernels: ``"symmetric"``, ``"after"`` or ``"none"``.

    Returns:
        (B, K, H, W) like ``logits``, of sum 1 over classes.

    Raises:
        ValueError: wrong shapes, mixed devices, options out of range, an image that requires grad;
            on the CPU also logits, an image or a compatibility that are not finite, or sigmas so
            small that vertex keys leave 62 bits or lattice coordinates 18 (30 in float64), which
            an offset of the image adds to. Elsewhere such an image gives NaN.
        TypeError: ``logits`` not floating-point, an image neither uint8 nor floating-point.

    Note:
        Warns of an image of 0-1 with a sigma for 0-255. Differentiable in ``logits`` and
        ``compatibility``. The lattice is built once; each iteration costs
        O(B K H W (d + H + W)) with a small factor for the latter two (matrix products). Half types
        are computed in float32; autocast runs it in float32. Deterministic; the last bits may
        depend on the number of threads, as those of torch's matrix products do.

    Example:
        >>> image = torch.zeros(1, 3, 16, 16)
        >>> image[..., 8:] = 255.0
        >>> logits = torch.randn(1, 2, 16, 16, generator=torch.Generator().manual_seed(0))
        >>> logits[:, 1, :, 8:] += 1.0
        >>> q = mean_field(logits, image)
        >>> q.argmax(dim=1)[0, :, 8:].float().mean().item()
        1.0
    """
    check_image("mean_field", image)
    sigmas = sigma_list("mean_field", image.shape[1], sigma_rgb)
    for name, value in (
        ("bilateral_weight", bilateral_weight),
        ("sigma_xy", sigma_xy),
        ("spatial_weight", spatial_weight),
        ("spatial_sigma", spatial_sigma),
    ):
        check_number("mean_field", name, value)
    return _infer(
        logits,
        image,
        iterations,
        float(bilateral_weight),
        sigmas,
        float(sigma_xy),
        float(spatial_weight),
        float(spatial_sigma),
        compatibility,
        normalize,
    )
