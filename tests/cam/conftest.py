"""Settings and networks of the CAM tests."""

import pytest
import torch
import torchvision
from torch import nn

from tests.cam.nets import out_of_place


@pytest.fixture(autouse=True)
def _one_thread(_seed_and_threads: None) -> None:
    """The networks are too small to share: a second thread would mostly wait."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def vgg16() -> nn.Module:
    torch.manual_seed(0)
    model = torchvision.models.vgg16(weights=None, num_classes=5, init_weights=False)
    model.avgpool, model.classifier = nn.AdaptiveAvgPool2d(1), nn.Linear(512, 5)
    return out_of_place(model).eval()


@pytest.fixture(scope="module")
def resnet18() -> nn.Module:
    torch.manual_seed(0)
    model = out_of_place(torchvision.models.resnet18(weights=None)).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias, std=0.2)
    return model
