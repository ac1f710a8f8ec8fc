from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from wsfast.deploy import LiveFrame, LiveLoop, LocalizedFrame, Localizer, replay
from wsfast.deploy.replay import ReplayedLocalizer
from wsfast.deploy.steps import LocalizerOutput
from wsfast.models import SmallVGG


def build(device: str = "cpu") -> Localizer:
    model = SmallVGG(in_chans=1).eval()
    return Localizer.from_model(model, mean=(0.5,), std=(0.2,), input_size=(32, 32)).to(device)


def pictures(count: int, side: int = 40) -> Tensor:
    return torch.randint(256, (count, 1, side, side), dtype=torch.uint8)


def one_buffer(localizer: Localizer, example: Tensor) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """As a captured graph: what a call returns is overwritten by the next one."""
    found = localizer(example)

    def replayed(images: Tensor) -> LocalizerOutput:
        for part, new in zip(found, localizer(images), strict=True):
            part.copy_(new)
        return found

    return replayed


def test_batches_are_filled_up_and_captured_once_per_size(monkeypatch) -> None:
    shapes = []

    def capture(localizer: Localizer, example: Tensor) -> Callable[[Tensor], tuple[Tensor, ...]]:
        shapes.append(list(example.shape))
        return one_buffer(localizer, example)

    monkeypatch.setattr(replay, "capture", capture)
    localizer = build()
    replayed = ReplayedLocalizer(localizer, 4)
    for images in (pictures(2), pictures(4), pictures(1), pictures(3, 24)):
        for found, expected in zip(replayed(images), localizer(images), strict=True):
            torch.testing.assert_close(found, expected)
    assert shapes == [[4, 1, 40, 40], [4, 1, 24, 24]]


@pytest.mark.parametrize("count", [0, 5])
def test_errors(count: int) -> None:
    with pytest.raises(ValueError, match=f"images must be 1 to 4 of them, got {count}"):
        ReplayedLocalizer(build(), 4)(pictures(count))


class Noise:
    """Eleven pictures."""

    live = False
    unreadable = missing = 0

    def __init__(self) -> None:
        self.images = list(pictures(11).permute(0, 2, 3, 1).numpy())
        self.left = list(enumerate(self.images))

    def read(self) -> LiveFrame | None:
        if not self.left:
            return None
        index, image = self.left.pop(0)
        return LiveFrame(index, index / 10, np.repeat(image, 3, axis=2))

    def close(self) -> None:
        pass


def test_results_of_a_live_loop_outlive_the_next_batch(monkeypatch) -> None:
    monkeypatch.setattr(replay, "capture", one_buffer)
    localizer = build()
    results: list[LocalizedFrame] = []
    source = Noise()
    replayed = ReplayedLocalizer(localizer, 2)
    LiveLoop(source, replayed, results.append, batch_size=2, channels=1).run()
    assert len(results) == 11
    for found in results:
        image = torch.from_numpy(source.images[found.frame.index]).permute(2, 0, 1)
        expected = localizer(image[None])
        torch.testing.assert_close(found.logits, expected.logits[0])
        torch.testing.assert_close(found.cam, expected.cams[0])
        assert found.count == int(expected.counts[0])


def test_graphs_give_what_the_localizer_gives(device: torch.device) -> None:
    if device.type != "cuda":
        pytest.skip("needs --device cuda")
    localizer = build("cuda")
    replayed = ReplayedLocalizer(localizer, 4)
    for count in (4, 1, 3):
        images = pictures(count).cuda()
        expected = localizer(images)
        found = replayed(images)
        torch.testing.assert_close(found.cams, expected.cams, atol=1e-3, rtol=1e-3)
        assert found.logits.shape == expected.logits.shape
