"""Which class scores a CAM explains."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .._check import type_error, value_error

Target = int | Sequence[int] | Sequence[Sequence[int]] | Tensor | Callable[[Tensor], Tensor] | None


def resolve_target(where: str, target: Target, logits: Tensor) -> Tensor | None:
    """Class indices as int64 (N,) or (N, K) on the device of the logits; None for a callable.

    Args:
        where: name of the calling function, for messages.
        target: None (the class of highest score), one class for all images, one class or K
            classes per image, or a callable from logits to (N,) scores.
        logits: (N, classes).
    """
    if target is None:
        return logits.detach().argmax(dim=1)
    if isinstance(target, Tensor):
        return _checked(where, target, logits)
    if isinstance(target, (bool, str)):
        type_error(where, "target", "class numbers or a callable", type(target).__name__)
    if isinstance(target, int):
        _check_bounds(where, target, target, logits)
        return torch.full((logits.shape[0],), target, device=logits.device)
    if callable(target):
        return None
    try:
        numbers = torch.tensor(target)
    except (TypeError, ValueError):
        type_error(where, "target", "class numbers or a callable", type(target).__name__)
    return _checked(where, numbers, logits)


def _checked(where: str, target: Tensor, logits: Tensor) -> Tensor:
    if target.dtype not in (torch.int64, torch.int32, torch.int16, torch.uint8):
        type_error(where, "target", "integer class numbers", f"{target.dtype}")
    if target.dim() not in (1, 2) or target.shape[0] != logits.shape[0]:
        value_error(
            where,
            "target",
            f"of shape ({logits.shape[0]},) or ({logits.shape[0]}, K)",
            f"shape {list(target.shape)}",
        )
    if target.device.type == "cpu" and target.numel():  # seen without a device sync
        _check_bounds(where, int(target.min()), int(target.max()), logits)
    return target.to(device=logits.device, dtype=torch.int64)


def _check_bounds(where: str, low: int, high: int, logits: Tensor) -> None:
    classes = logits.shape[1]
    if low < 0 or high >= classes:
        value_error(where, "target", f"between 0 and {classes - 1}", f"{low if low < 0 else high}")


def target_scores(
    where: str, target: Target, resolved: Tensor | None, logits: Tensor
) -> tuple[Tensor, ...]:
    """One (N,) score vector per asked class: K of them for an (N, K) target, else one."""
    if resolved is None:
        assert callable(target)
        scores = target(logits)
        if not isinstance(scores, Tensor) or scores.shape != logits.shape[:1]:
            shape = list(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            value_error(where, "target", f"a callable giving ({logits.shape[0]},)", f"{shape}")
        return (scores,)
    columns = resolved if resolved.dim() == 2 else resolved[:, None]
    return logits.gather(1, columns).unbind(dim=1)
