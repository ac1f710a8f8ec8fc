"""CAM methods on the device under test: the same maps as on the CPU, and left on the device."""

import copy

import pytest
import timm
import torch
from torch import nn

from tests.cam.nets import GapNet, SmallNet
from tests.leaks import live_tensors
from wsfast.cam import (
    CAM,
    METHODS,
    MSCA,
    RACAM,
    TSCAM,
    GradCAM,
    LayerCAM,
    LTGradCAM,
    attention_rollout,
    filtered_backprop,
    multiscale,
)
from wsfast.testing import tolerance

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


def vit(**options: object) -> nn.Module:
    return timm.create_model(
        "vit_tiny_patch16_224", num_classes=3, depth=2, img_size=(32, 48), **options
    ).eval()


def swin() -> nn.Module:
    return timm.create_model(
        "swin_tiny_patch4_window7_224", num_classes=3, img_size=(32, 64), window_size=2,
        depths=(1, 1, 1, 1), embed_dim=24, num_heads=(1, 2, 4, 8),
    ).eval()  # fmt: skip


def filtered(model, images):
    with filtered_backprop(model, 40):
        return LayerCAM(model, "relu3")(images, 1).cams


@pytest.mark.parametrize(
    ("make", "size", "explain"),
    [
        (vit, (32, 48), lambda m, x: GradCAM(m)(x, 1).cams),
        (swin, (32, 64), lambda m, x: LTGradCAM(m)(x, 1).cams),
        (vit, (32, 48), lambda m, x: attention_rollout(m, x)),
        (lambda: TSCAM(vit(), 3).eval(), (32, 48), lambda m, x: m.explain(x, 1).cams),
        (SmallNet, (32, 48), filtered),
        (SmallNet, (32, 48), lambda m, x: multiscale(GradCAM(m, "relu3"), x, 1).cams),
        (SmallNet, (32, 48), lambda m, x: MSCA(GradCAM(m, "relu3"), vit_of(m))(x, 1).scores),
    ],
)
def test_systems_give_the_same_maps_everywhere(make, size, explain, device: torch.device) -> None:
    model, images = make().eval(), torch.randn(2, 3, *size)
    moved = copy.deepcopy(model).to(device)
    found = explain(moved, images.to(device))
    assert found.device.type == device.type
    torch.testing.assert_close(found.cpu(), explain(model, images), rtol=0, atol=2e-3)


def vit_of(model: nn.Module) -> nn.Module:
    """The same transformer on every device."""
    torch.manual_seed(2)
    return vit().to(next(model.parameters()).device)


def test_maps_in_a_loss_have_the_same_gradient_everywhere(device: torch.device) -> None:
    model, images = SmallNet().double().eval(), torch.randn(2, 3, 32, 40).double()
    moved = copy.deepcopy(model).to(device)
    for each, batch in ((model, images), (moved, images.to(device))):
        LayerCAM(each, "relu3")(batch, 1, create_graph=True).cams.mean().backward()
    for here, there in zip(model.parameters(), moved.parameters(), strict=True):
        assert (here.grad is None) == (there.grad is None)
        if here.grad is not None:
            torch.testing.assert_close(there.grad.cpu(), here.grad, **tolerance(torch.float32))


@pytest.mark.parametrize("method", [GradCAM, LTGradCAM, RACAM])
def test_nothing_stays_on_the_device(method, device: torch.device) -> None:
    explain = method(SmallNet().eval().to(device), "relu3")
    images = torch.randn(2, 3, 32, 40, device=device)

    def kept() -> int:
        if device.type == "cuda":
            torch.cuda.synchronize()
            return torch.cuda.memory_allocated()
        return len(live_tensors())

    explain(images, 1)
    before = kept()
    for _ in range(20):
        explain(images, 1)
    assert kept() == before
