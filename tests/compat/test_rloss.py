"""The drop-in for rloss, F-CAM and DiPS: constructor, call, value and scaling."""

import pytest
import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

import wsfast
from wsfast.compat.rloss import DenseCRFLoss


def test_call_and_value() -> None:
    layer = DenseCRFLoss(weight=2e-9, sigma_rgb=15.0, sigma_xy=100.0, scale_factor=0.5)
    images, prob = torch.rand(3, 3, 20, 24) * 255, torch.rand(3, 2, 20, 24).softmax(dim=1)
    regions = (torch.rand(3, 20, 24) > 0.2).float()
    kept, x = regions.clone(), prob.clone().requires_grad_()
    loss = layer(images, x, regions)
    assert loss.shape == (1,)
    assert loss.item() < 0
    wanted = 2e-9 * wsfast.dense_crf_loss(
        F.interpolate(images, scale_factor=0.5, mode="nearest"),
        F.interpolate(prob, scale_factor=0.5, mode="bilinear", align_corners=False),
        sigma_xy=50.0,
        roi=F.interpolate(regions[:, None], scale_factor=0.5, mode="nearest")[:, 0],
    )
    torch.testing.assert_close(loss[0], wanted)
    loss.backward()
    assert x.grad.shape == x.shape
    assert torch.equal(regions, kept)
    assert layer(images.to(torch.uint8), prob).shape == (1,)  # DiPS: bytes, no regions
    assert "sigma_rgb=15.0, sigma_xy=100.0, weight=2e-09" in repr(layer)


def test_known_gradient() -> None:
    images, prob = torch.rand(1, 3, 24, 24) * 255, torch.rand(1, 2, 24, 24).double()
    gradients = []
    for symmetric in (True, False):
        x = prob.clone().requires_grad_()
        DenseCRFLoss(1.0, 15.0, 100.0, 1.0, symmetric=symmetric)(images, x).sum().backward()
        gradients.append(x.grad)
    difference = (gradients[0] - gradients[1]).norm() / gradients[0].norm()
    assert 1e-4 < difference < 0.1


def test_errors() -> None:
    layer = DenseCRFLoss(1.0, 15.0, 100.0, 1.0)
    with pytest.raises(ValueError, match=r"wsfast\.dense_crf_loss: prob must be of the image's"):
        layer(torch.rand(2, 3, 8, 8) * 255, torch.rand(1, 2, 8, 8))


def test_nothing_is_copied_to_the_host_behind_ones_back() -> None:
    """An asynchronous copy from a GPU to the CPU is read before it ends."""
    seen = []

    class Watch(TorchFunctionMode):
        def __torch_function__(
            self, func: object, types: object, args: tuple = (), kwargs: dict | None = None
        ) -> object:
            if func is torch.Tensor.to:
                seen.append((args, kwargs or {}))
            return func(*args, **(kwargs or {}))

    image, prob = torch.rand(1, 3, 4, 4) * 255, torch.rand(1, 2, 4, 4).softmax(dim=1)
    with Watch():
        DenseCRFLoss(1.0, 15.0, 9.0, 1.0)(image, prob, torch.ones(1, 4, 4))
        wsfast.sample_seeds(torch.rand(1, 8, 8), seed=1)
    assert any(kwargs for _, kwargs in seen)
    assert not any(kwargs.get("non_blocking") for _, kwargs in seen)
