"""Normalisation of class activation maps and their fusion over layers.

The semantics are pytorch-grad-cam's: every layer's map is normalised, resized to the image by
half-pixel bilinear interpolation, averaged, and normalised again.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..._check import (
    check_choice,
    check_floating,
    check_number,
    check_range,
    check_rank,
    check_reverse_mode,
    check_same_device,
    check_tensor,
    check_whole,
    out_of_sight,
    type_error,
    value_error,
)
from ..._scripting import scripted_as
from . import reference, registration  # noqa: F401

__all__ = ["fuse_cams", "normalize_cams"]


def _check_maps(where: str, cams: Tensor) -> None:
    check_tensor(where, "cams", cams)
    check_floating(where, "cams", cams)
    check_rank(where, "cams", cams, 3)
    check_reverse_mode(where, "cams", cams)
    if cams.shape[1] == 0 or cams.shape[2] == 0:
        value_error(where, "cams", "maps with H, W >= 1", f"shape {list(cams.shape)}")


def _check_layers(where: str, cams: list[Tensor]) -> None:
    if not torch.jit.is_scripting() and not isinstance(cams, (list, tuple)):
        type_error(where, "cams", "a list of tensors", type(cams).__name__)
    if len(cams) == 0:
        value_error(where, "cams", "a list of at least one layer", "an empty list")
    for layer in cams:
        _check_maps(where, layer)
        check_same_device(where, "the first layer", cams[0], "cams", layer)
        if layer.dtype != cams[0].dtype:
            type_error(where, "cams", f"of one dtype ({cams[0].dtype})", f"{layer.dtype}")
        if layer.shape[0] != cams[0].shape[0]:
            value_error(
                where, "cams", f"of one batch size ({cams[0].shape[0]})", f"{layer.shape[0]}"
            )


def _raise_unless_finite(where: str, finite: Tensor) -> None:
    if torch.jit.is_scripting() or out_of_sight(finite) or bool(finite.all()):
        return
    value_error(where, "cams", "finite", f"NaN or inf in image {int((~finite).nonzero()[0])}")


def _fuse_at_sides(
    cams: list[Tensor],
    weights: Tensor,
    sides: Tensor,
    layer_norm: str,
    reduce: str,
    norm: str,
    eps: float,
) -> tuple[Tensor, Tensor]:
    out, finite = torch.ops.wsfast.fuse_cams(
        cams, weights, int(sides[0]), int(sides[1]), layer_norm, reduce, norm, eps
    )
    return out, finite


def _fuse(
    cams: list[Tensor],
    weights: Tensor,
    size: tuple[int, int],
    layer_norm: str,
    reduce: str,
    norm: str,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """The op; in a trace the size stays what it was computed from."""
    height, width = size
    if not torch.jit.is_scripting() and torch.jit.is_tracing():
        # A trace turns numbers of a custom op into constants, but keeps them in scripted code.
        sides = torch.stack([torch.as_tensor(height), torch.as_tensor(width)])
        scripted = torch.jit.script(_fuse_at_sides)
        return scripted(cams, weights, sides, layer_norm, reduce, norm, eps)
    out, finite = torch.ops.wsfast.fuse_cams(
        cams, weights, height, width, layer_norm, reduce, norm, eps
    )
    return out, finite


def _normalize_cams(cams: Tensor, mode: str = "minmax", eps: float = 1e-7) -> Tensor:
    _check_maps("normalize_cams", cams)
    check_choice("normalize_cams", "mode", mode, ["minmax", "max"])
    check_range("normalize_cams", "eps", eps, 0.0, 1.0)
    half = cams.dtype == torch.float16 or cams.dtype == torch.bfloat16
    one = torch.ones([1], dtype=torch.float32 if half else cams.dtype, device=cams.device)
    size = (cams.shape[1], cams.shape[2])
    out, finite = _fuse([cams], one, size, "none", "sum", mode, float(eps))
    _raise_unless_finite("normalize_cams", finite)
    return out


@torch.jit.unused
def _raise_unless_weights(weights: Tensor, fits: Tensor, expected: str) -> None:
    if not out_of_sight(fits) and not bool(fits):
        value_error("fuse_cams", "weights", expected, f"{weights.tolist()}")


def _layer_weights(cams: list[Tensor], weights: Tensor | None, reduce: str) -> Tensor:
    """Weights as the op takes them: one accumulator value per layer, the mean's division done."""
    first = cams[0]
    half = first.dtype == torch.float16 or first.dtype == torch.bfloat16
    dtype = torch.float32 if half else first.dtype
    if weights is None:
        share = 1.0 / len(cams) if reduce == "mean" else 1.0
        return torch.full([len(cams)], share, dtype=dtype, device=first.device)
    if reduce == "prod":
        value_error("fuse_cams", "weights", 'None with reduce="prod"', "weights")
    if weights.dim() != 1 or weights.shape[0] != len(cams):
        value_error(
            "fuse_cams", "weights", f"of shape ({len(cams)},)", f"shape {list(weights.shape)}"
        )
    scale = weights.to(device=first.device, dtype=dtype)
    if reduce != "mean":
        if not torch.jit.is_scripting():
            _raise_unless_weights(weights, scale.isfinite().all(), "finite")
        return scale
    total = scale.sum()
    if not torch.jit.is_scripting():
        expected = 'of a finite sum other than 0 with reduce="mean"'
        _raise_unless_weights(weights, total.isfinite() & (total != 0), expected)
    return scale / total


def _listed_weights(weights: Sequence[float], device: torch.device) -> Tensor:
    """Made on the device: a copy from the host would wait for it, and cannot be captured."""
    values = [torch.full([1], float(x), dtype=torch.float64, device=device) for x in weights]
    return torch.cat(values) if values else torch.zeros([0], dtype=torch.float64, device=device)


def _fuse_cams(
    cams: list[Tensor],
    size: tuple[int, int],
    layer_norm: str | None = "minmax",
    reduce: str = "mean",
    norm: str | None = "minmax",
    weights: Tensor | None = None,
    eps: float = 1e-7,
) -> Tensor:
    _check_layers("fuse_cams", cams)
    height, width = size
    if height < 1 or width < 1:
        value_error("fuse_cams", "size", "(height, width) of at least 1", f"({height}, {width})")
    if layer_norm is not None:
        check_choice("fuse_cams", "layer_norm", layer_norm, ["minmax", "max"])
    if norm is not None:
        check_choice("fuse_cams", "norm", norm, ["minmax", "max"])
    check_choice("fuse_cams", "reduce", reduce, ["mean", "sum", "max", "prod"])
    check_range("fuse_cams", "eps", eps, 0.0, 1.0)
    scale = _layer_weights(cams, weights, reduce)
    out, finite = _fuse(
        cams,
        scale,
        size,
        "none" if layer_norm is None else layer_norm,
        "sum" if reduce == "mean" else reduce,
        "none" if norm is None else norm,
        float(eps),
    )
    _raise_unless_finite("fuse_cams", finite)
    return out


@scripted_as(_normalize_cams)
def normalize_cams(cams: Tensor, *, mode: str = "minmax", eps: float = 1e-7) -> Tensor:
    r"""Scale every map to 0-1, by its range or by its maximum.

    .. math:: \frac{m - \min m}{\max(m - \min m) + \epsilon} \quad\text{or}\quad
              \frac{m}{\max m + \epsilon}

    Args:
        cams: maps, (N, H, W), float32, float64, float16 or bfloat16, any strides.
        mode: ``"minmax"`` or ``"max"``.
        eps: absolute, added to the divisor; 0 to 1.

    Returns:
        A tensor like ``cams``. A map of finite range (max - min must not overflow, for half types
        in float32) never gives NaN. ``"minmax"`` gives 0 for a flat map, and takes as flat what
        spans at most 16 machine epsilons of its largest absolute value (1.9e-6 of it in float32):
        it would show rounding. ``"max"`` gives 0 for a map without a positive value; negative
        values of others stay negative. Both give 0 where the divisor is below the smallest normal
        number (1.2e-38 in float32). A map that is not finite gives 0 where it cannot be seen
        without a device sync.

    Raises:
        ValueError: wrong rank, empty maps, unknown mode; on the CPU also maps that are not finite.
        TypeError: not a floating-point tensor.

    Note:
        Differentiable, through the minimum and maximum too (ties share the gradient evenly).
        Half types are computed in float32; autocast runs it in float32. Deterministic.

    Example:
        >>> normalize_cams(torch.tensor([[[1.0, 2.0, 3.0]]]), eps=0.0)
        tensor([[[0.0000, 0.5000, 1.0000]]])
    """
    return _normalize_cams(cams, mode, eps)


@scripted_as(_fuse_cams)
def fuse_cams(
    cams: list[Tensor],
    size: tuple[int, int],
    *,
    layer_norm: str | None = "minmax",
    reduce: str = "mean",
    norm: str | None = "minmax",
    weights: Tensor | list[float] | None = None,
    eps: float = 1e-7,
) -> Tensor:
    r"""Fuse the maps of several layers at image size, in one pass over the output.

    .. math:: \mathrm{norm}\Big(\mathrm{reduce}_l\; \omega_l\,
              \mathrm{up}(\mathrm{layer\_norm}(M_l))\Big)

    The defaults are pytorch-grad-cam's aggregation of layers; ``layer_norm=None, reduce="sum",
    norm=None`` is LTGrad-CAM eq. 8 and 10.

    Args:
        cams: one (N, h_l, w_l) tensor per layer, any number of layers and sizes, of one dtype
            (float32, float64, float16 or bfloat16) and device, any strides.
        size: (H, W) of the result in pixels; layers may be larger or smaller.
        layer_norm: normalisation of each layer, ``"minmax"``, ``"max"`` or None.
        reduce: ``"mean"``, ``"sum"``, ``"max"`` or ``"prod"``.
        norm: normalisation of the result, ``"minmax"``, ``"max"`` or None.
        weights: one factor per layer, (L,) tensor or list, applied after resizing; the mean is
            then weighted. Not with ``"prod"``.
        eps: absolute, added to the divisors; 0 to 1.

    Returns:
        (N, H, W) in the layers' dtype. Resizing is half-pixel bilinear without antialiasing
        (``F.interpolate(..., align_corners=False)``, ``cv2.resize``). Min-max gives 0 for flat
        maps, and maps of finite range, as :func:`normalize_cams` has it, never give NaN while their
        sum does not overflow. An image with a map that is not finite gives a zero map where it
        cannot be seen without a device sync.

    Raises:
        ValueError: no layers, wrong ranks, mixed devices or batch sizes, a size of 0, unknown
            options; on the CPU also maps and weights that are not finite, and weights of a mean
            that sum to 0.
        TypeError: layers that are not floating-point tensors of one dtype, a size that is not
            whole.

    Note:
        Differentiable in the maps and in ``weights``, through minima and maxima too (ties share
        the gradient evenly). Half types are computed in float32; autocast runs it in float32.
        O(L N H W); beyond the output, two rows per layer and thread are held, by the gradient one
        map per image. Deterministic and equal for any thread count, but for the gradient with
        ``"max"`` and ``"prod"``.

    Example:
        >>> layers = [torch.rand(2, 28, 28), torch.rand(2, 7, 7)]
        >>> fuse_cams(layers, (224, 224)).shape
        torch.Size([2, 224, 224])
    """
    if isinstance(weights, (list, tuple)):
        for weight in weights:
            check_number("fuse_cams", "weights", weight)
        _check_layers("fuse_cams", cams)
        weights = _listed_weights(weights, cams[0].device)
    if weights is not None:
        check_tensor("fuse_cams", "weights", weights)
        check_reverse_mode("fuse_cams", "weights", weights)
    if not isinstance(size, (list, tuple, torch.Size)) or len(size) != 2:
        value_error("fuse_cams", "size", "(height, width)", f"{size}")
    for side in size:
        check_whole("fuse_cams", "size", side)
    layers = list(cams) if isinstance(cams, (list, tuple)) else cams
    return _fuse_cams(layers, (size[0], size[1]), layer_norm, reduce, norm, weights, eps)
