import pytest
import torch
from torch import Tensor

from wsfast.deploy import Localizer, replay
from wsfast.deploy.replay import ReplayedLocalizer
from wsfast.models import SmallVGG


def build(device: str = "cpu") -> Localizer:
    model = SmallVGG(in_chans=1).eval()
    return Localizer.from_model(model, mean=(0.5,), std=(0.2,), input_size=(32, 32)).to(device)


def pictures(count: int, side: int = 40) -> Tensor:
    return torch.randint(256, (count, 1, side, side), dtype=torch.uint8)


def test_batches_are_filled_up_and_captured_once_per_size(monkeypatch) -> None:
    shapes = []

    def capture(localizer: Localizer, example: Tensor) -> Localizer:
        shapes.append(list(example.shape))
        return localizer

    monkeypatch.setattr(replay, "capture", capture)
    localizer = build()
    replayed = ReplayedLocalizer(localizer, 4)
    for images in (pictures(2), pictures(4), pictures(1), pictures(3, 24)):
        for found, expected in zip(replayed(images), localizer(images), strict=True):
            torch.testing.assert_close(found, expected)
    assert shapes == [[4, 1, 40, 40], [4, 1, 24, 24]]


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
