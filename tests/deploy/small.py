"""Runs of every recipe on tiny synthetic defects, and networks and pictures to match."""

from pathlib import Path

import torch
from torch import Tensor, nn

from wsfast.data import SyntheticDefects
from wsfast.deploy import Localizer, LocalizerOutput
from wsfast.models import SmallVGG
from wsfast.train.runs import configure, run

INPUT = (32, 16)
FEED = {"mean": (0.4,), "std": (0.2,), "input_size": INPUT}
_DATA = {"size": list(INPUT), "images": 24, "channels": 1, "batch_size": 8, "holdout": 0.25}
_SETTINGS = {
    "fcam": {"preset": "small"},
    "dips": {"preset": "small", "blur_kernel": 9},
    "pseudo": {},
}
RECIPES = ("classifier", *_SETTINGS)


def train_runs(root: Path) -> dict[str, Path]:
    """One epoch of each recipe; the folders by recipe."""
    torch.set_num_threads(1)
    folders = {recipe: root / recipe for recipe in RECIPES}
    settings = {**_DATA, "epochs": 3, "select_on": "localization", "learning_rate": 0.05}
    run(configure("classifier", settings), folders["classifier"], progress=False)
    for recipe, own in _SETTINGS.items():
        settings = {**_DATA, "epochs": 1, "classifier": str(folders["classifier"]), **own}
        run(configure(recipe, settings), folders[recipe], progress=False)
    return folders


def small_model(seed: int = 0, channels: int = 1, classes: int = 2) -> SmallVGG:
    """A classifier with random weights, batch statistics included."""
    torch.manual_seed(seed)
    model = SmallVGG(channels, classes, (6, 12)).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
    return model


def small_localizer(**options: object) -> Localizer:
    """A localizer of :func:`small_model` for one-channel images."""
    return Localizer.from_model(small_model(), **{**FEED, "relu": False, **options})


class TwoLayers(nn.Module):
    """A network that gives maps of two layers, and that TorchScript can compile as it is."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 3, 3, stride=2, padding=1)

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        fine = self.first(images).relu()
        coarse = self.second(fine).relu()
        return coarse.mean(dim=(2, 3)), [fine.sum(1), coarse[:, 0]]


def defects(count: int, size: tuple[int, int] = (64, 32)) -> Tensor:
    """Generated pictures (N, 1, H, W) uint8."""
    data = SyntheticDefects(count, split="test", size=size)
    return torch.stack([data[index].image for index in range(count)])


def assert_same(found: LocalizerOutput, expected: LocalizerOutput) -> None:
    """Scores and maps up to rounding, masks and boxes exactly."""
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.cams, expected.cams, atol=1e-4, rtol=0)
    assert torch.equal(found.masks, expected.masks)
    assert torch.equal(found.boxes, expected.boxes)
    assert torch.equal(found.counts, expected.counts)
    torch.testing.assert_close(found.scores, expected.scores, atol=1e-4, rtol=0)
