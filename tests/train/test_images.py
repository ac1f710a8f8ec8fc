"""Statistics of a data set, from one image at a time, and those of pretrained weights."""

import weakref
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from wsfast.models import SmallVGG, save_checkpoint
from wsfast.train.images import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    image_statistics,
    pretrained_normalization,
)


class Photographs:
    """Images of different sizes; notes how many are alive when another is read."""

    def __init__(self, count, channels):
        self.labels = torch.zeros(count, dtype=torch.int64)
        self.channels = channels
        self.read, self.most_alive = [], 0

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        noise = torch.Generator().manual_seed(index)
        low = torch.arange(self.channels)[:, None, None] * 30
        size = (self.channels, 8 + index % 5, 6)
        image = (torch.randint(0, 120, size, generator=noise) + low).to(torch.uint8)
        self.most_alive = max(self.most_alive, sum(known() is not None for known in self.read))
        self.read.append(weakref.ref(image))
        return SimpleNamespace(image=image)


@pytest.mark.parametrize(("count", "channels", "looked_at"), [(7, 3, 7), (530, 1, 265)])
def test_statistics_are_those_of_all_pixels_together(count, channels, looked_at):
    data = Photographs(count, channels)
    mean, std = image_statistics(data)
    assert len(data.read) == looked_at
    step = count // looked_at
    values = torch.cat([data[i].image.flatten(1).double() for i in range(0, count, step)], 1) / 255
    assert mean == pytest.approx(values.mean(1).tolist(), rel=1e-9)
    assert std == pytest.approx(values.std(1).tolist(), rel=1e-9)


def test_no_more_than_one_image_is_kept_while_the_next_is_read():
    data = Photographs(40, 1)
    image_statistics(data)
    assert data.most_alive <= 1


def test_a_flat_image_has_no_deviation_to_divide_by():
    data = [SimpleNamespace(image=torch.full((1, 4, 4), 51, dtype=torch.uint8))]
    assert image_statistics(data) == ([pytest.approx(0.2)], [pytest.approx(1e-3)])


def test_pretrained_weights_get_what_they_were_trained_on(tmp_path):
    half, imagenet = ((0.5,) * 3, (0.5,) * 3), (IMAGENET_MEAN, IMAGENET_STD)
    assert pretrained_normalization("vit_tiny_patch16_224", "", 3) == half
    assert pretrained_normalization("timm/vgg16", "", 3) == imagenet
    assert pretrained_normalization("resnet50", "", 3) == imagenet
    assert pretrained_normalization("vgg16", "", 1) == ((0.485,), (0.229,))
    own, theirs, pickled = (str(tmp_path / n) for n in ("own.safetensors", "x.safetensors", "x.pt"))
    described = {"class_names": ("a", "b"), "input_size": (16, 16)}
    save_checkpoint(SmallVGG(in_chans=3), own, mean=(0.1, 0.2, 0.3), std=(0.4,) * 3, **described)
    save_file({"x": torch.ones(1)}, theirs, metadata={"format": "pt"})
    torch.save({"x": torch.ones(1)}, pickled)
    assert pretrained_normalization("small_vgg", own, 3) == ((0.1, 0.2, 0.3), (0.4,) * 3)
    for other in (theirs, pickled):
        assert pretrained_normalization("vit_tiny_patch16_224", other, 3) == half
        assert pretrained_normalization("vgg16", other, 3) == imagenet
