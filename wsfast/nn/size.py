"""The constraint that neither foreground nor background may vanish."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .._check import check_count, check_floating, check_range, check_rank, check_tensor

# Of shares themselves all would lie in the barrier's linear branch, where the regions' gradients
# cancel.
_PIXELS = 224 * 224
_LARGEST_T = 1e30  # for float32, whose largest number is 3e38


def log_barrier(constraint: Tensor, t: float) -> Tensor:
    r"""Extended log barrier of ``constraint <= 0`` (F-CAM section 3, after Kervadec et al.).

    .. math:: \psi_t(f) = -\tfrac1t \log(-f) \text{ if } f \le -1/t^2,
        \text{ else } t f - \tfrac1t \log(1/t^2) + \tfrac1t

    Args:
        constraint: any shape, floating point.
        t: 1e-12 to 1e30; the barrier hardens as it grows.

    Returns:
        Like ``constraint``; smooth where the branches meet, and finite where the dtype holds
        the terms.

    Raises:
        ValueError: ``t`` below 1e-12 or above 1e30.
        TypeError: ``constraint`` is not a floating-point tensor.

    Example:
        >>> log_barrier(torch.tensor([-1.0, 0.0]), 1.0)
        tensor([0., 1.])
    """
    where = "nn.log_barrier"
    check_tensor(where, "constraint", constraint)
    check_floating(where, "constraint", constraint)
    check_range(where, "t", t, 1e-12, _LARGEST_T)
    return _barrier(constraint, float(t), math.log(t))


def _barrier(constraint: Tensor, t: float | Tensor, log_t: float | Tensor) -> Tensor:
    inside = constraint < -1 / t**2  # strictly: for a large t that is 0, which has no logarithm
    # Each branch gets harmless values where the other holds, so that no gradient becomes NaN.
    logarithm = -torch.where(inside, -constraint, torch.ones_like(constraint)).log() / t
    linear = t * constraint + (2 * log_t + 1) / t
    return torch.where(inside, logarithm, linear)


class SizeConstraintLoss(torch.nn.Module):
    r"""Absolute-size constraint: every region of a soft segmentation has some size (F-CAM eq. 3).

    .. math:: \lambda \, \frac{1}{K N} \sum_{k,n} \psi_t\Big(-\sum_p S^k_{n,p}\Big)

    With two regions this is the published code's factor of one half over foreground and background.

    Args:
        weight: factor of the loss, 0.1 as published.
        t: the barrier's parameter in epoch 0.
        t_growth: factor of ``t`` per epoch.
        t_max: ``t`` grows no further.
        normalize: sizes in pixels of an image of 224 x 224 in place of one's own, so that the loss
            does not depend on resolution.

    Raises:
        TypeError: a number that is none.
        ValueError: a ``weight`` of NaN, ``t`` below 1e-12 or above 1e30, ``t_growth`` below 1,
            ``t_max`` below ``t``.

    Note:
        In pixels sizes are thousands, where the barrier is far inside its logarithmic branch: the
        gradient per pixel is then ``-weight / (K t N size)``. ``t`` is a function of the epoch, see
        :meth:`set_epoch`, so nothing has to be saved to resume.

    Example:
        >>> loss = SizeConstraintLoss(1.0)
        >>> round(loss(torch.full((1, 2, 2, 2), 0.5)).item(), 4)  # -log(2)
        -0.6931
    """

    _t: Tensor

    def __init__(
        self,
        weight: float = 0.1,
        *,
        t: float = 1.0,
        t_growth: float = 1.01,
        t_max: float = 10.0,
        normalize: bool = False,
    ) -> None:
        super().__init__()
        where = "nn.SizeConstraintLoss"
        check_range(where, "weight", weight, -math.inf, math.inf)
        check_range(where, "t", t, 1e-12, _LARGEST_T)
        check_range(where, "t_growth", t_growth, 1.0, math.inf)
        check_range(where, "t_max", t_max, t, math.inf)
        self.weight = float(weight)
        self.first_t = float(t)
        self.t_growth = float(t_growth)
        self.t_max = float(t_max)
        self.normalize = normalize
        # A tensor: compiled code would be made anew for every value of a number.
        self.register_buffer("_t", torch.tensor(float(t)), persistent=False)

    @property
    def t(self) -> float:
        """The barrier's parameter now."""
        return float(self._t)

    def set_epoch(self, epoch: int) -> None:
        """Set ``t`` to its value in an epoch, a whole number counted from 0; others raise."""
        check_count("nn.SizeConstraintLoss.set_epoch", "epoch", epoch, 0)
        # In logarithms: the power itself may be more than a float holds.
        growth = math.log(self.t_max / self.first_t)
        grown = min(epoch * math.log(self.t_growth), growth, math.log(_LARGEST_T / self.first_t))
        self._t.fill_(self.t_max if grown == growth else self.first_t * math.exp(grown))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "SizeConstraintLoss":
        """Move ``t``, but do not round it where the network that this is part of is made half."""
        t = self._t
        super()._apply(fn, recurse)
        if self._t.dtype in (torch.float16, torch.bfloat16):
            self._t = t.to(self._t.device)
        return self

    def forward(self, prob: Tensor) -> Tensor:
        """The weighted loss of (N, K, H, W) probabilities, a scalar; float32 for half types.

        Without an image it is 0 and so is its gradient.
        """
        where = "nn.SizeConstraintLoss"
        check_tensor(where, "prob", prob)
        check_floating(where, "prob", prob)
        check_rank(where, "prob", prob, 4)
        if prob.dtype in (torch.float16, torch.bfloat16):
            prob = prob.float()
        sizes = prob.mean(dim=(2, 3)) * _PIXELS if self.normalize else prob.sum(dim=(2, 3))
        each = _barrier(-sizes, self._t, self._t.log())
        return self.weight * (each.mean() if each.numel() else each.sum())

    def extra_repr(self) -> str:
        """The options, as ``print(module)`` shows them."""
        return f"weight={self.weight}, t={self.t:.4g}, normalize={self.normalize}"
