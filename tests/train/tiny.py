"""A training run small enough to be broken off many times, and what it leaves."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from wsfast.data import DefectSample
from wsfast.models import SmallVGG
from wsfast.train import ClassifierConfig, ClassifierRecipe, fit
from wsfast.train.images import ImageData
from wsfast.train.log import read_log


class BrightOrDark:
    """Dark images with a bright square where the label is 1; ``channels`` differ in offset."""

    def __init__(self, length, channels=1):
        self.labels = torch.arange(length) % 2
        self.channels = channels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        noise = torch.Generator().manual_seed(index)
        image = torch.randint(40, 80, (self.channels, 16, 16), generator=noise, dtype=torch.uint8)
        image += torch.arange(self.channels, dtype=torch.uint8)[:, None, None] * 50
        mask = torch.zeros(16, 16, dtype=torch.bool)
        if self.labels[index]:
            mask[2:8, 3:9] = True
            image[:, mask] += 60
        return DefectSample(image, mask, int(self.labels[index]), str(index))


class Dropping(SmallVGG):
    """With dropout, whose random numbers must go on as well."""

    def forward(self, images):
        features = self.forward_features(images)
        return self.logits_of([nn.functional.dropout(f, 0.2, self.training) for f in features])


def make_recipe(*, dropout=True, labels=None, validation=None, **settings):
    settings = {"epochs": 3, "batch_size": 8, "seed": 3, "schedule": "onecycle", **settings}
    settings.setdefault("learning_rate", 0.1)
    config = ClassifierConfig(**settings)
    train, validation = BrightOrDark(40), validation or BrightOrDark(13)
    if labels is not None:
        train.labels = labels
    torch.manual_seed(1)
    model = (Dropping if dropout else SmallVGG)(channels=(4, 6))
    data = ImageData(train, validation, [0.3], [0.2], ("good", "defect"), flips="both")
    return ClassifierRecipe(config, model, torch.device("cpu"), data)


def train_tiny(out, *, resume=False, **settings):
    return fit(make_recipe(**settings), out=Path(out), resume=resume, progress=False)


def result(out):
    """Weights of last and best model, and the log without its times."""
    out = Path(out)
    log = [
        {k: v for k, v in record.items() if k not in ("seconds", "images_per_second")}
        for record in read_log(out)
    ]
    return load_file(out / "last.safetensors"), load_file(out / "best.safetensors"), log


def assert_same_result(first, second):
    for ours, theirs in zip(first[:2], second[:2], strict=True):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert first[2] == second[2]
