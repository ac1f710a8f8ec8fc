"""Maps beside pytorch-grad-cam's and torchcam's, where those are installed."""

import pytest
import torch
import torchvision
from torch import Tensor, nn

from tests.cam.nets import GapNet, out_of_place
from wsfast import cam as ours

pytestmark = pytest.mark.peers

PLAIN = ["GradCAM", "XGradCAM", "LayerCAM", "HiResCAM", "FullGrad", "GradCAMPlusPlus"]


def resnet18() -> tuple[nn.Module, list[str]]:
    model = torchvision.models.resnet18(weights=None, num_classes=5)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias, std=0.2)
    return model, ["layer1", "layer2", "layer3", "layer4"]


def vgg11() -> tuple[nn.Module, list[str]]:
    model = torchvision.models.vgg11(weights=None, num_classes=5, init_weights=False)
    model.avgpool, model.classifier = nn.AdaptiveAvgPool2d(1), nn.Linear(512, 5)
    return model, [f"features.{i}" for i in (1, 4, 9, 14, 19)]


def against_pytorch_grad_cam(
    model: nn.Module, layers: list[str], name: str, images: Tensor, **options: object
) -> tuple[Tensor, Tensor]:
    peer = pytest.importorskip("pytorch_grad_cam")
    modules = [model.get_submodule(layer) for layer in layers]
    target = pytest.importorskip("pytorch_grad_cam.utils.model_targets").ClassifierOutputTarget
    with getattr(peer, name)(model=model, target_layers=modules) as cam:
        expected = torch.from_numpy(cam(images, targets=[target(1)] * len(images)))
    if name != "FullGrad":
        options["layers"] = layers
    if name == "GradCAMPlusPlus":
        options["alpha_eps"] = 1e-6
    model.zero_grad(set_to_none=True)
    return getattr(ours, name)(model, **options)(images, 1).cams, expected


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("make", [resnet18, vgg11])
def test_pytorch_grad_cam(name: str, make) -> None:
    model, layers = make()
    out_of_place(model).eval()
    chosen = layers if make is resnet18 else layers[-1:]
    found, expected = against_pytorch_grad_cam(model, chosen, name, torch.randn(2, 3, 48, 64))
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-6)


@pytest.mark.parametrize("name", ["ScoreCAM", "AblationCAM"])
def test_pytorch_grad_cam_without_gradients(name: str) -> None:
    model, images = GapNet().eval(), torch.randn(2, 3, 24, 32)
    model.head.weight.data *= 20
    options = {"align_corners": True} if name == "ScoreCAM" else {"signed": True}
    found, expected = against_pytorch_grad_cam(model, ["act3"], name, images, **options)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["CAM", "GradCAM", "XGradCAM", "LayerCAM"])
def test_torchcam(name: str) -> None:
    methods = pytest.importorskip("torchcam.methods")
    model, images = GapNet().eval(), torch.randn(2, 3, 24, 32)
    layers = ["act3"] if name == "CAM" else ["act1", "act2", "act3"]
    chosen = layers[0] if name == "CAM" else layers
    with getattr(methods, name)(model, target_layer=chosen) as extractor:
        scores = model(images.clone().requires_grad_())
        expected = extractor(1, scores, normalized=False)
    found = getattr(ours, name)(model, layers, **({"relu": False} if name == "CAM" else {}))
    for mine, theirs in zip(found(images, 1).per_layer, expected, strict=True):
        scale = float(theirs.abs().max())
        torch.testing.assert_close(mine, theirs, rtol=0, atol=max(1e-6 * scale, 1e-9) * 5)
