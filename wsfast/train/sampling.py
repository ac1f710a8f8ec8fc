"""Sampling order for training on unbalanced classes."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import Sampler

from wsfast._check import value_error


class BalancedSampler(Sampler[int]):
    """As many images of each class per epoch, in random order.

    An epoch is as long as the data set (rounded down to a multiple of the classes). Within a class
    no image comes again before all others have come, so balanced data are simply shuffled.

    Args:
        labels: int64 (length,).

    Raises:
        ValueError: there are no labels.

    Note:
        Draws from torch's global random generator.

    Example:
        >>> labels = torch.tensor([0, 0, 0, 0, 0, 1])
        >>> sorted(labels[list(BalancedSampler(labels))].tolist())
        [0, 0, 0, 1, 1, 1]
    """

    def __init__(self, labels: Tensor) -> None:
        if labels.dim() != 1 or not len(labels):
            value_error("BalancedSampler", "labels", "a non-empty vector", f"{list(labels.shape)}")
        self._members = [torch.nonzero(labels == label)[:, 0] for label in labels.unique()]
        self._per_class = max(1, len(labels) // len(self._members))

    def __len__(self) -> int:
        return self._per_class * len(self._members)

    def __iter__(self) -> Iterator[int]:
        order = torch.cat([self._draw(members) for members in self._members])
        return iter(order[torch.randperm(len(order))].tolist())

    def _draw(self, members: Tensor) -> Tensor:
        rounds = -(-self._per_class // len(members))
        shuffled = torch.cat([members[torch.randperm(len(members))] for _ in range(rounds)])
        return shuffled[: self._per_class]
