"""Percentile truncation of positive gradients (LTGrad-CAM eq. 9-11, RA-CAM eq. 5-6).

Layer-wise gradients carry weak, noisy positives. Truncation keeps, in every feature map, only the
gradients at or above the q-th percentile of that map's positive ones.
"""

import torch
from torch import Tensor

from ..._check import (
    check_floating,
    check_rank,
    check_reverse_mode,
    check_same_device,
    check_tensor,
    check_truncation,
    type_error,
    value_error,
)
from ..._scripting import scripted_as
from . import reference, registration  # noqa: F401

__all__ = ["positive_percentile", "truncate_gradients", "truncated_gradcam", "truncated_layercam"]


def _check_gradients(where: str, grads: Tensor, percentile: float, scope: str) -> None:
    check_tensor(where, "grads", grads)
    check_floating(where, "grads", grads)
    check_rank(where, "grads", grads, 4)
    check_reverse_mode(where, "grads", grads)
    if grads.shape[2] == 0 or grads.shape[3] == 0:
        value_error(where, "grads", "a tensor with H, W >= 1", f"shape {list(grads.shape)}")
    check_truncation(where, percentile, scope)


def _check_activations(where: str, activations: Tensor, grads: Tensor) -> None:
    check_tensor(where, "activations", activations)
    check_floating(where, "activations", activations)
    check_rank(where, "activations", activations, 4)
    check_reverse_mode(where, "activations", activations)
    check_same_device(where, "activations", activations, "grads", grads)
    if activations.dtype != grads.dtype:
        type_error(
            where, "grads", f"of the activations' dtype ({activations.dtype})", f"{grads.dtype}"
        )
    if activations.shape != grads.shape:
        value_error(
            where,
            "grads",
            f"of the activations' shape {list(activations.shape)}",
            f"shape {list(grads.shape)}",
        )


def _check_dtype(where: str, dtype: torch.dtype | None) -> None:
    if dtype is not None and dtype not in (
        torch.float32,
        torch.float64,
        torch.float16,
        torch.bfloat16,
    ):
        type_error(where, "dtype", "float32, float64, float16 or bfloat16", f"{dtype}")


def _positive_percentile(grads: Tensor, percentile: float, scope: str = "map") -> Tensor:
    _check_gradients("positive_percentile", grads, percentile, scope)
    return torch.ops.wsfast.positive_percentile(grads, float(percentile), scope == "sample")


def _truncate_gradients(grads: Tensor, percentile: float, scope: str = "map") -> Tensor:
    _check_gradients("truncate_gradients", grads, percentile, scope)
    truncated, _ = torch.ops.wsfast.truncate_gradients(grads, float(percentile), scope == "sample")
    return truncated


def _truncated_gradcam(
    activations: Tensor,
    grads: Tensor,
    percentile: float,
    scope: str = "map",
    dtype: torch.dtype | None = None,
) -> Tensor:
    _check_gradients("truncated_gradcam", grads, percentile, scope)
    _check_activations("truncated_gradcam", activations, grads)
    _check_dtype("truncated_gradcam", dtype)
    cams, _, _ = torch.ops.wsfast.truncated_gradcam(
        activations, grads, float(percentile), scope == "sample", dtype is not None
    )
    return cams if dtype is None else cams.to(dtype)


def _truncated_layercam(
    activations: Tensor,
    grads: Tensor,
    percentile: float,
    scope: str = "map",
    dtype: torch.dtype | None = None,
) -> Tensor:
    _check_gradients("truncated_layercam", grads, percentile, scope)
    _check_activations("truncated_layercam", activations, grads)
    _check_dtype("truncated_layercam", dtype)
    cams, _ = torch.ops.wsfast.truncated_layercam(
        activations, grads, float(percentile), scope == "sample", dtype is not None
    )
    return cams if dtype is None else cams.to(dtype)


@scripted_as(_positive_percentile)
def positive_percentile(grads: Tensor, percentile: float, *, scope: str = "map") -> Tensor:
    r"""The q-th percentile of the positive gradients of each feature map.

    .. math:: \delta = P_q \{ g_{ij} : g_{ij} > 0 \}

    with linear interpolation between order statistics, as ``numpy.percentile`` (LTGrad-CAM
    eq. 9, RA-CAM eq. 6).

    Args:
        grads: gradients, (N, C, H, W), float32, float64, float16 or bfloat16, any strides.
        percentile: q in percent, 0 to 100.
        scope: ``"map"`` takes one percentile per feature map, ``"sample"`` one over all C maps
            of a sample.

    Returns:
        (N, C) for ``scope="map"``, (N,) for ``scope="sample"``, in the dtype and on the device of
        ``grads``; +inf where nothing is positive. NaN gradients count as not positive. Rounded so
        that ``grads >= percentile`` is what :func:`truncate_gradients` keeps.

    Raises:
        ValueError: wrong rank, empty maps, percentile outside 0-100, unknown scope.
        TypeError: not a floating-point tensor.

    Note:
        Not differentiable. Exact selection in O(N C H W) expected time without sorting whole
        maps; deterministic and equal for any thread count.

    Example:
        >>> grads = torch.tensor([[[[-1.0, 1.0], [2.0, 4.0]]]])
        >>> positive_percentile(grads, 75)
        tensor([[3.]])
    """
    return _positive_percentile(grads, percentile, scope)


@scripted_as(_truncate_gradients)
def truncate_gradients(grads: Tensor, percentile: float, *, scope: str = "map") -> Tensor:
    r"""Keep the gradients at or above the q-th percentile of their map's positive ones.

    .. math:: T(g)_{ij} = g_{ij} \,[g_{ij} \ge \delta]\,[g_{ij} > 0]

    (LTGrad-CAM eq. 9; RA-CAM eq. 6, read with ``>=`` as eq. 6 prints it). ``percentile=0`` equals
    ``relu(grads)``.

    Args:
        grads: gradients, (N, C, H, W), float32, float64, float16 or bfloat16, any strides.
        percentile: q in percent, 0 to 100.
        scope: ``"map"`` truncates each feature map by its own percentile, ``"sample"`` all maps
            of a sample by one.

    Returns:
        A contiguous tensor like ``grads``. The kept set is that of exact arithmetic, for decimal
        q such as 8.8, too: every gradient at or above the order statistic of rank
        ceil(q/100 (m-1)) of the m positives, which is ``grads >= positive_percentile(grads, q)``.
        NaN gradients count as not positive and become 0.

    Raises:
        ValueError: wrong rank, empty maps, percentile outside 0-100, unknown scope.
        TypeError: not a floating-point tensor.

    Note:
        Differentiable in ``grads`` with the mask as a constant. One read and one write of memory
        per element for nearly every input; on the CPU scratch of up to 192 KB per thread (384 KB
        for float64), more for rows beyond 2^16 values. Deterministic and equal for any thread
        count.

    Example:
        >>> grads = torch.tensor([[[[-1.0, 1.0], [2.0, 3.0]]]])
        >>> truncate_gradients(grads, 50)
        tensor([[[[0., 0.],
                  [2., 3.]]]])
    """
    return _truncate_gradients(grads, percentile, scope)


@scripted_as(_truncated_gradcam)
def truncated_gradcam(
    activations: Tensor,
    grads: Tensor,
    percentile: float,
    *,
    scope: str = "map",
    dtype: torch.dtype | None = None,
) -> Tensor:
    r"""Grad-CAM with truncated gradients, fused.

    .. math:: M = \mathrm{relu}\Big(\sum_k w_k A_k\Big), \qquad
              w_k = \frac{1}{HW} \sum_{ij} T(g_k)_{ij}

    (LTGrad-CAM eq. 2, 3 and 9-11, truncation inside the mean). The truncated gradients are never
    written to memory.

    Args:
        activations: feature maps A, (N, C, H, W), float32, float64, float16 or bfloat16, any
            strides.
        grads: gradients of the class score with respect to ``activations``, same shape, dtype
            and device.
        percentile: q in percent, 0 to 100.
        scope: ``"map"`` or ``"sample"``, see :func:`truncate_gradients`.
        dtype: dtype of the result; that of ``activations`` by default. float32 keeps the
            accumulator's precision of half inputs.

    Returns:
        (N, H, W) maps, not normalised, >= 0. A channel of weight 0 adds nothing, even where its
        activations are not finite.

    Raises:
        ValueError: wrong rank or shapes, empty maps, mixed devices, percentile outside 0-100.
        TypeError: not floating-point tensors of one dtype; ``dtype`` not a floating-point one.

    Note:
        Differentiable in both tensors, twice, with the mask as a constant. Half types accumulate
        in float32; under autocast the result is float32. Reads both tensors once; scratch as
        :func:`truncate_gradients`, which with ``scope="sample"`` are 9 % of a single float32
        sample of 512 x 56 x 56. Deterministic and equal for any thread count.

    Example:
        >>> activations = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
        >>> grads = torch.tensor([[[[-1.0, 1.0], [2.0, 3.0]]]])
        >>> truncated_gradcam(activations, grads, 50)
        tensor([[[1.2500, 2.5000],
                 [3.7500, 5.0000]]])
    """
    return _truncated_gradcam(activations, grads, percentile, scope, dtype)


@scripted_as(_truncated_layercam)
def truncated_layercam(
    activations: Tensor,
    grads: Tensor,
    percentile: float,
    *,
    scope: str = "map",
    dtype: torch.dtype | None = None,
) -> Tensor:
    r"""LayerCAM with truncated gradients, fused.

    .. math:: M = \mathrm{relu}\Big(\sum_k T(g_k) \odot A_k\Big)

    (LTGrad-CAM section 4.2 on LayerCAM). ``percentile=0`` is LayerCAM itself.

    Args:
        activations: feature maps A, (N, C, H, W), float32, float64, float16 or bfloat16, any
            strides.
        grads: gradients of the class score with respect to ``activations``, same shape, dtype
            and device.
        percentile: q in percent, 0 to 100.
        scope: ``"map"`` or ``"sample"``, see :func:`truncate_gradients`.
        dtype: dtype of the result; that of ``activations`` by default. float32 keeps the
            accumulator's precision of half inputs.

    Returns:
        (N, H, W) maps, not normalised, >= 0.

    Raises:
        ValueError: wrong rank or shapes, empty maps, mixed devices, percentile outside 0-100.
        TypeError: not floating-point tensors of one dtype; ``dtype`` not a floating-point one.

    Note:
        Differentiable in both tensors, twice, with the mask as a constant. Half types accumulate
        in float32; under autocast the result is float32. Scratch as :func:`truncate_gradients`,
        which with ``scope="sample"`` are 9 % of a single float32 sample of 512 x 56 x 56.
        Deterministic and equal for any thread count.

    Example:
        >>> activations = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
        >>> grads = torch.tensor([[[[-1.0, 1.0], [2.0, 3.0]]]])
        >>> truncated_layercam(activations, grads, 50)
        tensor([[[ 0.,  0.],
                 [ 6., 12.]]])
    """
    return _truncated_layercam(activations, grads, percentile, scope, dtype)
