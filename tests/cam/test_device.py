"""CAM methods on the device under test: the same maps as on the CPU, and left on the device."""

import copy

import pytest
import torch

from tests.cam.nets import GapNet, SmallNet
from wsfast.cam import CAM, METHODS

SAMPLED = ("SmoothGradCAMPlusPlus",)  # draws noise on the device
BIASED = ("FullGrad", "LTFullGrad")  # take layers with a bias


@pytest.mark.parametrize("method", sorted(name for name in METHODS if METHODS[name] is not CAM))
def test_methods_give_the_same_maps_everywhere(method: str, device: torch.device) -> None:
    model, images = SmallNet().eval(), torch.randn(2, 3, 32, 40)
    moved = copy.deepcopy(model).to(device)
    name = METHODS[method].__name__
    layers = [f"{'conv' if name in BIASED else 'relu'}{stage}" for stage in (1, 2, 3)]
    found = METHODS[method](moved, layers)(images.to(device))
    assert found.cams.device.type == device.type
    assert found.valid.all()
    if name in SAMPLED:
        return
    expected = METHODS[method](model, layers)(images)
    torch.testing.assert_close(found.cams.cpu(), expected.cams, rtol=0, atol=2e-3)
    torch.testing.assert_close(found.logits.cpu(), expected.logits, rtol=1e-3, atol=1e-3)


def test_cam_from_the_weights_of_the_head(device: torch.device) -> None:
    model, images = GapNet().eval(), torch.randn(2, 3, 32, 40)
    found = CAM(copy.deepcopy(model).to(device), "act3")(images.to(device))
    expected = CAM(model, "act3")(images)
    torch.testing.assert_close(found.cams.cpu(), expected.cams, rtol=0, atol=2e-3)
