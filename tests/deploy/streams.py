"""Sources and localizers for the live loop's tests."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from wsfast.deploy import LiveFrame, LiveLoop, LocalizedFrame, VideoSource

JOIN = 0.3  # seconds for all threads together, in place of the loop's own patience


class Pictures:
    """A source of frames that show their own number; of ``None`` in ``plan`` it is gone once."""

    def __init__(self, plan: range | list[int | None], *, live: bool = False) -> None:
        self.plan, self.live = iter(plan), live
        self.unreadable = self.missing = self.reopened = 0
        self.closed = False

    def read(self) -> LiveFrame | None:
        number = next(self.plan, None)
        if number is None:
            return None
        shape = (12, 20, 3) if number % 50 < 40 else (10, 16, 3)  # as a camera that changes mode
        return LiveFrame(number, number / 30, np.full(shape, number % 256, np.uint8))

    def reopen(self) -> None:
        self.reopened += 1

    def close(self) -> None:
        self.closed = True


def localize(images: Tensor) -> tuple[Tensor, ...]:
    """The image's grey level as logits and map, one box in boxes for three."""
    n, _, height, width = images.shape
    cams = images[:, 0] / 255
    boxes = torch.full((n, 3, 4), -1, dtype=torch.int32)
    boxes[:, 0] = torch.tensor([0, 0, width, height])
    scores = torch.zeros(n, 3)
    level = images[:, :, 0, 0].float()
    return level, cams, cams > 0.5, boxes, scores, torch.ones(n, dtype=torch.int32)


def run(
    source: Pictures | VideoSource,
    localizer: Callable[[Tensor], tuple[Tensor, ...]] = localize,
    write: Callable[[LocalizedFrame], None] = lambda found: None,
    **options: object,
) -> tuple[LiveLoop, list[LocalizedFrame]]:
    results: list[LocalizedFrame] = []

    def keep(found: LocalizedFrame) -> None:
        write(found)
        results.append(found)

    loop = LiveLoop(source, localizer, keep, retry_seconds=0.001, **options)
    loop.run()
    return loop, results


def numbers(results: list[LocalizedFrame]) -> list[int]:
    return [found.frame.index for found in results]
