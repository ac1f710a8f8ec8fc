"""Percentile truncation in pure PyTorch: readable, public, slow.

A row is one feature map (``scope="map"``) or all the maps of one sample (``scope="sample"``).
"""

import torch
from torch import Tensor

_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def _rows(grads: Tensor, scope: str) -> Tensor:
    return grads.flatten(2) if scope == "map" else grads.flatten(1)


def expand_threshold(threshold: Tensor) -> Tensor:
    """Reshape (N, C) or (N,) thresholds so that they broadcast against (N, C, H, W)."""
    return threshold.reshape(threshold.shape + (1,) * (4 - threshold.dim()))


def _order_statistics(grads: Tensor, percentile: float, scope: str) -> tuple[Tensor, ...]:
    """The two order statistics around the percentile, the position between them, the count."""
    rows = _rows(grads, scope)
    positive = rows > 0
    if rows.shape[-1] == 0:
        nothing = rows.new_full(rows.shape[:-1], torch.inf)
        return nothing, nothing, torch.zeros_like(nothing, dtype=torch.float64), positive.sum(-1)
    ascending = torch.where(positive, rows, torch.inf).sort(dim=-1).values
    count = positive.sum(dim=-1)
    position = (percentile * (count - 1).double() / 100).clamp(min=0)
    whole = (position + 0.5).floor()  # taken where a decimal percentile is off it by rounding
    position = torch.where((position - whole).abs() <= position * 2**-51, whole, position)
    lower = ascending.gather(-1, position.floor().long().unsqueeze(-1)).squeeze(-1)
    upper = ascending.gather(-1, position.ceil().long().unsqueeze(-1)).squeeze(-1)
    return lower, upper, position - position.floor(), count


def kept_threshold(grads: Tensor, percentile: float, scope: str) -> Tensor:
    """The smallest kept gradient of every row, +inf where nothing is positive.

    ``{g >= percentile} = {g >= order statistic of rank ceil(percentile/100 (m-1))}``: the
    percentile lies between two neighbouring order statistics, so no interpolation is needed.
    """
    _, upper, _, count = _order_statistics(grads, percentile, scope)
    return torch.where(count > 0, upper, torch.inf)


def positive_percentile(grads: Tensor, percentile: float, *, scope: str = "map") -> Tensor:
    """See :func:`wsfast.positive_percentile`."""
    lower, upper, fraction, count = _order_statistics(grads, percentile, scope)
    low, high = lower.double(), upper.double()
    between = torch.minimum(low + fraction * (high - low), high).to(grads.dtype)
    above = (lower.view(_BITS[grads.element_size()]) + 1).view(grads.dtype)
    between = torch.maximum(between, above)  # so that what is kept is what reaches the percentile
    between = torch.where((lower == upper) | (fraction == 0), lower, between)
    return torch.where(count > 0, between, torch.inf)


def keep_at_least(grads: Tensor, threshold: Tensor) -> Tensor:
    """Gradients at or above their row's threshold, 0 elsewhere (LTGrad-CAM eq. 9)."""
    return torch.where(grads >= expand_threshold(threshold), grads, 0)


def truncate_gradients(grads: Tensor, percentile: float, *, scope: str = "map") -> Tensor:
    """See :func:`wsfast.truncate_gradients`."""
    return keep_at_least(grads, kept_threshold(grads, percentile, scope))


def accumulate(tensor: Tensor) -> Tensor:
    """Half types are summed in float32."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def map_weights(grads: Tensor, threshold: Tensor) -> Tensor:
    """Spatial mean of the kept gradients, (N, C) (LTGrad-CAM eq. 2 on eq. 9)."""
    return accumulate(keep_at_least(grads, threshold)).mean(dim=(2, 3))


def weighted_cam(activations: Tensor, weights: Tensor) -> Tensor:
    """``relu(sum_k w_k A_k)``; a channel of weight 0 adds nothing, whatever it holds."""
    weights = weights[:, :, None, None]
    terms = torch.where(weights == 0, 0, weights * accumulate(activations))
    return terms.sum(dim=1).relu()


def elementwise_cam(activations: Tensor, grads: Tensor, threshold: Tensor) -> Tensor:
    """``relu(sum_k T(g_k) A_k)``."""
    kept = accumulate(keep_at_least(grads, threshold))
    return (kept * accumulate(activations)).sum(dim=1).relu()


def truncated_gradcam(
    activations: Tensor,
    grads: Tensor,
    percentile: float,
    *,
    scope: str = "map",
    dtype: torch.dtype | None = None,
) -> Tensor:
    """See :func:`wsfast.truncated_gradcam`."""
    weights = map_weights(grads, kept_threshold(grads, percentile, scope))
    return weighted_cam(activations, weights).to(dtype or grads.dtype)


def truncated_layercam(
    activations: Tensor,
    grads: Tensor,
    percentile: float,
    *,
    scope: str = "map",
    dtype: torch.dtype | None = None,
) -> Tensor:
    """See :func:`wsfast.truncated_layercam`."""
    threshold = kept_threshold(grads, percentile, scope)
    return elementwise_cam(activations, grads, threshold).to(dtype or grads.dtype)
