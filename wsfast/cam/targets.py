"""Which class scores a CAM explains."""

from collections.abc import Callable, Sequence
from numbers import Integral
from typing import NamedTuple

import torch
from torch import Tensor

from .._check import type_error, value_error
from .._integers import is_integer

Target = int | Sequence[int] | Sequence[Sequence[int]] | Tensor | Callable[[Tensor], Tensor] | None

_EXPECTED = "class numbers or a callable"


def resolve_target(where: str, target: Target, logits: Tensor) -> Tensor | None:
    """Class indices as int64 (N,) or (N, K) on the device of the logits; None for a callable.

    Args:
        where: name of the calling function, for messages.
        target: None (the class of highest score), one class for all images, one class or K
            classes per image, or a callable from logits to (N,) scores.
        logits: (N, classes).

    Raises:
        ValueError: a wrong shape; a class outside the logits or one-hot rows, unless the target
            lies on another device, where looking would cost a sync.
        TypeError: not class numbers.
    """
    if target is None:
        return logits.detach().argmax(dim=1)
    if isinstance(target, Tensor):
        return _checked(where, target, logits)
    if isinstance(target, (bool, str)):
        type_error(where, "target", _EXPECTED, type(target).__name__)
    if isinstance(target, (int, Integral)):
        return _checked(where, torch.full((logits.shape[0],), int(target)), logits)
    if callable(target):
        return None
    try:
        numbers = torch.tensor(target)
    except (TypeError, ValueError, RuntimeError):
        type_error(where, "target", _EXPECTED, f"{type(target).__name__} {target}")
    return _checked(where, numbers, logits)


def _checked(where: str, target: Tensor, logits: Tensor) -> Tensor:
    n, classes = logits.shape
    if not is_integer(target):
        type_error(where, "target", "integer class numbers", f"{target.dtype}")
    if target.dim() not in (1, 2) or target.shape[0] != n or 0 in target.shape:
        expected = f"of shape ({n},) or ({n}, K)"
        value_error(where, "target", expected, f"shape {list(target.shape)}")
    if target.device.type == "cpu":
        low, high = int(target.min()), int(target.max())
        if low < 0 or high >= classes:
            outside = f"{low if low < 0 else high}"
            value_error(where, "target", f"between 0 and {classes - 1}", outside)
        if high == 1 and target.shape[1:] == (classes,) and classes > 2 and _one_hot(target):
            expected = "class numbers (argmax(dim=1) of one-hot rows gives them)"
            value_error(where, "target", expected, "one-hot rows")
    return target.to(device=logits.device, dtype=torch.int64)


def _one_hot(rows: Tensor) -> bool:
    return bool((rows.sum(dim=1) == 1).all())


def in_range(target: Tensor | None, logits: Tensor) -> Tensor:
    """(N,) bool: whether an image's classes exist, for targets that could not be looked at."""
    if target is None:
        return torch.ones(logits.shape[0], dtype=torch.bool, device=logits.device)
    exists = (target >= 0) & (target < logits.shape[1])
    return exists.reshape(logits.shape[0], -1).all(dim=1)


class ScoreSeed(NamedTuple):
    """What to differentiate: ``(scores * weights).sum()``, never summed in half precision."""

    scores: Tensor
    weights: Tensor


def score_seeds(
    where: str, target: Target, resolved: Tensor | None, logits: Tensor
) -> list[ScoreSeed]:
    """One seed per asked class: K of them for an (N, K) target, else one.

    A class is a one-hot row of weights on the logits; a callable's scores have weight 1.
    """
    if resolved is None:
        assert callable(target)
        with torch.enable_grad():
            scores = target(logits)
        if not isinstance(scores, Tensor) or scores.shape != logits.shape[:1]:
            shape = list(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            value_error(where, "target", f"a callable giving ({logits.shape[0]},)", f"{shape}")
        return [ScoreSeed(scores, torch.ones_like(scores))]
    # A class out of range would be a fatal assert on a GPU; such an image counts as invalid.
    columns = resolved.reshape(len(logits), -1).clamp(0, logits.shape[1] - 1)
    return [
        ScoreSeed(logits, torch.zeros_like(logits).scatter_(1, column, 1.0))
        for column in columns.split(1, dim=1)
    ]


def target_scores(
    where: str, target: Target, resolved: Tensor | None, logits: Tensor, copies: int
) -> Tensor:
    """Scores (copies, N, K), float32, of ``copies`` versions of a batch, one after the other.

    A callable sees one version of the batch at a time.
    """
    versions = logits.unflatten(0, (copies, -1))
    if resolved is None:
        seeds = [score_seeds(where, target, None, version)[0] for version in versions]
        return torch.stack([seed.scores.detach().float() for seed in seeds]).unsqueeze(2)
    columns = resolved.reshape(versions.shape[1], -1).clamp(0, logits.shape[1] - 1)
    return versions.float().gather(2, columns.expand(copies, -1, -1))
