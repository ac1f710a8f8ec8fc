"""Learning rate and momentum as functions of the step, so that a resumed run needs no state."""

import math
from typing import NamedTuple

import torch

SCHEDULES = ["constant", "step", "cosine", "onecycle"]
_RISE = 0.3  # one cycle: share of the steps in which the learning rate rises,
_START, _END = 1 / 25, 1 / 25e4  # its first and last factor,
_MOMENTA = (0.95, 0.85)  # and the momentum at its ends and at its peak, as torch's OneCycleLR


class Schedule(NamedTuple):
    """A schedule over a run.

    Attributes:
        kind: ``"constant"``; ``"step"`` multiplies by ``gamma`` every ``every`` epochs;
            ``"cosine"`` falls to 0; ``"onecycle"`` is torch's OneCycleLR with its defaults.
        steps_per_epoch: optimizer steps.
        epochs: length of the run.
        every: epochs between two steps.
        gamma: factor of a step.
        warmup: steps in which the rate first rises linearly.
    """

    kind: str
    steps_per_epoch: int
    epochs: int
    every: int = 15
    gamma: float = 0.1
    warmup: int = 0

    def factor(self, step: int) -> float:
        """What the learning rate is multiplied with at a step, counted from 0."""
        rising = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        total = self.epochs * self.steps_per_epoch
        if self.kind == "step":
            return rising * self.gamma ** (step // self.steps_per_epoch // self.every)
        if self.kind == "cosine":
            return rising * _cosine(1.0, 0.0, step / total)
        if self.kind == "onecycle":
            done, falling = self._cycle(step)
            return _cosine(1.0, _END, done) if falling else _cosine(_START, 1.0, done)
        return rising

    def momentum(self, step: int) -> float | None:
        """The momentum at a step; None where the schedule leaves it alone."""
        if self.kind != "onecycle":
            return None
        done, falling = self._cycle(step)
        ends, peak = _MOMENTA
        return _cosine(peak, ends, done) if falling else _cosine(ends, peak, done)

    def _cycle(self, step: int) -> tuple[float, bool]:
        """How much of the rise or the fall is done, and whether it is the fall."""
        last = self.epochs * self.steps_per_epoch - 1
        peak = _RISE * (last + 1) - 1
        if step <= peak:
            return step / peak, False
        return (step - peak) / (last - peak), True

    def apply(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Set every group's rate from its ``initial_lr``, and its momentum."""
        momentum = self.momentum(step)
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * self.factor(step)
            if momentum is not None and "momentum" in group:
                group["momentum"] = momentum
            elif momentum is not None and "betas" in group:
                group["betas"] = (momentum, *group["betas"][1:])


def _cosine(start: float, end: float, done: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * done))
