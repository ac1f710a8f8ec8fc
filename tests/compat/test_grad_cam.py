"""pytorch-grad-cam's interface: against wsfast.cam always, against the package where installed."""

import gc
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.cam.nets import GapNet
from wsfast import cam as methods
from wsfast.compat import grad_cam as compat

NAMES = [
    "GradCAM", "HiResCAM", "GradCAMElementWise", "GradCAMPlusPlus", "XGradCAM", "LayerCAM",
    "FullGrad", "ScoreCAM", "AblationCAM",
]  # fmt: skip


@pytest.fixture
def model() -> nn.Module:
    model = GapNet().eval()
    model.head.weight.data *= 20
    return model


def layers_of(model: nn.Module, name: str) -> list[nn.Module]:
    if name == "FullGrad":
        return []
    return [model.act3] if name in ("ScoreCAM", "AblationCAM") else [model.act1, model.act3]


IMAGES = torch.randn(3, 3, 24, 32, generator=torch.Generator().manual_seed(5))


@pytest.mark.peers
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("targets", [None, "classes", "callables"])
def test_same_results(model: nn.Module, name: str, targets: str | None) -> None:
    peer = pytest.importorskip("pytorch_grad_cam")
    chosen: Any = None
    if targets == "classes":
        chosen = [compat.ClassifierOutputTarget(i) for i in (1, 0, 3)]
    elif targets == "callables":
        chosen = [lambda row: row[0] - row[1], lambda row: row[2], lambda row: 2 * row[3]]
    layers = layers_of(model, name)
    with getattr(peer, name)(model=model, target_layers=layers) as theirs:
        expected = theirs(input_tensor=IMAGES.clone(), targets=chosen)
    with getattr(compat, name)(model=model, target_layers=layers) as ours:
        found = ours(input_tensor=IMAGES, targets=chosen)
    assert type(found) is np.ndarray
    assert found.dtype == np.float32
    assert found.shape == expected.shape
    atol = 1e-4 if name in ("ScoreCAM", "AblationCAM") else 5e-6
    np.testing.assert_allclose(found, expected, rtol=0, atol=atol)
    torch.testing.assert_close(ours.outputs, theirs.outputs.detach())


@pytest.mark.peers
@pytest.mark.parametrize("name", NAMES)
def test_accelerate(model: nn.Module, name: str) -> None:
    peer = pytest.importorskip("pytorch_grad_cam")
    theirs = getattr(peer, name)(model=model, target_layers=layers_of(model, name))
    expected = theirs(IMAGES.clone(), None)
    fast = compat.accelerate(theirs)
    atol = 1e-4 if name in ("ScoreCAM", "AblationCAM") else 5e-6
    np.testing.assert_allclose(fast(IMAGES, None), expected, rtol=0, atol=atol)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.peers
def test_augmented_smoothing(model: nn.Module) -> None:
    peer = pytest.importorskip("pytorch_grad_cam")
    theirs = peer.LayerCAM(model=model, target_layers=[model.act2])
    expected = theirs(IMAGES.clone(), None, aug_smooth=True)
    found = compat.LayerCAM(model, [model.act2])(IMAGES, None, aug_smooth=True)
    np.testing.assert_allclose(found, expected, rtol=0, atol=5e-6)
    given = compat.LayerCAM(model, [model.act2], tta_transforms=theirs.tta_transforms)
    np.testing.assert_allclose(given(IMAGES, None, aug_smooth=True), expected, rtol=0, atol=5e-6)


@pytest.mark.parametrize("name", ["GradCAM", "HiResCAM", "XGradCAM", "LayerCAM"])
def test_is_the_method_of_that_name(model: nn.Module, name: str) -> None:
    layers = [model.act1, model.act3]
    targets = [compat.ClassifierOutputTarget(2)] * 3
    found = getattr(compat, name)(model, layers)(IMAGES, targets)
    expected = getattr(methods, name)(model, layers)(IMAGES, 2).cams
    np.testing.assert_array_equal(found, expected.numpy())


def test_reshape_transform() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 6, 4, 4), nn.Flatten(2), Transpose(), nn.LayerNorm(6), Mean(), nn.Linear(6, 3)
    ).eval()

    def reshape(tokens: Tensor) -> Tensor:
        return tokens.unflatten(1, (6, 8)).permute(0, 3, 1, 2)

    found = compat.GradCAM(model, [model[3]], reshape_transform=reshape)(IMAGES, None)
    assert found.shape == (3, 24, 32)
    assert found.max() > 0.9


class Transpose(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


def test_leaves_gradients_and_memory_alone(model: nn.Module) -> None:
    extractor = compat.LayerCAM(model, [model.act1, model.act3])

    def tensors() -> int:
        gc.collect()
        return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())

    extractor(IMAGES)
    before = tensors()
    for _ in range(10):
        extractor(IMAGES)
    assert tensors() == before
    assert all(parameter.grad is None for parameter in model.parameters())


def test_errors(model: nn.Module) -> None:
    extractor = compat.GradCAM(model, [model.act3])
    with pytest.raises(ValueError, match=r"targets must be one per image \(3\), got 1"):
        extractor(IMAGES, [compat.ClassifierOutputTarget(0)])
    with pytest.raises(TypeError, match="targets must be None or callables"):
        extractor(IMAGES, [0, 1, 2])
    with pytest.raises(ValueError, match="eigen_smooth must be False"):
        extractor(IMAGES, None, eigen_smooth=True)
    with pytest.raises(ValueError, match="detach must be True"):
        compat.GradCAM(model, [model.act3], detach=False)
    with pytest.raises(ValueError, match=r"ratio_channels_to_ablate must be 1\.0"):
        compat.AblationCAM(model, [model.act3], ratio_channels_to_ablate=0.5)
    with pytest.raises(TypeError, match="cam must be a pytorch-grad-cam object of GradCAM"):
        compat.accelerate(object())
    with pytest.raises(IndexError), extractor:
        [][0]
