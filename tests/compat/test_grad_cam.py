"""pytorch-grad-cam's interface: against wsfast.cam always, against the package where installed."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.cam.nets import GapNet
from tests.leaks import assert_no_growth
from wsfast import cam as methods
from wsfast.compat import grad_cam as compat
from wsfast.compat.grad_cam.eigen import principal_maps

EIGEN = ["EigenCAM", "EigenGradCAM", "SegEigenCAM"]
SUMS = [
    "GradCAM", "HiResCAM", "GradCAMElementWise", "GradCAMPlusPlus", "XGradCAM", "LayerCAM",
    "ScoreCAM", "AblationCAM", "RandomCAM", "ShapleyCAM",
]  # fmt: skip
NAMES = [*SUMS, *EIGEN, "FullGrad", "FEM"]


@pytest.fixture
def model() -> nn.Module:
    model = GapNet().eval()
    model.head.weight.data *= 20
    return model


def layers_of(model: nn.Module, name: str) -> list[nn.Module]:
    if name == "FullGrad":
        return []
    single = ("ScoreCAM", "AblationCAM", "ShapleyCAM")  # the peer's fails with two layers
    return [model.act3] if name in single else [model.act1, model.act3]


def both(name: str, model: nn.Module, *args: Any, **options: Any) -> tuple[Any, Any]:
    """The peer's maps and ours."""
    peer = pytest.importorskip("pytorch_grad_cam")
    found = []
    for module in (peer, compat):
        np.random.seed(7)  # noqa: NPY002  # RandomCAM draws from the global generator
        cam = getattr(module, name)(model=model, target_layers=layers_of(model, name))
        found.append(cam(IMAGES.clone(), *args, **options))
    return found[0], found[1]


IMAGES = torch.randn(3, 3, 24, 32, generator=torch.Generator().manual_seed(5))


@pytest.mark.peers
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("targets", [None, "callables"])
def test_same_results(model: nn.Module, name: str, targets: str | None) -> None:
    peer = pytest.importorskip("pytorch_grad_cam")
    chosen: Any = None
    if targets == "callables":
        chosen = [lambda row: row[0] - row[1], lambda row: row[2], lambda row: 2 * row[3]]
    layers = layers_of(model, name)
    np.random.seed(7)  # noqa: NPY002
    with getattr(peer, name)(model=model, target_layers=layers) as theirs:
        expected = theirs(input_tensor=IMAGES.clone(), targets=chosen)
    np.random.seed(7)  # noqa: NPY002
    with getattr(compat, name)(model=model, target_layers=layers) as ours:
        found = ours(input_tensor=IMAGES, targets=chosen)
    assert type(found) is np.ndarray
    assert found.dtype == np.float32
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=5e-6)
    torch.testing.assert_close(ours.outputs, theirs.outputs.detach())


@pytest.mark.peers
def test_same_results_for_classes(model: nn.Module) -> None:
    for targets in ("ClassifierOutputTarget", "ClassifierOutputSoftmaxTarget"):
        chosen = [getattr(compat, targets)(i) for i in (1, 0, 3)]
        expected, found = both("LayerCAM", model, chosen)
        np.testing.assert_allclose(found, expected, rtol=0, atol=5e-6)
    utils = pytest.importorskip("pytorch_grad_cam.utils.model_targets")
    logits = torch.randn(3, 4)
    for name in ("ClassifierOutputSoftmaxTarget", "ClassifierOutputReST"):
        ours, theirs = getattr(compat, name)(2), getattr(utils, name)(2)
        torch.testing.assert_close(ours(logits), theirs(logits))
        torch.testing.assert_close(ours(logits[0]), theirs(logits[0]))


@pytest.mark.peers
def test_one_logit(model: nn.Module) -> None:
    model.head = nn.Linear(model.head.in_features, 1)
    chosen = [compat.BinaryClassifierOutputTarget(i) for i in (1, 0, 1)]
    expected, found = both("GradCAM", model, chosen)
    np.testing.assert_allclose(found, expected, rtol=0, atol=5e-6)


@pytest.mark.peers
@pytest.mark.parametrize("name", [*SUMS, *EIGEN, "FEM"])
def test_eigen_smooth(model: nn.Module, name: str) -> None:
    expected, found = both(name, model, None, eigen_smooth=True)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)


def test_principal_maps() -> None:
    weighted = torch.randn(4, 6, 5, 7)
    pixels = weighted.flatten(2).mT - weighted.flatten(2).mean(2)[:, None]
    vectors = torch.linalg.eigh((pixels.mT @ pixels).double())[1][:, :, -1]
    expected = (pixels.double() @ vectors[:, :, None])[..., 0].unflatten(1, (5, 7))
    found = principal_maps(weighted)
    torch.testing.assert_close(found.abs(), expected.abs().float(), rtol=1e-3, atol=1e-4)


@pytest.mark.peers
def test_curvature() -> None:
    """Behind a GELU the score bends, and ShapleyCAM differs from Grad-CAM."""
    peer = pytest.importorskip("pytorch_grad_cam")
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.GELU(), nn.Conv2d(6, 5, 3), nn.GELU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(5, 4),
    ).eval()  # fmt: skip
    expected = peer.ShapleyCAM(model, [model[1]])(5 * IMAGES, None)
    found = compat.ShapleyCAM(model, [model[1]])(5 * IMAGES, None)
    np.testing.assert_allclose(found, expected, rtol=0, atol=5e-6)
    assert np.abs(found - compat.GradCAM(model, [model[1]])(5 * IMAGES, None)).max() > 1e-4


@pytest.mark.peers
@pytest.mark.parametrize("name", NAMES)
def test_accelerate(model: nn.Module, name: str) -> None:
    peer = pytest.importorskip("pytorch_grad_cam")
    theirs = getattr(peer, name)(model=model, target_layers=layers_of(model, name))
    np.random.seed(7)  # noqa: NPY002
    expected = theirs(IMAGES.clone(), None)
    fast = compat.accelerate(theirs)
    np.random.seed(7)  # noqa: NPY002
    np.testing.assert_allclose(fast(IMAGES, None), expected, rtol=0, atol=5e-6)
    assert not any(module._forward_hooks for module in model.modules())


FINER = [{}, {"alpha": 0.6}, {"comparison_categories": [1, 2]}, {"target_idx": 2}]


@pytest.mark.peers
@pytest.mark.parametrize("options", FINER)
def test_finer(model: nn.Module, options: dict[str, Any]) -> None:
    peer = pytest.importorskip("pytorch_grad_cam")
    layers = [model.act2, model.act3]
    theirs = peer.FinerCAM(model, layers, base_method=peer.LayerCAM)
    expected = theirs(IMAGES.clone(), None, **options)
    ours = compat.FinerCAM(model, layers, base_method=compat.LayerCAM)
    for cam in (ours, compat.accelerate(theirs)):
        np.testing.assert_allclose(cam(IMAGES, None, **options), expected, rtol=0, atol=5e-6)


@pytest.mark.peers
def test_refined(model: nn.Module) -> None:
    peer = pytest.importorskip("pytorch_grad_cam")
    layers = [model.act2, model.act3]
    theirs = peer.RefineCAM(model, layers)
    expected = theirs(IMAGES.clone(), None)
    with compat.RefineCAM(model, layers) as ours:
        for cam in (ours, compat.accelerate(theirs)):
            np.testing.assert_allclose(cam(IMAGES, None), expected, rtol=0, atol=5e-6)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.peers
@pytest.mark.parametrize("category", [None, 2])
def test_guided_backpropagation(model: nn.Module, category: int | None) -> None:
    peer = pytest.importorskip("pytorch_grad_cam")
    ours = compat.accelerate(peer.GuidedBackpropReLUModel(model, "cpu"))
    found = ours(IMAGES, category)
    kinds = [type(module) for module in model.modules()]
    expected = peer.GuidedBackpropReLUModel(model, "cpu")(IMAGES[:1].clone(), category)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
    assert found.shape == (24, 32, 3)
    assert nn.ReLU in kinds


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
    assert_no_growth(lambda: extractor(IMAGES))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_errors(model: nn.Module) -> None:
    extractor = compat.GradCAM(model, [model.act3])
    with pytest.raises(ValueError, match=r"targets must be one per image \(3\), got 1"):
        extractor(IMAGES, [compat.ClassifierOutputTarget(0)])
    with pytest.raises(TypeError, match="targets must be None or callables"):
        extractor(IMAGES, [0, 1, 2])
    with pytest.raises(ValueError, match="eigen_smooth must be False for this method"):
        compat.FullGrad(model)(IMAGES, None, eigen_smooth=True)
    with pytest.raises(ValueError, match="targets must be callables giving one number per image"):
        extractor(IMAGES, [lambda row: row] * 3)
    with pytest.raises(TypeError, match="base_method must be a class of wsfast"):
        compat.RefineCAM(model, [model.act3], base_method=methods.GradCAM)
    with pytest.raises(ImportError, match=r"has no SESS: wsfast\.cam\.multiscale"):
        from wsfast.compat.grad_cam import SESS  # noqa: F401
    with pytest.raises(ImportError, match="has no AblationLayer: wsfast's AblationCAM needs none"):
        exec("from wsfast.compat.grad_cam import GradCAM, AblationLayer")
    assert not hasattr(compat, "AblationLayer")
    assert getattr(compat, "KPCA_CAM", None) is None
    with pytest.raises(AttributeError, match=r"no attribute 'SESS': wsfast\.cam\.multi"):
        _ = compat.SESS
    with pytest.raises(AttributeError, match="has no attribute 'Grad'"):
        _ = compat.Grad
    with pytest.raises(ValueError, match="detach must be True"):
        compat.GradCAM(model, [model.act3], detach=False)
    with pytest.raises(ValueError, match=r"ratio_channels_to_ablate must be 1\.0"):
        compat.AblationCAM(model, [model.act3], ratio_channels_to_ablate=0.5)
    with pytest.raises(TypeError, match="cam must be a pytorch-grad-cam object of GradCAM"):
        compat.accelerate(object())
    with pytest.raises(IndexError), extractor:
        [][0]
