"""What a frozen classifier says of an image seen through a map."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .._check import (
    check_range,
    check_rank,
    check_tensor,
    out_of_sight,
    type_error,
    value_error,
)
from .partial import check_classes

_IGNORE = -100  # torch's own label of what is not to be learnt


class MaskedClassifierLoss(nn.Module):
    r"""Classification loss of the foreground, ``CE(C(x * M), y)`` with C frozen (in DiPS eq. 5).

    The gradient goes through the classifier into the map, which is thereby drawn over what the
    classifier needs to see. The paper defines the loss so; its published code multiplies by a map
    that has no gradient, which leaves a constant: ``detach=True`` reproduces that.

    Args:
        classifier: from images to (N, classes) logits. Frozen and kept in evaluation mode, to which
            each call sets it; it is no submodule, so that its weights are neither trained, saved
            nor moved with the loss.
        weight: factor of the loss.
        detach: take the map as a constant, as the published code does.

    Raises:
        TypeError: a ``weight`` that is no number.
        ValueError: a ``weight`` of NaN.

    Example:
        >>> from wsfast.models import SmallVGG
        >>> loss = MaskedClassifierLoss(SmallVGG())
        >>> maps = torch.full((2, 32, 32), 0.5, requires_grad=True)
        >>> value = loss(torch.randn(2, 1, 32, 32), maps, torch.tensor([0, 1]))
        >>> value.backward()
        >>> bool(maps.grad.any())
        True
    """

    def __init__(self, classifier: nn.Module, weight: float = 1.0, *, detach: bool = False) -> None:
        super().__init__()
        check_range("nn.MaskedClassifierLoss", "weight", weight, -math.inf, math.inf)
        self._classifier = (classifier.eval().requires_grad_(False),)
        self.weight = float(weight)
        self.detach = detach

    @property
    def classifier(self) -> nn.Module:
        """The frozen classifier."""
        return self._classifier[0]

    def logits(self, images: Tensor, maps: Tensor) -> Tensor:
        """Logits (N, classes) of (N, C, H, W) normalised images times (N, H, W) maps.

        Where a map is 0 the classifier sees the mean colour of its training images.
        """
        where = "nn.MaskedClassifierLoss"
        check_tensor(where, "images", images)
        check_tensor(where, "maps", maps)
        check_rank(where, "images", images, 4)
        expected = (images.shape[0], *images.shape[2:])
        if maps.shape != expected:
            value_error(where, "maps", f"of shape {list(expected)}", f"shape {list(maps.shape)}")
        if any(module.training for module in self.classifier.modules()):
            self.classifier.eval()  # a network that it is part of was set to train
        seen = maps.detach() if self.detach else maps
        found: Tensor = self.classifier(images * seen[:, None])
        return found

    def forward(self, images: Tensor, maps: Tensor, labels: Tensor) -> Tensor:
        """The weighted loss, a scalar; ``labels`` are (N,) int64 classes, -100 for no class.

        Without an image that has a class it is 0 and so is its gradient.

        Raises:
            ValueError: maps or labels of another size than the images; on the CPU, a class that the
                classifier does not have.
            TypeError: anything but tensors, labels that are not int64.
        """
        logits = self.logits(images, maps)
        _check_labels(labels, logits)
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()
        total = F.cross_entropy(logits, labels, ignore_index=_IGNORE, reduction="sum")
        return self.weight * total / (labels != _IGNORE).sum().clamp_min(1)

    def extra_repr(self) -> str:
        """The options, as ``print(module)`` shows them."""
        return f"weight={self.weight}, detach={self.detach}"


def _check_labels(labels: Tensor, logits: Tensor) -> None:
    where = "nn.MaskedClassifierLoss"
    check_tensor(where, "labels", labels)
    if labels.dtype != torch.int64:
        type_error(where, "labels", "int64", f"{labels.dtype}")
    if labels.shape != logits.shape[:1]:
        value_error(where, "labels", f"of shape [{len(logits)}]", f"shape {list(labels.shape)}")
    if not out_of_sight(labels):
        check_classes(where, "labels", labels[labels != _IGNORE], logits.shape[1])
