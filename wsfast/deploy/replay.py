"""A localizer as a CUDA graph for batches of any size up to one."""

import torch
from torch import Tensor, nn

from wsfast._check import value_error
from wsfast.deploy.cuda_graph import CapturedLocalizer, capture
from wsfast.deploy.steps import LocalizerOutput


class ReplayedLocalizer:
    """Fills every batch up to one size, so that one captured graph serves them all.

    The graph is captured at the first call, and again where the images change their size or dtype.
    What a call returns is overwritten by the next one.

    Args:
        localizer: a :class:`wsfast.deploy.Localizer` on a CUDA device.
        batch_size: the most images of a call.
    """

    def __init__(self, localizer: nn.Module, batch_size: int) -> None:
        self._localizer, self._batch_size = localizer, batch_size
        self._captured: CapturedLocalizer | None = None
        self._kind: tuple[torch.Size, torch.dtype] | None = None

    def __call__(self, images: Tensor) -> LocalizerOutput:
        """Localise a batch of 1 to ``batch_size`` images.

        Raises:
            ValueError: no image, or more than that.
        """
        given = len(images)
        if not 1 <= given <= self._batch_size:
            expected = f"1 to {self._batch_size} of them"
            value_error("deploy.ReplayedLocalizer", "images", expected, f"{given}")
        filling = images[-1:].expand(self._batch_size - given, -1, -1, -1)
        full = torch.cat([images, filling])
        kind = full.shape, full.dtype
        if self._captured is None or kind != self._kind:
            self._captured, self._kind = capture(self._localizer, full), kind
        return LocalizerOutput(*(part[:given] for part in self._captured(full)))
