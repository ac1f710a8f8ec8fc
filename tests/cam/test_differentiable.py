"""``create_graph``: losses on maps, against plain autograd in float64."""

import copy
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

from tests.cam.nets import GapNet, SmallNet, passes
from tests.cam.two_processes import TARGET, gradients, model_and_images
from tests.leaks import assert_no_growth
from tests.processes import python
from wsfast.cam import CAM, METHODS, RACAM, CAMMethod, GradCAM, HiResCAM, LayerCAM, LTGradCAM
from wsfast.ops.truncation import reference as truncation

DIFFERENTIABLE = [name for name, method in METHODS.items() if method.differentiable]

FORMULAS = {
    GradCAM: lambda a, g: (g.mean((2, 3), keepdim=True) * a).sum(1).relu(),
    HiResCAM: lambda a, g: (g * a).sum(1).relu(),
    LayerCAM: lambda a, g: (g.relu() * a).sum(1).relu(),
    LTGradCAM: lambda a, g: (
        (truncation.truncate_gradients(g, 50).mean((2, 3), keepdim=True) * a).sum(1).relu()
    ),
}


def expected_gradients(model: nn.Module, images: Tensor, formula, layers: list[str]) -> list:
    """Of the sum of squared maps of class 1, for every parameter."""
    model = copy.deepcopy(model).double()
    kept = []
    for name in layers:
        model.get_submodule(name).register_forward_hook(lambda _m, _i, out: kept.append(out))
    score = model(images.double())[:, 1].sum()
    grads = torch.autograd.grad(score, kept, create_graph=True)
    loss = sum(formula(a, g).square().sum() for a, g in zip(kept, grads, strict=True))
    return torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)


@pytest.mark.parametrize("method", FORMULAS)
@pytest.mark.parametrize("inplace", [False, True])
def test_gradients_equal_plain_autograd(method: type[CAMMethod], inplace: bool) -> None:
    layers = ["relu1", "relu3"]
    plain, model = SmallNet(False), SmallNet(inplace)
    model.load_state_dict(plain.state_dict())
    images = torch.randn(2, 3, 16, 20)
    result = method(model, layers)(images, 1, create_graph=True)
    loss = sum(layer.square().sum() for layer in result.per_layer)
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    expected = expected_gradients(plain, images, FORMULAS[method], layers)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours.double(), theirs, rtol=1e-3, atol=1e-6)
    assert torch.equal(result.cams.detach(), method(model, layers)(images, 1).cams)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_a_loss_on_the_maps_reaches_the_first_layer(name: str) -> None:
    model = GapNet()
    result = METHODS[name](model, "act3")(torch.randn(4, 3, 16, 16), 1, create_graph=True)
    (result.cams.mean() + result.logits.mean()).backward()
    assert model.conv1.weight.grad.abs().sum() > 0
    assert model.head.weight.grad.abs().sum() > 0


def test_it_is_the_forward_pass_of_a_training_step() -> None:
    model, other, images = GapNet().train(), GapNet().train(), torch.randn(4, 3, 16, 16)
    other.load_state_dict(model.state_dict())
    logits = GradCAM(model, "act3")(images, 0, create_graph=True).logits
    assert torch.equal(logits, other(images))
    assert torch.equal(model.norm1.running_mean, other.norm1.running_mean)
    assert model.training


def test_without_gradients_outside_and_with_a_frozen_beginning() -> None:
    model, images = SmallNet().eval(), torch.randn(2, 3, 16, 16)
    model.conv1.requires_grad_(False)
    with torch.no_grad():
        result = GradCAM(model)(images, 1, create_graph=True)
        assert not torch.is_grad_enabled()
    result.cams.sum().backward()
    assert model.conv1.weight.grad is None
    assert model.conv3.weight.grad is not None


def test_filtered_gradients_are_differentiable() -> None:
    model, images = GapNet().eval(), torch.randn(2, 3, 16, 16)
    layers = ["act1", "act2", "act3"]
    first = RACAM(model, layers)(images, 1)
    result = RACAM(model, layers)(images, 1, create_graph=True)
    torch.testing.assert_close(result.cams.detach(), first.cams)
    result.cams.sum().backward()
    assert model.conv2.weight.grad.abs().sum() > 0


def test_several_classes_share_one_graph() -> None:
    model, images = SmallNet().eval(), torch.randn(2, 3, 16, 16)
    result = LayerCAM(model)(images, [[0, 1], [2, 3]], create_graph=True)
    result.cams[:, 1].sum().backward()
    assert model.conv1.weight.grad.abs().sum() > 0


def test_memory_of_training_steps_stays_flat() -> None:
    model, images = SmallNet().eval(), torch.randn(2, 3, 16, 16)
    method = LTGradCAM(model)

    def step() -> None:
        method(images, create_graph=True).cams.sum().backward()
        model.zero_grad()

    assert_no_growth(step)


def test_cam_of_the_classifiers_weights() -> None:
    model, images = GapNet().eval(), torch.randn(2, 3, 16, 16)
    result = CAM(model, "act3", norm=None, layer_norm=None, relu=False)(
        images, 1, create_graph=True
    )
    (grad,) = torch.autograd.grad(result.per_layer[0].sum(), model.head.weight)
    (activations,), _, _ = passes(model, images, ["act3"])
    torch.testing.assert_close(grad[1], activations.sum((0, 2, 3)))
    assert not grad[0].any()


@pytest.mark.parametrize("block", ["blocks.0.norm1", "blocks.1.norm1"])
def test_transformers_with_fused_attention(block: str) -> None:
    model = timm.create_model("vit_tiny_patch16_224", depth=2, img_size=32, num_classes=3)
    assert model.blocks[0].attn.fused_attn
    flags = backends()
    result = GradCAM(model, block)(torch.randn(2, 3, 32, 32), 1, create_graph=True)
    assert backends() == flags
    (result.cams.mean() + result.logits.mean()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    assert model.patch_embed.proj.weight.grad.any()


def backends() -> list[bool]:
    cuda = torch.backends.cuda
    return [cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.math_sdp_enabled()]


def test_two_processes_end_with_the_gradient_of_the_joined_batch(tmp_path: Path) -> None:
    done = python("-m", "tests.cam.two_processes", tmp_path, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    expected = gradients(*model_and_images(), TARGET)
    assert len(first) == 4
    for name, found in first.items():
        for ours, theirs, joined in zip(found, second[name], expected, strict=True):
            assert torch.equal(ours, theirs)
            torch.testing.assert_close(ours, joined, rtol=1e-4, atol=1e-6)
